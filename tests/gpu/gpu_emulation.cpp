// Every thread of a block is a fiber; barriers and warp-wide operations hand over to the next.
//
// Matrix products follow the layouts of fragments in the PTX manual ("Matrix fragments for mma.m16n8k16" and m16n8k32).
#include "gpu_emulation.h"

#include "access_hooks.h"

#include <ucontext.h>

namespace codesign::gpu {

constexpr int WARP = 32, STACK_BYTES = 1 << 17;

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
    int at[3], current = 0;
    std::vector<Words> shared;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    ucontext_t scheduler;
    bool moves; // a barrier opened or a thread ended
};

static const Grid *grid;
static Block *running;
static std::string violation;
static void (*body)(void *);
static void *call;

void stop(const std::string &message) {
    violation = message + "; code " + std::to_string(code - __ehdr_start);
    setcontext(&running->scheduler);
    __builtin_unreachable();
}

static void hand_over() { swapcontext(&running->fibers[running->current].context, &running->scheduler); }

static void wait(Barrier &barrier, int count, void (*when_open)() = [] {}) {
    const int generation = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        barrier.generation++;
        running->moves = true;
        when_open();
    } else {
        while (barrier.generation == generation) hand_over();
    }
}

int thread() { return running->current; }
int block_x() { return running->at[0]; }
int block_y() { return running->at[1]; }
int block_z() { return running->at[2]; }
int grid_x() { return grid->blocks[0]; }
int grid_y() { return grid->blocks[1]; }
char *shared_memory() { return (char *)running->shared.data(); }

void sync_block() {
    wait(running->barrier, grid->threads, [] { checks->sync_block(); });
}
void fence() { checks->fence(thread()); }
uint32_t count_up(uint32_t *counter) {
    code = (const char *)__builtin_return_address(0);
    checks->count_up(thread(), counter);
    return (*counter)++;
}

Words load(const void *from) {
    Words to;
    touch(from, sizeof to, sizeof to, READ, __builtin_return_address(0));
    memcpy(&to, from, sizeof to);
    return to;
}
void store(void *to, const Words &words) {
    touch(to, sizeof words, sizeof words, WRITE, __builtin_return_address(0));
    memcpy(to, &words, sizeof words);
}

// What all lanes of the warp gave, once they all have; `after` must follow the last look at it.
static Operand *give(const Operand &mine) {
    Warp &warp = running->warps[thread() / WARP];
    warp.operand[thread() % WARP] = mine;
    wait(warp.barrier, WARP);
    return warp.operand;
}
static void after() { wait(running->warps[thread() / WARP].barrier, WARP); }

int of_warp(int x) {
    const int got = int(give({{uint32_t(x)}})[0].word[0]);
    after();
    return got;
}

float shuffle_xor(float x, int mask) {
    const float got = as_float(give({{as_bits(x)}})[(thread() % WARP) ^ mask].word[0]);
    after();
    return got;
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
void multiply_half(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply<2>(sums, a, b, [](uint32_t bits) { return float_of_half(uint16_t(bits)); });
}
void multiply_bfloat(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply<2>(sums, a, b, [](uint32_t bits) { return float_of_bf16(uint16_t(bits)); });
}
void multiply_int8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply<4>(sums, a, b, [](uint32_t bits) { return int8_t(bits); });
}

static void start_fiber() {
    body(call);
    running->fibers[running->current].ended = true;
    running->moves = true;
    hand_over();
}

static void prepare(Fiber &fiber) {
    fiber.stack.resize(STACK_BYTES);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start_fiber, 0);
    fiber.ended = false;
}

// Runs the fibers in turn until all have ended, or one has done wrong.
static void run_block(Block &block) {
    for (Fiber &fiber : block.fibers) prepare(fiber);
    for (int left = grid->threads; left;) {
        left = 0;
        block.moves = false;
        for (block.current = 0; block.current < grid->threads; block.current++) {
            if (block.fibers[block.current].ended) continue;
            own_stack = {block.fibers[block.current].stack.data(), STACK_BYTES};
            swapcontext(&block.scheduler, &block.fibers[block.current].context);
            own_stack = {};
            if (!violation.empty()) return;
            left += !block.fibers[block.current].ended;
        }
        if (!block.moves) {
            violation = "stuck: " + checks->running_block() + " has " + std::to_string(left) +
                        " threads that wait for others at a barrier";
            return;
        }
    }
}

static void run_blocks(Block &block) {
    const int wide = grid->blocks[0], high = grid->blocks[1], count = wide * high * grid->blocks[2];
    for (int i = 0; i < count && violation.empty(); i++) {
        const int which = grid->backwards ? count - 1 - i : i;
        block.at[0] = which % wide, block.at[1] = which / wide % high, block.at[2] = which / wide / high;
        checks->begin_block(block.at);
        run_block(block);
    }
}

const char *run_grid(const Grid &one, void (*of_thread)(void *), void *argument) {
    grid = &one, body = of_thread, call = argument;
    Block block;
    block.shared.resize(one.shared_bytes / sizeof(Words) + 1);
    block.fibers.resize(one.threads);
    block.warps.resize((one.threads + WARP - 1) / WARP);
    running = &block;
    AccessChecks checks_of_launch(shared_memory(), one.shared_bytes);
    for (int i = 0; i < one.arguments; i++)
        if (one.bytes[i]) checks_of_launch.add(*(void **)one.values[i], one.bytes[i], i + 1);
    checks = &checks_of_launch;
    violation.clear();
    run_blocks(block);
    running = nullptr, checks = nullptr;
    return violation.empty() ? nullptr : violation.c_str();
}

} // namespace codesign::gpu
