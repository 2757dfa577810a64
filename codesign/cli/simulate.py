"""`codesign simulate`: what users of a server see at a rate of requests, or along a range of rates."""

from pathlib import Path
from typing import Any

import click

from codesign.cli.capacity_options import (
    demand_from,
    demand_options,
    limits_from,
    objective_options,
    objectives_from,
    rates_from,
    server_options,
    trace_from,
)
from codesign.cli.options import HELP, MODEL_HELP, Count, json_option, load_model_and_warn, output_path, sheet_option

POINTS_DEFAULT = 12


@click.command(
    epilog="Example: codesign simulate --hw h100 --model llama-3.1-8b --gpus 4 --rate 1:80 --prompt 2000 --output 300",
    context_settings=HELP,
)
@click.option("--hw", "--hardware", "hw", metavar="NAME|FILE", help="Machine; else that of the plan.")
@click.option("--model", metavar="NAME|PATH", help=MODEL_HELP)
@click.option("--plan", "plan_file", metavar="FILE", help="Schemes of a plan written with `codesign plan --out`.")
@click.option("--scheme", default="", metavar="NAME", help="One scheme wherever it can be used; else 16 bits.")
@click.option("--kv", default="", metavar="FORMAT", help="KV cache format; else the plan's, or 16 bits.")
@click.option("--rate", metavar="RATE|LOW:HIGH", help="Requests per second, or a range of which a curve is drawn.")
@demand_options
@click.option(
    "--requests",
    type=click.IntRange(1, 20_000_000),
    default=10_000,
    show_default=True,
    help="Requests at each rate; a trace gives its own.",
)
@click.option("--gpus", type=Count, default=1, show_default=True, help="Devices in all.")
@click.option("--tensor-parallel", type=Count, help="Devices of a replica; else the fewest whose memory suffices.")
@click.option("--pipeline", type=click.IntRange(1, 64), default=1, show_default=True, help="Stages of a replica.")
@server_options
@click.option("--library", default="", metavar="NAME", help="Kernel library and server; else the machine's usual one.")
@sheet_option
@objective_options
@click.option("--points", type=click.IntRange(2, 200), default=POINTS_DEFAULT, show_default=True, help="Of a curve.")
@click.option("--html", metavar="FILE", help="Write one offline page.")
@json_option
def command(*, as_json: bool, html: str | None, **given: Any) -> None:
    """Simulate a server with continuous batching: first token, further tokens, queue, memory, goodput."""
    from codesign.cli.output import print_json, progress
    from codesign.cli.simulate_view import print_simulation

    page = output_path(html)
    question = asked(given)
    with progress("simulating") as step:
        answer = question.answer(lambda load: step(f"{load.rate_per_s:.3g} requests/s"))
    if page:
        from codesign.report.load_page import write_load_page

        write_load_page(question, answer, page)
    if as_json:
        print_json({**question.described(), "curve": answer}, "simulation")
    else:
        print_simulation(question, answer)


def asked(given: dict[str, Any]) -> Any:
    """Return the question of the options, its machines found and their steps computed."""
    from codesign import api
    from codesign.capacity.question import Asked, ask
    from codesign.plan.file import read_plan
    from codesign.setting import Setting

    trace = trace_from(given)
    rates = () if trace is not None else rates_from(given["rate"], given["points"])
    plan = read_plan(Path(given["plan_file"])) if given["plan_file"] else None
    if plan is not None and given["scheme"]:
        raise click.UsageError("--plan has its own schemes; leave out --scheme.")
    hw, model = given["hw"] or (plan.hardware if plan else ""), given["model"] or (plan.model if plan else "")
    for name, thing, value in (("hw", "machine", hw), ("model", "model", model)):
        if not value:
            raise click.UsageError(f"Name the {thing}: --{name} or --plan is missing.")
    demand = demand_from(given, rates[0] if rates else 1.0)
    setting = Setting(
        gpu_count=given["tensor_parallel"] or (plan.gpu_count if plan else 0) or 1,
        library=given["library"] or (plan.library if plan else ""),
        kv=given["kv"].strip().lower() or (plan.kv if plan else ""),
        sheet_files=given["sheet_files"],
    )
    return ask(
        Asked(
            hardware=api.load_hardware(hw),
            model=load_model_and_warn(model),
            setting=setting,
            plan=plan,
            scheme=given["scheme"],
            gpu_count=given["gpus"],
            choose_tensor_parallel=given["tensor_parallel"] is None and plan is None,
            limits=limits_from(given, demand.shared_prefix_tokens, given["pipeline"]),
            objectives=objectives_from(given),
            demand=demand,
            trace=trace,
            rates_per_s=rates,
            request_count=given["requests"],
            seed=given["seed"],
        )
    )
