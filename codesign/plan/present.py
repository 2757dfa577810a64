"""A plan as tables of text, for the terminal and for pages alike."""

from collections.abc import Callable, Iterable
from itertools import groupby

from codesign.cost.advice_text import sentences
from codesign.cost.as_is import AS_IS
from codesign.cost.curve import BATCH_LIMIT, CONTEXT_MIN_TOKENS, BreakEven
from codesign.cost.engine import run_words
from codesign.cost.prediction import Prediction
from codesign.plan.file import GroupPlan, Plan
from codesign.table import Table
from codesign.units import format_gib, format_joule, format_percent, format_seconds, format_usd, significant

TOTALS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("time to first token", "ttft_s", format_seconds),
    ("time per output token", "tpot_s", format_seconds),
    ("output tokens/s", "tokens_per_s", significant),
    ("energy per output token", "energy_per_token_joule", format_joule),
    ("cost per million output tokens", "usd_per_million_tokens", format_usd),
)
MEMORY: tuple[tuple[str, str, str], ...] = (
    ("weights", "weight_bytes", "exact"),
    ("KV cache", "kv_bytes", "exact"),
    ("activations", "activation_bytes", "estimated"),
    ("runtime", "overhead_bytes", "assumed"),
)
CRITERION_UNITS: dict[str, Callable[[float], str]] = {
    "tpot": format_seconds,
    "ttft": format_seconds,
    "throughput": format_seconds,
    "cost": format_seconds,
    "memory": format_gib,
    "quality": lambda value: f"{value:.4f} nats",
    "energy": format_joule,
}


def headline(plan: Plan) -> str:
    """Return what was planned, in one line."""
    work = plan.workload
    gpus = f"{plan.gpu_count} x " if plan.gpu_count > 1 else ""
    how = run_words(plan.engine, plan.thread_count)
    return (
        f"{plan.model} on {gpus}{plan.hardware}, {plan.library} kernels{how}; batch {work.batch}, "
        f"prompt {work.prompt_tokens:,}, output {work.output_tokens:,} tokens; "
        + ("schemes as stored" if plan.objective == AS_IS else f"least {plan.objective}")
    )


def interval(prediction: Prediction | None, show: Callable[[float], str]) -> str:
    """Return a prediction as value and 80 % interval."""
    if prediction is None:
        return "unknown"
    if prediction.low == prediction.value == prediction.high:
        return show(prediction.value)
    return f"{show(prediction.value)} ({show(prediction.low)} to {show(prediction.high)})"


def group_rows(plan: Plan, *, every_group: bool) -> Table:
    """Return one row per fused group, or per run of blocks that share scheme and bound."""
    rows = []
    for label, members in merged_groups(plan.groups, every_group):
        time_s = sum(member.decode_s.value for member in members)
        losses = [member.loss_nats.value for member in members if member.loss_nats is not None]
        first = members[0]
        rows.append(
            (
                label,
                f"{first.scheme} ({first.method})" if first.method else first.scheme,
                significant(first.bits_per_weight),
                format_gib(sum(member.memory_bytes for member in members)),
                format_percent(time_s / plan.totals.tpot_s.value),
                first.bound,
                f"{sum(losses):.4f}" if len(losses) == len(members) else "unknown",
                first.reason,
            )
        )
    headers = ("layers", "scheme", "bits", "memory", "decode time", "bound", "loss, nats", "why")
    return Table(headers, tuple(rows), right=(2, 3, 4, 6))


def merged_groups(groups: Iterable[GroupPlan], every_group: bool) -> list[tuple[str, list[GroupPlan]]]:
    """Return labelled rows; equal groups of consecutive blocks share one, such as `0-31 qkv`."""
    if every_group:
        return [(_label([group]), [group]) for group in groups]
    by_name: dict[str, list[GroupPlan]] = {}
    for group in groups:
        by_name.setdefault(group.name, []).append(group)
    rows: list[tuple[str, list[GroupPlan]]] = []
    for members in by_name.values():
        for _, run in groupby(members, key=lambda group: (group.scheme, group.bound)):
            together = list(run)
            rows.append((_label(together), together))
    return rows


def _label(members: list[GroupPlan]) -> str:
    first, last = members[0].block_index, members[-1].block_index
    if first is None:
        return members[0].name
    return f"{first}-{last} {members[0].name}" if first != last else f"{first} {members[0].name}"


def total_rows(plan: Plan) -> Table:
    """Return memory and speed of the plan beside the unquantized model."""
    both = (plan.totals, plan.baseline)
    rows: list[tuple[str, ...]] = [
        (name, *(format_gib(getattr(totals.memory, field)) for totals in both), origin)
        for name, field, origin in MEMORY
    ]
    capacity = format_gib(plan.capacity_bytes)
    rows.append(("all memory", *(f"{format_gib(t.memory.total_bytes)} of {capacity}" for t in both), ""))
    rows.append(("largest batch", *(f"{t.largest_batch:,}" for t in both), ""))
    rows.append(("longest context, tokens", *(f"{t.largest_context_tokens:,}" for t in both), ""))
    for name, field, show in TOTALS:
        cells: list[Prediction | None] = [getattr(totals, field) for totals in both]
        origin = "no price in the profile" if cells[0] is None else str(cells[0].origin)
        rows.append((name, *(interval(cell, show) for cell in cells), origin))
    baseline = plan.baseline_scheme + ("" if plan.baseline_fits else " (does not fit)")
    return Table(("total (80 % interval)", "this plan", baseline, "origin"), tuple(rows))


def gain_rows(plan: Plan) -> Table:
    """Return how the ideal gain shrinks to the predicted one."""
    rows = tuple(
        (decode.cause, f"{decode.gain:.2f}x", f"{prefill.gain:.2f}x")
        for decode, prefill in zip(plan.decode_gain_steps, plan.prefill_gain_steps, strict=True)
    )
    return Table((f"gain over {plan.baseline_scheme}, counting in turn", "decode", "prefill"), rows, right=(1, 2))


def break_even_rows(plan: Plan) -> Table:
    """Return where each scheme stops paying."""
    rows = tuple(
        (one.scheme, f"{one.decode_gain:.2f}x", f"{one.prefill_gain:.2f}x", _slower_at(one), _pays_at(one))
        for one in plan.break_even
    )
    headers = ("used everywhere", "decode", "prefill", "slower at batch", "5 % faster at context")
    return Table(headers, rows, right=(1, 2))


def _slower_at(one: BreakEven) -> str:
    if one.slower_from_batch is not None:
        return "every" if one.slower_from_batch == 1 else f"{one.slower_from_batch:,} and more"
    if one.faster_from_batch is None or one.faster_from_batch == 1:
        return f"none up to {BATCH_LIMIT:,}"
    return f"some below {one.faster_from_batch:,}"


def _pays_at(one: BreakEven) -> str:
    first, last = one.pays_from_context_tokens, one.pays_until_context_tokens
    if last is None:
        return "none"
    until = "the model's limit" if last >= one.context_limit_tokens else f"{last:,}"
    return f"up to {until}" if first is None or first <= CONTEXT_MIN_TOKENS else f"{first:,} to {until}"


def advice_lines(plan: Plan) -> list[str]:
    """Return the plan's advice as sentences."""
    return sentences(plan.advice)


def pareto_rows(plan: Plan) -> Table:
    """Return the plans of which none is better in both criteria."""
    front = plan.pareto
    if front is None:
        return Table((), ())
    first, second = CRITERION_UNITS[front.first], CRITERION_UNITS[front.second]
    rows = tuple((first(point.first), second(point.second), point.mix) for point in front.points)
    return Table((front.first, front.second, "share of weights"), rows, right=(0, 1))


def measured_rows(plan: Plan) -> Table:
    """Return the plans whose loss was measured, predicted against measured."""
    rows = tuple(
        (
            "taken" if one.taken else "",
            f"{one.predicted_loss_nats:.4f}",
            interval(one.measured_loss_nats, lambda nats: f"{nats:.4f}"),
            CRITERION_UNITS[plan.objective](one.objective_value),
            one.mix,
        )
        for one in plan.measured
    )
    headers = ("measured", "predicted loss, nats", "measured loss, nats", plan.objective, "share of weights")
    return Table(headers, rows, right=(1, 2, 3))


def refused_rows(plan: Plan) -> Table:
    """Return the schemes that were not considered, with reasons."""
    return Table(("refused", "reason"), tuple((refusal.scheme, refusal.reason) for refusal in plan.refused))


def sheet_lines(plan: Plan) -> list[str]:
    """Return which kernel sheets of this machine and library the plan stands on, the first asked first."""
    return [f"Kernel sheet: {title}." for title in plan.kernel_sheets]


def footnote(plan: Plan) -> str:
    """Return what the numbers stand on."""
    proven = "proven optimal" if plan.gap_fraction <= 1e-6 else f"within {plan.gap_fraction:.1e} of optimal"
    chosen = "states what the checkpoint holds" if plan.objective == AS_IS else f"is {proven} for these predictions"
    return (
        f"The plan {chosen}. Origins: calibrated on measured kernels of this machine and "
        "library; transferred from a relative or another library; datasheet: rates of the profile. "
        "Losses are priors from published tables for the method in brackets, unless a measured file was given."
    )
