// The Python module: the C interface with addresses as integers, so that numpy arrays and torch tensors pass alike.
#include <nanobind/nanobind.h>

#include "common/cpu.h"
#include "common/pages.h"
#include "common/pool.h"
#include "common/weight_only_bindings.h"
#include "kv_attention/bindings.h"
#include "roofs/bindings.h"
#include "w4a16_gemm/w4a16_gemm.h"
#include "w4a8_gemm/bindings.h"
#include "w8a16_gemm/w8a16_gemm.h"
#include "w8a8_gemm/bindings.h"

namespace nb = nanobind;

namespace {

// Of contiguous memory, numpy arrays among others: ten times as fast as array.ctypes.data.
uintptr_t address_of(nb::handle array) {
    Py_buffer view;
    if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
    const uintptr_t address = uintptr_t(view.buf);
    PyBuffer_Release(&view);
    return address;
}

void bind_common(nb::module_ &m) {
    m.def("address_of", &address_of);
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
    bind_kv_attention(m);
    bind_roofs(m);
    bind_weight_only(m, "w4a16_gemm", &codesign_w4a16_gemm);
    bind_w4a8_gemm(m);
    bind_weight_only(m, "w8a16_gemm", &codesign_w8a16_gemm);
    bind_w8a8_gemm(m);
}
