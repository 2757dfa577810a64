"""The tables and the shipped profiles must spell vendors, kinds and instruction sets alike."""

import pytest

from codesign.hardware.file import load_hardware
from codesign.schemes.capability import baseline_scheme, candidate_schemes, capability, default_library
from codesign.schemes.catalog import parse_scheme


@pytest.mark.parametrize(
    ("name", "library", "baseline"),
    [
        ("a100", "vllm", "BF16"),
        ("t4", "vllm", "FP16"),
        ("v100-sxm2-32gb", "vllm", "FP16"),
        ("mi300x", "vllm", "BF16"),
        ("jetson-agx-orin", "llama.cpp", "BF16"),
        ("apple-m1-max", "llama.cpp", "FP16"),
        ("epyc-7763", "llama.cpp", "FP16"),
        ("raspberry-pi-4", "llama.cpp", "FP16"),
        ("x86-avx512", "llama.cpp", None),
        ("arm-neon", "llama.cpp", "FP16"),
        ("edge-tpu", "litert", "W8A8-tensor"),
    ],
)
def test_defaults_of_profiles(name: str, library: str, baseline: str | None) -> None:
    hardware = load_hardware(name)
    assert default_library(hardware) == library
    assert baseline is None or baseline_scheme(hardware).name == baseline
    assert len(candidate_schemes(hardware)) >= 3 or name == "edge-tpu"


@pytest.mark.parametrize(
    ("name", "scheme", "level", "math_dtype"),
    [
        ("a100", "FP8", "emulated", "bf16"),
        ("t4", "FP8", "emulated", "fp16"),
        ("v100-sxm2-32gb", "FP8", "unsupported", None),
        ("h100", "FP8", "native", "fp8"),
        ("h100", "W4A4", "unsupported", None),
        ("b200", "NVFP4", "native", "fp4"),
        ("mi300x", "FP8", "native", "fp8"),
        ("mi300x", "NVFP4", "emulated", "bf16"),
        ("apple-m1-max", "FP8", "unsupported", None),
        ("x86-avx512", "W8A8", "native", "int8"),
        ("epyc-7763", "W8A8", "emulated", "int8"),
        ("arm-neon", "W8A8", "native", "int8"),
        ("graviton3", "W4A8-g128", "native", "int8"),
        ("raspberry-pi-4", "Q4_K", "emulated", "int8"),
        ("xeon-8480plus", "FP8", "unsupported", None),
        ("edge-tpu", "W8A8-tensor", "native", "int8"),
        ("edge-tpu", "W4A16-g128", "unsupported", None),
    ],
)
def test_levels_of_profiles(name: str, scheme: str, level: str, math_dtype: str | None) -> None:
    answer = capability(parse_scheme(scheme), load_hardware(name))
    assert (answer.level, answer.math_dtype) == (level, math_dtype)
