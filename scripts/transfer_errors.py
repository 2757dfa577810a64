"""Print how far kernel sheets reach: on their own machine, on another one, and for another library.

Measured over predicted at the 10th, 50th and 90th percentile, and the mean absolute error; the same for speed-ups over
bf16 of layers with at least 16 million weights. Own rows were fitted on: sheets hold the error on shapes left out.
Reads CODESIGN_REFERENCE_DATA (default ../shared).
"""

import pandas as pd
from measured_rows import kernel_frame

from codesign.cost.calibration import scaled, shipped_sheets
from codesign.cost.gemm_time import gemm_seconds
from codesign.cost.kernels import sheet_key
from codesign.cost.sheet_file import load_sheet
from codesign.hardware.file import load_hardware
from codesign.schemes.catalog import parse_scheme

KEYS = ["hw", "engine", "m", "n", "k"]


def predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every measured multiplication once for each sheet that has its scheme, with `kind` of the sheet."""
    parts = []
    for (hw, engine, name), rows in frame.groupby(["hw", "engine", "scheme"]):
        hardware, scheme, library = load_hardware(hw), parse_scheme(name), engine.split("-")[0]
        sizes = [rows[size].to_numpy(float) for size in ("m", "n", "k")]
        for machine, sheet_library in shipped_sheets():
            if load_hardware(machine).kind != hardware.kind:
                continue
            calibration = load_sheet(machine, sheet_library).calibrations.get(("gemm", sheet_key(scheme, hardware)))
            if calibration is None:
                continue
            constants = scaled(calibration.constants, hardware, load_hardware(machine))
            predicted_s = gemm_seconds(constants, hardware, scheme, *sizes).predicted_s
            kind = (
                "own" if (machine, sheet_library) == (hardware.name, library)
                else "other machine" if sheet_library == library
                else "other library" if machine == hardware.name
                else "both"
            )  # fmt: skip
            parts.append(rows.assign(kind=kind, sheet=f"{machine}.{sheet_library}", predicted_s=predicted_s))
    return pd.concat(parts, ignore_index=True)


def summary(ratio: pd.Series) -> str:
    """Return quantiles of measured over predicted and the mean absolute error."""
    low, middle, high = ratio.quantile([0.1, 0.5, 0.9])
    return f"{low:.2f} {middle:.2f} {high:.2f}, mean error {(1 / ratio - 1).abs().mean():.1%} ({len(ratio)} rows)"


def main() -> None:
    """Print one line per kind, for latencies and for speed-ups."""
    rows = predictions(kernel_frame("gemm"))
    rows["ratio"] = rows["measured_s"] / rows["predicted_s"]
    for kind, part in rows.groupby("kind"):
        print(f"latency, {kind}: {summary(part['ratio'])}")
    large = rows[rows["n"] * rows["k"] >= 16e6]
    base = large[(large["scheme"] == "bfloat16") & (large["kind"] == "own")]
    both = large[large["scheme"] != "bfloat16"].merge(
        base[[*KEYS, "measured_s", "predicted_s"]], on=KEYS, suffixes=("", "_16")
    )
    measured, predicted = both["measured_s_16"] / both["measured_s"], both["predicted_s_16"] / both["predicted_s"]
    wrong = ((measured > 1.05) & (predicted < 1)) | ((measured < 0.95) & (predicted > 1))
    for kind, part in both.groupby("kind"):
        ratio = (measured / predicted)[part.index]
        print(f"speed-up, {kind}: {summary(ratio)}, wrong sign {wrong[part.index].mean():.1%}")


if __name__ == "__main__":
    main()
