"""From a plan to measured tokens on this machine, and one page about it.

    python scripts/end_to_end.py HW MODEL VALID TEST FOLDER

Runs plan, quantize, evaluate and profile as a user would (our kernels under transformers, one thread), keeps what they
write in FOLDER, and writes FOLDER/README.md: predicted beside measured, and the checklist before a deployment. Steps
whose output lies in FOLDER are not repeated.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codesign.plan.file import Plan, read_plan
from codesign.profiler.records import Measurement, ServingCase
from codesign.profiler.run_folder import read_run
from codesign.profiler.statistics import Percentile
from codesign.units import format_gib, format_seconds

PROMPT_TOKENS, NEW_TOKENS, MAX_LOSS_NATS = 128, 64, 0.1
TEST_TOKENS = 8192
CHECKED = 0.10  # the project's goal for tokens per second


def codesign(*words: object) -> str:
    """Run a command and return what it prints."""
    shown = " ".join(str(word) for word in words)
    print(f"codesign {shown}", flush=True)
    done = subprocess.run([sys.executable, "-m", "codesign", *map(str, words)], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def carried_out(hw: str, model: str, valid: str, test: str, folder: Path) -> None:
    """Run every step whose output is not there yet."""
    plan, quantized, evaluation = folder / "plan.json", folder / "quantized", folder / "evaluation.json"
    if not plan.exists():
        where = ("--hw", hw, "--library", "codesign", "--engine", "transformers", "--threads", 1)
        sizes = ("--prompt", PROMPT_TOKENS, "--output", NEW_TOKENS, "--max-quality-loss", MAX_LOSS_NATS)
        codesign("plan", *where, "--model", model, *sizes, "--out", plan)
    if not quantized.exists():
        codesign("quantize", "--model", model, "--plan", plan, "--method", "gptq", "--text", valid, "-o", quantized)
    if not evaluation.exists():
        what = ("--model", quantized, "--baseline", model, "--text", test, "--tokens", TEST_TOKENS)
        evaluation.write_text(codesign("evaluate", *what, "--json"), encoding="utf-8")
    for name, more in (("run_plan", ("--plan", plan)), ("run_baseline", ())):
        if not (folder / name).exists():
            sizes = ("--prompt", PROMPT_TOKENS, "--new-tokens", NEW_TOKENS, "--threads", 1, "--libraries", "codesign")
            codesign("profile", "--hw", hw, "--model", model, "--generate", *more, *sizes, "-o", folder / name)


def rows_of(run: Path) -> dict[str, Measurement]:
    """Return first and further tokens of a run."""
    return {one.case.figure: one for one in read_run(run).measurements if isinstance(one.case, ServingCase)}


def measured_row(name: str, rows: dict[str, Measurement], figure: str) -> str:
    """Return predicted and measured seconds as a line of a table."""
    one = rows[figure]
    assert one.summary is not None
    predicted_s, measured_s = one.procedure.notes["predicted_s"], one.summary.median_s
    error = predicted_s / measured_s - 1
    verdict = "within 10 %" if abs(error) <= CHECKED else "**missed**"
    times = f"{format_seconds(predicted_s)} | {format_seconds(measured_s)} | {error:+.0%}"
    return f"| {name} | {times} | {verdict}, {one.verdict} |"


def percentile(one: Percentile) -> str:
    """Return a percentile, or why there is none."""
    return f"unknown ({one.why})" if one.value_s is None else format_seconds(one.value_s)


def page(folder: Path) -> str:
    """Return the page as Markdown."""
    plan, found = read_plan(folder / "plan.json"), json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    runs = {"this plan": rows_of(folder / "run_plan"), "BF16": rows_of(folder / "run_baseline")}
    return "\n".join(
        [
            f"# {plan.model} on {plan.hardware}, one thread: predicted and measured",
            "",
            plan.verdict,
            "",
            *speed(runs),
            "",
            *quality(plan, found),
            "",
            *checklist(plan, runs, found),
            "",
        ]
    )


def speed(runs: dict[str, dict[str, Measurement]]) -> list[str]:
    """Return the table of times."""
    lines = ["| | predicted | measured | error | |", "|---|---|---|---|---|"]
    for name, rows in runs.items():
        lines.append(measured_row(f"first token of {PROMPT_TOKENS}, {name}", rows, "ttft_s"))
        lines.append(measured_row(f"per further token, {name}", rows, "tpot_s"))
    return lines


def quality(plan: Plan, found: dict[str, Any]) -> list[str]:
    """Return the table of losses."""
    kl, loss = found["comparison"]["kl_nats"], found["comparison"]["loss_increase_nats"]
    predicted = "unknown" if plan.loss_nats is None else f"{plan.loss_nats.value:.3f} nats ({plan.loss_nats.origin})"
    baseline, model = (found[name]["perplexity"]["mean"] for name in ("baseline", "model"))
    return [
        "| | predicted | measured |",
        "|---|---|---|",
        f"| loss above the baseline | {predicted} | {loss['mean']:.3f} ± {loss['standard_error']:.3f} nats |",
        f"| KL from the baseline | | {kl['mean']:.3f} ± {kl['standard_error']:.3f} nats |",
        f"| perplexity | | {baseline:.2f} before, {model:.2f} after |",
    ]


def checklist(plan: Plan, runs: dict[str, dict[str, Measurement]], found: dict[str, Any]) -> list[str]:
    """Return what to look at before a deployment."""
    further, agreement = runs["this plan"]["tpot_s"], found["comparison"]["top1_agreement_fraction"]["mean"]
    assert further.summary is not None
    peak = {name: rows["tpot_s"].procedure.notes["peak_memory_bytes"] for name, rows in runs.items()}
    memory = plan.totals.memory
    return [
        "| before a deployment | |",
        "|---|---|",
        f"| baseline | BF16, {format_gib(plan.baseline.memory.weight_bytes)} of weights |",
        f"| quantized variant | {', '.join(dict.fromkeys(group.scheme for group in plan.groups))}, "
        f"{format_gib(memory.weight_bytes)} of weights by plan, "
        f"{format_gib(found['model']['tensor_bytes'])} in the checkpoint |",
        f"| quality | same likeliest token {agreement:.1%}; see above |",
        f"| memory | {format_gib(memory.total_bytes)} planned; peak of the process {format_gib(peak['this plan'])}, "
        f"of BF16 {format_gib(peak['BF16'])}, Python and torch included |",
        f"| batch sizes | up to {plan.totals.largest_batch:,} by memory |",
        f"| between tokens | p50 {format_seconds(further.summary.median_s)}, p95 {percentile(further.summary.p95)}, "
        f"p99 {percentile(further.summary.p99)} |",
    ]


def main(arguments: Sequence[str]) -> None:
    """Run what is missing and write the page."""
    hw, model, valid, test, folder_name = arguments
    folder = Path(folder_name)
    folder.mkdir(parents=True, exist_ok=True)
    carried_out(hw, model, valid, test, folder)
    (folder / "README.md").write_text(page(folder), encoding="utf-8")
    print(f"Written: {folder / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
