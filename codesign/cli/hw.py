"""`codesign hw`: list, show, check and copy hardware profiles."""

import click

from codesign.cli.options import HELP, json_option, output_path


@click.group(epilog="Example: codesign hw show a100", context_settings=HELP)
def command() -> None:
    """Hardware profiles: what each machine can do, with the source of every number."""


@command.command("list", epilog="Example: codesign hw list", context_settings=HELP)
@json_option
def list_command(as_json: bool) -> None:
    """List every profile with its main figures."""
    from codesign import load_hardware
    from codesign.cli.hw_view import print_hardware_list
    from codesign.cli.output import print_json
    from codesign.hardware.file import list_hardware

    machines = [load_hardware(name) for name in list_hardware()]
    if as_json:
        print_json(
            {"hardware": [{"name": m.name, "title": m.title, "kind": m.kind} for m in machines]}, "hardware-list"
        )
    else:
        print_hardware_list(machines)


@command.command(epilog="Example: codesign hw show a100", context_settings=HELP)
@click.argument("name", metavar="NAME|FILE")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one profile: every number with its source and confidence."""
    from codesign import load_hardware
    from codesign.cli.hw_view import hardware_record, print_hardware
    from codesign.cli.output import print_json

    hardware = load_hardware(name)
    if as_json:
        print_json(hardware_record(hardware), "hardware")
    else:
        print_hardware(hardware)


@command.command(epilog="Example: codesign hw check my-machine.yaml", context_settings=HELP)
@click.argument("file", metavar="FILE")
@json_option
def check(file: str, as_json: bool) -> None:
    """Check a profile: errors end with code 3, doubts are listed."""
    from codesign.cli.output import print_json, print_line
    from codesign.hardware.file import check_hardware_file

    warnings = check_hardware_file(file)
    if as_json:
        print_json({"file": file, "valid": True, "warnings": warnings}, "hardware-check")
        return
    for warning in warnings:
        print_line(f"doubt: {warning}")
    print_line(f"{file}: valid, {len(warnings)} doubt{'s' if len(warnings) != 1 else ''}.")


@command.command(
    epilog="Example: codesign hw new --from a100-sxm-80gb --name my-a100 -o my-a100.yaml", context_settings=HELP
)
@click.option("--from", "base", required=True, metavar="NAME", help="Profile to start from.")
@click.option("--name", metavar="NAME", help="Name of the new machine; else that of the file.")
@click.option("-o", "--out", metavar="FILE", help="Write here; else to standard output.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def new(base: str, name: str | None, out: str | None, force: bool) -> None:
    """Write a commented copy of a profile, to be edited for your own machine."""
    from codesign.files import write_atomic
    from codesign.hardware.file import copy_profile

    path = output_path(out, force=force)
    text = copy_profile(base, name or (path.stem if path else f"my-{base}"))
    if path:
        write_atomic(path, text)
    else:
        click.echo(text, nl=False)


@command.command(epilog="Example: codesign hw measure -o local.yaml", context_settings=HELP)
@click.option("--name", metavar="NAME", help="Name of this machine; else that of the file, or of its processor.")
@click.option("-o", "--out", metavar="FILE", help="Write the profile here; else the table alone is shown.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def measure(name: str | None, out: str | None, force: bool, as_json: bool) -> None:
    """Measure the roofs of this machine's processor: bandwidths, peak rates, overheads. About 20 seconds."""
    import datetime

    from codesign.cli.hw_view import print_roofs, roofs_record
    from codesign.cli.output import print_json, print_line, progress
    from codesign.files import write_atomic
    from codesign.hardware.detect import detect_processor
    from codesign.hardware.local import Provenance, local_profile, profile_name
    from codesign.hardware.probe import measure_roofs

    path = output_path(out, force=force)
    processor = detect_processor()
    with progress("measuring") as report:
        roofs = measure_roofs(report)
    chosen = name or (path.stem.lower() if path else profile_name(processor))
    if path:
        provenance = Provenance(datetime.date.today().isoformat(), "codesign hw measure")
        write_atomic(path, local_profile(chosen, processor, roofs, provenance))
    if as_json:
        print_json(roofs_record(processor, roofs), "roofs")
        return
    print_roofs(processor, roofs)
    if path:
        print_line(f"Written: {path}. Use it: codesign plan --hw {path} --model NAME")
