// NEON with dot products of bytes. Activations become two signed bytes each, as in weight_only_vnni.h. Without i8mm the
// dot product wants signed codes: those of 8 bits count from 128 there, and so do their zero points.
#pragma once

#include "weight_only_rounded.h"

#include <arm_neon.h>

namespace {
namespace neon {

using namespace codesign::weight_only;

constexpr int VECTORS = COLUMNS / 4, V = 4; // of a panel, of a tile

inline float read(const Job &job, int64_t at) {
    return job.x_dtype == FLOAT32 ? ((const float *)job.x)[at] : float_of_bf16(((const uint16_t *)job.x)[at]);
}

inline uint32_t largest_bits(const Job &job, int64_t at, int64_t length) {
    uint32_t most = 0;
    for (int64_t i = 0; i < length; i++) {
        const uint32_t bits = bits_of_float(read(job, at + i)) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

// Four high bytes, four low bytes, and so on.
inline int32_t split(const Job &job, int64_t at, int64_t length, float inverse, uint8_t *out) {
    int32_t sum = 0;
    for (int64_t i = 0; i < length; i++) {
        const int32_t q = vcvtns_s32_f32(read(job, at + i) * inverse);
        out[i / 4 * 8 + i % 4] = uint8_t((q + 128) >> 8);
        out[i / 4 * 8 + 4 + i % 4] = uint8_t(q);
        sum += q;
    }
    return sum;
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
using Codes = uint8x16_t;
constexpr int32_t CODE_ORIGIN = 0;
inline Codes signed_if_needed(uint8x16_t codes) { return codes; }
template <int LANE> inline int32x4_t dot(int32x4_t sum, Codes codes, int8x16_t bytes) {
    return vusdotq_laneq_s32(sum, codes, bytes, LANE);
}
#else
using Codes = int8x16_t;
constexpr int32_t CODE_ORIGIN = 128;
inline Codes signed_if_needed(uint8x16_t codes) { return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128))); }
template <int LANE> inline int32x4_t dot(int32x4_t sum, Codes codes, int8x16_t bytes) {
    return vdotq_laneq_s32(sum, codes, bytes, LANE);
}
#endif

template <int BITS> constexpr int32_t ORIGIN = BITS == 8 ? CODE_ORIGIN : 0;

template <int R> struct Sums {
    int32x4_t high[R][V], low[R][V];
};

// Four of k, the first (STEP 0) or the second half of 16 bytes of activations.
template <int R, int STEP> inline void add(Sums<R> &sums, const Codes (&w)[V], const int8x16_t (&x)[R]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            sums.high[r][v] = dot<STEP * 2>(sums.high[r][v], w[v], x[r]);
            sums.low[r][v] = dot<STEP * 2 + 1>(sums.low[r][v], w[v], x[r]);
        }
}

template <int BITS> inline Codes codes_of(const uint8_t *at, int half) {
    const uint8x16_t bytes = vld1q_u8(at + (BITS == 8 ? half * COLUMNS * 4 : 0));
    if (BITS == 8) return signed_if_needed(bytes);
    const uint8x16_t nibbles = half ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
    return (Codes)nibbles;
}

template <int BITS, int R>
inline void multiply(Sums<R> &sums, const uint8_t *codes, int64_t length, const int8_t *rows, int64_t stride) {
    for (int64_t k = 0; k < length; k += 8, codes += COLUMNS * BITS) {
        int8x16_t x[R];
        for (int r = 0; r < R; r++) x[r] = vld1q_s8(rows + r * stride * 2 + k * 2);
        Codes w[V];
        for (int v = 0; v < V; v++) w[v] = codes_of<BITS>(codes + v * 16, 0);
        add<R, 0>(sums, w, x);
        for (int v = 0; v < V; v++) w[v] = codes_of<BITS>(codes + v * 16, 1);
        add<R, 1>(sums, w, x);
    }
}

template <int BITS, bool ASYMMETRIC> inline int32x4_t zeros_of(const uint8_t *zeros, int v) {
    if (!ASYMMETRIC) return vdupq_n_s32((1 << (BITS - 1)) - ORIGIN<BITS>);
    int32_t four[4];
    for (int i = 0; i < 4; i++) four[i] = int32_t(zeros[v * 4 + i]) - ORIGIN<BITS>;
    return vld1q_s32(four);
}

template <int BITS, int R, bool ASYMMETRIC>
void tile(const Job &job, int64_t panel, int64_t b, int64_t row, float *out) {
    const Layout &l = job.weights;
    const uint8_t *base = job.packed + panel * l.panel_bytes, *meta = base + l.meta_offset(l.group ? b : 0);
    const int8_t *rows = (const int8_t *)job.rows + (b * job.m + row) * l.block * 2;
    for (int first = 0; first < VECTORS; first += V) {
        Sums<R> sums = {};
        multiply<BITS, R>(sums, base + l.code_offset(b) + first * 16, l.block_k(b), rows, l.block);
        for (int v = 0; v < V; v++) {
            const float32x4_t scales = vcvt_f32_f16(vld1_f16((const float16_t *)(meta + (first + v) * 8)));
            const int32x4_t zeros = zeros_of<BITS, ASYMMETRIC>(meta + COLUMNS * 2, first + v);
            for (int r = 0; r < R; r++) {
                const int64_t at = (row + r) * l.blocks + b;
                const int32x4_t whole = vaddq_s32(vshlq_n_s32(sums.high[r][v], 8), sums.low[r][v]);
                const int32x4_t exact = vmlsq_n_s32(whole, zeros, job.row_sums[at]);
                const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(exact), job.row_scales[at]);
                float *to = out + r * COLUMNS + (first + v) * 4;
                vst1q_f32(to, vfmaq_f32(vld1q_f32(to), scaled, scales));
            }
        }
    }
}

// By rows; 24 accumulators at most.
template <int BITS, bool ASYMMETRIC>
constexpr rounded::Tile TILES[] = {nullptr, tile<BITS, 1, ASYMMETRIC>, tile<BITS, 2, ASYMMETRIC>, tile<BITS, 3, ASYMMETRIC>};
constexpr int64_t TALLEST = 3;

template <int BITS> void panel(const Job &job, int64_t p, Scratch scratch) {
    rounded::panel<TALLEST>(job, p, scratch, job.weights.asymmetric ? TILES<BITS, true> : TILES<BITS, false>);
}

template <int BITS> constexpr Variant table() { return {rounded::prepare<largest_bits, split>, panel<BITS>}; }

} // namespace neon
} // namespace
