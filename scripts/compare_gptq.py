"""Run llm-compressor's GPTQ on the weights and Hessians of ours: `compare_gptq.py MODEL TEXT FOLDER [SCHEME]`.

Needs the package llmcompressor. Prints, for every kind of layer, the error of the outputs and the seconds of ours over
those of the reference, with its defaults: scales of the extremes, columns by falling importance. Layers that share an
input are rounded at once where the program can do that: ours all of them, the reference those of one shape. A quantized
model stays in FOLDER.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

from codesign.quantize import methods
from codesign.quantize.carry_out import carry_out
from codesign.quantize.errors import hessian_error
from codesign.quantize.gptq import GptqOptions, GptqResult, gptq_group
from codesign.quantize.methods import Recipe
from codesign.quantize.network import Network
from codesign.quantize.result import ResultFolder
from codesign.quantize.source import open_source
from codesign.quantize.text import read_tokens, windows
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.scheme import PerGroup, Scheme

if TYPE_CHECKING:
    from torch import Tensor

WINDOWS, TOKENS = 64, 512
COLUMNS = ("ours", "ours, scales of the extremes", "reference")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one program made of layers: squared error of the outputs, and seconds."""

    error: float
    elapsed_s: float


def reference(weights: Sequence["Tensor"], hessian: "Tensor", scheme: Scheme) -> Outcome:
    """Return what llm-compressor makes of layers, those of one shape at once."""
    granularity = scheme.weights.granularity
    assert isinstance(granularity, PerGroup)
    given = QuantizationArgs(
        num_bits=scheme.weights.bits, symmetric=True, strategy="group", group_size=granularity.size, actorder="static"
    )
    by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for w in weights:
        by_shape[tuple(w.shape)].append(w.float())
    error, begun_s = 0.0, time.perf_counter()
    for same in by_shape.values():
        stacked = torch.stack(same)
        groups = stacked.unflatten(-1, (-1, granularity.size))
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), given)
        hessians = hessian.float().expand(len(same), -1, -1).clone()
        found, _, _ = quantize_weight(stacked.clone(), hessians, scale, zero, None, given)
        passed_s = time.perf_counter()
        error += float(hessian_error((found - stacked).flatten(0, 1), hessian).sum())
        begun_s += time.perf_counter() - passed_s
    return Outcome(error, time.perf_counter() - begun_s)


def ours(weights: Sequence["Tensor"], hessian: "Tensor", scheme: Scheme, options: GptqOptions) -> Outcome:
    """Return what our GPTQ makes of layers."""
    begun_s = time.perf_counter()
    found = gptq_group(weights, hessian, scheme, options)
    return Outcome(sum(one.error for one in found), time.perf_counter() - begun_s)


class Comparison:
    """Stands in for `gptq_group`, and keeps what all programs made of the same layers."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[Outcome, ...]]] = defaultdict(list)

    def __call__(
        self, weights: Sequence["Tensor"], hessian: "Tensor", scheme: Scheme, options: GptqOptions | None = None
    ) -> list[GptqResult]:
        """Compare, and return our result."""
        chosen = options or GptqOptions()
        name = f"{len(weights)} x k = {weights[0].shape[1]}, n = {sum(len(w) for w in weights)}"
        outcomes = (
            ours(weights, hessian, scheme, chosen),
            ours(weights, hessian, scheme, replace(chosen, clip=False)),
            reference(weights, hessian, scheme),
        )
        self.found[name].append(outcomes)
        return gptq_group(weights, hessian, scheme, chosen)

    def rows(self) -> list[tuple[str, list[tuple[Outcome, ...]]]]:
        """Return every kind of layer and its outcomes, all layers last."""
        return [*self.found.items(), ("all", [one for rows in self.found.values() for one in rows])]


def main(model: str, text: str, folder: str, scheme_name: str = "W4A16-g64") -> None:
    """Print a row for every kind of layer."""
    source, scheme = open_source(model), parse_scheme(scheme_name)
    ids = read_tokens(Path(text), source.tokenizer(), source.model.vocabulary)
    calibration = windows(ids, TOKENS, WINDOWS, text)
    schemes = {layer.name: scheme for block in source.model.blocks for layer in block.layers}
    compared = Comparison()
    methods.gptq_group = compared
    recipe = Recipe("gptq")
    for report in carry_out(Network(source), schemes, recipe, calibration, ResultFolder(Path(folder), {"of": model})):
        print(report.name, file=sys.stderr, flush=True)
    print(f"{scheme}, output errors and seconds over those of llm-compressor")
    for name, outcomes in compared.rows():
        errors, seconds = ([sum(getattr(o[i], field) for o in outcomes) for i in range(len(COLUMNS))]
                           for field in ("error", "elapsed_s"))  # fmt: skip
        worst = max(o[0].error / o[2].error for o in outcomes)
        print(f"{name:28} error {errors[0] / errors[2]:.3f} (worst {worst:.3f}), without clipping "
              f"{errors[1] / errors[2]:.3f}; {seconds[2]:.1f} s, {seconds[2] / seconds[0]:.2f}x and "
              f"{seconds[2] / seconds[1]:.2f}x as fast ({len(outcomes)})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
