"""The measured tables by operation, in our columns.

Reads CODESIGN_REFERENCE_DATA (default ../shared).
"""

import os
from pathlib import Path

import pandas as pd

from codesign.cost.measured import read_measured
from codesign.cost.traffic import WIRE_PASSES

ROOT = Path(__file__).parent.parent


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
