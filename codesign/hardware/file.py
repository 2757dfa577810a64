"""Hardware profiles: YAML in human units to `Hardware` in SI. The only place where these units are converted.

The format is documented in docs/hardware-format.md.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from codesign.errors import InputError
from codesign.files import read_text
from codesign.hardware.folder import (
    MAX_PROFILE_BYTES,
    NAME,
    list_hardware,
    normal_name,
    profile_folder,
    profile_path,
    resolve_hardware_name,
)
from codesign.hardware.hardware import (
    MATH_DTYPES,
    Cache,
    Confidence,
    Constraints,
    Hardware,
    HardwareKind,
    Link,
    Memory,
    Power,
    Source,
    SourceKind,
)
from codesign.units import GIBI, GIGA, MEBI, MEGA, MICRO, TERA
from codesign.yaml_file import Section, parse_yaml

__all__ = [
    "check_hardware_file",
    "copy_profile",
    "list_hardware",
    "load_hardware",
    "parse_hardware",
    "profile_folder",
    "resolve_hardware_name",
]

FORMAT_VERSION = 1
PEAK_TOLERANCE_FRACTION = 0.02
FACT_KEYS = ("value", "source", "kind", "confidence")
FACT_EXAMPLE = '{value: 80, source: "data sheet, page 3", kind: datasheet, confidence: high}'


@dataclass(frozen=True, slots=True)
class Quantity:
    """The allowed range of a number in the unit of its key, and that unit in SI."""

    low: float
    high: float
    si: float = 1.0


QUANTITIES = {
    "count": Quantity(1, 1e6),
    "base_clock_mhz": Quantity(10, 20_000, MEGA),
    "boost_clock_mhz": Quantity(10, 20_000, MEGA),
    "flop_per_cycle_per_unit": Quantity(0.5, 1e7),
    "capacity_gib": Quantity(0.001, 65_536, GIBI),
    "capacity_mib": Quantity(0.001, 65_536, MEBI),
    "bandwidth_gb_per_s": Quantity(0.01, 1e6, GIGA),
    "sustained_fraction": Quantity(0.01, 1),
    "dense_tflop_per_s": Quantity(1e-4, 1e6, TERA),
    "sustained_compute_fraction": Quantity(0.01, 1),
    "launch_overhead_us": Quantity(0.001, 1e6, MICRO),
    "latency_us": Quantity(0.001, 1e6, MICRO),
    "device_count_max": Quantity(1, 100_000),
    "limit_watt": Quantity(0.01, 1e5),
    "idle_watt": Quantity(0.001, 1e5),
    "usd_per_hour": Quantity(1e-4, 1e5),
}
_REQUIRED = (
    "format_version", "name", "title", "kind", "vendor", "architecture", "isa", "units", "memory", "dense_tflop_per_s",
    "sustained_compute_fraction", "launch_overhead_us", "power",
)  # fmt: skip
_OPTIONAL = ("aliases", "compute_capability", "cache", "peer_link", "host_link", "price", "constraints")


@dataclass(slots=True)
class _Facts:
    """Reads numbers with their sources; collects the sources and lines by dotted key."""

    sources: dict[str, Source] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def number(self, section: Section, key: str, quantity: Quantity | None = None) -> float:
        """Return the number under a key in SI."""
        allowed = quantity or QUANTITIES[key]
        fact = section.section(key, f"a number with its source such as {FACT_EXAMPLE}")
        fact.check_keys(FACT_KEYS)
        kind, confidence = fact.text("kind", get_args(SourceKind)), fact.text("confidence", get_args(Confidence))
        self.sources[fact.path] = Source(fact.text("source"), kind, confidence)  # type: ignore[arg-type]
        self.lines[fact.path] = section.line(key)
        return fact.number("value", allowed.low, allowed.high) * allowed.si

    def optional(self, section: Section, key: str) -> float | None:
        """Return the number under a key in SI, or None if the key is absent."""
        return self.number(section, key) if key in section else None

    def count(self, section: Section, key: str) -> int:
        """Return a whole number."""
        value = self.number(section, key)
        if value != int(value):
            section.refuse(key, f"{value:g} is not whole; a whole number is wanted.")
        return int(value)

    def by_dtype(self, section: Section, key: str) -> dict[str, float]:
        """Return a number in SI for every dtype listed, at least one."""
        rates = section.section(key, "a mapping of math dtypes to rates")
        rates.check_keys((), MATH_DTYPES)
        dtypes = rates.keys()
        if not dtypes:
            section.refuse(key, f"no rate is given; list at least one of {', '.join(MATH_DTYPES)}.")
        return {dtype: self.number(rates, dtype, QUANTITIES[key]) for dtype in dtypes}


def load_hardware(name_or_path: str | os.PathLike[str]) -> Hardware:
    """Return the machine of a shipped profile (name or alias) or of a YAML file given by its path."""
    text, where = _read_profile(name_or_path)
    return parse_hardware(text, where)


@lru_cache(maxsize=64)  # reading YAML is what takes the time, and a command asks for its machine several times
def parse_hardware(text: str, where: str) -> Hardware:
    """Return the machine that a profile text describes; `where` is the file named in messages."""
    return _parse(text, where, _Facts())


def _read_profile(name_or_path: str | os.PathLike[str]) -> tuple[str, str]:
    given = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or Path(given).suffix in (".yaml", ".yml") or "/" in given or os.sep in given:
        path = Path(given)
        if path.suffix not in (".yaml", ".yml") or "\0" in given:
            raise InputError(f"{ascii(given)[1:-1]}: a hardware profile is a .yaml or .yml file.")
    else:
        path = profile_path(resolve_hardware_name(given))
    return read_text(path, MAX_PROFILE_BYTES, "hardware profile"), str(path)


def _parse(text: str, where: str, facts: _Facts) -> Hardware:
    top = parse_yaml(text, where)
    top.check_keys(_REQUIRED, _OPTIONAL)
    if top.integer("format_version", 1, 10**6) != FORMAT_VERSION:
        top.refuse("format_version", f"this version of codesign reads {FORMAT_VERSION} only.")
    units = top.section("units")
    units.check_keys(("name", "count", "boost_clock_mhz", "flop_per_cycle_per_unit"), ("base_clock_mhz",))
    price = top.section("price") if "price" in top else None
    if price is not None:
        price.check_keys(("usd_per_hour",))
    return Hardware(
        name=_name(top),
        title=top.text("title"),
        kind=top.text("kind", get_args(HardwareKind)),  # type: ignore[arg-type]
        vendor=top.text("vendor"),
        architecture=top.text("architecture"),
        aliases=_aliases(top),
        compute_capability=_compute_capability(top),
        isa=frozenset(top.texts("isa")),
        unit_name=units.text("name"),
        unit_count=facts.count(units, "count"),
        base_clock_hz=facts.optional(units, "base_clock_mhz"),
        boost_clock_hz=facts.number(units, "boost_clock_mhz"),
        flop_per_cycle_per_unit=facts.by_dtype(units, "flop_per_cycle_per_unit"),
        peak_flop_per_s=facts.by_dtype(top, "dense_tflop_per_s"),
        sustained_compute_fraction=facts.number(top, "sustained_compute_fraction"),
        memory=_memory(top.section("memory"), facts),
        cache=_cache(top.section("cache"), facts) if "cache" in top else None,
        launch_overhead_s=facts.number(top, "launch_overhead_us"),
        peer_link=_link(top.section("peer_link"), facts) if "peer_link" in top else None,
        host_link=_link(top.section("host_link"), facts) if "host_link" in top else None,
        power=_power(top.section("power"), facts),
        price_usd_per_hour=None if price is None else facts.number(price, "usd_per_hour"),
        constraints=_constraints(top.section("constraints")) if "constraints" in top else Constraints(),
        sources=facts.sources,
        digest=hashlib.sha256(text.encode("utf-8")).hexdigest(),
    )


def _name(top: Section) -> str:
    name = top.text("name")
    if not NAME.fullmatch(name):
        top.refuse(
            "name", f'"{name[:80]}" is given; a name has lower-case letters, digits and . + - only (at most 80).'
        )
    return name


def _aliases(top: Section) -> tuple[str, ...]:
    aliases = top.texts("aliases") if "aliases" in top else ()
    for alias in aliases:
        if normal_name(alias) != alias or not NAME.fullmatch(alias):
            top.refuse("aliases", f'"{alias[:80]}" is given; write aliases in lower case with hyphens.')
    return aliases


def _compute_capability(top: Section) -> tuple[int, int] | None:
    if "compute_capability" not in top:
        return None
    text = top.text("compute_capability")
    if not re.fullmatch(r"\d{1,2}\.\d", text):
        top.refuse("compute_capability", f'"{text[:80]}" is given; write it in quotes, such as "8.0".')
    major, minor = text.split(".")
    return int(major), int(minor)


def _memory(section: Section, facts: _Facts) -> Memory:
    section.check_keys(
        ("technology", "capacity_gib", "bandwidth_gb_per_s", "sustained_fraction"), ("ecc", "thread_bandwidth_gb_per_s")
    )
    return Memory(
        technology=section.text("technology"),
        capacity_bytes=facts.number(section, "capacity_gib"),
        bandwidth_bytes_per_s=facts.number(section, "bandwidth_gb_per_s"),
        sustained_fraction=facts.number(section, "sustained_fraction"),
        ecc=section.boolean("ecc") if "ecc" in section else None,
        thread_bytes_per_s=MappingProxyType(_by_threads(section, facts)),
    )


def _by_threads(memory: Section, facts: _Facts) -> dict[int, float]:
    """Return the bandwidth that some threads reach, by their count."""
    if "thread_bandwidth_gb_per_s" not in memory:
        return {}
    section = memory.section("thread_bandwidth_gb_per_s", "a mapping of thread counts to bandwidths")
    for key in section.entries.values:
        if not re.fullmatch("[1-9][0-9]{0,5}", key):
            section.refuse(key, "no count of threads; write a whole number in quotes.")
    return {int(key): facts.number(section, key, QUANTITIES["bandwidth_gb_per_s"]) for key in section.entries.values}


def _cache(section: Section, facts: _Facts) -> Cache:
    section.check_keys(("name", "capacity_mib"), ("bandwidth_gb_per_s", "count"))
    return Cache(
        name=section.text("name"),
        capacity_bytes=facts.number(section, "capacity_mib"),
        bandwidth_bytes_per_s=facts.optional(section, "bandwidth_gb_per_s"),
        count=section.integer("count", 1, 1024) if "count" in section else 1,
    )


def _link(section: Section, facts: _Facts) -> Link:
    section.check_keys(("name", "bandwidth_gb_per_s", "latency_us", "device_count_max"))
    return Link(
        name=section.text("name"),
        bandwidth_bytes_per_s=facts.number(section, "bandwidth_gb_per_s"),
        latency_s=facts.number(section, "latency_us"),
        device_count_max=facts.count(section, "device_count_max"),
    )


def _power(section: Section, facts: _Facts) -> Power:
    section.check_keys(("limit_watt", "idle_watt"))
    power = Power(facts.number(section, "limit_watt"), facts.number(section, "idle_watt"))
    if power.idle_watt > power.limit_watt:
        section.refuse("idle_watt", f"{power.idle_watt:g} is above limit_watt, which is {power.limit_watt:g}.")
    return power


def _constraints(section: Section) -> Constraints:
    flags = ("symmetric_only", "batch_one_only", "static_activations_only")
    section.check_keys((), (*flags, "alignment_elements"))
    given = {flag: section.boolean(flag) for flag in flags if flag in section}
    alignment = section.integer("alignment_elements", 1, 4096) if "alignment_elements" in section else 1
    return Constraints(**given, alignment_elements=alignment)


def check_hardware_file(path: str | os.PathLike[str]) -> list[str]:
    """Return warnings about a profile (path, name or alias); InputError if it cannot be loaded at all."""
    text, where = _read_profile(path)
    facts = _Facts()
    hardware = _parse(text, where, facts)
    found = [warning for check in _CHECKS for warning in check(hardware)]
    found += [(key, "low confidence; measure it or find a better source.") for key in _low_confidence(facts)]
    warnings = [f"{where}:{facts.lines.get(key, 1)}: {key}: {sentence}" for key, sentence in found]
    if Path(where).stem != hardware.name:
        warnings.append(f"{where}: name: {hardware.name} differs from the file name; keep them equal.")
    return warnings


def _low_confidence(facts: _Facts) -> list[str]:
    return [key for key, source in facts.sources.items() if source.confidence == "low"]


def _peak_warnings(hardware: Hardware) -> list[tuple[str, str]]:
    warnings = []
    for dtype, peak in hardware.peak_flop_per_s.items():
        key = f"dense_tflop_per_s.{dtype}"
        if dtype not in hardware.flop_per_cycle_per_unit:
            warnings.append((key, "units.flop_per_cycle_per_unit has no such dtype to check it by."))
            continue
        per_cycle = hardware.unit_count * hardware.flop_per_cycle_per_unit[dtype]
        ratio = peak / (per_cycle * hardware.boost_clock_hz)
        if abs(ratio - 1) > PEAK_TOLERANCE_FRACTION:
            sentence = (
                f"{ratio:.3g} times units x flop per cycle x boost clock; it implies {peak / per_cycle / MEGA:.0f} MHz."
            )
            sparse = " Is it a sparse rate? Only dense ones belong here."
            warnings.append((key, sentence + (sparse if abs(ratio - 2) <= 2 * PEAK_TOLERANCE_FRACTION else "")))
    return warnings


def _rate_warnings(hardware: Hardware) -> list[tuple[str, str]]:
    listed = [dtype for dtype in hardware.flop_per_cycle_per_unit if dtype not in hardware.peak_flop_per_s]
    key = "units.flop_per_cycle_per_unit"
    return [(f"{key}.{dtype}", "dense_tflop_per_s has no such dtype, so it is never used.") for dtype in listed]


def _clock_warnings(hardware: Hardware) -> list[tuple[str, str]]:
    base = hardware.base_clock_hz
    if base is None or base <= hardware.boost_clock_hz:
        return []
    return [("units.base_clock_mhz", "above boost_clock_mhz.")]


_CHECKS: tuple[Callable[[Hardware], list[tuple[str, str]]], ...] = (_peak_warnings, _rate_warnings, _clock_warnings)

_COPY_HEADER = """\
# A copy of the profile {origin}; edit it and give its path to --hw.
# Keys carry their units; every number is {{value, source, kind, confidence}}:
#   kind: datasheet | measured | derived | assumed     confidence: high | medium | low
# Delete a dtype from dense_tflop_per_s if the machine lacks it: absent means that it cannot be multiplied in.
# "codesign hw check FILE.yaml" names what is wrong or doubtful. All keys: docs/hardware-format.md
"""


def copy_profile(name: str, new_name: str | None = None) -> str:
    """Return the text of a commented copy under a new name, without aliases, for the user to edit."""
    origin = resolve_hardware_name(name)
    chosen = normal_name(new_name) if new_name is not None else f"{origin}-copy"
    if not NAME.fullmatch(chosen):
        raise InputError(f'"{chosen[:80]}" is no name; use lower-case letters, digits and . + - only (at most 80).')
    text = read_text(profile_path(origin), MAX_PROFILE_BYTES, "hardware profile")
    text = re.sub(r"^name: .*$", lambda _: f'name: "{chosen}"', text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^aliases: .*$", "aliases: []", text, count=1, flags=re.MULTILINE)
    return _COPY_HEADER.format(origin=origin) + text
