"""The Triton kernel compiles for every architecture that it claims, and keeps what it holds in registers.

Skipped where Triton is not installed.
"""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from codesign.gpu import triton_gemm
from codesign.gpu.triton_gemm import STAGES, Blocks, blocks

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton")

POINTERS = {"x": "*fp16", "codes": "*i32", "scales": "*fp16", "zeros": "*u8", "factors": "*fp32", "out": "*fp16"}
MULTIPLES = ("n", "k")  # of 16, as in models
# Of a block: CUDA C++ Programming Guide, technical specifications per compute capability.
SHARED_BYTES_MAX = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
FEW_MULTIPROCESSORS, MANY_MULTIPROCESSORS = 1, 1000  # wide and narrow blocks
CUTS = [
    (16, MANY_MULTIPROCESSORS, 32, True),
    (32, FEW_MULTIPROCESSORS, 128, False),
    (64, FEW_MULTIPROCESSORS, 32, True),
    (256, FEW_MULTIPROCESSORS, 0, True),
]


def compiled(cut: Blocks, group: int, has_zeros: bool, architecture: int):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = triton_gemm._kernel()
    names = kernel.arg_names
    constants = {"GROUP": group, "HAS_ZEROS": has_zeros, "BLOCK_M": cut.rows, "TILES": cut.tiles, "CHUNKS": cut.chunks}
    if not has_zeros:
        constants["zeros"] = None  # as Triton compiles what is called with None
    aligned = [name for name in (*POINTERS, *MULTIPLES) if name not in constants]
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": cut.warps, "num_stages": STAGES, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resource_usage(cubin: bytes, folder: Path) -> dict[str, int]:
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in report.splitlines() if "REG:" in line]
    return {name: int(value) for name, value in (part.split(":") for part in line.split()[:2])}


@pytest.mark.parametrize("architecture", SHARED_BYTES_MAX)
@pytest.mark.parametrize(("m", "multiprocessors", "group", "has_zeros"), CUTS)
def test_the_kernel_compiles_without_spilling(
    m, multiprocessors, group, has_zeros, architecture, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    made = compiled(blocks(m, 4096, multiprocessors), group, has_zeros, architecture)
    used = resource_usage(made.asm["cubin"], tmp_path)
    assert used["STACK"] == 0
    assert 0 < used["REG"] <= 255
    assert made.metadata.shared <= SHARED_BYTES_MAX[architecture]
    assert "cp.async" in made.asm["ptx"]  # weights are fetched ahead
    assert ("wgmma.mma_async" if architecture == 90 and m >= 64 else "mma.sync") in made.asm["ptx"]
