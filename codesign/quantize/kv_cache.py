"""KV caches rounded inside a running model, as attention finds them: keys after their rotary positions, and values.

An attention function of transformers' own interface rounds what it is given and calls the one that it stands for.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.quantize.gguf import quantize_gguf
from codesign.quantize.hadamard import rotation
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KvFormat, parse_kv

if TYPE_CHECKING:
    from torch import Tensor

E4M3_MAX = 448.0

Rounder = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class KvRounding:
    """How keys and values are rounded: per token and head as the format says, or otherwise.

    With `key_group_tokens` the keys of so many tokens share a scale per channel (KIVI, arXiv 2402.02750); a last
    group that is not full yet stays exact. `rotated` turns both by a Hadamard matrix over head_dim before.
    """

    format: KvFormat
    key_group_tokens: int | None = None
    rotated: bool = False

    def __post_init__(self) -> None:
        if self.key_group_tokens is None:
            return
        if self.format.name not in _GROUPED:
            raise InputError(
                f"{self.format} has no scale per token that channels could have instead; use {' or '.join(_GROUPED)}."
            )
        if self.key_group_tokens < 2:
            raise InputError(f"{self.key_group_tokens} token is no group to share a scale; give 2 or more, such as 32.")

    @property
    def name(self) -> str:
        """Return format and ways in a word."""
        channels = f"-channel{self.key_group_tokens}" if self.key_group_tokens else ""
        return f"kv-{self.format}{channels}{'-rotated' if self.rotated else ''}"

    def keys(self, values: "Tensor") -> "Tensor":
        """Return keys [batch, heads, tokens, head_dim] as the cache holds them."""
        by_channel = self.key_group_tokens is not None
        return self._rounded(values, self._by_channel if by_channel else self._by_token)

    def values(self, values: "Tensor") -> "Tensor":
        """Return values [batch, heads, tokens, head_dim] as the cache holds them."""
        return self._rounded(values, self._by_token)

    def _rounded(self, values: "Tensor", how: Rounder) -> "Tensor":
        exact = values.float()
        if not self.rotated:
            return how(exact).to(values.dtype)
        # Queries would be turned alike and outputs back: the matrix is orthogonal, so turning back here is the same.
        turn = rotation(values.shape[-1])
        return turn.undo(how(turn.apply(exact))).to(values.dtype)

    def _by_token(self, values: "Tensor") -> "Tensor":
        return _ROUNDERS[self.format.name](values)

    def _by_channel(self, values: "Tensor") -> "Tensor":
        """Return keys rounded in groups of tokens, one scale per channel."""
        import torch

        assert self.key_group_tokens is not None
        size, tokens = self.key_group_tokens, values.shape[2]
        full = tokens - tokens % size
        groups = values[:, :, :full].unflatten(2, (-1, size)).transpose(-1, -2).contiguous()
        held = self._by_token(groups).transpose(-1, -2).flatten(2, 3)
        return torch.cat((held, values[:, :, full:]), dim=2)


@contextmanager
def quantized_kv(
    model: Any, format_: KvFormat | str, *, key_group_tokens: int | None = None, rotated: bool = False
) -> Iterator[None]:
    """Round the KV cache of a Network or a transformer like this, whatever it did before, while the context lasts."""
    # A Network keeps its transformer under this name; so does GPT-2 the part of itself that attends.
    transformer = getattr(model, "transformer", model)
    before = transformer.config._attn_implementation
    round_kv(transformer, KvRounding(_format(format_), key_group_tokens, rotated))
    try:
        yield
    finally:
        transformer.set_attn_implementation(before)


def round_kv(transformer: Any, rounding: KvRounding) -> None:
    """Make a transformer round its KV cache from now on, in place of what it did; 16 bits are left exact."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    exact = transformer.config._attn_implementation.rpartition(":")[2]
    name = exact
    if rounding.format.quantized:
        name = f"{rounding.name}:{exact}"
        AttentionInterface.register(name, _attention(rounding, exact))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[exact])
    transformer.set_attn_implementation(name)
    if transformer.config._attn_implementation != name:
        raise InputError(
            f"{type(transformer).__name__} does not compute its attention through the interface of transformers; its "
            "KV cache cannot be rounded here."
        )


@dataclass(slots=True)
class KvLargest:
    """The largest magnitudes that a cache was given so far."""

    keys: float = 0.0
    values: float = 0.0

    def see(self, keys: "Tensor", values: "Tensor") -> None:
        """Take in the keys and values of a step."""
        self.keys = max(self.keys, float(keys.abs().max()))
        self.values = max(self.values, float(values.abs().max()))


@contextmanager
def watched_kv(transformer: Any) -> Iterator[KvLargest]:
    """Note what a transformer puts into its KV cache while the context lasts, of whichever of its blocks run."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    before, seen = transformer.config._attn_implementation, KvLargest()
    exact = before.rpartition(":")[2]

    def attend(module: Any, query: "Tensor", key: "Tensor", value: "Tensor", *args: Any, **kwargs: Any) -> Any:
        seen.see(key, value)
        return _exact_attention(module, exact)(module, query, key, value, *args, **kwargs)

    name = f"kv-watched:{exact}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[exact])
    transformer.set_attn_implementation(name)
    try:
        yield seen
    finally:
        transformer.set_attn_implementation(before)


def _format(given: KvFormat | str) -> KvFormat:
    return parse_kv(given) if isinstance(given, str) else given


def _attention(rounding: KvRounding, exact: str) -> Callable[..., Any]:
    """Return the attention function that rounds keys and values and then calls that of the name `exact`."""

    def attend(module: Any, query: "Tensor", key: "Tensor", value: "Tensor", *args: Any, **kwargs: Any) -> Any:
        return _exact_attention(module, exact)(
            module, query, rounding.keys(key), rounding.values(value), *args, **kwargs
        )

    return attend


def _exact_attention(module: Any, name: str) -> Callable[..., Any]:
    """Return an attention function of transformers; the plainest one belongs to the file of the model."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    default = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, default)
    return found


def _e4m3(values: "Tensor") -> "Tensor":
    """Return E4M3 with a scale of 1, as vLLM takes it where a checkpoint has no calibrated one; saturates."""
    import torch

    return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def _e5m2(values: "Tensor") -> "Tensor":
    import torch

    return values.clamp(-57344.0, 57344.0).to(torch.float8_e5m2).float()


def bf16_scaled(values: "Tensor", bits: int) -> "Tensor":
    """Return integers with a bf16 scale per vector, rounded up so that nothing is clipped: our own kernels'."""
    import torch

    top = 2 ** (bits - 1) - 1
    exact = values.abs().amax(dim=-1, keepdim=True) / top
    scale = ((exact.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
    return (values / torch.where(scale > 0, scale, 1.0)).round().clamp(-top, top) * scale


def _int4(values: "Tensor") -> "Tensor":
    """Return 4-bit integers with an fp16 scale and minimum per vector. Source: QServe (arXiv 2405.04532)."""
    import torch

    low = values.amin(dim=-1, keepdim=True).half().float()
    scale = ((values.amax(dim=-1, keepdim=True) - low) / 15).half().float()
    codes = ((values - low) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, 15)
    return codes * scale + low


def _gguf(scheme: str) -> Rounder:
    """Return blocks of 32 as ggml rounds them."""

    def held(values: "Tensor") -> "Tensor":
        if values.shape[-1] % 32:
            raise InputError(
                f"{scheme} stores blocks of 32 values, no vectors of {values.shape[-1]}; use int8 or int4."
            )
        rows = values.reshape(-1, values.shape[-1])
        return quantize_gguf(rows, parse_scheme(scheme)).dequantize().reshape(values.shape)

    return held


_ROUNDERS: Mapping[str, Rounder] = MappingProxyType(
    {
        "fp8": _e4m3, "fp8_e5m2": _e5m2, "int8": partial(bf16_scaled, bits=8), "int4": _int4,
        "q8_0": _gguf("Q8_0"), "q4_0": _gguf("Q4_0"),
    }
)  # fmt: skip
_GROUPED = ("int8", "int4", "q8_0", "q4_0")
