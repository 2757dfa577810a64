"""Compile every GPU kernel for every architecture that it claims, and show what the compiler says of registers.

    python scripts/gpu_compile.py [--here]      --here: only for the GPU of this machine

Needs no GPU. Exits 1 if a kernel spills registers.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from codesign.gpu.attention import HEAD_DIMS
from codesign.gpu.gemm import ACROSS
from codesign.gpu.program import ARCHITECTURES, BFLOAT_MIN, Program, compile_program, program, resources


def programs() -> Iterator[Program]:
    """Yield every unit that the kernels are used as."""
    for bfloat in (0, 1):
        for m_tiles, (n_tiles, n_warps) in ACROSS.items():
            cut = {"bfloat": bfloat, "m_tiles": m_tiles, "n_tiles": n_tiles, "n_warps": n_warps}
            for group in (0, 32, 64, 128):
                for zeros in (0, 1):
                    yield program("w4a16_gemm", group=group, zeros=zeros, **cut)
            for e4m3 in (0, 1):
                yield program("w8a16_gemm", group=0, e4m3=e4m3, **cut)
            yield program("w8a8_gemm", **cut)
        for head_dim in HEAD_DIMS:
            for kv_bits, e4m3 in ((16, 0), (8, 0), (8, 1), (4, 0)):
                yield program("kv_attention", bfloat=bfloat, e4m3=e4m3, head_dim=head_dim, kv_bits=kv_bits)
    yield program("roofs")


def runs_on(one: Program, architecture: str) -> bool:
    """Return whether an architecture has the number type of a unit."""
    return not dict(one.macros).get("BFLOAT") or architecture >= BFLOAT_MIN


def report(task: tuple[Program, str]) -> tuple[list[str], int]:
    """Return a row per kernel of a unit for one architecture, and how many of them spill."""
    one, architecture = task
    macros = " ".join(f"{name}={value}" for name, value in one.macros)
    lines, spilling = [], 0
    for kernel, found in resources(compile_program(one, architecture).log).items():
        spilled = found.get("spilled_bytes", 0)
        spilling += spilled > 0
        used = f"{found['registers']} registers, {spilled} bytes spilled"
        lines.append(f"{architecture} {one.folder} {kernel} {macros}: {used}")
    return lines, spilling


def main() -> int:
    """Print a row per unit, architecture and kernel."""
    architectures = ARCHITECTURES
    if "--here" in sys.argv:
        from codesign.gpu.launch import gpu

        architectures = (gpu().architecture,)
    tasks = [(one, architecture) for one in programs() for architecture in architectures if runs_on(one, architecture)]
    spilling = 0
    # Processes of their own: CUDA, which tells the architecture, does not live on in a copy of this one.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for lines, count in pool.map(report, tasks):
            spilling += count
            print("\n".join(lines))
    print(f"{spilling} kernels spill registers")
    return int(spilling > 0)


if __name__ == "__main__":
    sys.exit(main())
