"""Checkpoints of GPTQ, version 1 and 2, with overrides for layers that differ from the commonest scheme.

Source: GPTQModel 7.7, quantization/config.py: keys of `dynamic` are regular expressions matched from the start, `+:`
overrides and `-:` leaves a module in 16 bits. vLLM matches them against its merged modules (qkv_proj, gate_up_proj).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from codesign.quantize.export.contents import Contents
from codesign.quantize.export.format import Format, Tensors, by_scheme, ragged_problem
from codesign.quantize.pack_gptq import GPTQ_BITS, to_gptq
from codesign.quantize.result import LayerHead, QuantizedLayer
from codesign.quantize.round import QuantizedWeight
from codesign.schemes.scheme import PerGroup, Scheme

_WORD_BITS = 32
_MERGED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
}  # fmt: skip


def integer_problem(head: LayerHead, bits: tuple[int, ...], name: str) -> str | None:
    """Return why a format of weight-only integers cannot hold a layer."""
    scheme, weights = head.scheme, head.scheme.weights
    widths = " or ".join(str(width) for width in bits)
    if scheme.family not in [f"w{width}a16" for width in bits]:
        return f"{name} stores integers of {widths} bits with 16-bit activations, not {scheme}. Use W4A16-g64."
    if weights.zero_point_bits > weights.bits:
        return f"{name} stores integer zero points, {scheme} has floats. Use W4A16-g64-asym."
    return ragged_problem(head)


def _problem(head: LayerHead) -> str | None:
    why = integer_problem(head, GPTQ_BITS, "GPTQ")
    if why:
        return why
    bits = int(head.scheme.weights.bits)
    for size, what in zip(head.shape, ("outputs", "inputs"), strict=True):
        if size * bits % _WORD_BITS:
            return f"its {size} {what} of {bits} bits do not fill 32-bit words. Leave it in 16 bits."
    return None


def _config(contents: Contents, version: int) -> dict[str, Any]:
    groups = by_scheme(contents)
    first, *others = [members[0].scheme for members in groups.values()]
    dynamic: dict[str, Any] = {
        f"+:{_pattern(head.name for head in groups[scheme.name])}": _arguments(scheme) for scheme in others
    }
    head_name = contents.source.model.head.name
    kept = [name for name in contents.kept if name != head_name]
    if kept:
        dynamic[f"-:{_pattern(kept)}"] = {}
    reordered = any(head.reordered for head in contents.quantized.values())
    return {
        "quant_method": "gptq",
        **_arguments(first),
        "desc_act": reordered,
        "static_groups": False,
        "true_sequential": True,
        "lm_head": head_name in contents.quantized,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _arguments(scheme: Scheme) -> dict[str, Any]:
    granularity = scheme.weights.granularity
    size = granularity.size if isinstance(granularity, PerGroup) else -1
    return {"bits": int(scheme.weights.bits), "group_size": size, "sym": scheme.weights.symmetric}


def _pattern(names: Iterable[str]) -> str:
    """Return one expression for modules, and for what they are merged into."""
    known = dict.fromkeys(name for given in names for name in (given, _merged(given)) if name)
    return f"^({'|'.join(re.escape(name) for name in known)})$"


def _merged(name: str) -> str:
    path, _, last = name.rpartition(".")
    return f"{path}.{_MERGED[last]}" if last in _MERGED else ""


def _format(version: int) -> Format:
    def pack(layer: QuantizedLayer, contents: Contents) -> Tensors:
        assert isinstance(layer.weight, QuantizedWeight)
        return to_gptq(layer.weight, version=version)

    def config(contents: Contents) -> dict[str, Any]:
        return _config(contents, version)

    def files(contents: Contents) -> Mapping[str, Any]:
        return {"quantize_config.json": _config(contents, version)}

    return Format("gptq" if version == 1 else "gptq_v2", _problem, pack, config, files=files)


GPTQ, GPTQ_V2 = _format(1), _format(2)
