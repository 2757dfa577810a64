"""Schemes whose loss on one model says nothing about another: the prior answers only for models that were measured."""

from codesign.schemes.scheme import PerChannel, Scheme

_LEAST_BITS = 2.5
_ROTATIONS = ("quarot", "spinquant", "atom")


def risk(scheme: Scheme, method: str) -> str | None:
    """Return why the loss must not be predicted for an unmeasured model, or None if it may be.

    Per-channel 4-bit RTN and GPTQ collapse on Llama-3-70B (SpinQuant README); groups of 128 survive.
    """
    weights, activations = scheme.weights, scheme.activations
    if not scheme.quantized:
        return None
    if weights.bits < _LEAST_BITS:
        return "weights of about 2 bits or less collapse on some models and not on others"
    if scheme.weight_only and weights.bits <= 4 and isinstance(weights.granularity, PerChannel):
        return "3- and 4-bit weights with one scale per row collapse on some models and not on others"
    if activations.number == "int4" and method not in _ROTATIONS:
        return "4-bit activations without rotation collapse"
    return None
