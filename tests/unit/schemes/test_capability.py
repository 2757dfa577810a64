from dataclasses import replace

import pytest

from codesign.errors import InputError
from codesign.hardware.hardware import Constraints, Hardware, Memory, Power
from codesign.schemes.capability import (
    baseline_scheme,
    candidate_kv_formats,
    candidate_schemes,
    capability,
    default_library,
    library_capability,
    parse_library,
    refused_schemes,
    role_problem,
    shape_problem,
)
from codesign.schemes.capability_table import HARDWARE_RULES, SHAPE_RULES
from codesign.schemes.catalog import SCHEMES, parse_scheme
from codesign.schemes.kv import KV_FORMATS
from codesign.schemes.library_table import DEFAULT_LIBRARIES, LIBRARIES, LIBRARY_ALIASES, PROMINENT_SCHEMES


def machine(title: str, vendor: str, rates: str, capability_pair: tuple[int, int] | None = None) -> Hardware:
    """Return a GPU with these math dtypes; what the tests do not look at is filled with small numbers."""
    return Hardware(
        name=title.lower().replace(" ", "-"), title=title, kind="gpu", vendor=vendor, architecture="", aliases=(),
        compute_capability=capability_pair, isa=frozenset(), unit_name="SM", unit_count=1, base_clock_hz=None,
        boost_clock_hz=1e9, flop_per_cycle_per_unit={}, peak_flop_per_s=dict.fromkeys(rates.split(), 1e12),
        sustained_compute_fraction=1.0, memory=Memory("HBM", 1e10, 1e12, 1.0), cache=None, launch_overhead_s=0.0,
        peer_link=None, host_link=None, power=Power(1.0, 0.0), price_usd_per_hour=None, constraints=Constraints(),
        sources={}, digest="",
    )  # fmt: skip


def cpu(title: str, vendor: str, rates: str, isa: str) -> Hardware:
    return replace(machine(title, vendor, rates), kind="cpu", isa=frozenset(isa.split()))


V100 = machine("V100", "nvidia", "fp32 fp16 int8", (7, 0))
T4 = machine("T4", "nvidia", "fp32 fp16 int8 int4", (7, 5))
A100 = machine("A100", "nvidia", "fp32 tf32 fp16 bf16 int8 int4", (8, 0))
ORIN = machine("Jetson AGX Orin", "nvidia", "fp32 tf32 fp16 bf16 int8 int4", (8, 7))
L40S = machine("L40S", "nvidia", "fp32 tf32 fp16 bf16 fp8 int8 int4", (8, 9))
H100 = machine("H100", "nvidia", "fp32 tf32 fp16 bf16 fp8 int8", (9, 0))
B200 = machine("B200", "nvidia", "fp32 tf32 fp16 bf16 fp8 fp6 fp4 int8", (10, 0))
RTX5090 = machine("RTX 5090", "nvidia", "fp32 tf32 fp16 bf16 fp8 fp6 fp4 int8", (12, 0))
MI300X = machine("MI300X", "amd", "fp32 tf32 fp16 bf16 fp8 int8")
M1_MAX = machine("Apple M1 Max", "apple", "fp32 fp16")
ZEN4 = cpu("EPYC 9654", "amd", "fp32 bf16 int8", "avx2 fma avx512f avx512_vnni avx512_bf16")
ZEN3 = cpu("EPYC 7763", "amd", "fp32 int8", "avx2 fma")
GRAVITON3 = cpu("Graviton3", "aws", "fp32 fp16 bf16 int8", "neon sve fp16 dotprod bf16 i8mm")
PI4 = cpu("Raspberry Pi 4", "broadcom", "fp32 int8", "neon")
EDGE_TPU = replace(
    machine("Edge TPU", "google", "int8"),
    kind="npu",
    constraints=Constraints(True, True, True, 4),
)
MACHINES = (V100, T4, A100, ORIN, L40S, H100, B200, RTX5090, MI300X, M1_MAX, ZEN4, ZEN3, GRAVITON3, PI4, EDGE_TPU)


@pytest.mark.parametrize(
    ("scheme", "hardware", "level", "math_dtype"),
    [
        ("BF16", A100, "native", "bf16"),
        ("BF16", T4, "emulated", "fp16"),
        ("BF16", PI4, "emulated", "fp32"),
        ("FP16", T4, "native", "fp16"),
        ("FP32", EDGE_TPU, "unsupported", None),
        ("W4A16-g128", A100, "native", "bf16"),
        ("W4A16-g128", V100, "native", "fp16"),
        ("W4A16-g128", ZEN3, "emulated", "fp32"),
        ("W4A16-g128", EDGE_TPU, "unsupported", None),
        ("W8A8", T4, "native", "int8"),
        ("W8A8", M1_MAX, "unsupported", None),
        ("W8A8", B200, "native", "int8"),
        ("W8A8", ZEN4, "native", "int8"),
        ("W8A8", ZEN3, "emulated", "int8"),
        ("W8A8", PI4, "emulated", "int8"),
        ("W8A8", GRAVITON3, "native", "int8"),
        ("W8A8", EDGE_TPU, "unsupported", None),
        ("W8A8-static", EDGE_TPU, "unsupported", None),
        ("W8A8-tensor", EDGE_TPU, "native", "int8"),
        ("W4A4", A100, "native", "int4"),
        ("W4A4", H100, "unsupported", None),
        ("W4A4-g128", B200, "unsupported", None),
        ("FP8", V100, "unsupported", None),
        ("FP8", T4, "emulated", "fp16"),
        ("FP8", A100, "emulated", "bf16"),
        ("FP8", ORIN, "emulated", "bf16"),
        ("FP8", L40S, "native", "fp8"),
        ("FP8-block", H100, "native", "fp8"),
        ("FP8", MI300X, "native", "fp8"),
        ("FP8", ZEN4, "unsupported", None),
        ("FP8", M1_MAX, "unsupported", None),
        ("MXFP8", H100, "emulated", "bf16"),
        ("MXFP8", B200, "native", "fp8"),
        ("MXFP6", B200, "native", "fp6"),
        ("MXFP4", H100, "emulated", "bf16"),
        ("NVFP4", B200, "native", "fp4"),
        ("NVFP4", RTX5090, "native", "fp4"),
        ("NVFP4", V100, "unsupported", None),
        ("NVFP4", MI300X, "emulated", "bf16"),
        ("NVFP4-A16", ZEN4, "native", "bf16"),
        ("NF4", T4, "native", "fp16"),
        ("Q4_K", A100, "native", "int8"),
        ("Q4_K", M1_MAX, "emulated", "fp16"),
        ("Q4_K", ZEN4, "native", "int8"),
        ("Q4_K", PI4, "emulated", "int8"),
    ],
)
def test_level_and_math(scheme: str, hardware: Hardware, level: str, math_dtype: str | None) -> None:
    answer = capability(parse_scheme(scheme), hardware)
    assert (answer.level, answer.math_dtype) == (level, math_dtype)
    assert answer.runs is (level != "unsupported")


@pytest.mark.parametrize("hardware", MACHINES, ids=lambda hardware: hardware.name)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_every_answer_is_explained(scheme: object, hardware: Hardware) -> None:
    answer = capability(SCHEMES[str(scheme)], hardware)
    assert answer.reason[0].isupper()
    assert answer.reason.endswith(".")
    assert answer.source
    assert (answer.math_dtype is None) is (answer.level == "unsupported")
    assert answer.math_dtype is None or answer.math_dtype in hardware.peak_flop_per_s


def test_a_missing_rate_is_never_invented() -> None:
    no_int8 = replace(PI4, peak_flop_per_s={"fp32": 1e9})
    assert not capability(parse_scheme("W8A8"), replace(A100, peak_flop_per_s={"fp16": 1e9})).runs
    assert capability(parse_scheme("Q4_0"), no_int8).math_dtype == "fp32"
    assert not capability(parse_scheme("FP8"), replace(T4, peak_flop_per_s={"int8": 1e9})).runs
    older_amd = capability(parse_scheme("FP8"), replace(MI300X, peak_flop_per_s={"fp16": 1e9}))
    assert (older_amd.level, older_amd.math_dtype) == ("emulated", "fp16")


def test_symmetric_only_machines_refuse_zero_points() -> None:
    hardware = replace(A100, constraints=Constraints(symmetric_only=True))
    assert "without zero points" in capability(parse_scheme("W4A16-g128-asym"), hardware).reason
    assert capability(parse_scheme("W4A16-g128"), hardware).runs


@pytest.mark.parametrize(
    ("scheme", "hardware", "library", "runs"),
    [
        ("W8A8", H100, "vllm", True),
        ("W8A8", B200, "vllm", False),
        ("W8A8", B200, "trtllm", False),
        ("W8A8", V100, "vllm", False),
        ("FP8", A100, "vllm", True),
        ("FP8", A100, "trtllm", False),
        ("FP8", T4, "sglang", False),
        ("FP8-block", L40S, "trtllm", False),
        ("FP8-block", H100, "trtllm", True),
        ("W4A16-g128", B200, "trtllm", False),
        ("W4A16-g256", A100, "vllm", False),
        ("W4A16-g256", A100, "torch", True),
        ("W4A8-g128", A100, "vllm", False),
        ("W4A8-g128", GRAVITON3, "vllm", True),
        ("W4A8-g32", ZEN4, "torch", False),
        ("W4A4", A100, "vllm", False),
        ("NVFP4", B200, "trtllm", True),
        ("Q4_K", ZEN4, "llama.cpp", True),
        ("Q4_K", M1_MAX, "", True),
        ("Q4_K", EDGE_TPU, "llama.cpp", False),
        ("W8A8-tensor", EDGE_TPU, "", True),
        ("W8A8", ZEN4, "codesign", True),
        ("W8A16-g256", ZEN4, "codesign", False),
        ("W8A8", ZEN4, "torch", True),
        ("W4A16-g128", MI300X, "vllm", False),
        ("W4A16-g128", MI300X, "sglang", True),
    ],
)
def test_library_kernels(scheme: str, hardware: Hardware, library: str, runs: bool) -> None:
    answer = library_capability(parse_scheme(scheme), hardware, library)
    assert answer.runs is runs
    assert answer.source
    assert answer.reason.endswith(".")


def test_what_the_hardware_refuses_no_library_runs() -> None:
    for hardware in MACHINES:
        for scheme in SCHEMES.values():
            if not capability(scheme, hardware).runs:
                assert not any(library_capability(scheme, hardware, name).runs for name in LIBRARIES)


@pytest.mark.parametrize(
    ("hardware", "library", "baseline", "kv"),
    [
        (A100, "vllm", "BF16", "bf16"),
        (T4, "vllm", "FP16", "fp16"),
        (V100, "vllm", "FP16", "fp16"),
        (RTX5090, "vllm", "BF16", "bf16"),
        (MI300X, "vllm", "BF16", "bf16"),
        (ORIN, "llama.cpp", "BF16", "bf16"),
        (M1_MAX, "llama.cpp", "FP16", "fp16"),
        (ZEN4, "llama.cpp", "BF16", "bf16"),
        (ZEN3, "llama.cpp", "FP16", "fp16"),
        (PI4, "llama.cpp", "FP16", "fp16"),
        (EDGE_TPU, "litert", "W8A8-tensor", "int8"),
    ],
)
def test_defaults(hardware: Hardware, library: str, baseline: str, kv: str) -> None:
    assert default_library(hardware) == library
    assert baseline_scheme(hardware).name == baseline
    assert candidate_schemes(hardware)[0].name == baseline
    assert candidate_kv_formats(hardware)[0].name == kv


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("hardware", MACHINES, ids=lambda hardware: hardware.name)
def test_candidates_run_and_refusals_have_reasons(hardware: Hardware, library: str) -> None:
    candidates = candidate_schemes(hardware, library)
    refused = refused_schemes(hardware, library)
    assert len(set(candidates)) == len(candidates)
    assert not {scheme for scheme, _ in refused} & set(candidates)
    assert all(reason.endswith(".") for _, reason in refused)
    assert all(library_capability(scheme, hardware, library).runs for scheme in candidates[1:])


def test_practical_lists() -> None:
    names = {hardware.name: [str(scheme) for scheme in candidate_schemes(hardware)] for hardware in MACHINES}
    assert {"W8A8", "W4A16-g128", "W8A16"} <= set(names["a100"])
    assert "FP8" not in names["a100"]
    assert {"FP8", "FP8-block"} <= set(names["h100"])
    assert "NVFP4" not in names["h100"]
    assert "NVFP4" in names["b200"]
    assert "W8A8" not in names["b200"]
    assert names["edge-tpu"] == ["W8A8-tensor"]
    assert {"Q4_K", "Q8_0"} <= set(names["raspberry-pi-4"])


def test_refusals_say_why() -> None:
    def reasons(hardware: Hardware) -> dict[str, str]:
        return {str(scheme): reason for scheme, reason in refused_schemes(hardware)}

    assert "8.9" in reasons(A100)["FP8"]
    assert "28 TOPS" in reasons(H100)["W4A4-g128"]
    assert "use FP8" in reasons(B200)["W8A8"]
    assert "fixed beforehand" in reasons(EDGE_TPU)["W8A8"]


def test_fp8_kv_needs_a_gpu() -> None:
    assert "fp8" in [kv.name for kv in candidate_kv_formats(A100, "vllm")]
    assert "fp8" not in [kv.name for kv in candidate_kv_formats(ZEN4, "vllm")]
    for gpu in (T4, A100, H100):  # our kernel converts e4m3 itself: any GPU that it runs on has it
        assert [kv.name for kv in candidate_kv_formats(gpu, "codesign")][1:] == ["fp8", "int8", "int4"]
    assert [kv.name for kv in candidate_kv_formats(ZEN4, "codesign")] == ["bf16", "int8", "int4"]
    assert [kv.name for kv in candidate_kv_formats(ZEN4)] == ["bf16", "q8_0", "q4_0"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ""),
        ("vllm", "vllm"),
        ("vLLM-0.24.0", "vllm"),
        ("vllm-v0.14.0", "vllm"),
        ("trtllm-1.0.0", "trtllm"),
        ("trtllm-1.3.0rc20", "trtllm"),
        ("tensorrt-llm", "trtllm"),
        ("TensorRT_LLM-1.0", "trtllm"),
        ("llamacpp", "llama.cpp"),
        ("llama.cpp-b4321", "llama.cpp"),
        ("torch-2.13", "torch"),
        ("sglang-0.5.6.post2", "sglang"),
    ],
)
def test_library_names(text: str, name: str) -> None:
    assert parse_library(text) == name


@pytest.mark.parametrize("text", ["vlm", "cuda", "1.0", "x" * 10_000])
def test_unknown_libraries_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="Known are vllm") as caught:
        parse_library(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("scheme", "n", "k", "hardware", "problem"),
    [
        ("W4A16-g128", 4096, 4096, A100, None),
        ("W4A16-g128", 4096, 4160, A100, "one scale per 128"),
        ("W4A16-g32", 4096, 4128, A100, "k of 128"),
        ("W4A16", 4100, 4096, A100, "multiple of 64"),
        ("W4A16", 4100, 4096, ZEN4, None),
        ("W8A8", 4100, 4096, A100, "multiple of 16"),
        ("FP8-block", 576, 7168, H100, None),  # DeepSeek-V3 kv_a_proj: half a block along n
        ("FP8-block", 576, 7200, H100, "one scale per 128"),
        ("Q4_K", 576, 576, ZEN4, "blocks of 256"),  # SmolLM2-135M falls back to blocks of 32
        ("Q8_0", 576, 576, ZEN4, None),
        ("NVFP4", 48, 64, B200, "n a multiple of 32"),
        ("NF4", 50, 50, A100, None),
        ("W8A8-tensor", 10, 16, EDGE_TPU, "multiples of 4"),
        ("BF16", 3, 5, A100, None),
    ],
)
def test_shapes(scheme: str, n: int, k: int, hardware: Hardware, problem: str | None) -> None:
    answer = shape_problem(parse_scheme(scheme), n, k, hardware)
    assert answer is None if problem is None else answer is not None and problem in answer


def test_roles() -> None:
    scheme = parse_scheme("Q4_K")
    assert role_problem(scheme, "router", ZEN4) is not None
    assert role_problem(scheme, "embedding", ZEN4) is None
    assert role_problem(scheme, "head", ZEN4) is None
    quantized = parse_scheme("W4A16-g128")
    assert "16 bits" in (role_problem(quantized, "head", A100, "vllm") or "")
    assert role_problem(quantized, "embedding", A100, "vllm") is not None
    assert role_problem(quantized, "q", A100, "vllm") is None
    assert role_problem(parse_scheme("BF16"), "router", A100, "vllm") is None


def test_the_tables_name_things_that_exist() -> None:
    known = {*SCHEMES, *(scheme.family for scheme in SCHEMES.values()), "w3a4", "w2a4", "w1a4"}
    assert all(set(rule.schemes) <= known and rule.source for rule in HARDWARE_RULES)
    assert all(set(rule.schemes) <= known and rule.source for rule in SHAPE_RULES)
    for library in LIBRARIES.values():
        assert library.source
        assert set(library.kv_formats) <= set(KV_FORMATS)
        assert all(kernels.source and kernels.schemes for kernels in library.kernels)
        assert all(set(refusal.schemes) <= known and refusal.source for refusal in library.refusals)
        runnable = {name for kernels in library.kernels for name in kernels.schemes}
        assert all(parse_scheme(name).name == name for name in runnable)
        assert {name for _, names in library.candidates for name in names} <= runnable
    assert set(LIBRARY_ALIASES.values()) <= set(LIBRARIES)
    assert {name for _, name in DEFAULT_LIBRARIES} <= set(LIBRARIES)
    assert set(PROMINENT_SCHEMES) <= set(SCHEMES)
