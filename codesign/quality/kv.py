"""What a quantized KV cache loses, by the published prior; it depends on the size of the model."""

from codesign.model.layers import Model
from codesign.quality.estimate import NO_LOSS, LossEstimate, LossOrigin, Unknown
from codesign.quality.factors import load_factors
from codesign.schemes.kv import KvFormat, parse_kv

# 4-bit caches turned a perplexity of 13.5 into 47.8 at 0.6B and 7.23 into 7.38 at 8B (ik_llama.cpp issue 1509).
_FOUR_BIT_PARAMETERS_MIN = 2e9
# One mantissa bit less is four times the damage (quadratic error law).
_E5M2_OVER_E4M3 = 4.0

# E4M3 has one scale per tensor, like the static 8-bit caches of the published tables.
_KINDS = {"fp8": "static8", "fp8_e5m2": "static8", "int8": "int8", "q8_0": "int8", "int4": "int4", "q4_0": "int4"}


def kv_loss(model: Model, kv: KvFormat | str) -> LossEstimate | Unknown:
    """Return the loss of a KV format on a model; intervals are wide, the tables hold few cells."""
    format_ = parse_kv(kv) if isinstance(kv, str) else kv
    if not format_.quantized:
        return NO_LOSS
    factors, parameters = load_factors().kv, float(model.parameter_count)
    kind = _KINDS[format_.name]
    if kind == "int4" and parameters < _FOUR_BIT_PARAMETERS_MIN:
        return Unknown("4-bit KV caches collapse on some models below 2 billion parameters")
    value = factors.loss_nats[kind] * (parameters / factors.reference_parameters) ** factors.exponent
    if format_.name == "fp8_e5m2":
        value *= _E5M2_OVER_E4M3
    evidence = f"{factors.cells[kind]} published cells of KV caches alike, scaled to the parameters of the model"
    low, high = value / factors.factor_80, value * factors.factor_80 + load_factors().resolution_nats
    return LossEstimate(value, low, high, LossOrigin.PRIOR, evidence=evidence)
