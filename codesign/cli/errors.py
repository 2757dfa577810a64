"""`codesign errors`: how far a scheme puts every layer's weights and outputs from the exact ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.evaluate import open_and_warn
from codesign.cli.options import HELP, Count, device_option, json_option, output_path, warn
from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.quantize.network import Network
    from codesign.quantize.source import WeightSource

DEFAULT_WINDOW_TOKENS, DEFAULT_TOKENS, SAMPLED_TOKENS = 512, 4096, 1024


@click.command(
    epilog="Example: codesign errors --model DIR --scheme W8A8 --text FILE --html errors.html", context_settings=HELP
)
@click.option("--model", required=True, metavar="DIR|GGUF", help="A Hugging Face folder or a GGUF file.")
@click.option("--scheme", required=True, metavar="NAME", help="A scheme of `codesign scheme list`, rounded to nearest.")
@click.option("--text", metavar="FILE", help="Measure outputs and activations on this text too.")
@click.option("--self-generated", is_flag=True, help="The same on text that the model writes, sampled with a seed.")
@click.option("--window", type=click.IntRange(2, 2**20), metavar="TOKENS", help="Length of a window; else 512.")
@click.option("--tokens", type=Count, metavar="N", help="Take the first N tokens; else 4096, or 1024 self-generated.")
@click.option("--html", metavar="FILE", help="Write an offline page with every layer.")
@click.option("--force", is_flag=True, help="Replace a page that exists.")
@device_option
@json_option
def command(*, model: str, scheme: str, html: str | None, force: bool, as_json: bool, **given: Any) -> None:
    """Show what a scheme does to each layer by itself, the worst first, and the totals of each role.

    Without a text the errors of the weights; with one those of outputs and rounded activations too, with channels that
    are far larger than the others.
    """
    from codesign.cli.errors_view import errors_record, print_errors
    from codesign.cli.output import print_json, progress
    from codesign.quantize.layer_errors import nonfinite_names, weight_errors
    from codesign.quantize.network import Network
    from codesign.quantize.output_errors import with_outputs
    from codesign.report.errors_page import write_errors_page
    from codesign.schemes.catalog import parse_scheme

    chosen, page, wanted = parse_scheme(scheme), output_path(html, force), _wanted(given)
    with progress("Rounding") as show:
        source = open_and_warn(model)
        if any(block.experts is not None for block in source.model.blocks):
            warn([f"{source.model.name}: its routed experts are left out; the other layers are shown."])
        windows = None if wanted is None or wanted.path is None else _read(source, wanted)
        found = weight_errors(source, chosen, show)
        damaged = nonfinite_names(found)
        if wanted is not None and not damaged:
            network = Network(source, given["device"])
            text = _sampled(network, wanted) if windows is None else windows
            found = with_outputs(found, network, text, chosen, show)
    if page is not None:
        write_errors_page(found, Path(model).name, chosen, page)
    if as_json:
        print_json(errors_record(found, model, chosen), "errors")
    else:
        print_errors(found, model, chosen)
    if damaged:
        raise InputError(_damage(damaged, outputs=wanted is not None))


@dataclass(frozen=True, slots=True)
class TextChoice:
    """A text, None for one that the model writes, the length of windows and how many tokens; None for the defaults."""

    path: Path | None
    window: int | None
    tokens: int | None

    def length(self, source: "WeightSource") -> int:
        """Return the length of windows."""
        return self.window or min(DEFAULT_WINDOW_TOKENS, source.model.max_context_tokens)


def _wanted(given: dict[str, Any]) -> TextChoice | None:
    text, window, tokens = given["text"], given["window"], given["tokens"]
    if text and given["self_generated"]:
        raise click.UsageError("--text and --self-generated exclude each other; give one.")
    if not text and not given["self_generated"]:
        if window or tokens:
            raise click.UsageError("--window and --tokens are of a text; give --text or --self-generated too.")
        return None
    return TextChoice(Path(text) if text else None, window, tokens)


def _read(source: "WeightSource", text: TextChoice) -> "Tensor":
    from codesign.quantize.text import read_tokens, windows

    assert text.path is not None
    length = text.length(source)
    ids = read_tokens(text.path, source.tokenizer(), source.model.vocabulary, text.tokens or DEFAULT_TOKENS)
    return windows(ids, length, None if text.tokens is None else max(text.tokens // length, 1), str(text.path))


def _sampled(network: "Network", text: TextChoice) -> "Tensor":
    from codesign.quantize.text import sampled_windows

    length = text.length(network.source)
    count = max((text.tokens or SAMPLED_TOKENS) // length, 1)
    with network.whole() as transformer:
        return sampled_windows(transformer, network.source.model.vocabulary, length, count, seed=0)


def _damage(names: tuple[str, ...], outputs: bool) -> str:
    more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
    untold = " Outputs were not measured, since NaN spreads to all of them." if outputs else ""
    return f"{names[0]}{more}: NaN or infinite weights; the checkpoint is damaged.{untold}"
