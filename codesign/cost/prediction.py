"""A predicted number: value, 80 % interval and origin. Never a bare figure."""

from collections.abc import Iterable
from dataclasses import dataclass

from codesign.cost.kernels import KernelPrediction
from codesign.cost.origin import Origin

TRUST = tuple(Origin)
MATERIAL_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Prediction:
    """A value with its 80 % interval; the unit is in the name of the field that holds it."""

    value: float
    low: float
    high: float
    origin: Origin

    def scaled(self, factor: float) -> "Prediction":
        """Return the prediction of `factor` times the quantity."""
        return Prediction(self.value * factor, self.low * factor, self.high * factor, self.origin)

    def inverse(self, numerator: float = 1.0) -> "Prediction":
        """Return the prediction of `numerator` over the quantity; the ends of the interval change places."""
        return Prediction(numerator / self.value, numerator / self.high, numerator / self.low, self.origin)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of many kernels together: the prediction, how much of it each resource was busy, and what draws power."""

    seconds: Prediction
    compute_s: float
    memory_s: float
    fixed_s: float
    compute_load_s: float = 0.0
    memory_load_s: float = 0.0


def add_predictions(parts: Iterable[Prediction]) -> Prediction:
    """Return the sum; intervals add up as for errors that go together.

    The origin is the least trusted one among the parts that make a tenth of the sum or more.
    """
    known = tuple(parts)
    value = sum(part.value for part in known)
    counted = [part.origin for part in known if abs(part.value) >= MATERIAL_FRACTION * abs(value)]
    return Prediction(
        value,
        sum(part.low for part in known),
        sum(part.high for part in known),
        max(counted, key=TRUST.index, default=Origin.DATASHEET),
    )


def add_stages(parts: Iterable[StageTime]) -> StageTime:
    """Return the stages one after another."""
    known = tuple(parts)
    return StageTime(
        add_predictions(part.seconds for part in known),
        sum(part.compute_s for part in known),
        sum(part.memory_s for part in known),
        sum(part.fixed_s for part in known),
        sum(part.compute_load_s for part in known),
        sum(part.memory_load_s for part in known),
    )


def stage(kernel: KernelPrediction, count: float = 1.0) -> StageTime:
    """Return the time of all kernels in the arrays, `count` times."""
    value, low, high = (float(column.sum()) * count for column in (kernel.predicted_s, kernel.low_s, kernel.high_s))
    return StageTime(
        Prediction(value, low, high, kernel.origin),
        float(kernel.time.compute_s.sum()) * count,
        float(kernel.time.memory_s.sum()) * count,
        float(kernel.time.fixed_s.sum()) * count,
        float(kernel.power_load.compute_s.sum()) * count,
        float(kernel.power_load.memory_s.sum()) * count,
    )


def exactly(value: float, origin: Origin = Origin.DATASHEET) -> Prediction:
    """Return a prediction without spread, for what follows from shapes alone."""
    return Prediction(value, value, value, origin)


NO_TIME = StageTime(exactly(0.0), 0.0, 0.0, 0.0)
