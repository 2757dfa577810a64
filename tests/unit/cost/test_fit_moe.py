from dataclasses import replace

import numpy as np
import pytest
from machines import round_hardware

from codesign.cost.fit_moe import MoeRows, fit_moe, held_out_index
from codesign.cost.moe_time import MoeShape, moe_constants_problem, moe_seconds
from codesign.errors import InputError
from codesign.schemes.catalog import parse_scheme

BF16 = parse_scheme("BF16")
TRUTH = {
    "fixed_s": 3e-5,
    "expert_s": 4e-8,
    "hit_expert_s": 1e-7,
    "bandwidth_fraction": 0.75,
    "compute_fraction": 0.6,
    "load_bytes_per_cycle": 250.0,
    "tile_overhead_s": 1e-6,
    "overlap_exponent": 2.5,
    "pass_bandwidth_fraction": 0.4,
    "remote_row_fraction": 0.5,
}
TOKENS = np.array([1.0, 8, 64, 512, 4096])
# hidden, intermediate, experts, top_k, matrices
MODELS = ((4096, 14336, 8, 2, 3), (2048, 768, 128, 8, 3), (3072, 1024, 256, 8, 3), (2880, 2880, 128, 4, 3),
          (2048, 5120, 512, 22, 2))  # fmt: skip


def shapes(models=MODELS, skew=0.0) -> MoeShape:
    rows = [
        (tokens, hidden, width / tensor, experts, top_k, skew, matrices, devices)
        for hidden, width, experts, top_k, matrices in models
        for tensor, devices in ((1, 1), (2, 1), (1, 2), (1, 8))
        for tokens in TOKENS
    ]
    return MoeShape(*np.array(rows, dtype=float).T)


def measured(shape: MoeShape, noise: float = 0.03) -> MoeRows:
    true_s = moe_seconds(TRUTH, round_hardware(), BF16, shape).predicted_s
    return MoeRows(shape, true_s * np.exp(np.random.default_rng(5).normal(0, noise, len(true_s))))


@pytest.fixture(scope="module")
def calibration():
    return fit_moe(measured(shapes()), round_hardware(), BF16)


def errors(calibration, rows: MoeRows) -> np.ndarray:
    return np.abs(moe_seconds(calibration.constants, round_hardware(), BF16, rows.shape).predicted_s / rows.seconds - 1)


def test_the_fit_predicts_models_that_it_has_not_seen(calibration):
    unseen = measured(shapes(models=((6144, 16384, 16, 4, 3), (5120, 1536, 160, 6, 3))), noise=0.0)
    assert errors(calibration, unseen).max() < 0.1
    assert moe_constants_problem(calibration.constants) is None


def test_the_calibration_says_what_it_was_fitted_on(calibration):
    assert calibration.sample_count == 100
    assert calibration.fit_range["tokens"] == (1.0, 4096.0)
    assert calibration.fit_range["expert_count"] == (8.0, 512.0)
    assert 0.01 < calibration.error_fraction < 0.1
    assert 0.85 < calibration.low_factor < 1.0 < calibration.high_factor < 1.15


def test_the_order_of_the_rows_does_not_matter(calibration):
    rows = measured(shapes())
    assert fit_moe(rows.take(np.random.default_rng(1).permutation(100)), round_hardware(), BF16) == calibration


def test_outliers_hardly_move_the_fit():
    rows = measured(shapes())
    spoiled = rows.seconds.copy()
    spoiled[::20] *= 10
    assert np.median(errors(fit_moe(MoeRows(rows.shape, spoiled), round_hardware(), BF16), rows)) < 0.05


def test_skewed_rows_with_few_choices_are_left_out(calibration):
    rows, skewed = measured(shapes()), measured(shapes(skew=1.2))
    few = skewed.take(skewed.shape.tokens * skewed.shape.top_k <= skewed.shape.expert_count)
    assert len(few.seconds) > 10
    columns = zip(rows.shape.columns(), few.shape.columns(), strict=True)
    both = MoeRows(
        MoeShape(*(np.concatenate(pair) for pair in columns)), np.concatenate([rows.seconds, 9 * few.seconds])
    )
    assert fit_moe(both, round_hardware(), BF16) == calibration


def test_weight_only_schemes_are_fitted_from_twelve_points():
    rows = measured(shapes()).take(np.arange(0, 96, 8))
    fitted = fit_moe(rows, round_hardware(), parse_scheme("W4A16-g128"))
    assert fitted.sample_count == 12
    assert "dequantized_weights_per_cycle" in fitted.constants
    assert moe_constants_problem(fitted.constants) is None


def test_models_are_held_out_whole_and_divisions_where_there_are_too_few_models():
    assert held_out_index(shapes()).max() + 1 == len(MODELS)
    assert held_out_index(shapes(models=MODELS[:2])).max() + 1 == 8


def changed(**columns: np.ndarray) -> MoeRows:
    rows = measured(shapes())
    seconds = columns.pop("seconds", rows.seconds)
    return MoeRows(replace(rows.shape, **columns), seconds)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (measured(shapes()).take(np.arange(11)), "11 points are too few"),
        (changed(tokens=np.zeros(100)), "tokens: a value is not within 1"),
        (changed(hidden=np.full(100, np.nan)), "hidden: a value is not within 1"),
        (changed(expert_count=np.full(100, 1e6)), "expert_count: a value is not within 1 to 16384"),
        (changed(skew=np.full(100, -1.0)), "skew: a value is not within 0"),
        (changed(top_k=np.full(100, 600.0)), "top_k is larger than expert_count"),
        (changed(expert_parallel=np.full(100, 3.0)), "expert_parallel must divide expert_count"),
        (changed(matrix_count=np.ones(100)), "matrix_count is below 2"),
        (changed(seconds=np.full(100, 1e9)), "seconds: a value is not within"),
        (changed(hidden=np.ones(3)), "differ in length"),
        (changed(skew=np.full(100, 1.2), tokens=np.ones(100)), "points have balanced routing or tokens x top_k"),
        (measured(shapes()).take(np.zeros(20, dtype=np.intp)), "about the same size"),
    ],
)
def test_too_little_or_absurd_data_is_refused(rows, words):
    with pytest.raises(InputError, match=words):
        fit_moe(rows, round_hardware(), BF16)
