"""Weights of a GGUF file, dequantized one by one. transformers says which tensor is which and undoes reorderings."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.errors import InputError
from codesign.model.gguf_file import read_gguf
from codesign.model.stored_tensor import StoredTensor
from codesign.model.weight_paths import sibling
from codesign.quantize.source import LayerInputs, config_of, tokenizer_of, transformers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


class GgufSource:
    """A GGUF file whose tensors are dequantized when they are asked for."""

    def __init__(self, path: Path) -> None:
        checkpoint = read_checkpoint(str(path))
        self.path = path
        self._tensors = {tensor.name: tensor for tensor in read_gguf(path).tensors}
        self.model = checkpoint.model
        self.kv = ""
        quantized = checkpoint.quantized_words
        lost = (
            f"{path.name} is quantized already ({', '.join(quantized)}): errors are those on top of its own, "
            "and schemes on its grid look better than they are."
        )
        self.warnings = (*checkpoint.warnings, *((lost,) if quantized else ()))

    @cached_property
    def config(self) -> Any:
        """Return the configuration that transformers makes of the file's keys."""
        return config_of(self.path.parent, gguf_file=self.path.name)

    def has(self, name: str) -> bool:
        """Return whether the file holds a tensor that becomes this parameter."""
        return name in self._names

    def tensor(self, name: str) -> "Tensor":
        """Return a parameter in float32."""
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType, dequantize

        stored = self._tensors[self._names[name]]
        values = dequantize(self._rows(stored), GGMLQuantizationType[stored.dtype])
        made = self._processor.process(
            weights=values, name=stored.name, tensor_key_mapping=self._map, parsed_parameters={"tensors": {}}
        )
        if made.name is None or made.weights is None:
            raise InputError(f"{self.path.name}: {stored.name} is stored in a form that is not read here.")
        return torch.from_numpy(np.array(made.weights, np.float32))

    def inputs(self, layer: str) -> LayerInputs | None:
        """Return None: inputs are taken as they are."""
        return None

    def tokenizer(self) -> Any:
        """Return the tokenizer in the file."""
        return tokenizer_of(self.path.parent, gguf_file=self.path.name)

    def _rows(self, stored: StoredTensor) -> "npt.NDArray[np.uint8]":
        """Return the bytes of a tensor by row, mapped from its file."""
        import numpy as np

        file = self.path if stored.file == self.path.name else sibling(self.path, stored.file)
        assert stored.offset is not None
        data = np.memmap(file, np.uint8, "r", stored.offset, (stored.byte_count,))
        return data.reshape(*stored.shape[:-1], -1)

    @cached_property
    def _processor(self) -> Any:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        kind: Any = TENSOR_PROCESSORS.get(self.config.model_type, TensorProcessor)
        return kind(config=self.config.to_dict())

    @cached_property
    def _map(self) -> dict[str, str]:
        """Return transformers' name by the file's."""
        import torch
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        with torch.device("meta"):
            empty = transformers().AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        with _remembered_name_maps():
            found: dict[str, str] = get_gguf_hf_weights_map(empty, self._processor)
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        return {theirs: name for name, theirs in self._map.items() if name in self._tensors}


@contextmanager
def _remembered_name_maps() -> Iterator[None]:
    """Let transformers, which asks for the same table of names for every module, get it made once."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made
