"""Errors of layers as terminal tables and as JSON."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codesign.cli.output import print_line, print_table, print_title
from codesign.codec import to_plain
from codesign.quantize.layer_errors import LayerErrors, errors_by_role, worst_first
from codesign.report.errors_tables import layer_table, role_table
from codesign.schemes.scheme import Scheme

LAYERS_SHOWN = 20


def print_errors(found: Sequence[LayerErrors], model: str, scheme: Scheme) -> None:
    """Print the worst layers and the totals of every role."""
    ordered = worst_first(found)
    shown = f", the worst {LAYERS_SHOWN} of them" if len(ordered) > LAYERS_SHOWN else ""
    print_title(f"{Path(model).name} in {scheme}, rounded to nearest: {len(ordered)} layers{shown}")
    print_table(layer_table(ordered[:LAYERS_SHOWN]))
    print_line()
    print_table(role_table(errors_by_role(found)))
    print_line(
        "dB: signal over noise; 6 dB are one bit, 20 dB a relative error of 10 %. A role's is of the mean noise."
    )


def errors_record(found: Sequence[LayerErrors], model: str, scheme: Scheme) -> dict[str, Any]:
    """Return plain JSON values, the worst layer first; a ratio without noise is null."""
    roles = [{**to_plain(one), "worst": one.worst.layer.name} for one in errors_by_role(found)]
    layers = [to_plain(one) for one in worst_first(found)]
    record: dict[str, Any] = _finite({"model": model, "scheme": scheme.name, "layers": layers, "roles": roles})
    return record


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
