import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from codesign.cli.main import main
from codesign.errors import CapabilityError, CodesignError, InputError
from codesign.quantize import cluster
from codesign.quantize.cluster import Cluster, Weights, open_workers, weights_at
from codesign.quantize.pieces import Piece

pytest.importorskip("torch", reason="results are tensors")


class TaskError(Exception):
    def __init__(self, cause: BaseException) -> None:
        super().__init__("a long trace")
        self.cause = cause


class CrashedError(Exception):
    pass


ERRORS = SimpleNamespace(
    RayTaskError=TaskError, WorkerCrashedError=CrashedError, NodeDiedError=CrashedError, ObjectLostError=CrashedError,
    LocalRayletDiedError=CrashedError, OutOfMemoryError=CrashedError,
)  # fmt: skip


@dataclass
class FakeRay:
    """What Cluster uses of ray; the result of a piece is taken from `outcomes` by its name, else it is the name."""

    machines: list[dict[str, float]]
    outcomes: dict[str, list[Any]] = field(default_factory=dict)
    options_of: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[Any] = field(default_factory=list)
    most_in_flight: int = 0
    _in_flight: int = 0
    exceptions: Any = field(default_factory=lambda: ERRORS)
    util: Any = field(default_factory=lambda: SimpleNamespace(register_serializer=lambda *_, **__: None))

    def remote(self, function: Any) -> "FakeRay":
        return self

    def options(self, **given: Any) -> Any:
        self.options_of.append(given)
        return SimpleNamespace(remote=lambda order, *arguments: self._reference(given["name"]))

    def _reference(self, name: str) -> tuple[int, str]:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        return len(self.options_of), name

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self.machines]

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: tuple[int, str]) -> Any:
        self._in_flight -= 1
        outcomes = self.outcomes.get(reference[1])
        outcome = outcomes.pop(0) if outcomes else reference[1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, reference: Any, force: bool) -> None:
        self.cancelled.append(reference)


def pieces(count: int, **more: Any) -> Iterator[Piece]:
    return (Piece(f"layer {index}", print, (), **more) for index in range(count))


def over(ray: FakeRay, threads: int = 1) -> Cluster:
    return Cluster(ray, Weights("/weights", ""), threads)


def test_all_pieces_come_back_with_no_more_in_flight_than_two_a_slot():
    ray = FakeRay([{"CPU": 2}, {"CPU": 1}])
    found = {piece.name: value for piece, value in over(ray).run(pieces(20))}
    assert found == {f"layer {index}": f"layer {index}" for index in range(20)}
    assert ray.most_in_flight == 6
    assert ray.cancelled == []


def test_a_piece_takes_as_many_processors_as_threads_and_one_where_they_do_not_matter():
    ray = FakeRay([{"CPU": 8, "GPU": 2}, {"CPU": 3}])
    workers = over(ray, threads=4)
    assert workers.slots == 2
    list(workers.run([*pieces(1), *pieces(1, one_thread=True), *pieces(1, on_gpu=True)]))
    assert [(one["num_cpus"], one["num_gpus"]) for one in ray.options_of] == [(4, 0), (1, 0), (1, 1)]


def test_a_lost_worker_costs_its_piece_only():
    ray = FakeRay([{"CPU": 1}], {"layer 1": [CrashedError(), CrashedError()]})
    found = [piece.name for piece, _ in over(ray).run(pieces(3))]
    assert sorted(found) == ["layer 0", "layer 1", "layer 2"]
    assert sorted(one["name"] for one in ray.options_of) == ["layer 0", *["layer 1"] * 3, "layer 2"]


def test_a_piece_that_loses_every_worker_ends_the_run_with_its_name():
    ray = FakeRay([{"CPU": 1}], {"layer 1": [CrashedError()] * 9})
    with pytest.raises(CapabilityError, match=r"layer 1: its worker was lost 4 times .*memory may be short"):
        list(over(ray).run(pieces(2)))
    assert ray.cancelled


@pytest.mark.parametrize(
    ("cause", "kind", "text"),
    [
        (InputError("row 3 has NaN."), InputError, "layer 0: row 3 has NaN."),
        (InputError("layer 0: row 3 has NaN."), InputError, "layer 0: row 3 has NaN."),
        (KeyError("gone"), CodesignError, "layer 0: a worker failed with KeyError: 'gone'"),
    ],
)
def test_an_error_is_told_with_the_name_of_the_layer(cause, kind, text):
    ray = FakeRay([{"CPU": 1}], {"layer 0": [TaskError(cause)]})
    with pytest.raises(CodesignError) as raised:
        list(over(ray).run(pieces(2)))
    assert type(raised.value) is kind
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("machines", "threads", "on_gpu", "text"),
    [
        ([{"CPU": 2}], 8, False, "set OMP_NUM_THREADS=2 or less"),
        ([{"memory": 1}], 1, False, "No machine of the cluster is left"),
        ([{"CPU": 2}], 1, True, "use --device cpu"),
    ],
)
def test_pieces_that_fit_nowhere_are_refused_and_not_waited_for(machines, threads, on_gpu, text):
    with pytest.raises(CapabilityError, match=text):
        list(over(FakeRay(machines), threads).run(pieces(1, on_gpu=on_gpu)))


def test_without_an_address_there_are_no_workers():
    with open_workers(None, "/nowhere", print) as workers:
        assert workers is None


def test_other_weights_of_the_same_size_have_another_fingerprint(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, values in ((first, b"0" * 100_000), (second, b"1" * 100_000)):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(values)
    assert weights_at(str(first)).fingerprint != weights_at(str(second)).fingerprint
    assert weights_at(str(first)) == weights_at(str(first))


@pytest.mark.parametrize(
    ("path", "version", "text"),
    [
        ("there", "0", "codesign .* the run was begun with 0"),
        ("there", None, "has other weights at"),
        ("elsewhere", None, "does not find .*elsewhere"),
    ],
)
def test_a_machine_with_something_else_refuses(tmp_path, monkeypatch, path, version, text):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.safetensors").write_bytes(b"0" * 100)
    monkeypatch.setattr(cluster, "load_ray", lambda: FakeRay([]))
    order = cluster.Order(print, Weights(str(tmp_path / path), "other"), version or cluster.__version__, 1)
    with pytest.raises(CodesignError, match=text):
        cluster.perform(order)


@pytest.mark.parametrize("command", [["quantize", "--scheme", "W4A16-g32"], ["sensitivity", "--schemes", "W4A16-g32"]])
def test_without_ray_the_commands_say_how_to_get_it_and_write_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--model", str(tmp_path), "--cluster", "-o", str(tmp_path / "out")])
    assert exit_.value.code == 5
    assert 'ray, which is not installed; pip install "codesign[cluster]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_no_cluster_answers_is_told_with_how_to_start_one(monkeypatch, tmp_path):
    def refuse(**_given: Any) -> None:
        raise ConnectionError("no GCS\nmore")

    ray = SimpleNamespace(init=refuse)
    (tmp_path / "model.safetensors").write_bytes(b"0")
    monkeypatch.setattr(cluster, "load_ray", lambda: ray)
    with pytest.raises(CapabilityError, match=r"10\.0\.0\.1:6379: no ray cluster answers there \(no GCS\); start"):
        open_workers("10.0.0.1:6379", str(tmp_path), print).__enter__()
