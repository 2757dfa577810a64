"""What a checkpoint stores its layers in, as terminal tables and as JSON."""

from collections.abc import Iterable
from typing import Any

from codesign.checkpoint.stored import Checkpoint, StoredLayer
from codesign.cli.output import print_line, print_table
from codesign.codec import to_plain
from codesign.table import Table
from codesign.units import format_gib, significant

UNKNOWN_SHOWN = 12


def checkpoint_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint as plain JSON values, layer by layer."""
    return {
        "quantization": checkpoint.method,
        "kv": checkpoint.kv,
        "file_bytes": checkpoint.file_bytes,
        "tensor_bytes": checkpoint.tensor_bytes,
        "bits_per_weight": checkpoint.bits_per_weight,
        "bytes_by_scheme": checkpoint.bytes_by_scheme,
        "weights_by_scheme": checkpoint.weights_by_scheme,
        "other_bytes": checkpoint.other_bytes,
        "layers": [_layer_record(layer) for layer in checkpoint.layers],
        "unknown_tensors": [to_plain(tensor) for tensor in checkpoint.unknown],
        "warnings": list(checkpoint.warnings),
    }


def _layer_record(layer: StoredLayer) -> dict[str, Any]:
    known = layer.stored.scheme is not None
    return {**to_plain(layer), "stored": str(layer.stored), "stored_is_a_scheme": known}


def print_checkpoint(checkpoint: Checkpoint) -> None:
    """Print layers by kind and scheme, bytes by scheme, the cache's format and what belongs to no layer."""
    kinds: dict[tuple[str, str], list[StoredLayer]] = {}
    for layer in checkpoint.layers:
        kinds.setdefault((layer.role, str(layer.stored)), []).append(layer)
    rows = [(role, stored, f"{len(layers)}", *_sums(layers)) for (role, stored), layers in kinds.items()]
    headers = ("layers", "stored in", "times", "weights", "size", "bits per weight")
    print_table(Table(headers, rows, right=(2, 3, 4, 5)))
    by_scheme: dict[str, list[StoredLayer]] = {}
    for layer in checkpoint.layers:
        by_scheme.setdefault(str(layer.stored), []).append(layer)
    order = [(name, *_sums(by_scheme[name])) for name in checkpoint.bytes_by_scheme]
    order.append(("norms and other small tensors", "", format_gib(checkpoint.other_bytes), ""))
    order.append(("tensors of no layer", "", format_gib(checkpoint.unknown_bytes), ""))
    print_table(Table(("scheme", "weights", "size", "bits per weight"), order, right=(1, 2, 3)))
    header_bytes = checkpoint.file_bytes - checkpoint.tensor_bytes
    print_line(
        f"{significant(checkpoint.bits_per_weight, 4)} bits per weight over all layers; {checkpoint.file_bytes:,} "
        f"bytes of files, of which {header_bytes:,} are headers. Quantized by: {checkpoint.method or 'nothing'}. "
        f"KV cache: {checkpoint.kv or 'not said, 16 bits'}."
    )
    if checkpoint.unknown:
        names = ", ".join(f"{tensor.name} ({tensor.dtype})" for tensor in checkpoint.unknown[:UNKNOWN_SHOWN])
        left = len(checkpoint.unknown) - UNKNOWN_SHOWN
        print_line(f"Tensors of no layer: {names}{f' and {left} more' if left > 0 else ''}.")


def _sums(layers: Iterable[StoredLayer]) -> tuple[str, str, str]:
    found = list(layers)
    weights, size = sum(layer.weight_count for layer in found), sum(layer.byte_count for layer in found)
    return f"{weights:,}", format_gib(size), significant(8 * size / weights, 4) if weights else ""
