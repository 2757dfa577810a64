"""Every flag of every printed command is one that the program documents, with a value that it takes."""

import re
from dataclasses import replace

import pytest
from planned import inputs_of, planned, shuffled
from recipe_text import arguments, commands

from codesign.plan.recipes.make import make_recipe
from codesign.plan.recipes.registry import find_tool

COUNT, NAME, GGML = r"[1-9][0-9]*", r"[^-].*", r"(f32|bf16|f16|i?q[0-9]+_[a-z0-9_]+)"
KV = r"(f32|f16|bf16|q8_0|q4_0|q4_1|iq4_nl|q5_0|q5_1)"
# The beginning of the command, its documentation, and the values of its flags; those without one have an empty one.
GRAMMARS = {
    # vLLM docs, configuration/engine_args and cli/serve
    "vllm serve": {
        "--max-model-len": COUNT, "--max-num-seqs": COUNT, "--tensor-parallel-size": COUNT, "--tokenizer": NAME,
        "--kv-cache-dtype": r"(auto|fp8|fp8_e4m3|fp8_e5m2)", "--dtype": r"(auto|half|float16|bfloat16|float|float32)",
        "--quantization": r"(bitsandbytes|gguf)", "--enable-expert-parallel": "",
    },
    # SGLang docs, advanced_features/server_arguments
    "python -m sglang.launch_server": {
        "-m": r"sglang\.launch_server", "--model-path": NAME, "--tokenizer-path": NAME, "--context-length": COUNT,
        "--max-running-requests": COUNT, "--tp-size": COUNT, "--ep-size": COUNT,
        "--kv-cache-dtype": r"(auto|fp8_e5m2|fp8_e4m3)", "--dtype": r"(auto|half|float16|bfloat16|float|float32)",
        "--load-format": r"(auto|gguf|bitsandbytes)", "--quantization": r"(gguf|bitsandbytes)",
    },
    # TensorRT-LLM docs, commands/trtllm-serve; --config is the documented name since 1.2 (pull request 10005)
    "trtllm-serve": {
        "--backend": r"(pytorch|tensorrt|_autodeploy)", "--max_seq_len": COUNT, "--max_batch_size": COUNT,
        "--tp_size": COUNT, "--ep_size": COUNT, "--config": r"[a-z-]+\.yaml",
    },
    # llama.cpp, tools/server/README.md
    "llama-server": {
        "-m": NAME, "-c": COUNT, "-np": COUNT, "-t": COUNT, "-ngl": r"([0-9]+|auto|all)", "-fa": r"(on|off|auto)",
        "--cache-type-k": KV, "--cache-type-v": KV, "--split-mode": r"(none|layer|row|tensor)",
    },
    # llama.cpp, tools/quantize/README.md
    "llama-quantize": {
        "--tensor-type": rf".+={GGML}", "--token-embedding-type": GGML, "--output-tensor-type": GGML, "--imatrix": NAME,
    },
    # llama.cpp, tools/imatrix/README.md
    "llama-imatrix": {"-m": NAME, "-f": NAME, "-o": NAME},
    # llama.cpp, convert_hf_to_gguf.py --help
    "python convert_hf_to_gguf.py": {"--outtype": r"(f32|f16|bf16|q8_0|auto)", "--outfile": NAME},
    # huggingface_hub docs, guides/cli
    "hf download": {"--local-dir": NAME},
    # auto-round, cli/parser.py
    "auto-round": {
        "--model": NAME, "--scheme": r"[A-Z0-9_]+", "--group_size": r"-?[1-9][0-9]*", "--asym": "",
        "--layer_config": r"\{.*\}", "--format": r"(auto_round|llm_compressor)", "--output_dir": NAME,
        "--quant_lm_head": "", "--static_kv_dtype": "fp8",
    },
}  # fmt: skip
LLAMA, SHELL_WORDS = "llama-3.1-8b", ("cat >", "kv_cache_config:", "  dtype: ", "END")
W4 = ("W4A16-g128", "BF16")
CASES = [
    ("vllm", ("FP8-channel", "BF16"), "h100", "vllm", {"kv": "fp8"}),
    ("vllm", ("Q4_K",), "a100", "vllm", {}),
    ("vllm", ("NF4",), "a100", "vllm", {}),
    ("vllm", W4, "t4", "vllm", {"gpu_count": 4}),
    ("sglang", ("W4A16-g128", "FP8-channel"), "h100", "sglang", {"kv": "fp8_e5m2"}),
    ("sglang", ("Q4_K",), "a100", "vllm", {}),
    ("sglang", ("NF4",), "a100", "vllm", {}),
    ("trtllm", ("FP8", "BF16"), "h100", "trtllm", {"kv": "fp8"}),
    ("llama.cpp", ("Q4_K", "Q6_K", "BF16"), "h100", "llama.cpp", {"kv": "q8_0", "gpu_count": 2}),
    ("llama.cpp", ("IQ4_XS", "Q8_0"), "x86-avx512", "llama.cpp", {"thread_count": 2}),
    ("autoround", ("W4A16-g64-asym", "W8A16-g128", "BF16"), "a100", "vllm", {}),
    ("autoround", ("W8A8", "FP8-block"), "h100", "vllm", {"kv": "fp8"}),
]


def grammar_of(line):
    """Return the flags of the program that a command begins with."""
    found = [flags for words, flags in GRAMMARS.items() if line.startswith(words)]
    assert len(found) == 1, line
    return found[0]


@pytest.mark.parametrize(("tool", "pool", "hardware", "library", "options"), CASES)
def test_flags_are_documented(tool, pool, hardware, library, options):
    kv = options.get("kv", "")
    rest = {key: value for key, value in options.items() if key != "kv"}
    plan = planned(LLAMA, hardware, library, **rest)
    plan = shuffled(replace(plan, kv=kv or plan.kv), tool, pool, 5)
    lines = commands(make_recipe(inputs_of(plan), find_tool(tool), promote=True).text)
    for line in (line for line in lines if not line.startswith(SHELL_WORDS)):
        known = grammar_of(line)
        for flag, values in arguments(line).items():
            assert flag in known, (line[:40], flag)
            assert all(re.fullmatch(known[flag], value) for value in values if known[flag]), (flag, values)


def test_expert_parallelism_is_said_in_documented_flags():
    plan = planned("mixtral-8x7b", "h100", "vllm", gpu_count=4, expert_parallel=4)
    for tool, flag in (("vllm", "--enable-expert-parallel"), ("sglang", "--ep-size"), ("trtllm", "--ep_size")):
        lines = commands(make_recipe(inputs_of(plan), find_tool(tool), promote=True).text)
        line = next(line for line in lines if not line.startswith(SHELL_WORDS))
        assert flag in arguments(line)
        assert arguments(line).keys() <= grammar_of(line).keys()


def test_gguf_in_vllm_names_its_plugin():
    plan = shuffled(planned(LLAMA, "a100", "vllm"), "vllm", ("Q4_K",), 0)
    assert "vllm-gguf-plugin" in make_recipe(inputs_of(plan), find_tool("vllm")).text


@pytest.mark.parametrize("pool", [("Q8_0",), ("Q8_0", "Q6_K"), ("Q4_K", "Q8_0", "BF16"), ("Q4_0", "Q8_0", "Q6_K")])
def test_the_type_of_a_gguf_file_is_one_that_no_tensor_has(pool):
    """Builds of spring 2026 drop a --tensor-type that equals the type of the file (llama.cpp #22544)."""
    plan = shuffled(planned(LLAMA, "x86-avx512", "llama.cpp"), "llama.cpp", pool, 2)
    lines = commands(make_recipe(inputs_of(plan), find_tool("llama.cpp")).text)
    line = next(line for line in lines if line.startswith("llama-quantize"))
    types = {rule.rpartition("=")[2] for rule in arguments(line)["--tensor-type"]}
    assert line.split()[-1].lower() not in types


def test_torchao_makes_no_four_bits_for_cpus():
    """Its only packing that the config can name for them is that of GPUs."""
    plan = planned(LLAMA, "x86-avx512", "torch")
    groups = tuple(replace(one, scheme="W4A16-g128", method="rtn") for one in plan.groups)
    from codesign.errors import InputError

    with pytest.raises(InputError, match="for GPUs only"):
        make_recipe(inputs_of(replace(plan, groups=groups)), find_tool("torchao"))
    recipe = make_recipe(inputs_of(replace(plan, groups=groups)), find_tool("torchao"), promote=True)
    assert {change.promoted for change in recipe.promotions} == {"W8A16"}
