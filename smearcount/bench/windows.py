"""The windows of a slide as the detector plans them, and the same slide with its grid of windows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from smearcount.arrays import FloatArray
from smearcount.bench.seams import Origin, central_counts
from smearcount.detector import Detector
from smearcount.images import PartSource, PixelSource
from smearcount.windows import canonical_size, read_view, to_tensor

__all__ = ["shifted", "window_tensors"]

_PLACES = ((0.0, 0.0), (0.5, 0.37), (0.21, 0.5))
"""Where the grid of windows begins, in shares of the core of a window."""

_BORDER_UM = 15.0
"""Cells nearer than this to where a slide begins or ends are not compared: they are cut there."""


def window_tensors(source: PixelSource, um_per_px: float, detector: Detector) -> Iterator[FloatArray]:
    """What the network is given of a slide, window by window, each `(1, 3, H, W)`; blank ones it is not given."""
    canonical_wh = canonical_size(source.size_wh, um_per_px, detector.card)
    for window in detector.windows(canonical_wh):
        seen = read_view(source, window.view, canonical_wh)
        if seen:
            yield to_tensor(seen[0], detector.card)


def shifted(detector: Detector, source: PixelSource, um_per_px: float) -> tuple[dict[str, Any], list[Origin]]:
    """Counts where the grid of windows begins at the corner of a slide and at two places within the first core."""
    core = detector.core_px * detector.card.um_per_px / um_per_px
    width, height = source.size_wh
    found = []
    for share_x, share_y in _PLACES:
        left, top = round(share_x * min(core, width / 2)), round(share_y * min(core, height / 2))
        part = PartSource(source, (left, top), (width - left, height - top))
        boxes = detector.find(part, um_per_px).boxes + np.array([left, top, left, top], np.float32)
        found.append(Origin(boxes, (left, top), core))
    counts = central_counts(found, source.size_wh, _BORDER_UM / um_per_px)
    largest = max(abs(each / max(counts[0], 1) - 1) for each in counts)
    return {"cells by origin": counts, "largest difference between origins": round(largest, 5)}, found
