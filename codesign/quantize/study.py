"""How much calibration text is enough, and which: a network calibrated with ever more windows of several sources.

For one source and seed all sizes, methods and schemes go through the network together, block by block: the calibration
text through the exact blocks, the evaluation text through each variant of them. The head stays exact.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.evaluate import divergence
from codesign.quantize.network import Batch, Network
from codesign.quantize.ranges import Progress, start_batches
from codesign.quantize.study_block import GPTQ, UNCALIBRATED, StudyBlock, Variant
from codesign.quantize.study_file import Outcome, Reference, Study
from codesign.quantize.study_text import StudyText, calibration_windows
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Distance:
    kl_nats: float
    output_error_fraction: float


def study_scheme(text: str) -> Scheme:
    """Return a scheme that calibration text has an influence on."""
    scheme = parse_scheme(text)
    if scheme.family == "gguf" or not scheme.quantized:
        raise InputError(f"{scheme} is not calibrated; study W8A8-static, FP8 or a weight-only scheme: W4A16-g64.")
    if not scheme.weight_only and not scheme.activations.static:
        raise InputError(
            f"{scheme} chooses the ranges of activations at run time, so that calibration changes nothing. Study "
            "W8A8-static, FP8 or a weight-only scheme, which is rounded with GPTQ."
        )
    return scheme


def run_study(
    network: Network, study: Study, text: StudyText, keep: Callable[[Study], None], progress: Progress
) -> Study:
    """Return the study with all that was missing; `keep` is given every step of it, to go on from."""
    if not study.references:
        study = replace(study, references=_references(network, study, text, progress))
        keep(study)
    count = len(tuple(study.settings.cells))
    for place, cell in enumerate(study.missing, count - len(study.missing) + 1):
        where = f"{cell[0]}, seed {cell[1]} ({place} of {count})"

        def say(step: str, where: str = where) -> None:
            progress(f"{where}: {step}")

        study = study.with_outcomes(_outcomes(network, study, text, cell, say))
        keep(study)
    return study


def _references(network: Network, study: Study, text: StudyText, progress: Progress) -> tuple[Reference, ...]:
    """Return what the schemes lose without calibration."""
    variants = [Variant(parse_scheme(name), UNCALIBRATED, 0) for name in study.settings.schemes]
    found = _distances(network, text.evaluation, [], variants, lambda step: progress(f"no calibration: {step}"))
    return tuple(Reference(one.scheme.name, at.kl_nats, at.output_error_fraction) for one, at in found.items())


def _outcomes(
    network: Network, study: Study, text: StudyText, cell: tuple[str, int], progress: Progress
) -> tuple[Outcome, ...]:
    """Return the outcomes of one source and seed."""
    settings = study.settings
    progress("text")
    sizes = settings.sizes
    tokens = calibration_windows(network, text, cell, max(sizes), settings.window_tokens)
    parts = [tokens[first:last] for first, last in zip((0, *sizes[:-1]), sizes, strict=True)]
    variants = [
        Variant(scheme, method, size)
        for scheme in map(parse_scheme, settings.schemes)
        for method in (settings.methods if scheme.activations.static else (GPTQ,))
        for size in sizes
    ]
    found = _distances(network, text.evaluation, parts, variants, progress)
    return tuple(
        Outcome(*cell, one.scheme.name, one.method, one.sample_count, at.kl_nats, at.output_error_fraction)
        for one, at in found.items()
    )


def _distances(
    network: Network,
    evaluation: "Tensor",
    calibration: Sequence["Tensor"],
    variants: Sequence[Variant],
    progress: Progress,
) -> Mapping[Variant, _Distance]:
    """Return how far each variant is from the exact network; calibration windows come in the steps of the sizes."""
    import torch

    with torch.inference_mode():
        exact = start_batches(network, evaluation)
        calibrating = [start_batches(network, part) for part in calibration]
        running = dict.fromkeys(variants, exact)
        for index in range(network.block_count):
            progress(f"block {index + 1} of {network.block_count}")
            with network.block(index) as module:
                block = StudyBlock(network, index, module)
                for variant, layers in block.calibrated(variants, calibrating):
                    with block.with_layers(layers):
                        running[variant] = block.run(running[variant])
                exact = block.run(exact)
        progress("head")
        kl_nats = _divergences(network, exact, running)
        return {one: _Distance(kl_nats[one], _error_fraction(exact, batches)) for one, batches in running.items()}


def _error_fraction(exact: list[Batch], found: list[Batch]) -> float:
    """Return the squared error of the last hidden states over their squares."""
    noise = sum(float((mine.hidden - true.hidden).square().sum()) for mine, true in zip(found, exact, strict=True))
    return noise / sum(float(true.hidden.square().sum()) for true in exact)


def _divergences(
    network: Network, exact: list[Batch], running: Mapping[Variant, list[Batch]]
) -> Mapping[Variant, float]:
    """Return KL(exact || variant) per token; one window's logits are in memory at a time."""
    totals, count = dict.fromkeys(running, 0.0), sum(batch.ids.numel() for batch in exact)
    for place, batch in enumerate(exact):
        for window in range(len(batch.ids)):
            true = _log_probabilities(network, batch, window)
            for variant, batches in running.items():
                found = _log_probabilities(network, batches[place], window)
                totals[variant] += float(divergence(true, found)[0].sum())
    return {variant: total / count for variant, total in totals.items()}


def _log_probabilities(network: Network, batch: Batch, window: int) -> "Tensor":
    """Return the log probabilities [t, vocabulary] of a window."""
    one = Batch(batch.ids[window : window + 1], batch.hidden[window : window + 1], batch.calls)
    return network.logits(one)[0].float().log_softmax(-1)
