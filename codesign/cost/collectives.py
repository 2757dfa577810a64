"""Seconds of collectives between the devices of one replica."""

from dataclasses import replace

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.calibration import choose, has_operation
from codesign.cost.collective_time import COLLECTIVE_KEY, collective_seconds
from codesign.cost.kernels import KernelPrediction, datasheet_prediction
from codesign.cost.roofline import KernelTime, OpCost, Rates
from codesign.cost.target import Target
from codesign.cost.traffic import wire_bytes
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware, Link

# What libraries without collectives of their own call.
COMMON_LIBRARY = "nccl"


def connecting_link(hardware: Hardware) -> Link:
    """Return the link between peers: the machine's own, else the host link; CapabilityError if there is none."""
    link = hardware.peer_link or hardware.host_link
    if link is None:
        raise CapabilityError(f"{hardware.name} has no link to peers in its profile; use --gpus 1.")
    return link


def collective(target: Target, operation: str, gpu_count: FloatArray, message_bytes: FloatArray) -> KernelPrediction:
    """Return the time of a collective on `message_bytes` in each of `gpu_count` devices."""
    link = connecting_link(target.hardware)
    gpus, message = np.broadcast_arrays(as_floats(gpu_count), as_floats(message_bytes))
    nothing = np.zeros_like(message)
    wire = wire_bytes(operation, gpus, message)
    cost = OpCost(nothing, nothing, nothing, wire, nothing, launch_count=np.where(gpus > 1, 1.0, 0.0))
    rates = Rates(1.0, 1.0, link.bandwidth_bytes_per_s, link.latency_s + target.hardware.launch_overhead_s)
    datasheet = datasheet_prediction("all_reduce", cost, rates)
    library = target.library if has_operation(target, operation) else COMMON_LIBRARY
    has_peer_link = target.hardware.peer_link is not None
    chosen = choose(
        replace(target, library=library),
        operation,
        [[COLLECTIVE_KEY]],
        lambda _, machine: has_peer_link and machine.peer_link is not None,
    )
    if chosen is None:
        return datasheet
    time = collective_seconds(chosen.constants, operation, link.bandwidth_bytes_per_s, gpus, message)
    low_s, high_s = chosen.interval(time.predicted_s, {"gpus": gpus, "message_bytes": np.maximum(message, 1.0)})
    parts = KernelTime(time.compute_s, time.memory_s, time.fixed_s)
    return KernelPrediction(parts, time.predicted_s, low_s, high_s, chosen.origin, datasheet.load)
