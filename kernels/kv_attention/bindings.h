#pragma once

#include "kv_attention.h"

#include <nanobind/nanobind.h>

inline void bind_kv_attention(nanobind::module_ &m) {
    using Shape = codesign_kv_shape;
    using release = nanobind::call_guard<nanobind::gil_scoped_release>;
    nanobind::class_<Shape>(m, "KvShape")
        .def("__init__",
             [](Shape *self, int32_t format, int32_t batch, int32_t heads, int32_t kv_heads, int32_t head_dim,
                int32_t q_tokens, int64_t capacity) {
                 new (self) Shape{format, batch, heads, kv_heads, head_dim, q_tokens, capacity};
             });
    m.def("kv_attention_cache_bytes", [](const Shape &s) { return codesign_kv_attention_cache_bytes(&s); });
    m.def("kv_attention_workspace_bytes",
          [](const Shape &s, int32_t threads) { return codesign_kv_attention_workspace_bytes(&s, threads); });
    m.def(
        "kv_attention_append",
        [](const Shape &s, uintptr_t k, uintptr_t v, int32_t dtype, int64_t tokens, uintptr_t lengths,
           uintptr_t cache) {
            return codesign_kv_attention_append(&s, (const void *)k, (const void *)v, dtype, tokens,
                                                (const int64_t *)lengths, (void *)cache);
        },
        release());
    m.def(
        "kv_attention_run",
        [](int32_t isa, const Shape &s, uintptr_t q, uintptr_t cache, uintptr_t lengths, uintptr_t out, int32_t dtype,
           float scale, int32_t threads, uintptr_t workspace) {
            return codesign_kv_attention_run(isa, &s, (const void *)q, (const void *)cache, (const int64_t *)lengths,
                                             (void *)out, dtype, scale, threads, (void *)workspace);
        },
        release());
}
