"""Static ranges and outliers of a tiny network, rotated weights, and scales shared by a fused group."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize.activations import quantize_activations
from codesign.quantize.calibrate import METHODS, HistogramSum, activation_range
from codesign.quantize.errors import error_metrics, output_errors
from codesign.quantize.gptq import gptq
from codesign.quantize.hadamard import rotation
from codesign.quantize.network import Network
from codesign.quantize.ranges import activation_ranges, network_inputs, outlier_report
from codesign.quantize.result import QuantizedLayer
from codesign.quantize.rotated import rotated, rotated_hessian, rotated_weight
from codesign.quantize.round import quantize_group, quantize_weight, split_rows
from codesign.quantize.source import FolderSource
from codesign.schemes.catalog import parse_scheme
from tests.tiny_transformer import BLOCK_LAYERS, save_tiny

torch = pytest.importorskip("torch", reason="models are run with torch")
pytest.importorskip("transformers", reason="models are run with transformers")

IDS = torch.randint(0, 96, (5, 16), generator=torch.Generator().manual_seed(1))
OUTLIER, STRENGTH = 7, 400.0


def random(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return a network in whose second block one channel of the first norm stands out."""
    from safetensors.torch import load_file, save_file

    file = save_tiny(tmp_path_factory.mktemp("ranges")) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.input_layernorm.weight"][OUTLIER] *= STRENGTH
    save_file(tensors, file, {"format": "pt"})
    return Network(FolderSource(file))


@pytest.fixture(scope="module")
def seen(network):
    return network_inputs(network, IDS)


@pytest.fixture(scope="module")
def inputs_by_hand(network):
    """Return all inputs of every linear layer, from running the whole transformer at once."""
    found, hooks = {}, []

    def keeping(name: str):
        def keep(_, arguments) -> None:
            found[name] = arguments[0].reshape(-1, arguments[0].shape[-1])

        return keep

    with network.whole() as transformer, torch.inference_mode():
        for name, module in transformer.named_modules():
            if isinstance(module, torch.nn.Linear):
                hooks.append(module.register_forward_pre_hook(keeping(name)))
        transformer(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    return found


def test_every_linear_layer_has_a_range(network, seen):
    for method in METHODS:
        ranges = activation_ranges(seen, method)
        assert set(ranges) == {layer.name for layer in network.source.model.layers}
        assert sum(name.rpartition(".")[2] in BLOCK_LAYERS for name in ranges) == 14


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_the_inputs_of_a_whole_run(seen, inputs_by_hand, method):
    ranges = activation_ranges(seen, method)
    for name, x in inputs_by_hand.items():
        histogram = HistogramSum()
        histogram.add(x)
        wanted = activation_range(histogram.result(), method)
        assert ranges[name].low == pytest.approx(wanted.low, rel=1e-3), name
        assert ranges[name].high == pytest.approx(wanted.high, rel=1e-3), name


def test_the_planted_channel_is_reported_and_no_other(seen):
    report = outlier_report(seen)
    assert [one.layers for one in report] == [tuple(f"model.layers.1.self_attn.{name}_proj" for name in "qkv")]
    assert report[0].outlier_channels == (OUTLIER,)
    assert report[0].outlier_ratio > 50


def test_nothing_is_left_behind_in_the_network(network, seen):
    assert "forward" not in vars(network.transformer.get_output_embeddings())
    with network.block(0) as block:
        assert not any(module._forward_pre_hooks for module in block.modules())


@settings(max_examples=20, deadline=None)
@given(k=st.sampled_from([16, 48, 64, 100]), n=st.integers(1, 9), seed=st.integers(0, 2**20))
def test_turned_weights_meet_turned_inputs_as_if_nothing_had_happened(k, n, seed):
    w, x = random(n, k, seed=seed), random(11, k, seed=seed + 1)
    turned = rotation(k, seed).apply(x)
    assert torch.allclose(turned @ rotated_weight(w, seed).T, x @ w.T, atol=1e-4)
    hessian = rotated_hessian(x.T @ x, seed)
    assert torch.allclose(hessian, turned.T @ turned, atol=1e-3 * float(hessian.abs().max()))


@pytest.mark.parametrize("scheme", ["W4A4", "W4A4-g64"])
def test_rotation_rescues_four_bit_activations_with_outliers(scheme):
    parsed, seed = parse_scheme(scheme), 3
    w, x = random(48, 128), random(200, 128, seed=1)
    x[:, [5, 77]] *= 40
    plain = output_errors(
        x, w, quantize_weight(w, parsed).dequantize(), x_rounded=quantize_activations(x, parsed.activations)
    )
    layer = QuantizedLayer("layer", rotated(w, parsed, seed), rotation_seed=seed)
    inputs = layer.inputs
    turned = quantize_activations(inputs.rotation.apply(x), inputs.format)
    found = error_metrics(x @ w.T, turned @ layer.weight.dequantize().T)
    assert found.mse < 0.5 * plain.mse


def test_gptq_of_turned_weights_is_better_than_rounding_them():
    x = random(400, 64) @ random(64, 64, seed=1)
    w, scheme = random(24, 64, seed=2), parse_scheme("W4A4")
    hessian = rotated_hessian(x.T @ x, 5)
    result = gptq(rotated_weight(w, 5), hessian, scheme)
    assert result.error < 0.8 * result.nearest_error


def test_rotation_is_refused_where_a_file_cannot_say_it():
    with pytest.raises(InputError, match="rotated"):
        rotated(random(8, 64), parse_scheme("Q4_0"), 0)


GROUP = [random(16, 64) * 3, random(8, 64, seed=1), random(8, 64, seed=2) * 0.2]


def test_members_share_the_scale_of_the_tensor_and_round_under_it_as_compressed_tensors_does():
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers", reason="the oracle of its format")
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="the oracle of its format")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward", reason="the oracle")
    args = quantization.preset_name_to_scheme("NVFP4", ["Linear"]).weights
    whole = helpers.generate_gparam(min(w.min() for w in GROUP), max(w.max() for w in GROUP))
    for w, rounded in zip(GROUP, quantize_group(GROUP, parse_scheme("NVFP4")), strict=True):
        assert torch.allclose(rounded.scales.above.divisor, whole, rtol=1e-6)
        cut = w.view(len(w), -1, 16)
        scales, _ = helpers.calculate_qparams(cut.amin(2), cut.amax(2), args, global_scale=whole)
        assert torch.equal(scales.float(), rounded.scales.stored.float())
        theirs = forward.fake_quantize(w, scales, None, args, global_scale=whole)
        assert torch.allclose(theirs, rounded.dequantize(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["W4A16-g16", "W4A16-g32-asym", "W8A8", "MXFP4", "FP8-channel", "W4A16-g64-asym16", "BF16"]
)
def test_groups_without_a_scale_above_are_rounded_as_alone(name):
    scheme = parse_scheme(name)
    for w, rounded in zip(GROUP, quantize_group(GROUP, scheme), strict=True):
        assert torch.equal(rounded.dequantize(), quantize_weight(w, scheme).dequantize())
        assert rounded.shape == tuple(w.shape)


def test_one_scale_per_tensor_becomes_that_of_the_group():
    shared = quantize_group(GROUP, parse_scheme("FP8"))
    largest = max(float(w.abs().max()) for w in GROUP)
    assert [float(one.scales.effective()) for one in shared] == pytest.approx([largest / 448] * 3)


def test_gptq_of_a_group_splits_into_its_members():
    x, scheme = random(300, 64) @ random(64, 64, seed=9), parse_scheme("NVFP4")
    result = gptq(torch.cat(GROUP), x.T @ x, scheme)
    parts = split_rows(result.weight, [len(w) for w in GROUP])
    assert torch.equal(torch.cat([one.dequantize() for one in parts]), result.weight.dequantize())
    assert len({float(one.scales.above.divisor) for one in parts}) == 1


@pytest.mark.parametrize("name", ["NF4", "FP8-block"])
def test_scales_over_the_border_of_two_members_are_refused(name):
    with pytest.raises(InputError, match="over the border"):
        quantize_group(GROUP, parse_scheme(name))


def test_a_network_of_dead_channels_has_an_infinite_ratio():
    from codesign.quantize.ranges import InputsSum

    total = InputsSum(("layer",), 4)
    total.add(torch.tensor([[0.0, 0.0, 0.0, 2.0]]))
    assert math.isinf(total.result().outlier_ratio)
    assert total.result().outlier_channels == (3,)
