"""Mixtures of experts: router, routed experts and shared experts of each family."""

from collections.abc import Callable

from codesign.model.config import BLOCKS_MAX, EXPERTS_MAX, INTERMEDIATE_MAX, Config, Key
from codesign.model.layers import Experts, Layer
from codesign.model.parts import Mlp, Place, gated_mlp

MlpMaker = Callable[[Place], Mlp]


def dense_mlp(config: Config, hidden: int) -> MlpMaker:
    """Return the gated MLP of Llama and its kin."""
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)
    bias = config.boolean("mlp_bias", False)
    return lambda place: Mlp(gated_mlp(place, hidden, intermediate, bias=bias))


def read_expert_count(config: Config, count_key: Key, top_k_key: Key = "num_experts_per_tok") -> tuple[int, int]:
    """Return (experts, experts per token)."""
    count = config.integer(count_key, EXPERTS_MAX)
    top_k = config.integer(top_k_key, EXPERTS_MAX)
    if top_k > count:
        config.refuse(top_k_key, f"{top_k} is given; at most the {count} experts there are is allowed.")
    return count, top_k


def mixtral_mlp(config: Config, hidden: int) -> MlpMaker:
    """Return the experts of Mixtral."""
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)
    count, top_k = read_expert_count(config, "num_local_experts")

    def make(place: Place) -> Mlp:
        router = place.layer("block_sparse_moe.gate", "router", (count, hidden))
        name = place.name("block_sparse_moe.experts")
        return Mlp((router,), Experts(name, hidden, intermediate, count, top_k, place.index))

    return make


def gpt_oss_mlp(config: Config, hidden: int) -> MlpMaker:
    """Return the experts of gpt-oss, which have biases, as their router has."""
    intermediate = config.integer("intermediate_size", INTERMEDIATE_MAX)
    count, top_k = read_expert_count(config, "num_local_experts", ("num_experts_per_tok", "experts_per_token"))

    def make(place: Place) -> Mlp:
        router = place.layer("mlp.router", "router", (count, hidden), bias=True)
        return Mlp(
            (router,), Experts(place.name("mlp.experts"), hidden, intermediate, count, top_k, place.index, bias=True)
        )

    return make


def qwen_mlp(config: Config, hidden: int) -> MlpMaker:
    """Return the experts of Qwen MoE models; blocks that the config names, or that its step skips, are dense.

    Qwen2 has one shared expert behind a gate of its own; Qwen3 has none.
    """
    dense = dense_mlp(config, hidden)
    # Transformers 5 saves Qwen3 MoE with the second spelling (models/qwen3_moe/configuration_qwen3_moe.py).
    count, top_k = read_expert_count(config, ("num_experts", "num_local_experts"))
    intermediate = config.integer("moe_intermediate_size", INTERMEDIATE_MAX)
    step = config.integer("decoder_sparse_step", BLOCKS_MAX, 1)
    dense_blocks = set(config.integers("mlp_only_layers", BLOCKS_MAX, BLOCKS_MAX))
    shared_width = 0
    if config.architecture == "qwen2_moe":
        shared_width = config.integer("shared_expert_intermediate_size", INTERMEDIATE_MAX)

    def make(place: Place) -> Mlp:
        if place.index in dense_blocks or (place.index + 1) % step:
            return dense(place)
        layers = [place.layer("mlp.gate", "router", (count, hidden))]
        if shared_width:
            layers += shared_mlp(place, "mlp.shared_expert", hidden, shared_width)
            layers.append(place.layer("mlp.shared_expert_gate", "shared_router", (1, hidden)))
        return Mlp(tuple(layers), Experts(place.name("mlp.experts"), hidden, intermediate, count, top_k, place.index))

    return make


def deepseek_mlp(config: Config, hidden: int) -> MlpMaker:
    """Return the experts of DeepSeek: the first blocks are dense, the rest has routed and shared experts.

    The router's correction bias (V3) is counted beside the layers.
    """
    dense = dense_mlp(config, hidden)
    if config.optional_integer("n_routed_experts", EXPERTS_MAX) is None:
        return dense
    count, top_k = read_expert_count(config, "n_routed_experts")
    intermediate = config.integer("moe_intermediate_size", INTERMEDIATE_MAX)
    shared_count = config.optional_integer("n_shared_experts", EXPERTS_MAX, 0, low=0) or 0
    first_sparse = config.integer("first_k_dense_replace", BLOCKS_MAX, low=0)
    step = config.integer("moe_layer_freq", BLOCKS_MAX, 1)
    correction = count if config.architecture == "deepseek_v3" else 0

    def make(place: Place) -> Mlp:
        if place.index < first_sparse or place.index % step:
            return dense(place)
        layers = [place.layer("mlp.gate", "router", (count, hidden))]
        if shared_count:
            layers += shared_mlp(place, "mlp.shared_experts", hidden, shared_count * intermediate)
        experts = Experts(place.name("mlp.experts"), hidden, intermediate, count, top_k, place.index)
        return Mlp(tuple(layers), experts, correction)

    return make


def shared_mlp(place: Place, module: str, hidden: int, intermediate: int) -> list[Layer]:
    """Return the gated MLP that every token visits beside its routed experts."""
    return [
        place.layer(f"{module}.gate_proj", "shared_gate", (intermediate, hidden)),
        place.layer(f"{module}.up_proj", "shared_up", (intermediate, hidden)),
        place.layer(f"{module}.down_proj", "shared_down", (hidden, intermediate)),
    ]
