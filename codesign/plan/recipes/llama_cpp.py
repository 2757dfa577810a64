"""`llama-quantize` with one `--tensor-type` per set of tensors, and `llama-server` for the result.

Source: llama.cpp, tools/quantize/README.md (`--tensor-type REGEX=TYPE`, searched for in the tensor's name; here no name
has two matches, because the last one won once (#14572) and the first one does now; --token-embedding-type,
--output-tensor-type, --imatrix) and tools/server/README.md (-c over all slots, -np,
--cache-type-k, --cache-type-v, -fa, -ngl, --split-mode, -t); names of tensors: gguf-py/gguf/constants.py.
"""

import shlex
from collections.abc import Mapping

from codesign.model.file import is_model_path
from codesign.model.layers import Role
from codesign.plan.file import Plan
from codesign.plan.recipes.modules import PlannedModule
from codesign.plan.recipes.patterns import alternatives
from codesign.plan.recipes.shell import Option, command
from codesign.plan.recipes.tool import Export, Tool, header
from codesign.schemes.scheme import Scheme

TENSORS: Mapping[Role, tuple[str, ...]] = {
    "qkv": ("attn_qkv",), "q": ("attn_q",), "k": ("attn_k",), "v": ("attn_v",), "o": ("attn_output",),
    "q_a": ("attn_q_a",), "q_b": ("attn_q_b",), "kv_a": ("attn_kv_a_mqa",),
    "kv_b": ("attn_kv_b", "attn_k_b", "attn_v_b"),  # newer files store the two halves apart
    "gate": ("ffn_gate",), "up": ("ffn_up",), "down": ("ffn_down",),
    "shared_gate": ("ffn_gate_shexp",), "shared_up": ("ffn_up_shexp",), "shared_down": ("ffn_down_shexp",),
}  # fmt: skip
EXPERT_TENSORS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps")
KV_NAMES = {"bf16": "bf16", "fp16": "f16", "q8_0": "q8_0", "q4_0": "q4_0"}
_FLOATS = {"BF16": "bf16", "FP16": "f16", "FP32": "f32"}
# Every tensor is named, so that the type of the file is metadata; it is one that no tensor has, because builds between
# #19770 and #22572 drop a --tensor-type that equals it.
_FILE_TYPES = ("Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q4_1", "Q5_1")


def problem(scheme: Scheme, _method: str) -> str | None:
    """Return why a GGUF file cannot hold the scheme."""
    if scheme.name == "GGML-NVFP4":
        return "llama-quantize makes no NVFP4; convert_hf_to_gguf.py repacks it from a Model Optimizer checkpoint."
    return None if scheme.family == "gguf" else f"GGUF files hold ggml types such as Q4_K, not {scheme}."


def deployment_problem(plan: Plan) -> str | None:
    """Return why llama.cpp cannot divide the model so."""
    return None if plan.expert_parallel == 1 else "llama.cpp divides every expert over all devices."


def type_name(scheme: Scheme) -> str:
    """Return the name that ggml gives the type."""
    return _FLOATS.get(scheme.name, scheme.name.lower().removeprefix("ggml-"))


def tensors(module: PlannedModule) -> tuple[str, ...]:
    """Return the GGUF tensors of a module inside a block; none for routers, which llama-quantize leaves alone."""
    return EXPERT_TENSORS if module.role is None else TENSORS.get(module.role, ())


def write(export: Export) -> str:
    """Return both commands, the conversion from Hugging Face before them; the second alone if the file is there."""
    if export.stored:
        return header(export, TOOL.written_for) + _server(export, export.source)
    full, file = f"{export.name}-full.gguf", f"{export.output}.gguf"
    head = next(module for module in export.modules if module.role == "head")
    embedding = export.modules[-1]
    options: list[Option] = [
        *(("--tensor-type", f"{pattern}={name}") for pattern, name in tensor_types(export)),
        ("--token-embedding-type", type_name(embedding.scheme)),
        ("--output-tensor-type", type_name(head.scheme)),
        *((("--imatrix", "imatrix.gguf"),) if _wants_imatrix(export) else ()),
    ]
    return (
        header(export, TOOL.written_for)
        + _conversion(export, full)
        + (_IMATRIX.format(full=full) if _wants_imatrix(export) else "")
        + command("llama-quantize", options).rstrip("\n")
        + f" \\\n  {full} {file} {file_type(export)}\n"
        + _server(export, file)
    )


def file_type(export: Export) -> str:
    """Return the type that the file is said to have."""
    if not export.schemes:
        return _FLOATS[export.sixteen_bit.name].upper()
    return next((name for name in _FILE_TYPES if name not in export.schemes), _FILE_TYPES[0])


def _conversion(export: Export, full: str) -> str:
    """Return how the unquantized file is made; the converter reads folders, so that an id is downloaded first."""
    local = is_model_path(export.source)
    folder = export.source if local else export.name
    outtype = "f16" if export.sixteen_bit.name == "FP16" else "bf16"
    fetch = "" if local else f"hf download {shlex.quote(export.source)} --local-dir {folder}\n"
    return fetch + f"python convert_hf_to_gguf.py {shlex.quote(folder)} --outtype {outtype} --outfile {full}\n"


_IMATRIX = "llama-imatrix -m {full} -f calibration.txt -o imatrix.gguf\n"


def _wants_imatrix(export: Export) -> bool:
    """Return whether the plan assumes an importance matrix, or a type cannot do without one."""
    return any(m.method == "imatrix" or m.scheme.name.startswith(("IQ1", "IQ2", "IQ3_XXS")) for m in export.modules)


def tensor_types(export: Export) -> list[tuple[str, str]]:
    """Return (regular expression, type) for every tensor of the blocks that llama-quantize converts."""
    blocks: dict[tuple[str, str], list[int]] = {}
    every: dict[str, set[int]] = {}
    for module in export.modules:
        if module.block_index is not None:
            for tensor in tensors(module):
                blocks.setdefault((tensor, type_name(module.scheme)), []).append(module.block_index)
                every.setdefault(tensor, set()).add(module.block_index)
    together: dict[tuple[str, str], list[str]] = {}
    for (tensor, name), numbers in blocks.items():
        some = "[0-9]+" if len(set(numbers)) == len(every[tensor]) else alternatives([str(n) for n in numbers])
        together.setdefault((some, name), []).append(tensor)
    return [(rf"^blk\.{some}\.{alternatives(names)}\.weight$", type_) for (some, type_), names in together.items()]


def _server(export: Export, file: str) -> str:
    plan = export.plan
    batch = plan.workload.batch
    options: list[Option] = [
        ("-m", file),
        ("-c", str(export.context_tokens * batch)),
        ("-np", str(batch)),
        ("--cache-type-k", KV_NAMES[export.kv.name]),
        ("--cache-type-v", KV_NAMES[export.kv.name]),
    ]
    if export.kv.quantized:
        options.append(("-fa", "on"))
    if plan.thread_count is not None:
        options.append(("-t", str(plan.thread_count)))
    if export.hardware.kind != "cpu":
        options.append(("-ngl", "99"))
    if plan.gpu_count > 1:
        options.append(("--split-mode", "row"))
    return command("llama-server", options)


TOOL = Tool(
    name="llama.cpp",
    title="llama.cpp",
    version="b5500 or later (--tensor-type with regular expressions)",
    source="llama.cpp, tools/quantize/README.md",
    libraries=("llama.cpp",),
    write=write,
    problem=problem,
    deployment_problem=deployment_problem,
    serves=True,
    kv_names=KV_NAMES,
    fuses=False,
)
