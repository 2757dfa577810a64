"""The named schemes and the parser of scheme names."""

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from codesign.errors import InputError, did_you_mean
from codesign.schemes.gguf import gguf_schemes
from codesign.schemes.scheme import (
    ActivationFormat,
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Scheme,
    WeightFormat,
)

_A16 = ActivationFormat("fp16 or bf16", 16)
_IN_16_BITS = ("bf16", "fp16")
_GROUP_SIZES = tuple(2**power for power in range(4, 11))
_NAME_CHARACTERS_MAX = 64

_INTEGER = re.compile(r"w([1-8])a(16|8|4)(?:-g([1-9][0-9]{0,4}))?(-asym(?:16)?)?(-static|-tensor)?")
_FILE_MIX = re.compile(r"(q[2-6]-k|iq[1-4])-(xs|s|m|l|xl)")


def _float(name: str, number: str, bits: int, fallback: tuple[str, ...], text: str) -> Scheme:
    return Scheme(
        name, WeightFormat(number, bits), ActivationFormat(number, bits), (name.lower(),), fallback, "float", text
    )


def _fp8(name: str, weights: Granularity, activations: ActivationFormat, text: str) -> Scheme:
    # vLLM and DeepSeek checkpoints keep FP8 scales as 32-bit floats, whatever the granularity.
    format_ = WeightFormat("e4m3", 8, weights, 32)
    return Scheme(name, format_, activations, ("fp8",), _IN_16_BITS, "fp8", f"FP8 (E4M3) {text}")


def _microscaling(bits: int, number: str) -> Scheme:
    """Return an MX format: blocks of 32 with an 8-bit power of two. Source: OCP Microscaling Formats v1.0."""
    name = f"MXFP{bits}"
    return Scheme(
        name, WeightFormat(number, bits, PerGroup(32), 8), ActivationFormat(number, bits, PerGroup(32), 8),
        (f"fp{bits}",), _IN_16_BITS, name.lower(), f"{bits}-bit float, power-of-two scale per 32, activations alike",
    )  # fmt: skip


def _weight_only_float(name: str, weights: WeightFormat, family: str, text: str) -> Scheme:
    return Scheme(name, weights, _A16, _IN_16_BITS, ("fp32",), family, f"{text}, 16-bit activations")


def _nvfp4_schemes() -> tuple[Scheme, ...]:
    """Return NVFP4, 16 values per E4M3 scale and one fp32 scale per tensor, with and without its activations."""
    weights = WeightFormat("e2m1", 4, PerGroup(16), 8, tensor_scale_bits=32)
    activations = ActivationFormat("e2m1", 4, PerGroup(16), 8)
    text = "4-bit float, E4M3 scale per 16 and fp32 per tensor"
    return (
        Scheme("NVFP4", weights, activations, ("fp4",), _IN_16_BITS, "nvfp4", f"{text}, activations alike"),
        _weight_only_float("NVFP4-A16", weights, "fp4-a16", text),
    )


def _bitsandbytes_schemes() -> tuple[Scheme, ...]:
    """Return the 4-bit floats of bitsandbytes: groups of 64, and 256 of their scales quantized under one fp32, or not.

    Source: QLoRA, section 3; bitsandbytes, functional.py (quantize_4bit: blocksize 64, compress_statistics).
    """
    kinds = (("NF4", "nf4", "4-bit normal float"), ("BNB-FP4", "e2m1", "4-bit float of bitsandbytes"))
    found = []
    for name, number, text in kinds:
        once = WeightFormat(number, 4, PerGroup(64), 32, flattened=True)
        twice = replace(once, scale_bits=8, super_group_size=64 * 256, super_scale_bits=32)
        found += [
            _weight_only_float(name, twice, "nf4", f"{text} per 64, double-quantized scales (QLoRA)"),
            _weight_only_float(f"{name}-single", once, "nf4", f"{text} per 64, 32-bit scales"),
        ]
    return tuple(found)


def _int4_in_fp8() -> tuple[Scheme, ...]:
    """Return 4-bit integers that multiply with FP8 activations, whose scales are computed or fixed beforehand."""
    weights = WeightFormat("int4", 4, PerGroup(128), 16, word_bits=32)
    token = ActivationFormat("e4m3", 8, PerToken(), 32)
    static = ActivationFormat("e4m3", 8, PerTensor(), 32, dynamic=False)
    return tuple(
        Scheme(name, weights, activations, ("fp8",), (), "w4afp8", f"4-bit integers per 128, FP8 activations {how}")
        for name, activations, how in (("W4AFP8-g128", token, "per token"),
                                       ("W4AFP8-g128-static", static, "static per tensor"))
    )  # fmt: skip


def _fixed_schemes() -> tuple[Scheme, ...]:
    """Return every scheme whose name is not of the form W4A16-g128."""
    per_tensor = ActivationFormat("e4m3", 8, PerTensor(), 32, dynamic=False)
    per_token = ActivationFormat("e4m3", 8, PerToken(), 32)
    per_128 = ActivationFormat("e4m3", 8, PerGroup(128), 32)
    return (
        _float("FP32", "fp32", 32, (), "32-bit float"),
        _float("BF16", "bf16", 16, ("fp16", "fp32"), "16-bit brain float, the usual baseline"),
        _float("FP16", "fp16", 16, ("bf16", "fp32"), "16-bit float"),
        _fp8("FP8", PerTensor(), per_tensor, "per tensor, static activations"),
        _fp8("FP8-dynamic", PerTensor(), replace(per_tensor, dynamic=True), "per tensor, activations too, at run time"),
        _fp8("FP8-channel", PerChannel(), per_token, "per channel, activations per token"),
        _fp8("FP8-block", PerBlock(128, 128), per_128, "in 128x128 blocks, activations per 128"),
        _weight_only_float("FP8-A16", WeightFormat("e4m3", 8, PerChannel(), 32), "fp8-a16", "FP8 (E4M3) per channel"),
        *_bitsandbytes_schemes(),
        *_int4_in_fp8(),
        _microscaling(8, "e4m3"),
        _microscaling(6, "e3m2"),
        _microscaling(4, "e2m1"),
        _weight_only_float(
            "MXFP4-A16", WeightFormat("e2m1", 4, PerGroup(32), 8), "fp4-a16", "4-bit float, power-of-two scale per 32"
        ),
        *_nvfp4_schemes(),
        *gguf_schemes(),
    )


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", "-")


_FIXED = {_plain(scheme.name): scheme for scheme in _fixed_schemes()}

_ALIASES = {
    "bfloat16": "BF16",
    "float16": "FP16",
    "half": "FP16",
    "float32": "FP32",
    "int8-wo": "W8A16",
    "int4-wo": "W4A16-g128",
    "sq": "W8A8",
    "w4a16-mxfp4": "MXFP4-A16",
    "w4afp8": "W4AFP8-g128",
}

_CATALOG_NAMES = (
    "FP32", "BF16", "FP16",
    "W8A16", "W8A16-g32", "W8A16-g64", "W8A16-g128",
    "W4A16", "W4A16-g32", "W4A16-g64", "W4A16-g128", "W4A16-g128-asym", "W4A16-g64-asym16",
    "W3A16", "W3A16-g64", "W3A16-g128", "W2A16", "W2A16-g64", "W2A16-g128", "W1A16-g128",
    "W8A8", "W8A8-static", "W8A8-tensor", "W4A8", "W4A8-g128", "W4A4", "W4A4-g128",
    "FP8", "FP8-dynamic", "FP8-channel", "FP8-block", "FP8-A16",
    "W4AFP8-g128", "W4AFP8-g128-static",
    "NF4", "NF4-single", "BNB-FP4", "BNB-FP4-single", "MXFP8", "MXFP6", "MXFP4", "MXFP4-A16", "NVFP4", "NVFP4-A16",
    *(scheme.name for scheme in gguf_schemes()),
)  # fmt: skip


# By the ending of the name: bits (None: as many as the weights have), and what a description says.
_ZERO_POINTS: Mapping[str, tuple[int | None, str]] = {
    "": (0, ""),
    "-asym": (None, " with zero points"),
    "-asym16": (16, " with 16-bit zero points"),
}


def _integer_activations(bits: int, suffix: str) -> ActivationFormat:
    if bits == 16:
        return _A16
    if suffix:
        return ActivationFormat(f"int{bits}", bits, PerTensor(), 32, dynamic=False)
    return ActivationFormat(f"int{bits}", bits, PerToken(), 32)


def _integer_weights(bits: int, packed: bool, group: int | None, zero_point_bits: int, suffix: str) -> WeightFormat:
    """Return packed integers with 16-bit scales, or plain int8 with the 32-bit scales of W8A8 checkpoints."""
    granularity: Granularity = PerGroup(group) if group else PerChannel()
    if suffix == "-tensor":
        granularity = PerTensor()
    scale_bits, word_bits = (16, 32) if packed else (32, 8)
    return WeightFormat(f"int{bits}", bits, granularity, scale_bits, zero_point_bits, word_bits=word_bits)


def _integer_text(bits: int, activation_bits: int, group: int | None, asymmetric: str, suffix: str) -> str:
    scale = f"per {group}" if group else "per tensor" if suffix == "-tensor" else "per channel"
    zero = _ZERO_POINTS[asymmetric][1]
    static = "static per tensor" if suffix else "per token"
    activations = "16-bit activations" if activation_bits == 16 else f"int{activation_bits} activations {static}"
    return f"{bits}-bit integers {scale}{zero}, {activations}"


def _integer_problem(match: re.Match[str]) -> str | None:
    """Return why a well-formed integer scheme does not exist, or None."""
    bits, activation_bits = int(match[1]), int(match[2])
    if activation_bits < bits:
        return (
            f"{bits}-bit weights do not multiply with {activation_bits}-bit activations; use W{activation_bits} or less"
        )
    if match[3] and int(match[3]) not in _GROUP_SIZES:
        return f"group size {match[3]} is not a power of two between {_GROUP_SIZES[0]} and {_GROUP_SIZES[-1]}"
    if match[5] and (bits, activation_bits) != (8, 8):
        return f'the ending "{match[5]}" belongs to W8A8 only'
    if match[5] and (match[3] or match[4]):
        return f'the ending "{match[5]}" does not combine with groups or zero points'
    return None


def _integer_scheme(match: re.Match[str]) -> Scheme:
    bits, activation_bits = int(match[1]), int(match[2])
    group, asymmetric, suffix = int(match[3]) if match[3] else None, match[4] or "", match[5] or ""
    name = f"W{bits}A{activation_bits}" + (f"-g{group}" if group else "") + asymmetric + suffix
    packed, zero_bits = (bits, activation_bits) != (8, 8), _ZERO_POINTS[asymmetric][0]
    math_dtypes = _IN_16_BITS if activation_bits == 16 else (f"int{activation_bits}",)
    return Scheme(
        name,
        _integer_weights(bits, packed, group, bits if zero_bits is None else zero_bits, suffix),
        _integer_activations(activation_bits, suffix),
        math_dtypes,
        ("fp32",) if activation_bits == 16 else (),
        f"w{bits}a{activation_bits}",
        _integer_text(bits, activation_bits, group, asymmetric, suffix),
    )


@functools.lru_cache(maxsize=1024)
def parse_scheme(text: str) -> Scheme:
    """Return the scheme of that name or alias; upper and lower case, "-" and "_" are the same."""
    word = _plain(text)
    word = _plain(_ALIASES.get(word, word))
    if word in _FIXED:
        return _FIXED[word]
    match = _INTEGER.fullmatch(word)
    if match is None:
        raise InputError(_unknown(text, word))
    problem = _integer_problem(match)
    if problem:
        raise InputError(f'"{text}" is not a scheme: {problem}. See `codesign scheme list`.')
    return _integer_scheme(match)


def _unknown(text: str, word: str) -> str:
    if len(text) > _NAME_CHARACTERS_MAX:
        return f"A scheme name of {len(text)} characters is too long to be one. See `codesign scheme list`."
    mix = _FILE_MIX.fullmatch(word)
    if mix:
        type_name = f"{mix[1].upper().replace('-', '_')}" if mix[1].startswith("q") else f"{mix[1].upper()}_S"
        return f'"{text}" is a mix of types in one file, not the type of a layer. Name the type, such as "{type_name}".'
    guess = did_you_mean(word, (*SCHEMES, *_ALIASES))
    return f"Unknown scheme {text!r}.{guess} See `codesign scheme list`."


SCHEMES: Mapping[str, Scheme] = MappingProxyType({name: parse_scheme(name) for name in _CATALOG_NAMES})
