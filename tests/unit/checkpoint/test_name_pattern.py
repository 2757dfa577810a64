"""Patterns of quantization configs against Python's own engine, and the ones that stop it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.checkpoint.name_pattern import pattern_matcher
from tests.crafted_checkpoints import no_hang

MODULES = ("self_attn.q_proj", "mlp.gate", "mlp.down_proj")
NAMES = [f"model.layers.{i}.{module}" for i in (0, 1, 10, 18) for module in MODULES]
NAMES += ["lm_head", "", "model.embed_tokens", "model.layers.0.mlp.experts.12.up_proj", "a\nb"]


@pytest.mark.parametrize(
    "pattern",
    [
        ".*", ".*mlp.*", "lm_head$", "^lm_head", ".*mlp.gate$", r"model\.layers\.(0|1)\..*", r".*\.18\..*gate.*",
        r".*layers\.[0-9]+\.mlp\.(gate|up|down)_proj", r".*(q|k|v|o)_proj$", r"model\.layers\.\d{2}\.", "[^l]", "", "$",
        r".*experts\.\d+\.(?:up|down)_proj", "(a|b|)*$", "x?m+o{1}d{1,2}", r"[\w.]+", "()",
        r".*self_attn\..*(q|k)", r"\S+",
    ],
)  # fmt: skip
def test_verdicts_are_those_of_re_match(pattern):
    matches = pattern_matcher(pattern)
    assert matches is not None
    assert [matches(name) for name in NAMES] == [re.match(pattern, name) is not None for name in NAMES]


PIECES = st.recursive(
    st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", "^", "$"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(lambda two: f"(?:{two[0]}){two[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.text("ab.1", max_size=6))
def test_random_patterns_agree_with_re(pattern, name):
    matches = pattern_matcher(pattern)
    assert matches is not None
    assert matches(name) == (re.match(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern",
    ["(?!lm_head).*", r"(a)\1", "a*?", "a++", "(", ")", "[", "*", "a{101}", "(" * 30 + ")" * 30, "x" * 3000,
     "((a{100}){100}){100}", r"\b", "(?P<n>a)", "[z-a]", "\\"],
)  # fmt: skip
def test_what_is_not_understood_is_said(pattern):
    assert pattern_matcher(pattern) is None


@pytest.mark.parametrize("pattern", ["(a*)*$", "(a|a)*$", "(.*a){20}$", ".*.*.*.*.*.*.*.*b$", "(a+)+$", "(.*)*x"])
def test_hostile_patterns_take_no_time(pattern):
    matches = pattern_matcher(pattern)
    assert matches is not None
    with no_hang():
        assert not matches("a" * 900 + "!")
