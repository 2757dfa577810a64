"""What a calibration study found, as values and as a JSON file that an interrupted study goes on with."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from codesign.codec import from_plain, to_plain
from codesign.errors import InputError
from codesign.files import parse_json, read_text, to_json, write_atomic

SCHEMA, SCHEMA_VERSION = "codesign.calibration_study", 1
_FILE_BYTES_MAX = 2**26


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What is varied, and what the study depends on; the digests are those of the model and of the text's tokens."""

    model: str
    model_digest: str
    text_digest: str
    sizes: tuple[int, ...]
    sources: tuple[str, ...]
    schemes: tuple[str, ...]
    methods: tuple[str, ...]
    repeats: int
    window_tokens: int
    evaluation_windows: int

    @property
    def cells(self) -> Iterator[tuple[str, int]]:
        """Yield every (source, seed): what is computed in one go."""
        for source in self.sources:
            for seed in range(self.repeats):
                yield source, seed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a calibrated scheme is from the exact model on the evaluation text.

    `kl_nats` is KL(exact || calibrated) per token, `output_error_fraction` the squared error of the last hidden states
    over their squares. `sample_count` is the number of calibration windows.
    """

    source: str
    seed: int
    scheme: str
    method: str
    sample_count: int
    kl_nats: float
    output_error_fraction: float


@dataclass(frozen=True, slots=True)
class Reference:
    """A scheme without calibration: ranges of each evaluation batch itself, or weights rounded to nearest."""

    scheme: str
    kl_nats: float
    output_error_fraction: float


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that was found so far."""

    settings: StudySettings
    references: tuple[Reference, ...] = ()
    outcomes: tuple[Outcome, ...] = ()

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """Return the (source, seed) that are still to be computed."""
        there = {(one.source, one.seed) for one in self.outcomes}
        return tuple(cell for cell in self.settings.cells if cell not in there)

    def with_outcomes(self, found: tuple[Outcome, ...]) -> "Study":
        """Return the study with more outcomes."""
        return replace(self, outcomes=(*self.outcomes, *found))


@dataclass(frozen=True, slots=True)
class Spread:
    """Outcomes over the seeds: the mean, and the standard deviation, which one seed alone does not have."""

    scheme: str
    source: str
    method: str
    sample_count: int
    kl_nats: float
    kl_deviation_nats: float | None
    output_error_fraction: float


def spreads(study: Study) -> tuple[Spread, ...]:
    """Return mean and deviation over the seeds, in the order in which the settings name things."""
    grouped: dict[tuple[str, str, str, int], list[Outcome]] = {}
    for one in study.outcomes:
        grouped.setdefault((one.scheme, one.source, one.method, one.sample_count), []).append(one)
    order = study.settings
    places = [{name: place for place, name in enumerate(names)} for names in (order.schemes, order.sources)]
    found = sorted(grouped.items(), key=lambda item: (places[0][item[0][0]], places[1][item[0][1]]))
    return tuple(_spread(key, outcomes) for key, outcomes in found)


def _spread(key: tuple[str, str, str, int], outcomes: list[Outcome]) -> Spread:
    kl = [one.kl_nats for one in outcomes]
    deviation = statistics.stdev(kl) if len(kl) > 1 else None
    return Spread(*key, statistics.fmean(kl), deviation, statistics.fmean(o.output_error_fraction for o in outcomes))


def write_study(study: Study, path: Path) -> None:
    """Write the study whole or not at all."""
    write_atomic(path, to_json({"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **to_plain(study)}))


def read_study(path: Path) -> Study:
    """Return a study that was written."""
    value = parse_json(read_text(path, _FILE_BYTES_MAX, "calibration study"), str(path))
    if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
        raise InputError(f"{path}: this is no calibration study; name another file, or replace this one with --force.")
    if value.pop("schema_version", None) != SCHEMA_VERSION:
        raise InputError(f"{path}: this study is of another version of codesign; replace it with --force.")
    return from_plain(Study, value, str(path))


def resumed_study(settings: StudySettings, path: Path | None) -> Study:
    """Return what an earlier run with the same settings left in the file, else an empty study."""
    if path is None or not path.exists():
        return Study(settings)
    found = read_study(path)
    if found.settings == settings:
        return found
    names = (field.name for field in fields(settings))
    differing = ", ".join(name for name in names if getattr(found.settings, name) != getattr(settings, name))
    raise InputError(
        f"{path}: a study with other settings lies here ({differing} differ). Name another file, or replace it with "
        "--force."
    )
