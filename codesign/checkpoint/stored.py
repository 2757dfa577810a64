"""What a checkpoint holds: its model, and for every layer the scheme and the bytes in which it is stored."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from codesign.model.layers import Model
from codesign.model.stored_tensor import StoredTensor
from codesign.schemes.scheme import Scheme

GGUF_METHOD = "gguf"


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """How weights are stored: a scheme of the catalog, or words where the catalog has none; `str` is what to print.

    `reason` says why there can be none, where that is known.
    """

    words: str
    scheme: Scheme | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self.words

    @property
    def quantized(self) -> bool:
        """Return whether it is anything but plain floats; what the catalog does not know is."""
        return self.scheme is None or self.scheme.quantized


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer, or those of a block's experts that share a scheme, with all that its tensors take.

    Scales, zero points, orders of columns and biases are in `byte_count`; `weight_count` has none of them.
    """

    name: str
    role: str
    block_index: int | None
    stored: StoredScheme
    weight_count: int
    byte_count: int


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk.

    `schemes` gives every layer (by name) and the experts of every block; experts may have several. `other` holds norms
    and other small tensors that the model knows, `unknown` tensors that belong to no layer. `method` is what the file
    says of its quantization, `kv` its KV cache format in words, empty where none is given.
    """

    model: Model
    method: str
    layers: tuple[StoredLayer, ...]
    schemes: Mapping[str, tuple[StoredScheme, ...]]
    other: tuple[StoredTensor, ...]
    unknown: tuple[StoredTensor, ...]
    kv: str
    file_bytes: int
    warnings: tuple[str, ...]

    @cached_property
    def bytes_by_scheme(self) -> dict[str, int]:
        """Return the bytes of all layers by the scheme they are stored in, the largest first."""
        sums: Counter[str] = Counter()
        for layer in self.layers:
            sums[str(layer.stored)] += layer.byte_count
        return dict(sums.most_common())

    @cached_property
    def weights_by_scheme(self) -> dict[str, int]:
        """Return the number of weights by scheme."""
        sums: Counter[str] = Counter()
        for layer in self.layers:
            sums[str(layer.stored)] += layer.weight_count
        return dict(sums)

    @property
    def quantized_words(self) -> tuple[str, ...]:
        """Return the schemes of quantized layers, those of the most bytes first."""
        found = {str(layer.stored) for layer in self.layers if layer.stored.quantized}
        return tuple(name for name in self.bytes_by_scheme if name in found)

    @property
    def other_bytes(self) -> int:
        """Return the bytes of norms and other small tensors."""
        return sum(tensor.byte_count for tensor in self.other)

    @property
    def unknown_bytes(self) -> int:
        """Return the bytes of tensors that belong to no layer."""
        return sum(tensor.byte_count for tensor in self.unknown)

    @property
    def tensor_bytes(self) -> int:
        """Return the bytes of all tensors; the files hold their headers beside them."""
        return sum(self.bytes_by_scheme.values()) + self.other_bytes + self.unknown_bytes

    @property
    def bits_per_weight(self) -> float:
        """Return the bits that a weight takes on average over all layers, scales included."""
        weights = sum(self.weights_by_scheme.values())
        return 8 * sum(self.bytes_by_scheme.values()) / weights if weights else 0.0
