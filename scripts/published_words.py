"""What the published results call things, in our words. An absent name is not guessed: its rows are counted.

Sources: the pages named in published_speed.csv; how llama.cpp mixes types, from its src/llama-quant.cpp.
"""

from dataclasses import dataclass

# A form factor that a source does not state is SXM where its host has eight GPUs or its bytes per second need it.
HARDWARE = {
    "A100-SXM4-80GB": "a100-sxm-80gb",
    "A100-80GB": "a100-sxm-80gb",
    "A100-SXM4-40GB": "a100-sxm-40gb",
    "A100-40GB": "a100-sxm-40gb",
    "A100-PCIe-80GB": "a100-pcie-80gb",
    "H100-SXM5-80GB": "h100-sxm",
    "H100-80GB": "h100-sxm",
    "L40S-48GB": "l40s",
    "L4-24GB": "l4",
    "A10-24GB": "a10",
    "A10G-24GB": "a10g",
    "T4-16GB": "t4",
    "RTX3090-24GB": "rtx-3090",
    "RTX4090-24GB": "rtx-4090",
    "JetsonAGXOrin(GPU)": "jetson-agx-orin",
    "JetsonAGXOrin-64GB(GPU)": "jetson-agx-orin",
    "CPU:Ryzen9-7950X": "ryzen-7950x",
    "CPU:Snapdragon8Gen3(OnePlus12)": "snapdragon-8-gen-3",
    "CPU:SnapdragonXElite(SurfaceLaptop7)": "snapdragon-x-elite",
    "CPU:RaspberryPi5": "raspberry-pi-5",
    "CPU:RaspberryPi5(500+)": "raspberry-pi-5",
    "CPU:RaspberryPi4": "raspberry-pi-4",
    "CPU:RaspberryPi4(400)": "raspberry-pi-4",
    "CPU:Xeon-Platinum-8380": "xeon-8380",
    "CPU:Xeon-Platinum-8480+": "xeon-8480plus",
    "CPU:Graviton3-64c(r7g.16xlarge)": "graviton3",
    "any": "ryzen-7950x",  # sizes of files, the same everywhere
}

# GPT of FasterTransformer has the shapes of the GPT-3 paper (arXiv 2005.14165, table 2.1), which OPT and GPT-2 share.
MODELS = {
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3-8B": "llama-3-8b",
    "Llama-2-7B": "llama-2-7b",
    "Llama-7B": "llama-7b",
    "Vicuna-7B": "llama-2-7b",
    "Llama-2-70B": "llama-2-70b",
    "Llama-3-70B": "llama-3-70b",
    "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.3-70B": "llama-3.3-70b",
    "Llama-3.1-405B": "llama-3.1-405b",
    "Llama-2-13B": "llama-2-13b",
    "Llama-13B": "llama-13b",
    "Vicuna-13B": "llama-2-13b",
    "Llama-30B": "llama-30b",
    "Llama-33B": "llama-30b",
    "Llama-65B": "llama-65b",
    "CodeLlama-7B": "codellama-7b",
    "CodeLlama-34B": "codellama-34b",
    "Mistral-7B": "mistral-7b",
    "Mixtral-8x7B": "mixtral-8x7b",
    "TinyLlama-1.1B": "tinyllama-1.1b",
    "Llama-3.2-1B": "llama-3.2-1b",
    "Llama-3.2-3B": "llama-3.2-3b",
    "Qwen2.5-0.5B": "qwen2.5-0.5b",
    "Qwen2.5-7B": "qwen2.5-7b",
    "Qwen2.5-14B": "qwen2.5-14b",
    "Qwen2.5-32B": "qwen2.5-32b",
    "DeepSeek-R1-14B(Qwen2.5)": "qwen2.5-14b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Falcon-7B": "falcon-7b",
    "Falcon-180B": "falcon-180b",
    "BLOOM-176B": "bloom-176b",
    "Gemma-3-4B": "gemma-3-4b",
    "Gemma-3-1B": "gemma-3-1b",
    "gpt-oss-20b": "gpt-oss-20b",
    "DeepSeek-R1-671B": "deepseek-r1",
    "OPT-1.3B": "opt-1.3b",
    "GPT2-large": "gpt2-large",
    "GPT-6.7B": "opt-6.7b",
    "GPT-1.3B": "opt-1.3b",
    "GPT3-XL": "opt-1.3b",
    "GPT3-2.7B": "opt-2.7b",
    "GPT-350M": "gpt2-medium",
}

# Matrices (n, k) that stand for themselves.
MATRICES = {"GEMM 72k x 18k": [(73728, 18432)]}

SCHEMES = {
    "fp16": "FP16",
    "bf16": "BF16",
    "fp32": "FP32",
    "fp8": "FP8",
    "int8_w8a8": "W8A8",
    "int8_w8a8_smoothquant": "W8A8",
    "int8_bnb": "W8A8",
    "nf4_dq": "NF4",
    "int4_ptq": "W4A8-g128",
    "int4_spinquant": "W4A8-g32",
    "int4_qat_lora": "W4A8-g32",
    "mxfp4": "MXFP4-A16",
}
GROUPED_SCHEMES = {
    ("int4_awq", "128"): "W4A16-g128-asym",
    ("int4_awq", "64"): "W4A16-g64-asym",
    ("int4_gptq", "128"): "W4A16-g128",
    ("int4_wo", "128"): "W4A16-g128",
    ("int4", "128"): "W4A16-g128",
    ("int8_wo", "128"): "W8A16-g128",
    ("nf4", "64"): "NF4",
}


@dataclass(frozen=True, slots=True)
class Mix:
    """Types of one GGUF file: of the blocks, of the head, and of half of the down-projections."""

    body: str
    head: str
    half_of_down: str = ""


# llama-quant.cpp: the output matrix has 6 bits unless all have more, 5 bits in files of 2 bits; *_K_M files store half
# of the down-projections (first and last eighth, every third between) one type higher, Q6_K in Q4_K_M.
MIXES = {
    "gguf_f16": Mix("FP16", "FP16"),
    "gguf_bf16": Mix("BF16", "BF16"),
    "gguf_q8_0": Mix("Q8_0", "Q8_0"),
    "gguf_q6_k": Mix("Q6_K", "Q6_K"),
    "gguf_q5_0": Mix("Q5_0", "Q6_K"),
    "gguf_q5_k_s": Mix("Q5_K", "Q6_K"),
    "gguf_q4_0": Mix("Q4_0", "Q6_K"),
    "gguf_q4_0(ollama default)": Mix("Q4_0", "Q6_K"),
    "gguf_q4_1": Mix("Q4_1", "Q6_K"),
    "gguf_q5_1": Mix("Q5_1", "Q6_K"),
    "gguf_q4_k_s": Mix("Q4_K", "Q6_K"),
    "gguf_q4_k_m": Mix("Q4_K", "Q6_K", "Q6_K"),
    "gguf_q4_k_m(ollama default)": Mix("Q4_K", "Q6_K", "Q6_K"),
    "gguf_iq4_nl": Mix("IQ4_NL", "Q6_K"),
    "gguf_iq4_xs": Mix("IQ4_XS", "Q6_K"),
    "gguf_q3_k_s": Mix("Q3_K", "Q6_K"),
    "gguf_iq3_s": Mix("IQ3_S", "Q6_K"),
    "gguf_iq3_xxs": Mix("IQ3_XXS", "Q6_K"),
    "gguf_q2_k": Mix("Q2_K", "Q6_K"),
    "gguf_q2_k_s": Mix("Q2_K", "Q6_K"),
    "gguf_iq2_m": Mix("IQ2_S", "Q5_K"),
    "gguf_iq2_xs": Mix("IQ2_XS", "Q5_K"),
    "gguf_iq2_xxs": Mix("IQ2_XXS", "Q5_K"),
}


@dataclass(frozen=True, slots=True)
class Program:
    """An engine: the library whose kernels it runs, nearest to ours, and its engine class."""

    library: str
    engine: str


COMPILED, EAGER, FUSED = "compiled", "eager", "eager-fused"
# By the beginning of the engine's name, first match. Absent: engines whose kernels no library of ours stands for.
PROGRAMS = (
    ("llama.cpp+OpenBLAS", None),
    ("llama.cpp", Program("llama.cpp", COMPILED)),
    ("ik_llama.cpp", Program("llama.cpp", COMPILED)),
    ("llamafile", Program("llama.cpp", COMPILED)),
    ("Ollama", Program("llama.cpp", COMPILED)),
    ("ctransformers", Program("llama.cpp", COMPILED)),
    ("TensorRT-LLM", Program("trtllm", COMPILED)),
    ("Optimum-NVIDIA", Program("trtllm", COMPILED)),
    ("FasterTransformer", Program("trtllm", COMPILED)),  # the predecessor of TensorRT-LLM
    ("LMDeploy TurboMind", Program("trtllm", COMPILED)),  # grown out of FasterTransformer
    ("vLLM", Program("vllm", COMPILED)),
    ("transformers/optimum, exllama kernel", Program("vllm", EAGER)),
    ("transformers/optimum, autogptq-cuda-old", None),
    ("transformers", Program("torch", EAGER)),
    ("HF transformers", Program("torch", EAGER)),
    ("PyTorch 2.1 eager", Program("torch", EAGER)),
    ("PyTorch/cuBLAS", Program("torch", COMPILED)),
    ("AutoAWQ", Program("vllm", FUSED)),
    ("TinyChat", Program("vllm", FUSED)),
    ("llm-awq", Program("vllm", FUSED)),
    ("ExLlamaV2 kernel", None),
    ("ExLlama", Program("vllm", FUSED)),
    ("ExecuTorch", Program("torch", COMPILED)),  # the same KleidiAI kernels on Arm
    ("Marlin kernel", Program("vllm", COMPILED)),
    ("torch-nightly int4 kernel", Program("torch", COMPILED)),
    ("bitsandbytes kernel", Program("torch", COMPILED)),
)

KV_FORMATS = {"fp16": "", "bf16": "", "fp32?": "", "": "", "fp8": "fp8", "q8_0": "q8_0"}
# NVIDIA's FP8 checkpoints, which these tables were made with, ask for an FP8 cache (kv_cache_quant_algo).
KV_OF_FP8_CHECKPOINTS = "fp8"

# Lengths that a source describes without a number. Decode alone hardly depends on them; everything else needs them.
SHORT_PROMPT_TOKENS = {"premai": 10, "bereket": 16, "dohu": 16}
UNSTATED_PROMPT_TOKENS, UNSTATED_OUTPUT_TOKENS = 64, 128
# Sources whose time per token is the time of the whole request over its tokens.
PREFILL_INSIDE_TPOT = frozenset({"optimum", "sagemaker"})
# What in-flight batching may reach at most: the default max_batch_size of TensorRT-LLM from v0.13 (2,048).
SATURATED_BATCH = {"max(inflight)": 2048, "max(100 prompts)": 100}

SECONDS = {"s": 1.0, "ms": 1e-3}
BYTES = {"GB": 1e9, "MB": 1e6, "GiB": 2.0**30, "MiB": 2.0**20}
