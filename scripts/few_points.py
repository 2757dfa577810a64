"""Print how well sheets fitted to 48 random points predict the rest of each table of multiplications.

Reads CODESIGN_REFERENCE_DATA (default ../shared).
"""

from collections.abc import Iterator

import numpy as np
from held_out import groups

from codesign.cost.fit_gemm import GemmRows, fit_gemm
from codesign.cost.gemm_time import gemm_seconds
from codesign.schemes.catalog import parse_scheme

POINTS = 48
DRAWS = range(1000, 1003)  # seeds that were not looked at while the fit was made


def errors() -> Iterator[tuple[str, str, str, list[float]]]:
    """Yield machine, library, scheme and the mean error of each draw on the rows that were not drawn."""
    for group in groups("gemm"):
        for name, frame in group.frame.groupby("scheme"):
            scheme = parse_scheme(str(name))
            table = GemmRows(*(frame[column].to_numpy(float) for column in ("m", "n", "k", "measured_s")))
            found = []
            for seed in DRAWS:
                drawn = np.zeros(len(frame), dtype=bool)
                drawn[np.random.default_rng(seed).choice(len(frame), POINTS, replace=False)] = True
                fit, rest = fit_gemm(table.take(drawn), group.hardware, scheme), table.take(~drawn)
                predicted = gemm_seconds(fit.constants, group.hardware, scheme, rest.m, rest.n, rest.k).predicted_s
                found.append(float(np.abs(predicted / rest.seconds - 1).mean()))
            yield group.hardware.name, group.library, scheme.name, found


def few_points_section() -> str:
    """Return the table as a section of docs/scoreboard.md."""
    lines = [
        "",
        f"### From {POINTS} points only",
        "",
        f"{len(DRAWS)} random draws from each table; the error is on the rows that were not drawn. Goal: 8 %.",
        "",
        "| machine | library | scheme | mean | worst draw |",
        "|---|---|---|---|---|",
    ]
    means = []
    for machine, library, scheme, found in errors():
        means.append(np.mean(found))
        lines.append(f"| {machine} | {library} | {scheme} | {means[-1]:.1%} | {max(found):.1%} |")
    return "\n".join([*lines, f"| mean | | | {np.mean(means):.1%} | |"])


if __name__ == "__main__":
    print(few_points_section())
