"""`codesign evaluate`: perplexity of a model on a text, and how far it is from its baseline."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codesign.cli.options import HELP, Count, device_option, json_option, warn

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.quantize.source import WeightSource
    from codesign.schemes.kv import KvFormat

DEFAULT_WINDOW_TOKENS, DEFAULT_TOKENS = 1024, 65536


@click.command(
    epilog="Example: codesign evaluate --model OUT --baseline DIR --text wikitext2-test.txt", context_settings=HELP
)
@click.option(
    "--model", required=True, metavar="DIR|GGUF", help="A Hugging Face folder, plain or quantized, or a GGUF."
)
@click.option("--text", required=True, metavar="FILE", help="UTF-8 text, taken as it is.")
@click.option("--baseline", metavar="DIR|GGUF", help="The model before it was quantized.")
@click.option("--window", type=click.IntRange(2, 2**20), metavar="TOKENS", help="Length of a window; else 1024.")
@click.option("--tokens", type=Count, metavar="N", help="Take the first N tokens; else 65536, or what there is.")
@click.option("--kv", metavar="FORMAT", help="Round the model's KV cache, such as int8; else as the checkpoint says.")
@click.option("--scheme", metavar="SCHEME", help="Round the layers of the blocks to nearest in it; else as they are.")
@click.option("--rotated", is_flag=True, help="With --scheme: turn inputs and weights by a Hadamard matrix first.")
@device_option
@json_option
def command(*, model: str, text: str, baseline: str | None, as_json: bool, **given: Any) -> None:
    """Evaluate a model on a text, block by block, in float32.

    The text is cut into windows, and every token is predicted from those before it in its window. Against a baseline
    the KL divergence is told with its noise floor: what the baseline loses by itself when its blocks are computed in
    bfloat16. With --scheme the model itself is the baseline unless another is named.
    """
    from codesign.checkpoint.checkpoint import read_checkpoint
    from codesign.cli.evaluate_view import Report, print_report, report_record, size_of
    from codesign.cli.output import print_json, progress
    from codesign.quantize.evaluate import evaluate
    from codesign.quantize.kv_cache import quantized_kv
    from codesign.quantize.network import Network
    from codesign.schemes.catalog import parse_scheme

    if given["rotated"] and not given["scheme"]:
        raise click.UsageError("--rotated says how --scheme rounds; name a scheme.")
    baseline = model if baseline is None and given["scheme"] else baseline
    names = [model] if baseline is None else [model, baseline]
    with progress("Evaluating") as show:
        show("reading the text")
        sources = [open_and_warn(name) for name in dict.fromkeys(names)]
        sources = [sources[0], sources[-1]][: len(names)]
        windows = _windows(Text(Path(text), given["window"], given["tokens"]), sources)
        show("reading the weights outside of blocks")
        rounded = _rounded(sources[0], given["scheme"], rotate=given["rotated"]) if given["scheme"] else sources[0]
        networks = [Network(source, given["device"]) for source in (rounded, *sources[1:])]
        cache = _kv_format(given["kv"], sources[0])
        start = time.perf_counter()
        with quantized_kv(networks[0], cache):
            evaluation = evaluate(networks[0], windows, networks[1] if baseline else None, show)
        elapsed_s = time.perf_counter() - start
    speed = windows.numel() * len(networks) / elapsed_s
    scheme = parse_scheme(given["scheme"]) if given["scheme"] else None
    sizes = tuple(size_of(read_checkpoint(name), None if i else scheme) for i, name in enumerate(names))
    shown = (f"{names[0]} in {scheme}" if scheme else names[0], *names[1:])
    found = Report(shown, text, evaluation, sizes, cache.name, speed)
    if as_json:
        print_json(report_record(found), "evaluation")
    else:
        print_report(found)


def _rounded(source: "WeightSource", scheme_name: str, *, rotate: bool) -> "WeightSource":
    """Return the source with the layers of its blocks rounded to nearest."""
    from codesign.quality.rounded import RoundedSource
    from codesign.schemes.catalog import parse_scheme

    scheme = parse_scheme(scheme_name)
    schemes = {layer.name: scheme for block in source.model.blocks for layer in block.layers}
    return RoundedSource(source, schemes, rotation_seed=0 if rotate else None)


def _kv_format(given: str | None, source: "WeightSource") -> "KvFormat":
    """Return the format of the model's KV cache: as given, else as its files say."""
    from codesign.schemes.kv import KV_FORMATS, parse_kv

    if given is None and source.kv and source.kv not in KV_FORMATS:
        warn([f"the files ask for a KV cache of {source.kv}, which is not rounded here; name a format with --kv."])
    return parse_kv(given if given is not None else source.kv if source.kv in KV_FORMATS else "")


@dataclass(frozen=True, slots=True)
class Text:
    """A text file, the length of windows and how many tokens to take, None for what fits."""

    path: Path
    window: int | None
    tokens: int | None


def open_and_warn(name: str) -> "WeightSource":
    """Return the weights at a path, saying on standard error what is odd about them."""
    from codesign.quantize.source import open_source

    source = open_source(name)
    warn(source.warnings)
    return source


def _windows(text: Text, sources: "list[WeightSource]") -> "Tensor":
    """Return windows of the text, which all models cut into the same tokens."""
    from codesign.quantize.text import check_same_tokens, read_tokens, windows

    limit = text.tokens or DEFAULT_TOKENS
    found = [read_tokens(text.path, one.tokenizer(), one.model.vocabulary, limit) for one in sources]
    for others in found[1:]:
        check_same_tokens(found[0], others, str(text.path))
    length = text.window or min(DEFAULT_WINDOW_TOKENS, *(one.model.max_context_tokens for one in sources))
    count = None if text.tokens is None else max(text.tokens // length, 1)
    return windows(found[0], length, count, str(text.path))
