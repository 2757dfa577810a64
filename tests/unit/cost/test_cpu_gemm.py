from dataclasses import replace

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.cpu_gemm_time import (
    cpu_gemm_constants_problem,
    cpu_gemm_seconds,
    cpu_gemm_work,
    cpu_state,
    cpu_work_seconds,
)
from codesign.cost.fit import fit_frame
from codesign.cost.fit_cpu_gemm import fit_cpu_gemm
from codesign.cost.fit_gemm import GemmRows
from codesign.cost.sheet import KernelSheet
from codesign.cost.sheet_file import read_sheet, sheet_yaml
from codesign.cost.table import predict_table
from codesign.cost.table_file import kernel_columns
from codesign.errors import InputError
from codesign.hardware.file import load_hardware
from codesign.hardware.threads import with_threads
from codesign.schemes.catalog import parse_scheme

CPU = load_hardware("x86-avx512")
W4 = parse_scheme("W4A16-g128")
CONSTANTS = {
    "fixed_s": 5e-6, "bandwidth_fraction": 0.9, "compute_fraction": 0.8, "unpacked_weights_per_cycle": 20.0,
    "thread_fraction": 0.95, "overlap_exponent": 3.0, "pass_rows": 16.0,
    "few_rows_bandwidth_fraction": 0.6, "few_rows_compute_fraction": 0.2,
}  # fmt: skip
SIZES = st.tuples(st.integers(1, 600), st.integers(1, 400), st.integers(1, 400))


def seconds(m: int, n: int, k: int, threads: int = 8, constants: dict[str, float] = CONSTANTS) -> float:
    sizes = (np.array([float(size)]) for size in (m, 32 * n, 128 * k))
    return float(cpu_gemm_seconds(constants, with_threads(CPU, threads), W4, *sizes).predicted_s[0])


@given(SIZES, SIZES, st.sampled_from([{}, {"few_rows_max": 4.0}, {"few_rows_max": 64.0}]))
def test_more_is_never_faster(one, other, switch):
    smaller, larger = np.minimum(one, other), np.maximum(one, other)
    constants = CONSTANTS | switch
    assert seconds(*smaller, constants=constants) <= seconds(*larger, constants=constants) * (1 + 1e-12)


@given(SIZES, st.integers(1, 7))
def test_another_thread_never_hurts_where_threads_work_well_together(sizes, threads):
    assert seconds(*sizes, threads=threads + 1) <= seconds(*sizes, threads=threads) * (1 + 1e-12)


@given(SIZES)
def test_no_time_is_below_the_roofs(sizes):
    work = cpu_gemm_work(CPU, W4, *(np.array([float(s)]) for s in sizes), cpu_state(CPU, np.array([8.0])))
    time = cpu_work_seconds(CONSTANTS, work)
    assert time.predicted_s >= np.maximum(work.bytes / work.bytes_per_s, work.flop / work.flop_per_s)


def test_passes_unpack_the_weights_again():
    once = {name: value for name, value in CONSTANTS.items() if name != "pass_rows"}
    assert seconds(16, 128, 32) == pytest.approx(seconds(16, 128, 32, constants=once))
    assert seconds(17, 128, 32) > seconds(17, 128, 32, constants=once) * 1.05


@pytest.mark.parametrize(
    ("change", "said"),
    [({"thread_fraction": 1.2}, "thread_fraction at most 1"), ({"overlap_exponent": 0.5}, "overlap_exponent"),
     ({"magic": 1.0}, "magic"), ({"pass_rows": 1e9}, "pass_rows"), ({"few_rows_max": -1.0}, "few_rows_max")],
)  # fmt: skip
def test_constants_that_cannot_be_meant_are_named(change, said):
    assert cpu_gemm_constants_problem(CONSTANTS) is None
    assert said in (cpu_gemm_constants_problem(CONSTANTS | change) or "")


def measured(
    constants: dict[str, float], library_kernel: str = "", gb_per_s: tuple[float, ...] = (0.0,)
) -> pandas.DataFrame:
    """Return what a machine of those constants would measure, with 2 % noise; rows meet the bandwidths in turn."""
    shapes = [(m, n, k, t) for m in (1, 4, 16, 64, 256) for n, k in ((4096, 4096), (11008, 4096), (4096, 11008),
              (1024, 4096), (2048, 2048), (32000, 4096)) for t in (1, 8)]  # fmt: skip
    m, n, k, threads = np.array(shapes, dtype=float).T
    beside = np.resize(gb_per_s, len(m))
    exact = cpu_work_seconds(constants, cpu_gemm_work(CPU, W4, m, n, k, cpu_state(CPU, threads, beside))).predicted_s
    noise = np.random.default_rng(1).normal(1.0, 0.02, len(m))
    return pandas.DataFrame(
        {"hw": CPU.name, "library": "torch", "kernel": library_kernel, "op": "gemm", "scheme": W4.name,
         "m": m, "n": n, "k": k, "threads": threads, "memory_gb_per_s": beside,
         "measured_s": exact * noise}
    )  # fmt: skip


def test_a_fit_predicts_unseen_shapes_of_such_a_machine():
    frame = measured(CONSTANTS)
    rows = GemmRows(*(frame[name].to_numpy() for name in ("m", "n", "k", "measured_s")))
    found = fit_cpu_gemm(rows, cpu_state(CPU, frame["threads"].to_numpy()), CPU, W4)
    assert found.error_fraction < 0.04
    assert found.constants["bandwidth_fraction"] == pytest.approx(0.9, rel=0.1)
    assert found.constants["compute_fraction"] == pytest.approx(0.8, rel=0.1)


def test_a_sheet_from_several_kernels_holds_each_and_the_fastest(tmp_path):
    slow = {name: value for name, value in CONSTANTS.items() if not name.startswith("few_rows")} | {
        "compute_fraction": 0.2, "bandwidth_fraction": 0.3}  # fmt: skip
    frame = pandas.concat([measured(slow, "slow"), measured(CONSTANTS, "quick")], ignore_index=True)
    fit = fit_frame(frame, CPU)
    assert set(fit.calibrations) == {("gemm", key) for key in ("W4A16-g128", "W4A16-g128@slow", "W4A16-g128@quick")}
    assert fit.calibrations["gemm", "W4A16-g128"] == fit.calibrations["gemm", "W4A16-g128@quick"]
    sheet = KernelSheet(CPU.name, "torch", "2.13.0", "2026-11-21", "a test", fit.calibrations)
    path = tmp_path / "sheet.yaml"
    path.write_text(sheet_yaml(sheet))
    predicted = predict_table(kernel_columns(frame), (read_sheet(path),))
    assert set(predicted.reason) == {""}
    assert np.mean(np.abs(predicted.predicted_s / frame["measured_s"] - 1)) < 0.04
    plain = predict_table(kernel_columns(frame.assign(kernel="")), (read_sheet(path),)).predicted_s
    quick = (frame["kernel"] == "quick").to_numpy()
    assert plain[quick] == pytest.approx(predicted.predicted_s[quick])


def test_a_kernel_for_many_rows_alone_does_not_stand_for_its_scheme():
    """It is quicker on the cases that both have measured, but decode never calls it."""
    quicker = CONSTANTS | {"compute_fraction": 0.95, "bandwidth_fraction": 0.99}
    frame = pandas.concat([measured(CONSTANTS, "all"), measured(quicker, "many").query("m >= 64")], ignore_index=True)
    fit = fit_frame(frame, CPU)
    assert fit.calibrations["gemm", "W4A16-g128"] == fit.calibrations["gemm", "W4A16-g128@all"]


def test_threads_of_rows_are_those_that_work():
    frame = measured(CONSTANTS).query("m == 256 and n == 4096 and k == 4096")
    predicted = predict_table(kernel_columns(frame)).predicted_s
    assert predicted[0] == pytest.approx(8 * predicted[1], rel=0.05)  # 1 and 8 threads, arithmetic-bound
    all_cores = predict_table(kernel_columns(frame.assign(threads=np.nan))).predicted_s
    assert all_cores[0] == all_cores[1] == predicted[1]


def test_a_fit_finds_where_a_library_leaves_its_path_for_few_rows_too_late():
    late = CONSTANTS | {"few_rows_compute_fraction": 0.35, "few_rows_max": 64.0}
    del late["pass_rows"]
    found = fit_frame(measured(late), CPU).calibrations["gemm", W4.name]
    assert found.constants["few_rows_max"] == 64.0
    assert found.error_fraction < 0.04


def test_a_fit_takes_the_bandwidth_beside_each_row():
    frame = measured(CONSTANTS, gb_per_s=(20.0, 60.0, 35.0))
    known = fit_frame(frame, CPU).calibrations["gemm", W4.name]
    assert known.error_fraction < 0.04
    assert known.constants["bandwidth_fraction"] == pytest.approx(0.9, rel=0.1)
    unknown = fit_frame(frame.drop(columns="memory_gb_per_s"), CPU).calibrations["gemm", W4.name]
    assert unknown.error_fraction > 2 * known.error_fraction


def test_memory_of_half_the_bandwidth_takes_twice_as_long():
    frame = measured(CONSTANTS).query("m == 1 and n == 32000 and threads == 8")
    fast, slow = (
        predict_table(kernel_columns(frame.assign(memory_gb_per_s=gb_per_s))).predicted_s for gb_per_s in (40.0, 20.0)
    )
    assert slow == pytest.approx(2 * fast, rel=0.02)


def test_too_few_points_are_refused():
    frame = measured(CONSTANTS).head(5)
    rows = GemmRows(*(frame[name].to_numpy() for name in ("m", "n", "k", "measured_s")))
    with pytest.raises(InputError, match="too few"):
        fit_cpu_gemm(rows, cpu_state(CPU, frame["threads"].to_numpy()), CPU, W4)


def test_a_thread_count_beyond_the_cores_changes_nothing():
    assert with_threads(CPU, 100) == replace(CPU, peak_flop_per_s=with_threads(CPU, 100).peak_flop_per_s)
