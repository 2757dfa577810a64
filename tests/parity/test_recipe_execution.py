"""Recipes carried out: a tiny random Llama is quantized by the tool itself and read back layer by layer.

What the checkpoint then holds must be exactly what the plan says.
"""

import json
import warnings
from dataclasses import replace
from importlib import import_module

import pytest
import yaml
from planned import inputs_of, planned, shuffled

from codesign.checkpoint.checkpoint import read_checkpoint
from codesign.model.file import load_model
from codesign.model.groups import fused_groups
from codesign.plan.recipes.make import make_recipe
from codesign.plan.recipes.registry import find_tool

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # they load torch, and warn of themselves
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256}  # fmt: skip


def needed(module, package):
    """Return the tool's module; the test is skipped where its package is absent."""
    pytest.importorskip(module.partition(".")[0], reason=f"{package} is not installed")
    return import_module(module)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of the model, with a tokenizer because some tools ask for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch, transformers = needed("torch", "torch"), needed("transformers", "transformers")
        tokenizers = needed("tokenizers", "tokenizers")
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(path)
    words = {f"w{i}": i for i in range(500)} | {"<unk>": 500, "<s>": 501, "</s>": 502}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    return path


def load(folder, **options):
    transformers, torch = needed("transformers", "transformers"), needed("torch", "torch")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def planned_text(folder, tool, pool, seed, machine=("h100", "vllm"), kv=""):
    """Return a random plan of the pool's schemes and its recipe."""
    plan = replace(planned(str(folder), *machine), model=str(folder))
    plan = shuffled(replace(plan, kv=kv) if kv else plan, tool, pool, seed)
    return plan, make_recipe(inputs_of(plan), find_tool(tool)).text


def wanted(plan, folder):
    """Return the scheme of every layer by name."""
    schemes = {(one.block_index, one.name): one.scheme for one in plan.groups}
    groups = fused_groups(load_model(str(folder)))
    return {layer.name: schemes[group.key] for group in groups for layer in group.layers}


def assert_holds(out, plan, folder, kv=""):
    """Compare what is stored with the plan; nothing may be unknown."""
    found = read_checkpoint(str(out))
    stored = {name: [str(scheme) for scheme in schemes] for name, schemes in found.schemes.items()}
    stored.pop("model.embed_tokens")
    assert stored == {name: [scheme] for name, scheme in wanted(plan, folder).items()}
    assert (found.kv, found.unknown, found.warnings) == (kv, (), ())


COMPRESSED = ("BF16", "W4A16-g128", "W8A8", "FP8-block", "FP8-channel", "W4A16-g64-asym", "NVFP4-A16", "MXFP4-A16",
              "W8A16", "W8A8-static", "FP8")  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_compressed_tensors(folder, tmp_path, seed):
    """Apply, compress and save, with scales of one in the place of calibrated ones."""
    quantization = needed("compressed_tensors.quantization", "compressed-tensors")
    compressors = needed("compressed_tensors.compressors", "compressed-tensors")
    kv = "fp8" if seed % 2 else ""
    plan, text = planned_text(folder, "llm-compressor", COMPRESSED, seed, kv=kv)
    parts = list(yaml.safe_load(text)["quant_stage"]["quant_modifiers"].values())
    groups = {name: group for part in parts for name, group in part.get("config_groups", {}).items()}
    rest = {key: part[key] for part in parts for key in ("ignore", "kv_cache_scheme") if key in part}
    model = load(folder)
    config = quantization.QuantizationConfig.model_validate({"config_groups": groups, **rest})
    quantization.apply_quantization_config(model, config, show_progress=False)
    for name, tensor in model.named_parameters():
        if "scale" in name or "zero_point" in name:
            tensor.data.fill_(1.0 if "scale" in name else 0)
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "out")
    compressor.update_config(str(tmp_path / "out"))
    assert_holds(tmp_path / "out", plan, folder, kv)


@pytest.mark.parametrize(("seed", "method"), [(0, ""), (3, ""), (4, "rtn")])
def test_llm_compressor(folder, tmp_path, seed, method):
    """Calibrate on random tokens with the modifiers that the recipe names; AWQ's pins memory, which takes a GPU."""
    oneshot = needed("llmcompressor", "llm-compressor").oneshot
    torch, datasets = needed("torch", "torch"), needed("datasets", "datasets")
    plan = replace(planned(str(folder), "h100", "vllm"), model=str(folder))
    plan = shuffled(plan, "llm-compressor", COMPRESSED[:9], seed, method)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe(inputs_of(plan), find_tool("llm-compressor")).text)
    tokens = torch.randint(0, 500, (8, 64))
    rows = {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
    oneshot(model=load(folder), recipe=str(recipe), dataset=datasets.Dataset.from_dict(rows), processor=str(folder),
            num_calibration_samples=8, max_seq_length=64, output_dir=str(tmp_path / "out"))  # fmt: skip
    assert_holds(tmp_path / "out", plan, folder)


@pytest.mark.parametrize("seed", range(3))
def test_torchao(folder, tmp_path, seed):
    """Load through Transformers with the arguments that the recipe's comment names; int8 is what a CPU can make."""
    config_from_dict = needed("torchao.core.config", "torchao").config_from_dict
    torch, transformers = needed("torch", "torch"), needed("transformers", "transformers")
    plan, text = planned_text(folder, "torchao", ("BF16", "W8A16", "W8A8"), seed, ("x86-avx512", "torch"))
    assert "include_input_output_embeddings=True" in text
    config = transformers.TorchAoConfig(config_from_dict(json.loads(text)), include_input_output_embeddings=True)
    model = load(folder, quantization_config=config)
    assert model(torch.ones((1, 4), dtype=torch.long)).logits.isfinite().all()
    model.save_pretrained(tmp_path / "out")
    assert_holds(tmp_path / "out", plan, folder)


def test_torchao_by_itself(folder):
    """`quantize_` takes the config without a filter and quantizes exactly the planned layers."""
    config_from_dict = needed("torchao.core.config", "torchao").config_from_dict
    torch, quantization = needed("torch", "torch"), needed("torchao.quantization", "torchao")
    plan, text = planned_text(folder, "torchao", ("BF16", "W8A16", "W8A8"), 7, ("x86-avx512", "torch"))
    model = load(folder)
    quantization.quantize_(model, config_from_dict(json.loads(text)), filter_fn=None)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {name: type(module.weight.data).__name__ == "Int8Tensor" or type(module.weight).__name__ == "Int8Tensor"
                 for name, module in linear.items()}  # fmt: skip
    assert quantized == {name: scheme != plan.baseline_scheme for name, scheme in wanted(plan, folder).items()}


def test_mlx(folder, tmp_path, monkeypatch):
    """Run the script; MLX writes what each module has into config.json."""
    needed("mlx_lm", "mlx-lm")
    plan, text = planned_text(folder, "mlx", ("W4A16-g64", "W4A16-g32", "W8A16-g64", "MXFP4-A16", "NVFP4-A16"), 3)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "recipe.py", "exec"), {})
    out = next(tmp_path.iterdir())
    stored = json.loads((out / "config.json").read_text())["quantization"]
    modes = {"MXFP4-A16": (4, 32, "mxfp4"), "NVFP4-A16": (4, 16, "nvfp4"), "W4A16-g64": (4, 64, "affine"),
             "W4A16-g32": (4, 32, "affine"), "W8A16-g64": (8, 64, "affine")}  # fmt: skip
    for name, scheme in wanted(plan, folder).items():
        keys = stored.get(name)
        found = keys and (keys["bits"], keys["group_size"], keys["mode"])
        assert found == modes.get(scheme), (name, scheme)
