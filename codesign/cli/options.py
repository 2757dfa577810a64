"""Options that several commands share, and how their texts become values."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codesign.errors import CapabilityError, InputError
from codesign.setting import DEFAULT_OUTPUT_TOKENS, DEFAULT_PROMPT_TOKENS, Setting

if TYPE_CHECKING:
    from codesign.checkpoint.stored import Checkpoint
    from codesign.hardware.hardware import Hardware
    from codesign.model.layers import Model

F = TypeVar("F", bound=Callable[..., Any])

HELP: dict[str, list[str]] = {"help_option_names": ["-h", "--help"]}
COUNT_MAX = 2**24

Count = click.IntRange(1, COUNT_MAX)
Positive = click.FloatRange(0.0, min_open=True, max=1e18)


class QuestionGroup(click.Group):
    """A command that answers its own options and has subcommands beside that."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse words that are not subcommands with a sentence."""
        if args[0] not in self.commands:
            known = " or ".join(self.commands)
            raise click.UsageError(f'"{args[0]}" is not understood here; the subcommand is {known}.', ctx)
        return super().resolve_command(ctx, args)


MODEL_HELP = "Model: a catalog name, a Hugging Face id of one, a config.json, its folder, or a GGUF file."


def machine_and_model(function: F) -> F:
    """Add --hw and --model to a command that also has subcommands, which need neither."""
    function = click.option("--model", metavar="NAME|PATH", help=MODEL_HELP)(function)
    text = "Machine: a name of `codesign hw list`, or a YAML file."
    return click.option("--hw", "--hardware", "hw", metavar="NAME|FILE", help=text)(function)


def need_machine_and_model(ctx: click.Context, given: dict[str, Any]) -> None:
    """Raise a usage error where one of the two is missing."""
    for name, thing in (("hw", "machine"), ("model", "model")):
        if not given[name]:
            raise click.UsageError(f"Name the {thing}: --{name} is missing.", ctx)


def target_options(function: F) -> F:
    """Add --library, --engine, --threads, --gpus, --expert-parallel and --price-per-hour."""
    price = "US dollars per hour of one machine; else the profile's."
    function = click.option("--price-per-hour", type=Positive, metavar="USD", help=price)(function)
    experts = "Devices over which routed experts are divided whole; it must divide --gpus."
    function = click.option(
        "--expert-parallel", type=click.IntRange(1, 1024), default=1, show_default=True, help=experts
    )(function)
    gpus = "Devices that share the model by tensor parallelism."
    function = click.option("--gpus", type=click.IntRange(1, 1024), default=1, show_default=True, help=gpus)(function)
    text = "Threads of a CPU that work; else all of its cores."
    function = click.option("--threads", type=click.IntRange(1, 4096), metavar="COUNT", help=text)(function)
    text = (
        "What issues the kernels: compiled (vllm, tensorrt-llm, llama.cpp ...), eager (transformers, bitsandbytes ...) "
        "or eager-fused (autoawq, tinychat ...); else compiled, which never waits for the host."
    )
    function = click.option("--engine", default="", metavar="CLASS|NAME", help=text)(function)
    text = "Kernel library, such as vllm, trtllm or llama.cpp; else the usual one of the machine."
    return click.option("--library", default="", metavar="NAME", help=text)(function)


def sheet_option(function: F) -> F:
    """Add --sheet."""
    text = "Kernel sheet of your own, as `codesign fit` writes it; goes before the shipped ones. May be repeated."
    return click.option("--sheet", "sheet_files", multiple=True, metavar="FILE", help=text)(function)


def warn_of_foreign_sheets(setting: Setting, machines: "list[Hardware]") -> None:
    """Say on standard error which sheets are of none of these machines with their library."""
    from codesign.cli.output import plain
    from codesign.cost.collectives import COMMON_LIBRARY
    from codesign.cost.sheet_file import read_sheets
    from codesign.schemes.capability import library_of

    known = {
        (machine.name, name)
        for machine in machines
        for name in (library_of(setting.library, machine).name, COMMON_LIBRARY)
    }
    for sheet in read_sheets(setting.sheet_files):
        if (sheet.hardware, sheet.library) not in known:
            text = f"the sheet of {sheet.library} on {sheet.hardware} is of another machine or library"
            click.echo(plain(f"Warning: {text}; it can only stand in as a relative's."), err=True)


def lengths_options(function: F) -> F:
    """Add --prompt and --output."""
    function = click.option(
        "--output", type=Count, default=DEFAULT_OUTPUT_TOKENS, show_default=True, help="New tokens."
    )(function)
    text = f"Prompt tokens; else {DEFAULT_PROMPT_TOKENS}, or what the model's context leaves."
    return click.option("--prompt", type=Count, help=text)(function)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def device_option(function: F) -> F:
    """Add --device."""
    text = "Where torch computes: cpu or cuda."
    return click.option("--device", default="cpu", show_default=True, callback=_usable_device, help=text)(function)


def cluster_option(function: F) -> F:
    """Add --cluster."""
    text = "Let the machines and GPUs of a ray cluster work, or processes of this machine (local)."
    return click.option(
        "--cluster", metavar="[ADDRESS|local]", is_flag=False, flag_value="local", callback=_with_ray, help=text
    )(function)


def _with_ray(_: click.Context, __: click.Parameter, address: str | None) -> str | None:
    """Return the address, after making sure that ray is here: before any work."""
    if address is not None:
        from codesign.quantize.cluster import load_ray

        load_ray()
    return address


def _usable_device(_: click.Context, __: click.Parameter, name: str) -> str:
    """Return the name of a device that torch can use here."""
    if name == "cpu":
        return name
    import torch

    if name != "cuda" and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise click.UsageError(f'--device: "{name[:40]}" is not understood; write cpu, cuda or cuda:1.')
    count = torch.cuda.device_count()
    if int(name[5:] or 0) >= count:
        raise CapabilityError(f"--device {name[:40]}: torch finds {count} CUDA devices here; use --device cpu.")
    return name


def output_path(text: str | None, force: bool = True) -> Path | None:
    """Return the path to write, after checking that it can be a file there."""
    if text is None:
        return None
    path = Path(text)
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name a file.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first.")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; use --force to replace it.")
    return path


def integer_list(text: str, name: str) -> tuple[int, ...]:
    """Return the positive whole numbers of a list such as `1,8,64`."""
    values = []
    for part in text.split(","):
        word = part.strip()
        if not word.isascii() or not word.isdigit() or not 1 <= int(word[:12]) <= COUNT_MAX:
            raise click.UsageError(f'{name}: "{word[:40]}" is not a whole number from 1 to {COUNT_MAX}; write 1,8,64.')
        values.append(int(word))
    return tuple(values)


def name_list(text: str) -> tuple[str, ...]:
    """Return the names of a list such as `t4,a100`."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def load_model_and_warn(name: str) -> "Model":
    """Return the model; what is odd about its config is said on standard error."""
    from codesign.model.file import load_model_with_warnings

    model, warnings = load_model_with_warnings(name)
    warn(warnings)
    return model


def read_checkpoint(path: str) -> "Checkpoint":
    """Return the checkpoint at a path; what is odd about it is said on standard error."""
    from codesign.checkpoint.checkpoint import read_checkpoint as read

    checkpoint = read(path)
    warn(checkpoint.warnings)
    return checkpoint


def find_checkpoint(path: str) -> "Checkpoint | None":
    """Return the checkpoint at a path and say what is odd about it, None if no weights lie there."""
    from codesign.checkpoint.checkpoint import find_checkpoint as find

    checkpoint = find(path)
    if checkpoint is not None:
        warn(checkpoint.warnings)
    return checkpoint


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on standard error."""
    from codesign.cli.output import plain

    for warning in warnings:
        click.echo(f"Warning: {plain(warning)}", err=True)


def note(text: str) -> None:
    """Say something on standard error that is not part of the result."""
    from codesign.cli.output import plain

    click.echo(plain(text), err=True)


def scheme_name(text: str) -> str:
    """Return the name of a scheme, or `as-is`."""
    from codesign.cost.as_is import AS_IS
    from codesign.schemes.catalog import parse_scheme

    return AS_IS if text.strip().lower() == AS_IS else parse_scheme(text).name


def setting_from(given: dict[str, Any], model: Any) -> Setting:
    """Return the setting of the given options; a prompt that was not named is cut to the model's context."""
    prompt = given["prompt"] or max(1, min(DEFAULT_PROMPT_TOKENS, model.max_context_tokens - given["output"]))
    return Setting(
        batch=given.get("batch") or 1,
        prompt_tokens=prompt,
        output_tokens=given["output"],
        library=given["library"],
        gpu_count=given["gpus"],
        expert_parallel=given["expert_parallel"],
        price_usd_per_hour=given["price_per_hour"],
        kv=given["kv"].strip().lower(),
        schemes=name_list(given.get("schemes", "")),
        method=given.get("method", ""),
        anchor=given.get("anchor", ""),
        quality_file=given.get("quality_file"),
        allow_unknown_quality=given.get("allow_unknown_quality", False),
        sheet_files=given["sheet_files"],
        engine=given["engine"],
        thread_count=given["threads"],
    )
