"""Run by a test: sweep on a real ray cluster of two nodes, one of which is killed meanwhile; write what came of it.

It is a process of its own because ray's processes talk to each other through sockets, which tests may not open.
"""

import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from codesign.capacity import sweep as sweeping
from codesign.capacity.grid_file import read_grid
from codesign.capacity.sweep import Sweep, run_sweep

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
CASES_PER_CHUNK = 400


def main(folder: Path) -> None:
    """Sweep the grid of the folder here and there."""
    sweeping.CASES_PER_CHUNK = CASES_PER_CHUNK
    grid = read_grid(folder / "grid.yaml")
    run_sweep(Sweep(grid, folder / "local.parquet"), "local", 1, lambda *_: None)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    second = cluster.add_node(**NODE)
    left = [second]

    def kill_half_way(done: int, of: int) -> None:
        if left and done >= of // 3:
            cluster.remove_node(left.pop(), allow_graceful=False)

    try:
        run_sweep(Sweep(grid, folder / "ray.parquet"), f"ray://{cluster.address}", 1, kill_half_way)
    finally:
        cluster.shutdown()
    print(f"killed {1 - len(left)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
