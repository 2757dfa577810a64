"""How the KV cache is stored, and its bytes per token."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from codesign.errors import InputError, did_you_mean
from codesign.schemes.storage import Count

DEFAULT_KV = "bf16"


@dataclass(frozen=True, slots=True)
class KvFormat:
    """Stored keys and values: `bits` each, and per `group_size` elements along head_dim a scale and a zero point.

    `group_size` is None where one scale serves a whole token and head. Formats with one scale per tensor have
    `scale_bits` 0, because that scale takes no space in the cache.
    """

    name: str
    bits: int
    scale_bits: int = 0
    zero_point_bits: int = 0
    group_size: int | None = None
    description: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def quantized(self) -> bool:
        """Return whether an element takes less than 16 bits."""
        return self.bits < 16


_FORMATS = (
    KvFormat("bf16", 16, description="16-bit brain float"),
    KvFormat("fp16", 16, description="16-bit float"),
    KvFormat("fp8", 8, description="E4M3, one scale per tensor, as in vLLM and TensorRT-LLM"),
    KvFormat("fp8_e5m2", 8, description="E5M2, no scale, as in vLLM"),
    KvFormat("int8", 8, 16, description="8-bit integers, one 16-bit scale per token and head"),
    # QServe (mit-han-lab/qserve) keeps a half-precision scale and zero point per token and head beside KV4.
    KvFormat("int4", 4, 16, 16, description="4-bit integers, 16-bit scale and zero point per token and head (QServe)"),
    KvFormat("q8_0", 8, 16, group_size=32, description="GGUF Q8_0: 8-bit blocks of 32, 8.5 bits per element"),
    KvFormat("q4_0", 4, 16, group_size=32, description="GGUF Q4_0: 4-bit blocks of 32, 4.5 bits per element"),
)

KV_FORMATS: Mapping[str, KvFormat] = MappingProxyType({kv.name: kv for kv in _FORMATS})

_ALIASES = {
    "": DEFAULT_KV,
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "f16": "fp16",
    "fp8_e4m3": "fp8",
    "e4m3": "fp8",
    "e5m2": "fp8_e5m2",
}


def parse_kv(text: str) -> KvFormat:
    """Return the KV format of that name or alias; an empty text is the 16-bit default."""
    word = text.strip().lower().replace("-", "_")
    name = _ALIASES.get(word, word)
    if name in KV_FORMATS:
        return KV_FORMATS[name]
    known = ", ".join(KV_FORMATS)
    guess = did_you_mean(word, (*KV_FORMATS, *filter(None, _ALIASES))) if len(word) < 32 else ""
    raise InputError(f"Unknown KV cache format {text[:32]!r}.{guess} Known are {known}.")


def data_bytes_per_token(kv: KvFormat, elements: Count) -> Count:
    """Return the bytes of `elements` cached values, scales excluded."""
    return -(-elements * kv.bits // 8)


def scale_bytes_per_token(kv: KvFormat, elements: Count, head_dim: Count) -> Count:
    """Return the bytes of the scales and zero points of `elements` cached values in vectors of `head_dim`."""
    vectors = -(-elements // head_dim)
    groups_per_vector = -(-head_dim // kv.group_size) if kv.group_size else 1
    return -(-vectors * groups_per_vector * (kv.scale_bits + kv.zero_point_bits) // 8)


def bytes_per_token(kv: KvFormat, elements: Count, head_dim: Count) -> Count:
    """Return the bytes that one token adds to the cache: `elements` keys and values, and their scales."""
    return data_bytes_per_token(kv, elements) + scale_bytes_per_token(kv, elements, head_dim)
