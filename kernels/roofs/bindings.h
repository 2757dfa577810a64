#pragma once

#include "roofs.h"

#include <nanobind/nanobind.h>

inline void bind_roofs(nanobind::module_ &m) {
    using release = nanobind::call_guard<nanobind::gil_scoped_release>;
    m.def(
        "roof_read",
        [](int32_t isa, uintptr_t memory, int64_t bytes, int64_t passes, int32_t threads) {
            return codesign_roof_read(isa, (const void *)memory, bytes, passes, threads);
        },
        release());
    m.def(
        "roof_read_in_order",
        [](int32_t isa, uintptr_t memory, int64_t bytes, int64_t passes, int32_t threads) {
            return codesign_roof_read_in_order(isa, (const void *)memory, bytes, passes, threads);
        },
        release());
    m.def(
        "roof_copy",
        [](int32_t isa, uintptr_t target, uintptr_t source, int64_t bytes, int64_t passes, int32_t threads) {
            return codesign_roof_copy(isa, (void *)target, (const void *)source, bytes, passes, threads);
        },
        release());
    m.def("roof_flop", &codesign_roof_flop);
    m.def("roof_compute", &codesign_roof_compute, release());
    m.def("roof_clock", &codesign_roof_clock, release());
}
