"""Print what aiconfigurator's README shows for Qwen3-32B on 32 H200, beside our predictions of the same servers.

    python scripts/compare_peers.py

The question there: prompts of 4,000 tokens, 500 new ones, first token within 300 ms, 10 ms per token, in FP8 with
TensorRT-LLM.
The rows are servers of four devices that read prompts and decode on all of them ("agg Top Configurations").
Source: ai-dynamo/aiconfigurator, README.md, run of 2025-10-03.
"""

import sys
from pathlib import Path

import pandas as pd

from codesign.cost.table_file import predict_servers, write_table

GPUS = 4
THEIRS = pd.DataFrame(
    [(20, 478.57, 107.58, 197.85), (16, 429.39, 122.54, 197.57), (14, 398.29, 131.04, 197.41),
     (13, 377.31, 133.32, 190.10), (11, 339.51, 143.14, 189.94)],
    columns=["concurrency", "tokens_per_s_per_gpu", "tokens_per_s_per_user", "ttft_ms"],
)  # fmt: skip


def main() -> None:
    """Print both answers row by row as CSV."""
    server = {"hw": "h200", "gpus": GPUS, "model": "qwen3-32b", "scheme": "FP8", "kv_dtype": "fp8", "library": "trtllm",
              "prompt_tokens": 4000, "output_tokens": 500}  # fmt: skip
    ours = predict_servers(THEIRS[["concurrency"]].assign(**server))
    table = pd.DataFrame({"in_flight": THEIRS["concurrency"]})
    table["tokens_per_s_per_gpu"], table["theirs"] = ours["tokens_per_s"] / GPUS, THEIRS["tokens_per_s_per_gpu"]
    table["ms_per_token"], table["theirs_ms_per_token"] = ours["tpot_s"] * 1e3, 1e3 / THEIRS["tokens_per_s_per_user"]
    table["first_token_ms"], table["theirs_first_token_ms"] = ours["ttft_s"] * 1e3, THEIRS["ttft_ms"]
    write_table(table.round(1), Path(sys.argv[1]) if len(sys.argv) > 1 else None)


if __name__ == "__main__":
    main()
