"""An evaluation as a terminal table and as JSON."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codesign.checkpoint.stored import Checkpoint
from codesign.cli.output import print_line, print_table, print_title
from codesign.codec import to_plain
from codesign.quantize.evaluate import Comparison, Estimate, Evaluation
from codesign.schemes.kv import DEFAULT_KV
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes
from codesign.table import Table
from codesign.units import format_gib, format_percent, significant

Row = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Size:
    """The bytes of all tensors of a model, and the bits that a weight takes on average over its layers."""

    tensor_bytes: float
    bits_per_weight: float


def size_of(checkpoint: Checkpoint, scheme: Scheme | None = None) -> Size:
    """Return the size of a checkpoint, or of what it becomes with the layers of its blocks in a scheme."""
    before = sum(layer.byte_count for layer in checkpoint.layers)
    after = float(before)
    if scheme is not None:
        inside = {layer.name: layer for block in checkpoint.model.blocks for layer in block.layers}
        after -= sum(layer.byte_count for layer in checkpoint.layers if layer.name in inside)
        after += sum(weight_bytes(scheme, layer.n, layer.k) for layer in inside.values())
    weights = sum(checkpoint.weights_by_scheme.values())
    return Size(checkpoint.tensor_bytes - before + after, 8 * after / weights if weights else 0.0)


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation, of which models (the baseline last), the model's KV format, and the tokens per second of both."""

    names: tuple[str, ...]
    text: str
    evaluation: Evaluation
    sizes: tuple[Size, ...]
    kv: str
    tokens_per_s: float


def report_record(report: Report) -> dict[str, Any]:
    """Return plain JSON values; an infinite perplexity is null."""
    evaluation, comparison = report.evaluation, report.evaluation.baseline
    sizes = [
        {"name": name, "tensor_bytes": one.tensor_bytes, "bits_per_weight": one.bits_per_weight}
        for name, one in zip(report.names, report.sizes, strict=True)
    ]
    record = {
        "text": report.text,
        "window_count": evaluation.window_count,
        "window_tokens": evaluation.window_tokens,
        "predicted_tokens": evaluation.predicted_tokens,
        "model": {**sizes[0], "kv": report.kv, **_losses(evaluation)},
        "evaluation_math_dtype": "fp32",
        "evaluation_tokens_per_s": report.tokens_per_s,
    }
    if comparison is not None:
        differences = {name: value for name, value in to_plain(comparison).items() if name != "loss_nats"}
        record["baseline"] = {**sizes[1], **_losses(comparison)}
        record["comparison"] = {**differences, "below_noise_floor": comparison.below_noise_floor}
    return record


def _losses(found: Evaluation | Comparison) -> dict[str, Any]:
    finite = math.isfinite(found.perplexity.mean)
    return {"loss_nats": to_plain(found.loss_nats), "perplexity": to_plain(found.perplexity) if finite else None}


def print_report(report: Report) -> None:
    """Print perplexity, divergence with its noise floor, agreement, sizes, and how fast this was."""
    evaluation, comparison = report.evaluation, report.evaluation.baseline
    windows = f"{evaluation.window_count:,} window{'s' if evaluation.window_count > 1 else ''}"
    print_title(
        f"{Path(report.names[0]).name} on {Path(report.text).name}: {windows} of {evaluation.window_tokens:,} tokens, "
        f"{evaluation.predicted_tokens:,} predicted"
    )
    sizes = [(format_gib(one.tensor_bytes), significant(one.bits_per_weight, 4)) for one in report.sizes]
    others = ("", "") if comparison is None else sizes[1]
    rows = [
        (
            "perplexity",
            _shown(evaluation.perplexity, 4),
            "" if comparison is None else _shown(comparison.perplexity, 4),
        ),
        *(() if comparison is None else _comparison_rows(comparison)),
        ("weights", sizes[0][0], others[0]),
        ("bits per weight", sizes[0][1], others[1]),
    ]
    width = 2 if comparison is None else 3
    headers = ("", "model", "baseline")[:width]
    print_table(Table(headers, [row[:width] for row in rows], right=(1, 2)[: width - 1]))
    for line in _notes(report):
        print_line(line)


def _comparison_rows(found: Comparison) -> tuple[Row, ...]:
    return (
        ("loss above the baseline, nats per token", _shown(found.loss_increase_nats), ""),
        ("KL from the baseline, nats per token", _shown(found.kl_nats), ""),
        ("  noise floor: the baseline in bfloat16", "", _shown(found.noise_floor_nats)),
        ("  99 % of tokens below", significant(found.kl_p99_nats), ""),
        ("  largest", significant(found.kl_max_nats), ""),
        ("same likeliest token", _shown_percent(found.top1_agreement_fraction), ""),
    )


def _notes(report: Report) -> list[str]:
    comparison = report.evaluation.baseline
    notes = ["± is one standard error over windows; one window has none."]
    if comparison is not None and comparison.below_noise_floor:
        notes.append("The KL divergence is not above its noise floor: served in 16 bits, the two cannot be told apart.")
    if report.kv != DEFAULT_KV:
        notes.append(f"The model's KV cache was rounded to {report.kv}.")
    models = "model" if comparison is None else "two models"
    notes.append(
        f"This evaluation took {significant(report.tokens_per_s)} tokens per second through the {models} in float32, "
        "block by block. That is no speed of deployment: `codesign profile --generate` measures that."
    )
    return notes


def _shown(estimate: Estimate, digits: int = 3) -> str:
    value = significant(estimate.mean, digits)
    return value if estimate.standard_error is None else f"{value} ± {significant(estimate.standard_error, 2)}"


def _shown_percent(estimate: Estimate) -> str:
    value = format_percent(estimate.mean)
    return value if estimate.standard_error is None else f"{value} ± {format_percent(estimate.standard_error)}"
