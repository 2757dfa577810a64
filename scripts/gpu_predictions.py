"""How predictions compare with the rows of a GPU run: shapes that a fit did not see, crossovers, joules."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas

from codesign.cost.energy import kernel_energy_joule
from codesign.cost.fit import split_library
from codesign.cost.fit_gemm import GemmRows, fit_gemm
from codesign.cost.gemm_time import gemm_seconds
from codesign.cost.kernels import gemm
from codesign.cost.sheet_file import read_sheets
from codesign.cost.target import Target
from codesign.errors import CodesignError
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.profiler.run_folder import HARDWARE, read_run
from codesign.schemes.catalog import parse_scheme

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS = 48
FOLDS = 3
SAME_SIGN = 0.05  # gains within 5 % of 1 have no sign
SIZES = ["m", "n", "k"]


def machine_of(folder: Path) -> Hardware:
    """Return the machine of a run."""
    stored = folder / HARDWARE
    return load_hardware(str(stored) if stored.is_file() else read_run(folder).head.hw)


def unseen_shapes(frame: "DataFrame", folder: Path) -> "DataFrame":
    """Return the rows with `fitted_s`, what a fit of up to 48 rows of other shapes predicts; without a fit none."""
    if frame.empty:
        return frame
    hardware = machine_of(folder / "gemm")
    shapes = frame[["n", "k"]].drop_duplicates().reset_index(drop=True)
    folds = frame.merge(shapes.assign(fold=shapes.index % FOLDS), on=["n", "k"])
    parts = folds.groupby(["library", "kernel", "scheme"])
    found = [one for _, rows in parts for one in _left_out(rows, hardware)]
    return pandas.concat(found, ignore_index=True) if found else frame.iloc[:0].assign(fitted_s=[])


def _left_out(rows: "DataFrame", hardware: Hardware) -> Iterator["DataFrame"]:
    scheme = parse_scheme(str(rows["scheme"].iloc[0]))
    for fold in range(FOLDS):
        learn, test = rows[rows["fold"] != fold], rows[rows["fold"] == fold]
        if test.empty or learn.empty:
            continue
        learn = learn.sample(min(POINTS, len(learn)), random_state=fold)
        try:
            fit = fit_gemm(GemmRows(*_columns(learn, [*SIZES, "measured_s"])), hardware, scheme)
        except CodesignError:  # too few rows, which a shorter run has
            continue
        time = gemm_seconds(fit.constants, hardware, scheme, *_columns(test, SIZES))
        yield test.assign(fitted_s=time.predicted_s)


def _columns(frame: "DataFrame", names: Sequence[str]) -> Iterator["np.ndarray[tuple[int], np.dtype[np.float64]]"]:
    return (frame[name].to_numpy(float) for name in names)


def wrong_signs(unseen: "DataFrame") -> list[float]:
    """Return 1 for each measured gain or loss over FP16 of more than 5 % whose sign is predicted wrong, else 0."""
    if unseen.empty:
        return []
    plain = unseen[(unseen["kernel"] == "linear") & (unseen["scheme"] == "FP16")]
    paired = unseen[unseen["scheme"] != "FP16"].merge(plain, on=SIZES, suffixes=("", "_plain"))
    measured = paired["measured_s_plain"] / paired["measured_s"]
    predicted = paired["fitted_s_plain"] / paired["fitted_s"]
    clear = (measured - 1).abs() > SAME_SIGN
    return [float(one) for one in ((measured > 1) != (predicted > 1))[clear]]


def crossover_errors(unseen: "DataFrame", fused: Sequence[str]) -> list[float]:
    """Return by how much the rows from which cuBLAS is faster than a fused kernel are predicted wrong, per shape."""
    if unseen.empty:
        return []
    errors = []
    for _, rows in unseen.groupby(["n", "k"]):
        ours = rows[rows["kernel"].isin(fused)]
        plain = (rows["kernel"] == "linear") & (rows["scheme"] == "FP16")
        others = rows[plain | (rows["kernel"] == "dequantize_mm") & rows["scheme"].str.startswith("W4A16")]
        measured, predicted = (crossover(ours, others, column) for column in ("measured_s", "fitted_s"))
        if measured is not None:
            errors.append(abs(predicted / measured - 1) if predicted is not None else 1.0)
    return errors


def crossover(ours: "DataFrame", others: "DataFrame", column: str) -> float | None:
    """Return the rows at which two sides take equally long, between measured ones; None where one always wins."""
    ratio = (ours.groupby("m")[column].min() / others.groupby("m")[column].min()).dropna().sort_index()
    logs, m = np.log(ratio.to_numpy(float)), ratio.index.to_numpy(float)
    for i in range(len(logs) - 1):
        if logs[i] <= 0 < logs[i + 1]:
            part = -logs[i] / (logs[i + 1] - logs[i])
            return float(m[i] * (m[i + 1] / m[i]) ** part)
    return None


def energy_errors(frame: "DataFrame", folder: Path) -> list[float]:
    """Return the errors of the joules of a call, predicted with the sheets that this run gave."""
    if "gross_joule_per_call" not in frame:
        return []
    measured = frame.dropna(subset=["gross_joule_per_call"])
    hardware = machine_of(next(folder.glob("energy*/run.json")).parent)
    sheets = read_sheets([str(path) for path in sorted((folder / "sheets").glob("*.yaml"))])
    errors = []
    for row in measured[measured["op"] == "gemm"].to_dict("records"):
        library, _ = split_library(str(row["library"]))
        target = Target(hardware, library, sheets=sheets, kernel=str(row["kernel"]))
        sizes = (np.asarray([row[name]], dtype=float) for name in SIZES)
        predicted = gemm(target, parse_scheme(str(row["scheme"])), *sizes)
        joule = kernel_energy_joule(hardware, predicted.predicted_s, predicted.power_load)
        errors.append(abs(float(np.squeeze(joule)) / float(row["gross_joule_per_call"]) - 1))
    return errors
