"""Seconds of collectives between the devices of one replica."""

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.kernels import KernelPrediction, datasheet_prediction
from codesign.cost.roofline import OpCost, Rates
from codesign.cost.target import Target
from codesign.cost.traffic import all_reduce_wire_bytes
from codesign.errors import CapabilityError
from codesign.hardware.hardware import Hardware, Link


def connecting_link(hardware: Hardware) -> Link:
    """Return the link between peers: the machine's own, else the host link; CapabilityError if there is none."""
    link = hardware.peer_link or hardware.host_link
    if link is None:
        raise CapabilityError(f"{hardware.name} has no link to peers in its profile; use --gpus 1.")
    return link


def all_reduce(target: Target, gpu_count: FloatArray, message_bytes: FloatArray) -> KernelPrediction:
    """Return the time of a ring all-reduce of `message_bytes` held by each of `gpu_count` devices."""
    link = connecting_link(target.hardware)
    gpus, message = np.broadcast_arrays(as_floats(gpu_count), as_floats(message_bytes))
    nothing = np.zeros_like(message)
    wire = all_reduce_wire_bytes(gpus, message)
    cost = OpCost(nothing, nothing, nothing, wire, nothing, launch_count=np.where(gpus > 1, 1.0, 0.0))
    rates = Rates(1.0, 1.0, link.bandwidth_bytes_per_s, link.latency_s + target.hardware.launch_overhead_s)
    return datasheet_prediction("all_reduce", cost, rates)
