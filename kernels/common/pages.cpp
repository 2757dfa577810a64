#include "pages.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {
constexpr int64_t PAGE = int64_t(2) << 20;
}

void *codesign_pages_alloc(int64_t bytes) {
    if (bytes <= 0) return nullptr;
    void *memory = nullptr;
    const size_t whole = size_t((bytes + PAGE - 1) / PAGE * PAGE);
    if (posix_memalign(&memory, size_t(PAGE), whole) != 0) return nullptr;
#if defined(__linux__)
    madvise(memory, whole, MADV_HUGEPAGE); // a wish: without it the memory works in small pages
#endif
    memset(memory, 0, whole);
    return memory;
}

void codesign_pages_free(void *memory, int64_t) {
    free(memory);
}
