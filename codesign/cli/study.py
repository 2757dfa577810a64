"""`codesign study calibration`: how much calibration text is enough, which, and which choice of ranges."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.options import HELP, integer_list, json_option, name_list, output_path, warn
from codesign.errors import InputError, did_you_mean
from codesign.quantize.study_file import Study, StudySettings, resumed_study, write_study

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.quantize.network import Network

_EVALUATION_WINDOWS, _WINDOW_TOKENS, _REPEATS = 8, 128, 3


@click.group(context_settings=HELP)
def command() -> None:
    """Studies of what quantizing depends on."""


@command.command(
    epilog="Example: codesign study calibration --model DIR --text FILE --sizes 16,64 -o study.json --html study.html",
    context_settings=HELP,
)
@click.option("--model", required=True, metavar="DIR|GGUF", help="A Hugging Face folder with weights, or a GGUF file.")
@click.option("--sizes", default="16,64,256,1024", show_default=True, help="Numbers of calibration windows.")
@click.option("--sources", help="Of text, random, self (the model writes); else all, text only with --text.")
@click.option("--text", metavar="FILE", help="Text to calibrate with; its first windows are kept to evaluate on.")
@click.option("--schemes", default="W8A8-static", show_default=True, help="Static or weight-only (GPTQ) schemes.")
@click.option(
    "--methods", default="min-max,percentile,entropy,mse", show_default=True, help="Choices of static ranges."
)
@click.option(
    "--repeats", type=click.IntRange(1, 100), default=_REPEATS, show_default=True, help="Seeds of each source."
)
@click.option(
    "--length", type=click.IntRange(2, 2**17), default=_WINDOW_TOKENS, show_default=True, help="Window, tokens."
)
@click.option("-o", "--out", metavar="FILE", help="The study as JSON; a run that was stopped goes on from it.")
@click.option("--html", "page", metavar="FILE", help="The study as an offline page.")
@click.option("--force", is_flag=True, help="Replace the files instead of going on.")
@json_option
def calibration(as_json: bool, **given: Any) -> None:
    """Calibrate with more and more text of several sources and tell the loss of each, with its spread over seeds."""
    from codesign.cli.output import print_json
    from codesign.cli.study_view import print_study
    from codesign.quantize.network import Network
    from codesign.quantize.source import open_source
    from codesign.report.study_page import write_study_page

    out, page = output_path(given["out"]), output_path(given["page"], force=given["force"])
    sources = _sources(given["sources"], has_text=given["text"] is not None)
    methods, schemes = _methods(given["methods"]), _scheme_names(given["schemes"])
    sizes = tuple(sorted(set(integer_list(given["sizes"], "--sizes"))))
    weights = open_source(given["model"])
    warn(weights.warnings)
    network = Network(weights)
    ids, digest = _tokens(given["text"], network)
    settings = StudySettings(
        weights.model.name, weights.model.digest, digest, sizes, sources, schemes, methods, given["repeats"],
        given["length"], _EVALUATION_WINDOWS,
    )  # fmt: skip
    study = _run(network, resumed_study(settings, None if given["force"] else out), ids, out)
    if page is not None:
        write_study_page(study, page)
    if as_json:
        print_json(study, "calibration_study")
    else:
        print_study(study)


def _sources(text: str | None, *, has_text: bool) -> tuple[str, ...]:
    from codesign.quantize.study_text import SOURCES, check_source

    sources = name_list(text) if text else tuple(name for name in SOURCES if has_text or name != "text")
    for source in sources:
        check_source(source, has_text=has_text)
    return sources


def _methods(text: str) -> tuple[str, ...]:
    from codesign.quantize.calibrate import METHODS

    methods = name_list(text)
    for method in methods:
        if method not in METHODS:
            raise InputError(f'"{method}" is not one of {", ".join(METHODS)}.{did_you_mean(method, METHODS)}')
    return methods


def _scheme_names(schemes: str) -> tuple[str, ...]:
    from codesign.quantize.study import study_scheme

    return tuple(study_scheme(name).name for name in name_list(schemes))


def _tokens(text: str | None, network: "Network") -> "tuple[Tensor | None, str]":
    """Return the tokens of the text and their digest; none without a text."""
    import hashlib

    from codesign.quantize.text import read_tokens

    if text is None:
        return None, ""
    ids = read_tokens(Path(text), network.source.tokenizer(), network.source.model.vocabulary)
    return ids, hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


def _run(network: "Network", study: Study, ids: "Tensor | None", out: Path | None) -> Study:
    """Return the finished study; what is found is kept in the file after every step."""
    from codesign.cli.output import progress
    from codesign.quantize.study import run_study
    from codesign.quantize.study_text import study_text

    def keep(found: Study) -> None:
        if out is not None:
            write_study(found, out)

    with progress("calibrating") as say:
        text = study_text(network, ids, study.settings.evaluation_windows, study.settings.window_tokens)
        return run_study(network, study, text, keep, say)
