#include "common/weight_only_cases.h"
#include "w8a16_gemm.h"

int main(int argc, char **argv) {
    return run_cases(argc, argv, [](FILE *source, FILE *target) { return run_one(&codesign_w8a16_gemm, source, target); });
}
