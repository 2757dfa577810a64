"""AMD's zentorch (ZenDNN): BF16, W8A8 with activations quantized inside, and 4-bit weights."""

from typing import Any

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import torch_cpu
from codesign.profiler.libraries.adapter import (
    GemmRow,
    Library,
    import_quietly,
    k_multiple,
    missing_flags,
    needs_flags,
    version_of,
)
from codesign.profiler.weights import FloatWeights, QuantizedWeights

# zentorch 2.13.0.2 remembers by address what it packed in a call; zentorch_clear_weight_cache forgets only a part.
_KEPT: list[Any] = []
_NEEDED_FLAGS = ("avx512f", "avx512bw", "avx512vl")


def _start(threads: int) -> None:
    import_quietly("zentorch")
    torch_cpu.start(threads)


def _kept(*tensors: Any) -> Any:
    """Return the tensors, never to be freed: new weights at their address would be taken for the old ones."""
    _KEPT.append(tensors)
    return tensors


def _problem() -> str | None:
    """Return why zentorch cannot be used: its wheels are built for one minor version of PyTorch."""
    ours, torchs = version_of("zentorch") or "", version_of("torch") or ""
    if ours.split(".")[:2] != torchs.split(".")[:2]:
        return f"zentorch {ours} is built for another PyTorch than {torchs}; install zentorch of the same minor version"
    return missing_flags(_NEEDED_FLAGS)


def _pack_linear(precision: str) -> Any:
    def pack(weights: FloatWeights, _fed: Any, _case: GemmCase) -> Any:
        import torch

        return torch.ops.zentorch.zentorch_weight_prepack_for_linear(torch_cpu.tensor(weights.values, precision))

    return pack


def _call_linear(x: Any, w: Any) -> Any:
    import torch

    return torch.ops.zentorch.zentorch_linear_unary(x, w, None, is_weight_prepacked=True)


def _linear(precision: str, *flags: str) -> GemmRow:
    return GemmRow(
        "linear_prepacked", precision.upper(), precision, torch_cpu.feeder(precision), _pack_linear(precision),
        _call_linear, torch_cpu.to_float32, x_precision=precision, limits=(needs_flags(*flags),),
    )  # fmt: skip


def _pack_dynamic(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    """Return plain weights, packed in the first call: packed beforehand, 2.13.0.2 computes nonsense for k > 2048."""
    return _kept(torch_cpu.integers(weights.codes), torch_cpu.tensor(weights.scales[:, 0], "fp32"))


def _call_dynamic(x: Any, packed: Any) -> Any:
    import torch

    return torch.ops.zentorch.zentorch_dynamic_qlinear(x, packed[0], packed[1], None)


def _pack_woq(weights: QuantizedWeights, _fed: Any, _case: GemmCase) -> Any:
    """Return codes [k / 8, n] and scales [k / group, n]; scales that are a view give wrong results without an error."""
    import torch

    codes = torch.ops.zentorch.zentorch_woq_repack_weight(torch_cpu.integers(weights.codes)).transpose(0, 1)
    return _kept(codes, torch_cpu.tensor(weights.scales.T, "bf16"))


def _call_woq(x: Any, packed: Any) -> Any:
    import torch

    return torch.ops.zentorch.zentorch_woq_linear(x, packed[0], packed[1], None, None)


def _woq(group: int) -> GemmRow:
    return GemmRow(
        "woq_linear", f"W4A16-g{group}", "bf16", torch_cpu.feeder("bf16"), _pack_woq, _call_woq,
        torch_cpu.to_float32, scale_precision="bf16", scale_bytes=2.0,
        limits=(k_multiple(group), needs_flags("avx512_bf16")),
    )  # fmt: skip


LIBRARY = Library(
    "zentorch",
    ("zentorch", "torch"),
    (
        _linear("fp32"), _linear("bf16", "avx512_bf16"),
        GemmRow("dynamic_qlinear", "W8A8", "int8", torch_cpu.feeder("bf16"), _pack_dynamic, _call_dynamic,
                torch_cpu.to_float32, rounding="int8 per token", limits=(needs_flags("avx512_vnni"),)),
        _woq(32), _woq(64), _woq(128),
    ),
    _start,
    problem=_problem,
)  # fmt: skip
