"""Pairs of boxes that lie close to each other, sought among neighbours: time and memory grow with their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from smearcount.arrays import Bools, FloatArray, Indices
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
    x, y = (corners[:2] + corners[2:]).astype(np.float64) / 2
    x, y = x - x.min(), y - y.min()
    far_x, far_y = reach.max(axis=1).astype(np.float64) + 1
    width = x.max() + 2 * far_x
    along = np.floor(y / far_y) * width + x
    order = np.argsort(along, kind="stable")
    along, to_side, y, to_end = along[order], reach[0, order].astype(np.float64), y[order], reach[1, order]
    for start in range(0, len(order), BOXES_AT_ONCE):
        some = np.arange(start, min(start + BOXES_AT_ONCE, len(order)))
        here, side = along[some], to_side[some]
        beside = _stretches(some, some + 1, np.searchsorted(along, here + side, side="right"))
        left, right = here + width - side, here + width + side
        below = _stretches(some, np.searchsorted(along, left), np.searchsorted(along, right, side="right"))
        first, second = (np.concatenate(each) for each in zip(beside, below, strict=True))
        close = np.abs(y[first] - y[second]) <= np.minimum(to_end[first], to_end[second])
        yield order[first[close]], order[second[close]]


def _stretches(rows: Indices, begin: Indices, end: Indices) -> tuple[Indices, Indices]:
    """Each row as often as its stretch is long, beside the rows of that stretch."""
    lengths = end - begin
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(rows, lengths), np.repeat(begin, lengths) + offsets


def _common_areas(corners: FloatArray, first: Indices, second: Indices) -> FloatArray:
    """Area that boxes, columns `(4, N)`, in some rows share with those in others, in square pixels."""
    x_min, y_min, x_max, y_max = corners
    width = np.minimum(x_max[first], x_max[second]) - np.maximum(x_min[first], x_min[second])
    height = np.minimum(y_max[first], y_max[second]) - np.maximum(y_min[first], y_min[second])
    return cast(FloatArray, np.maximum(width, 0) * np.maximum(height, 0))


def overlapping_discs(boxes: FloatArray) -> Bools:
    """Which cells lie on another one: the discs in their boxes share more than `DISC_OVERLAP` of the cell's own.

    The area that two discs share is that of a lens (Weisstein, Circle-Circle Intersection, MathWorld, eq. 14).

    Args:
        boxes: `(N, 4) float32`.
    """
    pairs = close_pairs(boxes, 0)
    heavy = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(pairs.first), PAIRS_AT_ONCE):
        first, second = (rows[start : start + PAIRS_AT_ONCE] for rows in (pairs.first, pairs.second))
        for ours, theirs in ((first, second), (second, first)):
            heavy[ours[_lie_on(boxes[ours], boxes[theirs])]] = True
    return heavy


def _lie_on(first: FloatArray, second: FloatArray) -> Bools:
    """Whether the disc in each box `(N, 4)` lies on the one in its partner."""
    a, b = diameters(first).astype(np.float64) / 2, diameters(second).astype(np.float64) / 2
    # Where one disc lies in the other, or apart from it, the clipped cosines give all of the smaller one, or nothing.
    apart = np.maximum(np.hypot(*(centres(first).astype(np.float64) - centres(second)).T), 1e-9)
    cos_a, cos_b = (apart**2 + a**2 - b**2) / (2 * apart * a), (apart**2 + b**2 - a**2) / (2 * apart * b)
    kite = np.sqrt(np.clip((a + b - apart) * (apart + a - b) * (apart - a + b) * (apart + a + b), 0, None)) / 2
    shared = a**2 * np.arccos(np.clip(cos_a, -1, 1)) + b**2 * np.arccos(np.clip(cos_b, -1, 1)) - kite
    return np.asarray(shared > DISC_OVERLAP * np.pi * a**2)
