"""Hardware as terminal tables."""

from collections.abc import Sequence
from typing import Any

from codesign.cli.output import print_line, print_table, print_title
from codesign.codec import to_plain
from codesign.hardware.detect import Processor
from codesign.hardware.hardware import MATH_DTYPES, Hardware
from codesign.hardware.probe import RATES, Measured, Roofs
from codesign.table import Table
from codesign.units import (
    GIGA,
    format_bytes_per_s,
    format_flop_per_s,
    format_gib,
    format_percent,
    format_seconds,
    significant,
)

QUIET_FRACTION = 0.97
LISTED_DTYPES = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")


def print_hardware_list(machines: Sequence[Hardware]) -> None:
    """Print one row per machine."""
    rows = []
    for m in machines:
        rates = [significant(m.peak_flop_per_s[d] / 1e12) if d in m.peak_flop_per_s else "-" for d in LISTED_DTYPES]
        price = "-" if m.price_usd_per_hour is None else f"{m.price_usd_per_hour:.2f}"
        rows.append((m.name, m.kind, format_gib(m.memory.capacity_bytes),
                     format_bytes_per_s(m.memory.bandwidth_bytes_per_s), *rates, price, m.title))  # fmt: skip
    headers = ("name", "kind", "memory", "bandwidth", *LISTED_DTYPES, "$/h", "machine")
    print_table(Table(headers, rows, right=tuple(range(2, 5 + len(LISTED_DTYPES)))))
    print_line("Dense peak rates in Tflop/s (integer operations count alike); - means that the machine cannot do it.")


def print_hardware(hardware: Hardware) -> None:
    """Print every number of a profile with its source."""
    print_title(f"{hardware.name}: {hardware.title}")
    aliases = ", ".join(hardware.aliases) or "none"
    capability = hardware.compute_capability
    cc = f"; compute capability {capability[0]}.{capability[1]}" if capability else ""
    print_line(f"{hardware.vendor} {hardware.architecture} {hardware.kind}; aliases: {aliases}{cc}")
    print_line(f"instructions: {', '.join(sorted(hardware.isa)) or 'not listed'}")
    memory = hardware.memory
    print_line(
        f"sustained: {format_bytes_per_s(memory.sustained_bytes_per_s)} of "
        f"{format_bytes_per_s(memory.bandwidth_bytes_per_s)}, {format_percent(hardware.sustained_compute_fraction)} of "
        f"peak rates; launch {format_seconds(hardware.launch_overhead_s)}"
    )
    rates = [
        (d, format_flop_per_s(hardware.peak_flop_per_s[d]), significant(hardware.ridge_flop_per_byte(d)))
        for d in MATH_DTYPES
        if d in hardware.peak_flop_per_s
    ]
    print_table(Table(("math", "dense peak", "ridge flop/byte", ""), [(*row, "") for row in rates], right=(1, 2)))
    sources = [(key, s.kind, s.confidence, s.text) for key, s in hardware.sources.items()]
    print_table(Table(("number", "kind", "confidence", "source"), sources))


def hardware_record(hardware: Hardware) -> dict[str, Any]:
    """Return a machine as plain JSON values."""
    import dataclasses

    record = {field.name: getattr(hardware, field.name) for field in dataclasses.fields(hardware)}
    record["isa"] = sorted(hardware.isa)
    plain: dict[str, Any] = to_plain(record)
    return plain


def print_roofs(processor: Processor, roofs: Roofs) -> None:
    """Print bandwidths by working set and threads, peak rates by threads, and overheads."""
    print_title(f"{processor.title}, {processor.core_count} cores; probes: {roofs.variant}")
    print_line(
        f"clock {roofs.clock_hz.value / GIGA:.2f} GHz; a call {format_seconds(roofs.call_s.value)}, handing it to all "
        f"threads {format_seconds(roofs.fork_join_s[processor.core_count].value)}"
    )
    rows = [
        (str(one.threads), format_gib(one.working_set_bytes), _gb_per_s(one.read_bytes_per_s),
         _gb_per_s(one.copy_bytes_per_s), "")
        for one in roofs.bandwidths
    ]  # fmt: skip
    print_table(Table(("threads", "working set", "read GB/s", "copy GB/s", ""), rows, right=(0, 1, 2, 3)))
    counts = sorted({threads for _, threads in roofs.peak_flop_per_s})
    peaks = [
        (rate, *(_gflop_per_s(roofs.peak_flop_per_s[rate, n]) for n in counts), "")
        for rate in RATES
        if (rate, counts[0]) in roofs.peak_flop_per_s
    ]
    headers = ("peak Gflop/s", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts), "")
    print_table(Table(headers, peaks, right=tuple(range(1, 1 + len(counts)))))
    if roofs.own_fraction < QUIET_FRACTION:
        print_line(
            f"Other programs had the processor for {format_percent(1 - roofs.own_fraction)} of the time: these are no "
            "roofs. Measure again when the machine is quiet."
        )
    print_line("Medians of 7 samples; +- is half of the middle half. A copied byte counts twice, read and written.")


def _gb_per_s(measured: Measured) -> str:
    return f"{measured.value / GIGA:.1f} ±{50 * measured.spread_fraction:.0f} %"


def _gflop_per_s(measured: Measured) -> str:
    return f"{measured.value / GIGA:,.0f} ±{50 * measured.spread_fraction:.0f} %"


def roofs_record(processor: Processor, roofs: Roofs) -> dict[str, Any]:
    """Return the roofs as plain JSON values."""
    peaks = [
        {"math_dtype": rate, "threads": threads, "flop_per_s": to_plain(found)}
        for (rate, threads), found in roofs.peak_flop_per_s.items()
    ]
    return {
        "processor": to_plain(processor), "variant": roofs.variant, "clock_hz": to_plain(roofs.clock_hz),
        "call_s": to_plain(roofs.call_s), "own_fraction": roofs.own_fraction, "peaks": peaks,
        "bandwidths": to_plain(roofs.bandwidths),
        "fork_join": [{"threads": n, "seconds": to_plain(found)} for n, found in roofs.fork_join_s.items()],
    }  # fmt: skip
