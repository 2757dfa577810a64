"""How the GPU kernels hold weights: fragments of the tensor cores' products, in the order in which lanes read them.

Tiles of 16 outputs, chunks of 64 inputs, 32 lanes, 16 bytes each; see kernels/common/gpu_skinny_gemm.h and the comments
on the order of elements in gpu_weight_only.h and w8a8_gemm/cuda.cu. Everything here is a reshape and a transposition.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_OUTPUTS = 16
CHUNK = 64
OUTPUT_MULTIPLE = 128  # the most outputs that a block computes
HALF_LARGEST = 65504.0

Codes = NDArray[np.uint8] | NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class GroupScales:
    """Scales as the kernels read them: halves [tiles, groups, 8, 2] relative to a float factor [n padded] per output.

    `halves` is empty where each output has one scale, which is then its factor.
    """

    halves: NDArray[np.float16]
    factors: NDArray[np.float32]


def padded(size: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-size // multiple) * multiple


def chunks_of(k: int, group: int = 0) -> int:
    """Return the chunks of the inner dimension, filled up to whole groups."""
    return padded(k, max(CHUNK, group)) // CHUNK


def groups_of(k: int, group: int) -> int:
    """Return the groups of all chunks, the last of which may be filled in part; 1 where outputs have one scale."""
    return chunks_of(k, group) * CHUNK // group if group else 1


def filled(codes: NDArray[np.uint8], points: NDArray[np.uint8] | int, group: int) -> NDArray[np.uint8]:
    """Return codes [n, k] with the inner dimension filled up by what stands for zero: `points`, one or one per row."""
    n, k = codes.shape
    full = np.empty((n, chunks_of(k, group) * CHUNK), np.uint8)
    full[:, :k] = codes
    full[:, k:] = points[:, None] if isinstance(points, np.ndarray) else points
    return full


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return codes [n, k] below 16, k whole chunks, as words [tiles, chunks, 32 lanes, 4]."""
    tiles = _tiled(codes).reshape(-1, 2, 8, chunks_of(codes.shape[1]), 2, 4, 2, 2, 2)  # rows r g, inputs c h q j p e
    # Nibble 4 e + 2 p + r of word (h, j) of lane (g, q)
    nibbles = tiles.transpose(0, 3, 2, 5, 4, 6, 8, 7, 1).reshape(len(tiles), -1, 32, 4, 8).astype(np.uint32)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(nibbles << np.arange(0, 32, 4, dtype=np.uint32), axis=-1)
    return words


def pack_bytes(codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return bytes [n, k] for 16-bit activations, k whole chunks, as words [tiles, chunks, 2 halves, 32 lanes, 4]."""
    tiles = _tiled(codes).reshape(-1, 2, 8, chunks_of(codes.shape[1]), 2, 4, 2, 4)  # rows r g, inputs c h q j i
    return _words(tiles.transpose(0, 3, 4, 2, 5, 6, 1, 7).reshape(len(tiles), -1, 2, 32, 16))


def pack_int8(codes: NDArray[np.int8]) -> NDArray[np.uint32]:
    """Return signed bytes [n, k] for 8-bit activations as words [tiles, chunks, 2 rows, 32 lanes, 4]."""
    tiles = _tiled(codes).reshape(-1, 2, 8, chunks_of(codes.shape[1]), 4, 16)  # rows r g, inputs c q i
    return _words(tiles.transpose(0, 3, 1, 2, 4, 5).reshape(len(tiles), -1, 2, 32, 16))


def _tiled(codes: Codes) -> NDArray[Any]:
    """Return [n, k] filled up with zeros to whole blocks of outputs and whole chunks, as [tiles, 16, k]."""
    n, k = codes.shape
    full = np.zeros((padded(n, OUTPUT_MULTIPLE), padded(k, CHUNK)), codes.dtype)
    full[:n, :k] = codes
    tiled: NDArray[Any] = full.reshape(-1, TILE_OUTPUTS, full.shape[1])
    return tiled


def _words(codes: NDArray[Any]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(codes).view(np.uint32)


def pack_scales(scales: NDArray[np.float32], k: int, group: int) -> GroupScales:
    """Return scales [n, groups] as the kernels read them; a factor is a power of two, so only halves are rounded.

    Group 0 has one scale per output.
    """
    n = padded(len(scales), OUTPUT_MULTIPLE)
    factors = np.zeros(n, np.float32)
    if not group:
        factors[: len(scales)] = scales[:, 0]
        return GroupScales(np.empty(0, np.float16), factors)
    largest = np.abs(scales).max(axis=1)
    # The largest scale of an output comes to lie between 1 and 2: halves keep 11 bits down to 2^-14 of it.
    factors[: len(scales)] = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1.0))))
    halves = (scales / factors[: len(scales), None]).astype(np.float16)
    return GroupScales(_in_pairs(halves, groups_of(k, group)), factors)


def pack_zeros(zeros: NDArray[np.uint8], k: int, group: int) -> NDArray[np.uint8]:
    """Return zero points [n, groups] as bytes [tiles, groups, 8, 2]."""
    return _in_pairs(zeros, groups_of(k, group))


def _in_pairs(values: NDArray[Any], groups: int) -> NDArray[Any]:
    """Return [n, groups] as [tiles, groups, 8, 2], zeros where it is filled up: rows g and g + 8 become neighbours."""
    full = np.zeros((padded(len(values), OUTPUT_MULTIPLE), groups), values.dtype)
    full[: len(values), : values.shape[1]] = values
    pairs: NDArray[Any] = full.reshape(-1, 2, 8, groups).transpose(0, 3, 2, 1)
    return pairs
