import numpy as np
import pytest

from codesign import api
from codesign.capacity.replica import Limits, cache_tokens, make_replica
from codesign.capacity.step_table import StepSizes, make_step_table
from codesign.cost.deployment import deploy, uniform_assignment
from codesign.cost.inference import predict_inference, step_parts
from codesign.cost.prediction import add_stages
from codesign.cost.step import Step
from codesign.setting import Setting


def deployment(hw="h100", model="llama-3.1-8b", scheme="BF16", kv="", **more):
    where = deploy(api.load_hardware(hw), api.load_model(model), Setting(**more))
    return where, uniform_assignment(where, api.parse_scheme(scheme), kv)


@pytest.mark.parametrize(
    ("hw", "model", "scheme", "kv", "more"),
    [
        ("h100", "llama-3.1-8b", "BF16", "", {}),
        ("a100", "llama-2-7b", "W4A16-g128", "", {"library": "vllm"}),
        ("h100", "mixtral-8x7b", "FP8", "fp8", {"gpu_count": 4}),
        ("l40s", "gemma-2-9b", "BF16", "", {}),
        ("zen4-2-core", "llama-3.2-1b", "W8A8", "", {"library": "codesign"}),
    ],
)
def test_steps_are_those_of_the_cost_model(hw, model, scheme, kv, more):
    """Decode steps and whole prompts take what a prediction of them says, between knots to 4 %."""
    where, assignment = deployment(hw, model, scheme, kv, **more)
    table = make_step_table(where, assignment, StepSizes(2048, 64, 4096))
    for batch, context in ((1, 16), (1, 1000), (7, 333), (64, 3000)):
        whole = add_stages(step_parts(where, assignment, Step(batch, 1, context)).values()).seconds.value
        assert table.decode(batch, context)[0] == pytest.approx(whole, rel=0.04)
        assert table.mixed_s(batch, context, []) == pytest.approx(table.decode(batch, context)[0])
    for prompt in (16, 300, 2000):
        whole = add_stages(step_parts(where, assignment, Step(1, prompt, prompt)).values()).seconds.value
        assert table.mixed_s(0, 0.0, [(prompt, prompt)]) == pytest.approx(whole, rel=0.04)


def test_a_slope_leads_to_the_next_knot():
    where, assignment = deployment()
    table = make_step_table(where, assignment, StepSizes(512, 8, 2048))
    seconds, slope_s, knot = table.decode(8, 700.0)
    assert table.decode(8, knot)[0] == pytest.approx(seconds + slope_s * (knot - 700.0))
    assert table.decode(8, 1e6)[0] > table.decode(8, 2048)[0]


def test_ends_of_intervals_enclose_the_table():
    where, assignment = deployment("a100", "llama-2-7b", "W4A16-g128")
    low, value, high = (
        make_step_table(where, assignment, StepSizes(256, 16, 1024), end) for end in ("low_s", "predicted_s", "high_s")
    )
    assert np.all(np.array(low.rows_s) <= value.rows_s)
    assert np.all(np.array(value.rows_s) <= high.rows_s)
    assert low.decode(16, 500)[0] < value.decode(16, 500)[0] < high.decode(16, 500)[0]


def test_an_eager_program_holds_steps_up():
    where, assignment = deployment(engine="transformers")
    table = make_step_table(where, assignment, StepSizes(64, 8, 512))
    assert table.decode(1, 100)[0] == predict_inference(where, assignment).tpot_s.value
    assert table.decode(1, 100)[1] == 0.0


def test_stages_of_a_pipeline_pass_hidden_states_on():
    where, assignment = deployment(gpu_count=2)
    one, four = (make_step_table(where, assignment, StepSizes(64, 8, 512), pipeline=n) for n in (1, 4))
    link = where.target.hardware.peer_link
    passed_s = 3 * (link.latency_s + 8 * where.model.hidden * 2 / link.bandwidth_bytes_per_s)
    assert four.decode(8, 100)[0] - one.decode(8, 100)[0] == pytest.approx(passed_s)


def test_the_cache_gets_what_weights_leave():
    """Llama-3.1-8B in BF16 on 80 GB: 0.9 x 80 GB, less 16.06 GB of weights and about 2 GB, over 128 KiB a token."""
    where, assignment = deployment()
    tokens = cache_tokens(where, assignment, 4096, Limits())
    assert tokens == pytest.approx((0.9 * where.capacity_bytes - 16.06e9 - 2e9) / 131072, rel=0.03)
    assert cache_tokens(where, assignment, 4096, Limits(pipeline=2)) > tokens
    where, assignment = deployment(model="llama-3.3-70b")
    assert make_replica(where, assignment, 1000, Limits()) is None
