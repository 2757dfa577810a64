// A call of w4a8_gemm or w8a8_gemm: its workspace, its checks, and its two phases on the threads.
#pragma once

#include "cpu.h"
#include "int8_job.h"
#include "int8_run.h"
#include "pool.h"

#include <math.h>

namespace {

// Below this many activations the caller rounds them alone: about what starting the threads costs.
constexpr int64_t ALONE = 32768;
constexpr int64_t LINE = 64;

inline int64_t whole_lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

inline int64_t workspace_bytes(int64_t m, int64_t k, int64_t groups) {
    return LINE + whole_lines(m * k) + whole_lines(m * groups * 4) + whole_lines(m * 4);
}

// Places the activations of the job in a workspace of any alignment.
inline void place(codesign_int8_job *job, void *workspace) {
    int8_t *at = (int8_t *)((uintptr_t(workspace) + LINE - 1) / LINE * LINE);
    job->codes = at;
    at += whole_lines(job->m * job->k);
    job->sums = (int32_t *)at;
    at += whole_lines(job->m * job->groups * 4);
    job->row_scales = (float *)at;
}

inline bool valid_weights(int64_t n, int64_t k) { return n >= 1 && k >= 32 && k % 32 == 0 && k <= CODESIGN_INT8_MAX_K; }

inline bool valid_dtype(int32_t dtype) { return dtype == CODESIGN_FLOAT32 || dtype == CODESIGN_BFLOAT16; }

struct Call {
    const codesign_int8_variant *variant;
    const codesign_int8_job *job;
};

inline void quantize_share(void *context, int32_t thread, int32_t threads) {
    const Call *call = (const Call *)context;
    const int64_t tiles = tile_count(call->job->m, call->variant->tile_rows);
    call->variant->quantize(call->job, tiles * thread / threads, tiles * (thread + 1) / threads);
}

inline void multiply_share(void *context, int32_t thread, int32_t threads) {
    const Call *call = (const Call *)context;
    const int64_t panels = panel_count(call->job->n);
    call->variant->multiply(call->job, panels * thread / threads, panels * (thread + 1) / threads);
}

inline int32_t run_call(const codesign_int8_variant *variant, const codesign_int8_job *job, int32_t threads) {
    if (!variant) return CODESIGN_INT8_BAD_VARIANT;
    if (job->m < 1 || threads < 1) return CODESIGN_INT8_BAD_SHAPE;
    if (!valid_dtype(job->x_dtype) || !valid_dtype(job->out_dtype)) return CODESIGN_INT8_BAD_DTYPE;
    if (!(job->static_scale >= 0.0f) || isinf(job->static_scale)) return CODESIGN_INT8_BAD_SCALE;
    Call call{variant, job};
    codesign_parallel(job->m * job->k < ALONE ? 1 : threads, quantize_share, &call);
    codesign_parallel(threads, multiply_share, &call);
    return CODESIGN_INT8_OK;
}

} // namespace
