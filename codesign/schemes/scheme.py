"""How a layer's weights and activations are stored. `parse_scheme(str(scheme)) == scheme` for every scheme."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole matrix."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per output row: [n, k] -> [n]."""


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale per `size` weights along k: [n, k] -> [n, ceil(k / size)]."""

    size: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per `rows` x `columns` tile: [n, k] -> [ceil(n / rows), ceil(k / columns)]."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class PerToken:
    """One scale per row of activations: [m, k] -> [m]."""


Granularity = PerTensor | PerChannel | PerGroup | PerBlock | PerToken


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Stored weights: `bits` per value, and per unit of `granularity` a scale and perhaps a zero point.

    `granularity` is None where there are no scales (fp32, bf16, fp16).
    Formats with scales of scales add `super_scale_bits` per `super_group_size` weights, or `tensor_scale_bits` once.
    `word_bits` is the unit that a row of values ends on; in formats with 32-bit words zero points are packed along n.
    `block_size` is the number of values along k that are stored as one piece, so that rows hold whole blocks.
    `flattened` formats group values in memory order across rows instead of row by row.
    """

    number: str
    bits: float
    granularity: Granularity | None = None
    scale_bits: float = 0.0
    zero_point_bits: float = 0.0
    super_group_size: int | None = None
    super_scale_bits: float = 0.0
    tensor_scale_bits: float = 0.0
    word_bits: int = 8
    block_size: int = 1
    flattened: bool = False

    @property
    def symmetric(self) -> bool:
        """Return whether no zero point is stored."""
        return self.zero_point_bits == 0.0

    @property
    def bits_per_weight(self) -> float:
        """Return the stored bits per weight of a large matrix, scales and zero points included."""
        return self.bits + self._overhead_bits

    @property
    def _overhead_bits(self) -> float:
        extra = self.scale_bits + self.zero_point_bits
        above = self.super_scale_bits / self.super_group_size if self.super_group_size else 0.0
        match self.granularity:
            case PerGroup(size):
                return extra / size + above
            case PerBlock(rows, columns):
                return extra / (rows * columns) + above
            case _:
                return above


@dataclass(frozen=True, slots=True)
class ActivationFormat:
    """Activations as they enter the multiplication; `dynamic` means that scales are computed at run time."""

    number: str
    bits: float
    granularity: Granularity | None = None
    scale_bits: float = 0.0
    dynamic: bool = True

    @property
    def static(self) -> bool:
        """Return whether there are scales that calibration fixes."""
        return self.granularity is not None and not self.dynamic


@dataclass(frozen=True, slots=True)
class Scheme:
    """A weight format with an activation format; 16-bit activations have no granularity.

    `math_dtypes` lists what the multiplication can run in natively, best first; `fallback_math_dtypes` what it is
    emulated in (weights and activations converted) where the machine has none of the former.
    `family` names the kernels that it needs (`float`, `w4a16`, `w8a8`, `fp8`, `gguf` ...), whatever the group size.
    """

    name: str
    weights: WeightFormat
    activations: ActivationFormat
    math_dtypes: tuple[str, ...]
    fallback_math_dtypes: tuple[str, ...] = ()
    family: str = ""
    description: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def quantized(self) -> bool:
        """Return whether the weights are stored in fewer than 16 bits."""
        return self.weights.granularity is not None

    @property
    def weight_only(self) -> bool:
        """Return whether only the weights are quantized, so that they are dequantized before the multiplication."""
        return self.quantized and self.activations.granularity is None

    @property
    def scale_block(self) -> int | None:
        """Return how many values along k share their scales; None where a whole row does."""
        sizes = [
            grouping.size if isinstance(grouping, PerGroup) else grouping.columns
            for grouping in (self.weights.granularity, self.activations.granularity)
            if isinstance(grouping, PerGroup | PerBlock)
        ]
        return min(sizes, default=None)

    @property
    def bits_per_weight(self) -> float:
        """Return the stored bits per weight of a large matrix, scales and zero points included."""
        return self.weights.bits_per_weight
