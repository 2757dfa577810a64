"""What every checkpoint format says of one tensor."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file stores it.

    `dtype` is the format's own name, such as "BF16" or "Q4_K"; a ggml type without a name here is "type 99", and its
    byte count then includes the padding. `shape` has the rows first. `file` is the plain name of the file, `offset`
    the byte of a GGUF file at which the data begin.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    byte_count: int
    file: str
    offset: int | None = None
