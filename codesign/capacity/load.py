"""What a service's users see at a load: percentiles over all replicas, with intervals, and where latency bends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from codesign.capacity.replica import Limits, Replica, make_replica
from codesign.capacity.requests import Requests
from codesign.capacity.server import Served
from codesign.capacity.simulate import TIMELINE_BINS, simulate
from codesign.cost.arrays import FloatArray
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction

PERCENTILES = (50, 90, 95, 99)
# When a queue counts as growing, assumed: waits at the end against those in the middle, and against a whole request
GROWING_RATIO, WAITING_SHARE, QUEUE_MIN = 1.5, 0.5, 20
FIGURES: Mapping[str, str] = {
    "ttft_s": "first token",
    "tpot_s": "per output token",
    "e2e_s": "whole request",
    "queue_s": "waiting to start",
}


@dataclass(frozen=True, slots=True)
class Objectives:
    """What users are promised, in seconds at the 95th percentile; None where nothing is."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def named(self) -> dict[str, float]:
        """Return the objectives that are set, by figure."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Load:
    """What happens at one rate of requests.

    `percentiles` are by figure and percent. `goodput_per_s` are the requests per second that met every objective each
    by itself. Shares are of one replica's time and blocks, the mean over replicas; that over time is the largest in
    each of equal parts of the time in which requests arrive.
    """

    rate_per_s: float
    replica_count: int
    request_count: int
    unserved_count: int
    preemption_count: int
    percentiles: Mapping[str, Mapping[int, Prediction]]
    output_tokens_per_s: Prediction
    served_per_s: Prediction
    goodput_per_s: Prediction
    busy_share: Prediction
    mean_in_flight: Prediction
    kv_peak_share: Prediction
    kv_share_over_time: tuple[float, ...]
    overloaded: bool

    def p95(self, figure: str) -> Prediction:
        """Return the 95th percentile of a figure."""
        return self.percentiles[figure][95]

    def times(self, replicas: int) -> "Load":
        """Return the load of so many replicas, each of which gets what this one got."""
        return replace(
            self,
            rate_per_s=self.rate_per_s * replicas,
            replica_count=self.replica_count * replicas,
            request_count=self.request_count * replicas,
            unserved_count=self.unserved_count * replicas,
            preemption_count=self.preemption_count * replicas,
            output_tokens_per_s=self.output_tokens_per_s.scaled(replicas),
            served_per_s=self.served_per_s.scaled(replicas),
            goodput_per_s=self.goodput_per_s.scaled(replicas),
            mean_in_flight=self.mean_in_flight.scaled(replicas),
        )

    def meets(self, objectives: Objectives) -> bool:
        """Return whether all is served in time, by the predicted values."""
        within = all(self.p95(name).value <= limit for name, limit in objectives.named.items())
        return within and not self.overloaded and not self.unserved_count


@dataclass(frozen=True, slots=True)
class Fleet:
    """Equal replicas by the ends of the interval of their steps; requests go to them in turn."""

    value: Replica
    low: Replica
    high: Replica
    count: int

    @property
    def streams(self) -> int:
        """Return how many schedulers share the requests."""
        return self.count * self.value.streams


def make_fleet(where: Deployment, assignment: Assignment, context_max: int, limits: Limits, count: int) -> Fleet | None:
    """Return so many replicas for requests of at most `context_max` tokens; None if one cannot hold such a request."""
    value = make_replica(where, assignment, context_max, limits)
    low = make_replica(where, assignment, context_max, limits, "low_s")
    high = make_replica(where, assignment, context_max, limits, "high_s")
    return None if value is None or low is None or high is None else Fleet(value, low, high, count)


def serve(requests: Requests, fleet: Fleet, objectives: Objectives, *, middle_only: bool = False) -> Load:
    """Return what users see when these requests reach the fleet; with `middle_only` without intervals."""
    replicas = (fleet.value,) if middle_only else (fleet.value, fleet.low, fleet.high)
    runs = [_runs(requests, replica, fleet.streams) for replica in replicas]
    origin = fleet.value.table.origin

    def of(figure: Callable[[list[Served]], float]) -> Prediction:
        return _prediction([figure(run) for run in runs], origin)

    middle = runs[0]
    return Load(
        rate_per_s=len(requests) / max(requests.duration_s, 1e-12),
        replica_count=fleet.count,
        request_count=len(requests),
        unserved_count=sum(int(np.count_nonzero(~one.done)) for one in middle),
        preemption_count=sum(int(one.preemptions.sum()) for one in middle),
        percentiles={name: {p: of(_percentile(name, p)) for p in PERCENTILES} for name in FIGURES},
        output_tokens_per_s=of(lambda run: sum(one.output_tokens[one.done].sum() for one in run) / _duration_s(run)),
        served_per_s=of(lambda run: sum(np.count_nonzero(one.done) for one in run) / _duration_s(run)),
        goodput_per_s=of(lambda run: sum(_good_count(one, objectives) for one in run) / _duration_s(run)),
        busy_share=of(lambda run: float(np.mean([one.busy_s / max(one.duration_s, 1e-12) for one in run]))),
        mean_in_flight=of(lambda run: sum(one.e2e_s.sum() for one in run) / _duration_s(run)),
        kv_peak_share=of(lambda run: max(one.peak_blocks for one in run) / fleet.value.server.capacity_blocks),
        kv_share_over_time=_over_time(middle),
        overloaded=is_overloaded(middle),
    )


def _runs(requests: Requests, replica: Replica, streams: int) -> list[Served]:
    parts = (requests.part(slice(number, None, streams)) for number in range(min(streams, len(requests))))
    return [simulate(part, replica.table, replica.server) for part in parts]


def _over_time(run: Sequence[Served]) -> tuple[float, ...]:
    """Return the mean over replicas of the largest share of the cache in use, part by part."""
    length = max(len(one.occupancy) for one in run)
    padded = [np.pad(one.occupancy, (0, length - len(one.occupancy))) for one in run]
    return tuple(float(share) for share in np.mean(padded, axis=0)[:TIMELINE_BINS])


def _duration_s(run: Sequence[Served]) -> float:
    return max(one.duration_s for one in run)


def _percentile(name: str, percent: int) -> Callable[[list[Served]], float]:
    def of(run: list[Served]) -> float:
        values = np.concatenate([getattr(one, name) for one in run])
        return float(np.percentile(values, percent)) if len(values) else 0.0

    return of


def _good_count(one: Served, objectives: Objectives) -> int:
    """Return how many requests met every objective."""
    good = one.done.copy()
    tpot_s = (one.finish_s - one.first_token_s) / np.maximum(one.output_tokens - 1, 1)
    columns = {
        "ttft_s": one.first_token_s - one.arrival_s,
        "tpot_s": np.where(one.output_tokens > 1, tpot_s, 0.0),
        "e2e_s": one.finish_s - one.arrival_s,
    }
    for name, limit in objectives.named.items():
        good &= columns[name] <= limit
    return int(np.count_nonzero(good))


def is_overloaded(run: Sequence[Served]) -> bool:
    """Return whether the queue grew to the end: the last tenth of requests waited much longer than the middle tenth.

    A queue in balance is as long at the end as in the middle; one that grows is nearly twice as long.
    """
    waits = [one.queue_s for one in run if len(one.queue_s) >= QUEUE_MIN]
    if not waits:
        return False
    middle, last = (float(np.mean([part(one) for one in waits])) for part in (_middle_tenth, _last_tenth))
    typical = float(np.mean([one.e2e_s.mean() for one in run if len(one.e2e_s)]))
    return last > GROWING_RATIO * middle and last > WAITING_SHARE * typical


def _middle_tenth(waits: FloatArray) -> float:
    count = len(waits)
    return float(waits[int(0.45 * count) : int(0.55 * count)].mean())


def _last_tenth(waits: FloatArray) -> float:
    return float(waits[int(0.9 * len(waits)) :].mean())


def _prediction(values: list[float], origin: Origin) -> Prediction:
    value = values[0]
    return Prediction(value, min(values), max(values), origin)


def knee(rates: FloatArray, latencies_s: FloatArray) -> int:
    """Return the index where latency bends upwards most: farthest below the chord, in the logarithm of latency.

    Source: Satopaa and others, "Finding a Kneedle in a Haystack" (ICDCS workshops 2011), without its smoothing.
    """
    if len(rates) < 3:
        return len(rates) - 1
    x = (rates - rates[0]) / (rates[-1] - rates[0])
    heights = np.log(np.maximum(latencies_s, 1e-9))
    span = heights[-1] - heights[0]
    if span <= 0:
        return len(rates) - 1
    return int(np.argmax(x - (heights - heights[0]) / span))
