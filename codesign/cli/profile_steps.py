"""Options of `codesign profile` that measure whole steps: transformer blocks, and a real model that generates."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codesign.cli.options import Count, integer_list, load_model_and_warn, name_list, warn

if TYPE_CHECKING:
    from codesign.profiler.candidates import BlockQuestion
    from codesign.profiler.generate_run import GenerateRequest

F = TypeVar("F", bound=Callable[..., Any])
WORDS = ("blocks", "context", "prompt", "kv", "plan", "new_tokens")
BLOCKS_MAX = 256
DEFAULT_CONTEXT = "1024"
DEFAULT_KV = "bf16"
DEFAULT_PROMPT = "128"


def step_options(function: F) -> F:
    """Add --blocks, --context, --prompt, --kv, --generate, --plan and --new-tokens."""
    text = "New tokens of each --generate."
    function = click.option("--new-tokens", type=Count, default=64, show_default=True, help=text)(function)
    text = "Plan whose schemes --generate carries out; else the model runs as it is."
    function = click.option("--plan", metavar="FILE", help=text)(function)
    text = "Let the model in the folder or GGUF file --model generate."
    function = click.option("--generate", is_flag=True, help=text)(function)
    text = f"KV formats of --blocks; else {DEFAULT_KV}."
    function = click.option("--kv", default="", metavar="A,B", help=text)(function)
    text = "Prompt tokens: of attention, with --blocks of steps that prefill, with --generate of its prompt."
    function = click.option("--prompt", default="", metavar="TOKENS,..", help=text)(function)
    text = f"Tokens that a decode step of --blocks attends to; else {DEFAULT_CONTEXT}."
    function = click.option("--context", default="", metavar="TOKENS,..", help=text)(function)
    text = "Measure steps through so many blocks of --model instead of kernels."
    return click.option("--blocks", type=click.IntRange(1, BLOCKS_MAX), metavar="COUNT", help=text)(function)


def block_question(given: dict[str, Any]) -> "BlockQuestion | None":
    """Return the steps that --blocks asks for, None without it."""
    from codesign.profiler.blocks import block_sizes
    from codesign.profiler.candidates import BlockQuestion
    from codesign.schemes.kv import parse_kv

    if given["blocks"] is None:
        return None
    if not given["model"]:
        raise click.UsageError("--blocks needs --model, whose sizes it takes.")
    model = load_model_and_warn(given["model"])
    contexts = given["context"] or ("" if given["prompt"] else DEFAULT_CONTEXT)
    return BlockQuestion(
        model=model.name,
        sizes=block_sizes(model),
        count=given["blocks"],
        contexts=integer_list(contexts, "--context") if contexts else (),
        prompts=integer_list(given["prompt"], "--prompt") if given["prompt"] else (),
        kv_formats=tuple(parse_kv(name).name for name in name_list(given["kv"] or DEFAULT_KV)),
    )


def run_generation(hw: str, folder: str | None, given: dict[str, Any], words: list[str], *, as_json: bool) -> None:
    """Measure a model that generates and print its rows."""
    from codesign.cli.generate_view import print_generation
    from codesign.cli.profile_view import print_run
    from codesign.errors import MeasurementError
    from codesign.profiler.generate_run import measure_generation
    from codesign.profiler.run_folder import read_run

    if folder is None:
        raise click.UsageError("Name the run directory: -o RUN is missing.")
    measure_generation(_generate_request(hw, given, words), Path(folder), force=given["force"])
    run = read_run(Path(folder))
    print_run(run, as_json=as_json)
    if any(one.is_invalid for one in run.measurements):
        raise MeasurementError(f"{folder}: this run is invalid; the reasons are above.")
    if not as_json:
        print_generation(run)


def _generate_request(hw: str, given: dict[str, Any], words: list[str]) -> "GenerateRequest":
    from codesign.errors import InputError
    from codesign.hardware.file import load_hardware
    from codesign.plan.file import read_plan
    from codesign.profiler.blocks import MODULE
    from codesign.profiler.discover import choose_libraries, load_catalog
    from codesign.profiler.environment import capture_environment, env_block
    from codesign.profiler.generate_run import GenerateQuestion, GenerateRequest
    from codesign.profiler.processors import core_count
    from codesign.profiler.telemetry import read_telemetry
    from codesign.profiler.timing import DEFAULT_RULE, Rule

    path, hardware_path, budget_s = Path(given["model"] or ""), Path(hw), given["budget_s"]
    if not given["model"] or not path.exists():
        raise InputError(
            f"--generate runs a real model: --model must be a folder or GGUF file, not {given['model']!r}."
        )
    threads = integer_list(given["threads"], "--threads") if given["threads"] else (core_count(),)
    prompts = integer_list(given["prompt"] or DEFAULT_PROMPT, "--prompt")
    if len(threads) > 1 or len(prompts) > 1:
        raise click.UsageError("--generate takes one count of --threads and one length of --prompt.")
    question = GenerateQuestion(
        path=path,
        model=load_model_and_warn(given["model"]),
        plan=read_plan(Path(given["plan"])) if given["plan"] else None,
        prompt_tokens=prompts[0],
        new_tokens=given["new_tokens"],
        threads=threads[0],
        libraries=choose_libraries(load_catalog((MODULE,)), given["libraries"]),
        seed=given["seed"],
    )
    return GenerateRequest(
        question=question,
        hardware=load_hardware(hw),
        hardware_path=hardware_path if hardware_path.is_file() else None,
        rule=Rule(budget_s=budget_s, warm_up_max_s=min(budget_s, DEFAULT_RULE.warm_up_max_s)),
        environment=env_block(capture_environment(read_telemetry(lambda text: warn([text]))), shareable=True),
        command=" ".join(("codesign", "profile", *words)),
        sheet_files=given["sheet_files"],
    )
