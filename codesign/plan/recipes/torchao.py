r"""`FqnToConfig` of torchao as JSON, one config per set of modules.

Source: torchao 0.18, core/config.py (config_from_dict: `_type`, `_version`, `_data`; other keys are ignored) and
quantization/quant_api.py: keys `re:...` of FqnToConfig match a module's name in full, the first that matches wins,
what nothing matches stays as it is; Transformers takes it as `TorchAoConfig(quant_type=...)`.
"""

from typing import Any

from codesign.files import to_json
from codesign.hardware.hardware import Hardware
from codesign.plan.recipes.patterns import by_scheme, module_patterns
from codesign.plan.recipes.tool import Export, Tool, remarks
from codesign.schemes.scheme import Scheme
from codesign.schemes.torchao_arguments import torchao_config, typed

USAGE = (
    "torchao: quantize_(model, config_from_dict(json.load(open(FILE))), filter_fn=None)",
    "Transformers: TorchAoConfig(quant_type=config_from_dict(...), include_input_output_embeddings=True); without the "
    "second argument it leaves lm_head in 16 bits",
)


def problem(scheme: Scheme, _method: str) -> str | None:
    """Return why torchao has no config for the scheme."""
    return None if torchao_config(scheme) else f"torchao has no config for {scheme}."


def machine_problem(scheme: Scheme, hardware: Hardware) -> str | None:
    """Return why torchao's config cannot make the scheme on this machine."""
    if hardware.kind == "cpu" and scheme.family == "w4a16":
        return f"torchao packs {scheme} for GPUs only; its packing for CPUs is a prototype that JSON cannot name."
    return None


def write(export: Export) -> str:
    """Return the config as JSON, with a comment beside it that torchao ignores."""
    keys: dict[str, dict[str, Any]] = {}
    for members in by_scheme(export.modules).values():
        found = torchao_config(members[0].scheme)
        quantized = [module for module in members if module.role != "embedding"]
        keys |= {f"re:{pattern}": dict(found or {}) for pattern in module_patterns(quantized, export.modules)}
    comments = [*remarks(export, TOOL.written_for), *USAGE]
    return to_json({"_comment": comments, **typed("FqnToConfig", fqn_to_config=keys)})


TOOL = Tool(
    name="torchao",
    title="torchao",
    version="0.18",
    source="torchao docs, FqnToConfig",
    libraries=("torch", "torchao", "vllm"),
    write=write,
    problem=problem,
    machine_problem=machine_problem,
)
