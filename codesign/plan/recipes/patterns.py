"""Compact patterns that name planned modules: one per set of blocks, not one per module.

Regular expressions are anchored at both ends, so that they mean the same to tools that search (AutoRound, llama.cpp),
match from the start (compressed-tensors, GPTQModel) and match in full (torchao). They use no backslash but before
dots, because they are quoted in shells, YAML and JSON.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from codesign.plan.recipes.modules import PlannedModule


def module_patterns(chosen: Iterable[PlannedModule], modules: Sequence[PlannedModule]) -> list[str]:
    """Return regular expressions that match the chosen of all `modules` and the experts inside them, and no other."""
    every = _blocks_by_kind(modules)
    kinds_by_blocks: dict[tuple[str, str], list[str]] = {}
    for kind, blocks in _blocks_by_kind(chosen).items():
        path, mark, rest = kind.partition(".#.")
        numbers = _numbers(blocks, every[kind]) if mark else ""
        kinds_by_blocks.setdefault((path if mark else "", numbers), []).append(rest if mark else kind)
    return [_pattern(path, numbers, names) for (path, numbers), names in kinds_by_blocks.items()]


def _blocks_by_kind(modules: Iterable[PlannedModule]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for module in modules:
        blocks = found.setdefault(module.kind, [])
        if module.block_index is not None:
            blocks.append(module.block_index)
    return found


def _numbers(blocks: Sequence[int], every: Sequence[int]) -> str:
    return "[0-9]+" if len(blocks) == len(every) else alternatives([str(block) for block in blocks])


def alternatives(options: Sequence[str]) -> str:
    """Return one expression for several."""
    return options[0] if len(options) == 1 else f"({'|'.join(options)})"


def _pattern(path: str, numbers: str, names: Sequence[str]) -> str:
    tails = alternatives([_module_expression(name) for name in names])
    return f"^{_path_expression(path)}\\.{numbers}\\.{tails}$" if path else f"^{tails}$"


def _path_expression(path: str) -> str:
    """Return the path of the blocks; multimodal wrappers put `language_model` into it."""
    return r"model\.(language_model\.)?layers" if path == "model.layers" else re.escape(path)


def _module_expression(name: str) -> str:
    """Return one module; experts are stored apart or fused, and Transformers 5 calls Mixtral's `mlp`."""
    expression = name.replace(".", r"\.")
    if not name.endswith("experts"):
        return expression
    return expression.replace("block_sparse_moe", "(block_sparse_moe|mlp)") + r"\..*"


def glob_numbers(blocks: Sequence[int], every: Sequence[int]) -> list[str]:
    """Return shell wildcards for block numbers: `*` for all, else one class of last digits per leading digits."""
    if len(blocks) == len(every):
        return ["*"]
    digits: dict[str, str] = {}
    for block in blocks:
        number = str(block)
        digits[number[:-1]] = digits.get(number[:-1], "") + number[-1]
    return [lead + (last if len(last) == 1 else f"[{last}]") for lead, last in digits.items()]


def module_globs(chosen: Iterable[PlannedModule], modules: Sequence[PlannedModule]) -> list[str]:
    """Return shell wildcards that match the chosen of all `modules`, and those inside experts."""
    every = _blocks_by_kind(modules)
    globs = []
    for kind, blocks in _blocks_by_kind(chosen).items():
        path, mark, rest = kind.partition(".#.")
        for numbers in glob_numbers(blocks, every[kind]) if mark else [""]:
            name = f"{path}.{numbers}.{rest}" if mark else kind
            globs.append(name.replace("block_sparse_moe.experts", "*.experts"))
    return globs


def by_scheme(modules: Iterable[PlannedModule]) -> Mapping[str, list[PlannedModule]]:
    """Return the quantized modules by name of their scheme, the scheme of most modules first."""
    found: dict[str, list[PlannedModule]] = {}
    for module in modules:
        if module.scheme.quantized:
            found.setdefault(module.scheme.name, []).append(module)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
