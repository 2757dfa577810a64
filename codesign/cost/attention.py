"""Seconds of attention over a KV cache, grouped-query and latent, prefill and decode."""

import math

import numpy as np

from codesign.cost.arrays import Amount, FloatArray, as_floats
from codesign.cost.attention_time import (
    AttentionShape,
    attention_key,
    attention_work,
    decode_seconds,
    prefill_seconds,
)
from codesign.cost.calibration import choose
from codesign.cost.cpu_attention_time import cpu_attention_seconds, is_cpu_attention_sheet
from codesign.cost.kernels import KernelPrediction, datasheet_prediction, datasheet_rates
from codesign.cost.roofline import KernelTime, OpCost
from codesign.cost.target import Target
from codesign.cost.traffic import ACTIVATION_BYTES, attended_pairs, attention_flop
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware
from codesign.model.layers import Attention, LatentAttention
from codesign.schemes.kv import KvFormat, bytes_per_token

ATTENTION_MATH_DTYPES = ("bf16", "fp16", "fp32", "int8")
CONVERT_FLOP_PER_KV_ELEMENT = 2.0
MEASURED_HEAD_DIMS = (64, 128)
MEASURED_ALIKE = {"fp16": "bf16", "fp8_e5m2": "fp8"}
SIZES = ("batch", "query_tokens", "kv_tokens", "heads", "kv_heads", "head_dim")


def attention_math_dtype(hardware: Hardware) -> str:
    """Return what the scores are multiplied in."""
    for math_dtype in ATTENTION_MATH_DTYPES:
        if math_dtype in hardware.peak_flop_per_s:
            return math_dtype
    raise CapabilityError(
        f"{hardware.name} has no rate for attention; it needs one of {', '.join(ATTENTION_MATH_DTYPES)}."
    )


def attention(target: Target, kv: KvFormat, shape: AttentionShape) -> KernelPrediction:
    """Return the time of softmax attention with grouped KV heads; one query token everywhere means decode.

    Decode reads the whole cache; prefill reads each key and value once and writes the new ones.
    """
    datasheet = _datasheet_attention(target, kv, shape)
    decode = bool(np.all(shape.query_tokens == 1))
    chosen = choose(target, "attention_decode" if decode else "attention_prefill", sheet_keys(kv, shape), _always)
    if chosen is None:
        return datasheet
    dims = shape.head_dim.astype(np.int64)
    token_bytes = as_floats(bytes_per_token(kv, 2 * dims, dims))
    work = attention_work(target.hardware, attention_math_dtype(target.hardware), shape, token_bytes)
    seconds = decode_seconds if decode else prefill_seconds
    if is_cpu_attention_sheet(chosen.constants):
        seconds = cpu_attention_seconds
    time = seconds(chosen.constants, work)
    sizes = {name: getattr(shape, name) for name in SIZES}
    form = np.shape(datasheet.predicted_s)
    compute_s, memory_s, fixed_s, predicted_s = (
        part.reshape(form) for part in (time.compute_s, time.memory_s, time.fixed_s, time.predicted_s)
    )
    low_s, high_s = chosen.interval(predicted_s, sizes)
    time_by_cause = KernelTime(compute_s, memory_s, fixed_s)
    return KernelPrediction(time_by_cause, predicted_s, low_s, high_s, chosen.origin, datasheet.load)


def sheet_keys(kv: KvFormat, shape: AttentionShape) -> list[list[str]]:
    """Return the names under which sheets may hold these kernels: of the KV format, then of others, nearest first.

    A sheet of the user's own may hold this head dimension; else those that were measured stand in, the nearest first.
    """
    typical = float(np.median(shape.head_dim))
    dims = sorted({*MEASURED_HEAD_DIMS, int(typical)}, key=lambda dim: abs(math.log(dim / typical)))
    formats = [MEASURED_ALIKE.get(kv.name, kv.name), *(["fp8"] if kv.quantized else [])]
    return [[attention_key(name, dim) for dim in dims] for name in dict.fromkeys(formats)]


def _always(_: str, __: Hardware) -> bool:
    return True


def _datasheet_attention(target: Target, kv: KvFormat, shape: AttentionShape) -> KernelPrediction:
    elements = 2.0 * shape.kv_heads * shape.head_dim
    pairs = shape.batch * attended_pairs(shape.query_tokens, shape.kv_tokens, shape.window_tokens)
    kept = (
        shape.kv_tokens
        if shape.window_tokens is None
        else np.minimum(shape.kv_tokens, shape.window_tokens + shape.query_tokens)
    )
    token_bytes = as_floats(bytes_per_token(kv, elements.astype(np.int64), shape.head_dim.astype(np.int64)))
    return _predict(
        target,
        flop=attention_flop(pairs, shape.heads, shape.head_dim, shape.head_dim),
        converted=shape.batch * kept * elements if kv.bits < 16 else np.zeros_like(pairs),
        activation_bytes=2.0 * shape.batch * shape.query_tokens * shape.heads * shape.head_dim * ACTIVATION_BYTES,
        kv_bytes=shape.batch * (kept + np.where(shape.query_tokens > 1, shape.query_tokens, 1.0)) * token_bytes,
    )


def latent_attention(
    target: Target, kv: KvFormat, latent: LatentAttention, batch: Amount, query_tokens: int, kv_tokens: Amount
) -> KernelPrediction:
    """Return the time of multi-head latent attention.

    Decode works on the compressed cache (weights absorbed into queries and outputs); prefill expands keys and values.
    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C.
    """
    heads = as_floats(-(-latent.heads // target.gpu_count))
    q, t = as_floats(query_tokens), as_floats(kv_tokens)
    pairs = batch * attended_pairs(q, t, latent.window_tokens)
    decode = query_tokens == 1
    score_dim = latent.kv_rank + latent.rope_dim if decode else latent.nope_dim + latent.rope_dim
    value_dim = latent.kv_rank if decode else latent.value_dim
    elements = latent.kv_elements_per_token
    token_bytes = as_floats(bytes_per_token(kv, elements, elements))
    return _predict(
        target,
        flop=attention_flop(pairs, heads, as_floats(score_dim), as_floats(value_dim)),
        converted=batch * t * elements if kv.bits < 16 else np.zeros_like(pairs),
        activation_bytes=batch * q * heads * (score_dim + value_dim) * ACTIVATION_BYTES,
        kv_bytes=batch * (t + q) * token_bytes,
    )


def block_attention(
    target: Target,
    kv: KvFormat,
    attention_of_block: Attention | LatentAttention,
    batch: Amount,
    query_tokens: int,
    kv_tokens: Amount,
) -> KernelPrediction:
    """Return the time of one block's attention on one device of the target; heads are divided over the devices."""
    if isinstance(attention_of_block, LatentAttention):
        return latent_attention(target, kv, attention_of_block, batch, query_tokens, kv_tokens)
    window = attention_of_block.window_tokens
    shape = AttentionShape(
        batch=as_floats(batch),
        query_tokens=as_floats(query_tokens),
        kv_tokens=as_floats(kv_tokens if window is None or query_tokens > 1 else np.minimum(kv_tokens, window)),
        heads=as_floats(-(-attention_of_block.heads // target.gpu_count)),
        kv_heads=as_floats(max(1, -(-attention_of_block.kv_heads // target.gpu_count))),
        head_dim=as_floats(attention_of_block.head_dim),
        window_tokens=None if window is None else float(window),
    )
    return attention(target, kv, shape)


def _predict(
    target: Target, *, flop: FloatArray, converted: FloatArray, activation_bytes: FloatArray, kv_bytes: FloatArray
) -> KernelPrediction:
    cost = OpCost(
        flop=flop,
        vector_flop=CONVERT_FLOP_PER_KV_ELEMENT * converted,
        weight_bytes=np.zeros_like(flop),
        activation_bytes=activation_bytes,
        kv_bytes=kv_bytes,
        launch_count=np.ones_like(flop),
    )
    return datasheet_prediction(
        "attention", cost, datasheet_rates(target.hardware, attention_math_dtype(target.hardware))
    )
