"""`codesign predict`: one scheme on one machine; `predict kernels` and `predict serving`: tables."""

from dataclasses import replace
from typing import Any

import click

from codesign.cli.options import (
    HELP,
    QuestionGroup,
    integer_list,
    json_option,
    lengths_options,
    load_model_and_warn,
    machine_and_model,
    need_machine_and_model,
    output_path,
    read_checkpoint,
    scheme_name,
    setting_from,
    sheet_option,
    target_options,
    warn,
    warn_of_foreign_sheets,
)


@click.group(
    cls=QuestionGroup,
    invoke_without_command=True,
    epilog="Example: codesign predict --hw h100 --gpus 4 --model llama-2-70b --scheme W4A16-g128 --batch 1,8,64",
    context_settings=HELP,
)
@machine_and_model
@click.option(
    "--scheme",
    default="",
    metavar="NAME",
    help="A name of `codesign scheme list`, or as-is for a checkpoint's own; else 16 bits.",
)
@click.option("--batch", default="1", show_default=True, metavar="LIST", help="Sequences in flight, such as 1,8,64.")
@lengths_options
@target_options
@click.option("--kv", default="", metavar="FORMAT", help="KV cache format; else 16 bits.")
@sheet_option
@json_option
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Predict first token, further tokens, throughput, memory, energy and cost of one scheme."""
    if ctx.invoked_subcommand is None:
        need_machine_and_model(ctx, given)
        run(**given)


def run(*, scheme: str, batch: str, as_json: bool, **given: Any) -> None:
    """Predict every batch of the list and print them."""
    from codesign import api
    from codesign.cli.output import print_json, print_line
    from codesign.cli.predict_view import PredictedBatch, print_predictions
    from codesign.cost.advice import predicted_advice
    from codesign.cost.as_is import AS_IS, as_is_assignment
    from codesign.cost.calibration import own_sheets
    from codesign.cost.deployment import deploy
    from codesign.cost.inference import predict_inference
    from codesign.cost.sheet import sheet_title
    from codesign.schemes.capability import baseline_scheme

    batches = integer_list(batch, "--batch")
    hardware = api.load_hardware(given["hw"])
    baseline = baseline_scheme(hardware).name
    name = scheme_name(scheme) if scheme else baseline
    checkpoint = read_checkpoint(given["model"]) if name == AS_IS else None
    model = load_model_and_warn(given["model"]) if checkpoint is None else checkpoint.model
    setting = setting_from(given, model)
    warn_of_foreign_sheets(setting, [hardware])
    rows: list[PredictedBatch] = []
    for one in batches:
        here = replace(setting, batch=one)
        unquantized = replace(here, kv="")
        where = deploy(hardware, model, here)
        as_is = None if checkpoint is None else as_is_assignment(where, checkpoint, here.kv)
        if as_is is not None and not rows:
            warn(as_is.warnings)
        rows.append(
            PredictedBatch(
                batch=one,
                prediction=(
                    api.predict(hardware, model, name, here)
                    if as_is is None
                    else predict_inference(where, as_is.assignment)
                ),
                baseline=api.predict(hardware, model, baseline, unquantized),
                advice=predicted_advice(where, name, here.kv) if as_is is None else (),
            )
        )
    where = deploy(hardware, model, setting)
    titles = [sheet_title(sheet) for sheet in own_sheets(where.target)]
    if as_json:
        head = {"hardware": hardware.name, "model": model.name, "library": where.target.library, "scheme": name}
        print_json({**head, "baseline_scheme": baseline, "predictions": rows, "kernel_sheets": titles}, "prediction")
    else:
        print_predictions(where, name, baseline, rows)
        for title in titles:
            print_line(f"Kernel sheet: {title}.")


def table_options(function: Any) -> Any:
    """Add --input, --output and --sheet of the table commands."""
    function = sheet_option(function)
    text = "Write here, by its ending as CSV or Parquet; else CSV to standard output."
    function = click.option("--output", metavar="FILE", help=text)(function)
    return click.option("--input", "input_path", required=True, metavar="FILE", help="CSV or Parquet table.")(function)


@command.command(
    epilog="Example: codesign predict kernels --input kernels.csv --output predicted.csv", context_settings=HELP
)
@table_options
def kernels(input_path: str, output: str | None, sheet_files: tuple[str, ...]) -> None:
    """Predict a table of kernels: columns hw, library, op, scheme and the sizes of the operation."""
    from codesign.cost.sheet_file import read_sheets
    from codesign.cost.table_file import predict_kernel_file

    predict_kernel_file(input_path, output_path(output), read_sheets(sheet_files))


@command.command(
    epilog="Example: codesign predict serving --input servers.csv --output predicted.csv", context_settings=HELP
)
@table_options
def serving(input_path: str, output: str | None, sheet_files: tuple[str, ...]) -> None:
    """Predict a table of servers: columns hw, gpus, model, scheme, kv_dtype, library, concurrency, lengths."""
    from codesign.cost.sheet_file import read_sheets
    from codesign.cost.table_file import predict_serving_file

    predict_serving_file(input_path, output_path(output), read_sheets(sheet_files))
