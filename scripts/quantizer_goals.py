"""Measure what each quantizer loses on one model: `quantizer_goals.py MODEL VALID TEST FOLDER [METHOD:SCHEME ...]`.

Calibrates on VALID (64 windows of 512 tokens), measures perplexity on the first 8 windows of 1024 tokens of TEST, and
prints how much of the increase by rounding to nearest in the same scheme is left. What is made is kept in FOLDER.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from codesign.quality.rounded import RoundedSource
from codesign.quality.text import file_windows
from codesign.quantize.carry_out import carry_out
from codesign.quantize.evaluate import evaluate
from codesign.quantize.methods import Recipe
from codesign.quantize.network import Network
from codesign.quantize.result import ResultFolder, ResultSource
from codesign.quantize.round import quantize_weight
from codesign.quantize.scales import Scales
from codesign.quantize.source import WeightSource, open_source
from codesign.quantize.text import read_tokens, windows
from codesign.quantize.tiles import in_tiles, tile_of
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION_WINDOWS, CALIBRATION_TOKENS = 64, 512
TEST_WINDOWS, TEST_TOKENS = 8, 1024
NEEDS_NO_TEXT = ("rtn", "hqq")
FULL_RANGE = ("W4A16-g64", "W3A16-g64")
USUAL = (
    "rtn:W8A16", "rtn:W4A16-g64", "gptq:W4A16-g64", "awq:W4A16-g64", "hqq:W4A16-g64-asym16", "rtn:W4A16-g64-asym16",
    "rtn:W3A16-g64", "rtn:W8A8", "smoothquant:W8A8",
)  # fmt: skip


class FullRangeSource(RoundedSource):
    """Blocks rounded to nearest with the scales of older papers: no code below the negative of the highest is used."""

    def __init__(self, base: WeightSource, scheme: Scheme) -> None:
        super().__init__(base, {layer.name: scheme for block in base.model.blocks for layer in block.layers})
        self._names = {layer.name + ".weight" for block in base.model.blocks for layer in block.layers}
        self._scheme, self._exact = scheme, base

    def tensor(self, name: str) -> "Tensor":
        """Return a parameter, rounded if it is a layer of a block."""
        w = self._exact.tensor(name)
        if name not in self._names:
            return w
        tile, top = tile_of(self._scheme.weights, *w.shape), 2 ** (self._scheme.weights.bits - 1) - 1
        largest = in_tiles(w, tile).abs().amax(dim=(1, 3))
        return quantize_weight(w, self._scheme, scales=Scales(largest / top)).dequantize()


class Bench:
    """A model, its texts, and the perplexity of everything made of it."""

    def __init__(self, model: str, valid: str, test: str, folder: str) -> None:
        self.source, self._valid, self._folder = open_source(model), Path(valid), Path(folder)
        ids = read_tokens(Path(test), self.source.tokenizer(), self.source.model.vocabulary)
        self._test = windows(ids, TEST_TOKENS, TEST_WINDOWS, test)

    def perplexity(self, source: WeightSource) -> float:
        """Return the perplexity on the test text."""
        return evaluate(Network(source), self._test, None, lambda *_: None).perplexity.mean

    def made(self, method: str, scheme_name: str) -> tuple[ResultSource, float]:
        """Return the model quantized, and the seconds that it took; blocks that lie there are taken as they are."""
        results = ResultFolder(self._folder / f"{method}-{scheme_name}", {"windows": CALIBRATION_WINDOWS})
        scheme = parse_scheme(scheme_name)
        schemes = {layer.name: scheme for block in self.source.model.blocks for layer in block.layers}
        calibration = None
        if method not in NEEDS_NO_TEXT or scheme.activations.granularity is not None:
            calibration = file_windows(self.source, self._valid, CALIBRATION_TOKENS, CALIBRATION_WINDOWS)
        begin = time.perf_counter()
        for _ in carry_out(Network(self.source), schemes, Recipe(method), calibration, results):
            pass
        return ResultSource(self.source, results), time.perf_counter() - begin


def main(model: str, valid: str, test: str, folder: str, *wanted: str) -> None:
    """Print a row for every method and scheme."""
    bench = Bench(model, valid, test, folder)
    baseline = bench.perplexity(bench.source)
    print(f"baseline {baseline:.3f}", flush=True)
    for scheme in FULL_RANGE:
        print(f"to nearest with scales of the largest magnitude over the highest code, {scheme}: "
              f"{bench.perplexity(FullRangeSource(bench.source, parse_scheme(scheme))):.3f}", flush=True)  # fmt: skip
    nearest: dict[str, float] = {}
    for method, scheme in (name.split(":") for name in wanted or USUAL):
        source, seconds = bench.made(method, scheme)
        increase = bench.perplexity(source) - baseline
        if method == "rtn":
            nearest[scheme] = increase
        left = f"{increase / nearest[scheme]:6.1%} of rounding to nearest" if scheme in nearest else ""
        print(
            f"{method:12} {scheme:18} {baseline + increase:9.3f} {increase / baseline:+8.2%}  {seconds:6.0f} s  {left}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
