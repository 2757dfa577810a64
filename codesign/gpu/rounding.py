"""What a GPU cache holds of keys and values, in numpy: the reference of the kernels' own rounding."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
LARGEST = {"int8": 127, "int4": 7}


def held(values: Float32, kv_format: str) -> Float32:
    """Return keys or values [..., head_dim] as the cache holds them; 16-bit formats hold what they are given."""
    if kv_format in LARGEST:
        largest = LARGEST[kv_format]
        scales = (np.abs(values).max(axis=-1, keepdims=True) / np.float32(largest)).astype(np.float16)
        steps = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)
        codes: Float32 = np.clip(np.rint(values / steps), -largest, largest) * scales.astype(np.float32)
        return codes
    return _e4m3(values) if kv_format == "fp8" else values


def _e4m3(values: Float32) -> Float32:
    import torch

    limited: Any = torch.from_numpy(values).clamp(-448, 448)
    rounded: Float32 = limited.to(torch.float8_e4m3fn).float().numpy()
    return rounded
