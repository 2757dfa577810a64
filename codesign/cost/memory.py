"""Bytes that a deployment needs: weights, KV cache, activations, runtime; and how far the rest reaches."""

from collections.abc import Sequence
from dataclasses import dataclass

from codesign.cost.traffic import ACTIVATION_BYTES
from codesign.cost.workload import Workload
from codesign.hardware.hardware import Hardware
from codesign.model.groups import FusedGroup
from codesign.model.layers import Model
from codesign.schemes.kv import KvFormat, bytes_per_token
from codesign.schemes.scheme import Scheme
from codesign.schemes.storage import weight_bytes

# Prompt tokens that an engine runs in one pass; vLLM's default for max_num_batched_tokens (documentation, v0.8+).
PREFILL_CHUNK_TOKENS = 8192
# Context, libraries, captured graphs and allocator slack beside the tensors: assumed, in the range that NVIDIA's
# management tool shows for an idle process (0.3-0.6 GiB) plus captured graphs; a CPU process needs far less.
RUNTIME_OVERHEAD_BYTES = {"gpu": 0.8 * 2**30, "cpu": 0.15 * 2**30, "npu": 0.0}
CONTEXT_SEARCH_LIMIT = 2**24


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes over all devices of one replica."""

    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    overhead_bytes: float

    @property
    def total_bytes(self) -> float:
        """Return everything together."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes


def group_bytes(group: FusedGroup, scheme: Scheme) -> int:
    """Return the stored bytes of a group, biases in 16 bits included."""
    if group.experts is not None:
        experts = group.experts
        one = sum(int(weight_bytes(scheme, n, k)) for n, k in experts.matrices)
        biases = sum(n for n, _ in experts.matrices) * 2 if experts.bias else 0
        return experts.expert_count * (one + biases)
    biases = sum(layer.n * 2 for layer in group.layers if layer.bias)
    return sum(int(weight_bytes(scheme, layer.n, layer.k)) for layer in group.layers) + biases


def fixed_weight_bytes(model: Model) -> int:
    """Return the bytes that no plan changes: norms, positions and other small tensors in 16 bits."""
    blocks = sum(block.other_parameter_count for block in model.blocks)
    return 2 * (blocks + model.other_parameter_count)


def embedding_bytes(model: Model, scheme: Scheme) -> int:
    """Return the bytes of the input embedding; 0 when it is tied to the head, which is counted as a group."""
    return 0 if model.tied_embedding else int(weight_bytes(scheme, model.embedding.n, model.embedding.k))


def kv_bytes(model: Model, kv: KvFormat, batch: float, context_tokens: float) -> float:
    """Return the bytes of the cache for `batch` sequences of `context_tokens`; windows keep no more than themselves."""
    per_sequence = 0.0
    for block in model.blocks:
        attention = block.attention
        head_dim = getattr(attention, "head_dim", attention.kv_elements_per_token)
        per_token = bytes_per_token(kv, attention.kv_elements_per_token, head_dim)
        per_sequence += float(per_token) * attention.context_tokens(context_tokens)
    return batch * per_sequence


def activation_bytes(model: Model, workload: Workload) -> float:
    """Return the peak bytes of one pass: residual, widest intermediate and the logits in fp32.

    Assumes chunks of at most 8,192 prompt tokens and buffers that live for one layer only.
    """
    tokens = max(workload.batch, min(workload.batch * workload.prompt_tokens, PREFILL_CHUNK_TOKENS))
    widest = max(sum(layer.n for layer in block.layers if layer.group == name) for block in model.blocks
                 for name in {layer.group for layer in block.layers})  # fmt: skip
    routed = max((b.experts.top_k * b.experts.intermediate * 2 for b in model.blocks if b.experts), default=0)
    hidden_states = 2.0 * tokens * model.hidden * ACTIVATION_BYTES
    return hidden_states + tokens * max(widest, routed) * ACTIVATION_BYTES + workload.batch * model.vocabulary * 4.0


def memory_need(
    model: Model, weights_bytes: float, kv: KvFormat, workload: Workload, hardware: Hardware, gpu_count: int
) -> MemoryNeed:
    """Return the need of one replica at the end of the workload's generation."""
    return MemoryNeed(
        weight_bytes=weights_bytes,
        kv_bytes=kv_bytes(model, kv, workload.batch, workload.final_context_tokens),
        activation_bytes=activation_bytes(model, workload),
        overhead_bytes=RUNTIME_OVERHEAD_BYTES[hardware.kind] * gpu_count,
    )


def total_weight_bytes(model: Model, groups: Sequence[FusedGroup], schemes: Sequence[Scheme], embedding: Scheme) -> int:
    """Return all stored weights under one scheme per group."""
    planned = sum(group_bytes(group, scheme) for group, scheme in zip(groups, schemes, strict=True))
    return planned + fixed_weight_bytes(model) + embedding_bytes(model, embedding)


def largest_batch(model: Model, kv: KvFormat, free_bytes: float, context_tokens: int) -> int:
    """Return how many sequences of `context_tokens` fit into `free_bytes` of cache."""
    one = kv_bytes(model, kv, 1, context_tokens)
    return max(0, int(free_bytes // one)) if one > 0 else 0


def largest_context(model: Model, kv: KvFormat, free_bytes: float, batch: int) -> int:
    """Return the longest context, up to the model's own limit, that `batch` sequences can hold in `free_bytes`."""
    low, high = 0, min(model.max_context_tokens, CONTEXT_SEARCH_LIMIT)
    while low < high:
        middle = (low + high + 1) // 2
        if kv_bytes(model, kv, batch, middle) <= free_bytes:
            low = middle
        else:
            high = middle - 1
    return low
