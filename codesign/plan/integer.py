"""Integer programs with a sparse structure, solved by HiGHS through scipy to a proven gap."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from codesign.cost.arrays import FloatArray

PROVEN_GAP = 1e-7
ROUGH_GAP = 1e-4
# Nodes are limited instead of seconds, so that the same problem gives the same plan on every machine; the gap that is
# left is printed. A node costs time in proportion to the options that remain.
NODES_TIMES_CELLS = 1_000_000
GOAL_SCALE = 1e3  # HiGHS stops at an absolute gap of 1e-6; the objective is scaled well above it


@dataclass(frozen=True, slots=True)
class IntegerProgram:
    """Minimise goal · x with `equal` x = `exactly` and `budget` x <= `room`, 0 <= x <= upper, x integer."""

    goal: FloatArray
    upper: FloatArray
    equal: csr_array
    exactly: FloatArray
    budget: csr_array
    room: FloatArray


def branch_and_bound(program: IntegerProgram) -> tuple[FloatArray, float] | None:
    """Return x and the proven relative gap, or None if infeasible.

    A rough solution bounds the objective; every variable whose reduced cost in the linear relaxation exceeds the
    distance between the two cannot be part of a better one and is dropped before the exact search.
    """
    rough = _milp(program, ROUGH_GAP)
    if rough is None or rough[1] <= PROVEN_GAP:
        return rough
    relaxed = linprog(
        program.goal,
        A_ub=program.budget if len(program.room) else None,
        b_ub=program.room if len(program.room) else None,
        A_eq=program.equal,
        b_eq=program.exactly,
        bounds=np.stack([np.zeros_like(program.upper), program.upper], axis=1),
        method="highs",
    )
    distance = float(program.goal @ rough[0]) - relaxed.fun
    reduced_cost = (
        program.goal - program.equal.T @ relaxed.eqlin.marginals - program.budget.T @ relaxed.ineqlin.marginals
    )
    core = np.flatnonzero((reduced_cost <= distance * (1 + 1e-9)) | (rough[0] > 0))
    smaller = IntegerProgram(
        program.goal[core],
        program.upper[core],
        program.equal[:, core],
        program.exactly,
        program.budget[:, core],
        program.room,
    )
    exact = _milp(smaller, PROVEN_GAP)
    if exact is None or smaller.goal @ exact[0] > program.goal @ rough[0] * (1 + PROVEN_GAP):
        return rough
    x = np.zeros_like(program.goal)
    x[core] = exact[0]
    return x, exact[1]


def _milp(program: IntegerProgram, relative_gap: float) -> tuple[FloatArray, float] | None:
    constraints = [LinearConstraint(program.equal, program.exactly, program.exactly)]
    if len(program.room):
        constraints.append(LinearConstraint(program.budget, -np.inf, program.room))
    nodes = max(100, NODES_TIMES_CELLS // len(program.goal))
    for presolve in (True, False):
        with _no_output():
            result = milp(
                program.goal,
                integrality=np.ones_like(program.upper),
                bounds=Bounds(0.0, program.upper),
                constraints=constraints,
                options={"mip_rel_gap": relative_gap, "node_limit": nodes, "presolve": presolve},
            )
        if result.x is None:
            return None
        x = np.rint(result.x)
        # Presolve of HiGHS can claim a solution that breaks an equality (scipy issue 24141); then it is left out.
        if (program.equal @ x == program.exactly).all():
            return x, max(0.0, float(result.mip_gap or 0.0))
    return None


@contextmanager
def _no_output() -> Iterator[None]:
    """Keep what the C++ code of HiGHS prints (a debug line, whatever its options say) out of standard output."""
    try:
        sys.stdout.flush()
        saved = os.dup(1)
    except (OSError, ValueError):  # no standard output to protect
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C still buffers would come out later
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
