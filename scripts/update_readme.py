"""Rewrite the generated parts of README.md: real output of commands, and the table of schemes and machines.

A part stands between `<!-- run: COMMAND -->` (or `<!-- table: capability -->`) and `<!-- end -->`. With --check, exit 1
if the README is not what the commands print now.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from codesign.hardware.file import load_hardware
from codesign.schemes.capability import capability
from codesign.schemes.catalog import parse_scheme

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- (run|table): (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SCHEMES = ("BF16", "FP16", "W8A16", "W4A16-g128", "W8A8", "W4A8-g128", "W4A4-g128", "FP8", "FP8-block", "NF4",
           "MXFP4", "NVFP4", "Q8_0", "Q4_K", "TQ2_0")  # fmt: skip
MACHINES = ("v100-sxm2-32gb", "t4", "a100", "l40s", "h100", "b200", "mi300x", "apple-m2-ultra", "x86-avx512",
            "xeon-8480plus", "arm-neon", "edge-tpu")  # fmt: skip


def capability_table() -> str:
    """Return a Markdown table: the math each scheme runs in; brackets mark conversion, a dash what cannot run."""
    lines = ["| | " + " | ".join(MACHINES) + " |", "|---" * (len(MACHINES) + 1) + "|"]
    machines = [load_hardware(name) for name in MACHINES]
    for name in SCHEMES:
        cells = [_cell(name, machine) for machine in machines]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(name: str, machine: object) -> str:
    answer = capability(parse_scheme(name), machine)  # type: ignore[arg-type]
    if not answer.runs:
        return "–"
    return str(answer.math_dtype) if answer.level == "native" else f"({answer.math_dtype})"


def run(command: str) -> str:
    """Return what a codesign command prints, in a code block."""
    words = shlex.split(command)
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    body = "\n".join(line.rstrip() for line in (done.stdout + done.stderr).splitlines())
    return f"```\n$ {command}\n{body}\n```\n"


def regenerated(text: str) -> str:
    """Return the README with every generated part made anew."""

    def replace(match: re.Match[str]) -> str:
        made = capability_table() if match[2] == "table" else run(match[3])
        return match[1] + made + match[5]

    return PART.sub(replace, text)


def main() -> int:
    """Rewrite or check the README."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = regenerated(old)
    if "--check" in sys.argv:
        if new != old:
            print("README.md shows other output than the commands print now; run `make readme`.")
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
