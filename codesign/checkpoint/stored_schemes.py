"""In what scheme a module is stored: its tensors decide, the config adds how activations are quantized.

Layouts: vllm-project/compressed-tensors (compressors), ModelCloud/GPTQModel (nn_modules/qlinear), AutoAWQ,
bitsandbytes (Params4bit), NVIDIA ModelOpt (torch/export/quant_utils.py), gpt-oss and HQQ. Where tensors and config
leave a doubt, or the catalog has no such scheme, the answer is words, never a guess.
"""

from collections.abc import Callable, Mapping

from codesign.checkpoint.announced import Activations, Announced
from codesign.checkpoint.stored import StoredScheme
from codesign.checkpoint.tensor_names import Module
from codesign.errors import InputError
from codesign.model.stored_tensor import StoredTensor
from codesign.schemes.catalog import parse_scheme

Shape = tuple[int, int]

_PLAIN = {"BF16": "BF16", "F16": "FP16", "F32": "FP32"}
_GGML_FLOATS = {"F32": "FP32", "F16": "FP16"}
_GGML_OWN = ("MXFP4", "NVFP4")  # ggml multiplies them with 8-bit activations; its NVFP4 has other blocks too
_BLOCK_OF_BITSANDBYTES = 64
_OUTLIERS = (
    " Its kernels multiply columns of outliers apart in 16 bits; how many there are, the text decides, and no table of "
    "times that we know covers them. W8A8 is a lower bound."
)
_SIXTEEN_BITS = {"F16", "BF16"}
_WORD_BITS = 32


def stored_scheme(module: Module, shape: Shape | None, announced: Announced | None) -> StoredScheme:
    """Return the scheme of a module of shape (n, k), None where the shape is not known."""
    parts = module.parts
    for wanted, read in _LAYOUTS:
        if wanted <= parts.keys():
            return read(parts, shape, announced or Announced())
    weight = parts.get("weight") or parts.get("")
    if weight is None:
        return StoredScheme(f"unknown layout ({', '.join(sorted(parts))[:80]})")
    return _plain(parts, weight, shape, announced or Announced())


def gguf_scheme(dtype: str) -> StoredScheme:
    """Return the scheme of a ggml type; block formats that are no scheme here keep their own name."""
    if dtype in _GGML_OWN:
        return named(f"GGML-{dtype}")
    stored = named(_GGML_FLOATS.get(dtype, dtype))
    return stored if stored.scheme else StoredScheme(f"ggml {dtype}")


def named(name: str) -> StoredScheme:
    """Return the scheme of the catalog, or the name as words where there is none."""
    try:
        scheme = parse_scheme(name)
    except InputError:
        return StoredScheme(name)
    return StoredScheme(scheme.name, scheme)


def _plain(
    parts: Mapping[str, StoredTensor], weight: StoredTensor, shape: Shape | None, announced: Announced
) -> StoredScheme:
    scale = next((parts[key] for key in ("weight_scale", "weight_scale_inv", "scale", "SCB") if key in parts), None)
    if weight.dtype in _PLAIN:
        return named(_PLAIN[weight.dtype])
    if weight.dtype == "F8_E4M3" and scale is not None:
        return _fp8(parts, weight, scale, announced)
    if weight.dtype == "I8" and scale is not None:
        return _int8(parts, weight, scale, announced)
    if weight.dtype == "U8" and scale is not None:
        return _packed_bytes(parts, weight, scale, shape, announced)
    return StoredScheme(f"{weight.dtype} without scales")


def _fp8(
    parts: Mapping[str, StoredTensor], weight: StoredTensor, scale: StoredTensor, announced: Announced
) -> StoredScheme:
    """Return FP8 by the shape of its scales: one, one per row, or one per block."""
    how = _scale_layout(weight, scale)
    acts = _static_where_stored(parts, announced.activations)
    exact = {
        ("tensor", "fp8 static tensor"): "FP8",
        ("tensor", "fp8 tensor"): "FP8-dynamic",
        ("channel", "fp8 token"): "FP8-channel",
        ("128x128 block", "fp8 group"): "FP8-block",
    }
    name = exact.get((how, _kind(acts)))
    if name:
        return named(name)
    if how == "group of 32" and scale.dtype in ("U8", "F8_E8M0"):
        return named("MXFP8") if acts else StoredScheme("MXFP8 weights, 16-bit activations")
    return StoredScheme(f"FP8 per {how}, {_words(acts)}")


def _int8(
    parts: Mapping[str, StoredTensor], weight: StoredTensor, scale: StoredTensor, announced: Announced
) -> StoredScheme:
    if "SCB" in parts:
        return StoredScheme("LLM.int8 (int8 per channel, outliers in 16 bits)", reason=_OUTLIERS)
    how = _scale_layout(weight, scale)
    group = int(how.rpartition(" ")[2]) if how.startswith("group") else None
    return _integers(8, how if group is None else None, group, "weight_zero_point" in parts, announced.activations)


def _integers(
    bits: int, whole: str | None, group: int | None, asymmetric: bool, acts: Activations | None
) -> StoredScheme:
    """Return integer weights with a scale per group, or per `whole` (channel or tensor)."""
    suffix = {"int8 static tensor": "-static"}.get(_kind(acts), "")
    in_fp8 = {"fp8 token": "W4AFP8-g128", "fp8 static tensor": "W4AFP8-g128-static"}.get(_kind(acts))
    if in_fp8 and (bits, group, asymmetric) == (4, 128, False):
        return named(in_fp8)
    understood = acts is None or (acts.number == "int" and (acts.strategy == "token" or suffix))
    if whole == "tensor":
        understood, suffix = suffix == "-static", "-tensor"
    name = f"W{bits}A{acts.bits if acts else 16}" + (f"-g{group}" if group else "")
    answer = named(name + ("-asym" if asymmetric else "") + suffix) if understood and whole != "block" else None
    if answer is not None and answer.scheme is not None:
        return answer
    per = f"group of {group}" if group else whole or "channel"
    zero = " with zero points" if asymmetric else ""
    return StoredScheme(f"int{bits} per {per}{zero}, {_words(acts)}")


def _gptq_or_awq(parts: Mapping[str, StoredTensor], shape: Shape | None, announced: Announced) -> StoredScheme:
    """Return GPTQ (packed along k) or AWQ (packed along n); which of the two, the shape tells."""
    packed, scales = parts["qweight"].shape, parts["scales"].shape
    if shape is None or len(packed) != 2 or len(scales) != 2:
        return StoredScheme("packed integers of unknown shape")
    n, k = shape
    along_k = packed[1] == n
    if not along_k and packed[0] != k:
        return StoredScheme("packed integers of another shape than the layer")
    bits = _bits(packed[0], k) if along_k else _bits(packed[1], n)
    if bits is None or not scales[0]:
        return StoredScheme("packed integers of unknown width")
    group = _group_size(k, scales[0], announced)
    return _integers(bits, None, group, announced.symmetric is False, announced.activations)


def _compressed(parts: Mapping[str, StoredTensor], shape: Shape | None, announced: Announced) -> StoredScheme:
    """Return pack-quantized integers or packed 4-bit floats of compressed-tensors."""
    packed, scale = parts["weight_packed"], parts.get("weight_scale")
    if scale is None or not scale.shape or len(packed.shape) != 2:
        return StoredScheme(f"packed {packed.dtype} without scales")
    if packed.dtype == "U8":
        return _four_bit_floats("weight_global_scale" in parts, 2 * packed.shape[1], scale, announced)
    if shape is None or packed.shape[0] != shape[0]:
        return StoredScheme("packed integers of another shape than the layer")
    bits = _bits(packed.shape[1], shape[1])
    groups = scale.shape[-1] if len(scale.shape) == 2 else 1
    if bits is None or not groups:
        return StoredScheme("packed integers of unknown width")
    group = _group_size(shape[1], groups, announced)
    return _integers(bits, None, group, "weight_zero_point" in parts, announced.activations)


def _packed_bytes(
    parts: Mapping[str, StoredTensor],
    weight: StoredTensor,
    scale: StoredTensor,
    shape: Shape | None,
    announced: Announced,
) -> StoredScheme:
    """Return what ModelOpt packs into bytes: two 4-bit floats along k, or two 4-bit integers along n."""
    if len(weight.shape) != 2 or shape is None or len(scale.shape) > 2:
        return StoredScheme("bytes of unknown layout")
    n, k = shape
    if weight.shape == (n, k // 2) and len(scale.shape) == 2:
        return _four_bit_floats("weight_scale_2" in parts, k, scale, announced)
    if weight.shape == (n // 2, k) and scale.shape:
        groups = scale.shape[-1] if len(scale.shape) == 2 else 1
        group = _group_size(k, groups, announced)
        return _integers(4, None, group, False, announced.activations)
    return StoredScheme("bytes of unknown layout")


def _four_bit_floats(global_scale: bool, k: int, scale: StoredTensor, announced: Announced) -> StoredScheme:
    size = k // scale.shape[-1] if scale.shape[-1] else 0
    acts = announced.activations
    if global_scale and size == 16 and scale.dtype == "F8_E4M3":
        four = acts is not None and acts.number == "float" and acts.bits == 4
        if acts is None or four:
            return named("NVFP4" if four else "NVFP4-A16")
        return StoredScheme(f"NVFP4 weights, {_words(acts)}")
    if not global_scale and size == 32 and scale.dtype in ("U8", "F8_E8M0"):
        four = acts is not None and acts.number == "float" and acts.bits == 4
        if acts is None or four:
            return named("MXFP4" if four else "MXFP4-A16")
        return StoredScheme(f"MXFP4 weights, {_words(acts)}")
    return StoredScheme(f"4-bit floats per group of {size}, {_words(acts)}")


def _bitsandbytes(parts: Mapping[str, StoredTensor], shape: Shape | None, announced: Announced) -> StoredScheme:
    """Return NF4 or FP4 with blocks of 64 or more, and whether their scales are quantized too."""
    state = next((part for part in parts if part.startswith("weight.quant_state.")), "")
    number = "FP4" if state.endswith("fp4") else "NF4" if state.endswith("nf4") else "4-bit"
    double = "weight.nested_absmax" in parts
    scales = parts["weight.absmax"].shape
    size = -(-shape[0] * shape[1] // scales[0]) if shape and scales and scales[0] else 0
    name = {"NF4": "NF4", "FP4": "BNB-FP4"}.get(number)
    if name and size == _BLOCK_OF_BITSANDBYTES:
        return named(name if double else f"{name}-single")
    return StoredScheme(f"{number} per {size}, {'double-quantized' if double else '32-bit'} scales, 16-bit activations")


def _hqq(parts: Mapping[str, StoredTensor], shape: Shape | None, announced: Announced) -> StoredScheme:
    """Return HQQ: integers with 16-bit scales and zero points, unless these are quantized once more."""
    bits = announced.bits if shape is None else 8 * parts["W_q"].byte_count // (shape[0] * shape[1])
    scale, zero = parts.get("scale"), parts.get("zero")
    if bits and announced.group_size and scale and zero and {scale.dtype, zero.dtype} <= _SIXTEEN_BITS:
        found = named(f"W{bits}A16-g{announced.group_size}-asym16")
        if found.scheme is not None:
            return found
    return StoredScheme(f"HQQ int{bits or '?'} per {announced.group_size or 'channel'}, 16-bit activations")


def _gpt_oss(parts: Mapping[str, StoredTensor], shape: Shape | None, announced: Announced) -> StoredScheme:
    """Return the experts of gpt-oss: blocks [experts, n, k / 32, 16 bytes] with scales [experts, n, k / 32]."""
    blocks, scales = parts["blocks"], parts["scales"]
    if blocks.shape[-1:] == (16,) and scales.shape == blocks.shape[:-1]:
        return named("MXFP4-A16")
    return StoredScheme("blocks of unknown layout")


def _torchao(parts: Mapping[str, StoredTensor], shape: Shape | None, announced: Announced) -> StoredScheme:
    """Return the scheme of plain int8 and FP8 tensors, and of int4 whose zero points have 16 bits, by their scales.

    Source: pytorch/ao, quantization/quantize_/workflows: scales are [k / group, n], or with zero points [.., n, 2].
    """
    weight, scale = parts["weight_qdata"], parts.get("weight_scale")
    pairs = parts.get("weight_scale_and_zero") or parts.get("weight_zero_point")
    if announced.bits == 4 and shape is not None and pairs and pairs.shape and pairs.dtype in _SIXTEEN_BITS:
        group = _group_size(shape[1], pairs.shape[0], announced)
        return named(f"W4A16-g{group}-asym16") if group else StoredScheme(f"torchao {weight.dtype}")
    if announced.bits == 8 and scale is not None:
        plain = {name: tensor for name, tensor in parts.items() if name != "weight_zero_point"}
        if weight.dtype == "I8":
            return _int8(plain, weight, scale, announced)
        if weight.dtype == "F8_E4M3":
            return _fp8(plain, weight, scale, announced)
    return StoredScheme(f"torchao {weight.dtype}")


_Reader = Callable[[Mapping[str, StoredTensor], Shape | None, Announced], StoredScheme]
_LAYOUTS: tuple[tuple[set[str], _Reader], ...] = (
    ({"qweight", "scales"}, _gptq_or_awq),
    ({"weight_packed"}, _compressed),
    ({"weight", "weight.absmax"}, _bitsandbytes),
    ({"W_q"}, _hqq),
    ({"blocks", "scales"}, _gpt_oss),
    ({"weight_qdata"}, _torchao),
)


def _group_size(k: int, groups: int, announced: Announced) -> int | None:
    """Return how many values along k share a scale, None for whole rows; a last group may be ragged."""
    size = announced.group_size
    if size and -(-k // size) == groups:
        return size
    return -(-k // groups) if groups > 1 else None


def _bits(words: int, values: int) -> int | None:
    """Return how many bits fill `words` 32-bit words with `values` values."""
    found = [bits for bits in range(1, 9) if -(-values * bits // _WORD_BITS) == words]
    return found[0] if len(found) == 1 else None


def _scale_layout(weight: StoredTensor, scale: StoredTensor) -> str:
    """Return what one scale serves: the tensor, a channel, a group along k, or a block."""
    count = 1
    for size in scale.shape:
        count *= size
    if count == 1:
        return "tensor"
    if len(weight.shape) < 2:
        return "block"
    n, k = weight.shape[-2:]
    shape = scale.shape[-2:]
    if shape in ((n,), (n, 1)):
        return "channel"
    if len(shape) == 2 and shape[0] == n and shape[1] and k % shape[1] == 0:
        return f"group of {k // shape[1]}"
    if len(shape) == 2 and shape == (-(-n // 128), -(-k // 128)):
        return "128x128 block"
    return "block"


def _static_where_stored(parts: Mapping[str, StoredTensor], acts: Activations | None) -> Activations | None:
    """Return the activations as announced; a stored scale of activations makes them static where nothing is said."""
    if acts is None and parts.keys() & {"input_scale", "activation_scale"}:
        return Activations("float", 8, False, "tensor")
    return acts


def _kind(acts: Activations | None) -> str:
    if acts is None:
        return ""
    number = "fp" if acts.number == "float" else "int"
    return f"{number}{acts.bits} {'' if acts.dynamic else 'static '}{acts.strategy}"


def _words(acts: Activations | None) -> str:
    return "16-bit activations" if acts is None else str(acts)
