"""The fitted constants of prior.json, as types. `scripts/fit_quality_prior.py` writes the file."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codesign.codec import from_plain
from codesign.files import parse_json, read_text

_FILE = Path(__file__).with_name("prior.json")
_BYTES_MAX = 2**20
_REFERENCE_GROUP = 128
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ModelFactor:
    """How many times the loss of the reference model a model has, and on how many cells that rests."""

    factor: float
    cells: int


@dataclass(frozen=True, slots=True)
class FamilyFactor:
    """The same of a family, and how many of its models are measured well."""

    factor: float
    models: int


@dataclass(frozen=True, slots=True)
class SchemeFactor:
    """Loss of the reference model; `factor_80` divides and multiplies it to the 80 % interval."""

    scheme: str
    method: str
    loss_nats: float
    factor_80: float
    cells: int
    sources: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class RiskyCells:
    """Published names of models on which a scheme was measured, and of those on which it collapsed."""

    measured: tuple[str, ...]
    collapsed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KvFactors:
    """Losses at a reference number of parameters, which fall with the parameters to the power `exponent`."""

    reference_parameters: float
    exponent: float
    factor_80: float
    loss_nats: Mapping[str, float]
    cells: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Factors:
    """Everything in prior.json."""

    format_version: int
    reference_model: str
    cells: int
    error_factors_50_80_90: Mapping[str, tuple[float, ...]]
    error_counts: Mapping[str, int]
    resolution_nats: float
    group_exponent: float
    unscaled: tuple[str, ...]
    models: Mapping[str, ModelFactor]
    families: Mapping[str, FamilyFactor]
    schemes: tuple[SchemeFactor, ...]
    risky: Mapping[str, RiskyCells]
    kv: KvFactors

    def half_width(self, known: str) -> float:
        """Return the 80 % half-width in ln d when `known` is cell, family, global or anchored."""
        return math.log(self.error_factors_50_80_90[known][1])


@functools.cache
def load_factors() -> Factors:
    """Return the shipped constants."""
    return from_plain(Factors, parse_json(read_text(_FILE, _BYTES_MAX, "quality prior"), str(_FILE)), str(_FILE))


@functools.cache
def scheme_factors() -> Mapping[Key, SchemeFactor]:
    """Return the shipped constants by scheme and method."""
    return {(row.scheme, row.method): row for row in load_factors().schemes}


def group_factor(group_size: int | None) -> float:
    """Return the loss at a group size over that at 128; the power law is fitted, see docs/quality-prior.md."""
    if group_size is None:
        return 1.0
    return float((group_size / _REFERENCE_GROUP) ** load_factors().group_exponent)
