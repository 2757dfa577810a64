"""Measure what people wait for, as ratios to a reference on the same machine; nothing here is a test."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPEATS = 7


def median_s(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median seconds of an action, one run to warm up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def command_s(*arguments: str) -> float:
    """Return the median wall seconds of a Python command."""
    command = [sys.executable, *arguments]
    return median_s(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def bench_commands() -> None:
    """Time the commands against importing numpy and scipy.optimize."""
    reference = command_s("-c", "import numpy, scipy.optimize")
    rows = (
        ("codesign --help", ("-m", "codesign", "--help"), "goal 0.2 s"),
        ("codesign plan --hw a100 --model llama-7b", ("-m", "codesign", "plan", "--hw", "a100", "--model", "llama-7b"),
         "goal 1.0 s and 1.5x"),
    )  # fmt: skip
    print(f"{reference:6.3f} s  1.00x  import numpy, scipy.optimize (reference)")
    for name, arguments, goal in rows:
        seconds = command_s(*arguments)
        print(f"{seconds:6.3f} s  {seconds / reference:.2f}x  {name} ({goal})")


def bench_solver() -> None:
    """Time the exact solution of Llama-3.1-405B with 12 schemes."""
    import codesign
    from codesign import api
    from codesign.cost.deployment import deploy
    from codesign.plan.planner import build_problem, gather_costs
    from codesign.plan.problem import Criterion
    from codesign.plan.solve import solve

    schemes = ("W8A16", "W8A16-g128", "W8A8", "FP8", "FP8-block", "W4A16-g128", "W4A16-g64", "W4A16-g32",
               "W4A16-g128-asym", "NF4", "MXFP4-A16")  # fmt: skip
    setting = codesign.Setting(gpu_count=8, schemes=schemes)
    where = deploy(codesign.load_hardware("h100"), codesign.load_model("llama-3.1-405b"), setting)
    costs = gather_costs(where, api.choices(where, setting))
    problem = build_problem(where, costs)
    for loss in (0.005, 0.01, 0.02):
        budgets = {Criterion.MEMORY: where.capacity_bytes, Criterion.QUALITY: loss}
        solution = solve(problem, Criterion.TPOT, budgets)
        seconds = median_s(lambda budgets=budgets: solve(problem, Criterion.TPOT, budgets), 3)
        gap = f"gap {solution.gap_fraction:.1e}"
        print(f"{seconds:6.3f} s  solve llama-3.1-405b, 12 schemes, loss <= {loss}: {gap} (goal 0.5 s)")


def bench_kernel_rows() -> None:
    """Time the vectorised prediction of GEMM rows."""
    import numpy as np

    from codesign.cost.table import predict_table

    rows = 200_000
    generator = np.random.default_rng(0)
    texts = {
        "hw": generator.choice(["a100", "h100", "t4"], rows),
        "library": np.full(rows, "", dtype=object),
        "op": np.full(rows, "gemm", dtype=object),
        "scheme": generator.choice(["BF16", "W4A16-g128", "W8A8", "W8A16"], rows),
        "kv_dtype": np.full(rows, "", dtype=object),
    }
    numbers = {name: generator.integers(1, 256, rows) * 128.0 for name in ("m", "n", "k")}
    columns = {name: column.astype(object) for name, column in texts.items()} | numbers
    seconds = median_s(lambda: predict_table(columns), 3)
    print(f"{rows / seconds:10,.0f} kernel rows/s predicted (goal 100,000)")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    bench_commands()
    bench_solver()
    bench_kernel_rows()
