"""Print the 80 % intervals of the datasheet roofline, from the measured tables; they are constants of cost/kernels.py.

Reads CODESIGN_REFERENCE_DATA (default ../shared). Per class of operation: measured over predicted time at the 10th and
90th percentile of large kernels (at least ten times the fixed time), and the same of the fixed time of small ones.
"""

import os
from pathlib import Path

import pandas as pd

from codesign.cost.measured import read_measured
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns
from codesign.cost.traffic import WIRE_PASSES

ROOT = Path(__file__).parent.parent
LARGE_TO_FIXED = 10.0


def reference_folder() -> Path:
    """Return the folder of the reference data."""
    return Path(os.environ.get("CODESIGN_REFERENCE_DATA", ROOT.parent / "shared"))


TABLES = {
    "gemm": "gemm_gpu",
    "attention_decode": "attention_gpu",
    "attention_prefill": "attention_gpu",
    "moe": "moe_gpu",
    **dict.fromkeys(WIRE_PASSES, "collectives_gpu"),
}


def kernel_frame(operation: str) -> pd.DataFrame:
    """Return the measured rows of one operation, in our column names, with `measured_s`."""
    frame = read_measured(reference_folder() / "measured" / f"{TABLES[operation]}.parquet")
    return frame[frame["op"] == operation].reset_index(drop=True)


def predicted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with `predicted_s` and `fixed_s` (what an empty kernel would take)."""
    result = predict_table(kernel_columns(frame))
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
