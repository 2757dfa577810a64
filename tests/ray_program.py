"""Run by a test: work on a real ray cluster of two nodes, one of which is killed; write what came of it.

It is a process of its own because ray's processes talk to each other through sockets, which tests may not open.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

from codesign.cli.main import main as codesign
from codesign.errors import CodesignError
from codesign.quality.sensitivity import TIERS, Request, measure_sensitivity
from codesign.quality.state import State
from codesign.quantize.carry_out import carry_out
from codesign.quantize.cluster import open_workers
from codesign.quantize.methods import Recipe
from codesign.quantize.network import Network
from codesign.quantize.pieces import Piece, Place, Workers
from codesign.quantize.result import ResultFolder
from codesign.quantize.source import open_source
from codesign.schemes.catalog import parse_scheme
from tests.tiny_transformer import save_tiny

TEXT = torch.randint(0, 96, (6, 24), generator=torch.Generator().manual_seed(1))
HOW = {"rtn": ("W4A16-g32", None), "gptq": ("W4A16-g32", TEXT), "awq": ("W4A16-g32", TEXT)}
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
DAMAGED = "model.layers.1.mlp.up_proj"
PIECES, PIECE_S = 6, 2.0


class TwoNodes:
    """A cluster of which the second node can be killed."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})

    @contextmanager
    def workers(self, model: Path) -> Iterator[Workers]:
        """Give workers on both nodes; the second is there anew."""
        self.second = self.cluster.add_node(**NODE)
        with open_workers(self.cluster.address, str(model), lambda _: None) as found:
            assert found is not None
            yield found
        if self.second in self.cluster.worker_nodes:
            self.kill()

    def kill(self) -> None:
        """Kill the second node with all that it works on."""
        self.cluster.remove_node(self.second, allow_graceful=False)


def slow(place: Place, log: str, index: int) -> int:
    """Say who begins, and work for a while."""
    (Path(log) / f"{index} by {os.getpid()}").write_text(ray.get_runtime_context().get_node_id())
    time.sleep(PIECE_S)
    return index * index


def begun(log: Path) -> list[int]:
    return sorted(int(file.name.split()[0]) for file in log.iterdir())


def begun_just_now(log: Path, node: str) -> int:
    """Return the piece that a node has begun a moment ago, waiting for one."""
    while True:
        now_s = time.time()
        for file in log.iterdir():
            if now_s - file.stat().st_mtime < PIECE_S / 4 and file.read_text() == node:
                return int(file.name.split()[0])
        time.sleep(PIECE_S / 20)


def killed_in_the_middle(nodes: TwoNodes, model: Path, log: Path) -> dict[str, Any]:
    """Kill the node while it works on a piece."""
    log.mkdir()
    pieces = [Piece(f"piece {index}", slow, (str(log), index)) for index in range(PIECES)]
    found, lost = {}, None
    with nodes.workers(model) as workers:
        for piece, value in workers.run(pieces):
            found[piece.name] = value
            if lost is None:
                lost = begun_just_now(log, nodes.second.node_id)
                nodes.kill()
    return {"found": found, "lost": lost, "begun": begun(log)}


def quantized(model: Path, out: Path, method: str, workers: Workers | None = None) -> Iterator[Any]:
    source, (scheme, text) = open_source(str(model)), HOW[method]
    schemes = {layer.name: parse_scheme(scheme) for block in source.model.blocks for layer in block.layers}
    return carry_out(Network(source, "cpu", workers), schemes, Recipe(method), text, ResultFolder(out, {}))


def digests(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*") if file.is_file()}  # fmt: skip


def quantized_twice(nodes: TwoNodes, model: Path, folder: Path, method: str) -> list[dict[str, str]]:
    """Return the digests with the node killed after the first part, and without a cluster."""
    with nodes.workers(model) as workers:
        run = quantized(model, folder / "cluster", method, workers)
        next(run)
        nodes.kill()
        list(run)
    list(quantized(model, folder / "here", method))
    return [digests(folder / "cluster"), digests(folder / "here")]


def measured_twice(nodes: TwoNodes, model: Path, folder: Path, tier: str) -> list[str]:
    """Return the table with the node killed between groups, and without a cluster."""
    steps: list[str] = []

    def kill(step: str) -> None:
        steps.append(step)
        if len(steps) == 8:
            nodes.kill()

    request = Request(tier, (parse_scheme("W4A16-g32"), parse_scheme("W8A8")), "random")
    source = open_source(str(model))
    with nodes.workers(model) as workers:
        found = measure_sensitivity(source, TEXT, request, State(folder / "a", {}), kill, workers)
    assert len(steps) >= 8
    here = measure_sensitivity(source, TEXT, request, State(folder / "b", {}), lambda _: None)
    return [repr(found), repr(here)]


def damaged(nodes: TwoNodes, folder: Path) -> list[str]:
    """Return how a weight that is NaN is told of."""
    file = save_tiny(folder / "m") / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{DAMAGED}.weight"][3, 3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    try:
        with nodes.workers(file.parent) as workers:
            list(quantized(file.parent, folder / "out", "rtn", workers))
    except CodesignError as error:
        return [type(error).__name__, str(error)]
    return []


def commanded(model: Path, folder: Path) -> list[dict[str, str]]:
    """Return what the command writes with processes of this machine, and without."""
    folder.mkdir()
    for out, more in (("cluster", ["--cluster", "local"]), ("here", [])):
        with suppress(SystemExit):
            codesign(["quantize", "--model", str(model), "--scheme", "W4A16-g32", "-o", str(folder / out), *more])
    return [digests(folder / "cluster"), digests(folder / "here")]


def main(folder: Path) -> None:
    """Run all cases and write what came of them."""
    torch.set_num_threads(1)
    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    model = save_tiny(folder / "model")
    nodes = TwoNodes()
    found: dict[str, Any] = {"killed": killed_in_the_middle(nodes, model, folder / "log")}
    found.update({method: quantized_twice(nodes, model, folder / method, method) for method in HOW})
    found.update({tier: measured_twice(nodes, model, folder / tier, tier) for tier in TIERS})
    found["damaged"] = damaged(nodes, folder / "damaged")
    nodes.cluster.shutdown()
    found["command"] = commanded(model, folder / "command")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
