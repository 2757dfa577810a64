"""The published accuracy table as cells: which rows the prior may use, under our names of schemes and methods."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from codesign.quality.families import published_name

Key = tuple[str, str]

# Above this the model is broken and the size of d says nothing; below the resolution of the table d is rounding.
COLLAPSE_NATS = 1.1
NOISE_NATS = 0.0005

CORE_METRICS = {
    "wikitext2_ppl_ctx2048", "wikitext2_ppl_ctx4096", "wikitext2_ppl_llamacpp_ctx512", "kld_vs_fp16_llamacpp_ctx512"
}  # fmt: skip
OTHER_METRICS = {"wikitext_word_ppl_lmeval", "ppl_ctx1024_stride512", "ppl_mlx", "ppl_seqlen512"}

# A GGUF file of type _S is nearly all of one type, so it stands for that type; the others are mixes.
GGUF_TYPES = {
    "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_s": "Q5_K", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_k_s": "Q4_K", "q4_1": "Q4_1",
    "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS", "q3_k_s": "Q3_K", "iq3_s": "IQ3_S", "iq3_xxs": "IQ3_XXS",
    "q2_k_s": "Q2_K", "iq2_s": "IQ2_S", "iq2_xs": "IQ2_XS", "iq2_xxs": "IQ2_XXS",
}  # fmt: skip
NAMED_SCHEMES = {
    "FP8 W8A8 per-tensor": "FP8", "FP8 W8A8 per-row": "FP8-channel", "FP8 W8A8 rowwise": "FP8-channel",
    "MXFP8 W8A8": "MXFP8", "NVFP4 W4A4": "NVFP4", "FP6 W6A16": "MXFP6", "FP4 (E2M1) W4A16": "FP4-A16",
    "INT8 W8A16": "W8A16", "INT8 W8A16 rowwise": "W8A16",
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


KV_METRICS = {
    "wikitext2_ppl_ctx2048", "wikitext2_ppl_llamacpp", "wikitext2_ppl_llamacpp_ctx512", "kld_vs_fp16_llamacpp_ctx512"
}  # fmt: skip
LAMBADA_MIX = "INT4 asym 80% / INT8 20%"
KV_REFERENCE_B = 8.0


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

    @property
    def resolved(self) -> bool:
        """Return whether rounding leaves the loss known within half of it."""
        return self.rounding < 0.5


def key_of(row: dict[str, str]) -> Key | None:
    """Return our (scheme, method) of a row, None where it is none that we know or keep."""
    scheme, method = row["scheme"], METHODS.get(re.sub(r" alpha=.*| iters=1K", "", row["method"]))
    if scheme.startswith("GGUF "):
        name = GGUF_TYPES.get(scheme[5:].lower(), f"mix {scheme[5:]}")
    else:
        name = NAMED_SCHEMES.get(scheme, "")
    if not name or method is None:
        return None
    if name in GROUPED and float(row["group_size"] or 0) > 0:
        name += f"-g{float(row['group_size']):.0f}"
    elif name in GROUPED and not row["group_size"]:
        name += "-g?"
    return name, "rtn" if name == "W8A16" else method


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
    rounding = half_unit if row["metric"].startswith("kld") else half_unit * (1 / value + 1 / base)
    loss, rounding = loss_of(row), math.hypot(rounding, NOISE_NATS)
    kept = max(loss, rounding)
    return Cell(
        published_name(row["model"]), key, row["metric"], kept, rounding / kept, row["source"], loss >= COLLAPSE_NATS
    )


def loss_of(row: dict[str, str]) -> float:
    """Return the loss of a row in nats."""
    value, base = float(row["value"]), float(row["fp16_value"])
    return value - base if row["metric"].startswith("kld") else math.log(value / base)


def accuracy_ratio(rows: Sequence[dict[str, str]], scheme: str, other: str) -> float:
    """Return how many times the accuracy points of `other` that `scheme` loses, RTN, geometric mean over tables."""
    lost = {
        (row["source"], row["model"], row["metric"], row["scheme"]): float(row["fp16_value"]) - float(row["value"])
        for row in rows
        if row["method"] == "RTN" and row["scheme"] in (scheme, other) and row["fp16_value"]
    }
    ratios = [loss / lost[*place, other] for (*place, name), loss in lost.items() if name == scheme]
    return statistics.geometric_mean(ratios)


def lambada_ratio(rows: Sequence[dict[str, str]]) -> float:
    """Return the loss of NF4 over that of the 80 % INT4 mix in the same table, geometric mean over models."""
    lost = {
        (row["model"], row["scheme"]): math.log(float(row["value"]) / float(row["fp16_value"]))
        for row in rows
        if row["metric"] == "lambada_ppl" and row["scheme"] in ("NF4", LAMBADA_MIX)
    }
    ratios = [loss / lost[model, LAMBADA_MIX] for (model, scheme), loss in lost.items() if scheme == "NF4"]
    return statistics.geometric_mean(ratios)


def kv_points(rows: Sequence[dict[str, str]]) -> dict[str, list[tuple[float, float]]]:
    """Return (ln of parameters over the reference, ln d) of KV formats; weights are the same in both runs."""
    usable = [r for r in rows if r["fp16_value"] and r["metric"] in KV_METRICS]
    # Where a source prints divergence and perplexity, the divergence comes last and stays.
    loss = {(r["model"], r["scheme"]): loss_of(r) for r in sorted(usable, key=lambda r: r["metric"].startswith("kld"))}
    size = {r["model"]: float(r["params_b"]) for r in rows}
    pairs = {
        "int4": (("W4A16KV4", "FP4 (E2M1) W4A16"), ("W16 KV q4_0", ""), ("W=q8_0 KV q4_0", "")),
        "int8": (("W16 K=q8_0 V=q8_0", ""),),
        "static8": (("W8A8KV8 (per-tensor static KV)", "W8A8"),),
    }
    points: dict[str, list[tuple[float, float]]] = {}
    for name, columns in pairs.items():
        found = [
            (model, nats - loss.get((model, base), 0.0))
            for scheme, base in columns
            for (model, other), nats in loss.items()
            if other == scheme and (not base or (model, base) in loss)
        ]
        points[name] = sorted((math.log(size[m] / KV_REFERENCE_B), math.log(d)) for m, d in found if d > NOISE_NATS)
    return points
