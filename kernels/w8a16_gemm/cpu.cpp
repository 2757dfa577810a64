#include "w8a16_gemm.h"

#include "common/weight_only_core.h"

using namespace codesign::weight_only;

namespace {
constexpr int32_t BITS = 8;
}

#if defined(CODESIGN_HAS_scalar)
extern const Variant codesign_w8a16_gemm_scalar;
#endif
#if defined(CODESIGN_HAS_avx2)
extern const Variant codesign_w8a16_gemm_avx2, codesign_w8a16_gemm_avx512vnni, codesign_w8a16_gemm_avx512;
#endif
#if defined(CODESIGN_HAS_dotprod)
extern const Variant codesign_w8a16_gemm_dotprod, codesign_w8a16_gemm_i8mm;
#endif

namespace {

const Variant *variant(int32_t isa) {
    switch (isa < 0 ? codesign_isa_best() : isa) {
    case CODESIGN_ISA_SCALAR: return &codesign_w8a16_gemm_scalar;
#if defined(CODESIGN_HAS_avx2)
    case CODESIGN_ISA_AVX2: return &codesign_w8a16_gemm_avx2;
    case CODESIGN_ISA_AVX512VNNI: return &codesign_w8a16_gemm_avx512vnni;
    case CODESIGN_ISA_AVX512: return &codesign_w8a16_gemm_avx512;
#endif
#if defined(CODESIGN_HAS_dotprod)
    case CODESIGN_ISA_DOTPROD: return &codesign_w8a16_gemm_dotprod;
    case CODESIGN_ISA_I8MM: return &codesign_w8a16_gemm_i8mm;
#endif
    default: return nullptr;
    }
}

} // namespace

int64_t codesign_w8a16_gemm_packed_bytes(int64_t n, int64_t k, int64_t group, int32_t asymmetric) {
    if (!valid(n, k, group)) return 0;
    const Layout l = layout(BITS, n, k, group, asymmetric != 0);
    return l.panels * l.panel_bytes;
}

int32_t codesign_w8a16_gemm_pack(const uint8_t *codes, const float *scales, const uint8_t *zeros, void *packed,
                                 int64_t n, int64_t k, int64_t group) {
    if (!valid(n, k, group)) return BAD_SHAPE;
    pack(layout(BITS, n, k, group, zeros != nullptr), {codes, scales, zeros}, (uint8_t *)packed);
    return OK;
}

int64_t codesign_w8a16_gemm_workspace_bytes(int64_t m, int64_t n, int64_t k, int64_t group, int32_t threads) {
    if (!valid(n, k, group) || m < 1 || threads < 1) return 0;
    return workspace(layout(BITS, n, k, group, false), m, threads).bytes;
}

int32_t codesign_w8a16_gemm_run(int32_t isa, const void *x, int32_t x_dtype, const void *packed, void *out,
                                int32_t out_dtype, int64_t m, int64_t n, int64_t k, int64_t group, int32_t asymmetric,
                                int32_t threads, void *workspace) {
    if (!valid(n, k, group) || m < 1 || threads < 1) return BAD_SHAPE;
    if (isa >= 0 && !codesign_isa_runs(isa)) return BAD_VARIANT;
    if ((x_dtype | out_dtype) & ~1) return BAD_DTYPE;
    Job job{layout(BITS, n, k, group, asymmetric != 0), x, out, (const uint8_t *)packed, m, x_dtype, out_dtype,
            nullptr, nullptr, nullptr};
    return run(variant(isa), job, threads, workspace);
}
