"""Joules: power between idle and the limit, by how busy the memory and the arithmetic are."""

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.prediction import Prediction, StageTime
from codesign.hardware.hardware import Power

# Share of the span between idle power and the limit that streaming memory at full speed draws. Assumed; arithmetic at
# full speed reaches the limit, memory alone does not.
MEMORY_POWER_SHARE = 0.6
RUNNING_POWER_SHARE = 0.15  # clocks up, kernels resident, nothing busy: assumed


def kernel_energy_joule(
    power: Power, predicted_s: FloatArray, compute_s: FloatArray, memory_s: FloatArray
) -> FloatArray:
    """Return the energy of kernels on one device: idle power throughout, the rise by busy time, never above the limit.

    Source: the linear power model of Hong and Kim, ISCA 2010, with assumed shares until they are measured.
    """
    span_watt = power.limit_watt - power.idle_watt
    busy_s = RUNNING_POWER_SHARE * predicted_s + MEMORY_POWER_SHARE * memory_s + compute_s
    return power.idle_watt * predicted_s + span_watt * np.minimum(busy_s, predicted_s)


def stage_energy_joule(power: Power, stage: StageTime, gpu_count: int) -> Prediction:
    """Return the energy of a stage on all devices; the interval spans half the rise above idle up to the limit."""
    seconds = stage.seconds
    value = float(
        kernel_energy_joule(power, as_floats(seconds.value), as_floats(stage.compute_s), as_floats(stage.memory_s))
    )
    idle = power.idle_watt * seconds.value
    stretch_low, stretch_high = seconds.low / seconds.value, seconds.high / seconds.value
    low = (idle + (value - idle) / 2) * stretch_low
    high = max(value, power.limit_watt * seconds.value) * stretch_high
    return Prediction(value * gpu_count, low * gpu_count, high * gpu_count, seconds.origin)
