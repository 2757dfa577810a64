"""Predictions of one scheme, batch by batch, as terminal tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from codesign.cli.output import print_advice, print_line, print_table, print_title
from codesign.cost.advice_text import Advice, news, sentences
from codesign.cost.deployment import Deployment
from codesign.cost.engine import run_words
from codesign.cost.inference import InferencePrediction
from codesign.plan.present import interval
from codesign.table import Table
from codesign.units import format_gib, format_joule, format_seconds, format_usd, significant


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """One batch size: what is predicted for the scheme and for 16 bits, and what to know about it."""

    batch: int
    prediction: InferencePrediction
    baseline: InferencePrediction
    advice: tuple[Advice, ...]


def print_predictions(where: Deployment, scheme: str, baseline: str, rows: Sequence[PredictedBatch]) -> None:
    """Print one row per batch (speed with intervals, gain over the baseline, memory, energy, cost), then the advice."""
    target, work = where.target, where.workload
    gpus = f"{target.gpu_count} x " if target.gpu_count > 1 else ""
    how = run_words(where.engine.name, where.thread_count)
    print_title(
        f"{where.model.name} in {scheme} on {gpus}{target.hardware.name}, {target.library} kernels{how}; "
        f"prompt {work.prompt_tokens:,}, output {work.output_tokens:,} tokens"
    )
    cells = []
    for row in rows:
        here, there = row.prediction, row.baseline
        cells.append(
            (
                f"{row.batch:,}",
                interval(here.ttft_s, format_seconds),
                interval(here.tpot_s, format_seconds),
                interval(here.tokens_per_s, significant),
                f"{there.tpot_s.value / here.tpot_s.value:.2f}x",
                f"{there.ttft_s.value / here.ttft_s.value:.2f}x",
                format_joule(here.energy_per_token_joule.value),
                "no price" if here.usd_per_million_tokens is None else format_usd(here.usd_per_million_tokens.value),
                format_gib(here.memory.total_bytes) + ("" if here.fits else " DOES NOT FIT"),
            )
        )
    headers = (
        "batch",
        "first token",
        "per output token",
        "output tokens/s",
        "decode",
        "prefill",
        "J/token",
        "$/M",
        "memory",
    )
    print_table(Table(headers, tuple(cells), right=(0, 4, 5, 6, 7)))
    capacity = format_gib(where.capacity_bytes)
    print_line(
        f"decode and prefill: speed against {baseline}. Memory of {capacity}. Brackets: 80 % interval; "
        f"origin {rows[0].prediction.tpot_s.origin}. The batch arrives together; J/token and $/M are per output token."
    )
    print_advice(sentences(news([row.advice for row in rows])))
