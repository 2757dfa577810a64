"""The numbers that codes stand for: integers, small floats and tables of levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from codesign.errors import InputError
from codesign.schemes.scheme import WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

# QLoRA, appendix E: the 16 values of NF4.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# bitsandbytes, functional.py, get_4bit_type: its FP4 is a table of its own, not E2M1.
_BNB_FP4_MAGNITUDES = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
BNB_FP4_LEVELS = (*_BNB_FP4_MAGNITUDES, *(-level for level in _BNB_FP4_MAGNITUDES))


class Codec(Protocol):
    """How scaled values become codes and codes values."""

    @property
    def top(self) -> float:
        """Return the scaled value that the largest magnitude of a unit is given."""

    def encode(self, scaled: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the codes nearest to float32 values, which may be overwritten."""

    def decode(self, codes: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the float32 values of codes, scales not applied."""


@dataclass(frozen=True, slots=True)
class SignedIntegers:
    """Two's complement integers, ties to even."""

    bits: int

    @property
    def top(self) -> float:
        """Return half of the range, between the largest and the smallest code.

        A finer step for all is worth a clip of at most half a step for the largest.
        Source: GPTQ (quant.py, sym), compressed-tensors (calculate_qparams) and torchao (choose_qparams_affine) alike.
        """
        return (1 << self.bits) / 2 - 0.5

    def encode(self, scaled: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return int8 codes."""
        import torch

        half = 2 ** (self.bits - 1)
        return scaled.round_().clamp_(-half, half - 1).to(torch.int8)

    def decode(self, codes: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the codes as floats."""
        return codes.float()


@dataclass(frozen=True, slots=True)
class UnsignedIntegers:
    """Integers from 0 with a zero point, which is an integer or, in some formats, a 16-bit float."""

    bits: int
    float_zero_points: bool = False

    @property
    def top(self) -> float:
        """Return the largest code."""
        return float(2**self.bits - 1)

    def encode(self, scaled: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return uint8 codes; an integer zero point is added after rounding, as GPTQ does."""
        import torch

        assert zero_points is not None
        if self.float_zero_points:
            shifted = scaled.add_(zero_points.float()).round_()
        else:
            shifted = scaled.round_().add_(zero_points)
        return shifted.clamp_(0, self.top).to(torch.uint8)

    def decode(self, codes: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return codes less zero points."""
        assert zero_points is not None
        return codes.float() - zero_points.float()


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """Sign, exponent and mantissa without infinities, ties to even, saturating. Codes are the stored bits."""

    exponent_bits: int
    mantissa_bits: int
    largest: float

    @property
    def top(self) -> float:
        """Return the largest value."""
        return self.largest

    @property
    def _smallest_exponent(self) -> int:
        return 2 - (1 << self.exponent_bits - 1)

    @property
    def magnitudes(self) -> tuple[float, ...]:
        """Return the value of every code without a sign."""
        ones = 2**self.mantissa_bits
        values = []
        for code in range(2 ** (self.exponent_bits + self.mantissa_bits)):
            exponent, mantissa = divmod(code, ones)
            fraction = mantissa / ones + (exponent > 0)
            values.append(fraction * 2.0 ** (max(exponent, 1) - 1 + self._smallest_exponent))
        return tuple(values)

    def encode(self, scaled: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return uint8 codes with the sign in the highest bit of the format."""
        import torch

        magnitude = scaled.abs().clamp_(max=self.largest)
        # The exponent is read from the bits: a logarithm would be wrong next to a power of two.
        exponent = ((magnitude.view(torch.int32) >> 23) - 127).clamp_(min=self._smallest_exponent)
        mantissa = torch.ldexp(magnitude, self.mantissa_bits - exponent).round_().int()
        # A mantissa that rounds up to the next power of two carries into the exponent by itself.
        code = ((exponent - self._smallest_exponent) << self.mantissa_bits) + mantissa
        sign = torch.signbit(scaled).int() << (self.exponent_bits + self.mantissa_bits)
        return (code | sign).to(torch.uint8)

    def decode(self, codes: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the values of the codes."""
        import torch

        table = torch.tensor(self.magnitudes, device=codes.device)
        return torch.cat((table, -table))[codes.int()]


@dataclass(frozen=True, slots=True)
class E4m3:
    """The 8-bit float that torch converts by itself, six times faster than `SmallFloat` and to the same codes."""

    @property
    def top(self) -> float:
        """Return the largest value. Source: OCP 8-bit Floating Point v1.0."""
        return 448.0

    def encode(self, scaled: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return uint8 codes, saturated."""
        import torch

        return scaled.clamp_(-self.top, self.top).to(torch.float8_e4m3fn).view(torch.uint8)

    def decode(self, codes: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the values of the codes."""
        import torch

        return codes.contiguous().view(torch.float8_e4m3fn).float()


@dataclass(frozen=True, slots=True)
class Levels:
    """A table of values within -1 and 1; a tie goes to the lower value, as in bitsandbytes."""

    values: tuple[float, ...]

    @property
    def top(self) -> float:
        """Return the largest level."""
        return max(self.values)

    def encode(self, scaled: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the index of the nearest level as uint8."""
        import torch

        table = torch.tensor(self.values, device=scaled.device)
        order = table.argsort(stable=True)
        middles = (table[order][1:] + table[order][:-1]) / 2
        return order.to(torch.uint8)[torch.bucketize(scaled, middles)]

    def decode(self, codes: "Tensor", zero_points: "Tensor | None") -> "Tensor":
        """Return the levels."""
        import torch

        return torch.tensor(self.values, device=codes.device)[codes.int()]


FLOATS: Mapping[str, SmallFloat | E4m3] = MappingProxyType(
    {
        "e2m1": SmallFloat(2, 1, 6.0),  # OCP Microscaling Formats v1.0, table 5
        "e3m2": SmallFloat(3, 2, 28.0),
        "e4m3": E4m3(),
    }
)


def codec_of(weights: WeightFormat) -> Codec:
    """Return how the codes of a format are read and written."""
    if weights.number == "nf4":
        return Levels(NF4_LEVELS)
    if weights.number == "e2m1" and weights.flattened:
        return Levels(BNB_FP4_LEVELS)
    if weights.number in FLOATS:
        return FLOATS[weights.number]
    bits = int(weights.bits)
    if weights.number != f"int{bits}":
        raise InputError(f'Weights of the number type "{weights.number}" are not rounded value by value.')
    if not weights.symmetric:
        return UnsignedIntegers(bits, float_zero_points=weights.zero_point_bits > weights.bits)
    # One bit of two's complement would be 0 or -1: with a scale alone only signs make sense (XNOR-Net, section 3.1).
    return SignedIntegers(bits) if bits > 1 else Levels((-1.0, 1.0))
