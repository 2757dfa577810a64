"""The three tiers on a tiny Llama of random weights: against brute force, against each other, stopped and resumed."""

import math

import pytest

from codesign.errors import InputError
from codesign.model.groups import fused_groups
from codesign.quality.cells import Task, unmeasured
from codesign.quality.divergence import divergences, mean_divergence, run_blocks
from codesign.quality.estimate import LossOrigin
from codesign.quality.rounded import RoundedSource
from codesign.quality.sensitivity import TIERS, Request, measure_sensitivity
from codesign.quality.state import State
from codesign.quality.table import read_quality, write_quality
from codesign.quality.text import own_windows
from codesign.quantize.network import Network
from codesign.quantize.source import open_source
from codesign.schemes.catalog import parse_scheme
from codesign.schemes.kv import parse_kv
from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="the extra `quantize` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `quantize` is not installed")

SCHEMES = tuple(map(parse_scheme, ("W4A16-g32", "W8A8", "W3A16-g32")))


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(str(save_tiny(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def windows():
    return torch.randint(0, 96, (24, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tables(source, windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    return {
        tier: measure_sensitivity(
            source, windows, Request(tier, SCHEMES, "random"), State(folder / tier, {}), silent
        )
        for tier in TIERS
    }  # fmt: skip


def losses(table, schemes=SCHEMES):
    names = {scheme.name for scheme in schemes}
    return {key: cell.loss_nats for key, cell in table.cells.items() if key[1] in names}


def ranks(values):
    order = sorted(values, key=values.get)
    return {key: rank for rank, key in enumerate(order)}


def rank_correlation(left, right):
    a, b = ranks(left), ranks(right)
    mean = (len(a) - 1) / 2
    return sum((a[k] - mean) * (b[k] - mean) for k in a) / sum((a[k] - mean) ** 2 for k in a)


def test_tables_hold_every_group_under_every_scheme(tables, source):
    keys = {(group.key, scheme.name) for group in fused_groups(source.model) for scheme in SCHEMES}
    for table in tables.values():
        assert set(table.cells) == keys
        assert all(cell.origin is LossOrigin.MEASURED and cell.loss_nats > 0 for cell in table.cells.values())


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ((0, "qkv"), ("q_proj", "k_proj", "v_proj")),
        ((1, "down"), ("down_proj",)),
        ((None, "head"), ("lm_head", "embed")),
    ],
)
def test_tier_kl_equals_a_swap_in_plain_transformers(tables, source, windows, tmp_path, key, names):
    """Weights are rounded by hand, symmetrically in groups of 32, and the whole model is run by transformers."""
    model = transformers.AutoModelForCausalLM.from_config(source.config)
    state = {name: source.tensor(name).clone() for name in model.state_dict()}
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        exact = model(windows).logits.double().log_softmax(-1)
        for name, parameter in model.named_parameters():
            inside = key[0] is None or f"layers.{key[0]}." in name
            if inside and any(word in name for word in names):
                groups = parameter.reshape(-1, 32)
                scale = (groups.abs().amax(dim=1, keepdim=True) / 7.5).half().float()
                parameter.copy_(((groups / scale).round().clamp(-8, 7) * scale).reshape(parameter.shape))
        other = model(windows).logits.double().log_softmax(-1)
    expected = float((exact.exp() * (exact - other)).sum(-1).mean())
    assert tables["kl"].cells[(key, "W4A16-g32")].loss_nats == pytest.approx(expected, rel=2e-3)


def test_tier_fisher_ranks_like_tier_kl(tables):
    weight_only = tuple(scheme for scheme in SCHEMES if scheme.weight_only)
    assert rank_correlation(losses(tables["fisher"]), losses(tables["kl"])) > 0.95
    found, real = losses(tables["fisher"], weight_only), losses(tables["kl"], weight_only)
    assert all(abs(math.log(found[key] / real[key])) < math.log(2) for key in real)


def test_tier_fisher_is_second_order_kl_where_changes_are_small(source, windows, tmp_path):
    """At 8 bits nothing of higher order is left, so that the two tiers differ by the noise of the draws alone."""
    schemes = (parse_scheme("W8A16-g32"),)
    found, real = (
        measure_sensitivity(source, windows, Request(tier, schemes, "random"), State(tmp_path / tier, {}), silent)
        for tier in ("fisher", "kl")
    )
    total, expected = (math.fsum(losses(table, schemes).values()) for table in (found, real))
    assert total == pytest.approx(expected, rel=0.3)


def test_calibration_is_the_loss_of_a_uniform_scheme_over_the_sum(tables, source, windows):
    table = tables["kl"]
    sums = {scheme: math.fsum(losses(table, (scheme,)).values()) for scheme in SCHEMES}
    uniform = min(SCHEMES, key=lambda scheme: abs(math.log(sums[scheme] / 0.1)))
    exact = Network(source)
    other = Network(RoundedSource(source, {layer.name: uniform for layer in source.model.layers}))
    ends = [run_blocks(network, windows, silent) for network in (exact, other)]
    whole = mean_divergence(divergences(exact, ends[0], other, ends[1])).kl_nats
    assert table.calibration == pytest.approx(whole / sums[uniform], rel=1e-5)


def test_a_table_reads_back(tables, source, tmp_path):
    write_quality(tables["fisher"], tmp_path / "quality.json")
    read = read_quality(tmp_path / "quality.json", source.model)
    assert losses(read) == losses(tables["fisher"])
    assert read.calibration == tables["fisher"].calibration
    assert "fisher" in read.metric


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("tier", "steps"), [("weights", 3), ("fisher", 4), ("fisher", 28), ("kl", 5)])
def test_a_stopped_run_goes_on_to_the_same_table(tables, source, windows, tmp_path, tier, steps):
    left = [steps]

    def stopping(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped

    request = Request(tier, SCHEMES, "random")
    with pytest.raises(Stopped):
        measure_sensitivity(source, windows, request, State(tmp_path / "state", {}), stopping)
    table = measure_sensitivity(source, windows, request, State(tmp_path / "state", {}), silent)
    assert losses(table) == pytest.approx(losses(tables[tier]), rel=1e-6)
    assert table.calibration == pytest.approx(tables[tier].calibration, rel=1e-6)


def test_what_was_found_is_not_measured_again(source, windows, tmp_path):
    request, steps = Request("kl", SCHEMES[:1], "random"), []
    first = measure_sensitivity(source, windows, request, State(tmp_path / "state", {}), silent)
    again = measure_sensitivity(source, windows + 0, request, State(tmp_path / "state", {}), steps.append)
    assert losses(again) == losses(first)
    assert not any("everywhere" in step for step in steps)


def test_a_state_of_other_settings_is_refused_unless_forced(tmp_path):
    State(tmp_path / "state", {"tier": "kl"}).keep({"a": 1})
    assert State(tmp_path / "state", {"tier": "kl"}).get("a") == 1
    with pytest.raises(InputError, match="tier differ"):
        State(tmp_path / "state", {"tier": "fisher"})
    assert State(tmp_path / "state", {"tier": "fisher"}, force=True).get("a") is None


def test_kv_formats_are_measured_end_to_end(source, windows, tmp_path):
    kv = tuple(map(parse_kv, ("int8", "int4")))
    table = measure_sensitivity(
        source, windows, Request("weights", SCHEMES, "random", kv), State(tmp_path / "state", {}), silent
    )
    assert 0 < table.kv["int8"].loss_nats < table.kv["int4"].loss_nats
    assert table.kv["int8"].origin is LossOrigin.MEASURED
    assert table.kv["fp8"].origin is LossOrigin.PRIOR


class DamagedSource(RoundedSource):
    """The same weights with one value that is not a number."""

    def tensor(self, name):
        values = super().tensor(name)
        if name == "model.layers.1.mlp.up_proj.weight":
            values = values.clone()
            values[2, 3] = torch.nan
        return values


@pytest.mark.parametrize("tier", TIERS)
def test_nan_weights_are_named(source, windows, tmp_path, tier):
    damaged = DamagedSource(source, {})
    given = None if tier == "weights" else windows
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight has 1 NaN"):
        measure_sensitivity(damaged, given, Request(tier, SCHEMES, ""), State(tmp_path / "state", {}), silent)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """Return a model whose files hold no head: it is the input embedding."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=96,
        max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tied")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    found = open_source(str(folder))
    assert not found.has("lm_head.weight")
    return found


def test_a_tied_head_is_measured_with_the_embedding(tied, windows, tmp_path):
    found = {
        tier: measure_sensitivity(tied, windows, Request(tier, SCHEMES, "random"), State(tmp_path / tier, {}), silent)
        for tier in TIERS
    }
    for scheme in SCHEMES:
        fisher, real = (found[tier].cells[((None, "head"), scheme.name)].loss_nats for tier in ("fisher", "kl"))
        assert fisher == pytest.approx(real, rel=0.5)
        assert found["weights"].cells[((None, "head"), scheme.name)].loss_nats > 0


def test_a_scheme_that_a_shape_refuses_is_unknown_there(source):
    task = Task(source, (parse_scheme("Q8_0"), parse_scheme("Q4_K")))
    assert {scheme.name for group in task.all_groups for scheme in task.runnable(group)} == {"Q8_0"}
    assert "does not divide" in unmeasured(task)[0]


def test_tiers_that_need_text_say_so(source, tmp_path):
    with pytest.raises(InputError, match="needs a text"):
        measure_sensitivity(source, None, Request("kl", SCHEMES, ""), State(tmp_path / "state", {}), silent)
    with pytest.raises(InputError, match="Did you mean"):
        Request("fischer", SCHEMES, "")
    with pytest.raises(InputError, match="No quantized scheme"):
        Request("kl", (parse_scheme("BF16"),), "")


def test_the_model_writes_windows_of_its_own(source):
    made = own_windows(source, 8, 3, "cpu")
    assert made.shape == (3, 8)
    assert int(made.max()) < source.model.vocabulary
