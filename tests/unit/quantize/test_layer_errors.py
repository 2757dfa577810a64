"""Errors of layers against those worked out by hand on tiny models."""

import math
from pathlib import Path

import pytest

from codesign.errors import InputError
from codesign.model.layers import Layer
from codesign.quantize.activations import quantize_activations
from codesign.quantize.errors import ErrorMetrics, ErrorSum, error_metrics
from codesign.quantize.layer_errors import (
    LayerErrors,
    errors_by_role,
    nonfinite_names,
    rounded_weight,
    weight_errors,
    worst_first,
)
from codesign.quantize.network import Network
from codesign.quantize.output_errors import with_outputs
from codesign.quantize.round import DeadChannels, quantize_weight
from codesign.quantize.source import FolderSource
from codesign.report.errors_page import write_errors_page
from codesign.report.errors_tables import layer_table, remarks, role_table
from codesign.schemes.catalog import parse_scheme
from tests.tiny_transformer import CONFIG, save_tiny

torch = pytest.importorskip("torch", reason="rounding needs torch")
transformers = pytest.importorskip("transformers", reason="outputs need transformers")

W4, W8A8 = parse_scheme("W4A16-g32"), parse_scheme("W8A8")
DOWN = "model.layers.1.mlp.down_proj"
LAYERS_OF_A_BLOCK = 7


class Changed(FolderSource):
    """A model of which some tensors are changed."""

    def __init__(self, folder: Path, change=lambda _, values: values) -> None:
        super().__init__(next(folder.glob("*.safetensors")))
        self._change = change

    def tensor(self, name):
        return self._change(name, super().tensor(name).clone())


def changing(wanted: str, change):
    def changed(name, values):
        if name.startswith(wanted):
            change(values)
        return values

    return changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, CONFIG["vocab_size"], (3, 20), generator=torch.Generator().manual_seed(2))


def by_name(found) -> dict[str, LayerErrors]:
    return {one.layer.name: one for one in found}


def seen_by(folder, ids, name):
    """Return weights [n, k] and inputs [tokens, k] of a layer of the model of transformers."""
    model, seen = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
    layer = model.get_submodule(name)
    layer.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].flatten(0, -2)))
    with torch.inference_mode():
        model(input_ids=ids)
    return layer.weight.detach(), torch.cat(seen)


def test_weights_err_as_rounding_says(folder):
    found = weight_errors(Changed(folder), W4)
    assert len(found) == 2 * LAYERS_OF_A_BLOCK + 1
    w = Changed(folder).tensor(DOWN + ".weight")
    known = error_metrics(w, quantize_weight(w, W4).dequantize())
    one = by_name(found)[DOWN]
    assert one.weight == known
    assert (one.dead, one.problem, one.inputs, one.snr_db) == (DeadChannels((), ()), "", None, known.snr_db)


@pytest.mark.parametrize("name", [DOWN, "lm_head"])
@pytest.mark.parametrize("scheme", [W4, W8A8], ids=str)
def test_outputs_err_as_worked_out_by_hand(folder, ids, scheme, name):
    source = Changed(folder)
    one = by_name(with_outputs(weight_errors(source, scheme), Network(source), ids, scheme))[name]
    w, x = seen_by(folder, ids, name)
    stored = quantize_activations(x, scheme.activations)
    output = error_metrics(x @ w.T, stored @ quantize_weight(w, scheme).dequantize().T)
    assert one.inputs.token_count == ids.numel()
    assert one.inputs.output.snr_db == pytest.approx(output.snr_db, abs=0.01)
    assert one.inputs.output.max == pytest.approx(output.max, rel=0.01)
    assert one.snr_db == one.inputs.output.snr_db
    if scheme is W4:
        assert one.inputs.activations is None
    else:
        assert one.inputs.activations.snr_db == pytest.approx(error_metrics(x, stored).snr_db, abs=0.01)
    ratio = x.abs().amax(0)
    assert one.inputs.largest_over_median == pytest.approx(float(ratio.max() / ratio.median()), rel=1e-4)


def test_every_layer_has_outputs(folder, ids):
    source = Changed(folder)
    found = with_outputs(weight_errors(source, W4), Network(source), ids, W4)
    assert all(one.inputs is not None for one in found)


def test_damaged_weights_are_named_and_the_others_measured(folder, ids):
    def damage(values):
        values[3, 5], values[7, 0] = math.nan, math.inf

    source = Changed(folder, changing(DOWN, damage))
    found = weight_errors(source, W4)
    one = by_name(found)[DOWN]
    assert one.weight is None
    assert "1 NaN and 1 infinite values, in 2 of 64 rows (3, 7)" in one.problem
    assert nonfinite_names(found) == (DOWN,)
    assert sum(other.weight is not None for other in found) == 2 * LAYERS_OF_A_BLOCK
    assert worst_first(found)[0] is one
    with pytest.raises(InputError, match="down_proj has NaN or infinite weights, which spread"):
        with_outputs(found, Network(source), ids, W4)


def test_dead_channels_are_named(folder, ids):
    def kill(values):
        values[[2, 9]] = 0
        values[:, 4] = 0

    source = Changed(folder, changing("model.layers.0.mlp.up_proj", kill))
    found = by_name(with_outputs(weight_errors(source, W4), Network(source), ids, W4))
    up = found["model.layers.0.mlp.up_proj"]
    assert up.dead == DeadChannels((2, 9), (4,))
    assert "dead outputs 2, 9; dead inputs 4" in remarks(up)
    assert found["model.layers.0.mlp.down_proj"].inputs.dead_channels == (2, 9)
    assert "inputs always 0 2, 9" in remarks(found["model.layers.0.mlp.down_proj"])


def test_outlier_channels_are_named_and_cost_what_they_cost(folder, ids):
    def enlarge(values):
        values[[5, 11]] *= 500

    source = Changed(folder, changing("model.layers.0.input_layernorm", enlarge))
    found = by_name(with_outputs(weight_errors(source, W8A8), Network(source), ids, W8A8))
    q = found["model.layers.0.self_attn.q_proj"]
    assert q.inputs.outlier_channels == (5, 11)
    assert remarks(q).startswith("outliers 5, 11, up to ")
    assert q.inputs.largest_over_median > 100
    plain = by_name(with_outputs(weight_errors(Changed(folder), W8A8), Network(Changed(folder)), ids, W8A8))
    assert plain["model.layers.0.self_attn.q_proj"].inputs.outlier_channels == ()
    assert q.inputs.activations.mse > 100 * plain[q.layer.name].inputs.activations.mse
    assert q.weight == plain[q.layer.name].weight


def test_a_scheme_that_does_not_fit_says_so_layer_by_layer(folder, ids):
    scheme = parse_scheme("Q4_K")
    source = Changed(folder)
    found = weight_errors(source, scheme)
    assert all(one.weight is None and "blocks of 256" in one.problem for one in found)
    assert nonfinite_names(found) == ()
    assert all(one.inputs is None for one in with_outputs(found, Network(source), ids, scheme))
    assert errors_by_role(found) == ()


def test_gguf_blocks_are_rounded_by_their_encoder(folder):
    scheme = parse_scheme("Q4_0")
    w = Changed(folder).tensor(DOWN + ".weight")
    assert by_name(weight_errors(Changed(folder), scheme))[DOWN].weight == error_metrics(w, rounded_weight(w, scheme))


def test_values_that_a_scheme_holds_exactly_have_no_noise(folder):
    source = Changed(folder, lambda _, values: values.bfloat16())
    found = weight_errors(source, parse_scheme("BF16"))
    assert {one.weight.snr_db for one in found} == {math.inf}
    assert errors_by_role(found)[0].weight_snr_db == math.inf
    assert "exact" in layer_table(found).rows[0]


def test_a_tied_head_has_the_weights_of_the_embedding(tmp_path):
    config = transformers.LlamaConfig(**CONFIG, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    source = Changed(tmp_path)
    assert not source.has("lm_head.weight")
    embedding = source.tensor("model.embed_tokens.weight")
    head = by_name(weight_errors(source, W4))["lm_head"]
    assert head.weight == error_metrics(embedding, rounded_weight(embedding, W4))


def layer_error(role, snr_db, name="x", n=2) -> LayerErrors:
    return LayerErrors(Layer(name, role, n, 3, role, 0), ErrorMetrics(0, 0, 0, snr_db, 1), DeadChannels((), ()))


def test_a_role_has_the_mean_noise_of_its_layers():
    found = [layer_error("up", 10.0, "a"), layer_error("up", 20.0, "b"), layer_error("down", 5.0, "c", n=4)]
    down, up = errors_by_role(found)
    assert (down.role, down.layer_count, down.weight_count, down.worst.layer.name) == ("down", 1, 12, "c")
    assert (up.layer_count, up.weight_count, up.worst.layer.name) == (2, 12, "a")
    assert up.weight_snr_db == pytest.approx(-10 * math.log10((0.1 + 0.01) / 2))
    assert up.output_snr_db is None
    assert role_table([down, up]).rows[0] == ("down", "1", "12", "5.0", "5.0", "c")


@pytest.mark.parametrize("cuts", [(1, 7, 2), (10,), (4, 6)])
def test_errors_add_up_over_pieces(cuts):
    exact, rounded = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    errors = ErrorSum()
    for true, found in zip(exact.split(list(cuts)), rounded.split(list(cuts)), strict=True):
        errors.add(true, found)
    whole, summed = error_metrics(exact, rounded), errors.result()
    difference = (rounded - exact).double()
    assert whole.mse == pytest.approx(float(difference.square().mean()))
    assert whole.mae == pytest.approx(float(difference.abs().mean()))
    assert whole.max == float(difference.abs().max())
    assert whole.cosine == pytest.approx(float(torch.cosine_similarity(exact.double(), rounded.double(), 0)))
    assert (summed.mse, summed.snr_db, summed.max) == pytest.approx((whole.mse, whole.snr_db, whole.max))


def test_nothing_has_no_error():
    with pytest.raises(InputError, match="Nothing was added"):
        ErrorSum().result()


def test_the_page_is_offline_complete_and_always_the_same(folder, ids, tmp_path):
    source = Changed(folder)
    found = with_outputs(weight_errors(source, W8A8), Network(source), ids, W8A8)
    pages = [tmp_path / "first.html", tmp_path / "second.html"]
    for page in pages:
        write_errors_page(found, "<tiny>", W8A8, page)
    text = pages[0].read_text(encoding="utf-8")
    assert text == pages[1].read_text(encoding="utf-8")
    assert [name for name in ("outputs", "weights", "activations") if f'id="figure-{name}"' in text] == [
        "outputs", "weights", "activations",
    ]  # fmt: skip
    assert "&lt;tiny&gt; in W8A8" in text
    assert all(f"<td>{one.layer.name}</td>" in text for one in found)
    assert '<link rel="stylesheet"' not in text


def test_a_page_of_weights_alone_has_one_map(folder, tmp_path):
    write_errors_page(weight_errors(Changed(folder), W4), "tiny", W4, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="figure-weights"' in text
    assert 'id="figure-outputs"' not in text
