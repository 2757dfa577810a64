"""Options of `codesign profile` that measure whole steps: transformer blocks, and a real model that generates."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codesign.cli.options import Count, integer_list, load_model_and_warn, name_list

if TYPE_CHECKING:
    from codesign.profiler.candidates import BlockQuestion

F = TypeVar("F", bound=Callable[..., Any])
WORDS = ("blocks", "context", "prompt", "kv", "plan", "new_tokens")
BLOCKS_MAX = 256
DEFAULT_CONTEXT = "1024"
DEFAULT_KV = "bf16"


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
    text = "Prompt tokens: a prefill of so many with --blocks, the prompt of --generate."
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
