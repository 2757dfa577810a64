"""`codesign evaluate` and `codesign errors` from end to end on a tiny model, and their refusals."""

import contextlib
import io
import json
import math
from pathlib import Path

import pytest

from codesign.cli.main import main
from tests.tiny_tokenizer import CHARACTERS, save_tokenizer
from tests.tiny_transformer import CONFIG, save_tiny

torch = pytest.importorskip("torch", reason="evaluation runs models with torch")
transformers = pytest.importorskip("transformers", reason="evaluation runs models with transformers")
safetensors = pytest.importorskip("safetensors.torch", reason="models are written with safetensors")

TEXT = "the quick brown fox jumps over the lazy dog. " * 20
USAGE, BAD_INPUT, MISSING = 2, 3, 5


def run(*arguments: object) -> tuple[object, str, str]:
    """Run a command in this process and return its exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def output(*arguments: object) -> str:
    code, out, err = run(*arguments)
    assert code == 0, err
    return out


def refusal(*arguments: object, code: int = BAD_INPUT) -> str:
    found, out, err = run(*arguments)
    assert (found, out) == (code, ""), err
    return err


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with a tiny model in `model`, a changed one in `changed`, and `text.txt`."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in ("model", "changed"):
        save_tokenizer(save_tiny(folder / name))
    change(folder / "changed", lambda name, values: values * 1.05 if "down_proj" in name else values)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def change(folder: Path, how) -> None:
    file = folder / "model.safetensors"
    tensors = {name: how(name, values).clone() for name, values in safetensors.load_file(file).items()}
    safetensors.save_file(tensors, file, {"format": "pt"})


def evaluated(place: Path, *arguments: object) -> dict:
    common = ("--model", place / "changed", "--text", place / "text.txt", "--window", 64, "--json")
    found: dict = json.loads(output("evaluate", *common, *arguments))
    return found


def test_a_model_is_evaluated_beside_its_baseline(place):
    found = evaluated(place, "--baseline", place / "model")
    assert found["schema"] == "codesign.evaluation"
    assert (found["window_count"], found["predicted_tokens"]) == (len(TEXT) // 64, len(TEXT) // 64 * 63)
    ids = torch.tensor([CHARACTERS.index(c) for c in TEXT])[: len(TEXT) // 64 * 64].view(-1, 64)
    for key, name in (("model", "changed"), ("baseline", "model")):
        model = transformers.AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32)
        with torch.inference_mode():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert found[key]["loss_nats"]["mean"] == pytest.approx(loss, rel=1e-5)
        assert found[key]["perplexity"]["mean"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert found[key]["bits_per_weight"] == 32
        assert found[key]["tensor_bytes"] == 4 * model.num_parameters()
    assert found["comparison"]["kl_nats"]["mean"] > 0
    assert 0 < found["comparison"]["noise_floor_nats"]["mean"] < 1
    assert found["evaluation_tokens_per_s"] > 0


def test_the_table_says_what_the_figures_mean(place):
    text = output("evaluate", "--model", place / "model", "--baseline", place / "model", "--text", place / "text.txt")
    for words in (
        "windows of 128 tokens", "perplexity", "KL from the baseline", "noise floor: the baseline in bfloat16",
        "same likeliest token", "100 %", "bits per weight", "not above its noise floor", "That is no speed of",
        "codesign profile --generate",
    ):  # fmt: skip
        assert words in text


def test_without_a_baseline_there_is_none_in_the_table(place):
    text = output("evaluate", "--model", place / "model", "--text", place / "text.txt", "--tokens", 128)
    assert "1 window of 128 tokens, 127 predicted" in text
    assert "baseline" not in text
    assert "baseline" not in evaluated(place)


def test_a_scheme_is_tried_out_with_the_model_as_its_own_baseline(place):
    eight, four = (evaluated(place, "--scheme", scheme) for scheme in ("W8A16", "W4A16-g32"))
    assert 0 < eight["comparison"]["kl_nats"]["mean"] < four["comparison"]["kl_nats"]["mean"]
    assert four["model"]["bits_per_weight"] < eight["model"]["bits_per_weight"] < eight["baseline"]["bits_per_weight"]
    turned = evaluated(place, "--scheme", "W4A4", "--rotated")
    assert (
        turned["comparison"]["kl_nats"]["mean"] != evaluated(place, "--scheme", "W4A4")["comparison"]["kl_nats"]["mean"]
    )
    assert "name a scheme" in refusal(
        "evaluate", "--model", place / "model", "--text", place / "text.txt", "--rotated", code=USAGE
    )


def test_rotation_alone_changes_nothing(place):
    plain, turned = (evaluated(place, "--scheme", "W8A16", *more) for more in ((), ("--rotated",)))
    for found in (plain, turned):
        assert found["comparison"]["kl_nats"]["mean"] < 1e-3


def test_the_cache_is_rounded_where_it_is_asked_for(place):
    exact, rounded = evaluated(place), evaluated(place, "--kv", "int4")
    assert (exact["model"]["kv"], rounded["model"]["kv"]) == ("bf16", "int4")
    assert exact["model"]["loss_nats"] != rounded["model"]["loss_nats"]
    assert "Unknown KV cache format 'int3'" in refusal(
        "evaluate", "--model", place / "model", "--text", place / "text.txt", "--kv", "int3"
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--tokens", 100_000), "has 900 tokens: too short for 781 windows of 128. Give a longer text"),
        (("--window", 4096), "too short for 1 windows of 4096"),
        (("--window", 256), "Windows of 256 tokens cannot be evaluated: "),
        (("--text", "nothing.txt"), "nothing.txt: cannot read this text: No such file"),
        (("--model", "nowhere"), "nowhere: no safetensors or GGUF file lies here"),
        (("--baseline", "nowhere"), "nowhere: no safetensors or GGUF file lies here"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(place, more, sentence):
    assert sentence in refusal("evaluate", "--model", place / "model", "--text", place / "text.txt", *more)


def test_an_empty_text_is_refused(place):
    (place / "empty.txt").write_text("", encoding="utf-8")
    assert "this text has no tokens" in refusal("evaluate", "--model", place / "model", "--text", place / "empty.txt")


def test_a_tokenizer_of_another_model_is_refused(place, tmp_path):
    save_tokenizer(save_tiny(tmp_path), CHARACTERS[::-1])
    arguments = ("evaluate", "--model", tmp_path, "--text", place / "text.txt", "--baseline", place / "model")
    assert "the tokenizers of the model and of the baseline differ from token 0 " in refusal(*arguments)


def test_ids_beyond_the_vocabulary_are_refused(place, tmp_path):
    more = "".join(chr(0x4E00 + i) for i in range(200))
    save_tokenizer(save_tiny(tmp_path), CHARACTERS + more)
    (tmp_path / "text.txt").write_text(more, encoding="utf-8")
    found = refusal("evaluate", "--model", tmp_path, "--text", tmp_path / "text.txt")
    assert f"token id {len(CHARACTERS) + 199} is outside of the model's vocabulary of 96" in found


def test_experts_are_refused(place, tmp_path):
    config = transformers.MixtralConfig(**CONFIG, num_local_experts=2, num_experts_per_tok=1)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert "routed experts" in refusal("evaluate", "--model", tmp_path, "--text", place / "text.txt")
    code, out, err = run("errors", "--model", tmp_path, "--scheme", "W4A16-g32")
    assert code == 0
    assert "its routed experts are left out" in err
    assert "self_attn.o_proj" in out


def test_errors_of_weights_and_of_outputs(place, tmp_path):
    text = output("errors", "--model", place / "model", "--scheme", "W4A16-g32")
    assert "15 layers" in text
    assert "outputs, dB" not in text
    page = tmp_path / "page.html"
    common = ("errors", "--model", place / "model", "--scheme", "W8A8", "--text", place / "text.txt", "--window", 64)
    text = output(*common, "--tokens", 256, "--html", page)
    assert "outputs, dB" in text
    assert 'id="figure-activations"' in page.read_text(encoding="utf-8")
    assert "exists already" in refusal(*common, "--html", page)
    found = json.loads(output(*common, "--json"))
    assert found["layers"][0]["inputs"]["token_count"] == 896
    ratios = [one["inputs"]["output"]["snr_db"] for one in found["layers"]]
    assert ratios == sorted(ratios)
    assert {one["role"] for one in found["roles"]} == {"q", "k", "v", "o", "gate", "up", "down", "head"}


def test_text_that_the_model_writes_is_always_the_same(place):
    arguments = ("errors", "--model", place / "model", "--scheme", "W8A8", "--self-generated", "--window", 16)
    first, second = (json.loads(output(*arguments, "--tokens", 40, "--json")) for _ in range(2))
    assert first == second
    assert first["layers"][0]["inputs"]["token_count"] == 32


def test_damaged_weights_are_shown_and_end_with_an_error(place, tmp_path):
    save_tokenizer(save_tiny(tmp_path))
    change(tmp_path, lambda name, values: values.fill_(math.nan) if "0.mlp.up_proj" in name else values)
    code, out, err = run("errors", "--model", tmp_path, "--scheme", "W4A16-g32", "--text", place / "text.txt")
    assert code == BAD_INPUT
    assert "NaN" in out
    assert "model.layers.0.mlp.up_proj: NaN or infinite weights; the checkpoint is damaged. Outputs were not" in err
    found = refusal("evaluate", "--model", tmp_path, "--text", place / "text.txt")
    assert "The model gives NaN or infinite losses" in found


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--text", "a.txt", "--self-generated"), "exclude each other"),
        (("--window", 64), "--window and --tokens are of a text"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(place, more, sentence):
    assert sentence in refusal("errors", "--model", place / "model", "--scheme", "W8A8", *more, code=USAGE)


def test_an_unknown_scheme_is_refused(place):
    assert "W4A17" in refusal("errors", "--model", place / "model", "--scheme", "W4A17")


def test_a_device_that_is_not_here_is_refused(place):
    arguments = ("evaluate", "--model", place / "model", "--text", place / "text.txt", "--device")
    assert "is not understood" in refusal(*arguments, "gpu", code=USAGE)
    assert "CUDA devices here; use --device cpu" in refusal(*arguments, "cuda:99", code=MISSING)
