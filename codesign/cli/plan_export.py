"""`codesign plan export`: a written plan as a recipe or command of the tool that makes or serves it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from codesign.cli.options import HELP, MODEL_HELP, output_path
from codesign.errors import InputError

T = TypeVar("T")


@click.command("export", epilog="Example: codesign plan export plan.json --to vllm", context_settings=HELP)
@click.argument("file", metavar="FILE")
@click.option(
    "--to",
    "tool",
    required=True,
    metavar="TOOL",
    help="vllm, sglang, trtllm, llm-compressor, modelopt, gptqmodel, autoround, llama.cpp, torchao or mlx.",
)
@click.option("-o", "--out", metavar="FILE", help="Write there; else to standard output.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--promote", is_flag=True, help="Where the tool cannot make a scheme, take the next wider that it can.")
@click.option("--hw", "--hardware", "hw", metavar="NAME|FILE", help="The machine, if its name in the plan is none.")
@click.option("--model", metavar="NAME|PATH", help=f"{MODEL_HELP} Else the one that the plan names.")
def command(*, file: str, tool: str, out: str | None, force: bool, promote: bool, **named: str | None) -> None:
    """Write the recipe that makes a plan, or the command that serves it, in the syntax of a tool."""
    from codesign.cli.output import plain
    from codesign.files import write_atomic
    from codesign.hardware.file import load_hardware
    from codesign.model.file import load_model
    from codesign.plan.file import read_plan
    from codesign.plan.recipes.make import Inputs, make_recipe, model_source
    from codesign.plan.recipes.registry import find_tool

    chosen, path = find_tool(tool), output_path(out, force)
    plan = read_plan(Path(file))
    hardware = _load(load_hardware, named["hw"], plan.hardware, "--hw")
    model = _load(load_model, named["model"], plan.model, "--model")
    inputs = Inputs(plan, hardware, model, model_source(named["model"] or plan.model))
    recipe = make_recipe(inputs, chosen, promote=promote)
    for remark in recipe.remarks:
        click.echo(plain(remark), err=True)
    if path is None:
        click.echo(recipe.text, nl=False)
    else:
        write_atomic(path, recipe.text)


def _load(load: Callable[[str], T], named: str | None, planned: str, option: str) -> T:
    """Return what was named, else what the plan names, which may have been a file that only the user can find."""
    if named is not None:
        return load(named)
    try:
        return load(planned)
    except InputError as error:
        raise InputError(f'The plan was made for "{planned[:80]}"; name its file with {option}. {error}') from error
