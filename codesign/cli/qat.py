"""`codesign qat`: a model fine-tuned while its layers round, written in the format of other programs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from codesign.cli.options import HELP, Count, Positive, warn

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.cli.quantize import Job
    from codesign.quantize.qat import QatOptions, QatTask
    from codesign.quantize.result import ResultFolder
    from codesign.quantize.source import WeightSource

DEFAULT_WINDOW_TOKENS, CALIBRATION_WINDOWS = 256, 64


@click.command(
    epilog="Example: codesign qat --model DIR --scheme W4A16-g64 --text train.txt --steps 200 -o OUT",
    context_settings=HELP,
)
@click.option("--model", required=True, metavar="DIR|GGUF", help="Weights: a Hugging Face folder or a GGUF file.")
@click.option("--plan", "plan_file", metavar="FILE", help="A plan as `codesign plan --out` writes it.")
@click.option("--scheme", metavar="SCHEME", help="One scheme for all layers of the blocks instead of a plan.")
@click.option("--text", required=True, metavar="FILE", help="Text to train on; never the one that is evaluated on.")
@click.option("--steps", required=True, type=Count, metavar="N", help="Updates of the weights.")
@click.option(
    "--method",
    type=click.Choice(["lsq", "ste"]),
    default="lsq",
    show_default=True,
    help="lsq: scales are learned too; ste: they stay as they began.",
)
@click.option(
    "--start-from",
    "start",
    type=click.Choice(["rtn", "lsq", "gptq"]),
    default="rtn",
    show_default=True,
    help="First scales: of the extremes, of the mean as in the LSQ paper, or codes and scales of GPTQ.",
)
@click.option(
    "--loss",
    type=click.Choice(["kl", "next-token"]),
    default="kl",
    show_default=True,
    help="kl: divergence from the 16-bit model's predictions, which takes its weights in memory too.",
)
@click.option("--lr", type=Positive, default=1e-5, show_default=True, help="Learning rate of weights, norms, biases.")
@click.option("--step-lr", type=Positive, default=1e-3, show_default=True, help="That of scales, relative to them.")
@click.option("--window", type=click.IntRange(2, 2**20), default=DEFAULT_WINDOW_TOKENS, show_default=True,
              help="Tokens of a window.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 2**16), default=1, show_default=True, help="Windows of a step.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of the order of windows.")
@click.option("--save-every", type=Count, default=50, show_default=True, help="Steps that a stopped run may lose.")
@click.option("--format", "format_", metavar="FORMAT", help="compressed-tensors, gptq, gptq_v2, awq, torchao ...")
@click.option("-o", "--out", required=True, metavar="OUT", help="Folder to write.")
@click.option("--promote", is_flag=True, help="Where a scheme is not possible, take the next wider that is.")
@click.option("--device", default="cpu", show_default=True, help="Where torch computes: cpu or cuda.")
@click.option("--force", is_flag=True, help="Replace OUT, and unfinished work of other settings.")
def command(*, model: str, out: str, force: bool, **given: Any) -> None:
    """Fine-tune a model whose layers round in every step, and write it quantized.

    A run that was stopped goes on where it was when it is started again: the state is kept in OUT.partial until OUT is
    written.
    """
    from codesign.cli.qat_view import TrainingLog, print_need
    from codesign.cli.quantize import make_job
    from codesign.cli.quantize_view import print_export
    from codesign.quantize.export import export
    from codesign.quantize.export.place import check_place, check_space
    from codesign.quantize.preflight import check_disk, check_whole, open_results
    from codesign.quantize.qat import QatTask, check_task, is_whole, qat_need, qat_settings, train
    from codesign.quantize.source import open_source

    place = check_place(Path(out), force, (Path(model),))
    source = open_source(model)
    warn(source.warnings)
    job = make_job(source, {**given, "method": "gptq" if given["start"] == "gptq" else "rtn"})
    options = _options(given)
    start: Literal["rtn", "lsq"] = "lsq" if given["start"] == "lsq" else "rtn"
    task = QatTask(source, job.schemes, _windows(source, given), start, given["device"])
    check_task(task, options)
    check_disk(source.model, job.schemes, place)
    need = qat_need(source.model, job.schemes, options.batch * given["window"], options.loss == "kl")
    check_space(place, int(need.state_bytes))
    print_need(need, task, options)
    settings = {**qat_settings(task, options), "start": given["start"], "kv": job.kv}
    results = open_results(place.with_name(place.name + ".partial"), settings, force=force)
    check_whole(source, job.schemes, job.format, results)
    log = TrainingLog(options.steps)
    begun = (
        _after_gptq(task, job, results) if given["start"] == "gptq" and not is_whole(results, source.model) else task
    )
    for report in train(begun, options, results):
        log.add(report)
    print_export(export(results, source, job.format, place, force=force))
    shutil.rmtree(results.path)


def _options(given: dict[str, Any]) -> "QatOptions":
    from codesign.quantize.qat import QatOptions

    return QatOptions(
        steps=given["steps"],
        method=given["method"],
        loss=given["loss"],
        learning_rate=given["lr"],
        step_learning_rate=given["step_lr"],
        batch=given["batch"],
        seed=given["seed"],
        save_every=given["save_every"],
    )


def _windows(source: "WeightSource", given: dict[str, Any]) -> "Tensor":
    """Return the windows of the text, no more than the steps take."""
    from codesign.quantize.text import read_tokens, windows

    path, length = Path(given["text"]), given["window"]
    ids = read_tokens(path, source.tokenizer(), source.model.vocabulary, given["steps"] * given["batch"] * length)
    return windows(ids, length, where=str(path))


def _after_gptq(task: "QatTask", job: "Job", results: "ResultFolder") -> "QatTask":
    """Return the task with the results of GPTQ to start from."""
    from codesign.cli.output import progress
    from codesign.quantize.carry_out import carry_out
    from codesign.quantize.network import Network
    from codesign.quantize.qat import is_whole
    from codesign.quantize.result import ResultFolder

    first = ResultFolder(results.path / "gptq", {})
    if not is_whole(first, task.source.model):
        network, windows = Network(task.source, task.device), task.windows[:CALIBRATION_WINDOWS]
        with progress("GPTQ") as say:
            for _ in carry_out(network, task.schemes, job.recipe, windows, first, say):
                pass
    return replace(task, start=first)
