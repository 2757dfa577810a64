"""What calls of our multiplying kernels on numpy arrays have in common: checks, scratch memory and errors."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codesign.errors import CapabilityError, InputError
from codesign.native import load
from codesign.native.packed import PackedWeights

BEST_ISA = -1
FLOAT32, BFLOAT16 = 0, 1

_DTYPES = {np.dtype(np.float32): FLOAT32, np.dtype(np.uint16): BFLOAT16}
_ERRORS: dict[int, tuple[type[InputError | CapabilityError], str]] = {
    1: (
        InputError,
        "m, n and threads must be at least 1, k a multiple of 32 (with 8-bit activations up to 131072), "
        "the group 0, 32, 64 or 128",
    ),
    2: (CapabilityError, "this processor or this build lacks that kernel variant; -1 takes the best one here"),
    3: (InputError, "activations must be float32, or bfloat16 as uint16"),
    4: (InputError, "the static activation scale must be a positive number"),
}
_scratch = threading.local()
# Takes x, its dtype, the outputs, their dtype and scratch memory as addresses and numbers; returns an error number.
NativeRun = Callable[[int, int, int, int, int], int]


@dataclass(frozen=True, slots=True)
class Call:
    """How to run: kernel variant, threads, and whether the outputs are bfloat16 (as uint16) instead of float32."""

    isa: int = BEST_ISA
    threads: int = 1
    bfloat16: bool = False


BEST = Call()


class Packed(Protocol):
    """Packed weights [n, k]."""

    @property
    def pages(self) -> PackedWeights:
        """Return their memory."""

    @property
    def n(self) -> int:
        """Return the output features."""

    @property
    def k(self) -> int:
        """Return the input features."""


@dataclass(frozen=True, slots=True)
class GroupedArrays:
    """Codes [n, k], scales and perhaps zero points [n, groups], dense as the kernels read them."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Return where they begin, 0 without zero points."""
        return self.codes.ctypes.data, self.scales.ctypes.data, 0 if self.zeros is None else self.zeros.ctypes.data


def grouped_arrays(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, group: int
) -> GroupedArrays:
    """Return the arrays dense once their shapes are checked; group 0 has one scale per row."""
    n, k = codes.shape
    shape = (n, -(-k // group) if group else 1)
    expect("scales", scales.shape, shape)
    if zeros is not None:
        expect("zero points", zeros.shape, shape)
        zeros = np.ascontiguousarray(zeros, np.uint8)
    return GroupedArrays(np.ascontiguousarray(codes, np.uint8), np.ascontiguousarray(scales, np.float32), zeros)


def run_call(
    x: NDArray[np.generic],
    weights: Packed,
    call: Call,
    scratch_bytes: int,
    run: NativeRun,
) -> NDArray[np.generic]:
    """Check x, make room for the outputs and the scratch memory, and run."""
    expect("activations", x.shape, (len(x), weights.k))
    raise_if(0 if x.dtype in _DTYPES else 3)
    x_dtype = _DTYPES[x.dtype]
    x = np.ascontiguousarray(x)
    out = np.empty((len(x), weights.n), np.uint16 if call.bfloat16 else np.float32)
    address_of = weights.pages.native.address_of
    scratch = _scratch_address(scratch_bytes)
    raise_if(run(address_of(x), x_dtype, address_of(out), BFLOAT16 if call.bfloat16 else FLOAT32, scratch))
    return out


def _scratch_address(byte_count: int) -> int:
    """Return where this thread's scratch memory is; it is kept, because fresh memory costs a page fault every 4 KiB."""
    kept: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if kept is None or len(kept) < byte_count:
        kept = _scratch.memory = np.empty(byte_count, np.uint8)
        _scratch.address = load().address_of(kept)
    address: int = _scratch.address
    return address


def expect(what: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Refuse an array of another shape."""
    if given != wanted:
        raise InputError(f"{what} have the shape {given}; {wanted} is needed")


def raise_if(error_number: int) -> None:
    """Raise what the number that a kernel returned stands for; 0 is none."""
    if error_number:
        kind, sentence = _ERRORS[error_number]
        raise kind(sentence)
