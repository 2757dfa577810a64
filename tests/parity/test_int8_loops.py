"""The compiler's work on the int8 dot products: an accumulator on the stack inside a loop would halve the speed."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_programs import KERNELS, variant_flags

TOOLS = [tool for tool in ("g++", "objdump") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instructions are those of x86-64"),
    pytest.mark.skipif(bool(TOOLS), reason=f"{', '.join(TOOLS)} not installed"),
]

TILE_ROWS = 12
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(.*)$", re.MULTILINE)
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)")
STACK_STORE = re.compile(r"^vmov\w+\s+%[xyz]mm\d+,.*\(%rsp")


def _loops_over_k(text: str) -> list[list[str]]:
    """Return the loops over k: bodies of backward jumps with dot products, no other backward jump and no conversion.

    The loop over groups converts its sums and stores them, and its inner loop may lie elsewhere in the code.
    """
    lines = [(int(address, 16), instruction) for address, instruction in LINE.findall(text)]
    at = {address: index for index, (address, _) in enumerate(lines)}
    bodies = []
    for index, (address, instruction) in enumerate(lines):
        jump = JUMP.match(instruction)
        if jump and int(jump[1], 16) <= address and int(jump[1], 16) in at:
            bodies.append((at[int(jump[1], 16)], index))
    inner = [one for one in bodies if not any(one[0] <= other[0] and other[1] < one[1] for other in bodies)]
    loops = [[instruction for _, instruction in lines[begin : end + 1]] for begin, end in inner]
    text_of = ["\n".join(loop) for loop in loops]
    return [loop for loop, text in zip(loops, text_of, strict=True) if "vpdpbusd" in text and "vcvtdq2ps" not in text]


def _disassembly(kernel: str, variant: str, folder: Path) -> str:
    """Return the code of one variant as the release build compiles it."""
    target = folder / "variant.o"
    defines = [f"-DCODESIGN_VARIANT={variant}", f"-DCODESIGN_VARIANT_{variant}"]
    source = ["-I", str(KERNELS), "-c", str(KERNELS / kernel / "variant.cpp"), "-o", str(target)]
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", *variant_flags(variant)]
    subprocess.run(["g++", *flags, *defines, *source], check=True)
    command = ["objdump", "-d", "--no-show-raw-insn", str(target)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("variant", ["avx512vnni", "avx512"])
@pytest.mark.parametrize("kernel", ["w4a8_gemm", "w8a8_gemm", "w4a16_gemm", "w8a16_gemm", "kv_attention"])
def test_no_accumulator_leaves_its_register(kernel: str, variant: str, tmp_path: Path) -> None:
    loops = _loops_over_k(_disassembly(kernel, variant, tmp_path))
    assert (
        len(loops) >= TILE_ROWS
    )  # one per number of rows, unless the compiler merged some away: then look at this test
    for loop in loops:
        assert [instruction for instruction in loop if STACK_STORE.match(instruction)] == []


def test_the_search_finds_a_store_in_a_loop() -> None:
    text = """
     0:	vpxord %zmm0,%zmm0,%zmm0
     6:	vpdpbusd (%rdi),%zmm1,%zmm0
     c:	vmovdqa64 %zmm0,0x40(%rsp)
    14:	add    $0x40,%rdi
    18:	jne    6 <f+0x6>
    1a:	ret
    """
    (loop,) = _loops_over_k(text)
    assert [bool(STACK_STORE.match(instruction)) for instruction in loop] == [False, True, False, False]
