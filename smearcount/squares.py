"""A picture in squares, and what is measured of each: its cells, its focus, and how much light passes through it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, FloatArray, Indices, Pixels
from smearcount.geometry import areas, centres, resize_rgb
from smearcount.images import PixelSource
from smearcount.quality import SHARPEST_RATIO, focus_view, overlapping_red, sharpness
from smearcount.records import Detections
from smearcount.region import Region
from smearcount.unscanned import Edges, plain_part, scanned_areas_um2, scanned_region
from smearcount.windows import InFlight

__all__ = ["LEVELS", "SQUARE_UM", "Grid", "SquareMeasures", "measure_squares", "runs", "square_grid"]

SQUARE_UM = 60.0
"""Holds some 45 red cells of a monolayer, so that the share that overlaps is known to about 7 %."""

GRAIN_UM = 1.0
"""Size of a pixel at which light and stain are looked at."""

BOX_MARGIN_UM = 0.5
LEVELS = 64
"""Bins of the grey levels of a square."""

_SQUARES_AT_ONCE, _MOST_THREADS = 8, 4
_RING = 2
"""Squares around those of a region that are measured too: at the border of a picture a square is judged with those up
to two away."""

_LIGHT_SQUARES = 8
"""Rows and columns of squares, evenly spread, whose light stands for that of a picture of which a region is judged."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Squares that cover a picture without remainder.

    Attributes:
        x_edges: `(columns + 1,) int`, pixels, ascending from 0 to the width.
        y_edges: `(rows + 1,) int`, likewise.
        um_per_px: scale of the picture.
    """

    x_edges: Indices
    y_edges: Indices
    um_per_px: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.y_edges) - 1, len(self.x_edges) - 1

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return int(self.x_edges[-1]), int(self.y_edges[-1])

    @property
    def boxes(self) -> Indices:
        """Each square in pixels, `(rows, columns, 4)`."""
        left, top = np.meshgrid(self.x_edges[:-1], self.y_edges[:-1])
        right, bottom = np.meshgrid(self.x_edges[1:], self.y_edges[1:])
        return np.stack([left, top, right, bottom], axis=-1)

    def touching(self, region: Region) -> Bools:
        """Which squares have a point in common with a region, `(rows, columns)`."""
        return region.touches(self.boxes.reshape(-1, 4)).reshape(self.shape)

    @property
    def areas_um2(self) -> Doubles:
        """Area of each square, `(rows, columns)`."""
        return np.diff(self.y_edges)[:, None] * np.diff(self.x_edges)[None] * self.um_per_px**2

    def squares_of(self, points_xy: npt.NDArray[np.floating]) -> tuple[Indices, Indices]:
        """Row and column of the square of each point `(N, 2)`; those outside belong to the nearest square."""
        rows, columns = (
            np.clip(np.searchsorted(edges, points_xy[:, axis], side="right") - 1, 0, len(edges) - 2)
            for axis, edges in ((1, self.y_edges), (0, self.x_edges))
        )
        return rows, columns

    def total(self, points_xy: npt.NDArray[np.floating], weights: npt.NDArray[np.floating]) -> FloatArray:
        """Sum of the weights `(N,)` of the points in each square, `(rows, columns) float32`."""
        rows, columns = self.squares_of(points_xy)
        flat = np.bincount(rows * self.shape[1] + columns, weights, minlength=self.shape[0] * self.shape[1])
        return flat.reshape(self.shape).astype(np.float32)


@dataclass(frozen=True, eq=False)
class SquareMeasures:
    """What is known of each square before it is judged; all but the histograms are `(rows, columns) float32`.

    Attributes:
        grid: where the squares lie.
        red: number of red cells whose centre lies in the square.
        red_area_um2: their area, as discs in their boxes.
        overlapping: number of them that lie on another one.
        sharpness: 1 for good focus, 0 for nothing to see.
        on_cells: `(rows, columns, LEVELS) uint16`, grey levels of the green channel within the boxes of all cells.
        off_cells: likewise outside every box, of what was scanned.
        scanned: what of the picture was scanned; None for all of it.
        scanned_um2: area of the square that was scanned; None for all of it.
        judged: `(rows, columns) bool`, the squares of the region that is counted, which with two around them and those
            of `light` are the only ones that were measured; None for all.
        light: `(rows, columns) bool`, the squares that tell how light the picture is; None for all.
    """

    grid: Grid
    red: FloatArray
    red_area_um2: FloatArray
    overlapping: FloatArray
    sharpness: FloatArray
    on_cells: npt.NDArray[np.uint16]
    off_cells: npt.NDArray[np.uint16]
    scanned: Region | None = None
    scanned_um2: FloatArray | None = None
    judged: Bools | None = None
    light: Bools | None = None


def square_grid(size_wh: tuple[int, int], um_per_px: float, side_um: float = SQUARE_UM) -> Grid:
    """As many equal squares as fit best, at least one, of whole pixels."""
    edges = []
    for length in size_wh:
        squares = max(1, round(length * um_per_px / side_um))
        edges.append(np.rint(np.linspace(0, length, min(squares, length) + 1)).astype(np.intp))
    return Grid(edges[0], edges[1], um_per_px)


def measure_squares(
    source: PixelSource, um_per_px: float, cells: Detections, region: Region | None = None
) -> SquareMeasures:
    """Measure each square of a picture.

    Args:
        source: the picture.
        um_per_px: its scale.
        cells: every cell found in it.
        region: the part that is counted, if not all of it.
    """
    grid = square_grid(source.size_wh, um_per_px)
    everywhere = np.ones(grid.shape, np.bool_)
    judged, light = (grid.touching(region), _spread(grid.shape)) if region else (everywhere, everywhere)
    wanted = _with_ring(judged) | light
    is_red = cells.kinds == "rbc"
    red = cells.boxes[is_red]
    at = centres(red)
    focus = np.zeros(grid.shape, np.float32)
    on_cells, off_cells = (np.zeros((*grid.shape, LEVELS), np.uint16) for _ in range(2))

    plain: dict[tuple[int, int], Pixels] = {}
    plain_levels: dict[tuple[int, int], FloatArray] = {}

    def measure(read: tuple[_Band, Pixels]) -> None:
        band, seen = read
        for column, pixels, green, occupied in band.squares(seen, um_per_px):
            part = plain_part(pixels, occupied.shape)
            view = focus_view(green, um_per_px)
            focus[band.row, column] = sharpness(view) / SHARPEST_RATIO
            coarse = resize_rgb(view, occupied.shape[1], occupied.shape[0])
            on_cells[band.row, column] = _levels(coarse, occupied)
            off_cells[band.row, column] = _levels(coarse, 1 - occupied)
            if part is not None:
                plain[band.row, column] = np.packbits(part)
                plain_levels[band.row, column] = _levels(coarse, part & (1 - occupied)) / np.float32(max(part.sum(), 1))

    # As many bands at once as OpenCV may use threads, each measured on one, while the next is read.
    with InFlight(measure, min(max(1, cv2.getNumThreads()), _MOST_THREADS)) as flight:
        for _ in flight.answers((band, band.read(source)) for band in _bands(grid, wanted, cells.boxes)):
            pass
    edges, shapes = (grid.y_edges, grid.x_edges), _reduced(grid)
    scanned = scanned_region(edges, shapes, plain) if plain else None
    scanned_um2 = scanned_areas_um2(edges, scanned, plain, um_per_px)
    for (row, column), levels in plain_levels.items():
        bare = 1 - float(scanned_um2[row, column] / grid.areas_um2[row, column])
        left_out = np.rint(bare * shapes[0][row] * shapes[1][column] * levels)
        off_cells[row, column] -= np.minimum(left_out, off_cells[row, column]).astype(np.uint16)
    return SquareMeasures(
        grid=grid,
        red=grid.total(at, np.ones(len(red))),
        red_area_um2=grid.total(at, areas(red) * (math.pi / 4 * um_per_px**2)),
        overlapping=grid.total(at, overlapping_red(cells)[is_red].astype(np.float32)),
        sharpness=focus,
        on_cells=on_cells,
        off_cells=off_cells,
        scanned=scanned,
        scanned_um2=scanned_um2,
        judged=judged if region else None,
        light=light if region else None,
    )


def _with_ring(judged: Bools) -> Bools:
    """Squares and those up to `_RING` beside them."""
    ring = cv2.dilate(judged.astype(np.uint8), np.ones((2 * _RING + 1,) * 2))
    return cast(Bools, ring.astype(np.bool_))


def _spread(shape: tuple[int, int]) -> Bools:
    """Squares all over a picture: the middles of equal parts of its rows and columns."""
    parts = [min(side, _LIGHT_SQUARES) for side in shape]
    middles = ((2 * np.arange(n) + 1) * side // (2 * n) for side, n in zip(shape, parts, strict=True))
    chosen = np.zeros(shape, np.bool_)
    chosen[np.ix_(*middles)] = True
    return chosen


def _levels(grey: Pixels, where: Pixels) -> FloatArray:
    """How many pixels have each of the `LEVELS` grey levels, where `where` is not 0; NumPy takes ten times as long."""
    return cast(FloatArray, cv2.calcHist([grey], [0], where, [LEVELS], [0, 256]).ravel())


@dataclass(frozen=True, eq=False)
class _Band:
    """Neighbouring squares of one row.

    Attributes:
        row: of the grid.
        start: column of the first square.
        edges: `(n + 1,)` of the n squares in x.
        top: of the band in the picture.
        bottom: of the band in the picture.
        boxes: those that may reach into it.
    """

    row: int
    start: int
    edges: list[int]
    top: int
    bottom: int
    boxes: FloatArray

    def read(self, source: PixelSource) -> Pixels:
        """Its pixels."""
        return source.read(self.edges[0], self.top, self.edges[-1] - self.edges[0], self.bottom - self.top)

    def squares(self, pixels: Pixels, um_per_px: float) -> Iterator[tuple[int, Pixels, Pixels, Pixels]]:
        """Of each square its column, pixels, green, and which of its pixels of `GRAIN_UM` lie in a box: 1, else 0."""
        green = cv2.extractChannel(pixels, 1)
        for column, (left, right) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True), self.start):
            part = np.s_[:, left - self.edges[0] : right - self.edges[0]]
            occupied = _occupied(self.boxes, (left, self.top, right, self.bottom), um_per_px)
            yield column, pixels[part], cast(Pixels, green[part]), occupied


def _bands(grid: Grid, wanted: Bools, boxes: FloatArray) -> Iterator[_Band]:
    boxes = boxes[np.argsort(boxes[:, 1], kind="stable")]
    tallest = float((boxes[:, 3] - boxes[:, 1]).max(initial=0)) + 2 * BOX_MARGIN_UM / grid.um_per_px
    for row, columns in enumerate(wanted):
        top, bottom = grid.y_edges[row : row + 2].tolist()
        near = boxes[slice(*np.searchsorted(boxes[:, 1], (top - tallest, bottom + tallest)))]
        for start, end in _runs(columns):
            yield _Band(row, start, grid.x_edges[start : end + 1].tolist(), top, bottom, near)


def _runs(wanted: Bools) -> Iterator[tuple[int, int]]:
    """Where neighbours that are wanted begin and end in a row of squares, at most so many at once."""
    for first, end in zip(*(each.tolist() for each in runs(wanted)), strict=True):
        for start in range(first, end, _SQUARES_AT_ONCE):
            yield start, min(start + _SQUARES_AT_ONCE, end)


def runs(chosen: Bools) -> tuple[Indices, Indices]:
    """Where the neighbours that are chosen in a row `(N,)` begin, and where they end."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return turns[::2], turns[1::2]


def _reduced_side(side_px: int, um_per_px: float) -> int:
    """Side of a square in pixels of `GRAIN_UM`, or its own where these are larger."""
    return max(1, round(side_px * min(1.0, um_per_px / GRAIN_UM)))


def _reduced(grid: Grid) -> Edges:
    """Heights of the rows and widths of the columns of squares in those pixels."""
    heights, widths = (
        np.array([_reduced_side(int(side), grid.um_per_px) for side in np.diff(edges)])
        for edges in (grid.y_edges, grid.x_edges)
    )
    return heights, widths


def _occupied(boxes: FloatArray, square: tuple[int, int, int, int], um_per_px: float) -> Pixels:
    """1 at the pixels of `GRAIN_UM` of a square that lie in a box, grown by a margin."""
    left, top, right, bottom = square
    shape = _reduced_side(bottom - top, um_per_px), _reduced_side(right - left, um_per_px)
    occupied = np.zeros(shape, np.uint8)
    margin = BOX_MARGIN_UM / um_per_px
    near = boxes[(boxes[:, 0] - margin < right) & (boxes[:, 2] + margin > left)]
    gain = np.array([shape[1] / (right - left), shape[0] / (bottom - top)] * 2)
    grown = (near + (-margin, -margin, margin, margin) - (left, top, left, top)) * gain
    for x_min, y_min, x_max, y_max in np.rint(grown).astype(int).clip(0).tolist():
        occupied[y_min:y_max, x_min:x_max] = 1
    return occupied
