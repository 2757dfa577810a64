"""Independent pieces of work: done here one after the other, or by other processes and machines at the same time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from codesign.quantize.network import Network
from codesign.quantize.source import WeightSource


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What a process that does pieces has at hand: the weights, and the networks that were made of them."""

    source: WeightSource
    networks: dict[str, Network] = field(default_factory=dict)

    def network(self, device: str) -> Network:
        """Return the exact network on a device."""
        if device not in self.networks:
            self.networks[device] = Network(self.source, device)
        return self.networks[device]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A function of some module, called with a Place and `arguments`; errors are told with `name`.

    `one_thread` says that its result is the same for any number of threads, `on_gpu` that it needs a GPU.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    one_thread: bool = False
    on_gpu: bool = False


class Workers(Protocol):
    """Who does pieces."""

    @property
    def slots(self) -> int:
        """Return how many pieces are worked on at a time."""

    def share(self, value: Any) -> Any:
        """Return what stands for a value in the arguments of several pieces, so that it is sent once."""

    def run(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
        """Yield pieces as they are finished, with their results; not many more are taken than are worked on."""


class Here:
    """Does pieces in this process, in their order."""

    slots = 1

    def __init__(self, place: Place) -> None:
        self._place = place

    def share(self, value: Any) -> Any:
        """Return the value."""
        return value

    def run(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
        """Yield each piece with its result."""
        for piece in pieces:
            yield piece, piece.function(self._place, *piece.arguments)
