"""Each barrier and fence of the GPU kernels is needed: without it the emulation finds a race."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from codesign.gpu.attention import GpuKvCache, GpuKvShape
from codesign.gpu.gemm import Workspace, multiply_w8a8, multiply_weight_only, pack_w8a8, pack_weight_only
from codesign.gpu.program import kernel_folder
from tests.gpu.emulated_gpu import COMPILER, AccessError, EmulatedGpu

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")

N, K = 64, 1024  # two blocks share each output
HEAD_DIM, TOKENS = 64, 300  # two blocks share the head


def weight_only(gpu: EmulatedGpu) -> None:
    weights = pack_weight_only("int4", np.ones((N, K), np.uint8), np.ones((N, 8), np.float32), None, 128, "cpu")
    multiply_weight_only(gpu, torch.ones(1, K, dtype=torch.float16), weights, Workspace("cpu"))


def w8a8(gpu: EmulatedGpu) -> None:
    weights = pack_w8a8(np.ones((N, K), np.int8), np.ones(N, np.float32), "cpu")
    multiply_w8a8(gpu, torch.ones(1, K, dtype=torch.float16), weights, Workspace("cpu"))


def attention(gpu: EmulatedGpu) -> None:
    cache = GpuKvCache(gpu, GpuKvShape("fp16", 1, 1, HEAD_DIM, TOKENS), torch.float16, "cpu")
    cache.append(*(torch.ones(1, 1, TOKENS, HEAD_DIM, dtype=torch.float16) for _ in range(2)))
    cache.attend(torch.ones(1, 2, HEAD_DIM, dtype=torch.float16))


# What runs the code of a file.
CASES: dict[str, Callable[[EmulatedGpu], None]] = {
    "common/gpu_last_block.h": weight_only,
    "common/gpu_skinny_gemm.h": weight_only,
    "kv_attention/cuda.cu": attention,
    "w8a8_gemm/cuda.cu": w8a8,
}
ORDERING = re.compile(r"\b(?:sync_block|fence)\(\);")


def orderings() -> Iterator[tuple[str, int]]:
    """Yield each call that orders accesses: its file, and which one it is there."""
    for path in sorted([*kernel_folder().glob("*/cuda.cu"), *kernel_folder().glob("common/gpu_*.h")]):
        for i in range(len(ORDERING.findall(path.read_text(encoding="utf-8")))):
            yield path.relative_to(kernel_folder()).as_posix(), i


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("case", CASES.values())
def test_kernels_as_they_are_pass_in_either_order_of_blocks(case, backwards):
    case(EmulatedGpu(backwards=backwards))


@pytest.mark.parametrize(("file", "i"), list(orderings()))
def test_no_barrier_or_fence_can_be_left_out(file: str, i: int, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(kernel_folder(), kernels)
    text = (kernels / file).read_text(encoding="utf-8")
    call = list(ORDERING.finditer(text))[i]
    (kernels / file).write_text(text[: call.start()] + ";" + text[call.end() :], encoding="utf-8")
    with pytest.raises(AccessError, match=r"race|not written"):
        CASES[file](EmulatedGpu(kernels=kernels))
