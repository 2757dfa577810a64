"""Multiply every case with the Triton kernel and save the products: `python -m tests.gpu.triton_program FILE DEVICE`.

Triton decides when it is imported whether kernels are interpreted (TRITON_INTERPRET=1), so tests run this on its own.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch

from codesign.gpu.gemm import pack_weight_only
from codesign.gpu.triton_gemm import multiply_by_triton
from tests.weight_only_cases import Made, made


@dataclass(frozen=True)
class Case:
    """A product, and the multiprocessors that its blocks are to fill: few make blocks wide."""

    m: int
    n: int
    k: int
    group: int
    asymmetric: bool
    multiprocessors: int

    @property
    def weights(self) -> Made:
        return made(4, (self.n, self.k), self.group, asymmetric=self.asymmetric, seed=self.n)

    @property
    def x(self) -> np.ndarray:
        return np.random.default_rng(self.m).standard_normal((self.m, self.k)).astype(np.float16)


# Every number of rows of a block, wide and narrow; rows, outputs, chunks and groups that are filled in part.
CASES = (
    Case(16, 64, 128, 128, False, 1),
    Case(16, 128, 256, 64, True, 1000),
    Case(20, 72, 192, 128, True, 1000),
    Case(33, 17, 192, 32, True, 1),
    Case(65, 64, 160, 64, False, 1),
    Case(130, 72, 96, 32, False, 1000),
    Case(256, 130, 64, 0, True, 1),
    Case(17, 65, 160, 0, False, 1000),
)


def guarded(halves: torch.Tensor) -> torch.Tensor:
    """Return the scales with NaN behind them: whoever reads too far gives it away."""
    memory = torch.full((2 * halves.numel() + 4096,), float("nan"), dtype=halves.dtype, device=halves.device)
    memory[: halves.numel()] = halves.reshape(-1)
    return memory[: halves.numel()].view(halves.shape)


def main(file: str, device: str) -> None:
    products = {}
    for i, case in enumerate(CASES):
        of = case.weights
        packed = pack_weight_only("int4", of.codes, of.scales, of.zeros, of.group, device)
        packed = replace(packed, halves=guarded(packed.halves))
        found = multiply_by_triton(torch.from_numpy(case.x).to(device), packed, case.multiprocessors)
        products[str(i)] = found.cpu().numpy()
    np.savez(file, **products)


if __name__ == "__main__":
    main(*sys.argv[1:])
