"""The requests of a service: when they arrive and how many tokens they hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray
from codesign.errors import InputError, did_you_mean
from codesign.files import read_text

IntArray = npt.NDArray[np.int64]
TOKENS_MAX = 2**24
REQUESTS_MAX = 20_000_000
RATE_MAX_PER_S = 1e6
SIGMA_MAX, VARIATION_MAX = 5.0, 20.0
LENGTHS_BYTES_MAX = 64 * 2**20


class Lengths(Protocol):
    """A distribution of token counts."""

    @property
    def mean_tokens(self) -> float:
        """Return the mean."""

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """Return so many lengths, each at least 1."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every length is the same."""

    tokens: int

    @property
    def mean_tokens(self) -> float:
        """Return the length."""
        return float(self.tokens)

    def draw(self, _random: np.random.Generator, count: int) -> IntArray:
        """Return the length so many times."""
        return np.full(count, self.tokens, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lengths whose logarithm is normal around that of `median_tokens`, with standard deviation `sigma`."""

    median_tokens: float
    sigma: float

    @property
    def mean_tokens(self) -> float:
        """Return the mean, which the long tail puts above the median."""
        return float(self.median_tokens * np.exp(self.sigma**2 / 2))

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """Return so many lengths."""
        return _whole(self.median_tokens * np.exp(self.sigma * random.standard_normal(count)))


@dataclass(frozen=True, slots=True)
class Bimodal:
    """Two lengths, the second with probability `second_share`."""

    first_tokens: int
    second_tokens: int
    second_share: float

    @property
    def mean_tokens(self) -> float:
        """Return the mean."""
        return self.first_tokens + (self.second_tokens - self.first_tokens) * self.second_share

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """Return so many lengths."""
        return np.where(random.random(count) < self.second_share, self.second_tokens, self.first_tokens)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Lengths drawn from observed ones, each as likely."""

    observed: tuple[int, ...]

    @property
    def mean_tokens(self) -> float:
        """Return the mean of what was observed."""
        return float(np.mean(self.observed))

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """Return so many lengths."""
        return random.choice(np.array(self.observed, dtype=np.int64), count)


def _whole(tokens: FloatArray) -> IntArray:
    return np.clip(np.rint(tokens), 1, TOKENS_MAX).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Demand:
    """A service's requests: arrivals per second on average, how bursty, and lengths that do not depend on each other.

    `variation` is the standard deviation of the time between arrivals over its mean: 1 is a Poisson process, 0 a
    clock, more are bursts (a gamma distribution). The first `shared_prefix_tokens` of every prompt are the same.
    """

    rate_per_s: float
    prompt: Lengths
    output: Lengths
    variation: float = 1.0
    shared_prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of arrival: seconds from the first possible one, tokens in and out."""

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Return when the last one arrives."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    def part(self, chosen: Any) -> "Requests":
        """Return the requests of a slice, a mask or an index."""
        return Requests(self.arrival_s[chosen], self.prompt_tokens[chosen], self.output_tokens[chosen])

    def from_zero(self) -> "Requests":
        """Return the requests with the first arriving at 0 s."""
        return Requests(self.arrival_s - self.arrival_s[:1], self.prompt_tokens, self.output_tokens)


def draw_requests(demand: Demand, count: int, seed: int) -> Requests:
    """Return `count` requests; equal seeds give equal lengths at every rate, so that rates can be compared."""
    if not 1 <= count <= REQUESTS_MAX:
        raise InputError(f"{count:,} requests cannot be drawn; ask for 1 to {REQUESTS_MAX:,}.")
    arrivals, prompts, outputs = (np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(3))
    gaps_s = _gaps(arrivals, demand.variation, count) / demand.rate_per_s
    return Requests(np.cumsum(gaps_s), demand.prompt.draw(prompts, count), demand.output.draw(outputs, count))


def _gaps(random: np.random.Generator, variation: float, count: int) -> FloatArray:
    """Return times between arrivals with mean 1."""
    if variation == 0:
        return np.ones(count)
    shape = variation**-2.0
    return random.gamma(shape, 1.0 / shape, count)


# --- from text ---


def parse_lengths(text: str, option: str) -> Lengths:
    """Return the distribution of a text: 300, lognormal:MEDIAN:SIGMA, bimodal:FIRST:SECOND:SHARE or file:FILE.

    InputError for other texts, and for a file that does not hold one number of tokens a line.
    """
    word, _, path = text.strip().partition(":")
    if word.lower() == "file":
        return _observed(Path(path), option)
    kind, *words = text.strip().lower().split(":")
    if not words:
        return Fixed(_tokens(kind, option))
    known: Mapping[str, tuple[int, Callable[[list[str]], Lengths]]] = {
        "lognormal": (2, lambda w: Lognormal(_tokens(w[0], option), _number(w[1], option, 0.0, SIGMA_MAX))),
        "bimodal": (
            3,
            lambda w: Bimodal(_tokens(w[0], option), _tokens(w[1], option), _number(w[2], option, 0.0, 1.0)),
        ),
    }
    if kind not in known or len(words) != known[kind][0]:
        raise InputError(
            f'{option}: "{text[:60]}" is not understood.{did_you_mean(kind, known)} Write a number of tokens, '
            "lognormal:MEDIAN:SIGMA, bimodal:FIRST:SECOND:SHARE or file:FILE with one number a line."
        )
    return known[kind][1](words)


def _observed(path: Path, option: str) -> Empirical:
    words = read_text(path, LENGTHS_BYTES_MAX, "a list of lengths").split()
    if not words:
        raise InputError(f"{option}: {path} is empty; write one number of tokens a line.")
    return Empirical(tuple(_tokens(word, f"{option}: {path}") for word in words))


def _tokens(word: str, option: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word[:12]) <= TOKENS_MAX):
        raise InputError(f'{option}: "{word[:40]}" is not a number of tokens from 1 to {TOKENS_MAX:,}.')
    return int(word)


def _number(word: str, option: str, low: float, high: float) -> float:
    try:
        value = float(word)
    except ValueError:
        value = np.nan
    if not low <= value <= high:
        raise InputError(f'{option}: "{word[:40]}" is not a number from {low:g} to {high:g}.')
    return value
