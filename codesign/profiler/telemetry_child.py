"""The process that asks NVML, 20 times a second, and says one line each time; it ends with the one that started it.

It is started by `telemetry.py` as `python -m codesign.profiler.telemetry_child BINDINGS PARENT_PID`. What a driver does
to the process that asks it, from a crash to a hang, happens here and nowhere else. Whatever the driver's library prints
goes to standard error.
"""

import itertools
import os
import sys
import time
from typing import BinaryIO

from codesign.profiler.child import die_with_parent
from codesign.profiler.nvml import Devices, load_bindings, open_devices
from codesign.profiler.telemetry_lines import Message, Remark, message_line

PERIOD_S = 0.05


def tell(lines: BinaryIO, message: Message) -> None:
    """Write one line."""
    lines.write(message_line(message))
    lines.flush()


def sample(devices: Devices, lines: BinaryIO) -> None:
    """Tell what the devices do, every period, until nobody listens; a slow driver makes it less often."""
    begin_s = time.perf_counter()
    for number in itertools.count(1):
        tell(lines, devices.moment(time.perf_counter()))
        behind_s = time.perf_counter() - begin_s - number * PERIOD_S
        if behind_s < 0:
            time.sleep(-behind_s)
        else:
            begin_s += behind_s


def main(bindings: str, parent_pid: int) -> int:
    """Tell which devices there are, then what they do."""
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    die_with_parent(parent_pid)
    devices = open_devices(lambda text: tell(lines, Remark(text)), load_bindings(bindings))
    try:
        tell(lines, devices.telemetry())
        if devices.found.value:
            sample(devices, lines)
    except BrokenPipeError:
        os._exit(0)  # nobody listens: not even to what buffers would still say
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
