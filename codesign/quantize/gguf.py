"""Weights in the blocks of GGUF files: our own encoders and decoders of each type."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from codesign.errors import InputError
from codesign.quantize.gguf_blocks import BLOCK_KINDS
from codesign.quantize.gguf_grids import GRID_KINDS
from codesign.quantize.gguf_layout import SUPER, Kind
from codesign.quantize.gguf_levels import LEVEL_KINDS
from codesign.quantize.gguf_super import SUPER_KINDS
from codesign.quantize.gguf_ternary import TERNARY_KINDS
from codesign.quantize.round import check_finite, check_matrix
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes

if TYPE_CHECKING:
    from torch import Tensor

_KINDS: Mapping[str, Kind] = MappingProxyType(
    {**BLOCK_KINDS, **SUPER_KINDS, **LEVEL_KINDS, **GRID_KINDS, **TERNARY_KINDS}
)
ENCODED_TYPES = tuple(_KINDS)


@dataclass(frozen=True, slots=True, eq=False)
class GgufWeight:
    """A weight matrix [n, k] as rows of blocks: uint8 [n, bytes of a row], on the CPU."""

    rows: "Tensor"
    scheme: Scheme
    shape: tuple[int, int]

    def dequantize(self) -> "Tensor":
        """Return the float32 values [n, k]."""
        kind = _KINDS[self.scheme.name]
        return kind.decode(self.rows.reshape(-1, kind.byte_count)).reshape(self.shape)


def quantize_gguf(w: "Tensor", scheme: Scheme, importance: "Tensor | None" = None) -> GgufWeight:
    """Return the floats [n, k] in blocks of a GGUF type; `importance` [k] weighs the errors where scales are searched.

    Source of the formats and of most searches: ggml-org/ggml, src/ggml-quants.c.
    """
    import torch

    check_matrix(w)
    check_finite(w)
    n, k = w.shape
    problem = encoder_problem(scheme, k)
    if problem:
        raise InputError(problem)
    kind = _KINDS[scheme.name]
    step = max(kind.chunk_values // k, 1)
    parts = []
    for first in range(0, n, step):
        part = w[first : first + step].float().cpu()
        weight = None if importance is None else importance.float().cpu().expand_as(part).reshape(-1, kind.values)
        parts.append(kind.encode(part.reshape(-1, kind.values), weight).reshape(len(part), -1))
    return GgufWeight(torch.cat(parts), scheme, (n, k))


def encoder_problem(scheme: Scheme, k: int) -> str | None:
    """Return why rows of k weights cannot be written in a GGUF type, and which type to use; None if they can."""
    kind = _KINDS.get(scheme.name)
    if kind is not None and k % kind.values == 0:
        return None
    reason = (
        f"{scheme} has no encoder here: its grid is shifted per group, which our searches do not fit."
        if kind is None
        else f"{scheme} stores rows in blocks of {kind.values}, which does not divide {k}."
    )
    fitting = _nearest_first(scheme, k)
    if not fitting:
        smallest = min(kind.values for kind in _KINDS.values())
        return f"{reason} No type fits, as all store at least {smallest} weights together: keep the layer in BF16."
    return f"{reason} Use {fitting[0]}, the nearest in size, or another of {', '.join(fitting[1:])}."


def _nearest_first(scheme: Scheme, k: int) -> list[str]:
    """Return the types for any weights that fit rows of k, those of about the scheme's size first."""
    fitting = [name for name, kind in _KINDS.items() if k % kind.values == 0 and name not in TERNARY_KINDS]
    wanted = weight_bytes(scheme, 1, SUPER)
    return sorted(fitting, key=lambda name: abs(weight_bytes(parse_scheme(name), 1, SUPER) - wanted))
