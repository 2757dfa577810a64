"""Pieces of work done by the machines of a ray cluster, each of which reads the weights from a path they share.

Source of what ray retries and how: docs.ray.io, Ray Core, "Task fault tolerance".
"""

import hashlib
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign import __version__
from codesign.errors import CapabilityError, CodesignError, InputError
from codesign.model.weight_files import GGUF_SUFFIX, WEIGHT_SUFFIX, weight_path
from codesign.quantize.pieces import Piece, Place, Workers
from codesign.quantize.source import open_source

if TYPE_CHECKING:
    from torch import Tensor

LOCAL = "local"
_RETRIES = 3
_AHEAD = 2  # pieces handed out per slot: one that is worked on, one that waits for its end
_LOOK_S = 10.0
_TAIL_BYTES = 1 << 16
_INSTALL = 'pip install "codesign[cluster]" on every machine'


@dataclass(frozen=True, slots=True)
class Weights:
    """The model's files: their path, the same on all machines, and what shows that they are the same there."""

    path: str
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """A piece that was handed out, and how often that was in vain before."""

    piece: Piece
    losses: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What a worker is told of a piece."""

    function: Callable[..., Any]
    weights: Weights
    version: str
    threads: int


def weights_at(given: str) -> Weights:
    """Return the weights at a path as other machines are to find them."""
    path = os.path.abspath(os.path.expanduser(given))
    return Weights(path, _fingerprint(path))


def _fingerprint(given: str) -> str:
    """Return a digest of the sizes and ends of the files, which tells other weights without reading all of them."""
    found = weight_path(given)
    if found is None:
        raise InputError(f"{given[:200]}: no safetensors or GGUF file lies here.")
    digest = hashlib.sha256()
    names = (WEIGHT_SUFFIX, GGUF_SUFFIX)
    files = [found] if found.suffix.lower() == GGUF_SUFFIX else sorted(found.parent.iterdir())
    for file in (one for one in files if one.name.lower().endswith(names)):
        size = file.stat().st_size
        with file.open("rb") as opened:
            opened.seek(max(size - _TAIL_BYTES, 0))
            digest.update(f"{file.name} {size} ".encode() + opened.read())
    return digest.hexdigest()


@contextmanager
def open_workers(address: str | None, given: str, say: Callable[[str], None]) -> Iterator[Workers | None]:
    """Give the workers of a ray cluster, or of this machine for `local`, and say what they are; None without one."""
    if address is None:
        yield None
        return
    import torch

    ray, weights = load_ray(), weights_at(given)
    _connect(ray, address)
    try:
        workers = Cluster(ray, weights, torch.get_num_threads())
        say(f"Cluster: {workers.words}.")
        yield workers
    finally:
        ray.shutdown()


def load_ray() -> Any:
    """Return the package ray, which tells nobody of its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise CapabilityError(f"--cluster works through ray, which is not installed; {_INSTALL}.") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False,
                **({"include_dashboard": False} if address == LOCAL else {}),
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise CapabilityError(
                f"--cluster {address[:80]}: no ray cluster answers there ({line}); start one with "
                "`ray start --head` and `ray start --address HOST:6379`, or use --cluster local."
            ) from error


class Cluster:
    """Hands pieces out to the machines of the cluster that this process is connected to.

    A piece gets `threads` processors, which is how many this process would use: results depend on that in the last
    bits. A piece that says that its result does not gets one. A piece whose worker is lost is handed out again.
    """

    def __init__(self, ray: Any, weights: Weights, threads: int) -> None:
        self._ray, self._weights, self._threads = ray, weights, threads
        self._perform = ray.remote(perform)
        errors = ray.exceptions
        self._losses = (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError, errors.LocalRayletDiedError,
            errors.OutOfMemoryError,
        )  # fmt: skip
        _send_tensors_as_arrays(ray)

    @property
    def slots(self) -> int:
        """Return how many pieces are worked on at a time, of those that need all threads."""
        return self._slots(self._threads, on_gpu=False)

    @property
    def words(self) -> str:
        """Return what the cluster is."""
        machines = len(self._machines())
        single = self._slots(1, on_gpu=False)
        return f"{machines} machine(s) with {single} processors, {self.slots} at a time of {self._threads} threads"

    def share(self, value: Any) -> Any:
        """Return a reference to the value, which each machine fetches once."""
        return self._ray.put(value)

    def run(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
        """Yield pieces as they are finished; what is still worked on when this is closed is cancelled."""
        sent: dict[Any, _Sent] = {}
        try:
            for piece in pieces:
                while len(sent) >= _AHEAD * self._slots(self._threads_of(piece), on_gpu=piece.on_gpu):
                    yield from self._finished(sent)
                self._send(sent, _Sent(piece))
            while sent:
                yield from self._finished(sent)
        finally:
            for reference in sent:
                self._ray.cancel(reference, force=True)

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _slots(self, threads: int, *, on_gpu: bool) -> int:
        """Return how many pieces fit; where none does now, none ever would."""
        machines = self._machines()
        count = sum(
            int(min(one.get("CPU", 0) // threads, one.get("GPU", 0) if on_gpu else one.get("CPU", 0)))
            for one in machines
        )
        if count:
            return count
        if on_gpu:
            raise CapabilityError("No machine of the cluster has a GPU that is free for tasks; use --device cpu.")
        most = int(max((one.get("CPU", 0) for one in machines), default=0))
        if not most:
            raise CapabilityError(
                "No machine of the cluster is left to work; what is finished is kept: start machines and run it again."
            )
        raise CapabilityError(
            f"Pieces of work take {threads} threads, as many as this process uses, and the largest machine of the "
            f"cluster has {most} processors; set OMP_NUM_THREADS={most} or less."
        )

    def _threads_of(self, piece: Piece) -> int:
        return 1 if piece.one_thread or piece.on_gpu else self._threads

    def _send(self, sent: dict[Any, _Sent], one: _Sent) -> None:
        piece, threads = one.piece, self._threads_of(one.piece)
        task = self._perform.options(
            name=piece.name, num_cpus=threads, num_gpus=int(piece.on_gpu), max_retries=_RETRIES,
            retry_exceptions=False, scheduling_strategy="SPREAD",
        )  # fmt: skip
        order = Order(piece.function, self._weights, __version__, threads)
        sent[task.remote(order, *piece.arguments)] = one

    def _finished(self, sent: dict[Any, _Sent]) -> Iterator[tuple[Piece, Any]]:
        """Wait for a piece and yield it; one that was lost is handed out again."""
        ready, _ = self._ray.wait(list(sent), timeout=_LOOK_S)
        if not ready:
            for one in sent.values():
                self._slots(self._threads_of(one.piece), on_gpu=one.piece.on_gpu)
            return
        one = sent.pop(ready[0])
        try:
            value = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            raise _named(one.piece, error.cause) from error
        except self._losses as error:
            if one.losses == _RETRIES:
                raise CapabilityError(
                    f"{one.piece.name}: its worker was lost {_RETRIES + 1} times ({type(error).__name__}); memory may "
                    "be short: give machines more, or fewer pieces at a time with a larger OMP_NUM_THREADS."
                ) from error
            self._send(sent, _Sent(one.piece, one.losses + 1))
            return
        yield one.piece, value


def _named(piece: Piece, cause: BaseException | None) -> CodesignError:
    """Return the error of a worker with the name of what it worked on."""
    said = str(cause)
    if isinstance(cause, CodesignError):
        return cause if said.startswith(piece.name) else type(cause)(f"{piece.name}: {said}")
    line = said.strip().splitlines()[0][:200] if said.strip() else "no text"
    return CodesignError(f"{piece.name}: a worker failed with {type(cause).__name__}: {line}")


def perform(order: Order, *arguments: Any) -> Any:
    """Do a piece in a worker, after making sure that it would do the same as the process that ordered it."""
    import torch

    if order.version != __version__:
        raise CapabilityError(
            f"{socket.gethostname()} has codesign {__version__}, the run was begun with {order.version}; "
            "install the same on all machines."
        )
    torch.set_num_threads(order.threads)
    _send_tensors_as_arrays(load_ray())
    return order.function(_place(order.weights), *arguments)


def _send_tensors_as_arrays(ray: Any) -> None:
    """Let ray take tensors as arrays, which it does not copy; what torch pickles of its newer types is unreadable."""
    import torch

    ray.util.register_serializer(torch.Tensor, serializer=_as_array, deserializer=_as_tensor)


def _as_array(tensor: "Tensor") -> tuple[Any, ...]:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat, tensor.dtype, tuple(tensor.shape), str(tensor.device)


def _as_tensor(sent: tuple[Any, ...]) -> "Tensor":
    import torch

    flat, dtype, shape, device = sent
    return torch.from_numpy(flat.copy()).view(dtype).reshape(shape).to(device)


@lru_cache(maxsize=1)
def _place(weights: Weights) -> Place:
    """Return the weights, which stay open for the pieces to come."""
    fix = "put the model where every machine finds it under the same path"
    if not Path(weights.path).exists():
        raise CapabilityError(f"{socket.gethostname()} does not find {weights.path}; {fix}.")
    if _fingerprint(weights.path) != weights.fingerprint:
        raise InputError(f"{socket.gethostname()} has other weights at {weights.path}; {fix}.")
    return Place(open_source(weights.path))
