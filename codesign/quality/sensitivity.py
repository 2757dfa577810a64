"""What each scheme loses in each fused group of a model, measured: one table, by one of three tiers.

    weights   weight error x the prior's shape; no text needed
    fisher    second-order KL of the rounding errors, from one backward pass over a text
    kl        real KL with one fused group swapped

All round with the exporter's own rounding. Isolated losses do not add up exactly: the KL of one scheme used everywhere,
over the sum of its cells, is the table's calibration.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError, did_you_mean
from codesign.quality.cells import Cell, Cells, Progress, Task
from codesign.quality.divergence import Divergence, divergences, mean_divergence, run_blocks
from codesign.quality.estimate import LossEstimate, LossOrigin
from codesign.quality.fisher import fisher_cells
from codesign.quality.kv import kv_loss
from codesign.quality.rounded import RoundedSource
from codesign.quality.state import State
from codesign.quality.swap import swap_cells
from codesign.quality.table import QualityTable
from codesign.quality.weight_only import weight_cells
from codesign.quantize.network import Batch, Network
from codesign.quantize.pieces import Here, Place, Workers
from codesign.quantize.source import WeightSource
from codesign.schemes.kv import KV_FORMATS, KvFormat
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_EVIDENCE = {
    "weights": "weight error by the shape of the prior",
    "fisher": "second-order KL from gradients",
    "kl": "KL with this group alone in the scheme",
}
TIERS = tuple(_EVIDENCE)
_NORMAL_80 = 1.2816
_LOSS_NATS_MAX = 50.0
_CALIBRATION_TOKENS = 8192
# Plans lie around this loss; the scheme whose predicted sum is nearest calibrates the table.
_CALIBRATION_NATS = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure and how; `text` says in words what the windows are."""

    tier: str
    schemes: tuple[Scheme, ...]
    text: str
    kv_formats: tuple[KvFormat, ...] = ()
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise InputError(
                f'"{self.tier[:40]}" is not a tier.{did_you_mean(self.tier, TIERS)} Known are {", ".join(TIERS)}.'
            )
        if not any(scheme.quantized for scheme in self.schemes):
            raise InputError("No quantized scheme to measure; name some, such as --schemes W4A16-g64,W8A8.")


def measure_sensitivity(
    source: WeightSource,
    windows: "Tensor | None",
    request: Request,
    state: State,
    progress: Progress,
    workers: Workers | None = None,
) -> QualityTable:
    """Return the table; `windows` [count, length] may be None with tier `weights`, whose sums are then the prior's."""
    task = Task(source, tuple(scheme for scheme in request.schemes if scheme.quantized), workers)
    if windows is None:
        if request.tier != "weights" or request.kv_formats:
            raise InputError(f"The tier {request.tier} needs a text: give --text FILE or --self-generated.")
        return _table(task, request, weight_cells(task, state, progress), {}, 1.0)
    network = Network(source, request.device)
    if workers is None:
        task = replace(task, workers=Here(Place(source, {request.device: network})))
    cells: Cells
    if request.tier == "weights":
        cells = weight_cells(task, state, progress)
    else:
        measure = fisher_cells if request.tier == "fisher" else swap_cells
        cells = measure(task, network, windows, state, progress)
    some = windows[: max(_CALIBRATION_TOKENS // windows.shape[1], 2)]
    whole = EndToEnd(task, network, some, state, progress)
    kv = {kv.name: whole.kv(kv) for kv in request.kv_formats}
    return _table(task, request, cells, kv, _calibration(task, cells, whole))


@dataclass(eq=False)
class EndToEnd:
    """Measures KL against the exact network on the same windows, each once."""

    task: Task
    network: Network
    windows: "Tensor"
    state: State
    progress: Progress
    _ends: list[Batch] | None = None

    def uniform(self, scheme: Scheme) -> Divergence:
        """Return the KL of one scheme wherever it can be."""
        found = {
            layer.name: scheme
            for group in self.task.all_groups
            if not self.task.problem(group, scheme)
            for layer in group.layers
        }
        return self._kept(f"everywhere {scheme.name}", lambda: self._swapped(found))

    def kv(self, format_: KvFormat) -> Divergence:
        """Return the KL of a quantized KV cache."""
        return self._kept(f"KV {format_.name}", lambda: self._with_kv(format_))

    def _kept(self, name: str, measure: Any) -> Divergence:
        found = self.state.get(name)
        if found is None:
            self.progress(name)
            kl = mean_divergence(measure())
            found = [kl.kl_nats, kl.standard_error_nats]
            self.state.keep({name: found})
        return Divergence(*found)

    def _exact(self) -> list[Batch]:
        if self._ends is None:
            self._ends = run_blocks(self.network, self.windows, lambda step: self.progress(f"exact, {step}"))
        return self._ends

    def _swapped(self, schemes: Mapping[str, Scheme]) -> list[float]:
        other = Network(RoundedSource(self.task.source, schemes), self.network.device)
        return divergences(self.network, self._exact(), other, run_blocks(other, self.windows, self.progress))

    def _with_kv(self, format_: KvFormat) -> list[float]:
        from codesign.quantize.kv_cache import quantized_kv

        exact = self._exact()
        with quantized_kv(self.network, format_):
            ends = run_blocks(self.network, self.windows, self.progress)
        return divergences(self.network, exact, self.network, ends)


def _calibration(task: Task, cells: Cells, whole: EndToEnd) -> float:
    """Return the KL of one scheme used everywhere over the sum of its cells."""
    sums = {
        scheme: math.fsum(cell.loss_nats for (_, name), cell in cells.items() if name == scheme.name)
        for scheme in task.schemes
    }
    known = {scheme: value for scheme, value in sums.items() if value > 0}
    if not known:
        return 1.0
    scheme = min(known, key=lambda one: abs(math.log(known[one] / _CALIBRATION_NATS)))
    measured = whole.uniform(scheme).kl_nats
    return measured / known[scheme] if measured > 0 else 1.0


def _table(
    task: Task, request: Request, cells: Cells, kv: Mapping[str, Divergence], calibration: float
) -> QualityTable:
    evidence = f"{_EVIDENCE[request.tier]}; {request.text}" if request.text else _EVIDENCE[request.tier]
    methods = {scheme.name: "llama.cpp" if scheme.family == "gguf" else "rtn" for scheme in task.schemes}
    estimates = {
        key: _estimate(cell, methods[key[1]], evidence) for key, cell in cells.items()
    }  # fmt: skip
    return QualityTable(
        task.model.name,
        task.model.digest,
        request.text or "none",
        f"KL divergence from the exact model, tier {request.tier}",
        estimates,
        {**_prior_kv(task), **{name: _measured_kv(kl, request.text) for name, kl in kv.items()}},
        calibration,
    )


def _estimate(cell: Cell, method: str, evidence: str) -> LossEstimate:
    low, value, high = (min(x, _LOSS_NATS_MAX) for x in (cell.low_nats, cell.loss_nats, cell.high_nats))
    return LossEstimate(value, low, high, LossOrigin.MEASURED, method, evidence)


def _measured_kv(kl: Divergence, text: str) -> LossEstimate:
    value, error = max(kl.kl_nats, 0.0), _NORMAL_80 * kl.standard_error_nats
    high = value + (error if math.isfinite(error) else value)
    return LossEstimate(
        value, max(value - error, 0.0), high, LossOrigin.MEASURED, "rtn", f"measured end to end; {text}"
    )


def _prior_kv(task: Task) -> dict[str, LossEstimate]:
    """Return what the published prior says of the KV formats, where it says something for a model of this size."""
    found = {format_.name: kv_loss(task.model, format_) for format_ in KV_FORMATS.values() if format_.quantized}
    return {
        name: loss
        for name, loss in found.items()
        if isinstance(loss, LossEstimate) and loss.high_nats <= _LOSS_NATS_MAX
    }
