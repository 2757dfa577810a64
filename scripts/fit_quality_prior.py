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
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
PRIOR = ROOT / "codesign" / "quality" / "prior.json"
Key = tuple[str, str]

# Above this the model is broken and the size of d says nothing; below the resolution of the table d is rounding.
COLLAPSE_NATS = 1.1
NOISE_NATS = 0.0005
TYPICAL_ERROR = 0.35
HUBER = 1.5
# Ridge weights, in numbers of typical cells: how many cells a factor needs before its data outweigh "no effect".
RIDGE = {"global": 1e-6, "family": 0.5, "model": 0.5, "key": 0.02, "metric": 1.0}
ANCHOR_KEY = ("W4A16-g128", "rtn")

CORE_METRICS = {
    "wikitext2_ppl_ctx2048", "wikitext2_ppl_ctx4096", "wikitext2_ppl_llamacpp_ctx512", "kld_vs_fp16_llamacpp_ctx512"
}  # fmt: skip
OTHER_METRICS = {
    "wikitext_word_ppl_lmeval", "ppl_ctx1024_stride512", "ppl_mlx", "ppl_seqlen512", "lambada_ppl"
}  # fmt: skip

FAMILIES = {
    r"llama-[12]-|yi-": "llama-2", r"llama-3": "llama-3", r"opt-": "opt", r"falcon": "falcon",
    r"mi[sx]tral|zephyr|neural-chat": "mistral", r"phi-": "phi", r"qwen|deepseek-r1-distill-qwen": "qwen",
    r"gemma": "gemma", r"pythia|redpajama": "pythia", r"stablelm": "stablelm", r"smollm": "smollm",
}  # fmt: skip

# A GGUF file of type _S is nearly all of one type, so it stands for that type; the others are mixes.
GGUF_TYPES = {
    "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_s": "Q5_K", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_k_s": "Q4_K", "q4_1": "Q4_1",
    "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS", "q3_k_s": "Q3_K", "iq3_s": "IQ3_S", "iq3_xxs": "IQ3_XXS",
    "q2_k_s": "Q2_K", "iq2_s": "IQ2_S", "iq2_xs": "IQ2_XS", "iq2_xxs": "IQ2_XXS",
}  # fmt: skip
NAMED_SCHEMES = {
    "FP8 W8A8 per-tensor": "FP8", "FP8 W8A8 per-row": "FP8-channel", "FP8 W8A8 rowwise": "FP8-channel",
    "MXFP8 W8A8": "MXFP8", "NVFP4 W4A4": "NVFP4", "FP6 W6A16": "MXFP6", "FP4 (E2M1) W4A16": "FP4-A16", "NF4": "NF4",
    "INT8 W8A16": "W8A16", "INT8 W8A16 rowwise": "W8A16", "INT8 asym": "W8A16",
    "INT8 W8A8": "W8A8", "INT8 W8A8 rowwise": "W8A8", "W8A8": "W8A8", "W8A8KV8 (per-tensor static KV)": "W8A8+KV8",
    "W4A4KV16": "W4A4",
    "MLX 4b (4.5 bpw)": "W4A16", "MLX 4b (5.0 bpw)": "W4A16", "W4A16KV16": "W4A16",
    "INT4 W4A16": "W4A16", "UINT4 W4A16": "W4A16", "INT4 sym 100%": "W4A16", "INT4 sym W4A16": "W4A16",
    "INT4 W4A8 (dyn)": "W4A8", "W4A8KV4": "W4A8", "W4A16": "W4A16", "W3A16": "W3A16", "W2A16": "W2A16", "W4A4": "W4A4",
}  # fmt: skip
GROUPED = {"W4A16", "W3A16", "W2A16", "W4A8", "W4A4"}
# Left out: methods nobody deploys (GPTQ without act-order, mixed precision by channel, search variants).
METHODS = {
    "RTN": "rtn", "RTN minmax": "rtn", "RTN dyn": "rtn", "PTQ": "rtn", "uniform": "rtn", "torchao": "rtn",
    "torchao dynamic": "rtn", "NNCF": "rtn", "NNCF data-free": "rtn", "GPTQ": "gptq", "GPTQ-R": "gptq",
    "GPTQ act-order": "gptq", "AWQ": "awq", "OmniQuant": "omniquant", "AutoRound": "autoround",
    "EfficientQAT": "efficientqat", "HQQ": "hqq", "QoQ": "qoq", "QuaRot": "quarot", "SpinQuant": "spinquant",
    "Atom": "atom", "SmoothQuant": "smoothquant", "SmoothQuant dyn": "smoothquant", "llama.cpp": "llama.cpp",
    "llama.cpp+imatrix(WT 10m)": "imatrix",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One published result: the loss in nats, and the standard error that its printed digits leave in ln d."""

    model: str
    key: Key
    metric: str
    loss_nats: float
    rounding: float
    source: str
    collapsed: bool = False

    @property
    def core(self) -> bool:
        """Return whether the metric is WikiText-2 perplexity or divergence, not a relative of it."""
        return self.metric in CORE_METRICS


@dataclass(frozen=True)
class Fit:
    """Additive effects on ln d, by kind and name, and the cells' residuals."""

    effects: dict[tuple[str, Any], float]
    residuals: np.ndarray

    def ln_loss(self, cell: Cell, *, family: bool = True, model: bool = True) -> float:
        """Return the predicted ln d of a cell; unknown effects count as zero."""
        names: list[tuple[str, Any]] = [("global", ""), ("key", cell.key), ("metric", cell.metric)]
        names += [("family", family_of(cell.model))] if family else []
        names += [("model", cell.model)] if model else []
        return sum(self.effects.get(name, 0.0) for name in names)


def reference_folder() -> Path:
    """Return the folder of the reference data."""
    return Path(os.environ.get("CODESIGN_REFERENCE_DATA", ROOT.parent / "shared"))


def family_of(model: str) -> str:
    """Return the family of a published model name, "other" if it is in none."""
    return next((family for pattern, family in FAMILIES.items() if re.match(pattern, model.lower())), "other")


def key_of(row: dict[str, str]) -> Key | None:
    """Return our (scheme, method) of a row, None where it is none that we know or keep."""
    scheme, method = row["scheme"], METHODS.get(re.sub(r" alpha=.*| iters=1K", "", row["method"]))
    if scheme.startswith("GGUF "):
        name = GGUF_TYPES.get(scheme[5:].lower(), scheme[5:])
    else:
        name = NAMED_SCHEMES.get(scheme, "")
    if not name or method is None:
        return None
    if name in GROUPED and float(row["group_size"] or 0) > 0:
        name += f"-g{float(row['group_size']):.0f}"
    elif name in GROUPED and not row["group_size"]:
        name += "-g?"
    return name, method


def excluded(row: dict[str, str]) -> bool:
    """Return whether a row must not be fitted, for the reasons of docs/quality-prior.md."""
    tuned = row["method"] == "EfficientQAT" and "Instruct" in row["model"]  # trained on: better than its 16 bits
    jumbled = "AWQ's Mistral" in row["source"] or "PR #2821" in row["source"]
    low_digits = row["scheme"] in ("GGUF q8_0", "GGUF q6_K") and "ppl" in row["metric"]  # perplexity under-reads
    return tuned or jumbled or low_digits or not row["fp16_value"] or row["method"] == "FP16"


def read_cells(rows: Sequence[dict[str, str]]) -> list[Cell]:
    """Return the usable cells of the table; where a source prints divergence and perplexity, only the divergence."""
    wanted = [row for row in rows if row["metric"] in CORE_METRICS | OTHER_METRICS and not excluded(row)]
    digits: dict[tuple[str, str], int] = defaultdict(int)
    for row in wanted:
        place = (row["source"], row["metric"])
        digits[place] = max(digits[place], *(len(row[name].partition(".")[2]) for name in ("value", "fp16_value")))
    diverging = {(r["source"], r["model"], r["scheme"], r["method"]) for r in wanted if r["metric"].startswith("kld")}
    cells = []
    for row in wanted:
        key = key_of(row)
        doubled = (row["source"], row["model"], row["scheme"], row["method"]) in diverging
        if key is not None and not (doubled and not row["metric"].startswith("kld")):
            cells.append(_cell(row, key, 0.5 * 10.0 ** -digits[row["source"], row["metric"]]))
    return cells


def _cell(row: dict[str, str], key: Key, half_unit: float) -> Cell:
    value, base = float(row["value"]), float(row["fp16_value"])
    if row["metric"].startswith("kld"):
        loss, rounding = value - base, half_unit
    else:
        loss, rounding = math.log(value / base), half_unit * (1 / value + 1 / base)
    rounding = math.hypot(rounding, NOISE_NATS)
    kept = max(loss, rounding)
    return Cell(row["model"], key, row["metric"], kept, rounding / kept, row["source"], loss >= COLLAPSE_NATS)


def fit(cells: Sequence[Cell]) -> Fit:
    """Return the additive fit of ln d: ridge regression, with Huber weights found in a fixed number of rounds."""
    names: dict[tuple[str, Any], int] = {}
    places = []
    for cell in cells:
        effects: list[tuple[str, Any]] = [
            ("global", ""), ("key", cell.key), ("family", family_of(cell.model)), ("model", cell.model)
        ]  # fmt: skip
        if not cell.core:
            effects.append(("metric", cell.metric))
        places.append([names.setdefault(effect, len(names)) for effect in effects])
    design = np.zeros((len(cells), len(names)))
    for row, columns in enumerate(places):
        design[row, columns] = 1.0
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
    return 0.002 < cell.loss_nats and cell.rounding < 0.5
