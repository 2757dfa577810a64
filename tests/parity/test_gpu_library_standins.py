"""Adapters of GPU libraries that run nowhere without a GPU: stand-ins read what they are given as documented."""

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from codesign.profiler.check import check_output
from codesign.profiler.kernel import AttentionCase, GemmCase
from codesign.profiler.libraries import flash_attn, flashinfer, gemlite, gpu, vllm
from codesign.profiler.libraries.adapter import prepare_attention, prepare_gemm

torch = pytest.importorskip("torch", reason="weights are rounded with torch")
SHAPES = ((1, 64, 128), (4, 192, 384))
DECODES = (AttentionCase("fp16", 1, 4, 4, 64, 1, 16), AttentionCase("fp16", 3, 8, 2, 64, 1, 37))


@pytest.fixture
def module(monkeypatch):
    """Put modules of stand-ins in place of libraries, on a GPU that is the CPU."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def put(name: str, **contents) -> None:
        made = ModuleType(name)
        made.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    return put


def passes(prepared, case) -> None:
    check = check_output(prepared, case)
    assert check.passed, check.reason
    first, last = (np.array(prepared.output(prepared.run(copy))) for copy in (0, 2))
    np.testing.assert_array_equal(last, first)


def layer(w, rounded=lambda x: x):
    return lambda x: torch.nn.functional.linear(rounded(x.float()), w).half()


def int8_per_token(x):
    scales = x.abs().amax(1, keepdim=True) / 127
    return (x / scales).round() * scales


def e4m3_per_token(x):
    scales = x.abs().amax(1, keepdim=True) / 448
    return (x / scales).to(torch.float8_e4m3fn).float() * scales


class Helper:
    """A helper of gemlite: it takes codes [n, k] with scales [n, groups], and zeros where they are packed."""

    def __init__(self, rounded, device, dtype) -> None:
        assert (device, dtype) == ("cpu", torch.float16)
        self.rounded = rounded

    def from_weights(self, codes, scales, zeros=None):
        assert codes.dtype == (torch.int8 if zeros is None else torch.uint8) or codes.dtype.is_floating_point
        group = codes.shape[1] // scales.shape[1]
        assert zeros is None or zeros.dtype == scales.dtype == torch.float16
        moved = codes.float() - (0 if zeros is None else zeros.float().repeat_interleave(group, 1))
        return layer(moved * scales.float().repeat_interleave(group, 1), self.rounded)


HELPERS = {
    "A16W4_HQQ_INT": lambda x: x, "A16W8_INT8": lambda x: x, "A8W8_INT8_dynamic": int8_per_token,
    "A8W8_FP8_dynamic": e4m3_per_token,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", gemlite.LIBRARY.gemms, ids=lambda row: f"{row.name}-{row.scheme}")
def test_gemlite_is_given_codes_scales_and_zeros(module, row, shape):
    module(
        "gemlite.helper",
        **{name: lambda device, dtype, one=one: Helper(one, device, dtype) for name, one in HELPERS.items()},
    )
    case = GemmCase(row.scheme, *shape)
    passes(prepare_gemm(row, case, 3), case)


UINT4B8, UINT8B128 = SimpleNamespace(bits=4, middle=8), SimpleNamespace(bits=8, middle=128)


def unpacked(words, type_):
    """Return codes [k, n] of words [k / 8, n], the first in the lowest bits."""
    codes = [(words >> shift) & (2**type_.bits - 1) for shift in range(0, 32, type_.bits)]
    return torch.stack(codes, dim=1).reshape(-1, words.shape[1]) - type_.middle


def multiplied(x, words, scales, type_):
    codes = unpacked(words, type_)
    assert scales.dtype == torch.float16
    assert codes.shape[0] == x.shape[1]
    return (x.float() @ (codes * scales.float().repeat_interleave(len(codes) // len(scales), 0))).half()


def marlin_multiplies(x, *, weight, weight_scale, weight_zp, workspace, wtype, **sizes):
    assert (len(weight_zp), workspace.dtype, workspace.any()) == (0, torch.int32, torch.tensor(False))
    assert sizes == {"output_size_per_partition": weight.shape[1], "input_size_per_partition": x.shape[1]}
    return multiplied(x, weight, weight_scale, wtype)


def permuted(scales, size_k, size_n, group_size):
    assert scales.shape == (1 if group_size == -1 else size_k // group_size, size_n)
    return scales


def repacked(words, size_k, size_n, bits):
    assert words.is_contiguous()
    assert (words.dtype, tuple(words.shape)) == (torch.int32, (size_k * bits // 32, size_n))
    return words


def machete_prepacked(words, activations, type_, scales):
    assert words.t().is_contiguous()
    assert activations == scales == torch.float16
    return words


def machete_multiplies(*, a, b_q, b_type, b_group_scales, b_group_size):
    assert len(b_group_scales) == (1 if b_group_size == -1 else a.shape[1] // b_group_size)
    return multiplied(a, b_q, b_group_scales, b_type)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", vllm.LIBRARY.gemms, ids=lambda row: f"{row.name}-{row.scheme}")
def test_vllm_is_given_words_of_gptq_and_scales(module, row, shape):
    operators = {
        "gptq_marlin_repack": repacked, "machete_prepack_B": machete_prepacked, "machete_mm": machete_multiplies,
    }  # fmt: skip
    module("vllm.scalar_type", scalar_types=SimpleNamespace(uint4b8=UINT4B8, uint8b128=UINT8B128))
    module("vllm._custom_ops", **operators)
    module(
        "vllm.model_executor.layers.quantization.utils.marlin_utils",
        apply_gptq_marlin_linear=marlin_multiplies, marlin_permute_scales=permuted, MARLIN_MAX_BLOCKS_PER_SM=4,
        marlin_make_empty=lambda _device: torch.empty(0, dtype=torch.int32),
        marlin_make_workspace_new=lambda _device, most: torch.zeros(132 * most, dtype=torch.int32),
    )  # fmt: skip
    case = GemmCase(row.scheme, *shape)
    passes(prepare_gemm(row, case, 3), case)


def attended(q, k, v):
    """Return [heads, head_dim] of queries [heads, head_dim] over keys and values [tokens, kv_heads, head_dim]."""
    k, v = (one.float().repeat_interleave(q.shape[0] // one.shape[1], 1) for one in (k, v))
    scores = torch.einsum("hd,thd->ht", q.float(), k) / math.sqrt(q.shape[1])
    return torch.einsum("ht,thd->hd", torch.softmax(scores, 1), v).to(q.dtype)


def with_kvcache(q, k_cache, v_cache, *, cache_seqlens, causal):
    """Take queries [batch, 1, heads, head_dim] and caches [batch, tokens, kv_heads, head_dim]."""
    assert causal
    assert cache_seqlens.dtype == torch.int32
    each = zip(q, k_cache, v_cache, cache_seqlens, strict=True)
    return torch.stack([attended(one[0], k[:length], v[:length])[None] for one, k, v, length in each])


class PagedWrapper:
    """FlashInfer's wrapper: pages [page, token, kv_head, head_dim], found by the table that was planned."""

    def __init__(self, workspace, layout, *, use_tensor_cores) -> None:
        assert (workspace.dtype, layout) == (torch.uint8, "NHD")
        assert not workspace.any()

    def plan(self, indptr, indices, last_page_len, heads, kv_heads, head_dim, page, *, q_data_type, kv_data_type):
        assert {one.dtype for one in (indptr, indices, last_page_len)} == {torch.int32}
        self.types = q_data_type, kv_data_type
        assert len(indptr) == len(last_page_len) + 1
        self.spans = [
            (indices[first:end].long(), (end - first - 1) * page + last)
            for first, end, last in zip(indptr[:-1], indptr[1:], last_page_len, strict=True)
        ]
        self.sizes = (heads, head_dim), (page, kv_heads, head_dim)

    def run(self, q, cache):
        assert (q.dtype, tuple(q.shape[1:])) == (self.types[0], self.sizes[0])
        assert all((one.dtype, tuple(one.shape[1:])) == (self.types[1], self.sizes[1]) for one in cache)
        return torch.stack(
            [
                attended(one, *(part[pages].flatten(0, 1)[:length] for part in cache))
                for one, (pages, length) in zip(q, self.spans, strict=True)
            ]
        )


@pytest.mark.parametrize("case", DECODES, ids=str)
@pytest.mark.parametrize("row", flash_attn.LIBRARY.attentions, ids=lambda row: row.kv_format)
def test_flash_attn_is_given_caches_by_token(module, row, case):
    module("flash_attn", flash_attn_with_kvcache=with_kvcache)
    passes(prepare_attention(row, case, 3), case)


@pytest.mark.parametrize("case", DECODES, ids=str)
@pytest.mark.parametrize("row", flashinfer.LIBRARY.attentions, ids=lambda row: f"{row.name}-{row.kv_format}")
def test_flashinfer_is_given_pages_and_their_table(module, monkeypatch, row, case):
    monkeypatch.setattr(flashinfer, "_workspace", lambda: torch.zeros(16, dtype=torch.uint8))
    module("flashinfer", BatchDecodeWithPagedKVCacheWrapper=PagedWrapper)
    prepared = prepare_attention(row, case, 3)
    passes(prepared, case)
    assert prepared.read_bytes == 2 * case.batch * case.kv_heads * case.kv_tokens * 64 * row.bits / 8
    assert row.bits == {"bf16": 16, "fp16": 16, "fp8": 8}[row.kv_format]


def test_flashinfer_plans_before_the_timed_call(module, monkeypatch):
    plans = []

    class Counting(PagedWrapper):
        def plan(self, *arguments, **named):
            plans.append(self)
            super().plan(*arguments, **named)

    monkeypatch.setattr(flashinfer, "_workspace", lambda: torch.zeros(16, dtype=torch.uint8))
    module("flashinfer", BatchDecodeWithPagedKVCacheWrapper=Counting)
    prepared = prepare_attention(flashinfer.LIBRARY.attentions[0], DECODES[1], 2)
    assert len(set(plans)) == 2
    prepared.run(1)
    assert len(plans) == 2
