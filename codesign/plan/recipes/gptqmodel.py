"""`QuantizeConfig` of GPTQModel as JSON: the commonest scheme for all modules, and `dynamic` overrides for the rest.

Source: GPTQModel 7.7, quantization/config.py: keys of `dynamic` are regular expressions matched from the start, first
match wins, `+:` overrides and `-:` leaves a module in 16 bits; README, "Dynamic Quantization (Per Module Config
Override)". vLLM reads it from the checkpoint (quantization/gptq_marlin.py: symmetric weights of 4 and 8 bits) and reads
AWQ checkpoints of one bit-width with zero points (quantization/awq_marlin.py).
"""

from typing import Any

from codesign.files import to_json
from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.patterns import by_scheme, module_patterns
from codesign.plan.recipes.tool import Export, Tool, remarks
from codesign.quality.methods import group_size_of
from codesign.schemes.scheme import Scheme

BITS = (2, 3, 4, 8)


def problem(scheme: Scheme, method: str) -> str | None:
    """Return why a GPTQ or AWQ checkpoint cannot hold the scheme."""
    if not scheme.weight_only or scheme.family not in [f"w{bits}a16" for bits in BITS]:
        return f"GPTQ and AWQ checkpoints hold weight-only integers of {', '.join(map(str, BITS))} bits, not {scheme}."
    if method == "awq" and (scheme.weights.symmetric or scheme.weights.bits != 4):
        return f"AWQ checkpoints hold 4 bits with zero points (as in W4A16-g128-asym), not {scheme}."
    if method != "awq" and not scheme.weights.symmetric:
        return f"The GPTQ kernels take symmetric weights, not {scheme} (vLLM, quantization/gptq_marlin.py)."
    return None


def whole_problem(modules: tuple[PlannedModule, ...]) -> str | None:
    """Return why AWQ cannot make these modules together: its checkpoints have one bit-width and group size."""
    quantized = by_scheme(modules)
    methods = {members[0].method for members in quantized.values()}
    if "awq" in methods and len(quantized) > 1:
        return f"AWQ checkpoints hold one scheme, not {' and '.join(quantized)}; plan with --method gptq to mix."
    return None


def write(export: Export) -> str:
    """Return the config as JSON."""
    groups = by_scheme(export.modules)
    first = next(iter(groups.values()), [])
    awq = bool(first) and first[0].method == "awq"
    base = _arguments(first[0].scheme) if first else {"bits": 16, "group_size": -1, "sym": True}
    config: dict[str, Any] = {
        **base,
        "desc_act": False,
        "lm_head": any(module.role == "head" and module.scheme.quantized for module in export.modules),
        "method": "awq" if awq else "gptq",
        "format": "gemm" if awq else "gptq",
        "dynamic": _overrides(export, list(groups.values())[1:]),
        "meta": {"made_by": remarks(export, TOOL.written_for)},
    }
    return to_json(config)


def _overrides(export: Export, others: list[list[PlannedModule]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for members in others:
        for pattern in module_patterns(members, export.modules):
            found[f"+:{pattern}"] = _arguments(members[0].scheme)
    kept = [m for m in export.modules if not m.scheme.quantized and m.role not in ("embedding", "head")]
    return found | {f"-:{pattern}": {} for pattern in module_patterns(kept, export.modules)}


def _arguments(scheme: Scheme) -> dict[str, Any]:
    return {
        "bits": int(scheme.weights.bits),
        "group_size": group_size_of(scheme) or -1,
        "sym": scheme.weights.symmetric,
    }


TOOL = Tool(
    name="gptqmodel",
    title="GPTQModel",
    version="7.7",
    source="GPTQModel README, dynamic quantization",
    libraries=("vllm", "sglang"),
    write=write,
    problem=problem,
    whole_problem=whole_problem,
)
