"""The 31 error codes of NVML: whether asking again can help, and what the user can do (nvml.h, nvmlReturn_t)."""

from dataclasses import dataclass
from typing import Any

DRIVER = "update or reload the NVIDIA driver"
REPORT = "run nvidia-smi to see whether the driver answers"
RESTART = "restart the machine or reset the GPU"


@dataclass(frozen=True, slots=True)
class NvmlCode:
    """One code: its name, a fix, and whether it stays so for the life of the process."""

    name: str
    fix: str
    lasting: bool = False


NVML_CODES: dict[int, NvmlCode] = {
    1: NvmlCode("uninitialized", REPORT),
    2: NvmlCode("invalid argument", "report this; the GPU or the call does not exist in this driver", True),
    3: NvmlCode("not supported", "nothing: this GPU, vGPU or MIG slice does not offer it", True),
    4: NvmlCode("no permission", "run as root or ask the administrator to allow it", True),
    5: NvmlCode("already initialized", "nothing: deprecated and harmless"),
    6: NvmlCode("not found", "check the index against nvidia-smi -L", True),
    7: NvmlCode("insufficient size", "update nvidia-ml-py", True),
    8: NvmlCode("insufficient power", "check the power cables of the GPU", True),
    9: NvmlCode("driver not loaded", "load the NVIDIA driver, or start the container with the GPU", True),
    10: NvmlCode("timeout", REPORT),
    11: NvmlCode("interrupt request issue", RESTART, True),
    12: NvmlCode("library not found", "install the NVIDIA driver, or start the container with the GPU", True),
    13: NvmlCode("function not found", DRIVER, True),
    14: NvmlCode("corrupted infoROM", "have the GPU serviced", True),
    15: NvmlCode("GPU is lost", RESTART, True),
    16: NvmlCode("reset required", RESTART, True),
    17: NvmlCode("blocked by the operating system", "allow access to the NVIDIA device files", True),
    18: NvmlCode("driver and library versions differ", "restart the machine or the container after the update", True),
    19: NvmlCode("in use", "end the other program that holds it"),
    20: NvmlCode("out of memory", "free memory of the host"),
    21: NvmlCode("no data", "nothing: the value is not there yet"),
    22: NvmlCode("ECC not supported on vGPU", "nothing: this vGPU does not offer it", True),
    23: NvmlCode("insufficient resources", "end other programs that use the GPU"),
    24: NvmlCode("frequency not supported", "nothing: this GPU does not offer it", True),
    25: NvmlCode("argument version mismatch", "bring nvidia-ml-py and the driver to the same release", True),
    26: NvmlCode("deprecated", "update nvidia-ml-py", True),
    27: NvmlCode("not ready", REPORT),
    28: NvmlCode("GPU not found", "check the index against nvidia-smi -L", True),
    29: NvmlCode("invalid state", REPORT),
    30: NvmlCode("reset type not supported", "nothing: this GPU does not offer it", True),
    999: NvmlCode("unknown error", REPORT),
}
FUNCTION_NOT_FOUND = 13
LOST = frozenset({15, 16})


def code_of(error: BaseException) -> NvmlCode:
    """Return the code of an error of the bindings; errors that are none of NVML's keep their own name."""
    value: Any = getattr(error, "value", None)
    known = NVML_CODES.get(value) if isinstance(value, int) else None
    if known is not None:
        return known
    name = f"error code {value}" if isinstance(value, int) else f"{type(error).__name__}: {error}"
    return NvmlCode(name, "install the current nvidia-ml-py", lasting=isinstance(error, AttributeError))
