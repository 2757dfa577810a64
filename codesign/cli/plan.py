"""`codesign plan`: which scheme for which layer; `plan show`: a written plan again; `plan export`: as a recipe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from codesign.cli import plan_export
from codesign.cli.options import (
    HELP,
    Count,
    Positive,
    QuestionGroup,
    json_option,
    lengths_options,
    load_model_and_warn,
    machine_and_model,
    name_list,
    need_machine_and_model,
    output_path,
    read_checkpoint,
    sheet_option,
    target_options,
    warn_of_foreign_sheets,
)
from codesign.units import GIBI, MILLI, significant

# Option, criterion, and the factor from the option's unit to the unit of the problem.
BUDGETS: tuple[tuple[str, str, float, str], ...] = (
    ("max_memory_gib", "memory", GIBI, "Memory of all devices in GiB; else what the machines have."),
    ("max_quality_loss", "quality", 1.0, "Loss in nats (0.02 is about 2 % perplexity)."),
    ("max_tpot_ms", "tpot", MILLI, "Time per output token in milliseconds."),
    ("max_ttft_ms", "ttft", MILLI, "Time to the first token in milliseconds."),
    ("max_joule_per_token", "energy", 1.0, "Energy per output token in joules."),
)
SCHEMES_NAMED = 3


def budget_options(function: Any) -> Any:
    """Add one option per budget."""
    for option, _, _, text in reversed(BUDGETS):
        function = click.option("--" + option.replace("_", "-"), type=Positive, help=text)(function)
    function = click.option("--max-usd-per-million-tokens", type=Positive, help="Cost of a million output tokens.")(
        function
    )
    return click.option(
        "--min-tokens-per-s", type=Positive, help="Output tokens per second, whole batch, prefill included."
    )(function)


@click.group(
    cls=QuestionGroup,
    invoke_without_command=True,
    epilog="Example: codesign plan --hw a100 --model llama-7b --max-quality-loss 0.02",
    context_settings=HELP,
)
@machine_and_model
@click.option("--batch", type=Count, default=1, show_default=True, help="Sequences in flight.")
@lengths_options
@target_options
@click.option(
    "--objective",
    default="tpot",
    show_default=True,
    help="Minimise: tpot, ttft, throughput, memory, quality, energy or cost.",
)
@budget_options
@click.option("--kv", default="", metavar="FORMAT|auto", help="KV cache format; auto lets the planner choose.")
@click.option(
    "--scheme",
    type=click.Choice(["as-is"]),
    help="Choose nothing: the plan states the schemes that the checkpoint at --model is stored in.",
)
@click.option("--schemes", default="", metavar="LIST", help="Consider only these, such as W4A16-g128,W8A8.")
@click.option("--method", default="", help="Quantization method of the quality prior, such as rtn, gptq or awq.")
@click.option("--anchor", default="", metavar="SCHEME:METHOD=NATS", help="One measured loss, which narrows the prior.")
@click.option("--quality", "quality_file", metavar="FILE", help="Measured losses instead of the published prior.")
@click.option(
    "--text",
    metavar="FILE",
    help="Measure the loss of a few plans near the best on this text, with the weights at --model, and choose by it.",
)
@click.option("--allow-unknown-quality", is_flag=True, help="Also consider schemes whose loss nobody measured.")
@sheet_option
@click.option("--pareto", metavar="A,B", help="Also the front between two criteria, such as tpot,quality.")
@click.option("-o", "--out", metavar="FILE", help="Write the plan as JSON.")
@click.option("--html", metavar="FILE", help="Write one offline page.")
@click.option("--layers", is_flag=True, help="List every fused group instead of merging equal blocks.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Choose a scheme for every fused group of layers, and a KV cache format, within the budgets."""
    if ctx.invoked_subcommand is None:
        need_machine_and_model(ctx, given)
        run(**given)


def run(*, as_json: bool, out: str | None, html: str | None, layers: bool, **given: Any) -> None:
    """Plan, then write and print."""
    from codesign.cli.plan_view import print_plan
    from codesign.plan.file import plan_json, write_plan

    out_path, html_path = output_path(out), output_path(html)
    plan = chosen_plan(given) if given["scheme"] is None else stated_plan(given)
    if out_path:
        write_plan(plan, out_path)
    if html_path:
        from codesign.report.plan_page import write_plan_page

        write_plan_page(plan, html_path)
    if as_json:
        click.echo(plan_json(plan), nl=False)
    else:
        print_plan(plan, every_group=layers)


def chosen_plan(given: dict[str, Any]) -> Any:
    """Return the best plan within the budgets, from 16-bit weights; a folder that holds others is warned of."""
    from codesign import api
    from codesign.cli.options import setting_from
    from codesign.errors import InfeasibleError
    from codesign.plan.solve import InfeasibleBudgetError

    hardware, model = api.load_hardware(given["hw"]), load_model_and_warn(given["model"])
    setting = with_text(setting_from(given, model), given)
    warn_of_foreign_sheets(setting, [hardware])
    pareto = pareto_pair(given["pareto"])
    limits = budgets(given, hardware)
    try:
        plan = api.plan(hardware, model, setting, objective=given["objective"], budgets=limits, pareto=pareto)
    except InfeasibleBudgetError as error:
        raise InfeasibleError(infeasible_sentence(error, given, hardware)) from error
    return replace(plan, warnings=(*plan.warnings, *quantized_already(given["model"])))


def with_text(setting: Any, given: dict[str, Any]) -> Any:
    """Return the setting with the text of --text, which needs weights to be measured with."""
    if given["text"] is None:
        return setting
    from codesign.model.weight_files import weight_path

    if weight_path(given["model"]) is None:
        raise click.UsageError(f"--text measures with weights, but none lie at {given['model'][:80]}.")
    return replace(setting, text=given["text"], weights=given["model"])


def stated_plan(given: dict[str, Any]) -> Any:
    """Return the plan that states the checkpoint's own schemes; options that choose are refused beside it."""
    from codesign import api
    from codesign.cli.options import setting_from

    defaults = {param.name: param.default for param in command.params}
    choosing = ("objective", "text", "schemes", "pareto", "min_tokens_per_s", "max_usd_per_million_tokens")
    for name in (*choosing, *(option for option, *_ in BUDGETS)):
        if given[name] not in (None, defaults[name]):
            raise click.UsageError(f"--scheme as-is chooses nothing, so that --{name.replace('_', '-')} has no use.")
    hardware, checkpoint = api.load_hardware(given["hw"]), read_checkpoint(given["model"])
    setting = setting_from(given, checkpoint.model)
    warn_of_foreign_sheets(setting, [hardware])
    return api.plan_as_is(hardware, checkpoint, setting)


def quantized_already(model: str) -> tuple[str, ...]:
    """Return the warning that the weights at a path are quantized, where they are and can be read at all."""
    from codesign.checkpoint.checkpoint import find_checkpoint
    from codesign.errors import InputError
    from codesign.model.file import is_model_path

    try:
        checkpoint = find_checkpoint(model) if is_model_path(model) else None
    except InputError:
        return ()  # shapes are known from the config alone, and a plan needs no more
    if checkpoint is None or not checkpoint.quantized_words:
        return ()
    held = ", ".join(checkpoint.quantized_words[:SCHEMES_NAMED])
    return (
        f"The weights at {model[:200]} are quantized already ({held}). This plan starts from 16-bit weights, which are "
        "not there, and quantizing twice loses more than is predicted; --scheme as-is states what is stored.",
    )


def infeasible_sentence(error: Any, given: dict[str, Any], hardware: Any) -> str:
    """Return which option is too tight, in its own unit, and the smallest value that would do."""
    tokens = given["batch"] * given["output"]
    if error.criterion == "throughput":
        option, limit, smallest = "--min-tokens-per-s", tokens / error.limit, tokens / error.smallest
        found = f"the most that is possible is {significant(smallest, 4)}"
    elif error.criterion == "cost":
        per_second = (given["price_per_hour"] or hardware.price_usd_per_hour) * given["gpus"] / 3600
        option, limit = "--max-usd-per-million-tokens", error.limit * per_second / tokens * 1e6
        found = f"the smallest possible is {significant(error.smallest * per_second / tokens * 1e6, 4)}"
    else:
        name, unit = next((option, unit) for option, criterion, unit, _ in BUDGETS if criterion == error.criterion)
        option, limit = "--" + name.replace("_", "-"), error.limit / unit
        found = f"the smallest possible is {significant(error.smallest / unit, 4)}"
    kept = f" while {' and '.join(error.held)} stay within budget" if error.held else ""
    return f"No plan meets the budgets. The tightest is {option} {significant(limit, 4)}: {found}{kept}."


def pareto_pair(text: str | None) -> tuple[str, str] | None:
    """Return the two criteria of --pareto."""
    if text is None:
        return None
    names = name_list(text)
    if len(names) != 2 or names[0] == names[1]:
        raise click.UsageError(f'--pareto wants two criteria, such as tpot,quality; given was "{text[:40]}".')
    return names[0], names[1]


def budgets(given: dict[str, Any], hardware: Any) -> dict[str, float]:
    """Return the budgets in the units of the problem; throughput and cost become the time of one request."""
    limits = {criterion: given[option] * unit for option, criterion, unit, _ in BUDGETS if given[option] is not None}
    tokens = given["batch"] * given["output"]
    if given["min_tokens_per_s"] is not None:
        limits["throughput"] = tokens / given["min_tokens_per_s"]
    if given["max_usd_per_million_tokens"] is not None:
        price = given["price_per_hour"] or hardware.price_usd_per_hour
        if price is None:
            raise click.UsageError(f"{hardware.name} has no price in its profile; give --price-per-hour.")
        limits["cost"] = given["max_usd_per_million_tokens"] * tokens * 3600 / 1e6 / (price * given["gpus"])
    return limits


@command.command(epilog="Example: codesign plan show plan.json", context_settings=HELP)
@click.argument("file", metavar="FILE")
@click.option("--layers", is_flag=True, help="List every fused group instead of merging equal blocks.")
@json_option
def show(file: str, layers: bool, as_json: bool) -> None:
    """Print a plan that was written with --out."""
    from codesign.cli.plan_view import print_plan
    from codesign.plan.file import plan_json, read_plan

    plan = read_plan(Path(file))
    if as_json:
        click.echo(plan_json(plan), nl=False)
    else:
        print_plan(plan, every_group=layers)


command.add_command(plan_export.command)
