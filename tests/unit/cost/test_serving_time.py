import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.cost.arrays import as_floats
from codesign.cost.fit_serving import ServingRows, fit_serving_tpot, fit_serving_ttft
from codesign.cost.serving_time import tpot_constants_problem, tpot_seconds, ttft_constants_problem, ttft_seconds
from codesign.errors import InputError

TPOT = {"interruption_share": 0.9}
TTFT = {"host_request_s": 0.02, "prompts_waited": 2.0, "wave_share": 0.15}
times = st.floats(1e-4, 10.0)
counts = st.integers(1, 1024)


def tpot(decode_s, prefill_s, in_flight, output_tokens) -> float:
    return float(tpot_seconds(TPOT, *(as_floats(x) for x in (decode_s, prefill_s, in_flight, output_tokens))))


def ttft(prefill_s, in_flight) -> float:
    return float(ttft_seconds(TTFT, as_floats(prefill_s), as_floats(in_flight)))


@given(times, times, counts, counts)
def test_more_requests_never_help_the_others(decode_s, prefill_s, in_flight, output_tokens):
    assert tpot(decode_s, prefill_s, in_flight + 1, output_tokens) >= tpot(
        decode_s, prefill_s, in_flight, output_tokens
    )
    assert ttft(prefill_s, in_flight + 1) >= ttft(prefill_s, in_flight)


@given(times, times, counts)
def test_a_request_alone_waits_for_nobody(decode_s, prefill_s, output_tokens):
    assert tpot(decode_s, prefill_s, 1, output_tokens) == decode_s
    assert ttft(prefill_s, 1) == pytest.approx(0.02 + prefill_s)


def test_long_answers_are_hardly_interrupted():
    assert tpot(0.01, 0.1, 32, 8192) < 0.0105
    assert tpot(0.01, 0.1, 32, 64) > 0.05


def test_constants_are_checked():
    assert tpot_constants_problem(TPOT) is None
    assert ttft_constants_problem(TTFT) is None
    assert "missing wave_share" in str(ttft_constants_problem({"host_request_s": 0.1, "prompts_waited": 1.0}))


def runs(formula) -> ServingRows:
    rng = np.random.default_rng(7)
    prefill_s, decode_s = rng.uniform(0.02, 0.4, 60), rng.uniform(0.004, 0.03, 60)
    in_flight, output = rng.choice([4.0, 16, 64, 128], 60), rng.choice([128.0, 512, 1024], 60)
    seconds = formula(prefill_s, decode_s, in_flight, output) * np.exp(rng.normal(0, 0.03, 60))
    return ServingRows(prefill_s, decode_s, in_flight, output, seconds, np.arange(60) // 6)


def test_the_schedulers_constants_are_found():
    found = fit_serving_tpot(runs(lambda p, d, n, o: tpot_seconds(TPOT, d, p, n, o)))
    assert found.constants["interruption_share"] == pytest.approx(0.9, rel=0.05)
    assert found.error_fraction < 0.05
    found = fit_serving_ttft(runs(lambda p, d, n, o: ttft_seconds(TTFT, p, n)))
    assert found.constants["wave_share"] == pytest.approx(0.15, rel=0.1)
    assert found.constants["prompts_waited"] == pytest.approx(2.0, rel=0.25)


def test_too_few_or_absurd_runs_are_refused():
    rows = runs(lambda p, d, n, o: p)
    with pytest.raises(InputError, match="too few"):
        fit_serving_tpot(rows.take(np.arange(60) < 5))
    rows.seconds[3] = np.nan
    with pytest.raises(InputError, match="seconds: a value is not within"):
        fit_serving_tpot(rows)
