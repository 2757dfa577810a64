"""vLLM's integer kernels on NVIDIA GPUs: Marlin from Turing on, Machete on Hopper.

Facts are from vLLM 0.33.0: model_executor/kernels/linear/mixed_precision/marlin.py and machete.py (how weights of the
GPTQ layout are packed, limits), model_executor/layers/quantization/utils/marlin_utils.py (order of scales, workspace,
apply_gptq_marlin_linear), utils/machete_utils.py (shapes, groups), _custom_ops.py (machete_prepack_B, machete_mm).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import gpu
from codesign.profiler.libraries.adapter import GemmRow, Library, import_quietly, k_multiple, n_multiple, too_old
from codesign.profiler.weights import QuantizedWeights
from codesign.quantize.pack import pack_words

_UTILS = "vllm.model_executor.layers.quantization.utils.marlin_utils"
_TYPES = {4: "uint4b8", 8: "uint8b128"}  # codes count from 0, half of the range stands for 0
_WHOLE_ROW = -1
_HOPPER = (9, 0)


def _problem() -> str | None:
    return gpu.problem() or too_old("vllm", 0, 33)


def _type(bits: int) -> Any:
    return getattr(import_quietly("vllm.scalar_type").scalar_types, _TYPES[bits])


def words(weights: QuantizedWeights, bits: int) -> Any:
    """Return codes as GPTQ stores them: int32 [k x bits / 32, n], the first of a word in its lowest bits."""
    codes = gpu.integers(weights.codes + (1 << (bits - 1)), np.uint8)
    return pack_words(codes, bits).t().contiguous()


def _group(weights: QuantizedWeights) -> int:
    return _WHOLE_ROW if weights.scales.shape[1] == 1 else weights.group


def _pack_marlin(bits: int) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, _fed: Any, case: GemmCase) -> Any:
        import torch

        utils = import_quietly(_UTILS)
        scales = gpu.tensor(weights.scales.T, "fp16")
        packed = import_quietly("vllm._custom_ops").gptq_marlin_repack(words(weights, bits), case.k, case.n, bits)
        device = torch.device(gpu.DEVICE, torch.cuda.current_device())
        return utils.apply_gptq_marlin_linear, {
            "weight": packed,
            "weight_scale": utils.marlin_permute_scales(scales, case.k, case.n, _group(weights)),
            "weight_zp": utils.marlin_make_empty(device),
            "workspace": utils.marlin_make_workspace_new(device, utils.MARLIN_MAX_BLOCKS_PER_SM),
            "wtype": _type(bits),
            "output_size_per_partition": case.n,
            "input_size_per_partition": case.k,
        }

    return pack


def _call_marlin(x: Any, packed: Any) -> Any:
    multiply, arguments = packed
    return multiply(x, **arguments)


def _pack_machete(bits: int) -> Callable[[QuantizedWeights, Any, GemmCase], Any]:
    def pack(weights: QuantizedWeights, fed: Any, _case: GemmCase) -> Any:
        operators = import_quietly("vllm._custom_ops")
        columns_first = words(weights, bits).t().contiguous().t()
        return operators.machete_mm, {
            "b_q": operators.machete_prepack_B(columns_first, fed.dtype, _type(bits), fed.dtype),
            "b_type": _type(bits),
            "b_group_scales": gpu.tensor(weights.scales.T, "fp16"),
            "b_group_size": _group(weights),
        }

    return pack


def _call_machete(x: Any, packed: Any) -> Any:
    multiply, arguments = packed
    return multiply(a=x, **arguments)


def _hopper(_case: GemmCase) -> str | None:
    have = gpu.capability()
    return None if have == _HOPPER else f"Machete is for compute capability 9.0 only, this GPU has {have[0]}.{have[1]}"


def _row(name: str, bits: int, group: int | None, pack: Any, call: Any, *limits: Any) -> GemmRow:
    scheme = f"W{bits}A16" + (f"-g{group}" if group else "")
    return GemmRow(
        name, scheme, "fp16", gpu.feeder("fp16"), pack(bits), call, gpu.to_float32, x_precision="fp16",
        scale_precision="fp16", scale_bytes=2.0, device="cuda", limits=limits,
    )  # fmt: skip


def _marlin(bits: int, group: int | None) -> GemmRow:
    return _row(
        "marlin", bits, group, _pack_marlin, _call_marlin, gpu.needs_capability(7, 5), n_multiple(64), k_multiple(128)
    )


def _machete(bits: int, group: int | None) -> GemmRow:
    limits = (_hopper, n_multiple(128), k_multiple(group or 64))
    return _row("machete", bits, group, _pack_machete, _call_machete, *limits)


LIBRARY = Library(
    "vllm", ("vllm", "torch"),
    (
        *(_marlin(4, group) for group in (None, 32, 64, 128)), *(_marlin(8, group) for group in (None, 32, 64, 128)),
        *(_machete(bits, group) for bits in (4, 8) for group in (None, 64, 128)),
    ),
    gpu.start, problem=_problem, device="cuda",
)  # fmt: skip
