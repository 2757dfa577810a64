"""Parameter counts against published totals, and cache sizes against papers."""

import pytest

from codesign.model.file import list_models, load_model, read_entry

TOLERANCE_FRACTION = 1e-3
PUBLISHED = [name for name in list_models() if read_entry(name)["published_parameters"]]

# Totals kept apart from the catalog, so that an edit there cannot change both sides.
# Sources: H = Hugging Face safetensors total; T = parameters of the model loaded by Hugging Face Transformers
# (tied weights once, buffers left out); C = the count printed on the model card.
EXACT: dict[str, tuple[int, str]] = {
    "gpt2": (124_439_808, "T of gpt2"),
    "gpt2-xl": (1_557_611_200, "T of gpt2-xl"),
    "opt-125m": (125_239_296, "T of facebook/opt-125m"),
    "bloom-176b": (176_247_271_424, "C of bigscience/bloom"),
    "llama-7b": (6_738_415_616, "T of LLaMA 7B; 6.7B in arXiv 2302.13971 table 2"),
    "llama-65b": (65_285_660_672, "T of LLaMA 65B; 65.2B in arXiv 2302.13971 table 2"),
    "llama-2-7b": (6_738_415_616, "T of meta-llama/Llama-2-7b-hf"),
    "llama-2-70b": (68_976_648_192, "T of meta-llama/Llama-2-70b-hf"),
    "llama-3.1-8b": (8_030_261_248, "H of meta-llama/Llama-3.1-8B"),
    "llama-3.1-70b": (70_553_706_496, "H of meta-llama/Llama-3.1-70B"),
    "llama-3.1-405b": (405_853_388_800, "H of meta-llama/Llama-3.1-405B"),
    "llama-3.2-1b": (1_235_814_400, "H of meta-llama/Llama-3.2-1B"),
    "codellama-34b": (33_743_970_304, "H of codellama/CodeLlama-34b-hf"),
    "mistral-7b": (7_241_732_096, "H of mistralai/Mistral-7B-v0.1"),
    "mixtral-8x7b": (46_702_792_704, "H of mistralai/Mixtral-8x7B-v0.1"),
    "qwen2.5-7b": (7_615_616_512, "H of Qwen/Qwen2.5-7B"),
    "qwen2-57b-a14b": (57_408_658_944, "H of Qwen/Qwen2-57B-A14B"),
    "qwen1.5-moe-a2.7b": (14_315_784_192, "H of Qwen/Qwen1.5-MoE-A2.7B"),
    "qwen3-32b": (32_762_123_264, "H of Qwen/Qwen3-32B"),
    "qwen3-235b-a22b": (235_093_634_560, "H of Qwen/Qwen3-235B-A22B"),
    "gemma-2b": (2_506_172_416, "H of google/gemma-2b"),
    "gemma-2-27b": (27_227_128_320, "H of google/gemma-2-27b"),
    "gemma-3-1b": (999_885_952, "H of google/gemma-3-1b-it"),
    "gemma-3-27b": (27_009_346_304, "H of google/gemma-3-27b-it, 27,432,406,640, less vision tower and projector"),
    "phi-2": (2_779_683_840, "H of microsoft/phi-2"),
    "phi-3-mini": (3_821_079_552, "H of microsoft/Phi-3-mini-4k-instruct"),
    "phi-4": (14_659_507_200, "H of microsoft/phi-4"),
    "falcon-7b": (7_217_189_760 - 65024 * 4544, "H of tiiuae/falcon-7b, which stores the tied head twice"),
    "yi-34b": (34_388_917_248, "H of 01-ai/Yi-34B"),
    "deepseek-v2": (235_741_434_880, "H of deepseek-ai/DeepSeek-V2"),
    "deepseek-v2-lite": (15_706_484_224, "H of deepseek-ai/DeepSeek-V2-Lite"),
    "deepseek-v3": (671_026_419_200, "H of microsoft/MAI-DS-R1, the same shape in bf16 without multi-token prediction"),
    "gpt-oss-20b": (20_914_757_184, "parameters of openai/gpt-oss-20b; 20.91B on the model card"),
    "gpt-oss-120b": (116_829_156_672, "parameters of openai/gpt-oss-120b; 116.83B on the model card"),
    "smollm2-135m": (134_515_008, "H of HuggingFaceTB/SmolLM2-135M"),
    "pythia-12b": (11_846_072_320, "C of EleutherAI/pythia-12b"),
    "stablelm-3b-4e1t": (2_795_443_200, "C of stabilityai/stablelm-3b-4e1t"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_match_the_published_totals_of_the_catalog(name: str):
    published = read_entry(name)["published_parameters"]
    assert published["source"]
    assert load_model(name).parameter_count == pytest.approx(published["count"], rel=TOLERANCE_FRACTION)


def test_most_of_the_catalog_has_a_published_total():
    assert len(PUBLISHED) >= 0.8 * len(list_models())


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exact(name: str):
    assert load_model(name).parameter_count == EXACT[name][0]


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("llama-2-7b", 32 * 2 * 4096),  # 524,288 bytes in fp16
        ("llama-2-70b", 80 * 2 * 8 * 128),  # 8 KV heads: arXiv 2307.09288, appendix A.2.1
        ("llama-3.1-405b", 126 * 2 * 8 * 128),  # arXiv 2407.21783, table 3
        ("mistral-7b", 32 * 2 * 8 * 128),  # arXiv 2310.06825, table 1
        ("gemma-2b", 18 * 2 * 1 * 256),  # multi-query: arXiv 2403.08295, table 1
        ("deepseek-v3", 61 * 576),  # rank 512 and rotary 64: arXiv 2412.19437, section 4.2
        ("deepseek-v2", 60 * 576),  # arXiv 2405.04434, section 3.1.2
        ("gpt2", 12 * 2 * 768),
    ],
)
def test_cache_elements_per_token(name: str, elements: int):
    assert load_model(name).kv_elements_per_token == elements


@pytest.mark.parametrize(("name", "active"), [("gpt-oss-120b", 5.13e9), ("gpt-oss-20b", 3.61e9)])
def test_active_parameters_as_the_gpt_oss_model_card_counts_them(name: str, active: float):
    # arXiv 2508.10925, table 1: 5.13B and 3.61B active, the unembedding included, the embedding not
    model = load_model(name)
    assert model.active_parameter_count - model.embedding.weight_count == pytest.approx(active, rel=2e-3)


def test_gpt2_as_nanogpt_sizes_it():
    # nanoGPT, transformer_sizing.ipynb: 124,337,664 without biases; forward pass at 1,024 tokens 291,648,307,200 flop
    model = load_model("gpt2")
    biases = sum(layer.n for block in model.blocks for layer in block.layers)
    norm_biases = (2 * len(model.blocks) + 1) * model.hidden
    assert model.parameter_count - biases - norm_biases == 124_337_664
    tokens = 1024
    weights = sum(layer.weight_count for layer in model.layers)
    attention = len(model.blocks) * 2 * tokens * tokens * model.hidden
    assert 2 * (weights * tokens + attention) == 291_648_307_200


def test_llama_2_7b_linear_weights():
    # gpt-fast README, Llama-2-7B bf16 at batch 1: 13.32 GB per token are these weights at 2 bytes, norms and the cache
    assert sum(layer.weight_count for layer in load_model("llama-2-7b").layers) == 6_607_077_376
