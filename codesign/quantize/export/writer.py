"""Write a finished result in a format that other programs read; whole or not at all."""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError, did_you_mean
from codesign.files import to_json
from codesign.model.weight_files import GGUF_SUFFIX
from codesign.quantize.export.awq import AWQ
from codesign.quantize.export.bitsandbytes import BITSANDBYTES
from codesign.quantize.export.compressed_tensors import COMPRESSED_TENSORS
from codesign.quantize.export.contents import Contents, read_contents
from codesign.quantize.export.format import Format
from codesign.quantize.export.gguf import check_gguf, write_gguf
from codesign.quantize.export.gptq import GPTQ, GPTQ_V2
from codesign.quantize.export.legality import check_legal, scale_warnings
from codesign.quantize.export.place import check_place, check_space, staged
from codesign.quantize.export.shards import SHARD_BYTES_MAX, ShardWriter
from codesign.quantize.export.torchao import TORCHAO
from codesign.quantize.gguf_source import GgufSource
from codesign.quantize.quantized_source import QuantizedSource
from codesign.quantize.result import QuantizedLayer, ResultFolder
from codesign.quantize.round import check_finite
from codesign.quantize.source import FolderSource, WeightSource, transformers

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_FORMATS: Mapping[str, Format] = {
    one.name: one for one in (COMPRESSED_TENSORS, GPTQ, GPTQ_V2, AWQ, TORCHAO, BITSANDBYTES)
}
GGUF = "gguf"
FORMATS = (*FOLDER_FORMATS, GGUF)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: the bytes of all files, the layers by scheme, and what a user should know."""

    format: str
    path: Path
    file_bytes: int
    layers_by_scheme: Mapping[str, int]
    warnings: tuple[str, ...]


def export(results: ResultFolder, source: WeightSource, format: str, out: Path, *, force: bool = False) -> ExportReport:
    """Write a result into the folder `out`, for GGUF also a file of that ending; existing ones only with `force`."""
    if format not in FORMATS:
        raise InputError(
            f'"{format[:40]}" is not a format; use {", ".join(FORMATS)}.{did_you_mean(format[:40], FORMATS)}'
        )
    place = check_place(out, force, (results.path, *_read_from(source)))
    contents = read_contents(results, source)
    if format == GGUF:
        check_gguf(contents)
    else:
        check_legal(contents, FOLDER_FORMATS[format])
    check_space(place, contents.bytes_expected)
    warnings = list(scale_warnings(contents))
    single = format == GGUF and place.suffix == GGUF_SUFFIX
    with staged(place, single=single) as folder:
        if format == GGUF:
            warnings += write_gguf(contents, folder / (place.name if single else "model.gguf"))
        else:
            warnings += _write_folder(contents, FOLDER_FORMATS[format], folder)
        file_bytes = sum(file.stat().st_size for file in folder.iterdir())
    schemes = Counter(head.scheme.name for head in contents.quantized.values())
    kept = Counter({"16 bits": len(contents.kept)}) if contents.kept else Counter[str]()
    return ExportReport(format, place, file_bytes, dict(schemes + kept), tuple(warnings))


def _read_from(source: WeightSource) -> tuple[Path, ...]:
    """Return the folder or the file that weights are read from."""
    if isinstance(source, GgufSource):
        return (source.path,)
    return (source.folder,) if isinstance(source, FolderSource | QuantizedSource) else ()


def _write_folder(
    contents: Contents, format_: Format, folder: Path, shard_bytes_max: int = SHARD_BYTES_MAX
) -> list[str]:
    """Write weights, config and tokenizer; return warnings."""
    shards = ShardWriter(folder, format_.metadata(contents), shard_bytes_max)
    for name, piece in contents.pieces():
        if isinstance(piece, QuantizedLayer) and piece.scheme.quantized:
            for end, tensor in format_.pack(piece, contents).items():
                shards.add(f"{name}.{end}", tensor)
        elif isinstance(piece, QuantizedLayer):
            shards.add(name + ".weight", _plain(name, piece.weight.dequantize(), contents))
        else:
            shards.add(name, _plain(name, piece, contents))
    shards.close()
    _write_config(contents, format_, folder)
    return _write_companions(contents.source, folder)


def _plain(name: str, tensor: "Tensor", contents: Contents) -> "Tensor":
    """Return a parameter as it is if it has 16 bits, else in the type of the model."""
    if name in contents.extra or tensor.element_size() <= 2:
        return tensor
    converted = tensor.to(contents.dtype)
    check_finite(converted.reshape(len(converted), -1) if converted.ndim else converted.reshape(1, 1), name)
    return converted


def _write_config(contents: Contents, format_: Format, folder: Path) -> None:
    config = deepcopy(contents.source.config)
    config.architectures = [contents.architecture]
    config.dtype = contents.dtype_name
    if contents.unties:
        config.tie_word_embeddings = False
    config.quantization_config = format_.config(contents)
    (folder / "config.json").write_text(config.to_json_string(use_diff=True), encoding="utf-8")
    for name, value in format_.files(contents).items():
        (folder / name).write_text(to_json(value), encoding="utf-8")


def _write_companions(source: WeightSource, folder: Path) -> list[str]:
    """Write the tokenizer and the settings of generation; return what is missing."""
    missing = []
    try:
        source.tokenizer().save_pretrained(folder)
    except InputError as error:
        missing.append(f"No tokenizer is written: {error}")
    for settings in _generation(source):
        settings.save_pretrained(folder)
    return missing


def _generation(source: WeightSource) -> tuple[Any, ...]:
    """Return the settings in the folder of the source, if it has such."""
    where = [folder for folder in _read_from(source) if (folder / "generation_config.json").is_file()]
    return tuple(transformers().GenerationConfig.from_pretrained(folder, local_files_only=True) for folder in where)
