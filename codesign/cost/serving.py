"""The steady state of continuous batching with a constant number of requests in flight."""

from dataclasses import dataclass, replace

from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.inference import InferencePrediction, predict_inference
from codesign.cost.prediction import Prediction, add_predictions

UTILIZATION_MAX = 0.95  # above it the queueing formula diverges; the measured closed loop cannot exceed 1


@dataclass(frozen=True, slots=True)
class ServingPrediction:
    """What each request sees while `in_flight` others run beside it."""

    ttft_s: Prediction
    tpot_s: Prediction
    tokens_per_s: Prediction
    memory_bytes: float
    in_flight: int


def predict_serving(deployment: Deployment, assignment: Assignment) -> ServingPrediction | None:
    """Return the steady state with `workload.batch` requests in flight; None if not even one fits into memory.

    While a request makes its output_tokens, every other one is replaced once, so each decode step also carries
    in_flight / output_tokens prefills. A new prompt waits for half a step and, as in an M/D/1 queue, for the prompts
    before it. Requests beyond the memory limit wait for whole cycles.
    """
    workload = deployment.workload
    one = replace(deployment, workload=replace(workload, batch=1))
    alone = predict_inference(one, assignment)
    if not alone.fits:
        return None
    in_flight = min(workload.batch, max(1, alone.largest_batch))
    full = predict_inference(replace(deployment, workload=replace(workload, batch=in_flight)), assignment)
    prefill_per_step = alone.ttft_s.scaled(in_flight / workload.output_tokens)
    tpot_s = add_predictions((full.tpot_s, prefill_per_step))
    cycle_s = tpot_s.scaled(workload.output_tokens)
    ttft_s = _first_token(alone, full, prefill_per_step, tpot_s)
    waiting = workload.batch / in_flight - 1
    return ServingPrediction(
        ttft_s=add_predictions((ttft_s, cycle_s.scaled(waiting))) if waiting > 0 else ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=tpot_s.inverse(in_flight),
        memory_bytes=full.memory.total_bytes,
        in_flight=in_flight,
    )


def _first_token(
    alone: InferencePrediction, full: InferencePrediction, prefill_per_step: Prediction, tpot_s: Prediction
) -> Prediction:
    """Return half a step, the wait behind other prompts and the prompt's own prefill. Source: Pollaczek-Khinchine."""
    utilization = min(UTILIZATION_MAX, prefill_per_step.value / tpot_s.value)
    waiting = utilization / (2 * (1 - utilization))
    return add_predictions((full.tpot_s.scaled(0.5), alone.ttft_s.scaled(1 + waiting)))
