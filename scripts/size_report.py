"""Print lengths of functions and files, and fail where the agreed limits are broken."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
P90_LINES_MAX, FILE_LINES_MAX, LONG_FUNCTION_LINES = 40, 400, 60


def main() -> int:
    """Return 1 if the p90 of function lengths or the length of a file is above its limit."""
    files = sorted((ROOT / "codesign").rglob("*.py"))
    lengths = []
    broken = False
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > FILE_LINES_MAX:
            print(f"{path.relative_to(ROOT)}: {lines} lines, more than {FILE_LINES_MAX}")
            broken = True
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lengths.append(
                    (node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
                )
    lengths.sort()
    p90 = lengths[int(len(lengths) * 0.9)][0]
    median = lengths[len(lengths) // 2][0]
    print(f"{len(files)} files, {len(lengths)} functions, lines: median {median}, p90 {p90}, longest {lengths[-1][0]}")
    for length, name in lengths:
        if length > LONG_FUNCTION_LINES:
            print(f"long: {name}, {length} lines")
    return 1 if broken or p90 > P90_LINES_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
