"""How many requests per second one replica can serve at most, in closed form: quick, and a little too good.

A replica in balance takes in as many requests as it finishes. With b of them decoding, a step takes D(b); each request
lasts O steps and its prompt adds P seconds to those of the others, so that a token takes T(b) = D(b) + b P / O and
b / (O T(b)) requests are finished per second. Waiting is left out, which a simulation adds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from codesign.capacity.load import Objectives
from codesign.capacity.replica import HOST_TIMES, NO_HOST_TIMES, Limits, cache_tokens
from codesign.capacity.requests import Demand
from codesign.capacity.step_table import attention_seconds, head_seconds, host_seconds, rows_seconds
from codesign.cost.arrays import FloatArray
from codesign.cost.deployment import Assignment, Deployment

MEMORY, SEQUENCES, TPOT, TTFT = (
    "memory for keys and values",
    "sequences",
    "time per token",
    "first token",
)
BATCHES = 48


@dataclass(frozen=True, slots=True)
class Screened:
    """What one replica does by the closed form; `rates_per_s` is the most that each bottleneck alone would allow.

    `alone_ttft_s` and `alone_tpot_s` are of a single request on an idle machine.
    """

    rates_per_s: Mapping[str, float]
    alone_ttft_s: float
    alone_tpot_s: float
    cache_tokens: int
    batches: FloatArray
    batch_rates_per_s: FloatArray
    batch_tpot_s: FloatArray

    def tpot_s(self, rate_per_s: float) -> float:
        """Return the seconds per token at a rate, those at the most where it is too high."""
        return float(np.interp(rate_per_s, self.batch_rates_per_s, self.batch_tpot_s))

    @property
    def rate_per_s(self) -> float:
        """Return the most requests per second."""
        return min(self.rates_per_s.values())

    @property
    def bottleneck(self) -> str:
        """Return what limits them."""
        return min(self.rates_per_s, key=lambda name: self.rates_per_s[name])


def screen(
    where: Deployment, assignment: Assignment, demand: Demand, objectives: Objectives, limits: Limits
) -> Screened | None:
    """Return what a replica does with requests of mean length; None if not even one fits."""
    prompt, output = demand.prompt.mean_tokens, demand.output.mean_tokens
    computed = max(1.0, prompt - demand.shared_prefix_tokens)
    held = computed + output / 2
    tokens = cache_tokens(where, assignment, int(prompt + output), limits)
    if tokens < prompt + output:
        return None
    batches, times = _step_times(where, assignment, limits, int(computed), prompt + output / 2)
    tpot_s = times.decode_s + batches * times.prompt_s / output
    rates = batches / (output * tpot_s) * limits.pipeline
    most = {
        MEMORY: tokens / held,
        SEQUENCES: float(limits.sequences_max),
        TPOT: _largest(batches, tpot_s, objectives.tpot_s),
        TTFT: _largest(batches, times.prompt_s + tpot_s / 2, objectives.ttft_s),
    }
    if objectives.e2e_s is not None:
        most["whole request"] = _largest(batches, times.prompt_s + tpot_s * output, objectives.e2e_s)
    # Where more than the most sequences would do, it is these that limit
    by_name = {
        name: float(np.interp(batch, batches, rates, left=0.0))
        for name, batch in most.items()
        if name == SEQUENCES or batch < limits.sequences_max
    }
    return Screened(
        rates_per_s=by_name,
        alone_ttft_s=times.prompt_s + float(times.decode_s[0]) / 2,
        alone_tpot_s=float(times.decode_s[0]),
        cache_tokens=tokens,
        batches=batches,
        batch_rates_per_s=rates,
        batch_tpot_s=tpot_s,
    )


def _largest(batches: FloatArray, seconds: FloatArray, limit_s: float | None) -> float:
    """Return the largest batch whose time, which rises with it, is within the limit; 0 if none is."""
    if limit_s is None:
        return float(batches[-1])
    rising = np.maximum.accumulate(seconds)
    return 0.0 if rising[0] > limit_s else float(np.interp(limit_s, rising, batches))


@dataclass(frozen=True, slots=True)
class _Times:
    decode_s: FloatArray
    prompt_s: float


def _step_times(
    where: Deployment, assignment: Assignment, limits: Limits, prompt_tokens: int, context_tokens: float
) -> tuple[FloatArray, _Times]:
    """Return batches, the seconds of a decode step of each, and those that a prompt adds to a step in the middle."""
    batches = np.unique(np.rint(np.geomspace(1, limits.sequences_max, BATCHES)))
    host = HOST_TIMES.get(where.target.library, NO_HOST_TIMES)
    beside = float(batches[len(batches) // 2])
    parts = _parts(prompt_tokens, int(limits.step_tokens - beside))
    tokens = np.concatenate([batches, [beside + new for new, _ in parts]])
    rows_s = rows_seconds(where, assignment, tokens, pipeline=limits.pipeline)
    attention_s = attention_seconds(where, assignment, batches, 1, np.full_like(batches, context_tokens))
    floor_s, added_s = host_seconds(where, assignment)
    decode_s = np.maximum(rows_s[: len(batches)] + head_seconds(where, assignment, batches) + attention_s, floor_s)
    alone_s = rows_s[len(batches) // 2]
    prompt_s = float((rows_s[len(batches) :] - alone_s).sum()) + host.sequence_s
    for new, cached in parts:
        prompt_s += float(attention_seconds(where, assignment, np.ones(1), max(new, 2), np.full(1, cached))[0])
    return batches, _Times(decode_s + added_s + host.step_s + host.sequence_s * batches, prompt_s)


def _parts(prompt_tokens: int, most: int) -> list[tuple[int, int]]:
    """Return the parts in which a prompt is read: new tokens, tokens then cached."""
    starts = range(0, prompt_tokens, most)
    return [(min(prompt_tokens - start, most), min(prompt_tokens, start + most)) for start in starts]
