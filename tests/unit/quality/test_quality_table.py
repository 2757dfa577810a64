import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.model.groups import SIXTEEN_BIT_GROUPS, fused_groups
from codesign.model.layers import Attention, Block, Experts, Layer, Model
from codesign.quality.estimate import LossEstimate, LossOrigin, Unknown
from codesign.quality.kv import kv_loss
from codesign.quality.prior import model_prior, prior_loss, with_anchor
from codesign.quality.shape import head_share, layer_shape
from codesign.quality.table import QualityTable, read_quality, table_from_prior, write_quality
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KV_FORMATS

SCHEMES = tuple(map(parse_scheme, ("BF16", "W8A16", "W8A8", "W4A16-g128", "W4A16", "FP8", "Q4_K", "W2A16-g128")))


def a_model(blocks: int = 6, hidden: int = 4096, expert_count: int = 0, name: str = "a-model") -> Model:
    def block(index: int) -> Block:
        at = f"{index}."
        layers = (
            Layer(at + "qkv", "qkv", 3 * hidden, hidden, "qkv", index),
            Layer(at + "o", "o", hidden, hidden, "o", index),
        )
        if expert_count:
            layers += (Layer(at + "router", "router", expert_count, hidden, "router", index),)
            experts = Experts(at + "experts", hidden, 2 * hidden, expert_count, 2, index)
        else:
            layers += (
                Layer(at + "gate", "gate", 3 * hidden, hidden, "gate_up", index),
                Layer(at + "up", "up", 3 * hidden, hidden, "gate_up", index),
                Layer(at + "down", "down", hidden, 3 * hidden, "down", index),
            )
            experts = None
        return Block(index, Attention(32, 32, hidden // 32), layers, experts, 2 * hidden)

    return Model(
        name=name, architecture="llama", hidden=hidden, vocabulary=32000, max_context_tokens=4096,
        blocks=tuple(block(i) for i in range(blocks)),
        embedding=Layer("embedding", "embedding", 32000, hidden, "embedding"),
        head=Layer("head", "head", 32000, hidden, "head"), tied_embedding=False, outside_layers=(),
        other_parameter_count=hidden, source="test", digest=f"digest of {name}",
    )  # fmt: skip


MODEL = a_model()
TABLE = table_from_prior(MODEL, SCHEMES, tuple(KV_FORMATS.values()))


@given(st.integers(1, 12), st.sampled_from([256, 1024, 4096]), st.sampled_from([0, 4]))
def test_shares_are_positive_and_sum_to_one(blocks, hidden, expert_count):
    model = a_model(blocks, hidden, expert_count)
    shares = layer_shape(model)
    assert min(shares.values()) > 0
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    body = {g.key for g in fused_groups(model) if g.name not in SIXTEEN_BIT_GROUPS and g.name != "head"}
    assert set(shares) == body
    assert head_share(model) > 0


def test_ends_and_down_projections_are_more_sensitive_per_weight():
    shares = layer_shape(MODEL)
    weights = {group.key: group.weight_count for group in fused_groups(MODEL)}
    density = {key: share / weights[key] for key, share in shares.items()}
    assert density[0, "down"] > density[1, "down"] > density[2, "down"] > density[3, "down"]
    assert density[5, "down"] > density[4, "down"] == pytest.approx(density[3, "down"])
    assert density[3, "down"] > density[3, "o"] > density[3, "qkv"] > density[3, "gate_up"]


@given(st.sampled_from(SCHEMES), st.sampled_from(["", "rtn", "gptq", "awq"]), st.sampled_from([0, 8]))
def test_a_uniform_plan_loses_what_the_prior_says(scheme, method, expert_count):
    model = a_model(expert_count=expert_count)
    table = table_from_prior(model, [scheme], (), method)
    keys = [group.key for group in fused_groups(model) if group.name not in {*SIXTEEN_BIT_GROUPS, "head"}]
    total = table.group_losses(keys, [scheme.name]).sum()
    whole = prior_loss(model, scheme, method)
    if isinstance(whole, Unknown):
        assert math.isnan(total)
        assert table.unknown[scheme.name] == whole.reason
    else:
        assert total == pytest.approx(whole.loss_nats)
        cells = [table.group_loss(key, scheme.name) for key in keys]
        assert sum(cell.low for cell in cells) == pytest.approx(whole.low_nats)
        assert sum(cell.high for cell in cells) == pytest.approx(whole.high_nats)


def test_the_head_costs_extra():
    body = prior_loss(MODEL, parse_scheme("W4A16-g128")).loss_nats
    assert TABLE.group_loss((None, "head"), "W4A16-g128").value == pytest.approx(body * head_share(MODEL))
    assert 0.01 < head_share(MODEL) < 0.5


def test_arrays_agree_with_cells_and_unknown_is_nan_and_none():
    keys, names = [group.key for group in fused_groups(MODEL)], [scheme.name for scheme in SCHEMES]
    losses = TABLE.group_losses(keys, names)
    for g, key in enumerate(keys):
        for s, name in enumerate(names):
            cell = TABLE.group_loss(key, name)
            assert (cell is None and math.isnan(losses[g, s])) or cell.value == losses[g, s]
    assert (losses[:, names.index("BF16")] == 0).all()
    assert np.isnan(losses[:, names.index("W4A16")]).all()
    assert np.isnan(losses[:, names.index("W2A16-g128")]).all()
    assert np.isnan(TABLE.group_losses([(99, "qkv")], ["W8A8"])).all()


def test_routers_have_a_loss_only_in_sixteen_bits():
    table = table_from_prior(a_model(expert_count=4), SCHEMES, ())
    assert table.group_loss((0, "router"), "W8A16") is None
    assert table.group_loss((0, "router"), "BF16").value == 0.0
    assert table.group_loss((0, "experts"), "W8A16").value > 0


def test_calibration_scales_groups_but_not_kv():
    half = dataclasses.replace(TABLE, calibration=0.5)
    key = (0, "down")
    assert half.group_loss(key, "W8A8").high == TABLE.group_loss(key, "W8A8").high / 2
    assert half.group_losses([key], ["W8A8"])[0, 0] == TABLE.group_losses([key], ["W8A8"])[0, 0] / 2
    assert half.kv_loss("int8") == TABLE.kv_loss("int8")


def test_an_anchor_moves_the_table():
    scheme = parse_scheme("W4A16-g128")
    anchored = with_anchor(model_prior(MODEL), scheme, "rtn", 0.2)
    table = table_from_prior(MODEL, [scheme], (), "rtn", anchored)
    assert sum(cell.loss_nats for (key, _), cell in table.cells.items() if key[0] is not None) == pytest.approx(0.2)


def test_fewer_kv_bits_lose_more_and_larger_models_less():
    order = ("bf16", "int8", "fp8", "fp8_e5m2", "int4")
    small, large = (
        table_from_prior(a_model(blocks, hidden), (), tuple(KV_FORMATS.values()))
        for blocks, hidden in ((32, 4096), (80, 8192))
    )
    assert small.kv_loss("bf16").value == 0
    assert (np.diff(small.kv_losses(order)) > 0).all()
    assert (large.kv_losses(order)[1:] < small.kv_losses(order)[1:]).all()
    for name in order[1:]:
        assert small.kv[name].low_nats < small.kv[name].loss_nats < small.kv[name].high_nats


def test_four_bit_kv_is_unknown_on_small_models():
    # ik_llama.cpp issue 1509: perplexity 13.5 becomes 47.8 at 0.6B.
    small = a_model(blocks=2, hidden=256)
    assert isinstance(kv_loss(small, "q4_0"), Unknown)
    table = table_from_prior(small, SCHEMES, tuple(KV_FORMATS.values()))
    assert table.kv_loss("q4_0") is None
    assert math.isnan(table.kv_losses(["q4_0"])[0])
    assert "2 billion" in table.unknown["KV q4_0"]


def test_four_bit_kv_of_eight_billion_parameters():
    # The same issue: 7.2256 becomes 7.3833 at 8B, 0.0216 nats.
    model = a_model(blocks=32)
    loss = kv_loss(model, "q4_0")
    assert loss.low_nats < math.log(7.3833 / 7.2256) < loss.high_nats


positive = st.floats(1e-6, 2.0)


@st.composite
def tables(draw):
    keys = draw(st.lists(st.sampled_from([g.key for g in fused_groups(MODEL)]), unique=True, max_size=6))
    cells = {}
    for key in keys:
        low, value, high = sorted(draw(st.tuples(positive, positive, positive)))
        origin = draw(st.sampled_from(list(LossOrigin)))
        scheme = draw(st.sampled_from(["W8A8", "W4A16-g128", "Q4_K"]))
        cells[key, scheme] = LossEstimate(value, low, high, origin, draw(st.text(max_size=8)), "evidence")
    kv = {"int8": LossEstimate(0.001, 0.0, 0.002, LossOrigin.MEASURED)} if draw(st.booleans()) else {}
    return QualityTable(MODEL.name, MODEL.digest, "a text", "kl", cells, kv, draw(st.floats(0.01, 10)))


@given(tables())
def test_a_table_round_trips_through_its_file(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("quality") / "table.json"
    write_quality(table, path)
    assert read_quality(path, MODEL) == table


def test_the_prior_round_trips_but_for_its_reasons(tmp_path):
    path = tmp_path / "prior.json"
    write_quality(TABLE, path)
    assert read_quality(path, MODEL) == dataclasses.replace(TABLE, unknown=None)


def good_file() -> dict:
    cell = {
        "block_index": 0, "group": "qkv", "scheme": "W8A8", "loss_nats": 0.1, "low_nats": 0.05, "high_nats": 0.2,
        "origin": "measured", "method": "rtn", "evidence": "",
    }  # fmt: skip
    kv = {
        "kv": "int8", "loss_nats": 0.1, "low_nats": 0.05, "high_nats": 0.2, "origin": "measured", "method": "",
        "evidence": "",
    }  # fmt: skip
    return {
        "format_version": 1, "model": MODEL.name, "model_digest": MODEL.digest, "text": "t", "metric": "kl",
        "calibration": 1.0, "cells": [cell], "kv": [kv],
    }  # fmt: skip


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "quality.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_good_file_is_read(tmp_path):
    assert read_quality(written(tmp_path, good_file()), MODEL).group_loss((0, "qkv"), "W8A8").value == 0.1


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("top", "format_version", 2, "format_version is 2"),
        ("top", "format_version", True, "format_version is True"),
        ("top", "model_digest", "other", "Measure it again"),
        ("top", "calibration", 0.0, "calibration"),
        ("top", "calibration", -1.0, "calibration"),
        ("top", "surprise", 1, 'unknown key "surprise"'),
        ("top", "cells", {}, "cells"),
        ("cells", "loss_nats", -0.1, "0 <= low_nats"),
        ("cells", "low_nats", -0.1, "0 <= low_nats"),
        ("cells", "low_nats", 0.15, "0 <= low_nats"),
        ("cells", "high_nats", 1e9, "0 <= low_nats"),
        ("cells", "loss_nats", "0.1", "not a number"),
        ("cells", "loss_nats", None, "not a number"),
        ("cells", "origin", "guessed", "guessed"),
        ("cells", "block_index", 6, "has no group"),
        ("cells", "group", "embedding", "has no group"),
        ("cells", "scheme", "W9A9", "Unknown scheme"),
        ("cells", "losses", 1, "unknown key"),
        ("kv", "kv", "int3", "Unknown KV"),
        ("kv", "high_nats", 0.0, "0 <= low_nats"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path, place, key, value, message):
    data = good_file()
    target = data if place == "top" else data[place][0]
    target[key] = value
    with pytest.raises(InputError, match=message):
        read_quality(written(tmp_path, data), MODEL)


@pytest.mark.parametrize("place", ["cells", "kv"])
def test_duplicates_are_refused(tmp_path, place):
    data = good_file()
    data[place] = data[place] * 2
    with pytest.raises(InputError, match="appears twice"):
        read_quality(written(tmp_path, data), MODEL)


def test_the_same_scheme_under_an_alias_is_a_duplicate(tmp_path):
    data = good_file()
    data["cells"].append({**data["cells"][0], "scheme": "sq"})
    with pytest.raises(InputError, match="appears twice"):
        read_quality(written(tmp_path, data), MODEL)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "{}", '{"format_version": NaN}', "null"])
def test_no_table_at_all_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        read_quality(written(tmp_path, text), MODEL)


def test_nan_is_refused(tmp_path):
    text = json.dumps(good_file()).replace("0.05", "NaN", 1)
    with pytest.raises(InputError, match="NaN is not JSON"):
        read_quality(written(tmp_path, text), MODEL)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read this quality table"):
        read_quality(tmp_path / "none.json", MODEL)
