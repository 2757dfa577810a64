"""What a run of `scripts/gpu_lane` reached of its goals, as a page: `python scripts/gpu_goals.py FOLDER > README.md`.

FOLDER holds roofs.json and the runs gemm, attention* and energy*, as far as there was time for them. Only valid rows
count. A goal without any row is said to be not measured.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas
from gpu_predictions import crossover_errors, energy_errors, unseen_shapes, wrong_signs

from codesign.profiler.run_folder import read_run
from codesign.report.run_report import run_report
from codesign.units import format_bytes_per_s

if TYPE_CHECKING:
    from pandas import DataFrame

SHARE = 0.8
SAME = 1.02  # medians are known to 1 %
FUSED = ("w4a16_gemm", "triton")
OTHERS = {"tinygemm": 1.0, "a16w4": 1.0, "linear4bit": 1.0, "marlin": 0.95, "machete": 0.95}
COLUMNS = ["op", "library", "kernel", "scheme", "kv_dtype", "m", "n", "k", "measured_s"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table; `reached` is None where nothing was measured."""

    what: str
    wanted: str
    found: str = "no valid row"
    reached: bool | None = None

    @property
    def line(self) -> str:
        """Return the line."""
        state = {None: "not measured", True: "reached", False: "missed"}[self.reached]
        return f"| {self.what} | {self.wanted} | {self.found} | {state} |"


def read_rows(folder: Path, name: str, op: str) -> "DataFrame":
    """Return the valid rows of an operation in runs of a name, with predictions before any fit; perhaps none."""
    frames = [pandas.DataFrame(columns=COLUMNS)]
    for head in sorted(folder.glob(f"{name}*/run.json")):
        run = read_run(head.parent)
        if any(one.is_valid for one in run.measurements):
            frame = run_report(run).frame
            frames.append(frame[(frame["verdict"] == "valid") & (frame["op"] == op)])
    return pandas.concat([one for one in frames if len(one)] or frames, ignore_index=True)


def own(frame: "DataFrame", *kernels: str) -> "DataFrame":
    """Return the rows of our library, of some of its kernels if they are named."""
    ours = frame["library"].str.startswith("codesign")
    return frame[ours & frame["kernel"].isin(kernels)] if kernels else frame[ours]


def share_goal(what: str, rows: "DataFrame", read_bytes_per_s: float) -> Goal:
    """Return how much of the measured read bandwidth the rows reach, the worst first."""
    wanted = "80 % of the read bandwidth"
    if rows.empty or not read_bytes_per_s:
        return Goal(what, wanted)
    shares = rows["read_bytes"] / rows["measured_s"] / read_bytes_per_s
    worst = rows.loc[shares.idxmin()]
    enough = int((shares >= SHARE).sum())
    found = f"{shares.min():.0%} ({size_text(worst)}) to {shares.max():.0%}; {enough} of {len(rows)} cases"
    return Goal(what, wanted, found, enough == len(rows))


def size_text(row: "pandas.Series") -> str:
    """Return the sizes of a case."""
    if row["op"] == "gemm":
        return f"M {row['m']:.0f}, {row['n']:.0f} x {row['k']:.0f}"
    return f"batch {row['batch']:.0f}, {row['kv_tokens']:.0f} tokens"


def against_goal(rows: "DataFrame", kernel: str, factor: float) -> Goal:
    """Return in how many cases ours is so fast as a kernel of another library, which may be wider by its scheme."""
    what, wanted = f"W4A16, M 1 to 16, beside {kernel}", f"{factor:.0%} of its speed or more"
    theirs = rows[rows["kernel"] == kernel]
    ours = own(rows, "w4a16_gemm")
    both = ours.merge(theirs, on=["m", "n", "k"], suffixes=("", "_theirs"))
    if both.empty:
        return Goal(what, wanted)
    speed = both["measured_s_theirs"] / both["measured_s"]
    return Goal(what, wanted, f"{speed.min():.2f} to {speed.max():.2f} of its speed", bool((speed >= factor).all()))


def many_rows_goal(frame: "DataFrame") -> Goal:
    """Return whether a fused kernel is as fast as the best of cuBLAS in half precision and after dequantizing."""
    what, wanted = "W4A16, M 64 to 256", "not slower than FP16 cuBLAS and dequantize + cuBLAS"
    rows = frame[frame["m"].between(64, 256)]
    sizes = ["m", "n", "k"]
    ours = own(rows, *FUSED).groupby(sizes)["measured_s"].min()
    best = alternatives(rows).groupby(sizes)["measured_s"].min()
    ratio = (ours / best).dropna()
    if ratio.empty:
        return Goal(what, wanted)
    good = int((ratio <= SAME).sum())
    return Goal(what, wanted, f"{ratio.min():.2f} to {ratio.max():.2f} of its time; {good} of {len(ratio)} cases",
                good == len(ratio))  # fmt: skip


def alternatives(rows: "DataFrame") -> "DataFrame":
    """Return the rows that a fused kernel for 4-bit weights competes with."""
    plain = (rows["kernel"] == "linear") & (rows["scheme"] == "FP16")
    return rows[plain | ((rows["kernel"] == "dequantize_mm") & rows["scheme"].str.startswith("W4A16"))]


def error_goal(what: str, limit: float, errors: Sequence[float], of: str = "rows") -> Goal:
    """Return a goal of a mean error."""
    wanted = f"{limit:.0%} or less"
    if not len(errors):
        return Goal(what, wanted)
    mean = float(sum(errors) / len(errors))
    return Goal(what, wanted, f"{mean:.1%} over {len(errors)} {of}", mean <= limit)


def before_fit_errors(frames: Iterable["DataFrame"]) -> list[float]:
    """Return the errors of the predictions that know the profile of the machine alone."""
    parts = [one.dropna(subset=["predicted_s"]) for one in frames if "predicted_s" in one]
    return [error for one in parts for error in (one["predicted_s"] / one["measured_s"] - 1).abs()]


def goals(folder: Path) -> Iterator[Goal]:
    """Yield every goal."""
    gemm, energy = (read_rows(folder, name, "gemm") for name in ("gemm", "energy"))
    attention = read_rows(folder, "attention", "attention_decode")
    rate = read_rate(folder)
    few = gemm[gemm["m"] <= 16]
    yield share_goal("W4A16-g128, M 1 to 16", own(few[few["scheme"] == "W4A16-g128"], "w4a16_gemm"), rate)
    four_bits = few[few["scheme"].isin(["W4A16-g128", "NF4"])]
    yield from (against_goal(four_bits, kernel, factor) for kernel, factor in OTHERS.items())
    for scheme, kernel in (("W8A16", "w8a16_gemm"), ("W8A8", "w8a8_gemm"), ("FP8-A16", "w8a16_gemm")):
        yield share_goal(f"{scheme}, M 1 to 16", own(few[few["scheme"] == scheme], kernel), rate)
    for kv in ("fp16", "int8", "fp8"):
        yield share_goal(f"attention of decode, {kv} cache", own(attention[attention["kv_dtype"] == kv]), rate)
    yield many_rows_goal(gemm)
    unseen = unseen_shapes(gemm, folder)
    yield error_goal("crossover from fused to cuBLAS, predicted", 0.25, crossover_errors(unseen, FUSED), "shapes")
    yield error_goal("prediction before any fit", 0.25, before_fit_errors((gemm, attention)))
    fitted = [] if unseen.empty else list((unseen["fitted_s"] / unseen["measured_s"] - 1).abs())
    yield error_goal("prediction after a fit of 48 points at most, unseen shapes", 0.08, fitted)
    yield error_goal("sign of the speed-up over FP16, unseen shapes: share that is wrong", 0.03, wrong_signs(unseen))
    yield error_goal("energy of a call", 0.15, energy_errors(energy, folder))


def share_lines(gemm: "DataFrame", read_bytes_per_s: float) -> list[str]:
    """Return a table of the shares of our kernels for few rows, by shape."""
    few = own(gemm[gemm["m"] <= 16], "w4a16_gemm", "w8a16_gemm", "w8a8_gemm")
    if few.empty or not read_bytes_per_s:
        return []
    few = few.assign(share=few["read_bytes"] / few["measured_s"] / read_bytes_per_s)
    wide = few.pivot_table(index=["scheme", "n", "k"], columns="m", values="share")
    head = f"| scheme | N x K | {' | '.join(f'M {m:.0f}' for m in wide.columns)} |"
    lines = ["", "Share of the read bandwidth by shape:", "", head, "|" + "---|" * (2 + len(wide.columns))]
    for (scheme, n, k), row in wide.iterrows():
        cells = ("" if pandas.isna(share) else f"{share:.0%}" for share in row)
        lines.append(f"| {scheme} | {n:.0f} x {k:.0f} | {' | '.join(cells)} |")
    return lines


def read_rate(folder: Path) -> float:
    """Return the measured read bandwidth, 0 where it was not measured."""
    path = folder / "roofs.json"
    return float(json.loads(path.read_text())["read_bytes_per_s"]) if path.is_file() else 0.0


def page(folder: Path) -> str:
    """Return the page."""
    rate = read_rate(folder)
    rows = [one.line for one in goals(folder)]
    text = "\n".join(
        [
            f"# {folder.resolve().name}",
            "",
            f"Read bandwidth: {format_bytes_per_s(rate) if rate else 'not measured'}. Weights rotate through more than "
            "the cache holds; rows that are not valid (throttled, wrong, unstable) are left out.",
            "",
            "| goal | wanted | found | |",
            "|---|---|---|---|",
            *rows,
            *share_lines(read_rows(folder, "gemm", "gemm"), rate),
            "",
            "Written by `scripts/gpu_goals.py` from the runs beside it; the steps' logs say what failed.",
        ]
    )
    return re.sub(r"(\d)%", r"\1 %", text)


if __name__ == "__main__":
    print(page(Path(sys.argv[1])))
