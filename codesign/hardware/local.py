"""A hardware profile of this machine from what was measured and what its system says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from codesign.hardware.detect import Processor
from codesign.hardware.probe import RATES, SAMPLES, Bandwidth, Measured, Roofs
from codesign.units import GIBI, GIGA, MEBI, MEGA, MICRO, TERA

# Processors of servers are specified with 3 to 5 W for each core and as much again for the rest of the socket.
WATT_PER_CORE, WATT_BESIDE, IDLE_FRACTION = 4.0, 20.0, 0.3
# Matrix libraries on a Zen 4 core reach 0.75 (fp32), 0.92-0.96 (bf16) and 0.80-0.95 (int8) of the measured loop.
LIBRARY_FRACTION = 0.92
CONFIDENCE_BY_SPREAD = ((0.1, "high"), (0.5, "medium"))


@dataclass(frozen=True, slots=True)
class Provenance:
    """When and by which command the roofs were measured."""

    date: str
    command: str


def local_profile(name: str, processor: Processor, roofs: Roofs, provenance: Provenance) -> str:
    """Return the YAML text of the profile; docs/hardware-format.md describes it."""
    most = roofs.memory_bandwidth(processor.core_count)
    return "\n".join(
        [
            f"# Measured on this machine by `{provenance.command}` on {provenance.date}.",
            f"# Probes: {roofs.variant}. The spread is the middle half of the samples as a share of the median.",
            "format_version: 1",
            f"name: {name}",
            f"title: {_quoted(processor.title)}",
            "kind: cpu",
            f"vendor: {processor.vendor}",
            f"architecture: {_quoted(processor.machine)}",
            f"isa: [{', '.join(processor.isa)}]",
            *_units(processor, roofs),
            *_memory(processor, roofs, most),
            *_cache(processor, roofs),
            "dense_tflop_per_s:",
            *(
                f"  {rate}: {_fact(peak, TERA, 'loop of such instructions, all cores')}"
                for rate, peak in _peaks(roofs, processor.core_count).items()
            ),
            "sustained_compute_fraction: "
            + _assumed(LIBRARY_FRACTION, "what matrix libraries reach of such a loop on Zen 4 in bf16 and int8"),
            "launch_overhead_us: "
            + _fact(roofs.fork_join_s[processor.core_count], MICRO, "handing work to all threads"),
            "power:",
            "  limit_watt: "
            + _assumed(WATT_PER_CORE * processor.core_count + WATT_BESIDE, "4 W for each core and 20 W beside them"),
            "  idle_watt: "
            + _assumed(
                IDLE_FRACTION * (WATT_PER_CORE * processor.core_count + WATT_BESIDE), "0.3 of the limit: not readable"
            ),
            "",
        ]
    )


def profile_name(processor: Processor) -> str:
    """Return a name for the machine made from its processor's title."""
    word = re.sub(r"[^a-z0-9]+", "-", processor.title.lower()).strip("-") or "local"
    return f"{word[:60].strip('-')}-{processor.core_count}-core"


def _units(processor: Processor, roofs: Roofs) -> list[str]:
    cycles = {
        rate: peak.value / processor.core_count / roofs.clock_hz.value
        for rate, peak in _peaks(roofs, processor.core_count).items()
    }
    return [
        "units:",
        "  name: core",
        f"  count: {_stated(processor.core_count, 'processors that this process may use')}",
        f"  boost_clock_mhz: {_fact(roofs.clock_hz, MEGA, 'dependent additions per second on one core')}",
        "  flop_per_cycle_per_unit:",
        *(
            f'    {rate}: {{value: {value:.4g}, source: "peak by core and cycle", kind: derived, confidence: high}}'
            for rate, value in cycles.items()
        ),
    ]


def _peaks(roofs: Roofs, threads: int) -> Mapping[str, Measured]:
    return {rate: roofs.peak_flop_per_s[rate, threads] for rate in RATES if (rate, threads) in roofs.peak_flop_per_s}


def _memory(processor: Processor, roofs: Roofs, most: Bandwidth) -> list[str]:
    by_threads = [one for one in roofs.bandwidths if one.working_set_bytes == most.working_set_bytes]
    capacity = processor.memory_bytes or most.working_set_bytes
    return [
        "memory:",
        "  technology: DRAM",
        f"  capacity_gib: {_stated(round(capacity / GIBI, 2), 'total memory that the system reports')}",
        f"  bandwidth_gb_per_s: {_fact(most.read_bytes_per_s, GIGA, _read_text(most))}",
        "  sustained_fraction: " + '{value: 1, source: "the bandwidth is measured", kind: derived, confidence: high}',
        "  thread_bandwidth_gb_per_s:",
        *(f'    "{one.threads}": {_fact(one.read_bytes_per_s, GIGA, _read_text(one))}' for one in by_threads),
    ]


def _read_text(most: Bandwidth) -> str:
    return f"reading {most.working_set_bytes // MEBI} MiB in 2 MiB pages"


def _cache(processor: Processor, roofs: Roofs) -> list[str]:
    if processor.cache_bytes is None:
        return []
    inside = [
        one
        for one in roofs.bandwidths
        if one.threads == processor.core_count and one.working_set_bytes <= processor.cache_bytes / 2
    ]
    widest = max(inside, key=lambda one: one.working_set_bytes, default=None)
    lines = [
        "cache:",
        "  name: LLC",
        f"  capacity_mib: {_stated(processor.cache_bytes / MEBI, 'last-level cache that the system reports')}",
    ]
    if widest is not None:
        text = f"reading {widest.working_set_bytes // MEBI} MiB"
        lines.append(f"  bandwidth_gb_per_s: {_fact(widest.read_bytes_per_s, GIGA, text)}")
    return lines


def _quoted(text: str) -> str:
    return '"' + re.sub(r"[^ -!#-\[\]-~]", "?", text)[:200] + '"'


def _fact(measured: Measured, unit: float, text: str) -> str:
    spread = f"{100 * measured.spread_fraction:.0f} %"
    confidence = next((word for limit, word in CONFIDENCE_BY_SPREAD if measured.spread_fraction <= limit), "low")
    return (
        f'{{value: {measured.value / unit:.4g}, source: "{text}; median of {SAMPLES}, spread {spread}", '
        f"kind: measured, confidence: {confidence}}}"
    )


def _stated(value: float, text: str) -> str:
    return f'{{value: {value:g}, source: "{text}", kind: measured, confidence: high}}'


def _assumed(value: float, text: str) -> str:
    return f'{{value: {value:g}, source: "{text}", kind: assumed, confidence: low}}'
