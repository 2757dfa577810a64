"""What schemes gained in a run: speed against 16 bits by rows of activations, measured and predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from codesign.cost.waterfall import GainStep
from codesign.schemes.catalog import parse_scheme

if TYPE_CHECKING:
    from pandas import DataFrame

BASELINES = ("BF16", "FP16", "FP32")
CASE = ["m", "n", "k", "threads"]


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of a scheme's fastest kernel over the baseline's at m rows: the geometric mean over layer shapes."""

    scheme: str
    threads: int
    m: int
    measured: float
    predicted: float | None
    layer_count: int


@dataclass(frozen=True, slots=True)
class LayerRow:
    """The fastest kernel of a scheme for one multiplication, beside the baseline's fastest."""

    m: int
    n: int
    k: int
    threads: int
    scheme: str
    library: str
    kernel: str
    measured_s: float
    predicted_s: float | None
    gain: float
    roof_fraction: float
    kernel_note: str = ""


def baseline_of(frame: "DataFrame") -> str | None:
    """Return the 16-bit (else 32-bit) scheme that was measured, None if none was."""
    measured = set(frame["scheme"]) if len(frame) else set()
    return next((name for name in BASELINES if name in measured), None)


def fastest(frame: "DataFrame") -> "DataFrame":
    """Return the fastest measured kernel for every case and scheme."""
    order = frame.sort_values("measured_s", kind="stable")
    return order.drop_duplicates([*CASE, "scheme"]).sort_index()


def gains(frame: "DataFrame") -> tuple[Gain, ...]:
    """Return the gains of all schemes over the baseline, by threads and rows; none without a baseline."""
    baseline = baseline_of(frame)
    if baseline is None:
        return ()
    best = fastest(frame)
    of_base = best[best["scheme"] == baseline].set_index(CASE)
    found = []
    others = best[best["scheme"] != baseline]
    for (scheme, threads, m), rows in others.groupby(["scheme", "threads", "m"], sort=True):
        paired = rows.set_index(CASE).join(of_base[["measured_s", "predicted_s"]].add_suffix("_base"), how="inner")
        if paired.empty:
            continue
        measured = _geometric_mean(paired["measured_s_base"] / paired["measured_s"])
        predicted = _geometric_mean(paired["predicted_s_base"] / paired["predicted_s"])
        known = predicted if np.isfinite(predicted) else None
        found.append(Gain(str(scheme), int(threads), int(m), measured, known, len(paired)))
    return tuple(found)


def _geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.asarray(ratios, dtype=np.float64)))))


def break_even(curve: Sequence[Gain]) -> float | None:
    """Return the rows at which the measured gain falls to 1, between the two counts that show it; None if it does not.

    `curve` is of one scheme on one number of threads, by growing m.
    """
    for before, after in pairwise(curve):
        if before.measured > 1.0 >= after.measured:
            share = np.log(before.measured) / np.log(before.measured / after.measured)
            return float(before.m * (after.m / before.m) ** share)
    return None


def layer_rows(frame: "DataFrame") -> tuple[LayerRow, ...]:
    """Return the fastest kernel of every scheme for every multiplication, with its gain and share of the roof."""
    baseline = baseline_of(frame)
    if baseline is None:
        return ()
    best = fastest(frame)
    base_s = best[best["scheme"] == baseline].set_index(CASE)["measured_s"]
    rows = []
    for one in best.sort_values([*CASE, "measured_s"]).to_dict("records"):
        case = tuple(one[name] for name in CASE)
        if case not in base_s.index:
            continue
        predicted = one["predicted_s"] if np.isfinite(one["predicted_s"]) else None
        m, n, k, threads = (int(size) for size in case)
        gain = float(base_s.loc[case] / one["measured_s"])
        rows.append(LayerRow(m, n, k, threads, one["scheme"], one["library"], one["kernel"], one["measured_s"],
                             predicted, gain, one["roof_fraction"], one["kernel_note"]))  # fmt: skip
    return tuple(rows)


def measured_gain_steps(frame: "DataFrame", scheme: str) -> tuple[GainStep, ...]:
    """Return how the gain of bits alone shrinks to the measured one at the fewest rows; none where it was not measured.

    Bits alone are baseline bits over the scheme's, then its scales and zero points are counted, then what its kernel
    reaches of the memory's bandwidth beside what the baseline's reaches.
    """
    baseline = baseline_of(frame)
    if baseline is None:
        return ()
    fewest = frame[(frame["m"] == frame["m"].min()) & (frame["threads"] == frame["threads"].max())]
    best = fastest(fewest)
    of_base = best[best["scheme"] == baseline].set_index(CASE)[["measured_s", "read_bytes"]].add_suffix("_base")
    pairs = best[best["scheme"] == scheme].set_index(CASE).join(of_base, how="inner")
    if pairs.empty:
        return ()
    bits = parse_scheme(baseline).weights.bits / parse_scheme(scheme).weights.bits
    stored = _geometric_mean(pairs["read_bytes_base"] / pairs["read_bytes"])
    gain = _geometric_mean(pairs["measured_s_base"] / pairs["measured_s"])
    causes = (("bits alone", bits), ("scales, zero points, padding", stored), ("what the kernels reach", gain))
    return tuple(GainStep(cause, value) for cause, value in causes)
