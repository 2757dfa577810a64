"""Tensors written one by one into safetensors files of bounded size."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.files import to_json

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES_MAX = 4 * 2**30


class ShardWriter:
    """Collects tensors up to the size of a file; `close` gives the files their names and writes the index."""

    def __init__(self, folder: Path, metadata: Mapping[str, str], shard_bytes_max: int) -> None:
        self._folder, self._metadata, self._bytes_max = folder, {"format": "pt", **metadata}, shard_bytes_max
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self.tensor_bytes = 0

    def add(self, name: str, tensor: "Tensor") -> None:
        """Write a tensor, now or with those that follow."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._bytes_max:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += size
        self.tensor_bytes += size

    def close(self) -> None:
        """Write the rest; several files get an index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            os.rename(self._part(0), self._folder / "model.safetensors")
            return
        names: dict[str, str] = {}
        for number, tensors in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            os.rename(self._part(number), self._folder / file)
            names |= dict.fromkeys(tensors, file)
        index: dict[str, Any] = {"metadata": {"total_size": self.tensor_bytes}, "weight_map": names}
        (self._folder / "model.safetensors.index.json").write_text(to_json(index), encoding="utf-8")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self._pending, self._part(len(self._shards)), self._metadata)
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"
