"""Seconds of one kernel on one machine with one library: the only place where rates meet work.

Rates come from the profile's sustained fractions and one launch constant; the origin of every number is `datasheet`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.calibration import Chosen, choose, without_host
from codesign.cost.cpu_gemm_time import cpu_gemm_seconds, is_cpu_sheet
from codesign.cost.expert_routing import busiest_device
from codesign.cost.gemm_time import gemm_math, gemm_seconds
from codesign.cost.moe_time import MoeShape, moe_seconds
from codesign.cost.origin import Origin
from codesign.cost.power import Load, compute_weight
from codesign.cost.roofline import KernelTime, OpCost, Rates, kernel_time
from codesign.cost.target import Target
from codesign.cost.traffic import (
    dequantize_flop,
    gemm_activation_bytes,
    gemm_flop,
    quantize_activation_bytes,
    rescale_flop,
)
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware
from codesign.schemes.capability import library_capability
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes


@dataclass(frozen=True, slots=True)
class IntervalFactors:
    """Ends of the 80 % interval: factors on the busy time (compute or memory) and on the fixed time of a kernel."""

    busy_low: float
    busy_high: float
    fixed_low: float
    fixed_high: float


# Measured over predicted at the 10th and 90th percentile, all measured machines, libraries and schemes pooled, never
# above 1 at the lower end: `python scripts/fit_intervals.py` prints them. Element-wise kernels: assumed.
DATASHEET_INTERVAL: dict[str, IntervalFactors] = {
    "gemm": IntervalFactors(0.98, 1.64, 1.0, 15.7),
    "attention": IntervalFactors(0.96, 4.6, 1.0, 11.6),
    "moe": IntervalFactors(1.0, 6.3, 1.0, 12.7),
    "all_reduce": IntervalFactors(1.0, 1.8, 0.57, 3.0),
    "elementwise": IntervalFactors(0.5, 2.0, 0.5, 3.0),
}
# The same for the speed-up of a scheme over 16 bits in large layers, both from the datasheet: errors partly cancel.
DATASHEET_GAIN_INTERVAL = (0.40, 1.07)
NIBBLE_BITS = 4.0


@dataclass(frozen=True, slots=True)
class KernelPrediction:
    """Predicted time of one kernel or of arrays of kernels, with its 80 % interval.

    `time` splits it by cause; causes may overlap, so that `predicted_s` is not their sum. `load` is what draws power;
    without one, the seconds of compute and memory in `time` are.
    """

    time: KernelTime
    predicted_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    origin: Origin
    load: Load | None = None

    @property
    def power_load(self) -> Load:
        """Return what draws power."""
        return self.load or Load(self.time.compute_s, self.time.memory_s)


def datasheet_rates(hardware: Hardware, math_dtype: str) -> Rates:
    """Return what the profile says that large kernels sustain in `math_dtype`."""
    vector_dtype = "fp32" if "fp32" in hardware.peak_flop_per_s else math_dtype
    return Rates(
        flop_per_s=hardware.sustained_flop_per_s(math_dtype),
        vector_flop_per_s=hardware.sustained_flop_per_s(vector_dtype),
        bytes_per_s=hardware.memory.sustained_bytes_per_s,
        fixed_s=hardware.launch_overhead_s,
        compute_weight=compute_weight(hardware, math_dtype),
    )


def datasheet_prediction(operation: str, cost: OpCost, rates: Rates) -> KernelPrediction:
    """Return the time of the work with the interval of its class of operations."""
    time = kernel_time(cost, rates)
    factors = DATASHEET_INTERVAL[operation]
    busy_s = time.predicted_s - time.fixed_s
    return KernelPrediction(
        time,
        predicted_s=time.predicted_s,
        low_s=busy_s * factors.busy_low + time.fixed_s * factors.fixed_low,
        high_s=busy_s * factors.busy_high + time.fixed_s * factors.fixed_high,
        origin=Origin.DATASHEET,
        load=work_load(cost, rates),
    )


def work_load(cost: OpCost, rates: Rates) -> Load:
    """Return what draws power in the work."""
    time = kernel_time(cost, rates)
    return Load(time.compute_s * rates.compute_weight, time.memory_s)


def scheme_math(scheme: Scheme, target: Target) -> tuple[str, bool]:
    """Return what the scheme multiplies in here, and whether its activations are quantized for it.

    Where float formats are emulated, only the weights are stored in them. CapabilityError if the scheme cannot run.
    """
    capability = library_capability(scheme, target.hardware, target.library)
    if capability.math_dtype is None:
        raise CapabilityError(
            f"{scheme} does not run on {target.hardware.name} with {target.library}: {capability.reason}"
        )
    as_stored = capability.level == "native" or capability.math_dtype.startswith("int")
    return capability.math_dtype, scheme.quantized and not scheme.weight_only and as_stored


def gemm_cost(scheme: Scheme, quantizes: bool, m: FloatArray, n: FloatArray, k: FloatArray) -> OpCost:
    """Return the work of out[m, n] = x[m, k] · W with W stored as `scheme`, conversions included.

    `quantizes` says that activations are quantized too, in a pass of their own where their scales are dynamic.
    """
    a_bits = scheme.activations.bits if quantizes else 16.0
    separate_pass = 1.0 if quantizes and scheme.activations.dynamic else 0.0
    block = scheme.scale_block
    vector_flop = np.zeros_like(m * n * k)
    if scheme.quantized and not quantizes:
        vector_flop = dequantize_flop(m, n, k)
    elif quantizes and block is not None:
        vector_flop = rescale_flop(m, n, k, float(block))
    return OpCost(
        flop=gemm_flop(m, n, k),
        vector_flop=vector_flop,
        weight_bytes=as_floats(weight_bytes(scheme, n.astype(np.int64), k.astype(np.int64))),
        activation_bytes=gemm_activation_bytes(m, n, k, a_bits)
        + separate_pass * quantize_activation_bytes(m, k, a_bits),
        kv_bytes=np.zeros_like(m * n * k),
        launch_count=np.full_like(m * n * k, 1.0 + separate_pass),
    )


def gemm(
    target: Target, scheme: Scheme, m: FloatArray, n: FloatArray, k: FloatArray, *, in_step: bool = False
) -> KernelPrediction:
    """Return the time of out[m, n] = x[m, k] · W on one device; the arrays broadcast against each other.

    A call on its own waits for the host; `in_step` says that it is part of a captured or queued step, which does not.
    """
    math_dtype, quantizes = scheme_math(scheme, target)
    m, n, k = np.broadcast_arrays(as_floats(m), as_floats(n), as_floats(k))
    own = sheet_key(scheme, target.hardware)
    keys = [[key] for key in dict.fromkeys((own, *sheet_keys(scheme, quantizes)))]
    if target.kernel:
        keys.insert(0, [kernel_key(own, target.kernel)])
    chosen = choose(target, "gemm", keys, lambda key, machine: _quantizes(key, machine) == quantizes)
    cost, rates = gemm_cost(scheme, quantizes, m, n, k), datasheet_rates(target.hardware, math_dtype)
    if chosen is None:
        return datasheet_prediction("gemm", cost, rates)
    constants = _in_step(chosen, target, quantizes) if in_step else chosen.constants
    seconds = cpu_gemm_seconds if is_cpu_sheet(constants) else gemm_seconds
    time = seconds(constants, target.hardware, scheme, m, n, k)
    low_s, high_s = chosen.interval(time.predicted_s, {"m": m, "n": n, "k": k})
    parts = KernelTime(time.compute_s, time.memory_s, time.fixed_s)
    return KernelPrediction(parts, time.predicted_s, low_s, high_s, chosen.origin, work_load(cost, rates))


def _in_step(chosen: Chosen, target: Target, quantizes: bool) -> Mapping[str, float]:
    """Return the constants inside a step, where no call waits for the host.

    A multiplication that quantizes then takes at most one launch more than the library's 16-bit one: what is more in a
    call of its own is the host's time between its kernels.
    """
    constants = without_host(chosen.constants)
    sixteen = choose(target, "gemm", [[SIXTEEN_BIT_KEY]], lambda *_: True) if quantizes else None
    if sixteen is None:
        return constants
    fixed_max_s = sixteen.constants["fixed_s"] + target.hardware.launch_overhead_s
    return {**constants, "fixed_s": min(constants["fixed_s"], fixed_max_s)}


SIXTEEN_BIT_KEY = "BF16"
KERNEL_SIGN = "@"
# Schemes that the same kernels multiply as one that was measured: other group sizes, static scales, the other 16 bits.
MEASURED_ALIKE = {
    "FP16": "BF16",
    "W4A16": "W4A16-g128",
    "W4A16-g32": "W4A16-g128",
    "W4A16-g64": "W4A16-g128",
    "W4A16-g128-asym": "W4A16-g128",
    "W8A16-g128": "W8A16",
    "W8A8-static": "W8A8",
    "FP8-channel": "FP8",
    "FP8-dynamic": "FP8",
}


def sheet_key(scheme: Scheme, hardware: Hardware) -> str:
    """Return the name under which the machine's kernel sheets hold the scheme's constants.

    On a CPU every scheme has its own: what is alike on a GPU differs by multiples there (16-bit floats, group sizes).
    """
    return scheme.name if hardware.kind == "cpu" else MEASURED_ALIKE.get(scheme.name, scheme.name)


def sheet_keys(scheme: Scheme, quantizes: bool) -> tuple[str, ...]:
    """Return the scheme's own key, then that of the measured scheme whose kernels do most alike.

    Weights that are only stored in few bits are converted like integers of about the same width.
    """
    alike = MEASURED_ALIKE.get(scheme.name, scheme.name)
    if not scheme.quantized or quantizes or scheme.family == "gguf":
        return (alike,)
    return (alike, "W8A16" if scheme.weights.bits > NIBBLE_BITS else "W4A16-g128")


def kernel_key(key: str, kernel: str) -> str:
    """Return the name under which sheets hold one of a library's several kernels for a scheme."""
    return f"{key}{KERNEL_SIGN}{kernel}"


def _quantizes(key: str, machine: Hardware) -> bool:
    return gemm_math(parse_scheme(key.split(KERNEL_SIGN, maxsplit=1)[0]), machine)[1]


def moe(target: Target, scheme: Scheme, shape: MoeShape) -> KernelPrediction:
    """Return the time of the routed experts on one device."""
    datasheet = _datasheet_moe(target, scheme, shape)
    quantizes = scheme_math(scheme, target)[1]
    keys = [[key] for key in sheet_keys(scheme, quantizes)]
    chosen = choose(target, "moe", keys, lambda key, machine: _quantizes(key, machine) == quantizes)
    if chosen is None:
        return datasheet
    time = moe_seconds(chosen.constants, target.hardware, scheme, shape)
    sizes = {name: getattr(shape, name) for name in ("tokens", "hidden", "intermediate", "expert_count", "top_k")}
    low_s, high_s = chosen.interval(time.predicted_s, sizes)
    parts = KernelTime(time.compute_s, time.memory_s, time.fixed_s)
    return KernelPrediction(parts, time.predicted_s, low_s, high_s, chosen.origin, datasheet.load)


def _datasheet_moe(target: Target, scheme: Scheme, shape: MoeShape) -> KernelPrediction:
    """Every expert hit is read once, every routed row multiplied; one grouped kernel per matrix."""
    math_dtype, quantizes = scheme_math(scheme, target)
    routing = busiest_device(shape.tokens, shape.expert_count, shape.top_k, shape.skew, shape.expert_parallel)
    hit, rows_per_expert = routing.hit, routing.rows / routing.hit
    up_count = shape.matrix_count - 1.0
    up = gemm_cost(scheme, quantizes, rows_per_expert, shape.intermediate, shape.hidden)
    down = gemm_cost(scheme, quantizes, rows_per_expert, shape.hidden, shape.intermediate)
    cost = OpCost(
        flop=hit * (up_count * up.flop + down.flop),
        vector_flop=hit * (up_count * up.vector_flop + down.vector_flop),
        weight_bytes=hit * (up_count * up.weight_bytes + down.weight_bytes),
        activation_bytes=hit * (up_count * up.activation_bytes + down.activation_bytes),
        kv_bytes=np.zeros_like(hit),
        launch_count=up.launch_count + down.launch_count,
    )
    return datasheet_prediction("moe", cost, datasheet_rates(target.hardware, math_dtype))
