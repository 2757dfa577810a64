"""torchao's int8 tensors on the CPU. Its 4-bit ones are kept as int8 there, so they are no 4-bit kernels."""

from collections.abc import Callable
from typing import Any

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import torch_cpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly
from codesign.profiler.weights import QuantizedWeights

COMPOSED = "composed of PyTorch's operators, each of which reads and writes its results"


def _pack(config: str) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
        import torch

        quantization = import_quietly("torchao.quantization")
        layer = torch.nn.Linear(case.k, case.n, bias=False, dtype=torch.bfloat16)
        quantization.quantize_(layer, getattr(quantization, config)())
        layer.weight.qdata.copy_(torch_cpu.integers(weights.codes))
        layer.weight.scale.copy_(torch_cpu.tensor(weights.scales, "fp32"))
        return layer

    return pack


def call(x: Any, layer: Any) -> Any:
    """Return what a layer makes of x."""
    return layer(x)


def _row(name: str, scheme: str, math_dtype: str, config: str, rounding: str) -> GemmRow:
    return GemmRow(
        name, scheme, math_dtype, torch_cpu.feeder("bf16"), _pack(config), call, torch_cpu.to_float32,
        rounding=rounding, scale_precision="bf16", note=COMPOSED,
    )  # fmt: skip


LIBRARY = Library(
    "torchao",
    ("torchao", "torch"),
    (
        _row("int8_weight_only", "W8A16", "bf16", "Int8WeightOnlyConfig", "none"),
        _row("int8_dynamic", "W8A8", "int8", "Int8DynamicActivationInt8WeightConfig", "int8 per token, bf16 scale"),
    ),
    torch_cpu.start,
)  # fmt: skip
