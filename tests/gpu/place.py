"""Where the GPU kernels are tested: emulated on a CPU, or with CODESIGN_TEST_GPU=1 on the GPU that is here."""

import os
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from codesign.gpu.launch import gpu as real_gpu
from tests.gpu.emulated_gpu import COMPILER, EmulatedGpu

ON_GPU = bool(os.environ.get("CODESIGN_TEST_GPU"))
GPU, DEVICE = (real_gpu(), "cuda") if ON_GPU else (EmulatedGpu(), "cpu")
DTYPES = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2}  # with the error that they leave to a product

needs_gpu_or_compiler = pytest.mark.skipif(not ON_GPU and shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")


def activations(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    values = np.random.default_rng(m * k).standard_normal((m, k), dtype=np.float32)
    return torch.from_numpy(values).to(DEVICE, dtype)


def wide(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.double().cpu().numpy()


def relative_error(found: torch.Tensor, exact: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(wide(found) - exact) / np.linalg.norm(exact))
