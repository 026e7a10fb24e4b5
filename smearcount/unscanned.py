"""Where nothing was scanned: empty tiles of a slide, or the plain canvas on which the pieces of a scan lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import cast

import cv2
import numpy as np
import shapely

from smearcount.arrays import FloatArray, Indices, Pixels
from smearcount.light.field_stop import is_plain
from smearcount.region import Region, polygons

__all__ = ["Edges", "PlainParts", "plain_part", "scanned_areas_um2", "scanned_region"]

_CORNER_PX = 8
"""Side of the corners of a square of which one is plain where part of the square was not scanned. Glass has noise."""

_LEAST_SIDE = 55
"""Pixels of `squares.GRAIN_UM`, somewhat less than a square: clipped glass that is as wide is background."""

_WHOLE = 0.999
"""Of a pixel that was reduced: all of what it was made of, but for rounding."""

Edges = tuple[Indices, Indices]
"""Where the rows and the columns of squares begin, and the last one ends, in pixels."""

PlainParts = Mapping[tuple[int, int], Pixels]
"""Which of the reduced pixels of a square are of one plain colour, by row and column; eight are a byte."""


def plain_part(pixels: Pixels, shape: tuple[int, int]) -> Pixels | None:
    """Where a square `(h, w, 3)` reduced to a shape has exactly the colour of a plain corner; None for nowhere."""
    ends = slice(None, _CORNER_PX), slice(-_CORNER_PX, None)
    corners = [corner for y, x in product(ends, ends) if is_plain(corner := pixels[y, x])]
    if not corners:
        return None
    same = np.zeros(pixels.shape[:2], np.uint8)
    for corner in corners:
        same |= cast(Pixels, cv2.inRange(pixels, corner[0, 0], corner[0, 0]))
    share = cv2.resize(same.astype(np.float32) / 255, shape[::-1], interpolation=cv2.INTER_AREA)
    return (share > _WHOLE).astype(np.uint8)


def scanned_region(edges: Edges, shapes: Edges, plain: PlainParts) -> Region | None:
    """The part of a picture that was scanned; None for all of it, or nothing.

    Args:
        edges: of the squares.
        shapes: the heights of the rows and widths of the columns of squares in reduced pixels.
        plain: the plain parts of the squares.
    """
    boxes = [box for at in sorted(plain) for box in _boxes(edges, at, _wide(plain, at, shapes))]
    whole = shapely.box(0, 0, edges[1][-1], edges[0][-1])
    left = polygons(whole.difference(shapely.union_all([shapely.box(*box) for box in boxes])))
    return None if left is None or not boxes else Region(left)


def scanned_areas_um2(edges: Edges, scanned: Region | None, plain: PlainParts, um_per_px: float) -> FloatArray:
    """Area of each square that was scanned, `(rows, columns) float32`."""
    y_edges, x_edges = edges
    area = (np.diff(y_edges)[:, None] * np.diff(x_edges)[None]).astype(np.float32)
    for row, column in plain if scanned is not None else ():
        square = (x_edges[column], y_edges[row], x_edges[column + 1], y_edges[row + 1])
        area[row, column] = shapely.clip_by_rect(cast(Region, scanned).outline, *map(float, square)).area
    return cast(FloatArray, area * np.float32(um_per_px**2))


def _wide(plain: PlainParts, at: tuple[int, int], shapes: Edges) -> Pixels:
    """The plain part of a square without what is narrow, as seen with the squares around it; beyond is all plain."""

    def part(row: int, column: int) -> Pixels:
        shape = int(heights[row]), int(widths[column])
        bits = plain.get((row, column), np.zeros(shape[0] * shape[1], np.uint8))
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape)

    heights, widths = shapes
    alone = part(*at)
    if alone.all():
        return alone
    rows, columns = (range(max(n - 1, 0), min(n + 2, len(sides))) for n, sides in zip(at, shapes, strict=True))
    around = np.block([[part(row, column) for column in columns] for row in rows])
    opened = cv2.morphologyEx(around, cv2.MORPH_OPEN, np.ones((_LEAST_SIDE, _LEAST_SIDE), np.uint8))
    top, left = heights[rows[0] : at[0]].sum(), widths[columns[0] : at[1]].sum()
    return cast(Pixels, opened[top : top + alone.shape[0], left : left + alone.shape[1]])


def _boxes(edges: Edges, at: tuple[int, int], part: Pixels) -> Iterator[tuple[float, float, float, float]]:
    """A part of a square as boxes in pixels of the picture, each of the rows that are alike."""
    y, x = (np.linspace(each[n], each[n + 1], side + 1) for each, n, side in zip(edges, at, part.shape, strict=True))
    turns = np.flatnonzero((part[1:] != part[:-1]).any(axis=1)) + 1
    for first, last in zip((0, *turns), (*turns, len(part)), strict=True):
        ends = np.flatnonzero(np.diff(np.concatenate([[0], part[first], [0]]).astype(np.int8)))
        for start, stop in ends.reshape(-1, 2):
            yield float(x[start]), float(y[first]), float(x[stop]), float(y[last])
