"""Where kernels run."""

from dataclasses import dataclass, replace

from codesign.cost.sheet import KernelSheet
from codesign.hardware.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Target:
    """One machine type, one kernel library, `gpu_count` devices in tensor parallel.

    Routed experts are divided over `expert_parallel` of them, and each expert's matrices over the rest. `sheets` are
    kernel sheets of the user's own, which go before the shipped ones. `kernel` names one of the library's several
    kernels for a scheme; else the one that it, or its user, takes for its speed. `program_library` has the kernels of
    attention, and of 16-bit layers unless a kernel is named, where a program calls `library` for the rest alone;
    `program_kernel` is the one of those that multiplies.
    """

    hardware: Hardware
    library: str
    gpu_count: int = 1
    sheets: tuple[KernelSheet, ...] = ()
    expert_parallel: int = 1
    kernel: str = ""
    program_library: str = ""
    program_kernel: str = ""

    @property
    def program(self) -> "Target":
        """Return where attention and 16-bit layers run."""
        if not self.program_library:
            return self
        return replace(self, library=self.program_library, kernel=self.program_kernel, program_library="")

    @property
    def expert_shards(self) -> int:
        """Return over how many devices each expert's matrices are divided."""
        return self.gpu_count // self.expert_parallel
