"""The GPU that a run measures on, watched from outside of the processes that run its kernels."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from codesign.errors import CapabilityError
from codesign.profiler.energy import Energy
from codesign.profiler.gpu_energy import WINDOW_S, Busy, energy_of_busy, mean_power
from codesign.profiler.gpu_states import VISIBLE, GpuRound, chosen_gpu, first_word, round_of
from codesign.profiler.reading import Reading, absent
from codesign.profiler.telemetry import SILENCE_LIMIT_S, Sampler
from codesign.profiler.telemetry_lines import Gpu
from codesign.profiler.timing import MonotonicClock


class DeviceLostError(CapabilityError):
    """The GPU is gone: what is left of the run cannot be measured before it is back."""


class GpuWatch:
    """What telemetry says of one GPU; `gpu` is absent with a reason where it says nothing."""

    def __init__(self, sampler: Sampler, gpu: Reading[Gpu]) -> None:
        self._sampler, self._gpu = sampler, gpu

    @property
    def why(self) -> str | None:
        """Return why nothing is known of the GPU now, None where it is."""
        return self._gpu.why if self._gpu.value is None else self._sampler.why

    @property
    def usual_clock_hz(self) -> float | None:
        """Return the highest clock of its multiprocessors."""
        return None if self._gpu.value is None else self._gpu.value.identity["max_sm_clock_hz"].value

    def refuse_lost(self, at_s: float | None = None) -> None:
        """Raise DeviceLostError where the GPU is lost by a reading later than a time, which is now if not given."""
        if self._gpu.value is None:
            return
        self._sampler.wait_past(MonotonicClock.now_s() if at_s is None else at_s)
        _refuse(self._sampler.lost(self._gpu.value.index))

    def round_of(self, begin_s: float, end_s: float) -> GpuRound | None:
        """Return what the GPU did in a round that has just ended, None where that is not known."""
        if self._gpu.value is None:
            return None
        self._sampler.wait_past(end_s)
        states = self._sampler.states(self._gpu.value.index, begin_s - SILENCE_LIMIT_S, float("inf"))
        return round_of(states, begin_s, end_s)

    def energy_of(self, busy: Busy, idle: Reading[float]) -> Reading[Energy]:
        """Return the energy of calls that have just ended."""
        if self._gpu.value is None:
            return absent(self._gpu.why or "")
        self._sampler.wait_past(busy.end_s)
        states = self._sampler.states(self._gpu.value.index, busy.begin_s, busy.end_s)
        energy = energy_of_busy(busy, states, f"gpu {self._gpu.value.index}", idle)
        return energy if energy.value is not None or self.why is None else absent(self.why)

    def idle_watt(self, sleep: Callable[[float], object] = time.sleep) -> Reading[float]:
        """Return the power at rest: that of a window in which nothing runs."""
        if self._gpu.value is None:
            return absent(self._gpu.why or "")
        begin_s = MonotonicClock.now_s()
        sleep(WINDOW_S)
        self._sampler.wait_past(begin_s + WINDOW_S)
        power = mean_power(self._sampler.states(self._gpu.value.index, begin_s, begin_s + WINDOW_S))
        if power.value is None:
            return absent(self.why or power.why or "")
        return Reading(power.value.watt)


def _refuse(lost: str | None) -> None:
    if lost is not None:
        raise DeviceLostError(lost)


@contextlib.contextmanager
def watching() -> Iterator[GpuWatch]:
    """Watch the GPU that CUDA calls the first, until the run has ended; DeviceLostError where it is lost already."""
    visible = os.environ.get(VISIBLE)
    with Sampler(lambda _: None) as sampler:
        telemetry = sampler.telemetry()
        gpu = chosen_gpu(telemetry, visible)
        index = first_word(visible) if gpu.value is None else str(gpu.value.index)
        _refuse({str(number): why for number, why in telemetry.lost.items()}.get(index))
        yield GpuWatch(sampler, gpu)
