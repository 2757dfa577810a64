"""The kernel table knows every library that the profiler can measure, so that what is measured can be predicted."""

import pytest

from codesign.hardware.file import load_hardware
from codesign.profiler.candidates import is_attention
from codesign.profiler.libraries import all_kernels, library_states
from codesign.schemes.capability import default_library, library_capability, library_of, parse_library
from codesign.schemes.catalog import parse_scheme

ZEN4 = load_hardware("epyc-9654")
KERNELS = all_kernels()


@pytest.mark.parametrize("name", [state.name for state in library_states()])
def test_libraries_are_known_by_their_own_name(name):
    assert parse_library(name) == parse_library(f"{name}-1.2.3") == name


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.library}-{kernel.name}-{kernel.scheme}")
def test_what_is_measured_is_predicted_or_has_a_reason(kernel):
    if is_attention(kernel):
        assert kernel.scheme in library_of(kernel.library, ZEN4).kv_formats
        return
    answer = library_capability(parse_scheme(kernel.scheme), ZEN4, kernel.library)
    assert answer.runs or "CPUs do not multiply FP8" in answer.reason


def test_processors_keep_their_usual_library():
    assert default_library(ZEN4) == "llama.cpp"
