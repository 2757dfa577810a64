"""What quantizing made, kept on disk part by part: a part is a block, or what is outside of the blocks.

Exporters read these parts; a run that was stopped goes on behind the last whole one. Files are safetensors: for each
layer `NAME::codes`, `::scales` and so on, for other tensors `NAME`, and how to read them in the metadata.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic
from codesign.model.layers import Model
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.gguf import GgufWeight
from codesign.quantize.hadamard import rotation
from codesign.quantize.round import QuantizedWeight
from codesign.quantize.scales import NestedScales, Scales, TensorScale
from codesign.quantize.source import LayerInputs, WeightSource
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = None
_SETTINGS = "settings.json"
_SETTINGS_BYTES_MAX = 2**24


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLayer:
    """A linear layer's weights; `fixed` is the range of static activations, `rotation_seed` that of rotated inputs."""

    name: str
    weight: QuantizedWeight | GgufWeight
    fixed: ActivationRange | None = None
    rotation_seed: int | None = None

    @property
    def scheme(self) -> Scheme:
        """Return the scheme of the weights and activations."""
        return self.weight.scheme

    @property
    def inputs(self) -> LayerInputs | None:
        """Return what the layer does to its inputs, None if nothing."""
        if self.scheme.activations.granularity is None and self.rotation_seed is None:
            return None
        turned = None if self.rotation_seed is None else rotation(self.weight.shape[1], self.rotation_seed)
        return LayerInputs(self.scheme.activations, self.fixed, turned)


@dataclass(frozen=True, slots=True)
class LayerHead:
    """What is known of a kept layer without reading its codes; `divisor` is that of a scale of the whole tensor."""

    name: str
    scheme: Scheme
    shape: tuple[int, int]
    fixed: ActivationRange | None
    rotated: bool
    reordered: bool
    divisor: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A block, or what is outside of blocks (None): quantized layers, and other tensors as they become."""

    block_index: int | None
    layers: tuple[QuantizedLayer, ...]
    tensors: Mapping[str, "Tensor"] = field(default_factory=dict)


class ResultFolder:
    """Parts on disk. `settings` is what they depend on: a folder of other settings is refused, not mixed."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        file, wanted = path / _SETTINGS, json.loads(to_json(dict(settings)))
        if not file.exists():
            write_atomic(file, to_json(wanted))
        found = parse_json(read_text(file, _SETTINGS_BYTES_MAX, "settings"), str(file))
        if found != wanted:
            differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise InputError(
                f"{path}: an unfinished run with other settings lies here ({', '.join(differing)} differ). "
                "Remove it with --force, or give the settings that it was begun with."
            )

    def has(self, block_index: int | None) -> bool:
        """Return whether a part is whole."""
        return self._file(block_index).exists()

    def write(self, part: Part) -> None:
        """Keep a part, whole or not at all."""
        from safetensors.torch import save_file

        tensors = dict(part.tensors)
        layers = {}
        for layer in part.layers:
            values, how = _taken_apart(layer)
            tensors.update({f"{layer.name}::{key}": value for key, value in values.items()})
            layers[layer.name] = how
        target = self._file(part.block_index)
        partial = target.with_suffix(".partial")
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, partial, {"layers": json.dumps(layers)}
        )
        os.replace(partial, target)

    def read(self, block_index: int | None) -> Part:
        """Return a part that was kept."""
        from safetensors import safe_open

        with safe_open(os.fspath(self._file(block_index)), framework="pt") as file:
            layers = json.loads(file.metadata()["layers"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        found = tuple(_put_together(name, how, values) for name, how in layers.items())
        return Part(block_index, found, {name: value for name, value in values.items() if "::" not in name})

    def heads(self, block_index: int | None) -> tuple[LayerHead, ...]:
        """Return what a kept part says of its layers."""
        from safetensors import safe_open

        with safe_open(os.fspath(self._file(block_index)), framework="pt") as file:
            layers, keys = json.loads(file.metadata()["layers"]), set(file.keys())
            divisors = {
                name: float(file.get_tensor(f"{name}::divisor")) for name in layers if f"{name}::divisor" in keys
            }
        return tuple(
            LayerHead(
                name,
                parse_scheme(how["scheme"]),
                (int(how["shape"][0]), int(how["shape"][1])),
                ActivationRange(*how["range"]) if "range" in how else None,
                "rotation_seed" in how,
                f"{name}::group_of" in keys,
                divisors.get(name),
            )
            for name, how in layers.items()
        )

    def tensor_names(self, block_index: int | None) -> tuple[str, ...]:
        """Return the names of a kept part's other tensors."""
        from safetensors import safe_open

        with safe_open(os.fspath(self._file(block_index)), framework="pt") as file:
            return tuple(name for name in file.keys() if "::" not in name)  # noqa: SIM118 - the file is no dict

    def _file(self, block_index: int | None) -> Path:
        return self.path / ("outside.safetensors" if block_index is None else f"block-{block_index:05}.safetensors")


def _taken_apart(layer: QuantizedLayer) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    weight = layer.weight
    how: dict[str, Any] = {"scheme": weight.scheme.name, "shape": list(weight.shape)}
    if layer.fixed is not None:
        how["range"] = [layer.fixed.low, layer.fixed.high]
    if layer.rotation_seed is not None:
        how["rotation_seed"] = layer.rotation_seed
    if isinstance(weight, GgufWeight):
        return {"rows": weight.rows}, how
    values = {"codes": weight.codes}
    if weight.group_of is not None:
        values["group_of"] = weight.group_of
    if weight.scales is not None:
        values["scales"] = weight.scales.stored
        if weight.scales.zero_points is not None:
            values["zero_points"] = weight.scales.zero_points
        match weight.scales.above:
            case TensorScale(divisor):
                values["divisor"] = divisor.clone()  # a fused group shares it, which safetensors refuses
            case NestedScales(absmax, offset):
                values.update(absmax=absmax, offset=offset)
    return values, how


def _put_together(name: str, how: Mapping[str, Any], values: Mapping[str, "Tensor"]) -> QuantizedLayer:
    scheme = parse_scheme(how["scheme"])
    fixed = ActivationRange(*how["range"]) if "range" in how else None

    def get(key: str) -> "Tensor | None":
        return values.get(f"{name}::{key}")

    rows = get("rows")
    if rows is not None:
        shape = (int(how["shape"][0]), int(how["shape"][1]))
        return QuantizedLayer(name, GgufWeight(rows, scheme, shape), fixed, how.get("rotation_seed"))
    divisor, absmax, offset, stored = get("divisor"), get("absmax"), get("offset"), get("scales")
    above = TensorScale(divisor) if divisor is not None else None
    nested = NestedScales(absmax, offset) if absmax is not None and offset is not None else None
    scales = None if stored is None else Scales(stored, get("zero_points"), above or nested)
    weight = QuantizedWeight(values[f"{name}::codes"], scales, scheme, get("group_of"))
    return QuantizedLayer(name, weight, fixed, how.get("rotation_seed"))


class ResultSource:
    """The weights of a source with the parts of a result in their place, to run or to evaluate what was made."""

    def __init__(self, base: WeightSource, results: ResultFolder) -> None:
        self.base, self._results = base, results
        self.warnings, self.kv = base.warnings, base.kv
        self._blocks = {layer.name: layer.block_index for layer in base.model.layers}
        self._part: Part | None = None

    @property
    def model(self) -> Model:
        """Return the model's shapes."""
        return self.base.model

    @property
    def config(self) -> Any:
        """Return the configuration as transformers keeps it."""
        return self.base.config

    def tokenizer(self) -> Any:
        """Return the tokenizer of the base."""
        return self.base.tokenizer()

    def has(self, name: str) -> bool:
        """Return whether the base has the parameter."""
        return self.base.has(name)

    def tensor(self, name: str) -> "Tensor":
        """Return a parameter as quantizing left it."""
        part = self._part_of(name)
        if part is None:
            return self.base.tensor(name)
        for layer in part.layers:
            if name == layer.name + ".weight":
                return layer.weight.dequantize()
        return part.tensors[name] if name in part.tensors else self.base.tensor(name)

    def inputs(self, layer: str) -> LayerInputs | None:
        """Return what a quantized layer does to its inputs."""
        part = self._part_of(layer + ".weight")
        return next((one.inputs for one in part.layers if one.name == layer), None) if part else None

    def _part_of(self, name: str) -> Part | None:
        """Return the part that holds a parameter, the last one kept at hand; None if it was not made yet."""
        index = block_index_of(name, self._blocks)
        if not self._results.has(index):
            return None
        if self._part is None or self._part.block_index != index:
            self._part = self._results.read(index)
        return self._part


def block_index_of(name: str, blocks: Mapping[str, int | None]) -> int | None:
    """Return the block of a parameter: that of its layer, or of the layers that begin with the same block's name."""
    layer = name.removesuffix(".weight").removesuffix(".bias")
    if layer in blocks:
        return blocks[layer]
    numbers = [word for word in name.split(".") if word.isdigit()]
    return int(numbers[0]) if numbers else OUTSIDE
