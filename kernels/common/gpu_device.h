// What the kernels for NVIDIA GPUs ask of a thread: its place, barriers, exchanges, 16-bit arithmetic, matrix products.
//
// Inline PTX for NVRTC, without any include, so that it needs no headers, and for nvcc. Everything else sees the same
// names as plain C++, which runs the kernels on a CPU (tests/gpu/gpu_emulation.h).
#pragma once

#ifdef __CUDACC__

#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__
#define DEVICE_CALL __device__ __noinline__ // keeps its registers out of the caller's loops
#define BOUNDED(threads) __launch_bounds__(threads)
#define BOUNDED_REGISTERS(count) __maxnreg__(count)
#define BOUNDED_BLOCKS(threads, blocks) __launch_bounds__(threads, blocks)
#define LAUNCHED(name)

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
#else // nvcc
#include <stdint.h>
#endif

namespace codesign::gpu {

constexpr bool IS_HOPPER = __CUDA_ARCH__ >= 900;

struct alignas(16) Words {
    uint32_t word[4];
};

DEVICE int thread() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int grid_x() { return gridDim.x; }
DEVICE int grid_y() { return gridDim.y; }

DEVICE void sync_block() { __syncthreads(); }
DEVICE void fence() { __threadfence(); }
DEVICE uint32_t count_up(uint32_t *counter) { return atomicAdd(counter, 1u); }

DEVICE char *shared_memory() {
    extern __shared__ Words bytes[];
    return (char *)bytes;
}

// What lane 0 has: the compiler then knows that it is the same in all lanes.
DEVICE int of_warp(int x) { return __shfl_sync(0xffffffffu, x, 0); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }
DEVICE uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) { return __byte_perm(low, high, selector); }
DEVICE int32_t round_to_int(float x) { return __float2int_rn(x); }

// Weights are read once: they need no place in the first-level cache.
DEVICE Words load_once(const Words *from) {
    Words to;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
                 : "l"(from));
    return to;
}

// The same where `wanted`, else anything; without a branch.
DEVICE Words load_once_if(bool wanted, const Words *from) {
    Words to;
    asm volatile("{.reg .pred p; setp.ne.s32 p, %5, 0;\n"
                 "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
                 : "l"(from), "r"(int(wanted)));
    return to;
}
// The same value, which the compiler computes once and keeps, not again in each branch that uses it.
template <class T> DEVICE T *kept(T *pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
}
DEVICE uint32_t kept(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Loads where `wanted`, else leaves what `to` has.
DEVICE void load_kept(bool wanted, const void *from, Words &to) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %5, 0;\n@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(to.word[0]), "+r"(to.word[1]), "+r"(to.word[2]), "+r"(to.word[3])
                 : "l"(from), "r"(int(wanted)));
}
DEVICE uint32_t load_if(bool wanted, const uint32_t *from) {
    uint32_t to;
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0;\n@p ld.global.nc.u32 %0, [%1];}"
                 : "=r"(to)
                 : "l"(from), "r"(int(wanted)));
    return to;
}
DEVICE uint16_t load_if(bool wanted, const uint16_t *from) {
    uint16_t to;
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0;\n@p ld.global.nc.u16 %0, [%1];}"
                 : "=h"(to)
                 : "l"(from), "r"(int(wanted)));
    return to;
}

DEVICE Words load(const void *from) { return *(const Words *)from; }
DEVICE void store(void *to, const Words &words) { *(Words *)to = words; }

// A pair of half-precision numbers, the first in the lower half.
DEVICE uint32_t half_pair(float low, float high) {
    uint32_t to;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(to) : "f"(high), "f"(low));
#else
    asm("{.reg .f16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
        : "=r"(to)
        : "f"(low), "f"(high));
#endif
    return to;
}

DEVICE float float_of_half(uint16_t bits) {
    float to;
    asm("{.reg .f16 h; mov.b16 h, %1; cvt.f32.f16 %0, h;}" : "=f"(to) : "h"(bits));
    return to;
}

DEVICE uint32_t half_add(uint32_t a, uint32_t b) {
    uint32_t to;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(to) : "r"(a), "r"(b));
    return to;
}

DEVICE uint32_t half_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t to;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(to) : "r"(a), "r"(b), "r"(c));
    return to;
}

#if __CUDA_ARCH__ >= 800
DEVICE uint32_t bfloat_pair(float low, float high) {
    uint32_t to;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(to) : "f"(high), "f"(low));
    return to;
}

DEVICE uint32_t bfloat_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t to;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(to) : "r"(a), "r"(b), "r"(c));
    return to;
}
#endif

// sums[16, 8] += a[16, 16] · b[16, 8], spread over the lanes of a warp as PTX says of m16n8k16.
DEVICE void multiply_half(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

#if __CUDA_ARCH__ >= 800
DEVICE void multiply_bfloat(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// sums[16, 8] += a[16, 32] · b[32, 8] of signed bytes, spread as PTX says of m16n8k32.
DEVICE void multiply_int8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int part = 0; part < 4; part++) // rows 0 to 7 or 8 to 15, first or last 16 of the inner dimension
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(sums[2 * (part % 2)]), "+r"(sums[2 * (part % 2) + 1])
            : "r"(a[part]), "r"(b[part / 2]));
#endif
}

} // namespace codesign::gpu

#else
#include "gpu_emulation.h"
#endif
