"""Where the view of the microscope ends within a picture: the surround is filled, and left out of counts and areas.

It ends at the black of a field stop, at the even grey that stray light makes of it, or at a plain border of any colour
that a slide show, a figure, a screenshot or a turned picture has around the photograph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal, cast

import cv2
import numpy as np
import shapely
from shapely.affinity import scale, translate

from smearcount.arrays import Bools, FloatArray, Pixels
from smearcount.counting import EDGE_GUARD_UM, EDGE_INSET_PX
from smearcount.light.glass import lightest, thinned
from smearcount.region import Region, polygons

__all__ = ["BLACK", "counted_in_view", "field_of_view", "fill", "is_dim", "is_plain"]

BLACK = 0.25
"""Of the level of the glass: no channel of the surround is lighter. A nucleus is purple, which has a lighter blue."""

_NEARLY = 6
"""Grey levels by which a plain border may differ, beside a photograph, from its corners, where it is all the same."""

_DIM, _STEP = 0.7, 0.25
"""Of the level of the glass: a grey surround is no lighter, and the glass at the rim of the view is lighter by this
much. Where light falls slowly towards the corners it is not."""

_EVEN, _NEAR = 4.0, 12
"""Grey levels: standard deviation among parts of a corner of a grey surround, and how far all of it may be from one."""

_SIDE_PX = 512
"""Longest side of the reduced picture in which the view is sought."""

_LEAST_SHARE, _LEAST_GREY = 0.01, 0.05
"""Of the picture: a smaller surround is none; a smaller grey one is a cell in a corner, or light that falls there."""

_CONVEX, _MOST_OF_LIGHT = 0.95, 0.8
"""A view has this share of its convex hull, and of all that is lit: the black between glowing cells is no surround."""

_LEAST_FRAMED, _MOST_ALIKE, _CORNER_PX = 0.25, 0.05, 8
"""A plain border leaves at least this share of a picture, or it is clipped glass around a cell, and in it at most this
share of its own colour, or it is glass without noise. Side of its corners."""

_ROWS = 32
"""Of a picture that are filled at once: the places in them take more memory than the pixels."""

_RIM_SHARE, _RIM_LIGHT = 0.05, 0.6
"""The rim is at most this share of the longest side; it ends where the light reaches this share of its level."""


def is_plain(corner: Pixels) -> bool:
    """Whether all pixels of a part of a picture `(h, w, 3)` are the same, as in no photograph, which has noise."""
    return bool((corner == corner[0, 0]).all())


def field_of_view(pixels: Pixels, level: float) -> Region | None:
    """The convex part of a picture within a black, grey or plain surround, in pixels; None where there is none."""
    height, width = pixels.shape[:2]
    factor = max(1, math.ceil(max(width, height) / _SIDE_PX))
    small_wh = (-(-width // factor), -(-height // factor))
    colours = cast(Pixels, cv2.resize(pixels, small_wh, interpolation=cv2.INTER_AREA))
    surround = _surround(colours, level)
    within = _lit_part(surround.outside, surround.least_lit)
    if within is None or not _is_view(within[1:-1, 1:-1], colours, surround, level):
        return None
    kept = cv2.findNonZero(_without_rim(colours, within))
    if kept is None or len(inner := cv2.convexHull(kept)) < 3:
        return None
    # A contour runs through the middle of the outermost pixels.
    outline = shapely.Polygon(inner[:, 0].astype(float) + 0.5).buffer(0.5)
    enlarged = scale(outline, width / small_wh[0], height / small_wh[1], origin=(0, 0))
    view = enlarged.intersection(shapely.box(0, 0, width, height))
    lost = 1 - view.area / (width * height)
    least = _LEAST_GREY if surround.kind == "grey" else _LEAST_SHARE
    if not isinstance(view, shapely.Polygon) or not least < lost < 1:
        return None
    told = f"{lost:.0%} of the picture lies outside the field of view and is left out"
    return Region(view, (told,), "the field of view")


@dataclass(frozen=True, eq=False)
class _Surround:
    """Where a reduced picture may be no part of the view: `outside (h, w)`, and of what kind that is."""

    outside: Bools
    kind: Literal["black", "plain", "grey"]

    @property
    def least_lit(self) -> float:
        """Share of the picture that it leaves at least."""
        return 0.0 if self.kind == "black" else _LEAST_FRAMED


def _surround(colours: Pixels, level: float) -> _Surround:
    black = lightest(colours) < BLACK * level
    if black[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        return _Surround(black, "black")
    plain = _like_corners(colours, is_plain, _NEARLY)
    if plain.any():
        return _Surround(plain, "plain")
    return _Surround(_like_corners(colours, partial(is_dim, level=level), _NEAR), "grey")


def _lit_part(outside: Bools, least_lit: float) -> Pixels | None:
    """The hull of what a surround leaves, as a mask one pixel wider all around; None where it is no convex whole.

    Only what is joined to a corner of the picture is a surround.
    """
    _, parts = cv2.connectedComponents(outside.astype(np.uint8), connectivity=4)
    corners = {int(parts[y, x]) for y, x in product((0, -1), (0, -1))} - {0}
    light = np.isin(parts, list(corners), invert=True).astype(np.uint8)
    opened = cv2.morphologyEx(light, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not corners or not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    hull = cv2.convexHull(largest)
    least_area = max(_CONVEX * cv2.contourArea(hull), _MOST_OF_LIGHT * opened.sum(), least_lit * opened.size)
    if cv2.contourArea(largest) <= least_area:
        return None
    within = np.zeros((outside.shape[0] + 2, outside.shape[1] + 2), np.uint8)
    cv2.fillConvexPoly(within, hull + 1, 1)
    return within


def _is_view(within: Pixels, colours: Pixels, surround: _Surround, level: float) -> bool:
    """Whether a lit part is a view: it has little of the surround's colour, and ends in a step where that is grey."""
    if surround.kind != "black" and surround.outside[within != 0].mean() > _MOST_ALIKE:
        return False
    return surround.kind != "grey" or _ends_in_a_step(lightest(colours), within, level)


def _like_corners(colours: Pixels, is_surround: Callable[[Pixels], bool], near: int) -> Bools:
    """Where a picture has, but for some grey levels, the colours of the corners that may be a surround.

    Nowhere if there is only one, which clipped glass may be.
    """
    ends = (slice(0, _CORNER_PX), slice(-_CORNER_PX, None))
    corners = [corner for y, x in product(ends, ends) if is_surround(corner := colours[y, x])]
    outside = np.zeros(colours.shape[:2], np.bool_)
    for corner in corners if len(corners) > 1 else []:
        outside |= np.abs(colours - np.median(corner, axis=(0, 1))).max(axis=2) <= near
    return outside


def is_dim(corner: Pixels, level: float) -> bool:
    """Whether a part of a picture `(h, w, 3)` is even and darker than glass of this level ever is beside its light."""
    if max(cv2.mean(corner)[:3]) >= _DIM * level:
        return False
    blocks = cv2.resize(corner, (4, 4), interpolation=cv2.INTER_AREA)
    return max(cv2.meanStdDev(blocks)[1].ravel().tolist()) <= _EVEN


def _ends_in_a_step(light: Pixels, within: Pixels, level: float) -> bool:
    """Whether the glass just inside a mask is much lighter than what lies outside."""
    depth = cv2.distanceTransform(within, cv2.DIST_L2, 5)
    ring = (depth > 0) & (depth <= _RIM_SHARE * max(light.shape))
    beside = np.percentile(light[ring], 80) - np.median(light[within == 0])
    return bool(beside >= _STEP * level)


def _without_rim(colours: Pixels, within: Pixels) -> Pixels:
    """What lies within a mask one pixel wider all around, less the rim, at which the light fades or has another colour.

    The border of the picture has none.
    """
    light = (colours / _glass_within(colours, within[1:-1, 1:-1])).min(axis=2)
    inside = within.copy()
    inside[[0, -1]], inside[:, [0, -1]] = inside[[1, -2]], inside[:, [1, -2]]
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
    widest = round(_RIM_SHARE * max(light.shape))
    for width in range(widest):
        ring = light[(depth > width) & (depth <= width + 1)]
        if len(ring) and np.percentile(ring, 80) >= _RIM_LIGHT:
            widest = width + 1
            break
    kept: Pixels = (depth > widest).astype(np.uint8)
    return kept


def fill(pixels: Pixels, inside: Pixels) -> None:
    """Give a picture, outside a mask, the colour of the glass."""
    glass = _glass_within(thinned(pixels), thinned(inside)).astype(np.uint8)
    for top in range(0, len(pixels), _ROWS):
        rows = slice(top, top + _ROWS)
        pixels[rows][inside[rows] == 0] = glass


def _glass_within(pixels: Pixels, inside: Pixels) -> FloatArray:
    """Median of the lightest quarter of a picture within a mask, `(3,)`, 1 at least."""
    seen = pixels[inside != 0]
    light = seen.sum(axis=1)
    return np.asarray(np.maximum(np.median(seen[light >= np.percentile(light, 75)], axis=0), 1), np.float32)


def counted_in_view(
    boxes: FloatArray, view: Region, um_per_px: float, rule: str, inset_px: float = EDGE_INSET_PX
) -> tuple[Bools, Region | None]:
    """Which cells the field stop lets count, and the part of the view that the counts refer to.

    With `corner`, the counting frame for any view: a cell counts when a square of 3 um whose top-left corner is that of
    its box has its corners in the view, 2 px from the edge (see `counting.counted_mask`). With `all` every cell counts.

    Args:
        boxes: `(N, 4) float32` x_min, y_min, x_max, y_max in pixels.
        view: the part of the picture that is seen.
        um_per_px: scale of the picture.
        rule: `corner` or `all`.
        inset_px: more than 2 px where the edge is not known as exactly.

    Returns:
        `(N,) bool`, and a region; None where the view is too small for any.
    """
    if rule == "all":
        return np.ones(len(boxes), np.bool_), view
    inner, guard = view.outline.buffer(-inset_px), EDGE_GUARD_UM / um_per_px
    common = polygons(shapely.intersection_all([translate(inner, *by) for by in product((0, -guard), (0, -guard))]))
    if common is None:
        return np.zeros(len(boxes), np.bool_), None
    frame = replace(view, outline=common)
    return frame.contains(boxes[:, :2]), frame
