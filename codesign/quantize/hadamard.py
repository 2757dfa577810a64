"""Randomized Hadamard rotation of weights and activations along k. Source: Ashkboos et al., QuaRot, section 3."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_CORE_MAX = 512


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """x -> x D (H_core x H_power) per block of channels, orthogonal: signs D [k], then a Hadamard matrix.

    x W^T stays what it is when both x and W are rotated: nothing else in the layer changes.
    """

    signs: "Tensor"
    core: int
    power: int

    @property
    def block(self) -> int:
        """Return how many channels are mixed with each other."""
        return self.core * self.power

    def apply(self, rows: "Tensor") -> "Tensor":
        """Return rotated rows [..., k], weights and activations alike, in float32."""
        return self._mix(rows.float() * self.signs.to(rows.device), _core_matrix(self.core))

    def undo(self, rows: "Tensor") -> "Tensor":
        """Return the rows that `apply` rotated."""
        return self._mix(rows.float(), _core_matrix(self.core).T) * self.signs.to(rows.device)

    def _mix(self, rows: "Tensor", core: "Tensor") -> "Tensor":
        shape = rows.shape
        mixed = _walsh(rows.reshape(-1, self.core, self.power))
        if self.core > 1:
            mixed = core.to(mixed.device) @ mixed
        return mixed.reshape(shape) / self.block**0.5


def rotation(k: int, seed: int = 0) -> Rotation:
    """Return a seeded rotation of k channels in blocks as large as a known Hadamard matrix allows.

    k = core x a power of two where a matrix of the order `core` can be constructed (Paley); otherwise the largest power
    of two that divides k, so that 576 = 36 x 16 and 11008 = 43 x 256 are mixed in blocks of 576 and 256.
    """
    import torch

    if k < 1:
        raise InputError(f"A rotation needs at least one channel, not {k}.")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (k,), generator=generator).float() * 2 - 1
    core, power = _factors(k)
    return Rotation(signs, core, power)


def _factors(k: int) -> tuple[int, int]:
    """Return (order of the core matrix, power of two)."""
    power = k & -k
    if power == k:
        return 1, k
    for part in (power // 2**step for step in range(power.bit_length())):
        if k // part <= _CORE_MAX and _paley_prime(k // part) is not None:
            return k // part, part
    return 1, power


def _paley_prime(order: int) -> int | None:
    """Return the prime from which Paley's constructions make a matrix of that order, or None."""
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and _is_prime(order - 1):
        return order - 1
    half = order // 2 - 1
    return half if half % 4 == 1 and _is_prime(half) else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


@functools.cache
def _core_matrix(order: int) -> "Tensor":
    """Return a Hadamard matrix of that order. Source: Paley, On Orthogonal Matrices (1933), constructions I and II."""
    import torch

    prime = _paley_prime(order)
    if prime is None:
        return torch.ones(1, 1)
    squares = {value * value % prime for value in range(1, prime)}
    symbol = torch.tensor([0.0] + [1.0 if value in squares else -1.0 for value in range(1, prime)])
    places = torch.arange(prime)
    residues = symbol[(places[None] - places[:, None]) % prime]
    bordered = torch.zeros(prime + 1, prime + 1)
    bordered[1:, 1:] = residues
    bordered[0, 1:] = 1
    if prime % 4 == 3:
        bordered[1:, 0] = -1
        return bordered + torch.eye(order)
    bordered[1:, 0] = 1
    return torch.kron(bordered, torch.tensor([[1.0, 1.0], [1.0, -1.0]])) + torch.kron(
        torch.eye(prime + 1), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    )


def _walsh(rows: "Tensor") -> "Tensor":
    """Return rows [..., power of two] times the Walsh-Hadamard matrix, not normalized."""
    import torch

    shape, width = rows.shape, rows.shape[-1]
    step = 1
    while step < width:
        pairs = rows.reshape(*shape[:-1], width // (2 * step), 2, step)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        rows = torch.stack((first + second, first - second), dim=-2).reshape(shape)
        step *= 2
    return rows
