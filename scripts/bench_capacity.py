"""Measure simulation and sweeps: an hour of traffic, a million requests with their memory, 100,000 cases."""

import resource
import tempfile
import time
from pathlib import Path

from codesign import api
from codesign.capacity.grid_file import read_grid
from codesign.capacity.load import Objectives, make_fleet, serve
from codesign.capacity.replica import Limits
from codesign.capacity.requests import Demand, Fixed, draw_requests
from codesign.capacity.sweep import Sweep, run_sweep
from codesign.cost.deployment import deploy, uniform_assignment
from codesign.setting import Setting

HOUR_REQUESTS, MILLION = 72_000, 1_000_000
KIB_PER_MIB = 1024
SCHEMES = "BF16, W8A16, W8A8, W4A16-g128, W4A16-g32, FP8, NF4, MXFP4-A16"
GRID = f"""
hardware: [t4, l40s, a100, h100, h200]
model: [llama-2-7b, llama-3.1-8b, llama-2-13b, mixtral-8x7b, llama-3.3-70b]
scheme: [{SCHEMES}]
gpus: [1, 4]
batch: [{", ".join(str(2**i) for i in range(10))}]
prompt: [128, 512, 1024, 2048, 4096]
output: [32, 128, 256, 512, 1024]
"""


def fleet_of(replicas: int) -> object:
    """Return Llama-3.1-8B on so many H100."""
    where = deploy(api.load_hardware("h100"), api.load_model("llama-3.1-8b"), Setting(library="vllm"))
    assignment = uniform_assignment(where, api.parse_scheme("FP8"))
    return make_fleet(where, assignment, 2300, Limits(), replicas)


def bench_simulation() -> None:
    """Time serving requests of 2,000 and 300 tokens at 20 a second, the predicted steps only."""
    for count, replicas, goal in (
        (HOUR_REQUESTS, 1, "goal 2 s"),
        (HOUR_REQUESTS, 4, "goal 2 s"),
        (MILLION, 4, "goal 120 s, 1 GiB"),
    ):
        fleet = fleet_of(replicas)
        requests = draw_requests(Demand(20.0, Fixed(2000), Fixed(300)), count, seed=0)
        start = time.perf_counter()
        serve(requests, fleet, Objectives(), middle_only=True)
        seconds = time.perf_counter() - start
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB
        print(
            f"{seconds:7.2f} s  {count:,} requests at 20/s on {replicas} replicas ({goal}); peak {mebibytes:,.0f} MiB"
        )


def bench_sweep() -> None:
    """Time a grid of 100,000 cases on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.yaml"
        path.write_text(GRID, encoding="utf-8")
        grid = read_grid(path)
        start = time.perf_counter()
        run_sweep(Sweep(grid, Path(folder) / "out.parquet"), "local", 2, lambda *_: None)
        seconds = time.perf_counter() - start
        print(f"{seconds:7.2f} s  sweep of {grid.case_count:,} cases, two processes (goal 60 s for 100,000)")


if __name__ == "__main__":
    bench_simulation()
    bench_sweep()
