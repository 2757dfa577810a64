"""Fit board power to measured multiplications; print the constants of cost/power.py and their held-out errors.

Reads CODESIGN_REFERENCE_DATA (default ../shared). What was measured is not the power of the kernel alone. The board
reports its mean over the last second, sampled every 0.1 s while a kernel repeats: at most 3,000 times six calls in a
captured graph for bf16, 3,000 calls issued by the host for fp8 (inferred from the digits of the means, which tell the
number of samples, and from the source of aiconfigurator's collector). So a reading mixes the kernel with what ran
before: the shapes next to it in the table (bf16) or bf16 of the same shape (fp8) - or nothing, where the collector
paused for more than a second; there kernels of equal time and work read 140 W instead of 450 W. The table does not say
which; per number of rows, columns and kind of depth it is one or the other, chosen by the rows that the fit may see.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from measured_rows import reference_folder

from codesign.cost.arrays import FloatArray, as_floats
from codesign.cost.fit_constants import FOLD_COUNT, SEED, Bounds, Constants, Mask, fit_constants, interval_factors
from codesign.cost.fit_constants import shape_index as index_of
from codesign.cost.kernels import datasheet_rates, gemm, gemm_cost, scheme_math
from codesign.cost.power import HBM_GPU, MEASURED_ON, Load, PowerModel, energy_joule
from codesign.cost.roofline import kernel_time
from codesign.cost.target import Target
from codesign.hardware.file import load_hardware
from codesign.hardware.hardware import Hardware
from codesign.schemes.catalog import parse_scheme

LIBRARY = "trtllm"
SCHEMES = {"bfloat16": "BF16", "fp8_block": "FP8-block"}
EIGHT_BIT = "fp8_block"

# The instrument.
AVERAGING_S = 1.0
SAMPLING_S = 0.1
CALLS_MAX = {"bfloat16": 18_000.0, "fp8_block": 3_000.0}
WINDOW_MAX_S = 1.05
DEEP_K = 51_200.0  # preparing so large weights takes longer than the board's memory
OWN_SHARE_MIN = 0.5
ROUNDS = 4

BOUNDS: Mapping[str, Bounds] = {
    "running": Bounds(0.02, 0.4, 0.09),
    "memory": Bounds(0.1, 3.0, 0.7),
    "compute": Bounds(0.2, 4.0, 1.0),
    "compute_8_bit": Bounds(0.2, 6.0, 1.2),
    "sharpness": Bounds(1.2, 24.0, 8.0, 0.5),
    "cached_share": Bounds(0.2, 1.0, 0.7, 0.3),  # of memory's power, where operands stay in the last-level cache
    "paused": Bounds(0.02, 0.2, 0.09, 0.2),  # share of the span that the board draws while the collector pauses
    "first_share": Bounds(0.01, 0.5, 0.1, 0.5),  # of the kernel in the first sample, from its warm-up
}


@dataclass(frozen=True, slots=True)
class Readings:
    """The measured rows. `memory` and `compute` are loads per second of the kernel; `before` is the bf16 row before."""

    frame: pd.DataFrame
    watt: FloatArray
    memory: FloatArray
    compute: FloatArray
    cached: Mask
    narrow: Mask
    before: npt.NDArray[np.intp]
    sample_count: npt.NDArray[np.intp]
    shape: npt.NDArray[np.intp]
    stretch: npt.NDArray[np.intp]


@functools.cache
def machine() -> Hardware:
    """Return the machine that was measured."""
    return load_hardware(MEASURED_ON)


def cache_bytes() -> float:
    """Return the capacity of its last-level cache."""
    cache = machine().cache
    return cache.capacity_bytes if cache else 0.0


def read_power() -> Readings:
    """Return the measured table."""
    frame = pd.read_parquet(reference_folder() / "measured" / "gemm_power_h200.parquet").reset_index(drop=True)
    seconds = frame["latency_ms"].to_numpy(float) / 1e3
    memory_s, compute_s, moved = loads(frame)
    m, n, k = (frame[name].to_numpy(float) for name in ("m", "n", "k"))
    window_s = np.minimum(WINDOW_MAX_S, frame["scheme"].map(CALLS_MAX).to_numpy(float) * seconds)
    return Readings(
        frame=frame.assign(measured_s=seconds),
        watt=frame["power_w"].to_numpy(float),
        memory=memory_s / seconds,
        compute=compute_s / seconds,
        cached=moved < cache_bytes(),
        narrow=(frame["scheme"] == EIGHT_BIT).to_numpy(),
        before=_before(frame),
        sample_count=np.floor(window_s / SAMPLING_S).astype(np.intp) + 1,
        shape=index_of(n, k),
        stretch=index_of(m, n, (k >= DEEP_K).astype(float)),
    )


def loads(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return seconds at the sustained rates of memory and of arithmetic, and bytes, of every row."""
    hardware = machine()
    memory_s, compute_s, moved = (np.zeros(len(frame)) for _ in range(3))
    for name, rows in frame.groupby("scheme").indices.items():
        scheme = parse_scheme(SCHEMES[str(name)])
        math_dtype, quantizes = scheme_math(scheme, Target(hardware, LIBRARY))
        sizes = (frame[column].to_numpy(float)[rows] for column in ("m", "n", "k"))
        cost = gemm_cost(scheme, quantizes, *sizes)
        time = kernel_time(cost, datasheet_rates(hardware, math_dtype))
        memory_s[rows], compute_s[rows], moved[rows] = time.memory_s, time.compute_s, cost.bytes
    return memory_s, compute_s, moved


def _before(frame: pd.DataFrame) -> npt.NDArray[np.intp]:
    """Return the row of what ran before: bf16 of the same shape; for bf16 (and where there is none) the row itself."""
    rows = np.arange(len(frame))
    keys = ["m", "n", "k"]
    first = frame.assign(row=rows)[frame["scheme"] == "bfloat16"].set_index(keys)["row"]
    found = first.reindex(pd.MultiIndex.from_frame(frame[keys])).to_numpy(float)
    return np.where(np.isnan(found), rows, found).astype(np.intp)


def model_of(constants: Constants) -> PowerModel:
    """Return the constants as a power model without interval."""
    named = {name: constants[name] for name in ("running", "memory", "compute", "compute_8_bit", "sharpness")}
    return PowerModel(**named, low_factor=1.0, high_factor=1.0)


def kernel_watt(constants: Constants, rows: Readings) -> FloatArray:
    """Return what the board draws once only the kernel runs; operands that fit into the cache are read from there."""
    model = model_of(constants)
    memory = rows.memory * np.where(rows.cached, constants["cached_share"], 1.0)
    compute = rows.compute * np.where(rows.narrow, model.compute_8_bit / model.compute, 1.0)
    return energy_joule(model, machine().power, as_floats(1.0), Load(compute, memory))


def own_share(constants: Constants, rows: Readings) -> FloatArray:
    """Return the share of the kernel itself in its reading: the mean over samples of a one-second average."""
    samples = np.arange(rows.sample_count.max())
    shares = np.minimum(1.0, constants["first_share"] + SAMPLING_S / AVERAGING_S * samples)
    means: FloatArray = np.cumsum(shares) / (samples + 1.0)
    return means[rows.sample_count - 1]


def reading_watt(constants: Constants, rows: Readings, loaded: Mask) -> FloatArray:
    """Return what the instrument shows; `loaded` says where the collector did not pause before."""
    power = machine().power
    watt, share = kernel_watt(constants, rows), own_share(constants, rows)
    paused_watt = power.idle_watt + (power.limit_watt - power.idle_watt) * constants["paused"]
    return share * watt + (1.0 - share) * np.where(loaded, watt[rows.before], paused_watt)


def loaded_rows(constants: Constants, rows: Readings, seen: Mask) -> Mask:
    """Return where the collector did not pause, decided for each stretch of the table by its `seen` rows."""
    misses = [np.abs(np.log(reading_watt(constants, rows, np.full(seen.shape, state)) / rows.watt)) for state in (0, 1)]
    gain = np.minimum(misses[0], 0.5) - np.minimum(misses[1], 0.5)
    by_stretch = np.bincount(rows.stretch[seen], gain[seen], rows.stretch.max() + 1)
    loaded: Mask = (by_stretch > 0.0)[rows.stretch]
    return loaded


def fit_power(rows: Readings, seen: Mask) -> tuple[dict[str, float], Mask]:
    """Return the constants fitted on the `seen` rows, and where the collector did not pause."""
    constants = {name: bounds.usual for name, bounds in BOUNDS.items()}
    for _ in range(ROUNDS):
        loaded = loaded_rows(constants, rows, seen)
        constants, _ = fit_constants(
            BOUNDS, lambda c, loaded=loaded: reading_watt(c, rows, loaded)[seen], rows.watt[seen]
        )
    return constants, loaded_rows(constants, rows, seen)


def settled_rows(constants: Constants, rows: Readings, loaded: Mask) -> Mask:
    """Return where the reading is of the kernel itself, or of the same kernel at neighbouring shapes."""
    return loaded & (~rows.narrow | (own_share(constants, rows) >= OWN_SHARE_MIN))


def folds(index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return a fold for every row, equal for equal `index`."""
    fold: npt.NDArray[np.intp] = (np.random.default_rng(SEED).permutation(index.max() + 1) % FOLD_COUNT)[index]
    return fold


def power_rows(settled_only: bool = True) -> pd.DataFrame:
    """Return measured and predicted watts, every row predicted by a fit that saw no row of its (n, k).

    `reading_w` is the prediction seen through the instrument; `settled` marks readings that are of the kernel.
    """
    rows = read_power()
    fold = folds(rows.shape)
    watt, reading, low, high = (np.zeros_like(rows.watt) for _ in range(4))
    settled = np.zeros(len(fold), dtype=bool)
    for held_out in range(FOLD_COUNT):
        test = fold == held_out
        constants, loaded = fit_power(rows, ~test)
        predicted, of_kernel = kernel_watt(constants, rows), settled_rows(constants, rows, loaded)
        low_factor, high_factor = interval_factors((rows.watt / predicted)[~test & of_kernel])
        watt[test], reading[test] = predicted[test], reading_watt(constants, rows, loaded)[test]
        low[test], high[test] = predicted[test] * low_factor, predicted[test] * high_factor
        settled[test] = of_kernel[test]
    limit_watt = machine().power.limit_watt
    named = rows.frame[["scheme", "m", "n", "k", "measured_s"]].assign(
        measured_w=rows.watt, predicted_w=watt, low_w=low, high_w=np.minimum(high, limit_watt), reading_w=reading,
        settled=settled,
    )  # fmt: skip
    return named[settled].reset_index(drop=True) if settled_only else named


def error_fraction(predicted: "pd.Series[float] | FloatArray", measured: "pd.Series[float]") -> float:
    """Return the mean absolute relative error."""
    return float(np.mean(np.abs(np.asarray(predicted) / measured.to_numpy() - 1.0)))


def print_errors(table: pd.DataFrame) -> None:
    """Print held-out errors by scheme and size class, and how many readings the interval holds."""
    settled = table[table["settled"]]
    for name, group in (("all", settled), *settled.groupby("scheme")):
        inside = ((group["measured_w"] >= group["low_w"]) & (group["measured_w"] <= group["high_w"])).mean()
        miss = np.abs(group["predicted_w"] / group["measured_w"] - 1.0)
        print(
            f"settled readings, {name!s:9} {len(group):5} rows: MAPE {miss.mean():.1%}, median {miss.median():.1%}, "
            f"p90 {miss.quantile(0.9):.1%}, interval holds {inside:.0%}"
        )
    weights = pd.cut(settled["n"] * settled["k"], [0, 4e6, 16e6, 64e6, 256e6, np.inf])
    tokens = pd.cut(settled["m"], [0, 4, 16, 64, 256, 1024, np.inf])
    for title, classes in (("n k", weights), ("m", tokens)):
        for (scheme, size), group in settled.groupby(["scheme", classes], observed=True):
            error = error_fraction(group["predicted_w"], group["measured_w"])
            bias = float((group["predicted_w"] / group["measured_w"]).median() - 1.0)
            print(f"  {scheme:9} {title} in {size!s:26} {len(group):4} rows: MAPE {error:.1%}, median bias {bias:+.1%}")
    for scheme, group in table.groupby("scheme"):
        seen = error_fraction(group["reading_w"], group["measured_w"])
        raw = error_fraction(group["predicted_w"], group["measured_w"])
        print(f"all readings, {scheme:9}: MAPE {seen:.1%} seen through the instrument, {raw:.1%} without")


def print_with_predicted_time(table: pd.DataFrame, cached_share: float) -> None:
    """Print the error of power and energy where the time is predicted too, as in a captured step."""
    target = Target(machine(), LIBRARY)
    for name, group in table[table["settled"]].groupby("scheme"):
        sizes = (group[column].to_numpy(float) for column in ("m", "n", "k"))
        kernel = gemm(target, parse_scheme(SCHEMES[str(name)]), *sizes, in_step=True)
        load = Load(kernel.power_load.compute_s, kernel.power_load.memory_s * _memory_share(group, cached_share))
        joule = energy_joule(HBM_GPU, target.hardware.power, kernel.predicted_s, load)
        power_error = error_fraction(joule / kernel.predicted_s, group["measured_w"])
        energy_error = error_fraction(joule, group["measured_w"] * group["measured_s"])
        print(f"time predicted too, {name!s:9}: power {power_error:.1%}, energy {energy_error:.1%}")


def _memory_share(rows: pd.DataFrame, cached_share: float) -> FloatArray:
    *_, moved = loads(rows)
    return np.where(moved < cache_bytes(), cached_share, 1.0)


def print_other_splits(rows: Readings) -> None:
    """Print the error where whole numbers of rows (m) are held out; what is loaded is taken from all rows."""
    everything = np.ones_like(rows.narrow)
    constants, loaded = fit_power(rows, everything)
    settled = settled_rows(constants, rows, loaded)
    predicted = np.zeros_like(rows.watt)
    fold = folds(index_of(rows.frame["m"].to_numpy(float)))
    for held_out in range(FOLD_COUNT):
        test = fold == held_out
        by_others, _ = fit_power(rows, ~test)
        predicted[test] = kernel_watt(by_others, rows)[test]
    miss = np.abs(predicted / rows.watt - 1.0)[settled]
    print(f"whole m held out, settled readings: MAPE {miss.mean():.1%}, median {np.median(miss):.1%}")


def main() -> None:
    """Print constants, interval factors and errors."""
    rows = read_power()
    constants, loaded = fit_power(rows, np.ones_like(rows.narrow))
    print({name: float(f"{value:.3g}") for name, value in constants.items()}, f"loaded: {loaded.mean():.0%}")
    table = power_rows(settled_only=False)
    settled = table[table["settled"]]
    print("interval factors:", interval_factors((settled["measured_w"] / settled["predicted_w"]).to_numpy()))
    print_errors(table)
    print_with_predicted_time(table, constants["cached_share"])
    print_other_splits(rows)
    print("shipped constants:", HBM_GPU)


if __name__ == "__main__":
    main()
