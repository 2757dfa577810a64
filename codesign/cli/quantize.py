"""`codesign quantize`: a plan or one scheme carried out on a model's weights, in the format of other programs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.options import HELP, Count, cluster_option, note, warn

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.model.groups import FusedGroup
    from codesign.quantize.methods import Recipe
    from codesign.quantize.source import WeightSource
    from codesign.schemes.scheme import Scheme

DEFAULT_WINDOWS, DEFAULT_WINDOW_TOKENS = 64, 512  # 32,768 tokens; GPTQ took 128 windows of 2048 for models 50x as large


@click.command(
    epilog="Example: codesign quantize --model DIR --scheme W4A16-g64 --method gptq --text valid.txt -o OUT",
    context_settings=HELP,
)
@click.option("--model", required=True, metavar="DIR|GGUF", help="Weights: a Hugging Face folder or a GGUF file.")
@click.option("--plan", "plan_file", metavar="FILE", help="A plan as `codesign plan --out` writes it.")
@click.option("--scheme", metavar="SCHEME", help="One scheme for all layers of the blocks instead of a plan.")
@click.option(
    "--method", default="rtn", show_default=True, metavar="METHOD", help="rtn, gptq, awq, smoothquant or hqq."
)
@click.option("--text", metavar="FILE", help="Calibration text.")
@click.option("--self-generated", is_flag=True, help="Calibrate on text that the model writes.")
@click.option("--windows", type=Count, default=DEFAULT_WINDOWS, show_default=True, help="Windows of that text.")
@click.option("--window", type=click.IntRange(2, 2**20), metavar="TOKENS", help="Tokens of a window; else 512.")
@click.option(
    "--format",
    "format_",
    metavar="FORMAT",
    help="compressed-tensors, gptq, gptq_v2, awq, torchao, bitsandbytes or gguf; else gguf for its own types, "
    "compressed-tensors for others.",
)
@click.option("-o", "--out", required=True, metavar="OUT", help="Folder, or .gguf file, to write.")
@click.option("--promote", is_flag=True, help="Where a scheme is not possible, take the next wider that is.")
@click.option("--device", default="cpu", show_default=True, help="Where torch computes: cpu or cuda.")
@cluster_option
@click.option("--force", is_flag=True, help="Replace OUT, and unfinished work of other settings.")
def command(*, model: str, out: str, force: bool, **given: Any) -> None:
    """Quantize a model block by block, and write it.

    A run that was stopped goes on where it was when it is started again: finished blocks are kept in OUT.partial until
    OUT is written.
    """
    import shutil

    from codesign.cli.output import progress
    from codesign.cli.quantize_view import Course, print_export
    from codesign.quantize.carry_out import carry_out, check
    from codesign.quantize.cluster import open_workers
    from codesign.quantize.export import export
    from codesign.quantize.export.place import check_place
    from codesign.quantize.network import Network
    from codesign.quantize.preflight import check_disk, check_whole, open_results
    from codesign.quantize.source import open_source

    place = check_place(Path(out), force, (Path(model),))
    source = open_source(model)
    warn(source.warnings)
    job = make_job(source, given)
    check_disk(source.model, job.schemes, place)
    windows = _windows(source, given)
    check(source, job.schemes, job.recipe, windows)
    results = open_results(place.with_name(place.name + ".partial"), _settings(source, job, windows), force=force)
    check_whole(source, job.schemes, job.format, results)
    course = Course(source.model, results)
    with open_workers(given["cluster"], model, note) as workers, progress("Quantizing") as say:
        network = Network(source, given["device"], workers)
        for part in carry_out(network, job.schemes, job.recipe, windows, results, say):
            course.add(part)
    course.summarize()
    print_export(export(results, source, job.format, place, force=force))
    shutil.rmtree(results.path)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done: the scheme of each layer, method and format; `kv` is what a plan keeps the cache in."""

    schemes: "dict[str, Scheme]"
    recipe: "Recipe"
    format: str
    kv: str


def make_job(source: "WeightSource", given: dict[str, Any]) -> Job:
    """Return the job of a plan or a scheme, after saying what had to be promoted."""
    from codesign.cli.output import plain
    from codesign.plan.carried import planned_schemes, uniform_schemes
    from codesign.plan.file import read_plan
    from codesign.quantize.methods import Recipe, find_method
    from codesign.quantize.preflight import default_format, find_format, format_problem, of_tied_head
    from codesign.schemes.catalog import parse_scheme

    if (given["plan_file"] is None) == (given["scheme"] is None):
        raise click.UsageError("Give --plan or --scheme, and only one of them.")
    find_method(given["method"])
    model, promote, kv = source.model, given["promote"], ""
    plan = read_plan(Path(given["plan_file"])) if given["plan_file"] else None
    planned = [group.scheme for group in plan.groups] if plan else [given["scheme"]]
    format_ = find_format(given["format_"]) or default_format(parse_scheme(name) for name in planned)

    def problem(group: "FusedGroup", scheme: "Scheme") -> str | None:
        return next((why for layer in group.layers if (why := format_problem(format_, layer, scheme))), None)

    if plan is not None:
        carried, kv = planned_schemes(plan, model, problem, promote=promote), plan.kv
    else:
        carried = uniform_schemes(parse_scheme(given["scheme"]), model, problem, promote=promote)
    schemes, remark = of_tied_head(carried.schemes, model, format_)
    has_text = bool(given["text"] or given.get("self_generated"))
    calibrated = kv == "fp8" and format_ == "compressed-tensors" and has_text
    for line in (*carried.remarks, *filter(None, (remark, _kv_remark(kv, calibrated=calibrated)))):
        click.echo(plain(line), err=True)
    return Job(schemes, Recipe(given["method"], kv_scales=calibrated), format_, kv)


def _kv_remark(kv: str, *, calibrated: bool) -> str | None:
    """Return what to do for the KV cache of a plan, which quantizing weights leaves alone."""
    from codesign.schemes.kv import parse_kv

    if not parse_kv(kv).quantized:
        return None
    if calibrated:
        return (
            "The plan keeps the KV cache in fp8: its scales are calibrated on the text and stored, as vLLM reads them."
        )
    return f"The plan keeps the KV cache in {kv}: say so where the model is served, such as vllm --kv-cache-dtype."


def _windows(source: "WeightSource", given: dict[str, Any]) -> "Tensor | None":
    """Return calibration windows of the text that was named, spread over it, or that the model writes."""
    from codesign.quality.text import file_windows, own_windows

    if given["text"] and given["self_generated"]:
        raise click.UsageError("Give --text or --self-generated, not both.")
    count, length = given["windows"], given["window"] or min(DEFAULT_WINDOW_TOKENS, source.model.max_context_tokens)
    if given["text"]:
        return file_windows(source, Path(given["text"]), length, count)
    return own_windows(source, length, count, given["device"]) if given["self_generated"] else None


def _settings(source: "WeightSource", job: Job, windows: "Tensor | None") -> dict[str, Any]:
    """Return what the unfinished state depends on."""
    return {
        "model": source.model.digest,
        "method": job.recipe.method,
        "schemes": {name: scheme.name for name, scheme in job.schemes.items()},
        "kv": job.kv,
        "windows": [] if windows is None else list(windows.shape),
        "text": "" if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
    }
