"""ONNX Runtime's MatMulNBits: accuracy level 4 multiplies in int8, level 1 in fp32. Source: its contrib operators."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries.adapter import GemmRow, Library
from codesign.profiler.reference import in_groups
from codesign.profiler.weights import Float32, QuantizedWeights

_IR_VERSION = 10
_DOMAIN = "com.microsoft"
_MATH = {1: "fp32", 4: "int8"}


def packed_codes(codes: NDArray[Any], bits: int, group: int) -> NDArray[np.uint8]:
    """Return [n, groups, bytes] of unsigned codes, two to a byte where they have 4 bits, the first in the low half."""
    blocks = in_groups(codes.astype(np.uint8), group)
    return blocks if bits == 8 else blocks[:, :, 0::2] | (blocks[:, :, 1::2] << 4)


def unsigned(weights: QuantizedWeights, bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return codes and zero points that count from 0; symmetric weights have theirs in the middle."""
    if weights.zeros is not None:
        return weights.codes, weights.zeros
    middle = 1 << (bits - 1)
    return weights.codes + middle, np.full(weights.scales.shape, middle, np.int16)


def model_bytes(weights: QuantizedWeights, bits: int, accuracy_level: int, case: GemmCase) -> bytes:
    """Return a model of one MatMulNBits node with the weights inside."""
    from onnx import TensorProto, helper, numpy_helper

    codes, zeros = unsigned(weights, bits)
    parts = {"b": packed_codes(codes, bits, weights.group), "scales": weights.scales}
    if weights.zeros is not None:
        parts["zeros"] = packed_codes(zeros, bits, zeros.shape[1] + zeros.shape[1] % 2)[:, 0]
    node = helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain=_DOMAIN,
        K=case.k, N=case.n, bits=bits, block_size=weights.group, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.m, case.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.m, case.n])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in parts.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_DOMAIN, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
    return serialized


def _feed(x: Float32, case: GemmCase) -> Any:
    """Return input and output in place; all copies write the same output."""
    import onnxruntime

    x_value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x))
    y_value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((case.m, case.n), np.float32))
    return x_value, y_value


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Otherwise its threads spin on after a call, on the cores of the next kernel.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _pack(weights: QuantizedWeights, fed: Any, case: GemmCase, bits: int, accuracy_level: int) -> Any:
    session = _session(model_bytes(weights, bits, accuracy_level, case), case.threads)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", fed[0])
    binding.bind_ortvalue_output("y", fed[1])
    return session, binding


def _call(fed: Any, packed: Any) -> Any:
    session, binding = packed
    session.run_with_iobinding(binding)
    return fed[1]


def _output(value: Any) -> Float32:
    values: Float32 = value.numpy()
    return values


def _start(_threads: int) -> None:
    """Do nothing: every session gets its own threads."""


def _row(bits: int, group: int, accuracy_level: int, asymmetric: bool = False) -> GemmRow:
    integer = _MATH[accuracy_level] == "int8"
    scheme = f"W{bits}A{8 if integer else 16}-g{group}" + ("-asym" if asymmetric else "")
    return GemmRow(
        f"matmul_nbits_level{accuracy_level}", scheme, _MATH[accuracy_level], _feed,
        pack=lambda weights, fed, case: _pack(weights, fed, case, bits, accuracy_level),
        call=_call, output=_output, x_precision="fp32", rounding=f"int8 per {group}" if integer else "none",
        scale_bytes=4.0 + (bits / 8 if asymmetric else 0.0),
        note="activations in int8 with one scale per token and group" if integer else "activations and math in fp32",
    )  # fmt: skip


LIBRARY = Library(
    "onnxruntime",
    ("onnxruntime", "onnx"),
    tuple(
        _row(bits, group, level, asymmetric)
        for level in (4, 1)
        for bits, group, asymmetric in (
            (4, 32, False), (4, 64, False), (4, 128, False), (4, 128, True), (8, 32, False), (8, 128, False),
        )
    ),
    _start,
)  # fmt: skip
