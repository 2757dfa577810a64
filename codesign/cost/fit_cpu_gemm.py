"""Fit the constants of codesign/cost/cpu_gemm_time.py to multiplications measured on some threads of a CPU."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.cpu_gemm_time import (
    CPU_REQUIRED_CONSTANTS,
    FEW_ROWS_CONSTANTS,
    CpuGemmWork,
    CpuState,
    cpu_gemm_work,
    cpu_work_seconds,
)
from codesign.cost.fit_constants import (
    Bounds,
    Constants,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
    shape_index,
)
from codesign.cost.fit_gemm import GemmRows, checked_rows
from codesign.cost.sheet import Calibration
from codesign.hardware.hardware import Hardware
from codesign.schemes.scheme import Scheme

# Measured bandwidth beyond the profile's happens on shared machines, whose neighbours are quiet at times.
CPU_CONSTANTS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(1e-7, 1e-2, 5e-6),
    "bandwidth_fraction": Bounds(5e-3, 1.5, 0.8, 0.3),
    "compute_fraction": Bounds(1e-3, 1.1, 0.8, 0.3),
    "unpacked_weights_per_cycle": Bounds(0.1, 1e4, 30.0, 1.5),
    "thread_fraction": Bounds(0.4, 1.0, 0.95, 0.1),
    "overlap_exponent": Bounds(1.0, 8.0, 3.0, 0.5),
    "few_rows_bandwidth_fraction": Bounds(1e-2, 1.5, 0.8, 0.3),
    "few_rows_compute_fraction": Bounds(1e-3, 1.1, 0.3),
}
PASS_ROWS = (None, 4.0, 16.0, 64.0)
# Where a library changes its path, of those between the rows that are usually measured: 1, 4, 16, 64, 256.
FEW_ROWS_MAX = (4.0, 16.0, 64.0)
GAIN_MIN = 0.05
START_COUNT = 2


@dataclass(frozen=True, slots=True)
class _Form:
    """Which constants are fitted, the rows of a pass over the weights, and up to which the path for few is taken."""

    names: tuple[str, ...]
    pass_rows: float | None
    few_rows_max: float | None = None

    @property
    def given(self) -> dict[str, float]:
        known = {"pass_rows": self.pass_rows, "few_rows_max": self.few_rows_max}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def part_count(self) -> int:
        return len(self.given) + (len(self.names) > len(CPU_REQUIRED_CONSTANTS))


@dataclass(frozen=True, slots=True)
class _Problem:
    """The rows to fit and their work, which is computed once."""

    rows: GemmRows
    work: CpuGemmWork


def fit_cpu_gemm(rows: GemmRows, state: CpuState, hardware: Hardware, scheme: Scheme) -> Calibration:
    """Return the calibration of a scheme from measured rows and the state of the machine at each.

    InputError if there are fewer than 12 points, or if they are absurd or alike.
    """
    rows = checked_rows(rows)
    order = np.lexsort((rows.seconds, state.threads, rows.m, rows.k, rows.n))
    rows, state = rows.take(order), CpuState(state.threads[order], state.bytes_per_s[order])
    problem = _Problem(rows, cpu_gemm_work(hardware, scheme, rows.m, rows.n, rows.k, state))
    names = (CPU_REQUIRED_CONSTANTS, CPU_REQUIRED_CONSTANTS + FEW_ROWS_CONSTANTS)
    forms = [_Form(chosen, pass_rows) for chosen, pass_rows in itertools.product(names, PASS_ROWS)]
    forms += [_Form(names[1], None, few_rows_max) for few_rows_max in FEW_ROWS_MAX]
    everything = np.ones(len(rows.m), dtype=np.bool_)
    fits = [_fit(problem, everything, form) for form in forms]
    costs = [cost * (1.0 + GAIN_MIN) ** form.part_count for (_, cost), form in zip(fits, forms, strict=True)]
    best = int(np.argmin(costs))
    ratios = _held_out(problem, forms[best])
    return calibration(fits[best][0], ratios, {"m": rows.m, "n": rows.n, "k": rows.k})


def _take(work: CpuGemmWork, mask: Mask) -> CpuGemmWork:
    arrays = {field.name: getattr(work, field.name) for field in fields(work) if field.name != "clock_hz"}
    return replace(work, **{name: column[mask] for name, column in arrays.items()})


def _fit(problem: _Problem, mask: Mask, form: _Form) -> tuple[Constants, float]:
    """Return the best constants on the rows of the mask, and their cost."""
    work, given = _take(problem.work, mask), form.given
    bounds = {name: CPU_CONSTANTS[name] for name in form.names}
    constants, cost = fit_constants(
        bounds, lambda c: cpu_work_seconds({**c, **given}, work).predicted_s, problem.rows.seconds[mask], START_COUNT
    )
    return {**constants, **given}, cost


def _held_out(problem: _Problem, form: _Form) -> FloatArray:
    """Return measured over predicted of every row, predicted by a fit that saw no row of the same (n, k)."""
    rows = problem.rows
    return held_out_ratios(
        shape_index(rows.n, rows.k),
        rows.seconds,
        lambda mask: _fit(problem, mask, form)[0],
        lambda constants, mask: cpu_work_seconds(constants, _take(problem.work, mask)).predicted_s,
    )
