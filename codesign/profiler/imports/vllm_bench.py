"""The result of `vllm bench serve --save-result`: one run of a server, a row for its TTFT and one for its TPOT.

Fields as in vllm-project/vllm, vllm/benchmarks/serve.py. With --save-detailed the times of each request are used. What
the benchmark does not know may be given by its --metadata: scheme=..., gpus=..., kv_format=..., model=....
"""

from pathlib import Path
from typing import Any, Literal

from codesign.errors import InputError
from codesign.files import parse_json, read_text
from codesign.profiler.imports.imported import (
    DEPTH_MAX,
    FILE_BYTES_MAX,
    Imported,
    ImportedRow,
    count_of,
    number_of,
    seconds,
    stated,
    text_of,
)
from codesign.profiler.records import ServingCase
from codesign.profiler.run_folder import Skipped
from codesign.units import MILLI

NOTES = (
    "date", "backend", "endpoint_type", "label", "model_id", "num_prompts", "request_rate", "burstiness", "duration",
    "completed", "failed", "request_throughput", "output_throughput", "vllm_version",
)  # fmt: skip
Figure = Literal["ttft_s", "tpot_s"]
FIGURES: tuple[Figure, ...] = ("ttft_s", "tpot_s")


def read(path: Path) -> Imported:
    """Return the rows of one result."""
    result = parse_json(read_text(path, FILE_BYTES_MAX, "result of vllm bench"), str(path), DEPTH_MAX)
    if not isinstance(result, dict) or "completed" not in result:
        raise InputError(f'{path}: no result of `vllm bench serve`: the key "completed" is missing.')
    rows, skipped = [], []
    for figure in FIGURES:
        try:
            rows.append(_row(result, figure))
        except InputError as error:
            skipped.append(Skipped(figure, str(error)))
    return Imported(tuple(rows), tuple(skipped))


def _row(result: dict[str, Any], figure: Figure) -> ImportedRow:
    completed = count_of(result["completed"], "completed", 1)
    samples_s = _ttfts(result) if figure == "ttft_s" else _tpots(result)
    if not samples_s:
        name = f"median_{figure.removesuffix('_s')}_ms"
        samples_s = (seconds(result.get(name), MILLI, name),)
    case = ServingCase(
        model=text_of(result.get("model") or result.get("model_id")),
        scheme=text_of(result.get("scheme")),
        kv_format=text_of(result.get("kv_format")),
        gpus=count_of(result.get("gpus", 1), "gpus", 1),
        concurrency=_concurrency(result),
        prompt_tokens=max(1, round(number_of(result.get("total_input_tokens"), "total_input_tokens") / completed)),
        output_tokens=max(1, round(number_of(result.get("total_output_tokens"), "total_output_tokens") / completed)),
        figure=figure,
    )
    version = text_of(result.get("vllm_version"))
    doubt = f"{result['failed']} requests failed" if result.get("failed") else ""
    return ImportedRow("vllm", version, "serve", case, samples_s, completed, stated(result, NOTES), doubt)


def _concurrency(result: dict[str, Any]) -> int:
    """Return how many sequences run at a time: the limit, else all where they arrive at once."""
    if result.get("max_concurrency") is not None:
        return count_of(result["max_concurrency"], "max_concurrency", 1)
    if result.get("request_rate") == "inf":
        return count_of(result.get("num_prompts"), "num_prompts", 1)
    raise InputError("requests arrive at a rate, so that how many run at a time is not known; use --max-concurrency")


def _ttfts(result: dict[str, Any]) -> tuple[float, ...]:
    return tuple(seconds(one, 1.0, "a time of ttfts") for one in _list(result, "ttfts") if one)


def _tpots(result: dict[str, Any]) -> tuple[float, ...]:
    """Return each request's mean gap between tokens, as the benchmark defines TPOT; requests of one token have none."""
    gaps = [one for one in _list(result, "itls") if isinstance(one, list) and one]
    return tuple(seconds(sum(number_of(gap, "an itl") for gap in one) / len(one), 1.0, "an itl") for one in gaps)


def _list(result: dict[str, Any], name: str) -> list[Any]:
    value = result.get(name)
    return value if isinstance(value, list) else []
