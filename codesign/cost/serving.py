"""The steady state of continuous batching with a constant number of requests in flight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.calibration import choose
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.cost.origin import Origin
from codesign.cost.prediction import TRUST, Prediction, add_predictions
from codesign.cost.serving_time import SERVING_KEY, TPOT_OPERATION, TTFT_OPERATION, tpot_seconds, ttft_seconds
from codesign.cost.target import Target
from codesign.cost.workload import Workload

# Prompt tokens that a scheduler takes into one step: the default of vLLM (max_num_batched_tokens, version 0.12, H100)
# and of TensorRT-LLM (max_num_tokens, version 1.0).
STEP_TOKENS = 8192
# Share of the memory that a server takes: vLLM's default (gpu_memory_utilization, version 0.12).
MEMORY_SHARE = 0.9
# Where no sheet has a scheduler: every prompt interrupts, and a new one waits for half a prompt. Assumed.
DEFAULT_CONSTANTS = {
    TPOT_OPERATION: {"interruption_share": 1.0},
    TTFT_OPERATION: {"host_request_s": 1e-3, "prompts_waited": 0.5, "wave_share": 0.01},
}
DEFAULT_FACTORS = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class ServingPrediction:
    """What each request sees while `in_flight` others run beside it."""

    ttft_s: Prediction
    tpot_s: Prediction
    tokens_per_s: Prediction
    memory_bytes: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What kernels take in a server: a decode step of all, one prompt among others and alone; and what fits."""

    in_flight: int
    decode_s: Prediction
    prompt_s: Prediction
    alone_s: Prediction
    memory_bytes: float


def predict_serving(deployment: Deployment, assignment: Assignment) -> ServingPrediction | None:
    """Return the steady state with `workload.batch` requests in flight; None if not even one fits into memory.

    Requests beyond the memory limit wait for whole cycles.
    """
    times = step_times(deployment, assignment)
    if times is None:
        return None
    workload = deployment.workload
    scheduler = _Scheduler(deployment.target, times.in_flight, workload.output_tokens)
    tpot_s = scheduler.tpot_s(times.decode_s, times.prompt_s)
    ttft_s = scheduler.ttft_s(times.alone_s)
    cycles_waited = workload.batch / times.in_flight - 1
    cycle_s = tpot_s.scaled(workload.output_tokens * cycles_waited)
    return ServingPrediction(
        ttft_s=add_predictions((ttft_s, cycle_s)) if cycles_waited > 0 else ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=tpot_s.inverse(times.in_flight),
        memory_bytes=times.memory_bytes,
        in_flight=times.in_flight,
    )


def step_times(deployment: Deployment, assignment: Assignment) -> StepTimes | None:
    """Return the kernels' times with as many requests as fit, prompts taken together as far as a step holds them."""
    workload, server = deployment.workload, within_memory_share(deployment)
    alone = _run(server, assignment, 1)
    if not alone.fits:
        return None
    in_flight = min(workload.batch, max(1, alone.largest_batch))
    full = _run(server, assignment, in_flight)
    together = prompts_per_step(workload, in_flight)
    prompt_s = _run(server, assignment, together).ttft_s.scaled(1.0 / together)
    return StepTimes(in_flight, full.tpot_s, prompt_s, alone.ttft_s, full.memory.total_bytes)


def within_memory_share(deployment: Deployment) -> Deployment:
    """Return the deployment on machines that hold as much as a server uses of them."""
    hardware = deployment.target.hardware
    memory = replace(hardware.memory, capacity_bytes=hardware.memory.capacity_bytes * MEMORY_SHARE)
    return replace(deployment, target=replace(deployment.target, hardware=replace(hardware, memory=memory)))


def prompts_per_step(workload: Workload, in_flight: int) -> int:
    """Return how many prompts a scheduler takes together."""
    return max(1, min(in_flight, STEP_TOKENS // workload.prompt_tokens))


def _run(deployment: Deployment, assignment: Assignment, batch: int) -> InferencePrediction:
    return predict_inference(replace(deployment, workload=replace(deployment.workload, batch=batch)), assignment)


@dataclass(frozen=True, slots=True)
class _Scheduler:
    """A library's scheduler with `in_flight` requests."""

    target: Target
    in_flight: int
    output_tokens: int

    def tpot_s(self, decode_s: Prediction, prompt_s: Prediction) -> Prediction:
        """Return the time per output token."""

        def seconds(constants: Mapping[str, float], end: str) -> FloatArray:
            decode, prompt = (as_floats(getattr(part, end)) for part in (decode_s, prompt_s))
            return tpot_seconds(constants, decode, prompt, as_floats(self.in_flight), as_floats(self.output_tokens))

        return self._predict(TPOT_OPERATION, seconds, (decode_s, prompt_s))

    def ttft_s(self, prompt_s: Prediction) -> Prediction:
        """Return the time to the first token."""

        def seconds(constants: Mapping[str, float], end: str) -> FloatArray:
            return ttft_seconds(constants, as_floats(getattr(prompt_s, end)), as_floats(self.in_flight))

        return self._predict(TTFT_OPERATION, seconds, (prompt_s,))

    def _predict(
        self, operation: str, seconds: Callable[[Mapping[str, float], str], FloatArray], parts: tuple[Prediction, ...]
    ) -> Prediction:
        """Return the time with its interval: that of measured runs, else one wide enough for the kernels' too."""
        chosen = choose(self.target, operation, [[SERVING_KEY]], lambda *_: True)
        constants = DEFAULT_CONSTANTS[operation] if chosen is None else chosen.constants
        value = seconds(constants, "value")
        sizes = {"in_flight": as_floats(self.in_flight), "output_tokens": as_floats(self.output_tokens)}
        if chosen is None:
            low, high = value * DEFAULT_FACTORS[0], value * DEFAULT_FACTORS[1]
        else:
            low, high = chosen.interval(value, sizes)
        origins = (Origin.DATASHEET if chosen is None else chosen.origin, *(part.origin for part in parts))
        if chosen is None or chosen.origin is not Origin.CALIBRATED:
            low, high = np.minimum(low, seconds(constants, "low")), np.maximum(high, seconds(constants, "high"))
        return Prediction(float(value), float(low), float(high), max(origins, key=TRUST.index))
