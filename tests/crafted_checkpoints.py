"""Make checkpoint files byte by byte, valid or broken on purpose, and watch what reading them does."""

import json
import random
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UINT8, UINT16, UINT32, INT32, FLOAT32, BOOL, TEXT, ARRAY, UINT64 = 0, 2, 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12


def text(value: str | bytes, byte_count: int | None = None) -> bytes:
    """Return a GGUF text; `byte_count` lies about its length."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if byte_count is None else byte_count) + data


def key(name: str | bytes, value_type: int, payload: bytes) -> bytes:
    """Return a GGUF key with its value."""
    return text(name) + struct.pack("<I", value_type) + payload


def uint32(name: str, value: int) -> bytes:
    return key(name, UINT32, struct.pack("<I", value))


def array(name: str, element_type: int, count: int, payload: bytes = b"") -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", element_type, count) + payload)


def tensor(
    name: str | bytes, row_first_dimensions: tuple[int, ...], type_number: int = F32, offset: int = 0,
    dimension_count: int | None = None,
) -> bytes:  # fmt: skip
    """Return a row of the GGUF tensor table; the row length comes first, as in the file."""
    dimensions = row_first_dimensions
    count = len(dimensions) if dimension_count is None else dimension_count
    packed = struct.pack(f"<I{len(dimensions)}Q", count, *(size % 2**64 for size in dimensions))
    return text(name) + packed + struct.pack("<iQ", type_number, offset % 2**64)


def gguf(
    keys: list[bytes] | None = None, tensors: list[bytes] | None = None, data: bytes = b"", alignment: int = 32,
    **header: int | bytes,
) -> bytes:  # fmt: skip
    """Return a GGUF file; `magic`, `version`, `tensor_count` and `key_count` may lie."""
    keys, tensors = keys or [], tensors or []
    magic = header.get("magic", b"GGUF")
    counts = (header.get("tensor_count", len(tensors)), header.get("key_count", len(keys)))
    start = bytes(magic) + struct.pack("<IQQ", header.get("version", 3), *counts) + b"".join(keys + tensors)
    return start + b"\0" * (-len(start) % alignment if tensors else 0) + data


def good_gguf(version: int = 3) -> bytes:
    """Return a small valid file with every kind of value and three tensors."""
    keys = [
        key("general.architecture", TEXT, text("llama")),
        uint32("llama.block_count", 1),
        key("llama.rope.freq_base", FLOAT32, struct.pack("<f", 10000.0)),
        key("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
        array("llama.attention.head_count_kv", INT32, 3, struct.pack("<3i", 8, -1, 8)),
        array("tokenizer.ggml.tokens", TEXT, 4, text("a") + text("bé") + text("") + text("c" * 30)),
        array("tokenizer.ggml.scores", FLOAT32, 4, struct.pack("<4f", 0, 1, 2, 3)),
        key("general.parameter_count", UINT64, struct.pack("<Q", 2**40)),
    ]
    tensors = [
        tensor("token_embd.weight", (256, 4), Q4_K, 0),
        tensor("blk.0.attn_norm.weight", (32,), F32, 576),
        tensor("blk.0.ffn_down.weight", (64, 3), Q8_0, 704),
    ]
    return gguf(keys, tensors, bytes(704 + 204), version=version)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file; the header is an object, or text or bytes as they are; `length` lies about it."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: list[int], start: int, end: int, **more: Any) -> dict[str, Any]:
    """Return what a safetensors header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def good_safetensors() -> bytes:
    """Return a small valid file with metadata, an empty tensor, a scalar and 4-bit floats."""
    header = {
        "__metadata__": {"format": "pt", "note": "é\\n"},
        "model.embed_tokens.weight": entry("BF16", [8, 4], 0, 64),
        "model.layers.0.q.weight": entry("F8_E4M3", [4, 4], 64, 80),
        "empty": entry("F32", [0, 7], 80, 80),
        "scale": entry("F32", [], 80, 84),
        "packed": entry("F4", [2, 8], 84, 92),
    }
    return safetensors(header, bytes(92))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the data after one to six changes: bits, bytes, numbers, parts removed, doubled, moved or cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not changed:
            break
        _MUTATIONS[rng.randrange(len(_MUTATIONS))](changed, rng)
    return bytes(changed)


_LIMITS = (
    0,
    1,
    7,
    31,
    127,
    128,
    255,
    2**16,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice(b'\x00\xff\x7f\x80{}[]",:0-9.\\e')


def _write_number(data: bytearray, rng: random.Random) -> None:
    width = rng.choice((2, 4, 8))
    at = rng.randrange(len(data))
    data[at : at + width] = (rng.choice(_LIMITS) % 2 ** (8 * width)).to_bytes(width, "little")


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 24)]


def _double(data: bytearray, rng: random.Random) -> None:
    at, to = rng.randrange(len(data)), rng.randrange(len(data))
    data[to:to] = data[at : at + rng.randint(1, 64)]


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


_MUTATIONS = (_flip, _flip, _set, _set, _write_number, _write_number, _remove, _double, _cut)


class Hang(BaseException):
    """Reading took too long; no InputError, and not caught by `except Exception`."""


@contextmanager
def no_hang(cpu_s: float = 1.0, wall_s: float = 30.0) -> Iterator[None]:
    """Stop whatever computes for over `cpu_s`, however busy the machine is, or waits for over `wall_s`."""

    def stop(*_: object) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, cpu_s), (signal.ITIMER_REAL, signal.SIGALRM, wall_s))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    try:
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


_recordings: list[list[tuple[str, Any]]] = []


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    for recording in _recordings:
        recording.append((event, arguments[0] if arguments else None))


sys.addaudithook(_record)


@contextmanager
def recorded_events() -> Iterator[list[tuple[str, Any]]]:
    """Give the audit events of Python with their first argument, such as ("open", path)."""
    recording: list[tuple[str, Any]] = []
    _recordings.append(recording)
    try:
        yield recording
    finally:
        _recordings.remove(recording)


def opened_paths(events: list[tuple[str, Any]]) -> set[str]:
    """Return the paths that were opened; Python's own modules do not count."""
    return {str(path) for event, path in events if event == "open" and not str(path).endswith(".pyc")}
