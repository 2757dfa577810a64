from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.model.architectures import BUILDERS, build_model
from codesign.model.file import load_model
from codesign.model.groups import fused_groups
from codesign.model.layers import LatentAttention, Layer, Model


def shapes(model: Model, block: int) -> dict[str, tuple[int, int]]:
    """Return (n, k) by the layer's name within its block."""
    return {layer.name.split(f".{block}.", 1)[1]: (layer.n, layer.k) for layer in model.blocks[block].layers}


def layer_of(model: Model, role: str, block: int = 0) -> Layer:
    return next(layer for layer in model.blocks[block].layers if layer.role == role)


def llama_config(**changes: object) -> dict[str, object]:
    config: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return config | changes


def test_llama_70b_has_eight_kv_heads_of_128():
    # Llama 2 (arXiv 2307.09288), table 1 and appendix A.2.1: 70B uses grouped-query attention with 8 KV projections
    model = load_model("llama-2-70b")
    assert shapes(model, 79) == {
        "self_attn.q_proj": (8192, 8192),
        "self_attn.k_proj": (1024, 8192),
        "self_attn.v_proj": (1024, 8192),
        "self_attn.o_proj": (8192, 8192),
        "mlp.gate_proj": (28672, 8192),
        "mlp.up_proj": (28672, 8192),
        "mlp.down_proj": (8192, 28672),
    }
    assert model.blocks[0].layers[0].name == "model.layers.0.self_attn.q_proj"
    assert (model.embedding.name, model.head.name) == ("model.embed_tokens", "lm_head")


def test_head_dim_need_not_divide_the_hidden_size():
    model = load_model("qwen3-32b")  # 64 heads of 128 over a hidden size of 5120
    assert shapes(model, 0)["self_attn.q_proj"] == (8192, 5120)
    assert shapes(model, 0)["self_attn.o_proj"] == (5120, 8192)


def test_multi_query_attention_of_falcon_7b():
    model = load_model("falcon-7b")
    assert shapes(model, 0)["self_attention.query_key_value"] == (73 * 64, 4544)  # 71 query heads, one key, one value
    assert model.kv_elements_per_token == 32 * 2 * 64
    assert layer_of(model, "qkv").group == "qkv"


def test_original_falcon_releases_spell_their_keys_differently():
    old = {"model_type": "RefinedWeb", "hidden_size": 8192, "n_layer": 60, "n_head": 128, "n_head_kv": 8}
    model = build_model(old | {"vocab_size": 65024, "bias": False}, "config.json")
    assert model.parameter_count == load_model("falcon-40b").parameter_count


def test_latent_attention_of_deepseek_v3():
    # DeepSeek-V3 (arXiv 2412.19437), section 4.2: 128 heads of 128, KV rank 512, query rank 1536, rotary 64
    model = load_model("deepseek-v3")
    assert model.blocks[0].attention == LatentAttention(128, 512, 64, 128, 128)
    assert shapes(model, 0) == {
        "self_attn.q_a_proj": (1536, 7168),
        "self_attn.q_b_proj": (128 * 192, 1536),
        "self_attn.kv_a_proj_with_mqa": (576, 7168),
        "self_attn.kv_b_proj": (128 * 256, 512),
        "self_attn.o_proj": (7168, 128 * 128),
        "mlp.gate_proj": (18432, 7168),
        "mlp.up_proj": (18432, 7168),
        "mlp.down_proj": (7168, 18432),
    }
    groups = {layer.role: layer.group for layer in model.blocks[0].layers}
    assert groups["q_a"] == groups["kv_a"] == "qkv_a"
    assert (groups["q_b"], groups["kv_b"]) == ("q_b", "kv_b")


def test_deepseek_v2_lite_does_not_compress_queries():
    model = load_model("deepseek-v2-lite")
    query = layer_of(model, "q")
    assert (query.n, query.k, query.group) == (16 * 192, 2048, "q_b")
    assert layer_of(model, "kv_a").group == "qkv_a"


def test_experts_of_deepseek_v3():
    model = load_model("deepseek-v3")
    assert [block.experts is None for block in model.blocks] == [True] * 3 + [False] * 58
    experts = model.blocks[3].experts
    assert experts is not None
    assert (experts.expert_count, experts.top_k, experts.intermediate) == (256, 8, 2048)
    sparse = shapes(model, 3)
    assert sparse["mlp.gate"] == (256, 7168)
    assert sparse["mlp.shared_experts.down_proj"] == (7168, 2048)
    norms = 2 * 7168 + 512 + 1536
    assert model.blocks[3].other_parameter_count == norms + 256  # with the router's correction bias
    assert load_model("deepseek-v2").blocks[3].other_parameter_count == 2 * 5120 + 512 + 1536


def test_active_parameters_of_mixtures():
    # arXiv 2412.19437 abstract: 37B activated of 671B; arXiv 2401.04088: 13B active of 47B; Qwen3: 22B active of 235B
    assert load_model("deepseek-v3").active_parameter_count == pytest.approx(37e9, rel=0.02)
    assert load_model("mixtral-8x7b").active_parameter_count == pytest.approx(13e9, rel=0.02)
    assert load_model("qwen3-235b-a22b").active_parameter_count == pytest.approx(22e9, rel=0.02)


def test_mixtral_router_and_experts():
    block = load_model("mixtral-8x7b").blocks[5]
    assert layer_of(load_model("mixtral-8x7b"), "router", 5).name == "model.layers.5.block_sparse_moe.gate"
    assert block.experts is not None
    assert block.experts.name == "model.layers.5.block_sparse_moe.experts"
    assert block.experts.matrices == ((14336, 4096), (14336, 4096), (4096, 14336))


def test_qwen_shared_expert_has_a_gate_of_its_own():
    model = load_model("qwen2-57b-a14b")
    assert shapes(model, 0)["mlp.shared_expert.gate_proj"] == (20480, 3584)
    assert shapes(model, 0)["mlp.shared_expert_gate"] == (1, 3584)
    assert layer_of(model, "shared_router").group == "shared_router"


def test_qwen_blocks_may_be_dense():
    config = llama_config(
        model_type="qwen3_moe",
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        head_dim=16,
        num_hidden_layers=6,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    model = build_model(config, "config.json")
    assert [block.experts is not None for block in model.blocks] == [False, True, False, False, False, True]


def test_gpt_oss_has_biases_sinks_and_alternating_windows():
    model = load_model("gpt-oss-20b")
    block = model.blocks[0]
    assert all(layer.bias for layer in block.layers)
    assert block.experts is not None
    assert block.experts.bias
    assert block.other_parameter_count == 2 * 2880 + 64  # one sink per head
    assert [b.attention.window_tokens for b in model.blocks[:4]] == [128, None, 128, None]


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("mistral-7b", {4096: 32}),
        ("mistral-7b-v0.3", {None: 32}),
        ("gemma-2-9b", {4096: 21, None: 21}),
        ("gemma-3-27b", {1024: 52, None: 10}),
        ("gemma-3-1b", {512: 22, None: 4}),
        ("qwen2.5-7b", {None: 28}),
        ("phi-3-mini", {2047: 32}),
        ("llama-3.1-8b", {None: 32}),
    ],
)
def test_windows(name: str, windows: dict[int | None, int]):
    assert Counter(block.attention.window_tokens for block in load_model(name).blocks) == windows


def test_gemma_windows_come_before_the_full_block():
    assert [b.attention.window_tokens for b in load_model("gemma-2-2b").blocks[:3]] == [4096, None, 4096]
    assert [b.attention.window_tokens is None for b in load_model("gemma-3-4b").blocks[:7]] == [False] * 5 + [
        True,
        False,
    ]


def test_qwen_windows_start_late_and_only_if_used():
    config = llama_config(model_type="qwen2", sliding_window=128, max_window_layers=2)
    used = build_model(config | {"use_sliding_window": True}, "config.json")
    unused = build_model(config | {"use_sliding_window": False}, "config.json")
    assert [b.attention.window_tokens for b in used.blocks] == [None, None, 128]
    assert [b.attention.window_tokens for b in unused.blocks] == [None] * 3


def test_layer_types_decide_where_given():
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    changes = {"head_dim": 16, "sliding_window": 64, "layer_types": kinds}
    for model_type in ("gemma2", "gemma3_text"):
        model = build_model(llama_config(model_type=model_type) | changes, "config.json")
        assert [b.attention.window_tokens for b in model.blocks] == [None, 64, None]


def test_layer_types_of_qwen_count_only_if_windows_are_used():
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    config = llama_config(model_type="qwen3", sliding_window=128, layer_types=kinds)
    used = build_model(config | {"use_sliding_window": True}, "config.json")
    assert [b.attention.window_tokens for b in used.blocks] == [128, None, None]
    assert build_model(config, "config.json").blocks[0].attention.window_tokens is None


def test_falcon_norms_follow_the_shape_of_its_block():
    config = {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config |= {"vocab_size": 100}

    def norms(**changes: object) -> int:
        return build_model(config | changes, "config.json").blocks[0].other_parameter_count // (2 * 64)

    assert norms(parallel_attn=True) == 1
    assert norms(parallel_attn=False) == 2
    assert norms(new_decoder_architecture=True) == 2
    assert norms(new_decoder_architecture=True, num_ln_in_parallel_attn=1) == 1


def test_deepseek_without_routed_experts_is_dense():
    config = llama_config(
        model_type="deepseek_v2", kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16
    )
    model = build_model(config | {"n_routed_experts": None}, "config.json")
    assert all(block.experts is None for block in model.blocks)
    assert shapes(model, 2)["mlp.down_proj"] == (64, 160)


def test_a_null_window_means_none_and_an_absent_one_the_default_of_the_family():
    absent = build_model(llama_config(model_type="mistral"), "config.json")
    null = build_model(llama_config(model_type="mistral", sliding_window=None), "config.json")
    assert absent.blocks[0].attention.window_tokens == 4096
    assert null.blocks[0].attention.window_tokens is None


@pytest.mark.parametrize(
    ("name", "biased"),
    [
        ("llama-2-7b", set()),
        ("qwen2.5-7b", {"q", "k", "v"}),
        ("qwen3-8b", set()),
        ("gpt2", {"qkv", "o", "up", "down"}),
        ("opt-1.3b", {"q", "k", "v", "o", "up", "down"}),
        ("phi-2", {"q", "k", "v", "o", "up", "down"}),
        ("pythia-1.4b", {"qkv", "o", "up", "down"}),
        ("falcon-40b", set()),
        ("stablelm-3b-4e1t", set()),
    ],
)
def test_biases(name: str, biased: set[str]):
    assert {layer.role for layer in load_model(name).blocks[0].layers if layer.bias} == biased


def test_phi_2_has_a_bias_on_its_head():
    assert load_model("phi-2").head.bias


@pytest.mark.parametrize(
    ("name", "tied"),
    [("gpt2", True), ("llama-3.2-1b", True), ("llama-3.1-8b", False), ("qwen2.5-0.5b", True), ("qwen2.5-7b", False),
     ("gemma-2-9b", True), ("gemma-3-27b", True), ("phi-4-mini", True), ("phi-4", False), ("bloom-7b1", True),
     ("opt-6.7b", True), ("pythia-12b", False), ("smollm2-135m", True), ("deepseek-v3", False)],
)  # fmt: skip
def test_tied_embeddings(name: str, tied: bool):
    assert load_model(name).tied_embedding is tied


def test_fused_gate_and_up_are_two_layers_of_true_shape():
    model = load_model("phi-4")
    assert shapes(model, 0)["self_attn.qkv_proj"] == ((40 + 2 * 10) * 128, 5120)
    assert shapes(model, 0)["mlp.gate_up_proj.gate"] == shapes(model, 0)["mlp.gate_up_proj.up"] == (17920, 5120)


def test_opt_350m_projects_between_embedding_and_hidden_size():
    model = load_model("opt-350m")
    assert (model.embedding.k, model.head.k, model.hidden) == (512, 512, 1024)
    assert [(layer.n, layer.k, layer.role) for layer in model.outside_layers] == [
        (1024, 512, "projection"),
        (512, 1024, "projection"),
    ]
    assert model.other_parameter_count == (2048 + 2) * 1024  # positions with offset 2, no final norm


def test_qk_norms_are_counted():
    assert load_model("qwen3-8b").blocks[0].other_parameter_count == 2 * 4096 + 2 * 128
    assert load_model("gemma-3-1b").blocks[0].other_parameter_count == 4 * 1152 + 2 * 256
    assert load_model("gemma-2-2b").blocks[0].other_parameter_count == 4 * 2304


def test_every_layer_name_is_unique_and_groups_share_their_input():
    for name in ("gpt2", "bloom-560m", "phi-4", "deepseek-v2-lite", "qwen1.5-moe-a2.7b", "gpt-oss-20b", "falcon-40b"):
        model = load_model(name)
        names = [layer.name for layer in model.layers]
        assert len(set(names)) == len(names)
        for group in fused_groups(model):
            assert len({layer.k for layer in group.layers}) <= 1


def test_digest_follows_the_shape_and_nothing_else():
    base = build_model(llama_config(), "a.json")
    same = build_model(llama_config(torch_dtype="bfloat16", quantization_config={"quant_method": "gptq"}), "b.json")
    spelled_out = build_model(llama_config(attention_bias=False, head_dim=None), "c.json")
    other = build_model(llama_config(intermediate_size=161), "a.json")
    assert base.digest == same.digest == spelled_out.digest != other.digest
    assert len(base.digest) == 64


def test_wrapper_and_text_config_are_the_same_model():
    text = llama_config(model_type="gemma3_text", head_dim=16)
    wrapped = build_model({"model_type": "gemma3", "text_config": text}, "config.json")
    assert wrapped == build_model(text, "config.json")


def test_granite_and_yi_are_shaped_like_llama():
    granite = build_model(llama_config(model_type="granite"), "config.json")
    assert granite.parameter_count == build_model(llama_config(), "config.json").parameter_count
    assert load_model("yi-34b").architecture == "llama"


@pytest.mark.parametrize("model_type", sorted(BUILDERS))
def test_every_builder_names_the_key_that_is_missing(model_type: str):
    with pytest.raises(InputError, match=r"^config\.json: .*nothing is given"):
        build_model({"model_type": model_type}, "config.json")


@given(
    head_dim=st.integers(1, 64),
    kv_heads=st.integers(1, 8),
    queries_per_kv=st.integers(1, 8),
    intermediate=st.integers(1, 500),
    blocks=st.integers(1, 6),
    vocabulary=st.integers(1, 1000),
    tied=st.booleans(),
    biases=st.tuples(st.booleans(), st.booleans()),
)
def test_count_equals_a_sum_over_tensors(
    head_dim: int, kv_heads: int, queries_per_kv: int, intermediate: int, blocks: int, vocabulary: int, tied: bool,
    biases: tuple[bool, bool],
):  # fmt: skip
    heads = kv_heads * queries_per_kv
    hidden = heads * head_dim
    config = llama_config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        attention_bias=biases[0],
        mlp_bias=biases[1],
    )
    tensors = [(vocabulary, hidden), (hidden,)]  # embedding, final norm
    tensors += [] if tied else [(vocabulary, hidden)]
    for _ in range(blocks):
        tensors += [(hidden,), (hidden,)]
        tensors += [(hidden, hidden), (kv_heads * head_dim, hidden), (kv_heads * head_dim, hidden), (hidden, hidden)]
        tensors += [(hidden,), (kv_heads * head_dim,), (kv_heads * head_dim,), (hidden,)] if biases[0] else []
        tensors += [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
        tensors += [(intermediate,), (intermediate,), (hidden,)] if biases[1] else []
    expected = sum(t[0] * (t[1] if len(t) == 2 else 1) for t in tensors)
    model = build_model(config, "config.json")
    assert model.parameter_count == expected
    assert model.active_parameter_count == expected
    assert model.kv_elements_per_token == blocks * 2 * kv_heads * head_dim


@given(experts=st.integers(1, 64), data=st.data())
def test_active_parameters_count_top_k_of_the_experts(experts: int, data: st.DataObject):
    top_k = data.draw(st.integers(1, experts))
    config = llama_config(model_type="mixtral", num_local_experts=experts, num_experts_per_tok=top_k)
    model = build_model(config, "config.json")
    one = 3 * 64 * 160
    assert model.parameter_count - model.active_parameter_count == 3 * (experts - top_k) * one
    assert asdict(model)["blocks"][0]["experts"]["expert_count"] == experts


def test_transformers_5_spells_the_experts_of_qwen3_otherwise():
    config = llama_config(model_type="qwen3_moe", moe_intermediate_size=32, num_experts_per_tok=2)
    old, new = (build_model(config | {key: 4}, "config.json") for key in ("num_experts", "num_local_experts"))
    assert old.blocks == new.blocks
    assert old.digest == new.digest


@pytest.mark.parametrize(("name", "kinds"), [("llama-7b", 1), ("gpt-oss-20b", 2), ("deepseek-v2-lite", 2)])
def test_equal_blocks_are_merged(name, kinds):
    model = load_model(name)

    def kind(block):
        experts = block.experts and (block.experts.matrices, block.experts.expert_count, block.experts.top_k)
        return block.attention, experts, [(layer.role, layer.n, layer.k) for layer in block.layers]

    merged = model.distinct_blocks
    assert (len(merged), merged[0][0]) == (kinds, model.blocks[0])
    every = [kind(block) for block in model.blocks]
    assert [every.count(kind(block)) for block, _ in merged] == [count for _, count in merged]
    assert sum(count for _, count in merged) == len(model.blocks)
