"""A CPU of which only some cores work."""

from dataclasses import replace
from types import MappingProxyType

from codesign.hardware.hardware import Hardware, Memory


def with_threads(hardware: Hardware, thread_count: int) -> Hardware:
    """Return a CPU of which only some cores work: arithmetic goes with the cores.

    Bandwidth is what that many threads were measured to read. Where nothing was measured it stays: a few threads fill
    the memory bus; published rates of arithmetic-bound prefill grow by 1.7 to 2.0 when threads double (4 to 16
    threads, x86 and Arm), those of decode by 1.0 above 4 threads of a desktop.
    Source: ik_llama.cpp pull request 13, llama.cpp pull request 7487, microsoft/T-MAC README.
    """
    share = min(1.0, thread_count / hardware.unit_count)
    peaks = {name: rate * share for name, rate in hardware.peak_flop_per_s.items()}
    return replace(
        hardware,
        unit_count=min(thread_count, hardware.unit_count),
        peak_flop_per_s=MappingProxyType(peaks),
        memory=_memory_of(hardware.memory, thread_count),
    )


def with_bandwidth(hardware: Hardware, bytes_per_s: float) -> Hardware:
    """Return a machine whose memory gives so many bytes per second, as measured beside a kernel on a shared host."""
    memory = replace(hardware.memory, thread_bytes_per_s=MappingProxyType({}), sustained_fraction=1.0)
    return replace(hardware, memory=replace(memory, bandwidth_bytes_per_s=bytes_per_s))


def _memory_of(memory: Memory, thread_count: int) -> Memory:
    """Return memory with the bandwidth of the nearest measured count of threads that is not larger."""
    if not memory.thread_bytes_per_s:
        return memory
    counts = sorted(memory.thread_bytes_per_s)
    nearest = max((count for count in counts if count <= thread_count), default=counts[0])
    return replace(memory, bandwidth_bytes_per_s=memory.thread_bytes_per_s[nearest])
