"""All tools that a plan can be exported to."""

from collections.abc import Mapping
from types import MappingProxyType

from codesign.errors import InputError, did_you_mean
from codesign.plan.recipes import (
    autoround,
    gptqmodel,
    llama_cpp,
    llm_compressor,
    mlx,
    modelopt,
    sglang,
    torchao,
    trtllm,
    vllm,
)
from codesign.plan.recipes.tool import Tool

TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        module.TOOL.name: module.TOOL
        for module in (
            vllm, sglang, trtllm, llm_compressor, modelopt, gptqmodel, autoround, llama_cpp, torchao, mlx,
        )
    }
)  # fmt: skip
_ALIASES = {"llmcompressor": "llm-compressor", "auto-round": "autoround", "tensorrt-llm": "trtllm", "mlx-lm": "mlx"}


def find_tool(name: str) -> Tool:
    """Return the tool of that name; InputError names those there are."""
    word = name.strip().lower().replace("_", "-")
    word = _ALIASES.get(word, word)
    if word not in TOOLS:
        guess = did_you_mean(word[:40], (*TOOLS, *_ALIASES))
        raise InputError(f'"{name[:40]}" is no tool to export to.{guess} Known are {", ".join(TOOLS)}.')
    return TOOLS[word]
