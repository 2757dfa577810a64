import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from codesign.cli.main import main
from codesign.errors import InputError
from tests.tiny_transformer import save_tiny

torch = pytest.importorskip("torch", reason="quantizing needs torch")
pytest.importorskip("transformers", reason="blocks are run by transformers")

from codesign.quantize.carry_out import carry_out  # noqa: E402
from codesign.quantize.methods import Recipe  # noqa: E402
from codesign.quantize.network import Network  # noqa: E402
from codesign.quantize.preflight import open_results  # noqa: E402
from codesign.quantize.result import ResultFolder  # noqa: E402
from codesign.quantize.source import open_source  # noqa: E402
from codesign.schemes.catalog import parse_scheme  # noqa: E402

TEXT = torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(1))
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny")))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def schemes_of(network: Network, name: str) -> dict:
    return {layer.name: parse_scheme(name) for layer in network.source.model.layers}


@pytest.mark.parametrize(("method", "scheme"), [("gptq", "W4A16-g32"), ("awq", "W4A16-g32"), ("smoothquant", "W8A8")])
@pytest.mark.parametrize("finished", [1, 2])
def test_a_run_killed_between_blocks_goes_on_to_the_identical_result(model, tmp_path, method, scheme, finished):
    network = Network(open_source(model))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    list(carry_out(network, schemes_of(network, scheme), Recipe(method), TEXT, ResultFolder(whole, {})))
    run = carry_out(network, schemes_of(network, scheme), Recipe(method), TEXT, ResultFolder(stopped, {}))
    for _ in range(finished):
        next(run)
    run.close()
    assert len(files(stopped)) == finished
    # What a kill in the middle of writing leaves must not count as a part.
    (stopped / "block-00001.partial").write_bytes(b"half")
    again = list(carry_out(network, schemes_of(network, scheme), Recipe(method), TEXT, ResultFolder(stopped, {})))
    assert len(again) == 3 - finished
    assert files(stopped) == files(whole)


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["quantize", *arguments])
    return exit_.value.code or 0


def test_the_command_keeps_finished_blocks_and_goes_on(model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("compressed_tensors", reason="the default format is that of compressed-tensors")
    arguments = ("--model", model, "--scheme", "W4A16-g32", "-o", str(tmp_path / "out"))
    kept = ResultFolder.write

    def interrupted(self, part):
        if part.block_index == 1:
            raise KeyboardInterrupt
        kept(self, part)

    monkeypatch.setattr(ResultFolder, "write", interrupted)
    assert run_command(*arguments) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.setattr(ResultFolder, "write", kept)
    assert run_command(*arguments[:3], "W8A16", *arguments[4:]) == 3
    assert "schemes differ" in capsys.readouterr().err
    assert run_command(*arguments) == 0
    assert "1 of 2 blocks are finished from before" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_settings_replace_unfinished_work_only_by_force(tmp_path):
    folder = tmp_path / "out.partial"
    open_results(folder, {"method": "rtn"}, force=False)
    (folder / "block-00000.safetensors").touch()
    with pytest.raises(InputError, match="method differ"):
        open_results(folder, {"method": "gptq"}, force=False)
    assert not open_results(folder, {"method": "gptq"}, force=True).has(0)


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_that_is_not_ours_is_never_removed(tmp_path, force):
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(InputError, match="something else has that name"):
        open_results(folder, {}, force=force)
    assert (folder / "thesis.tex").exists()


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinite")])
@pytest.mark.parametrize(("method", "text"), [("rtn", None), ("gptq", TEXT)])
def test_damaged_weights_are_named(model, tmp_path, value, what, method, text):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 3] = value
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    network, results = Network(open_source(str(tmp_path / "m"))), ResultFolder(tmp_path / "r", {})
    run = carry_out(network, schemes_of(network, "W4A16-g32"), Recipe(method), text, results)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.(up|down)_proj|model\.layers\.1:") as error:
        list(run)
    assert method == "gptq" or (what in str(error.value) and "(5)" in str(error.value))
    assert results.has(0)
    assert not results.has(1)


def test_dead_channels_are_named(model, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][7] = 0
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    network, results = Network(open_source(str(tmp_path / "m"))), ResultFolder(tmp_path / "r", {})
    (first, *_) = carry_out(network, schemes_of(network, "W4A16-g32"), Recipe("rtn"), None, results)
    dead = {layer.name: layer.dead.rows for layer in first.layers if layer.dead.rows}
    assert dead == {"model.layers.0.mlp.up_proj": (7,)}


def test_a_full_disk_is_noticed_before_the_work(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10**9, 10**9 - 50_000, 50_000))
    assert run_command("--model", model, "--scheme", "W4A16-g32", "-o", str(tmp_path / "out")) == 3
    assert "make room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_a_state_to_go_on_from(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("codesign.quantize.export.place._take", full)
    assert run_command("--model", model, "--scheme", "W4A16-g32", "-o", str(tmp_path / "out")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.undo()
    assert run_command("--model", model, "--scheme", "W4A16-g32", "-o", str(tmp_path / "out")) == 0
