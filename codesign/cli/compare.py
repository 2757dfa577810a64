"""`codesign compare`: machines against schemes."""

from dataclasses import replace
from typing import Any

import click

from codesign.cli.options import (
    HELP,
    MODEL_HELP,
    Count,
    json_option,
    lengths_options,
    load_model_and_warn,
    name_list,
    read_checkpoint,
    scheme_name,
    setting_from,
    sheet_option,
    target_options,
    warn,
    warn_of_foreign_sheets,
)


@click.command(
    epilog="Example: codesign compare --hw t4,a100,h100,x86-avx512,arm-neon --model llama-2-7b --scheme all",
    context_settings=HELP,
)
@click.option("--hw", "--hardware", "hw", required=True, metavar="LIST", help="Machines, such as t4,a100,arm-neon.")
@click.option("--model", required=True, metavar="NAME|PATH", help=MODEL_HELP)
@click.option(
    "--scheme",
    default="all",
    show_default=True,
    metavar="LIST|all",
    help="Schemes, as-is for a checkpoint's own, or all that each machine's library has.",
)
@click.option("--batch", type=Count, default=1, show_default=True, help="Sequences in flight.")
@lengths_options
@target_options
@click.option("--kv", default="", metavar="FORMAT", help="KV cache format; else 16 bits.")
@sheet_option
@json_option
def command(*, hw: str, model: str, scheme: str, as_json: bool, **given: Any) -> None:
    """Compare machines and schemes: speed, memory, energy, cost, and what is refused where."""
    from codesign import api
    from codesign.cli.compare_view import print_comparison
    from codesign.cli.output import print_json
    from codesign.cost.as_is import AS_IS
    from codesign.cost.compare import compare_machine

    names = name_list(hw)
    if not names:
        raise click.UsageError("--hw names no machine; write --hw t4,a100.")
    chosen = () if scheme.strip().lower() == "all" else tuple(map(scheme_name, name_list(scheme)))
    checkpoint = read_checkpoint(model) if AS_IS in chosen else None
    shape = load_model_and_warn(model) if checkpoint is None else checkpoint.model
    machines = [api.load_hardware(name) for name in names]
    setting = setting_from(given, shape)
    warn_of_foreign_sheets(setting, machines)
    comparisons = [compare_machine(machine, shape, setting, chosen, checkpoint) for machine in machines]
    warn(dict.fromkeys(text for machine in comparisons for result in machine.results for text in result.warnings))
    if as_json:
        print_json({"model": shape.name, "setting": replace(setting), "machines": comparisons}, "comparison")
    else:
        print_comparison(shape, setting, comparisons)
