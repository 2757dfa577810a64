"""Print the host's seconds per kernel of Python loops, the constants of codesign/cost/engine.py.

Reads facts/published_speed.csv under CODESIGN_REFERENCE_DATA (default ../shared): decode at batch 1, where the device
needs less than 0.7 of the measured time by the datasheet. A source counts once, with its median; each is left out in
turn. Larger batches are left out because other kernels run there (bitsandbytes unpacks to 16 bits first).
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import published_words as words
from published_cases import UnmappedError, place, published_frame, read_case
from published_speed import compare

from codesign.cost.engine import ENGINE_CLASSES, host_kind, host_s, issue_s
from codesign.errors import CodesignError
from codesign.units import MICRO

FITTED = {"server": ("bnb", "optimum", "autoawq"), "desktop": ("bnb",)}
HOST_BOUND_FRACTION = 0.7
STEP_METRICS = ("decode_tps", "tpot")


def host_bound_rows() -> pd.DataFrame:
    """Return seconds per kernel of every host-bound decode row at batch 1."""
    rows = [one for row in published_frame().to_dict("records") if (one := host_row(row)) is not None]
    return pd.DataFrame(rows)


def host_row(row: dict[str, str]) -> dict[str, object] | None:
    """Return source, host and seconds per kernel of one row; None if the host does not decide its time."""
    try:
        case = read_case(row)
        engine = ENGINE_CLASSES[case.program.engine]
        whole = case.metric == "output_tps_e2e"
        if not engine.python_loop or case.batch > 1 or not (whole or case.metric in STEP_METRICS):
            return None
        measured_s, _ = compare(case)
        device = replace(case, program=words.Program(case.program.library, "compiled"))
        _, device_s = compare(device)
        where, assignment = place(case)
    except (UnmappedError, CodesignError):
        return None
    if device_s.value > HOST_BOUND_FRACTION * measured_s:
        return None
    steps = where.workload.output_tokens if whole else 1
    kernels = host_s(engine, case.hardware, assignment.groups, assignment.schemes).value / issue_s(case.hardware)
    each_s = measured_s / steps / kernels
    return {"id": row["id"], "source": case.source, "host": host_kind(case.hardware), "host_s": each_s}


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(list(values)))))


def main() -> None:
    """Print medians by source, the constants, and the error on each source left out."""
    rows = host_bound_rows()
    for host, group in rows.groupby("host"):
        medians = group.groupby("source")["host_s"].median()
        fitted = [name for name in FITTED[str(host)] if name in medians]
        constant_s = geometric_mean(medians[fitted])
        print(f"{host}: {constant_s / MICRO:.1f} us per kernel")
        for source, own in group.groupby("source")["host_s"]:
            others = [name for name in fitted if name != source]
            left_out_s = geometric_mean(medians[others]) if others else np.nan
            error = np.abs(left_out_s / own - 1).mean()
            kind = "fitted" if source in fitted else "not fitted"
            print(
                f"  {source} ({kind}, {len(own)} rows): {own.median() / MICRO:.1f} us; others say "
                f"{left_out_s / MICRO:.1f} us, mean error {error:.0%}"
            )


if __name__ == "__main__":
    main()
