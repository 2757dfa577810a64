"""Every shipped machine plans, or says in a sentence why not."""

import pytest

import codesign
from codesign.errors import CodesignError
from codesign.hardware.file import list_hardware
from codesign.model.file import list_models
from codesign.schemes.library_table import LIBRARIES

SHORT = codesign.Setting(prompt_tokens=128, output_tokens=16, kv="auto")


def outcome(hardware, model, setting=SHORT):
    """Return the plan, or the sentence."""
    try:
        return codesign.plan(hardware, model, setting)
    except CodesignError as error:
        return str(error)


@pytest.mark.parametrize("name", list_hardware())
@pytest.mark.parametrize("model_name", ["smollm2-135m", "qwen3-30b-a3b"])
def test_every_machine(name, model_name):
    found = outcome(codesign.load_hardware(name), codesign.load_model(model_name))
    if isinstance(found, str):
        assert "No plan" in found
    else:
        assert found.fits
        assert found.totals.tpot_s.value > 0


@pytest.mark.parametrize("library", sorted(LIBRARIES))
@pytest.mark.parametrize("name", ["a100", "b200", "x86-avx512", "edge-tpu", "apple-m4-max"])
def test_every_library(name, library):
    setting = codesign.Setting(prompt_tokens=128, output_tokens=16, library=library)
    found = outcome(codesign.load_hardware(name), codesign.load_model("gpt2"), setting)
    assert not isinstance(found, str) or found.endswith(".")


@pytest.mark.slow
def test_every_model(capfd):
    """Plans of all models on eight GPUs; nothing but our own words on standard output."""
    hardware = codesign.load_hardware("h100")
    for name in list_models():
        setting = codesign.Setting(prompt_tokens=128, output_tokens=16, gpu_count=8, kv="auto")
        outcome(hardware, codesign.load_model(name), setting)
    assert capfd.readouterr().out == ""


def test_the_solver_prints_nothing(capfd):
    """HiGHS has a debug line that no option turns off; it would spoil --json."""
    setting = codesign.Setting(prompt_tokens=256, output_tokens=64, gpu_count=8, kv="auto")
    for name in ("bloom-7b1", "gemma-7b", "phi-4", "qwen2.5-7b", "mistral-7b", "opt-13b"):
        codesign.plan(codesign.load_hardware("a100"), codesign.load_model(name), setting)
    assert capfd.readouterr().out == ""
