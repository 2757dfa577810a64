// A small pool of pinned threads.
#pragma once

#include <cstdint>

extern "C" {
typedef void (*codesign_task)(void *context, int32_t thread, int32_t threads);

// Runs task(context, t, threads) for every t < threads and returns when all are done. The caller runs t = 0. Worker t
// is pinned to the t-th processor of the process's affinity mask; the caller keeps its own placement. Calls from two
// threads at once wait for each other.
void codesign_parallel(int32_t threads, codesign_task task, void *context);
// The processors that this process may use.
int32_t codesign_processors(void);
}
