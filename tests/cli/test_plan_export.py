"""`codesign plan export` end to end."""

import json

import pytest

from tests.command_line import codesign

WORK = ("--prompt", "512", "--output", "128", "--batch", "4")


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    done = codesign("plan", "--hw", "a100", "--model", "llama-3.1-8b", *WORK, "--out", str(path))
    assert done.returncode == 0, done.stderr
    return str(path)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Return the file of a plan for a model and a machine, which is made once."""
    folder = tmp_path_factory.mktemp("plans")

    def make(model, hardware):
        path = folder / f"{model}-{hardware}.json"
        if not path.exists():
            done = codesign("plan", "--hw", hardware, "--model", model, *WORK, "--out", str(path))
            assert done.returncode == 0, done.stderr
        return path

    return make


def test_to_standard_output(plan_file):
    done = codesign("plan", "export", plan_file, "--to", "vllm")
    assert (done.returncode, done.stderr) == (0, "")
    assert "vllm serve" in done.stdout
    assert "--max-model-len 640" in done.stdout


def test_to_a_file_that_is_replaced_only_by_force(plan_file, tmp_path):
    out = tmp_path / "recipe.yaml"
    asked = ("plan", "export", plan_file, "--to", "llm-compressor", "-o", str(out))
    assert codesign(*asked).returncode == 0
    first = out.read_text()
    assert first.startswith("# llama-3.1-8b for a100")
    out.write_text("mine")
    again = codesign(*asked)
    assert again.returncode == 3
    assert "use --force" in again.stderr
    assert out.read_text() == "mine"
    assert codesign(*asked, "--force").returncode == 0
    assert out.read_text() == first
    assert list(tmp_path.iterdir()) == [out]


def test_a_refusal_writes_nothing_and_promotion_tells_its_cost(plan_file, tmp_path):
    out = tmp_path / "recipe.sh"
    asked = ("plan", "export", plan_file, "--to", "llama.cpp", "-o", str(out))
    refused = codesign(*asked)
    assert refused.returncode == 3
    assert "--promote takes the next wider scheme" in refused.stderr
    assert not out.exists()
    done = codesign(*asked, "--promote")
    assert done.returncode == 0
    assert "That takes the weights from" in done.stderr
    assert "llama-quantize" in out.read_text()


@pytest.mark.parametrize("tool", ["gptqmodel", "torchao"])
def test_json_recipes_are_json(plan_file, tool):
    done = codesign("plan", "export", plan_file, "--to", tool, "--promote")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_wrong_input(plan_file, tmp_path):
    for arguments, code, words in (
        (("--to", "ollama"), 3, "is no tool to export to"),
        ((), 2, "--to"),
        (("--to", "vllm", "-o", str(tmp_path)), 3, "this is a folder"),
        (("--to", "vllm", "--model", "no-such-model"), 3, "No model is called"),
    ):
        done = codesign("plan", "export", plan_file, *arguments)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    missing = codesign("plan", "export", str(tmp_path / "none.json"), "--to", "vllm")
    assert missing.returncode == 3


def test_a_plan_of_a_folder_takes_its_path(tmp_path):
    config = {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
              "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000,
              "max_position_embeddings": 4096}  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plan = str(tmp_path / "plan.json")
    asked = ("plan", "--hw", "a100", "--model", str(folder), *WORK, "--out", plan, "--allow-unknown-quality")
    assert codesign(*asked).returncode == 0
    lost = codesign("plan", "export", plan, "--to", "autoround", cwd=tmp_path.parent)
    assert lost.returncode == 3
    assert "--model" in lost.stderr
    done = codesign("plan", "export", plan, "--to", "autoround", "--model", str(folder), "--promote")
    assert done.returncode == 0, done.stderr
    assert f"--model {folder}" in done.stdout


def test_runtime_says_what_runs_and_of_which_sizes():
    done = codesign("scheme", "list", "--hw", "t4", "--runtime", "vllm", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["schemes"]}
    assert (rows["W4A16-g128"]["n_multiple"], rows["W4A16-g128"]["k_multiple"]) == (64, 128)
    assert rows["W4A16-g128"]["level"] == "native"
    assert rows["Q4_K"]["k_multiple"] == 256
    assert "codesign scheme list" in codesign("scheme", "list", "--help").stdout


def changed(path, out, change, **top):
    """Write the plan with `change` made to every group of its blocks, which it takes from (group, number)."""
    plan = json.loads(path.read_text()) | top
    groups = [change(dict(group), i) if group["block_index"] is not None else [group]
              for i, group in enumerate(plan["groups"])]  # fmt: skip
    plan["groups"] = [one for made in groups for one in made]
    out.write_text(json.dumps(plan))
    return str(out)


def all_in(scheme, method):
    return lambda group, _i: [group | {"scheme": scheme, "method": method}]


def torn(group, _i):
    if group["name"] != "qkv":
        return [group | {"scheme": "W4A16-g128", "method": "gptq"}]
    parts = (("q", "W4A16-g128"), ("k", "W8A16"), ("v", "W8A16"))
    return [group | {"name": name, "scheme": scheme, "method": "rtn"} for name, scheme in parts]


def two_awq_schemes(group, i):
    return [group | {"scheme": ("W4A16-g128-asym", "W4A16-g64-asym")[i % 2], "method": "awq"}]


REFUSALS = [
    ("torn", "llama-2-7b", "a100", {}, torn, "vllm",
     "0.qkv is multiplied as one, and the plan tears it apart: k in W8A16"),
    ("k", "smollm2-135m", "a100", {}, all_in("W4A16-g128", "gptq"), "llm-compressor", "k = 576 is not a multiple"),
    ("shards", "llama-2-7b", "a100", {"gpu_count": 4}, all_in("W4A16-g128", "gptq"), "gptqmodel",
     "0.down in W4A16-g128: W4A16-g128 has one scale per 128 values along k, and k = 2752"),
    ("gpu", "llama-2-7b", "a100", {}, all_in("W4A8-g128", "rtn"), "vllm", "on Arm CPUs only"),
    ("format", "llama-2-7b", "a100", {}, all_in("FP8-channel", "rtn"), "gptqmodel",
     "GPTQ and AWQ checkpoints hold weight-only integers"),
    ("awq", "llama-2-7b", "a100", {}, two_awq_schemes, "gptqmodel", "AWQ checkpoints hold one scheme, not W4A16-g"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "model", "hardware", "top", "change", "tool", "words"), REFUSALS)
def test_what_cannot_be_made_is_refused_or_promoted(name, model, hardware, top, change, tool, words, plans, tmp_path):
    plan = changed(plans(model, hardware), tmp_path / f"{name}.json", change, **top)
    out = tmp_path / "recipe"
    refused = codesign("plan", "export", plan, "--to", tool, "-o", str(out))
    assert (refused.returncode, refused.stdout) == (3, "")
    assert words in refused.stderr
    assert "--promote takes the" in refused.stderr
    assert not out.exists()
    done = codesign("plan", "export", plan, "--to", tool, "-o", str(out), "--promote")
    assert done.returncode == 0, done.stderr
    assert "Promoted: 0." in done.stderr
    assert "That takes the weights from" in done.stderr
    assert "time per output token from" in done.stderr


def test_what_no_scheme_can_mend_is_refused_even_with_promotion(plans, tmp_path):
    """32 heads do not divide over three devices."""
    plan = changed(plans("llama-2-7b", "a100"), tmp_path / "three.json", lambda g, _i: [g], gpu_count=3)
    done = codesign("plan", "export", plan, "--to", "vllm", "--promote")
    assert (done.returncode, done.stdout) == (3, "")
    assert "32 attention heads of llama-2-7b do not divide over 3 devices; plan with --gpus" in done.stderr
