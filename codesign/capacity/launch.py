"""What starts the servers of a sizing: a command per replica, and a Kubernetes deployment of all of them.

Sources of the flags: vLLM docs, "Engine arguments" (--tensor-parallel-size, --pipeline-parallel-size, --kv-cache-dtype,
--max-model-len, --max-num-seqs, --max-num-batched-tokens, --gpu-memory-utilization, --enable-prefix-caching); SGLang
docs, "Server arguments"; llama.cpp, tools/server/README.md (-c over all slots, -np, -b, -ctk, -ctv, -ngl, -sm).
"""

from collections.abc import Callable, Mapping

import yaml

from codesign.capacity.size import Sized
from codesign.cost.serving import MEMORY_SHARE
from codesign.plan.recipes.shell import Option, command
from codesign.plan.recipes.vllm import KV_NAMES

MODEL_FOLDER = "MODEL"  # the quantized weights, wherever the user keeps them
ALL_LAYERS = 999
GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
PORT = 8000

Options = list[Option]


def _vllm(one: Sized, context: int) -> tuple[str, Options]:
    candidate, limits = one.candidate, one.candidate.limits
    options: Options = [
        ("--tensor-parallel-size", str(candidate.where.target.gpu_count)),
        ("--pipeline-parallel-size", str(limits.pipeline)),
        ("--max-model-len", str(context)),
        ("--max-num-seqs", str(limits.sequences_max)),
        ("--max-num-batched-tokens", str(limits.step_tokens)),
        ("--gpu-memory-utilization", str(MEMORY_SHARE)),
    ]
    if candidate.assignment.kv.quantized:
        options.append(("--kv-cache-dtype", KV_NAMES[candidate.assignment.kv.name]))
    if limits.shared_prefix_tokens:
        options.append(("--enable-prefix-caching",))
    return f"vllm serve {MODEL_FOLDER}", options


def _sglang(one: Sized, context: int) -> tuple[str, Options]:
    candidate, limits = one.candidate, one.candidate.limits
    options: Options = [
        ("--model-path", MODEL_FOLDER),
        ("--tp", str(candidate.where.target.gpu_count)),
        ("--context-length", str(context)),
        ("--max-running-requests", str(limits.sequences_max)),
        ("--chunked-prefill-size", str(limits.step_tokens)),
        ("--mem-fraction-static", str(MEMORY_SHARE)),
    ]
    if limits.pipeline > 1:
        options.append(("--pp-size", str(limits.pipeline)))
    if candidate.assignment.kv.quantized:
        options.append(("--kv-cache-dtype", KV_NAMES[candidate.assignment.kv.name]))
    return "python -m sglang.launch_server", options


def _llama_cpp(one: Sized, context: int) -> tuple[str, Options]:
    candidate, limits = one.candidate, one.candidate.limits
    slots = min(limits.sequences_max, max(1, candidate.screened.cache_tokens // context))
    options: Options = [
        ("-m", f"{MODEL_FOLDER}.gguf"),
        ("-c", str(context * slots)),
        ("-np", str(slots)),
        ("-b", str(limits.step_tokens)),
    ]
    if candidate.hardware.kind == "gpu":
        options.append(("-ngl", str(ALL_LAYERS)))
    if candidate.assignment.kv.quantized:
        options += [("-ctk", candidate.assignment.kv.name), ("-ctv", candidate.assignment.kv.name)]
    return "llama-server", options


PROGRAMS: Mapping[str, Callable[[Sized, int], tuple[str, Options]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "llama.cpp": _llama_cpp,
}
IMAGES = {"vllm": "vllm/vllm-openai", "sglang": "lmsysorg/sglang"}


def launch_command(one: Sized, context_tokens: int) -> str | None:
    """Return what starts one replica for requests of at most so many tokens; None for programs not known here."""
    program = PROGRAMS.get(one.candidate.where.target.library)
    return None if program is None else command(*program(one, context_tokens)).strip()


def kubernetes_yaml(one: Sized, context_tokens: int) -> str | None:
    """Return a Deployment with all replicas, each with its GPUs; None where there is no known image or resource."""
    library = one.candidate.where.target.library
    resource = GPU_RESOURCES.get(one.candidate.hardware.vendor)
    if library not in IMAGES or resource is None or one.candidate.limits.pipeline > 1:
        return None
    start, options = PROGRAMS[library](one, context_tokens)
    words = [word for option in options for word in option if word]
    container = {
        "name": "server",
        "image": IMAGES[library],
        "command": [*start.split(), *words],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {resource: one.candidate.devices}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    name = "codesign-server"
    pod = {
        "nodeSelector": {"hardware": one.candidate.hardware.name},
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": one.replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }
    return str(yaml.safe_dump(deployment, sort_keys=False))
