"""Kernel sheets of the user's own: they go before the shipped ones, where they hold what is asked."""

from dataclasses import replace

import numpy as np
import pytest
from attention_constants import DECODE

import codesign
from codesign.cost.arrays import as_floats
from codesign.cost.attention import attention
from codesign.cost.attention_time import AttentionShape
from codesign.cost.calibration import choose, own_sheets
from codesign.cost.collectives import collective
from codesign.cost.origin import Origin
from codesign.cost.sheet import Calibration, KernelSheet, sheet_title
from codesign.cost.sheet_file import load_sheet, sheet_yaml
from codesign.cost.table import predict_table
from codesign.cost.target import Target
from codesign.schemes.kv import parse_kv

A100 = codesign.load_hardware("a100")
RING = {
    "fixed_s": 1e-3,
    "hop_s": 1e-6,
    "bandwidth_fraction": 0.8,
    "bandwidth_growth": 0.1,
    "ramp_s": 3e-5,
    "ramp_half_s": 1e-5,
}


def sheet(key: tuple[str, str], constants: dict[str, float], library: str = "vllm", hardware: str = A100.name):
    one = Calibration(constants, 0.9, 1.1, 20, 0.05, {})
    return KernelSheet(hardware, library, "unknown", "2026-11-21", "me", {key: one})


def gemm_sheet(factor: float, **of: str) -> KernelSheet:
    """Return a sheet of the shipped BF16 constants with another fixed time."""
    shipped = load_sheet(A100.name, "vllm").calibrations["gemm", "BF16"].constants
    return sheet(("gemm", "BF16"), {**shipped, "fixed_s": shipped["fixed_s"] * factor}, **of)


def chosen(*sheets: KernelSheet, library: str = "vllm", hardware=A100):
    return choose(Target(hardware, library, sheets=sheets), "gemm", [["BF16"]], lambda _, __: True)


def test_an_own_sheet_goes_before_the_shipped_one_and_the_first_before_the_second():
    shipped, double, triple = chosen(), gemm_sheet(2.0), gemm_sheet(3.0)
    for sheets, factor in (((double,), 2.0), ((double, triple), 2.0), ((triple, double), 3.0)):
        found = chosen(*sheets)
        assert found.constants["fixed_s"] == pytest.approx(factor * shipped.constants["fixed_s"])
        assert found.origin is Origin.CALIBRATED


@pytest.mark.parametrize(
    "other",
    [gemm_sheet(2.0, library="sglang"), gemm_sheet(2.0, hardware="h100-sxm"), gemm_sheet(2.0, hardware="nowhere")],
)
def test_sheets_of_others_change_nothing_where_there_is_an_own_one(other):
    assert chosen(other) == chosen()


def test_an_own_sheet_of_a_relative_stands_in():
    h200 = codesign.load_hardware("h200")
    from_h100 = chosen(hardware=h200)
    from_own = chosen(gemm_sheet(2.0, hardware="h100-sxm"), hardware=h200)
    assert from_own.origin is Origin.TRANSFERRED
    assert from_own.constants != from_h100.constants


def test_what_an_own_sheet_lacks_comes_from_the_shipped_one():
    own = sheet(("attention_decode", "bf16-d128"), DECODE)
    assert chosen(own) == chosen()


def test_a_machine_of_ones_own_needs_no_shipped_profile():
    mine = replace(A100, name="mine", architecture="none")
    assert chosen(hardware=mine) is None
    assert chosen(gemm_sheet(2.0, hardware="mine"), hardware=mine).origin is Origin.CALIBRATED


def test_a_head_dimension_of_ones_own_is_found():
    one = as_floats([1.0])
    shape = AttentionShape(one, one, 4096 * one, 32 * one, 8 * one, 96 * one)
    fixed_s = 1.0
    own = sheet(("attention_decode", "bf16-d96"), {**DECODE, "fixed_s": fixed_s})
    without, found = (
        attention(Target(A100, "vllm", sheets=sheets), parse_kv("bf16"), shape).predicted_s for sheets in ((), (own,))
    )
    assert found[0] > fixed_s > without[0]


@pytest.mark.parametrize(("held_by", "asked_by"), [("vllm", "vllm"), ("nccl", "llama.cpp")])
def test_collectives_of_ones_own_are_found(held_by, asked_by):
    """Libraries without collectives of their own call the common one's."""
    own = sheet(("all_reduce", "any"), RING, held_by)
    sizes = as_floats([8.0]), as_floats([1e6])
    without, found = (
        collective(Target(A100, asked_by, sheets=sheets), "all_reduce", *sizes).predicted_s[0]
        for sheets in ((), (own,))
    )
    assert found > RING["fixed_s"] > without


def test_tables_take_sheets():
    texts = {"hw": "a100", "library": "vllm", "op": "gemm", "scheme": "BF16", "kv_dtype": ""}
    columns = {name: np.array([text], dtype=object) for name, text in texts.items()}
    columns |= {name: as_floats([1024.0]) for name in ("m", "n", "k")}
    slow = gemm_sheet(100.0)
    assert predict_table(columns, (slow,)).predicted_s[0] > 2 * predict_table(columns).predicted_s[0]


def test_a_setting_names_files_and_the_prediction_stands_on_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(sheet_yaml(gemm_sheet(100.0)), encoding="utf-8")
    model = codesign.load_model("llama-7b")
    settings = codesign.Setting(library="vllm"), codesign.Setting(library="vllm", sheet_files=(str(path),))
    shipped, own = (codesign.predict(A100, model, "BF16", setting).tpot_s.value for setting in settings)
    assert own > 1.5 * shipped
    titles = [codesign.plan(A100, model, setting).kernel_sheets for setting in settings]
    assert titles[1] == ("vllm on a100-sxm-80gb, 2026-11-21: me", *titles[0])


def test_the_sheets_of_a_target_are_listed_in_the_order_of_asking():
    own, other = gemm_sheet(2.0), gemm_sheet(2.0, library="sglang")
    listed = own_sheets(Target(A100, "vllm", sheets=(other, own)))
    assert listed == (own, load_sheet(A100.name, "vllm"))
    assert sheet_title(listed[1]).startswith("vllm 0.14.0 on a100-sxm-80gb, 2026-")
