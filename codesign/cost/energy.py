"""Joules of kernels and of stages, from their seconds and from what draws power in them."""

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.origin import Origin
from codesign.cost.power import Load, energy_joule, power_factors, power_model
from codesign.cost.prediction import TRUST, Prediction, StageTime
from codesign.hardware.hardware import Hardware


def kernel_energy_joule(hardware: Hardware, seconds: FloatArray, load: Load) -> FloatArray:
    """Return the energy of kernels on one device. Source: `energy_joule`, with the constants of the machine's class."""
    model, _ = power_model(hardware)
    return energy_joule(model, hardware.power, seconds, load)


def stage_energy_joule(hardware: Hardware, stage: StageTime, gpu_count: int) -> Prediction:
    """Return the energy of a stage on all devices.

    The interval multiplies the energy at the ends of the stage's seconds by the factors of power, never below idle nor
    above the limit.
    """
    seconds, power = stage.seconds, hardware.power
    load = Load(as_floats(stage.compute_load_s), as_floats(stage.memory_load_s))
    value, at_low, at_high = (
        float(kernel_energy_joule(hardware, as_floats(s), load)) for s in (seconds.value, seconds.low, seconds.high)
    )
    low_factor, high_factor = power_factors(hardware)
    low = min(value, max(at_low * low_factor, power.idle_watt * seconds.low))
    high = max(value, min(at_high * high_factor, power.limit_watt * seconds.high))
    return Prediction(value * gpu_count, low * gpu_count, high * gpu_count, _origin(hardware, seconds.origin))


def _origin(hardware: Hardware, of_seconds: Origin) -> Origin:
    _, of_power = power_model(hardware)
    return max(of_seconds, of_power, key=TRUST.index)
