"""NVBench's JSON (`--json`, or `--jsonbin` with the samples beside it).

Fields as in NVIDIA/nvbench, docs/json_output.md. A state whose axes are M, N, K and a scheme is a multiplication;
others keep the benchmark's name and axes.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codesign.errors import CodesignError, InputError
from codesign.files import parse_json, read_text
from codesign.profiler.imports.imported import (
    DEPTH_MAX,
    FILE_BYTES_MAX,
    Imported,
    ImportedRow,
    count_of,
    seconds,
    text_of,
)
from codesign.profiler.kernel import GemmCase
from codesign.profiler.records import AnyCase, ForeignCase
from codesign.profiler.run_folder import Skipped
from codesign.schemes.catalog import parse_scheme

MAJOR_VERSION = "1"
SAMPLES_TAG = "nv/json/bin:nv/cold/sample_times"
COUNT_TAG = "nv/cold/sample_size"
TIME_TAGS = ("nv/cold/time/gpu/median", "nv/cold/time/gpu/mean")
NOTED = ("nv/cold/sm_clock_rate/mean", "nv/cold/time/gpu/stdev/relative", "nv/cold/bw/global/utilization")
SAMPLE_BYTES = 4


def read(path: Path) -> Imported:
    """Return the states of a file; those that NVBench skipped keep its reason."""
    document = parse_json(read_text(path, FILE_BYTES_MAX, "result of NVBench"), str(path), DEPTH_MAX)
    version = _at(document, "meta", "version", "json", "string")
    if not str(version).startswith(f"{MAJOR_VERSION}."):
        raise InputError(f"{path}: no result of NVBench of format {MAJOR_VERSION}: meta.version.json is {version!r}.")
    devices = {one.get("id"): text_of(one.get("name")) for one in _dicts(document.get("devices"))}
    rows, skipped = [], []
    for benchmark in _dicts(document.get("benchmarks")):
        for state in _dicts(benchmark.get("states")):
            name = f"{text_of(benchmark.get('name'))} {text_of(state.get('name'))}".strip()
            try:
                rows.append(_row(path.parent, text_of(benchmark.get("name")), state, devices))
            except CodesignError as error:
                skipped.append(Skipped(name, str(error)))
    return Imported(tuple(rows), tuple(skipped))


def _row(folder: Path, name: str, state: dict[str, Any], devices: Mapping[Any, str]) -> ImportedRow:
    if state.get("is_skipped"):
        raise InputError(f"NVBench skipped it: {text_of(state.get('skip_reason')) or 'it says no reason'}")
    summaries = {text_of(one.get("tag")): _data(one) for one in _dicts(state.get("summaries"))}
    samples_s = _samples(folder, summaries.get(SAMPLES_TAG, {}))
    count = len(samples_s) or count_of(summaries.get(COUNT_TAG, {}).get("value", 1), COUNT_TAG, 1)
    if not samples_s:
        tag = next((tag for tag in TIME_TAGS if tag in summaries), None)
        if tag is None:
            raise InputError("it holds no cold GPU time")
        samples_s = (seconds(summaries[tag].get("value"), 1.0, tag),)
    notes = {tag: summaries[tag].get("value") for tag in NOTED if tag in summaries}
    notes["device"] = devices.get(state.get("device"), "")
    return ImportedRow("nvbench", "", name, _case(name, state), samples_s, count, notes)


def _case(name: str, state: dict[str, Any]) -> AnyCase:
    axes = {text_of(one.get("name")): text_of(one.get("value")) for one in _dicts(state.get("axis_values"))}
    lower = {axis.lower(): value for axis, value in axes.items()}
    if {"m", "n", "k", "scheme"} <= set(lower):
        m, n, k = (count_of(lower[size], size, 1) for size in ("m", "n", "k"))
        return GemmCase(parse_scheme(lower["scheme"]).name, m, n, k, cache="cold")
    return ForeignCase(name, axes)


def _samples(folder: Path, data: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the samples of a sidecar of 32-bit floats in seconds; none where NVBench could not write it."""
    if "filename" not in data:
        return ()
    path = (folder / text_of(data["filename"])).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise InputError(f"its samples are not beside the file: {text_of(data['filename'])[:60]!r}")
    count = count_of(data.get("size"), "size", 1)
    if path.stat().st_size != count * SAMPLE_BYTES or path.stat().st_size > FILE_BYTES_MAX:
        raise InputError(f"its samples are {path.stat().st_size} bytes, which is not {count} times {SAMPLE_BYTES}")
    values = struct.unpack(f"<{count}f", path.read_bytes())
    return tuple(seconds(value, 1.0, "a sample") for value in values)


def _data(summary: dict[str, Any]) -> dict[str, Any]:
    return {text_of(one.get("name")): one.get("value") for one in _dicts(summary.get("data"))}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _at(value: Any, *keys: str) -> Any:
    """Return what lies under the keys; a text on the way is the answer, since versions are a text or an object."""
    for key in keys:
        if not isinstance(value, dict):
            return value
        value = value.get(key)
    return value
