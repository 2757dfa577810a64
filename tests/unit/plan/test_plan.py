"""Plans of a small model on the round machine: laws, explanations, files."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import round_hardware, small_model

import codesign
from codesign.errors import InfeasibleError, InputError
from codesign.plan.file import read_plan, write_plan
from codesign.plan.present import footnote, group_rows, headline, merged_groups, total_rows

HARDWARE = round_hardware(launch_overhead_s=2e-6)
MODEL = replace(small_model(), name="llama-7b")
DEFAULT = codesign.Setting()


def planned(hardware=HARDWARE, model=MODEL, setting=DEFAULT, **options):
    return codesign.plan(hardware, model, setting, **options)


def test_the_verdict_names_scheme_gain_memory_and_loss():
    plan = planned()
    assert plan.verdict.startswith("Run W4A16-g128 ")
    for words in ("decode speed of BF16", "prefill speed", "it fits", "perplexity +"):
        assert words in plan.verdict


def test_totals_are_the_sum_of_the_groups_and_the_rest():
    plan = planned()
    groups_s = sum(group.decode_s.value for group in plan.groups)
    assert groups_s < plan.totals.tpot_s.value
    weights = sum(group.memory_bytes for group in plan.groups)
    assert weights <= plan.totals.memory.weight_bytes <= weights * 1.01
    assert plan.loss_nats.value == pytest.approx(sum(group.loss_nats.value for group in plan.groups))
    assert plan.loss_nats.value <= 0.05


def test_intervals_contain_their_values():
    plan = planned()
    for totals in (plan.totals, plan.baseline):
        for name in ("ttft_s", "tpot_s", "tokens_per_s", "energy_per_token_joule", "usd_per_million_tokens"):
            one = getattr(totals, name)
            assert one.low <= one.value <= one.high, name
            assert one.origin == "datasheet"


def test_the_gain_shrinks_from_the_ideal_to_the_predicted_one():
    plan = planned()
    steps = plan.decode_gain_steps
    assert steps[0].gain == pytest.approx(4.0)
    assert steps[2].gain == pytest.approx(steps[1].gain / 1.03, rel=0.03)
    whole = plan.baseline.tpot_s.value / plan.totals.tpot_s.value
    assert steps[-1].gain == pytest.approx(whole, rel=1e-6)
    prefill = plan.baseline.ttft_s.value / plan.totals.ttft_s.value
    assert plan.prefill_gain_steps[-1].gain == pytest.approx(prefill, rel=1e-6)


def test_break_even_is_where_the_sign_changes():
    plan = planned()
    one = next(row for row in plan.break_even if row.scheme == "W4A16-g128")
    for batch, faster in ((one.slower_from_batch - 1, True), (one.slower_from_batch, False)):
        setting = codesign.Setting(batch=batch)
        names = ("BF16", "W4A16-g128")
        sixteen, four = (codesign.predict(HARDWARE, MODEL, name, setting).tpot_s.value for name in names)
        assert (four < sixteen) is faster


def test_a_scheme_without_published_loss_is_never_chosen_unless_allowed():
    wanted = codesign.Setting(schemes=("W2A16-g128",))
    plan = planned(setting=wanted, objective="memory")
    assert {group.scheme for group in plan.groups} == {"BF16"}
    assert any(row.scheme == "W2A16-g128" and "unknown" in row.reason for row in plan.refused)
    forced = planned(setting=replace(wanted, allow_unknown_quality=True), objective="memory")
    assert "W2A16-g128" in {group.scheme for group in forced.groups}
    assert forced.loss_nats is None
    assert "its quality loss is unknown" in forced.verdict


@settings(max_examples=15, deadline=None)
@given(st.floats(0.001, 0.2), st.floats(1.0, 4.0))
def test_a_looser_loss_is_never_slower(loss_nats, factor):
    tight, loose = (planned(budgets={"quality": limit}) for limit in (loss_nats, loss_nats * factor))
    assert loose.totals.tpot_s.value <= tight.totals.tpot_s.value * (1 + 1e-9)


@settings(max_examples=10, deadline=None)
@given(st.floats(1.0, 4.0))
def test_a_faster_memory_is_never_slower(factor):
    faster = replace(HARDWARE, memory=replace(HARDWARE.memory, bandwidth_bytes_per_s=2e12 * factor))
    assert planned(faster).totals.tpot_s.value <= planned().totals.tpot_s.value


@pytest.mark.parametrize(
    ("objective", "field"),
    [("tpot", "tpot_s"), ("ttft", "ttft_s"), ("energy", "energy_per_token_joule"), ("cost", "usd_per_million_tokens")],
)
def test_each_objective_is_best_at_its_own(objective, field):
    plans = {name: planned(objective=name) for name in ("tpot", "ttft", "memory", "quality", "energy", "cost")}
    best = getattr(plans[objective].totals, field).value
    assert all(best <= getattr(plan.totals, field).value * (1 + 1e-6) for plan in plans.values())


def test_least_memory_and_least_loss():
    least = planned(objective="memory").totals.memory.total_bytes
    assert least <= planned().totals.memory.total_bytes
    assert planned(objective="quality").loss_nats.value == 0.0
    assert planned(objective="throughput").totals.tokens_per_s.value >= planned().totals.tokens_per_s.value * (1 - 1e-9)


def test_budgets_hold():
    limit = planned(objective="memory").totals.memory.total_bytes * 1.2
    plan = planned(budgets={"memory": limit, "quality": 0.5})
    assert plan.totals.memory.total_bytes <= limit


def test_infeasible_says_what_would_do():
    with pytest.raises(InfeasibleError, match="memory is limited to"):
        planned(budgets={"memory": 1e6})


def test_the_front_runs_between_the_two_objectives():
    plan = planned(pareto=("tpot", "quality"))
    firsts = [point.first for point in plan.pareto.points]
    seconds = [point.second for point in plan.pareto.points]
    assert firsts == sorted(firsts)
    assert seconds == sorted(seconds, reverse=True)
    assert len(firsts) >= 3


def test_more_gpus_need_the_links():
    one, four = planned(), planned(setting=codesign.Setting(gpu_count=4))
    assert four.totals.ttft_s.value < one.totals.ttft_s.value
    assert four.capacity_bytes == 4 * one.capacity_bytes
    assert four.decode_gain_steps[-1].cause == "links between GPUs"


def test_a_context_beyond_the_model_is_a_warning():
    plan = planned(setting=codesign.Setting(prompt_tokens=4000, output_tokens=1000))
    assert "was made for 4,096 tokens" in plan.warnings[0]


def test_one_measured_anchor_narrows_the_interval():
    unmeasured = small_model()
    anchor = codesign.Setting(anchor="W4A16-g128:rtn=0.05")
    wide, narrow = planned(model=unmeasured), planned(model=unmeasured, setting=anchor)
    assert narrow.loss_nats.high / narrow.loss_nats.low < wide.loss_nats.high / wide.loss_nats.low
    with pytest.raises(InputError, match="is not SCHEME:METHOD=NATS"):
        planned(setting=codesign.Setting(anchor="W4A16-g128"))


def test_plans_round_trip_through_their_file(tmp_path):
    plan = planned(pareto=("memory", "quality"), setting=codesign.Setting(kv="auto"))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "this codesign reads 1"),
        ({"format_version": "1"}, "this codesign reads 1"),
        ({"groups": 3}, "groups: '3' is not a list"),
        ({"verdcit": "x"}, 'unknown key "verdcit"'),
        ({"fits": "yes"}, "fits: 'yes' is not true or false"),
    ],
)
def test_a_damaged_plan_is_refused(tmp_path, change, message):
    path = tmp_path / "plan.json"
    write_plan(planned(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_plan(path)


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"format_version": null}'])
def test_what_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a plan"):
        read_plan(path)


def test_equal_blocks_share_a_row():
    plan = planned()
    merged, single = group_rows(plan, every_group=False), group_rows(plan, every_group=True)
    assert len(single.rows) == len(plan.groups)
    assert len(merged.rows) < len(single.rows)
    labels = [label for label, _ in merged_groups(plan.groups, every_group=False)]
    assert labels[-1] == "head"
    assert any("-" in label for label in labels)


def test_the_baseline_that_does_not_fit_is_marked():
    tight = round_hardware(memory=replace(HARDWARE.memory, capacity_bytes=1.4 * 2**30))
    plan = planned(tight)
    assert plan.fits
    assert not plan.baseline_fits
    assert "does not fit" in total_rows(plan).headers[2]
    assert "16 bits needs" in plan.verdict


def test_head_and_footnote():
    plan = planned(setting=codesign.Setting(gpu_count=2))
    assert headline(plan).startswith("llama-7b on 2 x round, vllm kernels")
    assert "proven optimal" in footnote(plan)
