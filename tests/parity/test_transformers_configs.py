"""The layer account against the `transformers` package: its own models, built from the same configs.

Real configs are built on the meta device, which holds no weights; tiny ones are saved to disk as the package does it
and read as checkpoints, so that names, shapes and the keys of its config.json are its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch and transformers are the oracle here")
transformers = pytest.importorskip("transformers", reason="torch and transformers are the oracle here")

from codesign.checkpoint.checkpoint import read_checkpoint  # noqa: E402
from codesign.model.architectures import BUILDERS, build_model  # noqa: E402
from codesign.model.file import list_models, load_model, read_entry  # noqa: E402
from codesign.model.layers import Model  # noqa: E402
from tests.tiny_configs import TINY  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of both packages, about themselves

# Names of modules that the package gives otherwise in memory than on disk, and layers of a turned or fused weight.
RENAMED = {"block_sparse_moe.": "mlp.", "embed_out": "lm_head"}
# An expert's router and GPT-2's Conv1D are no nn.Linear; Phi-3 has gate and up in one module.
NO_LINEAR = ("mlp.gate", "mlp.router", ".c_attn", ".c_proj", ".c_fc", ".gate_up_proj.gate", ".gate_up_proj.up")


def smallest_of_each_type() -> dict[str, str]:
    """Return the smallest catalog model by model_type; Gemma 3 with pictures is no language model alone."""
    found: dict[str, str] = {}
    for name in sorted(list_models(), key=lambda name: load_model(name).parameter_count):
        found.setdefault(read_entry(name)["config"]["model_type"], name)
    return {kind: name for kind, name in found.items() if kind != "gemma3"}


CATALOG = smallest_of_each_type()


def meta_model(config: Mapping[str, Any]) -> Any:
    """Return the package's model without weights."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(config["model_type"], **values)
        )


def parameter_count(model: Any) -> int:
    """Return the parameters, tied ones once; DeepSeek-V3 keeps its router's correction as a buffer."""
    corrections = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    return sum(tensor.numel() for tensor in (*model.parameters(), *corrections))


def linear_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return {name: tuple(one.weight.shape) for name, one in model.named_modules() if isinstance(one, kinds)}


def spelled(name: str) -> str:
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("kind", CATALOG)
def test_real_configs_have_as_many_parameters(kind):
    config = read_entry(CATALOG[kind])["config"]
    theirs, ours = meta_model(config), build_model(config, "config.json")
    assert ours.parameter_count == parameter_count(theirs)
    shapes = linear_shapes(theirs)
    for layer in (ours.embedding, *ours.layers):
        name = spelled(layer.name)
        if name not in shapes:
            assert name.endswith(NO_LINEAR), name
        else:
            assert shapes[name] == (layer.n, layer.k), name


def test_eighteen_architectures_are_compared():
    assert len(CATALOG) >= 18


@pytest.mark.parametrize("kind", CATALOG)
def test_the_packages_own_spelling_of_a_config_gives_the_same_model(kind):
    config = read_entry(CATALOG[kind])["config"]
    values = {key: value for key, value in config.items() if key != "model_type"}
    theirs = transformers.AutoConfig.for_model(kind, **values)
    again = build_model(json.loads(theirs.to_json_string(use_diff=False)), "config.json")
    ours = build_model(config, "config.json")
    assert summary(again) == summary(ours)


def summary(model: Model) -> tuple[object, ...]:
    """Return what a prediction depends on."""
    return (model.blocks, model.embedding, model.head, model.tied_embedding, model.max_context_tokens)


def test_the_language_model_of_gemma_3_is_counted_alone():
    config = read_entry("gemma-3-4b")["config"]
    theirs = meta_model(config).model.language_model
    assert build_model(config, "config.json").parameter_count == parameter_count(theirs)


@pytest.mark.parametrize("kind", TINY)
def test_a_saved_checkpoint_is_accounted_in_full(kind, tmp_path):
    folder = saved(kind, tmp_path)
    checkpoint = read_checkpoint(str(folder))
    assert ([tensor.name for tensor in checkpoint.unknown], checkpoint.warnings) == ([], ())
    counted = sum(checkpoint.weights_by_scheme.values())
    model = checkpoint.model
    assert counted == sum(
        layer.weight_count
        for layer in (model.embedding, *model.layers)
        if not (model.tied_embedding and layer == model.head)
    ) + sum(
        block.experts.expert_count * block.experts.weight_count_per_expert for block in model.blocks if block.experts
    )


@pytest.mark.parametrize("kind", TINY)
def test_a_saved_checkpoint_has_the_parameters_of_the_model(kind, tmp_path):
    folder = saved(kind, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert load_model(folder).parameter_count == parameter_count(theirs)


def saved(kind: str, folder: Path) -> Path:
    """Write a tiny model as the package writes it."""
    values = TINY[kind]
    config = transformers.AutoConfig.for_model(kind.partition(" ")[0], **values)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def test_every_builder_is_compared():
    compared = {kind.partition(" ")[0] for kind in TINY} | set(CATALOG)
    old_names, with_pictures = {"RefinedWeb", "RefinedWebModel"}, {"gemma3"}
    assert set(BUILDERS) - old_names - with_pictures == compared
