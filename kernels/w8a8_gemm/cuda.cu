// 8-bit weights and activations on an NVIDIA GPU: rows of activations are rounded first, then multiplied exactly.
#include "common/gpu_number.h"
#include "common/gpu_skinny_gemm.h"

namespace codesign::gpu {

constexpr float LARGEST_CODE = 127.0f, SMALLEST_MAXIMUM = 1e-36f;

// Element q, j, i of a chunk (quarter q of 16, tile j of 8) is input 16 q + 8 j + i; a lane holds 16 inputs of each of
// its two rows of outputs.
struct Int8 {
    static constexpr int PIECES = 2;

    const Words *codes;
    const float *scales; // of outputs
    const int8_t *x;     // [m][chunks * 64]
    const float *x_scales;
    int m, row_bytes;

    DEVICE void multiply(const Words (&chunk_codes)[N_TILES][PIECES], int chunk, Sums<int32_t> &sums) const {
#pragma unroll
        for (int m_tile = 0; m_tile < M_TILES; m_tile++) {
            const int row = m_tile * TILE_ROWS + fragment_row();
            const int64_t place = int64_t(row) * row_bytes + chunk * CHUNK + 16 * fragment_quarter();
            const Words inputs = row < m ? load(x + place) : Words{};
#pragma unroll
            for (int n_tile = 0; n_tile < N_TILES; n_tile++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const Words &first = chunk_codes[n_tile][0], &second = chunk_codes[n_tile][1];
                    const uint32_t a[4] = {first.word[2 * j], second.word[2 * j], first.word[2 * j + 1],
                                           second.word[2 * j + 1]};
                    const uint32_t b[2] = {inputs.word[2 * j], inputs.word[2 * j + 1]};
                    multiply_int8(sums[m_tile][n_tile], a, b);
                }
        }
    }

    DEVICE uint16_t finish(int32_t sum, int row, int output) const {
        return narrow(float(sum) * x_scales[row] * scales[output]);
    }
};

// The largest of the block's numbers, for all its threads.
DEVICE float largest_of_block(float mine) {
    float *shared = (float *)shared_memory();
    for (int mask = LANES / 2; mask; mask /= 2) mine = fmaxf(mine, shuffle_xor(mine, mask));
    if (lane() == 0) shared[warp()] = mine;
    sync_block();
    for (int i = 0; i < WARPS; i++) mine = fmaxf(mine, shared[i]);
    return mine;
}

} // namespace codesign::gpu

// A block per row: codes are the nearest integers of x · 127 / the row's largest, zeros fill the last chunk. A row with
// a NaN or an infinity gets scale NaN.
KERNEL void BOUNDED(codesign::gpu::THREADS)
    round_rows(const uint16_t *x, int8_t *codes, float *scales, int k) {
    using namespace codesign::gpu;
    const int row = block_x(), row_bytes = (k + CHUNK - 1) / CHUNK * CHUNK;
    const uint16_t *from = x + int64_t(row) * k;
    float largest = 0, sum = 0;
    for (int i = thread(); i < k; i += THREADS) {
        const float value = widen(from[i]);
        largest = fmaxf(largest, fabsf(value));
        sum += value - value; // NaN if one is not finite, else 0
    }
    largest = largest_of_block(sum == 0 ? largest : as_float(0x7f800000));
    const float inverse = largest >= SMALLEST_MAXIMUM ? LARGEST_CODE / largest : 0;
    const bool finite = largest <= 3.4e38f;
    for (int i = thread(); i < row_bytes; i += THREADS)
        codes[int64_t(row) * row_bytes + i] = i < k && finite ? int8_t(round_to_int(widen(from[i]) * inverse)) : 0;
    if (thread() == 0) scales[row] = finite ? (inverse ? largest / LARGEST_CODE : 0) : as_float(0x7fc00000);
}
LAUNCHED(round_rows)

KERNEL void BOUNDED(codesign::gpu::THREADS)
    w8a8(const codesign::gpu::Words *codes, const float *scales, const int8_t *x, const float *x_scales, uint16_t *out,
         int32_t *partial, uint32_t *arrived, int m, int n, int k) {
    using namespace codesign::gpu;
    constexpr int OUTPUTS = 4 * TILE_OUTPUTS;
    const int n_padded = (n + OUTPUTS - 1) / OUTPUTS * OUTPUTS, chunks = (k + CHUNK - 1) / CHUNK;
    const Int8 weights = {codes, scales, x, x_scales, m, chunks * CHUNK};
    skinny_gemm<Int8, int32_t>(weights, {out, partial, arrived, m, n, n_padded}, chunks);
}
LAUNCHED(w8a8)

// What a library's product of rounded rows needs: out = sums · scales, 8 outputs per thread, n a multiple of 8. Grid x is
// the row.
KERNEL void BOUNDED(codesign::gpu::THREADS)
    scale_sums(const int32_t *sums, const float *x_scales, const float *scales, uint16_t *out, int n) {
    using namespace codesign::gpu;
    const int output = 8 * (block_y() * THREADS + thread());
    if (output >= n) return;
    const int64_t place = int64_t(block_x()) * n + output;
    Words to;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const Words four = load(sums + place + 4 * half), own = load(scales + output + 4 * half);
        float values[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            values[i] = float(int32_t(four.word[i])) * x_scales[block_x()] * as_float(own.word[i]);
        to.word[2 * half] = pair(values[0], values[1]);
        to.word[2 * half + 1] = pair(values[2], values[3]);
    }
    store(out + place, to);
}
LAUNCHED(scale_sums)
