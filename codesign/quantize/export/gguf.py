"""GGUF files: metadata from the configuration, tensors in the types of a result, one part in memory at a time.

Source: ggml-org/ggml, docs/gguf.md (keys), gguf 0.19 (constants.py, tensor_mapping.py, gguf_writer.py), and llama.cpp,
convert_hf_to_gguf.py: rows of q and k of Llama are reordered, because ggml rotates neighbouring values.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.quantize.export.contents import Contents
from codesign.quantize.export.gguf_keys import ARCHITECTURES, PERMUTED, rope_factors, write_keys
from codesign.quantize.export.gguf_tokenizer import write_tokenizer
from codesign.quantize.export.legality import named, rotation_problem
from codesign.quantize.gguf import GgufWeight
from codesign.quantize.result import LayerHead, QuantizedLayer

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_OWN = "GGML-"  # the names of our schemes for ggml's variants of other formats
_GUESSED = 1024  # LLAMA_FTYPE_GUESSED: the loader looks at the tensors
_FACTORS = "rope_freqs.weight"


def check_gguf(contents: Contents) -> None:
    """Refuse what a GGUF file cannot hold, naming the layers, the reason and what can be done."""
    kind = contents.source.config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(f"GGUF files of {kind} models are not written here; use {', '.join(ARCHITECTURES)} models.")
    problems: dict[str, list[str]] = {}
    for head in contents.quantized.values():
        why = rotation_problem(head)
        if head.scheme.family != "gguf":
            why = f"{head.scheme} is no type of GGUF files. Use a GGUF scheme, such as Q4_K or Q8_0, or another format."
        if why:
            problems.setdefault(why, []).append(head.name)
    for why, names in problems.items():
        raise InputError(f"gguf cannot hold {named(names)}: {why}")
    rope_factors(contents.source.config)


def write_gguf(contents: Contents, path: Path) -> list[str]:
    """Write the file and return warnings."""
    from gguf import GGUFWriter

    config = contents.source.config
    writer: Any = GGUFWriter(path, ARCHITECTURES[config.model_type])
    write_keys(writer, config, _file_type(contents))
    warnings = write_tokenizer(writer, contents.source)
    if ARCHITECTURES[config.model_type] in PERMUTED and any(name.endswith(".bias") for name in contents.shapes):
        warnings.append(
            "The file holds biases, which transformers leaves out when it reads Llama's; llama.cpp does not."
        )
    if contents.extra:
        warnings.append("The calibrated scales of the KV cache are left out: llama.cpp computes its own.")
    names = _gguf_names(contents)
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name in contents.ordered:
        _announce(writer, names[name], name, contents)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for values in _values(contents):
        writer.write_tensor_data(values)
    writer.close()
    return warnings


def _gguf_names(contents: Contents) -> dict[str, str]:
    """Return ggml's name by ours."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    wanted = ARCHITECTURES[contents.source.config.model_type]
    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == wanted)
    known: Any = get_tensor_name_map(arch, len(contents.source.model.blocks))
    names = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in contents.ordered}
    unknown = [name for name, found in names.items() if found is None]
    if unknown:
        raise InputError(f"{named(unknown)}: GGUF files of {wanted} models have no such tensors; use another format.")
    return names


def _type_name(head: LayerHead | None, shape: tuple[int, ...], contents: Contents) -> str:
    if head is not None and head.scheme.quantized:
        return head.scheme.name.removeprefix(_OWN)
    return "F32" if len(shape) == 1 else _FLOATS[contents.dtype_name]


def _announce(writer: Any, gguf_name: str, name: str, contents: Contents) -> None:
    """Add a row to the table of tensors."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    shape = contents.shapes[name]
    kind = GGMLQuantizationType[_type_name(contents.heads.get(name.removesuffix(".weight")), shape, contents)]
    values, byte_count = GGML_QUANT_SIZES[kind]
    stored = (*shape[:-1], shape[-1] // values * byte_count)
    writer.add_tensor_info(gguf_name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)


def _values(contents: Contents) -> Iterator[Any]:
    """Yield the bytes of the tensors in the order of the table."""
    import torch

    permuted = ARCHITECTURES[contents.source.config.model_type] in PERMUTED
    for name, piece in contents.pieces():
        if name in contents.extra:
            continue
        if isinstance(piece, QuantizedLayer) and isinstance(piece.weight, GgufWeight):
            rows = piece.weight.rows
        else:
            plain = piece.weight.dequantize() if isinstance(piece, QuantizedLayer) else piece
            dtype = torch.float32 if plain.ndim == 1 else contents.dtype
            rows = plain.to(dtype).contiguous().view(torch.uint8)
            rows = rows.reshape(len(plain), -1) if plain.ndim == 1 else rows
        yield (_permuted(rows, name, contents) if permuted else rows).contiguous().numpy()


def _permuted(rows: "Tensor", name: str, contents: Contents) -> "Tensor":
    """Return rows of q and k with the halves of each head interleaved."""
    config = contents.source.config
    heads = next(
        (count for part, count in ((".q_proj", config.num_attention_heads), (".k_proj", config.num_key_value_heads))
         if part in name),
        None,
    )  # fmt: skip
    if heads is None:
        return rows
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _file_type(contents: Contents) -> int:
    """Return the number of llama.cpp's mix that the commonest type stands for."""
    from gguf import LlamaFileType

    commonest = Counter(head.scheme.name for head in contents.quantized.values()).most_common(1)
    name = commonest[0][0] if commonest else _FLOATS[contents.dtype_name]
    found = next(
        (kind for ending in ("", "_M") for kind in LlamaFileType if kind.name == f"MOSTLY_{name}{ending}"), None
    )
    return _GUESSED if found is None else int(found)
