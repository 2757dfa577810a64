"""Tiny models of random weights, and results of rounding them, as exports start from."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codesign.quantize.calibrate import ActivationRange
from codesign.quantize.export import export
from codesign.quantize.gguf import quantize_gguf
from codesign.quantize.network import Network
from codesign.quantize.result import OUTSIDE, Part, QuantizedLayer, ResultFolder, ResultSource
from codesign.quantize.round import quantize_group, quantize_weight
from codesign.quantize.source import WeightSource, open_source
from codesign.schemes.catalog import parse_scheme

SHAPES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128, "head_dim": 32,
}  # fmt: skip
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
Chooser = Callable[[str], str]


def save_model(folder: Path, kind: str = "llama", dtype: str = "bfloat16", **more: Any) -> WeightSource:
    """Write a model into a folder and return it; biases and norms are random too."""
    import torch
    import transformers

    torch.manual_seed(0)
    shapes = {key: value for key, value in SHAPES.items() if kind != "qwen2" or key != "head_dim"}
    config = getattr(transformers, KINDS[kind] + "Config")(
        **{**shapes, "tie_word_embeddings": False, "initializer_range": 0.1, **more}
    )
    model = getattr(transformers, KINDS[kind] + "ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    transformers.utils.logging.disable_progress_bar()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return open_source(str(folder))


def same_for_all(scheme: str) -> Chooser:
    """Return one scheme for all layers of the blocks, 16 bits for the head."""
    return lambda layer: "BF16" if layer == "lm_head" else scheme


def quantized(
    source: WeightSource, folder: Path, scheme_of: Chooser, tensors: Mapping[str, Any] | None = None
) -> ResultFolder:
    """Round all layers to nearest, fused groups together, into a result folder; static inputs range from -3 to 4."""
    results = ResultFolder(folder, {"made": "for a test"})
    indices = (OUTSIDE, *(block.index for block in source.model.blocks))
    for index in indices:
        groups: dict[str, list[str]] = {}
        for layer in source.model.layers:
            if layer.block_index == index and source.has(layer.name + ".weight"):
                groups.setdefault(layer.group, []).append(layer.name)
        layers = [one for names in groups.values() for one in rounded(source, names, scheme_of)]
        own = {name: value for name, value in (tensors or {}).items() if f".{index}." in name}
        results.write(Part(index, tuple(layers), own))
    return results


def rounded(source: WeightSource, names: list[str], scheme_of: Chooser) -> list[QuantizedLayer]:
    """Return the layers of a fused group."""
    weights = [source.tensor(name + ".weight") for name in names]
    scheme = parse_scheme(scheme_of(names[0]))
    if len({scheme_of(name) for name in names}) > 1:
        return [one for name in names for one in rounded(source, [name], scheme_of)]
    if scheme.family == "gguf":
        return [
            QuantizedLayer(name, quantize_gguf(weight, scheme)) for name, weight in zip(names, weights, strict=True)
        ]
    together = scheme.weights.tensor_scale_bits > 0
    found = quantize_group(weights, scheme) if together else [quantize_weight(weight, scheme) for weight in weights]
    static = scheme.activations.granularity is not None and not scheme.activations.dynamic
    fixed = ActivationRange(-3.0, 4.0) if static or scheme.name == "NVFP4" else None
    return [QuantizedLayer(name, weight, fixed) for name, weight in zip(names, found, strict=True)]


def logits(source: WeightSource) -> Any:
    """Return the logits [2, 24, 96] of a source for some ids, block by block."""
    import torch

    network = Network(source)
    with torch.inference_mode():
        batch = network.start(some_ids())
        for index in range(network.block_count):
            with network.block(index) as block:
                batch = network.step(index, block, batch)
        return network.logits(batch)


def some_ids() -> Any:
    """Return token ids [2, 24]."""
    import torch

    return torch.randint(0, SHAPES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(1))


def loaded_logits(folder: Path, **more: Any) -> Any:
    """Return the logits that transformers gives of what it loads, in float32 unless it is told otherwise."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **more}).eval()
    with torch.inference_mode():
        return model(some_ids()).logits.float()


class Made:
    """The result of rounding a model, and its export."""

    def __init__(self, folder: Path, source: WeightSource, format_: str, chooser: Chooser) -> None:
        self.source = source
        self.results = quantized(source, folder / "results", chooser)
        self.out = folder / ("out.gguf" if format_ == "gguf" else "out")
        self.report = export(self.results, source, format_, self.out)
        self.result = ResultSource(source, self.results)

    @property
    def config(self) -> Any:
        """Return what the config says of the quantization."""
        return json.loads((self.out / "config.json").read_text())["quantization_config"]

    @property
    def tensors(self) -> dict[str, Any]:
        """Return the tensors of the one file."""
        from safetensors.torch import load_file

        return load_file(self.out / "model.safetensors")

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, rounded values) of the quantized layers in the blocks."""
        for block in self.source.model.blocks:
            for layer in self.results.read(block.index).layers:
                if layer.scheme.quantized:
                    yield layer.name, layer.weight.dequantize()
