"""What torchao says of modules: exact names before patterns, `_default` for the rest, unknown kinds left open."""

import pytest

from codesign.checkpoint.announced import Announced
from codesign.checkpoint.quantization_config import read_quantization

INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
INT4 = {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 128}}
DYNAMIC = {"_type": "Int8DynamicActivationInt8WeightConfig", "_version": 2, "_data": {}}


def quantization(config, **more):
    return read_quantization({"quant_method": "torchao", "quant_type": {"default": config}, **more}, "config.json")


def by_name(keys, **more):
    return quantization({"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": keys}}, **more)


def bits(found, name):
    announced = found.announced(name)
    return announced and announced.bits


def test_a_pattern_matches_a_name_in_full():
    found = by_name({r"re:layers\.0\.(q|k)": INT4})
    assert [bits(found, name) for name in ("layers.0.q", "layers.0.k", "layers.0.q.more", "x.layers.0.q")] == [
        4, 4, None, None]  # fmt: skip


def test_exact_names_come_before_patterns_and_default_after_them():
    found = by_name({"_default": INT8, "re:a.*": INT4, "ab.weight": DYNAMIC, "skipped": None},
                    modules_to_not_convert=["lm_head"])  # fmt: skip
    assert [bits(found, name) for name in ("ab", "ac", "b", "skipped", "lm_head")] == [8, 4, 8, None, None]
    assert found.announced("ab").activations is not None
    assert found.announced("b").activations is None


def test_one_config_is_for_all_modules():
    assert bits(quantization(INT4), "anything") == 4


@pytest.mark.parametrize("config", [{"_type": "SomethingNewConfig"}, {}])
def test_unknown_kinds_say_only_that_weights_are_quantized(config):
    assert quantization(config).announced("q") == Announced()


@pytest.mark.parametrize("quant_type", [None, "int8_weight_only", {}])
def test_configs_of_before_say_only_that_weights_are_quantized(quant_type):
    found = read_quantization({"quant_method": "torchao", "quant_type": quant_type}, "config.json")
    assert found.announced("q") == Announced()
    assert found.warnings == ()


def test_a_pattern_that_is_not_understood_is_told():
    assert "is not understood" in by_name({"re:(?=x)": INT8}).warnings[0]
