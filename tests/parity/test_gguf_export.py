"""GGUF files that we write, read by the gguf package, by transformers, by ourselves and, where it is, by llama.cpp."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from codesign.checkpoint.checkpoint import read_checkpoint  # noqa: E402
from codesign.errors import InputError  # noqa: E402
from codesign.quantize import network  # noqa: E402
from codesign.quantize.export import export  # noqa: E402
from codesign.quantize.export.gguf_keys import rope_factors  # noqa: E402
from codesign.quantize.gguf import quantize_gguf  # noqa: E402
from codesign.quantize.gguf_source import GgufSource  # noqa: E402
from codesign.quantize.network import Network, empty_transformer  # noqa: E402
from codesign.quantize.result import ResultSource  # noqa: E402
from codesign.quantize.source import open_source  # noqa: E402
from codesign.schemes.catalog import parse_scheme  # noqa: E402
from tests.tiny_results import Made, loaded_logits, logits, quantized, same_for_all, save_model, some_ids  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers says of itself

BLOCKS_OF_256 = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
Q8_0 = parse_scheme("Q8_0")
ROUNDING = 1e-5  # of the largest logit


class WeightsOnly(ResultSource):
    """A result whose inputs are left as they are, as programs that dequantize the file leave them."""

    def inputs(self, layer):
        return None


def k_mix(layer):
    return "Q6_K" if layer == "lm_head" or "v_proj" in layer else "Q5_K" if "down" in layer else "Q4_K"


CASES = {
    "llama": (same_for_all("Q8_0"), {}),
    "llama, K types": (k_mix, BLOCKS_OF_256),
    "mistral": (same_for_all("Q5_1"), {}),
    "qwen2": (same_for_all("Q4_1"), {}),
    "qwen2, tied": (same_for_all("Q8_0"), {"tie_word_embeddings": True}),
    "qwen3": (same_for_all("Q5_0"), {"head_dim": 128}),
}


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    chooser, more = CASES[request.param]
    folder = tmp_path_factory.mktemp("gguf")
    source = save_model(folder / "model", request.param.partition(",")[0], **more)
    return Made(folder, source, "gguf", chooser)


def test_every_tensor_reads_back_bit_by_bit(made):
    read = open_source(str(made.out))
    assert isinstance(read, GgufSource)
    names = [name for name, _ in empty_transformer(made.source.config).named_parameters()]
    assert len(names) > 20
    for name in names:
        assert torch.equal(read.tensor(name).float(), made.result.tensor(name).float()), name


def test_the_gguf_package_dequantizes_the_same(made):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(made.out).tensors}
    for block in range(2):
        name = f"model.layers.{block}.mlp.down_proj.weight"
        stored = tensors[f"blk.{block}.ffn_down.weight"]
        values = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
        assert torch.equal(values, made.result.tensor(name))
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["token_embd.weight"].tensor_type.name == "BF16"


def test_our_reader_finds_the_schemes(made):
    checkpoint = read_checkpoint(str(made.out))
    assert not checkpoint.unknown
    for block in made.source.model.blocks:
        for head in made.results.heads(block.index):
            assert str(checkpoint.schemes[head.name][0]) == head.scheme.name


def test_transformers_gives_the_logits_of_the_result(made):
    pytest.importorskip("accelerate", reason="transformers wants it to read GGUF files")
    wanted = logits(WeightsOnly(made.source, made.results))
    found = loaded_logits(made.out.parent, gguf_file=made.out.name)
    assert float((found - wanted).abs().max()) <= ROUNDING * float(wanted.abs().max())
    assert float((found - logits(made.source)).abs().max()) > 1e-3


def llama_cpp_logits(path):
    """Return the logits [24, 96] of llama.cpp, with keys and values in float32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    floats = llama_cpp.GGML_TYPE_F32
    engine = llama_cpp.Llama(
        str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1, type_k=floats, type_v=floats
    )
    engine.eval(some_ids()[0].tolist())
    return torch.from_numpy(engine.scores[:24].copy())


def rms(values):
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize(("kind", "more"), [("llama", {}), ("qwen2", {}), ("qwen3", {"head_dim": 128})])
def test_llama_cpp_gives_the_logits_of_plain_floats(tmp_path, kind, more):
    """Names, keys and the order of rows are right: nothing is rounded here."""
    source = with_tokenizer(save_model(tmp_path / "model", kind, "float32", **more), tmp_path / "model")
    made = Made(tmp_path, source, "gguf", lambda layer: "FP32")
    wanted = logits(source)[0]
    assert rms(llama_cpp_logits(made.out) - wanted) <= 1e-5 * rms(wanted)  # measured 1e-6


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_llama_cpp_gives_the_logits_of_the_result(tmp_path, monkeypatch, kind):
    """It rounds inputs to its own Q8_0 blocks (amax / 127 as a half), which are put in the place of ours."""
    source = with_tokenizer(save_model(tmp_path / "model", kind, "float32"), tmp_path / "model")
    made = Made(tmp_path, source, "gguf", same_for_all("Q8_0"))
    found = llama_cpp_logits(made.out)
    monkeypatch.setattr(network, "quantize_activations", lambda x, *_: quantize_gguf(x, Q8_0).dequantize())
    wanted, unrounded = logits(made.result)[0], logits(WeightsOnly(source, made.results))[0]
    assert rms(found - wanted) <= 1e-3 * rms(wanted)  # measured 3e-5: a code at a tie here and there
    assert rms(unrounded - wanted) > 5e-3 * rms(wanted)  # the rounding of inputs is 2e-2


def with_tokenizer(source, folder):
    """Give the model a byte-level BPE tokenizer of 96 tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = [chr(number) for number in range(33, 127)]
    vocabulary = {letter: number for number, letter in enumerate(["<s>", *letters[:90], "Ġ", "th", "the"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<s>", chat_template="{{ messages }}"
    )
    fast.save_pretrained(folder)
    return open_source(str(folder)) if source is not None else fast


def test_the_tokenizer_is_the_same_behind_the_file(tmp_path):
    source = with_tokenizer(save_model(tmp_path / "model"), tmp_path / "model")
    made = Made(tmp_path, source, "gguf", same_for_all("Q8_0"))
    assert made.report.warnings == ()
    fields = gguf.GGUFReader(made.out).fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.merges"].contents() == ["t h", "th e"]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert (types[0], types[1], types[95], len(types)) == (3, 1, 5, 96)
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    ids = "theft of 1234 theories"
    assert open_source(str(made.out)).tokenizer()(ids)["input_ids"] == source.tokenizer()(ids)["input_ids"]


def test_a_gguf_source_gives_its_tokenizer_on(tmp_path):
    source = with_tokenizer(save_model(tmp_path / "model"), tmp_path / "model")
    first = Made(tmp_path, source, "gguf", same_for_all("Q8_0"))
    again = open_source(str(first.out))
    results = quantized(again, tmp_path / "again", same_for_all("Q4_0"))
    export(results, again, "gguf", tmp_path / "second.gguf")
    one, two = (gguf.GGUFReader(path).fields for path in (first.out, tmp_path / "second.gguf"))
    keys = [key for key in one if key.startswith("tokenizer.")]
    assert len(keys) > 6
    for key in keys:
        assert one[key].contents() == two[key].contents()
        assert one[key].types == two[key].types
    read = open_source(str(tmp_path / "second.gguf"))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(read.tensor(name), ResultSource(again, results).tensor(name))


def test_biases_of_llama_are_reordered_like_their_rows(tmp_path):
    source = save_model(tmp_path / "model", attention_bias=True)
    made = Made(tmp_path, source, "gguf", same_for_all("Q8_0"))
    assert "transformers leaves out" in made.report.warnings[-1]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(made.out).tensors}
    for part, heads in (("q", 4), ("k", 2)):
        bias = source.tensor(f"model.layers.1.self_attn.{part}_proj.bias").float()
        halves = bias.reshape(heads, 2, 16)
        neighbours = torch.stack((halves[:, 0], halves[:, 1]), dim=-1).reshape(-1)
        assert torch.equal(torch.from_numpy(tensors[f"blk.1.attn_{part}.bias"].data.copy()), neighbours)
    assert tensors["blk.1.attn_v.bias"].data.tolist() == source.tensor("model.layers.1.self_attn.v_proj.bias").tolist()


def test_frequencies_of_llama_3_become_factors(tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 10000.0}  # fmt: skip
    source = save_model(tmp_path / "model", rope_parameters=rope)
    made = Made(tmp_path, source, "gguf", same_for_all("Q8_0"))
    tensor = next(one for one in gguf.GGUFReader(made.out).tensors if one.name == "rope_freqs.weight")
    plain = 1 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    rotary = Network(source).transformer.model.rotary_emb.inv_freq
    assert torch.allclose(plain / torch.from_numpy(tensor.data.copy()), rotary, rtol=1e-6)
    assert float(tensor.data[0]) == 1.0
    assert float(tensor.data[-1]) == pytest.approx(8.0)


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    source = save_model(tmp_path / "model")
    results = quantized(source, tmp_path / "results", same_for_all("W4A16-g32"))
    with pytest.raises(InputError, match=r"W4A16-g32 is no type of GGUF files\. Use a GGUF scheme"):
        export(results, source, "gguf", tmp_path / "out.gguf")
    source.config.model_type = "phi3"
    with pytest.raises(InputError, match="phi3 models are not written here"):
        export(results, source, "gguf", tmp_path / "out.gguf")
    source.config.model_type = "llama"
    source.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    with pytest.raises(InputError, match="scaled by yarn"):
        rope_factors(source.config)
    assert not (tmp_path / "out.gguf").exists()
