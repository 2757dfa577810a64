"""Timing kernels of a GPU by its own clock: calls are recorded once as a graph and replayed between two events.

Replays leave no gaps between kernels, as engines that use CUDA graphs do; starting each from Python would take longer
than a small product does.
"""

import gc
import math
from collections.abc import Callable
from typing import Any

from codesign.profiler.kernel import GpuClock
from codesign.profiler.timing import Clock, Timer, Work

Calls = Callable[[], Any]
NOT_RECORDED = "each call is started from Python, since a CUDA graph cannot record it: short ones wait for that"


class GraphTimer(Timer):
    """Samples of work on a GPU: all copies in turn are one graph, so a sample is a whole number of turns.

    Where the caches are emptied before each sample, the graph is one call of the first copy.
    """

    def __init__(self, work: Work, clock: Clock, gpu: GpuClock) -> None:
        super().__init__(work, clock)
        self._gpu = gpu
        self._turn = 1 if work.before_sample is not None else work.copies
        self._replay = gpu.recorded(self._run_turn)
        if self._replay == self._run_turn:
            self.note = NOT_RECORDED

    def _run_turn(self) -> None:
        for copy in range(self._turn):
            self.work.run(copy)

    def sample(self, calls: int) -> float:
        """Return the seconds of `calls` calls; turns that are begun are ended and counted in part."""
        if self.work.before_sample is not None:
            self.work.before_sample()
        else:
            self._replay()  # the GPU is busy with it while the host hands over what is timed
        turns = math.ceil(calls / self._turn)
        return self._gpu.elapsed_s(self._replay, turns) * calls / (turns * self._turn)


class TorchGpuClock:
    """The GPU of PyTorch's current device."""

    def recorded(self, calls: Calls) -> Calls:
        """Return the replay of a CUDA graph; work that cannot be recorded is started anew each time."""
        import torch

        torch.cuda.synchronize()  # what the calls read was written in another stream
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            calls()  # compiles, takes workspaces, chooses algorithms
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                calls()
        except RuntimeError:
            torch.cuda.synchronize()
            return calls
        replay: Calls = graph.replay
        return replay

    def elapsed_s(self, calls: Calls, count: int) -> float:
        """Return the seconds between two CUDA events."""
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            calls()
        end.record()
        end.synchronize()
        elapsed_ms: float = begin.elapsed_time(end)
        return elapsed_ms / 1e3

    def flush(self, size_bytes: int) -> Calls:
        """Return what begins to write so many bytes: the host hands over what is timed meanwhile."""
        import torch

        buffer = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
        return lambda: buffer.fill_(1)

    def give_back(self) -> None:
        """Empty PyTorch's cache of freed memory."""
        import torch

        gc.collect()  # graphs and what they hold
        torch.cuda.empty_cache()
