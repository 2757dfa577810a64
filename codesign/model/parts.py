"""What the families share: sizes, heads, layers and the finished model.

Layers are named after the modules of the Hugging Face causal language model, such as
`model.layers.0.self_attn.q_proj`. A weight that the checkpoint stores fused is one layer of role `qkv`, or, where
roles differ, one layer per part with the part as suffix: `...mlp.gate_up_proj.gate` and `...mlp.gate_up_proj.up`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from codesign.errors import InputError
from codesign.model.config import BLOCKS_MAX, CONTEXT_MAX, HIDDEN_MAX, VOCABULARY_MAX, Config, Key
from codesign.model.layers import Attention, Block, Experts, Layer, Model, Role

PARAMETERS_MAX = 10**15
HIDDEN_KEYS: Key = ("hidden_size", "n_embd", "n_embed")
BLOCK_KEYS: Key = ("num_hidden_layers", "n_layer")
HEAD_KEYS: Key = ("num_attention_heads", "n_head")
CONTEXT_KEYS: Key = ("max_position_embeddings", "n_positions", "seq_length")
GROUPS: dict[Role, str] = {
    "q": "qkv",
    "k": "qkv",
    "v": "qkv",
    "q_a": "qkv_a",
    "kv_a": "qkv_a",
    "gate": "gate_up",
    "up": "gate_up",
    "shared_gate": "shared_gate_up",
    "shared_up": "shared_gate_up",
}


@dataclass(frozen=True, slots=True)
class Size:
    """The numbers that every model has."""

    hidden: int
    vocabulary: int
    block_count: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads; `bias` is that of q, k and v, `output_bias` that of the output projection."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    output_bias: bool = False

    @property
    def q_width(self) -> int:
        """Return the output features of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Return the output features of the key or the value projection."""
        return self.kv_heads * self.head_dim

    def attention(self, window_tokens: int | None = None) -> Attention:
        """Return the attention of a block with this window."""
        return Attention(self.heads, self.kv_heads, self.head_dim, window_tokens)


@dataclass(frozen=True, slots=True)
class Place:
    """Block `index` of the module list `path`, where layers get their names."""

    path: str
    index: int

    def name(self, module: str) -> str:
        """Return the full name of a module of the block."""
        return f"{self.path}.{self.index}.{module}"

    def layer(self, module: str, role: Role, shape: tuple[int, int], *, bias: bool = False, group: str = "") -> Layer:
        """Return a layer of shape (n, k); the group follows from the role unless given."""
        n, k = shape
        return Layer(self.name(module), role, n, k, group or GROUPS.get(role, role), self.index, bias)


@dataclass(frozen=True, slots=True)
class Mlp:
    """What follows attention in a block: dense layers, routed experts, and small tensors outside both."""

    layers: tuple[Layer, ...]
    experts: Experts | None = None
    other_parameter_count: int = 0


@dataclass(frozen=True, slots=True)
class Outside:
    """What lies outside the blocks; `embedding_width` differs from the hidden size where projections lie between."""

    embedding: str
    head: str
    tied: bool
    other_parameter_count: int
    head_bias: bool = False
    embedding_width: int | None = None
    layers: tuple[Layer, ...] = ()


def read_size(config: Config, *, context_default: int | None = None, vocabulary_default: int | None = None) -> Size:
    """Return the sizes of a config; without a default the key must be given."""
    block_count = config.integer(BLOCK_KEYS, BLOCKS_MAX)
    config.layer_types(block_count)  # checked also where a family has no windows
    return Size(
        hidden=config.integer(HIDDEN_KEYS, HIDDEN_MAX),
        vocabulary=config.integer("vocab_size", VOCABULARY_MAX, vocabulary_default),
        block_count=block_count,
        max_context_tokens=config.integer(CONTEXT_KEYS, CONTEXT_MAX, context_default),
    )


def divided_head_dim(config: Config, hidden: int, heads: int) -> int:
    """Return the head dimension of heads that share the hidden size evenly."""
    if hidden % heads:
        config.refuse(HEAD_KEYS, f"{heads} is given; a divisor of the hidden size {hidden} is allowed.")
    return hidden // heads


def check_kv_heads(config: Config, key: Key, kv_heads: int, heads: int) -> None:
    """Refuse KV heads that do not divide the heads."""
    if heads % kv_heads:
        config.refuse(key, f"{kv_heads} is given; a divisor of the {heads} attention heads is allowed.")


def read_equal_heads(config: Config, hidden: int, *, bias: bool) -> Heads:
    """Return the heads of multi-head attention, with or without biases everywhere."""
    heads = config.integer(HEAD_KEYS, HIDDEN_MAX)
    return Heads(heads, heads, divided_head_dim(config, hidden, heads), bias, bias)


def split_attention(place: Place, hidden: int, heads: Heads, output: str = "o_proj") -> tuple[Layer, ...]:
    """Return the four projections of attention, stored apart."""
    return (
        place.layer("self_attn.q_proj", "q", (heads.q_width, hidden), bias=heads.bias),
        place.layer("self_attn.k_proj", "k", (heads.kv_width, hidden), bias=heads.bias),
        place.layer("self_attn.v_proj", "v", (heads.kv_width, hidden), bias=heads.bias),
        place.layer(f"self_attn.{output}", "o", (hidden, heads.q_width), bias=heads.output_bias),
    )


def fused_attention(place: Place, hidden: int, heads: Heads, modules: tuple[str, str]) -> tuple[Layer, ...]:
    """Return the two projections of attention whose queries, keys and values are stored as one weight."""
    width = heads.q_width + 2 * heads.kv_width
    return (
        place.layer(modules[0], "qkv", (width, hidden), bias=heads.bias),
        place.layer(modules[1], "o", (hidden, heads.q_width), bias=heads.output_bias),
    )


def gated_mlp(place: Place, hidden: int, intermediate: int, *, bias: bool = False) -> tuple[Layer, ...]:
    """Return the three layers of a gated MLP."""
    return (
        place.layer("mlp.gate_proj", "gate", (intermediate, hidden), bias=bias),
        place.layer("mlp.up_proj", "up", (intermediate, hidden), bias=bias),
        place.layer("mlp.down_proj", "down", (hidden, intermediate), bias=bias),
    )


def plain_mlp(
    place: Place, hidden: int, intermediate: int, modules: tuple[str, str], *, bias: bool = True
) -> tuple[Layer, ...]:
    """Return the two layers of an MLP without a gate."""
    return (
        place.layer(modules[0], "up", (intermediate, hidden), bias=bias),
        place.layer(modules[1], "down", (hidden, intermediate), bias=bias),
    )


def finish(config: Config, size: Size, blocks: Iterable[Block], outside: Outside) -> Model:
    """Return the model, named after its architecture until its origin names it; refuses an absurd total."""
    width = outside.embedding_width or size.hidden
    model = Model(
        name=config.architecture,
        architecture=config.architecture,
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        max_context_tokens=size.max_context_tokens,
        blocks=tuple(blocks),
        embedding=Layer(outside.embedding, "embedding", size.vocabulary, width, "embedding"),
        head=Layer(outside.head, "head", size.vocabulary, width, "head", bias=outside.head_bias),
        tied_embedding=outside.tied,
        outside_layers=outside.layers,
        other_parameter_count=outside.other_parameter_count,
        source=config.where,
        digest=config.digest,
    )
    if model.parameter_count > PARAMETERS_MAX:
        raise InputError(
            f"{config.where}: its sizes make {model.parameter_count:.3g} parameters; at most 10^15 are allowed."
        )
    return model
