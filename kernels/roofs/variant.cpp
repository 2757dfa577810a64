// The probes in the widest vectors of each variant. Vector extensions of GCC and Clang serve where one source gives the
// wanted instructions; dot products are named.
#include "probes.h"

#include "common/variants.h"

#include <cstddef>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__ARM_NEON)
#define REGISTER "+w"
#elif defined(__x86_64__)
#define REGISTER "+x"
#else
#define REGISTER "+m"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX2__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif

typedef uint64_t words __attribute__((vector_size(WIDTH), may_alias, aligned(WIDTH)));
typedef float floats __attribute__((vector_size(WIDTH)));
typedef int32_t integers __attribute__((vector_size(WIDTH)));

// Independent sums: enough to cover the latency of four to six cycles at two operations per cycle.
constexpr int SUMS = 12;

template <int STREAMS> uint64_t read(const void *memory, int64_t bytes, int64_t passes) {
    // Streams a multiple of 4,096 bytes apart would share one set of the first cache.
    const int64_t stagger = STREAMS > 1 && bytes >= (int64_t(1) << 20) ? 5 * 64 : 0;
    const int64_t part = bytes / STREAMS / WIDTH * WIDTH - stagger;
    constexpr int UNROLL = STREAMS > 1 ? 1 : 8; // one stream still wants independent sums
    words sums[STREAMS * UNROLL] = {};
    for (int64_t pass = 0; pass < passes; pass++) {
        for (int64_t at = 0; at + WIDTH * UNROLL <= part; at += WIDTH * UNROLL)
            for (int stream = 0; stream < STREAMS; stream++)
                for (int i = 0; i < UNROLL; i++)
                    sums[stream * UNROLL + i] += *(const words *)((const char *)memory + stream * part + at + i * WIDTH);
        asm volatile("" : : "r"(memory) : "memory"); // the next pass reads again
    }
    words sum = {};
    for (const words &one : sums) sum += one;
    uint64_t total = 0;
    for (size_t i = 0; i < WIDTH / sizeof(uint64_t); i++) total += sum[i];
    return total;
}

void copy(void *target, const void *source, int64_t bytes, int64_t passes) {
    for (int64_t pass = 0; pass < passes; pass++) {
        for (int64_t at = 0; at + WIDTH <= bytes; at += WIDTH)
            *(words *)((char *)target + at) = *(const words *)((const char *)source + at);
        asm volatile("" : : "r"(target), "r"(source) : "memory");
    }
}

template <class Vector> double total_of(const Vector (&sums)[SUMS]) {
    Vector sum = sums[0];
    for (int i = 1; i < SUMS; i++) sum += sums[i];
    double total = 0;
    for (size_t i = 0; i < sizeof(Vector) / sizeof(sum[0]); i++) total += double(sum[i]);
    return total;
}

// Sums a copy: an array whose address is passed on would live in memory during the loop.
#define SUM_UP(sums, LANES)                                                                                               \
    do {                                                                                                               \
        LANES found[SUMS];                                                                                             \
        memcpy(found, sums, sizeof found);                                                                             \
        return total_of(found);                                                                                        \
    } while (0)

double fp32(int64_t steps) {
    floats sums[SUMS], factor = {}, addend = {};
    factor += 0.999f;
    addend += 1e-3f;
#pragma GCC unroll 12
    for (floats &sum : sums) sum = addend;
    asm volatile("" : "+m"(factor), "+m"(addend)); // not known to the compiler
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (floats &sum : sums) {
            sum = sum * factor + addend;
            asm volatile("" : REGISTER(sum)); // each sum is its own: equal ones would be computed once
        }
    SUM_UP(sums, floats);
}

#if defined(__AVX512BF16__)
double bf16(int64_t steps) {
    floats sums[SUMS] = {};
    const __m512i bits = _mm512_set1_epi16(0x3c23); // about 0.01
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (floats &sum : sums) asm volatile("vdpbf16ps %1, %1, %0" : "+x"(sum) : "x"(bits));
    SUM_UP(sums, floats);
}
constexpr double BF16_FLOP = 2.0 * SUMS * 32;
#elif defined(__ARM_FEATURE_BF16)
double bf16(int64_t steps) {
    float32x4_t sums[SUMS] = {};
    bfloat16x8_t bits = vreinterpretq_bf16_u16(vdupq_n_u16(0x3c23));
    asm volatile("" : "+w"(bits));
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (float32x4_t &sum : sums) {
            sum = vbfmmlaq_f32(sum, bits, bits);
            asm volatile("" : REGISTER(sum));
        }
    SUM_UP(sums, floats);
}
constexpr double BF16_FLOP = 2.0 * SUMS * 16;
#else
constexpr double (*bf16)(int64_t) = nullptr;
constexpr double BF16_FLOP = 0;
#endif

#if defined(__AVX512VNNI__)
double int8(int64_t steps) {
    __m512i sums[SUMS] = {}, bytes = _mm512_set1_epi8(1);
    asm volatile("" : "+x"(bytes));
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (__m512i &sum : sums) asm volatile("vpdpbusd %1, %1, %0" : "+x"(sum) : "x"(bytes));
    SUM_UP(sums, integers);
}
constexpr double INT8_FLOP = 2.0 * SUMS * 64;
#elif defined(__AVX2__)
double int8(int64_t steps) {
    __m256i sums[SUMS] = {}, bytes = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (__m256i &sum : sums) {
            __m256i operand = bytes;
            asm volatile("" : "+x"(operand)); // else the product leaves the loop
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(operand, operand), ones));
        }
    SUM_UP(sums, integers);
}
constexpr double INT8_FLOP = 2.0 * SUMS * 32;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
double int8(int64_t steps) {
    int32x4_t sums[SUMS] = {};
    int8x16_t bytes = vdupq_n_s8(1);
    asm volatile("" : "+w"(bytes));
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (int32x4_t &sum : sums) {
            sum = vmmlaq_s32(sum, bytes, bytes);
            asm volatile("" : REGISTER(sum));
        }
    SUM_UP(sums, integers);
}
constexpr double INT8_FLOP = 2.0 * SUMS * 32;
#elif defined(__ARM_FEATURE_DOTPROD)
double int8(int64_t steps) {
    int32x4_t sums[SUMS] = {};
    int8x16_t bytes = vdupq_n_s8(1);
    asm volatile("" : "+w"(bytes));
    for (int64_t step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (int32x4_t &sum : sums) {
            sum = vdotq_s32(sum, bytes, bytes);
            asm volatile("" : REGISTER(sum));
        }
    SUM_UP(sums, integers);
}
constexpr double INT8_FLOP = 2.0 * SUMS * 16;
#else
constexpr double (*int8)(int64_t) = nullptr;
constexpr double INT8_FLOP = 0;
#endif

} // namespace

extern const codesign_roof_variant CODESIGN_VARIANT_OF(roof) = {
    {read<8>, read<1>}, copy, {fp32, bf16, int8}, {2.0 * SUMS * WIDTH / 4, BF16_FLOP, INT8_FLOP}};
