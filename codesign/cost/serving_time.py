"""Seconds of a server with a constant number of requests in flight, from a kernel sheet's constants of its scheduler.

A closed loop of N requests of equal length: whenever one ends, the next begins, and its prompt interrupts the others.
Schedulers differ in how far requests stay in step (whole waves of prompts, no interruption later) or spread out.
"""

from collections.abc import Mapping

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.sheet import constants_problem

TPOT_OPERATION, TTFT_OPERATION = "serving_tpot", "serving_ttft"
SERVING_KEY = "any"  # the name under which sheets hold a scheduler: it does not depend on the scheme
TPOT_CONSTANTS = ("interruption_share",)
TTFT_CONSTANTS = ("host_request_s", "prompts_waited", "wave_share")


def tpot_seconds(
    constants: Mapping[str, float],
    decode_s: FloatArray,
    prefill_s: FloatArray,
    in_flight: FloatArray,
    output_tokens: FloatArray,
) -> FloatArray:
    """Return the time per output token: a step, and the share of the others' prompts that interrupt it.

    While a request makes `output_tokens`, every other one is replaced once.
    """
    interruptions = constants["interruption_share"] * (in_flight - 1.0) / output_tokens
    return as_floats(decode_s + interruptions * prefill_s)


def ttft_seconds(constants: Mapping[str, float], prefill_s: FloatArray, in_flight: FloatArray) -> FloatArray:
    """Return the time to the first token: the host's work, the own prompt, and prompts waited for.

    Some are those that a scheduler takes together (`prompts_waited`, none where a request is alone); a share of
    requests, the first wave or all, waits for half of the others.
    """
    others = in_flight - 1.0
    waited = constants["prompts_waited"] * others / in_flight + constants["wave_share"] * others / 2.0
    return as_floats(constants["host_request_s"] + prefill_s * (1.0 + waited))


def tpot_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    return constants_problem(constants, TPOT_CONSTANTS)


def ttft_constants_problem(constants: Mapping[str, float]) -> str | None:
    """Return what is wrong with the constants of a sheet as a sentence, None if nothing is."""
    return constants_problem(constants, TTFT_CONSTANTS)
