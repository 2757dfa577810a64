"""Errors of layers as tables, for the terminal and for the page."""

import math
from collections.abc import Sequence

from codesign.quantize.errors import ErrorMetrics
from codesign.quantize.layer_errors import LayerErrors, RoleErrors
from codesign.table import Table
from codesign.units import significant

CHANNELS_SHOWN = 4


def layer_table(found: Sequence[LayerErrors]) -> Table:
    """Return a row for each layer; columns of outputs only where they were measured."""
    measured = any(one.inputs is not None for one in found)
    headers = ["layer", "shape", "weights, dB", "MSE", "MAE", "max", "cosine"]
    headers += ["outputs, dB", "inputs, dB"] if measured else []
    rows = [(*_weight_cells(one), *(_input_cells(one) if measured else ()), remarks(one)) for one in found]
    return Table((*headers, "remarks"), rows, right=tuple(range(1, len(headers))))


def _weight_cells(one: LayerErrors) -> tuple[str, ...]:
    shape = f"{one.layer.n}x{one.layer.k}"
    if one.weight is None:
        return (one.layer.name, shape, "", "", "", "", "")
    error = one.weight
    values = (significant(error.mse), significant(error.mae), significant(error.max), _cosine(error))
    return (one.layer.name, shape, decibel(error.snr_db), *values)


def _cosine(error: ErrorMetrics) -> str:
    return f"{error.cosine:.6f}"


def _input_cells(one: LayerErrors) -> tuple[str, str]:
    if one.inputs is None:
        return ("", "")
    rounded = one.inputs.activations
    return (decibel(one.inputs.output.snr_db), "exact" if rounded is None else decibel(rounded.snr_db))


def decibel(value: float) -> str:
    """Return a ratio with one digit behind the point; without any noise it is exact."""
    return "exact" if value == math.inf else f"{value:.1f}"


def remarks(one: LayerErrors) -> str:
    """Return why there are no figures, and channels that are dead or far larger than the others."""
    parts = [one.problem]
    parts += [_channels("dead outputs", one.dead.rows), _channels("dead inputs", one.dead.columns)]
    if one.inputs is not None:
        parts.append(_channels("inputs always 0", one.inputs.dead_channels))
        outliers, ratio = one.inputs.outlier_channels, one.inputs.largest_over_median
        times = "" if ratio is None else f", up to {significant(ratio)}x the median"
        parts.append(f"{_channels('outliers', outliers)}{times}" if outliers else "")
    return "; ".join(part for part in parts if part)


def _channels(what: str, channels: tuple[int, ...]) -> str:
    if not channels:
        return ""
    more = len(channels) - CHANNELS_SHOWN
    shown = ", ".join(str(channel) for channel in channels[:CHANNELS_SHOWN])
    return f"{what} {shown}{f' and {more} more' if more > 0 else ''}"


def role_table(roles: Sequence[RoleErrors]) -> Table:
    """Return a row for each role, with the layer that loses most."""
    measured = any(one.output_snr_db is not None for one in roles)
    headers = ["role", "layers", "weights", "weights, dB", *(["outputs, dB"] if measured else []), "worst, dB"]
    return Table((*headers, "worst layer"), [_role_cells(one) for one in roles], right=tuple(range(1, len(headers))))


def _role_cells(one: RoleErrors) -> tuple[str, ...]:
    ratios = [one.weight_snr_db, *([] if one.output_snr_db is None else [one.output_snr_db]), one.worst.snr_db]
    counts = (f"{one.layer_count:,}", f"{one.weight_count:,}")
    return (one.role, *counts, *(decibel(ratio) for ratio in ratios), one.worst.layer.name)
