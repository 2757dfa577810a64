"""Exact bytes of a stored weight matrix. Every function takes integers or integer arrays for n and k."""

from typing import TYPE_CHECKING, Any, TypeVar

from codesign.schemes.scheme import PerBlock, PerChannel, PerGroup, PerTensor, Scheme, WeightFormat

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Count = TypeVar("Count", int, "NDArray[numpy.integer[Any]]")

_PARTS = 8  # codebook formats use multiples of an eighth of a bit: bits x 8 is whole, so all sums are exact integers


def weight_bytes(scheme: Scheme, n: Count, k: Count) -> Count:
    """Return the bytes of an [n, k] weight matrix: values, scales and zero points.

    A ragged last group has a scale of its own. A ragged last GGUF block counts whole, although llama.cpp refuses it:
    ask `shape_problem` first.
    """
    total: Count = data_bytes(scheme, n, k) + scale_bytes(scheme, n, k) + zero_point_bytes(scheme, n, k)
    return total


def data_bytes(scheme: Scheme, n: Count, k: Count) -> Count:
    """Return the bytes of the values alone; rows end on whole words of the format."""
    weights = scheme.weights
    rows, columns = _stored_shape(weights, n, k)
    return rows * _packed_bytes(columns, weights.bits, weights.word_bits)


def scale_count(scheme: Scheme, n: Count, k: Count) -> Count:
    """Return how many scales there are, scales of scales not included."""
    rows, per_row = _scale_grid(scheme.weights, n, k)
    return rows * per_row


def scale_bytes(scheme: Scheme, n: Count, k: Count) -> Count:
    """Return the bytes of all scales, scales of scales included."""
    weights = scheme.weights
    rows, per_row = _scale_grid(weights, n, k)
    total = rows * _packed_bytes(per_row, weights.scale_bits, 8)
    if weights.super_group_size:
        stored_rows, columns = _stored_shape(weights, n, k)
        super_scales = _ceil_div(columns, weights.super_group_size)
        total = total + stored_rows * _packed_bytes(super_scales, weights.super_scale_bits, 8)
    return total + int(weights.tensor_scale_bits) // 8


def zero_point_bytes(scheme: Scheme, n: Count, k: Count) -> Count:
    """Return the bytes of the zero points, or of the minima of GGUF formats."""
    weights = scheme.weights
    rows, per_row = _scale_grid(weights, n, k)
    if weights.word_bits == 8:
        return rows * _packed_bytes(per_row, weights.zero_point_bits, 8)
    # GPTQ, AWQ and compressed-tensors pack zero points along n: [ceil(k / g), ceil(n x bits / 32)] words.
    return per_row * _packed_bytes(rows, weights.zero_point_bits, weights.word_bits)


def _stored_shape(weights: WeightFormat, n: Count, k: Count) -> tuple[Count, Count]:
    """Return rows and columns as stored: whole blocks, or one long row for flattened formats."""
    rows, columns = _wide(n), _wide(k)
    if weights.flattened:
        return rows * 0 + columns * 0 + 1, rows * columns
    return rows, _ceil_div(columns, weights.block_size) * weights.block_size


def _scale_grid(weights: WeightFormat, n: Count, k: Count) -> tuple[Count, Count]:
    """Return how many rows of scales there are, and how many scales in each."""
    rows, columns = _stored_shape(weights, n, k)
    one = rows * 0 + columns * 0 + 1
    match weights.granularity:
        case PerTensor():
            return one, one
        case PerChannel():
            return one * rows, one
        case PerGroup(size):
            return rows, _ceil_div(columns, size)
        case PerBlock(block_rows, block_columns):
            return _ceil_div(rows, block_rows), _ceil_div(columns, block_columns)
        case _:
            return one * 0, one * 0


def _packed_bytes(count: Count, bits: float, word_bits: int) -> Count:
    """Return the bytes of whole words that hold `count` values of `bits` each."""
    return _ceil_div(count * round(bits * _PARTS), word_bits * _PARTS) * (word_bits // 8)


def _ceil_div(value: Count, divisor: int) -> Count:
    return -(-value // divisor)


def _wide(count: Count) -> Count:
    """Return the count in 64 bits, so that the product of two 32-bit arrays does not wrap."""
    return count if isinstance(count, int) else count.astype("int64")
