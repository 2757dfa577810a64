"""`codesign sensitivity`: what each scheme loses in each fused group of a model, measured on its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.options import HELP, Count, cluster_option, name_list, note, output_path, warn
from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.quality.cells import Task
    from codesign.quality.sensitivity import Request
    from codesign.quality.state import State
    from codesign.quantize.source import WeightSource

# Windows and their length by tier: gradients need many draws, swaps run the model a thousand times.
DEFAULT_WINDOWS = {"weights": (16, 512), "fisher": (64, 256), "kl": (8, 256)}


@click.command(
    epilog="Example: codesign sensitivity --model DIR --text valid.txt --schemes W4A16-g64,W8A8 -o quality.json",
    context_settings=HELP,
)
@click.option("--model", required=True, metavar="PATH", help="A folder of weights, or a GGUF file.")
@click.option("--text", metavar="FILE", help="Text to measure on; never the one that plans are judged by.")
@click.option("--self-generated", is_flag=True, help="Measure on text that the model writes.")
@click.option("--schemes", required=True, metavar="LIST", help="Schemes to measure, such as W4A16-g64,W8A8.")
@click.option(
    "--tier",
    default="fisher",
    show_default=True,
    metavar="TIER",
    help="weights: weight error and prior, needs no text; fisher: one backward pass; kl: each group swapped in turn.",
)
@click.option("--kv", default="", metavar="LIST", help="KV formats to measure, too; else the published prior's losses.")
@click.option("--windows", type=Count, help="Windows of text; else 64 (fisher), 8 (kl) or 16 (weights).")
@click.option("--window", type=click.IntRange(2, 2**20), help="Tokens of a window; else 256 (512 with weights).")
@click.option("--device", default="cpu", show_default=True, help="Where torch computes: cpu or cuda.")
@cluster_option
@click.option("-o", "--out", required=True, metavar="FILE", help="Write the table there, for codesign plan --quality.")
@click.option("--force", is_flag=True, help="Replace a file that exists, and forget an unfinished run.")
def command(*, model: str, out: str, force: bool, **given: Any) -> None:
    """Measure the loss of every scheme in every fused group, and write it as a quality table.

    A run that was stopped goes on where it was: what is found is kept beside the file, in OUT.state, until it is
    written.
    """
    from codesign.cli.output import progress
    from codesign.cli.sensitivity_view import print_sensitivity
    from codesign.quality.cells import Task, unmeasured
    from codesign.quality.sensitivity import measure_sensitivity
    from codesign.quality.table import write_quality
    from codesign.quantize.cluster import open_workers
    from codesign.quantize.source import open_source

    path = output_path(out, force)
    assert path is not None
    source = open_source(model)
    warn(source.warnings)
    windows, words = text_windows(source, given)
    request = _request(given, words)
    task = Task(source, request.schemes)
    warn(unmeasured(task))
    state = _state(path, source, request, windows, force)
    if request.tier == "kl" and windows is not None:
        _say_estimate(source, task, state, windows)
    with open_workers(given["cluster"], model, note) as workers, progress("sensitivity") as say:
        table = measure_sensitivity(source, windows, request, state, say, workers)
    write_quality(table, path)
    state.remove()
    print_sensitivity(table, task, path)


def _request(given: dict[str, Any], words: str) -> "Request":
    from codesign.quality.sensitivity import Request
    from codesign.schemes.catalog import parse_scheme
    from codesign.schemes.kv import parse_kv

    schemes = tuple(dict.fromkeys(parse_scheme(name) for name in name_list(given["schemes"])))
    kv = tuple(dict.fromkeys(parse_kv(name) for name in name_list(given["kv"])))
    return Request(given["tier"], schemes, words, tuple(one for one in kv if one.quantized), given["device"])


def text_windows(source: "WeightSource", given: dict[str, Any]) -> "tuple[Tensor | None, str]":
    """Return windows spread over the text that was named, and what they are in words; None without a text."""
    from codesign.quality.sensitivity import TIERS
    from codesign.quality.text import file_windows, own_windows

    count, length = DEFAULT_WINDOWS.get(given["tier"], DEFAULT_WINDOWS["fisher"])
    count, length = given["windows"] or count, given["window"] or length
    if given["text"] and given["self_generated"]:
        raise click.UsageError("Give --text or --self-generated, not both.")
    if given["text"]:
        file = Path(given["text"])
        return file_windows(source, file, length, count), f"{count} windows of {length} tokens of {file.name}"
    if given["self_generated"]:
        made = own_windows(source, length, count, given["device"])
        return made, f"{count} windows of {length} tokens that the model wrote"
    if given["tier"] in TIERS and given["tier"] != "weights":
        raise InputError(f"The tier {given['tier']} needs a text: give --text FILE or --self-generated.")
    return None, ""


def _state(path: Path, source: "WeightSource", request: "Request", windows: "Tensor | None", force: bool) -> "State":
    import hashlib

    from codesign.quality.state import State

    folder = path.with_name(path.name + ".state")
    digest = "" if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    settings = {
        "model": source.model.digest,
        "tier": request.tier,
        "schemes": [scheme.name for scheme in request.schemes],
        "windows": [] if windows is None else list(windows.shape),
        "text": digest,
    }
    return State(folder, settings, force=force)


def _say_estimate(source: "WeightSource", task: "Task", state: "State", windows: "Tensor") -> None:
    """Say how long tier kl is going to take, which can be hours."""
    from codesign.cli.output import print_line
    from codesign.quality.swap import estimated_s
    from codesign.quantize.network import Network
    from codesign.units import format_seconds

    seconds = estimated_s(task, Network(source), windows, state)
    cells = sum(len(task.runnable(group)) for group in task.all_groups)
    print_line(f"{cells:,} cells of {windows.shape[0]} windows: about {format_seconds(seconds)} from here.")
