"""What a plan will cost in time and memory, and what its rows could reach: rough figures from the profile's roofs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns
from codesign.errors import CodesignError
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.profiler.block_time import PREDICTED, predict_blocks
from codesign.profiler.candidates import Entry, RunPlan, need_bytes, stored_bytes
from codesign.profiler.export import frame_of
from codesign.profiler.kernel import BlockCase
from codesign.profiler.records import ForeignCase, Measurement, ServingCase
from codesign.profiler.run_folder import HARDWARE, Run
from codesign.profiler.timing import Rule
from codesign.units import GIGA

if TYPE_CHECKING:
    from codesign.cost.arrays import FloatArray

# Assumed: a process imports its library in 3 s, packing and checking go at 1 GB/s, kernels reach a third of the roof.
START_S, PREPARE_BYTES_PER_S, ROOF_SHARE, WARM_UP_S = 3.0, GIGA, 1 / 3, 0.3
ROUND_EXCESS = 2.0  # rounds beyond the fewest, until the interval is narrow


@dataclass(frozen=True, slots=True)
class PlanCost:
    """Rough seconds of a plan, and the memory of its largest block."""

    seconds: float
    memory_bytes: float


def plan_cost(plan: RunPlan, hardware: Hardware, rule: Rule, repeat: int = 1) -> PlanCost:
    """Return what a plan costs, about, where `repeat` fresh processes run each case."""
    cases_s = repeat * sum(_entry_s(entry, hardware, rule) for entry in plan.entries)
    memory_bytes = max((need_bytes(block, len(block)) for block in plan.blocks), default=0.0)
    starts = len(plan.candidates) if repeat == 1 else repeat * len(plan.entries)
    return PlanCost(START_S * starts + cases_s, memory_bytes)


def _entry_s(entry: Entry, hardware: Hardware, rule: Rule) -> float:
    peak = max(hardware.peak_flop_per_s.values(), default=float("inf"))
    memory_s = stored_bytes(entry.case) / hardware.memory.bandwidth_bytes_per_s
    call_s = max(memory_s, entry.case.flop / peak) / ROOF_SHARE
    sampling_s = ROUND_EXCESS * rule.min_samples * max(rule.min_sample_s, call_s)
    prepare_s = (entry.held_bytes + entry.peak_bytes) / PREPARE_BYTES_PER_S
    return prepare_s + WARM_UP_S + min(sampling_s, rule.budget_s)


def run_hardware(run: Run) -> Hardware:
    """Return the machine of a run: the profile that lies in it, else the shipped one of that name."""
    own = run.folder / HARDWARE
    return load_hardware(own if own.is_file() else run.head.hw)


def predicted_seconds(run: Run) -> "FloatArray":
    """Return the predicted time of each row, NaN where there is none; steps hold theirs in their records."""
    if not run.measurements:
        return np.zeros(0)
    own = run.folder / HARDWARE
    frame = frame_of(run.measurements)
    frame["hw"] = str(own) if own.is_file() else frame["hw"]
    noted = np.array([one.procedure.notes.get(PREDICTED) for one in run.measurements], dtype=np.float64)
    if "op" not in frame.columns:
        return noted
    return np.where(np.isnan(noted), predict_table(kernel_columns(frame)).predicted_s, noted)


def predicted_beside_seconds(run: Run) -> "FloatArray":
    """Return what is predicted of each step with the memory that was measured beside it, NaN for all other rows."""
    hardware = run_hardware(run)
    return np.array([_beside_s(one, hardware) for one in run.measurements], dtype=np.float64)


def _beside_s(one: Measurement, hardware: Hardware) -> float:
    if not isinstance(one.case, BlockCase) or one.memory_gb_per_s is None:
        return math.nan
    try:
        bytes_per_s = one.memory_gb_per_s * GIGA
        return predict_blocks(one.case, hardware, one.library, one.kernel, memory_bytes_per_s=bytes_per_s).value
    except CodesignError:
        return math.nan


def roof_fraction(one: Measurement, hardware: Hardware) -> float | None:
    """Return the least time that the machine's roofs allow over the measured one, of the threads that worked."""
    if isinstance(one.case, (ServingCase, ForeignCase)) or one.summary is None or not one.read_bytes or not one.flop:
        return None
    peak = hardware.peak_flop_per_s.get(one.math_dtype)
    share = min(1.0, one.case.threads / hardware.unit_count) if hardware.kind == "cpu" else 1.0
    roofs_s = [one.read_bytes / hardware.memory.bandwidth_bytes_per_s]
    if peak is not None:
        roofs_s.append(one.flop / (peak * share))
    return max(roofs_s) / one.summary.median_s
