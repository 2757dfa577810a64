"""Which software ran: versions of packages, without importing them, compilers, and the commit of codesign itself."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from codesign import __version__
from codesign.profiler.reading import Reading, absent

PACKAGES = (
    "numpy", "torch", "torchao", "onnxruntime", "openvino", "bitsandbytes", "zentorch", "transformers",
    "nvidia-ml-py", "nvtx", "triton", "gemlite", "vllm", "flash-attn", "flashinfer-python",
)  # fmt: skip
VARIABLES = (
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY",
    "KMP_BLOCKTIME", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_VERBOSE",
    "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_FREEZING", "LD_PRELOAD", "MALLOC_CONF",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG",
)  # fmt: skip
COMPILERS = ("c++", "g++", "clang++", "nvcc", "hipcc", "cmake", "ninja", "aarch64-linux-gnu-g++", "qemu-aarch64")
PROGRAM_TIMEOUT_S = 10.0
VERSION = re.compile(r"\d+\.\d+[\w.+-]*")


def program_output(*arguments: str) -> Reading[str]:
    """Return the standard output of a program, or why there is none; it may take ten seconds."""
    program = shutil.which(arguments[0])
    if program is None:
        return absent(f"{arguments[0]} is not installed")
    try:
        done = subprocess.run(
            (program, *arguments[1:]),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return absent(f"{arguments[0]} does not answer ({type(error).__name__})")
    if done.returncode != 0:
        return absent(f"{arguments[0]} ended with code {done.returncode}")
    return Reading(done.stdout.strip())


def program_version(name: str) -> Reading[str]:
    """Return the version that a program prints of itself; nvcc prints it last."""
    output = program_output(name, "--version")
    if output.value is None:
        return output
    lines = output.value.splitlines() or [""]
    found = re.search(r"release (\d+\.\d+)", output.value) or VERSION.search(lines[0])
    return Reading(found.group(found.lastindex or 0)) if found else absent(f"{name} prints no version")


def package_version(name: str) -> Reading[str]:
    """Return the installed version of a Python package."""
    try:
        return Reading(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return absent(f"not installed; fix: pip install {name}")


def variables() -> Reading[dict[str, str]]:
    """Return the environment variables that steer kernels, of those that are known to."""
    return Reading({name: os.environ[name] for name in VARIABLES if name in os.environ})


def commit(checkout: Path) -> Reading[str]:
    """Return the git commit of a checkout, with -changed where tracked files differ from it."""
    if not (checkout / ".git").exists():
        return absent("codesign was installed, it runs from no checkout")
    git = ("git", "--no-optional-locks", "-C", str(checkout))
    head = program_output(*git, "rev-parse", "HEAD")
    if head.value is None:
        return head
    changes = program_output(*git, "status", "--porcelain", "--untracked-files=no")
    return Reading(head.value + ("-changed" if changes.value else ""))


SOFTWARE: Mapping[str, Callable[[], Reading[Any]]] = {
    "codesign": lambda: Reading(__version__),
    "commit": lambda: commit(Path(__file__).parents[2]),
    "python": lambda: Reading(f"{platform.python_implementation()} {platform.python_version()}"),
    "libc": lambda: Reading(" ".join(platform.libc_ver()).strip() or None, "this C library tells no version"),
    "variables": variables,
    **{name: partial(package_version, name) for name in PACKAGES},
    **{name: partial(program_version, name) for name in COMPILERS},
}
