"""First advice on whether a field can be counted: focus, crowding, emptiness."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.detector import PixelSource
from smearcount.geometry import areas, resize_rgb
from smearcount.records import Detections, Quality, Scale

__all__ = ["assess", "sharpness"]

FOCUS_UM_PER_PX = 0.2
FOCUS_SIDE_UM = 32.0
SHARPEST_RATIO = 0.068
"""Ratio that a well focused field reaches: the median of 80 labelled validation photographs (5 %: 0.032)."""

ROUNDING_NOISE = (1 - 3 / (4 * math.pi)) / 12
"""What rounding to whole grey levels leaves of the finest detail; without it a heavy blur would look sharper again."""

BLURRED = 0.3
"""None of those photographs is below; blurred by 0.4 um (sigma) 95 % of them are."""

CROWDED_COVER = 0.75
CROWDED_OVERLAP = 0.5
SPARSE_RED = 20


def sharpness(pixels: npt.NDArray[np.uint8], um_per_px: float) -> float:
    """Strength of the detail of 0.2 to 0.4 um against that of 0.4 to 1.6 um in the green channel.

    Args:
        pixels: `(H, W, 3) uint8 RGB`.
        um_per_px: its scale; the measure is taken at 0.2 um a pixel, so that magnification has no part in it.

    Returns:
        A ratio without unit: 0 for a blank picture.
    """
    factor = um_per_px / FOCUS_UM_PER_PX
    size_wh = (max(8, round(pixels.shape[1] * factor)), max(8, round(pixels.shape[0] * factor)))
    green = resize_rgb(pixels, *size_wh)[..., 1].astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(green, (0, 0), 1.0), cv2.GaussianBlur(green, (0, 0), 4.0))
    structure = float(((fine - coarse) ** 2).mean())
    detail = max(float(((green - fine) ** 2).mean()) - ROUNDING_NOISE, 0.0)
    return detail / structure if structure > 1 else 0.0


def assess(source: PixelSource, scale: Scale, cells: Detections) -> Quality:
    """Focus from the centre of the picture, crowding from the boxes of all cells found."""
    width, height = source.size_wh
    side = max(32, round(FOCUS_SIDE_UM / scale.um_per_px))
    w, h = min(side, width), min(side, height)
    centre = source.read((width - w) // 2, (height - h) // 2, w, h)
    focus = sharpness(centre, scale.um_per_px) / SHARPEST_RATIO
    red = cells.take(cells.kinds == "rbc")
    cover = float(areas(red.boxes).sum()) * np.pi / 4 / (width * height)
    overlapping = _overlapping(red)
    warnings = []
    if focus < BLURRED:
        warnings.append(f"out of focus (sharpness {focus:.2f} of 1): names and small cells can't be trusted")
    if cover > CROWDED_COVER or overlapping > CROWDED_OVERLAP:
        warnings.append(f"too dense ({overlapping:.0%} of the red cells overlap): choose a thinner region")
    if len(red) < SPARSE_RED:
        warnings.append(f"too sparse ({len(red)} red cells): count more fields")
    if scale.note and (scale.source != "estimated" or scale.note.startswith("metadata")):
        warnings.append(scale.note)
    return Quality(round(focus, 3), round(cover, 4), round(overlapping, 4), tuple(warnings))


def _overlapping(red: Detections) -> float:
    """Share of the boxes that another one covers by more than a tenth; neighbours come from an STR tree."""
    if len(red) < 2:
        return 0.0
    import shapely

    boxes = np.asarray(shapely.box(*red.boxes.T))
    first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    a, b = red.boxes[first], red.boxes[second]
    common = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(axis=1)
    heavy = (first != second) & (common > 0.1 * areas(a))
    return len(np.unique(first[heavy])) / len(red)
