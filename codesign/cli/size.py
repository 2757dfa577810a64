"""`codesign size`: which machine, how many, which bits for a service; what it costs and what would be next."""

from pathlib import Path
from typing import Any

import click

from codesign.cli.capacity_options import (
    demand_from,
    demand_options,
    limits_from,
    objective_options,
    objectives_from,
    server_options,
    trace_from,
)
from codesign.cli.options import (
    HELP,
    MODEL_HELP,
    Positive,
    json_option,
    load_model_and_warn,
    name_list,
    output_path,
    sheet_option,
)
from codesign.setting import DEFAULT_MAX_LOSS_NATS


@click.command(
    epilog=(
        "Example: codesign size --model llama-3.3-70b --hw a100,h100,h200,l40s --rate 20 --prompt 2000 --output 300 "
        "--ttft-p95 1.0 --tpot-p95 0.04"
    ),
    context_settings=HELP,
)
@click.option("--model", required=True, metavar="NAME|PATH", help=MODEL_HELP)
@click.option(
    "--hw", "--hardware", "hw", required=True, metavar="LIST", help="Machines to choose from, such as a100,h100."
)
@click.option("--rate", type=click.FloatRange(0.0, 1e6, min_open=True), metavar="RATE", help="Requests per second.")
@demand_options
@objective_options
@click.option(
    "--max-quality-loss", type=Positive, default=DEFAULT_MAX_LOSS_NATS, show_default=True,
    help="Loss in nats (0.02 is about 2 % perplexity).",
)  # fmt: skip
@click.option("--budget-per-month", type=Positive, metavar="USD", help="The most that all machines may cost.")
@click.option("--price", "prices", multiple=True, metavar="HW=USD", help="US dollars per hour of one; may be repeated.")
@server_options
@click.option("--library", default="", metavar="NAME", help="Kernel library and server; else each machine's usual one.")
@click.option("--method", default="", help="Quantization method of the quality prior, such as rtn, gptq or awq.")
@sheet_option
@click.option("--kubernetes", metavar="FILE", help="Write a Kubernetes deployment of the cheapest.")
@click.option("--html", metavar="FILE", help="Write one offline page.")
@json_option
def command(*, as_json: bool, html: str | None, kubernetes: str | None, **given: Any) -> None:
    """Find the cheapest machines, schemes and KV formats that serve a load within its objectives."""
    from codesign import api
    from codesign.capacity.size import size
    from codesign.cli.output import print_json, progress
    from codesign.cli.size_view import print_sizing
    from codesign.setting import Setting

    page, manifest = output_path(html), output_path(kubernetes)
    names = name_list(given["hw"])
    if not names:
        raise click.UsageError("--hw names no machine; write --hw a100,h100.")
    service = service_from(given)
    machines = [api.load_hardware(name) for name in dict.fromkeys(names)]
    setting = Setting(library=given["library"], method=given["method"], sheet_files=given["sheet_files"])
    with progress("sizing") as step:
        found = size(machines, service, setting, prices_from(given["prices"]), step)
    if page:
        from codesign.report.size_page import write_size_page

        write_size_page(service, found, page)
    if manifest:
        write_manifest(service, found, manifest)
    if as_json:
        from codesign.capacity.size_present import sizing_plain

        print_json(sizing_plain(service, found), "sizing")
    else:
        print_sizing(service, found)


def write_manifest(service: Any, found: Any, path: Path) -> None:
    """Write the Kubernetes deployment of the cheapest, where there is one."""
    from codesign.capacity.launch import kubernetes_yaml
    from codesign.errors import CapabilityError
    from codesign.files import write_atomic

    text = kubernetes_yaml(found.best, service.context_max)
    if text is None:
        target = found.best.candidate.where.target
        raise CapabilityError(
            f"There is no deployment of {target.library} over {found.best.candidate.limits.pipeline} machines on "
            f"{target.hardware.name} to write; leave out --kubernetes."
        )
    write_atomic(path, text)


def service_from(given: dict[str, Any]) -> Any:
    """Return the service of the options."""
    from codesign.capacity.candidates import Service

    trace = trace_from(given)
    if trace is None and given["rate"] is None:
        raise click.UsageError("Say how many requests come per second: --rate 20, or --trace with a log of them.")
    demand = demand_from(given, given["rate"] or 1.0)
    objectives = objectives_from(given)
    if not objectives.named:
        raise click.UsageError("Say what users are promised: --ttft-p95, --tpot-p95 or --e2e-p95, in seconds.")
    return Service(
        model=load_model_and_warn(given["model"]),
        demand=demand,
        objectives=objectives,
        limits=limits_from(given, demand.shared_prefix_tokens),
        max_loss_nats=given["max_quality_loss"],
        budget_usd_per_month=given["budget_per_month"],
        seed=given["seed"],
        trace=trace,
    )


def prices_from(texts: tuple[str, ...]) -> dict[str, float]:
    """Return the prices of --price by machine name."""
    from codesign import api

    prices: dict[str, float] = {}
    for text in texts:
        name, _, word = text.partition("=")
        try:
            price = float(word)
        except ValueError:
            price = 0.0
        if not 0 < price < 1e6:
            raise click.UsageError(f'--price: "{text[:40]}" is not understood; write a100=1.80, US dollars per hour.')
        prices[api.load_hardware(name).name] = price
    return prices
