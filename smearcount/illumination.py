"""What the light of the microscope leaves to count: where the field stop ends the view, and how light the glass is.

A photograph through an eyepiece shows a bright disc on black, and one by a telephone is often dark, or dark at the
corners. None of this was in the training of the networks, which take black for the nuclei of white cells; so the
surround is given the colour of bare glass, and dark places are brightened, before anything else looks at the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely.affinity import scale, translate

from smearcount.counting import EDGE_GUARD_UM, EDGE_INSET_PX
from smearcount.geometry import FloatArray
from smearcount.images import ArraySource, ImageSource
from smearcount.region import Region

Rgb = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

__all__ = ["MOST_PIXELS", "Lit", "counted_in_view", "even_light"]

MOST_PIXELS = 50_000_000
"""Larger pictures come from scanners, which have neither field stop nor dark glass."""

DIM, BRIGHT = 130.0, 200.0
"""Level of the glass, 0 to 255, below which a picture is brightened, and that which it is given. The glass of the
labelled photographs is at 139 to 255."""

DARKEST = 30.0
"""Level below which nothing is left to brighten."""

_BLACK = 0.25
"""Of the level of the glass: no channel of the surround is lighter. A nucleus is purple, which has a lighter blue."""

FALLEN = 0.6
"""Share of its highest level to which the light falls from which on it is evened; that of the labelled photographs
falls to 0.77 at most."""

_DIM, _MOST_EVENED, _PARTS = 0.75, 4.0, 8
"""Share of the level below which a corner is looked at; what a pixel is multiplied by at most; parts of a side."""

_FITTED_PIXELS = 65_000
"""To which the light is fitted: a thousand for the level of each part."""

_SIDE_PX = 512
"""Longest side of the reduced picture in which the view is sought."""

_LEAST_SHARE = 0.01
"""Of the picture: a smaller surround is none."""

_CONVEX, _MOST_OF_LIGHT = 0.95, 0.8
"""A view has this share of its convex hull, and of all that is lit: the black between glowing cells is no surround."""

_RIM_SHARE, _RIM_LIGHT = 0.05, 0.6
"""The rim is at most this share of the longest side; it ends where the light reaches this share of its level."""


@dataclass(frozen=True, eq=False)
class Lit:
    """A picture in even light.

    Attributes:
        source: what finds and names cells looks at.
        view: what the field stop leaves of it, convex; None for all of it.
    """

    source: ImageSource
    view: Region | None = None


def even_light(source: ImageSource) -> Lit:
    """A picture with its black surround in the colour of the glass, and its light even and bright.

    Args:
        source: returned as it is where there is nothing to do, or where it has more than `MOST_PIXELS`.

    Raises:
        ImageError: the file is damaged where it is looked at.
    """
    width, height = source.size_wh
    if width * height > MOST_PIXELS:
        return Lit(source)
    level, black_corner, dim_corner = _glance(source)
    if level >= DIM and not dim_corner:
        return Lit(source)
    notes, pixels = list(source.notes), source.read(0, 0, width, height)
    view = _view(pixels, level) if black_corner else None
    inside = np.ones((height, width), np.uint8) if view is None else view.mask((width, height))
    light = _light_over(pixels, inside)
    least, most = light.range_over(inside)
    if most > DARKEST and least < FALLEN * most:
        pixels = light.evened(pixels, most)
        notes.append(f"uneven light, falling to {max(least, 0) / most:.2f}, evened")
    if view is not None:
        pixels = _filled(pixels, inside)
        notes.append("black around the field of view replaced by the colour of the glass")
    if DARKEST <= level < DIM:
        pixels = cast(Rgb, cv2.convertScaleAbs(pixels, alpha=BRIGHT / level))
        notes.append(f"brightened {BRIGHT / level:.1f} times: the glass is at {level:.0f} of 255")
    if len(notes) == len(source.notes):
        return Lit(source)
    whole = ArraySource(
        pixels, source.um_per_px, source.path, source.scale_origin, tuple(notes), source.sha256, source.downsample
    )
    return Lit(whole, view)


def _glance(source: ImageSource) -> tuple[float, bool, bool]:
    """Level of the lightest channel of the glass, from five bands across a picture; is a corner black, or dim?"""
    width, height = source.size_wh
    side = max(8, min(width, height) // 40)
    bands = [source.read(0, round((height - side) * share), width, side) for share in (0, 0.25, 0.5, 0.75, 1)]
    step = max(1, width // 100)
    lightest = np.stack([_lightest(band[::4, ::step]) for band in bands])
    level = float(np.sort(lightest, axis=None)[int(0.95 * lightest.size)])
    corners = [part for band in (bands[0], bands[-1]) for part in (band[:, :side], band[:, -side:])]
    black = any(max(cv2.mean(corner)[:3]) < _BLACK * level for corner in corners)
    fifth = lightest.shape[2] // 5
    ends = [part for band in lightest[[0, -1]] for part in (band[:, :fifth], band[:, -fifth:])]
    return level, black, black or min(int(np.sort(end, axis=None)[int(0.9 * end.size)]) for end in ends) < _DIM * level


def _lightest(pixels: Rgb) -> Rgb:
    """The lightest channel of each pixel."""
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


@dataclass(frozen=True, eq=False)
class _Light:
    """Level of the glass as a polynomial of the second degree, of places from -1 to 1 across a picture."""

    terms: npt.NDArray[np.floating]

    def at(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """The level at some places."""
        return np.asarray(sum(a * b for a, b in zip(self.terms, _powers(x, y), strict=True)), np.float32)

    def range_over(self, inside: Rgb) -> tuple[float, float]:
        """Least and highest level where a mask `(H, W)` is not zero."""
        step = max(1, max(inside.shape) // 200)
        seen = inside[::step, ::step] != 0
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in seen.shape), indexing="ij", sparse=True)
        levels = self.at(x, y)[seen]
        return float(levels.min()), float(levels.max())

    def evened(self, pixels: Rgb, level: float) -> Rgb:
        """The picture multiplied, place by place, so that the glass has one level."""
        height, width = pixels.shape[:2]
        x, evened = np.linspace(-1, 1, width)[None], np.empty_like(pixels)
        for top in range(0, height, 256):
            y = np.linspace(-1, 1, height)[top : top + 256, None]
            factor = level / np.maximum(self.at(x, y), level / _MOST_EVENED)
            cv2.multiply(pixels[top : top + 256], cv2.merge([factor] * 3), evened[top : top + 256], 1, cv2.CV_8U)
        return evened


def _powers(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64] | float, ...]:
    return 1.0, x, y, x * x, x * y, y * y


def _light_over(pixels: Rgb, inside: Rgb) -> _Light:
    """The light fitted to the level of the glass in 8 x 8 parts of a picture, as far as they lie in a mask.

    Parts that are darker than the fit have cells on them and weigh less, as do those far from it.
    """
    lightest, seen = _lightest(_thinned(pixels, _FITTED_PIXELS)), _thinned(inside, _FITTED_PIXELS) != 0
    places, levels = [], []
    rows, columns = (np.linspace(0, n, _PARTS + 1).astype(int) for n in seen.shape)
    for i, j in product(range(_PARTS), range(_PARTS)):
        part = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
        values = np.sort(lightest[part][seen[part]], kind="stable")  # by radix, ten times as fast
        if len(values) > 0.5 * seen[part].size:
            places.append(((2 * j + 1) / _PARTS - 1, (2 * i + 1) / _PARTS - 1))
            levels.append(float(values[int(0.9 * len(values))]))
    if len(levels) < 2 * len(_powers(np.zeros(0), np.zeros(0))):
        return _Light(np.array([float(np.max(levels, initial=1.0)), 0, 0, 0, 0, 0]))
    x, y = np.array(places).T
    design, target, weights = np.stack(np.broadcast_arrays(*_powers(x, y)), axis=1), np.array(levels), np.ones(len(x))
    for _ in range(6):
        terms = np.linalg.lstsq(design * weights[:, None], target * weights, rcond=None)[0]
        misfit = target - design @ terms
        weights = np.where(misfit < 0, 0.3, 1.0) / (1 + (misfit / 20) ** 2)
    return _Light(terms)


def _view(pixels: Rgb, level: float) -> Region | None:
    """The convex part of a picture that is not black, in pixels; None where the black is no surround."""
    height, width = pixels.shape[:2]
    factor = max(1, math.ceil(max(width, height) / _SIDE_PX))
    small_wh = (-(-width // factor), -(-height // factor))
    small = _lightest(cast(Rgb, cv2.resize(pixels, small_wh, interpolation=cv2.INTER_AREA)))
    _, parts = cv2.connectedComponents((small < _BLACK * level).astype(np.uint8))
    corners = {int(parts[y, x]) for y, x in product((0, -1), (0, -1))} - {0}
    light = np.isin(parts, list(corners), invert=True).astype(np.uint8)
    opened = cv2.morphologyEx(light, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not corners or not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    hull = cv2.convexHull(largest)
    if cv2.contourArea(largest) <= max(_CONVEX * cv2.contourArea(hull), _MOST_OF_LIGHT * opened.sum()):
        return None
    inner = _convex_hull(_without_rim(small, hull, level))
    # A contour runs through the middle of the outermost pixels.
    outline = shapely.Polygon(inner[:, 0].astype(float) + 0.5).buffer(0.5)
    enlarged = scale(outline, width / small.shape[1], height / small.shape[0], origin=(0, 0))
    seen = enlarged.intersection(shapely.box(0, 0, width, height))
    lost = 1 - seen.area / (width * height)
    if not isinstance(seen, shapely.Polygon) or not _LEAST_SHARE < lost < 1:
        return None
    told = f"{lost:.0%} of the picture lies outside the field stop and is left out"
    return Region(seen, (told,), "the field of view")


def _convex_hull(mask: Rgb) -> cv2.typing.MatLike:
    return cv2.convexHull(cv2.findNonZero(mask))


def _without_rim(small: Rgb, hull: cv2.typing.MatLike, level: float) -> Rgb:
    """What lies within a hull, less the rim at which the light fades; the border of the picture has none."""
    inside = np.zeros(np.add(small.shape, 2), np.uint8)
    cv2.fillConvexPoly(inside[1:-1, 1:-1], hull, 1)
    inside[[0, -1]], inside[:, [0, -1]] = inside[[1, -2]], inside[:, [1, -2]]
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
    widest = round(_RIM_SHARE * max(small.shape))
    for width in range(widest):
        ring = small[(depth > width) & (depth <= width + 1)]
        if len(ring) and np.percentile(ring, 80) >= _RIM_LIGHT * level:
            widest = width + 1
            break
    kept: Rgb = (depth > widest).astype(np.uint8)
    return kept


def _thinned(array: Rgb, number: int = 250_000) -> Rgb:
    """About so many of the pixels `(H, W, ...)`, evenly spaced."""
    step = max(1, round(math.sqrt(array.shape[0] * array.shape[1] / number)))
    return array[::step, ::step]


def _filled(pixels: Rgb, inside: Rgb) -> Rgb:
    """The picture, outside a mask in the colour of the glass: the median of the lightest quarter inside."""
    seen = _thinned(pixels)[_thinned(inside) != 0]
    light = seen.sum(axis=1)
    filled: Rgb = pixels.copy()
    filled[inside == 0] = np.median(seen[light >= np.percentile(light, 75)], axis=0).astype(np.uint8)
    return filled


def counted_in_view(boxes: FloatArray, view: Region, um_per_px: float, rule: str) -> tuple[Bools, Region | None]:
    """Which cells the field stop lets count, and the part of the view that the counts refer to.

    With `corner`, the counting frame for any convex view: a cell counts when a square of 3 um whose top-left corner is
    that of its box lies in the view, 2 px from the edge (see `counting.counted_mask`). With `all` every cell counts.

    Args:
        boxes: `(N, 4) float32` x_min, y_min, x_max, y_max in pixels.
        view: its outline is convex.
        um_per_px: scale of the picture.
        rule: `corner` or `all`.

    Returns:
        `(N,) bool`, and a region; None where the view is too small for any.
    """
    if rule == "all":
        return np.ones(len(boxes), np.bool_), view
    inner, guard = view.outline.buffer(-EDGE_INSET_PX), EDGE_GUARD_UM / um_per_px
    common = shapely.intersection_all([translate(inner, *by) for by in product((0, -guard), (0, -guard))])
    if not isinstance(common, shapely.Polygon) or not common.area > 0:
        return np.zeros(len(boxes), np.bool_), None
    frame = replace(view, outline=common)
    return frame.contains(boxes[:, :2]), frame
