"""Read untrusted files within bounds; write files whole or not at all."""

import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from codesign.errors import InputError

# A string, ended or not, or a bracket; the quantifiers never back up, so that hostile text takes linear time.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def read_text(path: Path, max_bytes: int, what: str) -> str:
    """Return the UTF-8 text of a regular file of at most `max_bytes`; a byte order mark is dropped.

    `what` names the kind of file in messages, such as "hardware profile".
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: a {what} must be a regular file.")
        if status.st_size > max_bytes:
            raise InputError(
                f"{path}: {status.st_size} bytes is too large for a {what}; the limit is {max_bytes} bytes."
            )
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read this {what}: {error.strerror or error}.") from error
    if len(data) > max_bytes:
        raise InputError(f"{path}: too large for a {what}; the limit is {max_bytes} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a {what} must be UTF-8 text; byte {error.start} is not.") from error


def parse_json(text: str, where: str, max_depth: int = 64) -> Any:
    """Return the value of strict JSON: no NaN or Infinity, no duplicate keys, bounded depth and number length."""

    def refuse_constant(name: str) -> NoReturn:
        raise InputError(f"{where}: {name} is not JSON; write a finite number or null.")

    def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise InputError(f"{where}: the key {json.dumps(key)[:80]} appears twice; remove one.")
            result[key] = value
        return result

    check_json_depth(text, where, max_depth)
    try:
        value = json.loads(
            text, parse_constant=refuse_constant, object_pairs_hook=unique_object, parse_float=_finite(where)
        )
    except json.JSONDecodeError as error:
        raise InputError(f"{where}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}).") from error
    except ValueError as error:  # an integer longer than Python's limit
        raise InputError(f"{where}: a number is too long to be meant: {error}.") from error
    try:
        text.encode("utf-8")
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: a string holds half of a surrogate pair; replace it.") from error
    return value


def _finite(where: str) -> Any:
    def parse(literal: str) -> float:
        value = float(literal)
        if value in (float("inf"), float("-inf")):
            raise InputError(f"{where}: {literal} is beyond the range of numbers.")
        return value

    return parse


def check_json_depth(text: str, where: str, max_depth: int) -> None:
    """Refuse JSON nested deeper than `max_depth` levels, in linear time and without recursion."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        character = text[match.start()]
        if character in "[{":
            depth += 1
            if depth > max_depth:
                raise InputError(f"{where}: nested deeper than {max_depth} levels.")
        elif character in "]}":
            depth -= 1


def to_json(value: Any) -> str:
    """Return strict, indented JSON; NaN and Infinity are our bug and raise."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write to a temporary sibling, flush it to disk and rename it; on any failure the old file stays as it was."""
    payload = data.encode("utf-8") if isinstance(data, str) else data
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot write here: {error.strerror or error}.") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: writing failed: {error.strerror or error}.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
