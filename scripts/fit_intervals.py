"""Print the 80 % intervals of the datasheet roofline, from the measured tables; they are constants of cost/kernels.py.

Reads CODESIGN_REFERENCE_DATA (default ../shared). Per class of operation: measured over predicted time at the 10th and
90th percentile of large kernels (at least ten times the fixed time), and the same of the fixed time of small ones.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from codesign.cost.table import predict_table

ROOT = Path(__file__).parent.parent
MILLI = 1e-3
LARGE_TO_FIXED = 10.0


def reference_folder() -> Path:
    """Return the folder of the reference data."""
    return Path(os.environ.get("CODESIGN_REFERENCE_DATA", ROOT.parent / "shared"))


def kernel_frame(operation: str) -> pd.DataFrame:
    """Return the measured rows of one operation, in our column names, with `measured_s`."""
    folder = reference_folder() / "measured"
    if operation == "gemm":
        frame = pd.read_parquet(folder / "gemm_gpu.parquet")
    elif operation == "moe":
        frame = pd.read_parquet(folder / "moe_gpu.parquet").rename(columns=MOE_NAMES)
        frame["skew"] = frame["distribution"].str.removeprefix("power_law_").replace("balanced", "0").astype(float)
    elif operation == "all_reduce":
        frame = pd.read_parquet(folder / "collectives_gpu.parquet").rename(columns={"num_gpus": "gpus"})
        frame = frame[frame["op"] == "all_reduce"].reset_index(drop=True)
        width_bytes = frame["dtype"].map({"half": 2, "bfloat16": 2, "int8": 1})
        frame["message_bytes"] = frame["message_elements_or_bytes"] * width_bytes
        frame["engine"] = ""  # collectives belong to no kernel library of ours
    else:
        frame = pd.read_parquet(folder / "attention_gpu.parquet").rename(columns=ATTENTION_NAMES)
        frame = frame[frame["phase"] == operation.removeprefix("attention_")].reset_index(drop=True)
        frame["kv_tokens"] = frame["kv_len_before"] + frame["q_tokens"]
    frame["op"] = operation
    frame["library"] = frame["engine"]
    frame["measured_s"] = frame["latency_ms"] * MILLI
    return frame


MOE_NAMES = {
    "num_tokens": "tokens", "hidden_size": "hidden", "inter_size": "intermediate", "topk": "top_k",
    "num_experts": "experts", "moe_tp_size": "tp", "moe_ep_size": "ep",
}  # fmt: skip
ATTENTION_NAMES = {
    "batch_size": "batch", "q_len": "q_tokens", "num_heads": "heads", "num_key_value_heads": "kv_heads",
    "kv_cache_dtype": "kv_dtype",
}  # fmt: skip


def predicted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with `predicted_s` and `fixed_s` (what an empty kernel would take)."""
    columns = {}
    for name in ("hw", "library", "op", "scheme", "kv_dtype"):
        present = name in frame.columns
        columns[name] = frame[name].to_numpy(object) if present else np.full(len(frame), "", dtype=object)
    numbers = frame.select_dtypes("number")
    result = predict_table(columns | {name: numbers[name].to_numpy(float) for name in numbers.columns})
    return frame.assign(predicted_s=result.predicted_s, fixed_s=result.fixed_s)


def main() -> None:
    """Print one line per class of operation."""
    for operation in ("gemm", "attention_decode", "attention_prefill", "moe", "all_reduce"):
        frame = predicted(kernel_frame(operation))
        busy_s = frame["predicted_s"] - frame["fixed_s"]
        large = busy_s >= LARGE_TO_FIXED * frame["fixed_s"]
        small = busy_s <= frame["fixed_s"]
        by_size = (frame["measured_s"] / frame["predicted_s"])[large].quantile([0.1, 0.5, 0.9]).round(2).tolist()
        fixed = ((frame["measured_s"] - busy_s) / frame["fixed_s"])[small].quantile([0.1, 0.5, 0.9]).round(2).tolist()
        print(f"{operation:18} large ({large.sum():5}): {by_size}  fixed time of small ({small.sum():5}): {fixed}")
    gains()


def gains() -> None:
    """Print the speed-up over bf16, measured over predicted, of layers with at least 16 million weights."""
    frame = predicted(kernel_frame("gemm"))
    frame = frame[frame["n"] * frame["k"] >= 16e6]
    keys = ["hw", "engine", "m", "n", "k"]
    base = frame[frame["scheme"] == "bfloat16"][[*keys, "measured_s", "predicted_s"]]
    both = frame[frame["scheme"] != "bfloat16"].merge(base, on=keys, suffixes=("", "_base"))
    ratio = (both["measured_s_base"] / both["measured_s"]) / (both["predicted_s_base"] / both["predicted_s"])
    print(f"speed-up measured / predicted ({len(both)} rows): {ratio.quantile([0.1, 0.5, 0.9]).round(2).tolist()}")


if __name__ == "__main__":
    main()
