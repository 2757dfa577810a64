"""Weights of quantized Hugging Face folders: ours, and those that other tools write in the same formats."""

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.checkpoint.files import Folder, read_folder
from codesign.checkpoint.stored import Checkpoint
from codesign.checkpoint.tensor_names import Module, modules_of
from codesign.errors import InputError
from codesign.quantize.activations import as_weights
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.numbers import codec_of
from codesign.quantize.pack_bitsandbytes import from_bitsandbytes, from_llm_int8
from codesign.quantize.pack_compressed import from_compressed
from codesign.quantize.pack_gptq import from_awq, from_gptq
from codesign.quantize.round import QuantizedWeight
from codesign.quantize.scales import Scales
from codesign.quantize.source import LayerInputs, config_of, tokenizer_of
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
Shape = tuple[int, int]

_INPUT_SCALE, _INPUT_DIVISOR = "input_scale", "input_global_scale"
_E4M3_MAX, _E2M1_MAX = 448.0, 6.0


class QuantizedSource:
    """A quantized folder whose layers are dequantized when they are asked for."""

    def __init__(self, weights: Path) -> None:
        folder, checkpoint = read_folder(weights), read_checkpoint(str(weights))
        self.folder = weights.parent
        self.model, self.kv = checkpoint.model, checkpoint.kv
        self._files = {tensor.name: tensor.file for tensor in folder.tensors}
        self._modules = {module.name: module for module in modules_of(folder.tensors)}
        self._schemes = _known_schemes(checkpoint, self._modules)
        self._readers = {name: _reader(self._modules[name], checkpoint.method, weights) for name in self._schemes}
        self._shapes = {layer.name: (layer.n, layer.k) for layer in (self.model.embedding, *self.model.layers)}
        self.warnings = (*checkpoint.warnings, *_outlier_warning(folder))
        self._open: dict[str, Any] = {}

    @cached_property
    def config(self) -> Any:
        """Return the configuration as transformers keeps it, without what it says of quantization."""
        config = config_of(self.folder)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    def has(self, name: str) -> bool:
        """Return whether the files hold it, quantized or not."""
        return name in self._files or self._layer_of(name) is not None

    def tensor(self, name: str) -> "Tensor":
        """Return a plain tensor of the files, or the float32 values that a quantized one stands for."""
        layer = self._layer_of(name)
        if layer is None:
            return self._read(name)
        parts = {part: self._read(stored.name) for part, stored in self._modules[layer].parts.items()}
        return self._readers[layer](parts, self._schemes[layer], self._shapes[layer]).dequantize()

    def inputs(self, layer: str) -> LayerInputs | None:
        """Return how a layer's inputs are rounded, with the range that is stored for them."""
        scheme = self._schemes.get(layer)
        if scheme is None or scheme.activations.granularity is None:
            return None
        parts = self._modules[layer].parts
        stored = next((parts[part] for part in (_INPUT_SCALE, _INPUT_DIVISOR) if part in parts), None)
        if stored is None:
            return LayerInputs(scheme.activations)
        scale = float(self._read(stored.name).float().reshape(-1)[0])
        if _INPUT_SCALE in parts:
            limit = scale * codec_of(as_weights(scheme.activations)).top
        else:
            limit = _E4M3_MAX * _E2M1_MAX / scale
        return LayerInputs(scheme.activations, ActivationRange(-limit, limit))

    def tokenizer(self) -> Any:
        """Return the tokenizer in the folder."""
        return tokenizer_of(self.folder)

    def _layer_of(self, name: str) -> str | None:
        layer = name.removesuffix(".weight")
        return layer if layer != name and layer in self._schemes else None

    def _read(self, name: str) -> "Tensor":
        from safetensors import safe_open

        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(os.fspath(self.folder / file), framework="pt")
        values: Tensor = self._open[file].get_tensor(name)
        return values


def _known_schemes(checkpoint: Checkpoint, modules: Mapping[str, Module]) -> dict[str, Scheme]:
    """Return the schemes of quantized layers; one that is not read here is refused by its name."""
    found = {}
    for name, schemes in checkpoint.schemes.items():
        if name not in modules or not schemes[0].quantized:
            continue
        scheme = parse_scheme("W8A8") if "SCB" in modules[name].parts else schemes[0].scheme
        if scheme is None:
            raise InputError(f"{name} is stored as {schemes[0]}, which is not read here; use the weights in 16 bits.")
        found[name] = scheme
    return found


def _outlier_warning(folder: Folder) -> tuple[str, ...]:
    if not folder.quantization.get("load_in_8bit") or not folder.quantization.get("llm_int8_threshold", 6.0):
        return ()
    return ("LLM.int8 multiplies columns of outliers in 16 bits; here all inputs are rounded to 8 bits.",)


_Reader = Callable[[Tensors, Scheme, Shape], QuantizedWeight]


def _gptq(version: int) -> _Reader:
    def read(parts: Tensors, scheme: Scheme, shape: Shape) -> QuantizedWeight:
        import torch

        order = parts.get("g_idx")
        if order is None or order.numel() != shape[1]:
            groups = len(parts["scales"])
            order = torch.arange(shape[1], dtype=torch.int32) // -(-shape[1] // groups)
        return from_gptq({**parts, "g_idx": order}, scheme, version=version)

    return read


def _awq(parts: Tensors, scheme: Scheme, shape: Shape) -> QuantizedWeight:
    return from_awq(parts, scheme)


def _compressed(parts: Tensors, scheme: Scheme, shape: Shape) -> QuantizedWeight:
    found = from_compressed(parts, scheme)
    order = parts.get("weight_g_idx")
    return found if order is None else QuantizedWeight(found.codes, found.scales, scheme, order.long())


def _torchao(parts: Tensors, scheme: Scheme, shape: Shape) -> QuantizedWeight:
    import torch

    codes, scales = parts["weight_qdata"], parts["weight_scale"]
    points = parts.get("weight_zero_point")
    if points is not None and bool((points != 0).any()):
        raise InputError(f"torchao's zero points of {scheme} are not read here; use the weights in 16 bits.")
    if codes.dtype == torch.float8_e4m3fn:
        codes = codes.view(torch.uint8)
    return QuantizedWeight(codes, Scales(scales.reshape(len(codes) if scales.numel() > 1 else 1, -1)), scheme)


def _llm_int8(parts: Tensors, scheme: Scheme, shape: Shape) -> QuantizedWeight:
    return from_llm_int8(parts)


# By the method that the config names and the tensors that tell the layout.
_READERS: Mapping[tuple[str, str], _Reader] = {
    ("compressed-tensors", "weight_packed"): _compressed,
    ("compressed-tensors", "weight"): _compressed,
    ("gptq", "qweight"): _gptq(1),
    ("gptq_v2", "qweight"): _gptq(2),
    ("awq", "qweight"): _awq,
    ("torchao", "weight_qdata"): _torchao,
    ("bitsandbytes", "SCB"): _llm_int8,
    ("bitsandbytes", "weight.absmax"): from_bitsandbytes,
}


def _reader(module: Module, method: str, weights: Path) -> _Reader:
    found = next((read for (name, part), read in _READERS.items() if name == method and part in module.parts), None)
    if found is None:
        known = ", ".join(dict.fromkeys(name for name, _ in _READERS))
        raise InputError(
            f'{weights.parent}: weights of the method "{method or "unknown"}" are not read here ({module.name}); '
            f"read are {known}. Use the weights in 16 bits."
        )
    return found
