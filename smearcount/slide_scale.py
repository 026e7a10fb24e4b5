"""One scale for a slide that was photographed in several fields: estimated once, from the red cells of some of them.

A field of a few dozen red cells says little of the scale, and one of macrocytes makes them look ordinary; all fields of
a slide were taken at one magnification.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from smearcount.arrays import FloatArray
from smearcount.records import RED_CELL_UM, Provenance, Scale
from smearcount.scale import ENOUGH_CELLS, ESTIMATED_NOTE

__all__ = ["RedCells", "Size", "SlideScales", "pooled_scales", "spread_rows"]

MEASURED = 9
"""Pictures of a slide that are measured, at most."""

Size = tuple[int, int]
SlideScales = Mapping[Size, Scale]
"""The scale of the pictures of a slide by their width and height in pixels: another size is another camera or zoom."""


@dataclass(frozen=True, eq=False)
class RedCells:
    """The red cells of one picture from which its scale would be estimated.

    Attributes:
        size_wh: width and height of the picture in pixels.
        diameters_px: `(N,)` diameters; none where the scale is known from flag or metadata.
        image_sha256: checksum of the file.
        provenance: what found them.
    """

    size_wh: Size
    diameters_px: FloatArray
    image_sha256: str
    provenance: Provenance


def spread_rows(n: int) -> list[int]:
    """Which of the `n` pictures of a slide are measured: the middles of equal parts of their list."""
    parts = min(n, MEASURED)
    return [(2 * part + 1) * n // (2 * parts) for part in range(parts)]


def pooled_scales(measured: Iterable[tuple[Size, FloatArray]], pictures: int) -> dict[Size, Scale]:
    """The scale of each size of picture that makes the median of all its red cells 7.5 um.

    A size has none if fewer than two of the measured pictures, or fewer than ten red cells, tell of it: its pictures
    are then estimated one by one.

    Args:
        measured: size and diameters in pixels of each measured picture.
        pictures: number of pictures of the slide.
    """
    by_size: dict[Size, list[FloatArray]] = {}
    for size_wh, diameters_px in measured:
        if len(diameters_px):
            by_size.setdefault(size_wh, []).append(diameters_px)
    return {
        size_wh: _scale(np.concatenate(parts), f"from {len(parts)} of {pictures} pictures")
        for size_wh, parts in sorted(by_size.items())
        if len(parts) > 1 and sum(map(len, parts)) >= ENOUGH_CELLS
    }


def _scale(diameters_px: FloatArray, told: str) -> Scale:
    median_px = float(np.median(diameters_px))
    return Scale(RED_CELL_UM / median_px, "estimated", median_px, f"{ESTIMATED_NOTE}; one scale for the slide, {told}")
