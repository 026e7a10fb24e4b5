"""The leak check that runs before every training: no picture may stand on both sides of a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["near_duplicates", "signature"]

SIDE = 24
SAME = 0.985
"""Correlation of two signatures above which two pictures show the same field."""


def signature(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A picture `(H, W, 3) uint8 RGB` as a unit vector `(576,)`: green at 24 x 24, mean and contrast removed.

    Resampling, compression and a change of light leave it nearly as it is.
    """
    small = cv2.resize(pixels[..., 1], (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    centred = small - small.mean()
    length = float(np.linalg.norm(centred))
    return np.asarray(centred / length if length > 0 else centred, np.float32)


def near_duplicates(
    first: Sequence[tuple[Path, npt.NDArray[np.float32]]], second: Sequence[tuple[Path, npt.NDArray[np.float32]]]
) -> list[tuple[Path, Path]]:
    """Pairs of pictures, one of each list, that show the same field: as it is, or shrunk, recompressed or restained."""
    if not first or not second:
        return []
    likeness = np.stack([vector for _, vector in first]) @ np.stack([vector for _, vector in second]).T
    return [(first[a][0], second[b][0]) for a, b in np.argwhere(likeness > SAME)]
