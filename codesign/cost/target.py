"""Where kernels run."""

from dataclasses import dataclass

from codesign.cost.sheet import KernelSheet
from codesign.hardware.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Target:
    """One machine type, one kernel library, `gpu_count` devices in tensor parallel.

    Routed experts are divided over `expert_parallel` of them, and each expert's matrices over the rest. `sheets` are
    kernel sheets of the user's own, which go before the shipped ones. `kernel` names one of the library's several
    kernels for a scheme; else the one that it, or its user, takes for its speed.
    """

    hardware: Hardware
    library: str
    gpu_count: int = 1
    sheets: tuple[KernelSheet, ...] = ()
    expert_parallel: int = 1
    kernel: str = ""

    @property
    def expert_shards(self) -> int:
        """Return over how many devices each expert's matrices are divided."""
        return self.gpu_count // self.expert_parallel
