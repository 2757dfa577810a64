"""Fit all kernel sheets from the measured tables and write hwprofiles/kernels/<hardware>.<library>.yaml.

Reads CODESIGN_REFERENCE_DATA (default ../shared).
"""

import sys
from collections.abc import Callable, Mapping

from fit_intervals import kernel_frame

from codesign.cost.attention_time import attention_key
from codesign.cost.fit_attention import AttentionRows, fit_attention_decode, fit_attention_prefill
from codesign.cost.fit_gemm import GemmRows, fit_gemm
from codesign.cost.sheet import Calibration, KernelSheet
from codesign.cost.sheet_file import read_sheet, sheet_path, sheet_yaml
from codesign.hardware.file import load_hardware, resolve_hardware_name
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv

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


def fit_all_attention(operation: str) -> Fitted:
    """Return the calibrations of all machines, libraries, KV formats and head dimensions in the table of attention."""
    fit = {"attention_decode": fit_attention_decode, "attention_prefill": fit_attention_prefill}[operation]
    fitted = {}
    for (hw, engine, kv_dtype, dim), rows in kernel_frame(operation).groupby(["hw", "engine", "kv_dtype", "head_dim"]):
        hardware, kv = load_hardware(str(hw)), parse_kv(str(kv_dtype))
        names = ("batch", "q_tokens", "kv_tokens", "heads", "kv_heads", "head_dim", "measured_s")
        calibration = fit(AttentionRows(*(rows[name].to_numpy(float) for name in names)), hardware, kv)
        key = attention_key(kv.name, int(dim))
        print(f"{operation} {hardware.name} {engine} {key}: {calibration.error_fraction:.1%} held out", flush=True)
        fitted[hardware.name, str(engine), key] = calibration
    return fitted


FITTERS: Mapping[str, Callable[[str], Fitted]] = {
    "gemm": fit_all_gemm,
    "attention_decode": fit_all_attention,
    "attention_prefill": fit_all_attention,
}


def main() -> None:
    """Fit the operations named as arguments, all without any, and write one file per machine and library.

    What a sheet already holds of other operations stays.
    """
    sheets: dict[tuple[str, str], dict[tuple[str, str], Calibration]] = {}
    operations = sys.argv[1:] or list(FITTERS)
    for operation in operations:
        for (hardware, engine, scheme), calibration in FITTERS[operation](operation).items():
            sheets.setdefault((resolve_hardware_name(hardware), engine), {})[operation, scheme] = calibration
    for (hardware, engine), calibrations in sheets.items():
        library, version = engine.split("-", 1)
        path = sheet_path(hardware, library)
        kept = read_sheet(path).calibrations if path.is_file() else {}
        kept = {key: value for key, value in kept.items() if key[0] not in operations}
        sheet = KernelSheet(hardware, library, version, DATE, SOURCE, {**kept, **calibrations})
        path.write_text(sheet_yaml(sheet), encoding="utf-8")


if __name__ == "__main__":
    main()
