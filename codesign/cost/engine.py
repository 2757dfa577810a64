"""The program that issues the kernels: how long the host needs for a step that nobody captured or compiled.

Measured on published results; see docs/scoreboard.md.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction, StageTime
from codesign.errors import InputError, did_you_mean
from codesign.hardware.hardware import Hardware
from codesign.model.groups import FusedGroup
from codesign.schemes.scheme import Scheme
from codesign.units import BITS_PER_BYTE

# Kernels whose time on the host a quantized linear layer of a Python loop costs beside its multiplication: weight-only
# layers unpack or reduce partial sums; layers with quantized activations cast, find scales, quantize, rescale and cast
# back (bitsandbytes autograd/_functions.py, AutoAWQ modules/linear/gemm.py). Rounded from bitsandbytes on two hosts and
# three models, where these counts give BF16, NF4 and INT8 the same seconds per kernel to 5 %.
WEIGHT_ONLY_KERNELS = 2.0
ACTIVATION_KERNELS = 6.0

# What a Python loop needs to issue one kernel. A GeForce sits in a desktop, whose processor is more than twice as fast
# in one thread as those of servers. Source: published batch-1 decode of host-bound engines, `scripts/fit_engine.py`:
# server from bitsandbytes (H100), Hugging Face optimum and AutoAWQ (A100, T4); desktop from bitsandbytes (4090) alone.
HOST_S_PER_KERNEL = MappingProxyType({"server": 20.7e-6, "desktop": 8.3e-6})
# A CPU is its own host: it issues a kernel, then works on it. Cycles of one core for each, from decode steps of tiny
# Llama models in transformers 5.23 on a Zen 4 core: `scripts/host_cycles.py`.
HOST_CYCLES_PER_KERNEL = 3.95e4
# What is added to each where layers read more than the last-level cache holds, so that code and small tensors come
# from memory again: half of it once a layer is as large as the cache. Same script, 8 to 128 MiB per layer, to 30 %.
HOST_COLD_S_PER_KERNEL = 53e-6
# What all other operations of a block take on a CPU whose program runs them one by one, for each element that a fused
# implementation would move. Same script: 1.8 to 2.2 for hidden sizes from 512 to 2,048.
EAGER_CYCLES_PER_ELEMENT = 2.0
# Medians of the sources not fitted: 0.82 (Prem AI, A100) and 2.01 (a free notebook's T4) of the constant.
HOST_LOW_FACTOR, HOST_HIGH_FACTOR = 0.82, 2.01


@dataclass(frozen=True, slots=True)
class EngineClass:
    """How engines issue kernels; only where `python_loop` can the device have to wait for the host.

    `merges_projections` says that q, k and v (gate and up) are one multiplication, as in `FusedGroup`. A cache that
    grows by concatenation is there twice while it is copied (`cache_copies`).
    """

    name: str
    python_loop: bool
    merges_projections: bool
    other_kernels_per_block: float
    engines: tuple[str, ...]
    source: str
    cache_copies: float = 1.0


_CLASSES = (
    EngineClass("compiled", False, True, 0.0,
                ("vllm", "tensorrt-llm", "sglang", "llama.cpp", "fastertransformer", "lmdeploy", "gpt-fast"),
                "captured graphs or loops in compiled code: launches overlap with the device's work"),
    # 2 norms of 8 kernels, rotary embedding 10, cache 2, attention with repeated heads 2, residuals 2, activation 2.
    EngineClass("eager", True, False, 34.0, ("transformers", "bitsandbytes", "optimum", "accelerate"),
                "kernels counted in transformers, models/llama/modeling_llama.py, LlamaDecoderLayer; DynamicCache",
                cache_copies=2.0),
    # 2 norms, rotary embedding, cache, attention, 2 residuals, activation.
    EngineClass("eager-fused", True, True, 8.0, ("autoawq", "tinychat", "exllama"),
                "kernels counted in AutoAWQ, modules/fused/block.py, LlamaLikeBlock"),
)  # fmt: skip
ENGINE_CLASSES: Mapping[str, EngineClass] = MappingProxyType({one.name: one for one in _CLASSES})
DEFAULT_ENGINE = "compiled"


def engine_class(text: str) -> EngineClass:
    """Return the class of that name, or of the engine of that name; InputError lists what is known."""
    word = text.strip().lower().replace("_", "-")
    for one in _CLASSES:
        if word == one.name or word in one.engines:
            return one
    known = [*ENGINE_CLASSES, *(name for one in _CLASSES for name in one.engines)]
    raise InputError(f"Unknown engine {text[:64]!r}.{did_you_mean(word, known)} Known are {', '.join(known)}.")


def run_words(engine_name: str, thread_count: int | None) -> str:
    """Return engine class and threads, each after a comma, as far as they are not the usual ones."""
    engine = "" if engine_name == DEFAULT_ENGINE else f", {engine_name} engine"
    return engine + ("" if thread_count is None else f", {thread_count} thread{'s' if thread_count > 1 else ''}")


def host_kind(hardware: Hardware) -> str:
    """Return the kind of computer around the device, a key of `HOST_S_PER_KERNEL`."""
    return "desktop" if "GeForce" in hardware.title else "server"


def linear_kernel_count(engine: EngineClass, hardware: Hardware, group: FusedGroup, scheme: Scheme) -> float:
    """Return the kernels that the engine issues for the layers of one group; on CPUs one does a whole layer."""
    if group.experts is not None:
        count = len(group.experts.matrices) * (1 if engine.merges_projections else group.experts.expert_count)
    else:
        count = 1 if engine.merges_projections else len(group.layers)
    if not scheme.quantized or is_own_host(hardware):
        return float(count)
    return count * (1.0 + (WEIGHT_ONLY_KERNELS if scheme.weight_only else ACTIVATION_KERNELS))


def host_s(
    engine: EngineClass, hardware: Hardware, groups: Sequence[FusedGroup], schemes: Sequence[Scheme]
) -> Prediction:
    """Return the host's time of a step: linear layers, and all other kernels."""
    value = 0.0
    if engine.python_loop:
        value = other_host_s(engine, hardware, groups) + sum(
            linear_host_s(engine, hardware, group, scheme, after)
            for group, scheme, after in zip(groups, schemes, kernels_after(engine, groups), strict=True)
        )
    return Prediction(value, value * HOST_LOW_FACTOR, value * HOST_HIGH_FACTOR, Origin.TRANSFERRED)


def kernels_after(engine: EngineClass, groups: Sequence[FusedGroup]) -> list[float]:
    """Return how many of a block's other kernels follow each group: as many after one as after the next."""
    in_block = Counter(group.block_index for group in groups)
    return [
        0.0 if group.block_index is None else engine.other_kernels_per_block / in_block[group.block_index]
        for group in groups
    ]


def linear_host_s(engine: EngineClass, hardware: Hardware, group: FusedGroup, scheme: Scheme, after: float) -> float:
    """Return the seconds to issue a group's layers, and what emptied caches add to them and the kernels `after`."""
    if not engine.python_loop:
        return 0.0
    count = linear_kernel_count(engine, hardware, group, scheme)
    layer_bytes = group.weight_count * scheme.bits_per_weight / BITS_PER_BYTE / count
    return issue_s(hardware) * count + _cold_s(hardware, layer_bytes) * (count + after)


def other_host_s(engine: EngineClass, hardware: Hardware, groups: Sequence[FusedGroup]) -> float:
    """Return the seconds to issue all kernels of a step but those of linear layers."""
    blocks = {group.block_index for group in groups if group.block_index is not None}
    return issue_s(hardware) * engine.other_kernels_per_block * len(blocks) if engine.python_loop else 0.0


def issue_s(hardware: Hardware) -> float:
    """Return the seconds in which the host issues one kernel."""
    return (
        HOST_CYCLES_PER_KERNEL / hardware.boost_clock_hz
        if is_own_host(hardware)
        else HOST_S_PER_KERNEL[host_kind(hardware)]
    )


def elements_per_s(engine: EngineClass, hardware: Hardware) -> float:
    """Return how many elements per second element-wise kernels work on; fused ones, and a GPU's, wait for memory."""
    if not engine.python_loop or not is_own_host(hardware):
        return math.inf
    return hardware.boost_clock_hz * hardware.unit_count / EAGER_CYCLES_PER_ELEMENT


def _cold_s(hardware: Hardware, layer_bytes: float) -> float:
    """Return what a kernel takes longer after a layer of so many bytes; a GPU's host keeps its caches."""
    if not is_own_host(hardware) or hardware.cache is None:
        return 0.0
    caches = min(hardware.cache.count, hardware.unit_count)
    share = (layer_bytes / caches / hardware.cache.capacity_bytes) ** 2
    return HOST_COLD_S_PER_KERNEL * share / (1.0 + share)


def is_own_host(hardware: Hardware) -> bool:
    """Return whether the processor that issues kernels is the one that runs them."""
    return hardware.kind == "cpu"


def issued_step_s(hardware: Hardware, device_s: FloatArray, issued_s: FloatArray | float) -> FloatArray:
    """Return the time of a step: a GPU's host runs ahead, so the longer of both; a CPU does one after the other."""
    return as_floats(device_s + issued_s if is_own_host(hardware) else np.maximum(device_s, issued_s))


def host_wait(hardware: Hardware, device_s: Prediction, issued_s: Prediction) -> StageTime:
    """Return how long no kernel runs in a step because the host issues the next.

    The ends of the interval are those that make the sum with `device_s` the ends of the step.
    """
    value, low, high = (
        float(issued_step_s(hardware, as_floats(device), host)) - device
        for host, device in (
            (issued_s.value, device_s.value),
            (issued_s.low, device_s.low),
            (issued_s.high, device_s.high),
        )
    )
    return StageTime(Prediction(value, low, high, issued_s.origin), 0.0, 0.0, value)
