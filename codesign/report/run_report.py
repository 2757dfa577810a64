"""What a run of the profiler says, as values: validation, gains, layers, counts. Made from the run alone."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codesign.cost.sheet import KernelSheet
from codesign.cost.validate import TableValidation, predict_figures, predict_measured, validate_table
from codesign.cost.waterfall import GainStep
from codesign.errors import InputError
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.hardware.threads import with_threads
from codesign.profiler.export import frame_of, run_table
from codesign.profiler.run_folder import HARDWARE, Run
from codesign.report.run_gains import Gain, LayerRow, gains, layer_rows, measured_gain_steps
from codesign.units import GIGA

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class RunReport:
    """All of the page's numbers. `frame` holds every measured row with its prediction and share of the roof."""

    hardware: Hardware
    frame: "DataFrame"
    validation: TableValidation
    predicted: dict[str, "DataFrame"]
    gains: tuple[Gain, ...]
    layers: tuple[LayerRow, ...]
    steps: dict[str, tuple[GainStep, ...]]
    verdict_counts: dict[str, int]


def run_report(run: Run, sheets: tuple[KernelSheet, ...] = ()) -> RunReport:
    """Return what the run says; InputError if it has no usable row."""
    if not run.measurements:
        raise InputError(f"{run.folder}: nothing was measured yet; run `codesign profile` again with the same options.")
    stored = run.folder / HARDWARE
    where = str(stored) if stored.is_file() else run.head.hw
    hardware = load_hardware(where)
    frame = frame_of(run.measurements).assign(hw=where)
    frame = predict_measured(frame.assign(measured_s=frame["measured_s"].astype(float)), sheets)
    frame = frame.assign(roof_fraction=roof_fractions(frame, hardware))
    usable = frame[(frame["verdict"] != "invalid") & (frame["op"] == "gemm")]
    table = run_table(run)
    predicted = predict_figures(table, sheets)
    schemes = dict.fromkeys(usable["scheme"]) if len(usable) else {}
    steps = {scheme: found for scheme in schemes if (found := measured_gain_steps(usable, scheme))}
    return RunReport(
        hardware=hardware,
        frame=frame,
        validation=validate_table(table, predicted),
        predicted=predicted,
        gains=gains(usable),
        layers=layer_rows(usable),
        steps={scheme: found for scheme, found in steps.items() if found[0].gain > 1.0},
        verdict_counts=dict(Counter(frame["verdict"])),
    )


def roof_fractions(frame: "DataFrame", hardware: Hardware) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Return the roofline time over the measured time: bytes at the memory's bandwidth or flop at the peak rate.

    The bandwidth is the one measured beside the row, where it was.
    """
    result = np.full(len(frame), np.nan)
    for threads, math_dtype in {*zip(frame["threads"], frame["math_dtype"], strict=True)}:
        rows = ((frame["threads"] == threads) & (frame["math_dtype"] == math_dtype)).to_numpy()
        machine = with_threads(hardware, int(threads)) if hardware.kind == "cpu" else hardware
        read_bytes, beside = (frame[name].to_numpy(float)[rows] for name in ("read_bytes", "memory_gb_per_s"))
        bytes_s = read_bytes / np.where(beside > 0, beside * GIGA, machine.memory.bandwidth_bytes_per_s)
        rate = machine.peak_flop_per_s.get(math_dtype)
        flop_s = frame["flop"].to_numpy(float)[rows] / rate if rate else np.zeros(rows.sum())
        result[rows] = np.maximum(bytes_s, flop_s) / frame["measured_s"].to_numpy(float)[rows]
    return result
