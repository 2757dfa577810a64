import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import LIBRARIES, all_kernels, library_states, llama_cpp, zentorch
from codesign.profiler.libraries import adapter as adapter_module
from codesign.profiler.libraries.adapter import (
    AttentionRow,
    GemmRow,
    Library,
    k_multiple,
    kernels_of,
    n_multiple,
    needs_flags,
    processor_flags,
    state_of,
)
from codesign.profiler.libraries.own import bf16_bits, from_bf16_bits
from codesign.profiler.libraries.torch_cpu import FP8_NOTE
from codesign.profiler.reference import rounded
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import KV_FORMATS

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="weights are rounded with torch")

CASE = GemmCase("W4A16-g32", 3, 7, 80)
DECODE = AttentionCase("bf16", 2, 4, 2, 16, 1, 9)


def plain_row(**changed) -> GemmRow:
    fields = {
        "name": "plain", "scheme": "W4A16-g32", "math_dtype": "fp32", "feed": lambda x, _case: x,
        "pack": lambda weights, _fed, _case: weights.dequantized(), "call": lambda x, w: x @ w.T,
        "output": lambda out: out.astype(np.float32), "x_precision": "fp32",
    }  # fmt: skip
    return GemmRow(**{**fields, **changed})


def library(*rows: GemmRow, distribution: str = "numpy", **changed) -> Library:
    return Library("fake", (distribution,), rows, lambda _threads: None, **changed)


@needs_torch
def test_a_prepared_kernel_computes_its_reference():
    (kernel,) = kernels_of(library(plain_row()))
    assert kernel.refuses(CASE) is None
    prepared = kernel.prepare(CASE, 1)
    np.testing.assert_allclose(prepared.output(prepared.run(0)), prepared.reference(), rtol=1e-4, atol=1e-5)


@needs_torch
def test_copies_are_the_same_rows_moved_down():
    prepared = kernels_of(library(plain_row()))[0].prepare(CASE, 3)
    first = prepared.output(prepared.run(0))
    assert prepared.copies == 3
    for copy in range(3):
        np.testing.assert_allclose(prepared.output(prepared.run(copy)), np.roll(first, copy, axis=1), rtol=1e-6)


@needs_torch
def test_read_bytes_are_codes_and_scales():
    prepared = kernels_of(library(plain_row(scale_bytes=2.5)))[0].prepare(CASE, 1)
    assert prepared.read_bytes == 7 * 80 / 2 + 7 * 3 * 2.5
    dense = kernels_of(library(plain_row(scheme="BF16")))[0].prepare(CASE, 1)
    assert dense.read_bytes == 7 * 80 * 2


@needs_torch
def test_the_reference_rounds_activations_as_the_scheme_does_and_exact_does_not():
    row = plain_row(scheme="W8A8", rounding="int8 per token")
    prepared = kernels_of(library(row))[0].prepare(CASE, 1)
    difference = np.abs(prepared.reference() - prepared.exact()).max()
    assert 1e-4 < difference < 0.1
    np.testing.assert_allclose(prepared.output(prepared.run(0)), prepared.exact(), rtol=1e-4, atol=1e-5)


@needs_torch
def test_threads_are_set_before_anything_is_packed():
    seen = []
    row = plain_row(pack=lambda *_: seen.append("pack"))
    fake = Library("fake", ("numpy",), (row,), seen.append)
    kernels_of(fake)[0].prepare(GemmCase("W4A16-g32", 1, 2, 32, threads=2), 2)
    assert seen == [2, "pack", "pack"]


def test_a_missing_library_refuses_every_case_with_what_would_bring_it():
    missing = library(plain_row(), distribution="no-such-package-here")
    state = state_of(missing)
    assert (state.version, state.reason) == (
        None, "no-such-package-here is not installed; pip install no-such-package-here",
    )  # fmt: skip
    assert kernels_of(missing)[0].refuses(CASE) == state.reason
    both = Library("fake", ("no-such-package-here", "numpy", "nor-this"), (), lambda _threads: None)
    assert state_of(both).reason.startswith("no-such-package-here and nor-this are not installed; pip install")


def test_an_installed_library_that_cannot_be_used_says_why():
    broken = library(plain_row(), problem=lambda: "it is built for another machine")
    assert (state_of(broken).version, state_of(broken).reason) == (None, "it is built for another machine")
    assert kernels_of(broken)[0].refuses(CASE) == "it is built for another machine"


def test_limits_are_told_in_order():
    (kernel,) = kernels_of(library(plain_row(limits=(n_multiple(7), k_multiple(32), n_multiple(16)))))
    assert kernel.refuses(CASE) == "k = 80 is not a multiple of 32"
    assert kernel.refuses(GemmCase("W4A16-g32", 1, 7, 64)) == "n = 7 is not a multiple of 16"
    assert kernel.refuses(GemmCase("W4A16-g32", 1, 112, 64)) is None


def test_processor_features_are_read_and_missing_ones_named(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2\n")
    assert processor_flags(cpuinfo) == {"fpu", "avx2"}
    assert processor_flags(tmp_path / "absent") == frozenset()
    monkeypatch.setattr(adapter_module, "processor_flags", lambda: frozenset({"avx2"}))
    assert needs_flags("avx2")(CASE) is None
    assert "has no avx512_bf16, amx_int8" in needs_flags("avx512_bf16", "amx_int8")(CASE)


def plain_attention(**changed) -> AttentionRow:
    fields = {
        "name": "plain", "kv_format": "bf16", "math_dtype": "fp32", "held": lambda values: rounded(values, "bf16"),
        "bits": 16, "feed": lambda q: q, "pack": lambda inputs, _case: inputs, "call": lambda q, _cache: q,
        "output": lambda out: out,
    }  # fmt: skip
    return AttentionRow(**{**fields, **changed})


def test_attention_reads_keys_values_and_scales():
    (kernel,) = kernels_of(library(attentions=(plain_attention(bits=4, scale_bytes=2.0),)))
    prepared = kernel.prepare(DECODE, 2)
    assert prepared.read_bytes == 2 * 2 * 2 * 9 * (16 * 4 / 8 + 2)
    assert prepared.reference().shape == (2, 4, 1, 16)


def test_kernels_refuse_the_other_kind_of_case_and_impossible_shapes():
    (attends,) = kernels_of(library(attentions=(plain_attention(),)))
    (multiplies,) = kernels_of(library(plain_row()))
    assert "multiplies no weights" in attends.refuses(CASE)
    assert "no attention kernel" in multiplies.refuses(DECODE)
    assert "not a multiple of 3 heads" in attends.refuses(AttentionCase("bf16", 1, 4, 3, 16, 1, 9))
    assert "10 new tokens" in attends.refuses(AttentionCase("bf16", 1, 4, 2, 16, 10, 9))
    assert attends.refuses(DECODE) is None


def test_every_kernel_has_a_name_of_its_own_and_a_scheme_that_exists():
    kernels = all_kernels()
    assert len({(kernel.library, kernel.name, kernel.scheme, kernel.device) for kernel in kernels}) == len(kernels)
    for kernel in kernels:
        assert kernel.scheme in KV_FORMATS or parse_scheme(kernel.scheme).name == kernel.scheme


def test_every_library_has_a_state_with_a_version_or_a_reason():
    states = library_states()
    assert [state.name for state in states] == [*(one.name for one in LIBRARIES), "llama.cpp"]
    assert all(state.version or state.reason for state in states)


def test_fp8_on_a_cpu_says_that_it_is_reference_code():
    (fp8,) = [one for one in all_kernels() if (one.library, one.scheme, one.device) == ("torch", "FP8", "cpu")]
    assert fp8.note == FP8_NOTE
    assert "reference code" in FP8_NOTE


def test_listing_kernels_and_asking_what_they_refuse_imports_no_library():
    code = """
import sys
from codesign.profiler.kernel import GemmCase
from codesign.profiler.libraries import all_kernels, library_states
library_states()
for kernel in all_kernels():
    kernel.refuses(GemmCase(kernel.scheme, 1, 64, 128))
heavy = {"torch", "onnx", "onnxruntime", "openvino", "bitsandbytes", "zentorch", "torchao", "gemlite", "triton", "vllm",
         "flash_attn", "flashinfer"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("ours", "torchs", "fits"), [("2.13.0.2", "2.13.0+cpu", True), ("2.14.0.1", "2.13.0", False)])
def test_zentorch_must_be_of_the_minor_version_of_torch(monkeypatch, ours, torchs, fits):
    versions = {"zentorch": ours, "torch": torchs}
    monkeypatch.setattr(zentorch, "version_of", versions.get)
    monkeypatch.setattr(adapter_module, "processor_flags", lambda: frozenset({"avx512f", "avx512bw", "avx512vl"}))
    problem = zentorch.LIBRARY.problem()
    assert problem is None if fits else "built for another PyTorch" in problem


def fake_program(folder, text: str) -> None:
    program = folder / "llama-bench"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_llama_cpp_is_what_is_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "llama-bench, test-backend-ops is on the PATH" in llama_cpp.state().reason
    fake_program(tmp_path, "echo 'version: 6901 (abcdef0)' >&2")
    state = llama_cpp.state()
    assert state.version == "6901 (abcdef0)"
    assert "llama-bench -o json" in state.reason


def test_llama_cpp_is_found_in_a_named_folder_first(tmp_path, monkeypatch):
    (tmp_path / "named").mkdir()
    fake_program(tmp_path / "named", "echo 'version: 2 (named)'")
    fake_program(tmp_path, "echo 'version: 1 (path)'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert llama_cpp.state().version == "1 (path)"
    monkeypatch.setenv(llama_cpp.FOLDER, str(tmp_path / "named"))
    assert llama_cpp.state().version == "2 (named)"
    monkeypatch.setenv(llama_cpp.FOLDER, str(tmp_path / "empty"))
    assert llama_cpp.state().version == "1 (path)"


def test_a_llama_cpp_that_does_not_run_is_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_program(tmp_path, "exit 3")
    assert (llama_cpp.state().version, "does not run" in llama_cpp.state().reason) == (None, True)


def test_bf16_bits_round_trip():
    values = rounded(np.random.default_rng(0).standard_normal((4, 8), dtype=np.float32), "bf16")
    assert (from_bf16_bits(bf16_bits(values)) == values).all()
