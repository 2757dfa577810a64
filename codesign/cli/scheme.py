"""`codesign scheme`: list schemes, and what runs where."""

import click

from codesign.cli.options import HELP, json_option


@click.group(epilog="Example: codesign scheme list --hw t4", context_settings=HELP)
def command() -> None:
    """Schemes: how weights and activations are stored, and what multiplies them."""


@command.command("list", epilog="Example: codesign scheme list --hw t4 --runtime vllm", context_settings=HELP)
@click.option("--hw", "--hardware", "hw", metavar="NAME|FILE", help="Say for each scheme whether it runs there.")
@click.option(
    "--library",
    "--runtime",
    "library",
    default="",
    metavar="NAME",
    help="With the kernels of this library or runtime; else the usual one.",
)
@json_option
def list_command(hw: str | None, library: str, as_json: bool) -> None:
    """List the schemes with their exact bits per weight."""
    from codesign import load_hardware
    from codesign.cli.output import print_json
    from codesign.cli.scheme_view import capability_rows, print_capabilities, print_schemes
    from codesign.schemes.capability import library_of
    from codesign.schemes.catalog import SCHEMES

    if hw is None:
        if as_json:
            print_json(
                {"schemes": [{"name": s.name, "bits_per_weight": s.bits_per_weight} for s in SCHEMES.values()]},
                "schemes",
            )
        else:
            print_schemes(tuple(SCHEMES.values()))
        return
    hardware = load_hardware(hw)
    chosen = library_of(library, hardware).name
    rows = capability_rows(hardware, chosen)
    if as_json:
        print_json({"hardware": hardware.name, "library": chosen, "schemes": rows}, "capabilities")
    else:
        print_capabilities(hardware, chosen, rows)
