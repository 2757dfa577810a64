"""Adapters of GPU libraries without a GPU: what they hand over, by stand-ins that read the documented layouts."""

import pytest

from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import (
    GPU_LIBRARIES,
    adapter,
    bitsandbytes_gpu,
    flash_attn,
    flashinfer,
    gemlite,
    gpu,
    torchao_gpu,
    vllm,
)
from codesign.profiler.libraries.adapter import kernels_of, state_of

OTHERS = {one.name: one for one in GPU_LIBRARIES if one.name not in ("codesign", "torch")}
NEEDED = {"bitsandbytes": "0.50", "torchao": "0.18", "gemlite": "0.6", "vllm": "0.33", "flash-attn": "2.8",
          "flashinfer": "0.7"}  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """Everything is installed, on an H100, with a compiler."""
    monkeypatch.setattr(adapter, "version_of", lambda _name: "99.1")
    monkeypatch.setattr(gpu, "problem", lambda: None)
    monkeypatch.setattr(gpu, "capability", lambda: (9, 0))
    monkeypatch.setenv("CUDA_HOME", "/somewhere")


def test_the_table_of_needed_versions_is_of_all_libraries():
    assert OTHERS.keys() == NEEDED.keys()


@pytest.mark.parametrize("name", NEEDED)
def test_a_library_that_is_not_installed_says_what_would_bring_it(name, monkeypatch):
    monkeypatch.setattr(adapter, "version_of", lambda _name: None)
    state = state_of(OTHERS[name])
    assert state.version is None
    assert f"pip install {OTHERS[name].distributions[0]}" in state.reason
    assert {kernel.refuses(GemmCase("BF16", 1, 64, 64)) for kernel in kernels_of(OTHERS[name])} <= {
        state.reason, f"{name} {kernels_of(OTHERS[name])[0].name} is an attention kernel; it multiplies no weights",
        f"{name} {kernels_of(OTHERS[name])[-1].name} is an attention kernel; it multiplies no weights",
    }  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_a_library_without_a_gpu_says_so(name, installed, monkeypatch):
    monkeypatch.setattr(gpu, "problem", lambda: "there is no NVIDIA driver here")
    assert state_of(OTHERS[name]).reason == "there is no NVIDIA driver here"


@pytest.mark.parametrize(("name", "needed"), NEEDED.items())
def test_a_library_older_than_its_adapter_is_refused(name, needed, installed, monkeypatch):
    assert state_of(OTHERS[name]).version == "99.1"
    monkeypatch.setattr(adapter, "version_of", lambda _name: "0.5.9")
    reason = state_of(OTHERS[name]).reason
    assert f"0.5.9 is older than {needed}" in reason
    assert f"pip install -U {OTHERS[name].distributions[0]}" in reason


def test_versions_are_compared_as_numbers(monkeypatch):
    monkeypatch.setattr(adapter, "version_of", lambda _name: "0.10.2rc1+cu130")
    assert adapter.too_old("any", 0, 9) is None
    assert adapter.too_old("any", 0, 10) is None
    assert "0.10.2rc1+cu130 is older than 0.11" in adapter.too_old("any", 0, 11)


def test_flashinfer_without_a_compiler_says_what_to_install(installed, monkeypatch, tmp_path):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(flashinfer, "_TOOLKIT", tmp_path / "cuda")
    assert "install the CUDA toolkit or flashinfer-jit-cache" in state_of(flashinfer.LIBRARY).reason
    (tmp_path / "cuda").mkdir()
    assert state_of(flashinfer.LIBRARY).reason is None


DECODE = AttentionCase("bf16", 2, 8, 2, 64, 1, 37)
REFUSED_GEMMS = (
    (bitsandbytes_gpu, "linear4bit", "NF4", (1, 64, 96), "k = 96 is not a multiple of 64"),
    (bitsandbytes_gpu, "gemv_4bit", "NF4", (2, 64, 128), "m = 2: gemv_4bit takes one row"),
    (bitsandbytes_gpu, "llm_int8", "W8A8", (1, 66, 128), "n = 66 is not a multiple of 4"),
    (bitsandbytes_gpu, "llm_int8", "W8A8", (1, 64, 130), "k = 130 is not a multiple of 4"),
    (torchao_gpu, "int4_tile_packed", "W4A16-g128", (1, 68, 128), "n = 68 is not a multiple of 8"),
    (torchao_gpu, "int4_tile_packed", "W4A16-g128", (1, 64, 192), "k = 192 is not a multiple of 128"),
    (torchao_gpu, "int8_dynamic", "W8A8", (16, 64, 128), "below 17 rows torchao converts weights to fp32"),
    (torchao_gpu, "int8_dynamic", "W8A8", (17, 68, 128), "n = 68 is not a multiple of 8"),
    (torchao_gpu, "float8_dynamic", "FP8-channel", (1, 72, 128), "n = 72 is not a multiple of 16"),
    (torchao_gpu, "float8_dynamic", "FP8-dynamic", (1, 64, 72), "k = 72 is not a multiple of 16"),
    (gemlite, "a16w4", "W4A16-g64", (1, 64, 96), "k = 96 is not a multiple of 64"),
    (gemlite, "a8w8", "W8A8", (1, 48, 128), "n = 48 is not a multiple of 32"),
    (vllm, "marlin", "W4A16-g128", (1, 96, 128), "n = 96 is not a multiple of 64"),
    (vllm, "marlin", "W4A16", (1, 64, 64), "k = 64 is not a multiple of 128"),
    (vllm, "machete", "W4A16-g128", (1, 64, 128), "n = 64 is not a multiple of 128"),
    (vllm, "machete", "W8A16-g64", (1, 128, 96), "k = 96 is not a multiple of 64"),
)
REFUSED_ATTENTIONS = (
    (flash_attn, "with_kvcache", {"q_tokens": 2}, "one new token at a time"),
    (flash_attn, "with_kvcache", {"head_dim": 60}, "head dimension 60 is no multiple of 8 up to 256"),
    (flash_attn, "with_kvcache", {"head_dim": 264}, "head dimension 264"),
    (flashinfer, "batch_decode", {"q_tokens": 2}, "one new token at a time"),
    (flashinfer, "batch_decode", {"head_dim": 96}, "head dimension 96 is none of"),
    (flashinfer, "batch_decode", {"heads": 10}, "5 heads of queries share one of keys"),
)


def kernel_of(module, name: str, scheme: str):
    (found,) = [one for one in kernels_of(module.LIBRARY) if (one.name, one.scheme) == (name, scheme)]
    return found


@pytest.mark.parametrize(("module", "name", "scheme", "shape", "why"), REFUSED_GEMMS)
def test_shapes_that_a_kernel_cannot_take_are_refused(module, name, scheme, shape, why, installed):
    kernel = kernel_of(module, name, scheme)
    assert why in kernel.refuses(GemmCase(scheme, *shape))
    rows = 1 if name == "gemv_4bit" else 64
    assert kernel.refuses(GemmCase(scheme, rows, 512, 1024)) is None


@pytest.mark.parametrize(("module", "name", "changed", "why"), REFUSED_ATTENTIONS)
def test_attention_that_a_kernel_cannot_do_is_refused(module, name, changed, why, installed):
    kernel = kernel_of(module, name, "bf16")
    sizes = {one: getattr(DECODE, one) for one in DECODE.__slots__}
    assert why in kernel.refuses(AttentionCase(**{**sizes, **changed}))
    assert kernel.refuses(DECODE) is None


def test_tensor_cores_of_flashinfer_take_any_number_of_heads(installed):
    many = AttentionCase("bf16", 1, 10, 2, 64, 1, 37)
    assert kernel_of(flashinfer, "batch_decode_tensor_cores", "bf16").refuses(many) is None


LEAST = {
    ("bitsandbytes", "llm_int8"): (7, 5), ("torchao", "int4_tile_packed"): (8, 0),
    ("torchao", "float8_dynamic"): (8, 9),
    ("gemlite", "a16w4"): (7, 5), ("gemlite", "a8w8_fp8"): (8, 9), ("vllm", "marlin"): (7, 5),
    ("vllm", "machete"): (9, 0), ("flash-attn", "with_kvcache"): (8, 0), ("flashinfer", "batch_decode"): (8, 0),
}  # fmt: skip


@pytest.mark.parametrize(("where", "least"), LEAST.items())
def test_older_gpus_are_refused(where, least, installed, monkeypatch):
    library, name = where
    kernel = next(one for one in kernels_of(OTHERS[library]) if one.name == name)
    case = DECODE if OTHERS[library].attentions else GemmCase(kernel.scheme, 64, 512, 1024)
    monkeypatch.setattr(gpu, "capability", lambda: least)
    assert kernel.refuses(case) is None
    monkeypatch.setattr(gpu, "capability", lambda: (least[0], least[1] - 1) if least[1] else (least[0] - 1, 9))
    assert f"compute capability {least[0]}.{least[1]}" in kernel.refuses(case)


def test_machete_is_for_hopper_alone(installed, monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda: (10, 0))
    why = kernel_of(vllm, "machete", "W4A16-g128").refuses(GemmCase("W4A16-g128", 1, 512, 1024))
    assert "9.0 only, this GPU has 10.0" in why
