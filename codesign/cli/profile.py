"""`codesign profile`: measure the kernels that are here, each checked before it is timed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.options import HELP, MODEL_HELP, integer_list, json_option, load_model_and_warn, sheet_option, warn
from codesign.cli.profile_procedure import energy_warnings, procedure_options, resume_of
from codesign.cli.profile_steps import WORDS, block_question, run_generation, step_options

if TYPE_CHECKING:
    from codesign.profiler.candidates import Question
    from codesign.profiler.discover import Catalog
    from codesign.profiler.profile import Request

QUESTION_WORDS = (
    "model", "shapes", "attention", "schemes", "batch", "threads", "libraries", "cache", "seed", "repeat",
)  # fmt: skip
Positive = click.FloatRange(0.0, min_open=True, max=86400.0)


@click.command(
    epilog="Example: codesign profile --hw local.yaml --model llama-2-7b --batch 1,16 --libraries torch -o run",
    context_settings=HELP,
)
@click.option("--hw", "--hardware", "hw", required=True, metavar="NAME|FILE", help="Machine: a name or a YAML file.")
@click.option("--model", metavar="NAME|PATH", help=f"{MODEL_HELP} Its distinct shapes are measured.")
@click.option("--shapes", default="", metavar="NxK,..", help="Shapes: output features x input features.")
@click.option("--attention", default="", metavar="TOKENS,..", help="Decode attention of --model at so many KV tokens.")
@click.option("--schemes", default="all", show_default=True, metavar="all|A,B", help="Schemes to measure.")
@click.option("--batch", default="1,16,256", show_default=True, metavar="M,..", help="Rows; of attention sequences.")
@click.option("--threads", default="", metavar="COUNT,..", help="Threads; else all cores that may be used.")
@click.option("--libraries", default="all", show_default=True, metavar="all|A,B", help="Libraries to measure.")
@click.option("--kernels", multiple=True, metavar="MODULE", help="A module of more kernels. May be repeated.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of inputs and order.")
@click.option("--soak", type=Positive, metavar="SECONDS", help="Load each case alone so long, and show how it changes.")
@click.option("--budget-s", type=Positive, default=15.0, show_default=True, help="Longest sampling of one case.")
@click.option("-o", "--out", "folder", metavar="RUN", help="Run directory; one of the same settings is resumed.")
@click.option("--dry-run", is_flag=True, help="Say what would be measured, how long it takes and what memory it needs.")
@procedure_options
@step_options
@sheet_option
@json_option
def command(hw: str, folder: str | None, *, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Measure kernels of every library that is here: wrong ones get no time, missing ones a reason.

    Exits 6 if no case was measured validly.
    """
    from codesign.cli.profile_view import Progress, print_plan, print_run
    from codesign.errors import MeasurementError
    from codesign.profiler.profile import measure, plan_run
    from codesign.profiler.run_folder import read_run

    if given["generate"]:
        run_generation(hw, folder, given, _words(hw, given), as_json=as_json)
        return
    request = make_request(hw, given)
    plan = plan_run(request)
    if dry_run:
        print_plan(request, plan, as_json=as_json)
        return
    if folder is None:
        raise click.UsageError("Name the run directory: -o RUN is missing; or use --dry-run.")
    if not plan.entries:
        print_plan(request, plan, as_json=as_json)
        raise MeasurementError("No kernel here runs any of these cases; the reasons are above.")
    with Progress(plan) as progress:
        outcome = measure(request, plan, Path(folder), progress, resume_of(given))
    run = read_run(Path(folder))
    warn([*run.warnings, *(energy_warnings(run.head.energy) if given["energy"] else ())])
    print_run(run, as_json=as_json)
    if outcome.exit_code:
        click.echo(f"Stopped: {outcome.state}; the same command resumes the run.", err=True)
        sys.exit(outcome.exit_code)
    if not any(one.is_valid for one in run.measurements):
        raise MeasurementError(f"{folder}: no case was measured validly; the reasons are above.")


def make_request(hw: str, given: dict[str, Any]) -> "Request":
    """Return what the options ask for."""
    from codesign.cost.sheet_file import read_sheets
    from codesign.hardware.file import load_hardware
    from codesign.profiler.blocks import MODULE as BLOCKS
    from codesign.profiler.discover import adapter_modules, load_catalog
    from codesign.profiler.environment import capture_environment, env_block
    from codesign.profiler.profile import Request
    from codesign.profiler.soak import soak_rule
    from codesign.profiler.telemetry import read_telemetry
    from codesign.profiler.timing import DEFAULT_RULE, Rule

    path, budget_s, soak_s = Path(hw), given["budget_s"], given["soak"] or 0.0
    usual = Rule(budget_s=budget_s, warm_up_max_s=min(budget_s, DEFAULT_RULE.warm_up_max_s))
    hardware = load_hardware(hw)
    catalog = load_catalog((BLOCKS,) if given["blocks"] else adapter_modules(given["kernels"]))
    return Request(
        question=_question(given, catalog, hardware.kind),
        catalog=catalog,
        hardware=hardware,
        hardware_path=path if path.is_file() else None,
        rule=soak_rule(soak_s) if soak_s else usual,
        environment=env_block(capture_environment(read_telemetry(lambda text: warn([text]))), shareable=True),
        command=" ".join(("codesign", "profile", *_words(hw, given))),
        repeat=given["repeat"],
        energy=given["energy"],
        soak_s=soak_s,
        sheets=read_sheets(given["sheet_files"]),
    )


def _question(given: dict[str, Any], catalog: "Catalog", kind: str) -> "Question":
    from codesign.profiler.candidates import Question, model_attentions, model_shapes, parse_shapes, scheme_names
    from codesign.profiler.discover import choose_libraries
    from codesign.profiler.processors import core_count

    if not given["model"] and not given["shapes"]:
        raise click.UsageError("Name what to measure: --model NAME or --shapes NxK is missing.")
    for option in ("attention", "prompt"):
        if given[option] and not given["model"]:
            raise click.UsageError(f"--{option} needs --model, whose heads it takes.")
    blocks = block_question(given)
    model = load_model_and_warn(given["model"]) if given["model"] and blocks is None else None
    tokens, prompts = (
        integer_list(given[name], f"--{name}") if given[name] else () for name in ("attention", "prompt")
    )
    own_threads = core_count() if kind == "cpu" else 1
    named = parse_shapes(given["shapes"])
    return Question(
        shapes=named or (model_shapes(model) if model else ()),
        attentions=model_attentions(model, tokens, prompts) if model else (),
        batches=integer_list(given["batch"], "--batch"),
        threads=integer_list(given["threads"], "--threads") if given["threads"] else (own_threads,),
        libraries=choose_libraries(catalog, given["libraries"]),
        schemes=scheme_names(given["schemes"]),
        cache=given["cache"],
        seed=given["seed"],
        blocks=blocks,
        device="cuda" if kind == "gpu" else "cpu",
    )


def _words(hw: str, given: dict[str, Any]) -> list[str]:
    """Return the options as words, paths by their names alone, so that a run tells nothing of its folder."""
    words = ["--hw", Path(hw).name]
    for name in (*QUESTION_WORDS, *WORDS):
        value = str(given[name] or "")
        if value:
            words += [f"--{name.replace('_', '-')}", Path(value).name if name in ("model", "plan") else value]
    soak = ["--soak", f"{given['soak']:g}"] if given["soak"] else []
    return [*words, *(["--energy"] if given["energy"] else []), *soak, "--budget-s", f"{given['budget_s']:g}"]
