"""How fast the GPU of this machine reads its memory, with a kernel that only reads.

python scripts/gpu_roofs.py [FILE]      FILE gets the figure as JSON
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from codesign.gpu.launch import Launch, gpu
from codesign.gpu.program import program
from codesign.profiler.graph_timer import TorchGpuClock
from codesign.units import GIBI, format_bytes_per_s

READ_BYTES = int(4 * GIBI)
BLOCKS_PER_MULTIPROCESSOR = 4
THREADS = 512
SAMPLES = 9


def main() -> None:
    """Print the bytes per second of reading 4 GiB once, the median of 9; the first replay is not counted."""
    here, clock = gpu(), TorchGpuClock()
    buffer = torch.randint(0, 255, (READ_BYTES,), dtype=torch.uint8, device="cuda")
    sums = torch.zeros(BLOCKS_PER_MULTIPROCESSOR * here.multiprocessors, dtype=torch.int32, device="cuda")
    what = Launch(program("roofs"), "read_all", (sums.numel(), 1, 1), THREADS, 0)
    replay = clock.recorded(lambda: here.launch(what, (buffer, sums, np.int64(READ_BYTES // 16))))
    clock.elapsed_s(replay, 1)
    seconds = statistics.median(clock.elapsed_s(replay, 1) for _ in range(SAMPLES))
    name, rate = torch.cuda.get_device_name(), READ_BYTES / seconds
    print(f"{name}: {format_bytes_per_s(rate)} read")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"gpu": name, "read_bytes_per_s": rate}) + "\n")


if __name__ == "__main__":
    main()
