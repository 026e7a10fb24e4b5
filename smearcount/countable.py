"""Where a large picture can be counted: squares of about 60 um, each with a reason for or against it.

A square is judged by the cells found in it and by its own pixels. How dense the cells lie is taken from a square and
its eight neighbours together: a chance crowd or gap of a few cells is part of the density that is counted, and leaving
it out would bias the count. Only beside such an area a square's own density decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from smearcount.arrays import Bools, Doubles, FloatArray, Pixels
from smearcount.images import PixelSource
from smearcount.quality import BLURRED, CROWDED_COVER, CROWDED_OVERLAP, SPARSE_RED
from smearcount.records import Detections
from smearcount.region import Region
from smearcount.squares import LEVELS, Grid, SquareMeasures, measure_squares, runs

__all__ = ["COLOURS", "TINT", "COUNTABLE", "REASONS", "CountableMap", "countable_map", "judge_squares", "shade"]

REASONS = ("countable", "background", "too thin", "too thick", "out of focus", "debris")
COUNTABLE = 0

COLOURS = {
    "background": (40, 120, 255),
    "too thin": (0, 190, 190),
    "too thick": (230, 60, 40),
    "out of focus": (150, 60, 220),
    "debris": (240, 170, 0),
}
"""RGB of the squares that are not counted, on an overlay."""

TINT = 0.35
"""Share of that colour."""

FIELD_UM2 = 7500.0
"""Area of a usual photographed field, 100 x 75 um: `SPARSE_RED` cells in one are too few."""

STAINED, DARK = 0.85, 0.75
"""Share of the light of the background below which a pixel is stained, and below which it is no haze of plasma."""

BACKGROUND_COVER, BACKGROUND_STAINED = 0.01, 0.05
FOCUS_STAINED = 0.05
"""Without that much to see a square has no focus to speak of."""

THICK_STAINED = 0.92
DEBRIS_DARK = 0.04
"""Share of a square that is dark and belongs to no cell that was found: 144 um2, a speck of 13 um. On a scan the
largest specks came to 0.08 to 0.13, and 95 % of the squares to less than 0.01."""

LEAST_SCANNED = 0.5
"""Share of a square that was scanned; with less it is background."""

_UNSCANNED = 255

Counts2d = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CountableMap:
    """Which squares of a picture are counted, and why others are not.

    Attributes:
        grid: where the squares lie.
        reasons: `(rows, columns) int8`, index into `REASONS`; `COUNTABLE` is 0.
        scanned: what of the picture was scanned; None for all of it.
        judged: `(rows, columns) bool`, the squares of the region that is counted; None for all. Others are countable.
    """

    grid: Grid
    reasons: npt.NDArray[np.int8]
    scanned: Region | None = None
    judged: Bools | None = None

    def __post_init__(self) -> None:
        """Check the shape and the reasons."""
        if self.reasons.shape != self.grid.shape or self.reasons.dtype != np.int8:
            raise ValueError(f"reasons: expected int8 {self.grid.shape}, got {self.reasons.dtype} {self.reasons.shape}")
        if self.reasons.size and not 0 <= self.reasons.min() <= self.reasons.max() < len(REASONS):
            raise ValueError(f"reasons: expected 0 to {len(REASONS) - 1}, got {np.unique(self.reasons)}")

    @property
    def judged_um2(self) -> Doubles:
        """Area of each square that is judged, `(rows, columns)`; 0 for others."""
        return self.grid.areas_um2 * (1 if self.judged is None else self.judged)

    def shares(self) -> dict[str, float]:
        """Share of the area of the judged squares by reason; they sum to 1."""
        area = np.bincount(self.reasons.ravel(), self.judged_um2.ravel(), minlength=len(REASONS))
        return {name: float(part / area.sum()) for name, part in zip(REASONS, area, strict=True)}

    def region(self) -> Region | None:
        """The countable squares as one region; None where there is none."""
        left, right, top, bottom = [], [], [], []
        for row, columns in enumerate(self.reasons == COUNTABLE):
            # Runs of squares, so that a slide of a hundred thousand has some thousand shapes to unite.
            first, end = runs(columns)
            left += self.grid.x_edges[first].tolist()
            right += self.grid.x_edges[end].tolist()
            top += [int(self.grid.y_edges[row])] * len(first)
            bottom += [int(self.grid.y_edges[row + 1])] * len(first)
        if not left:
            return None
        whole = shapely.union_all(shapely.box(left, top, right, bottom))
        return Region(cast("shapely.Polygon | shapely.MultiPolygon", whole))


def countable_map(
    source: PixelSource, um_per_px: float, cells: Detections, region: Region | None = None
) -> CountableMap:
    """Where a picture can be counted; read once, in parts, so that memory does not depend on its size.

    Args:
        source: the picture.
        um_per_px: its scale.
        cells: every cell found in it.
        region: the part that is counted, if not all of it.
    """
    return judge_squares(measure_squares(source, um_per_px, cells, region))


def judge_squares(measures: SquareMeasures) -> CountableMap:
    """Give each square its reason: the first of background, out of focus, too thick, debris, too thin that holds."""
    square = measures.grid.areas_um2.astype(np.float32)
    area = square if measures.scanned_um2 is None else measures.scanned_um2
    stained, strange = _stained(measures)
    layers = (area, measures.red, measures.red_area_um2, measures.overlapping, stained * area)
    alone, pooled = _Density(*layers), _Density(*(_around(layer) for layer in layers))
    rules = {
        "background": _grown(pooled.background, alone.background) | (area < LEAST_SCANNED * square),
        "out of focus": (stained > FOCUS_STAINED) & (measures.sharpness < BLURRED),
        "too thick": _grown(pooled.too_thick, alone.too_thick),
        "debris": strange > DEBRIS_DARK,
        "too thin": _grown(pooled.too_thin, alone.too_thin),
    }
    codes = [REASONS.index(name) for name in rules]
    reasons = np.select(list(rules.values()), codes, COUNTABLE).astype(np.int8)
    if measures.judged is not None:
        reasons[~measures.judged] = COUNTABLE
    return CountableMap(measures.grid, reasons, measures.scanned, measures.judged)


@dataclass(frozen=True, eq=False)
class _Density:
    """How dense the cells lie in each square, or in each with its neighbours: sums, `(rows, columns)`."""

    area_um2: FloatArray
    red: FloatArray
    red_area_um2: FloatArray
    overlapping: FloatArray
    stained_um2: FloatArray

    @property
    def background(self) -> Bools:
        """No cells, and little else."""
        bare = self.stained_um2 < BACKGROUND_STAINED * self.area_um2
        return bare & (self.red_area_um2 < BACKGROUND_COVER * self.area_um2)

    @property
    def too_thick(self) -> Bools:
        """Cells on cells, or so much stain that they can't be told apart."""
        covered = self.red_area_um2 > CROWDED_COVER * self.area_um2
        stained = self.stained_um2 > THICK_STAINED * self.area_um2
        return covered | stained | (self.overlapping > CROWDED_OVERLAP * self.red)

    @property
    def too_thin(self) -> Bools:
        """Few red cells."""
        return self.red < SPARSE_RED / FIELD_UM2 * self.area_um2


def _around(values: FloatArray) -> FloatArray:
    """Sum of the 3 x 3 squares around each, `(rows, columns)`; at the border those of the next full nine."""
    for axis in (0, 1):
        along = np.moveaxis(values, axis, 0)
        if len(along) < 3:
            sums = np.broadcast_to(along.sum(axis=0), along.shape)
        else:
            sums = np.pad(along[:-2] + along[1:-1] + along[2:], ((1, 1), (0, 0)), "edge")
        values = np.moveaxis(sums, 0, axis)
    return values


def _grown(sure: Bools, likely: Bools) -> Bools:
    """The sure squares, and the likely ones beside one of them."""
    beside = cv2.dilate(sure.astype(np.uint8), np.ones((3, 3), np.uint8))
    return sure | (likely & beside.astype(np.bool_))


def _stained(measures: SquareMeasures) -> tuple[FloatArray, FloatArray]:
    """Share of each square that is stained, and that is dark but belongs to no cell, `(rows, columns)`."""
    both = measures.on_cells.astype(np.int64) + measures.off_cells
    seen = both.reshape(-1, LEVELS) if measures.light is None else both[measures.light]
    light = _background_level(seen.sum(axis=0))
    pixels = np.maximum(both.sum(axis=2), 1)
    stained, dark = (np.arange(LEVELS) < light * share for share in (STAINED, DARK))
    strange = measures.off_cells[..., dark].sum(axis=2)
    return (both[..., stained].sum(axis=2) / pixels).astype(np.float32), (strange / pixels).astype(np.float32)


def _background_level(histogram: Counts2d) -> float:
    """Level of the light between the cells: the 98th percentile of what was scanned, in bins."""
    scanned = histogram.copy()
    scanned[_UNSCANNED // (256 // LEVELS)] = 0
    scanned = scanned if scanned.any() else histogram
    return float(np.searchsorted(np.cumsum(scanned), 0.98 * scanned.sum())) + 0.5


def shade(pixels: Pixels, counted: CountableMap) -> Pixels:
    """A picture with the squares that are not counted tinted in `COLOURS`.

    Args:
        pixels: `(h, w, 3) uint8 RGB`, the picture of the map at any size.
        counted: the map.
    """
    tints = np.array([COLOURS.get(name, (0, 0, 0)) for name in REASONS], np.uint8)
    shape = pixels.shape[1], pixels.shape[0]
    reasons = _enlarged(counted, shape)
    tinted = cv2.addWeighted(pixels, 1 - TINT, tints[reasons], TINT, 0)
    return cast(Pixels, np.where((reasons == COUNTABLE)[..., None], pixels, tinted))


def _enlarged(counted: CountableMap, size_wh: tuple[int, int]) -> npt.NDArray[np.int8]:
    width, height = counted.grid.size_wh
    x = (np.arange(size_wh[0]) + 0.5) * width / size_wh[0]
    y = (np.arange(size_wh[1]) + 0.5) * height / size_wh[1]
    columns = counted.grid.squares_of(np.stack([x, np.zeros_like(x)], axis=1))[1]
    rows = counted.grid.squares_of(np.stack([np.zeros_like(y), y], axis=1))[0]
    return counted.reasons[rows][:, columns]
