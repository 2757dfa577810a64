"""A comparison as one terminal table."""

from collections.abc import Sequence

from codesign.cli.output import print_advice, print_line, print_table, print_title
from codesign.cost.advice_text import sentences
from codesign.cost.compare import MachineComparison, SchemeResult
from codesign.cost.engine import DEFAULT_ENGINE, run_words
from codesign.model.layers import Model
from codesign.plan.present import interval
from codesign.setting import Setting
from codesign.table import Table
from codesign.units import format_gib, format_joule, format_seconds, format_usd


def print_comparison(model: Model, setting: Setting, comparisons: Sequence[MachineComparison]) -> None:
    """Print one row per machine and scheme, fastest token first, refused schemes last."""
    print_title(
        f"{model.name}; batch {setting.batch}, prompt {setting.prompt_tokens:,}, "
        f"output {setting.output_tokens:,} tokens{run_words(setting.engine or DEFAULT_ENGINE, setting.thread_count)}"
    )
    rows = []
    for machine in comparisons:
        ordered = sorted(machine.results, key=_speed)
        for i, result in enumerate(ordered):
            rows.append((f"{machine.hardware} ({machine.library})" if i == 0 else "", result.scheme, *_cells(result)))
    headers = (
        "machine (library)",
        "scheme",
        "per output token",
        "decode",
        "prefill",
        "first token",
        "J/token",
        "$/M",
        "memory",
    )
    print_table(Table(headers, tuple(rows), right=(3, 4, 6, 7)))
    known = [
        result.prediction.tpot_s.origin for machine in comparisons for result in machine.results if result.prediction
    ]
    print_line(
        "decode and prefill: speed against 16 bits on the same machine. Brackets: 80 % interval; origin of the times: "
        f"{', '.join(sorted(set(known)))}."
    )
    print_advice([f"{machine.hardware}: {line}" for machine in comparisons for line in sentences(machine.advice)])


def _speed(result: SchemeResult) -> float:
    return result.prediction.tpot_s.value if result.prediction else float("inf")


def _cells(result: SchemeResult) -> tuple[str, ...]:
    here = result.prediction
    if here is None:
        return ("refused", "", "", "", "", "", result.reason)
    cost = here.usd_per_million_tokens
    return (
        interval(here.tpot_s, format_seconds),
        f"{result.decode_gain:.2f}x",
        f"{result.prefill_gain:.2f}x",
        format_seconds(here.ttft_s.value),
        format_joule(here.energy_per_token_joule.value),
        "no price" if cost is None else format_usd(cost.value),
        format_gib(here.memory.total_bytes) + ("" if here.fits else " does not fit"),
    )
