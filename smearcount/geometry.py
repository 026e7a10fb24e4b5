"""Boxes, overlaps and canonical sampling: pure functions on arrays, no state.

Boxes are `boxes_xyxy (N, 4) float32`: x_min, y_min, x_max, y_max in pixels, half-open, origin at the top-left corner
of the top-left pixel.
"""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np

from smearcount.arrays import Bools, Doubles, FloatArray, Pixels
from smearcount.pairs import ClosePairs

__all__ = ["FILL", "areas", "centres", "clip_boxes", "diameters", "iou_matrix", "overlapping_discs", "resize_rgb"]
__all__ += ["samples_across", "touches_edge"]

FILL = 214
"""Grey level outside the picture: the light of an empty background."""

DISC_OVERLAP = 0.1
"""Share of a cell's disc under another one. Boxes are some 12 % wider than their cells, so that discs of cells that
only touch share 4 %; cells that lie on each other by a tenth of their diameter share 10 %."""

PAIRS_AT_ONCE = 65_536
"""Pairs of discs whose common areas are worked out together: a slide with many cells takes no more memory."""


def areas(boxes_xyxy: FloatArray) -> FloatArray:
    """Areas in square pixels of boxes `(N, 4)`, shape `(N,)`; zero for empty boxes."""
    sides = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0)
    return cast(FloatArray, sides[:, 0] * sides[:, 1])


def centres(boxes_xyxy: FloatArray) -> FloatArray:
    """Box centres `(N, 2)` as x, y in pixels."""
    return cast(FloatArray, (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2)


def diameters(boxes_xyxy: FloatArray) -> FloatArray:
    """Mean of width and height of each box in pixels, `(N,)`: the diameter of a round cell."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return cast(FloatArray, (sides[:, 0] + sides[:, 1]) / 2)


def clip_boxes(boxes_xyxy: FloatArray, width: int, height: int) -> FloatArray:
    """Boxes cut off at an image of `width` x `height` pixels."""
    limits = np.array([width, height, width, height], np.float32)
    return cast(FloatArray, np.clip(boxes_xyxy, 0, limits))


def touches_edge(boxes_xyxy: FloatArray, width: int, height: int, slack_px: float = 2.0) -> Bools:
    """Which boxes come within `slack_px` of the border of a `width` x `height` image, `(N,)` bool."""
    x_min, y_min, x_max, y_max = boxes_xyxy.T
    touches: Bools = (
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


def overlapping_discs(boxes: FloatArray, pairs: ClosePairs) -> Bools:
    """Which cells lie on another one: the discs in their boxes share more than `DISC_OVERLAP` of the cell's own.

    Args:
        boxes: `(N, 4) float32`.
        pairs: those of the boxes that overlap at all, or of some of them.
    """
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


def resize_rgb(pixels: Pixels, width: int, height: int, stride_px: int = 1) -> Pixels:
    """Resample `pixels (H, W, 3)` or `(H, W) uint8`: by area where it shrinks below 0.6, else bilinear.

    Args:
        pixels: returned as they are where they have that size already.
        width: in pixels.
        height: in pixels.
        stride_px: the result is padded right and below, with `FILL`, to multiples of this.
    """
    same = (pixels.shape[1], pixels.shape[0]) == (width, height)
    wide, tall = width + -width % stride_px, height + -height % stride_px
    if same and (wide, tall) == (width, height):
        return pixels
    padded = np.empty((tall, wide, *pixels.shape[2:]), pixels.dtype)
    padded[height:] = padded[:height, width:] = FILL
    if same:
        padded[:height, :width] = pixels
    else:
        shrinks = width * height < 0.36 * pixels.shape[0] * pixels.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        cv2.resize(pixels, (width, height), padded[:height, :width], interpolation=method)
    return padded


def samples_across(px_per_px: float) -> int:
    """How many samples of a picture, each way, make one pixel that is `px_per_px` of its pixels wide.

    A bilinear sample averages over one to two pixels: up to a step of 1.5 nothing is left out.
    """
    return max(1, math.floor(px_per_px + 0.5))
