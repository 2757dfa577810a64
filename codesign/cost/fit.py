"""Fit all operations of a measured table on one machine with one library, each on its own."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray
from codesign.cost.attention import MEASURED_ALIKE
from codesign.cost.attention_time import attention_key
from codesign.cost.collective_time import COLLECTIVE_KEY
from codesign.cost.collectives import COMMON_LIBRARY, connecting_link
from codesign.cost.cpu_gemm_time import cpu_state
from codesign.cost.fit_attention import AttentionRows, fit_attention_decode, fit_attention_prefill
from codesign.cost.fit_collective import CollectiveRows, fit_collective
from codesign.cost.fit_cpu_attention import fit_cpu_attention
from codesign.cost.fit_cpu_gemm import fit_cpu_gemm
from codesign.cost.fit_gemm import GemmRows, fit_gemm
from codesign.cost.fit_moe import MoeRows, fit_moe
from codesign.cost.kernels import KERNEL_SIGN, kernel_key, sheet_key
from codesign.cost.sheet import UNKNOWN_VERSION, Calibration
from codesign.cost.table import OPERATIONS, Columns, attention_shape, expert_shape, operation_numbers
from codesign.cost.table_file import kernel_columns
from codesign.cost.traffic import WIRE_PASSES
from codesign.cost.validate import ErrorStatistics, predict_measured, statistics
from codesign.errors import CodesignError, InputError
from codesign.hardware.file import load_hardware
from codesign.hardware.folder import normal_name
from codesign.hardware.hardware import Hardware
from codesign.schemes.capability import parse_library
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv

if TYPE_CHECKING:
    from pandas import DataFrame

Key = tuple[str, str]
Rows = npt.NDArray[np.intp]
_VERSION = re.compile(r"-[vb]?(\d[\w.+-]*)$")


@dataclass(frozen=True, slots=True)
class FitRefusal:
    """Rows of one operation that were not fitted, and why; `scheme` as the table has it."""

    operation: str
    scheme: str
    row_count: int
    reason: str


@dataclass(frozen=True, slots=True)
class FrameFit:
    """What was fitted, by (operation, key of sheets), from which rows of the frame; and what was not."""

    calibrations: Mapping[Key, Calibration]
    rows: Mapping[Key, Rows]
    refusals: tuple[FitRefusal, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of one machine and one library, with the library's version; the other rows are only counted."""

    frame: "DataFrame"
    library: str
    library_version: str
    other_count: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that share operation, scheme (or KV format and head dimension) and kernel, where one is named."""

    operation: str
    scheme: str
    kernel: str
    rows: Rows
    numbers: Mapping[str, FloatArray]
    seconds: FloatArray


def select_rows(frame: "DataFrame", hardware: Hardware, library: str) -> Selection:
    """Return the rows of a machine and a library; rows that name neither count as theirs.

    `library` may carry a version (`vllm-0.24.0`). InputError if there are no such rows, or rows of several versions.
    """
    columns = kernel_columns(frame)
    wanted, version = split_library(library)
    here = {text for text in set(columns["hw"]) if not text or _is_machine(text, hardware)}
    named = {text: _split_or_none(text) for text in set(columns["library"])}
    fitting = {text for text, found in named.items() if not text or (found and found[0] == wanted)}
    if version:
        fitting = {text for text in fitting if (named[text] or ("", ""))[1] in ("", version)}
    chosen = np.array([h in here and e in fitting for h, e in zip(columns["hw"], columns["library"], strict=True)])
    if not chosen.any():
        shown = ", ".join(sorted({f"{h or 'any'} with {e or 'any'}" for h, e in _pairs(columns)})[:10])
        raise InputError(f"the table has no rows of {wanted} on {hardware.name}; it has {shown or 'no rows at all'}.")
    versions = sorted({(named[text] or ("", ""))[1] for text in columns["library"][chosen]} - {""})
    if len(versions) > 1:
        raise InputError(f"the table has {wanted} in several versions: name one, such as {wanted}-{versions[-1]}.")
    found = versions[0] if versions else version or UNKNOWN_VERSION
    return Selection(frame[chosen].reset_index(drop=True), wanted, found, int((~chosen).sum()))


def libraries_of(frame: "DataFrame", hardware: Hardware) -> tuple[str, ...]:
    """Return the known libraries that rows of a machine name; InputError if there are none, or no rows of it."""
    pairs = _pairs(kernel_columns(frame))
    here = {library for hw, library in pairs if not hw or _is_machine(hw, hardware)}
    if not here:
        machines = ", ".join(sorted({hw for hw, _ in pairs})[:10])
        raise InputError(f"the table has no rows of {hardware.name}; it has {machines or 'none'}: name one with --hw.")
    found = sorted({pair[0] for text in here if text and (pair := _split_or_none(text))})
    if not found:
        raise InputError(f"the table names no known library on {hardware.name}; name one, such as --library vllm.")
    return tuple(found)


def split_library(text: str) -> tuple[str, str]:
    """Return the canonical name of a library and its version, empty if none is given; InputError for an unknown one."""
    word = text.strip().lower()
    match = _VERSION.search(word)
    name = COMMON_LIBRARY if word.split("-")[0] == COMMON_LIBRARY else parse_library(word)
    if not name:
        raise InputError("name the library, such as --library vllm.")
    return name, "" if match is None else match[1]


def _split_or_none(text: str) -> tuple[str, str] | None:
    try:
        return split_library(text)
    except InputError:
        return None


def _is_machine(text: str, hardware: Hardware) -> bool:
    if normal_name(text) in (hardware.name, *hardware.aliases):
        return True
    try:
        return load_hardware(text).name == hardware.name
    except CodesignError:
        return False


def _pairs(columns: Columns) -> set[tuple[str, str]]:
    return {(str(h), str(e)) for h, e in zip(columns["hw"], columns["library"], strict=True)}


def fit_frame(frame: "DataFrame", hardware: Hardware) -> FrameFit:
    """Fit every operation and scheme in rows of one machine and library, in our columns with `measured_s`.

    Schemes that sheets hold under one key are not mixed: the scheme of that name is fitted, else that of most rows.
    """
    refusals: list[FitRefusal] = []
    calibrations: dict[Key, Calibration] = {}
    rows: dict[Key, Rows] = {}
    several: dict[Key, list[_Part]] = defaultdict(list)
    for part in _parts(frame, hardware, refusals):
        try:
            key = (part.operation, part_key(part, hardware))
            if key in calibrations:
                raise InputError(f"sheets hold it as {key[1]}, which is fitted from other rows of this table.")
            calibrations[key] = FITTERS[part.operation](part, hardware)
            rows[key] = part.rows
            if part.kernel:
                several[part.operation, key[1].split(KERNEL_SIGN)[0]].append(part)
        except CodesignError as error:
            refusals.append(FitRefusal(part.operation, part.scheme, len(part.rows), str(error)))
    for key, parts in several.items():
        fastest = (key[0], part_key(_fastest(parts), hardware))
        calibrations[key], rows[key] = calibrations[fastest], rows[fastest]
    return FrameFit(calibrations, rows, tuple(refusals))


def _fastest(parts: list[_Part]) -> _Part:
    """Return the kernel that is fastest, as a geometric mean, on the cases that all have measured; first of equals.

    Kernels for many rows of activations alone do not take part: decode has few. Where no case is common to all, the
    kernel of most rows.
    """
    if "m" in parts[0].numbers:
        fewest = min(part.numbers["m"].min() for part in parts)
        parts = [part for part in parts if part.numbers["m"].min() == fewest]
    times = [dict(zip(zip(*part.numbers.values(), strict=True), part.seconds, strict=True)) for part in parts]
    common = set.intersection(*(set(cases) for cases in times))
    if not common:
        return max(parts, key=lambda part: len(part.rows))
    means = [np.mean(np.log([cases[case] for case in common])) for cases in times]
    return parts[int(np.argmin(means))]


def _parts(frame: "DataFrame", hardware: Hardware, refusals: list[FitRefusal]) -> Iterator[_Part]:
    """Yield the parts of a frame, those named like their key and then large ones first; refuse unusable rows."""
    columns = {**kernel_columns(frame), "measured_s": frame["measured_s"].to_numpy(dtype=np.float64)}
    ops = np.array([text.lower() for text in columns["op"]], dtype=object)
    for op in sorted(set(ops)):
        of_op = np.flatnonzero(ops == op)
        if op not in FITTERS:
            known = ", ".join(FITTERS)
            refusals.append(FitRefusal(op[:40], "", len(of_op), f"nothing fits this operation; known are {known}."))
            continue
        reasons = np.full(len(ops), "", dtype=object)
        numbers, usable = operation_numbers(OPERATIONS[op], columns, of_op, reasons)
        for reason in sorted(set(reasons[of_op[~usable]])):
            refusals.append(FitRefusal(op, "", int((reasons == reason).sum()), f"{reason}."))
        schemes, kernels = _schemes(op, columns, of_op), columns["kernel"][of_op]
        found = [
            _Part(
                op, scheme, kernel, of_op[mine],
                {n: x[mine] for n, x in numbers.items()}, columns["measured_s"][of_op[mine]],
            )
            for scheme, kernel in sorted(set(zip(schemes[usable], kernels[usable], strict=True)))
            for mine in [usable & (schemes == scheme) & (kernels == kernel)]
        ]  # fmt: skip
        yield from sorted(found, key=lambda part: (not _names_key(part, hardware), -len(part.rows), part.scheme))


def _schemes(op: str, columns: Columns, rows: Rows) -> npt.NDArray[np.object_]:
    """Return what divides the rows of an operation: the scheme, or KV format and head dimension."""
    if op in WIRE_PASSES:
        return np.full(len(rows), COLLECTIVE_KEY, dtype=object)
    if not op.startswith("attention"):
        return np.asarray(columns["scheme"][rows], dtype=object)
    pairs = zip(columns["kv_dtype"][rows], columns["head_dim"][rows], strict=True)
    return np.array([f"{kv}/{dim:g}" for kv, dim in pairs], dtype=object)


def _names_key(part: _Part, hardware: Hardware) -> bool:
    try:
        return part_key(part, hardware).split(KERNEL_SIGN)[0] in (part.scheme, parse_scheme(part.scheme).name)
    except CodesignError:
        return False


def part_key(part: _Part, hardware: Hardware) -> str:
    """Return the name under which sheets hold the part; InputError if its scheme is unknown."""
    if part.operation in WIRE_PASSES:
        return COLLECTIVE_KEY
    if part.operation.startswith("attention"):
        kv = parse_kv(part.scheme.rpartition("/")[0])
        return attention_key(MEASURED_ALIKE.get(kv.name, kv.name), int(part.numbers["head_dim"][0]))
    key = sheet_key(parse_scheme(part.scheme), hardware)
    return kernel_key(key, part.kernel) if part.kernel else key


def _fit_gemm(part: _Part, hardware: Hardware) -> Calibration:
    x, scheme = part.numbers, parse_scheme(part.scheme)
    rows = GemmRows(x["m"], x["n"], x["k"], part.seconds)
    if hardware.kind == "cpu":
        return fit_cpu_gemm(rows, cpu_state(hardware, x["threads"], x["memory_gb_per_s"]), hardware, scheme)
    return fit_gemm(rows, hardware, scheme)


def _fit_attention(part: _Part, hardware: Hardware) -> Calibration:
    fit = fit_attention_decode if part.operation == "attention_decode" else fit_attention_prefill
    shape = attention_shape(part.numbers)
    sizes = (shape.batch, shape.query_tokens, shape.kv_tokens, shape.heads, shape.kv_heads, shape.head_dim)
    rows, kv = AttentionRows(*sizes, part.seconds), parse_kv(part.scheme.rpartition("/")[0])
    if hardware.kind == "cpu":
        state = cpu_state(hardware, part.numbers["threads"], part.numbers["memory_gb_per_s"])
        return fit_cpu_attention(rows, state, hardware, kv)
    return fit(rows, hardware, kv)


def _fit_moe(part: _Part, hardware: Hardware) -> Calibration:
    return fit_moe(MoeRows(expert_shape(part.numbers), part.seconds), hardware, parse_scheme(part.scheme))


def _fit_collective(part: _Part, hardware: Hardware) -> Calibration:
    rows = CollectiveRows(part.numbers["gpus"], part.numbers["message_bytes"], part.seconds)
    return fit_collective(rows, part.operation, connecting_link(hardware).bandwidth_bytes_per_s)


FITTERS: Mapping[str, Callable[[_Part, Hardware], Calibration]] = {
    "gemm": _fit_gemm,
    "attention_decode": _fit_attention,
    "attention_prefill": _fit_attention,
    "moe": _fit_moe,
    **dict.fromkeys(WIRE_PASSES, _fit_collective),
}


def errors_before(fit: FrameFit, selection: Selection, hw: str) -> dict[Key, ErrorStatistics | None]:
    """Return how far today's predictions are off on the fitted rows; None where there are none.

    `hw` is the machine as `load_hardware` takes it.
    """
    predicted = predict_measured(selection.frame.assign(hw=hw, library=selection.library))
    usable = (predicted["reason"] == "").to_numpy()
    known = {key: rows[usable[rows]] for key, rows in fit.rows.items()}
    return {key: statistics(" ".join(key), predicted.iloc[rows]) if len(rows) else None for key, rows in known.items()}
