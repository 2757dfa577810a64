"""Predict tables of kernels: a column per parameter, a row per kernel, one vectorised call per kind of row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.attention import attention
from codesign.cost.attention_time import AttentionShape
from codesign.cost.collectives import COMMON_LIBRARY, collective
from codesign.cost.kernels import KernelPrediction, gemm, moe
from codesign.cost.moe_time import MoeShape
from codesign.cost.sheet import KernelSheet
from codesign.cost.target import Target
from codesign.cost.traffic import WIRE_PASSES
from codesign.errors import CodesignError, did_you_mean
from codesign.hardware.file import load_hardware
from codesign.hardware.threads import with_bandwidth, with_threads
from codesign.schemes.capability import library_of, shape_problem
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv
from codesign.units import GIGA

TextArray = npt.NDArray[np.object_]
Columns = Mapping[str, TextArray | FloatArray]
AMOUNT_MAX = 2.0**40
GATED_MATRICES = 3.0


@dataclass(frozen=True, slots=True)
class Operation:
    """One value of the column `op`: the numbers it needs, those with a default, and how it is predicted.

    Rows that differ in the numbers named by `apart` run different kernels, or on other threads: they are predicted
    apart.
    """

    needed: tuple[str, ...]
    defaults: Mapping[str, float]
    predict: Callable[[Target, str, str, Mapping[str, FloatArray]], KernelPrediction]
    has_scheme: bool
    apart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TablePrediction:
    """One entry per row; numbers are NaN and `reason` is filled where a row cannot be predicted."""

    predicted_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    fixed_s: FloatArray
    bound: TextArray
    origin: TextArray
    reason: TextArray


def _predict_gemm(target: Target, scheme: str, _: str, x: Mapping[str, FloatArray]) -> KernelPrediction:
    return gemm(target, parse_scheme(scheme), x["m"], x["n"], x["k"])


def attention_shape(x: Mapping[str, FloatArray]) -> AttentionShape:
    """Return the sizes of rows of attention."""
    return AttentionShape(
        batch=x["batch"],
        query_tokens=x["q_tokens"],
        kv_tokens=x["kv_tokens"],
        heads=x["heads"],
        kv_heads=x["kv_heads"],
        head_dim=x["head_dim"],
    )


def _predict_attention(target: Target, _: str, kv_dtype: str, x: Mapping[str, FloatArray]) -> KernelPrediction:
    return attention(target, parse_kv(kv_dtype), attention_shape(x))


def expert_shape(x: Mapping[str, FloatArray]) -> MoeShape:
    """Return the sizes of rows of experts."""
    return MoeShape(
        tokens=x["tokens"],
        hidden=x["hidden"],
        intermediate=np.ceil(x["intermediate"] / x["tp"]),
        expert_count=x["experts"],
        top_k=x["top_k"],
        skew=x["skew"],
        matrix_count=x["matrices"],
        expert_parallel=x["ep"],
    )


def _predict_moe(target: Target, scheme: str, _: str, x: Mapping[str, FloatArray]) -> KernelPrediction:
    return moe(target, parse_scheme(scheme), expert_shape(x))


def _collective(operation: str) -> Operation:
    def predict(target: Target, _: str, __: str, x: Mapping[str, FloatArray]) -> KernelPrediction:
        return collective(target, operation, x["gpus"], x["message_bytes"])

    return Operation(("gpus", "message_bytes"), {}, predict, False)


_ATTENTION = ("batch", "q_tokens", "kv_tokens", "heads", "kv_heads", "head_dim")
# Of a CPU: 0 threads are all of them, and 0 GB/s what the profile says of its memory. Measured rows may tell better.
_AS_IT_IS = {"threads": 0.0, "memory_gb_per_s": 0.0}
_STATES = ("threads", "memory_gb_per_s")
ZERO_ALLOWED = ("skew", *_STATES)
_MOE = ("tokens", "hidden", "intermediate", "experts", "top_k")
OPERATIONS: Mapping[str, Operation] = {
    "gemm": Operation(("m", "n", "k"), _AS_IT_IS, _predict_gemm, True, _STATES),
    "attention_decode": Operation(_ATTENTION, _AS_IT_IS, _predict_attention, False, ("head_dim", *_STATES)),
    "attention_prefill": Operation(_ATTENTION, _AS_IT_IS, _predict_attention, False, ("head_dim", *_STATES)),
    "moe": Operation(_MOE, {"tp": 1.0, "ep": 1.0, "skew": 0.0, "matrices": GATED_MATRICES}, _predict_moe, True),
    **{name: _collective(name) for name in WIRE_PASSES},
}


def predict_table(columns: Columns, sheets: tuple[KernelSheet, ...] = ()) -> TablePrediction:
    """Predict every row; rows that share machine, library, operation, scheme and KV format go through one call.

    `columns` holds `hw`, `library`, `op`, `scheme`, `kv_dtype` and maybe `kernel` as texts, the rest as numbers (NaN
    where empty); `sheets` go before the shipped kernel sheets.
    """
    count = len(columns["op"])
    blank = TablePrediction(
        *(np.full(count, np.nan) for _ in range(4)), *(np.full(count, "", dtype=object) for _ in range(3))
    )
    if not count:
        return blank
    columns = {"kernel": np.full(count, "", dtype=object), **columns}
    names = ("hw", "library", "kernel", "op", "scheme", "kv_dtype")
    codes = [np.unique(columns[name].astype(str), return_inverse=True) for name in names]
    combined = np.stack([inverse.ravel() for _, inverse in codes])
    kinds, kind_of_row = np.unique(combined, axis=1, return_inverse=True)
    order = np.argsort(kind_of_row.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(kind_of_row.ravel(), minlength=kinds.shape[1]))
    for kind, rows in zip(kinds.T, np.split(order, ends[:-1]), strict=True):
        texts = [str(values[code]) for (values, _), code in zip(codes, kind, strict=True)]
        _predict_kind(texts, columns, rows, sheets, blank)
    return blank


def _predict_kind(
    texts: list[str],
    columns: Columns,
    rows: npt.NDArray[np.intp],
    sheets: tuple[KernelSheet, ...],
    out: TablePrediction,
) -> None:
    """Fill the entries of `rows`, which share everything that is a text."""
    hw, library, kernel, op, scheme, kv_dtype = texts
    operation = OPERATIONS.get(op.strip().lower())
    if operation is None:
        out.reason[rows] = (
            f'unknown op "{op[:40]}"; known are {", ".join(OPERATIONS)}.{did_you_mean(op[:40], OPERATIONS)}'
        )
        return
    try:
        hardware = load_hardware(hw)
        common = op in WIRE_PASSES and library.split("-")[0] == COMMON_LIBRARY
        name = COMMON_LIBRARY if common else library_of(library, hardware).name
        target = Target(hardware, name, sheets=sheets, kernel=kernel)
        numbers, usable = operation_numbers(operation, columns, rows, out.reason)
        if operation.has_scheme and op == "gemm":
            usable &= _legal_shapes(scheme, target, numbers, rows, usable, out)
        for alike in _alike(operation, numbers, usable):
            these = {key: x[alike] for key, x in numbers.items()}
            prediction = operation.predict(_as_it_ran(target, these), scheme, kv_dtype, these)
            _store(prediction, rows[alike], out)
    except CodesignError as error:
        empty = out.reason[rows] == ""
        out.reason[rows[empty.astype(bool)]] = str(error)


def _alike(
    operation: Operation, numbers: Mapping[str, FloatArray], usable: npt.NDArray[np.bool_]
) -> list[npt.NDArray[np.bool_]]:
    """Return the usable rows, divided by the numbers that decide which kernel runs, and on how many threads."""
    parts = [usable] if usable.any() else []
    for name in operation.apart:
        parts = [part & (numbers[name] == size) for part in parts for size in np.unique(numbers[name][part])]
    return parts


def _as_it_ran(target: Target, numbers: Mapping[str, FloatArray]) -> Target:
    """Return the target with the threads of a CPU and the bandwidth of its memory that rows alike name."""
    if target.hardware.kind != "cpu" or "threads" not in numbers:
        return target
    threads, gb_per_s = (float(numbers[name][0]) for name in _STATES)
    hardware = with_threads(target.hardware, int(threads)) if threads else target.hardware
    return replace(target, hardware=with_bandwidth(hardware, gb_per_s * GIGA) if gb_per_s else hardware)


def operation_numbers(
    operation: Operation, columns: Columns, rows: npt.NDArray[np.intp], reasons: TextArray
) -> tuple[dict[str, FloatArray], npt.NDArray[np.bool_]]:
    """Return the numbers that the operation needs and which rows have all of them in range; fills in `reasons`."""
    usable = np.ones(len(rows), dtype=bool)
    numbers: dict[str, FloatArray] = {}
    for name in (*operation.needed, *operation.defaults):
        given = as_floats(columns[name][rows]) if name in columns else np.full(len(rows), np.nan)
        if name in operation.defaults:
            given = np.where(np.isnan(given), operation.defaults[name], given)
        smallest = 0.0 if name in ZERO_ALLOWED else 1.0
        wrong = ~((given >= smallest) & (given <= AMOUNT_MAX))
        reasons[rows[wrong & usable]] = f"{name} must be a number from {smallest:g} to 2^40"
        usable &= ~wrong
        numbers[name] = given
    return numbers, _consistent(numbers, rows, usable, reasons)


def _consistent(
    numbers: Mapping[str, FloatArray], rows: npt.NDArray[np.intp], usable: npt.NDArray[np.bool_], reasons: TextArray
) -> npt.NDArray[np.bool_]:
    """Return which usable rows also agree with themselves."""
    orders = (("q_tokens", "kv_tokens"), ("kv_heads", "heads"), ("top_k", "experts"), ("ep", "experts"))
    for smaller, larger in orders:
        if smaller in numbers and larger in numbers:
            wrong = usable & (numbers[smaller] > numbers[larger])
            reasons[rows[wrong]] = f"{smaller} must not exceed {larger}"
            usable = usable & ~wrong
    return usable


def _legal_shapes(
    scheme: str,
    target: Target,
    numbers: Mapping[str, FloatArray],
    rows: npt.NDArray[np.intp],
    usable: npt.NDArray[np.bool_],
    out: TablePrediction,
) -> npt.NDArray[np.bool_]:
    """Return which rows have a shape that the scheme's kernels accept; equal shapes are checked once."""
    parsed = parse_scheme(scheme)
    shapes, index = np.unique(np.stack([numbers["n"], numbers["k"]]), axis=1, return_inverse=True)
    problems = np.array(
        [
            (shape_problem(parsed, int(n), int(k), target.hardware, target.library) or "") if np.isfinite(n + k) else ""
            for n, k in shapes.T
        ],
        dtype=object,
    )[index.ravel()]
    wrong: npt.NDArray[np.bool_] = (problems != "").astype(bool)
    out.reason[rows[wrong & usable]] = problems[wrong & usable]
    return ~wrong


def _store(prediction: KernelPrediction, rows: npt.NDArray[np.intp], out: TablePrediction) -> None:
    out.predicted_s[rows] = prediction.predicted_s
    out.low_s[rows] = prediction.low_s
    out.high_s[rows] = prediction.high_s
    out.fixed_s[rows] = prediction.time.fixed_s
    out.bound[rows] = prediction.time.bound
    out.origin[rows] = str(prediction.origin)
