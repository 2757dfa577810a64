"""GGUF files of every architecture give the layers of the Hugging Face config; tensor names by the `gguf` package."""

import re

import pytest

gguf = pytest.importorskip("gguf", reason="its name map is the oracle here")

from codesign.checkpoint.checkpoint import read_checkpoint  # noqa: E402
from codesign.errors import InputError  # noqa: E402
from codesign.model.architectures import build_model  # noqa: E402
from codesign.model.file import load_model  # noqa: E402
from codesign.model.gguf_model import _CONFIGS as READERS  # noqa: E402
from codesign.model.layers import LatentAttention, Model  # noqa: E402
from tests.tiny_checkpoints import write_gguf  # noqa: E402
from tests.tiny_configs import TINY  # noqa: E402

NUMBERS = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
# Architecture of the file by tiny config; norms that this form of it has not.
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "llama": ("llama", ()),
    "llama with biases": ("llama", ()),
    "mistral": ("llama", ()),
    "mixtral": ("llama", ()),
    "qwen2": ("qwen2", ()),
    "qwen2_moe with all blocks sparse": ("qwen2moe", ()),
    "qwen3": ("qwen3", ()),
    "qwen3_moe": ("qwen3moe", ()),
    "gemma": ("gemma", ()),
    "gemma2": ("gemma2", ()),
    "gemma3_text": ("gemma3", ()),
    "granite": ("granite", ()),
    "gpt_oss": ("gpt-oss", ()),
    "deepseek_v2": ("deepseek2", ("attn_q_a_norm", "exp_probs_b")),
    "deepseek_v3": ("deepseek2", ()),
    "phi": ("phi2", ("ffn_norm",)),
    "phi3": ("phi3", ()),
    "stablelm": ("stablelm", ("attn_q_norm", "attn_k_norm")),
    "gpt2": ("gpt2", ()),
    "gpt_neox": ("gptneox", ()),
    "bloom": ("bloom", ()),
    "falcon": ("falcon", ("attn_norm_2",)),
    "falcon in its new form": ("falcon", ()),
}
# What the converter (convert_hf_to_gguf.py) writes beside the common keys.
KEYS: dict[str, dict[str, int]] = {
    "mixtral": {"expert_count": 4, "expert_used_count": 2},
    "mistral": {"attention.key_length": 24},
    "qwen2_moe with all blocks sparse": {
        "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
        "expert_shared_feed_forward_length": 48,
    },
    "qwen3": {"attention.key_length": 16},
    "qwen3_moe": {
        "attention.key_length": 16, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
    },
    "gemma": {"attention.key_length": 16},
    "gemma2": {"attention.key_length": 16, "attention.sliding_window": 4096},
    "gemma3_text": {"attention.key_length": 16, "attention.sliding_window": 4096},
    "gpt_oss": {
        "attention.key_length": 16, "attention.sliding_window": 128, "expert_count": 4, "expert_used_count": 2,
        "expert_feed_forward_length": 96,
    },
    "deepseek_v2": {
        "attention.head_count_kv": 1, "attention.kv_lora_rank": 32, "attention.key_length": 40,
        "attention.value_length": 32, "attention.key_length_mla": 24, "attention.value_length_mla": 16,
        "rope.dimension_count": 8, "leading_dense_block_count": 1, "expert_count": 4, "expert_used_count": 2,
        "expert_shared_count": 1, "expert_feed_forward_length": 32,
    },
}  # fmt: skip
KEYS["deepseek_v3"] = {**KEYS["deepseek_v2"], "attention.q_lora_rank": 24}
CONFIGS = {
    **TINY,
    "qwen2_moe with all blocks sparse": {**TINY["qwen2_moe"], "mlp_only_layers": []},
    "mistral": {**TINY["mistral"], "sliding_window": None},  # a file calls it llama, whose blocks have no windows
}
EXPERT_NAMES = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))


def config_of(kind: str) -> dict[str, object]:
    return {"model_type": kind.partition(" ")[0], **CONFIGS[kind]}


def tensors_of(model: Model, architecture: str, missing: tuple[str, ...]) -> list[tuple[str, tuple[int, ...], str]]:
    """Return the tensors that the converter makes of a model, in 32 bits."""
    names = gguf.get_tensor_name_map(NUMBERS[architecture], len(model.blocks))
    rows: dict[str, tuple[int, ...]] = {}
    for layer in (model.embedding, *model.layers):
        if layer is model.head and model.tied_embedding:
            continue
        name = names.get_name(re.sub(r"(gate_up_proj)\.(gate|up)$", r"\1", layer.name))
        assert name is not None, layer.name
        rows[f"{name}.weight"] = (rows.get(f"{name}.weight", (0,))[0] + layer.n, layer.k)
        if layer.bias:
            rows[f"{name}.bias"] = (layer.n,)
    for block in model.blocks:
        experts = block.experts
        for kinds in EXPERT_NAMES if experts else ():
            name = next(filter(None, (names.get_name(f"{experts.name}.{kind}") for kind in kinds)))
            n, k = (experts.hidden, experts.intermediate) if "down" in name else (experts.intermediate, experts.hidden)
            rows[f"{name}.weight"] = (experts.expert_count, n, k)
            if experts.bias:
                rows[f"{name}.bias"] = (experts.expert_count, n)
    for tensor in gguf.MODEL_TENSORS[NUMBERS[architecture]]:
        for block in model.blocks:
            name = gguf.TENSOR_NAMES[tensor].format(bid=block.index)
            if re.search(r"norm|exp_probs_b|sinks", name) and not name.endswith(missing or ("nothing",)):
                rows[f"{name}.{'bias' if 'exp_probs' in name else 'weight'}"] = (model.hidden,)
    return [(name, shape, "F32") for name, shape in rows.items()]


def keys_of(model: Model, kind: str) -> dict[str, int]:
    attention = model.blocks[0].attention
    width = next((layer.n for layer in model.blocks[0].layers if layer.role in ("up", "gate")), 96)
    return {
        "block_count": len(model.blocks), "context_length": model.max_context_tokens, "embedding_length": model.hidden,
        "feed_forward_length": width, "attention.head_count": attention.heads,
        "attention.head_count_kv": 1 if isinstance(attention, LatentAttention) else attention.kv_heads,
        **KEYS.get(kind, {}),
    }  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_gives_the_layers_of_the_config(kind, tmp_path):
    architecture, missing = FILES[kind]
    wanted = build_model(config_of(kind), "config.json")
    tensors = tensors_of(wanted, architecture, missing)
    path = write_gguf(tmp_path / "m.gguf", architecture, keys_of(wanted, kind), tensors)
    checkpoint = read_checkpoint(str(path))
    found = checkpoint.model
    assert [one.name for one in checkpoint.unknown] == []
    assert checkpoint.warnings == ()
    assert shapes(found) == shapes(wanted)
    assert [block.experts for block in found.blocks] == [block.experts for block in wanted.blocks]
    assert [block.attention for block in found.blocks] == [block.attention for block in wanted.blocks]
    assert (found.tied_embedding, found.max_context_tokens) == (wanted.tied_embedding, wanted.max_context_tokens)


def shapes(model: Model) -> list[tuple[object, ...]]:
    return [(one.block_index, one.role, one.n, one.k, one.bias) for one in (model.embedding, *model.layers)]


def test_every_reader_is_compared():
    assert {architecture for architecture, _ in FILES.values()} == set(READERS)


def test_a_fused_qkv_of_phi_2_is_its_three_layers(tmp_path):
    model = build_model(config_of("phi"), "config.json")
    tensors = tensors_of(model, "phi2", ("ffn_norm",))
    parts = [one for one in tensors if not re.search(r"attn_[qkv]\.", one[0])]
    width = sum(shape[0] for name, shape, _ in tensors if re.fullmatch(r"blk\.0\.attn_[qkv]\.weight", name))
    for block in range(2):
        parts += [(f"blk.{block}.attn_qkv.weight", (width, 64), "F32"), (f"blk.{block}.attn_qkv.bias", (width,), "F32")]
    path = write_gguf(tmp_path / "m.gguf", "phi2", keys_of(model, "phi"), parts)
    checkpoint = read_checkpoint(str(path))
    assert (checkpoint.unknown, checkpoint.warnings) == ((), ())
    assert sum(checkpoint.weights_by_scheme.values()) == sum(
        layer.weight_count for layer in (model.embedding, *model.layers)
    )


def test_a_missing_width_is_named(tmp_path):
    kind = "qwen2_moe with all blocks sparse"
    model = build_model(config_of(kind), "config.json")
    keys = keys_of(model, kind)
    del keys["expert_feed_forward_length"]
    path = write_gguf(tmp_path / "m.gguf", "qwen2moe", keys, tensors_of(model, "qwen2moe", ()))
    with pytest.raises(InputError, match="expert_feed_forward_length"):
        load_model(path)
