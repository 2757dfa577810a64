"""Named services: typical lengths with their sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from codesign.capacity.requests import Lengths, Lognormal
from codesign.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True)
class Preset:
    """Lengths of a kind of service; the first `shared_prefix_tokens` of every prompt are the same."""

    name: str
    prompt: Lengths
    output: Lengths
    shared_prefix_tokens: int
    source: str


# Lognormal lengths keep the published median and the published mean (or 90 % point): sigma^2 = 2 ln(mean / median).
_AZURE = (
    "Azure LLM inference trace 2023: medians from Splitwise (arXiv 2311.18677), means from its {} requests "
    "(AzurePublicDataset, CC-BY)"
)
_PRESETS = (
    Preset("chat", Lognormal(1020, 0.50), Lognormal(129, 0.99), 0, _AZURE.format("19,366 conversation")),
    Preset("code", Lognormal(1500, 0.79), Lognormal(13, 1.24), 0, _AZURE.format("8,819 coding")),
    Preset("summarise", Lognormal(2730, 0.24), Lognormal(167, 0.62), 0,
           "Arxiv-4K in Vidur (arXiv 2405.05465), table 1: medians and 90 % points"),
    # Means of 8,596 and 182 tokens, 59 % of the blocks found in the cache; the spread is not published.
    Preset("agent", Lognormal(7586, 0.5), Lognormal(110, 1.0), 5072,
           "Mooncake (FAST 2025), table 2, tool and agent trace: means and share of cached blocks; spread assumed"),
)  # fmt: skip
PRESETS: Mapping[str, Preset] = MappingProxyType({one.name: one for one in _PRESETS})


def find_preset(name: str) -> Preset:
    """Return the preset of that name; InputError lists what is known."""
    word = name.strip().lower()
    if word not in PRESETS:
        raise InputError(
            f'There is no workload "{name[:40]}".{did_you_mean(word, PRESETS)} Known are {", ".join(PRESETS)}.'
        )
    return PRESETS[word]
