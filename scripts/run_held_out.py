"""How well a few measured points of a run predict the layer shapes that they do not hold: errors, gains, wrong signs.

    python scripts/run_held_out.py RUN [POINTS [THREADS]]

Every draw fits each kernel on POINTS rows (48 unless told) of most shapes and predicts the others, at least one. Rows
that are only suspect count too: they scatter, they are not wrong.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas

from codesign.cost.cpu_gemm_time import CpuState, cpu_gemm_work, cpu_state, cpu_work_seconds
from codesign.cost.fit_cpu_gemm import fit_cpu_gemm
from codesign.cost.fit_gemm import GemmRows
from codesign.errors import CodesignError
from codesign.hardware.hardware import Hardware
from codesign.profiler.run_folder import read_run
from codesign.report.run_gains import baseline_of
from codesign.report.run_report import run_report
from codesign.schemes.catalog import parse_scheme

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS_USUAL = 48
DRAWS = 4
SAME_SIGN = 0.05  # gains within 5 % of 1 have no sign
CASE = ["m", "n", "k", "threads"]


def predictions(frame: "DataFrame", hardware: Hardware, points: int, seed: int) -> Iterator["DataFrame"]:
    """Yield the rows of unseen shapes with what each kernel's fit predicts for them."""
    shapes = frame[["n", "k"]].drop_duplicates().sample(frac=1.0, random_state=seed)
    learned = shapes.iloc[: len(shapes) - max(1, len(shapes) // 3)]
    seen = frame.merge(learned, on=["n", "k"], how="left", indicator=True)["_merge"] == "both"
    for _, rows in frame.groupby(["library", "kernel", "scheme"]):
        learn, test = rows[seen.to_numpy()[rows.index]], rows[~seen.to_numpy()[rows.index]]
        if len(learn) < points or test.empty:
            continue
        learn = learn.sample(points, random_state=seed)
        scheme = parse_scheme(str(rows["scheme"].iloc[0]))
        columns = (learn[name].to_numpy(float) for name in ("m", "n", "k", "measured_s"))
        try:
            fit = fit_cpu_gemm(GemmRows(*columns), _state(learn, hardware), hardware, scheme)
        except CodesignError as error:
            print(f"{scheme.name}: {error}", file=sys.stderr)
            continue
        work = cpu_gemm_work(
            hardware, scheme, *(test[name].to_numpy(float) for name in ("m", "n", "k")), _state(test, hardware)
        )
        yield test.assign(fitted_s=cpu_work_seconds(fit.constants, work).predicted_s)


def _state(frame: "DataFrame", hardware: Hardware) -> CpuState:
    return cpu_state(hardware, *(frame[name].to_numpy(float) for name in ("threads", "memory_gb_per_s")))


def gain_errors(tested: "DataFrame") -> tuple[float, float]:
    """Return the mean error of gains over the fastest baseline kernel, and the share of wrong signs outside of 5 %."""
    baseline = baseline_of(tested)
    base = tested[tested["scheme"] == baseline].sort_values("measured_s").drop_duplicates([*CASE, "draw"])
    paired = tested[tested["scheme"] != baseline].merge(base, on=[*CASE, "draw"], suffixes=("", "_base"))
    measured = paired["measured_s_base"] / paired["measured_s"]
    predicted = paired["fitted_s_base"] / paired["fitted_s"]
    clear = np.abs(measured - 1) > SAME_SIGN
    wrong = clear & ((measured > 1) != (predicted > 1))
    return float(np.mean(np.abs(predicted / measured - 1))), float(wrong.sum() / max(clear.sum(), 1))


def main() -> None:
    """Print the errors per kernel, and of gains."""
    points = int(sys.argv[2]) if len(sys.argv) > 2 else POINTS_USUAL
    report = run_report(read_run(Path(sys.argv[1])))
    chosen = (report.frame["op"] == "gemm") & (report.frame["verdict"] != "invalid")
    if len(sys.argv) > 3:
        chosen &= report.frame["threads"] == int(sys.argv[3])
    frame = report.frame[chosen].reset_index(drop=True)
    draws = [
        pandas.concat(predictions(frame, report.hardware, points, seed)).assign(draw=seed) for seed in range(DRAWS)
    ]
    tested = pandas.concat(draws, ignore_index=True)
    error = np.abs(tested["fitted_s"] / tested["measured_s"] - 1)
    print(f"{'library, kernel, scheme':60} rows  error")
    for names, part in error.groupby([tested["library"], tested["kernel"], tested["scheme"]]):
        print(f"{' '.join(names):60} {len(part):4}  {100 * part.mean():.1f} %")
    gain, wrong = gain_errors(tested)
    print(f"all: {100 * error.mean():.1f} % over {len(error):,} unseen rows; gains {100 * gain:.1f} %, "
          f"wrong sign {100 * wrong:.1f} % of those outside of 5 %")  # fmt: skip
    before = frame.dropna(subset=["predicted_s"])
    off = np.abs(before["predicted_s"] / before["measured_s"] - 1).mean()
    print(f"before any fit: {100 * off:.1f} % over {len(before):,} rows")


if __name__ == "__main__":
    main()
