// Packing and running of the kernels with 16-bit activations: what does not depend on the instruction set.
#include "weight_only_gemm.h"

#include "float_bits.h"
#include "pool.h"
#include "variants.h"
#include "weight_only.h"

#include <atomic>
#include <cmath>
#include <cstring>

using namespace codesign::weight_only;

namespace {

struct Source {
    const uint8_t *codes; // [n, k]
    const float *scales;  // [n, groups]
    const uint8_t *zeros; // [n, groups] or nullptr
};

float power_of_two_below(const float *scales, int64_t count) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::fmax(largest, std::fabs(scales[i]));
    return largest > 0 ? std::ldexp(1.0f, std::ilogb(largest)) : 1.0f;
}

void pack_codes(const Layout &l, const uint8_t *codes, int64_t length, uint8_t *target, int64_t column) {
    for (int64_t i = 0; i < length; i++) {
        if (l.bits == 8)
            target[i / 4 * COLUMNS * 4 + column * 4 + i % 4] = codes[i];
        else
            target[i / 8 * COLUMNS * 4 + column * 4 + i % 4] |= uint8_t((codes[i] & 15) << (i % 8 < 4 ? 0 : 4));
    }
}

void pack_column(const Layout &l, const Source &from, int64_t n, uint8_t *panel) {
    const int64_t column = n % COLUMNS, groups = l.group ? l.blocks : 1;
    const float *scales = from.scales + n * groups;
    const float multiplier = l.group ? power_of_two_below(scales, groups) : scales[0];
    memcpy(panel + column * 4, &multiplier, 4);
    for (int64_t g = 0; g < groups; g++) {
        uint8_t *meta = panel + l.meta_offset(g);
        const uint16_t half = half_of_float(l.group ? scales[g] / multiplier : 1.0f);
        memcpy(meta + column * 2, &half, 2);
        if (l.asymmetric) meta[COLUMNS * 2 + column] = from.zeros[n * groups + g];
    }
    for (int64_t b = 0; b < l.blocks; b++)
        pack_codes(l, from.codes + n * l.k + b * l.block, l.block_k(b), panel + l.code_offset(b), column);
}

void pack(const Layout &l, const Source &from, uint8_t *packed) {
    memset(packed, 0, size_t(l.panels * l.panel_bytes));
    for (int64_t n = 0; n < l.n; n++) pack_column(l, from, n, packed + n / COLUMNS * l.panel_bytes);
}

struct Workspace {
    int64_t scales, sums, scratch, bytes; // offsets of the parts behind the rows, and the whole
};

Workspace workspace(const Layout &l, int64_t m, int32_t threads) {
    Workspace w{};
    w.scales = round_up(m * l.blocks * l.block * ROW_BYTES_PER_K, 64);
    w.sums = w.scales + round_up(m * l.blocks * 4, 64);
    w.scratch = w.sums + round_up(m * l.blocks * 4, 64);
    w.bytes = w.scratch + int64_t(threads) * SCRATCH_BYTES + 64; // 64: to align the caller's address
    return w;
}

struct Call {
    const Job *job;
    const Variant *variant;
    uint8_t *scratch;
    std::atomic<int64_t> next_panel{0};
};

void prepare_task(void *context, int32_t thread, int32_t threads) {
    const Call &call = *(const Call *)context;
    const int64_t m = call.job->m;
    call.variant->prepare(*call.job, m * thread / threads, m * (thread + 1) / threads);
}

// Panels go to whichever thread is free, so that one that was interrupted does not hold up the others.
void panels_task(void *context, int32_t thread, int32_t) {
    Call &call = *(Call *)context;
    uint8_t *mine = call.scratch + thread * SCRATCH_BYTES;
    for (int64_t p; (p = call.next_panel.fetch_add(1, std::memory_order_relaxed)) < call.job->weights.panels;)
        call.variant->panel(*call.job, p, {(float *)mine, mine + SUM_BYTES});
}

int32_t run(const Variant *variant, Job job, int32_t threads, void *memory) {
    if (!variant) return BAD_VARIANT;
    const Workspace w = workspace(job.weights, job.m, threads);
    uint8_t *base = (uint8_t *)round_up(int64_t(uintptr_t(memory)), 64);
    job.rows = base;
    job.row_scales = (float *)(base + w.scales);
    job.row_sums = (int32_t *)(base + w.sums);
    Call call{&job, variant, base + w.scratch, {0}};
    // Handing few rows to other threads costs more than converting them.
    codesign_parallel(job.m < 16 ? 1 : threads, prepare_task, &call);
    codesign_parallel(threads, panels_task, &call);
    return OK;
}

} // namespace

int64_t codesign_weight_only_packed_bytes(const codesign_weight_only_kernel *kernel, int64_t n, int64_t k,
                                          int64_t group, int32_t asymmetric) {
    if (!valid(n, k, group)) return 0;
    const Layout l = layout(kernel->bits, n, k, group, asymmetric != 0);
    return l.panels * l.panel_bytes;
}

int32_t codesign_weight_only_pack(const codesign_weight_only_kernel *kernel, const uint8_t *codes, const float *scales,
                                  const uint8_t *zeros, void *packed, int64_t n, int64_t k, int64_t group) {
    if (!valid(n, k, group)) return BAD_SHAPE;
    pack(layout(kernel->bits, n, k, group, zeros != nullptr), {codes, scales, zeros}, (uint8_t *)packed);
    return OK;
}

int64_t codesign_weight_only_workspace_bytes(const codesign_weight_only_kernel *kernel, int64_t m, int64_t n, int64_t k,
                                             int64_t group, int32_t threads) {
    if (!valid(n, k, group) || m < 1 || threads < 1) return 0;
    return workspace(layout(kernel->bits, n, k, group, false), m, threads).bytes;
}

int32_t codesign_weight_only_run(const codesign_weight_only_kernel *kernel, int32_t isa, const void *x, int32_t x_dtype,
                                 const void *packed, void *out, int32_t out_dtype, int64_t m, int64_t n, int64_t k,
                                 int64_t group, int32_t asymmetric, int32_t threads, void *workspace) {
    if (!valid(n, k, group) || m < 1 || threads < 1) return BAD_SHAPE;
    if ((x_dtype | out_dtype) & ~1) return BAD_DTYPE;
    Job job{layout(kernel->bits, n, k, group, asymmetric != 0), x, out, (const uint8_t *)packed, m, x_dtype, out_dtype,
            nullptr, nullptr, nullptr};
    return run(variant_of(kernel->variants, isa), job, threads, workspace);
}
