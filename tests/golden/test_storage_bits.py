"""Stored bits and bytes against numbers from outside."""

import pytest

from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import bytes_per_token, data_bytes_per_token, parse_kv, scale_bytes_per_token
from codesign.schemes.storage import data_bytes, scale_bytes, scale_count, weight_bytes

# Block sizes in bytes and values: ggml-org/ggml, src/ggml-common.h (static_assert beside each block struct).
GGUF_BLOCKS = {
    "Q4_0": (18, 32), "Q4_1": (20, 32), "Q5_0": (22, 32), "Q5_1": (24, 32), "Q8_0": (34, 32),
    "Q2_K": (84, 256), "Q3_K": (110, 256), "Q4_K": (144, 256), "Q5_K": (176, 256), "Q6_K": (210, 256),
    "IQ4_NL": (18, 32), "IQ4_XS": (136, 256), "IQ3_S": (110, 256), "IQ3_XXS": (98, 256), "IQ2_S": (82, 256),
    "IQ2_XS": (74, 256), "IQ2_XXS": (66, 256), "IQ1_M": (56, 256), "IQ1_S": (50, 256),
    "TQ1_0": (54, 256), "TQ2_0": (66, 256),
}  # fmt: skip


@pytest.mark.parametrize(("name", "block_bytes", "values"), [(name, *sizes) for name, sizes in GGUF_BLOCKS.items()])
def test_gguf_blocks(name: str, block_bytes: int, values: int) -> None:
    scheme = parse_scheme(name)
    assert weight_bytes(scheme, 1, values) == block_bytes
    assert weight_bytes(scheme, 7, 3 * values) == 21 * block_bytes
    assert scheme.bits_per_weight == block_bytes * 8 / values


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("W4A16-g128", 4.125),  # marlin README: 4 bits and a 16-bit scale per 128
        ("W4A16-g128-asym", 4.15625),  # AWQ: 4-bit zero point beside the 16-bit scale
        ("MXFP4", 4.25),  # OCP Microscaling Formats v1.0: 8-bit scale per 32
        ("MXFP6", 6.25),
        ("MXFP8", 8.25),
        ("NVFP4", 4.5),  # NVIDIA: E4M3 scale per 16
        ("NF4", 4.127),  # QLoRA, section 3: double quantization costs 8/64 + 32/(64 x 256) = 0.127 bits
        ("FP8-block", 8.00195),  # DeepSeek-V3: one 32-bit scale per 128 x 128
    ],
)
def test_bits_per_weight(name: str, bits: float) -> None:
    scheme = parse_scheme(name)
    assert scheme.bits_per_weight == pytest.approx(bits, abs=5e-4)
    assert weight_bytes(scheme, 4096, 4096) * 8 / 4096**2 == pytest.approx(bits, abs=5e-4)


def test_marlin_ideal_speed_up() -> None:
    # IST-DASLab/marlin README: "close to ideal 3.87x" for group 128 against FP16.
    assert 16 / parse_scheme("W4A16-g128").bits_per_weight == pytest.approx(3.87, abs=0.01)


def test_scales_of_a_square_matrix() -> None:
    # 4096 rows x 4096 / 128 groups, the figure of the project's issue.
    scheme = parse_scheme("W4A16-g128")
    assert scale_count(scheme, 4096, 4096) == 131_072
    assert scale_bytes(scheme, 4096, 4096) == 262_144
    assert data_bytes(scheme, 4096, 4096) == 8_388_608


def test_packed_shapes_of_compressed_tensors() -> None:
    # compressed-tensors pack_quantized: weight_packed int32 [out, ceil(in x bits / 32)], weight_scale [out, in / g],
    # zero points int32 [ceil(out x bits / 32), in / g]. Here [5, 100] by 64: 5 x 13 words, 5 x 2 scales, 1 x 2 words.
    symmetric, asymmetric = parse_scheme("W4A16-g64"), parse_scheme("W4A16-g64-asym")
    assert weight_bytes(symmetric, 5, 100) == 5 * 13 * 4 + 5 * 2 * 2
    assert weight_bytes(asymmetric, 5, 100) == 5 * 13 * 4 + 5 * 2 * 2 + 1 * 2 * 4
    # Three bits run densely across words: 32 values in 3 words.
    assert data_bytes(parse_scheme("W3A16-g32"), 1, 32) == 12


def test_nf4_is_grouped_across_rows() -> None:
    # bitsandbytes flattens the tensor: 3 x 100 values make 5 groups of 64 with one byte each and one super-scale.
    assert weight_bytes(parse_scheme("NF4"), 3, 100) == 150 + 5 + 4


def test_llama_2_7b_kv_cache() -> None:
    # Llama-2-7B: 32 blocks x 2 x 32 heads x 128 (Hugging Face config.json), so 524,288 bytes per token in FP16
    # and 1 GiB at 2,048 tokens: the figures of the project's issue.
    elements = 32 * 2 * 32 * 128
    fp16, int8, int4 = parse_kv("fp16"), parse_kv("int8"), parse_kv("int4")
    assert bytes_per_token(fp16, elements, 128) == 524_288
    assert bytes_per_token(fp16, elements, 128) * 2048 == 2**30
    assert data_bytes_per_token(int8, elements) == 262_144
    assert scale_bytes_per_token(int8, elements, 128) == 32 * 2 * 32 * 2
    # QServe KV4: half-precision scale and zero point per token and head.
    assert bytes_per_token(int4, elements, 128) == 131_072 + 32 * 2 * 32 * 4


def test_gguf_kv_cache_bits() -> None:
    # ggml-common.h: Q8_0 is 34 bytes per 32, Q4_0 is 18 bytes per 32.
    assert bytes_per_token(parse_kv("q8_0"), 1024, 128) * 8 / 1024 == 8.5
    assert bytes_per_token(parse_kv("q4_0"), 1024, 128) * 8 / 1024 == 4.5
