"""Fit all kernel sheets from the measured tables and write hwprofiles/kernels/<hardware>.<library>.yaml.

Reads CODESIGN_REFERENCE_DATA (default ../shared).
"""

from collections.abc import Callable, Mapping

from fit_intervals import kernel_frame

from codesign.cost.fit_gemm import GemmRows, fit_gemm
from codesign.cost.sheet import Calibration, KernelSheet
from codesign.cost.sheet_file import sheet_path, sheet_yaml
from codesign.hardware.file import load_hardware, resolve_hardware_name
from codesign.schemes.catalog import parse_scheme

DATE = "2026-11-21"
SOURCE = (
    "fitted on a subset of the performance database of NVIDIA's aiconfigurator, Apache-2.0 "
    "(github.com/ai-dynamo/aiconfigurator, August 2026)"
)

# (hardware, library with version, scheme or KV format) -> calibration
Fitted = Mapping[tuple[str, str, str], Calibration]


def fit_all_gemm(operation: str) -> Fitted:
    """Return the calibrations of all machines, libraries and schemes in the table of multiplications."""
    fitted = {}
    for (hw, engine, scheme_name), rows in kernel_frame(operation).groupby(["hw", "engine", "scheme"]):
        hardware, scheme = load_hardware(str(hw)), parse_scheme(str(scheme_name))
        columns = (rows[name].to_numpy(float) for name in ("m", "n", "k", "measured_s"))
        calibration = fit_gemm(GemmRows(*columns), hardware, scheme)
        print(f"{operation} {hardware.name} {engine} {scheme}: {calibration.error_fraction:.1%} held out", flush=True)
        fitted[hardware.name, str(engine), scheme.name] = calibration
    return fitted


FITTERS: Mapping[str, Callable[[str], Fitted]] = {"gemm": fit_all_gemm}


def main() -> None:
    """Fit every operation and write one file per machine and library."""
    sheets: dict[tuple[str, str], dict[tuple[str, str], Calibration]] = {}
    for operation, fit_all in FITTERS.items():
        for (hardware, engine, scheme), calibration in fit_all(operation).items():
            sheets.setdefault((resolve_hardware_name(hardware), engine), {})[operation, scheme] = calibration
    for (hardware, engine), calibrations in sheets.items():
        library, version = engine.split("-", 1)
        sheet = KernelSheet(hardware, library, version, DATE, SOURCE, calibrations)
        sheet_path(hardware, library).write_text(sheet_yaml(sheet), encoding="utf-8")


if __name__ == "__main__":
    main()
