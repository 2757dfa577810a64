"""A model that generates: which kernels take which layers, what is checked, what is timed and stored."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from codesign.errors import CapabilityError, InputError
from codesign.hardware.file import load_hardware
from codesign.model.file import load_model
from codesign.profiler.generate import (
    Decoder,
    layer_schemes,
    load_transformer,
    peak_memory_bytes,
    replace_layers,
    replacements,
    reset_peak_memory,
    seeded_prompt,
)
from codesign.profiler.generate_run import GenerateQuestion, GenerateRequest, measure_generation, predict_generation
from codesign.profiler.run_folder import read_run
from codesign.profiler.timing import Rule
from tests.tiny_transformer import BLOCK_LAYERS, plan_of, save_tiny

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder))


def chosen_for(model, scheme: str, **more):
    return replacements(model, plan_of(model, scheme, **more), ("torch",), 1)


def test_a_plan_names_the_scheme_of_every_layer_that_it_quantizes(model):
    found = layer_schemes(model, plan_of(model, "W8A16", except_groups=("o", "head")))
    assert set(found.values()) == {"W8A16"}
    assert len(found) == 2 * (len(BLOCK_LAYERS) - 1)
    assert not [name for name in found if "o_proj" in name or "lm_head" in name]
    assert layer_schemes(model, None) == {}


def test_a_plan_of_another_model_is_refused(model):
    plan = plan_of(model, "W8A16")
    moved = replace(plan, groups=(replace(plan.groups[0], block_index=7), *plan.groups[1:]))
    with pytest.raises(InputError, match="has no qkv in block 7"):
        layer_schemes(model, moved)


def test_each_layer_gets_a_kernel_that_runs_its_shape(model):
    chosen = chosen_for(model, "W8A16")
    assert {one.kernel.row.name for one in chosen} == {"int8pack"}
    assert {(one.case.n, one.case.k) for one in chosen} == {(64, 64), (32, 64), (128, 64), (64, 128), (96, 64)}


def test_a_scheme_that_no_kernel_runs_is_refused_with_the_reasons(model):
    with pytest.raises(
        CapabilityError, match=r"q_proj: no kernel here runs W4A16-g128.*k = 64 is not a multiple of 128"
    ):
        chosen_for(model, "W4A16-g128")
    with pytest.raises(CapabilityError, match="no library that was named has one"):
        replacements(model, plan_of(model, "W8A16"), ("zentorch",), 1)


def test_kernels_that_fix_the_number_of_rows_are_not_taken(model):
    with pytest.raises(CapabilityError, match="onnxruntime/matmul_nbits_level4: it fixes the number of rows"):
        replacements(model, plan_of(model, "W4A8-g32"), ("onnxruntime",), 1)


@pytest.mark.parametrize("scheme", ["W8A16", "W4A16-g32"])
def test_replaced_layers_keep_the_logits_near_those_of_plain_torch(folder, model, scheme):
    transformer = load_transformer(folder)
    prompt = seeded_prompt(model.vocabulary, 24, 0)
    found = replace_layers(transformer, chosen_for(model, scheme), prompt)
    assert found.check.passed
    assert found.check.error_fraction > 1e-4
    assert found.max_difference > 0
    assert transformer.get_submodule("model.layers.0.mlp.up_proj").weight is None


def test_a_layer_with_wrong_weights_fails_the_check_of_logits(folder, model):
    first, *others = chosen_for(model, "W8A16")
    honest = first.kernel
    lying = SimpleNamespace(
        quantized=honest.quantized,
        plain=honest.plain,
        layer=lambda weights, case: lambda x: -honest.layer(weights, case)(x),
    )
    found = replace_layers(
        load_transformer(folder), (replace(first, kernel=lying), *others), seeded_prompt(model.vocabulary, 24, 0)
    )
    assert not found.check.passed
    assert "the logits are off" in found.check.reason


def test_the_decoder_adds_the_tokens_that_transformers_would(folder, model):
    transformer = load_transformer(folder)
    prompt = seeded_prompt(model.vocabulary, 8, 1)
    decoder = Decoder(transformer, prompt, 5)
    decoder.begin()
    ours = [int(decoder.step()) for _ in range(4)]
    expected = transformer.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=5,
                                    min_new_tokens=5, pad_token_id=0)  # fmt: skip
    assert ours == expected[0, 9:].tolist()


def test_the_decoder_begins_anew_only_where_it_is_at_its_end(folder, model):
    decoder = Decoder(load_transformer(folder), seeded_prompt(model.vocabulary, 8, 1), 3)
    prefills = []
    honest = decoder.prefill
    decoder.prefill = lambda: prefills.append(1) or honest()
    work = decoder.decode_work
    for _ in range(6):
        work.before_sample()
        work.run(0)
    assert len(prefills) == 3  # of three new tokens the prefill makes the first


def test_a_folder_without_a_model_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="transformers cannot load this model"):
        load_transformer(tmp_path)


def test_prompts_are_seeded(model):
    one, same, other = (seeded_prompt(model.vocabulary, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert int(one.max()) < model.vocabulary


def test_the_peak_of_memory_is_read_and_reset(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t   2048 kB\n", encoding="utf-8")
    assert peak_memory_bytes(tmp_path) == 2048 * 1024
    (tmp_path / "status").write_text("Name:\tx\n", encoding="utf-8")
    assert peak_memory_bytes(tmp_path) is None
    assert peak_memory_bytes(tmp_path / "away") is None
    reset_peak_memory(tmp_path / "away")
    reset_peak_memory(tmp_path)
    assert (tmp_path / "clear_refs").read_text(encoding="ascii") == "5"


def request_for(folder, model, scheme: str | None) -> GenerateRequest:
    question = GenerateQuestion(folder, model, plan_of(model, scheme) if scheme else None, 8, 4, 1, ("torch",), 0)
    return GenerateRequest(
        question,
        load_hardware("epyc-9654"),
        None,
        Rule(budget_s=0.3, warm_up_max_s=0.2),
        {"software": {"commit": None}},
        "",
    )


@pytest.mark.parametrize("scheme", [None, "W8A16"])
def test_a_run_stores_both_figures_with_predictions_memory_and_check(folder, model, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr("codesign.profiler.generate_run.pin", lambda _: None)
    request = request_for(folder, model, scheme)
    measure_generation(request, tmp_path / "run")
    first, further = read_run(tmp_path / "run").measurements
    assert (first.case.figure, further.case.figure) == ("ttft_s", "tpot_s")
    assert {first.case.scheme, further.case.scheme} == {scheme or "BF16"}
    assert first.check.passed
    for one in (first, further):
        notes = json.loads(json.dumps(dict(one.procedure.notes)))
        assert notes["predicted_low_s"] <= notes["predicted_s"] <= notes["predicted_high_s"]
        assert notes["logits_max_difference"] > 0
        assert one.summary.median_s > 0
    assert first.flop > further.flop


def test_the_prediction_is_of_the_layers_as_they_run(folder, model):
    asked, plain = request_for(folder, model, "W8A16"), request_for(folder, model, None)
    quantized = predict_generation(asked, chosen_for(model, "W8A16"))
    assert quantized.memory.weight_bytes < predict_generation(plain, ()).memory.weight_bytes
    assert np.isfinite(quantized.tpot_s.value)
