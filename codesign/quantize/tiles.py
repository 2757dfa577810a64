"""Matrices cut into tiles that share a scale: [n, k] <-> [tile rows, rows, tile columns, columns]."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.schemes.scheme import PerBlock, PerGroup, PerTensor, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """So many rows and columns share one scale; tiles at the edges may be smaller."""

    rows: int
    columns: int

    def grid(self, n: int, k: int) -> tuple[int, int]:
        """Return how many tiles there are along n and k."""
        return -(-n // self.rows), -(-k // self.columns)


def tile_of(weights: WeightFormat, n: int, k: int) -> Tile:
    """Return the tile of a format for an [n, k] matrix."""
    match weights.granularity:
        case PerTensor():
            return Tile(n, k)
        case PerGroup(size):
            return Tile(1, size)
        case PerBlock(rows, columns):
            return Tile(rows, columns)
        case _:
            return Tile(1, k)


def stored_matrix(w: "Tensor", weights: WeightFormat) -> "Tensor":
    """Return the matrix as the format groups it: itself, or one block a row, filled with zeros, where flattened."""
    if not weights.flattened:
        return w
    assert isinstance(weights.granularity, PerGroup)
    size = weights.granularity.size
    flat = w.reshape(-1)
    return _padded(flat[None], 1, -(-flat.numel() // size) * size).view(-1, size)


def in_tiles(matrix: "Tensor", tile: Tile) -> "Tensor":
    """Return [tile rows, rows, tile columns, columns], a view where the tiles fit; else filled with zeros."""
    down, across = tile.grid(*matrix.shape)
    padded = _padded(matrix, down * tile.rows, across * tile.columns)
    return padded.reshape(down, tile.rows, across, tile.columns)


def from_tiles(tiles: "Tensor", n: int, k: int) -> "Tensor":
    """Return the [n, k] matrix of tiles, the filling left out."""
    down, rows, across, columns = tiles.shape
    return tiles.reshape(down * rows, across * columns)[:n, :k]


def over_tiles(per_tile: "Tensor") -> "Tensor":
    """Return [tile rows, 1, tile columns, 1], which broadcasts against `in_tiles`."""
    return per_tile[:, None, :, None]


def _padded(matrix: "Tensor", rows: int, columns: int) -> "Tensor":
    if tuple(matrix.shape) == (rows, columns):
        return matrix
    full = matrix.new_zeros((rows, columns))
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full
