// The GPU kernels on a CPU: what gpu_device.h has for a GPU, as plain C++.
//
// A kernel is compiled with -fsanitize=thread: the compiler calls a hook (access_hooks.h) before each access to memory.
// gpu_emulation.cpp is compiled without, so that only what kernels touch is seen. A new name that is plain arithmetic or
// reads through load(), a pointer or a reference belongs here; one that copies by memcpy, which the compiler may leave
// unseen, or hands over to other threads belongs there, and tells the checks by touch().
#pragma once

#include "common/float_bits.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define KERNEL extern "C"
#define DEVICE inline
#define DEVICE_CALL inline
#define BOUNDED(threads)
#define BOUNDED_REGISTERS(count)
#define BOUNDED_BLOCKS(threads, blocks)
#define UNSEEN __attribute__((no_sanitize("thread")))

namespace codesign::gpu {

constexpr bool IS_HOPPER = true;

struct alignas(16) Words {
    uint32_t word[4];
};

// Of the thread that runs, which a function never leaves for another.
[[gnu::const]] int thread();
[[gnu::const]] int block_x();
[[gnu::const]] int block_y();
[[gnu::const]] int block_z();
[[gnu::const]] int grid_x();
[[gnu::const]] int grid_y();
[[gnu::const]] char *shared_memory();

void sync_block();
void fence();
uint32_t count_up(uint32_t *counter);
Words load(const void *from);
void store(void *to, const Words &words);
inline Words load_once(const Words *from) { return load(from); }
inline Words load_once_if(bool wanted, const Words *from) {
    return wanted ? load(from) : Words{{0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f}}; // anything
}
inline void load_kept(bool wanted, const void *from, Words &to) {
    if (wanted) to = load(from);
}
inline uint32_t load_if(bool wanted, const uint32_t *from) { return wanted ? *from : 0x7f7f7f7f; }
inline uint16_t load_if(bool wanted, const uint16_t *from) { return wanted ? *from : 0x7f7f; }
template <class T> T kept(T x) { return x; }

int of_warp(int x);
float shuffle_xor(float x, int mask);
void multiply_half(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiply_bfloat(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiply_int8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float as_float(uint32_t bits) { return float_of_bits(bits); }
inline uint32_t as_bits(float x) { return bits_of_float(x); }
inline float power_of_two(float x) { return exp2f(x); }
inline int32_t round_to_int(float x) { return int32_t(lrintf(x)); }
inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t to = 0;
    for (int i = 0; i < 4; i++) to |= uint32_t(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return to;
}

// As the GPU rounds, what is too large or no number included.
inline uint16_t any_half_of_float(float x) {
    if (x != x) return 0x7e00;
    return fabsf(x) < 65520 ? half_of_float(x) : uint16_t(signbit(x) ? 0xfc00 : 0x7c00);
}
inline uint32_t half_pair(float low, float high) { return any_half_of_float(low) | uint32_t(any_half_of_float(high)) << 16; }
inline uint32_t bfloat_pair(float low, float high) {
    return bf16_of_float(low) | uint32_t(bf16_of_float(high)) << 16;
}

template <float (*WIDEN)(uint16_t), uint16_t (*ROUND)(float)>
uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t to = 0;
    for (int i = 0; i < 2; i++) {
        const auto part = [i](uint32_t pair) { return double(WIDEN(uint16_t(pair >> 16 * i))); };
        to |= uint32_t(ROUND(float(part(a) * part(b) + part(c)))) << 16 * i;
    }
    return to;
}
inline uint32_t half_fma(uint32_t a, uint32_t b, uint32_t c) { return fma_pair<float_of_half, any_half_of_float>(a, b, c); }
inline uint32_t half_add(uint32_t a, uint32_t b) { return half_fma(a, 0x3c003c00, b); }
inline uint32_t bfloat_fma(uint32_t a, uint32_t b, uint32_t c) {
    return fma_pair<float_of_bf16, bf16_of_float>(a, b, c);
}

// A launch as it comes from Python: `values` point to the arguments, `bytes` are the sizes of those that are tensors.
struct Grid {
    int blocks[3], backwards, threads, shared_bytes, arguments;
    void **values;
    const int64_t *bytes;
};

// Runs all threads of all blocks, each as body(call); returns what the checks found wrong, or null.
const char *run_grid(const Grid &grid, void (*body)(void *), void *call);

template <class... Arguments> struct Call {
    void (*kernel)(Arguments...);
    void **values;

    template <size_t... I> UNSEEN void with(std::index_sequence<I...>) const {
        kernel(*static_cast<std::remove_reference_t<Arguments> *>(values[I])...);
    }
    UNSEEN static void run(void *self) { static_cast<Call *>(self)->with(std::index_sequence_for<Arguments...>{}); }
};

template <class... Arguments> UNSEEN const char *launch(void (*kernel)(Arguments...), const Grid &grid) {
    Call<Arguments...> call{kernel, grid.values};
    return run_grid(grid, Call<Arguments...>::run, &call);
}

} // namespace codesign::gpu

#define LAUNCHED(name)                                                                                                 \
    extern "C" __attribute__((visibility("default"))) const char *name##_launch(const codesign::gpu::Grid *grid) {     \
        return codesign::gpu::launch(name, *grid);                                                                     \
    }
