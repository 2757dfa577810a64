"""Families with layer norms that have biases: GPT-2, OPT, BLOOM, GPT-NeoX, Falcon, Phi, StableLM."""

from codesign.model.config import HIDDEN_MAX, INTERMEDIATE_MAX, Config
from codesign.model.layers import Block, Layer, Model
from codesign.model.parts import (
    HEAD_KEYS,
    Heads,
    Outside,
    Place,
    check_kv_heads,
    divided_head_dim,
    finish,
    fused_attention,
    gated_mlp,
    plain_mlp,
    read_equal_heads,
    read_size,
    split_attention,
)

OPT_POSITION_OFFSET = (
    2  # OPT's table of positions starts with two unused rows (Hugging Face OPTLearnedPositionalEmbedding)
)


def build_gpt2(config: Config) -> Model:
    """Return GPT-2."""
    size = read_size(config)
    hidden = size.hidden
    heads = read_equal_heads(config, hidden, bias=True)
    intermediate = config.integer("n_inner", INTERMEDIATE_MAX, 4 * hidden)

    def block(index: int) -> Block:
        place = Place("transformer.h", index)
        attention = fused_attention(place, hidden, heads, ("attn.c_attn", "attn.c_proj"))
        mlp = plain_mlp(place, hidden, intermediate, ("mlp.c_fc", "mlp.c_proj"))
        return Block(index, heads.attention(), (*attention, *mlp), None, 4 * hidden)

    tied = config.boolean("tie_word_embeddings", True)
    small = size.max_context_tokens * hidden + 2 * hidden
    outside = Outside("transformer.wte", "lm_head", tied, small)
    return finish(config, size, map(block, range(size.block_count)), outside)


def build_opt(config: Config) -> Model:
    """Return OPT; the 350M model embeds in fewer dimensions than it computes in."""
    size = read_size(config)
    hidden = size.hidden
    bias = config.boolean("enable_bias", True)
    heads = read_equal_heads(config, hidden, bias=bias)
    intermediate = config.integer("ffn_dim", INTERMEDIATE_MAX)
    norm = 2 * hidden if config.boolean("layer_norm_elementwise_affine", True) else 0

    def block(index: int) -> Block:
        place = Place("model.decoder.layers", index)
        attention = split_attention(place, hidden, heads, "out_proj")
        mlp = plain_mlp(place, hidden, intermediate, ("fc1", "fc2"), bias=bias)
        return Block(index, heads.attention(), (*attention, *mlp), None, 2 * norm)

    width = config.integer("word_embed_proj_dim", HIDDEN_MAX, hidden)
    final_norm = config.boolean("do_layer_norm_before", True) and not config.boolean("_remove_final_layer_norm", False)
    outside = Outside(
        embedding="model.decoder.embed_tokens",
        head="lm_head",
        tied=config.boolean("tie_word_embeddings", True),
        other_parameter_count=(size.max_context_tokens + OPT_POSITION_OFFSET) * hidden + (norm if final_norm else 0),
        embedding_width=width,
        layers=() if width == hidden else _opt_projections(hidden, width),
    )
    return finish(config, size, map(block, range(size.block_count)), outside)


def _opt_projections(hidden: int, width: int) -> tuple[Layer, ...]:
    return (
        Layer("model.decoder.project_in", "projection", hidden, width, "project_in"),
        Layer("model.decoder.project_out", "projection", width, hidden, "project_out"),
    )


def build_bloom(config: Config) -> Model:
    """Return BLOOM, which has no positions (ALiBi); its context is the length it was trained at."""
    size = read_size(config, context_default=2048)
    hidden = size.hidden
    heads = read_equal_heads(config, hidden, bias=True)

    def block(index: int) -> Block:
        place = Place("transformer.h", index)
        attention = fused_attention(place, hidden, heads, ("self_attention.query_key_value", "self_attention.dense"))
        mlp = plain_mlp(place, hidden, 4 * hidden, ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"))
        return Block(index, heads.attention(), (*attention, *mlp), None, 4 * hidden)

    tied = config.boolean("tie_word_embeddings", True)
    outside = Outside("transformer.word_embeddings", "lm_head", tied, 4 * hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)


def build_gpt_neox(config: Config) -> Model:
    """Return GPT-NeoX and Pythia."""
    size = read_size(config)
    hidden = size.hidden
    heads = read_equal_heads(config, hidden, bias=config.boolean("attention_bias", True))
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)

    def block(index: int) -> Block:
        place = Place("gpt_neox.layers", index)
        attention = fused_attention(place, hidden, heads, ("attention.query_key_value", "attention.dense"))
        mlp = plain_mlp(place, hidden, intermediate, ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"))
        return Block(index, heads.attention(), (*attention, *mlp), None, 4 * hidden)

    tied = config.boolean("tie_word_embeddings", False)
    outside = Outside("gpt_neox.embed_in", "embed_out", tied, 2 * hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)


def build_falcon(config: Config) -> Model:
    """Return Falcon of either decoder; the original releases call themselves RefinedWeb(Model)."""
    size = read_size(config, context_default=2048)
    hidden = size.hidden
    new_decoder = config.boolean("new_decoder_architecture", config.architecture == "RefinedWeb")
    bias = config.boolean("bias", False)
    heads = _falcon_heads(config, hidden, new_decoder=new_decoder, bias=bias)
    intermediate = config.integer("ffn_hidden_size", INTERMEDIATE_MAX, 4 * hidden)
    norm_count = config.integer("num_ln_in_parallel_attn", 2, 2 if new_decoder else 1)
    if not config.boolean("parallel_attn", True):
        norm_count = 2

    def block(index: int) -> Block:
        place = Place("transformer.h", index)
        attention = fused_attention(place, hidden, heads, ("self_attention.query_key_value", "self_attention.dense"))
        mlp = plain_mlp(place, hidden, intermediate, ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), bias=bias)
        return Block(index, heads.attention(), (*attention, *mlp), None, norm_count * 2 * hidden)

    tied = config.boolean("tie_word_embeddings", True)
    outside = Outside("transformer.word_embeddings", "lm_head", tied, 2 * hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)


def _falcon_heads(config: Config, hidden: int, *, new_decoder: bool, bias: bool) -> Heads:
    heads = config.integer(HEAD_KEYS, HIDDEN_MAX)
    head_dim = divided_head_dim(config, hidden, heads)
    if config.boolean("multi_query", True) and not new_decoder:
        return Heads(heads, 1, head_dim, bias, bias)
    kv_heads = config.integer(("num_kv_heads", "n_head_kv"), HIDDEN_MAX, heads)
    check_kv_heads(config, ("num_kv_heads", "n_head_kv"), kv_heads, heads)
    return Heads(heads, kv_heads, head_dim, bias, bias)


def build_phi(config: Config) -> Model:
    """Return Phi-1, Phi-1.5 and Phi-2."""
    size = read_size(config)
    hidden = size.hidden
    heads = _divided_heads(config, hidden, bias=True, output_bias=True)
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)
    qk_norm = 4 * heads.head_dim if config.boolean("qk_layernorm", False) else 0

    def block(index: int) -> Block:
        place = Place("model.layers", index)
        mlp = plain_mlp(place, hidden, intermediate, ("mlp.fc1", "mlp.fc2"))
        layers = (*split_attention(place, hidden, heads, "dense"), *mlp)
        return Block(index, heads.attention(), layers, None, 2 * hidden + qk_norm)

    tied = config.boolean("tie_word_embeddings", False)
    outside = Outside("model.embed_tokens", "lm_head", tied, 2 * hidden, head_bias=True)
    return finish(config, size, map(block, range(size.block_count)), outside)


def build_stablelm(config: Config) -> Model:
    """Return StableLM."""
    size = read_size(config)
    hidden = size.hidden
    bias = config.boolean("use_qkv_bias", False)
    heads = _divided_heads(config, hidden, bias=bias, output_bias=False)
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)
    norm_count = 1 if config.boolean("use_parallel_residual", False) else 2
    qk_norm = heads.q_width + heads.kv_width if config.boolean("qk_layernorm", False) else 0

    def block(index: int) -> Block:
        place = Place("model.layers", index)
        layers = (*split_attention(place, hidden, heads), *gated_mlp(place, hidden, intermediate))
        return Block(index, heads.attention(), layers, None, norm_count * 2 * hidden + qk_norm)

    tied = config.boolean("tie_word_embeddings", False)
    outside = Outside("model.embed_tokens", "lm_head", tied, 2 * hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)


def _divided_heads(config: Config, hidden: int, *, bias: bool, output_bias: bool) -> Heads:
    heads = config.integer(HEAD_KEYS, HIDDEN_MAX)
    kv_heads = config.integer("num_key_value_heads", HIDDEN_MAX, heads)
    check_kv_heads(config, "num_key_value_heads", kv_heads, heads)
    return Heads(heads, kv_heads, divided_head_dim(config, hidden, heads), bias, output_bias)
