"""Every GPU kernel compiles for every architecture that it claims, and keeps what it holds in registers."""

import importlib.util
import shutil
import subprocess

import pytest

from codesign.errors import CapabilityError
from codesign.gpu.program import (
    ARCHITECTURES,
    BFLOAT_MIN,
    compile_program,
    kernel_folder,
    program,
    resources,
    source_text,
)

HAS_NVRTC = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None
needs_nvrtc = pytest.mark.skipif(not HAS_NVRTC, reason="needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc")

CUT = {"m_tiles": 1, "n_tiles": 1, "n_warps": 1}
LARGE_CUT = {"m_tiles": 8, "n_tiles": 2, "n_warps": 4}
# What is compiled in tests of every change; scripts/gpu_compile.py compiles all.
PROGRAMS = [
    program("w4a16_gemm", bfloat=0, group=128, zeros=0, **CUT),
    program("w4a16_gemm", bfloat=1, group=64, zeros=1, **LARGE_CUT),
    program("w4a16_gemm", bfloat=1, group=32, zeros=1, **CUT),
    program("w8a16_gemm", bfloat=0, group=0, e4m3=0, **LARGE_CUT),
    program("w8a16_gemm", bfloat=0, group=64, e4m3=0, **CUT),
    program("w8a16_gemm", bfloat=1, group=0, e4m3=1, **CUT),
    program("w8a8_gemm", bfloat=0, **LARGE_CUT),
    program("kv_attention", bfloat=0, e4m3=0, head_dim=128, kv_bits=8),
    program("kv_attention", bfloat=1, e4m3=0, head_dim=128, kv_bits=16),
    program("kv_attention", bfloat=0, e4m3=0, head_dim=64, kv_bits=4),
    program("roofs"),
]
# Two blocks of 256 threads, or four of 128, must find room: 65,536 registers per multiprocessor.
REGISTERS_MAX = {"weight_only": 255, "w8a8": 255, "attend": 255}
REGISTERS_MAX_OF_OTHERS = 64  # what streams through memory must fill the machine: 1,024 threads per multiprocessor


def title(one):
    return " ".join((one.folder, *(f"{name}={value}" for name, value in one.macros)))


def runs_on(one, architecture):
    return not dict(one.macros).get("BFLOAT") or architecture >= BFLOAT_MIN


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("one", PROGRAMS, ids=title)
def test_a_program_compiles_without_spilling(one, architecture, tmp_path, monkeypatch):
    if not runs_on(one, architecture):
        pytest.skip("no bfloat16 there")
    monkeypatch.setenv("CODESIGN_CACHE", str(tmp_path))
    compiled = compile_program(one, architecture)
    assert compiled.cubin.startswith(b"\x7fELF")
    found = resources(compiled.log)
    assert found, compiled.log
    for kernel, used in found.items():
        assert used["spilled_bytes"] == 0, kernel
        assert used["registers"] <= REGISTERS_MAX.get(kernel, REGISTERS_MAX_OF_OTHERS), kernel


@needs_nvrtc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the path")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("one", PROGRAMS, ids=title)
def test_nvcc_finds_what_nvrtc_finds(one, architecture, tmp_path):
    if not runs_on(one, architecture):
        pytest.skip("no bfloat16 there")
    (tmp_path / "kernel.cu").write_text(source_text(one), encoding="utf-8")
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-std=c++17", "-Xptxas=-v", *one.options, "kernel.cu"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found, expected = resources(ended.stderr), resources(compile_program(one, architecture).log)
    assert found.keys() == expected.keys()
    for kernel, used in found.items():
        assert used["spilled_bytes"] == 0, kernel
        assert abs(used["registers"] - expected[kernel]["registers"]) <= 16, kernel  # they may be of different versions


@needs_nvrtc
def test_what_is_compiled_once_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODESIGN_CACHE", str(tmp_path))
    first = compile_program(PROGRAMS[-1], "sm_90")
    monkeypatch.setattr("codesign.gpu.program._compile", lambda *_: pytest.fail("compiled again"))
    assert compile_program(PROGRAMS[-1], "sm_90") == first


@needs_nvrtc
def test_what_does_not_compile_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CODESIGN_CACHE", str(tmp_path))
    with pytest.raises(CapabilityError, match=r"w4a16_gemm does not compile for sm_90.*CODESIGN_M_TILES"):
        compile_program(program("w4a16_gemm", bfloat=0), "sm_90")


def test_a_program_is_one_text_without_includes():
    for one in PROGRAMS:
        text = source_text(one)
        included = [line for line in text.splitlines() if line.startswith("#include")]
        assert included == ["#include <stdint.h>", '#include "gpu_emulation.h"']  # for nvcc, for the emulation
        assert text.count("What the kernels for NVIDIA GPUs ask of a thread") == 1


def test_each_folder_of_gpu_kernels_is_compiled_here():
    folders = {path.parent.name for path in kernel_folder().glob("*/cuda.cu")}
    assert folders == {one.folder for one in PROGRAMS}


def test_the_compiler_s_report_is_read():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'append' for 'sm_90'
ptxas info    : Function properties for append
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 44 registers, used 0 barriers
ptxas info    : Compiling entry function 'attend' for 'sm_90'
ptxas info    : Function properties for attend
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Function properties for _ZN8codesign3gpu6finishENS0_6OutputE
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
    assert resources(log) == {
        "append": {"registers": 44, "spilled_bytes": 0},
        "attend": {"registers": 168, "spilled_bytes": 12},
    }
