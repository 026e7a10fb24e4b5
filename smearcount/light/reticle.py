"""Lines of a reticle: a grid in the eyepiece or burnt into a photograph, whose meshes and pieces look like cells."""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np

from smearcount.arrays import Doubles, Pixels

__all__ = ["without_lines"]

_SIDE_PX = 640
"""Longest side of the reduced picture in which lines are sought."""

_WIDEST_PX, _DARKER = 9, 8
"""Of a line in the reduced picture: less wide, and so many grey levels darker than what is on both sides of it."""

_STRAIGHT_SHARE, _ASLANT_PX = 0.1, 5
"""Of the longest side a line goes so far along a side of the picture with no more than that much aslant: 5 degrees."""

_LEAST_SHARE, _LARGEST_GAP_PX, _VOTES = 0.5, 6, 60
"""Length of a piece over the shorter side, and gaps in it; pixels that must agree for one to be looked for."""

_LEAST_SEEN, _BESIDE_PX = 0.4, 6
"""By how much more of a line, from border to border, is darker than of those so far beside it: a line crosses cells,
but does not end where they do, and in the grain of a nucleus there are lines everywhere. Beyond the border nothing is
seen."""

_FEWEST = 4
"""Pieces with something on both sides, of which one line gives several; in none of 1,800 labelled photographs is there
one. With one side only, at the border, a row of cells is as dark as a line of a grid that was found elsewhere."""

_LINE_PX, _AROUND_PX = 5, 3
"""Width, in the reduced picture, of what is painted over, and how far around a pixel its colour is taken from."""


def without_lines(pixels: Pixels, inside: Pixels | None = None) -> tuple[Pixels, str]:
    """A picture `(H, W, 3)` without the straight dark lines that cross it, and what was done; nothing is "".

    Lines nearly parallel to its sides are sought by a probabilistic Hough transform (Matas et al. 2000) in what a
    closing changes in the darkest channel, and painted over from both sides (Telea 2004).

    Args:
        pixels: the picture.
        inside: `(H, W)`, not zero where it shows the smear, which lines cross from end to end; none is everywhere.
    """
    height, width = pixels.shape[:2]
    factor = max(1, math.ceil(max(width, height) / _SIDE_PX))
    small = cv2.resize(pixels, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    red, green, blue = cv2.split(small)
    darkest = cv2.min(cv2.min(red, green), blue)
    thin = (cv2.morphologyEx(darkest, cv2.MORPH_BLACKHAT, _square(_WIDEST_PX)) > _DARKER).astype(np.uint8)
    seen = np.ones_like(thin) if inside is None else cv2.resize(inside, thin.shape[::-1], None, 0, 0, cv2.INTER_NEAREST)
    mask = _lines(thin, cast(Pixels, seen))
    if mask is None:
        return pixels, ""
    along = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    mended = cast(Pixels, cv2.inpaint(pixels, along, _AROUND_PX, cv2.INPAINT_TELEA))
    return mended, "lines across the picture, as of a reticle, removed"


def _square(side: int) -> Pixels:
    return np.ones((side, side), np.uint8)


def _lines(thin: Pixels, seen: Pixels) -> Pixels | None:
    """Those of the thin dark things in a mask `(H, W)` that cross what is seen, as a mask; None for too few lines."""
    *_, width, height = cv2.boundingRect(seen)
    if min(width, height) <= 4 * _BESIDE_PX:
        return None
    thick, far = cv2.dilate(thin, _square(_ASLANT_PX)), round(_STRAIGHT_SHARE * max(thin.shape))
    straight = [cv2.morphologyEx(thick, cv2.MORPH_OPEN, np.ones(side, np.uint8)) for side in ((1, far), (far, 1))]
    likely, shortest = cv2.bitwise_and(thin, cv2.bitwise_or(*straight)), round(_LEAST_SHARE * min(width, height))
    found = cv2.HoughLinesP(likely, 1, math.pi / 720, _VOTES, minLineLength=shortest, maxLineGap=_LARGEST_GAP_PX)
    near, mask, pieces = cv2.dilate(thin, _square(3)), np.zeros_like(thin), 0
    for piece in [] if found is None else found.reshape(-1, 2, 2).astype(float):
        along = (piece[1] - piece[0]) / np.hypot(*(piece[1] - piece[0]))
        ends = piece + along * np.array([[-1], [1]]) * math.hypot(*thin.shape)
        beside = _BESIDE_PX * along[::-1] * np.array([1, -1])
        lines = [cv2.bitwise_and(_drawn(ends + by, near.shape), seen) for by in (0 * beside, beside, -beside)]
        on, *off = (cv2.mean(near, line)[0] for line in lines)
        length, *lengths = (cv2.countNonZero(line) for line in lines)
        sides = [share for share, within in zip(off, lengths, strict=True) if within > length / 2]
        if sides and on - sum(sides) / len(sides) >= _LEAST_SEEN:
            mask |= _drawn(ends, mask.shape, _LINE_PX)
            pieces += len(sides) > 1
    return cast(Pixels, cv2.bitwise_and(mask, thin)) if pieces >= _FEWEST else None


def _drawn(ends: Doubles, shape: tuple[int, ...], width_px: int = 1) -> Pixels:
    """A mask of a line between two ends `(2, 2)`."""
    line = np.zeros(shape, np.uint8)
    first, last = np.rint(ends).astype(int).tolist()
    cv2.line(line, first, last, 1, width_px)
    return line
