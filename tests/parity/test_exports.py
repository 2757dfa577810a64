"""Exports read by the programs that they are for, and by `QuantizedSource`.

Models are tiny, of random weights; logits are those of transformers in float32 against ours with the result in place.
"""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from codesign.quantize.export import export  # noqa: E402
from codesign.quantize.export.contents import read_contents  # noqa: E402
from codesign.quantize.export.writer import FOLDER_FORMATS, _write_folder  # noqa: E402
from codesign.quantize.pack_bitsandbytes import from_bitsandbytes, to_bitsandbytes  # noqa: E402
from codesign.quantize.quantized_source import QuantizedSource  # noqa: E402
from codesign.quantize.result import ResultSource  # noqa: E402
from codesign.quantize.round import quantize_weight  # noqa: E402
from codesign.quantize.source import open_source  # noqa: E402
from codesign.schemes.catalog import parse_scheme  # noqa: E402
from tests.tiny_results import Made, loaded_logits, logits, quantized, same_for_all, save_model, some_ids  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers and compressed-tensors say of themselves

ROUNDING = 1e-5  # of the largest logit: float32 sums in another order; measured 0 to 3e-6
MIXED = {"mlp": "W4A16-g32", ".0.self_attn": "W8A8", "": "BF16"}


def mixed(layer):
    return next(scheme for part, scheme in MIXED.items() if part in layer)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a function that gives a model of a kind, written once."""
    made = {}

    def give(kind="llama", **more):
        key = (kind, *sorted(more.items()))
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp(kind), kind, **more)
        return made[key]

    return give


def close(found, wanted, tolerance=ROUNDING):
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


SCHEMES = ("W8A16", "W4A16-g32", "W3A16-g64", "W4A8-g32", "W8A8", "W8A8-static", "W8A8-tensor", "FP8", "FP8-dynamic",
           "FP8-channel")  # fmt: skip


@pytest.mark.parametrize(("chooser", "kind"), [
    *((same_for_all(scheme), "llama") for scheme in SCHEMES), (mixed, "qwen2"), (mixed, "llama")
], ids=[*SCHEMES, "mixed-qwen2", "mixed-llama"])  # fmt: skip
def test_transformers_gives_the_logits_of_the_result_from_compressed_tensors(tmp_path, model, chooser, kind):
    pytest.importorskip("compressed_tensors")
    made = Made(tmp_path, model(kind), "compressed-tensors", chooser)
    wanted = logits(made.result)
    assert close(loaded_logits(made.out), wanted)
    assert not close(logits(made.source), wanted, 1e-2)  # what is compared is quantized


def decompressed(made):
    """Return the weights that compressed-tensors itself makes of each layer, by the config that was written."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    tensors, found = made.tensors, {}
    for group in made.config["config_groups"].values():
        scheme = quantization.QuantizationScheme(**group)
        compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format)
        for name in group["targets"]:
            parts = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}
            if parts["weight_scale"].dtype == torch.bfloat16:
                parts["weight_scale"] = parts["weight_scale"].float()  # it multiplies in the type of the scales
            assert set(compressor.compression_param_names(scheme)) - {"input_global_scale"} <= set(parts)
            found[name] = compressor.decompress(parts, scheme)["weight"]
    return found


@pytest.mark.parametrize(("scheme", "tolerance"), [
    ("W4A16-g32-asym", 0.0), ("W8A16-g32-asym", 0.0), ("FP8-block", 0.0), ("MXFP4", 0.0), ("MXFP4-A16", 0.0),
    ("MXFP8", 0.0), ("NVFP4", 2**-8), ("NVFP4-A16", 2**-8),
])  # fmt: skip
def test_compressed_tensors_makes_the_same_weights(tmp_path, model, scheme, tolerance):
    """It gives 4-bit floats in bf16, which holds NVFP4's products of two scales only rounded."""
    shapes = {"hidden_size": 256, "num_key_value_heads": 4, "head_dim": 64}
    made = Made(tmp_path, model(**shapes), "compressed-tensors", same_for_all(scheme))
    found = decompressed(made)
    assert len(found) == 14
    for name, wanted in made.layers():
        assert ((found[name].float() - wanted).abs() <= tolerance * wanted.abs()).all(), name


@pytest.mark.parametrize("scheme", ["W4A16-g32-asym", "NVFP4", "MXFP4"])
def test_transformers_loads_what_it_dequantizes(tmp_path, model, scheme):
    """compressed-tensors 0.20 loads zero points, and float32 beside 4-bit floats, only dequantized, through bf16."""
    pytest.importorskip("compressed_tensors")
    made = Made(tmp_path, model(), "compressed-tensors", same_for_all(scheme))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        made.out, dtype=torch.float32, quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    )
    for name, wanted in made.layers():
        weight = loaded.get_submodule(name).weight
        assert ((weight - wanted).abs() <= 2**-7 * wanted.abs()).all(), name


def test_config_names_every_layer_once_and_ignores_the_rest(tmp_path, model):
    made = Made(tmp_path, model("qwen2"), "compressed-tensors", mixed)
    config = made.config
    targets = [name for group in config["config_groups"].values() for name in group["targets"]]
    linear = {layer.name for layer in made.source.model.layers}
    assert config["format"] == "mixed-precision"
    assert len(targets) == len(set(targets))
    assert set(targets) | set(config["ignore"]) == linear
    assert not set(targets) & set(config["ignore"])
    assert made.report.layers_by_scheme == {"W4A16-g32": 6, "W8A8": 4, "16 bits": 5}


def test_scales_of_a_calibrated_cache_are_stored(tmp_path, model):
    pytest.importorskip("compressed_tensors")
    source = model()
    scales = {f"model.layers.{i}.self_attn.{kind}_scale": torch.tensor([0.02 + i]) for i in (0, 1) for kind in "kv"}
    results = quantized(source, tmp_path / "results", same_for_all("W4A16-g32"), scales)
    export(results, source, "compressed-tensors", tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert float(loaded.model.layers[1].self_attn.v_scale) == pytest.approx(1.02)
    assert open_source(str(tmp_path / "out")).kv == "fp8"


def bits_of(words, bits):
    """Return the fields of 32-bit words along the first axis, low bits first: an unpacker of its own."""
    import numpy as np

    every = np.unpackbits(words.numpy().view(np.uint8).reshape(len(words), -1, 4), axis=-1, bitorder="little")
    stream = every.reshape(len(words), -1, 32).transpose(0, 2, 1).reshape(len(words) * 32, -1)
    fields = stream.reshape(-1, bits, stream.shape[1])
    return torch.from_numpy((fields * (1 << np.arange(bits))[None, :, None]).sum(1).astype(np.int64))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("scheme", ["W2A16-g32", "W3A16-g32", "W4A16-g32", "W8A16", "W4A16-g32-asym"])
def test_gptq_unpacks_to_the_result(tmp_path, model, scheme, version):
    if version == 1 and scheme.endswith("asym"):
        pytest.skip("zero points of 0, which random weights have here and there, are not in version 1")
    made = Made(tmp_path, model(), "gptq" if version == 1 else "gptq_v2", same_for_all(scheme))
    config, tensors = made.config, made.tensors
    assert config == json.loads((made.out / "quantize_config.json").read_text())
    assert config["checkpoint_format"] == ("gptq" if version == 1 else "gptq_v2")
    for name, wanted in made.layers():
        codes = bits_of(tensors[name + ".qweight"], config["bits"])
        zeros = bits_of(tensors[name + ".qzeros"].T.contiguous(), config["bits"]).T + (version == 1)
        group = tensors[name + ".g_idx"].long()
        values = (codes - zeros[group]).float() * tensors[name + ".scales"].float()[group]
        assert torch.equal(values.T, wanted), name


def test_gptq_overrides_name_layers_that_differ(tmp_path, model):
    import re

    choose = {"gate_proj": "W8A16-g64", "up_proj": "W8A16-g64", ".0.mlp.down": "BF16", "": "W4A16-g32"}
    made = Made(tmp_path, model(), "gptq", lambda layer: "BF16" if layer == "lm_head" else next(
        scheme for part, scheme in choose.items() if part in layer))  # fmt: skip
    dynamic = made.config["dynamic"]
    plus, minus = sorted(dynamic)
    assert dynamic[plus] == {"bits": 8, "group_size": 64, "sym": True}
    assert re.match(plus[2:], "model.layers.1.mlp.gate_proj")
    assert re.match(plus[2:], "model.layers.1.mlp.gate_up_proj")  # vLLM merges the two
    assert not re.match(plus[2:], "model.layers.1.mlp.down_proj")
    assert re.match(minus[2:], "model.layers.0.mlp.down_proj")
    assert not re.match(minus[2:], "model.layers.10.mlp.down_proj")


def test_gptq_keeps_the_order_of_act_order(tmp_path, model):
    from dataclasses import replace

    from codesign.quantize.result import Part, QuantizedLayer, ResultFolder
    from codesign.quantize.round import QuantizedWeight

    source = model()
    plain = quantized(source, tmp_path / "plain", same_for_all("W4A16-g32"))
    results = ResultFolder(tmp_path / "results", {})
    for index in (0, 1):
        layers = []
        for layer in plain.read(index).layers:
            weight, k = layer.weight, layer.weight.shape[1]
            order = torch.randperm(k, generator=torch.Generator().manual_seed(k))
            assert isinstance(weight, QuantizedWeight)
            group = (torch.arange(k) // 32)[torch.argsort(order)]
            layers.append(replace(layer, weight=QuantizedWeight(weight.codes, weight.scales, weight.scheme, group)))
            assert isinstance(layers[-1], QuantizedLayer)
        results.write(Part(index, tuple(layers)))
    export(results, source, "gptq", tmp_path / "out")
    read = open_source(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["desc_act"] is True
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(read.tensor(name), ResultSource(source, results).tensor(name))


@pytest.mark.parametrize("scheme", ["W4A16-g32-asym", "W4A16-g32", "W4A16"])
def test_awq_unpacks_to_the_result(tmp_path, model, scheme):
    made = Made(tmp_path, model(), "awq", same_for_all(scheme))
    tensors, order = made.tensors, (0, 2, 4, 6, 1, 3, 5, 7)

    def unpacked(words):
        fields = torch.stack([(words.long() >> (4 * place)) & 15 for place in range(8)], dim=-1)
        back = torch.empty_like(fields)
        back[..., list(order)] = fields
        return back.reshape(len(words), -1)

    for name, wanted in made.layers():
        codes, zeros = unpacked(tensors[name + ".qweight"]), unpacked(tensors[name + ".qzeros"])
        group = torch.arange(len(codes)) // (len(codes) // len(zeros))
        values = (codes - zeros[group]).float() * tensors[name + ".scales"].float()[group]
        assert torch.equal(values.T, wanted), name
    assert made.config["zero_point"] is True


@pytest.mark.parametrize("scheme", ["W8A16", "W8A16-g64", "FP8-channel"])
def test_transformers_gives_the_logits_of_the_result_from_torchao(tmp_path, model, scheme):
    pytest.importorskip("torchao")
    made = Made(tmp_path, model(dtype="float32"), "torchao", same_for_all(scheme))
    wanted = logits(made.result)
    assert close(loaded_logits(made.out), wanted)
    assert not close(logits(made.source), wanted, 1e-4)


def test_torchao_rounds_inputs_of_w8a8_as_we_do_but_for_its_extremes(tmp_path, model):
    """It multiplies by the inverse of the scale, where we divide: the extreme of a token is -127 or -128."""
    tensor_type = pytest.importorskip("torchao.quantization").Int8Tensor
    from torchao.quantization import PerRow

    from codesign.quantize.activations import quantize_activations

    made = Made(tmp_path, model(), "torchao", same_for_all("W8A8"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made.out, dtype=torch.float32)
    for name, wanted in made.layers():
        weight = loaded.get_submodule(name).weight
        assert isinstance(weight.data, tensor_type)
        assert torch.equal(weight.dequantize(torch.float32), wanted)
        assert weight.act_quant_kwargs is not None
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    theirs = tensor_type.from_hp(x, PerRow())
    ours = quantize_activations(x, parse_scheme("W8A8").activations)
    steps = ((theirs.dequantize() - ours) / theirs.scale).abs().round()
    assert steps.max() <= 1
    assert (steps[x.abs() < x.abs().amax(1, keepdim=True)] == 0).float().mean() > 0.999


def test_torchao_in_several_files(tmp_path, model):
    pytest.importorskip("torchao")
    source = model()
    results = quantized(source, tmp_path / "results", same_for_all("W8A16"))
    out = tmp_path / "out"
    out.mkdir()
    _write_folder(read_contents(results, source), FOLDER_FORMATS["torchao"], out, shard_bytes_max=100_000)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert close(loaded_logits(out), logits(ResultSource(source, results)))


@pytest.mark.parametrize("scheme", ["NF4", "NF4-single", "BNB-FP4", "BNB-FP4-single"])
@pytest.mark.parametrize("shape", [(64, 128), (33, 70), (256, 576)])
def test_bitsandbytes_reads_the_tensors_as_its_own(scheme, shape):
    """Its CPU kernel (0.50) misreads its own even rows that are no whole blocks, so that such shapes are left out."""
    functional = pytest.importorskip("bitsandbytes").functional
    params = pytest.importorskip("bitsandbytes.nn").Params4bit
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    ours = quantize_weight(w, parse_scheme(scheme))
    tensors, nested = dict(to_bitsandbytes(ours, "float32")), not scheme.endswith("single")
    kind = "nf4" if "NF4" in scheme else "fp4"
    packed, state = functional.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type=kind)
    own = state.as_dict(packed=True)
    assert {key.removeprefix("weight.") for key in tensors} - {"weight"} == set(own)
    assert torch.equal(tensors["weight.quant_map"], own["quant_map"])
    # It chooses codes before it rounds the scales, we choose them for the scales that are stored.
    assert (tensors["weight"] == packed).float().mean() > (0.98 if nested else 0.9999)
    read = params.from_prequantized(
        tensors["weight"], {key: value for key, value in tensors.items() if key != "weight"}, device="cpu"
    )
    found = functional.dequantize_4bit(read.data, read.quant_state).reshape(shape)
    assert torch.equal(found, ours.dequantize())
    theirs = {"weight": packed, **{f"weight.{key}": value for key, value in own.items()}}
    back = from_bitsandbytes(theirs, ours.scheme, shape).dequantize()
    assert torch.equal(back, functional.dequantize_4bit(packed, state).reshape(shape))


@pytest.mark.parametrize(("scheme", "tolerance"), [("NF4", 0.04), ("BNB-FP4-single", 0.04), ("W8A8", 0.08)])
def test_transformers_loads_bitsandbytes(tmp_path, model, scheme, tolerance):
    """Its CPU kernels multiply in bf16, LLM.int8 in fp16: that is the difference of the logits."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    made = Made(tmp_path, model(dtype="float32"), "bitsandbytes", same_for_all(scheme))
    assert close(loaded_logits(made.out, device_map="cpu"), logits(made.result), tolerance)


FLOATS = ("NVFP4", "NVFP4-A16", "MXFP4", "MXFP8")
READ = [
    *(("compressed-tensors", scheme) for scheme in (*SCHEMES, "W4A16-g32-asym", *FLOATS)),
    ("gptq", "W4A16-g32"), ("gptq_v2", "W4A16-g32-asym"), ("gptq", "W3A16-g32"), ("awq", "W4A16-g32-asym"),
    ("torchao", "W8A8"), ("torchao", "FP8-channel"), ("bitsandbytes", "NF4"), ("bitsandbytes", "BNB-FP4-single"),
    ("bitsandbytes", "W8A8"),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "scheme"), READ, ids=["-".join(pair) for pair in READ])
def test_quantized_source_reads_what_was_exported(tmp_path, model, format_, scheme):
    made = Made(tmp_path, model("qwen2"), format_, same_for_all(scheme))
    read = open_source(str(made.out))
    assert isinstance(read, QuantizedSource)
    for name, wanted in made.layers():
        assert close(read.tensor(name + ".weight"), wanted, 1e-6), name
    wanted = logits(made.result)
    assert close(logits(read), wanted)
    if parse_scheme(scheme).activations.granularity is not None:
        unrounded = open_source(str(made.out))
        unrounded.inputs = lambda layer: None
        assert not close(logits(unrounded), wanted, 1e-3)


def test_a_tied_head_becomes_its_own(tmp_path, model):
    pytest.importorskip("compressed_tensors")
    from codesign.quantize.result import OUTSIDE, Part, QuantizedLayer

    source = model(tie_word_embeddings=True)
    results = quantized(source, tmp_path / "results", same_for_all("W8A16"))
    head = quantize_weight(source.tensor("model.embed_tokens.weight"), parse_scheme("W4A16-g32"))
    results.write(Part(OUTSIDE, (QuantizedLayer("lm_head", head),)))
    export(results, source, "compressed-tensors", tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.inference_mode():
        loaded(some_ids())  # the first pass decompresses
    assert torch.equal(loaded.lm_head.weight, head.dequantize())
    assert torch.equal(loaded.model.embed_tokens.weight, source.tensor("model.embed_tokens.weight").float())


def test_no_pickle_is_written(tmp_path, model):
    made = Made(tmp_path, model(), "torchao", same_for_all("W8A16"))
    assert {path.suffix for path in made.out.iterdir()} == {".safetensors", ".json"}


def test_paths_are_where_they_were_asked_for(tmp_path, model):
    made = Made(tmp_path, model(), "awq", same_for_all("W4A16-g32"))
    assert made.report.path == tmp_path / "out"
    assert made.report.file_bytes == sum(file.stat().st_size for file in made.out.iterdir())
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["out", "results"]
