"""Large cases of GPUs repeat smaller ones: what is computed, read and compared is that of the whole case."""

import shutil

import numpy as np
import pytest

from codesign.gpu.gemm import Workspace
from codesign.profiler import repeated
from codesign.profiler.check import check_output
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import gpu, own_gpu, torch_gpu
from codesign.profiler.libraries.adapter import packed_copies, prepare_attention, prepare_gemm
from codesign.profiler.reference import attention, attention_inputs
from codesign.profiler.weights import quantize
from codesign.schemes.catalog import parse_scheme
from tests.gpu.emulated_gpu import COMPILER, EmulatedGpu

torch = pytest.importorskip("torch", reason="weights are rounded with torch")
PACKED = [
    row for row in own_gpu.LIBRARY.gemms
    if row.name not in ("triton", "dequantize_mm")
    and row.scheme in ("W4A16-g128", "W4A16-g32-asym", "W4A16", "W8A16", "FP8-A16", "W8A8")
]  # fmt: skip


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(repeated, "UNIQUE_ROWS", 128)


def tensors(packed) -> dict[str, np.ndarray]:
    found = {name: getattr(packed, name) for name in packed.__slots__}
    return {name: value.numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("row", PACKED, ids=lambda row: f"{row.name}-{row.scheme}")
def test_packed_rows_are_repeated_as_if_all_had_been_packed(row, on_cpu):
    few, whole = GemmCase(row.scheme, 4, 128, 192), GemmCase(row.scheme, 4, 384, 192)
    w = np.random.default_rng(0).standard_normal((few.n, few.k), dtype=np.float32)
    weights = quantize(w, parse_scheme(row.scheme), row.scale_precision)
    first, second = packed_copies(row, weights, None, whole, 2)
    expected = row.pack(weights.repeated(3), None, whole)
    assert (first.n, first.k) == (expected.n, expected.k)
    assert tensors(first).keys() == tensors(expected).keys()
    for name, values in tensors(expected).items():
        np.testing.assert_array_equal(tensors(first)[name], values, err_msg=name)
        assert values.size == 0 or not np.shares_memory(tensors(first)[name], tensors(second)[name])


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")
@pytest.mark.parametrize("scheme", ["W4A16-g32-asym", "W8A8"])
def test_our_kernels_compute_the_whole(scheme, on_cpu, monkeypatch):
    state = EmulatedGpu(), Workspace("cpu")
    monkeypatch.setattr(own_gpu, "_state", lambda: state)
    (row,) = [row for row in PACKED if row.scheme == scheme and row.name in ("w4a16_gemm", "w8a8_gemm")]
    case = GemmCase(scheme, 3, 384, 64)
    prepared = prepare_gemm(row, case, 2)
    check = check_output(prepared, case)
    assert check.passed, check.reason
    output = np.asarray(prepared.output(prepared.run(1)))
    assert output.shape == (3, 384)
    np.testing.assert_array_equal(output[:, :128], output[:, 256:])
    few = prepare_gemm(row, GemmCase(scheme, 3, 128, 64), 1)
    assert prepared.read_bytes == 3 * few.read_bytes


def test_a_kernel_that_stops_after_the_rows_that_differ_is_found(on_cpu):
    (row,) = [row for row in torch_gpu.LIBRARY.gemms if row.scheme == "FP16"]
    case = GemmCase("FP16", 4, 256, 128)
    prepared = prepare_gemm(row, case, 1)
    assert check_output(prepared, case).passed
    whole = prepared.run(0)
    whole[:, 64:] = 0
    broken = prepare_gemm(row, case, 1)
    assert not check_output(type(broken)(**{**slots(broken), "run": lambda _copy: whole}), case).passed


def slots(one) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__slots__}


def test_shapes_that_are_no_multiple_differ_in_all_rows():
    assert repeated.unique_gemm(GemmCase("FP16", 1, 1000, 64), "cuda").n == 1000
    assert repeated.unique_gemm(GemmCase("FP16", 1, 4096, 64), "cuda").n == repeated.UNIQUE_ROWS
    assert repeated.unique_gemm(GemmCase("FP16", 1, 4096, 64), "cpu").n == 4096


def test_heads_and_sequences_repeat_and_take_no_memory():
    case = AttentionCase("fp16", 3, 8, 2, 64, 1, 37)
    few = attention_inputs(repeated.unique_attention(case, "cuda"))
    whole = repeated.repeated_inputs(few, case)
    assert (whole.q.shape, whole.k.shape) == ((3, 8, 1, 64), (3, 2, 37, 64))
    assert whole.k.base is not None
    assert repeated.without_repetition(whole.k).nbytes == few.k.nbytes
    exact = attention(*(part.astype(np.float64) for part in (whole.q, whole.k, whole.v)))
    once = attention(*(part.astype(np.float64) for part in (few.q, few.k, few.v)))
    np.testing.assert_allclose(repeated.repeated_heads(once, 3, 8), exact)


@pytest.mark.parametrize("row", torch_gpu.LIBRARY.attentions, ids=lambda row: row.kv_format)
def test_attention_over_repeated_heads_is_checked_in_full(row, monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    case = AttentionCase(row.kv_format, 3, 8, 2, 64, 1, 37)
    prepared = prepare_attention(row, case, 2)
    assert check_output(prepared, case).passed
    output = prepared.run(0)
    output[2, 7] += 1
    spoilt = type(prepared)(**{**slots(prepared), "run": lambda _copy: output})
    assert not check_output(spoilt, case).passed


def test_our_own_library_is_here_wherever_it_is_imported(monkeypatch):
    """A checkout on the path is not installed; its GPU kernels are there all the same."""
    import importlib.metadata

    from codesign import __version__
    from codesign.profiler.libraries.adapter import state_of, version_of

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(own_gpu, "_is_there", lambda _module: True)
    monkeypatch.setattr(gpu, "problem", lambda: None)
    version_of.cache_clear()
    try:
        assert state_of(own_gpu.LIBRARY).version == __version__
        assert version_of("torch") is None
    finally:
        version_of.cache_clear()
