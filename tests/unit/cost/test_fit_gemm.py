import numpy as np
import pytest
from machines import round_hardware

from codesign.cost.fit_constants import interval_factors
from codesign.cost.fit_gemm import GemmRows, fit_gemm
from codesign.cost.gemm_time import gemm_constants_problem, gemm_seconds
from codesign.errors import InputError
from codesign.schemes.catalog import parse_scheme

BF16 = parse_scheme("BF16")
TRUTH = {
    "fixed_s": 6e-6,
    "bandwidth_fraction": 0.7,
    "compute_fraction": 0.75,
    "k_latency_cycles": 1.0,
    "load_bytes_per_cycle": 300.0,
    "tile_overhead_s": 1e-6,
    "wave_fraction": 0.3,
    "split_s": 3e-6,
    "overlap_exponent": 3.0,
}
RNG = np.random.default_rng(3)
SHAPES = RNG.choice([512, 1024, 2048, 4096, 8192, 12288], size=(16, 2)).astype(float)
ROWS_OF_M = np.array([1.0, 16, 64, 128, 512, 4096])


def measured(noise: float = 0.03) -> GemmRows:
    m = np.tile(ROWS_OF_M, len(SHAPES))
    n, k = (np.repeat(SHAPES[:, column], len(ROWS_OF_M)) for column in (0, 1))
    true_s = gemm_seconds(TRUTH, round_hardware(), BF16, m, n, k).predicted_s
    return GemmRows(m, n, k, true_s * np.exp(np.random.default_rng(5).normal(0, noise, len(m))))


@pytest.fixture(scope="module")
def calibration():
    return fit_gemm(measured(), round_hardware(), BF16)


def errors(calibration, rows: GemmRows) -> np.ndarray:
    predicted_s = gemm_seconds(calibration.constants, round_hardware(), BF16, rows.m, rows.n, rows.k).predicted_s
    return np.abs(predicted_s / rows.seconds - 1)


def test_the_fit_predicts_what_it_has_not_seen(calibration):
    m, n, k = np.array([1.0, 32, 256, 2048]), np.full(4, 6144.0), np.full(4, 5120.0)
    unseen = GemmRows(m, n, k, gemm_seconds(TRUTH, round_hardware(), BF16, m, n, k).predicted_s)
    assert errors(calibration, unseen).max() < 0.1
    assert gemm_constants_problem(calibration.constants) is None


def test_the_calibration_says_what_it_was_fitted_on(calibration):
    assert calibration.sample_count == len(measured().m)
    assert calibration.fit_range["m"] == (1.0, 4096.0)
    assert 0.01 < calibration.error_fraction < 0.08
    assert 0.9 < calibration.low_factor < 1.0 < calibration.high_factor < 1.1


def test_the_order_of_the_rows_does_not_matter(calibration):
    rows = measured().take(np.random.default_rng(1).permutation(len(measured().m)))
    assert fit_gemm(rows, round_hardware(), BF16) == calibration


def test_outliers_hardly_move_the_fit():
    rows = measured()
    spoiled = rows.seconds.copy()
    spoiled[::20] *= 10
    fitted = fit_gemm(GemmRows(rows.m, rows.n, rows.k, spoiled), round_hardware(), BF16)
    assert np.median(errors(fitted, rows)) < 0.05


@pytest.mark.parametrize("name", ["W4A16-g128", "W8A8"])
def test_quantized_schemes_are_fitted_from_twelve_points(name):
    rows = measured().take(np.arange(0, 96, 8))
    fitted = fit_gemm(rows, round_hardware(), parse_scheme(name))
    assert fitted.sample_count == 12
    assert gemm_constants_problem(fitted.constants) is None


def changed(**columns: np.ndarray) -> GemmRows:
    rows = measured()
    given = {"m": rows.m, "n": rows.n, "k": rows.k, "seconds": rows.seconds} | columns
    return GemmRows(**given)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (measured().take(np.arange(11)), "11 points are too few"),
        (changed(m=np.zeros(96)), "m: a value is not within 1"),
        (changed(k=np.full(96, np.nan)), "k: a value is not within 1"),
        (changed(seconds=np.full(96, 1e9)), "seconds: a value is not within"),
        (changed(seconds=np.full(96, np.inf)), "seconds: a value is not within"),
        (changed(n=np.ones(3)), "differ in length"),
        (changed(m=np.ones(96), n=np.ones(96), k=np.ones(96)), "about the same size"),
    ],
)
def test_too_little_or_absurd_data_is_refused(rows, words):
    with pytest.raises(InputError, match=words):
        fit_gemm(rows, round_hardware(), BF16)


def test_the_interval_holds_four_fifths_and_always_the_prediction():
    ratios = np.exp(np.random.default_rng(0).normal(0, 0.1, 1000))
    low, high = interval_factors(ratios)
    assert np.mean((ratios >= low) & (ratios <= high)) == pytest.approx(0.8, abs=0.01)
    assert interval_factors(np.full(20, 2.0)) == (1.0, 2.0)
