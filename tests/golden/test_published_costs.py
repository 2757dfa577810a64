"""Published or hand-worked figures that the cost formulas must reproduce; the source stands beside each number."""

import pytest
from machines import round_hardware

import codesign
from codesign.cost.arrays import as_floats
from codesign.cost.deployment import Assignment, Deployment
from codesign.cost.inference import step_parts
from codesign.cost.kernels import gemm
from codesign.cost.memory import kv_bytes, total_weight_bytes
from codesign.cost.step import Step
from codesign.cost.target import Target
from codesign.cost.workload import Workload
from codesign.model.groups import fused_groups
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import data_bytes_per_token, parse_kv
from codesign.schemes.storage import weight_bytes

GIB = 2**30
TWO_TB_PER_S = Target(round_hardware(), "vllm")


def weights_gb(model_name: str, scheme_name: str) -> float:
    model, scheme = codesign.load_model(model_name), parse_scheme(scheme_name)
    groups = fused_groups(model)
    return total_weight_bytes(model, groups, (scheme,) * len(groups), scheme) / 1e9


@pytest.mark.parametrize(
    ("bits", "scheme_name", "expected_gb"), [(32, "FP32", 28), (16, "BF16", 14), (8, "W8A16", 7), (4, "W4A16", 3.5)]
)
def test_a_7b_model_at_each_width(bits, scheme_name, expected_gb):
    """7e9 weights x bits / 8; user-supplied table. Scales of whole rows add less than 0.1 %."""
    n, k = 70_000, 100_000
    assert weight_bytes(parse_scheme(scheme_name), n, k) / 1e9 == pytest.approx(expected_gb, rel=1e-3)


def test_a_7b_model_makes_143_tokens_per_second_at_2_tb_per_s():
    """14 GB / 2 TB/s = 7 ms = 143 tokens/s; user-supplied."""
    time = gemm(TWO_TB_PER_S, parse_scheme("BF16"), as_floats(1), as_floats(70_000), as_floats(100_000))
    assert 1 / float(time.predicted_s) == pytest.approx(143, rel=0.005)


def test_llama_2_70b_at_2_tb_per_s():
    """FP16 140 GB -> 70 ms, INT4 35 GB -> 17.5 ms, 4.0x ideal; user-supplied, counting 70e9 weights."""
    sixteen, four = (
        gemm(TWO_TB_PER_S, parse_scheme(name), as_floats(1), as_floats(700_000), as_floats(100_000)).time.memory_s
        for name in ("BF16", "W4A16")
    )
    assert float(sixteen) == pytest.approx(70e-3, rel=1e-3)
    assert float(four) == pytest.approx(17.5e-3, rel=1e-3)
    assert float(sixteen / four) == pytest.approx(4.0, rel=1e-3)
    assert weights_gb("llama-2-70b", "BF16") == pytest.approx(137.95, rel=1e-3)  # 68,976,648,192 parameters x 2


def test_marlin_ideal_speed_up_of_group_128():
    """README of IST-DASLab/marlin: at best 3.87x for 4 bits with 16-bit scales per 128."""
    n = k = 16384
    ratio = weight_bytes(parse_scheme("BF16"), n, k) / weight_bytes(parse_scheme("W4A16-g128"), n, k)
    assert ratio == pytest.approx(3.87, abs=0.01)


def test_gpt_fast_moves_13_32_gb_per_token():
    """README of pytorch-labs/gpt-fast, Llama-2-7B bf16, batch 1: 1397.31 GB/s / 104.9 tokens/s.

    About 208 tokens are cached. Element-wise traffic stays in cache there and is left out.
    """
    model, bf16 = codesign.load_model("llama-2-7b"), parse_scheme("BF16")
    groups = fused_groups(model)
    assignment = Assignment(groups, (bf16,) * len(groups), bf16, parse_kv("bf16"))
    where = Deployment(model, TWO_TB_PER_S, Workload(1, 104, 208))
    parts = step_parts(where, assignment, Step(1, 1, 208.0))
    moved_gb = (parts["weights"].memory_s + parts["attention"].memory_s) * 2e12 / 1e9
    assert moved_gb == pytest.approx(1397.31 / 104.9, rel=1e-3)


def test_llama_2_7b_cache():
    """524,288 bytes per token in FP16 (2 x 32 x 4,096 x 2), half in INT8, 1 GiB at 2,048; user-supplied."""
    model = codesign.load_model("llama-2-7b")
    assert kv_bytes(model, parse_kv("fp16"), 1, 1) == 524_288
    assert 2 * data_bytes_per_token(parse_kv("int8"), model.kv_elements_per_token) == 524_288
    assert kv_bytes(model, parse_kv("fp16"), 1, 2048) == GIB
