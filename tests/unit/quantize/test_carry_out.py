from pathlib import Path

import pytest

from codesign.errors import InputError
from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="quantizing needs torch")
pytest.importorskip("transformers", reason="blocks are run by transformers")

from codesign.quantize.block_folds import fold_block  # noqa: E402
from codesign.quantize.block_inputs import LayerGroup, LoadedBlock, group_inputs, layer_groups  # noqa: E402
from codesign.quantize.carry_out import carry_out  # noqa: E402
from codesign.quantize.fold import Fold  # noqa: E402
from codesign.quantize.gguf import quantize_gguf  # noqa: E402
from codesign.quantize.methods import METHODS, Recipe  # noqa: E402
from codesign.quantize.network import Network  # noqa: E402
from codesign.quantize.result import ResultFolder, ResultSource  # noqa: E402
from codesign.quantize.round import quantize_weight  # noqa: E402
from codesign.quantize.source import FolderSource, open_source  # noqa: E402
from codesign.schemes.catalog import parse_scheme  # noqa: E402

SCHEME_OF = {
    "rtn": "W4A16-g32",
    "gptq": "W4A16-g32",
    "awq": "W4A16-g32",
    "smoothquant": "W8A8",
    "hqq": "W4A16-g32-asym16",
}
TEXT = torch.randint(0, 96, (6, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    return Network(open_source(str(save_tiny(tmp_path_factory.mktemp("tiny")))))


def save_one_block(folder: Path, *, hidden: int = 64, tied: bool = False) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=1, num_attention_heads=4, vocab_size=96,
        tie_word_embeddings=tied,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def block_schemes(network: Network, name: str) -> dict:
    return {layer.name: parse_scheme(name) for block in network.source.model.blocks for layer in block.layers}


def logits(network: Network, text: "torch.Tensor" = TEXT) -> "torch.Tensor":
    batch = network.start(text)
    with torch.inference_mode():
        for index in range(network.block_count):
            with network.block(index) as block:
                batch = network.step(index, block, batch)
        return network.logits(batch)


def loaded(network: Network, module, index: int = 0) -> LoadedBlock:
    with torch.inference_mode():
        return LoadedBlock(network, index, module, [network.start(part) for part in TEXT.split(2)])


def groups_of(network: Network, scheme: str = "W4A16-g32") -> tuple[LayerGroup, ...]:
    layers = network.source.model.blocks[0].layers
    return layer_groups(layers, block_schemes(network, scheme), network.source)


def test_scales_of_a_cache_are_of_the_largest_that_a_rounded_block_puts_into_it(network, tmp_path):
    results = ResultFolder(tmp_path / "r", {})
    schemes = block_schemes(network, "W4A16-g32")
    list(carry_out(network, schemes, Recipe("rtn", kv_scales=True), TEXT, results))
    rounded = Network(ResultSource(network.source, results))
    keys = []
    with rounded.block(0) as block, torch.inference_mode():
        batch = rounded.start(TEXT)
        hook = block.self_attn.v_proj.register_forward_hook(lambda _, __, out: keys.append(float(out.abs().max())))
        rounded.step(0, block, batch)
        hook.remove()
    tensors = results.read(0).tensors
    assert float(tensors["model.layers.0.self_attn.v_scale"]) == pytest.approx(keys[0] / 448)
    assert 0 < float(tensors["model.layers.0.self_attn.k_scale"]) < 1
    assert network.transformer.config._attn_implementation.startswith("kv-watched") is False


@pytest.mark.parametrize("method", METHODS)
def test_every_method_quantizes_all_blocks_and_its_result_runs(network, tmp_path, method):
    results = ResultFolder(tmp_path / "r", {})
    schemes = block_schemes(network, SCHEME_OF[method])
    reports = list(carry_out(network, schemes, Recipe(method), TEXT, results))
    assert [report.block_index for report in reports] == [0, 1, None]
    assert [len(report.layers) for report in reports] == [7, 7, 0]
    for report in reports[:2]:
        assert 0 < report.error_fraction <= report.nearest_error_fraction * 1.02
    made = logits(Network(ResultSource(network.source, results)))
    error = (made - logits(network)).norm() / logits(network).norm()
    assert 0 < error < 0.4


@pytest.mark.parametrize(("method", "gain"), [("gptq", 0.6), ("awq", 0.9)])
def test_calibrated_methods_err_less_than_rounding_to_nearest(network, tmp_path, method, gain):
    text = torch.randint(0, 96, (32, 32), generator=torch.Generator().manual_seed(2))
    results = ResultFolder(tmp_path / "r", {})
    reports = list(carry_out(network, block_schemes(network, "W3A16-g32"), Recipe(method), text, results))
    for report in reports[:2]:
        assert report.error_fraction < gain * report.nearest_error_fraction


def test_rounding_to_nearest_without_text_is_that_of_each_matrix(network, tmp_path):
    results = ResultFolder(tmp_path / "r", {})
    schemes = block_schemes(network, "W4A16-g64")
    list(carry_out(network, schemes, Recipe("rtn"), None, results))
    for layer in results.read(1).layers:
        expected = quantize_weight(network.source.tensor(layer.name + ".weight"), parse_scheme("W4A16-g64"))
        assert torch.equal(layer.weight.codes, expected.codes)
        assert torch.equal(layer.weight.dequantize(), expected.dequantize())


def test_mixed_schemes_and_layers_that_stay(network, tmp_path):
    base = "model.layers.0."
    schemes = {base + "self_attn.o_proj": parse_scheme("W8A16"), base + "mlp.down_proj": parse_scheme("Q4_0"),
               base + "mlp.gate_proj": parse_scheme("BF16"), "lm_head": parse_scheme("W8A16")}  # fmt: skip
    results = ResultFolder(tmp_path / "r", {})
    list(carry_out(network, schemes, Recipe("gptq"), TEXT, results))
    found = {layer.name: layer.scheme.name for index in (0, 1, None) for layer in results.read(index).layers}
    assert found == {base + "self_attn.o_proj": "W8A16", base + "mlp.down_proj": "Q4_0", "lm_head": "W8A16"}
    source = ResultSource(network.source, results)
    for name in ("model.layers.1.mlp.up_proj.weight", base + "mlp.gate_proj.weight", base + "input_layernorm.weight"):
        assert torch.equal(source.tensor(name), network.source.tensor(name))


def test_gguf_types_are_searched_with_the_mean_squares_of_the_inputs(tmp_path):
    network = Network(open_source(str(save_one_block(tmp_path / "m", hidden=256))))
    schemes = block_schemes(network, "Q4_K")
    with_text, without = (ResultFolder(tmp_path / name, {}) for name in ("a", "b"))
    list(carry_out(network, schemes, Recipe("rtn"), TEXT, with_text))
    list(carry_out(network, schemes, Recipe("rtn"), None, without))
    with network.block(0) as module:
        inputs = group_inputs(loaded(network, module), groups_of(network, "Q4_K")[:1], with_hessian=False)[0]
    weight = network.source.tensor("model.layers.0.self_attn.q_proj.weight")
    expected = quantize_gguf(weight, parse_scheme("Q4_K"), inputs.mean_square)
    assert torch.equal(with_text.read(0).layers[0].weight.rows, expected.rows)
    assert not torch.equal(without.read(0).layers[0].weight.rows, expected.rows)


def test_the_next_block_is_calibrated_with_the_rounded_one(network, tmp_path):
    coarse, fine = {}, {}
    for name, scheme in block_schemes(network, "W4A16-g32").items():
        coarse[name] = parse_scheme("W2A16-g16") if ".0." in name else scheme
        fine[name] = scheme
    parts = []
    for folder, schemes in (("coarse", coarse), ("fine", fine)):
        results = ResultFolder(tmp_path / folder, {})
        list(carry_out(network, schemes, Recipe("gptq"), TEXT, results))
        parts.append(results.read(1).layers[0].weight.codes)
    assert not torch.equal(*parts)


def test_inputs_are_summed_over_all_batches(network):
    with network.block(0) as module:
        block = loaded(network, module)
        groups = groups_of(network)
        seen: list[torch.Tensor] = []
        hook = block.layer(groups[-1].layers[0].name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with torch.inference_mode():
            for batch in block.batches:
                block.run(batch)
        hook.remove()
        (found,) = group_inputs(block, groups[-1:], with_hessian=True, stop=True)
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in seen])
    assert found.statistics.token_count == len(x) == TEXT.numel()
    assert torch.allclose(found.statistics.hessian, x.T @ x, rtol=1e-4, atol=1e-3)
    assert torch.allclose(found.mean_square, x.square().mean(dim=0), rtol=1e-4)
    assert torch.equal(found.sample, x[: len(found.sample)])


def test_folding_leaves_what_the_model_computes(network):
    generator = torch.Generator().manual_seed(3)
    exact = logits(network)

    def search(weights, inputs, group):
        return Fold(torch.rand(group.layers[0].k, generator=generator) * 8 + 0.1)

    batch = network.start(TEXT)
    with torch.inference_mode():
        for index in range(network.block_count):
            with network.block(index) as module:
                groups = layer_groups(
                    network.source.model.blocks[index].layers, block_schemes(network, "W4A16-g32"), network.source
                )
                before = {name: value.clone() for name, value in module.named_parameters()}
                folds = fold_block(LoadedBlock(network, index, module, [batch]), groups, search, linear=True)
                changed = [name for name, value in module.named_parameters() if not torch.equal(value, before[name])]
                batch = network.step(index, module, batch)
            # v_proj has half as many outputs as o_proj has inputs: that pair stays.
            assert {name.split(".")[-1] for name in folds.columns} == {
                "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}  # fmt: skip
            assert len(changed) == 8
        assert torch.allclose(network.logits(batch), exact, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_folded_is_taken_back(network, monkeypatch):
    from codesign.quantize import block_folds

    monkeypatch.setitem(block_folds._LINEAR_BEFORE, "down", "gate")
    with network.block(0) as module:
        block = loaded(network, module)
        before = {name: value.clone() for name, value in module.named_parameters()}
        only_down = [group for group in groups_of(network) if group.layers[0].role == "down"]
        folds = fold_block(block, only_down, lambda *_: Fold(torch.full((128,), 3.0)), linear=True)
        assert not folds.columns
        assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_gains_that_are_stored_in_16_bits_fold_exactly(tmp_path):
    import transformers

    folder = save_tiny(tmp_path / "m")
    transformers.AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    network = Network(FolderSource(folder / "model.safetensors"))
    exact, results = logits(network), ResultFolder(tmp_path / "r", {})
    list(carry_out(network, block_schemes(network, "W8A8"), Recipe("smoothquant"), TEXT, results))
    gain = results.read(0).tensors.get("model.layers.0.input_layernorm.weight")
    assert gain is not None
    assert gain.dtype == torch.bfloat16
    made = logits(Network(ResultSource(network.source, results)))
    assert (made - exact).norm() / exact.norm() < 0.03


def test_static_activations_get_the_range_of_the_text(network, tmp_path):
    results = ResultFolder(tmp_path / "r", {})
    schemes = block_schemes(network, "W8A8-static")
    list(carry_out(network, schemes, Recipe("rtn"), TEXT, results))
    with network.block(0) as module:
        (inputs, *_) = group_inputs(loaded(network, module), groups_of(network)[:1], with_hessian=False)
    fixed = results.read(0).layers[0].fixed
    assert fixed.low == pytest.approx(float(inputs.sample.min()), rel=1e-5)
    assert fixed.high == pytest.approx(float(inputs.sample.max()), rel=1e-5)


def test_a_tied_head_is_rounded_as_its_own_or_with_the_embedding(tmp_path):
    source = open_source(str(save_one_block(tmp_path / "m", tied=True)))
    for name in ("lm_head", "model.embed_tokens"):
        results = ResultFolder(tmp_path / name, {})
        list(carry_out(Network(source), {name: parse_scheme("W8A16")}, Recipe("gptq"), TEXT, results))
        (layer,) = results.read(None).layers
        assert layer.name == name
        error = layer.weight.dequantize() - source.tensor("model.embed_tokens.weight")
        assert float(error.abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("schemes", "method", "text", "message"),
    [
        ({"model.layers.7.mlp.up_proj": "W4A16"}, "rtn", TEXT, "plan is of another model"),
        ({"lm_head": "W4A16"}, "gptq", None, "needs calibration text"),
        ({"lm_head": "W8A8-static"}, "rtn", None, "fixed scales"),
        ({"lm_head": "W4A16"}, "smoothquant", TEXT, "use W8A8"),
        ({"lm_head": "W4A16-g64"}, "hqq", TEXT, "W4A16-g64-asym16"),
        ({"lm_head": "W4A16"}, "gptqq", TEXT, 'Did you mean "gptq"'),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(network, tmp_path, schemes, method, text, message):
    results = ResultFolder(tmp_path / "r", {})
    wanted = {name: parse_scheme(scheme) for name, scheme in schemes.items()}
    with pytest.raises(InputError, match=message):
        next(carry_out(network, wanted, Recipe(method), text, results))
    assert [path.name for path in Path(tmp_path / "r").iterdir()] == ["settings.json"]
