"""The one numeric type of the cost formulas: they take and return arrays, so that a million rows cost one call."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Amount = float | FloatArray


def as_floats(value: Any) -> FloatArray:
    """Return the value as an array of float64; a scalar becomes an array of shape ()."""
    return np.asarray(value, dtype=np.float64)
