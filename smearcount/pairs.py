"""Pairs of boxes that lie close to each other, sought among neighbours: time and memory grow with their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from smearcount.arrays import Bools, FloatArray, Indices

__all__ = ["ClosePairs", "close_pairs"]

BOXES_AT_ONCE = 4096
"""Boxes whose neighbours are sought together, so that a slide with many cells takes no more memory."""

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
    # NumPy takes columns several times as fast as rows of four.
    corners = np.ascontiguousarray(boxes_xyxy.T)
    width, height = np.maximum(corners[2:] - corners[:2], 0)
    area = width * height
    # Boxes whose middles are further apart than this, either way, can't overlap so much.
    most = (1 / max(min_iou, LEAST_IOU) - 1) / 2
    found = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0, np.float32))]
    for first, second in _neighbours(corners, most):
        common = _common_areas(corners, first, second)
        iou = common / np.maximum(area[first] + area[second] - common, np.float32(LEAST_IOU))
        close = iou > min_iou
        found.append((first[close], second[close], iou[close]))
    return ClosePairs(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


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
