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
static const char *code;     // where the kernel goes on after its last access

static void touch(const void *at, int64_t bytes, int64_t alignment, Kind kind, const void *return_address) {
    if (uintptr_t(at) - uintptr_t(own_stack.begin) < own_stack.bytes) return;
    if (kind == READ && at >= __ehdr_start && at < _end) return;
    code = (const char *)return_address;
    checks->touch(thread(), at, bytes, alignment, kind);
}

} // namespace codesign::gpu

#define HOOK(name, bytes, alignment, kind)                                                                             \
    void __tsan_##name##bytes(void *at) {                                                                              \
        codesign::gpu::touch(at, bytes, alignment, codesign::gpu::kind, __builtin_return_address(0));                  \
    }
#define RANGE_HOOK(name, kind)                                                                                         \
    void __tsan_##name##_range(void *at, size_t bytes) {                                                               \
        codesign::gpu::touch(at, bytes, 1, codesign::gpu::kind, __builtin_return_address(0));                          \
    }
#define HOOKS(bytes)                                                                                                   \
    HOOK(read, bytes, bytes, READ)                                                                                     \
    HOOK(write, bytes, bytes, WRITE)                                                                                   \
    HOOK(unaligned_read, bytes, 1, READ)                                                                               \
    HOOK(unaligned_write, bytes, 1, WRITE)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
RANGE_HOOK(read, READ)
RANGE_HOOK(write, WRITE)
}
