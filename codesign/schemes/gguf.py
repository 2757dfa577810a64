"""The block formats of GGUF files, as weight formats. Layouts: ggml-org/ggml, src/ggml-common.h and docs/gguf.md."""

from codesign.schemes.scheme import ActivationFormat, PerGroup, Scheme, WeightFormat

_HALF_BITS = 16.0  # every block starts with a 16-bit float scale

# ggml multiplies quantized weights with activations quantized to 8-bit blocks: `vec_dot_type` of the type traits in
# ggml/src/ggml-cpu/ggml-cpu.c. Q8_0 has a half per 32 values, Q8_1 also a half for their sum, Q8_K a float and
# sixteen 16-bit sums per 256. The CUDA kernels (mmvq, mmq) use Q8_1 throughout.
_Q8_0 = ActivationFormat("int8", 8, PerGroup(32), 16)
_Q8_1 = ActivationFormat("int8", 8, PerGroup(32), 32)
_Q8_K = ActivationFormat("int8", 8, PerGroup(256), 288)


def _short_block(bits: float, minimum_bits: float = 0.0) -> WeightFormat:
    """Return a format with one half-precision scale, and perhaps a minimum, per 32 weights."""
    return WeightFormat("int", bits, PerGroup(32), _HALF_BITS, minimum_bits, block_size=32)


def _super_block(
    bits: float, group: int, scale_bits: float, minimum_bits: float = 0.0, halves: int = 1
) -> WeightFormat:
    """Return a format of 256 weights with small integer scales per group under one or two half-precision scales."""
    return WeightFormat(
        "int", bits, PerGroup(group), scale_bits, minimum_bits,
        super_group_size=256, super_scale_bits=halves * _HALF_BITS, block_size=256,
    )  # fmt: skip


def _ternary_block(bits: float) -> WeightFormat:
    return WeightFormat("ternary", bits, PerGroup(256), _HALF_BITS, block_size=256)


# MXFP4 and NVFP4 of ggml are named after it: elsewhere these formats multiply otherwise, NVFP4 has a tensor scale too.
# The bits of a codebook format count its index and sign bits; the rest are scales. IQ1 keeps one shift bit per scale.
_FORMATS: dict[str, tuple[WeightFormat, ActivationFormat, str]] = {
    "Q8_0": (_short_block(8), _Q8_0, "8-bit blocks of 32"),
    "Q6_K": (_super_block(6, 16, 8), _Q8_K, "6-bit super-blocks of 256"),
    "Q5_K": (_super_block(5, 32, 6, 6, halves=2), _Q8_K, "5-bit super-blocks of 256 with minima"),
    "Q4_K": (_super_block(4, 32, 6, 6, halves=2), _Q8_K, "4-bit super-blocks of 256 with minima"),
    "Q3_K": (_super_block(3, 16, 6), _Q8_K, "3-bit super-blocks of 256"),
    "Q2_K": (_super_block(2, 16, 4, 4, halves=2), _Q8_K, "2-bit super-blocks of 256 with minima"),
    "Q5_1": (_short_block(5, 16), _Q8_1, "5-bit blocks of 32 with minima"),
    "Q5_0": (_short_block(5), _Q8_0, "5-bit blocks of 32"),
    "Q4_1": (_short_block(4, 16), _Q8_1, "4-bit blocks of 32 with minima"),
    "Q4_0": (_short_block(4), _Q8_0, "4-bit blocks of 32"),
    "IQ4_NL": (_short_block(4), _Q8_0, "4-bit blocks of 32, non-linear levels"),
    "IQ4_XS": (_super_block(4, 32, 6), _Q8_K, "4-bit super-blocks of 256, non-linear levels"),
    "IQ3_S": (_super_block(3.25, 32, 4), _Q8_K, "3-bit codebook"),
    "IQ3_XXS": (_super_block(2.875, 32, 4), _Q8_K, "3-bit codebook, smallest"),
    "IQ2_S": (_super_block(2.25, 16, 4), _Q8_K, "2-bit codebook, largest"),
    "IQ2_XS": (_super_block(2, 16, 4), _Q8_K, "2-bit codebook"),
    "IQ2_XXS": (_super_block(1.875, 32, 4), _Q8_K, "2-bit codebook, smallest"),
    "IQ1_M": (_super_block(1.5, 16, 3), _Q8_K, "1-bit codebook, larger"),
    "IQ1_S": (_super_block(1.375, 32, 3, 1), _Q8_K, "1-bit codebook"),
    "GGML-MXFP4": (
        WeightFormat("e2m1", 4, PerGroup(32), 8, block_size=32),
        _Q8_0,
        "4-bit floats, power-of-two scale per 32",
    ),
    "GGML-NVFP4": (
        WeightFormat("e2m1", 4, PerGroup(16), 8, block_size=64),
        _Q8_0,
        "4-bit floats, E4M3 scale per 16",
    ),
    "TQ2_0": (_ternary_block(2), _Q8_K, "ternary, 2 bits per weight"),
    "TQ1_0": (_ternary_block(1.625), _Q8_K, "ternary, 5 weights per byte"),
}


def gguf_schemes() -> tuple[Scheme, ...]:
    """Return one scheme per GGUF block format; it multiplies in int8, or dequantized where there is no int8."""
    return tuple(
        Scheme(
            name, weights, activations, ("int8",), ("fp16", "bf16", "fp32"),
            "gguf", f"GGUF {text}, int8 activations per block",
        )
        for name, (weights, activations, text) in _FORMATS.items()
    )  # fmt: skip
