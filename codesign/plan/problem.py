"""The planning problem as numbers: what each scheme costs for each fused group, and each KV format once.

Every criterion is a sum over groups, plus one KV choice, plus a constant; that additivity is what makes an exact
solution possible. For quality it is an assumption (losses of layers add up in nats), for time it is exact as long as
kernels run one after another, for energy it ignores the power limit of the sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray


class Criterion(StrEnum):
    """What can be minimised or bounded. Throughput and cost are minimised as the time of a whole request."""

    TPOT = "tpot"
    TTFT = "ttft"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    QUALITY = "quality"
    ENERGY = "energy"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class Terms:
    """One criterion: [groups, schemes], [kv formats] and a constant, in SI units. NaN marks an unknown."""

    by_group: FloatArray
    by_kv: FloatArray
    constant: float = 0.0

    def value(self, choice: npt.NDArray[np.intp], kv_choice: int) -> float:
        """Return the criterion of one complete choice."""
        return float(self.by_group[np.arange(len(choice)), choice].sum() + self.by_kv[kv_choice] + self.constant)


@dataclass(frozen=True, slots=True)
class PlanProblem:
    """`allowed[g, s]` and `kv_allowed[k]` say what may be chosen; `terms` hold every criterion that is in use."""

    allowed: npt.NDArray[np.bool_]
    kv_allowed: npt.NDArray[np.bool_]
    terms: Mapping[Criterion, Terms]


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice per group and of KV; `gap_fraction` is the proven distance to the best possible, 0 if optimal."""

    choice: npt.NDArray[np.intp]
    kv_choice: int
    gap_fraction: float
    values: Mapping[Criterion, float]
