from dataclasses import replace

import numpy as np
import pytest
from attention_constants import DECODE, PREFILL, SINGLE
from hypothesis import given
from hypothesis import strategies as st
from machines import round_hardware

from codesign.cost.arrays import as_floats
from codesign.cost.attention_time import (
    AttentionShape,
    attention_work,
    decode_constants_problem,
    decode_seconds,
    kv_bytes,
    prefill_constants_problem,
    prefill_seconds,
)

decode_forms = st.sampled_from(
    [DECODE, DECODE | SINGLE, DECODE | SINGLE | {"packed_group_max": 8.0, "regroup_s": 3e-6}]
)
prefill_forms = st.sampled_from([PREFILL, PREFILL | {"packing": 1.0}, PREFILL | {"packing": 2.0}])
small = st.integers(1, 256)
tokens = st.integers(1, 20_000)
kv_head_counts = st.sampled_from([1, 2, 8])
groups = st.sampled_from([1, 4, 16, 64])


def work(hardware, batch, query, kv, kv_heads, group, window=None):
    sizes = (as_floats(size) for size in (batch, query, kv, kv_heads * group, kv_heads, 128))
    return attention_work(hardware, "bf16", AttentionShape(*sizes, window_tokens=window), as_floats(512.0))


def decode(constants, hardware, batch, kv, kv_heads, group) -> float:
    return float(decode_seconds(constants, work(hardware, batch, 1, kv, kv_heads, group)).predicted_s[0])


def prefill(constants, hardware, batch, query, before, kv_heads, group) -> float:
    return float(
        prefill_seconds(constants, work(hardware, batch, query, before + query, kv_heads, group)).predicted_s[0]
    )


@given(decode_forms, small, tokens, kv_head_counts, groups, tokens)
def test_more_sequences_or_cached_tokens_are_never_faster(form, batch, kv, kv_heads, group, more):
    base = decode(form, round_hardware(), batch, kv, kv_heads, group)
    assert decode(form, round_hardware(), batch + more, kv, kv_heads, group) >= base * (1 - 1e-12)
    assert decode(form, round_hardware(), batch, kv + more, kv_heads, group) >= base * (1 - 1e-12)


@given(prefill_forms, small, tokens, tokens, kv_head_counts, groups, tokens)
def test_longer_prompts_are_never_faster(form, batch, query, before, kv_heads, group, more):
    base = prefill(form, round_hardware(), batch, query, before, kv_heads, group)
    for larger in ((batch + more, query, before), (batch, query + more, before), (batch, query, before + more)):
        assert prefill(form, round_hardware(), *larger, kv_heads, group) >= base * (1 - 1e-12)


@given(decode_forms, prefill_forms, small, tokens, kv_head_counts, groups, st.floats(1, 10))
def test_a_better_machine_is_never_slower(decode_form, prefill_form, batch, kv, kv_heads, group, factor):
    machine = round_hardware()
    peaks = {dtype: rate * factor for dtype, rate in machine.peak_flop_per_s.items()}
    memory = replace(machine.memory, bandwidth_bytes_per_s=machine.memory.bandwidth_bytes_per_s * factor)
    decode_s = decode(decode_form, machine, batch, kv, kv_heads, group)
    prefill_s = prefill(prefill_form, machine, batch, kv, 0, kv_heads, group)
    for change in ({"peak_flop_per_s": peaks}, {"memory": memory}, {"boost_clock_hz": 1e9 * factor}):
        better = replace(machine, **change)
        assert decode(decode_form, better, batch, kv, kv_heads, group) <= decode_s * (1 + 1e-12)
        assert prefill(prefill_form, better, batch, kv, 0, kv_heads, group) <= prefill_s * (1 + 1e-12)


def test_a_long_cache_streams_at_the_sustained_bandwidth():
    long = work(round_hardware(), 64, 1, 100_000, 8, 4)
    sustained_s = float(kv_bytes(long)[0]) / (0.9 * round_hardware().memory.bandwidth_bytes_per_s)
    fast_units = DECODE | {"load_bytes_per_cycle": 1e3, "compute_fraction": 1.0}
    assert float(decode_seconds(fast_units, long).predicted_s[0]) == pytest.approx(sustained_s, rel=0.05)


def test_few_long_sequences_are_split_over_the_units():
    unsplit = decode(DECODE | {"split_s": 1e-2}, round_hardware(), 1, 100_000, 1, 8)
    assert decode(DECODE, round_hardware(), 1, 100_000, 1, 8) < unsplit / 4


def test_groups_that_do_not_fit_a_tile_go_to_the_other_kernel():
    slow = DECODE | SINGLE | {"single_fixed_s": 1e-3, "packed_group_max": 8.0}
    machine = round_hardware()
    assert [decode(slow, machine, 1, 100, 2, group) > 1e-3 for group in (1, 4, 8, 16)] == [True, False, False, True]


def test_regrouping_costs_where_batch_and_kv_heads_are_several():
    machine, more = round_hardware(), DECODE | {"regroup_s": 5e-6}
    for batch, kv_heads, group, expected in ((1, 8, 4, 0.0), (4, 1, 4, 0.0), (4, 8, 1, 0.0), (4, 8, 4, 5e-6)):
        added = decode(more, machine, batch, 64, kv_heads, group) - decode(DECODE, machine, batch, 64, kv_heads, group)
        assert added == pytest.approx(expected, abs=1e-12)


def test_packing_pays_for_short_queries_of_large_groups():
    machine = round_hardware()
    never, always = (prefill(form, machine, 64, 1, 2000, 8, 16) for form in (PREFILL, PREFILL | {"packing": 2.0}))
    assert always < never


def test_a_window_bounds_what_a_prompt_attends():
    times = [
        float(prefill_seconds(PREFILL, work(round_hardware(), 4, 16_384, 16_384, 8, 4, window)).predicted_s[0])
        for window in (1024.0, 4096.0, None)
    ]
    assert times == sorted(times)
    assert times[0] < times[2] / 3


def test_a_prompt_of_twice_the_length_costs_four_times_as_much_when_it_is_long():
    one, two = (prefill(PREFILL, round_hardware(), 8, query, 0, 8, 4) for query in (16_384, 32_768))
    assert two / one == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({name: value for name, value in DECODE.items() if name != "split_s"}, "missing split_s"),
        (DECODE | {"single_fixed_s": 1e-6}, "missing single_"),
        (DECODE | {"bogus": 1.0}, "bogus is no constant"),
        (DECODE | {"fixed_s": 0.0}, "fixed_s is 0"),
        (DECODE | {"overlap_exponent": 0.1}, "overlap exponent"),
    ],
)
def test_wrong_decode_constants_are_named(constants, expected):
    assert expected in decode_constants_problem(constants)


def test_right_constants_have_no_problem():
    assert decode_constants_problem(DECODE | SINGLE | {"packed_group_max": 32.0, "regroup_s": 1e-6}) is None
    assert prefill_constants_problem(PREFILL | {"packing": 2.0}) is None


@pytest.mark.parametrize(
    ("change", "expected"), [({"packing": 3.0}, "packing is 3"), ({"wave_fraction": 2.0}, "at most")]
)
def test_wrong_prefill_constants_are_named(change, expected):
    assert expected in prefill_constants_problem(PREFILL | change)


def test_arrays_and_numbers_agree():
    machine = round_hardware()
    many = decode_seconds(DECODE, work(machine, np.array([1.0, 7.0, 64.0]), 1, 3000, 8, 4)).predicted_s
    assert many == pytest.approx([decode(DECODE, machine, batch, 3000, 8, 4) for batch in (1, 7, 64)])
