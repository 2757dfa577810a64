import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "codesign"
ORDER = (
    "native", "gpu", "hardware", "model", "schemes", "checkpoint", "quantize", "cost", "quality", "plan", "profiler",
    "capacity", "report", "cli",
)  # fmt: skip
SHARED = {"errors", "units", "files", "yaml_file", "codec", "setting", "table"}


def imported_modules(path: Path) -> set[str]:
    """Return the codesign modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("codesign"):
            found |= {
                f"{node.module}.{alias.name}" if node.module == "codesign" else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("codesign")}
    return found


def test_a_folder_imports_only_from_folders_above_it():
    wrong = []
    for folder in ORDER[:-1]:
        allowed = SHARED | set(ORDER[: ORDER.index(folder) + 1])
        for path in (PACKAGE / folder).rglob("*.py"):
            for module in imported_modules(path):
                part = module.split(".")[1] if "." in module else "__init__"
                if part not in allowed and part != "__version__":
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_every_folder_has_its_place_in_the_order():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ORDER)


def test_shared_modules_import_only_each_other():
    for name in SHARED:
        for module in imported_modules(PACKAGE / f"{name}.py"):
            assert module.split(".")[1] in SHARED


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_lean():
    heavy = "{'torch', 'pandas', 'plotly', 'pyarrow', 'numpy', 'scipy', 'rich', 'jinja2'}"
    assert run_python(f"import sys, codesign; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


def test_planning_needs_neither_torch_nor_pandas_nor_plotly():
    code = """
import sys, codesign
codesign.plan(codesign.load_hardware("a100"), codesign.load_model("llama-7b"))
print(sorted({"torch", "pandas", "plotly", "pyarrow", "jinja2"} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"
