"""Watts of one device from what its memory and its arithmetic do, between idle and the limit.

Waiting draws little: not the time a kernel takes counts but its load, the seconds that its bytes and its flop alone
would take at the rates that the machine sustains.
"""

from dataclasses import dataclass, replace

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.origin import Origin
from codesign.hardware.hardware import Hardware, Power


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of one kernel or of arrays of kernels at the sustained rates of arithmetic and of memory."""

    compute_s: FloatArray
    memory_s: FloatArray


@dataclass(frozen=True, slots=True)
class PowerModel:
    """How a class of machines draws power, in shares of the span from idle to the limit.

    `running` with clocks up and a kernel resident; `memory` and `compute` on top at the sustained rate of each, where
    `compute` is that of 16 bits and wider; `compute_8_bit` that of narrower formats. Demand above the whole span lowers
    the clock; `sharpness` says how abruptly. The factors are the ends of the 80 % interval.
    """

    running: float
    memory: float
    compute: float
    compute_8_bit: float
    sharpness: float
    low_factor: float
    high_factor: float


# Fitted on H200, bf16 and fp8 in 128 x 128 blocks, on a subset of the performance database of NVIDIA's aiconfigurator
# (Apache-2.0, August 2026): `python scripts/fit_power.py` fits and tests it on shapes that the fit did not see.
MEASURED_ON = "h200-sxm"
MEASURED_ARCHITECTURE = "hopper"
# What that profile sustains, and its span from idle to the limit.
MEASURED_BYTES_PER_S, MEASURED_FLOP_PER_S, MEASURED_SPAN_WATT = 4.08e12, 791.52e12, 625.0
HBM_GPU = PowerModel(
    running=0.081, memory=0.708, compute=0.972, compute_8_bit=1.25, sharpness=24.0, low_factor=0.84, high_factor=1.06
)
# Ends of the interval on the other GPUs with stacked memory, whose shares are taken over: assumed.
TRANSFERRED_FACTORS = (0.75, 1.3)
# All others: assumed; arithmetic at full speed reaches the limit, memory alone does not. A context alone adds 66 W to
# an L40S (arXiv 2605.23918), a fifth of its span.
OTHER = PowerModel(
    running=0.2, memory=0.6, compute=1.0, compute_8_bit=1.0, sharpness=24.0, low_factor=0.6, high_factor=1.6
)
NARROW_DTYPES = ("fp8", "fp6", "fp4", "int8", "int4")


def power_model(hardware: Hardware) -> tuple[PowerModel, Origin]:
    """Return the constants of the machine's class and how they were come by."""
    if hardware.name == MEASURED_ON:
        return HBM_GPU, Origin.CALIBRATED
    if hardware.architecture == MEASURED_ARCHITECTURE:
        return _same_energy(hardware), Origin.TRANSFERRED
    if hardware.kind == "gpu" and hardware.memory.technology.startswith("HBM"):
        return HBM_GPU, Origin.TRANSFERRED
    return OTHER, Origin.DATASHEET


def _same_energy(hardware: Hardware) -> PowerModel:
    """Return the shares that keep energy per byte and per flop, for another machine with the measured chip."""
    span_ratio = MEASURED_SPAN_WATT / max(hardware.power.limit_watt - hardware.power.idle_watt, 1.0)
    memory_ratio = hardware.memory.sustained_bytes_per_s / MEASURED_BYTES_PER_S
    rate = hardware.peak_flop_per_s.get("bf16", MEASURED_FLOP_PER_S / hardware.sustained_compute_fraction)
    compute_ratio = rate * hardware.sustained_compute_fraction / MEASURED_FLOP_PER_S
    return replace(
        HBM_GPU,
        memory=HBM_GPU.memory * memory_ratio * span_ratio,
        compute=HBM_GPU.compute * compute_ratio * span_ratio,
        compute_8_bit=HBM_GPU.compute_8_bit * compute_ratio * span_ratio,
    )


def compute_weight(hardware: Hardware, math_dtype: str) -> float:
    """Return the power of arithmetic in `math_dtype` at its sustained rate, relative to that in 16 bits."""
    model, _ = power_model(hardware)
    return model.compute_8_bit / model.compute if math_dtype in NARROW_DTYPES else 1.0


def power_factors(hardware: Hardware) -> tuple[float, float]:
    """Return the ends of the 80 % interval of power as factors."""
    model, origin = power_model(hardware)
    return TRANSFERRED_FACTORS if origin is Origin.TRANSFERRED else (model.low_factor, model.high_factor)


def energy_joule(model: PowerModel, power: Power, seconds: FloatArray, load: Load) -> FloatArray:
    """Return the energy of `load` done in `seconds`: idle power throughout, the rise by load, never above the limit.

    Source: the additive power model of Hong and Kim, ISCA 2010, with a smooth minimum for the power limit.
    """
    demand_s = model.running * seconds + model.memory * load.memory_s + model.compute * load.compute_s
    high = np.maximum(np.maximum(demand_s, seconds), np.finfo(np.float64).tiny)
    low = np.minimum(demand_s, seconds)
    rise_s = low / (1.0 + (low / high) ** model.sharpness) ** (1.0 / model.sharpness)
    joule: FloatArray = power.idle_watt * seconds + (power.limit_watt - power.idle_watt) * rise_s
    return joule
