// What the compiler calls before each access to memory under -fsanitize=thread, in place of libtsan, which is not linked.
#pragma once

#include "access_checks.h"
#include "gpu_emulation.h"

extern "C" const char __ehdr_start[], _end[]; // the linker's: constants of a kernel lie between them

namespace codesign::gpu {

struct Stack {
    const char *begin;
    uintptr_t bytes;
};

static Stack own_stack;      // of the thread that runs: no other one touches it
static AccessChecks *checks; // of the launch that runs

static void touch(const void *at, int64_t bytes, int64_t alignment, Kind kind) {
    if (uintptr_t(at) - uintptr_t(own_stack.begin) < own_stack.bytes) return;
    if (kind == READ && at >= __ehdr_start && at < _end) return;
    checks->touch(thread(), at, bytes, alignment, kind);
}

} // namespace codesign::gpu

#define HOOKS_OF_KIND(name, bytes, kind)                                                                               \
    void __tsan_##name##bytes(void *at) { codesign::gpu::touch(at, bytes, bytes, codesign::gpu::kind); }               \
    void __tsan_unaligned_##name##bytes(void *at) { codesign::gpu::touch(at, bytes, 1, codesign::gpu::kind); }
#define HOOKS(bytes) HOOKS_OF_KIND(read, bytes, READ) HOOKS_OF_KIND(write, bytes, WRITE)

extern "C" {
void __tsan_init() {}
void __tsan_read_range(void *at, size_t bytes) { codesign::gpu::touch(at, bytes, 1, codesign::gpu::READ); }
void __tsan_write_range(void *at, size_t bytes) { codesign::gpu::touch(at, bytes, 1, codesign::gpu::WRITE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
}
