"""What machines can multiply, as data: the exceptions to "a rate in the profile means that it runs".

A scheme runs natively where the profile has a rate for one of its `math_dtypes`, and emulated where it has one for a
fallback. The rules below come first, the first that matches wins, and each has a source. Library kernels are in
`library_table.py`.
"""

from dataclasses import dataclass
from typing import Literal

from codesign.hardware.hardware import Hardware, HardwareKind

Level = Literal["native", "emulated", "unsupported"]


@dataclass(frozen=True, slots=True)
class Where:
    """A set of machines; an empty field does not restrict. Compute capability bounds: the lower in, the upper out."""

    kinds: tuple[HardwareKind, ...] = ()
    vendors: tuple[str, ...] = ()
    from_capability: tuple[int, int] | None = None
    below_capability: tuple[int, int] | None = None
    isa_any: tuple[str, ...] = ()
    isa_none: tuple[str, ...] = ()

    def matches(self, hardware: Hardware) -> bool:
        """Return whether the machine belongs to the set."""
        return (
            (not self.kinds or hardware.kind in self.kinds)
            and (not self.vendors or hardware.vendor.lower() in self.vendors)
            and self._capability_matches(hardware.compute_capability)
            and (not self.isa_any or any(name in hardware.isa for name in self.isa_any))
            and not any(name in hardware.isa for name in self.isa_none)
        )

    def _capability_matches(self, capability: tuple[int, int] | None) -> bool:
        if self.from_capability is None and self.below_capability is None:
            return True
        if capability is None:
            return False
        above = self.from_capability is None or capability >= self.from_capability
        return above and (self.below_capability is None or capability < self.below_capability)


@dataclass(frozen=True, slots=True)
class Rule:
    """For schemes (families or names) on some machines: level, what it multiplies in (best first), why, who says so."""

    schemes: tuple[str, ...]
    where: Where
    level: Level
    math_dtypes: tuple[str, ...]
    reason: str
    source: str


_BLOCK_FLOATS = ("mxfp8", "mxfp6", "mxfp4", "nvfp4")
_IN_16_BITS = ("bf16", "fp16")
_VLLM_FP8 = (
    "vLLM docs, features/quantization/llm_compressor/fp8.md: W8A16 through FP8 Marlin from compute capability 7.5"
)
_VLLM_MARLIN = "vLLM, quantization/utils/marlin_utils.py: FP8 and FP4 types from compute capability 7.5"

HARDWARE_RULES: tuple[Rule, ...] = (
    Rule(
        ("fp8",), Where(kinds=("cpu",)), "unsupported", (),
        "CPUs do not multiply FP8; converting it at run time is 5 to 200 times slower than bf16, so it is storage only",
        "own measurement on Zen 4: torch 2.13 _scaled_mm and oneDNN 0.1 to 42 GFLOP/s, bf16 28 to 227",
    ),
    Rule(
        _BLOCK_FLOATS, Where(kinds=("cpu",)), "unsupported", (),
        "CPUs do not multiply block-scaled floats; weight-only MXFP4-A16 or a GGUF type stores as few bits",
        "own survey of x86 and Arm instruction sets; llama.cpp multiplies MXFP4 weights with int8 activations instead",
    ),
    Rule(
        ("fp8", *_BLOCK_FLOATS), Where(vendors=("nvidia",), below_capability=(7, 5)), "unsupported", (),
        "no FP8 or FP4 arithmetic, and the weight-only kernels begin at compute capability 7.5 (Turing)",
        _VLLM_FP8,
    ),
    Rule(
        ("fp8",), Where(vendors=("nvidia",), below_capability=(8, 9)), "emulated", _IN_16_BITS,
        "no FP8 arithmetic before compute capability 8.9 (Ada): weights are converted to 16 bits, "
        "activations not quantized",
        _VLLM_FP8,
    ),
    Rule(
        _BLOCK_FLOATS, Where(vendors=("nvidia",), below_capability=(10, 0)), "emulated", _IN_16_BITS,
        "block-scaled floats are multiplied from compute capability 10.0 (Blackwell) on: here weights are converted "
        "to 16 bits, activations not quantized",
        _VLLM_MARLIN,
    ),
    Rule(
        ("fp8",), Where(vendors=("amd",), kinds=("gpu",)), "native", ("fp8",),
        "FP8 in the FNUZ encoding, whose largest value is 240 instead of 448",
        "AMD CDNA 3 instruction set; vLLM docs list FP8 W8A8 for AMD GPUs",
    ),
    Rule(
        _BLOCK_FLOATS, Where(vendors=("amd",), kinds=("gpu",)), "emulated", _IN_16_BITS,
        "block-scaled floats begin with MI350: here weights are converted to 16 bits, activations not quantized",
        "SGLang docs, advanced_features/quantization.md: petit_nvfp4 and mxfp4 on MI300X",
    ),
    Rule(
        ("fp8", *_BLOCK_FLOATS), Where(vendors=("apple", "qualcomm", "google")), "unsupported", (),
        "no FP8 or FP4 arithmetic, and no weight-only kernel for it is known",
        "llama.cpp and MLX kernel lists; absent rows are unknown, not slow",
    ),
    Rule(
        ("w4a4", "w3a4", "w2a4", "w1a4"), Where(vendors=("nvidia",), from_capability=(9, 0)), "unsupported", (),
        "INT4 tensor cores are emulated from Hopper on: 28 TOPS measured on H100, 76 on GeForce Blackwell",
        "mmapeak tensor-core peak tool, README example outputs",
    ),
    Rule(
        ("BF16",), Where(vendors=("nvidia",), below_capability=(8, 0)), "emulated", ("fp16", "fp32"),
        "no bf16 arithmetic before compute capability 8.0 (Ampere): 2.3 TFLOP/s measured on a T4, so fp16 is used",
        "NVIDIA CUDA programming guide, arithmetic instructions; mmapeak README for the T4",
    ),
    Rule(
        ("w8a8", "w4a8", "gguf"), Where(kinds=("cpu",), isa_any=("neon",), isa_none=("dotprod", "i8mm")), "emulated",
        ("int8", "fp32"),
        "no dot-product instruction: int8 is widened before it is multiplied",
        "Arm architecture manual: SDOT is optional from Armv8.2; the Cortex-A72 is Armv8.0",
    ),
    Rule(
        ("w8a8", "w4a8", "gguf"), Where(kinds=("cpu",), isa_any=("avx2",), isa_none=("avx512_vnni", "avx_vnni")),
        "emulated", ("int8", "fp32"),
        "no VNNI: int8 takes three instructions, at half the VNNI rate",
        "own measurement on Zen 4: maddubs, madd, add 233 GOP/s against 470 with vpdpbusd",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShapeRule:
    """Sizes that the kernels of these schemes (families or names) need, as divisors of n and k.

    `libraries` are those whose kernels they are; empty where the hardware itself asks for it.
    """

    schemes: tuple[str, ...]
    libraries: tuple[str, ...]
    where: Where
    n_divisor: int
    k_divisor: int
    reason: str
    source: str


_NVIDIA = Where(vendors=("nvidia",))
_X86 = Where(kinds=("cpu",), isa_none=("neon",))
_MARLIN_SOURCE = (
    "vLLM, quantization/utils/marlin_utils.py: GPTQ_MARLIN_MIN_THREAD_N = 64, GPTQ_MARLIN_MIN_THREAD_K = 128"
)
_TRTLLM_SOURCE = (
    "TensorRT-LLM, kernels/cutlass_kernels/cutlass_preprocessors.cpp: num_cols % MMA_SHAPE_N, num_rows % B_ROWS_PER_MMA"
)

SHAPE_RULES: tuple[ShapeRule, ...] = (
    ShapeRule(("w4a16", "w8a16", "fp4-a16"), ("vllm", "sglang"), _NVIDIA, 64, 128, "Marlin tiles", _MARLIN_SOURCE),
    ShapeRule(("w4a16",), ("trtllm",), _NVIDIA, 8, 32, "interleaved rows of the mixed-input GEMM", _TRTLLM_SOURCE),
    ShapeRule(("w8a16",), ("trtllm",), _NVIDIA, 8, 16, "interleaved rows of the mixed-input GEMM", _TRTLLM_SOURCE),
    ShapeRule(
        ("w4a16",), ("torch", "torchao"), _NVIDIA, 8, 32, "tinygemm tiles",
        "PyTorch, native/cuda/int4mm.cu: kNTileSize = 8, k a multiple of innerKTiles (2 at least) * kKTileSize (16)",
    ),
    ShapeRule(
        ("w4a16",), ("torch", "torchao"), _X86, 16, 2, "packed int4 rows",
        "PyTorch, native/LinearAlgebra.cpp: _convert_weight_to_int4pack_for_cpu checks N % 16",
    ),
    ShapeRule(
        ("w8a8", "w4a8", "fp8"), (), Where(vendors=("nvidia", "amd")), 16, 16, "tensor-core operands start on 16 bytes",
        "vLLM, csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu: 16-byte alignment; torch._scaled_mm asks the same",
    ),
    ShapeRule(
        ("mxfp8", "mxfp6", "mxfp4", "nvfp4"), (), Where(vendors=("nvidia", "amd")), 32, 32, "block-scaled operands",
        "vLLM, csrc/quantization/fp4/nvfp4_scaled_mm_kernels.cu: alignment of 32; MX blocks hold 32 values",
    ),
    ShapeRule(
        ("w4a4",), (), _NVIDIA, 32, 32, "int4 operands start on 16 bytes",
        "CUTLASS int4 tensor-op GEMM: alignment of 32 elements",
    ),
)  # fmt: skip
