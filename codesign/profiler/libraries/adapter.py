"""What all adapters share: a library is a table of rows, and a row says how one of its kernels is fed."""

import functools
import importlib
import importlib.metadata
import platform
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codesign import __version__
from codesign.profiler.graph_timer import TorchGpuClock
from codesign.profiler.kernel import (
    AttentionCase,
    Case,
    Device,
    FloatArray,
    GemmCase,
    GpuClock,
    Kernel,
    LibraryState,
    Prepared,
    gemm_inputs,
)
from codesign.profiler.reference import ROUNDINGS, attention, attention_inputs, product, rounded
from codesign.profiler.repeated import (
    copies_of,
    repeated_columns,
    repeated_heads,
    repeated_inputs,
    unique_attention,
    unique_gemm,
)
from codesign.profiler.weights import Float32, FloatWeights, QuantizedWeights, Weights, quantize
from codesign.schemes.catalog import parse_scheme
from codesign.units import BITS_PER_BYTE

FINGERPRINT_OUTPUTS = 256
OWN_DISTRIBUTION = "codesign"
Limit = Callable[[GemmCase], str | None]


@dataclass(frozen=True, slots=True)
class GemmRow:
    """One kernel that multiplies.

    `feed(x, case)` makes the library's activations from x, which already has `x_precision`; `pack(weights, fed, case)`
    its weights; `call(fed, packed)` is what is timed, and `output` turns what it returned into float32 [m, n].
    `rounding` names how the kernel itself rounds activations, `scale_bytes` is what is stored beside each group of
    codes. `repeat(packed, times)` returns what `pack` gives of the matrix so many times, one below the other; without
    it the whole is packed.
    """

    name: str
    scheme: str
    math_dtype: str
    feed: Callable[[Float32, GemmCase], Any]
    pack: Callable[[Any, Any, GemmCase], Any]
    call: Callable[[Any, Any], Any]
    output: Callable[[Any], FloatArray]
    x_precision: str = "bf16"
    rounding: str = "none"
    scale_precision: str = "fp32"
    scale_bytes: float = 4.0
    limits: tuple[Limit, ...] = ()
    note: str = ""
    device: Device = "cpu"
    repeat: Callable[[Any, int], Any] | None = None


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One attention kernel: `pack` makes its cache of keys and values, `call(q, cache)` is what is timed.

    `held` rounds keys and values as the cache does, which takes `bits` for each and `scale_bytes` for a vector of them.
    """

    name: str
    kv_format: str
    math_dtype: str
    held: Callable[[Float32], Float32]
    bits: int
    feed: Callable[[Float32], Any]
    pack: Callable[[Any, AttentionCase], Any]
    call: Callable[[Any, Any], Any]
    output: Callable[[Any], FloatArray]
    q_precision: str = "bf16"
    scale_bytes: float = 0.0
    limits: tuple[Callable[[AttentionCase], str | None], ...] = ()
    note: str = ""
    device: Device = "cpu"


@dataclass(frozen=True, slots=True)
class Library:
    """A library with its kernels: the first of `distributions` gives its version, all of them must be installed.

    `start(threads)` is called before a case is prepared; `problem()` says why an installed library cannot be used.
    `tunes` is as of kernels.
    """

    name: str
    distributions: tuple[str, ...]
    gemms: tuple[GemmRow, ...]
    start: Callable[[int], None]
    attentions: tuple[AttentionRow, ...] = ()
    problem: Callable[[], str | None] = lambda: None
    device: Device = "cpu"
    tunes: bool = False


@functools.cache
def version_of(distribution: str) -> str | None:
    """Return the version of an installed package, None if it is not installed; our own is wherever it is imported."""
    if distribution == OWN_DISTRIBUTION:
        return __version__
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def too_old(distribution: str, *needed: int) -> str | None:
    """Return why an installed package is older than its adapter was written for, None if it is not."""
    version = version_of(distribution) or ""
    if tuple(int(part) for part in re.findall(r"\d+", version)[: len(needed)]) >= needed:
        return None
    first = ".".join(map(str, needed))
    return f"{distribution} {version} is older than {first}, which this was written for; pip install -U {distribution}"


def import_quietly(name: str) -> Any:
    """Return an imported library; what it warns of on import is not about the kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def state_of(library: Library) -> LibraryState:
    """Return whether a library can be used here, without importing it."""
    missing = [name for name in library.distributions if version_of(name) is None]
    if missing:
        needed = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        reason = f"{needed}; pip install {' '.join(missing)}"
        return LibraryState(library.name, None, reason, library.device)
    problem = library.problem()
    version = None if problem else version_of(library.distributions[0])
    return LibraryState(library.name, version, problem, library.device)


def kernels_of(library: Library) -> tuple[Kernel, ...]:
    """Return the kernels of a library, also where it is missing: they then refuse every case with the reason."""
    gemms = tuple(_gemm_kernel(library, row) for row in library.gemms)
    return (*gemms, *(_attention_kernel(library, row) for row in library.attentions))


def _gemm_kernel(library: Library, row: GemmRow) -> Kernel:
    def refuses(case: Case) -> str | None:
        if not isinstance(case, GemmCase):
            return f"{library.name} {row.name} multiplies matrices; it is no attention kernel"
        return state_of(library).reason or _first_problem(row.limits, case)

    def prepare(case: GemmCase, copies: int) -> Prepared:
        library.start(case.threads)
        return prepare_gemm(row, case, copies)

    return Kernel(library.name, row.name, row.scheme, refuses, prepare, row.note, row.device, library.tunes)


def _attention_kernel(library: Library, row: AttentionRow) -> Kernel:
    def refuses(case: Case) -> str | None:
        if not isinstance(case, AttentionCase):
            return f"{library.name} {row.name} is an attention kernel; it multiplies no weights"
        return state_of(library).reason or _first_problem((_attention_shape, *row.limits), case)

    def prepare(case: AttentionCase, copies: int) -> Prepared:
        library.start(case.threads)
        return prepare_attention(row, case, copies)

    return Kernel(library.name, row.name, row.kv_format, refuses, prepare, row.note, row.device, library.tunes)


def _first_problem(limits: tuple[Callable[[Any], str | None], ...], case: Case) -> str | None:
    return next((problem for limit in limits if (problem := limit(case))), None)


def prepare_gemm(row: GemmRow, case: GemmCase, copies: int) -> Prepared:
    """Return a row's kernel ready to be timed on a case."""
    unique = unique_gemm(case, row.device)
    inputs, times = gemm_inputs(unique), case.n // unique.n
    x = rounded(inputs.x, row.x_precision)
    scheme = parse_scheme(row.scheme)
    weights = quantize(inputs.w, scheme, row.scale_precision)
    fed = row.feed(x, case)
    packed = packed_copies(row, weights, fed, case, copies)
    return Prepared(
        run=lambda copy: row.call(fed, packed[copy]),
        copies=copies,
        output=row.output,
        reference=lambda: repeated_columns(product(ROUNDINGS[row.rounding](x), weights), case.n),
        read_bytes=times * stored_bytes(weights, scheme.weights.bits, row.scale_bytes),
        math_dtype=row.math_dtype,
        exact=lambda: product(x.astype(np.float64), weights.part(slice(FINGERPRINT_OUTPUTS))),
        gpu=clock_of(row.device),
    )


def packed_copies(row: GemmRow, weights: Weights, fed: Any, case: GemmCase, copies: int) -> tuple[Any, ...]:
    """Return a case's weights packed so many times: on the CPU with rows moved down, on a GPU equal ones."""
    if row.device == "cpu":
        return tuple(row.pack(weights.rolled(copy), fed, case) for copy in range(copies))
    times = case.n // weights.row_count
    if row.repeat is None:
        return copies_of(row.pack(weights.repeated(times), fed, case), copies)
    return copies_of(row.repeat(row.pack(weights, fed, case), times), copies)


def stored_bytes(weights: Weights, bits: float, scale_bytes: float) -> float:
    """Return the bytes of codes of so many bits, with `scale_bytes` for every group of them."""
    if isinstance(weights, QuantizedWeights):
        return weights.codes.size * bits / BITS_PER_BYTE + weights.scales.size * scale_bytes
    assert isinstance(weights, FloatWeights)
    return weights.values.size * bits / BITS_PER_BYTE


def prepare_attention(row: AttentionRow, case: AttentionCase, copies: int) -> Prepared:
    """Return a row's kernel ready to be timed on a case; the caches are equal and lie at different places."""
    unique = attention_inputs(unique_attention(case, row.device))
    inputs, q = repeated_inputs(unique, case), rounded(unique.q, row.q_precision)
    fed = row.feed(repeated_heads(q, case.batch, case.heads))
    packed = tuple(row.pack(inputs, case) for _ in range(copies))
    held = (row.held(unique.k), row.held(unique.v))
    vectors = 2 * case.batch * case.kv_heads * case.kv_tokens
    return Prepared(
        run=lambda copy: row.call(fed, packed[copy]),
        copies=copies,
        output=row.output,
        reference=lambda: repeated_heads(
            attention(*(part.astype(np.float64) for part in (q, *held))), case.batch, case.heads
        ),
        read_bytes=vectors * (case.head_dim * row.bits / BITS_PER_BYTE + row.scale_bytes),
        math_dtype=row.math_dtype,
        gpu=clock_of(row.device),
    )


def clock_of(device: Device) -> GpuClock | None:
    """Return what times kernels of a GPU, None on the CPU."""
    return TorchGpuClock() if device == "cuda" else None


def _attention_shape(case: AttentionCase) -> str | None:
    if case.heads % case.kv_heads:
        return f"{case.heads} heads are not a multiple of {case.kv_heads} heads of keys and values"
    if case.q_tokens > case.kv_tokens:
        return f"{case.q_tokens} new tokens are more than the {case.kv_tokens} cached ones that hold them"
    return None


def n_multiple(size: int) -> Limit:
    """Return the limit of a kernel that takes only multiples of `size` output features."""
    return lambda case: None if case.n % size == 0 else f"n = {case.n} is not a multiple of {size}"


def k_multiple(size: int) -> Limit:
    """Return the limit of a kernel that takes only multiples of `size` input features."""
    return lambda case: None if case.k % size == 0 else f"k = {case.k} is not a multiple of {size}"


def needs_flags(*flags: str) -> Limit:
    """Return the limit of a kernel that runs only on x86 processors with all these features."""
    return lambda _case: missing_flags(flags)


def missing_flags(flags: tuple[str, ...]) -> str | None:
    """Return which processor features are missing, None where all are here."""
    missing = [flag for flag in flags if flag not in processor_flags()]
    return f"this processor ({platform.machine()}) has no {', '.join(missing)}" if missing else None


@functools.cache
def processor_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the features that Linux names for the first processor; empty where it names none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(found.split(":", 1)[1].split())
