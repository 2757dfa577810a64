"""Options of `simulate` and `size`: what requests come, what users are promised, how a server is started."""

from pathlib import Path
from typing import Any

import click

from codesign.capacity.load import Objectives
from codesign.capacity.presets import find_preset
from codesign.capacity.replica import Limits
from codesign.capacity.requests import RATE_MAX_PER_S, Demand, Requests, parse_lengths
from codesign.cli.options import Positive, warn

DEFAULT_PROMPT, DEFAULT_OUTPUT = "1024", "256"


def demand_options(function: Any) -> Any:
    """Add what requests a service gets: --workload, --prompt, --output, --trace, --variation, --shared-prefix."""
    options = (
        click.option("--workload", default="", metavar="NAME", help="Typical lengths: chat, code, summarise or agent."),
        click.option("--prompt", metavar="LENGTHS",
                     help="300, lognormal:MEDIAN:SIGMA, bimodal:FIRST:SECOND:SHARE, or file:FILE, one number a line."),
        click.option("--output", metavar="LENGTHS", help="New tokens of a request, written like --prompt."),
        click.option("--trace", metavar="FILE", help="Arrival times and lengths of a log, CSV or JSON lines."),
        click.option(
            "--variation",
            type=click.FloatRange(0.0, 20.0),
            default=1.0,
            show_default=True,
            help="Standard deviation of the time between arrivals over its mean: 1 is Poisson, 0 a clock, 2 in bursts.",
        ),
        click.option("--shared-prefix", type=click.IntRange(0, 2**24), help="Tokens with which every prompt begins."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the draws."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def objective_options(function: Any) -> Any:
    """Add --ttft-p95, --tpot-p95 and --e2e-p95."""
    for name, text in (
        ("e2e", "Whole request"),
        ("tpot", "Each further token, averaged over a request"),
        ("ttft", "First token"),
    ):
        function = click.option(
            f"--{name}-p95",
            f"{name}_p95",
            type=Positive,
            metavar="SECONDS",
            help=f"{text}: at most, for 95 % of requests.",
        )(function)
    return function


def server_options(function: Any) -> Any:
    """Add --max-sequences and --step-tokens."""
    function = click.option(
        "--step-tokens", type=click.IntRange(1, 2**17), default=8192, show_default=True,
        help="Tokens of a step, such as vLLM's --max-num-batched-tokens.",
    )(function)  # fmt: skip
    return click.option(
        "--max-sequences", type=click.IntRange(1, 8192), default=256, show_default=True,
        help="Sequences of a step, such as vLLM's --max-num-seqs.",
    )(function)  # fmt: skip


def demand_from(given: dict[str, Any], rate_per_s: float) -> Demand:
    """Return the demand of the options at a rate; lengths that are named go before those of a preset."""
    preset = find_preset(given["workload"]) if given["workload"] else None
    lengths = {}
    for name, default in (("prompt", DEFAULT_PROMPT), ("output", DEFAULT_OUTPUT)):
        text = given[name]
        lengths[name] = parse_lengths(text or default, f"--{name}")
        if preset is not None and text is None:
            lengths[name] = getattr(preset, name)
    shared = given["shared_prefix"]
    if shared is None:
        shared = preset.shared_prefix_tokens if preset is not None else 0
    return Demand(rate_per_s, lengths["prompt"], lengths["output"], given["variation"], shared)


def trace_from(given: dict[str, Any]) -> Requests | None:
    """Return the requests of --trace, None without it; what was odd about the log is said on standard error."""
    if given["trace"] is None:
        return None
    from codesign.capacity.trace_file import read_trace

    for name in ("prompt", "output", "rate"):
        if given[name] is not None:
            raise click.UsageError(f"--trace says when requests come and how long they are; leave out --{name}.")
    if given["workload"]:
        raise click.UsageError("--trace says when requests come and how long they are; leave out --workload.")
    trace = read_trace(Path(given["trace"]))
    warn(trace.warnings)
    return trace.requests


def rates_from(text: str | None, points: int) -> tuple[float, ...]:
    """Return the rate of --rate, or `points` rates of a range LOW:HIGH."""
    from codesign.capacity.load_curve import spread_rates

    if text is None:
        raise click.UsageError("Say how many requests come per second: --rate 20, or --rate 1:40 for a curve.")
    words = text.split(":")
    try:
        ends = [float(word) for word in words]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2) or not all(0 < end <= RATE_MAX_PER_S for end in ends) or ends != sorted(set(ends)):
        raise click.UsageError(
            f'--rate: "{text[:40]}" is not understood; write requests per second such as 20, or a range such as 1:40, '
            f"above 0 and up to {RATE_MAX_PER_S:,.0f}."
        )
    return tuple(ends) if len(ends) == 1 else spread_rates(ends[0], ends[1], points)


def objectives_from(given: dict[str, Any]) -> Objectives:
    """Return what users are promised."""
    return Objectives(given["ttft_p95"], given["tpot_p95"], given["e2e_p95"])


def limits_from(given: dict[str, Any], shared_prefix_tokens: int, pipeline: int = 1) -> Limits:
    """Return how servers are started."""
    return Limits(given["max_sequences"], given["step_tokens"], pipeline, shared_prefix_tokens)
