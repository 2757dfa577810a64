"""llama-bench's JSON or JSON lines (`-o json`, `-o jsonl`): prompt processing and generation of one sequence.

Given a GGUF model instead, llama-bench is run on it first, with one thread and with one per core.
Fields as in ggml-org/llama.cpp, tools/llama-bench/README.md: samples_ns hold one time per repetition of the whole test.
"""

import re
from pathlib import Path
from typing import Any

from codesign.errors import InputError
from codesign.files import parse_json, read_text
from codesign.profiler.imports.imported import (
    DEPTH_MAX,
    FILE_BYTES_MAX,
    Imported,
    ImportedRow,
    count_of,
    seconds,
    stated,
    text_of,
)
from codesign.profiler.libraries.llama_cpp import bench_json
from codesign.profiler.processors import core_count
from codesign.profiler.records import ServingCase
from codesign.profiler.run_folder import Skipped

NANO = 1e-9
NOTES = (
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "n_batch", "n_ubatch", "n_gpu_layers",
    "flash_attn", "split_mode", "test_time", "model_filename",
)  # fmt: skip
_MODEL_TYPE = re.compile(r"(?P<model>.+?) (?P<format>(?:all )?(?:[BF]+\d+|I?Q\d\S*|TQ\d\S*|MXFP4)\b.*)")
_GGUF = b"GGUF"  # what a model file begins with: ggml-org/ggml, docs/gguf.md
_FLOATS = {"F16": "FP16", "F32": "FP32", "all F32": "FP32"}


def read(path: Path) -> Imported:
    """Return the tests of a file."""
    rows, skipped = [], []
    for number, test in enumerate(_tests(path), 1):
        try:
            rows.append(_row(test))
        except InputError as error:
            skipped.append(Skipped(f"test {number}", f"{error}"))
    return Imported(tuple(rows), tuple(skipped))


def _tests(path: Path) -> list[Any]:
    text = _measured(path) if _is_model(path) else read_text(path, FILE_BYTES_MAX, "result of llama-bench")
    if text.lstrip().startswith("{"):
        return [parse_json(line, str(path), DEPTH_MAX) for line in text.splitlines() if line.strip()]
    tests = parse_json(text, str(path), DEPTH_MAX)
    if not isinstance(tests, list):
        raise InputError(f"{path}: no result of llama-bench: neither a list of tests nor one per line.")
    return tests


def _is_model(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF)) == _GGUF
    except OSError:
        return False  # reading it as text says why


def _measured(model: Path) -> str:
    return bench_json(model, tuple(sorted({1, core_count()})))


def _row(test: Any) -> ImportedRow:
    if not isinstance(test, dict) or "samples_ns" not in test:
        raise InputError("it has no samples_ns; write with -o json")
    prompt, output = count_of(test.get("n_prompt", 0), "n_prompt"), count_of(test.get("n_gen", 0), "n_gen")
    depth = count_of(test.get("n_depth", 0), "n_depth")
    if (prompt > 0) == (output > 0):
        raise InputError("prompt and generation are in one time, which cannot be divided")
    if prompt and depth:
        raise InputError("a prompt after cached tokens has no place in our records")
    model, scheme = _model_and_scheme(text_of(test.get("model_type")))
    case = ServingCase(
        model=model,
        scheme=scheme,
        kv_format={"f16": "fp16"}.get(text_of(test.get("type_k")), text_of(test.get("type_k"))),
        gpus=1,
        concurrency=1,
        prompt_tokens=prompt or max(depth, 1),
        output_tokens=output or 1,
        figure="ttft_s" if prompt else "tpot_s",
        threads=count_of(test.get("n_threads", 1), "n_threads", 1),
    )
    samples = test["samples_ns"] if isinstance(test["samples_ns"], list) else []
    samples_s = tuple(seconds(one, NANO / max(output, 1), "a time of samples_ns") for one in samples)
    if not samples_s:
        raise InputError("samples_ns is empty")
    version = f"b{test['build_number']}" if test.get("build_number") else ""
    return ImportedRow("llama.cpp", version, "llama-bench", case, samples_s, len(samples_s), stated(test, NOTES))


def _model_and_scheme(text: str) -> tuple[str, str]:
    """Return what `llama 7B Q4_0` names; the format of a mix, such as `Q4_K - Medium`, keeps its whole name."""
    match = _MODEL_TYPE.fullmatch(text)
    if match is None:
        return text, ""
    return match["model"], _FLOATS.get(match["format"], match["format"])
