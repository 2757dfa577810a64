"""A quality loss in nats, with its 80 % interval and where it comes from; or why it is unknown."""

import math
from dataclasses import dataclass
from enum import StrEnum

from codesign.cost.origin import Origin
from codesign.cost.prediction import Prediction


class LossOrigin(StrEnum):
    """Where a loss comes from. The baseline is 16 bits, whose loss is zero by definition."""

    BASELINE = "baseline"
    MEASURED = "measured"
    ANCHORED = "anchored prior"
    PRIOR = "published prior"


_TRUST = {
    LossOrigin.BASELINE: Origin.MEASURED,
    LossOrigin.MEASURED: Origin.MEASURED,
    LossOrigin.ANCHORED: Origin.CALIBRATED,
    LossOrigin.PRIOR: Origin.TRANSFERRED,
}


@dataclass(frozen=True, slots=True)
class LossEstimate:
    """ln(perplexity quantized / perplexity in 16 bits), its 80 % interval, and the evidence in words."""

    loss_nats: float
    low_nats: float
    high_nats: float
    origin: LossOrigin
    method: str = ""
    evidence: str = ""

    def scaled(self, share: float) -> "LossEstimate":
        """Return `share` of the loss; the relative width of the interval stays."""
        return LossEstimate(
            self.loss_nats * share, self.low_nats * share, self.high_nats * share,
            self.origin, self.method, self.evidence,
        )  # fmt: skip

    @property
    def prediction(self) -> Prediction:
        """Return the loss as the planner adds it up."""
        return Prediction(self.loss_nats, self.low_nats, self.high_nats, _TRUST[self.origin])


@dataclass(frozen=True, slots=True)
class Unknown:
    """A loss that nobody measured and that cannot be predicted; never to be read as zero."""

    reason: str


NO_LOSS = LossEstimate(0.0, 0.0, 0.0, LossOrigin.BASELINE, evidence="16 bits are the baseline")


def perplexity_ratio(loss_nats: float) -> float:
    """Return quantized over 16-bit perplexity. Source: perplexity = exp(mean negative log-likelihood)."""
    return math.exp(loss_nats)


def loss_of_perplexities(quantized: float, unquantized: float) -> float:
    """Return the loss in nats per token. Source: perplexity = exp(mean negative log-likelihood)."""
    return math.log(quantized / unquantized)
