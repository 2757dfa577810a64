"""`trtllm-serve` for a plan, with its YAML of options.

Source: TensorRT-LLM docs, commands/trtllm-serve (--backend, --max_seq_len, --max_batch_size, --tp_size, --ep_size,
--config; before 1.2 that was --extra_llm_api_options only, which is an alias now, #9104 and #10005) and
llm-api/reference, KvCacheConfig.dtype (auto, fp8).
"""

import shlex

from codesign.plan.recipes.shell import Option, command
from codesign.plan.recipes.tool import Export, Tool, any_scheme, comment, header
from codesign.plan.recipes.vllm import checkpoint, mixed_families

KV_NAMES = {"bf16": "auto", "fp16": "auto", "fp8": "fp8"}


def write(export: Export) -> str:
    """Return the command that serves the plan's checkpoint, after the file of options that it reads."""
    plan = export.plan
    options: list[Option] = [
        ("--backend", "pytorch"),
        ("--max_seq_len", str(export.context_tokens)),
        ("--max_batch_size", str(plan.workload.batch)),
        ("--tp_size", str(plan.gpu_count)),
    ]
    if plan.expert_parallel > 1:
        options.append(("--ep_size", str(plan.expert_parallel)))
    options.append(("--config", "trtllm-options.yaml"))
    served = checkpoint(export)
    made = comment(f"{served} is made with the recipe of: codesign plan export PLAN --to modelopt")
    settings = f"kv_cache_config:\n  dtype: {KV_NAMES[export.kv.name]}\n"
    return (
        header(export, TOOL.written_for)
        + ("" if served == export.source else made)
        + f"cat > trtllm-options.yaml <<'END'\n{settings}END\n"
        + command(f"trtllm-serve {shlex.quote(served)}", options)
    )


TOOL = Tool(
    name="trtllm",
    title="TensorRT-LLM",
    version="1.2.1",
    source="TensorRT-LLM docs, trtllm-serve",
    libraries=("trtllm",),
    write=write,
    problem=any_scheme,
    whole_problem=mixed_families,
    serves=True,
    kv_names=KV_NAMES,
)
