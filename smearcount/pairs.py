"""Pairs of boxes that lie close to each other, sought among neighbours: time and memory grow with their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from smearcount.arrays import Bools, Doubles, FloatArray, Indices
from smearcount.geometry import areas, centres, diameters

__all__ = ["ClosePairs", "close_pairs", "overlapping_discs"]

DISC_OVERLAP = 0.1
"""Share of a cell's disc under another one. Boxes are some 12 % wider than their cells, so that discs of cells that
only touch share 4 %; cells that lie on each other by a tenth of their diameter share 10 %."""

PAIRS_AT_ONCE = 65_536
"""Pairs of discs whose common areas are worked out together, so that a slide with many cells takes no more memory."""

BOXES_AT_ONCE = 4096
"""Boxes whose neighbours are sought together, for the same reason."""

LEAST_IOU = 1e-9
"""Stands for a threshold of zero: boxes overlap by more than this or not at all."""


@dataclass(frozen=True, eq=False)
class ClosePairs:
    """Boxes that overlap much, each pair once: rows `(P,) int` of both, and their intersection over union `(P,)`."""

    first: Indices
    second: Indices
    iou: FloatArray

    def where(self, wanted: Bools) -> ClosePairs:
        """Those of the pairs `(P,) bool`."""
        return ClosePairs(self.first[wanted], self.second[wanted], self.iou[wanted])


def close_pairs(boxes_xyxy: FloatArray, min_iou: float) -> ClosePairs:
    """All pairs of boxes `(N, 4)` whose intersection over union is more than `min_iou`."""
    corners, area = _columns(boxes_xyxy), areas(boxes_xyxy)
    # Boxes whose middles are further apart than this, either way, can't overlap so much.
    most = (1 / max(min_iou, LEAST_IOU) - 1) / 2
    found = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0, np.float32))]
    for first, second in _neighbours(corners, most):
        common = _common_areas(corners, first, second)
        iou = common / np.maximum(area[first] + area[second] - common, np.float32(LEAST_IOU))
        close = iou > min_iou
        found.append((first[close], second[close], iou[close]))
    return ClosePairs(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _columns(boxes_xyxy: FloatArray) -> FloatArray:
    """Boxes as `(4, N)`, which NumPy takes several times as fast as rows of four."""
    return np.ascontiguousarray(boxes_xyxy.T)


def _neighbours(corners: FloatArray, most: float = math.inf) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of boxes, each once, that may touch: few of all pairs.

    The boxes are put in rows as high as the longest reach, and ordered in each from left to right: what is close to one
    lies in a short stretch of its own row, after it, or of the next one.

    Args:
        corners: boxes as columns, `(4, N)`.
        most: how far apart the middles of a pair can be, either way, in sides of each of both.
    """
    if corners.shape[1] < 2:
        return
    sides = np.maximum(corners[2:] - corners[:2], 0)
    reach = (sides + sides.max(axis=1, keepdims=True)) / 2
    if most < math.inf:
        reach = np.minimum(reach, most * sides)
    middles = (corners[:2] + corners[2:]).astype(np.float64) / 2
    x, y = middles - middles.min(axis=1, keepdims=True)
    far_x, far_y = reach.max(axis=1).astype(np.float64) + 1
    width = x.max() + 2 * far_x
    along = np.floor(y / far_y) * width + x
    order = np.argsort(along, kind="stable")
    along, to_side, y, to_end = along[order], reach[0, order].astype(np.float64), y[order], reach[1, order]
    for start in range(0, len(order), BOXES_AT_ONCE):
        some = np.arange(start, min(start + BOXES_AT_ONCE, len(order)))
        here, below, side = along[some], along[some] + width, to_side[some]
        begin = np.concatenate([some + 1, np.searchsorted(along, below - side)])
        lengths = np.searchsorted(along, np.concatenate([here + side, below + side]), side="right") - begin
        ends = np.cumsum(lengths)
        first = np.repeat(np.concatenate([some, some]), lengths)
        second = np.arange(ends[-1]) + np.repeat(begin - ends + lengths, lengths)
        close = np.abs(y[first] - y[second]) <= np.minimum(to_end[first], to_end[second])
        yield order[first[close]], order[second[close]]


def _common_areas(corners: FloatArray, first: Indices, second: Indices) -> FloatArray:
    """Area that boxes, columns `(4, N)`, in some rows share with those in others, in square pixels."""
    x_min, y_min, x_max, y_max = corners
    width = np.minimum(x_max[first], x_max[second]) - np.maximum(x_min[first], x_min[second])
    height = np.minimum(y_max[first], y_max[second]) - np.maximum(y_min[first], y_min[second])
    return cast(FloatArray, np.maximum(width, 0) * np.maximum(height, 0))


def overlapping_discs(boxes: FloatArray, pairs: ClosePairs | None = None) -> Bools:
    """Which cells lie on another one: the discs in their boxes share more than `DISC_OVERLAP` of the cell's own.

    Args:
        boxes: `(N, 4) float32`.
        pairs: those of the boxes that overlap at all, where they are known already.
    """
    pairs = pairs or close_pairs(boxes, 0)
    middle, radius = centres(boxes).astype(np.float64), diameters(boxes).astype(np.float64) / 2
    enough = DISC_OVERLAP * np.pi * radius**2
    heavy = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(pairs.first), PAIRS_AT_ONCE):
        first, second = (rows[start : start + PAIRS_AT_ONCE] for rows in (pairs.first, pairs.second))
        apart = np.hypot(*(middle[first] - middle[second]).T)
        shared = _lenses(radius[first], radius[second], apart)
        for rows in (first, second):
            heavy[rows[shared > enough[rows]]] = True
    return heavy


def _lenses(a: Doubles, b: Doubles, apart: Doubles) -> Doubles:
    """Area that discs of the radii `a` and `b (P,)` share whose middles are so far apart.

    That of a lens (Weisstein, Circle-Circle Intersection, MathWorld, eq. 14).
    """
    # Where one disc lies in the other, or apart from it, the clipped cosines give all of the smaller one, or nothing.
    apart = np.maximum(apart, 1e-9)
    cos_a, cos_b = (apart**2 + a**2 - b**2) / (2 * apart * a), (apart**2 + b**2 - a**2) / (2 * apart * b)
    kite = np.sqrt(np.clip((a + b - apart) * (apart + a - b) * (apart - a + b) * (apart + a + b), 0, None)) / 2
    lens = a**2 * np.arccos(np.clip(cos_a, -1, 1)) + b**2 * np.arccos(np.clip(cos_b, -1, 1)) - kite
    return np.asarray(lens, np.float64)
