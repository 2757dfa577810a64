"""`sglang.launch_server` for a plan.

Source: SGLang docs, advanced_features/server_arguments (--model-path, --context-length, --max-running-requests,
--tp-size, --ep-size, --kv-cache-dtype auto, fp8_e5m2, fp8_e4m3, --dtype, --load-format).
"""

from codesign.plan.recipes.shell import Option, command
from codesign.plan.recipes.tool import Export, Tool, any_scheme, header
from codesign.plan.recipes.vllm import checkpoint, mixed_families

KV_NAMES = {"bf16": "auto", "fp16": "auto", "fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}


def write(export: Export) -> str:
    """Return the command that serves the plan's checkpoint."""
    plan = export.plan
    options: list[Option] = [
        ("--model-path", checkpoint(export)),
        ("--context-length", str(export.context_tokens)),
        ("--max-running-requests", str(plan.workload.batch)),
        ("--tp-size", str(plan.gpu_count)),
        ("--kv-cache-dtype", KV_NAMES[export.kv.name]),
        ("--dtype", "float16" if export.sixteen_bit.name == "FP16" else "bfloat16"),
    ]
    if plan.expert_parallel > 1:
        options.append(("--ep-size", str(plan.expert_parallel)))
    if checkpoint(export).endswith(".gguf"):
        options += [("--load-format", "gguf"), ("--quantization", "gguf"), ("--tokenizer-path", export.source)]
    if set(export.schemes) == {"NF4"}:
        options += [("--load-format", "bitsandbytes"), ("--quantization", "bitsandbytes")]
    return header(export, TOOL.written_for) + command("python -m sglang.launch_server", options)


TOOL = Tool(
    name="sglang",
    title="SGLang",
    version="0.5.23",
    source="SGLang docs, server arguments",
    libraries=("sglang",),
    write=write,
    problem=any_scheme,
    whole_problem=mixed_families,
    serves=True,
    kv_names=KV_NAMES,
)
