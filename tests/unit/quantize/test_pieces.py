import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="quantizing needs torch")
pytest.importorskip("transformers", reason="blocks are run by transformers")

from codesign.quality.sensitivity import TIERS, Request, measure_sensitivity  # noqa: E402
from codesign.quality.state import State  # noqa: E402
from codesign.quantize.carry_out import carry_out  # noqa: E402
from codesign.quantize.methods import Recipe  # noqa: E402
from codesign.quantize.network import Network  # noqa: E402
from codesign.quantize.pieces import Place  # noqa: E402
from codesign.quantize.result import ResultFolder  # noqa: E402
from codesign.quantize.source import open_source  # noqa: E402
from codesign.schemes.catalog import parse_scheme  # noqa: E402

TEXT = torch.randint(0, 96, (6, 24), generator=torch.Generator().manual_seed(1))
BLOCKS = ["model.layers.0", "model.layers.1"]
OUTSIDE = "layers outside of blocks"


@dataclass(frozen=True)
class Shared:
    value: Any


@dataclass
class Backwards:
    """Workers with weights of their own, who finish what was taken last first; `until` of them, then they stop."""

    model: Path
    slots: int = 3
    until: int | None = None
    names: list[str] = field(default_factory=list)

    def share(self, value: Any) -> Shared:
        return Shared(value)

    def run(self, pieces):
        place = Place(open_source(str(self.model)))
        for piece in reversed(list(pieces)):
            if len(self.names) == self.until:
                raise KeyboardInterrupt
            self.names.append(piece.name)
            given = [one.value if isinstance(one, Shared) else one for one in piece.arguments]
            yield piece, piece.function(place, *given)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def quantize(model: Path, out: Path, how: tuple[str, str], text: Any, workers: Any = None) -> dict[str, str]:
    """Return the digests of the parts."""
    method, scheme = how
    source = open_source(str(model))
    schemes = {layer.name: parse_scheme(scheme) for block in source.model.blocks for layer in block.layers}
    schemes[source.model.head.name] = parse_scheme(scheme)
    for _ in carry_out(Network(source, "cpu", workers), schemes, Recipe(method), text, ResultFolder(out, {})):
        pass
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.glob("*.safetensors")}


@pytest.mark.parametrize("how", [("rtn", "W4A16-g32"), ("rtn", "Q8_0"), ("hqq", "W4A16-g32-asym16")])
def test_without_text_every_block_is_a_piece_and_the_order_does_not_matter(model, tmp_path, how):
    workers = Backwards(model)
    found = quantize(model, tmp_path / "a", how, None, workers)
    assert workers.names == [OUTSIDE, *reversed(BLOCKS)]
    assert len(found) == 3
    assert found == quantize(model, tmp_path / "b", how, None)


@pytest.mark.parametrize(
    "how",
    [("gptq", "W4A16-g32"), ("awq", "W4A16-g32"), ("smoothquant", "W8A8"), ("rtn", "W4A16-g32"), ("gptq", "NVFP4")],
)
def test_with_text_the_layers_of_a_group_are_pieces_and_the_bytes_are_the_same(model, tmp_path, how):
    workers = Backwards(model)
    found = quantize(model, tmp_path / "a", how, TEXT, workers)
    assert found == quantize(model, tmp_path / "b", how, TEXT)
    if how[1] == "NVFP4":  # they share a scale of the whole tensor
        assert workers.names == []
        return
    attention = [f"self_attn.{name}_proj" for name in ("v", "k", "q")]
    expected = [*attention, "mlp.up_proj", "mlp.gate_proj"]
    assert workers.names == [f"{block}.{name}" for block in BLOCKS for name in expected]


def test_one_worker_is_given_no_layers_with_text(model, tmp_path):
    workers = Backwards(model, slots=1)
    quantize(model, tmp_path / "a", ("gptq", "W4A16-g32"), TEXT, workers)
    assert workers.names == []


def test_what_was_finished_is_not_handed_out_again(model, tmp_path):
    stopped = Backwards(model, until=2)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "a", ("rtn", "W4A16-g32"), None, stopped)
    rest = Backwards(model)
    found = quantize(model, tmp_path / "a", ("rtn", "W4A16-g32"), None, rest)
    assert stopped.names == [OUTSIDE, BLOCKS[1]]
    assert rest.names == [BLOCKS[0]]
    assert found == quantize(model, tmp_path / "b", ("rtn", "W4A16-g32"), None)


def measure(model: Path, folder: Path, tier: str, workers: Any = None):
    request = Request(tier, (parse_scheme("W4A16-g32"), parse_scheme("W8A8")), "random")
    state = State(folder, {})
    return measure_sensitivity(open_source(str(model)), TEXT, request, state, lambda _: None, workers)


@pytest.mark.parametrize("tier", TIERS)
def test_sensitivity_is_the_same_by_other_workers(model, tmp_path, tier):
    workers = Backwards(model)
    assert measure(model, tmp_path / "a", tier, workers) == measure(model, tmp_path / "b", tier)
    assert len(workers.names) >= 9  # four groups in each of two blocks, and the head


def test_swaps_that_were_finished_are_not_handed_out_again(model, tmp_path):
    stopped = Backwards(model, until=4)
    with pytest.raises(KeyboardInterrupt):
        measure(model, tmp_path / "a", "kl", stopped)
    rest = Backwards(model)
    found = measure(model, tmp_path / "a", "kl", rest)
    assert len(stopped.names) == 4
    assert len(rest.names) == 10 - 4  # four groups in each of two blocks, and two schemes of the head
    assert found == measure(model, tmp_path / "b", "kl")
