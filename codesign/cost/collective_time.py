"""Seconds of collectives from a kernel sheet's constants: hops, bytes on the link with a ramp, or direct reads.

Large messages go round in pieces; where a library has a kernel that reads all peers directly, small messages take it.
Every term is monotone in message size and bandwidth.
"""

from collections.abc import Mapping

import numpy as np

from codesign.cost.arrays import FloatArray
from codesign.cost.sheet import SheetTime, constants_problem
from codesign.cost.traffic import wire_bytes

COLLECTIVE_CONSTANTS = (
    "fixed_s", "hop_s", "bandwidth_fraction", "bandwidth_growth", "ramp_s", "ramp_half_s",
)  # fmt: skip
DIRECT_CONSTANTS = ("direct_fixed_s", "direct_hop_s", "direct_bandwidth_fraction")
REFERENCE_GPUS = 8.0  # `bandwidth_fraction` and `ramp_s` are those of a group of eight
COLLECTIVE_KEY = "any"  # the name under which sheets hold a collective: bytes count, not what they mean


def collective_seconds(
    constants: Mapping[str, float], operation: str, link_bytes_per_s: float, gpus: FloatArray, message_bytes: FloatArray
) -> SheetTime:
    """Return the time of an operation on `message_bytes` in each of `gpus` devices; one device needs none.

    `message_bytes` is the whole buffer: what all-reduce reduces, what all-gather ends with, what the others start with.
    """
    c = constants
    hops, scale = gpus - 1.0, gpus / REFERENCE_GPUS
    wire_s = wire_bytes(operation, gpus, message_bytes)
    wire_s = wire_s / (link_bytes_per_s * c["bandwidth_fraction"] * scale ** c["bandwidth_growth"])
    ramp_s = c["ramp_s"] * np.sqrt(hops / (REFERENCE_GPUS - 1.0)) * wire_s / (wire_s + c["ramp_half_s"])
    fixed_s = c["fixed_s"] + c["hop_s"] * hops
    total_s = fixed_s + wire_s + ramp_s
    if DIRECT_CONSTANTS[0] in c:
        direct_fixed_s = c["direct_fixed_s"] + c["direct_hop_s"] * hops
        # To reduce at once, every device reads the whole buffers of the others; elsewhere only what it is to have.
        read = hops * message_bytes if operation == "all_reduce" else wire_bytes(operation, gpus, message_bytes)
        direct_s = direct_fixed_s + read / (link_bytes_per_s * c["direct_bandwidth_fraction"])
        fixed_s = np.where(direct_s < total_s, direct_fixed_s, fixed_s)
        total_s = np.minimum(total_s, direct_s)
    nothing = gpus <= 1.0
    fixed_s, total_s = (np.where(nothing, 0.0, seconds) for seconds in (fixed_s, total_s))
    return SheetTime(np.zeros_like(total_s), total_s - fixed_s, fixed_s, total_s)


def collective_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    return constants_problem(constants, COLLECTIVE_CONSTANTS, (DIRECT_CONSTANTS,))
