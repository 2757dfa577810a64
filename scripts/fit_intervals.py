"""Print the 80 % intervals of the datasheet roofline, from the measured tables; they are constants of cost/kernels.py.

Reads CODESIGN_REFERENCE_DATA (default ../shared). Per class of operation: measured over predicted time at the 10th and
90th percentile of large kernels (at least ten times the fixed time), and the same of the fixed time of small ones.
"""

import pandas as pd
from held_out import datasheet, groups

LARGE_TO_FIXED = 10.0
OPERATIONS = ("gemm", "attention_decode", "attention_prefill", "moe", "all_reduce")


def predicted(operation: str) -> pd.DataFrame:
    """Return the measured rows with what the profile alone predicts, and `fixed_s` of an empty kernel."""
    parts = []
    for group in groups(operation):
        predicted_s, fixed_s = datasheet(group, group.frame)
        named = group.frame.assign(machine=group.hardware.name, family=group.library)
        parts.append(named.assign(predicted_s=predicted_s, fixed_s=fixed_s))
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    """Print one line per class of operation."""
    for operation in OPERATIONS:
        frame = predicted(operation)
        busy_s = frame["predicted_s"] - frame["fixed_s"]
        large = busy_s >= LARGE_TO_FIXED * frame["fixed_s"]
        small = busy_s <= frame["fixed_s"]
        by_size = (frame["measured_s"] / frame["predicted_s"])[large].quantile([0.1, 0.5, 0.9]).round(2).tolist()
        fixed = ((frame["measured_s"] - busy_s) / frame["fixed_s"])[small].quantile([0.1, 0.5, 0.9]).round(2).tolist()
        print(f"{operation:18} large ({large.sum():5}): {by_size}  fixed time of small ({small.sum():5}): {fixed}")
    gains()


def gains() -> None:
    """Print the speed-up over bf16, measured over predicted, of layers with at least 16 million weights."""
    frame = predicted("gemm")
    frame = frame[frame["n"] * frame["k"] >= 16e6]
    keys = ["machine", "family", "m", "n", "k"]
    base = frame[frame["scheme"] == "bfloat16"][[*keys, "measured_s", "predicted_s"]]
    both = frame[frame["scheme"] != "bfloat16"].merge(base, on=keys, suffixes=("", "_base"))
    ratio = (both["measured_s_base"] / both["measured_s"]) / (both["predicted_s_base"] / both["predicted_s"])
    print(f"speed-up measured / predicted ({len(both)} rows): {ratio.quantile([0.1, 0.5, 0.9]).round(2).tolist()}")


if __name__ == "__main__":
    main()
