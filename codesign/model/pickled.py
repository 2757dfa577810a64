"""Refuse pickled checkpoints, by their name and by their first bytes: reading one can run any program."""

from pathlib import Path

from codesign.errors import InputError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
HEAD_BYTES = 16

_ZIP = b"PK\x03\x04"  # torch.save since 1.6 writes a zip archive with a data.pkl inside
_PICKLE_PROTOCOLS = tuple(bytes((0x80, version)) for version in range(2, 6))
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # joblib's compressors


def refuse_pickle(path: Path, head: bytes) -> None:
    """Raise if the name or the first HEAD_BYTES bytes are those of a pickled checkpoint."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        _refuse(path, f"files named *{path.suffix.lower()} are")
    # The length of a safetensors header can equal any of these bytes; its header then begins at byte 8.
    if head.startswith(b"GGUF") or (head[8:9] == b"{" and head[4:8] == b"\0\0\0\0"):
        return
    if head.startswith((_ZIP, *_PICKLE_PROTOCOLS, *_COMPRESSED)):
        _refuse(path, "its first bytes are those of")


def _refuse(path: Path, evidence: str) -> None:
    raise InputError(
        f"{path}: byte 0: {evidence} a pickled checkpoint, and reading one can run any program. Convert it to "
        "safetensors where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)."
    )
