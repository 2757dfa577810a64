"""Measured tables in our columns: our own format, and the layout of aiconfigurator's kernel tables."""

from pathlib import Path
from typing import TYPE_CHECKING

from codesign.cost.table_file import read_table
from codesign.errors import InputError
from codesign.units import MILLI

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns that tell a layout of aiconfigurator's tables (Apache-2.0), with their names here. The library column may
# carry a version (`vllm-0.24.0`), which the library's name drops.
LAYOUTS: dict[str, tuple[frozenset[str], dict[str, str]]] = {
    "gemm": (frozenset({"m", "n", "k", "latency_ms"}), {}),
    "moe": (
        frozenset({"num_tokens", "hidden_size", "inter_size", "num_experts", "latency_ms"}),
        {"num_tokens": "tokens", "hidden_size": "hidden", "inter_size": "intermediate", "topk": "top_k",
         "num_experts": "experts", "moe_tp_size": "tp", "moe_ep_size": "ep", "distribution": "skew"},
    ),
    "attention": (
        frozenset({"batch_size", "q_len", "kv_len_before", "num_heads", "latency_ms"}),
        {"batch_size": "batch", "q_len": "q_tokens", "num_heads": "heads", "num_key_value_heads": "kv_heads",
         "kv_cache_dtype": "kv_dtype"},
    ),
    "all_reduce": (
        frozenset({"num_gpus", "message_elements_or_bytes", "latency_ms"}),
        {"num_gpus": "gpus"},
    ),
}  # fmt: skip
ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}


def read_measured(source: str | Path) -> "DataFrame":
    """Return a measured kernel table with our columns and `measured_s`; rows without a positive time are dropped.

    InputError if the file is no table or has neither layout.
    """
    import pandas

    frame = read_table(str(source))
    if "measured_s" not in frame.columns:
        frame = _from_aiconfigurator(frame, str(source))
    for name in ("hw", "op"):
        if name not in frame.columns:
            raise InputError(f'{source}: the column "{name}" is missing.')
    frame["measured_s"] = pandas.to_numeric(frame["measured_s"], errors="coerce")
    return frame[frame["measured_s"].between(0, 1e9, inclusive="neither")].reset_index(drop=True)


def _from_aiconfigurator(frame: "DataFrame", source: str) -> "DataFrame":
    kind = next((kind for kind, (needed, _) in LAYOUTS.items() if needed <= set(frame.columns)), None)
    if kind is None:
        raise InputError(
            f"{source}: this is no measured table: it has neither a column measured_s nor those of a known layout "
            f"({', '.join(LAYOUTS)} with latency_ms)."
        )
    frame = frame.rename(columns=LAYOUTS[kind][1])
    if kind == "attention":
        frame["op"] = "attention_" + frame["phase"]
        frame["kv_tokens"] = frame["kv_len_before"].astype(float) + frame["q_tokens"].astype(float)
    elif kind == "all_reduce":
        frame = frame[frame["op"] == "all_reduce"].copy()
        frame["message_bytes"] = frame["message_elements_or_bytes"].astype(float) * frame["dtype"].map(ELEMENT_BYTES)
    else:
        frame["op"] = kind
    frame["measured_s"] = frame["latency_ms"].astype(float) * MILLI
    frame["library"] = frame.get("engine", "")
    if kind == "all_reduce":
        frame["library"] = (
            frame["library"].str.removeprefix("custom-").where(~frame["library"].str.startswith("nccl"), "")
        )
    return frame
