"""Runs of a GPU with known times, as `scripts/gpu_lane` leaves them."""

import json
from dataclasses import replace
from pathlib import Path

from codesign.profiler.energy import Energy
from codesign.profiler.kernel import AttentionCase
from codesign.profiler.records import Measurement
from codesign.profiler.run_folder import open_run
from codesign.profiler.statistics import summarize
from codesign.profiler.verdict import Kind, Reason, Verdict
from tests.measured_rows import gemm_row, run_head

HARDWARE = "h200-sxm"
READ_RATE = 4.2e12
SHAPES = ((4096, 4096), (12288, 4096), (28672, 4096), (4096, 11008), (8192, 8192), (6144, 4096))
ROWS = (1, 4, 16, 64, 256)
FLOP_RATE = 6.0e14
FIXED_S = 1.5e-6
BITS = {"FP16": 16.0, "W4A16-g128": 4.125, "W8A16": 8.0, "W8A8": 8.0, "FP8-A16": 8.0}


def kernel_rows(library: str, kernel: str, scheme: str, share: float, rate: float = 1.0) -> list[Measurement]:
    """Return rows that reach a share of the read bandwidth, or of the tensor cores' rate where that takes longer."""
    found = []
    for n, k in SHAPES:
        for m in ROWS:
            read_bytes = n * k * BITS[scheme] / 8
            seconds = FIXED_S + max(read_bytes / (share * READ_RATE), 2.0 * m * n * k / (rate * FLOP_RATE))
            one = gemm_row(seconds, m, n=n, k=k, scheme=scheme, library=library, kernel=kernel)
            version = "0.1.0" if library == "codesign" else "2.11.0"
            found.append(replace(one, hw=HARDWARE, read_bytes=read_bytes, math_dtype="fp16", library_version=version))
    return found


def attention_row(kv_format: str, share: float) -> Measurement:
    case = AttentionCase(kv_format, 16, 32, 8, 128, 1, 32768)
    read_bytes = 2 * 16 * 8 * 32768 * 128 * {"fp16": 2.0, "int8": 1.0}[kv_format]
    samples_s = (read_bytes / (share * READ_RATE),) * 31
    one = replace(gemm_row(1e-3), hw=HARDWARE, case=case, library="codesign", library_version="0.1.0",
                  kernel="kv_attention", key=f"attention {kv_format}")  # fmt: skip
    return replace(one, read_bytes=read_bytes, flop=case.flop, samples_s=samples_s, summary=summarize(samples_s))


def with_energy(one: Measurement, joule: float) -> Measurement:
    return replace(one, energy=Energy("counter", "gpu 0", joule * 1000, 5.5, 1000, 75.0))


def throttled(one: Measurement) -> Measurement:
    verdict = Verdict(Kind.INVALID, (Reason("throttled", "hw_slowdown"),))
    return replace(one, verdict=verdict, key=f"{one.key} throttled")


def write_lane(folder: Path, **runs: list[Measurement]) -> Path:
    """Write runs by their names, and the read bandwidth."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roofs.json").write_text(json.dumps({"gpu": "NVIDIA H200", "read_bytes_per_s": READ_RATE}))
    for name, rows in runs.items():
        with open_run(folder / name, run_head(hw=HARDWARE)) as writer:
            for one in rows:
                writer.append(one)
            writer.finish("complete")
    return folder
