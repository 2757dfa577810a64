// Kernels with one thing wrong each, unless `right`: what the checks of the emulation must find, and its correct twin.
#include "common/gpu_device.h"

using namespace codesign::gpu;

constexpr int FENCE_BEFORE = 1, BARRIER_BEFORE = 2, BARRIER_AFTER = 4, FENCE_AFTER = 8;

DEVICE uint32_t *shared_words() { return (uint32_t *)shared_memory(); }

KERNEL void read_before_barrier(uint32_t *out, int right) {
    shared_words()[thread()] = thread();
    if (right) sync_block();
    out[thread()] = shared_words()[thread() / 2];
}
LAUNCHED(read_before_barrier)

KERNEL void load_before_barrier(uint32_t *out, int right) {
    Words *shared = (Words *)shared_memory();
    store(shared + thread(), Words{{1, 2, 3, 4}});
    if (right) sync_block();
    out[thread()] = load(shared + thread() / 2).word[0];
}
LAUNCHED(load_before_barrier)

KERNEL void write_after_read(uint32_t *out, int right) {
    shared_words()[thread()] = thread();
    sync_block();
    if (thread() >= 16) out[thread()] = shared_words()[thread() - 16];
    if (right) sync_block();
    if (thread() < 16) shared_words()[thread()] = 0;
}
LAUNCHED(write_after_read)

// Lanes of a warp that have just exchanged a number are not ordered by that.
KERNEL void exchange_is_no_barrier(uint32_t *out, int right) {
    shared_words()[thread()] = as_bits(shuffle_xor(float(thread()), 1));
    if (right) sync_block();
    out[thread()] = thread() % 2 ? shared_words()[thread() - 1] : 0;
}
LAUNCHED(exchange_is_no_barrier)

KERNEL void threads_write_the_same(uint32_t *out, int right) { out[right ? thread() : 0] = 1; }
LAUNCHED(threads_write_the_same)

KERNEL void bytes_overlap(uint32_t *out, int right) { ((uint16_t *)out)[right ? thread() : thread() / 2] = 1; }
LAUNCHED(bytes_overlap)

KERNEL void never_written(uint32_t *out, int right) {
    if (right || thread() != 3) shared_words()[thread()] = thread();
    sync_block();
    out[thread()] = shared_words()[thread()];
}
LAUNCHED(never_written)

// Whatever a block before has left there is garbage for this one.
KERNEL void written_by_a_block_before(uint32_t *out, int right) {
    if (right || block_x() == 0) shared_words()[thread()] = thread();
    sync_block();
    out[block_x() * 32 + thread()] = shared_words()[thread()];
}
LAUNCHED(written_by_a_block_before)

KERNEL void write_past_the_end(uint32_t *out, int right) { out[thread() + !right] = 1; }
LAUNCHED(write_past_the_end)

KERNEL void write_before_the_begin(uint32_t *out, int right) { out[thread() - !right] = 1; }
LAUNCHED(write_before_the_begin)

KERNEL void write_past_shared_memory(uint32_t *out, int right) {
    shared_words()[4 * thread() + 3 + !right] = 1;
    out[thread()] = 1;
}
LAUNCHED(write_past_shared_memory)

KERNEL void store_past_the_end(uint32_t *out, int right) {
    if (thread() < 8) store(out + 4 * (thread() + !right), Words{{1, 2, 3, 4}});
}
LAUNCHED(store_past_the_end)

KERNEL void read_past_the_end(uint32_t *out, int right) {
    if (thread() == 0) out[0] += out[32 - right];
}
LAUNCHED(read_past_the_end)

KERNEL void load_past_the_end(uint32_t *out, int right) {
    if (thread() == 0) out[0] = load(out + 32 - 4 * right).word[0];
}
LAUNCHED(load_past_the_end)

KERNEL void load_once_past_the_end(uint32_t *out, int right) {
    if (thread() == 0) out[0] = load_once((const Words *)out + 8 - right).word[0];
}
LAUNCHED(load_once_past_the_end)

// Whole structures, of a size that one instruction moves and of one that none does.
KERNEL void copy_past_the_end(uint32_t *out, int right) {
    if (thread() == 0) ((Words *)out)[0] = ((Words *)out)[8 - right];
}
LAUNCHED(copy_past_the_end)

KERNEL void copy_of_many_words_past_the_end(uint32_t *out, int right) {
    struct Many {
        uint32_t word[11];
    };
    if (thread() == 0) ((Many *)out)[0] = ((Many *)out)[2 - right];
}
LAUNCHED(copy_of_many_words_past_the_end)

// Nothing of what is loaded is used: it is loaded all the same.
KERNEL void load_for_nothing(uint32_t *out, int right) {
    if (thread() == 0) load(out + 32 - 4 * right);
}
LAUNCHED(load_for_nothing)

KERNEL void load_between_words(uint32_t *out, int right) {
    if (thread() == 0) out[0] = load(out + 3 + right).word[0];
}
LAUNCHED(load_between_words)

KERNEL void read_between_words(uint32_t *out, int right) {
    if (thread() == 0) out[0] = *(uint32_t *)((uint16_t *)out + 3 + right);
}
LAUNCHED(read_between_words)

KERNEL void another_s_variable(uint32_t *out, int right) {
    uint32_t own[2] = {uint32_t(thread()), 1}, *const *first = (uint32_t **)shared_memory();
    if (thread() == 0) *(uint32_t **)shared_memory() = own;
    sync_block();
    out[thread()] = right ? own[thread() % 2] : (*first)[thread() % 2];
}
LAUNCHED(another_s_variable)

KERNEL void blocks_write_the_same(uint32_t *out, int right) { out[thread() + (right ? 32 * block_x() : 0)] = 1; }
LAUNCHED(blocks_write_the_same)

KERNEL void block_reads_what_another_wrote(uint32_t *out, int right) {
    if (block_x() == 0) out[thread()] = 1;
    if (block_x() == 1 && !right) out[32 + thread()] = out[thread()];
}
LAUNCHED(block_reads_what_another_wrote)

KERNEL void block_writes_what_another_read(uint32_t *out, int right) {
    if (block_x() == 0) out[32 + thread()] = out[thread()];
    if (block_x() == 1 && !right) out[thread()] = 1;
}
LAUNCHED(block_writes_what_another_read)

KERNEL void threads_wait_for_one_that_ended(uint32_t *out, int right) {
    if (thread() == 5 && !right) return;
    sync_block();
    out[thread()] = 1;
}
LAUNCHED(threads_wait_for_one_that_ended)

KERNEL void lanes_wait_for_one_that_does_not_exchange(uint32_t *out, int right) {
    if (right || thread() != 5) out[thread()] = as_bits(shuffle_xor(1.0f, 1));
}
LAUNCHED(lanes_wait_for_one_that_does_not_exchange)

// The last block adds up what all have written, with only those `steps` that order it.
KERNEL void add_up(uint32_t *partial, uint32_t *arrived, uint32_t *out, int steps) {
    partial[block_x() * 32 + thread()] = 1 + thread();
    if (steps & FENCE_BEFORE) fence();
    if (steps & BARRIER_BEFORE) sync_block();
    if (thread() == 0) shared_words()[0] = count_up(arrived);
    if (steps & BARRIER_AFTER) sync_block();
    if (shared_words()[0] + 1 != uint32_t(grid_x())) return;
    if (steps & FENCE_AFTER) fence();
    uint32_t sum = 0;
    for (int block = 0; block < grid_x(); block++) sum += partial[block * 32 + (thread() + 1) % 32];
    out[thread()] = sum;
    if (thread() == 0) arrived[0] = 0;
}
LAUNCHED(add_up)

// The thread that counts fences for all, as in grid.sync() of cooperative groups.
KERNEL void add_up_with_fences_of_one(uint32_t *partial, uint32_t *arrived, uint32_t *out, int right) {
    partial[block_x() * 32 + thread()] = 1 + thread();
    sync_block();
    if (thread() == 0) {
        if (right) fence();
        shared_words()[0] = count_up(arrived);
        fence();
    }
    sync_block();
    if (shared_words()[0] + 1 != uint32_t(grid_x())) return;
    out[thread()] = 0;
    for (int block = 0; block < grid_x(); block++) out[thread()] += partial[block * 32 + (thread() + 1) % 32];
}
LAUNCHED(add_up_with_fences_of_one)

KERNEL void counter_is_read_while_others_count(uint32_t *, uint32_t *arrived, uint32_t *out, int right) {
    if (thread() == 0) out[block_x()] = right ? count_up(arrived) : arrived[0] + count_up(arrived);
}
LAUNCHED(counter_is_read_while_others_count)

KERNEL void counters_differ(uint32_t *partial, uint32_t *arrived, uint32_t *out, int right) {
    if (thread()) return;
    partial[block_x()] = 1;
    fence();
    const uint32_t count = count_up(arrived + (right ? 0 : block_x()));
    fence();
    if (right ? count == 2 : block_x() == 2) out[0] = partial[0] + partial[1];
}
LAUNCHED(counters_differ)

// Block 1 may be the first that counts: then block 0 has written nothing yet.
KERNEL void count_is_not_looked_at(uint32_t *partial, uint32_t *arrived, uint32_t *out, int right) {
    if (thread()) return;
    partial[block_x()] = 1;
    fence();
    const uint32_t count = count_up(arrived);
    fence();
    if (right ? count == 2 : block_x() == 1) out[0] = partial[0];
}
LAUNCHED(count_is_not_looked_at)
