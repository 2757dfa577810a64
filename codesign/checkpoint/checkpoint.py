"""Read a checkpoint from its headers: every tensor is accounted to a layer, known to be small, or listed as unknown."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from codesign.checkpoint.announced import Quantization
from codesign.checkpoint.files import Folder, read_folder
from codesign.checkpoint.gguf_names import GgufOwners
from codesign.checkpoint.quantization_config import read_quantization
from codesign.checkpoint.stored import GGUF_METHOD, Checkpoint, StoredLayer, StoredScheme
from codesign.checkpoint.stored_schemes import gguf_scheme, stored_scheme
from codesign.checkpoint.tensor_names import Module, Owners, modules_of
from codesign.errors import InputError
from codesign.model.file import load_model_with_warnings
from codesign.model.gguf_file import read_gguf
from codesign.model.gguf_model import gguf_model
from codesign.model.layers import Experts, Layer, Model
from codesign.model.stored_tensor import StoredTensor
from codesign.model.weight_files import GGUF_SUFFIX, weight_path

_NEVER_ANNOUNCED = ("embedding", "head", "router", "shared_router")  # skipped by habit, without being named


def read_checkpoint(given: str) -> Checkpoint:
    """Return what lies at a path: a folder with config.json and safetensors, one of its files, or a GGUF file."""
    checkpoint = find_checkpoint(given)
    if checkpoint is None:
        raise InputError(f"{given[:200]}: no safetensors or GGUF file lies here; the stored schemes need the weights.")
    return checkpoint


def find_checkpoint(given: str) -> Checkpoint | None:
    """Return the checkpoint at a path, None if no weights lie there."""
    weights = weight_path(given)
    if weights is None:
        return None
    return _read_gguf(weights) if weights.suffix.lower() == GGUF_SUFFIX else _read_safetensors(weights)


@dataclass
class _Tally:
    """What has been accounted so far; layers and experts are kept apart by scheme."""

    model: Model
    layers: dict[tuple[str, StoredScheme], StoredLayer] = field(default_factory=dict)
    schemes: dict[str, list[StoredScheme]] = field(default_factory=dict)
    other: list[StoredTensor] = field(default_factory=list)
    unknown: list[StoredTensor] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, name: str) -> None:
        """Remember an oddity; many of one kind become one warning."""
        self.odd.setdefault(what, []).append(name)

    def add(self, name: str, role: str, block: int | None, stored: StoredScheme, counts: tuple[int, int]) -> None:
        """Count weights and bytes to a layer."""
        key = (name, stored)
        before = self.layers.get(key)
        weights, size = counts
        if before is not None:
            weights, size = weights + before.weight_count, size + before.byte_count
        self.layers[key] = StoredLayer(name, role, block, stored, weights, size)
        found = self.schemes.setdefault(name, [])
        if stored not in found:
            found.append(stored)

    def add_bytes(self, name: str, byte_count: int) -> None:
        """Count a bias to the first scheme of its layer."""
        stored = self.schemes[name][0]
        layer = self.layers[name, stored]
        self.add(name, layer.role, layer.block_index, stored, (0, byte_count))

    def finished(self, method: str, kv: str, file_bytes: int, warnings: Iterable[str]) -> Checkpoint:
        """Return the checkpoint; a tied head has the scheme of the embedding, and layers without weights are named."""
        model = self.model
        if model.tied_embedding and model.head.name not in self.schemes and model.embedding.name in self.schemes:
            self.schemes[model.head.name] = self.schemes[model.embedding.name]
        wanted = [layer.name for layer in (model.embedding, *model.layers)]
        wanted += [block.experts.name for block in model.blocks if block.experts]
        for name in wanted:
            if name not in self.schemes:
                self.note("no tensor holds this layer of the model", name)
        schemes = {name: tuple(found) for name, found in self.schemes.items()}
        return Checkpoint(
            model, method, tuple(self.layers.values()), MappingProxyType(schemes), tuple(self.other),
            tuple(self.unknown), kv, file_bytes, (*warnings, *self._warnings()),
        )  # fmt: skip

    def _warnings(self) -> Iterator[str]:
        for what, names in self.odd.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{ascii(names[0][:120])[1:-1]}{more}: {what}."


def _read_safetensors(weights: Path) -> Checkpoint:
    folder = read_folder(weights)
    model, warnings = load_model_with_warnings(folder.config_path)
    quantization = read_quantization(folder.quantization, str(folder.config_path))
    tally = _Tally(model)
    owners = Owners(model)
    biases: list[tuple[str, StoredTensor]] = []
    for module in modules_of(folder.tensors):
        _account(tally, owners, module, quantization, biases)
    for name, tensor in biases:
        if name in tally.schemes:
            tally.add_bytes(name, tensor.byte_count)
        else:
            tally.unknown.append(tensor)
    _check_method(tally, quantization, folder)
    kv = quantization.kv or _kv_by_scales(folder.tensors)
    return tally.finished(quantization.method, kv, folder.file_bytes, (*warnings, *quantization.warnings))


def _account(
    tally: _Tally, owners: Owners, module: Module, quantization: Quantization, biases: list[tuple[str, StoredTensor]]
) -> None:
    """Count all tensors of one module."""
    owner = owners.find(module.name)
    if owner is None:
        (tally.other if owners.is_small(module.name) else tally.unknown).extend(module.parts.values())
        return
    if not module.has_weights:
        name = owner.name if isinstance(owner, Experts) else owner[0].name
        biases.extend((name, tensor) for tensor in module.parts.values())
        return
    announced = quantization.announced(module.name)
    shape = _shape_of(module, owner)
    stored = stored_scheme(module, shape, announced)
    if quantization.method and not (isinstance(owner, tuple) and owner[0].role in _NEVER_ANNOUNCED):
        _compare(tally, module, stored, announced is not None)
    if isinstance(owner, Experts):
        weights = _expert_weights(module, shape, owner)
        tally.add(owner.name, "experts", owner.block_index, stored, (weights, module.byte_count))
        return
    plain = module.parts.get("weight")
    if plain is not None and not stored.quantized and not _fits(plain, owner):
        tally.note("its shape is not that of the layer in the config", module.name)
    _share(tally, owner, stored, module.byte_count)


def _share(tally: _Tally, layers: tuple[Layer, ...], stored: StoredScheme, byte_count: int) -> None:
    """Count the bytes of a weight to its layers, in proportion to their weights; the last one takes the rest."""
    total, left = sum(layer.weight_count for layer in layers), byte_count
    for layer in layers:
        part = left if layer is layers[-1] else byte_count * layer.weight_count // total
        left -= part
        tally.add(layer.name, layer.role, layer.block_index, stored, (layer.weight_count, part))


def _fits(tensor: StoredTensor, layers: tuple[Layer, ...]) -> bool:
    """Return whether a 16-bit matrix has as many values as its layers; GPT-2 stores matrices turned."""
    return math.prod(tensor.shape) == sum(layer.weight_count for layer in layers)


def _shape_of(module: Module, owner: tuple[Layer, ...] | Experts) -> tuple[int, int] | None:
    """Return (n, k) of what a module stores, None for experts stored as one tensor."""
    if not isinstance(owner, Experts):
        return sum(layer.n for layer in owner), owner[0].k
    last = module.name.rpartition(".")[2]
    single = module.name.startswith(owner.name) and module.name[len(owner.name) :].count(".") > 1
    if last in ("down_proj", "w2"):
        n, k = owner.hidden, owner.intermediate
    elif last in ("gate_proj", "up_proj", "w1", "w3", "gate_up_proj", "w13"):
        n, k = owner.intermediate * (2 if last in ("gate_up_proj", "w13") else 1), owner.hidden
    else:
        return None
    return (n, k) if single else (owner.expert_count * n, k)


def _expert_weights(module: Module, shape: tuple[int, int] | None, experts: Experts) -> int:
    if shape is not None:
        return shape[0] * shape[1]
    weight = module.parts.get("weight") or module.parts.get("")
    return math.prod(weight.shape) if weight is not None else 0


def _compare(tally: _Tally, module: Module, stored: StoredScheme, announced: bool) -> None:
    """Note where tensors and config disagree; the tensors are believed."""
    if announced and not stored.quantized:
        tally.note("quantization_config says that it is quantized, its tensors are not", module.name)
    elif not announced and stored.quantized:
        tally.note("quantization_config says that it is not quantized, its tensors are", module.name)


def _check_method(tally: _Tally, quantization: Quantization, folder: Folder) -> None:
    if not quantization.method and any(layer.stored.quantized for layer in tally.layers.values()):
        tally.note("there is no quantization_config, but tensors are quantized", str(folder.config_path))


def _kv_by_scales(tensors: Iterable[StoredTensor]) -> str:
    """Return the cache's format where only its scales tell of it."""
    scaled = any(tensor.name.endswith((".k_scale", ".k_proj.k_scale")) for tensor in tensors)
    return "8 bits, said by its scales alone" if scaled else ""


def _read_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    model = gguf_model(file)
    tally = _Tally(model)
    owners = GgufOwners(model)
    biases: list[tuple[str, StoredTensor]] = []
    for tensor in file.tensors:
        owner = owners.find(tensor.name)
        if owners.is_small(tensor.name):
            tally.other.append(tensor)
        elif owner is None:
            tally.unknown.append(tensor)
        elif tensor.name.endswith(".bias"):
            biases.append((owner.name if isinstance(owner, Experts) else owner[0].name, tensor))
        elif isinstance(owner, Experts):
            counts = (math.prod(tensor.shape), tensor.byte_count)
            tally.add(owner.name, "experts", owner.block_index, gguf_scheme(tensor.dtype), counts)
        else:
            _share_gguf(tally, owner, tensor)
    for name, tensor in biases:
        if name in tally.schemes:
            tally.add_bytes(name, tensor.byte_count)
        else:
            tally.unknown.append(tensor)
    return tally.finished(GGUF_METHOD, "", file.file_bytes, ())


def _share_gguf(tally: _Tally, layers: tuple[Layer, ...], tensor: StoredTensor) -> None:
    stored = gguf_scheme(tensor.dtype)
    if _fits(tensor, layers):
        _share(tally, layers, stored, tensor.byte_count)
        return
    # Half of a layer (attn_k_b and attn_v_b are the two of kv_b), or a file whose keys and tensors disagree.
    layer = layers[0]
    tally.add(layer.name, layer.role, layer.block_index, stored, (math.prod(tensor.shape), tensor.byte_count))
    if layer.role != "kv_b":
        tally.note("its shape is not that of the layer in the metadata", tensor.name)
