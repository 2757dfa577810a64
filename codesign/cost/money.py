"""Money: the price of the machines over the tokens they make."""

from codesign.cost.prediction import Prediction
from codesign.units import SECONDS_PER_HOUR

TOKENS_PER_MILLION = 1e6


def usd_per_million_tokens(price_usd_per_hour: float, gpu_count: int, tokens_per_s: Prediction) -> Prediction:
    """Return the price of a million generated tokens on machines that do nothing else."""
    return tokens_per_s.inverse(price_usd_per_hour * gpu_count / SECONDS_PER_HOUR * TOKENS_PER_MILLION)
