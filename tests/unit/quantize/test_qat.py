"""Training with rounding layers, on tiny random models."""

import itertools

import pytest

from codesign.errors import InputError
from codesign.quantize.network import Network
from codesign.quantize.result import ResultFolder, ResultSource
from codesign.quantize.source import FolderSource
from codesign.schemes.catalog import parse_scheme
from tests.tiny_transformer import BLOCK_LAYERS, save_tiny

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training runs models with transformers")

from codesign.quantize import qat  # noqa: E402
from codesign.quantize.qat import QatOptions, QatTask, batch_indices, loss_nats, qat_settings, rate_fraction  # noqa: E402
from codesign.quantize.student import student_of  # noqa: E402


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return FolderSource(save_tiny(tmp_path_factory.mktemp("model")) / "model.safetensors")


def layer_names(source, last=BLOCK_LAYERS):
    return [layer.name for layer in source.model.layers if layer.name.rpartition(".")[2] in last]


def task_of(source, scheme="W3A16-g32", **more):
    ids = torch.randint(0, 96, (12, 16), generator=torch.Generator().manual_seed(3))
    return QatTask(source, {name: parse_scheme(scheme) for name in layer_names(source)}, ids, **more)


def options_of(steps=40, **more):
    return QatOptions(**{"steps": steps, "learning_rate": 1e-3, "step_learning_rate": 1e-2, "batch": 4, **more})


def trained(folder, task, options):
    """Return the results and the reports of a training."""
    results = ResultFolder(folder, qat_settings(task, options))
    return results, list(qat.train(task, options, results))


def logits(source, ids):
    with Network(source).whole() as transformer, torch.no_grad():
        return transformer(input_ids=ids, use_cache=False).logits


def kl_nats(task, source):
    return float(loss_nats(logits(source, task.windows), logits(task.source, task.windows), task.windows))


def untrained(folder, task):
    results = ResultFolder(folder, {})
    with student_of(task.source, task.schemes, task.start, "ste", "cpu") as student:
        student.begin(task.windows[:4])
        for part in student.parts():
            results.write(part)
    return results


@pytest.mark.parametrize("method", ["lsq", "ste"])
def test_training_comes_nearer_to_the_teacher_than_rounding_to_nearest(source, tmp_path, method):
    task = task_of(source)
    results, reports = trained(tmp_path / "qat", task, options_of(method=method))
    before = kl_nats(task, ResultSource(source, untrained(tmp_path / "rtn", task)))
    after = kl_nats(task, ResultSource(source, results))
    assert [report.step for report in reports] == list(range(1, 41))
    assert sum(one.loss_nats for one in reports[-5:]) < 0.7 * sum(one.loss_nats for one in reports[:5])
    assert after < 0.6 * before


def test_the_loss_of_the_next_token_goes_down_without_a_teacher(source, tmp_path, monkeypatch):
    networks = []
    monkeypatch.setattr(qat, "Network", lambda *given: networks.append(given))
    _, reports = trained(tmp_path, task_of(source), options_of(loss="next-token"))
    assert sum(one.loss_nats for one in reports[-5:]) < sum(one.loss_nats for one in reports[:5])
    assert networks == []


SCHEMES = ("W4A16-g32", "W3A16", "W4A16-g64-asym", "W4A16-g64-asym16", "W8A8", "W8A8-static", "FP8", "FP8-channel")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_kept_gives_the_logits_of_the_last_forward_bit_by_bit(source, tmp_path, scheme):
    task, results = task_of(source, scheme), ResultFolder(tmp_path, {})
    options = options_of(steps=5)
    with student_of(source, task.schemes, "rtn", "lsq", "cpu") as student:
        student.begin(task.windows[:4])
        optimizer = qat._optimizer(student, options)
        for step in range(options.steps):
            qat._step(qat._Run(student, None, optimizer, task.windows), options, step)
        with torch.no_grad():
            last = student.logits(task.windows)
        for part in student.parts():
            results.write(part)
    kept = logits(ResultSource(source, results), task.windows)
    assert torch.equal(kept, last)
    assert not torch.equal(kept, logits(ResultSource(source, untrained(tmp_path / "rtn", task)), task.windows))


@pytest.mark.parametrize("scheme", ["NVFP4", "NF4", "MXFP4", "FP8-block", "W4A4"])
def test_scales_that_are_not_learned_stay_and_codes_are_trained(source, tmp_path, scheme):
    task = task_of(source, scheme)
    first = untrained(tmp_path / "rtn", task)
    results, reports = trained(tmp_path / "qat", task, options_of(steps=20, method="ste", learning_rate=2e-4))
    for index in range(2):
        for before, after in zip(first.read(index).layers, results.read(index).layers, strict=True):
            assert torch.equal(before.weight.scales.effective(), after.weight.scales.effective())
            assert not torch.equal(before.weight.codes, after.weight.codes)
    assert reports[-1].loss_nats < reports[0].loss_nats


def test_learned_scales_move_and_are_stored_in_their_type(source, tmp_path):
    task = task_of(source)
    first = untrained(tmp_path / "rtn", task)
    results, _ = trained(tmp_path / "qat", task, options_of(steps=10))
    for before, after in zip(first.read(0).layers, results.read(0).layers, strict=True):
        stored = after.weight.scales.stored
        assert stored.dtype == before.weight.scales.stored.dtype == torch.float16
        assert not torch.equal(stored, before.weight.scales.stored)
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(results.read(0).tensors[norm], source.tensor(norm))
    assert set(results.read(None).tensors) == {"model.norm.weight"}


@pytest.mark.parametrize("stopped_after", [1, 7, 19])
def test_a_run_that_was_stopped_ends_the_same_bit_by_bit(source, tmp_path, stopped_after):
    task, options = task_of(source), options_of(steps=20, save_every=5)
    whole, reports = trained(tmp_path / "whole", task, options)
    results = ResultFolder(tmp_path / "parts", qat_settings(task, options))
    for report in qat.train(task, options, results):
        if report.step == stopped_after:
            break
    again = list(qat.train(task, options, results))
    assert again == reports[stopped_after // 5 * 5 :]
    for index in (None, 0, 1):
        first, second = whole.read(index), results.read(index)
        assert all(torch.equal(second.tensors[name], value) for name, value in first.tensors.items())
        for one, other in zip(first.layers, second.layers, strict=True):
            assert torch.equal(one.weight.codes, other.weight.codes)
            assert torch.equal(one.weight.scales.stored, other.weight.scales.stored)
    assert list(qat.train(task, options, results)) == []
    assert not list(tmp_path.glob("parts/training*"))


def test_the_seed_says_what_comes_out(source, tmp_path):
    task = task_of(source)
    runs = [trained(tmp_path / str(i), task, options_of(steps=6, seed=seed))[1] for i, seed in enumerate((1, 1, 2))]
    assert runs[0] == runs[1] != runs[2]


def test_results_of_another_training_are_not_gone_on_with(source, tmp_path):
    trained(tmp_path, task_of(source), options_of(steps=2))
    with pytest.raises(InputError, match="options differ"):
        trained(tmp_path, task_of(source), options_of(steps=3))


def test_earlier_results_are_started_from_with_their_codes_and_scales(source, tmp_path):
    task = task_of(source)
    first = untrained(tmp_path / "rtn", task)
    changed = ResultFolder(tmp_path / "changed", {})
    for index in (None, 0, 1):
        part = first.read(index)
        for layer in part.layers:
            layer.weight.codes[0, 0] = -1 - layer.weight.codes[0, 0]
        changed.write(part)
    again = untrained(tmp_path / "again", task_of(source, start=changed))
    for index in (0, 1):
        for one, other in zip(changed.read(index).layers, again.read(index).layers, strict=True):
            assert torch.equal(one.weight.codes, other.weight.codes)
            assert torch.equal(one.weight.dequantize(), other.weight.dequantize())


def test_results_of_another_scheme_are_not_started_from(source, tmp_path):
    first = untrained(tmp_path, task_of(source, "W4A16-g32"))
    with pytest.raises(InputError, match="other layers or schemes"):
        untrained(tmp_path / "again", task_of(source, "W3A16-g32", start=first))


def test_the_first_steps_of_the_paper_are_begun_with(source, tmp_path):
    _, reports = trained(tmp_path, task_of(source, start="lsq"), options_of())
    assert reports[-1].loss_nats < reports[0].loss_nats
    with pytest.raises(InputError, match="zero points"):
        trained(tmp_path / "asym", task_of(source, "W4A16-g32-asym", start="lsq"), options_of())


def test_a_tied_head_that_rounds_leaves_the_embedding_alone(tmp_path):
    import transformers

    from tests.tiny_transformer import CONFIG

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG, tie_word_embeddings=True, initializer_range=0.1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    source = FolderSource(tmp_path / "model" / "model.safetensors")
    ids = torch.randint(0, 96, (4, 16), generator=torch.Generator().manual_seed(3))
    with student_of(source, {"lm_head": parse_scheme("W4A16-g32")}, "rtn", "lsq", "cpu") as student:
        student.begin(ids)
        before = student.logits(ids)
        with torch.no_grad():
            student.layers["lm_head"].linear.weight.zero_()
        embedding = student.transformer.get_input_embeddings().weight
        assert torch.equal(embedding, source.tensor("model.embed_tokens.weight"))
        assert not torch.equal(before, student.logits(ids))
        (layer,) = next(iter(student.parts())).layers
        assert (layer.name, int(layer.weight.codes.count_nonzero())) == ("lm_head", 0)


@pytest.mark.parametrize(
    ("scheme", "method", "sentence"),
    [("NVFP4", "lsq", "use --method ste"), ("Q4_K", "ste", "value by value"), ("MXFP4", "lsq", "does not learn")],
)
def test_schemes_that_cannot_be_trained_so_are_refused(source, tmp_path, scheme, method, sentence):
    with pytest.raises(InputError, match=sentence):
        trained(tmp_path, task_of(source, scheme), options_of(method=method))


def test_a_training_that_diverges_says_what_to_do(source, tmp_path):
    with pytest.raises(InputError, match="smaller --lr"):
        trained(tmp_path, task_of(source), options_of(learning_rate=1e20))


def test_no_layers_and_too_large_batches_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="nothing to train"):
        trained(tmp_path / "none", QatTask(source, {}, task_of(source).windows), options_of())
    with pytest.raises(InputError, match="the text has 12"):
        trained(tmp_path / "batch", task_of(source), options_of(batch=13))
    long = QatTask(source, task_of(source).schemes, torch.zeros(4, 129, dtype=torch.int64))
    with pytest.raises(InputError, match="129 tokens are longer than the 128"):
        trained(tmp_path / "long", long, options_of())


def test_a_damaged_state_is_named(source, tmp_path):
    task, options = task_of(source), options_of(steps=4, save_every=2)
    results = ResultFolder(tmp_path, qat_settings(task, options))
    next(iter(qat.train(task, options, results)))
    (tmp_path / "training.safetensors").write_bytes(b"no such file")
    with pytest.raises(InputError, match="remove it to begin anew"):
        list(qat.train(task, options, results))


def test_a_full_disk_leaves_the_last_state(source, tmp_path, monkeypatch):
    task, options = task_of(source), options_of(steps=6, save_every=2)
    results = ResultFolder(tmp_path, qat_settings(task, options))
    run = qat.train(task, options, results)
    reports = [next(run), next(run), next(run)]

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        next(run)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.glob("training*")] == ["training.safetensors"]
    assert [report.step for report in qat.train(task, options, results)] == [3, 4, 5, 6]
    assert [report.step for report in reports] == [1, 2, 3]


def test_layers_that_the_model_has_not_or_that_round_already_are_refused(source, tmp_path):
    ids, scheme = task_of(source).windows, parse_scheme("W4A16-g32")
    with pytest.raises(InputError, match="has no layer model"):
        trained(tmp_path / "a", QatTask(source, {"model.layers.9.mlp.up_proj": scheme}, ids), options_of())
    rounded = ResultSource(source, untrained(tmp_path / "b", task_of(source, "W8A8")))
    with pytest.raises(InputError, match="quantized inputs already"):
        trained(tmp_path / "c", task_of(rounded), options_of())


def test_the_scale_above_the_scales_of_inputs_is_calibrated(source, tmp_path):
    part = untrained(tmp_path, task_of(source, "NVFP4")).read(0)
    assert all(layer.fixed is not None for layer in part.layers)
    q, k = part.layers[0], part.layers[1]
    assert torch.equal(q.weight.scales.above.divisor, k.weight.scales.above.divisor)


def test_every_window_comes_once_before_one_comes_again():
    seen = [index for step in range(6) for index in batch_indices(9, 3, step, seed=5)]
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9))
    assert seen[:9] != seen[9:]
    assert batch_indices(9, 3, 4, seed=5) == seen[12:15]


def test_the_rate_rises_then_falls_to_nothing():
    rates = [rate_fraction(step, 50) for step in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[-1] < 0.01
    assert rate_fraction(0, 1) == 1.0


def test_the_divergence_is_that_of_torch_distributions():
    found, wanted = (torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    distributions = torch.distributions.Categorical
    exact = torch.distributions.kl_divergence(distributions(logits=wanted), distributions(logits=found)).mean()
    assert float(loss_nats(found, wanted, torch.zeros(2, 3, dtype=torch.int64))) == pytest.approx(
        float(exact), rel=1e-5
    )
