"""What is exported: every parameter of the model, quantized or plain, part by part."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from codesign.errors import InputError
from codesign.quantize.network import empty_transformer
from codesign.quantize.result import OUTSIDE, LayerHead, ResultFolder, block_index_of
from codesign.quantize.source import WeightSource

_CACHE_SCALES = (".k_scale", ".v_scale")  # of a calibrated FP8 cache, as compressed-tensors names them


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A finished result over its source. `shapes` gives every parameter that is written, in the order of the model.

    `extra` names tensors of the result that are no parameters: scales of a calibrated cache. `dtype_name` is the type
    of what is not quantized.
    """

    results: ResultFolder
    source: WeightSource
    architecture: str
    heads: Mapping[str, LayerHead]
    shapes: Mapping[str, tuple[int, ...]]
    extra: tuple[str, ...]
    dtype_name: str

    @property
    def quantized(self) -> dict[str, LayerHead]:
        """Return the layers in fewer than 16 bits, in the order of the model."""
        names = [name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")]
        heads = [self.heads[name] for name in names if name in self.heads]
        return {head.name: head for head in heads if head.scheme.quantized}

    @property
    def kept(self) -> tuple[str, ...]:
        """Return the linear layers that stay in 16 bits; a tied head is none of its own."""
        names = [layer.name for layer in self.source.model.layers if layer.name + ".weight" in self.shapes]
        return tuple(name for name in names if name not in self.quantized)

    @property
    def unties(self) -> bool:
        """Return whether the head gets weights of its own though the model ties it to the embedding."""
        model = self.source.model
        return model.tied_embedding and model.head.name in self.heads

    @property
    def dtype(self) -> Any:
        """Return the type of what is not quantized."""
        import torch

        return getattr(torch, self.dtype_name)

    @property
    def bytes_expected(self) -> int:
        """Return about how many bytes an export takes, rather more than less."""
        bits = 0.0
        for name, shape in self.shapes.items():
            head = self.heads.get(name.removesuffix(".weight"))
            each = 32.0 if head is None else head.scheme.bits_per_weight
            bits += math.prod(shape) * each
        return int(bits / 8)

    def pieces(self) -> Iterator[tuple[str, Any]]:
        """Yield (layer name, QuantizedLayer) and (parameter name, tensor), one part in memory at a time."""
        for index, names in self._by_part((*self.shapes, *self.extra)).items():
            yield from self._part(index, names)

    @property
    def ordered(self) -> tuple[str, ...]:
        """Return the names of the parameters in the order of `pieces`."""
        return tuple(name for names in self._by_part(self.shapes).values() for name in names)

    def _by_part(self, every: Iterable[str]) -> dict[int | None, list[str]]:
        blocks = {layer.name: layer.block_index for layer in self.source.model.layers}
        by_part: dict[int | None, list[str]] = {}
        for name in every:
            by_part.setdefault(block_index_of(name, blocks), []).append(name)
        return by_part

    def _part(self, index: int | None, names: list[str]) -> Iterator[tuple[str, Any]]:
        part = self.results.read(index) if self.results.has(index) else None
        layers = {layer.name + ".weight": layer for layer in part.layers} if part else {}
        tensors = part.tensors if part else {}
        for name in names:
            if name in layers:
                yield layers[name].name, layers[name]
            else:
                yield name, tensors[name] if name in tensors else self.source.tensor(name)


def read_contents(results: ResultFolder, source: WeightSource) -> Contents:
    """Return what there is to export; an unfinished result, or one of another model, is refused."""
    indices = [block.index for block in source.model.blocks]
    missing = [index for index in indices if not results.has(index)]
    if missing:
        raise InputError(
            f"{results.path}: {len(missing)} of {len(indices)} blocks are not quantized yet (the first is "
            f"{missing[0]}); run `codesign quantize` again with the same settings to finish them."
        )
    heads = {head.name: head for index in (OUTSIDE, *indices) if results.has(index) for head in results.heads(index)}
    empty = empty_transformer(source.config)
    shapes = _shapes(empty, source, heads)
    for name, head in heads.items():
        if shapes.get(name + ".weight") != head.shape:
            raise InputError(
                f"{results.path}: {name} is {head.shape[0]}x{head.shape[1]} there, and the model "
                f"{source.model.name} has no such layer; quantize this model again."
            )
    extra = _cache_scales(results, indices)
    return Contents(results, source, type(empty).__name__, heads, shapes, extra, _dtype_name(source))


def planned_contents(results: ResultFolder, source: WeightSource, heads: Mapping[str, LayerHead]) -> Contents:
    """Return what there will be to export once these layers are quantized."""
    empty = empty_transformer(source.config)
    shapes = _shapes(empty, source, heads)
    return Contents(results, source, type(empty).__name__, heads, shapes, (), _dtype_name(source))


def _dtype_name(source: WeightSource) -> str:
    """Return the type of 16-bit weights; for 32-bit ones what the config says, else fp16, as their scales are."""
    embedding = source.tensor(source.model.embedding.name + ".weight").dtype
    wanted = embedding if embedding.itemsize <= 2 else getattr(source.config, "dtype", None) or "float16"
    return str(wanted).removeprefix("torch.")


def _shapes(empty: Any, source: WeightSource, heads: Mapping[str, LayerHead]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what the files of the model hold: of tied parameters one, unless the head is its own."""
    shapes = {}
    for name, parameter in empty.named_parameters(remove_duplicate=False):
        if source.has(name) or name.removesuffix(".weight") in heads:
            shapes[name] = tuple(int(size) for size in parameter.shape)
    return shapes


def _cache_scales(results: ResultFolder, indices: list[int]) -> tuple[str, ...]:
    names = (name for index in indices for name in results.tensor_names(index))
    return tuple(name for name in names if name.endswith(_CACHE_SCALES))
