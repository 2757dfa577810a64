"""Measured tables in our columns: kernels and runs of servers, from our own format and from aiconfigurator's layouts.

Rows that cannot be meant are rejected with their line numbers; the others are kept.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.table import OPERATIONS, ZERO_ALLOWED, TextArray
from codesign.cost.table_file import SERVING_DEFAULTS, SERVING_NUMBERS, kernel_columns, read_table
from codesign.errors import InputError
from codesign.units import KIBI, MEBI, MILLI

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT_VERSION = 1
MEASURED_BYTES_MAX = 128 * MEBI
ROWS_MAX = 2_000_000
PARQUET_CELLS_MAX = 100_000_000
HEADER_BYTES_MAX = 64 * KIBI
PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst", ".tar", ".tgz")
TIME_RANGE_S = (1e-12, 1e9)

# Columns that tell a layout of aiconfigurator's tables (Apache-2.0), with their names here. The library column may
# carry a version (`vllm-0.24.0`), which the library's name drops.
LAYOUTS: dict[str, tuple[frozenset[str], dict[str, str]]] = {
    "gemm": (frozenset({"m", "n", "k", "latency_ms"}), {}),
    "moe": (
        frozenset({"num_tokens", "hidden_size", "inter_size", "num_experts", "topk", "latency_ms"}),
        {"num_tokens": "tokens", "hidden_size": "hidden", "inter_size": "intermediate", "topk": "top_k",
         "num_experts": "experts", "moe_tp_size": "tp", "moe_ep_size": "ep", "distribution": "skew"},
    ),
    "attention": (
        frozenset({"phase", "batch_size", "q_len", "kv_len_before", "num_heads", "num_key_value_heads", "latency_ms"}),
        {"batch_size": "batch", "q_len": "q_tokens", "num_heads": "heads", "num_key_value_heads": "kv_heads",
         "kv_cache_dtype": "kv_dtype"},
    ),
    "collective": (
        frozenset({"op", "dtype", "num_gpus", "message_elements_or_bytes", "latency_ms"}),
        {"num_gpus": "gpus"},
    ),
}  # fmt: skip
# The moe layout does not say whether experts have a gate. Those of 512 with 22 chosen (Nemotron 3) have none: with a
# gate, their measured times would need more than the peak bandwidth.
ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
# Columns here that are computed, with those of the file that decide whether they can be.
KERNEL_SOURCES = {
    "measured_s": "latency_ms",
    "kv_tokens": "kv_len_before",
    "message_bytes": "message_elements_or_bytes",
}

SERVER_FIGURES = {"tpot_s": "silicon_tpot_ms", "ttft_s": "silicon_ttft_ms"}
SERVER_LAYOUT = {"system": "hw", "backend": "library", "model_path": "model", "gemm_quant_mode": "scheme",
                 "batch_size": "concurrency", "isl": "prompt_tokens", "osl": "output_tokens"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rejection:
    """Rows that were not used, by their line in a CSV file (the header is the first) or their row in a Parquet file."""

    reason: str
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasuredTable:
    """The usable rows in our columns, with `line`; `kind` is "kernels" or "servers".

    Kernels have `measured_s`; servers `measured_tpot_s` and `measured_ttft_s`, NaN where not measured.
    """

    kind: str
    frame: "DataFrame"
    rejections: tuple[Rejection, ...]
    row_count: int


def read_measured(source: str | Path) -> "DataFrame":
    """Return the usable rows of a measured kernel table in our columns; InputError if it is none."""
    table = read_measured_table(source)
    if table.kind != "kernels":
        raise InputError(f"{source}: this table holds runs of servers, not kernels.")
    return table.frame


def read_measured_table(source: str | Path) -> MeasuredTable:
    """Return a measured table; InputError if the file is none, is too large or newer than this codesign."""
    path = Path(source)
    _refuse_large(path)
    table = read_table(str(path))
    if len(table) > ROWS_MAX:
        raise InputError(f"{path}: {len(table):,} rows; a measured table may have {ROWS_MAX:,}. Split it.")
    return check_measured(table.assign(line=line_numbers(path, len(table))), path)


def check_measured(table: "DataFrame", path: Path) -> MeasuredTable:
    """Return the usable rows of a table with a column `line`; `path` is named in messages."""
    raw = _text_or_number(table)
    _refuse_newer(raw, path)
    figures = {f"measured_{figure}" for figure in SERVER_FIGURES} | set(SERVER_FIGURES.values())
    kind = "servers" if figures & set(raw.columns) else "kernels"
    frame = _server_columns(raw, path) if kind == "servers" else _kernel_columns(raw, path)
    reasons = np.full(len(raw), "", dtype=object)
    _check_version(raw, reasons)
    (_check_servers if kind == "servers" else _check_kernels)(frame, raw, reasons)
    _check_ids(raw, reasons)
    usable = (reasons == "").astype(bool)
    return MeasuredTable(kind, frame[usable].reset_index(drop=True), _rejections(raw, reasons), len(raw))


def line_numbers(path: Path, row_count: int) -> list[int]:
    """Return the line of each row of a CSV file, where cells may span lines; of other files the rows from 1."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return list(range(1, row_count + 1))
    lines, before = [], 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                if len(cells) > 1 or "".join(cells).strip():
                    lines.append(before + 1)
                before = reader.line_num
    except csv.Error:  # a cell beyond the reader's limit
        lines = []
    return lines[1:] if len(lines) == row_count + 1 else list(range(2, row_count + 2))


def _refuse_large(path: Path) -> None:
    """Refuse what could not be held in memory, before reading it."""
    if not path.is_file():
        return  # the reader says so
    if path.suffix.lower() in PACKED:
        raise InputError(f"{path}: packed tables are not read; unpack it first.")
    size = path.stat().st_size
    if size > MEASURED_BYTES_MAX:
        raise InputError(f"{path}: {size:,} bytes; a measured table may have {MEASURED_BYTES_MAX:,}. Split it.")
    if path.suffix.lower() not in (".parquet", ".pq"):
        with path.open("rb") as stream:
            if len(stream.readline(HEADER_BYTES_MAX + 1)) > HEADER_BYTES_MAX:
                raise InputError(f"{path}: the first line is longer than {HEADER_BYTES_MAX:,} bytes; this is no table.")
        return
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        about = read_metadata(path)
    except (ArrowException, OSError):
        return  # the reader says what is wrong
    if about.num_rows * about.num_columns > PARQUET_CELLS_MAX:
        raise InputError(
            f"{path}: {about.num_rows:,} rows of {about.num_columns} columns are too many; split the table."
        )


def _text_or_number(frame: "DataFrame") -> "DataFrame":
    """Return the table with every column that is not of numbers as stripped text, empty where nothing is given."""
    import pandas
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if not isinstance(frame.index, pandas.RangeIndex):
        frame = frame.reset_index()
    frame.columns = [str(name).strip() for name in frame.columns]
    frame = frame.loc[:, ~frame.columns.duplicated()].copy()
    for name in frame.columns:
        column = frame[name]
        if is_bool_dtype(column) or not is_numeric_dtype(column):
            given = zip(column.to_numpy(dtype=object), column.isna().to_numpy(), strict=True)
            texts = ["" if missing else str(value).strip() for value, missing in given]
            frame[name] = pandas.Series(texts, dtype=object, index=frame.index)
    return frame


def _refuse_newer(raw: "DataFrame", path: Path) -> None:
    if "format_version" in raw.columns and (_floats(raw, "format_version") > FORMAT_VERSION).any():
        raise InputError(
            f"{path}: a format_version is newer than {FORMAT_VERSION}, which this codesign reads; update codesign."
        )


def _floats(frame: "DataFrame", name: str) -> FloatArray:
    """Return a column as numbers, NaN where it holds none or does not exist."""
    import pandas

    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    return np.asarray(pandas.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))


def _need(frame: "DataFrame", names: tuple[str, ...], path: Path) -> None:
    for name in names:
        if name not in frame.columns:
            raise InputError(f'{path}: the column "{name}" is missing.')


def _kernel_columns(raw: "DataFrame", path: Path) -> "DataFrame":
    """Return a table of kernels in our columns, NaN where a number is none."""
    frame = raw.copy() if "measured_s" in raw.columns else _from_aiconfigurator(raw, path)
    _need(frame, ("hw", "op"), path)
    numbers = {name: column for name, column in kernel_columns(frame).items() if column.dtype.kind == "f"}
    return frame.assign(**numbers, measured_s=_floats(frame, "measured_s"))


def _from_aiconfigurator(raw: "DataFrame", path: Path) -> "DataFrame":
    kind = next((kind for kind, (needed, _) in LAYOUTS.items() if needed <= set(raw.columns)), None)
    if kind is None:
        raise InputError(
            f"{path}: this is no measured table: it has neither a column measured_s, measured_tpot_s or "
            f"measured_ttft_s nor those of a known layout ({', '.join(LAYOUTS)} with latency_ms)."
        )
    frame = _renamed(raw, LAYOUTS[kind][1])
    if kind == "attention":
        frame["op"] = "attention_" + frame["phase"].astype(str)
        frame["kv_tokens"] = _floats(raw, "kv_len_before") + _floats(raw, "q_len")
    elif kind == "collective":
        frame["op"] = frame["op"].replace("alltoall", "all_to_all")
        frame["message_bytes"] = _floats(raw, "message_elements_or_bytes") * raw["dtype"].map(ELEMENT_BYTES)
    else:
        frame["op"] = kind
    if kind == "moe":
        frame["matrices"] = np.where((raw["num_experts"] == 512) & (raw["topk"] == 22), 2.0, 3.0)
    frame["measured_s"] = _floats(raw, "latency_ms") * MILLI
    frame["library"] = raw["engine"].astype(str) if "engine" in raw.columns else ""
    if kind == "collective":
        frame["library"] = frame["library"].str.removeprefix("custom-")
    return frame


def _renamed(raw: "DataFrame", names: Mapping[str, str]) -> "DataFrame":
    """Return the table with a layout's columns under our names, which must not be there twice."""
    present = {old: new for old, new in names.items() if old in raw.columns}
    return raw.drop(columns=[new for new in present.values() if new in raw.columns]).rename(columns=present)


def _server_columns(raw: "DataFrame", path: Path) -> "DataFrame":
    """Return a table of runs of servers in our columns, NaN where a number is none."""
    frame = _from_aiconfigurator_runs(raw) if set(SERVER_FIGURES.values()) & set(raw.columns) else raw.copy()
    _need(frame, ("hw", "model", "concurrency", "prompt_tokens", "output_tokens"), path)
    frame = frame.assign(**{name: 1.0 for name in SERVING_DEFAULTS if name not in frame.columns})
    numbers = {name: _floats(frame, name) for name in SERVING_NUMBERS}
    numbers |= {name: np.where(_empty(frame[name]), 1.0, numbers[name]) for name in SERVING_DEFAULTS}
    return frame.assign(
        **numbers, **{f"measured_{name}": _floats(frame, f"measured_{name}") for name in SERVER_FIGURES}
    )


def _from_aiconfigurator_runs(raw: "DataFrame") -> "DataFrame":
    """Return aiconfigurator's list of runs; without a quantization mode the model's name tells the weights' format."""
    frame = _renamed(raw, SERVER_LAYOUT)
    ways = [
        np.where(_empty(raw[name]), 1.0, _floats(raw, name)) if name in raw.columns else 1.0
        for name in ("tp_size", "pp_size")
    ]
    frame["gpus"] = np.broadcast_to(ways[0] * ways[1], len(raw))
    if "moe_ep_size" in raw.columns:
        frame["ep"] = np.maximum(np.nan_to_num(_floats(raw, "moe_ep_size"), nan=1.0), 1.0)
    for figure, source in SERVER_FIGURES.items():
        frame[f"measured_{figure}"] = _floats(raw, source) * MILLI
    if "model" in frame.columns:
        named = frame["model"].astype(str).str.contains("FP8").map({True: "fp8", False: "bfloat16"})
        given = frame["scheme"] if "scheme" in frame.columns else named
        frame["scheme"] = given.astype(str).where(~_empty(given), named)
        # Checkpoints quantized per tensor for TensorRT-LLM keep keys and values in 8 bits too (its quantization guide).
        both = (frame["library"].astype(str) == "trtllm") & (frame["scheme"] == "fp8")
        frame["kv_dtype"] = both.map({True: "fp8", False: ""})
    return frame


def _empty(column: Any) -> Any:
    return (column.isna() | (column.astype(str) == "")).to_numpy(dtype=bool)


def _check_version(raw: "DataFrame", reasons: TextArray) -> None:
    if "format_version" in raw.columns:
        reasons[_floats(raw, "format_version") != FORMAT_VERSION] = f"format_version is not {FORMAT_VERSION}"


def _check_kernels(frame: "DataFrame", raw: "DataFrame", reasons: TextArray) -> None:
    """Fill in the reasons of rows whose time or sizes cannot be meant; sizes are those that the row's op needs."""
    sources = {new: old for _, names in LAYOUTS.values() for old, new in names.items()} | KERNEL_SOURCES
    low_s, high_s = TIME_RANGE_S
    _flag(reasons, ~frame["measured_s"].between(low_s, high_s).to_numpy(), raw, _name("measured_s", raw, sources))
    ops = frame["op"].astype(str).str.lower().to_numpy()
    for op, operation in OPERATIONS.items():
        of_op = ops == op
        for name in (*operation.needed, *operation.defaults) if of_op.any() else ():
            source = _name(name, raw, sources)
            values = _floats(frame, name)
            wrong = of_op & ~(np.isfinite(values) & ((values > 0) | ((values == 0) & (name in ZERO_ALLOWED))))
            if name in operation.defaults:
                wrong &= ~_empty(raw[source]) if source in raw.columns else False
            _flag(reasons, wrong, raw, source)


def _check_servers(frame: "DataFrame", raw: "DataFrame", reasons: TextArray) -> None:
    """Fill in the reasons of runs whose times or sizes cannot be meant, or that were not measured at all."""
    sources = {new: old for old, new in SERVER_LAYOUT.items()} | {"gpus": "tp_size"}
    unmeasured = np.ones(len(raw), dtype=bool)
    for figure, other in SERVER_FIGURES.items():
        source = other if other in raw.columns else f"measured_{figure}"
        if source in raw.columns:
            empty = _empty(raw[source])
            unmeasured &= empty
            _flag(reasons, ~frame[f"measured_{figure}"].between(*TIME_RANGE_S).to_numpy() & ~empty, raw, source)
    reasons[unmeasured & (reasons == "")] = "neither time is given"
    for name in SERVING_NUMBERS:
        values = frame[name].to_numpy()
        _flag(reasons, ~(np.isfinite(values) & (values > 0)), raw, _name(name, raw, sources))


def _check_ids(raw: "DataFrame", reasons: TextArray) -> None:
    """Reject the later of the rows that share an id; rows that are rejected anyway do not count."""
    if "id" in raw.columns:
        rows = np.flatnonzero((reasons == "").astype(bool) & ~_empty(raw["id"]))
        twice = raw["id"].iloc[rows].duplicated().to_numpy()
        reasons[rows[twice]] = "id was used by an earlier row"


def _name(name: str, raw: "DataFrame", sources: Mapping[str, str]) -> str:
    """Return the file's name of one of our columns."""
    return name if name in raw.columns else sources.get(name, name)


def _flag(reasons: TextArray, wrong: Any, raw: "DataFrame", name: str) -> None:
    """Say what is wrong with the file's value, where no other reason is given yet."""
    rows = np.flatnonzero(np.asarray(wrong, dtype=bool) & (reasons == ""))
    values = raw[name].to_numpy() if name in raw.columns else np.full(len(raw), "", dtype=object)
    for row in rows:
        reasons[row] = f"{name} {_fault(values[row])}"


def _fault(value: Any) -> str:
    text = str(value)
    if text == "":
        return "is empty"
    try:
        number = float(text)
    except ValueError:
        return "is not a number"
    if np.isnan(number):
        return "is NaN"
    if np.isinf(number):
        return "is infinite"
    return "is not above zero" if number <= 0 else "is out of range"


def _rejections(raw: "DataFrame", reasons: TextArray) -> tuple[Rejection, ...]:
    lines = raw["line"].to_numpy()
    return tuple(
        Rejection(str(reason), tuple(lines[reasons == reason].tolist()))
        for reason in dict.fromkeys(reasons.tolist())
        if reason
    )
