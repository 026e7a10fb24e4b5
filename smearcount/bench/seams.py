"""Is a cell lost or counted twice where windows meet? Against the truth of a simulated slide, and between origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smearcount.arrays import Bools, FloatArray, Indices
from smearcount.geometry import centres
from smearcount.pairs import close_pairs

__all__ = ["MATCH_IOU", "Origin", "central_counts", "finders", "seam_figures"]

MATCH_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Origin:
    """The cells that were found with the grid of windows at one place.

    Attributes:
        boxes: `(N, 4) float32` in pixels of the whole slide.
        left_top: where the grid begins, in pixels of the slide.
        core_px: distance of the seams in pixels of the slide.
    """

    boxes: FloatArray
    left_top: tuple[int, int]
    core_px: float

    def at_seam(self, points: FloatArray, band_px: float) -> Bools:
        """Which points `(N, 2)` of the slide lie within `band_px` of an inner seam of this grid."""
        offset = points - np.array(self.left_top, np.float32)
        nearest = np.maximum(np.round(offset / self.core_px), 1) * self.core_px
        near: Bools = np.any(np.abs(offset - nearest) < band_px, axis=1)
        return near


def central_counts(origins: Sequence[Origin], size_wh: tuple[int, int], border_px: float) -> list[int]:
    """Number of boxes of each origin whose centre lies in the part of the slide that all of them see from within."""
    low = np.max([each.left_top for each in origins], axis=0) + border_px
    high = np.array(size_wh) - border_px
    middles = [centres(each.boxes) for each in origins]
    return [int(np.all((at >= low) & (at < high), axis=1).sum()) for at in middles]


def finders(truth_xyxy: FloatArray, found_xyxy: FloatArray) -> Indices:
    """How many found boxes `(F, 4)` overlap each true box `(N, 4)` most, and by more than `MATCH_IOU`, `(N,)`."""
    pairs, true = close_pairs(np.concatenate([truth_xyxy, found_xyxy]), MATCH_IOU), len(truth_xyxy)
    ours, theirs = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    order = np.lexsort((-pairs.iou, theirs))
    order = order[(ours[order] < true) & (theirs[order] >= true)]
    _, best = np.unique(theirs[order], return_index=True)
    return np.bincount(ours[order[best]], minlength=true).astype(np.intp)


def seam_figures(truth_xyxy: FloatArray, first: Origin, second: Origin, band_px: float) -> dict[str, Any]:
    """Cells lost and doubled near the seams of the first grid, and far from those of either.

    A cell is lost where the first grid does not show it and the second does, which has no seam there: faint cells
    that come and go with every view are lost far from seams as well, and that share is what to compare with.
    """
    middles = centres(truth_xyxy)
    seen, other = finders(truth_xyxy, first.boxes), finders(truth_xyxy, second.boxes)
    on_first, on_second = first.at_seam(middles, band_px), second.at_seam(middles, band_px)
    figures: dict[str, Any] = {}
    for name, rows in (("at seams", on_first & ~on_second), ("elsewhere", ~on_first & ~on_second)):
        figures |= {
            f"cells {name}": int(rows.sum()),
            f"lost {name}": int(((seen == 0) & (other > 0) & rows).sum()),
            f"doubled {name}": int(((seen > 1) & rows).sum()),
        }
    return figures
