"""Fit the kernel sheets of the measured CPU and write them to hwprofiles/kernels: `python scripts/fit_cpu_sheets.py`.

llama.cpp comes from the reference data (measured on a machine of the same kind), the other libraries from the runs that
are committed in reports/: multiplications, and attention.
"""

import datetime
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas

from codesign.cost.fit import fit_frame
from codesign.cost.sheet import KernelSheet
from codesign.cost.sheet_file import sheet_path, sheet_yaml
from codesign.files import write_atomic
from codesign.hardware.file import load_hardware
from codesign.profiler.export import read_measurements

if TYPE_CHECKING:
    from pandas import DataFrame

ROOT = Path(__file__).parent.parent
MACHINE = "zen4-2-core"
RUNS = tuple(ROOT / "reports" / MACHINE / name for name in ("run", "small_layers", "attention", "prompts"))
ATTENTION_RUNS = ("attention", "prompts")
# Names of ggml types in the reference data that are schemes here.
GGML = {"f32": "FP32", "f16": "FP16", "bf16": "BF16", "q2_K": "Q2_K", "q4_0": "Q4_0", "q4_K": "Q4_K", "q6_K": "Q6_K",
        "q8_0": "Q8_0", "iq4_nl": "IQ4_NL", "mxfp4": "GGML-MXFP4"}  # fmt: skip
GGML_KERNELS = {"mul_mat[CPU]": "plain", "mul_mat[CPU_REPACK]": "repacked"}
GGML_VERSION = "0.25.3"
# On shapes left out; what is further off keeps the roofs' wide interval.
ERROR_FRACTION_MAX = {"gemm": 0.10, "attention_decode": 0.12, "attention_prefill": 0.12}


def llama_cpp_rows() -> "DataFrame":
    """Return the multiplications of ggml in our columns."""
    folder = Path(os.environ.get("CODESIGN_REFERENCE_DATA", ROOT.parent / "shared"))
    table = pandas.read_csv(folder / "measured" / "cpu_zen4_2core.csv")
    table = table[(table["provider"] == "ggml(llama.cpp)") & table["op"].isin(GGML_KERNELS) & (table["N"] > 0)]
    table = table[table["scheme"].isin(GGML)]
    repacked = set(table.loc[table["op"].map(GGML_KERNELS) == "repacked", "scheme"])  # what llama.cpp does unasked
    table = table[(table["op"].map(GGML_KERNELS) == "repacked") | ~table["scheme"].isin(repacked)]
    return pandas.DataFrame(
        {"hw": MACHINE, "library": "llama.cpp", "op": "gemm",
         "scheme": table["scheme"].map(GGML), "m": table["M"].astype(float), "n": table["N"].astype(float),
         "k": table["K"].astype(float), "threads": table["threads"].astype(float), "measured_s": table["ms"] * 1e-3}
    ).reset_index(drop=True)  # fmt: skip


def write_sheet(frame: "DataFrame", library: str, version: str, source: str) -> None:
    """Fit and write one sheet; print what was reached and refused."""
    fit = fit_frame(frame, load_hardware(MACHINE))
    for refusal in fit.refusals:
        print(f"{library} {refusal.operation} {refusal.scheme}: {refusal.reason}", file=sys.stderr)
    for (operation, scheme), one in fit.calibrations.items():
        print(f"{library:12} {operation:16} {scheme:30} {one.sample_count:4} rows  {100 * one.error_fraction:.1f} %")
    shipped = {key: one for key, one in fit.calibrations.items() if one.error_fraction < ERROR_FRACTION_MAX[key[0]]}
    for key in fit.calibrations.keys() - shipped.keys():
        limit = ERROR_FRACTION_MAX[key[0]]
        print(f"{library} {' '.join(key)}: not shipped, its error is above {limit:.0%}", file=sys.stderr)
    date = datetime.date.today().isoformat()
    sheet = KernelSheet(MACHINE, library, version, date, source, shipped)
    write_atomic(sheet_path(MACHINE, library), sheet_yaml(sheet))


def main() -> None:
    """Fit llama.cpp from the reference data and every library of the committed run."""
    source = "fitted on measured CPU kernels of a 2-core Zen 4 machine (reference data of this project, 2026)"
    write_sheet(llama_cpp_rows(), "llama.cpp", GGML_VERSION, source)
    tables = [read_measurements(str(run)).frame for run in RUNS]
    # Runs of attention hold a tiny multiplication, too, without which the profiler does not start.
    frame = pandas.concat(
        [
            table[(table["op"] == "gemm") == (run.name not in ATTENTION_RUNS)]
            for run, table in zip(RUNS, tables, strict=True)
        ]
    )
    frame = frame.reset_index(drop=True)
    names = frame["library"].str.rsplit("-", n=1)
    for library in sorted(set(names.str[0])):
        rows = frame[names.str[0] == library].reset_index(drop=True)
        version = str(rows["library"].iloc[0]).removeprefix(f"{library}-")
        write_sheet(rows, library, version, f"fitted on {len(rows):,} rows of reports/{MACHINE}")


if __name__ == "__main__":
    main()
