"""The windows of a slide as the detector plans them, and the same slide with its grid of windows elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from smearcount.bench.mosaics import Part
from smearcount.bench.seams import Origin, central_counts
from smearcount.detector import CELL_MARGIN_UM, Detector, PixelSource, canonical_size, plan_windows, to_tensor
from smearcount.geometry import FloatArray, resize_rgb

__all__ = ["core_and_margin", "shifted", "window_tensors"]

_PLACES = ((0.0, 0.0), (0.5, 0.37), (0.21, 0.5))
"""Where the grid of windows begins, in shares of the core of a window."""

_BORDER_UM = 15.0
"""Cells nearer than this to where a slide begins or ends are not compared: they are cut there."""


def core_and_margin(detector: Detector) -> tuple[int, int]:
    """Side of the core of a window, and the margin around it, in pixels at the canonical scale."""
    card = detector.card
    margin = math.ceil((card.largest_cell_um / 2 + CELL_MARGIN_UM) / card.um_per_px)
    return card.window_px - 2 * margin, margin


def window_tensors(source: PixelSource, um_per_px: float, detector: Detector) -> Iterator[FloatArray]:
    """What the network is given of a slide, window by window, each `(1, 3, H, W)`."""
    card, (width, height) = detector.card, source.size_wh
    canonical_wh = canonical_size(source.size_wh, um_per_px, card)
    per_x, per_y = width / canonical_wh[0], height / canonical_wh[1]
    for window in plan_windows(*canonical_wh, card.window_px, core_and_margin(detector)[1]):
        x_min, y_min, x_max, y_max = window.view
        left, top = int(x_min * per_x), int(y_min * per_y)
        right, bottom = min(math.ceil(x_max * per_x), width), min(math.ceil(y_max * per_y), height)
        pixels = source.read(left, top, right - left, bottom - top)
        yield to_tensor(resize_rgb(pixels, x_max - x_min, y_max - y_min), card)


def shifted(detector: Detector, source: PixelSource, um_per_px: float) -> tuple[dict[str, Any], list[Origin]]:
    """Counts where the grid of windows begins at the corner of a slide and at two places within the first core."""
    core = core_and_margin(detector)[0] * detector.card.um_per_px / um_per_px
    width, height = source.size_wh
    found = []
    for share_x, share_y in _PLACES:
        left, top = round(share_x * min(core, width / 2)), round(share_y * min(core, height / 2))
        part = Part(source, (left, top), (width - left, height - top))
        boxes = detector.find(part, um_per_px).boxes + np.array([left, top, left, top], np.float32)
        found.append(Origin(boxes, (left, top), core))
    counts = central_counts(found, source.size_wh, _BORDER_UM / um_per_px)
    largest = max(abs(each / max(counts[0], 1) - 1) for each in counts)
    return {"cells by origin": counts, "largest difference between origins": round(largest, 5)}, found
