"""`codesign model`: list and show models."""

import click

from codesign.cli.options import HELP, find_checkpoint, json_option, load_model_and_warn


@click.group(epilog="Example: codesign model show llama-3.1-70b", context_settings=HELP)
def command() -> None:
    """Models: their layers, parameters and cache, from shapes alone."""


@command.command("list", epilog="Example: codesign model list", context_settings=HELP)
@json_option
def list_command(as_json: bool) -> None:
    """List the models of the catalog."""
    from codesign.cli.model_view import model_summary, print_model_list
    from codesign.cli.output import print_json
    from codesign.model.file import list_models, load_model

    models = [load_model(name) for name in list_models()]
    if as_json:
        print_json({"models": [model_summary(model) for model in models]}, "model-list")
    else:
        print_model_list(models)


@command.command(epilog="Example: codesign model show llama-3.1-70b", context_settings=HELP)
@click.argument("name", metavar="NAME|PATH")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one model: its layers, parameters and cache; of a checkpoint also what its layers are stored in."""
    from codesign.cli.checkpoint_view import checkpoint_record, print_checkpoint
    from codesign.cli.model_view import model_record, print_model
    from codesign.cli.output import print_json
    from codesign.model.file import is_model_path

    if is_model_path(name) and (checkpoint := find_checkpoint(name)):
        if as_json:
            print_json({**model_record(checkpoint.model), "checkpoint": checkpoint_record(checkpoint)}, "model")
        else:
            print_model(checkpoint.model)
            print_checkpoint(checkpoint)
        return
    model = load_model_and_warn(name)
    if as_json:
        print_json(model_record(model), "model")
    else:
        print_model(model)
