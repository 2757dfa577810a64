"""`vllm serve` for a plan.

Source: vLLM docs, cli/serve and configuration/engine_args (--kv-cache-dtype auto, fp8, fp8_e4m3, fp8_e5m2;
--max-model-len; --max-num-seqs; --tensor-parallel-size; --enable-expert-parallel; --quantization); the scheme of a
checkpoint is read from its config.json, so that only in-flight quantization and GGUF files are named; the latter are
read by a plugin since 0.24 (#39612).
"""

import shlex

from codesign.plan.file import Plan
from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.shell import Option, command
from codesign.plan.recipes.tool import Export, Tool, any_scheme, comment, header

ROUTERS = ("router", "shared_router")
KV_NAMES = {"bf16": "auto", "fp16": "auto", "fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}


def write(export: Export) -> str:
    """Return the command that serves the plan's checkpoint, or the model itself where nothing is stored."""
    plan = export.plan
    options: list[Option] = [
        ("--max-model-len", str(export.context_tokens)),
        ("--max-num-seqs", str(plan.workload.batch)),
        ("--tensor-parallel-size", str(plan.gpu_count)),
        ("--kv-cache-dtype", KV_NAMES[export.kv.name]),
        ("--dtype", "float16" if export.sixteen_bit.name == "FP16" else "bfloat16"),
        *_quantization(export),
    ]
    if plan.expert_parallel > 1:
        options.append(("--enable-expert-parallel",))
    return (
        header(export, TOOL.written_for)
        + _how_made(export)
        + command(f"vllm serve {shlex.quote(checkpoint(export))}", options)
    )


def _quantization(export: Export) -> list[Option]:
    if set(export.schemes) == {"NF4"}:
        return [("--quantization", "bitsandbytes")]
    if any(scheme.family == "gguf" for scheme in export.schemes.values()):
        return [("--quantization", "gguf"), ("--tokenizer", export.source)]
    return []


def checkpoint(export: Export) -> str:
    """Return what is served: the plan's checkpoint, or the model itself where it is that or is quantized in flight."""
    if export.stored or not export.schemes or set(export.schemes) == {"NF4"}:
        return export.source
    gguf = any(scheme.family == "gguf" for scheme in export.schemes.values())
    return f"{export.output}.gguf" if gguf else export.output


def _how_made(export: Export) -> str:
    made = checkpoint(export)
    gguf = made.endswith(".gguf")
    plugin = comment("vLLM reads GGUF files since 0.24 with a plugin: pip install vllm-gguf-plugin") if gguf else ""
    if made == export.source:
        return plugin
    tool = "llama.cpp" if gguf else "llm-compressor"
    return plugin + comment(f"{made} is made with the recipe of: codesign plan export PLAN --to {tool}")


def deployment_problem(plan: Plan) -> str | None:
    """Return why vLLM cannot divide the experts so (docs, serving/expert_parallel_deployment: EP = TP x DP)."""
    if plan.expert_parallel in (1, plan.gpu_count):
        return None
    return f"vLLM divides experts over all {plan.gpu_count} devices or none, not over {plan.expert_parallel}."


def mixed_families(modules: tuple[PlannedModule, ...]) -> str | None:
    """Return why one checkpoint cannot hold these schemes: GGUF, bitsandbytes and the rest are files of their own."""
    kinds = {m.scheme.family if m.scheme.family in ("gguf", "nf4") else "hf" for m in modules if m.scheme.quantized}
    if len(kinds) > 1:
        return "GGUF types, NF4 and other schemes do not go into one checkpoint."
    kept = [m for m in modules if not m.scheme.quantized and m.block_index is not None and m.role not in ROUTERS]
    if kinds == {"nf4"} and kept:
        return f"bitsandbytes takes every linear layer of the blocks, and {kept[0].name} stays in 16 bits."
    return None


TOOL = Tool(
    name="vllm",
    title="vLLM",
    version="0.33",
    source="vLLM docs, engine arguments",
    libraries=("vllm",),
    write=write,
    problem=any_scheme,
    whole_problem=mixed_families,
    deployment_problem=deployment_problem,
    serves=True,
    kv_names=KV_NAMES,
)
