"""What a machine can do. SI units only; every number has a source in `Hardware.sources`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

HardwareKind = Literal["gpu", "cpu", "npu"]
SourceKind = Literal["datasheet", "measured", "derived", "assumed"]
Confidence = Literal["high", "medium", "low"]

MATH_DTYPES = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp6", "fp4", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Source:
    """Where one number comes from."""

    text: str
    kind: SourceKind
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class Memory:
    """The main memory that holds weights and KV cache; on a measured CPU also what each count of threads reads."""

    technology: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float
    sustained_fraction: float
    ecc: bool | None = None
    thread_bytes_per_s: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def sustained_bytes_per_s(self) -> float:
        """Return the read bandwidth that weight streaming reaches."""
        return self.bandwidth_bytes_per_s * self.sustained_fraction


@dataclass(frozen=True, slots=True)
class Cache:
    """The last-level cache shared by all units, or one of `count` that each serve their part of them."""

    name: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Link:
    """A link to peers or to the host; bandwidth is per direction and per device."""

    name: str
    bandwidth_bytes_per_s: float
    latency_s: float
    device_count_max: int


@dataclass(frozen=True, slots=True)
class Power:
    """Board or socket power."""

    limit_watt: float
    idle_watt: float


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the machine cannot do although its rates suggest it; all False and 1 on general machines."""

    symmetric_only: bool = False
    batch_one_only: bool = False
    static_activations_only: bool = False
    alignment_elements: int = 1


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine as described by one YAML file. A dtype absent from `peak_flop_per_s` cannot be multiplied in."""

    name: str
    title: str
    kind: HardwareKind
    vendor: str
    architecture: str
    aliases: tuple[str, ...]
    compute_capability: tuple[int, int] | None
    isa: frozenset[str]
    unit_name: str
    unit_count: int
    base_clock_hz: float | None
    boost_clock_hz: float
    flop_per_cycle_per_unit: Mapping[str, float]
    peak_flop_per_s: Mapping[str, float]
    sustained_compute_fraction: float
    memory: Memory
    cache: Cache | None
    launch_overhead_s: float
    peer_link: Link | None
    host_link: Link | None
    power: Power
    price_usd_per_hour: float | None
    constraints: Constraints
    sources: Mapping[str, Source]
    digest: str

    def sustained_flop_per_s(self, math_dtype: str) -> float:
        """Return the dense rate that large multiplications sustain; KeyError if the machine lacks the dtype."""
        return self.peak_flop_per_s[math_dtype] * self.sustained_compute_fraction

    def ridge_flop_per_byte(self, math_dtype: str) -> float:
        """Return sustained rate over sustained bandwidth, the intensity where compute takes over."""
        return self.sustained_flop_per_s(math_dtype) / self.memory.sustained_bytes_per_s
