"""What must be computed: the shapes of a language model, without its weights."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

Role = Literal[
    "qkv", "q", "k", "v", "q_a", "q_b", "kv_a", "kv_b", "o",
    "gate", "up", "down", "router", "shared_gate", "shared_up", "shared_down", "shared_router",
    "embedding", "head", "projection",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight matrix, out[M, n] = x[M, k] · W; `block_index` is None outside the repeated blocks.

    `group` names the fused group (`qkv`, `o`, `gate_up`, `down`, `shared_gate_up`, ...) whose members share a scheme.
    """

    name: str
    role: Role
    n: int
    k: int
    group: str
    block_index: int | None = None
    bias: bool = False

    @property
    def weight_count(self) -> int:
        """Return the number of weights, bias excluded."""
        return self.n * self.k

    @property
    def parameter_count(self) -> int:
        """Return weights plus bias."""
        return self.weight_count + (self.n if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of one block: `expert_count` gated (3) or plain (2) MLPs, `top_k` of them per token."""

    name: str
    hidden: int
    intermediate: int
    expert_count: int
    top_k: int
    block_index: int
    gated: bool = True
    bias: bool = False

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Return the (n, k) shapes of one expert."""
        up = ((self.intermediate, self.hidden),) * (2 if self.gated else 1)
        return (*up, (self.hidden, self.intermediate))

    @property
    def weight_count_per_expert(self) -> int:
        """Return the weights of one expert, bias excluded."""
        return sum(n * k for n, k in self.matrices)

    @property
    def parameter_count(self) -> int:
        """Return weights plus biases of all experts."""
        biases = sum(n for n, _ in self.matrices) if self.bias else 0
        return self.expert_count * (self.weight_count_per_expert + biases)


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with grouped KV heads. `window_tokens` is None for full attention.

    `kv_shared` marks a block that reads the KV cache of an earlier block and stores none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int | None = None
    kv_shared: bool = False

    @property
    def kv_elements_per_token(self) -> int:
        """Return the cached elements (keys and values) per token."""
        return 0 if self.kv_shared else 2 * self.kv_heads * self.head_dim

    def context_tokens(self, tokens: float) -> float:
        """Return how many of `tokens` are attended to and kept."""
        return tokens if self.window_tokens is None else min(tokens, self.window_tokens)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): one compressed vector and one rotary key are cached per token."""

    heads: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    window_tokens: int | None = None

    @property
    def kv_elements_per_token(self) -> int:
        """Return the cached elements per token, shared by all heads."""
        return self.kv_rank + self.rope_dim

    def context_tokens(self, tokens: float) -> float:
        """Return how many of `tokens` are attended to and kept."""
        return tokens if self.window_tokens is None else min(tokens, self.window_tokens)


@dataclass(frozen=True, slots=True)
class Block:
    """One repeated block. `other_parameter_count` holds norms and other small tensors that stay in 16 bits."""

    index: int
    attention: Attention | LatentAttention
    layers: tuple[Layer, ...]
    experts: Experts | None
    other_parameter_count: int

    @property
    def parameter_count(self) -> int:
        """Return all parameters of the block."""
        experts = self.experts.parameter_count if self.experts else 0
        return sum(layer.parameter_count for layer in self.layers) + experts + self.other_parameter_count


@dataclass(frozen=True)  # no slots: equal blocks are merged once
class Model:
    """A language model as shapes. `head` exists also when its weights are tied to the embedding."""

    name: str
    architecture: str
    hidden: int
    vocabulary: int
    max_context_tokens: int
    blocks: tuple[Block, ...]
    embedding: Layer
    head: Layer
    tied_embedding: bool
    outside_layers: tuple[Layer, ...]
    other_parameter_count: int
    source: str
    digest: str

    @cached_property
    def distinct_blocks(self) -> tuple[tuple[Block, int], ...]:
        """Return a block of each shape, in order, and how many blocks have that shape."""
        first: dict[tuple[object, ...], Block] = {}
        counts: Counter[tuple[object, ...]] = Counter()
        for block in self.blocks:
            experts = None if block.experts is None else replace(block.experts, name="", block_index=0)
            key = (block.attention, experts, *((layer.role, layer.n, layer.k) for layer in block.layers))
            first.setdefault(key, block)
            counts[key] += 1
        return tuple((block, counts[key]) for key, block in first.items())

    @property
    def layers(self) -> Iterator[Layer]:
        """Yield every dense layer: the blocks' in order, then layers outside them, then the head."""
        for block in self.blocks:
            yield from block.layers
        yield from self.outside_layers
        yield self.head

    @property
    def parameter_count(self) -> int:
        """Return the total, tied weights counted once."""
        head = 0 if self.tied_embedding else self.head.parameter_count
        outside = sum(layer.parameter_count for layer in self.outside_layers)
        blocks = sum(block.parameter_count for block in self.blocks)
        return self.embedding.parameter_count + blocks + outside + head + self.other_parameter_count

    @property
    def active_parameter_count(self) -> int:
        """Return the parameters used for one token: `top_k` experts instead of all."""
        idle = sum(
            block.experts.parameter_count * (1 - block.experts.top_k / block.experts.expert_count)
            for block in self.blocks
            if block.experts
        )
        return round(self.parameter_count - idle)

    @property
    def kv_elements_per_token(self) -> int:
        """Return the cached elements per token over all blocks, windows ignored."""
        return sum(block.attention.kv_elements_per_token for block in self.blocks)
