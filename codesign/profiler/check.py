"""Whether a kernel computes what it should: it gets no time before its output is as near as plain PyTorch's."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from codesign.profiler.kernel import AttentionCase, Case, FloatArray, GemmCase, Prepared, gemm_inputs
from codesign.profiler.reference import attention, attention_inputs, rounded, visible
from codesign.profiler.weights import TORCH_NAMES, Exact, installed_torch

PLAIN_FACTOR = 2.0  # of the error of plain PyTorch; the rule of flash-attention's tests
FLOOR_FRACTION = 1e-5  # sums in float32 in another order than PyTorch's, over thousands of products
WORST_FLOOR_FRACTION = 1e-4  # likewise, of a single output
PLAIN_TOKENS = 32  # attention to one token alone has no error
PLAIN_SIDE = 256  # so many squared outputs tell the error of any number of them; the worst of millions is little worse

# The precision in which plain PyTorch does the same: sums of integers and of FP8 are exact, their output has 16 bits.
_PLAIN_PRECISION: Mapping[str, str] = MappingProxyType(
    {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "bf16", "fp8": "bf16"}
)
# The largest error, relative to unrounded activations, of a kernel that multiplies in a precision. Normal values lose
# 0.17 % in bf16, 0.02 % in fp16, 0.5 to 1.1 % in int8 with one scale per 32 up to all of them, 2.6 % in E4M3.
_CLASSES = (("fp32", 2e-5), ("fp16", 8e-4), ("bf16", 3.5e-3), ("int8", 1.5e-2), ("fp8", 6e-2))


@dataclass(frozen=True, slots=True)
class Check:
    """How far the output is from the exact one, relative to its norm, and how far it may be.

    A check that is not passed says why; one that is passed has a reason only where the kernel multiplied in another
    precision than it was asked for.
    """

    error_fraction: float | None
    allowed_fraction: float
    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Deviation:
    """The error of an output: of its norm, and of its worst element against the root mean square of all."""

    fraction: float
    worst_fraction: float
    worst_at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """In which precision a kernel was asked to multiply, and in which its error says that it did."""

    requested: str
    achieved: str
    error_fraction: float


def check_output(prepared: Prepared, case: Case) -> Check:
    """Return whether one call computes the reference within twice the error of plain PyTorch at that precision."""
    allowed = allowed_deviation(case, prepared.math_dtype)
    output = np.asarray(prepared.output(prepared.run(0)), dtype=np.float64)
    exact = prepared.reference()
    problem = _shape_problem(output, exact)
    if problem:
        return Check(None, allowed.fraction, False, problem)
    found = deviation(output, exact)
    within = found.fraction <= allowed.fraction and found.worst_fraction <= allowed.worst_fraction
    print_ = fingerprint(prepared, output, exact)
    reason = "" if within else _error_text(found, allowed)
    if print_.achieved != print_.requested and (not within or _is_fp32(print_)):
        reason += f"{'; ' if reason else ''}it multiplied in {print_.achieved}, not in {print_.requested}"
    return Check(found.fraction, allowed.fraction, within, reason)


def _shape_problem(output: Exact, exact: Exact) -> str | None:
    if output.shape != exact.shape:
        return f"the output has the shape {output.shape} instead of {exact.shape}"
    if not np.isfinite(output).all():
        return f"{int((~np.isfinite(output)).sum())} of {output.size} outputs are not finite"
    return None


def _error_text(found: Deviation, allowed: Deviation) -> str:
    if found.fraction > allowed.fraction:
        return f"the output is off by {found.fraction:.2e} of its norm; {allowed.fraction:.2e} is allowed"
    return (
        f"output {list(found.worst_at)} is off by {found.worst_fraction:.2e} of the usual size; "
        f"{allowed.worst_fraction:.2e} is allowed"
    )


def deviation(output: FloatArray, exact: Exact) -> Deviation:
    """Return how far an output is from the exact one."""
    gap = np.abs(output - exact)
    usual = float(np.sqrt(np.mean(exact**2))) or 1.0
    worst = np.unravel_index(int(gap.argmax()), gap.shape)
    fraction = float(np.sqrt(np.mean(gap**2))) / usual
    return Deviation(fraction, float(gap.max()) / usual, tuple(int(index) for index in worst))


def fingerprint(prepared: Prepared, output: FloatArray, exact: Exact) -> Fingerprint:
    """Return the precision that an output's error betrays; `exact` is the kernel's reference."""
    unrounded = exact if prepared.exact is None else prepared.exact()
    error_fraction = deviation(output[..., : unrounded.shape[-1]], unrounded).fraction
    achieved = next((name for name, largest in _CLASSES if error_fraction <= largest), "none that is known")
    return Fingerprint(prepared.math_dtype, achieved, error_fraction)


def _is_fp32(found: Fingerprint) -> bool:
    """Return whether a kernel of 16 or 8 bits is so exact that it multiplied in fp32 and wrote fp32."""
    return found.achieved == "fp32" and found.requested != "fp16"


def allowed_deviation(case: Case, math_dtype: str) -> Deviation:
    """Return the error that a kernel may have: twice that of the same computation in plain PyTorch, or the floor."""
    precision = _PLAIN_PRECISION.get(math_dtype, "bf16")
    output, exact = _plain_gemm(case, precision) if isinstance(case, GemmCase) else _plain_attention(case, precision)
    plain = deviation(output, exact)
    worst = max(PLAIN_FACTOR * plain.worst_fraction, WORST_FLOOR_FRACTION)
    return Deviation(max(PLAIN_FACTOR * plain.fraction, FLOOR_FRACTION), worst, ())


def _plain_gemm(case: GemmCase, precision: str) -> tuple[FloatArray, Exact]:
    """Return the product in plain PyTorch and exactly; both get the same activations, PyTorch rounds the weights."""
    torch = installed_torch()
    inputs = gemm_inputs(replace(case, m=PLAIN_SIDE, n=PLAIN_SIDE))
    x = rounded(inputs.x, precision)
    dtype = getattr(torch, TORCH_NAMES[precision])
    with torch.no_grad():
        output = torch.nn.functional.linear(torch.from_numpy(x).to(dtype), torch.from_numpy(inputs.w).to(dtype))
    return output.float().numpy(), x.astype(np.float64) @ inputs.w.astype(np.float64).T


def _plain_attention(case: AttentionCase, precision: str) -> tuple[FloatArray, Exact]:
    """Return attention of the queries that share one head of keys, written out in plain PyTorch, and exactly."""
    torch = installed_torch()
    tokens = max(case.kv_tokens, PLAIN_TOKENS)
    inputs = attention_inputs(replace(case, batch=1, heads=case.heads // case.kv_heads, kv_heads=1, kv_tokens=tokens))
    q, k, v = (rounded(part, precision) for part in (inputs.q, inputs.k, inputs.v))
    dtype = getattr(torch, TORCH_NAMES[precision])
    with torch.no_grad():
        low_q, low_k, low_v = (torch.from_numpy(part).to(dtype) for part in (q, k, v))
        scores = low_q @ low_k.transpose(2, 3) * case.head_dim**-0.5
        scores.masked_fill_(torch.from_numpy(~visible(case.q_tokens, tokens)), float("-inf"))
        output = torch.softmax(scores, -1) @ low_v
    return output.float().numpy(), attention(*(part.astype(np.float64) for part in (q, k, v)))
