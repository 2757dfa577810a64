"""Small programs of one kernel's sources: with the compiler's sanitizers, or for another processor in an emulator."""

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "kernels"
SCALAR, AVX2, AVX512VNNI, AVX512, DOTPROD, I8MM = range(6)


@dataclass(frozen=True, slots=True)
class Target:
    """What to build with, what runs the result, the variants in it, and the variants' numbers that can run."""

    name: str
    compiler: tuple[str, ...]
    runner: tuple[str, ...]
    variants: tuple[str, ...]
    isas: tuple[int, ...]

    @property
    def missing(self) -> str | None:
        """Return which of the tools is not installed, None if all are."""
        tools = [self.compiler[0], *self.runner[:1]]
        absent = [tool for tool in tools if shutil.which(tool) is None]
        return f"{', '.join(absent)} not installed" if absent else None


SANITIZED = Target(
    "sanitized",
    ("g++", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1"),
    (),
    ("scalar", "avx2", "avx512vnni", "avx512"),
    (SCALAR, AVX2, AVX512VNNI, AVX512),
)
EMULATED = Target(
    "aarch64",
    ("aarch64-linux-gnu-g++", "-O2", "-static"),
    ("qemu-aarch64", "-cpu", "max"),
    ("scalar", "dotprod", "i8mm"),
    (SCALAR, DOTPROD, I8MM),
)


def reason_to_skip(target: Target) -> str | None:
    """Return why programs of the target cannot be made or run here, None if they can."""
    if target is SANITIZED and platform.machine() not in ("x86_64", "AMD64"):
        return "the variants are those of x86-64"
    return target.missing


def variant_flags(variant: str) -> list[str]:
    """Return the compiler flags of a variant as the build has them."""
    text = (KERNELS / "CMakeLists.txt").read_text()
    found = re.search(rf"^set\(FLAGS_{variant} (.*)\)$", text, re.MULTILINE)
    assert found, f"kernels/CMakeLists.txt has no flags of {variant}"
    words = found[1].replace('""', "").split()
    return [flag for word in words for flag in (variant_flags(word[8:-1]) if word.startswith("${") else [word])]


def build(kernel: str, target: Target, folder: Path) -> Path:
    """Compile <kernel>/cases.cpp with the kernel and what it shares; return the program."""
    common = [*target.compiler, "-std=c++17", f"-I{KERNELS}", f"-I{KERNELS / kernel}"]
    has = [f"-DCODESIGN_HAS_{variant}" for variant in target.variants]
    objects = []
    for variant in target.variants:
        objects.append(str(folder / f"{variant}.o"))
        define = [f"-DCODESIGN_VARIANT={variant}", f"-DCODESIGN_VARIANT_{variant}", *variant_flags(variant)]
        _run([*common, *define, "-c", str(KERNELS / kernel / "variant.cpp"), "-o", objects[-1]])
    sources = [KERNELS / "common" / f"{name}.cpp" for name in ("cpu", "pool", "weight_only")]
    sources += [KERNELS / kernel / f"{name}.cpp" for name in ("cpu", "cases")]
    program = folder / kernel
    _run([*common, *has, *map(str, sources), *objects, "-pthread", "-o", str(program)])
    return program


def run(program: Path, target: Target, cases: bytes) -> bytes:
    """Return what the program writes for the cases."""
    source, result = program.with_suffix(".in"), program.with_suffix(".out")
    source.write_bytes(cases)
    _run([*target.runner, str(program), str(source), str(result)])
    return result.read_bytes()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, f"{command[0]} failed: {done.stderr[-4000:]}"
