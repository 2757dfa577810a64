"""Frozen dataclasses to plain JSON values and strictly back, so that every file format is one type."""

import dataclasses
import math
import types
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from codesign.errors import InputError, did_you_mean

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return dataclasses as dicts, tuples as lists, enums as text; None stays None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def from_plain(wanted: type[T], value: Any, where: str) -> T:
    """Return the value as `wanted`, checking every key and type; InputError names the place in the file.

    Only keys whose fields have a default may be missing.
    Understands dataclasses, int, float, str, bool, None, StrEnum, Literal, tuple[T, ...], Mapping[str, T], unions with
    None, and Any, which is taken as it is.
    """
    result: T = _decode(wanted, value, where)
    return result


def _decode(wanted: Any, value: Any, where: str) -> Any:
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        inner = [option for option in get_args(wanted) if option is not type(None)]
        return None if value is None else _decode(inner[0], value, where)
    if origin is not None:
        return _decode_container(origin, get_args(wanted), value, where)
    if dataclasses.is_dataclass(wanted):
        return _decode_dataclass(wanted, _need(dict, value, where), where)
    if issubclass(wanted, StrEnum):
        return _decode_enum(wanted, _need(str, value, where), where)
    if wanted is float and type(value) is int:
        return float(value)
    return _need(wanted, value, where)


def _decode_container(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin is Literal:
        return _decode_literal(arguments, value, where)
    if origin is tuple:
        items = enumerate(_need(list, value, where))
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in items)
    return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in _need(dict, value, where).items()}


def _decode_dataclass(wanted: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(wanted)
    names = [field.name for field in dataclasses.fields(wanted)]
    for key in value:
        if key not in names:
            raise InputError(f'{where}: unknown key "{key}".{did_you_mean(key, names)}')
    needed = [field.name for field in dataclasses.fields(wanted) if field.default is dataclasses.MISSING]
    for name in needed:
        if name not in value:
            raise InputError(f'{where}: the key "{name}" is missing.')
    return wanted(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _decode_enum(wanted: type[StrEnum], value: str, where: str) -> StrEnum:
    names = [str(member) for member in wanted]
    if value not in names:
        raise InputError(f"{where}: {value!r} is not one of {', '.join(names)}.{did_you_mean(value, names)}")
    return wanted(value)


def _decode_literal(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in allowed:
        raise InputError(f"{where}: {str(value)[:40]!r} is not one of {', '.join(map(str, allowed))}.")
    return value


def _need(wanted: Any, value: Any, where: str) -> Any:
    if wanted is not Any and type(value) is not wanted:
        names = {
            dict: "an object",
            list: "a list",
            str: "a text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
        }
        raise InputError(f"{where}: {str(value)[:40]!r} is not {names.get(wanted, wanted.__name__)}.")
    if wanted is float and not math.isfinite(value):
        raise InputError(f"{where}: {value} is not a finite number.")
    return value
