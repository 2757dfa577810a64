"""Latency against load: the same requests at one rate after another, up to where the queue grows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from codesign.capacity.load import Fleet, Load, Objectives, knee, serve
from codesign.capacity.requests import Requests


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """Loads by rising rate; `knee_index` is where the 95th percentile of the first token bends upwards most.

    `best_index` is the last rate up to which all objectives are met, None if there are none or the first fails.
    """

    loads: tuple[Load, ...]
    knee_index: int
    best_index: int | None


def load_curve(
    drawn: Requests,
    rates_per_s: Sequence[float],
    fleet: Fleet,
    objectives: Objectives,
    report: Callable[[Load], None] = lambda _: None,
) -> LoadCurve:
    """Return the loads at the rates: the same requests, drawn at one per second, ever closer together."""
    loads: list[Load] = []
    for rate in sorted(rates_per_s):
        loads.append(serve(at_rate(drawn, rate), fleet, objectives))
        report(loads[-1])
    met = [one.meets(objectives) for one in loads]
    best = (met.index(False) if False in met else len(met)) - 1
    # Beyond the first that is overloaded latency only says how long the simulation was
    steady = loads[: next((number for number, one in enumerate(loads) if one.overloaded), len(loads)) + 1]
    return LoadCurve(
        loads=tuple(loads),
        knee_index=knee(
            np.array([one.rate_per_s for one in steady]), np.array([one.p95("ttft_s").value for one in steady])
        ),
        best_index=best if objectives.named and best >= 0 else None,
    )


def at_rate(drawn: Requests, rate_per_s: float) -> Requests:
    """Return requests drawn at one per second, arriving at another rate."""
    return replace(drawn, arrival_s=drawn.arrival_s / rate_per_s)


def spread_rates(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return rates from `low` to `high`, each by the same step above the one before."""
    return tuple(float(one) for one in np.linspace(low, high, count))
