"""Where kernels run."""

from dataclasses import dataclass

from codesign.hardware.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Target:
    """One machine type, one kernel library, `gpu_count` devices in tensor parallel."""

    hardware: Hardware
    library: str
    gpu_count: int = 1
