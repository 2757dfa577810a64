"""From flop and bytes to seconds: the larger of compute and memory time, after a fixed time."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray


class Bound(StrEnum):
    """Which term of a kernel's time is the largest."""

    COMPUTE = "compute"
    MEMORY = "memory"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Rates:
    """What a kernel sustains. `vector_flop_per_s` is the rate of conversions beside the matrix units.

    `compute_weight` is the power of the arithmetic at that rate, relative to 16 bits.
    """

    flop_per_s: float
    vector_flop_per_s: float
    bytes_per_s: float
    fixed_s: float
    compute_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class OpCost:
    """Work of one kernel, or of many equal kernels as arrays; bytes by stream, flop by unit."""

    flop: FloatArray
    vector_flop: FloatArray
    weight_bytes: FloatArray
    activation_bytes: FloatArray
    kv_bytes: FloatArray
    launch_count: FloatArray

    @property
    def bytes(self) -> FloatArray:
        """Return all bytes moved from and to main memory."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Seconds of one kernel or of arrays of kernels, by cause."""

    compute_s: FloatArray
    memory_s: FloatArray
    fixed_s: FloatArray

    @property
    def predicted_s(self) -> FloatArray:
        """Return fixed time plus the larger of compute and memory time."""
        return self.fixed_s + np.maximum(self.compute_s, self.memory_s)

    @property
    def bound(self) -> npt.NDArray[np.str_]:
        """Return the name of the term that dominates."""
        busy_s = np.maximum(self.compute_s, self.memory_s)
        busy = np.where(self.compute_s > self.memory_s, Bound.COMPUTE.value, Bound.MEMORY.value)
        return np.where(self.fixed_s > busy_s, Bound.LATENCY.value, busy)


def kernel_time(cost: OpCost, rates: Rates) -> KernelTime:
    """Return the time of the work at the given rates.

    Conversions share the instruction stream with the multiplication, so their times add up.
    Source: Williams, Waterman, Patterson, "Roofline", 2009; the fixed time is one launch per kernel.
    """
    return KernelTime(
        compute_s=cost.flop / rates.flop_per_s + cost.vector_flop / rates.vector_flop_per_s,
        memory_s=cost.bytes / rates.bytes_per_s,
        fixed_s=cost.launch_count * rates.fixed_s,
    )
