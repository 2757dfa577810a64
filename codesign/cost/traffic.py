"""Flop and bytes of each operation: one quantity, one function, on numbers or arrays.

Flop counts multiply and add as 2 (also for integers). Activations enter and leave in 16 bits.
"""

from types import MappingProxyType

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats

ACTIVATION_BYTES = 2.0
WEIGHTS_PER_DEQUANTIZED_TILE_ROWS = 128.0
DEQUANTIZE_FLOP_PER_WEIGHT = 2.0
RESCALE_FLOP_PER_BLOCK = 4.0


def gemm_flop(m: FloatArray, n: FloatArray, k: FloatArray) -> FloatArray:
    """Return the flop of out[m, n] = x[m, k] · W: 2 m n k. Source: definition."""
    return 2.0 * m * n * k


def gemm_activation_bytes(m: FloatArray, n: FloatArray, k: FloatArray, a_bits: float) -> FloatArray:
    """Return the bytes of reading x[m, k] at `a_bits` and writing out[m, n] in 16 bits. Source: definition."""
    return m * k * a_bits / 8 + m * n * ACTIVATION_BYTES


def quantize_activation_bytes(m: FloatArray, k: FloatArray, a_bits: float) -> FloatArray:
    """Return the bytes of the pass that reads x[m, k] in 16 bits and writes it in `a_bits`. Source: definition."""
    return m * k * (ACTIVATION_BYTES + a_bits / 8)


def dequantize_flop(m: FloatArray, n: FloatArray, k: FloatArray) -> FloatArray:
    """Return the vector flop of converting stored weights, once per tile of 128 rows of activations.

    One multiply and one add per weight; a GEMM kernel converts a weight tile again for each row tile that uses it.
    Source: the structure of Marlin (arXiv 2408.11743, section 3); the tile height is an assumption.
    """
    return DEQUANTIZE_FLOP_PER_WEIGHT * n * k * np.ceil(m / WEIGHTS_PER_DEQUANTIZED_TILE_ROWS)


def rescale_flop(m: FloatArray, n: FloatArray, k: FloatArray, block: float) -> FloatArray:
    """Return the vector flop of formats with scales along k: each result is converted, scaled and added per block.

    A conversion, the product of two scales, a multiply and an add per result and block of k.
    Source: the structure of ggml's quantized kernels (ggml-cuda/mmq.cuh) and of DeepSeek-V3 (arXiv 2412.19437, 3.3.2).
    """
    return RESCALE_FLOP_PER_BLOCK * m * n * k / block


def attended_pairs(query_tokens: FloatArray, kv_tokens: FloatArray, window_tokens: float | None = None) -> FloatArray:
    """Return the (query, key) pairs of causal attention; the last query sees all `kv_tokens`.

    Query i of q sees kv - q + i keys (i = 1..q), at most the window. Source: definition of causal attention.
    """
    full = query_tokens * (kv_tokens - query_tokens) + query_tokens * (query_tokens + 1) / 2
    if window_tokens is None:
        return full
    first_seen = kv_tokens - query_tokens + 1
    growing = np.clip(window_tokens - first_seen, 0, query_tokens)
    return growing * (first_seen + (growing - 1) / 2) + (query_tokens - growing) * np.minimum(window_tokens, kv_tokens)


def attention_flop(pairs: FloatArray, heads: FloatArray, score_dim: FloatArray, value_dim: FloatArray) -> FloatArray:
    """Return the flop of scores and weighted values: 2 pairs heads (score_dim + value_dim).

    Source: FlashAttention (arXiv 2205.14135), section 3.
    """
    return 2.0 * pairs * heads * (score_dim + value_dim)


def expected_experts_hit(tokens: FloatArray, experts: FloatArray, top_k: FloatArray) -> FloatArray:
    """Return how many of `experts` at least one of `tokens` is routed to, choices independent and equally likely.

    E (1 - (1 - top_k / E)^tokens). Source: expectation of the number of distinct coupons.
    """
    return as_floats(experts * -np.expm1(tokens * np.log1p(-np.minimum(top_k / experts, 1.0 - 1e-12))))


# How often a message crosses the link: all-reduce is a reduce-scatter and an all-gather.
WIRE_PASSES = MappingProxyType({"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0})


def wire_bytes(operation: str, gpu_count: FloatArray, message_bytes: FloatArray) -> FloatArray:
    """Return the bytes that each device sends: (g - 1) / g of the message per pass.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009.
    """
    return WIRE_PASSES[operation] * (gpu_count - 1.0) / gpu_count * message_bytes
