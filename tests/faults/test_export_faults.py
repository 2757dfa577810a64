"""Exports that are stopped, that meet what lies there already, or that a format cannot hold."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from codesign.errors import InputError  # noqa: E402
from codesign.quantize.export import export, place, writer  # noqa: E402
from codesign.quantize.result import Part, ResultFolder  # noqa: E402
from tests.tiny_results import quantized, same_for_all, save_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers says of itself


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(source, tmp_path_factory):
    return quantized(source, tmp_path_factory.mktemp("results"), same_for_all("W4A16-g32"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_kill_in_the_middle_leaves_nothing_at_the_place(tmp_path, source, results):
    """The child ends itself by SIGKILL when the first file is written; an old export is as it was."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from codesign.quantize.export import export, shards\n"
        "from codesign.quantize.result import ResultFolder\n"
        "from codesign.quantize.source import open_source\n"
        "shards.ShardWriter.close = lambda self: (self._flush(), os.kill(os.getpid(), signal.SIGKILL))\n"
        "results = ResultFolder(Path(sys.argv[1]), {'made': 'for a test'})\n"
        "export(results, open_source(sys.argv[2]), 'gptq', Path(sys.argv[3]), force=True)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    command = [sys.executable, "-c", code, str(results.path), str(source.folder), str(out)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (out / "config.json").read_text() == "{}"
    assert names(out) == ["config.json"]
    assert all(name == "out" or name.startswith(".out.tmp-") for name in names(tmp_path))


def test_a_failure_leaves_no_trace(tmp_path, source, results, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_config", fail)
    with pytest.raises(InputError, match="writing failed: No space left on device"):
        export(results, source, "awq", tmp_path / "out")
    assert names(tmp_path) == []


def test_what_exists_is_replaced_only_by_force(tmp_path, source, results):
    out = tmp_path / "out"
    export(results, source, "gptq", out)
    with pytest.raises(InputError, match="exists already"):
        export(results, source, "awq", out)
    assert (out / "quantize_config.json").exists()
    export(results, source, "awq", out, force=True)
    assert not (out / "quantize_config.json").exists()
    assert names(tmp_path) == ["out"]


def test_the_old_one_comes_back_if_the_last_rename_fails(tmp_path, source, results, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    rename = os.rename

    def fail_once(first, second):
        if ".out.tmp-" in str(first) and str(second) == str(out):
            raise OSError(5, "Input/output error")
        rename(first, second)

    monkeypatch.setattr(place.os, "rename", fail_once)
    with pytest.raises(InputError, match="writing failed"):
        export(results, source, "awq", out, force=True)
    assert (out / "mine").read_text() == "kept"
    assert names(tmp_path) == ["out"]


def test_places_that_are_not_meant(tmp_path, source, results):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "link").symlink_to(inside)
    for out, why in (
        (tmp_path / "link", "this is a link"),
        (tmp_path / "missing" / "out", "there is no folder"),
        (tmp_path / "..", "give the name of a new folder"),
        (source.folder, "what is exported is read from there"),
        (source.folder.parent, "what is exported is read from there"),
        (results.path, "what is exported is read from there"),
    ):
        with pytest.raises(InputError, match=why):
            export(results, source, "gptq", out, force=True)
    assert names(inside) == []
    assert (source.folder / "config.json").exists()


def test_a_full_disk_is_seen_before(tmp_path, source, results, monkeypatch):
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="the export takes about"):
        export(results, source, "gptq", tmp_path / "out")
    assert names(tmp_path) == []


def test_an_unfinished_result_is_refused(tmp_path, source, results):
    part = ResultFolder(tmp_path / "results", {})
    part.write(results.read(0))
    with pytest.raises(InputError, match=r"1 of 2 blocks are not quantized yet \(the first is 1\)"):
        export(part, source, "gptq", tmp_path / "out")


def test_a_result_of_another_model_is_refused(tmp_path, results):
    other = save_model(tmp_path / "model", intermediate_size=320)
    with pytest.raises(InputError, match=r"gate_proj is 256x128 there, and the model .* has no such layer"):
        export(results, other, "gptq", tmp_path / "out")


def test_an_unknown_format_is_refused(tmp_path, source, results):
    with pytest.raises(InputError, match=r'is not a format; use compressed-tensors.* Did you mean "gguf"'):
        export(results, source, "ggufs", tmp_path / "out")


def changed(results, folder, **fields):
    """Return the results with fields of all layers in block 0 changed."""
    made = ResultFolder(folder, {})
    layers = tuple(replace(layer, **fields) for layer in results.read(0).layers)
    made.write(Part(0, layers))
    made.write(results.read(1))
    return made


def test_rotated_inputs_are_refused(tmp_path, source, results):
    with pytest.raises(InputError, match="rotated before they are multiplied"):
        export(changed(results, tmp_path / "results", rotation_seed=3), source, "gptq", tmp_path / "out")


def schemes(**by_part):
    return lambda layer: next((scheme for part, scheme in by_part.items() if part in layer), "BF16")


REFUSED = {
    "groups": ("gptq", {"_proj": "W4A16-g256"}, "groups of 256 do not divide its 128 inputs"),
    "torn": ("gptq", {"q_proj": "W8A16", "_proj": "W4A16-g32"}, "0.qkv is multiplied as one by vLLM"),
    "torn, 16 bits": ("compressed-tensors", {"gate_proj": "BF16", "_proj": "W4A16-g32"}, "0.gate_up is multiplied"),
    "mixed AWQ": ("awq", {"mlp": "W4A16-g64", "_proj": "W4A16-g32"}, "AWQ checkpoints hold one scheme"),
    "AWQ of 8 bits": ("awq", {"_proj": "W8A16-g32"}, "AWQ stores integers of 4 bits"),
    "AWQ of the head": ("awq", {"_proj": "W4A16-g32", "lm_head": "W4A16-g32"}, "AWQ checkpoints keep the head"),
    "activations in GPTQ": ("gptq", {"_proj": "W8A8"}, "GPTQ stores integers of 2 or 3 or 4 or 8 bits"),
    "float zero points": ("gptq", {"_proj": "W4A16-g32-asym16"}, "GPTQ stores integer zero points"),
    "E3M2": ("compressed-tensors", {"_proj": "MXFP6"}, "compressed-tensors stores MXFP6 with E2M3"),
    "torchao of 4 bits": ("torchao", {"_proj": "W4A16-g32"}, "of torchao's tensors those of W8A16"),
    "GGUF elsewhere": ("compressed-tensors", {"_proj": "Q8_0"}, "does not store Q8_0"),
    "mixed bitsandbytes": ("bitsandbytes", {"mlp": "NF4", "_proj": "BNB-FP4"}, "hold one scheme, not"),
    "nothing": ("gptq", {}, "no layer is quantized"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_illegal_results_are_refused_before_anything_is_written(tmp_path, source, case):
    format_, by_part, why = REFUSED[case]
    made = quantized(source, tmp_path / "results", schemes(**by_part))
    with pytest.raises(InputError, match=why):
        export(made, source, format_, tmp_path / "out")
    assert names(tmp_path) == ["results"]


def test_static_inputs_without_a_range_are_refused(tmp_path, source):
    made = quantized(source, tmp_path / "results", same_for_all("FP8"))
    without = changed(made, tmp_path / "without", fixed=None)
    with pytest.raises(InputError, match="stores a scale of the inputs, which was not calibrated"):
        export(without, source, "compressed-tensors", tmp_path / "out")


def test_zero_points_of_zero_are_refused_by_the_first_version(tmp_path, source):
    made = quantized(source, tmp_path / "results", same_for_all("W4A16-g32-asym"))
    part = made.read(0)
    for layer in part.layers:
        layer.weight.zero_points[0, 0] = 0
    made.write(part)
    with pytest.raises(InputError, match="write gptq_v2"):
        export(made, source, "gptq", tmp_path / "out")
    assert names(tmp_path) == ["results"]
