"""Time our kernels beside every library that is here and print the shares of this machine's roof: `make bench-kernels`.

Roofs and kernels are measured in one run, so that what counts are ratios. `python scripts/bench_kernels.py [RUN]`
prints the table of a run that exists.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codesign.report.run_report import RunReport, run_report

if TYPE_CHECKING:
    from pandas import DataFrame

SIZE = 4096
ROWS = (1, 4, 16, 64, 256)
OWN = "codesign"
# Goals as shares of the roof: W4 of int8 arithmetic (its W4A16 kernels are shown against that of bf16), W8A16 of bf16.
GOALS: dict[str, tuple[float | None, ...]] = {
    "W4": (0.91, 0.58, 0.75, 0.85, 0.90),
    "W8A8": (0.93, 0.91, None, None, None),
    "W8A16": (0.93, 0.66, 0.92, 0.93, 0.96),
    "BF16": (None,) * 5,
}


def measure(folder: Path) -> Path:
    """Measure roofs and kernels into a folder; return the run."""
    local, run = folder / "local.yaml", folder / "run"
    codesign = [sys.executable, "-m", "codesign"]
    subprocess.run([*codesign, "hw", "measure", "-o", str(local)], check=True, stdout=sys.stderr)
    words = ["--shapes", f"{SIZE}x{SIZE}", "--batch", ",".join(map(str, ROWS)), "--threads", "1,2", "--budget-s", "3"]
    subprocess.run([*codesign, "profile", "--hw", str(local), *words, "-o", str(run)], check=True, stdout=sys.stderr)
    return run


def family(scheme: str) -> str | None:
    """Return the row of goals that a scheme belongs to."""
    if scheme == "NF4" or scheme.startswith("W4"):
        return "W4"
    return next((name for name in GOALS if scheme == name or scheme.startswith(f"{name}-")), None)


def lines(report: RunReport) -> list[str]:
    """Return the tables as Markdown, one per thread count."""
    frame = report.frame[(report.frame["op"] == "gemm") & (report.frame["verdict"] != "invalid")]
    frame = frame[(frame["n"] == SIZE) & (frame["k"] == SIZE)]
    frame = frame.assign(family=[family(scheme) for scheme in frame["scheme"]]).dropna(subset=["family"])
    found: list[str] = []
    for threads, rows in frame.groupby("threads"):
        head = " | ".join(f"m = {m}" for m in ROWS)
        found += ["", f"**{threads:g} thread{'s' if threads > 1 else ''}**, n = k = {SIZE}: ms (share of the roof)", ""]
        found += [f"| | {head} |", "|---|" + "---:|" * len(ROWS)]
        for name in GOALS:
            found += _family_lines(name, rows[rows["family"] == name])
    return found


def _family_lines(name: str, rows: "DataFrame") -> list[str]:
    if rows.empty:
        return []
    found = []
    for (library, kernel, scheme), part in rows.groupby(["library", "kernel", "scheme"]):
        by_m = {int(one["m"]): one for one in part.to_dict("records")}
        cells = [
            f"{1e3 * by_m[m]['measured_s']:.3g} ({100 * by_m[m]['roof_fraction']:.0f} %)" if m in by_m else ""
            for m in ROWS
        ]
        mark = "**" if library.startswith(OWN) else ""
        found.append(f"| {mark}{scheme}, {library} {kernel}{mark} | {' | '.join(cells)} |")
    found.append(f"| *{name}: goal, share of the roof* | " + " | ".join(map(_goal, GOALS[name])) + " |")
    found.append(f"| *{name}: ours over the best library* | " + " | ".join(_ratio(rows, m) for m in ROWS) + " |")
    return found


def _goal(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _ratio(rows: "DataFrame", m: int) -> str:
    """Return the best library's time over ours at m rows: above 1 we are faster."""
    here = rows[rows["m"] == m]
    ours = here["library"].str.startswith(OWN)
    best = [part["measured_s"].min() for part in (here[~ours], here[ours])]
    return f"{best[0] / best[1]:.2f}x" if np.isfinite(best).all() else ""


def main() -> None:
    """Print the tables of a run, measured first if none is named."""
    from codesign.profiler.run_folder import read_run

    given = [Path(word) for word in sys.argv[1:]]
    run = given[0] if given else measure(Path(tempfile.mkdtemp(prefix="codesign-bench-")))
    report = run_report(read_run(run))
    print(
        "\n".join([f"Machine: {report.hardware.title}; goals are shares of the roof of a Zen 4 core.", *lines(report)])
    )


if __name__ == "__main__":
    main()
