// Attention of one new token per sequence over a cache of keys and values, on an NVIDIA GPU.
//
// Query heads that share a head of keys are the rows of the tensor cores' products, up to 16 of them. The cache is cut
// over the blocks of grid x and over their warps; each keeps the largest score, the sum and the weighted values so far,
// and the last block to end puts them together.
//
// Layout of the cache, per sequence and head: steps of STEP tokens. Keys lie token by token; values dimension by
// dimension, so that 16 bytes are consecutive tokens of one dimension. Formats: half precision or bfloat16, e4m3, or
// codes of 8 or 4 bits with a half-precision scale for each token's keys and values.
#define CODESIGN_BITS CODESIGN_KV_BITS
#include "common/gpu_codes.h"
#include "common/gpu_last_block.h"

namespace codesign::gpu {

constexpr int LANES = 32, WARPS = 4, THREADS = LANES * WARPS;
constexpr int HEAD_DIM = CODESIGN_HEAD_DIM, KV_BITS = CODESIGN_KV_BITS;
constexpr int ROWS = 16;                  // query heads of a fragment
constexpr int TOKENS = 128 / KV_BITS;     // in 16 bytes of values
constexpr int STEP = 4 * TOKENS;          // the lanes that share a row hold a step's tokens
constexpr int TOKEN_TILES = STEP / 8;     // of a step of scores
constexpr int DIM_TILES = HEAD_DIM / 16;  // of the scores' inner dimension
constexpr int KEY_WORDS = HEAD_DIM * KV_BITS / 32 / 4 < 4 ? HEAD_DIM * KV_BITS / 32 / 4 : 4; // that a lane reads at once
constexpr int KEY_DIMS = KEY_WORDS * 32 / KV_BITS, KEY_PIECES = HEAD_DIM / 4 / KEY_DIMS;
constexpr bool HAS_SCALES = KV_BITS < 16 && !CODESIGN_E4M3;
constexpr int REGISTERS_MAX = KV_BITS == 4 ? 255 : 240; // two blocks find room; left alone the compiler spills
constexpr float LOG2_E = 1.4426950408889634f;

DEVICE int lane() { return thread() % LANES; }
DEVICE int warp() { return thread() / LANES; }
DEVICE int fragment_row() { return lane() / 4; }
DEVICE int fragment_quarter() { return lane() % 4; }

// The token of a step that is column `column` of score tile `tile`: so ordered that a lane's scores are of the tokens
// that its 16 bytes of values hold.
DEVICE int token_of(int tile, int column) { return column / 2 * TOKENS + 2 * tile + column % 2; }

// Two pairs of a fragment: numbers 4 i to 4 i + 3 of some words. Of 4-bit codes pairs are nibbles p and p + 4.
template <int COUNT> DEVICE void four_numbers(uint32_t (&b)[2], const uint32_t (&words)[COUNT], int i) {
    if (KV_BITS == 16) {
        b[0] = words[2 * i % COUNT], b[1] = words[(2 * i + 1) % COUNT];
    } else if (KV_BITS == 8) {
        decode_bytes(b, words[i % COUNT], twice(-MAGIC_VALUE - 128.0f));
    } else {
        const uint32_t codes = words[i / 2 % COUNT] >> 8 * (i % 2), minus = twice(-MAGIC_VALUE - 8.0f);
        b[0] = fma(codes & 0x000f000fu | MAGIC, twice(1.0f), minus);
        b[1] = fma(codes >> 4 & 0x000f000fu | MAGIC, twice(1.0f), minus);
    }
}

// One sequence's cache of one head.
struct Cache {
    const uint32_t *keys, *values;
    const uint16_t *key_scales, *value_scales;
};

struct State {
    float largest[2], sum[2];           // of rows g and g + 8
    float values[HEAD_DIM / 8][4];      // weighted by exp2(score - largest)
    uint32_t queries[DIM_TILES][4];
};

// Pairs of the queries as the keys are read: quarter q of piece c, tile j, element i is dimension
// (4 c + q) · KEY_DIMS + 4 j + i.
DEVICE void load_queries(State &state, const uint16_t *q, int rows) {
#pragma unroll
    for (int tile = 0; tile < DIM_TILES; tile++) {
        const int piece = tile * 4 / KEY_DIMS, j = tile % (KEY_DIMS / 4);
        const int dim = (4 * piece + fragment_quarter()) * KEY_DIMS + 4 * j;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int row = fragment_row() + 8 * (part % 2);
            const uint16_t *from = q + row * HEAD_DIM + dim + 2 * (part / 2);
            state.queries[tile][part] = row < rows ? from[0] | uint32_t(from[1]) << 16 : 0;
        }
    }
}

DEVICE void load_keys(uint32_t (&words)[KEY_WORDS], const uint32_t *from) {
    if (KEY_WORDS == 4) {
        const Words four = load_once((const Words *)from);
#pragma unroll
        for (int i = 0; i < KEY_WORDS; i++) words[i] = four.word[i];
    } else {
#pragma unroll
        for (int i = 0; i < KEY_WORDS; i++) words[i] = from[i];
    }
}

// Scores of a step in powers of two; of tokens from `left` on, minus infinity.
DEVICE void score_step(float (&scores)[TOKEN_TILES][4], const State &state, const Cache &cache, int64_t first, int left,
                       float scale) {
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
        const uint32_t *row = cache.keys + (first + token_of(tile, fragment_row())) * (HEAD_DIM * KV_BITS / 32);
#pragma unroll
        for (int c = 0; c < 4; c++) scores[tile][c] = 0;
#pragma unroll
        for (int piece = 0; piece < KEY_PIECES; piece++) {
            uint32_t words[KEY_WORDS];
            load_keys(words, row + (4 * piece + fragment_quarter()) * KEY_WORDS);
#pragma unroll
            for (int j = 0; j < KEY_DIMS / 4; j++) {
                uint32_t b[2];
                four_numbers(b, words, j);
                gpu::multiply(scores[tile], state.queries[piece * (KEY_DIMS / 4) + j], b);
            }
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int token = token_of(tile, 2 * fragment_quarter() + c % 2);
            const float own = HAS_SCALES ? float_of_half(cache.key_scales[first + token]) : DECODED_FACTOR;
            scores[tile][c] = token < left ? scores[tile][c] * own * scale : as_float(0xff800000);
        }
    }
}

// exp2 of scores minus the largest so far; what was summed before is scaled down.
DEVICE void soften_step(float (&scores)[TOKEN_TILES][4], State &state) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float largest = state.largest[r];
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++)
            largest = fmaxf(largest, fmaxf(scores[tile][2 * r], scores[tile][2 * r + 1]));
        for (int mask = 1; mask < 4; mask *= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
        const float shrink = power_of_two(state.largest[r] - largest);
        state.largest[r] = largest;
        state.sum[r] *= shrink;
#pragma unroll
        for (int tile = 0; tile < HEAD_DIM / 8; tile++)
            state.values[tile][2 * r] *= shrink, state.values[tile][2 * r + 1] *= shrink;
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++)
#pragma unroll
            for (int c = 2 * r; c < 2 * r + 2; c++) {
                scores[tile][c] = power_of_two(scores[tile][c] - largest);
                state.sum[r] += scores[tile][c];
            }
    }
}

DEVICE void add_values(State &state, const float (&weights)[TOKEN_TILES][4], const Cache &cache, int64_t first) {
    uint32_t a[TOKEN_TILES / 2][4];
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
        float own[2] = {DECODED_FACTOR, DECODED_FACTOR};
        if (HAS_SCALES)
#pragma unroll
            for (int i = 0; i < 2; i++)
                own[i] = float_of_half(cache.value_scales[first + token_of(tile, 2 * fragment_quarter() + i)]);
        const float(&of)[4] = weights[tile];
        a[tile / 2][tile % 2 * 2] = pair(of[0] * own[0], of[1] * own[1]);
        a[tile / 2][tile % 2 * 2 + 1] = pair(of[2] * own[0], of[3] * own[1]);
    }
#pragma unroll
    for (int tile = 0; tile < HEAD_DIM / 8; tile++) {
        const uint32_t *step = cache.values + first * (HEAD_DIM * KV_BITS / 32);
        const Words words = load_once((const Words *)step + (8 * tile + fragment_row()) * 4 + fragment_quarter());
#pragma unroll
        for (int part = 0; part < TOKENS / 4; part++) {
            uint32_t b[2];
            four_numbers(b, words.word, part);
            gpu::multiply(state.values[tile], a[part], b);
        }
    }
}

// A row's share of the result: the largest score, the sum, and HEAD_DIM weighted values.
constexpr int SHARE = HEAD_DIM + 2;
constexpr int BLOCK_SHARES = WARPS * ROWS * SHARE; // floats; behind them are what `Shares` needs for `WARPS` shares

// Shares of each row, `count` of them, `stride` floats apart, `row_stride` from row to row.
struct Shares {
    const float *first;
    int rows, count, stride, row_stride;
    float *weights; // [rows][count], of shared memory
    float *totals;  // [rows][2], the largest score and the sum of all, of shared memory

    DEVICE const float *share(int row, int i) const { return first + int64_t(row) * row_stride + int64_t(i) * stride; }

    // What each share counts beside the others; a warp takes every fourth row, a lane every 32nd share.
    DEVICE void weigh() const {
        for (int row = warp(); row < rows; row += WARPS) {
            float largest = -3e38f, sum = 0;
            for (int i = lane(); i < count; i += LANES) largest = fmaxf(largest, share(row, i)[0]);
            for (int mask = LANES / 2; mask; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
            for (int i = lane(); i < count; i += LANES) {
                const float weight = power_of_two(share(row, i)[0] - largest);
                weights[row * count + i] = weight;
                sum += weight * share(row, i)[1];
            }
            for (int mask = LANES / 2; mask; mask /= 2) sum += shuffle_xor(sum, mask);
            if (lane() == 0) totals[2 * row] = largest, totals[2 * row + 1] = sum;
        }
        sync_block();
    }
};

// Threads beside each other take neighbouring dimensions; each takes some rows at a time, whose loads are in flight at once.
constexpr int ROW_STEP = THREADS / HEAD_DIM, ROWS_AT_ONCE = 4;

// Calls `write(row, dim, value)` for the sum of all shares, before it is divided.
template <class Write> DEVICE void put_together(const Shares &shares, Write write) {
    const int dim = thread() % HEAD_DIM;
#pragma unroll 1
    for (int first = thread() / HEAD_DIM; first < shares.rows; first += ROWS_AT_ONCE * ROW_STEP) {
        float values[ROWS_AT_ONCE] = {};
#pragma unroll 4
        for (int part = 0; part < shares.count; part++)
#pragma unroll
            for (int i = 0; i < ROWS_AT_ONCE; i++) {
                const int row = min(first + i * ROW_STEP, shares.rows - 1);
                values[i] += shares.weights[row * shares.count + part] * shares.share(row, part)[2 + dim];
            }
#pragma unroll
        for (int i = 0; i < ROWS_AT_ONCE; i++)
            if (first + i * ROW_STEP < shares.rows) write(first + i * ROW_STEP, dim, values[i]);
    }
}

DEVICE void write_rows(uint16_t *out, const Shares &shares) {
    put_together(shares, [&](int row, int dim, float value) {
        out[row * HEAD_DIM + dim] = narrow(value / shares.totals[2 * row + 1]);
    });
}

DEVICE void keep_share(const State &state, float *shared) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = state.sum[r];
        for (int mask = 1; mask < 4; mask *= 2) sum += shuffle_xor(sum, mask);
        float *share = shared + (warp() * ROWS + fragment_row() + 8 * r) * SHARE;
        if (fragment_quarter() == 0) share[0] = state.largest[r], share[1] = sum;
#pragma unroll
        for (int tile = 0; tile < HEAD_DIM / 8; tile++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                share[2 + 8 * tile + 2 * fragment_quarter() + c] = state.values[tile][2 * r + c];
    }
}

// Where a head's results go, and what its blocks leave for the last of them: [rows][parts][SHARE].
struct Output {
    uint16_t *out;
    float *partial;
    uint32_t *arrived;
    int rows, parts;
};

// Puts the shares of the block's warps together, and as the last block of the head those of all blocks.
DEVICE_CALL void finish(Output to) {
    const int rows = to.rows, parts = to.parts;
    float *shared = (float *)shared_memory();
    sync_block();
    const Shares here = {shared, rows, WARPS, ROWS * SHARE, SHARE, shared + BLOCK_SHARES,
                         shared + BLOCK_SHARES + ROWS * WARPS};
    here.weigh();
    if (parts == 1) return write_rows(to.out, here);
    put_together(here, [&](int row, int dim, float value) {
        float *share = to.partial + (int64_t(row) * parts + block_x()) * SHARE;
        share[2 + dim] = value;
        if (dim < 2) share[dim] = here.totals[2 * row + dim];
    });
    if (!is_last(to.arrived, parts)) return;
    const Shares all = {to.partial, rows, parts, SHARE, parts * SHARE, shared + 2 * ROWS + 1, shared + 1};
    all.weigh();
    write_rows(to.out, all);
    if (thread() == 0) to.arrived[0] = 0;
}

} // namespace codesign::gpu

// q and out are [batch][kv_heads][rows][HEAD_DIM]; grid is (parts, kv_heads, batch). `partial` holds
// [batch][kv_heads][rows][parts][SHARE] floats, `arrived` [batch][kv_heads] zeros.
KERNEL void BOUNDED_REGISTERS(codesign::gpu::REGISTERS_MAX)
    attend(const uint16_t *q, const uint32_t *keys, const uint32_t *values, const uint16_t *key_scales,
           const uint16_t *value_scales, const int32_t *lengths, uint16_t *out, float *partial, uint32_t *arrived,
           int rows, int capacity, float scale) {
    using namespace codesign::gpu;
    const int parts = grid_x(), length = lengths[block_z()], steps = (length + STEP - 1) / STEP;
    const int64_t head = int64_t(block_z()) * grid_y() + block_y(), token = head * capacity;
    const int64_t word = token * (HEAD_DIM * KV_BITS / 32);
    const Cache cache = {keys + word, values + word, key_scales + token, value_scales + token};
    State state = {};
    state.largest[0] = state.largest[1] = -3e38f;
    load_queries(state, q + head * rows * HEAD_DIM, rows);
    const int end = int(int64_t(steps) * (block_x() + 1) / parts);
    for (int step = int(int64_t(steps) * block_x() / parts) + warp(); step < end; step += WARPS) {
        float scores[TOKEN_TILES][4];
        score_step(scores, state, cache, int64_t(step) * STEP, length - step * STEP, scale * LOG2_E);
        soften_step(scores, state);
        add_values(state, scores, cache, int64_t(step) * STEP);
    }
    keep_share(state, (float *)shared_memory());
    finish({out + head * rows * HEAD_DIM, partial + head * rows * parts * SHARE, arrived + head, rows, parts});
}
LAUNCHED(attend)

namespace codesign::gpu {

// Where element `at` of a word's numbers stands: 4-bit codes 0, 1 are nibbles 0 and 4, and so on.
DEVICE int bit_of(int at) { return KV_BITS == 4 ? 4 * (at / 2 + 4 * (at % 2)) : KV_BITS * at; }

constexpr int PER_WORD = 32 / KV_BITS, LARGEST = KV_BITS == 4 ? 7 : 127, MIDDLE = KV_BITS == 4 ? 8 : 128;

// e4m3 of a number, ties to even, at most 448: 2^-120 of it has the exponent of e4m3 where a float has its own.
DEVICE uint32_t e4m3_of(float x) {
    const uint32_t bits = as_bits(fabsf(x) * 0x1p-120f), rounded = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
    return (as_bits(x) >> 24 & 0x80) | min(rounded, 0x7eu);
}

// The bits that stand for a number: as it is, as e4m3, or the nearest code counted from the middle.
DEVICE uint32_t bits_of(uint16_t number, float inverse) {
    if (KV_BITS == 16) return number;
    if (CODESIGN_E4M3) return e4m3_of(widen(number));
    const int32_t code = round_to_int(widen(number) * inverse);
    return uint32_t(min(max(code, -LARGEST), LARGEST) + MIDDLE);
}

// The largest number of a vector of HEAD_DIM, for all lanes.
DEVICE float largest_of(const uint16_t *vector) {
    float largest = 0;
    for (int dim = lane(); dim < HEAD_DIM; dim += LANES) largest = fmaxf(largest, fabsf(widen(vector[dim])));
    for (int mask = LANES / 2; mask; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    return largest;
}

// One sequence's cache of one head, to be written.
struct Room {
    uint32_t *keys, *values;
    uint16_t *key_scales, *value_scales;
};

// Rounds one token of keys and values of a head and puts it at its place.
DEVICE void append_token(const uint16_t *key, const uint16_t *value, const Room &room, int token) {
    float inverse[2] = {1, 1};
    for (int i = 0; i < 2 && HAS_SCALES; i++) {
        const uint16_t scale = uint16_t(half_pair(largest_of(i ? value : key) / LARGEST, 0));
        inverse[i] = scale ? 1 / float_of_half(scale) : 0;
        if (lane() == 0) (i ? room.value_scales : room.key_scales)[token] = scale;
    }
    uint32_t *row = room.keys + int64_t(token) * (HEAD_DIM / PER_WORD);
    for (int word = lane(); word < HEAD_DIM / PER_WORD; word += LANES) {
        uint32_t bits = 0;
        for (int at = 0; at < PER_WORD; at++) bits |= bits_of(key[word * PER_WORD + at], inverse[0]) << bit_of(at);
        row[word] = bits;
    }
    // Words of a step: [HEAD_DIM][4 quarters][4]. Each dimension's are one lane's, for all tokens.
    uint32_t *step = room.values + int64_t(token / STEP) * STEP * (HEAD_DIM / PER_WORD);
    const int place = token % STEP / PER_WORD, bit = bit_of(token % STEP % PER_WORD);
    const uint32_t mask = ((1u << KV_BITS) - 1) << bit;
    for (int dim = lane(); dim < HEAD_DIM; dim += LANES) {
        uint32_t &word = step[dim * 16 + place];
        word = (word & ~mask) | bits_of(value[dim], inverse[1]) << bit;
    }
}

} // namespace codesign::gpu

// Puts `count` tokens of keys and values [batch][kv_heads][count][HEAD_DIM] behind the `lengths` that are cached; a warp
// for each head (grid x) and sequence (grid y).
KERNEL void BOUNDED(32)
    append(const uint16_t *new_keys, const uint16_t *new_values, uint32_t *keys, uint32_t *values, uint16_t *key_scales,
           uint16_t *value_scales, const int32_t *lengths, int capacity, int count) {
    using namespace codesign::gpu;
    const int64_t head = int64_t(block_y()) * grid_x() + block_x(), first = head * capacity;
    const int64_t word = first * (HEAD_DIM / PER_WORD), given = head * count * HEAD_DIM;
    const Room room = {keys + word, values + word, key_scales + first, value_scales + first};
    for (int i = 0; i < count; i++)
        append_token(new_keys + given + i * HEAD_DIM, new_values + given + i * HEAD_DIM, room, lengths[block_y()] + i);
}
LAUNCHED(append)
