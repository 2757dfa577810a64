"""KV caches rounded inside a tiny model: against a reference written out by hand, and what must not change."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_only_cases import reference_of

from codesign.errors import InputError
from codesign.quantize.hadamard import rotation
from codesign.quantize.kv_cache import KvRounding, quantized_kv
from codesign.quantize.network import Network
from codesign.quantize.source import FolderSource
from codesign.schemes.kv import KV_FORMATS, parse_kv
from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="models are run with torch")
transformers = pytest.importorskip("transformers", reason="models are run with transformers")
gguf = pytest.importorskip("gguf", reason="the oracle of its blocks")

QUANTIZED = [kv.name for kv in KV_FORMATS.values() if kv.quantized]
CASES = [(name, {"rotated": rotated}) for name in QUANTIZED for rotated in (False, True)]
CASES += [
    (name, {"key_group_tokens": size, "rotated": rotated})
    for name, size in (("int8", 8), ("int4", 8), ("q8_0", 32), ("q4_0", 32)) for rotated in (False, True)
]  # fmt: skip


def random(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_model(implementation: str = "sdpa"):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=96, max_position_embeddings=128, initializer_range=0.3,
        attn_implementation=implementation,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


IDS = torch.randint(0, 96, (2, 37), generator=torch.Generator().manual_seed(1))


def logits(model) -> "torch.Tensor":
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def turned(heads: "torch.Tensor") -> "torch.Tensor":
    return rotation(heads.shape[-1]).apply(heads).to(heads.dtype)


def by_hand(model, rounding: KvRounding) -> "torch.Tensor":
    """Return logits of a Llama written out here; with rotation queries are turned and outputs turned back."""
    config = model.config
    plain = KvRounding(rounding.format, rounding.key_group_tokens)
    turn = turned if rounding.rotated else (lambda heads: heads)
    hidden = model.model.embed_tokens(IDS)
    cos, sin = model.model.rotary_emb(hidden, torch.arange(IDS.shape[1])[None])

    def rotary(x: "torch.Tensor") -> "torch.Tensor":
        first, second = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

    def heads(x: "torch.Tensor", count: int) -> "torch.Tensor":
        return x.view(*x.shape[:2], count, config.head_dim).transpose(1, 2)

    for block in model.model.layers:
        x, attention = block.input_layernorm(hidden), block.self_attn
        q = turn(rotary(heads(attention.q_proj(x), 4)))
        k = plain.keys(turn(rotary(heads(attention.k_proj(x), 2)))).repeat_interleave(2, dim=1)
        v = plain.values(turn(heads(attention.v_proj(x), 2))).repeat_interleave(2, dim=1)
        scores = q @ k.transpose(2, 3) / config.head_dim**0.5
        seen = torch.ones(IDS.shape[1], IDS.shape[1], dtype=torch.bool).tril()
        out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        out = rotation(config.head_dim).undo(out).to(out.dtype) if rounding.rotated else out
        hidden = hidden + attention.o_proj(out.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_sixteen_bits_change_nothing(name, implementation):
    model = tiny_model(implementation)
    exact = logits(model)
    with quantized_kv(model, name):
        assert torch.equal(logits(model), exact)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "more"), CASES)
def test_logits_are_those_of_the_reference(name, more, implementation):
    model = tiny_model(implementation).double()  # in float32 more values lie at the border of two codes
    exact = logits(model)
    with quantized_kv(model, name, **more):
        found = logits(model)
    with torch.inference_mode():
        wanted = by_hand(model, KvRounding(parse_kv(name), **more))
    error = (wanted - exact).square().mean().sqrt()
    assert error > 0
    assert (found - wanted).square().mean().sqrt() < 0.03 * error
    assert torch.equal(logits(model), exact)


def test_keys_and_values_of_every_layer_are_rounded(monkeypatch):
    model, seen = tiny_model(), []
    for kind in ("keys", "values"):
        exact = getattr(KvRounding, kind)

        def watched(self, x, exact=exact, kind=kind):
            held = exact(self, x)
            seen.append((kind, tuple(x.shape), int(held[0, 0, 0].unique().numel()), bool((held != x).any())))
            return held

        monkeypatch.setattr(KvRounding, kind, watched)
    with quantized_kv(model, "int4"):
        logits(model)
    assert [kind for kind, *_ in seen] == ["keys", "values"] * 3
    assert {shape for _, shape, *_ in seen} == {(2, 2, 37, 32)}
    assert all(levels <= 16 and changed for _, _, levels, changed in seen)


def test_more_bits_err_less():
    model = tiny_model()
    exact = logits(model)
    errors = {}
    for name in QUANTIZED:
        with quantized_kv(model, name):
            errors[name] = float((logits(model) - exact).square().mean())
    order = ["q8_0", "int8", "fp8", "fp8_e5m2", "int4"]
    assert all(errors[better] < errors[worse] for better, worse in pairwise(order)), errors
    assert errors["fp8_e5m2"] < errors["q4_0"]


def test_channels_that_stand_out_want_scales_per_channel_or_a_rotation():
    keys = random(1, 2, 64, 32)
    keys[..., 5] *= 40
    error = {
        how: float((KvRounding(parse_kv("int4"), **more).keys(keys) - keys)[..., :5].square().mean())
        for how, more in (("token", {}), ("channel", {"key_group_tokens": 32}), ("rotated", {"rotated": True}))
    }
    assert error["channel"] < 0.05 * error["token"]
    assert error["rotated"] < 0.7 * error["token"]


def test_the_youngest_keys_stay_exact_until_their_group_is_full():
    keys = random(1, 1, 21, 32)
    held = KvRounding(parse_kv("int4"), key_group_tokens=8).keys(keys)
    assert torch.equal(held[:, :, 16:], keys[:, :, 16:])
    assert bool((held[:, :, :16] != keys[:, :, :16]).any(dim=-1).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), exponent=st.integers(-20, 20))
def test_int8_is_what_our_kernels_hold(seed, exponent):
    values = random(2, 3, 5, 16, seed=seed) * 2.0**exponent
    ours = KvRounding(parse_kv("int8")).values(values).numpy()
    theirs = reference_of("kv_attention").dequantized(values.numpy(), "int8")
    # The kernel multiplies with the inverse of the scale: ties may go to the other side.
    assert np.mean(ours == theirs) > 0.98
    assert np.allclose(ours, theirs, atol=np.abs(theirs).max() / 100)


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_blocks_are_those_of_ggml(name):
    values = random(1, 2, 7, 64)
    kind = gguf.GGMLQuantizationType[name.upper()]
    wanted = gguf.dequantize(gguf.quantize(values.reshape(-1, 64).numpy(), kind), kind).reshape(values.shape)
    assert np.array_equal(KvRounding(parse_kv(name)).keys(values).numpy(), wanted)


@pytest.mark.parametrize("name", QUANTIZED)
def test_zeros_stay_zeros(name):
    zeros = torch.zeros(1, 1, 4, 32)
    assert torch.equal(KvRounding(parse_kv(name)).keys(zeros), zeros)


def test_a_growing_cache_gives_what_a_whole_window_gives():
    model = tiny_model()
    with torch.inference_mode(), quantized_kv(model, "int8"):
        whole = model(input_ids=IDS).logits
        first = model(input_ids=IDS[:, :20], use_cache=True)
        rest = model(input_ids=IDS[:, 20:], past_key_values=first.past_key_values).logits
    assert torch.allclose(rest, whole[:, 20:], atol=1e-3)


def test_a_network_rounds_what_its_source_asks_for(tmp_path):
    source = FolderSource(save_tiny(tmp_path) / "model.safetensors")
    exact = Network(source)
    source.kv = "int4"
    rounded = Network(source)

    def run(network: Network) -> "torch.Tensor":
        with torch.inference_mode():
            batch = network.start(IDS)
            for index in range(network.block_count):
                with network.block(index) as block:
                    batch = network.step(index, block, batch)
            return network.logits(batch)

    with quantized_kv(exact, "int4"):
        wanted = run(exact)
    assert torch.equal(run(rounded), wanted)
    assert not torch.equal(run(exact), wanted)


def test_a_format_takes_the_place_of_another_while_it_lasts():
    model = tiny_model()
    exact = logits(model)
    with quantized_kv(model, "int8"):
        eight_bits = logits(model)
        with quantized_kv(model, "int4"):
            four_bits = logits(model)
        with quantized_kv(model, "bf16"):
            assert torch.equal(logits(model), exact)
        assert torch.equal(logits(model), eight_bits)
    with quantized_kv(model, "int4"):
        assert torch.equal(logits(model), four_bits)
    assert not torch.equal(four_bits, eight_bits)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("fp8", {"key_group_tokens": 32}, "no scale per token"),
        ("int4", {"key_group_tokens": 1}, "no group"),
        ("int5", {}, "Unknown KV cache format"),
    ],
)
def test_what_cannot_be_is_refused(name, more, message):
    with pytest.raises(InputError, match=message), quantized_kv(tiny_model(), name, **more):
        pass


def test_blocks_of_32_need_heads_of_whole_blocks():
    with pytest.raises(InputError, match="blocks of 32"):
        KvRounding(parse_kv("q4_0")).keys(random(1, 1, 4, 16))
