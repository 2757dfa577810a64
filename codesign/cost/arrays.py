"""The one numeric type of the cost formulas: they take and return arrays, so that a million rows cost one call."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Amount = float | FloatArray


def as_floats(value: Any) -> FloatArray:
    """Return the value as an array of float64; a scalar becomes an array of shape ()."""
    return np.asarray(value, dtype=np.float64)


def smooth_maximum(a: FloatArray, b: FloatArray, exponent: float) -> FloatArray:
    """Return (a^p + b^p)^(1/p), computed without overflow: the larger the exponent, the nearer to the maximum."""
    high = np.maximum(np.maximum(a, b), np.finfo(np.float64).tiny)
    return as_floats(high * (1.0 + (np.minimum(a, b) / high) ** exponent) ** (1.0 / exponent))
