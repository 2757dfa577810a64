#include "roofs.h"

#include "common/pool.h"
#include "common/variants.h"
#include "probes.h"

#include <cstddef>
#include <vector>

CODESIGN_VARIANTS(codesign_roof_variant, roof)

namespace {

constexpr int64_t CHUNK = 4096; // parts of threads begin on pages

const codesign_roof_variant *variant_or_scalar(int32_t isa) {
    const codesign_roof_variant *found = variant_of(VARIANTS, isa);
    return found ? found : VARIANTS[CODESIGN_ISA_SCALAR];
}

struct Part {
    int64_t begin, bytes;
};

Part part_of(int64_t bytes, int32_t thread, int32_t threads) {
    const int64_t each = bytes / threads / CHUNK * CHUNK;
    return {thread * each, each};
}

// Results of threads lie on cache lines of their own.
struct alignas(128) Result {
    uint64_t bits = 0;
    double value = 0;
};

struct Work {
    const codesign_roof_variant *variant;
    char *target;
    const char *source;
    int64_t bytes, passes;
    int32_t rate; // or which way to read
    std::vector<Result> *results;
};

void read_part(void *context, int32_t thread, int32_t threads) {
    const Work &work = *(Work *)context;
    const Part part = part_of(work.bytes, thread, threads);
    (*work.results)[std::size_t(thread)].bits = work.variant->read[work.rate](work.source + part.begin, part.bytes, work.passes);
}

void copy_part(void *context, int32_t thread, int32_t threads) {
    const Work &work = *(Work *)context;
    const Part part = part_of(work.bytes, thread, threads);
    work.variant->copy(work.target + part.begin, work.source + part.begin, part.bytes, work.passes);
}

void compute_part(void *context, int32_t thread, int32_t) {
    const Work &work = *(Work *)context;
    (*work.results)[std::size_t(thread)].value = work.variant->compute[work.rate](work.passes);
}

} // namespace

static uint64_t read_all(int32_t isa, const void *memory, int64_t bytes, int64_t passes, int32_t threads, int32_t way) {
    std::vector<Result> results(static_cast<std::size_t>(threads));
    Work work{variant_or_scalar(isa), nullptr, (const char *)memory, bytes, passes, way, &results};
    codesign_parallel(threads, read_part, &work);
    uint64_t sum = 0;
    for (const Result &one : results) sum += one.bits;
    return sum;
}

uint64_t codesign_roof_read(int32_t isa, const void *memory, int64_t bytes, int64_t passes, int32_t threads) {
    return read_all(isa, memory, bytes, passes, threads, 0);
}

uint64_t codesign_roof_read_in_order(int32_t isa, const void *memory, int64_t bytes, int64_t passes, int32_t threads) {
    return read_all(isa, memory, bytes, passes, threads, 1);
}

uint64_t codesign_roof_copy(int32_t isa, void *target, const void *source, int64_t bytes, int64_t passes, int32_t threads) {
    Work work{variant_or_scalar(isa), (char *)target, (const char *)source, bytes, passes, 0, nullptr};
    codesign_parallel(threads, copy_part, &work);
    return ((const unsigned char *)target)[0];
}

double codesign_roof_flop(int32_t isa, int32_t rate, int64_t steps) {
    if (rate < 0 || rate >= CODESIGN_ROOF_RATES) return 0;
    return variant_or_scalar(isa)->flop_per_step[rate] * double(steps);
}

double codesign_roof_compute(int32_t isa, int32_t rate, int64_t steps, int32_t threads) {
    std::vector<Result> results(static_cast<std::size_t>(threads));
    Work work{variant_or_scalar(isa), nullptr, nullptr, 0, steps, rate, &results};
    if (codesign_roof_flop(isa, rate, steps) == 0) return 0;
    codesign_parallel(threads, compute_part, &work);
    double sum = 0;
    for (const Result &one : results) sum += one.value;
    return sum;
}

uint64_t codesign_roof_clock(int64_t steps) {
    uint64_t value = 1;
    for (int64_t i = 0; i < steps / 16; i++) {
#if defined(__x86_64__)
        asm volatile(".rept 16\n\tadd $1, %0\n\t.endr" : "+r"(value));
#elif defined(__aarch64__)
        asm volatile(".rept 16\n\tadd %0, %0, #1\n\t.endr" : "+r"(value));
#else
        for (int j = 0; j < 16; j++) asm volatile("" : "+r"(value) : : ), value += 1;
#endif
    }
    return value;
}
