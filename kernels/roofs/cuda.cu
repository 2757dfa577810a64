// How fast a GPU reads its memory: every byte once, added up so that the compiler keeps the reads.
#include "common/gpu_device.h"

namespace codesign::gpu {

constexpr int THREADS = 512, LOADS = 8;

} // namespace codesign::gpu

// Reads `count` times 16 bytes; `sums` has a word per block.
KERNEL void BOUNDED(codesign::gpu::THREADS)
    read_all(const codesign::gpu::Words *from, uint32_t *sums, int64_t count) {
    using namespace codesign::gpu;
    const int64_t width = int64_t(grid_x()) * THREADS;
    uint32_t sum = 0;
    for (int64_t first = int64_t(block_x()) * THREADS + thread(); first < count; first += LOADS * width) {
        Words words[LOADS] = {};
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (first + i * width < count) words[i] = load_once(from + first + i * width);
#pragma unroll
        for (int i = 0; i < LOADS; i++) sum += words[i].word[0] ^ words[i].word[1] ^ words[i].word[2] ^ words[i].word[3];
    }
    if (sum == 0x9e3779b9u) sums[block_x()] = sum; // hardly ever, but the compiler cannot know
}
LAUNCHED(read_all)
