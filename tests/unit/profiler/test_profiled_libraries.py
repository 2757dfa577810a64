"""The kernel table knows every library that the profiler can measure, so that what is measured can be predicted."""

import pytest

from codesign.hardware.file import load_hardware
from codesign.profiler.candidates import is_attention
from codesign.profiler.libraries import all_kernels, library_states
from codesign.schemes.capability import default_library, library_capability, library_of, parse_library
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KV_FORMATS

ZEN4, H200 = load_hardware("epyc-9654"), load_hardware("h200")
KERNELS = [one for one in all_kernels() if one.device == "cpu"]
GPU_KERNELS = [one for one in all_kernels() if one.device == "cuda"]


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


@pytest.mark.parametrize("kernel", GPU_KERNELS, ids=lambda kernel: f"{kernel.library}-{kernel.name}-{kernel.scheme}")
def test_what_is_measured_on_a_gpu_is_known_there(kernel):
    if is_attention(kernel):
        assert kernel.scheme in KV_FORMATS
        assert kernel.library == "codesign" or kernel.scheme in library_of(kernel.library, H200).kv_formats
    else:
        assert library_capability(parse_scheme(kernel.scheme), H200, kernel.library).runs


def test_processors_keep_their_usual_library():
    assert default_library(ZEN4) == "llama.cpp"
