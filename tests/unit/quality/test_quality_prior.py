import csv
import importlib.util
import itertools
import json
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quality.estimate import NO_LOSS, LossEstimate, LossOrigin, Unknown, loss_of_perplexities, perplexity_ratio
from codesign.quality.factors import load_factors
from codesign.quality.families import family_of, published_name, untuned_name
from codesign.quality.methods import METHODS, default_method, method_for
from codesign.quality.prior import model_prior, prior_loss, with_anchor
from codesign.schemes.catalog import SCHEMES, parse_scheme

ROOT = Path(__file__).parents[3]
TABLE = Path(os.environ.get("CODESIGN_REFERENCE_DATA", ROOT.parent / "shared")) / "facts" / "published_accuracy.csv"
MODELS = ("llama-2-7b", "llama-2-13b", "opt-66b", "llama-3-70b", "qwen2.5-7b", "mistral-7b", "some-new-model-9b")


def known(model: str, scheme: str, method: str = "") -> LossEstimate:
    loss = prior_loss(model, parse_scheme(scheme), method)
    assert isinstance(loss, LossEstimate), loss
    return loss


def unknown(model: str, scheme: str, method: str = "") -> str:
    loss = prior_loss(model, parse_scheme(scheme), method)
    assert isinstance(loss, Unknown), loss
    return loss.reason


def fit_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    path = ROOT / "scripts" / "fit_quality_prior.py"
    spec = importlib.util.spec_from_file_location("fit_quality_prior", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def assert_same(fitted, shipped, where="prior"):
    if isinstance(shipped, dict):
        assert sorted(fitted) == sorted(shipped), where
        for key, value in shipped.items():
            assert_same(fitted[key], value, f"{where}.{key}")
    elif isinstance(shipped, list):
        assert len(fitted) == len(shipped), where
        for index, value in enumerate(shipped):
            assert_same(fitted[index], value, f"{where}[{index}]")
    elif isinstance(shipped, float):
        assert fitted == pytest.approx(shipped, rel=2e-3), where
    else:
        assert fitted == shipped, where


@pytest.mark.skipif(not TABLE.exists(), reason=f"reference data not found: {TABLE} (set CODESIGN_REFERENCE_DATA)")
@pytest.mark.slow
def test_the_shipped_constants_are_those_that_the_script_fits(monkeypatch):
    script = fit_script(monkeypatch)
    with TABLE.open(newline="", encoding="utf-8") as stream:
        fitted = script.fit_prior(list(csv.DictReader(stream)))
    assert_same(fitted, json.loads(script.PRIOR.read_text(encoding="utf-8")))


@pytest.mark.parametrize("scheme", ["FP16", "BF16", "FP32"])
@pytest.mark.parametrize("model", MODELS)
def test_sixteen_bits_lose_nothing(model, scheme):
    assert known(model, scheme) == NO_LOSS
    assert (NO_LOSS.loss_nats, NO_LOSS.low_nats, NO_LOSS.high_nats) == (0, 0, 0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["", *METHODS])
def test_every_estimate_has_an_ordered_interval_and_evidence(model, method):
    losses = [prior_loss(model, scheme, method) for scheme in SCHEMES.values() if scheme.quantized]
    assert {type(loss) for loss in losses} == {LossEstimate, Unknown}
    for loss in losses:
        if isinstance(loss, Unknown):
            assert len(loss.reason) > 20
        else:
            assert 0 <= loss.low_nats < loss.loss_nats < loss.high_nats
            assert loss.origin is LossOrigin.PRIOR
            assert "published cell" in loss.evidence


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("rtn", ("W8A16", "W4A16-g32", "W4A16-g64", "W4A16-g128", "W3A16-g64", "W3A16-g128")),
        ("gptq", ("W8A16", "W4A16-g32", "W4A16-g64", "W4A16-g128", "W3A16-g64", "W3A16-g128")),
        ("awq", ("W8A16", "W4A16-g32", "W4A16-g128", "W3A16-g128")),
        ("imatrix", ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K")),
        ("llama.cpp", ("Q8_0", "Q6_K", "Q5_0", "Q4_0")),
        ("rtn", ("FP8-channel", "MXFP8", "MXFP6", "NVFP4", "MXFP4")),
    ],
)
def test_more_bits_or_smaller_groups_never_lose_more(model, method, names):
    losses = [known(model, name, method) for name in names]
    for finer, coarser in itertools.pairwise(losses):
        assert finer.loss_nats <= coarser.loss_nats


@pytest.mark.parametrize("name", ["W2A16-g128", "W2A16-g64", "W1A16-g128", "Q2_K", "IQ2_XS", "TQ1_0", "W4A16", "W3A16"])
@pytest.mark.parametrize("model", ["mistral-7b", "llama-2-13b", "qwen2.5-7b", "some-new-model-9b"])
def test_what_collapses_on_some_models_is_unknown_on_unmeasured_ones(model, name):
    for method in ("", *METHODS):
        assert "no measurement" in unknown(model, name, method)


@pytest.mark.parametrize("method", ["", "rtn", "gptq", "smoothquant"])
@pytest.mark.parametrize("model", ["llama-3-70b", "mistral-7b"])
def test_naive_four_bit_activations_are_unknown(model, method):
    unknown(model, "W4A4", method)
    assert known("llama-2-7b", "W4A4", "quarot").loss_nats > known("llama-2-7b", "W4A4", "spinquant").loss_nats


def test_risky_schemes_are_known_where_they_were_measured_and_did_not_collapse():
    assert known("llama-2-7b", "W4A16", "gptq").loss_nats > known("llama-2-7b", "W4A16-g128", "gptq").loss_nats
    # SpinQuant README: perplexity 1e5 for RTN and GPTQ, W4 per channel, Llama-3-70B.
    assert "collapse on llama-3-70b" in unknown("llama-3-70b", "W4A16", "gptq")
    assert "collapse on llama-3-70b" in unknown("meta-llama/Meta-Llama-3-70B", "W4A16", "rtn")
    known("llama-3-70b", "W4A16-g128", "gptq")


def test_the_interval_widens_with_what_is_not_known():
    widths = [model_prior(name).half_width for name in ("llama-2-7b", "llama-2-13b", "bloom-7b1")]
    assert widths[0] < widths[1] < widths[2]
    factors = load_factors()
    assert [factors.half_width(name) for name in ("cell", "family", "global")] == widths


def test_an_unstated_method_covers_the_usual_ones():
    unstated = known("llama-2-7b", "W4A16-g128")
    assert unstated.method == "gptq"
    for method in ("gptq", "awq", "rtn"):
        stated = known("llama-2-7b", "W4A16-g128", method)
        assert unstated.low_nats <= stated.low_nats < stated.high_nats <= unstated.high_nats


@given(st.floats(0.005, 1.0), st.sampled_from(MODELS))
def test_an_anchor_reproduces_its_own_measurement_and_narrows_the_rest(measured, model):
    scheme = parse_scheme("W4A16-g128")
    anchored = with_anchor(model_prior(model), scheme, "rtn", measured)
    loss = anchored.loss(scheme, "rtn")
    assert isinstance(loss, LossEstimate)
    assert loss.loss_nats == pytest.approx(measured)
    assert loss.origin is LossOrigin.ANCHORED
    assert anchored.half_width < load_factors().half_width("global")


@pytest.mark.parametrize(
    ("scheme", "loss"),
    [("W8A16", 0.01), ("BF16", 0.1), ("W2A16-g128", 0.5), ("W4A16-g128", 0.0), ("W4A16-g128", math.inf)],
)
def test_a_useless_anchor_is_refused(scheme, loss):
    with pytest.raises(InputError, match="measure W4A16-g128 with rtn"):
        with_anchor(model_prior("some-model"), parse_scheme(scheme), "", loss)


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        ("W4A16-g128", "gptq"), ("W3A16-g128", "gptq"), ("W8A16", "rtn"), ("FP8", "rtn"), ("FP8-block", "rtn"),
        ("W8A8", "smoothquant"), ("Q4_K", "imatrix"), ("NF4", "rtn"), ("MXFP4", "rtn"), ("NVFP4", "rtn"),
        ("W4A4", "rtn"),
    ],
)  # fmt: skip
def test_default_methods(scheme, method):
    assert default_method(parse_scheme(scheme)) == method


def test_a_method_applies_only_where_it_makes_the_scheme():
    assert method_for(parse_scheme("W4A16-g128"), "AWQ") == "awq"
    assert method_for(parse_scheme("FP8"), "awq") == "rtn"
    assert method_for(parse_scheme("Q4_K"), "gptq") == "imatrix"
    with pytest.raises(InputError, match='Did you mean "gptq"'):
        method_for(parse_scheme("W4A16-g128"), "gtpq")


@pytest.mark.parametrize(
    ("name", "published", "base", "family"),
    [
        ("llama-7b", "llama-1-7b", "llama-1-7b", "llama-2"),
        ("llama-33b", "llama-1-30b", "llama-1-30b", "llama-2"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b", "llama-2-7b", "llama-2"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b-chat", "llama-2-13b", "llama-2"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct", "llama-3.1-8b", "llama-3"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3-0.6b", "qwen3-0.6b", "qwen"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b", "mixtral-8x7b", "mistral"),
        ("facebook/opt-6.7b", "opt-6.7b", "opt-6.7b", "opt"),
        ("bigscience/bloom", "bloom", "bloom", "other"),
    ],
)
def test_names_of_published_models(name, published, base, family):
    assert (published_name(name), untuned_name(name), family_of(name)) == (published, base, family)


@given(st.floats(1.5, 1e4), st.floats(1.0, 100.0))
def test_perplexities_and_losses_are_inverse(base, ratio):
    assert perplexity_ratio(loss_of_perplexities(base * ratio, base)) == pytest.approx(ratio)
