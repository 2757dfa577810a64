"""A model's weights, one tensor at a time, under the names that transformers gives them."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from codesign.checkpoint.files import read_folder
from codesign.errors import CapabilityError, InputError
from codesign.model.file import load_model_with_warnings
from codesign.model.layers import Model
from codesign.model.weight_files import GGUF_SUFFIX, weight_path
from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.hadamard import Rotation
from codesign.schemes.scheme import ActivationFormat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputs:
    """What happens to a layer's inputs before they are multiplied: rotated, then rounded, with a fixed range or not."""

    format: ActivationFormat
    fixed: ActivationRange | None = None
    rotation: Rotation | None = None


class WeightSource(Protocol):
    """Where weights come from. Quantized ones are given as the floats that they stand for."""

    @property
    def model(self) -> Model:
        """Return the model's shapes."""

    @property
    def config(self) -> Any:
        """Return the configuration as transformers keeps it."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what a user should know of the file."""

    @property
    def kv(self) -> str:
        """Return the KV format that the file asks for."""

    def has(self, name: str) -> bool:
        """Return whether there is a parameter of this name."""

    def tensor(self, name: str) -> "Tensor":
        """Return a parameter, such as `model.layers.0.mlp.down_proj.weight`, as a float tensor in its own type."""

    def inputs(self, layer: str) -> LayerInputs | None:
        """Return what a layer does to its inputs, None if it takes them as they are."""

    def tokenizer(self) -> Any:
        """Return the tokenizer of the model."""


def open_source(given: str) -> WeightSource:
    """Return the weights at a path: a Hugging Face folder, plain or quantized, or a GGUF file."""
    from codesign.quantize.gguf_source import GgufSource

    weights = weight_path(given)
    if weights is None:
        raise InputError(
            f"{given[:200]}: no safetensors or GGUF file lies here; weights are needed to quantize or to evaluate."
        )
    if weights.suffix.lower() == GGUF_SUFFIX:
        return GgufSource(weights)
    if read_folder(weights).quantization:
        from codesign.quantize.quantized_source import QuantizedSource

        return QuantizedSource(weights)
    return FolderSource(weights)


class FolderSource:
    """Plain weights of a Hugging Face folder; files are mapped, and read when a tensor is asked for."""

    def __init__(self, weights: Path) -> None:
        self.folder = weights.parent
        self._files = {tensor.name: tensor.file for tensor in read_folder(weights).tensors}
        self.model, self.warnings = load_model_with_warnings(self.folder / "config.json")
        self.kv = ""
        self._open: dict[str, Any] = {}

    @cached_property
    def config(self) -> Any:
        """Return the configuration as transformers keeps it."""
        return config_of(self.folder)

    def has(self, name: str) -> bool:
        """Return whether a file holds it."""
        return name in self._files

    def tensor(self, name: str) -> "Tensor":
        """Return a tensor of the files."""
        return self._shard(self._files[name]).get_tensor(name)

    def inputs(self, layer: str) -> LayerInputs | None:
        """Return None: nothing is rounded."""
        return None

    def tokenizer(self) -> Any:
        """Return the tokenizer in the folder."""
        return tokenizer_of(self.folder)

    def _shard(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._open:
            self._open[file] = safe_open(os.fspath(self.folder / file), framework="pt")
        return self._open[file]


def config_of(folder: Path, **more: str) -> Any:
    """Return the configuration of a folder, or of its GGUF file given as `gguf_file`."""
    return _from_folder(transformers().AutoConfig, folder, more)


def tokenizer_of(folder: Path, **more: str) -> Any:
    """Return the tokenizer of a folder, or of its GGUF file given as `gguf_file`."""
    return _from_folder(transformers().AutoTokenizer, folder, more)


def _from_folder(kind: Any, folder: Path, more: Mapping[str, str]) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{folder}: transformers cannot read this model's {kind.__name__[4:].lower()}: {line}"
        ) from error


def transformers() -> Any:
    """Return the package, which says nothing but errors."""
    try:
        import transformers as package
    except ImportError as error:
        raise CapabilityError(
            'This runs models with transformers, which is not installed; pip install "codesign[quantize]".'
        ) from error
    talk: Any = package.logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    for other in ("torchao", "torch.utils._pytree"):  # torchao tells of kernels for other machines when it is imported
        logging.getLogger(other).setLevel(logging.ERROR)
    return package
