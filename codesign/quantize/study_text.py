"""The texts of a calibration study: windows to evaluate on, and windows of each source to calibrate with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.errors import InputError, did_you_mean
from codesign.quantize.network import Network
from codesign.quantize.text import sampled_windows, windows

if TYPE_CHECKING:
    from torch import Tensor

_WRITTEN_TOGETHER = 32  # windows whose caches are in memory at the same time
_EVALUATION_SEED = 1 << 30  # of no calibration text


@dataclass(frozen=True, slots=True, eq=False)
class StudyText:
    """Windows to evaluate on [windows, t], and the rest of the text [tokens], where there is one."""

    evaluation: "Tensor"
    rest: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    seed: int
    count: int
    length: int


def study_text(network: Network, ids: "Tensor | None", count: int, length: int) -> StudyText:
    """Return the first windows of a text to evaluate on; without a text the model writes them."""
    if ids is None:
        return StudyText(_self_written(network, None, _Wanted(_EVALUATION_SEED, count, length)))
    return StudyText(windows(ids, length, count), ids[count * length :])


def check_source(source: str, *, has_text: bool) -> None:
    """Refuse a source that is not one, or that there is no text for."""
    if source not in SOURCES:
        known = ", ".join(SOURCES)
        raise InputError(f'Calibration text "{source}" is not one of {known}.{did_you_mean(source, SOURCES)}')
    if source == "text" and not has_text:
        raise InputError('The source "text" needs a text; give --text FILE, or leave it out: --sources random,self.')


def calibration_windows(network: Network, text: StudyText, cell: tuple[str, int], count: int, length: int) -> "Tensor":
    """Return token ids [count, length] of a source and seed; fewer windows are the first ones of more."""
    source, seed = cell
    return SOURCES[source](network, text.rest, _Wanted(seed, count, length))


def _from_text(network: Network, rest: "Tensor | None", wanted: _Wanted) -> "Tensor":
    """Return windows of the text at random."""
    import torch

    assert rest is not None
    windows(rest, wanted.length, wanted.count, "The text behind what is evaluated on")
    all_windows = windows(rest, wanted.length)
    order = torch.randperm(len(all_windows), generator=torch.Generator().manual_seed(wanted.seed))
    return all_windows[order[: wanted.count]]


def _random(network: Network, rest: "Tensor | None", wanted: _Wanted) -> "Tensor":
    """Return tokens that are drawn one by one, each as likely as any other."""
    import torch

    generator = torch.Generator().manual_seed(wanted.seed)
    return torch.randint(0, network.source.model.vocabulary, (wanted.count, wanted.length), generator=generator)


def _self_written(network: Network, rest: "Tensor | None", wanted: _Wanted) -> "Tensor":
    """Return text that the model writes."""
    import torch

    parts = []
    with network.whole() as transformer:
        for first in range(0, wanted.count, _WRITTEN_TOGETHER):
            # Whole batches, so that fewer windows are the first ones of more.
            seed = wanted.seed * 2**20 + first
            parts.append(
                sampled_windows(transformer, network.source.model.vocabulary, wanted.length, _WRITTEN_TOGETHER, seed)
            )
    return torch.cat(parts)[: wanted.count]


SOURCES: Mapping[str, Callable[[Network, "Tensor | None", _Wanted], "Tensor"]] = MappingProxyType(
    {"text": _from_text, "random": _random, "self": _self_written}
)
