// The Python module: the C interface with addresses as integers, so that numpy arrays and torch tensors pass alike.
#include <nanobind/nanobind.h>

#include "common/cpu.h"
#include "common/pages.h"
#include "common/pool.h"
#include "roofs/bindings.h"

namespace nb = nanobind;

namespace {

void bind_common(nb::module_ &m) {
    m.def("isa_runs", [](int32_t isa) { return codesign_isa_runs(isa) != 0; });
    m.def("isa_best", [] { return codesign_isa_best(); });
    m.def("isa_text", [](int32_t isa) { return codesign_isa_text(isa); });
    m.def("processors", [] { return codesign_processors(); });
    m.def("pages_alloc", [](int64_t bytes) { return uintptr_t(codesign_pages_alloc(bytes)); });
    m.def("pages_free", [](uintptr_t memory, int64_t bytes) { codesign_pages_free((void *)memory, bytes); });
}

} // namespace

NB_MODULE(_native, m) {
    bind_common(m);
    bind_roofs(m);
}
