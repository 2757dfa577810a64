"""Print the errors on published results, per source and metric; nothing is tuned on them but the engine class.

Reads facts/published_speed.csv under CODESIGN_REFERENCE_DATA (default ../shared).
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import published_words as words
from published_cases import (
    MEMORY_METRICS,
    Case,
    UnmappedError,
    library_program,
    machine,
    place,
    published_frame,
    read_case,
    scheme_name,
    workload_of,
)

from codesign.cost.arrays import as_floats
from codesign.cost.inference import predict_inference, request_s, step_parts
from codesign.cost.kernels import gemm
from codesign.cost.prediction import Prediction, add_stages, exactly
from codesign.cost.serving import predict_serving
from codesign.cost.step import Step
from codesign.cost.target import Target
from codesign.errors import CodesignError
from codesign.hardware.hardware import Hardware
from codesign.model.file import load_model
from codesign.model.groups import fused_groups
from codesign.schemes.catalog import parse_scheme

RATIO_METRICS = frozenset({"kernel_speedup_vs_fp16", "e2e_speedup_vs_fp16"})
DEAD_BAND_FRACTION = 0.05
TRANSFERRED_TO = "A100|H100|T4"
TRANSFERRED_FAMILIES = frozenset({"w4a16", "w8a16", "w8a8", "nf4"})
SIXTEEN_BITS = frozenset({"FP16", "BF16"})


def prefill_s(case: Case) -> Prediction:
    """Return the pass over the new tokens of a prompt, whose first tokens may be cached."""
    where, assignment = place(case)
    prompt = where.workload.prompt_tokens
    if case.metric == "ttft":
        step = Step(case.batch, prompt, prompt + case.cached_tokens)
    else:
        step = Step(case.batch, prompt - case.cached_tokens, prompt)
    return add_stages(step_parts(where, assignment, step).values()).seconds


def decode_s(case: Case) -> Prediction:
    """Return the time of one decode step at the mean context."""
    where, assignment = place(case)
    return predict_inference(where, assignment).tpot_s


def whole_s(case: Case) -> Prediction:
    """Return the time of a whole request."""
    where, assignment = place(case)
    predicted = predict_inference(where, assignment)
    return request_s(predicted.ttft_s, predicted.tpot_s, where.workload.output_tokens)


def saturated_s(case: Case) -> Prediction:
    """Return seconds per output token of an engine that takes as many requests as fit."""
    where, assignment = place(case)
    served = predict_serving(where, assignment)
    if served is None:
        raise UnmappedError("one request does not fit into the predicted memory")
    return served.tokens_per_s.inverse()


def memory_bytes(case: Case) -> Prediction:
    """Return the weights, or everything together."""
    where, assignment = place(case)
    memory = predict_inference(where, assignment).memory
    if case.metric == "weight_mem":
        return exactly(memory.weight_bytes)
    # What an allocator counts is without the runtime's own need.
    return exactly(memory.total_bytes - (memory.overhead_bytes if case.allocator_only else 0.0))


def request_speedup(case: Case) -> Prediction:
    """Return the time of a request in 16 bits over that of the scheme."""
    plain = replace(case, scheme="FP16", kv="")
    return exactly(whole_s(plain).value / whole_s(case).value)


def kernel_latency(row: dict[str, str]) -> Prediction:
    """Return the time of one multiplication whose sizes the note gives."""
    sizes = dict(re.findall(r"\b([MKN])=(\d+)", row["note"]))
    m, n, k = (float(sizes[name]) for name in "MNK")
    return _gemm(machine(row), library_program(row).library, scheme_name(row), m, n, k)


def kernel_speedup(row: dict[str, str]) -> Prediction:
    """Return 16 bits over the scheme for one matrix or the linear layers of a block; the baseline is PyTorch's."""
    hardware, library, scheme = machine(row), library_program(row).library, scheme_name(row)
    shapes = words.MATRICES.get(row["model"]) or _block_shapes(row["model"])

    def total(by_library: str, by_scheme: str) -> float:
        return sum(_gemm(hardware, by_library, by_scheme, float(row["batch"]), n, k).value for n, k in shapes)

    return exactly(total("torch", "FP16") / total(library, scheme))


def _block_shapes(model_name: str) -> list[tuple[int, int]]:
    if model_name not in words.MODELS:
        raise UnmappedError(f"model is not in the catalog: {model_name}")
    groups = fused_groups(load_model(words.MODELS[model_name]))
    return [(group.n, group.k) for group in groups if group.block_index == 0]


def _gemm(hardware: Hardware, library: str, scheme: str, m: float, n: float, k: float) -> Prediction:
    one = gemm(Target(hardware, library), parse_scheme(scheme), as_floats(m), as_floats(n), as_floats(k))
    return Prediction(float(one.predicted_s), float(one.low_s), float(one.high_s), one.origin)


def _seconds(case: Case) -> float:
    return case.value * words.SECONDS[case.unit]


def _prompt(case: Case) -> float:
    return case.batch * (workload_of(case)[0] - case.cached_tokens) / case.value


def _tokens(case: Case) -> float:
    return case.batch * workload_of(case)[1] / case.value


def _shared_tpot(case: Case) -> Prediction:
    return whole_s(case).scaled(1 / workload_of(case)[1])


# What a metric says in seconds, bytes or as a ratio, and what we predict for it.
FIGURES: dict[str, tuple[Callable[[Case], float], Callable[[Case], Prediction]]] = {
    "decode_tps": (lambda case: case.batch / case.value, decode_s),
    "tpot": (_seconds, decode_s),
    "tpot with prefill": (_seconds, _shared_tpot),
    "time_per_token_amortised": (lambda case: _seconds(case) * case.batch, decode_s),
    "prefill_tps": (_prompt, prefill_s),
    "ttft": (_seconds, prefill_s),
    "forward_latency": (_seconds, prefill_s),
    "e2e_latency": (_seconds, whole_s),
    "output_tps_e2e": (_tokens, whole_s),
    "output_tps_e2e_per_gpu": (lambda case: _tokens(case) / case.gpu_count, whole_s),
    "output_tps_e2e saturated": (lambda case: 1 / case.value, saturated_s),
    "total_tps_e2e saturated": (lambda case: sum(workload_of(case)) / workload_of(case)[1] / case.value, saturated_s),
    "weight_mem": (lambda case: case.value * words.BYTES[case.unit], memory_bytes),
    "peak_mem": (lambda case: case.value * words.BYTES[case.unit], memory_bytes),
    "e2e_speedup_vs_fp16": (lambda case: case.value, request_speedup),
}


def compare(case: Case) -> tuple[float, Prediction]:
    """Return the measured and the predicted figure: seconds, bytes or a ratio."""
    workload_of(case)
    kind = " saturated" if case.saturated else ""
    if case.metric == "tpot" and case.source in words.PREFILL_INSIDE_TPOT:
        kind = " with prefill"
    if case.metric + kind not in FIGURES:
        raise UnmappedError(f"metric not predicted: {case.metric}{kind}")
    measured, predicted = FIGURES[case.metric + kind]
    return measured(case), predicted(case)


@functools.cache
def published_rows() -> pd.DataFrame:
    """Return every published row with what we predict for it: seconds, bytes or a ratio; `reason` where we do not."""
    return pd.DataFrame([_answer(row) for row in published_frame().to_dict("records")])


def _answer(row: dict[str, str]) -> dict[str, object]:
    keys = ("id", "hw", "tp", "model", "weight_scheme", "batch", "prompt_len", "output_len", "engine", "metric", "note")
    answer: dict[str, object] = {key: row[key] for key in keys}
    answer |= {"source": row["id"].split("-")[0], "hw_count": row["hw_count"], "reason": ""}
    try:
        measured, predicted, scheme = _compared(row)
    except (UnmappedError, CodesignError) as error:
        return answer | {"reason": str(error)}
    return answer | {
        "scheme": scheme,
        "engine_class": library_program(row).engine,
        "measured": measured,
        "predicted": predicted.value,
        "low": predicted.low,
        "high": predicted.high,
        "origin": str(predicted.origin),
    }


def _compared(row: dict[str, str]) -> tuple[float, Prediction, str]:
    value = float(row["value"])
    if row["metric"] == "kernel_latency":
        return value * words.SECONDS[row["unit"]], kernel_latency(row), scheme_name(row)
    if row["metric"] == "kernel_speedup_vs_fp16":
        return value, kernel_speedup(row), scheme_name(row)
    case = read_case(row)
    return *compare(case), case.scheme


def speedups(rows: pd.DataFrame) -> pd.DataFrame:
    """Return pairs of one source that differ in the scheme alone: measured and predicted gain over 16 bits.

    A pair needs one 16-bit row of the same conditions, of the same engine where several were run.
    """
    same = ["source", "hw", "hw_count", "tp", "model", "batch", "prompt_len", "output_len", "metric"]
    usable = rows[(rows["reason"] == "") & ~rows["metric"].isin(MEMORY_METRICS | RATIO_METRICS | {"kernel_latency"})]
    pairs = []
    for _, group in usable.groupby(same):
        plain = group[group["scheme"].isin(SIXTEEN_BITS)]
        for row in group[~group["scheme"].isin(SIXTEEN_BITS)].to_dict("records"):
            base = plain[plain["engine"] == row["engine"]] if len(plain) > 1 else plain
            if len(base) == 1:
                one = base.iloc[0]
                gains = {name: one[name] / row[name] for name in ("measured", "predicted")}
                pairs.append({"id": row["id"], "source": row["source"], "metric": row["metric"], **gains})
    given = rows[(rows["reason"] == "") & rows["metric"].isin(RATIO_METRICS)]
    return pd.concat(
        [pd.DataFrame(pairs), given[["id", "source", "metric", "measured", "predicted"]]], ignore_index=True
    )


def error_cells(rows: pd.DataFrame) -> list[str]:
    """Return mean, median and 90th percentile of the absolute error, bias and coverage of the 80 % interval."""
    ratio = (rows["predicted"] / rows["measured"]).astype(float)
    error = (ratio - 1).abs()
    covered = (rows["measured"] >= rows["low"]) & (rows["measured"] <= rows["high"])
    figures = [error.mean(), error.median(), error.quantile(0.9), np.exp(np.log(ratio).mean()) - 1]
    known = not rows["metric"].isin(MEMORY_METRICS | RATIO_METRICS).all()
    return [*(f"{figure:.0%}" for figure in figures), f"{covered.mean():.0%}" if known else "-"]


def gain_cells(pairs: pd.DataFrame) -> list[str]:
    """Return mean, median and 90th percentile of the error of the gain, bias, and the share with the wrong sign."""
    ratio = (pairs["predicted"] / pairs["measured"]).astype(float)
    error = (ratio - 1).abs()
    outside = (pairs["measured"] - 1).abs() > DEAD_BAND_FRACTION
    wrong = ((pairs["measured"] > 1) != (pairs["predicted"] > 1))[outside]
    figures = [error.mean(), error.median(), error.quantile(0.9), np.exp(np.log(ratio).mean()) - 1, wrong.mean()]
    return [f"{figure:.0%}" if np.isfinite(figure) else "-" for figure in figures]


def table_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def published_section() -> str:
    """Return the section of docs/scoreboard.md."""
    rows = published_rows()
    pairs = speedups(rows)
    usable = rows[rows["reason"] == ""]
    parts = [
        "",
        "## Published results",
        "",
        f"{len(rows):,} results that other people published, by source; {len(usable):,} could be said in our words and",
        "predicted. Errors are of the time (or bytes). Nothing is tuned on them but the host's seconds and kernels of",
        "Python loops (`codesign/cost/engine.py`, from bnb, optimum and autoawq at batch 1). Lengths that a source",
        "leaves out are assumed for decode only; the form factor of an A100 or H100, where it is, is taken as SXM.",
        "",
        *source_table(rows),
        "",
        "By engine class, times only:",
        "",
        *class_table(usable),
        "",
        "Sheets transferred to A100, H100 and T4, times of engines with weight-only schemes and W8A8, by source:",
        "",
        *transferred_table(usable),
        "",
        "Gain of a scheme over 16 bits within one source; *wrong sign* counts pairs outside of 5 %.",
        "",
        *gain_table(pairs),
        "",
        f"Without a prediction: {_reasons(rows)}.",
    ]
    return re.sub(r"(\d)%", r"\1 %", "\n".join(parts)) + "\n"


ERROR_HEAD = ("mean error", "median", "90 %", "bias")


def source_table(rows: pd.DataFrame) -> list[str]:
    """Return the errors per source and metric."""
    lines = []
    for (source, metric), group in rows.groupby(["source", "metric"]):
        done = group[group["reason"] == ""]
        cells = error_cells(done) if len(done) else ["-"] * 5
        lines.append([str(source), str(metric), str(len(group)), str(len(done)), *cells])
    return table_lines(["source", "metric", "rows", "mapped", *ERROR_HEAD, "in interval"], lines)


def class_table(usable: pd.DataFrame) -> list[str]:
    """Return the errors of times per engine class."""
    timed = usable[~usable["metric"].isin(MEMORY_METRICS | RATIO_METRICS)]
    lines = [[str(name), str(len(group)), *error_cells(group)] for name, group in timed.groupby("engine_class")]
    return table_lines(["class", "rows", *ERROR_HEAD, "in interval"], lines)


def transferred_table(usable: pd.DataFrame) -> list[str]:
    """Return the errors of times on three GPUs that sheets of other libraries or machines predict, per source."""
    family = usable["scheme"].map(lambda name: parse_scheme(str(name)).family)
    here = usable["hw"].str.match(TRANSFERRED_TO) & family.isin(TRANSFERRED_FAMILIES)
    timed = usable[here & (usable["origin"] == "transferred") & ~usable["metric"].isin(MEMORY_METRICS | RATIO_METRICS)]
    lines = [
        [*map(str, names), str(len(group)), *error_cells(group)]
        for names, group in timed.groupby(["source", "hw", "scheme", "metric"])
    ]
    head = ["source", "machine", "scheme", "metric", "rows", *ERROR_HEAD, "in interval"]
    return table_lines(head, [*lines, ["all", "", "", "", str(len(timed)), *error_cells(timed)]])


def gain_table(pairs: pd.DataFrame) -> list[str]:
    """Return the errors of speed-ups per source and metric, and of all."""
    parts = [*pairs.groupby(["source", "metric"]), (("all", ""), pairs)]
    lines = [[str(source), str(metric), str(len(group)), *gain_cells(group)] for (source, metric), group in parts]
    return table_lines(["source", "metric", "pairs", *ERROR_HEAD, "wrong sign"], lines)


def _reasons(rows: pd.DataFrame) -> str:
    kinds = rows.loc[rows["reason"] != "", "reason"].str.replace(r":.*", "", regex=True).value_counts()
    return "; ".join(f"{reason} ({count})" for reason, count in kinds.items())


def main() -> None:
    """Print the section."""
    print(published_section())


if __name__ == "__main__":
    main()
