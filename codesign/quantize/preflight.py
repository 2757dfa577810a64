"""What can be known before anything is quantized: whether the format holds the result, and whether the disk does."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from codesign.errors import InputError, did_you_mean
from codesign.model.layers import Layer, Model
from codesign.quantize.export.contents import planned_contents
from codesign.quantize.export.legality import check_legal
from codesign.quantize.export.place import check_space
from codesign.quantize.export.writer import FOLDER_FORMATS, FORMATS, GGUF
from codesign.quantize.gguf import ENCODED_TYPES
from codesign.quantize.result import LayerHead, ResultFolder
from codesign.quantize.source import WeightSource
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes

_CODE_BYTES = 1.25  # of a weight in the unfinished state: a byte of code, and scales


def find_format(name: str | None) -> str | None:
    """Return the format of that name, None where none is named."""
    if name is not None and name not in FORMATS:
        guess = did_you_mean(name[:40], FORMATS)
        raise InputError(f'"{name[:40]}" is not a format; use {", ".join(FORMATS)}.{guess}')
    return name


def default_format(schemes: Iterable[Scheme]) -> str:
    """Return the format that holds such schemes."""
    return GGUF if any(scheme.family == "gguf" for scheme in schemes) else "compressed-tensors"


def of_tied_head(schemes: Mapping[str, Scheme], model: Model, format_: str) -> tuple[dict[str, Scheme], str]:
    """Return the schemes with that of a tied head put where the format has it, and a sentence about it."""
    head, chosen = model.head.name, dict(schemes)
    if not model.tied_embedding or head not in chosen:
        return chosen, ""
    if format_ != GGUF:
        own = f"it gets weights of its own in {chosen[head]}, the embedding stays in 16 bits"
        return chosen, f"The head is tied to the embedding: {own}."
    scheme = chosen.pop(head)
    return {**chosen, model.embedding.name: scheme}, f"The head is tied to the embedding: both are {scheme}."


def format_problem(format_: str, layer: Layer, scheme: Scheme) -> str | None:
    """Return why a format cannot hold a layer in a scheme, or None."""
    if (scheme.family == "gguf") != (format_ == GGUF):
        return f"{format_} does not hold {scheme}; write it as {default_format([scheme])}."
    if format_ == GGUF:
        known = ", ".join(ENCODED_TYPES)
        return None if scheme.name in ENCODED_TYPES else f"{scheme} has no encoder; use one of {known}."
    return FOLDER_FORMATS[format_].problem(_head(layer, scheme))


def check_whole(source: WeightSource, schemes: Mapping[str, Scheme], format_: str, results: ResultFolder) -> None:
    """Refuse layers that the format cannot hold together."""
    if format_ == GGUF:
        return
    named = {layer.name: layer for layer in source.model.layers}
    heads = {name: _head(named[name], scheme) for name, scheme in schemes.items() if name in named}
    check_legal(planned_contents(results, source, heads), FOLDER_FORMATS[format_])


def check_disk(model: Model, schemes: Mapping[str, Scheme], place: Path) -> None:
    """Refuse a disk with less room than the unfinished state and the result take together."""
    layers = [layer for layer in (*model.layers, model.embedding) if layer.name in schemes]
    kept_bytes = 2 * (model.parameter_count - sum(layer.weight_count for layer in layers))
    made_bytes = sum(weight_bytes(schemes[layer.name], layer.n, layer.k) for layer in layers)
    check_space(place, int(kept_bytes + made_bytes + _CODE_BYTES * sum(layer.weight_count for layer in layers)))


def open_results(folder: Path, settings: Mapping[str, object], *, force: bool) -> ResultFolder:
    """Return the unfinished state of these settings; with `force` that of others is thrown away."""
    import shutil

    ours = (folder / "settings.json").is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: unfinished work is kept there, but something else has that name; move it away.")
    try:
        return ResultFolder(folder, settings)
    except InputError:
        if not force:
            raise
    shutil.rmtree(folder)
    return ResultFolder(folder, settings)


def _head(layer: Layer, scheme: Scheme) -> LayerHead:
    return LayerHead(layer.name, scheme, (layer.n, layer.k), None, rotated=False, reordered=False, divisor=None)
