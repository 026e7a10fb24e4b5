"""What the arrays that flow hold, as types: one name for each kind of number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Bools", "Doubles", "FloatArray", "Indices", "Pixels", "Strings"]

Pixels = npt.NDArray[np.uint8]
"""A picture `(H, W, 3)` in RGB, a channel of one, or a mask."""

FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]

Indices = npt.NDArray[np.intp]
"""Rows of other arrays, or places in a tuple such as that of the codes."""
