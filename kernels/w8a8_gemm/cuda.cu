// 8-bit weights and activations on an NVIDIA GPU: rows of activations are rounded first, then multiplied exactly.
#include "common/gpu_number.h"
#include "common/gpu_skinny_gemm.h"

namespace codesign::gpu {

constexpr float LARGEST_CODE = 127.0f, SMALLEST_MAXIMUM = 1e-36f;

// Element q, j, i of a chunk (quarter q of 16, tile j of 8) is input 16 q + 8 j + i; a lane holds 16 inputs of each of
// its two rows of outputs.
struct Int8 {
    static constexpr int CHUNKS = 1, PIECES = 2;

    struct Fetched {
        Words codes[N_TILES][PIECES];
    };

    struct Rows {
        Words of[M_TILES]; // the 16 inputs of a chunk that this lane multiplies
    };

    const Words *codes[N_TILES]; // where this lane's part of each tile and row begins
    const int8_t *rows[M_TILES];
    const float *scales, *x_scales; // of outputs, of rows
    int row_bytes;

    DEVICE void fetch(Fetched &to, int step, bool wanted) const {
#pragma unroll
        for (int tile = 0; tile < N_TILES; tile++)
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++)
                to.codes[tile][piece] = load_once_if(wanted, codes[tile] + (step * PIECES + piece) * LANES);
    }

    DEVICE void load(Rows &to, int chunk) const {
        const int input = chunk * CHUNK;
#pragma unroll
        for (int i = 0; i < M_TILES; i++) load_kept(input < row_bytes, rows[i] + input, to.of[i]);
    }

    // `turn` says which of `inputs` has the step's chunk.
    DEVICE void multiply(const Fetched &own, Rows (&inputs)[2], int step, int turn, Sums<int32_t> &sums) const {
        load(inputs[ROWS_AHEAD ? 1 - turn : 0], step + ROWS_AHEAD);
        const Rows &here = inputs[ROWS_AHEAD ? turn : 0];
#pragma unroll
        for (int n_tile = 0; n_tile < N_TILES; n_tile++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const Words &first = own.codes[n_tile][0], &second = own.codes[n_tile][1];
                const uint32_t a[4] = {first.word[2 * j], second.word[2 * j], first.word[2 * j + 1],
                                       second.word[2 * j + 1]};
#pragma unroll
                for (int m_tile = 0; m_tile < M_TILES; m_tile++) {
                    const uint32_t b[2] = {here.of[m_tile].word[2 * j], here.of[m_tile].word[2 * j + 1]};
                    multiply_int8(sums[m_tile][n_tile], a, b);
                }
            }
    }

    DEVICE uint16_t finish(int32_t sum, int row, int output) const {
        return narrow(float(sum) * x_scales[row] * scales[output]);
    }
};

// `x` is [m][chunks * 64]. Rows beyond the last are the last again, their sums go nowhere.
DEVICE Int8 weights_of(const Words *codes, const float *scales, const int8_t *x, const float *x_scales, int m, int chunks) {
    Int8 to;
#pragma unroll
    for (int i = 0; i < N_TILES; i++)
        to.codes[i] = kept(codes + int64_t(first_tile() + i) * chunks * (Int8::PIECES * LANES) + lane());
    to.row_bytes = chunks * CHUNK;
#pragma unroll
    for (int i = 0; i < M_TILES; i++) {
        const int64_t row = min(i * TILE_ROWS + fragment_row(), m - 1);
        to.rows[i] = kept(x + row * to.row_bytes + 16 * fragment_quarter());
    }
    to.scales = scales, to.x_scales = x_scales;
    return to;
}

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
    const int chunks = (k + CHUNK - 1) / CHUNK;
    const Int8 weights = weights_of(codes, scales, x, x_scales, m, chunks);
    skinny_gemm<Int8, int32_t>(weights, {out, partial, arrived, m, n, padded_outputs(n)}, chunks);
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
