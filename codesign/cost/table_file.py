"""Tables of kernels and servers as CSV or Parquet files: read, predict, write."""

import io
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codesign.cost.deployment import Assignment, Deployment, deploy, uniform_assignment
from codesign.cost.serving import predict_serving
from codesign.cost.sheet import KernelSheet
from codesign.cost.table import OPERATIONS, predict_table
from codesign.errors import CodesignError, InputError, did_you_mean
from codesign.files import write_atomic
from codesign.hardware.file import load_hardware
from codesign.model.file import load_model
from codesign.schemes.capability import baseline_scheme
from codesign.schemes.catalog import parse_scheme
from codesign.setting import Setting

if TYPE_CHECKING:
    from pandas import DataFrame

TABLE_BYTES_MAX = 2**30
KERNEL_TEXTS = ("hw", "library", "kernel", "op", "scheme", "kv_dtype")
KERNEL_NUMBERS = tuple(dict.fromkeys(name for one in OPERATIONS.values() for name in (*one.needed, *one.defaults)))
KERNEL_RESULTS = ("predicted_s", "low_s", "high_s", "bound", "origin", "reason")
SERVING_TEXTS = ("hw", "model", "scheme", "kv_dtype", "library")
SERVING_DEFAULTS = ("gpus", "ep")  # 1 where not given
SERVING_NUMBERS = (*SERVING_DEFAULTS, "concurrency", "prompt_tokens", "output_tokens")
SERVING_VALUES = ("ttft_s", "tpot_s", "tokens_per_s", "memory_bytes")
MEMORY_INTERVAL = (0.95, 1.10)  # of the parts that are estimated: activations and runtime; assumed
SKEW_NAMES = {"balanced": 0.0, "uniform": 0.0}


def predict_kernel_file(source: str, target: Path | None, sheets: tuple[KernelSheet, ...] = ()) -> None:
    """Predict every row of a kernel table; the input's columns are kept and the results added."""
    frame = read_table(source)
    _need_columns(frame, ("hw", "op"), source)
    result = predict_table(kernel_columns(frame), sheets)
    for name in KERNEL_RESULTS:
        frame[name] = getattr(result, name)
    write_table(frame, target)


def kernel_columns(frame: "DataFrame") -> dict[str, Any]:
    """Return the columns of a kernel table as arrays: texts without None, numbers with NaN where empty."""
    columns: dict[str, Any] = {name: _texts(frame, name) for name in KERNEL_TEXTS}
    return columns | {name: _numbers(frame, name) for name in KERNEL_NUMBERS if name in frame.columns}


def predict_serving_file(source: str, target: Path | None, sheets: tuple[KernelSheet, ...] = ()) -> None:
    """Predict every row of a serving table; the input's columns are kept and the results added."""
    frame = read_table(source)
    _need_columns(frame, ("hw", "model", "concurrency", "prompt_tokens", "output_tokens"), source)
    write_table(predict_servers(frame, sheets), target)


def predict_servers(frame: "DataFrame", sheets: tuple[KernelSheet, ...] = ()) -> "DataFrame":
    """Return a serving table with its results added; equal rows are predicted once."""
    texts = {name: _texts(frame, name) for name in SERVING_TEXTS}
    numbers = {name: _numbers(frame, name) for name in SERVING_NUMBERS if name in frame.columns}
    for name in SERVING_DEFAULTS:
        numbers[name] = np.nan_to_num(numbers.get(name, np.full(len(frame), np.nan)), nan=1.0)
    predicted: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    for i in range(len(frame)):
        row = {name: column[i] for name, column in (texts | numbers).items()}
        key = tuple(str(value) for value in row.values())
        if key not in known:
            known[key] = _predict_server(row, sheets)
        predicted.append(known[key])
    results = {
        name + end: [one.get(name + end, np.nan) for one in predicted]
        for name in SERVING_VALUES
        for end in ("", "_low", "_high")
    }
    return frame.assign(**results, **{name: [one[name] for one in predicted] for name in ("origin", "reason")})


def _predict_server(row: dict[str, Any], sheets: tuple[KernelSheet, ...]) -> dict[str, Any]:
    """Return the results of one row, or its reason."""
    for name in SERVING_NUMBERS:
        if not 1 <= row[name] <= 2**24 or row[name] != int(row[name]):
            return {"origin": "", "reason": f"{name} must be a whole number from 1 to 2^24"}
    try:
        where, assignment = server_row(row, sheets)
        served = predict_serving(where, assignment)
    except CodesignError as error:
        return {"origin": "", "reason": str(error)}
    if served is None:
        return {
            "origin": "",
            "reason": f"the model does not fit into {where.target.gpu_count} {where.target.hardware.name}",
        }
    answer: dict[str, Any] = {"origin": str(served.tpot_s.origin), "reason": ""}
    for name in ("ttft_s", "tpot_s", "tokens_per_s"):
        one = getattr(served, name)
        answer |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    low, high = (served.memory_bytes * factor for factor in MEMORY_INTERVAL)
    return answer | {"memory_bytes": served.memory_bytes, "memory_bytes_low": low, "memory_bytes_high": high}


def server_row(row: Mapping[str, Any], sheets: tuple[KernelSheet, ...] = ()) -> tuple[Deployment, Assignment]:
    """Return what a row of a serving table describes; its numbers must be whole."""
    setting = Setting(
        batch=int(row["concurrency"]),
        prompt_tokens=int(row["prompt_tokens"]),
        output_tokens=int(row["output_tokens"]),
        library=row["library"],
        gpu_count=int(row["gpus"]),
        expert_parallel=int(row["ep"]),
    )
    where = deploy(load_hardware(row["hw"]), load_model(row["model"]), setting)
    where = replace(where, target=replace(where.target, sheets=sheets))
    scheme = parse_scheme(row["scheme"]) if row["scheme"] else baseline_scheme(where.target.hardware)
    return where, uniform_assignment(where, scheme, row["kv_dtype"])


def read_table(source: str) -> "DataFrame":
    """Return the table of a CSV or Parquet file; InputError if it is not one."""
    import pandas

    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file, or it is not a regular one.")
    if path.stat().st_size > TABLE_BYTES_MAX:
        raise InputError(f"{path}: larger than 1 GiB; split the table.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame = pandas.read_parquet(path)
        else:
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as error:  # the readers raise a dozen unrelated types on malformed files
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: cannot read this as {'Parquet' if path.suffix != '.csv' else 'CSV'}: {line}."
        ) from error
    return frame.copy()


def _need_columns(frame: "DataFrame", names: tuple[str, ...], source: str) -> None:
    present = [str(name) for name in frame.columns]
    for name in names:
        if name not in present:
            raise InputError(f'{source}: the column "{name}" is missing.{did_you_mean(name, present)}')


def _texts(frame: "DataFrame", name: str) -> Any:
    if name not in frame.columns:
        return np.full(len(frame), "", dtype=object)
    column = frame[name]
    return np.array(
        ["" if missing else str(value).strip() for value, missing in zip(column, column.isna(), strict=True)],
        dtype=object,
    )


def _numbers(frame: "DataFrame", name: str) -> Any:
    import pandas

    column = frame[name]
    if name == "skew":
        column = column.map(_skew)
    return pandas.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _skew(value: Any) -> Any:
    """Return the exponent of the routing: names such as `balanced` and `power_law_1.2` are understood."""
    text = str(value).strip().lower()
    return SKEW_NAMES.get(text, text.removeprefix("power_law_") or np.nan)


def write_table(frame: "DataFrame", target: Path | None) -> None:
    """Write Parquet or CSV by the ending, whole or not at all; CSV to standard output without a target."""
    if target is not None and target.suffix.lower() in (".parquet", ".pq"):
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomic(target, buffer.getvalue())
        return
    text = frame.to_csv(index=False)
    if target is None:
        sys.stdout.write(text)
    else:
        write_atomic(target, text)
