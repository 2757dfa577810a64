"""One bounded little-endian cursor over a file that nobody trusts.

Sizes are compared with the file and with the budget before anything is read or allocated; every error is an InputError
that names the file and the byte.
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

from codesign.errors import InputError

WINDOW_BYTES = 2**16

_UNSIGNED_32 = struct.Struct("<I")
_SIGNED_32 = struct.Struct("<i")
_UNSIGNED_64 = struct.Struct("<Q")
_SIGNED_64 = struct.Struct("<q")


class Cursor:
    """Reads forward through the first `budget_bytes` of an open file of `byte_count` bytes."""

    def __init__(self, stream: FileIO, where: str, byte_count: int, budget_bytes: int) -> None:
        self.where = where
        self.byte_count = byte_count
        self.offset = 0
        self._budget_bytes = budget_bytes
        self._stream = stream
        self._window = b""
        self._window_start = 0

    @property
    def remaining(self) -> int:
        """Return how many bytes of the file lie ahead."""
        return self.byte_count - self.offset

    def refuse(self, sentence: str, offset: int | None = None) -> NoReturn:
        """Raise the error about a byte, by default the next one."""
        raise InputError(f"{self.where}: byte {self.offset if offset is None else offset}: {sentence}")

    def peek(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end of the file, without moving."""
        count = min(count, self.remaining)
        if self._window_start + len(self._window) < self.offset + count:
            self._fill(count)
        start = self.offset - self._window_start
        return self._window[start : start + count]

    def take(self, count: int, what: str) -> bytes:
        """Return the next bytes; `what` says in messages what they are."""
        self._check(count, what)
        data = self.peek(count)
        self.offset += count
        return data

    def skip(self, count: int, what: str) -> None:
        """Move over bytes without reading them."""
        self._check(count, what)
        self.offset += count

    def number(self, layout: struct.Struct, what: str) -> Any:
        """Return the number that a one-field layout gives."""
        return layout.unpack(self.take(layout.size, what))[0]

    def unsigned_32(self, what: str) -> int:
        """Return a number of 4 bytes."""
        return int(self.number(_UNSIGNED_32, what))

    def signed_32(self, what: str) -> int:
        """Return a signed number of 4 bytes."""
        return int(self.number(_SIGNED_32, what))

    def unsigned_64(self, what: str) -> int:
        """Return a number of 8 bytes."""
        return int(self.number(_UNSIGNED_64, what))

    def signed_64(self, what: str) -> int:
        """Return a signed number of 8 bytes."""
        return int(self.number(_SIGNED_64, what))

    def text(self, max_bytes: int, what: str) -> str:
        """Return UTF-8 text that follows its 64-bit byte count."""
        start = self.offset
        byte_count = self.unsigned_64(what)
        if byte_count > max_bytes:
            self.refuse(f"{what} of {byte_count} bytes; at most {max_bytes} are allowed.", start)
        data = self.take(byte_count, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{what} is not UTF-8.", start + 8 + error.start)

    def skip_texts(self, count: int, max_bytes: int, what: str) -> None:
        """Move over texts, each after its 64-bit byte count; only the counts are looked at."""
        self._check(count * _UNSIGNED_64.size, what)
        unpack, header_bytes = _UNSIGNED_64.unpack_from, _UNSIGNED_64.size
        while count:
            self._check(header_bytes, what)
            self.peek(header_bytes)
            window, at = self._window, self.offset - self._window_start
            last = len(window) - header_bytes
            while count and at <= last:
                (byte_count,) = unpack(window, at)
                if byte_count > max_bytes:
                    refused = f"{what} of {byte_count} bytes; at most {max_bytes} are allowed."
                    self.refuse(refused, self._window_start + at)
                at += header_bytes + byte_count
                count -= 1
            self.offset = self._window_start + at - byte_count
            self.skip(byte_count, what)

    def _check(self, count: int, what: str) -> None:
        if count > self.remaining:
            self.refuse(f"{what} needs {count} bytes, but the file ends after {self.remaining}.")
        if self.offset + count > self._budget_bytes:
            self.refuse(f"{what} goes beyond the first {self._budget_bytes} bytes, the most a header may take.")

    def _fill(self, count: int) -> None:
        """Read a window that starts at the offset and holds at least `count` bytes."""
        try:
            self._stream.seek(self.offset)
            wanted = max(count, WINDOW_BYTES)
            parts: list[bytes] = []
            while wanted and (part := self._stream.read(wanted)):
                parts.append(part)
                wanted -= len(part)
        except OSError as error:
            raise InputError(f"{self.where}: byte {self.offset}: cannot read: {error.strerror or error}.") from error
        self._window, self._window_start = b"".join(parts), self.offset
        if len(self._window) < count:
            self.refuse("the file became shorter while it was read.")


@contextmanager
def opened(path: Path, budget_bytes: int, what: str) -> Iterator[Cursor]:
    """Open a regular file, never a pipe or a device; `what` names the kind of file in messages."""
    try:
        _check_regular(os.stat(path), path, what)
        # Not blocking: between the check and here the file may have been replaced by a pipe.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        stream = FileIO(os.open(path, flags))
    except OSError as error:
        raise InputError(f"{path}: cannot read this {what}: {error.strerror or error}.") from error
    except ValueError as error:  # a NUL in the path
        raise InputError(f"{str(path)!r}: cannot read this {what}: {error}.") from error
    with stream:
        status = os.fstat(stream.fileno())
        _check_regular(status, path, what)
        yield Cursor(stream, str(path), status.st_size, budget_bytes)


def _check_regular(status: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: a {what} must be a regular file.")
