// What the kernels with 16-bit activations (w4a16_gemm, w8a16_gemm) share inside: the packed layout, the job that the
// variants work on, and the table that each variant exports. For the interface see weight_only_gemm.h.
//
// Packed weights, one stream per panel of 32 columns, in the order in which a kernel reads them:
//   float    multiplier[32]                    a power of two (grouped) or the scale (per channel) of each column
//   meta                                       per channel: once, here
//   { meta, codes }                            grouped: per group; per channel: codes only, per block of 256
// meta is 32 fp16 scales, divided by the column's multiplier, and, when asymmetric, 32 zero points as bytes.
// Codes of 8 bits: [k / 4][32 columns][4 of k]. Codes of 4 bits: [k / 8][32 columns][4 bytes], a byte j holds k + j in
// its low and k + 4 + j in its high half.
#pragma once

#include <cstdint>

namespace codesign {
namespace weight_only {

constexpr int64_t COLUMNS = 32;         // of a panel: six rows of it fill the registers of AVX-512 (two bytes each)
constexpr int64_t MAX_BLOCK = 256;      // of k: the longest exact sum of 16-bit times 8-bit products in 32 bits
constexpr int64_t MAX_ROWS = 384;       // that share one pass over a panel: their sums stay in the second-level cache
constexpr int64_t ROW_BYTES_PER_K = 4;  // of prepared activations, enough for every variant

enum error : int32_t { OK = 0, BAD_SHAPE = 1, BAD_VARIANT = 2, BAD_DTYPE = 3 };
enum dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

struct Layout {
    int64_t n, k, group, block, blocks, panels, meta_bytes, panel_bytes;
    int32_t bits;
    bool asymmetric;

    int64_t block_k(int64_t b) const { return b + 1 < blocks ? block : k - b * block; }
    int64_t code_bytes(int64_t block_length) const { return COLUMNS * block_length * bits / 8; }
    // Offsets in a panel. Every block but the last is full.
    int64_t meta_offset(int64_t b) const {
        return COLUMNS * 4 + (group ? b * (meta_bytes + code_bytes(block)) : 0);
    }
    int64_t code_offset(int64_t b) const {
        return COLUMNS * 4 + meta_bytes + b * (code_bytes(block) + (group ? meta_bytes : 0));
    }
};

inline bool valid(int64_t n, int64_t k, int64_t group) {
    return n >= 1 && k >= 32 && k % 32 == 0 && (group == 0 || group == 32 || group == 64 || group == 128);
}

inline Layout layout(int32_t bits, int64_t n, int64_t k, int64_t group, bool asymmetric) {
    Layout l{};
    l.n = n, l.k = k, l.group = group, l.bits = bits, l.asymmetric = asymmetric;
    l.block = group ? group : MAX_BLOCK;
    l.blocks = (k + l.block - 1) / l.block;
    l.panels = (n + COLUMNS - 1) / COLUMNS;
    l.meta_bytes = COLUMNS * (asymmetric ? 3 : 2);
    l.panel_bytes = COLUMNS * 4 + (group ? l.blocks : 1) * l.meta_bytes + l.code_bytes(k);
    return l;
}

// One call. `rows` are the prepared activations, [block][row] of what the variant makes of them; `row_scales` and
// `row_sums` are [row][block].
struct Job {
    Layout weights;
    const void *x;
    void *out;
    const uint8_t *packed;
    int64_t m;
    int32_t x_dtype, out_dtype;
    uint8_t *rows;
    float *row_scales;
    int32_t *row_sums;
};

// Sums of a panel, [row][32], and room for one block of unpacked weights; both aligned to 64 bytes.
struct Scratch {
    float *sums;
    uint8_t *block;
};

constexpr int64_t SUM_BYTES = MAX_ROWS * COLUMNS * 4;
constexpr int64_t SCRATCH_BYTES = SUM_BYTES + COLUMNS * MAX_BLOCK * 2;

struct Variant {
    void (*prepare)(const Job &job, int64_t row_begin, int64_t row_end);
    void (*panel)(const Job &job, int64_t panel, Scratch scratch);
};

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows of one pass over a panel: equal passes, a multiple of six (the tallest register tile) each.
inline int64_t pass_rows(int64_t m) {
    const int64_t passes = (m + MAX_ROWS - 1) / MAX_ROWS;
    return round_up((m + passes - 1) / passes, 6);
}

} // namespace weight_only
} // namespace codesign

// The object that stands for a kernel.
struct codesign_weight_only_kernel {
    int32_t bits;                                         // of a code
    const codesign::weight_only::Variant *const *variants; // by codesign_isa_name
};
