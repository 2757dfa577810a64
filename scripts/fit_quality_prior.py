"""Fit codesign/quality/prior.json, the published prior of quality losses, and print how well it predicts.

Reads facts/published_accuracy.csv under CODESIGN_REFERENCE_DATA (default ../shared). The loss of a cell is
d = ln(PPL_q / PPL_16), both from one metric of one source; ln d = global + family + model + (scheme, method) + metric
is fitted by ridge and Huber weights. docs/quality-prior.md explains the choices.

    python scripts/fit_quality_prior.py          print the errors and write prior.json
    python scripts/fit_quality_prior.py --check  print only
"""

import csv
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from quality_cells import (
    GGUF_TYPES,
    KV_REFERENCE_B,
    Cell,
    Key,
    accuracy_ratio,
    kv_points,
    lambada_ratio,
    read_cells,
)

from codesign.errors import InputError
from codesign.files import write_atomic
from codesign.quality.families import family_of
from codesign.quality.risk import risk
from codesign.schemes.catalog import parse_scheme

ROOT = Path(__file__).parent.parent
PRIOR = ROOT / "codesign" / "quality" / "prior.json"

TYPICAL_ERROR = 0.35
HUBER = 1.5
# Ridge weights, in numbers of typical cells: how many cells a factor needs before its data outweigh "no effect".
RIDGE = {"key": 0.001, "group": 0.001, "family": 0.5, "model": 1.4, "metric": 1.0}
# Eight-bit weights lose about what the tables resolve: a model factor does not narrow their spread, so they have none.
REFERENCE = "llama-2-7b"
ENOUGH_ERRORS = 3
ENOUGH_SOURCES = 4
UNSCALED = {("W8A16", "rtn")}
ANCHOR_KEY = ("W4A16-g128", "rtn")


@dataclass(frozen=True)
class Fit:
    """Additive effects on ln d, by kind and name, and the cells' residuals."""

    effects: dict[tuple[str, Any], float]
    residuals: np.ndarray

    def ln_loss(self, cell: Cell, *, family: bool = True, model: bool = True) -> float:
        """Return the predicted ln d of a cell; unknown effects count as zero."""
        skip = ({"family"} if not family else set()) | ({"model"} if not model else set())
        return sum(self.effects.get(name, 0.0) * x for name, x in terms_of(cell) if name[0] not in skip)


def terms_of(cell: Cell) -> list[tuple[tuple[str, Any], float]]:
    """Return the effects that make up ln d of a cell, each with its multiplier."""
    name, group, method = split_group(cell.key)
    terms: list[tuple[tuple[str, Any], float]] = [(("key", (name, method)), 1.0)]
    if group:
        terms.append((("group", ""), math.log2(group / 128)))
    if cell.key in UNSCALED:
        return terms
    terms += [(("family", family_of(cell.model)), 1.0), (("model", cell.model), 1.0)]
    return terms if cell.core else [*terms, (("metric", cell.metric), 1.0)]


def factor_key(key: Key) -> Key:
    """Return the key of the factor that serves all group sizes."""
    name, _, method = split_group(key)
    return name, method


def split_group(key: Key) -> tuple[str, int, str]:
    """Return the scheme with its group size replaced by 128, that size (0 if there is none) and the method."""
    name, dash, group = key[0].partition("-g")
    size = 0 if not dash else 128 if group == "?" else int(group)
    return (f"{name}-g128" if size else name), size, key[1]


def reference_folder() -> Path:
    """Return the folder of the reference data."""
    return Path(os.environ.get("CODESIGN_REFERENCE_DATA", ROOT.parent / "shared"))


def fit(cells: Sequence[Cell]) -> Fit:
    """Return the additive fit of ln d: ridge regression, with Huber weights found in a fixed number of rounds."""
    terms = [terms_of(cell) for cell in cells]
    names = {name: index for index, name in enumerate(dict.fromkeys(name for row in terms for name, _ in row))}
    design = np.zeros((len(cells), len(names)))
    for index, row in enumerate(terms):
        for name, x in row:
            design[index, names[name]] = x
    ridge = np.diag([RIDGE[kind] for kind, _ in names])
    target = np.log([cell.loss_nats for cell in cells])
    error = np.hypot(TYPICAL_ERROR, [cell.rounding for cell in cells])
    base_weight = (TYPICAL_ERROR / error) ** 2
    weight = base_weight
    for _ in range(30):
        solution = np.linalg.solve(design.T @ (weight[:, None] * design) + ridge, design.T @ (weight * target))
        residuals = target - design @ solution
        weight = base_weight / np.maximum(1.0, np.abs(residuals) / (HUBER * error))
    return Fit({name: float(solution[index]) for name, index in names.items()}, residuals)


def percentiles(errors: Iterable[float]) -> tuple[float, float, float]:
    """Return the error factors on d that 50, 80 and 90 % of |ln error| stay within."""
    found = np.exp(np.quantile(np.abs(np.fromiter(errors, float)), (0.5, 0.8, 0.9)))
    return float(found[0]), float(found[1]), float(found[2])


def leave_one_model_out(cells: Sequence[Cell], *, family: bool) -> tuple[list[float], list[float]]:
    """Return ln errors of core cells of models left out of the fit: without and with one anchor cell."""
    blind, anchored = [], []
    for model in sorted({cell.model for cell in cells}):
        known = [cell for cell in cells if cell.model != model]
        keys = {cell.key for cell in known}
        unseen = [c for c in cells if c.model == model and c.core and c.key in keys and _judged(c)]
        if not unseen:
            continue
        fitted = fit(known)
        errors = {id(c): math.log(c.loss_nats) - fitted.ln_loss(c, family=family, model=False) for c in unseen}
        blind += errors.values()
        anchors = [c for c in unseen if c.key == ANCHOR_KEY]
        if anchors:
            shift = float(np.median([errors[id(c)] for c in anchors]))
            anchored += [errors[id(c)] - shift for c in unseen if c.key != ANCHOR_KEY]
    return blind, anchored


def between_source_errors(cells: Sequence[Cell]) -> dict[Key, list[float]]:
    """Return ln errors by key, each predicted by a fit without any cell of its source; only of cells above rounding."""
    errors: dict[Key, list[float]] = defaultdict(list)
    for source in sorted({cell.source for cell in cells}):
        fitted = fit([cell for cell in cells if cell.source != source])
        for cell in cells:
            name = factor_key(cell.key)
            if cell.source == source and cell.resolved and ("key", name) in fitted.effects:
                errors[name].append(math.log(cell.loss_nats) - fitted.ln_loss(cell))
    return errors


def leave_one_cell_out(cells: Sequence[Cell]) -> list[float]:
    """Return ln errors of core cells held out one by one, where model and key are seen elsewhere."""
    models, keys = Counter(cell.model for cell in cells), Counter(cell.key for cell in cells)
    errors = []
    for index, cell in enumerate(cells):
        if cell.core and models[cell.model] > 1 and keys[cell.key] > 1 and _judged(cell):
            fitted = fit([*cells[:index], *cells[index + 1 :]])
            errors.append(math.log(cell.loss_nats) - fitted.ln_loss(cell))
    return errors


def _judged(cell: Cell) -> bool:
    return cell.loss_nats > 0.002 and cell.rounding < 0.5


def spread_of(errors: Sequence[float], pooled: float) -> float:
    """Return the half-width in ln d of the 80 % interval of one more source, `pooled` if there are too few errors.

    Student's t, its quantile by Cornish and Fisher; the errors are of predictions, so their mean is not fitted.
    """
    count = len(errors)
    if count < ENOUGH_ERRORS:
        return pooled
    z = 1.2816
    quantile = z + (z**3 + z) / (4 * count) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * count**2)
    return quantile * math.sqrt(sum(error**2 for error in errors) / count)


def scheme_factors(cells: Sequence[Cell], fitted: Fit, model_half_width: float) -> dict[Key, dict[str, Any]]:
    """Return for every (scheme, method) its factor at the reference model and what it rests on.

    Keys with fewer than `ENOUGH_SOURCES` sources get the wider of the models' interval and their own.
    """
    errors = between_source_errors(cells)
    pooled = math.log(percentiles(error for row in errors.values() for error in row)[1])
    groups: dict[Key, list[Cell]] = defaultdict(list)
    residuals: dict[Key, list[float]] = defaultdict(list)
    for cell, residual in zip(cells, fitted.residuals, strict=True):
        groups[factor_key(cell.key)].append(cell)
        residuals[factor_key(cell.key)].append(residual)
    factors = {}
    for key, members in sorted(groups.items()):
        sources = sorted({cell.source for cell in members})
        half_width = max(model_half_width, math.log(percentiles(residuals[key])[1]))
        if len(sources) < ENOUGH_SOURCES:
            half_width = max(half_width, spread_of(errors.get(key, []), pooled))
        factors[key] = {
            "loss_nats": math.exp(fitted.effects["key", key] + (0.0 if key in UNSCALED else reference(fitted))),
            "factor_80": math.exp(half_width),
            "cells": len(members),
            "sources": [source.partition(" (")[0] for source in sources],
            "note": "",
        }
    return factors


def reference(fitted: Fit) -> float:
    """Return the ln factor of the reference model, to which all factors are relative."""
    return fitted.effects["family", family_of(REFERENCE)] + fitted.effects["model", REFERENCE]


def derived_factors(rows: Sequence[dict[str, str]], factors: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """Return factors of schemes that have no perplexity of their own, by ratio inside one source or by relation."""

    def derive(origin: Key, ratio: float, note: str, widen: float = 1.0) -> dict[str, Any]:
        base = factors[origin]
        wider = base["factor_80"] * widen
        return {**base, "loss_nats": base["loss_nats"] * ratio, "factor_80": wider, "note": note}

    mxfp4 = accuracy_ratio(rows, "MXFP4 W4A4", "NVFP4 W4A4")
    nf4 = 0.8 * lambada_ratio(rows)
    made = {
        ("MXFP4", "rtn"): derive(("NVFP4", "rtn"), mxfp4, "ratio of accuracy losses to NVFP4", 1.5),
        ("NF4", "rtn"): derive(ANCHOR_KEY, nf4, "ratio of LAMBADA losses to a mix with 80 % of W4A16", 1.5),
        ("FP8-block", "rtn"): derive(("FP8-channel", "rtn"), 1.0, "taken as FP8-channel"),
        ("W8A8-static", "smoothquant"): derive(("W8A8+KV8", "smoothquant"), 1.0, "includes an 8-bit KV cache"),
    }
    for name in ("MXFP4-A16", "NVFP4-A16"):
        made[name, "rtn"] = derive(("FP4-A16", "rtn"), 1.0, "4-bit float of unstated block size")
    for key in factors:
        if key[1] == "llama.cpp" and key[0] in GGUF_TYPES.values():
            matrix = factors.get((key[0], "imatrix"))
            if matrix is None or matrix["loss_nats"] > factors[key]["loss_nats"]:
                made[key[0], "imatrix"] = derive(key, 1.0, "taken as without an importance matrix")
    if factors["MXFP6", "rtn"]["loss_nats"] < factors["MXFP8", "rtn"]["loss_nats"]:
        made["MXFP6", "rtn"] = derive(("MXFP8", "rtn"), 1.0, "measured below MXFP8, so taken as it")
    for key, factor in factors.items():
        if key[1] == "qoq":
            factor["note"] = "includes a 4-bit KV cache"
    return made


def kv_factors(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Return losses of KV formats at the reference size, the exponent of the parameter count and the 80 % factor.

    4 bits: Theil-Sen line of ln d over ln parameters. 8 bits: the same slope, for want of points.
    """
    points = kv_points(rows)
    four = points["int4"]
    slope = float(np.median([(d - c) / (b - a) for i, (a, c) in enumerate(four) for b, d in four[i + 1 :] if b > a]))
    level = {name: float(np.median([y - slope * x for x, y in found])) for name, found in points.items()}
    errors = [y - slope * x - level[name] for name, found in points.items() for x, y in found]
    return {
        "reference_parameters": KV_REFERENCE_B * 1e9,
        "exponent": rounded(slope),
        "factor_80": rounded(math.exp(spread_of(errors, 0.0))),
        "loss_nats": {name: rounded(math.exp(value)) for name, value in level.items()},
        "cells": {name: len(found) for name, found in points.items()},
    }


def rounded(value: float) -> float:
    """Return four significant digits, so that the file does not depend on the last bits of a solver."""
    return float(f"{value:.4g}")


def model_factors(cells: Sequence[Cell], fitted: Fit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return factors of models and of families relative to the reference model, with counts."""
    base = reference(fitted)
    scaled = [cell for cell in cells if cell.key not in UNSCALED]
    per_model = Counter(cell.model for cell in scaled)
    core = Counter(cell.model for cell in scaled if cell.core)
    well_measured = Counter(family_of(model) for model, count in core.items() if count > 1)
    family = {name: fitted.effects.get(("family", name), 0.0) for name in sorted({family_of(m) for m in per_model})}
    models = {
        model: {
            "factor": rounded(math.exp(family[family_of(model)] + fitted.effects["model", model] - base)),
            "cells": n,
        }
        for model, n in sorted(per_model.items())
    }
    families = {
        name: {"factor": rounded(math.exp(value - base)), "models": well_measured[name]}
        for name, value in family.items()
        if name != "other"
    }
    families["other"] = {"factor": rounded(math.exp(-base)), "models": 0}
    return models, families


def risky_cells(cells: Sequence[Cell]) -> dict[str, dict[str, list[str]]]:
    """Return which models were measured, and which collapsed, with keys that must not be predicted for others."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in sorted((c for c in cells if is_scheme(c.key[0])), key=lambda c: (c.key, c.model)):
        place = found.setdefault(" ".join(cell.key), {"measured": [], "collapsed": []})
        names = place["collapsed" if cell.collapsed else "measured"]
        if cell.model not in names:
            names.append(cell.model)
    return {key: place for key, place in found.items() if place["collapsed"] or is_risky(*key.rsplit(" ", 1))}


def is_risky(name: str, method: str) -> bool:
    """Return whether the loss must not be predicted for unmeasured models."""
    return risk(parse_scheme(name), method) is not None


def fit_prior(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Return the content of prior.json."""
    everything = read_cells(rows)
    cells = [cell for cell in everything if not cell.collapsed]
    fitted = fit(cells)
    by_family, anchored = leave_one_model_out(cells, family=True)
    unrelated, _ = leave_one_model_out(cells, family=False)
    errors = {
        "in sample": [r for c, r in zip(cells, fitted.residuals, strict=True) if c.core and _judged(c)],
        "cell": leave_one_cell_out(cells), "family": by_family, "global": unrelated, "anchored": anchored
    }  # fmt: skip
    bands = {name: [rounded(value) for value in percentiles(found)] for name, found in errors.items()}
    factors = scheme_factors(cells, fitted, math.log(bands["cell"][1]))
    factors |= derived_factors(rows, factors)
    models, families = model_factors(cells, fitted)
    return {
        "format_version": 1,
        "reference_model": REFERENCE,
        "cells": len(cells),
        "error_factors_50_80_90": bands,
        "error_counts": {name: len(found) for name, found in errors.items()},
        "resolution_nats": rounded(float(np.median([c.rounding * c.loss_nats for c in cells if c.core]))),
        "group_exponent": rounded(fitted.effects["group", ""] / math.log(2)),
        "unscaled": [" ".join(key) for key in sorted(UNSCALED)],
        "models": models,
        "families": families,
        "schemes": [
            {"scheme": name, "method": method, **_rounded_numbers(factor)}
            for (name, method), factor in sorted(factors.items())
            if is_scheme(name)
        ],
        "risky": risky_cells(everything),
        "kv": kv_factors(rows),
    }


def _rounded_numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in row.items()}


def is_scheme(name: str) -> bool:
    """Return whether we have a scheme of that name; file mixes and unstated groups only help to fit models."""
    try:
        parse_scheme(name)
    except InputError:
        return False
    return True


def report(prior: dict[str, Any]) -> str:
    """Return the error table and the factors as text."""
    lines = [
        f"{prior['cells']} cells, {len(prior['models'])} models",
        "error factor on d          count   50 %   80 %   90 %",
    ]
    bands = prior["error_factors_50_80_90"]
    for name, row in bands.items():
        count = prior["error_counts"][name]
        lines.append(f"{name:<26} {count:5d} " + " ".join(f"{value:6.2f}" for value in row))
    lines += [f"{row['scheme']:<12} {row['method']:<13} {row['loss_nats']:.4g} x{row['factor_80']:.2f} n={row['cells']}"
              for row in prior["schemes"]]  # fmt: skip
    lines += [f"{name:<32} {row['factor']:.2f}" for name, row in prior["families"].items()]
    return "\n".join([*lines, f"KV {prior['kv']}"])


def main() -> None:
    """Fit, print and, unless asked not to, write."""
    with (reference_folder() / "facts" / "published_accuracy.csv").open(newline="", encoding="utf-8") as stream:
        prior = fit_prior(list(csv.DictReader(stream)))
    print(report(prior))
    if "--check" not in sys.argv[1:]:
        write_atomic(PRIOR, json.dumps(prior, indent=1) + "\n")


if __name__ == "__main__":
    main()
