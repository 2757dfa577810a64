"""Fit the constants of codesign/cost/attention_time.py to measured attention, with an honest interval.

Kernels are built per head dimension, so each gets a calibration of its own. Rows that read faster than memory allows
are measuring errors and are not fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.attention_time import (
    SINGLE_PREFIX,
    AttentionShape,
    AttentionWork,
    Packing,
    attention_work,
    decode_seconds,
    kv_bytes,
    prefill_seconds,
    takes_single_kernel,
)
from codesign.cost.fit_constants import (
    SECONDS_MAX,
    SECONDS_MIN,
    SIZE_MAX,
    Bounds,
    Constants,
    Mask,
    calibration,
    fit_constants,
    held_out_ratios,
    shape_index,
)
from codesign.cost.sheet import Calibration, SheetTime
from codesign.errors import InputError
from codesign.hardware.hardware import Hardware
from codesign.schemes.kv import KvFormat, bytes_per_token

POINTS_MIN = 24
KERNEL_POINTS_MIN = 12
MATH_DTYPE = "bf16"
BANDWIDTH_TOLERANCE = 1.05  # a row that reads faster than this times the peak is impossible (cache subtracted)
GAIN_MIN = 0.05
PACKED_GROUP_MAX = (np.inf, 32.0, 16.0, 8.0)
START_COUNT = 4

DECODE_BOUNDS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(2e-7, 1e-3, 7e-6),
    "bandwidth_fraction": Bounds(0.05, 1.0, 0.85, 0.2),
    "ramp_s": Bounds(1e-8, 1e-3, 3e-6),
    "load_bytes_per_cycle": Bounds(1.0, 1e3, 30.0),
    "compute_fraction": Bounds(5e-3, 1.1, 0.3),
    "task_overhead_s": Bounds(1e-9, 5e-5, 1e-6),
    "token_block": Bounds(1.0, 2048.0, 64.0),
    "split_s": Bounds(1e-8, 1e-2, 2e-6),
    "split_each_s": Bounds(1e-10, 1e-3, 1e-7),
    "overlap_exponent": Bounds(0.7, 8.0, 2.0, 0.4),
}
REGROUP_BOUNDS = Bounds(1e-8, 1e-4, 1e-7)
PREFILL_BOUNDS: Mapping[str, Bounds] = {
    "fixed_s": Bounds(2e-7, 1e-3, 1e-5),
    "bandwidth_fraction": Bounds(0.05, 1.0, 0.8, 0.2),
    "compute_fraction": Bounds(0.05, 1.1, 0.6, 0.3),
    "exponentials_per_cycle": Bounds(0.5, 1e4, 16.0),
    "task_overhead_s": Bounds(1e-9, 5e-5, 1e-6),
    "wave_fraction": Bounds(0.01, 1.0, 0.3),
    "token_s": Bounds(1e-13, 1e-6, 1e-11),
    "overlap_exponent": Bounds(1.0, 8.0, 2.0, 0.4),
}


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Measured attention on one machine with one library, KV format and head dimension."""

    batch: FloatArray
    query_tokens: FloatArray
    kv_tokens: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    head_dim: FloatArray
    seconds: FloatArray

    def take(self, rows: Mask) -> "AttentionRows":
        """Return the rows chosen."""
        return AttentionRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def shape(self) -> AttentionShape:
        """Return the sizes."""
        return AttentionShape(self.batch, self.query_tokens, self.kv_tokens, self.heads, self.kv_heads, self.head_dim)

    @property
    def group(self) -> FloatArray:
        """Return the query heads per KV head."""
        return self.heads / self.kv_heads


@dataclass(frozen=True, slots=True)
class Form:
    """One variant of a formula: what is fitted, what is given, and how it is evaluated."""

    bounds: Mapping[str, Bounds]
    given: Constants
    seconds: Callable[[Constants, AttentionWork], SheetTime]


def fit_attention_decode(rows: AttentionRows, hardware: Hardware, kv: KvFormat) -> Calibration:
    """Return the calibration of decode attention; the same rows in any order give the same constants.

    InputError if there are fewer than 24 points or if a number is absurd.
    """
    rows = _checked(rows)
    rows = rows.take(possible_rows(rows, hardware, kv))
    if len(rows.batch) < POINTS_MIN:
        raise InputError(
            f"only {len(rows.batch)} points read no faster than memory allows; check the unit of the times."
        )
    group_max = _packed_group_max(rows, hardware, kv)
    given = {} if np.isinf(group_max) else {"packed_group_max": group_max}
    alone = takes_single_kernel(given, rows.group)
    if alone.sum() < KERNEL_POINTS_MIN or (~alone).sum() < KERNEL_POINTS_MIN:
        form = Form(_decode_bounds(rows), {}, decode_seconds)
        return calibration(*_fitted(rows, hardware, kv, form), _sizes(rows))
    packed, packed_ratios = _fitted(rows.take(~alone), hardware, kv, Form(_decode_bounds(rows), {}, decode_seconds))
    single, single_ratios = _fitted(rows.take(alone), hardware, kv, Form(DECODE_BOUNDS, {}, single_seconds))
    constants = {**given, **packed, **{SINGLE_PREFIX + name: value for name, value in single.items()}}
    return calibration(constants, np.concatenate([packed_ratios, single_ratios]), _sizes(rows))


def fit_attention_prefill(rows: AttentionRows, hardware: Hardware, kv: KvFormat) -> Calibration:
    """Return the calibration of causal attention over whole prompts; InputError as for decode."""
    rows = _checked(rows)
    forms = [
        Form(PREFILL_BOUNDS, {"packing": float(packing)} if packing else {}, prefill_seconds) for packing in Packing
    ]
    costs = [_fit(rows, hardware, kv, form, 2)[1] * (1.0 + GAIN_MIN) ** bool(form.given) for form in forms]
    return calibration(*_fitted(rows, hardware, kv, forms[int(np.argmin(costs))]), _sizes(rows))


def possible_rows(rows: AttentionRows, hardware: Hardware, kv: KvFormat) -> Mask:
    """Return which rows read their keys and values no faster than memory allows, a full cache beside it."""
    cached_bytes = hardware.cache.capacity_bytes if hardware.cache is not None else 0.0
    from_memory = kv_bytes(_work(rows, hardware, kv)) - cached_bytes
    allowed: Mask = from_memory <= BANDWIDTH_TOLERANCE * hardware.memory.bandwidth_bytes_per_s * rows.seconds
    return allowed


def single_seconds(constants: Constants, work: AttentionWork) -> SheetTime:
    """Return the decode time of the kernel for single query heads alone."""
    named = {SINGLE_PREFIX + name: value for name, value in constants.items()}
    return decode_seconds({**constants, **named, "packed_group_max": 0.0}, work)


def _checked(rows: AttentionRows) -> AttentionRows:
    """Return the rows as float arrays in a fixed order; InputError names what is too little or out of range."""
    columns = [as_floats(getattr(rows, field.name)) for field in fields(rows)]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        raise InputError("the sizes and seconds differ in length; give one of each per measured kernel.")
    if len(columns[0]) < POINTS_MIN:
        raise InputError(f"{len(columns[0])} points are too few to fit attention; measure at least {POINTS_MIN}.")
    for field, column in zip(fields(rows)[:-1], columns[:-1], strict=True):
        if not np.all((column >= 1) & (column <= SIZE_MAX)):
            raise InputError(f"{field.name}: a value is not within 1 to {SIZE_MAX:.0f}; check the column.")
    if not np.all((columns[-1] >= SECONDS_MIN) & (columns[-1] <= SECONDS_MAX)):
        raise InputError(f"seconds: a value is not within {SECONDS_MIN:g} to {SECONDS_MAX:g}; check the unit.")
    order = np.lexsort(columns[::-1])
    return AttentionRows(*(column[order] for column in columns))


def _work(rows: AttentionRows, hardware: Hardware, kv: KvFormat) -> AttentionWork:
    dims = rows.head_dim.astype(np.int64)
    return attention_work(hardware, MATH_DTYPE, rows.shape, as_floats(bytes_per_token(kv, 2 * dims, dims)))


def _decode_bounds(rows: AttentionRows) -> Mapping[str, Bounds]:
    """Return what is fitted: a copy that regroups query heads only where groups exist."""
    return {**DECODE_BOUNDS, "regroup_s": REGROUP_BOUNDS} if (rows.group > 1).any() else DECODE_BOUNDS


def _packed_group_max(rows: AttentionRows, hardware: Hardware, kv: KvFormat) -> float:
    """Return the largest group that the library packs: the one under which two kernels explain the rows best."""
    costs = []
    for group_max in PACKED_GROUP_MAX:
        alone = takes_single_kernel({"packed_group_max": group_max}, rows.group)
        parts = ((rows.take(~alone), decode_seconds), (rows.take(alone), single_seconds))
        costs.append(
            sum(
                _fit(part, hardware, kv, Form(DECODE_BOUNDS, {}, seconds), 1)[1]
                for part, seconds in parts
                if len(part.batch) >= KERNEL_POINTS_MIN
            )
        )
    costs[0] /= 1.0 + GAIN_MIN
    return PACKED_GROUP_MAX[int(np.argmin(costs))]


def _fit(
    rows: AttentionRows, hardware: Hardware, kv: KvFormat, form: Form, start_count: int
) -> tuple[dict[str, float], float]:
    work = _work(rows, hardware, kv)
    constants, cost = fit_constants(
        form.bounds, lambda c: form.seconds({**c, **form.given}, work).predicted_s, rows.seconds, start_count
    )
    return {**constants, **form.given}, cost


def _fitted(rows: AttentionRows, hardware: Hardware, kv: KvFormat, form: Form) -> tuple[dict[str, float], FloatArray]:
    """Return the constants, and measured over predicted of rows whose (heads, kv_heads) the fit did not see."""
    ratios = held_out_ratios(
        shape_index(rows.heads, rows.kv_heads),
        rows.seconds,
        lambda mask: _fit(rows.take(mask), hardware, kv, form, 2)[0],
        lambda constants, mask: form.seconds(constants, _work(rows.take(mask), hardware, kv)).predicted_s,
    )
    return _fit(rows, hardware, kv, form, START_COUNT)[0], ratios


def _sizes(rows: AttentionRows) -> dict[str, FloatArray]:
    names = ("batch", "query_tokens", "kv_tokens", "heads", "kv_heads", "head_dim")
    return {name: getattr(rows, name) for name in names}
