"""OpenVINO with compressed weights: in bf16, or in int8 where activations are quantized dynamically.

Dynamic quantization works with the precision hint f32 only; with bf16 the output is neither (its error says so).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries.adapter import GemmRow, Library, k_multiple, needs_flags
from codesign.profiler.weights import Float32, QuantizedWeights


def _stored_codes(weights: QuantizedWeights, bits: int) -> NDArray[Any]:
    """Return signed codes as bytes, two to a byte where they have 4 bits, the first in the low half."""
    if bits == 8:
        return np.ascontiguousarray(weights.codes, np.int8)
    nibbles = (weights.codes & 15).astype(np.uint8).reshape(-1)
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _model(weights: QuantizedWeights, codes: NDArray[Any], bits: int, case: GemmCase) -> Any:
    """Return the graph that OpenVINO recognizes as compressed weights: [n, groups, group], or [n, k] of one group."""
    import openvino
    from openvino import opset13

    groups = weights.scales.shape[1]
    shape = (case.n, groups, weights.group) if groups > 1 else (case.n, case.k)
    scales = weights.scales.astype(np.float16).reshape((case.n, groups, 1) if groups > 1 else (case.n, 1))
    stored = openvino.Tensor(codes, openvino.Shape(shape), openvino.Type.i4 if bits == 4 else openvino.Type.i8)
    wide = opset13.convert(openvino.op.Constant(stored), "f16")
    values = opset13.multiply(wide, openvino.op.Constant(openvino.Tensor(scales)))
    if groups > 1:
        values = opset13.reshape(values, np.array([case.n, case.k], np.int64), False)
    x = opset13.parameter([case.m, case.k], np.float32)
    return openvino.Model([opset13.matmul(x, opset13.convert(values, "f32"), False, True)], [x])


def _pack(weights: QuantizedWeights, fed: Any, case: GemmCase, bits: int, activation_group: int) -> Any:
    """Return a request with its input, and the codes, whose memory OpenVINO uses without owning it."""
    import openvino

    properties = {
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32" if activation_group else "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(activation_group),
    }
    codes = _stored_codes(weights, bits)
    compiled = openvino.Core().compile_model(_model(weights, codes, bits, case), "CPU", properties)
    request = compiled.create_infer_request()
    request.set_input_tensor(fed)
    return request, codes


def _feed(x: Float32, _case: GemmCase) -> Any:
    import openvino

    return openvino.Tensor(np.ascontiguousarray(x), shared_memory=True)


def _call(_fed: Any, packed: Any) -> Any:
    request = packed[0]
    request.infer()
    return request


def _output(request: Any) -> Float32:
    values: Float32 = request.get_output_tensor().data.copy()
    return values


def _start(_threads: int) -> None:
    """Do nothing: every compiled model gets its own threads."""


def _row(bits: int, group: int | None, quantizes: bool) -> GemmRow:
    scheme = f"W{bits}A{8 if quantizes else 16}" + (f"-g{group}" if group else "")
    rounding = (f"int8 per {group}" if group else "int8 per token") if quantizes else "none"
    return GemmRow(
        "compressed_dynamic" if quantizes else "compressed", scheme, "int8" if quantizes else "bf16", _feed,
        pack=lambda weights, fed, case: _pack(weights, fed, case, bits, weights.group if quantizes else 0),
        call=_call, output=_output, x_precision="fp32" if quantizes else "bf16", rounding=rounding,
        scale_precision="fp16",
        limits=(k_multiple(group or 2), needs_flags("avx512_vnni" if quantizes else "avx512_bf16")),
    )  # fmt: skip


LIBRARY = Library(
    "openvino",
    ("openvino",),
    tuple(
        _row(bits, group, quantizes)
        for quantizes in (False, True)
        for bits, group in ((4, 32), (4, 64), (4, 128), (8, None))
    ),
    _start,
)  # fmt: skip
