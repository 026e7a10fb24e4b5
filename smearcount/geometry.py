"""Boxes, overlaps and canonical sampling: pure functions on arrays, no state.

Boxes are `boxes_xyxy (N, 4) float32`: x_min, y_min, x_max, y_max in pixels, half-open, origin at the top-left corner
of the top-left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "VOTE_IOU",
    "ClosePairs",
    "FloatArray",
    "areas",
    "centres",
    "clip_boxes",
    "close_pairs",
    "diameters",
    "greedy_nms",
    "iou_matrix",
    "overlapping_discs",
    "overlapping_pairs",
    "resize_rgb",
    "touches_edge",
    "voted_boxes",
]

FloatArray = npt.NDArray[np.float32]

DISC_OVERLAP = 0.1
"""Share of a cell's disc under another one. Boxes are some 12 % wider than their cells, so that discs of cells that
only touch share 4 %; cells that lie on each other by a tenth of their diameter share 10 %."""

PAIRS_AT_ONCE = 65_536
"""Pairs of discs whose common areas are worked out together, so that a slide with many cells takes no more memory."""

MATRIX_BELOW = 200
"""Number of boxes from which on a search tree is faster than the matrix of all pairs, and far smaller."""

STRIP_BOXES = 8192
"""Boxes in one search tree: a slide has tens of thousands, and a tree takes some 300 bytes for each."""

CLOSE_BOXES = 1024
"""Boxes whose close pairs are sought together: each is compared with those in a band across the whole picture."""

VOTE_IOU = 0.7
"""Overlap from which on a removed box has a say in where the kept one lies."""

LEAST_IOU = 1e-9
"""Stands for a threshold of zero: boxes overlap by more than this or not at all."""


def areas(boxes_xyxy: FloatArray) -> FloatArray:
    """Areas in square pixels of boxes `(N, 4)`, shape `(N,)`; zero for empty boxes."""
    sides = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0)
    return cast(FloatArray, sides[:, 0] * sides[:, 1])


def centres(boxes_xyxy: FloatArray) -> FloatArray:
    """Box centres `(N, 2)` as x, y in pixels."""
    return cast(FloatArray, (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2)


def diameters(boxes_xyxy: FloatArray) -> FloatArray:
    """Mean of width and height of each box in pixels, `(N,)`: the diameter of a round cell."""
    return cast(FloatArray, (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).mean(axis=1))


def clip_boxes(boxes_xyxy: FloatArray, width: int, height: int) -> FloatArray:
    """Boxes cut off at an image of `width` x `height` pixels."""
    limits = np.array([width, height, width, height], np.float32)
    return cast(FloatArray, np.clip(boxes_xyxy, 0, limits))


def touches_edge(boxes_xyxy: FloatArray, width: int, height: int, slack_px: float = 2.0) -> npt.NDArray[np.bool_]:
    """Which boxes come within `slack_px` of the border of a `width` x `height` image, `(N,)` bool."""
    x_min, y_min, x_max, y_max = boxes_xyxy.T
    touches: npt.NDArray[np.bool_] = (
        (x_min <= slack_px) | (y_min <= slack_px) | (x_max >= width - slack_px) | (y_max >= height - slack_px)
    )
    return touches


def iou_matrix(first_xyxy: FloatArray, second_xyxy: FloatArray) -> FloatArray:
    """Intersection over union of every pair: `(N, 4)` and `(M, 4)` give `(N, M)` float32."""
    left, top, right, bottom = first_xyxy.T[:, :, None]
    x_min, y_min, x_max, y_max = second_xyxy.T
    width = np.maximum(np.minimum(right, x_max) - np.maximum(left, x_min), 0)
    height = np.maximum(np.minimum(bottom, y_max) - np.maximum(top, y_min), 0)
    intersection = width * height
    union = areas(first_xyxy)[:, None] + areas(second_xyxy)[None, :] - intersection
    return cast(FloatArray, np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0))


def overlapping_pairs(boxes_xyxy: FloatArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Pairs of boxes that share an area, each pair both ways: first rows, second rows, area shared in square pixels.

    Memory grows with the number of pairs, not with the square of the number of boxes.
    """
    if len(boxes_xyxy) < MATRIX_BELOW:
        x_min, y_min, x_max, y_max = boxes_xyxy.T
        width = np.minimum(x_max[:, None], x_max) - np.maximum(x_min[:, None], x_min)
        height = np.minimum(y_max[:, None], y_max) - np.maximum(y_min[:, None], y_min)
        touching = np.minimum(width, height) > 0
        np.fill_diagonal(touching, False)
        first, second = np.nonzero(touching)
        return first, second, width[first, second] * height[first, second]
    order = np.argsort(boxes_xyxy[:, 1], kind="stable")
    ordered = boxes_xyxy[order]
    strips = [_strip_pairs(ordered, start) for start in range(0, len(order), STRIP_BOXES)]
    first, second, common = (np.concatenate(columns) for columns in zip(*strips, strict=True))
    rows, partners = np.concatenate([order[first], order[second]]), np.concatenate([order[second], order[first]])
    by_row = np.lexsort((partners, rows))
    return rows[by_row], partners[by_row], np.concatenate([common, common])[by_row]


def _strip_pairs(boxes: FloatArray, start: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Pairs of a strip of boxes sorted by their upper edge with those that come after them, and the areas shared."""
    import shapely

    own = boxes[start : start + STRIP_BOXES]
    near = boxes[start : max(int(np.searchsorted(boxes[:, 1], own[:, 3].max())), start + len(own))]
    outlines = np.asarray(shapely.box(*near.T))
    first, second = shapely.STRtree(outlines).query(outlines[: len(own)])
    after = second > first
    first, second = first[after], second[after]
    common = _common_areas(near, first, second)
    shared = common > 0
    return first[shared] + start, second[shared] + start, common[shared]


def _common_areas(boxes_xyxy: FloatArray, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]) -> FloatArray:
    """Area that boxes `(N, 4)` in some rows share with those in others, in square pixels."""
    # By columns, which NumPy takes several times as fast as rows of four.
    x_min, y_min, x_max, y_max = np.ascontiguousarray(boxes_xyxy.T)
    width = np.minimum(x_max[first], x_max[second]) - np.maximum(x_min[first], x_min[second])
    height = np.minimum(y_max[first], y_max[second]) - np.maximum(y_min[first], y_min[second])
    return cast(FloatArray, np.maximum(width, 0) * np.maximum(height, 0))


def overlapping_discs(boxes: FloatArray) -> npt.NDArray[np.bool_]:
    """Which cells lie on another one: the discs in their boxes share more than `DISC_OVERLAP` of the cell's own.

    The area that two discs share is that of a lens (Weisstein, Circle-Circle Intersection, MathWorld, eq. 14).

    Args:
        boxes: `(N, 4) float32`.
    """
    first, second, _ = overlapping_pairs(boxes)
    heavy = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        heavy[first[some][_lie_on(boxes[first[some]], boxes[second[some]])]] = True
    return heavy


def _lie_on(first: FloatArray, second: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether the disc in each box `(N, 4)` lies on the one in its partner."""
    a, b = diameters(first).astype(np.float64) / 2, diameters(second).astype(np.float64) / 2
    # Where one disc lies in the other, or apart from it, the clipped cosines give all of the smaller one, or nothing.
    apart = np.maximum(np.hypot(*(centres(first).astype(np.float64) - centres(second)).T), 1e-9)
    cos_a, cos_b = (apart**2 + a**2 - b**2) / (2 * apart * a), (apart**2 + b**2 - a**2) / (2 * apart * b)
    kite = np.sqrt(np.clip((a + b - apart) * (apart + a - b) * (apart - a + b) * (apart + a + b), 0, None)) / 2
    shared = a**2 * np.arccos(np.clip(cos_a, -1, 1)) + b**2 * np.arccos(np.clip(cos_b, -1, 1)) - kite
    return np.asarray(shared > DISC_OVERLAP * np.pi * a**2)


def resize_rgb(pixels: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Resample `pixels (H, W, 3)` or `(H, W) uint8`: by area where it shrinks below 0.6, else bilinear."""
    if (pixels.shape[1], pixels.shape[0]) == (width, height):
        return pixels
    shrinks = width * height < 0.36 * pixels.shape[0] * pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cast("npt.NDArray[np.uint8]", cv2.resize(pixels, (width, height), interpolation=method))


@dataclass(frozen=True, eq=False)
class ClosePairs:
    """Boxes that overlap much, each pair once: rows `(P,) int` of both, and their intersection over union `(P,)`."""

    first: npt.NDArray[np.intp]
    second: npt.NDArray[np.intp]
    iou: FloatArray


def close_pairs(boxes_xyxy: FloatArray, min_iou: float) -> ClosePairs:
    """All pairs of boxes `(N, 4)` whose intersection over union is more than `min_iou`.

    Memory is that of the boxes in a band across the picture, `CLOSE_BOXES` at a time, not the square of their number.
    """
    by_height = np.argsort(centres(boxes_xyxy)[:, 1], kind="stable")
    ordered = boxes_xyxy[by_height]
    starts = range(0, max(len(ordered), 1), CLOSE_BOXES)
    strips = [
        _close_below(ordered, np.arange(start, min(start + CLOSE_BOXES, len(ordered))), min_iou) for start in starts
    ]
    first, second, iou = (np.concatenate(columns) for columns in zip(*strips, strict=True))
    return ClosePairs(by_height[first], by_height[second], iou)


def _close_below(
    boxes: FloatArray, rows: npt.NDArray[np.intp], min_iou: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """The pairs of some rows of boxes sorted by the height of their middle with those after them, and their overlap."""
    columns, heights = np.ascontiguousarray(centres(boxes).T)
    reach = (1 / max(min_iou, LEAST_IOU) - 1) / 2 * np.maximum(boxes[rows, 2:] - boxes[rows, :2], 0)
    # Boxes whose middles are further apart than this, either way, can't overlap so much: few pairs are left of all.
    below = np.searchsorted(heights, heights[rows] + reach[:, 1], side="right") - rows - 1
    first = np.repeat(rows, below)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(below) - below, below)
    near = np.abs(columns[first] - columns[second]) <= np.repeat(reach[:, 0], below)
    first, second = first[near], second[near]
    common, area = _common_areas(boxes, first, second), areas(boxes)
    iou = common / np.maximum(area[first] + area[second] - common, np.float32(LEAST_IOU))
    close = iou > min_iou
    return first[close], second[close], iou[close]


def greedy_nms(
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    kinds: npt.NDArray[np.intp],
    same_kind_iou: float,
    cross_kind_iou: float,
    pairs: ClosePairs | None = None,
) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression: the best box removes those that overlap it by more than a threshold.

    Boxes of the same kind and of different kinds have thresholds of their own. Ties in score are broken by coordinates
    (x_min, y_min, x_max, y_max), then by kind, so that the order of the input is without influence.

    Args:
        boxes_xyxy: `(N, 4) float32`.
        scores: `(N,) float32`.
        kinds: `(N,) int`.
        same_kind_iou: threshold of boxes of one kind.
        cross_kind_iou: threshold of boxes of two.
        pairs: `close_pairs` of the boxes at the lower of both thresholds, or below, where they are known already.

    Returns:
        Indices of the kept boxes, best first.
    """
    order = _best_first(boxes_xyxy, scores, kinds)
    pairs = pairs or close_pairs(boxes_xyxy, min(same_kind_iou, cross_kind_iou))
    same = kinds[pairs.first] == kinds[pairs.second]
    clash = pairs.iou > np.where(same, np.float32(same_kind_iou), np.float32(cross_kind_iou))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ours, theirs = rank[pairs.first[clash]], rank[pairs.second[clash]]
    better, worse = np.minimum(ours, theirs), np.maximum(ours, theirs)
    kept, waiting = np.zeros(len(order), np.bool_), np.ones(len(order), np.bool_)
    while waiting.any():
        # What no better box stands against is kept, and what it overlaps too much is gone; everywhere at once.
        opposed = np.zeros_like(waiting)
        opposed[worse] = True
        chosen = waiting & ~opposed
        kept |= chosen
        waiting &= opposed
        waiting[worse[chosen[better]]] = False
        left = waiting[better] & waiting[worse]
        better, worse = better[left], worse[left]
    return order[kept]


def voted_boxes(
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    kinds: npt.NDArray[np.intp],
    keep: npt.NDArray[np.intp],
    pairs: ClosePairs | None = None,
) -> FloatArray:
    """The kept boxes `(K, 4)`, each moved to the mean of the boxes of its kind that were removed for it.

    Box voting (Gidaris and Komodakis 2015, arXiv 1505.01749, section 4.3): a mean over those that overlap the kept one
    by more than `VOTE_IOU`, itself included, weighted by the score and here also by the square of the overlap.

    Args:
        boxes_xyxy: `(N, 4) float32`.
        scores: `(N,) float32`.
        kinds: `(N,) int`.
        keep: `(K,) int`, rows of the kept boxes.
        pairs: `close_pairs` of the boxes at `VOTE_IOU` or below, where they are known already.
    """
    pairs = pairs or close_pairs(boxes_xyxy, VOTE_IOU)
    place = np.full(len(boxes_xyxy), -1, np.intp)
    place[keep] = np.arange(len(keep))
    votes = (pairs.iou > VOTE_IOU) & (kinds[pairs.first] == kinds[pairs.second])
    first, second = pairs.first[votes], pairs.second[votes]
    ours, theirs = np.concatenate([first, second]), np.concatenate([second, first])
    weight = np.concatenate([pairs.iou[votes]] * 2) ** 2 * scores[theirs]
    asked = place[ours] >= 0
    ours, theirs, weight = ours[asked], theirs[asked], weight[asked]
    total = scores[keep] + np.bincount(place[ours], weight, len(keep))
    # Shifts instead of places: boxes that are the same to the last bit stay so.
    sides = np.ascontiguousarray(boxes_xyxy.T)
    moved = np.stack([np.bincount(place[ours], (x[theirs] - x[ours]) * weight, len(keep)) for x in sides], axis=1)
    return (boxes_xyxy[keep] + moved / np.where(total > 0, total, 1)[:, None]).astype(np.float32)


def _best_first(boxes: FloatArray, scores: FloatArray, kinds: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Rows by falling score; only where scores are equal is it worth looking at coordinates and kinds."""
    order = np.argsort(-scores)
    ranked = scores[order]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.lexsort((kinds, *boxes.T[::-1], -scores))
    return order
