import json
from pathlib import Path

import pytest

from codesign.errors import InputError
from codesign.model.file import list_models, load_model, load_model_with_warnings, read_entry, resolve_model_name


def write_config(folder: Path, name: str = "llama-3.2-1b", **changes: object) -> Path:
    """Write the config of a catalog model with changes; return its path."""
    path = folder / "config.json"
    path.write_text(json.dumps({**read_entry(name)["config"], **changes}), encoding="utf-8")
    return path


def test_the_catalog_holds_what_the_command_line_promises():
    names = list_models()
    assert len(names) >= 45
    assert names == tuple(sorted(names))
    assert {"llama-7b", "llama-3.1-70b", "qwen2.5-7b", "mixtral-8x7b", "deepseek-v3", "smollm2-135m"} <= set(names)


@pytest.mark.parametrize("name", list_models())
def test_every_entry_is_complete_and_loads(name: str):
    entry = read_entry(name)
    assert set(entry) - {"aliases"} == {"name", "hf_ids", "config", "published_parameters", "config_source"}
    assert entry["name"] == name == name.lower()
    assert all(owner_and_name.count("/") == 1 for owner_and_name in entry["hf_ids"])
    model = load_model(name)
    assert (model.name, model.source) == (name, entry["config_source"])
    assert model.parameter_count > 0


def test_every_alias_and_id_leads_to_its_own_entry():
    for name in list_models():
        entry = read_entry(name)
        for other in (*entry["hf_ids"], *entry.get("aliases", ())):
            assert resolve_model_name(other) == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("llama-7b", "llama-7b"),
        ("LLaMA-7B", "llama-7b"),
        ("llama-1-7b", "llama-7b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("META-LLAMA/LLAMA-2-7B-CHAT-HF", "llama-2-7b"),
        ("Qwen/Qwen3-32B", "qwen3-32b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-2-7b-hf", "llama-2-7b"),
        ("bloom", "bloom-176b"),
        ("gpt_oss_20b", "gpt-oss-20b"),
        (" phi-4 ", "phi-4"),
    ],
)
def test_names(given: str, name: str):
    assert resolve_model_name(given) == name
    assert load_model(given).name == name


def test_an_unknown_name_gets_a_suggestion_and_a_way_on():
    with pytest.raises(
        InputError, match=r'"lama-2-7b".*Did you mean "llama-2-7b"\?.*codesign model list.*config\.json'
    ):
        load_model("lama-2-7b")
    with pytest.raises(InputError, match='No model is called "nobody/nothing"'):
        load_model("nobody/nothing")


def test_a_file_and_its_folder_are_the_same_model(tmp_path: Path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = write_config(folder)
    by_file, by_folder, by_text = load_model(path), load_model(folder), load_model(str(folder))
    assert by_file == by_folder == by_text
    assert by_file.name == "my-model"
    assert by_file.source == str(path)
    catalog = load_model("llama-3.2-1b")
    assert (by_file.blocks, by_file.digest) == (catalog.blocks, catalog.digest)


def test_a_name_of_the_catalog_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gpt2").mkdir()
    write_config(tmp_path / "gpt2", "llama-3.2-1b")
    monkeypatch.chdir(tmp_path)
    assert load_model("gpt2").architecture == "gpt2"
    assert load_model("./gpt2").architecture == "llama"
    assert load_model(Path("gpt2")).architecture == "llama"


def test_a_folder_in_the_working_directory_needs_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    write_config(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert load_model("mine").name == "mine"


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    path = write_config(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_model(path).parameter_count == 1_235_814_400


def test_a_quantized_checkpoint_has_the_shapes_of_its_model(tmp_path: Path):
    path = write_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert load_model(path).digest == load_model("llama-3.2-1b").digest


def test_code_named_by_a_known_config_is_a_warning_only(tmp_path: Path):
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    path = write_config(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    model, warnings = load_model_with_warnings(path)
    assert model.architecture == "llama"
    assert len(warnings) == 1
    assert "auto_map" in warnings[0]
    assert "never loaded" in warnings[0]


def test_a_multimodal_config_warns_that_only_text_is_counted(tmp_path: Path):
    model, warnings = load_model_with_warnings(write_config(tmp_path, "gemma-3-4b"))
    assert model.architecture == "gemma3_text"
    assert "only the language model" in warnings[0]


def test_the_catalog_gives_no_warnings():
    assert load_model_with_warnings("gemma-3-4b")[1] == ()
