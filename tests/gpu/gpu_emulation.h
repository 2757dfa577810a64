// The GPU kernels on a CPU: every thread of a block is a fiber, barriers and warp-wide operations hand over to the next.
//
// Matrix products follow the layouts of fragments in the PTX manual ("Matrix fragments for mma.m16n8k16" and m16n8k32).
#pragma once

#include "common/float_bits.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <tuple>
#include <utility>
#include <vector>

#define KERNEL extern "C"
#define DEVICE inline
#define DEVICE_CALL inline
#define BOUNDED(threads)
#define BOUNDED_REGISTERS(count)
#define BOUNDED_BLOCKS(threads, blocks)

namespace codesign::gpu {

constexpr bool IS_HOPPER = true;
constexpr int WARP = 32, STACK_BYTES = 1 << 17;

struct alignas(16) Words {
    uint32_t word[4];
};

struct Barrier {
    int arrived = 0, generation = 0;
};

struct Operand {
    uint32_t word[8];
};

struct Warp {
    Barrier barrier;
    Operand operand[WARP];
};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool ended = false;
};

// The block that runs now.
struct Block {
    int at[3], grid[3], threads, current = 0;
    std::vector<char> shared;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    ucontext_t scheduler;
    void (*body)(void *);
    void *arguments;
};

inline Block *running;

inline void hand_over() { swapcontext(&running->fibers[running->current].context, &running->scheduler); }

inline void wait(Barrier &barrier, int count) {
    const int generation = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        barrier.generation++;
    } else {
        while (barrier.generation == generation) hand_over();
    }
}

inline int thread() { return running->current; }
inline int block_x() { return running->at[0]; }
inline int block_y() { return running->at[1]; }
inline int block_z() { return running->at[2]; }
inline int grid_x() { return running->grid[0]; }
inline int grid_y() { return running->grid[1]; }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline void sync_block() { wait(running->barrier, running->threads); }
inline void fence() {}
inline uint32_t count_up(uint32_t *counter) { return (*counter)++; }
inline char *shared_memory() { return (char *)((uintptr_t(running->shared.data()) + 15) & ~uintptr_t(15)); }

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
inline Words load_once(const Words *from) { return *from; }
inline Words load_once_if(bool wanted, const Words *from) {
    return wanted ? *from : Words{{0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f}};
}
template <class T> T kept(T x) { return x; }
inline void load_kept(bool wanted, const void *from, Words &to) {
    if (wanted) memcpy(&to, from, sizeof to);
}
inline uint32_t load_if(bool wanted, const uint32_t *from) { return wanted ? *from : 0x7f7f7f7f; }
inline uint16_t load_if(bool wanted, const uint16_t *from) { return wanted ? *from : 0x7f7f; }
inline Words load(const void *from) {
    Words to;
    memcpy(&to, from, sizeof to);
    return to;
}
inline void store(void *to, const Words &words) { memcpy(to, &words, sizeof words); }

// What all lanes of the warp gave, once they all have; `after` must follow the last look at it.
inline Operand *give(const Operand &mine) {
    Warp &warp = running->warps[thread() / WARP];
    warp.operand[thread() % WARP] = mine;
    wait(warp.barrier, WARP);
    return warp.operand;
}
inline void after() { wait(running->warps[thread() / WARP].barrier, WARP); }

inline float shuffle_xor(float x, int mask) {
    const float got = as_float(give({{as_bits(x)}})[(thread() % WARP) ^ mask].word[0]);
    after();
    return got;
}

inline int of_warp(int x) {
    const int got = int(give({{uint32_t(x)}})[0].word[0]);
    after();
    return got;
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

// Row `i`, column `k` of a[16, PER_WORD * 8] and row `k`, column `j` of b, PER_WORD numbers in each word of a fragment.
template <int PER_WORD> uint32_t fragment_a(const Operand *lanes, int i, int k) {
    const int word = (i >= 8) + 2 * (k >= 4 * PER_WORD);
    const int lane = i % 8 * 4 + k % (4 * PER_WORD) / PER_WORD;
    return lanes[lane].word[word] >> 32 / PER_WORD * (k % PER_WORD);
}
template <int PER_WORD> uint32_t fragment_b(const Operand *lanes, int k, int j) {
    const int word = 4 + (k >= 4 * PER_WORD);
    const int lane = j * 4 + k % (4 * PER_WORD) / PER_WORD;
    return lanes[lane].word[word] >> 32 / PER_WORD * (k % PER_WORD);
}

template <int PER_WORD, class Sum, class Wide>
void multiply(Sum (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Wide widen) {
    const Operand *lanes = give({{a[0], a[1], a[2], a[3], b[0], b[1]}});
    const int lane = thread() % WARP;
    for (int c = 0; c < 4; c++) {
        const int i = lane / 4 + 8 * (c / 2), j = lane % 4 * 2 + c % 2;
        double sum = double(sums[c]);
        for (int k = 0; k < 8 * PER_WORD; k++)
            sum += double(widen(fragment_a<PER_WORD>(lanes, i, k))) * double(widen(fragment_b<PER_WORD>(lanes, k, j)));
        sums[c] = Sum(sum);
    }
    after();
}
inline void multiply_half(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply<2>(sums, a, b, [](uint32_t bits) { return float_of_half(uint16_t(bits)); });
}
inline void multiply_bfloat(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply<2>(sums, a, b, [](uint32_t bits) { return float_of_bf16(uint16_t(bits)); });
}
inline void multiply_int8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply<4>(sums, a, b, [](uint32_t bits) { return int8_t(bits); });
}

inline void start_fiber() {
    running->body(running->arguments);
    running->fibers[running->current].ended = true;
    hand_over();
}

// Runs the fibers in turn until all have ended.
inline void run_block(Block &block) {
    running = &block;
    for (Fiber &fiber : block.fibers) {
        fiber.stack.resize(STACK_BYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start_fiber, 0);
        fiber.ended = false;
    }
    for (int left = block.threads; left;) {
        left = 0;
        for (block.current = 0; block.current < block.threads; block.current++) {
            if (block.fibers[block.current].ended) continue;
            swapcontext(&block.scheduler, &block.fibers[block.current].context);
            left += !block.fibers[block.current].ended;
        }
    }
}

template <class... Arguments> struct Call {
    void (*kernel)(Arguments...);
    void **values;
    template <size_t... I> void operator()(std::index_sequence<I...>) const {
        kernel(*static_cast<std::remove_reference_t<Arguments> *>(values[I])...);
    }
};

template <class... Arguments>
void launch(void (*kernel)(Arguments...), const int *grid, int threads, int shared_bytes, void **values) {
    Call<Arguments...> call{kernel, values};
    Block block;
    block.threads = threads;
    block.fibers.resize(threads);
    block.warps.resize((threads + WARP - 1) / WARP);
    block.arguments = &call;
    block.body = [](void *to) { (*static_cast<Call<Arguments...> *>(to))(std::index_sequence_for<Arguments...>{}); };
    memcpy(block.grid, grid, sizeof block.grid);
    for (int z = 0; z < grid[2]; z++)
        for (int y = 0; y < grid[1]; y++)
            for (int x = 0; x < grid[0]; x++) {
                block.at[0] = x, block.at[1] = y, block.at[2] = z;
                block.shared.assign(shared_bytes + 16, char(0x7f));  // what a block does not write it must not read
                run_block(block);
            }
}

} // namespace codesign::gpu

#define LAUNCHED(name)                                                                                                 \
    extern "C" void name##_launch(const int *grid, int threads, int shared_bytes, void **values) {                     \
        codesign::gpu::launch(name, grid, threads, shared_bytes, values);                                              \
    }
