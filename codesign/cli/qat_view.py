"""A training as lines: what it takes, the loss every so often, and how long it still goes on."""

import time

from codesign.cli.options import warn
from codesign.cli.output import print_line
from codesign.profiler.processors import available_memory_bytes
from codesign.quantize.qat import QatNeed, QatOptions, QatTask, StepReport
from codesign.units import format_gib, format_seconds, significant

_LINES = 20


def print_need(need: QatNeed, task: QatTask, options: QatOptions) -> None:
    """Print what is trained, and the memory and disk that it takes."""
    count, length = task.windows.shape
    print_line(
        f"{len(task.schemes):,} layers, {options.steps:,} steps of {options.batch} x {length:,} tokens out of "
        f"{count:,} windows: about {format_gib(need.memory_bytes)} of memory, and {format_gib(need.state_bytes)} of "
        f"disk for a state every {options.save_every:,} steps."
    )
    free_bytes = available_memory_bytes()
    if task.device == "cpu" and free_bytes is not None and free_bytes < need.memory_bytes:
        warn(
            [
                f"{format_gib(free_bytes)} of memory are free; a smaller --batch or --window takes less, "
                "and --loss next-token does without the teacher."
            ]
        )


class TrainingLog:
    """Prints the mean loss of some steps at a time and how long the rest takes at this pace."""

    def __init__(self, steps: int) -> None:
        self._steps, self._every = steps, max(steps // _LINES, 1)
        self._losses: list[float] = []
        self._begun_s: float | None = None
        self._first = 0

    def add(self, report: StepReport) -> None:
        """Take a step; print a line where it is time for one."""
        now_s = time.perf_counter()
        if self._begun_s is None:
            self._begun_s, self._first = now_s, report.step
            if report.step > 1:
                print_line(f"Going on behind step {report.step - 1:,}.")
        self._losses.append(report.loss_nats)
        if report.step % self._every == 0 or report.step == self._steps:
            print_line(self._line(report.step, now_s - self._begun_s))
            self._losses = []

    def _line(self, step: int, elapsed_s: float) -> str:
        loss = significant(sum(self._losses) / len(self._losses), 4)
        text = f"Step {step:,} of {self._steps:,}: loss {loss} nats per token"
        done, left = step - self._first, self._steps - step
        return f"{text}, about {format_seconds(elapsed_s / done * left)} left" if done and left else text
