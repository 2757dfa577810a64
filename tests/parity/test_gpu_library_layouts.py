"""What adapters of GPU libraries hand over, computed on the CPU by the libraries' own code where it runs there."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from codesign.profiler.check import check_output
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import bitsandbytes_gpu, gpu, torch_gpu, torchao_gpu
from codesign.profiler.libraries.adapter import import_quietly, prepare_attention, prepare_gemm

torch = pytest.importorskip("torch", reason="weights are rounded with torch")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
SHAPES = ((1, 64, 128), (4, 96, 384), (33, 48, 2112))


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")


def row_of(library, name: str, scheme: str):
    (row,) = [one for one in library.gemms if (one.name, one.scheme) == (name, scheme)]
    return row


def passes(row, shape) -> None:
    case = GemmCase(row.scheme, *shape)
    prepared = prepare_gemm(row, case, 3)
    check = check_output(prepared, case)
    assert check.passed, check.reason
    first, last = (np.array(prepared.output(prepared.run(copy))) for copy in (0, 2))
    np.testing.assert_array_equal(last, first)


@needs_bitsandbytes
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "scheme"), [("linear4bit", "NF4"), ("dequantize_4bit", "NF4"), ("llm_int8", "W8A8")])
def test_bitsandbytes_computes_what_it_is_given(on_cpu, name, scheme, shape):
    bitsandbytes_gpu.LIBRARY.start(1)
    passes(row_of(bitsandbytes_gpu.LIBRARY, name, scheme), shape)


@needs_bitsandbytes
def test_bitsandbytes_multiplies_one_row_as_it_is_given(on_cpu, monkeypatch):
    """On CPUs its operator reads another layout, so that of other devices without a kernel stands in."""
    bitsandbytes_gpu.LIBRARY.start(1)
    functional = import_quietly("bitsandbytes.functional")

    def gemv_4bit(x, codes, shape, absmax, levels, block):
        assert levels.tolist() == functional.get_4bit_type("nf4", device="cpu").tolist()
        weights = torch.ops.bitsandbytes.dequantize_4bit.default(codes, absmax, block, "nf4", shape, x.dtype)
        return torch.nn.functional.linear(x, weights)

    monkeypatch.setattr(torch.ops.bitsandbytes.gemv_4bit, "default", gemv_4bit)
    passes(row_of(bitsandbytes_gpu.LIBRARY, "gemv_4bit", "NF4"), (1, 96, 384))


def tinygemm(x, packed, group, pairs):
    """Multiply as PyTorch's tinygemm does, by torchao's own definition of its scales and zeros."""
    quantization = import_quietly("torchao.quantization.quant_primitives")
    utils = import_quietly("torchao.quantization.utils")
    codes = torch.stack([packed >> 4, packed & 15], dim=2).reshape(len(packed), -1).int()
    scales, zeros = (part.squeeze(-1) for part in utils.unpack_tinygemm_scales_and_zeros(pairs))
    w = quantization._dequantize_affine_tinygemm(
        codes, (1, group), scales, zeros, torch.int32, 0, 15, output_dtype=torch.bfloat16
    )
    return x @ w.t()


@pytest.fixture
def tinygemm_on_cpu(monkeypatch, on_cpu):
    import_quietly("torchao.quantization")
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", lambda codes, _tiles: codes)
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", tinygemm)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@needs_torchao
def test_the_stand_in_for_tinygemm_reads_what_torchao_itself_packs(tinygemm_on_cpu):
    w = torch.from_numpy(np.random.default_rng(1).standard_normal((16, 1100), dtype=np.float32)).bfloat16()
    packed = import_quietly("torchao.quantization").Int4TilePackedTo4dTensor.from_hp(w[:, :1088], [1, 64])
    identity = torch.eye(1088, dtype=torch.bfloat16)
    back = torch.nn.functional.linear(identity, packed).t()
    assert (back - w[:, :1088]).abs().max() < 0.3  # a step is up to 0.5


@needs_torchao
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", [(1, 64, 128), (4, 96, 1024), (33, 48, 2176)])
def test_torchao_multiplies_int4_as_it_is_given(tinygemm_on_cpu, group, shape):
    passes(row_of(torchao_gpu.LIBRARY, "int4_tile_packed", f"W4A16-g{group}"), shape)


@needs_torchao
@pytest.mark.parametrize("group", [32, 64, 128])
def test_tinygemm_is_given_what_torchao_gives_it(tinygemm_on_cpu, group):
    passes(row_of(torch_gpu.LIBRARY, "tinygemm", f"W4A16-g{group}"), (4, 96, 384))


@pytest.mark.parametrize(
    ("name", "scheme"), [("linear", "FP16"), ("linear", "BF16"), ("int_mm", "W8A8-static"), ("scaled_mm", "FP8")]
)
def test_torch_computes_what_it_is_given(on_cpu, name, scheme):
    gpu.start(1)
    passes(row_of(torch_gpu.LIBRARY, name, scheme), (33, 96, 384))


@pytest.mark.parametrize("row", torch_gpu.LIBRARY.attentions, ids=lambda row: row.kv_format)
def test_torch_attends_to_what_it_is_given(on_cpu, row):
    gpu.start(1)
    case = AttentionCase(row.kv_format, 2, 8, 2, 64, 1, 70)
    assert check_output(prepare_attention(row, case, 2), case).passed


@needs_torchao
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "scheme"),
    [("int8_weight_only", "W8A16"), ("int8_dynamic", "W8A8"), ("float8_dynamic", "FP8-channel"),
     ("float8_dynamic", "FP8-dynamic")],
)  # fmt: skip
def test_torchao_computes_what_it_is_given(on_cpu, name, scheme, shape):
    gpu.start(1)
    passes(row_of(torchao_gpu.LIBRARY, name, scheme), shape)


@needs_torchao
def test_torchao_rounds_weights_to_other_codes_than_it_was_given(on_cpu):
    """The check would not pass with weights that are moved by a column."""
    row = row_of(torchao_gpu.LIBRARY, "int8_weight_only", "W8A16")
    moved = replace(row, pack=lambda weights, fed, case: row.pack(weights.rolled(1), fed, case))
    case = GemmCase("W8A16", 4, 96, 384)
    assert not check_output(prepare_gemm(moved, case, 1), case).passed
