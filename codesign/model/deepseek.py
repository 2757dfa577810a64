"""DeepSeek-V2, V3 and R1: multi-head latent attention. Weights for multi-token prediction (V3) are not counted."""

from dataclasses import dataclass

from codesign.model.config import HIDDEN_MAX, Config
from codesign.model.experts import deepseek_mlp
from codesign.model.layers import Block, LatentAttention, Layer, Model
from codesign.model.parts import HEAD_KEYS, Outside, Place, finish, read_size


@dataclass(frozen=True, slots=True)
class LatentShape:
    """The ranks of latent attention; queries are not compressed where `q_rank` is None."""

    attention: LatentAttention
    q_rank: int | None
    bias: bool

    @property
    def norm_parameter_count(self) -> int:
        """Return the weights of the norms on the compressed vectors."""
        return self.attention.kv_rank + (self.q_rank or 0)

    def layers(self, place: Place, hidden: int) -> tuple[Layer, ...]:
        """Return the projections of a block; the two that share its input come first."""
        shape = self.attention
        q_width = shape.heads * (shape.nope_dim + shape.rope_dim)
        kv_width = shape.heads * (shape.nope_dim + shape.value_dim)
        if self.q_rank is None:
            queries = [place.layer("self_attn.q_proj", "q", (q_width, hidden), group="q_b")]
        else:
            queries = [
                place.layer("self_attn.q_a_proj", "q_a", (self.q_rank, hidden), bias=self.bias),
                place.layer("self_attn.q_b_proj", "q_b", (q_width, self.q_rank)),
            ]
        compressed = (shape.kv_rank + shape.rope_dim, hidden)
        return (
            *queries,
            place.layer("self_attn.kv_a_proj_with_mqa", "kv_a", compressed, bias=self.bias),
            place.layer("self_attn.kv_b_proj", "kv_b", (kv_width, shape.kv_rank)),
            place.layer("self_attn.o_proj", "o", (hidden, shape.heads * shape.value_dim), bias=self.bias),
        )


def build_deepseek(config: Config) -> Model:
    """Return a DeepSeek model without its multi-token prediction block."""
    size = read_size(config)
    shape = _read_latent(config)
    make_mlp = deepseek_mlp(config, size.hidden)

    def block(index: int) -> Block:
        place = Place("model.layers", index)
        mlp = make_mlp(place)
        small = 2 * size.hidden + shape.norm_parameter_count + mlp.other_parameter_count
        return Block(index, shape.attention, (*shape.layers(place, size.hidden), *mlp.layers), mlp.experts, small)

    tied = config.boolean("tie_word_embeddings", False)
    outside = Outside("model.embed_tokens", "lm_head", tied, size.hidden)
    return finish(config, size, map(block, range(size.block_count)), outside)


def _read_latent(config: Config) -> LatentShape:
    attention = LatentAttention(
        heads=config.integer(HEAD_KEYS, HIDDEN_MAX),
        kv_rank=config.integer("kv_lora_rank", HIDDEN_MAX),
        rope_dim=config.integer("qk_rope_head_dim", HIDDEN_MAX),
        nope_dim=config.integer("qk_nope_head_dim", HIDDEN_MAX),
        value_dim=config.integer("v_head_dim", HIDDEN_MAX),
    )
    q_rank = config.optional_integer("q_lora_rank", HIDDEN_MAX)
    return LatentShape(attention, q_rank, config.boolean("attention_bias", False))
