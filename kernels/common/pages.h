// Memory for packed weights, in 2 MiB pages where the system allows.
#pragma once

#include <cstdint>

extern "C" {
// `bytes` of zeroed memory aligned to 2 MiB, nullptr if there is none. Free with codesign_pages_free.
void *codesign_pages_alloc(int64_t bytes);
void codesign_pages_free(void *memory, int64_t bytes);
}
