"""The calibration study of a tiny network: its numbers, what it keeps, and how it goes on."""

import json
from dataclasses import replace

import pytest

from codesign.errors import InputError
from codesign.quantize.evaluate import evaluate
from codesign.quantize.network import Network
from codesign.quantize.ranges import activation_ranges, network_inputs
from codesign.quantize.round import quantize_weight
from codesign.quantize.source import FolderSource, LayerInputs
from codesign.quantize.study import run_study, study_scheme
from codesign.quantize.study_file import Outcome, Study, StudySettings, read_study, resumed_study, spreads, write_study
from codesign.quantize.study_text import StudyText, calibration_windows, check_source, study_text
from codesign.report.study_page import study_table, study_verdicts, write_study_page
from codesign.schemes.catalog import parse_scheme
from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="models are run with torch")
pytest.importorskip("transformers", reason="models are run with transformers")

SETTINGS = StudySettings(
    "tiny", "digest", "", (2, 6), ("random", "text"), ("W8A8-static", "W4A16-g32"), ("min-max", "mse"), 2, 12, 3
)
STATIC = parse_scheme("W8A8-static")


class StaticSource(FolderSource):
    """The weights rounded and every input of a block rounded with a fixed range, apart from any study."""

    ranges = None

    def tensor(self, name):
        w = super().tensor(name)
        layer = name.removesuffix(".weight")
        if self.ranges is None or ".layers." not in name or "norm" in name:
            return w
        return quantize_weight(w, STATIC).dequantize() if layer in self.ranges else w

    def inputs(self, layer):
        return LayerInputs(STATIC.activations, self.ranges[layer]) if self.ranges else None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("study")) / "model.safetensors"


@pytest.fixture(scope="module")
def network(weights):
    return Network(FolderSource(weights))


@pytest.fixture(scope="module")
def text(network):
    ids = torch.randint(0, 96, (400,), generator=torch.Generator().manual_seed(5))
    return study_text(network, ids, 3, 12)


@pytest.fixture(scope="module")
def finished(network, text):
    """Return the study, and every state that was kept."""
    kept = []
    return run_study(network, Study(SETTINGS), text, kept.append, lambda _: None), kept


def test_everything_that_was_asked_for_is_there_once(finished):
    study, _ = finished
    found = [(one.source, one.seed, one.scheme, one.method, one.sample_count) for one in study.outcomes]
    methods = [("W8A8-static", "min-max"), ("W8A8-static", "mse"), ("W4A16-g32", "gptq")]
    wanted = {
        (source, seed, *pair, size)
        for source in SETTINGS.sources for seed in (0, 1) for pair in methods for size in SETTINGS.sizes
    }  # fmt: skip
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert study.missing == ()
    assert all(0 < one.kl_nats < 5 and 0 < one.output_error_fraction < 1 for one in study.outcomes)


def test_losses_are_those_of_a_network_with_these_ranges(finished, weights, network, text):
    study, _ = finished
    one = next(o for o in study.outcomes if (o.source, o.seed, o.method, o.sample_count) == ("text", 1, "min-max", 2))
    tokens = calibration_windows(network, text, ("text", 1), 6, 12)[:2]
    source = StaticSource(weights)
    source.ranges = activation_ranges(network_inputs(network, tokens), "min-max")
    rounded = Network(source)
    found = evaluate(rounded, text.evaluation, network)
    # The last token of a window has nothing to predict: the study counts it, an evaluation does not.
    with torch.inference_mode():
        true, mine = (logits(net, text.evaluation).double().log_softmax(-1) for net in (network, rounded))
    wanted = float((true.exp() * (true - mine)).sum(-1).mean())
    assert one.kl_nats == pytest.approx(wanted, rel=1e-3)
    assert found.baseline.kl_nats.mean == pytest.approx(wanted, rel=0.5)


def logits(network, ids):
    batch = network.start(ids)
    for index in range(network.block_count):
        with network.block(index) as block:
            batch = network.step(index, block, batch)
    return network.logits(batch)


def test_gptq_needs_more_text_than_the_layers_have_channels(network, text):
    settings = replace(SETTINGS, sizes=(2, 150), sources=("random",), schemes=("W4A16-g32",))
    study = run_study(network, Study(settings), text, lambda _: None, lambda _: None)
    few, many = (one.output_error_fraction for one in spreads(study))
    assert many < 0.9 * few
    assert many < study.references[0].output_error_fraction


def test_a_stopped_study_goes_on_to_the_same_end(finished, network, text):
    study, kept = finished
    half = kept[2]
    assert 0 < len(half.outcomes) < len(study.outcomes)
    assert run_study(network, half, text, lambda _: None, lambda _: None) == study


def test_the_network_is_as_it_was(finished, network, text):
    first = logits(network, text.evaluation)
    run_study(network, Study(replace(SETTINGS, repeats=1, sources=("random",))), text, lambda _: None, lambda _: None)
    assert torch.equal(logits(network, text.evaluation), first)


def test_the_file_gives_back_what_was_written(finished, tmp_path):
    study, _ = finished
    write_study(study, tmp_path / "s.json")
    assert read_study(tmp_path / "s.json") == study
    assert resumed_study(SETTINGS, tmp_path / "s.json") == study


def test_other_settings_are_refused_by_name(finished, tmp_path):
    write_study(finished[0], tmp_path / "s.json")
    with pytest.raises(InputError, match=r"repeats, window_tokens differ"):
        resumed_study(replace(SETTINGS, repeats=3, window_tokens=16), tmp_path / "s.json")


@pytest.mark.parametrize("value", [{"schema": "other"}, [], {"schema": "codesign.calibration_study"}])
def test_other_files_are_refused(value, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match="--force"):
        read_study(tmp_path / "s.json")


def test_spreads_are_over_seeds():
    outcomes = tuple(Outcome("text", seed, "W8A8-static", "mse", 2, kl, 0.1) for seed, kl in enumerate((0.1, 0.3)))
    only = spreads(Study(SETTINGS, outcomes=outcomes))
    assert len(only) == 1
    assert only[0].kl_nats == pytest.approx(0.2)
    assert only[0].kl_deviation_nats == pytest.approx(0.1 * 2**0.5)


@pytest.mark.parametrize("source", ["text", "random", "self"])
def test_fewer_windows_are_the_first_of_more_and_seeds_differ(source, network, text):
    more = calibration_windows(network, text, (source, 1), 7, 9)
    assert more.shape == (7, 9)
    assert torch.equal(calibration_windows(network, text, (source, 1), 3, 9), more[:3])
    assert not torch.equal(calibration_windows(network, text, (source, 2), 7, 9), more)


def test_what_is_evaluated_on_is_not_calibrated_with(network):
    ids = torch.arange(60)
    found = study_text(network, ids, 2, 10)
    assert found.evaluation.flatten().tolist() == list(range(20))
    assert sorted(calibration_windows(network, found, ("text", 0), 4, 10).flatten().tolist()) == list(range(20, 60))


def test_a_text_that_is_too_short_is_refused(network):
    with pytest.raises(InputError, match="too short for 9 windows"):
        calibration_windows(network, StudyText(torch.zeros(1, 4), torch.arange(30)), ("text", 0), 9, 10)


@pytest.mark.parametrize(("source", "has_text"), [("text", False), ("tekst", True)])
def test_sources_that_are_not_there_are_refused(source, has_text):
    with pytest.raises(InputError, match="text"):
        check_source(source, has_text=has_text)


@pytest.mark.parametrize("name", ["W8A8", "BF16", "Q4_K", "FP8-dynamic"])
def test_schemes_that_are_not_calibrated_are_refused(name):
    with pytest.raises(InputError, match="W8A8-static"):
        study_scheme(name)


def test_page_and_table_show_every_line(finished, tmp_path):
    study, _ = finished
    table = study_table(study)
    assert len(table.rows) == 6
    assert all("+-" in cell for row in table.rows for cell in row[3:5])
    assert len(study_verdicts(study)) == 2
    write_study_page(study, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "gptq on random" in page
    assert "mse on text" in page


def test_an_unfinished_study_has_a_page_that_says_so(finished, tmp_path):
    write_study_page(finished[1][1], tmp_path / "page.html")
    assert "Unfinished: 3 of 4" in (tmp_path / "page.html").read_text(encoding="utf-8")
