"""How busy the loops of the GPU kernels would keep a machine that reads memory at full speed, from their machine code.

    python scripts/gpu_instructions.py [MACHINE ...]      t4, a100, h100 and h200 if not told

Needs no GPU, but nvdisasm (pip install nvidia-cuda-nvdisasm, or a CUDA toolkit). A row per kernel: the instructions of
its loop per 16 bytes that each lane reads, the share of a multiprocessor's issue slots and of its tensor cores' time
that they take at the sustained bandwidth of the machine's profile, and how long loads in flight may take to come. A
share of 100 % or more would bind before memory does.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from codesign.api import load_hardware
from codesign.gpu.gemm import ACROSS
from codesign.gpu.program import Program, compile_program, program, resources
from codesign.hardware.hardware import Hardware

MACHINES = ("t4", "a100", "h100", "h200")
SCHEDULERS = 4  # each issues one instruction of a warp per clock, from Volta on (CUDA C++ programming guide)
# Of a multiprocessor, by compute capability; 64 warps where none is named (CUDA C++ programming guide).
REGISTERS, WARPS_MAX, LANES = 65536, {(7, 5): 32, (8, 6): 48, (8, 9): 48}, 32
LOAD_BYTES = 16 * LANES
LOAD = "LDG.E.NA.128"  # what is read once and kept out of the first-level cache: weights, keys and values
MMA_FLOP = {"HMMA.16816": 4096, "HMMA.1688": 2048, "IMMA.16832": 8192, "IMMA.8816": 2048}


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of a loop, those that load what is streamed, and the operations of its matrix products."""

    instructions: int
    loads: int
    flop: int


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel of a program, with words for it, the rows it is for, and the type of its products."""

    title: str
    one: Program
    kernel: str
    threads: int
    math: str


def streaming_loop(listing: str, kernel: str) -> Loop:
    """Return the loop of a kernel's disassembly that streams most; ValueError if none does."""
    text = listing.split(f".text.{kernel}:", 1)[1].split("//-----", 1)[0]
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            instructions.append(found[1])
    bodies = []
    for place, instruction in enumerate(instructions):
        target = re.search(r"BRA.*\((\.L_x_\d+)\)", instruction)
        if target and labels.get(target[1], place + 1) <= place:
            bodies.append(instructions[labels[target[1]] : place + 1])
    loops = [Loop(len(body), sum(LOAD in one for one in body), sum(map(_flop, body))) for body in bodies]
    streaming = max(loops, key=lambda loop: loop.loads, default=Loop(0, 0, 0))
    if not streaming.loads:
        raise ValueError(f"{kernel}: no loop with {LOAD} was found.")
    return streaming


def _flop(instruction: str) -> int:
    return next((flop for name, flop in MMA_FLOP.items() if name in instruction), 0)


def disassembler() -> str | None:
    """Return nvdisasm, of the package or on the path; None without one."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    found = (path for place in places or () for path in Path(place).glob("*/bin/nvdisasm"))
    return str(next(found, "")) or shutil.which("nvdisasm")


@functools.cache
def disassembled(one: Program, architecture: str) -> str:
    """Return the listing of a program; FileNotFoundError without nvdisasm."""
    tool = disassembler()
    if tool is None:
        raise FileNotFoundError("nvdisasm is not here; pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_program(one, architecture).cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def cases(bfloat: bool) -> list[Case]:
    """Return what is shown: every kernel that streams weights by rows, then attention."""
    math = "bf16" if bfloat else "fp16"
    shown = []
    for m_tiles, (n_tiles, n_warps) in ACROSS.items():
        cut = {"bfloat": bfloat, "m_tiles": m_tiles, "n_tiles": n_tiles, "n_warps": n_warps}
        rows = f"up to {8 * m_tiles} rows"
        int4 = program("w4a16_gemm", group=128, zeros=0, **cut)
        byte, e4m3 = (program("w8a16_gemm", group=0, e4m3=is_e4m3, **cut) for is_e4m3 in (0, 1))
        shown += [
            Case(f"W4A16-g128 {rows}", int4, "weight_only", 256, math),
            Case(f"W8A16 {rows}", byte, "weight_only", 256, math),
            Case(f"FP8-A16 {rows}", e4m3, "weight_only", 256, math),
            Case(f"W8A8 {rows}", program("w8a8_gemm", **cut), "w8a8", 256, "int8"),
        ]
    for title, bits, e4m3 in ((math, 16, 0), ("int8", 8, 0), ("fp8", 8, 1), ("int4", 4, 0)):
        attention = program("kv_attention", bfloat=bfloat, e4m3=e4m3, head_dim=128, kv_bits=bits)
        shown.append(Case(f"attention, KV {title}", attention, "attend", 128, math))
    return shown


@dataclass(frozen=True, slots=True)
class Shares:
    """What a loop needs at full bandwidth: instructions per load, shares of issue slots and tensor cores, slack."""

    instructions: float
    issue: float
    tensor: float
    waiting_s: float


def shares(case: Case, hardware: Hardware) -> Shares:
    """Return what a kernel's loop takes of a machine that reads at its sustained bandwidth."""
    assert hardware.compute_capability is not None
    architecture = "sm_{}{}".format(*hardware.compute_capability)
    loop = streaming_loop(disassembled(case.one, architecture), case.kernel)
    bytes_per_s = hardware.memory.sustained_bytes_per_s / hardware.unit_count
    cycles_per_load = LOAD_BYTES / bytes_per_s * hardware.boost_clock_hz
    registers = resources(compile_program(case.one, architecture).log)[case.kernel]["registers"]
    blocks = REGISTERS // (-(-registers // 8) * 8 * case.threads)
    warps = min(blocks * case.threads // LANES, WARPS_MAX.get(hardware.compute_capability, 64))
    return Shares(
        instructions=loop.instructions / loop.loads,
        issue=loop.instructions / loop.loads / (SCHEDULERS * cycles_per_load),
        tensor=loop.flop / loop.loads / (hardware.flop_per_cycle_per_unit[case.math] * cycles_per_load),
        waiting_s=warps * loop.loads * LOAD_BYTES / bytes_per_s,
    )


def main() -> int:
    """Print a table for each machine."""
    for name in sys.argv[1:] or MACHINES:
        hardware = load_hardware(name)
        assert hardware.compute_capability is not None
        print(f"\n{hardware.name}, {hardware.memory.sustained_bytes_per_s / 1e12:.2f} TB/s sustained\n")
        print("| kernel | instructions per 16 bytes | issue slots | tensor cores | loads may take |")
        print("|---|---|---|---|---|")
        for case in cases(bfloat=hardware.compute_capability >= (8, 0)):
            found = shares(case, hardware)
            print(
                f"| {case.title} | {found.instructions:.0f} | {found.issue:.0%} | {found.tensor:.0%} "
                f"| {found.waiting_s * 1e6:.1f} us |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
