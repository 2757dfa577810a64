"""Fit the scheduler of a library to measured runs of whole servers, the kernels predicted as always."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codesign.cost.fit_constants import shape_index
from codesign.cost.fit_serving import ServingRows, fit_serving_tpot, fit_serving_ttft
from codesign.cost.serving import StepTimes, step_times
from codesign.cost.serving_time import SERVING_KEY, TPOT_OPERATION, TTFT_OPERATION
from codesign.cost.sheet import Calibration
from codesign.cost.table_file import server_row

if TYPE_CHECKING:
    from pandas import DataFrame


def fit_runs(frame: "DataFrame") -> Mapping[tuple[str, str], Calibration]:
    """Return the calibrations of TPOT and TTFT from runs of one machine and library, with `measured_` columns.

    Runs that do not fit into memory all at once are left out: they measure a queue, not the scheduler.
    """
    times = [_times(row) for row in frame.to_dict("records")]
    known = np.array(
        [one is not None and one.in_flight == n for one, n in zip(times, frame["concurrency"], strict=True)]
    )
    steps = [one for one, usable in zip(times, known, strict=True) if one is not None and usable]
    runs = frame[known]
    models = {name: float(index) for index, name in enumerate(sorted(runs["model"].unique()))}
    kind = shape_index(runs["model"].map(models).to_numpy(float), runs["prompt_tokens"].to_numpy(float))

    def rows(prefill_s: list[float], measured: str) -> ServingRows:
        return ServingRows(
            np.array(prefill_s),
            np.array([one.decode_s.value for one in steps]),
            runs["concurrency"].to_numpy(float),
            runs["output_tokens"].to_numpy(float),
            runs[measured].to_numpy(float),
            kind,
        )

    return {
        (TPOT_OPERATION, SERVING_KEY): fit_serving_tpot(rows([one.prompt_s.value for one in steps], "measured_tpot_s")),
        (TTFT_OPERATION, SERVING_KEY): fit_serving_ttft(rows([one.alone_s.value for one in steps], "measured_ttft_s")),
    }


def _times(row: Mapping[str, object]) -> StepTimes | None:
    where, assignment = server_row(dict(row))
    return step_times(where, assignment)
