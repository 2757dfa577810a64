"""Predictions of measured rows by constants that have not seen them: other shapes, or another machine's sheets."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from fit_sheets import DATE, LEFT_OUT, SOURCE
from measured_rows import kernel_frame

from codesign.cost.arrays import FloatArray
from codesign.cost.calibration import OTHER_MACHINE_FACTORS, scaled
from codesign.cost.fit import fit_frame, split_library
from codesign.cost.sheet import KernelSheet
from codesign.cost.sheet_file import load_sheet, relative_distance, shipped_sheets
from codesign.cost.table import OPERATIONS, operation_numbers
from codesign.cost.table_file import kernel_columns
from codesign.cost.target import Target
from codesign.cost.validate import predict_measured
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv

# What tells one shape from another: rows that agree in these are held out together.
SHAPES = {
    "gemm": ("n", "k"),
    "attention_decode": ("heads", "kv_heads"),
    "attention_prefill": ("heads", "kv_heads"),
    "moe": ("hidden", "intermediate", "experts", "top_k", "tp", "ep"),
    "all_reduce": ("message_bytes",),
    "all_gather": ("message_bytes",),
    "reduce_scatter": ("message_bytes",),
    "all_to_all": ("message_bytes",),
}
SEED = 41


@dataclass(frozen=True, slots=True)
class Group:
    """Measured rows of one operation on one machine with one library, all its versions together."""

    operation: str
    hardware: Hardware
    library: str
    frame: pd.DataFrame


def groups(operation: str) -> Iterator[Group]:
    """Yield the measured rows of an operation."""
    frame = kernel_frame(operation)
    frame = frame[~frame["library"].isin(LEFT_OUT)]
    libraries = frame["library"].map(lambda text: split_library(text)[0])
    for (hw, library), rows in frame.groupby([frame["hw"], libraries]):
        yield Group(operation, load_hardware(str(hw)), str(library), rows.reset_index(drop=True))


def unseen(frame: pd.DataFrame, operation: str) -> npt.NDArray[np.bool_]:
    """Return a random half of the shapes, the same for every scheme and library."""
    shapes = frame[list(SHAPES[operation])].astype(float).round(6)
    codes = pd.util.hash_pandas_object(shapes, index=False).to_numpy()
    return np.asarray((codes // np.uint64(SEED)) % np.uint64(2) == 1)


def half_unseen(group: Group) -> pd.DataFrame:
    """Return the rows of unseen shapes with predictions by a sheet fitted to the others."""
    test = unseen(group.frame, group.operation)
    fit = fit_frame(group.frame[~test].reset_index(drop=True), group.hardware)
    for refusal in fit.refusals:
        print(f"{group.operation} {refusal.scheme} {group.hardware.name} {group.library}: {refusal.reason}", flush=True)
    return predicted_by(
        group, KernelSheet(group.hardware.name, group.library, "", DATE, SOURCE, fit.calibrations), test
    )


def other_machine(group: Group) -> pd.DataFrame | None:
    """Return the rows with predictions by the sheet of the nearest other machine, None if there is none."""
    found = [
        (distance, machine)
        for machine, library in shipped_sheets()
        if library == group.library and machine != group.hardware.name
        for distance in [relative_distance(group.hardware, load_hardware(machine))]
        if distance is not None
    ]
    sheet = load_sheet(min(found)[1], group.library) if found else None
    if sheet is None or not any(operation == group.operation for operation, _ in sheet.calibrations):
        return None
    source = load_hardware(sheet.hardware)
    calibrations = {
        key: replace(
            one,
            constants=scaled(one.constants, group.hardware, source),
            low_factor=min(one.low_factor, OTHER_MACHINE_FACTORS[0]),
            high_factor=max(one.high_factor, OTHER_MACHINE_FACTORS[1]),
        )
        for key, one in sheet.calibrations.items()
    }
    borrowed = replace(sheet, hardware=group.hardware.name, calibrations=calibrations)
    keep = _held(group, {key for operation, key in calibrations if operation == group.operation})
    return predicted_by(group, borrowed, keep) if keep.any() else None


def _held(group: Group, keys: set[str]) -> npt.NDArray[np.bool_]:
    """Return the rows whose scheme or KV format is among the keys of a sheet."""
    if group.operation in ("gemm", "moe"):
        return group.frame["scheme"].map(lambda name: parse_scheme(name).name in keys).to_numpy()
    if group.operation.startswith("attention"):
        formats = {key.rpartition("-")[0] for key in keys}
        return group.frame["kv_dtype"].map(lambda name: parse_kv(name).name in formats).to_numpy()
    return np.ones(len(group.frame), dtype=bool)


def predicted_by(group: Group, sheet: KernelSheet, rows: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Return the chosen rows with predictions by one sheet."""
    frame = predict_measured(group.frame[rows].reset_index(drop=True), (sheet,))
    return frame[frame["reason"] == ""]


def datasheet(group: Group, frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return the seconds that the profile alone predicts for rows of the group, and their fixed part."""
    unrelated = replace(group.hardware, name="none", architecture="none")
    columns = kernel_columns(frame)
    seconds, fixed_s = (np.full(len(frame), np.nan) for _ in range(2))
    keys = pd.DataFrame({"scheme": columns["scheme"], "kv": columns["kv_dtype"]})
    operation, target = OPERATIONS[group.operation], Target(unrelated, group.library)
    for (scheme, kv), rows in keys.groupby(["scheme", "kv"]).indices.items():
        reasons = np.full(len(frame), "", dtype=object)
        numbers, usable = operation_numbers(operation, columns, np.asarray(rows), reasons)
        predicted = operation.predict(target, scheme, kv, {name: x[usable] for name, x in numbers.items()})
        chosen = np.asarray(rows)[usable]
        seconds[chosen], fixed_s[chosen] = predicted.predicted_s, predicted.time.fixed_s
    return seconds, fixed_s
