"""Windows of text to measure sensitivity on."""

from pathlib import Path
from typing import TYPE_CHECKING

from codesign.quantize.network import Network
from codesign.quantize.source import WeightSource
from codesign.quantize.text import read_tokens, sampled_windows, windows

if TYPE_CHECKING:
    from torch import Tensor


def file_windows(source: WeightSource, path: Path, length: int, count: int) -> "Tensor":
    """Return `count` windows of a text file, spread evenly over it."""
    import torch

    ids = read_tokens(path, source.tokenizer(), source.model.vocabulary)
    windows(ids, length, count, str(path))
    there = windows(ids, length)
    return there[torch.linspace(0, len(there) - 1, count).long()]


def own_windows(source: WeightSource, length: int, count: int, device: str) -> "Tensor":
    """Return windows that the model writes itself."""
    with Network(source, device).whole() as transformer:
        return sampled_windows(transformer, source.model.vocabulary, length, count, seed=0)
