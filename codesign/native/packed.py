"""Memory of packed weights: 2 MiB pages of the native module, freed with the object that owns them."""

from types import TracebackType
from typing import Self

from codesign.native import load


class PackedWeights:
    """`byte_count` zeroed bytes at `address`, aligned to 2 MiB; `close` frees them, and so does the last reference.

    `native` is the compiled module, at hand for calls: looking it up again takes longer than a small product.
    """

    def __init__(self, byte_count: int) -> None:
        self.native = load()
        self._byte_count = byte_count
        self._address: int = self.native.pages_alloc(byte_count)
        if not self._address:
            raise MemoryError(
                f"no memory for {byte_count} bytes of packed weights; free some or choose a smaller layer"
            )

    @property
    def byte_count(self) -> int:
        """Return the bytes asked for."""
        return self._byte_count

    @property
    def address(self) -> int:
        """Return where the bytes begin; ValueError once they are freed."""
        if not self._address:
            raise ValueError("these packed weights are closed; pack them again")
        return self._address

    def close(self) -> None:
        """Free the memory; further calls do nothing."""
        address, self._address = self._address, 0
        if address:
            self.native.pages_free(address, self._byte_count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_address", 0):
            self.close()
