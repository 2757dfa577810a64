"""Simulated load in words and tables, for the terminal and for pages."""

from codesign.capacity.load import FIGURES, PERCENTILES, Load, Objectives
from codesign.capacity.load_curve import LoadCurve
from codesign.capacity.question import Question
from codesign.capacity.requests import Bimodal, Empirical, Fixed, Lengths, Lognormal
from codesign.cost.prediction import Prediction
from codesign.plan.present import interval
from codesign.table import Table
from codesign.units import format_percent, format_seconds, significant

OBJECTIVE_WORDS = {"ttft_s": "first token", "tpot_s": "per token", "e2e_s": "whole request"}


def question_title(question: Question) -> str:
    """Return what is simulated, in one line."""
    hardware, count = question.where.target.hardware.name, question.fleet.count
    each = f"{question.gpus_per_replica} x {hardware}" if question.gpus_per_replica > 1 else hardware
    replicas = f"{count} replicas of {each}" if count > 1 else each
    kv = question.assignment.kv.name
    return (
        f"{question.where.model.name} in {question.scheme}, KV cache {kv}, on {replicas}, "
        f"{question.where.target.library}; {demand_words(question)}"
    )


def demand_words(question: Question) -> str:
    """Return lengths and number of the requests."""
    asked = question.asked
    if asked.trace is not None:
        return f"{len(asked.trace):,} requests of a log"
    demand = asked.demand
    words = f"prompt {lengths_words(demand.prompt)}, output {lengths_words(demand.output)} tokens"
    return f"{words}, {asked.request_count:,} requests a rate"


def lengths_words(lengths: Lengths) -> str:
    """Return a distribution of lengths in words."""
    match lengths:
        case Fixed(tokens):
            return f"{tokens:,}"
        case Lognormal(median, sigma):
            return f"lognormal around {median:,.0f} (sigma {sigma:g})"
        case Bimodal(first, second, share):
            return f"{first:,} or {second:,} ({share:.0%})"
        case Empirical(observed):
            return f"as in {len(observed):,} observed"
    return f"about {lengths.mean_tokens:,.0f}"


def percentile_table(load: Load) -> Table:
    """Return the percentiles of one load, the 95th with its interval."""
    rows = []
    for name, words in FIGURES.items():
        found = load.percentiles[name]
        cells = [interval(found[p], format_seconds) if p == 95 else format_seconds(found[p].value) for p in PERCENTILES]
        rows.append((words, *cells))
    return Table(("", *(f"p{p}" for p in PERCENTILES)), tuple(rows), right=(1, 2, 3, 4))


def curve_table(curve: LoadCurve) -> Table:
    """Return one row per rate."""
    headers = ("requests/s", "first token p50", "p95", "per token p50", "p95", "in flight", "KV peak", "tokens/s", "")
    rows = []
    for number, load in enumerate(curve.loads):
        ttft, tpot = load.percentiles["ttft_s"], load.percentiles["tpot_s"]
        rows.append(
            (
                significant(load.rate_per_s),
                format_seconds(ttft[50].value),
                interval(ttft[95], format_seconds),
                format_seconds(tpot[50].value),
                interval(tpot[95], format_seconds),
                significant(load.mean_in_flight.value),
                format_percent(load.kv_peak_share.value),
                significant(load.output_tokens_per_s.value),
                _mark(curve, number),
            )
        )
    return Table(headers, tuple(rows), right=tuple(range(8)))


def _mark(curve: LoadCurve, number: int) -> str:
    words = []
    if number == curve.knee_index and len(curve.loads) > 2:
        words.append("knee")
    if number == curve.best_index:
        words.append("last within objectives")
    if curve.loads[number].overloaded:
        words.append("queue grows")
    return ", ".join(words)


def summary_lines(question: Question, curve: LoadCurve) -> list[str]:
    """Return what to know beside the table."""
    lines = [verdict(question, curve)]
    server, fleet = question.fleet.value, question.fleet
    lines.append(
        f"Each replica: {server.capacity_tokens * server.streams:,} tokens of cache, at most "
        f"{server.server.sequences_max} sequences and {server.server.step_tokens:,} tokens a step; requests go to the "
        f"{fleet.count} replicas in turn. Brackets: all steps at the ends of their 80 % interval; origin "
        f"{server.table.origin}."
    )
    if question.left_over:
        lines.append(f"{question.left_over} of the {question.asked.gpu_count} devices make no whole replica and idle.")
    preempted = sum(load.preemption_count for load in curve.loads)
    if preempted:
        lines.append(f"{preempted:,} times a request lost its cache to others and was computed again.")
    unserved = max(load.unserved_count for load in curve.loads)
    if unserved:
        lines.append(f"{unserved:,} requests are larger than the cache of a replica and were not served.")
    return lines


def verdict(question: Question, curve: LoadCurve) -> str:
    """Return the answer in a sentence."""
    objectives = question.asked.objectives
    if len(curve.loads) == 1:
        return _verdict_of_one(curve.loads[0], objectives)
    bend = curve.loads[curve.knee_index]
    knee = f"The first token's p95 bends upwards at {significant(bend.rate_per_s)} requests/s"
    if not objectives.named:
        return f"{knee} ({format_seconds(bend.p95('ttft_s').value)})."
    if curve.best_index is None:
        return f"{knee}; no rate meets {objective_words(objectives)}: {failing(curve.loads[0], objectives)}."
    best = curve.loads[curve.best_index]
    end = " and beyond" if curve.best_index == len(curve.loads) - 1 else ""
    return f"Up to {significant(best.rate_per_s)} requests/s{end} it keeps {objective_words(objectives)}. {knee}."


def _verdict_of_one(load: Load, objectives: Objectives) -> str:
    rates = (
        f"{significant(load.rate_per_s)} requests/s; {_with_interval(load.output_tokens_per_s)} output tokens/s; "
        f"replicas busy {format_percent(load.busy_share.value)} of the time, cache at most "
        f"{format_percent(load.kv_peak_share.value)} full, {significant(load.mean_in_flight.value)} requests in flight."
    )
    if load.overloaded:
        rates += " The queue grows to the end: this is more than the replicas can serve."
    if objectives.named:
        kept = "kept" if load.meets(objectives) else f"not kept: {failing(load, objectives)}"
        good = f"{significant(load.goodput_per_s.value)} requests/s meet them each by itself"
        rates += f" Objectives ({objective_words(objectives)}) {kept}; {good}."
    return rates


def _with_interval(prediction: Prediction) -> str:
    return interval(prediction, significant)


def objective_words(objectives: Objectives) -> str:
    """Return the objectives in words."""
    named = (f"{OBJECTIVE_WORDS[name]} {format_seconds(limit)}" for name, limit in objectives.named.items())
    return ", ".join(named) + " at p95"


def failing(load: Load, objectives: Objectives) -> str:
    """Return which objectives fail, and by how much."""
    found = [
        f"{OBJECTIVE_WORDS[name]} {format_seconds(load.p95(name).value)} instead of {format_seconds(limit)}"
        for name, limit in objectives.named.items()
        if load.p95(name).value > limit
    ]
    if load.unserved_count:
        found.append("some requests fit nowhere")
    if load.overloaded:
        found.append("the queue grows")
    return ", ".join(found)
