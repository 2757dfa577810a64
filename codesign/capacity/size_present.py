"""A sizing in words and tables, for the terminal, JSON and pages."""

from typing import Any

from codesign.capacity.candidates import HOURS_PER_MONTH, Service
from codesign.capacity.launch import launch_command
from codesign.capacity.present import failing, lengths_words, objective_words
from codesign.capacity.size import Sized, Sizing
from codesign.plan.present import interval
from codesign.table import Table
from codesign.units import format_percent, format_seconds, significant


def service_title(service: Service) -> str:
    """Return what is to be served, in one line."""
    demand = service.typical
    return (
        f"{service.model.name}, {significant(demand.rate_per_s)} requests/s of {lengths_words(demand.prompt)} tokens "
        f"in, {lengths_words(demand.output)} out; {objective_words(service.objectives)}; loss up to "
        f"{service.max_loss_nats:g} nats"
    )


def verdict(found: Sizing) -> str:
    """Return the answer, what comes next and why it loses."""
    best, second = found.best, found.runner_up
    text = (
        f"Cheapest: {machine_words(best)} in {best.candidate.scheme}, KV cache {best.candidate.assignment.kv.name}: "
        f"${best.usd_per_month:,.0f} a month, ${significant(best.usd_per_million_tokens)} per million output tokens."
    )
    if second is None:
        return text
    return f"{text} Next is {machine_words(second)} in {second.candidate.scheme}: {losing(second, best)}."


def machine_words(one: Sized) -> str:
    """Return how many of which machine, and in which replicas."""
    each = f"{one.replicas} replica{'s' if one.replicas > 1 else ''} of {one.candidate.devices}"
    return f"{one.gpu_count} x {one.candidate.hardware.name} ({each})"


def losing(one: Sized, best: Sized) -> str:
    """Return why another deployment is not the best."""
    more = one.usd_per_month / best.usd_per_month - 1
    if more < 1e-9:
        return f"it costs the same, with a p95 per token of {format_seconds(one.load.p95('tpot_s').value)}"
    per_replica = one.candidate.screened.rate_per_s / one.candidate.devices
    rate = best.candidate.screened.rate_per_s / best.candidate.devices
    return (
        f"{format_percent(more)} more, because one device serves {significant(per_replica)} requests/s at best "
        f"(limit: {one.candidate.screened.bottleneck}) for ${one.candidate.price_usd_per_hour:g} an hour, against "
        f"{significant(rate)} for ${best.candidate.price_usd_per_hour:g}"
    )


def machines_table(found: Sizing) -> Table:
    """Return one row per machine that can serve it, then those that cannot."""
    headers = (
        "machine",
        "devices",
        "scheme",
        "KV",
        "loss",
        "first token p95",
        "per token p95",
        "busy",
        "J/token",
        "$/M",
        "$/month",
    )
    rows = [sized_row(one) for one in (*found.by_machine, *found.beaten)]
    return Table(headers, tuple(rows), right=(1, 4, 7, 8, 9, 10))


def sized_row(one: Sized) -> tuple[str, ...]:
    """Return the cells of one deployment."""
    return (
        one.candidate.hardware.name,
        f"{one.replicas} x {one.candidate.devices}",
        one.candidate.scheme,
        one.candidate.assignment.kv.name,
        f"{one.candidate.loss_nats.value:.3f}",
        interval(one.load.p95("ttft_s"), format_seconds),
        interval(one.load.p95("tpot_s"), format_seconds),
        format_percent(one.load.busy_share.value),
        significant(one.joule_per_token.value),
        f"${significant(one.usd_per_million_tokens)}",
        f"${one.usd_per_month:,.0f}",
    )


def detail_lines(service: Service, found: Sizing) -> list[str]:
    """Return what one machine more or fewer changes, the next bottleneck, power, and what was refused."""
    best, objectives = found.best, service.objectives
    lines = []
    if best.fewer is not None:
        lines.append(f"One replica fewer: {failing(best.fewer, objectives)}.")
    lines.append(
        f"One more: first token p95 {format_seconds(best.more.p95('ttft_s').value)}, per token "
        f"{format_seconds(best.more.p95('tpot_s').value)}, for "
        f"${best.candidate.usd_per_month(best.replicas + 1) - best.usd_per_month:,.0f} more a month."
    )
    cautious = found.cautious_replicas
    lines.append(
        "If every step takes as long as the upper end of its interval, "
        + ("no number of replicas keeps the objectives." if cautious is None else f"it takes {cautious} replicas.")
    )
    lines.append(headroom(best, service))
    lines.append(
        f"Power: {best.idle_watt:,.0f} W idle, {interval(best.load_watt, significant)} W at this load, "
        f"{interval(best.joule_per_token, significant)} J per output token; a month has {HOURS_PER_MONTH:.0f} hours."
    )
    start = launch_command(best, service.context_max)
    if start is not None:
        lines.append(f"Each replica starts with: {' '.join(start.split())}".replace(" \\ ", " "))
    lines += [f"{name} cannot: {reason}" for name, reason in found.refused.items()]
    lines.append(
        f"{len(found.candidates):,} combinations of machine, devices, scheme and KV cache were screened in closed "
        "form, the best of each machine simulated. Brackets: 80 % intervals of the steps."
    )
    return lines


def headroom(best: Sized, service: Service) -> str:
    """Return at which rate each bottleneck would be met, nearest first."""
    rates = {name: rate * best.replicas for name, rate in best.candidate.screened.rates_per_s.items()}
    ordered = sorted(rates.items(), key=lambda entry: entry[1])
    named = ", ".join(f"{name} at {significant(rate)}" for name, rate in ordered)
    return f"Bottlenecks by requests/s, in closed form (now {significant(service.typical.rate_per_s)}): {named}."


def sizing_plain(service: Service, found: Sizing) -> dict[str, Any]:
    """Return the answer as plain values for JSON."""
    return {
        "model": service.model.name,
        "rate_per_s": service.typical.rate_per_s,
        "objectives": service.objectives,
        "max_loss_nats": service.max_loss_nats,
        "verdict": verdict(found),
        "launch_command": launch_command(found.best, service.context_max),
        "machines": [sized_plain(one) for one in found.by_machine],
        "beaten": [sized_plain(one) for one in found.beaten],
        "cautious_replicas": found.cautious_replicas,
        "refused": found.refused,
        "candidates": len(found.candidates),
    }


def sized_plain(one: Sized) -> dict[str, Any]:
    """Return one deployment as plain values."""
    candidate = one.candidate
    return {
        "hardware": candidate.hardware.name,
        "library": candidate.where.target.library,
        "scheme": candidate.scheme,
        "kv": candidate.assignment.kv.name,
        "replicas": one.replicas,
        "tensor_parallel": candidate.where.target.gpu_count,
        "pipeline": candidate.limits.pipeline,
        "gpus": one.gpu_count,
        "loss_nats": candidate.loss_nats,
        "usd_per_month": one.usd_per_month,
        "usd_per_million_tokens": one.usd_per_million_tokens,
        "joule_per_token": one.joule_per_token,
        "idle_watt": one.idle_watt,
        "load_watt": one.load_watt,
        "load": one.load,
        "one_fewer": one.fewer,
        "one_more": one.more,
        "bottlenecks_per_s": {name: rate * one.replicas for name, rate in candidate.screened.rates_per_s.items()},
    }
