// Which of several blocks that share a result ends last: it puts together what all of them have left in memory.
#pragma once

#include "gpu_device.h"

namespace codesign::gpu {

// Counts this block; true in all threads of the last of `blocks`, which then see what the others have written. Takes the
// first word of shared memory. The barriers order the block's accesses before and after one thread's fences, which
// with the count order them before and after those of other blocks (PTX ISA, causality order).
DEVICE bool is_last(uint32_t *counter, int blocks) {
    uint32_t *count = (uint32_t *)shared_memory();
    sync_block();
    if (thread() == 0) {
        fence();
        count[0] = count_up(counter);
        fence();
    }
    sync_block();
    return count[0] + 1 == uint32_t(blocks);
}

} // namespace codesign::gpu
