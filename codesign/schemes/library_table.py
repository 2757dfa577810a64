"""Which kernel library runs which schemes where, as data, with sources. An absent row means no known kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from codesign.schemes.capability_table import Where
from codesign.schemes.catalog import SCHEMES


@dataclass(frozen=True, slots=True)
class Kernels:
    """Schemes for which a library has kernels on some machines."""

    schemes: tuple[str, ...]
    where: Where
    source: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Schemes (families or names) that a library refuses on some machines that could multiply them, and why."""

    schemes: tuple[str, ...]
    where: Where
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Library:
    """A family of kernels.

    `candidates` are the quantized schemes that a planner considers on some machines, best known variants first; a
    scheme that is emulated at a loss is not among them. Where `quantizes_embedding` or `quantizes_head` is False, that
    matrix stays in 16 bits.
    """

    name: str
    title: str
    kernels: tuple[Kernels, ...]
    refusals: tuple[Refusal, ...]
    candidates: tuple[tuple[Where, tuple[str, ...]], ...]
    kv_formats: tuple[str, ...]
    quantizes_embedding: bool
    quantizes_head: bool
    source: str


_ANYWHERE = Where()
_NVIDIA = Where(vendors=("nvidia",))
_AMD = Where(vendors=("amd",), kinds=("gpu",))
_CPU = Where(kinds=("cpu",))
_X86 = Where(kinds=("cpu",), isa_none=("neon",))
_ARM = Where(kinds=("cpu",), isa_any=("neon",))
_GPU = Where(kinds=("gpu",), vendors=("nvidia", "amd"))


def _nvidia(low: tuple[int, int], below: tuple[int, int] | None = None) -> Where:
    return Where(vendors=("nvidia",), from_capability=low, below_capability=below)


_FLOATS = ("BF16", "FP16", "FP32")
_MARLIN_INTEGERS = (
    "W4A16-g128", "W4A16-g64", "W4A16-g32", "W4A16", "W4A16-g128-asym", "W4A16-g64-asym", "W4A16-g32-asym",
    "W8A16", "W8A16-g128", "W8A16-g64", "W8A16-g32",
)  # fmt: skip
_FP8S = ("FP8", "FP8-dynamic", "FP8-channel", "FP8-block")
_INT8S = ("W8A8", "W8A8-static", "W8A8-tensor")
_GGML_FLOATS = ("GGML-MXFP4", "GGML-NVFP4")
_GGUF = tuple(name for name, scheme in SCHEMES.items() if scheme.family == "gguf" and name not in _GGML_FLOATS)
_GROUPS = ("-g32", "-g64", "-g128")
_BITSANDBYTES = ("NF4", "NF4-single", "BNB-FP4", "BNB-FP4-single")
# FP8 pays where it is multiplied natively; elsewhere W8A16 stores as few bits. Likewise NVFP4 and W4A16.
_NATIVE_FLOATS = (
    (_nvidia((8, 9)), ("FP8", "FP8-block")),
    (_AMD, ("FP8", "FP8-block")),
    (_nvidia((10, 0)), ("NVFP4",)),
)

_VLLM_TABLE = "vLLM docs, features/quantization/README.md, supported hardware (v0.14)"
_VLLM_MARLIN = "vLLM, quantization/utils/marlin_utils.py: group sizes -1, 32, 64, 128; zero points for 4 bits; from 7.5"
_VLLM_FP8 = "vLLM docs, features/quantization/llm_compressor/fp8.md: W8A8 from 8.9, weight-only Marlin from 7.5"

_VLLM = Library(
    "vllm", "vLLM",
    kernels=(
        Kernels(_FLOATS, _nvidia((7, 0)), "vLLM docs, installation: compute capability 7.0 or higher"),
        Kernels(_FLOATS, _AMD, "vLLM docs, installation on AMD ROCm"),
        Kernels(_FLOATS, _CPU, "vLLM docs, CPU installation: x86 and Arm"),
        Kernels(_MARLIN_INTEGERS, _nvidia((7, 5)), _VLLM_MARLIN),
        Kernels(("W4A16-g128", "W4A16-g64", "W4A16-g32", "W4A16", "W8A16", "W8A16-g128"), _nvidia((7, 0), (7, 5)),
                f"{_VLLM_TABLE}: GPTQ on Volta, older kernels than Marlin"),
        Kernels(("W3A16", "W3A16-g64", "W3A16-g128", "W2A16", "W2A16-g64", "W2A16-g128"), _nvidia((7, 0)),
                "vLLM, quantization/gptq.py: 2, 3, 4 and 8 bits; 2 and 3 run in older kernels than Marlin"),
        Kernels(("W4A16-g128", "W4A16-g128-asym", "W4A16-g64", "W4A16"), _X86, f"{_VLLM_TABLE}: AWQ and GPTQ on x86"),
        Kernels(_INT8S, _nvidia((7, 5), (10, 0)), f"{_VLLM_TABLE}: INT8 from Turing to Hopper"),
        Kernels(("W8A8", "W8A8-static"), _X86, f"{_VLLM_TABLE}: INT8 on x86"),
        Kernels(("W4A8", "W4A8-g128"), _ARM, "vLLM docs, llm_compressor/int8_w4a8.md: KleidiAI on Arm CPUs"),
        Kernels(_FP8S, _nvidia((7, 5)), _VLLM_FP8),
        Kernels(_FP8S, _AMD, f"{_VLLM_TABLE}: FP8 on AMD GPUs"),
        Kernels(("NVFP4", "MXFP4"), _nvidia((7, 5)),
                "vLLM: CUTLASS and FlashInfer from 10.0, weight-only Marlin (float4_e2m1f) below"),
        Kernels(("NVFP4-A16", "MXFP4-A16"), _nvidia((7, 5)), "vLLM, marlin_utils.py: float4_e2m1f from 7.5"),
        Kernels(("W4AFP8-g128",), _nvidia((9, 0), (10, 0)),
                "vLLM, quantization/kernels/mixed_precision/cutlass.py: Hopper only, group 128, no zero points"),
        Kernels(("W4A16-g64-asym16",), _nvidia((8, 0)),
                "vLLM, quantization/hqq_marlin.py: HQQ of 4 bits and group 64 from 8.0"),
        Kernels(_BITSANDBYTES, _nvidia((7, 0)), f"{_VLLM_TABLE}: bitsandbytes"),
        Kernels(_GGUF, _nvidia((7, 0)), f"{_VLLM_TABLE}: GGUF; its page calls it experimental and under-optimized"),
        Kernels(_GGUF, _AMD, f"{_VLLM_TABLE}: GGUF on AMD GPUs"),
    ),
    refusals=(
        Refusal(("w8a8",), _nvidia((10, 0)), "vLLM has no INT8 kernel for compute capability 10.0 and above; use FP8",
                "vLLM docs, features/quantization/llm_compressor/int8_w8a8.md"),
        Refusal(("w4a8",), _NVIDIA, "vLLM multiplies int4 weights with int8 activations on Arm CPUs only",
                "vLLM docs, llm_compressor/int8_w4a8.md; int4 x fp8 on Hopper is another scheme"),
    ),
    candidates=(  # 3 and 2 bits only on request: their kernels are older than Marlin, which rates do not show
        (_ANYWHERE, ("W8A16", "W8A8", "W4A16-g128", "W4A16-g32", "W4A8-g128", "MXFP4-A16")),
        *_NATIVE_FLOATS,
    ),
    kv_formats=("bf16", "fp16", "fp8", "fp8_e5m2"),
    quantizes_embedding=False, quantizes_head=False,
    source="llm-compressor recipes and vLLM docs ignore lm_head; embeddings are looked up in 16 bits",
)  # fmt: skip

_TRTLLM_TABLE = "TensorRT-LLM docs, features/quantization.md, hardware support matrix (1.x)"

_TRTLLM = Library(
    "trtllm", "TensorRT-LLM",
    kernels=(
        Kernels(_FLOATS, _nvidia((8, 0)), "TensorRT-LLM docs, support matrix: Ampere, Ada, Hopper, Blackwell"),
        Kernels(("W4A16-g128", "W4A16-g64", "W4A16-g128-asym", "W4A16-g64-asym"), _nvidia((8, 0), (10, 0)),
                f"{_TRTLLM_TABLE}: W4A16 AWQ and GPTQ, Ampere to Hopper"),
        Kernels(("W8A16", "W4A16"), _nvidia((8, 0), (10, 0)),
                "TensorRT-LLM docs, reference/precision.md: INT8 and INT4 weight-only; measured on A100, L40S, H200"),
        Kernels(_INT8S, _nvidia((8, 0), (10, 0)),
                "TensorRT-LLM docs, reference/precision.md: SmoothQuant; measured on A100, L40S, H200"),
        Kernels(("W4AFP8-g128-static",), _nvidia((8, 9), (10, 0)), f"{_TRTLLM_TABLE}: W4A8 AWQ on Ada and Hopper"),
        Kernels(("FP8",), _nvidia((8, 9)), f"{_TRTLLM_TABLE}: FP8 per tensor from Ada"),
        Kernels(("FP8-channel",), _nvidia((9, 0), (10, 0)), f"{_TRTLLM_TABLE}: FP8 rowwise on Hopper"),
        Kernels(("FP8-block",), _nvidia((9, 0), (12, 0)),
                f"{_TRTLLM_TABLE}: FP8 block scaling on Hopper, sm100 and sm103"),
        Kernels(("NVFP4", "MXFP4"), _nvidia((10, 0)), f"{_TRTLLM_TABLE}: NVFP4 and MXFP4 on Blackwell"),
    ),
    refusals=(
        Refusal(("w4a16", "w8a16", "w8a8"), _nvidia((10, 0)),
                "TensorRT-LLM lists no integer kernels for Blackwell; use FP8 or NVFP4", _TRTLLM_TABLE),
        Refusal(("fp8",), _nvidia((8, 0), (8, 9)),
                "TensorRT-LLM has no weight-only FP8 kernels, so FP8 begins with Ada", _TRTLLM_TABLE),
        Refusal(("w4a8",), _NVIDIA,
                "TensorRT-LLM's W4A8 multiplies int4 weights with FP8 activations, which is another scheme",
                _TRTLLM_TABLE),
    ),
    candidates=((_ANYWHERE, ("W8A16", "W8A8", "W4A16-g128")), *_NATIVE_FLOATS),
    kv_formats=("bf16", "fp16", "fp8", "int8"),
    quantizes_embedding=False, quantizes_head=False,
    source="NVIDIA Model Optimizer default recipes exclude lm_head",
)  # fmt: skip

_SGLANG_TABLE = "SGLang docs, advanced_features/quantization.md, platform compatibility"

_SGLANG = Library(
    "sglang", "SGLang",
    kernels=(
        Kernels(_FLOATS, _nvidia((7, 5)), "SGLang docs, installation: compute capability 7.5 or higher"),
        Kernels(_FLOATS, _AMD, "SGLang docs, platforms/amd_gpu"),
        Kernels(_MARLIN_INTEGERS, _nvidia((7, 5)), f"{_SGLANG_TABLE}: awq_marlin, gptq_marlin"),
        Kernels(("W4A16-g128", "W4A16-g128-asym", "W4A16-g64", "W4A16-g32", "W8A16", "W8A16-g128"), _AMD,
                f"{_SGLANG_TABLE}: awq and gptq by Triton on AMD"),
        Kernels(("W8A8",), _nvidia((7, 5), (10, 0)), f"{_SGLANG_TABLE}: w8a8_int8"),
        Kernels(("W8A8",), _AMD, f"{_SGLANG_TABLE}: w8a8_int8 on AMD"),
        Kernels(_FP8S, _nvidia((8, 0)), f"{_SGLANG_TABLE}: fp8, w8a8_fp8; Marlin below 8.9"),
        Kernels(_FP8S, _AMD, f"{_SGLANG_TABLE}: fp8 through Aiter or Triton"),
        Kernels(("NVFP4",), _nvidia((10, 0)), f"{_SGLANG_TABLE}: modelopt_fp4"),
        Kernels(("NVFP4", "NVFP4-A16"), _AMD, f"{_SGLANG_TABLE}: petit_nvfp4"),
        Kernels(("MXFP4-A16",), _nvidia((8, 0)), f"{_SGLANG_TABLE}: mxfp4"),
        Kernels(("MXFP4-A16",), _AMD, f"{_SGLANG_TABLE}: mxfp4 on CDNA 3 through Aiter"),
        Kernels(_BITSANDBYTES, _nvidia((7, 5)), f"{_SGLANG_TABLE}: bitsandbytes"),
        Kernels(_GGUF, _nvidia((7, 5)), f"{_SGLANG_TABLE}: gguf"),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("W8A16", "W8A8", "W4A16-g128", "W4A16-g32", "MXFP4-A16")), *_NATIVE_FLOATS),
    kv_formats=("bf16", "fp16", "fp8", "fp8_e5m2"),
    quantizes_embedding=False, quantizes_head=False,
    source="SGLang loads the same checkpoints as vLLM, whose recipes ignore lm_head",
)  # fmt: skip

_TORCH = Library(
    "torch", "PyTorch with torchao",
    kernels=(
        Kernels(_FLOATS, _GPU, "PyTorch: cuBLAS and hipBLASLt"),
        Kernels(_FLOATS, _CPU, "PyTorch: oneDNN and Arm Compute Library"),
        Kernels(("W8A16",), _nvidia((8, 0)), "torchao README and issue tables: int8_weight_only on A100 and H100"),
        Kernels(("W8A16", "W4A16-g32", "W4A16-g64", "W4A16-g128", "W4A16-g256", "W4A16-g32-asym", "W4A16-g64-asym",
                 "W4A16-g128-asym"), _CPU,
                "PyTorch _weight_int8pack_mm and _weight_int4pack_mm_for_cpu, measured on Zen 4"),
        Kernels(("W4A16-g32-asym", "W4A16-g64-asym", "W4A16-g128-asym", "W4A16-g256-asym",
                 "W4A16-g32", "W4A16-g64", "W4A16-g128", "W4A16-g256"), _nvidia((8, 0)),
                "PyTorch _weight_int4pack_mm (tinygemm): bf16, group 32, 64, 128 or 256"),
        Kernels(("W4A16-g32-asym16", "W4A16-g64-asym16", "W4A16-g128-asym16", "W4A16-g256-asym16"), _nvidia((8, 0)),
                "PyTorch, native/cuda/int4mm.cu: qScaleAndZeros are bf16 pairs; HQQ and torchao store them so"),
        Kernels(("W4A16-g32-asym16", "W4A16-g64-asym16", "W4A16-g128-asym16", "W4A16-g256-asym16"), _CPU,
                "PyTorch, native/cpu/int4mm.cpp: scale and zero point of each group as one pair"),
        Kernels(("W8A8", "W8A8-static"), _nvidia((7, 5), (10, 0)), "PyTorch _int_mm; torchao int8 dynamic"),
        Kernels(("W8A8", "W8A8-static"), _X86, "PyTorch linear_dynamic and onednn.qlinear, measured on Zen 4"),
        Kernels(("W8A8", "W8A8-static"), _ARM, "PyTorch quantized engines on Arm"),
        Kernels(("W4A8", "W4A8-g32"), _ARM, "PyTorch _dyn_quant_matmul_4bit through KleidiAI (pull request 158250)"),
        Kernels(("FP8", "FP8-dynamic", "FP8-channel"), _nvidia((8, 9)),
                "PyTorch _scaled_mm from compute capability 8.9; torchao float8 dynamic"),
        Kernels(("FP8", "FP8-channel"), _AMD, "PyTorch _scaled_mm on MI300"),
        Kernels(("NVFP4", "MXFP8", "MXFP4"), _nvidia((10, 0)), "torchao docs, workflows/inference.md: B200"),
        Kernels(_BITSANDBYTES, _nvidia((7, 5)), "bitsandbytes 0.50 notes: fused 4-bit GEMM, Turing to Blackwell"),
        Kernels(_BITSANDBYTES, _X86, "bitsandbytes Linear4bit on CPU, measured on Zen 4"),
    ),
    refusals=(
        Refusal(("w4a8",), _X86, "PyTorch runs its 4-bit dynamic product as reference code on x86, 1 % of the roof",
                "own measurement of _dyn_quant_matmul_4bit on 2 Zen 4 cores"),
    ),
    candidates=(
        (_ANYWHERE, ("W8A16", "W8A8", "FP8-channel", "W4A16-g128", "W4A16-g32", "W4A8-g32", "NF4")),
        (_nvidia((10, 0)), ("MXFP8", "NVFP4")),
    ),
    kv_formats=("bf16", "fp16"),
    quantizes_embedding=False, quantizes_head=True,
    source="torchao quantizes every Linear, the head included unless it is tied or filtered out; embeddings stay",
)  # fmt: skip

_LLAMA_CPP = Library(
    "llama.cpp", "llama.cpp (ggml)",
    kernels=(
        Kernels(("GGML-MXFP4",), _ANYWHERE, "ggml-org/llama.cpp: MXFP4 in ggml-cpu, -cuda, -metal (gpt-oss)"),
        Kernels(("GGML-NVFP4",), _CPU, "ggml-org/llama.cpp, pull request 19769: vec_dot of NVFP4 and Q8_0"),
        Kernels(("GGML-NVFP4",), _NVIDIA, "ggml-org/llama.cpp, pull request 20644: dp4a kernel of NVFP4 and Q8_1"),
        Kernels((*_FLOATS, *_GGUF), Where(kinds=("cpu",)), "ggml-org/llama.cpp: ggml-cpu, all block types"),
        Kernels((*_FLOATS, *_GGUF), _NVIDIA, "ggml-org/llama.cpp: ggml-cuda, compute capability 5.0 or higher"),
        Kernels((*_FLOATS, *_GGUF), _AMD, "ggml-org/llama.cpp: ggml-hip"),
        Kernels((*_FLOATS, *_GGUF), Where(vendors=("apple",)), "ggml-org/llama.cpp: ggml-metal and ggml-cpu"),
    ),
    refusals=(),
    # Codebook types below 4 bits only on request: their table look-ups are slow on CPUs, which rates do not show.
    candidates=((_ANYWHERE, ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K")),),
    kv_formats=("bf16", "fp16", "q8_0", "q4_0"),
    quantizes_embedding=True, quantizes_head=True,
    source="llama.cpp tools/quantize: token_embd and output get types of their own; norms and routers stay in 32 bits",
)  # fmt: skip

_PROFILED = "kernels of this project's profiler"

_ONNXRUNTIME = Library(
    "onnxruntime", "ONNX Runtime",
    kernels=(
        Kernels(("FP32", "FP16"), _CPU, "ONNX Runtime CPU provider"),
        Kernels(("W4A8-g32", "W4A8-g64", "W4A8-g128", "W8A8-g32", "W8A8-g128"), _CPU,
                "ONNX Runtime MatMulNBits, accuracy level 4 (int8 activations), 4 and 8 bits, measured on Zen 4"),
        Kernels(("W4A16-g32", "W4A16-g64", "W4A16-g128", "W8A16-g32", "W8A16-g64", "W8A16-g128"), _CPU,
                "ONNX Runtime MatMulNBits, accuracy level 1 (32-bit activations)"),
        Kernels(("W4A8-g128-asym", "W4A16-g128-asym"), _X86, _PROFILED),
        Kernels(("W8A8", "W8A8-static", "W8A8-tensor"), _CPU, "ONNX Runtime MatMulInteger and QLinearMatMul"),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("W8A8", "W4A8-g128", "W4A8-g32", "W4A16-g128")),),
    kv_formats=("fp16",),
    quantizes_embedding=False, quantizes_head=True,
    source="ONNX Runtime MatMulNBits quantizer: all MatMul nodes unless excluded",
)  # fmt: skip

_OPENVINO = Library(
    "openvino", "OpenVINO",
    kernels=(
        Kernels(("BF16", "FP32"), _CPU, "OpenVINO docs, CPU device: supported inference data types"),
        Kernels(("W4A16-g32", "W4A16-g64", "W4A16-g128", "W8A16", "W4A8-g32", "W4A8-g64", "W4A8-g128", "W8A8"), _X86,
                _PROFILED),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("W8A8", "W8A16", "W4A8-g128", "W4A8-g32", "W4A16-g128")),),
    kv_formats=("bf16", "fp16"),
    quantizes_embedding=False, quantizes_head=True,
    source="NNCF weight compression: all MatMul nodes, the head in 8 bits at least; embeddings stay here",
)  # fmt: skip

_BITSANDBYTES_CPU = Library(
    "bitsandbytes", "bitsandbytes",
    kernels=(
        Kernels(_FLOATS, _CPU, "layers that bitsandbytes leaves alone run in PyTorch"),
        Kernels(_BITSANDBYTES, _X86, _PROFILED),
        Kernels(_BITSANDBYTES, _nvidia((7, 5)), "bitsandbytes 0.50 notes: fused 4-bit GEMM, Turing to Blackwell"),
        Kernels(("W8A8",), _nvidia((7, 5)), "bitsandbytes 0.50, backends/cuda/ops.py: LLM.int8"),
        Kernels(_FLOATS, _GPU, "layers that bitsandbytes leaves alone run in PyTorch"),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("NF4",)),),
    kv_formats=("bf16", "fp16"),
    quantizes_embedding=False, quantizes_head=False,
    source="Transformers' bitsandbytes integration replaces Linear modules but the head",
)  # fmt: skip

_ZENTORCH = Library(
    "zentorch", "PyTorch with zentorch",
    kernels=(
        Kernels(("FP32", "BF16", "W8A8", "W4A16-g32", "W4A16-g64", "W4A16-g128"), _X86, _PROFILED),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("W8A8", "W4A16-g128", "W4A16-g32")),),
    kv_formats=("bf16", "fp16"),
    quantizes_embedding=False, quantizes_head=True,
    source="zentorch replaces the Linear modules that torchao or AMD Quark has quantized; embeddings stay",
)  # fmt: skip

# On CPUs torchao's configurations call other functions of PyTorch than its own packed products: times of its own.
_TORCHAO = replace(_TORCH, name="torchao", title="torchao on PyTorch")

_GEMLITE = replace(
    _TORCH, name="gemlite", title="PyTorch with gemlite",
    kernels=(
        Kernels(_FLOATS, _NVIDIA, "layers that gemlite leaves alone run in PyTorch"),
        Kernels(("W4A16-g32", "W4A16-g64", "W4A16-g128", "W8A16", "W8A8"), _nvidia((7, 5)), "gemlite 0.6, helper.py"),
        Kernels(("FP8-channel",), _nvidia((8, 9)), "gemlite 0.6, helper.py: A8W8_FP8_dynamic"),
    ),
    candidates=((_ANYWHERE, ("W8A16", "W8A8", "FP8-channel", "W4A16-g128", "W4A16-g32")),),
    quantizes_head=False, source="gemlite 0.6, helper.py: patch_model skips lm_head; embeddings are no Linear",
)  # fmt: skip
_FLASH_ATTN, _FLASHINFER = (
    replace(_TORCH, name=name, title=f"PyTorch with {title} attention", refusals=(), candidates=(), kv_formats=formats,
            kernels=(Kernels(_FLOATS, _nvidia(least), f"{title} attends, layers run in PyTorch in 16 bits"),))
    for name, title, least, formats in (("flash-attn", "FlashAttention", (8, 0), ("bf16", "fp16")),
                                        ("flashinfer", "FlashInfer", (7, 5), ("bf16", "fp16", "fp8")))
)  # fmt: skip

_CODESIGN = Library(
    "codesign", "codesign's own library",
    kernels=(
        Kernels(_FLOATS, _CPU, "layers that these kernels leave alone run in PyTorch"),
        Kernels((*(f"W4A{bits}{group}{zero}" for bits in (8, 16) for group in ("", *_GROUPS) for zero in ("", "-asym")),
                 *(f"W8A16{group}" for group in ("", *_GROUPS)), "W8A8", "W8A8-static"), _CPU, _PROFILED),
        Kernels(_FLOATS, _NVIDIA, "layers that these kernels leave alone run in PyTorch"),
        Kernels((*(f"W4A16{group}{zero}" for group in ("", *_GROUPS) for zero in ("", "-asym")),
                 "W8A16", "W8A8", "FP8-A16"),
                _nvidia((7, 5)), "kernels/*/cuda.cu of this repository: sm_75 and later"),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("W8A8", "W8A16", "W4A8-g128", "W4A8-g32", "W4A16-g128", "W4A16-g32")),),
    kv_formats=("bf16", "fp16", "fp8", "int8", "int4"),  # fp8: e4m3, by the GPU kernels only
    quantizes_embedding=False, quantizes_head=True,
    source="this repository: every Linear can be replaced; embeddings are looked up in 16 bits",
)  # fmt: skip

_LITERT = Library(
    "litert", "LiteRT (TensorFlow Lite) for the Edge TPU",
    kernels=(
        Kernels(("W8A8-tensor",), Where(kinds=("npu",)),
                "LiteRT 8-bit quantization specification: FULLY_CONNECTED weights int8 per tensor, activations static"),
    ),
    refusals=(),
    candidates=((_ANYWHERE, ("W8A8-tensor",)),),
    kv_formats=("int8",),
    quantizes_embedding=True, quantizes_head=True,
    source="Coral docs, edgetpu/models-intro: all tensors are 8-bit with parameters fixed at compile time",
)  # fmt: skip

LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {
        library.name: library
        for library in (
            _VLLM, _TRTLLM, _SGLANG, _TORCH, _LLAMA_CPP, _ONNXRUNTIME, _OPENVINO, _BITSANDBYTES_CPU, _ZENTORCH,
            _TORCHAO, _GEMLITE, _FLASH_ATTN, _FLASHINFER, _CODESIGN, _LITERT,
        )
    }
)  # fmt: skip

LIBRARY_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "tensorrt-llm": "trtllm",
        "trt-llm": "trtllm",
        "llamacpp": "llama.cpp",
        "llama-cpp": "llama.cpp",
        "ggml": "llama.cpp",
        "pytorch": "torch",
        "ort": "onnxruntime",
        "onnx-runtime": "onnxruntime",
        "tflite": "litert",
    }
)

# The first set that holds the machine decides. Jetson boards are GPUs of compute capability 8.7.
DEFAULT_LIBRARIES: tuple[tuple[Where, str], ...] = (
    (Where(kinds=("npu",)), "litert"),
    (_nvidia((8, 7), (8, 8)), "llama.cpp"),
    (_nvidia((7, 0)), "vllm"),
    (_AMD, "vllm"),
    (Where(), "llama.cpp"),
)

# Schemes that a report explains when they do not run, because users ask for them.
PROMINENT_SCHEMES = (
    "W8A16", "W8A8", "FP8", "FP8-block", "W4A16-g128", "W4A8-g128", "W4A4-g128", "NF4", "MXFP8", "MXFP4", "NVFP4",
    "Q8_0", "Q4_K",
)  # fmt: skip
