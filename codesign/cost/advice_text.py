"""The sentences of advice: one claim about one subject, or about several that share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from codesign.cost.curve import CONTEXT_MIN_TOKENS
from codesign.cost.origin import Origin
from codesign.cost.prediction import TRUST, Prediction
from codesign.units import format_seconds, significant

SLOWER_GAIN = 0.98
ROUNDED_FROM = 1000
PLACES_MAX = 2


class AdviceKind(StrEnum):
    """What is said; the order is that of the output."""

    HOST_BOUND = "host_bound"
    ONLY_SMALLER = "only_smaller"
    SLOWER_DECODE = "slower_decode"
    SLOWER_PREFILL = "slower_prefill"
    FASTER_ONLY_PREFILL = "faster_only_prefill"
    FASTER_ONLY_DECODE = "faster_only_decode"
    STOPS_PAYING_BATCH = "stops_paying_batch"
    STOPS_PAYING_CONTEXT = "stops_paying_context"
    KV_SLOWER = "kv_slower"
    WATERFALL = "waterfall"


@dataclass(frozen=True, slots=True)
class Advice:
    """What is claimed of one subject, a scheme, a KV format or the host, in numbers and in words.

    `probable`: the 80 % interval reaches the other side. `numbers` have their units in their names; a batch, context
    or row count that was searched up to a limit has the limit as the end of its interval where it was not met.
    """

    kind: AdviceKind
    subject: str
    probable: bool
    condition: str
    numbers: Mapping[str, Prediction]
    sentence: str = ""

    @property
    def origin(self) -> Origin:
        """Return the least trusted origin of its numbers."""
        return max((number.origin for number in self.numbers.values()), key=TRUST.index)


def advise(kind: AdviceKind, subject: str, probable: bool, condition: str, numbers: Mapping[str, Prediction]) -> Advice:
    """Return the advice with its sentence."""
    silent = Advice(kind, subject, probable, condition, numbers)
    return replace(silent, sentence=_sentence([silent]))


def sentences(advice: Sequence[Advice]) -> list[str]:
    """Return one sentence per kind, certainty, condition and origin; subjects that share them are named together."""
    together: dict[tuple[AdviceKind, bool, str, Origin], list[Advice]] = {}
    for one in advice:
        together.setdefault((one.kind, one.probable, one.condition, one.origin), []).append(one)
    order = list(AdviceKind)
    return [_sentence(members) for _, members in sorted(together.items(), key=lambda item: order.index(item[0][0]))]


def news(by_batch: Sequence[Sequence[Advice]]) -> list[Advice]:
    """Return the advice of several batches without what was told of the batch before in the same kind and certainty."""
    told: set[tuple[AdviceKind, str, bool]] = set()
    fresh = []
    for advice in by_batch:
        here = {(one.kind, one.subject, one.probable): one for one in advice}
        fresh += [one for key, one in here.items() if key not in told]
        told = set(here)
    return fresh


def _sentence(members: Sequence[Advice]) -> str:
    """Return the sentence of advice of one kind, certainty and condition."""
    first = members[0]
    return f"{_WORDS[first.kind](members)} ({first.origin})."


def _names(members: Sequence[Advice]) -> str:
    return ", ".join(one.subject for one in members)


def _probably(members: Sequence[Advice]) -> str:
    return "probably " if members[0].probable else ""


def _speed(members: Sequence[Advice], name: str) -> str:
    """Return a gain in words: with its interval, or from the lowest to the highest of several."""
    gains = sorted((one.numbers[name] for one in members), key=lambda gain: gain.value)
    lowest, highest = gains[0].value, gains[-1].value
    slower = [_slower(gain) for gain in (highest, lowest)]
    times = [f"{gain:.2f}x" for gain in (lowest, highest)]
    if highest < SLOWER_GAIN:
        text = f"{_range(slower)} slower"
    elif lowest >= SLOWER_GAIN:
        text = f"{_range(times)} the speed"
    else:
        text = f"{slower[1]} slower to {times[1]} the speed"
    ends = [f"{end:.2f}x" for end in (gains[0].low, gains[0].high)]
    return f"{text} ({_range(ends)})" if len(gains) == 1 and ends[0] != ends[1] else text


def _range(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0].removesuffix(' %')} to {ends[1]}"


def _whole(number: Prediction, *, open_end: bool = False, searched_from: float = 0.0) -> str:
    """Return a batch, context or row count with its interval, as far as its ends lie within what was searched."""
    low, value, high = (_count(part) for part in (number.low, number.value, number.high))
    if low == high:
        return value
    if number.low <= searched_from and not open_end:
        return f"{value} (up to {high})"
    return f"{value} ({low} {'or more' if open_end else f'to {high}'})"


def _count(value: float) -> str:
    """Return a whole number, from a thousand on with two significant digits."""
    return f"{float(f'{value:.2g}') if value >= ROUNDED_FROM else value:,.0f}"


def _both_phases(verdict: str) -> Callable[[Sequence[Advice]], str]:
    def words(members: Sequence[Advice]) -> str:
        rows = [one.numbers["slower_from_rows"].value for one in members if "slower_from_rows" in one.numbers]
        at = ""
        if len(rows) == len(members):
            ends = [f"{row:,.0f}" for row in (min(rows), max(rows))]
            at = "; multiplications slower " + (
                "at any number of tokens in a step" if max(rows) <= 1 else f"from {_range(ends)} tokens in a step"
            )
        return (
            f"{_names(members)}: {_probably(members)}{verdict} {members[0].condition}: "
            f"per token {_speed(members, 'decode_gain')}, first token {_speed(members, 'prefill_gain')}{at}"
        )

    return words


def _one_phase(phase: str, name: str) -> Callable[[Sequence[Advice]], str]:
    def words(members: Sequence[Advice]) -> str:
        return f"{_names(members)}: {_probably(members)}slower {phase} {members[0].condition}: {_speed(members, name)}"

    return words


def _stops(what: str, name: str) -> Callable[[Sequence[Advice]], str]:
    def words(members: Sequence[Advice]) -> str:
        by_place: dict[str, list[str]] = {}
        for one in members:
            shortest = CONTEXT_MIN_TOKENS if name.endswith("_tokens") else 0
            place = what.format(_whole(one.numbers[name], open_end=one.probable, searched_from=shortest))
            by_place.setdefault(place, []).append(one.subject)
        each = "; ".join(f"{', '.join(subjects)} from {place}" for place, subjects in by_place.items())
        if len(by_place) > PLACES_MAX:
            values = [one.numbers[name].value for one in members]
            each = f"{_names(members)} from {what.format(_range([_count(min(values)), _count(max(values))]))}"
        return f"Stops paying {members[0].condition}, less than 5 % faster per token: {_probably(members)}{each}"

    return words


def _kv(members: Sequence[Advice]) -> str:
    numbers, first = members[0].numbers, members[:1]
    parts = []
    if "attention_gain" in numbers:
        pays = numbers.get("pays_above_context_tokens")
        above = f"; pays above {_whole(pays, searched_from=CONTEXT_MIN_TOKENS)} tokens of context" if pays else ""
        whole = _slower(numbers["decode_gain"].value)
        parts.append(f"attention of decode {_speed(first, 'attention_gain')}, a token {whole}{above}")
    if "prefill_attention_gain" in numbers:
        whole = _slower(numbers["prefill_gain"].value)
        parts.append(f"attention of the prompt {_speed(first, 'prefill_attention_gain')}, the first token {whole}")
    return f"{_names(members)}: {_probably(members)}slower {members[0].condition}: {'; '.join(parts)}"


def _slower(gain: float) -> str:
    return f"{significant((1 / gain - 1) * 100, 2)} %"


def _host(members: Sequence[Advice]) -> str:
    numbers = members[0].numbers
    until = numbers.get("device_bound_from_batch")
    return (
        f"Host-bound {members[0].condition}: issuing a step {_probably(members)}takes "
        f"{format_seconds(numbers['step_s'].value)}, running it {format_seconds(numbers['device_s'].value)}; "
        f"no scheme is faster per token" + (f" below batch {_whole(until)}" if until else "")
    )


def _waterfall(members: Sequence[Advice]) -> str:
    numbers = members[0].numbers
    gains = [number.value for name, number in numbers.items() if name.startswith("gain_after")]
    causes = [name.removeprefix("gain_after ") for name in numbers if name.startswith("gain_after")]
    lost = sorted(zip(causes[1:], gains[1:], gains[:-1], strict=True), key=lambda one: one[1] / one[2])
    named = [f"{cause} ({before:.2f}x to {after:.2f}x)" for cause, after, before in lost[:2] if after < before * 0.95]
    where = f", lost most to {' and '.join(named)}" if named else ""
    return (
        f"{members[0].subject} {members[0].condition}: {gains[0]:.2f}x by bits alone, {gains[-1]:.2f}x predicted{where}"
    )


_WORDS: Mapping[AdviceKind, Callable[[Sequence[Advice]], str]] = MappingProxyType(
    {
        AdviceKind.HOST_BOUND: _host,
        AdviceKind.ONLY_SMALLER: _both_phases("only smaller, not faster,"),
        AdviceKind.SLOWER_DECODE: _one_phase("per token", "decode_gain"),
        AdviceKind.SLOWER_PREFILL: _one_phase("for the first token", "prefill_gain"),
        AdviceKind.FASTER_ONLY_PREFILL: _both_phases("faster only for prefill"),
        AdviceKind.FASTER_ONLY_DECODE: _both_phases("faster only for decode"),
        AdviceKind.STOPS_PAYING_BATCH: _stops("batch {}", "stops_paying_batch"),
        AdviceKind.STOPS_PAYING_CONTEXT: _stops("{} tokens of context", "stops_paying_context_tokens"),
        AdviceKind.KV_SLOWER: _kv,
        AdviceKind.WATERFALL: _waterfall,
    }
)
