"""Signed advice: where a scheme or a KV format pays, where it hurts, and where no scheme can help.

Said where the 80 % interval keeps to one side; said with "probably" where the value is at least a third of the way from
the level to the interval's end on that side; otherwise nothing. On measured pairs of kernels claims of the first sort
have the wrong sign in 0.6 % of multiplications and 0.1 % of attentions, those of the second in 11 % and 3 %.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from codesign.cost.advice_text import SLOWER_GAIN, Advice, AdviceKind, advise
from codesign.cost.arrays import as_floats
from codesign.cost.curve import (
    BATCHES,
    STOPS_PAYING_GAIN,
    Belief,
    Crossing,
    batch_curve,
    belief,
    changed_gain_curve,
    context_curve,
    context_points,
    crossing,
    gain_curve,
    host_curve,
    kv_context_curve,
    rows_curve,
)
from codesign.cost.deployment import Assignment, Deployment, uniform_assignment
from codesign.cost.inference import step_parts
from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction, add_stages, exactly
from codesign.cost.step import decode_step, prefill_step
from codesign.cost.waterfall import gain_steps
from codesign.errors import CapabilityError
from codesign.schemes.capability import baseline_scheme, candidate_kv_formats
from codesign.schemes.catalog import parse_scheme

WORTH_TELLING_GAIN = 1.1
FELT_FRACTION = 0.001


def scheme_advice(deployment: Deployment, quantized: Assignment, baseline: Assignment, name: str) -> tuple[Advice, ...]:
    """Return what to know about a scheme used wherever it may be: in which phase it pays, and where that ends."""
    work = deployment.workload
    decode = gain_curve(deployment, quantized, baseline, decode_step(work)).at(0)
    prefill = gain_curve(deployment, quantized, baseline, prefill_step(work)).at(0)
    numbers = {"decode_gain": decode, "prefill_gain": prefill}
    found = []
    phases = _phases(decode, prefill)
    if phases is not None:
        kind, probable = phases
        rows = crossing(rows_curve(deployment, quantized, baseline), BATCHES, 1.0, -1)
        numbers |= _searched({"slower_from_rows": rows}, prefill.origin)
        found.append(advise(kind, name, probable, _condition(deployment), numbers))
    points = context_points(deployment)
    by_batch = crossing(batch_curve(deployment, quantized, baseline), BATCHES, STOPS_PAYING_GAIN, -1)
    by_context = crossing(context_curve(deployment, quantized, baseline), points, STOPS_PAYING_GAIN, -1)
    at_context, at_batch = f"at context {work.mean_context_tokens:,.0f}", f"at batch {work.batch:,}"
    for kind, where, number, found_at, first in (
        (AdviceKind.STOPS_PAYING_BATCH, at_context, "stops_paying_batch", by_batch, BATCHES[0]),
        (AdviceKind.STOPS_PAYING_CONTEXT, at_batch, "stops_paying_context_tokens", by_context, points[0]),
    ):
        if found_at.belief and found_at.value is not None and found_at.value > first:
            found.append(
                advise(kind, name, found_at.latest is None, where, _searched({number: found_at}, decode.origin))
            )
    return tuple(found)


def _phases(decode: Prediction, prefill: Prediction) -> tuple[AdviceKind, bool] | None:
    """Return what the gains of the two phases amount to, and whether only probably; None if nothing is to be said."""
    pays = [belief(gain, 1.0, 1) if gain.value >= STOPS_PAYING_GAIN else Belief.NO for gain in (decode, prefill)]
    fails = [belief(gain, STOPS_PAYING_GAIN, -1) for gain in (decode, prefill)]
    slower = [belief(gain, 1.0, -1) if gain.value < SLOWER_GAIN else Belief.NO for gain in (decode, prefill)]
    for kind, parts in (
        (AdviceKind.ONLY_SMALLER, fails),
        (AdviceKind.FASTER_ONLY_PREFILL, (fails[0], pays[1])),
        (AdviceKind.FASTER_ONLY_DECODE, (pays[0], fails[1])),
        (AdviceKind.SLOWER_DECODE, slower[:1]),
        (AdviceKind.SLOWER_PREFILL, slower[1:]),
    ):
        if all(parts):
            return kind, min(parts) is Belief.PROBABLE
    return None


def kv_advice(deployment: Deployment, quantized: Assignment, baseline: Assignment, name: str) -> tuple[Advice, ...]:
    """Return where a KV format hurts: its attention alone, since all the rest of a step stays what it is.

    Nothing where the whole step does not feel it, since the host takes longer anyway.
    """
    numbers: dict[str, Prediction] = {}
    beliefs = []
    for step, attention_name, whole_name in (
        (decode_step(deployment.workload), "attention_gain", "decode_gain"),
        (prefill_step(deployment.workload), "prefill_attention_gain", "prefill_gain"),
    ):
        attention = changed_gain_curve(deployment, quantized, baseline, step).at(0)
        whole = gain_curve(deployment, quantized, baseline, step).at(0)
        how = belief(attention, 1.0, -1)
        if how and attention.value < SLOWER_GAIN and whole.value < 1.0 - FELT_FRACTION:
            numbers |= {attention_name: attention, whole_name: whole}
            beliefs.append(how)
    if not beliefs:
        return ()
    if "attention_gain" in numbers:
        pays = crossing(kv_context_curve(deployment, quantized, baseline), context_points(deployment), 1.0, 1)
        numbers |= _searched({"pays_above_context_tokens": pays}, numbers["attention_gain"].origin)
    probable = min(beliefs) is Belief.PROBABLE
    return (advise(AdviceKind.KV_SLOWER, f"KV {name}", probable, _condition(deployment), numbers),)


def host_advice(deployment: Deployment, baseline: Assignment) -> tuple[Advice, ...]:
    """Return that the host decides the speed, where it does; then few bits cannot help, and more kernels hurt."""
    if not deployment.engine.python_loop:
        return ()
    curve, decode = host_curve(deployment, baseline), decode_step(deployment.workload)
    how = belief(curve(as_floats([deployment.workload.batch])).at(0), 1.0, 1)
    if not how:
        return ()
    parts = step_parts(deployment, baseline, decode)
    numbers = {
        "step_s": add_stages(parts.values()).seconds,
        "device_s": add_stages(part for name, part in parts.items() if name != "host").seconds,
        **_searched({"device_bound_from_batch": crossing(curve, BATCHES, 1.0, -1)}, Origin.TRANSFERRED),
    }
    return (advise(AdviceKind.HOST_BOUND, "host", how is Belief.PROBABLE, _condition(deployment), numbers),)


def waterfall_advice(
    deployment: Deployment, quantized: Assignment, baseline: Assignment, name: str
) -> tuple[Advice, ...]:
    """Return where the gain of bits alone goes in decode."""
    steps = gain_steps(deployment, quantized, baseline, decode_step(deployment.workload))
    whole = gain_curve(deployment, quantized, baseline, decode_step(deployment.workload)).at(0)
    if steps[0].gain < WORTH_TELLING_GAIN * whole.value:
        return ()
    numbers = {f"gain_after {step.cause}": exactly(step.gain, whole.origin) for step in steps[:-1]}
    numbers[f"gain_after {steps[-1].cause}"] = whole
    return (advise(AdviceKind.WATERFALL, name, False, _condition(deployment), numbers),)


def _condition(deployment: Deployment) -> str:
    work = deployment.workload
    return f"at batch {work.batch:,} and context {work.mean_context_tokens:,.0f}"


def _searched(crossings: Mapping[str, Crossing], origin: Origin) -> dict[str, Prediction]:
    """Return the crossings that were met, and are believed, as predictions."""
    return {
        name: Prediction(
            float(one.value),
            float(one.earliest if one.earliest is not None else one.value),
            float(one.limit if one.latest is None else one.latest),
            origin,
        )
        for name, one in crossings.items()
        if one.value is not None and one.belief
    }


def deployment_advice(
    deployment: Deployment,
    baseline: Assignment,
    schemes: Mapping[str, Assignment],
    kv_formats: Mapping[str, Assignment],
) -> tuple[Advice, ...]:
    """Return what to know about the host, the schemes used wherever they may be, and the KV formats, by their names."""
    return (
        *host_advice(deployment, baseline),
        *(one for name, changed in schemes.items() for one in scheme_advice(deployment, changed, baseline, name)),
        *(one for name, changed in kv_formats.items() for one in kv_advice(deployment, changed, baseline, name)),
    )


def predicted_advice(deployment: Deployment, scheme_name: str, kv_name: str) -> tuple[Advice, ...]:
    """Return what to know about one scheme, about the KV format of that name or all, and where the gain went."""
    baseline = uniform_assignment(deployment, baseline_scheme(deployment.target.hardware))
    schemes, kv_formats = uniform_schemes(deployment, [scheme_name]), uniform_kv_formats(deployment, baseline)
    if kv_name in kv_formats:
        schemes = {f"{name} alone": one for name, one in schemes.items()}
        kv_formats = {kv_name: kv_formats[kv_name]}
    found = deployment_advice(deployment, baseline, schemes, kv_formats)
    where_lost = [waterfall_advice(deployment, one, baseline, name) for name, one in schemes.items()]
    return (*found, *(one for advice in where_lost for one in advice))


def uniform_schemes(deployment: Deployment, names: Iterable[str]) -> dict[str, Assignment]:
    """Return those of the named quantized schemes that run, each used wherever it may be."""
    found = {}
    for name in names:
        scheme = parse_scheme(name)
        if scheme.quantized:
            with suppress(CapabilityError):
                found[name] = uniform_assignment(deployment, scheme)
    return found


def uniform_kv_formats(deployment: Deployment, baseline: Assignment) -> dict[str, Assignment]:
    """Return the baseline with each quantized KV format that the library has."""
    formats = candidate_kv_formats(deployment.target.hardware, deployment.target.library)
    return {kv.name: replace(baseline, kv=kv) for kv in formats if kv.quantized}
