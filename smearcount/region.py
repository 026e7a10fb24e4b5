"""A region of interest drawn by a person: which points lie in it, and the area that counts refer to.

Coordinates are pixels of the picture, x to the right and y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely.affinity import translate

from smearcount.arrays import Bools, FloatArray, Pixels
from smearcount.counting import EDGE_INSET_PX, counted_mask, counting_frame
from smearcount.errors import ConfigError
from smearcount.records import Detections

__all__ = ["LARGE_UM2", "REMEDY", "SOUGHT_UM", "Region", "counted_area_um2", "counted_in_region", "polygons"]
__all__ += ["common_part", "sought_around", "with_edge_of"]

_NUDGE_XY = (2.0**-20, 2.0**-21)
"""Pixels a point is moved to the right and down: one on an outline belongs to the region right of or below it, and a
point on the common edge of two regions to one of them. Far below the steps of `float32` in a picture."""

REMEDY = "export the outline as GeoJSON polygons, as QuPath does, in pixels at full resolution"
_LEAST_PX = 64.0
"""Square pixels of a region: the smallest cell that is found has more."""

LARGE_UM2 = 250_000.0
"""Area from which a picture is a scan: judged square by square, and searched only around its region. Smaller ones are
fields that a person chose."""

SOUGHT_UM = 210.0
"""Around the region of a scan, where cells are sought too: its squares are judged together with those beside them."""


@dataclass(frozen=True, eq=False)
class Region:
    """The part of a picture that is counted.

    Attributes:
        outline: polygons in pixels, valid, with an area.
        name: of the file it was read from.
        notes: what was done to the drawn outline and a reader should know of.
    """

    outline: shapely.Polygon | shapely.MultiPolygon
    notes: tuple[str, ...] = ()
    name: str = "the region"

    def __post_init__(self) -> None:
        """Check that there is an area, and prepare it for many questions."""
        if not self.outline.is_valid or not self.outline.area > 0:
            raise ValueError(f"outline: expected valid polygons with an area, got {self.outline.wkt[:80]}")
        shapely.prepare(self.outline)

    def contains(self, points_xy: npt.NDArray[Any]) -> Bools:
        """Which of the points `(N, 2)`, x and y in pixels, lie inside, `(N,)`.

        A point on the outline belongs to the region to the right of it or below it.

        Raises:
            ValueError: the points are not `(N, 2)`.
        """
        if points_xy.ndim != 2 or points_xy.shape[1] != 2:
            raise ValueError(f"points: expected (N, 2), got {points_xy.shape}")
        x, y = (points_xy.astype(np.float64) + _NUDGE_XY).T
        return cast(Bools, shapely.contains_xy(self.outline, x, y))

    def touches(self, boxes_xyxy: npt.NDArray[Any]) -> Bools:
        """Which of the rectangles `(N, 4)`, in pixels, have a point in common with the region, `(N,)`."""
        return cast(Bools, shapely.intersects(self.outline, shapely.box(*boxes_xyxy.astype(np.float64).T)))

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre of mass, x and y, or a point of it where that lies outside."""
        centre = self.outline.centroid
        point = centre if self.outline.contains(centre) else self.outline.representative_point()
        return point.x, point.y

    def grown(self, px: float) -> Region:
        """The region and what lies up to so many pixels around it."""
        return Region(cast("shapely.Polygon | shapely.MultiPolygon", self.outline.buffer(px)), name=self.name)

    def mask(self, shape_wh: tuple[int, int], size_wh: tuple[int, int] | None = None) -> Pixels:
        """One inside, zero outside, `(h, w)`: of a picture of `size_wh` shown at another size, if that is given."""
        inside = np.zeros(shape_wh[::-1], np.uint8)
        factors = np.divide(shape_wh, size_wh or shape_wh)
        rings = [ring for part in shapely.get_parts(self.outline) for ring in (part.exterior, *part.interiors)]
        corners = [np.round((shapely.get_coordinates(ring) * factors - 0.5) * 16).astype(np.int32) for ring in rings]
        cv2.fillPoly(inside, corners, 1, shift=4)
        return inside

    def area_px(self, size_wh: tuple[int, int]) -> float:
        """Exact area in square pixels of what lies inside a picture of `size_wh`."""
        return float(shapely.box(0, 0, *size_wh).intersection(self.outline).area)

    def at(self, downsample: float) -> Region:
        """The same part of a picture of which each pixel is `downsample` pixels of the full resolution."""
        if downsample == 1:
            return self
        outline = shapely.transform(self.outline, lambda points: points / downsample)
        return replace(self, outline=outline)

    def moved(self, x: float, y: float) -> Region:
        """The same outline so many pixels further to the right and down."""
        return replace(self, outline=translate(self.outline, x, y))

    def within(self, size_wh: tuple[int, int]) -> Region:
        """The part that lies inside a picture of `size_wh`, with a note where that is not all of it.

        Raises:
            ConfigError: next to nothing lies inside.
        """
        inside = polygons(shapely.box(0, 0, *size_wh).intersection(self.outline))
        if inside is not None and inside.area < _LEAST_PX:
            raise ConfigError(
                f"{self.name} covers {inside.area:.3g} square pixels of a picture of {size_wh[0]} x {size_wh[1]} px, "
                f"less than a cell: are its coordinates in another unit? {REMEDY}"
            )
        if inside is None:
            bounds = " ".join(f"{value:.0f}" for value in self.outline.bounds)
            raise ConfigError(
                f"{self.name} ({bounds}) lies outside the picture of {size_wh[0]} x {size_wh[1]} px; {REMEDY}"
            )
        lost = 1 - inside.area / self.outline.area
        if lost < 1e-9:
            return self
        note = f"{lost:.1%} of the region lies outside the picture and is left out"
        return replace(self, outline=inside, notes=(*self.notes, note))

    def intersection(self, other: Region) -> Region | None:
        """What both have in common; None for nothing."""
        common = polygons(self.outline.intersection(other.outline))
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return None if common is None else Region(common, notes)


def counted_in_region(
    boxes: FloatArray, size_wh: tuple[int, int], um_per_px: float, region: Region | None, rule: str = "corner"
) -> tuple[Bools, float]:
    """Which cells of a region enter the counts, and the area in square micrometres that the counts refer to.

    A cell counts when the top-left corner of its box lies in the region and in the counting frame of the picture (see
    `counting.counted_mask`): the frame stays unbiased, since every cell has one such corner, wherever the region is
    drawn. The area is that of the region within the frame.

    Args:
        boxes: `(N, 4) float32` x_min, y_min, x_max, y_max in pixels.
        size_wh: width and height of the picture.
        um_per_px: its scale.
        region: where to count; None for nowhere.
        rule: `corner`, or `all` for the whole picture as the frame.

    Raises:
        ValueError: the rule is unknown.
    """
    mask, _ = counted_mask(boxes, size_wh, um_per_px, rule)
    inside = np.zeros(len(boxes), np.bool_) if region is None else mask & region.contains(boxes[:, :2])
    return inside, counted_area_um2(size_wh, um_per_px, region, rule)


def counted_area_um2(size_wh: tuple[int, int], um_per_px: float, region: Region | None, rule: str = "corner") -> float:
    """The area in square micrometres that the counts of a region refer to: what of it lies in the frame of the picture.

    Args:
        size_wh: width and height of the picture.
        um_per_px: its scale.
        region: where to count; None for nowhere.
        rule: `corner`, or `all` for the whole picture as the frame.
    """
    if region is None:
        return 0.0
    frame = shapely.box(*counting_frame(size_wh, um_per_px, rule))
    return float(frame.intersection(region.outline).area) * um_per_px**2


def common_part(regions: Sequence[Region | None]) -> Region | None:
    """What some regions have in common; None for nothing, as which a region that is None counts."""
    common, *others = regions
    for other in others:
        common = common.intersection(other) if common is not None and other is not None else None
    return common


@lru_cache(maxsize=4)
def sought_around(region: Region | None, size_wh: tuple[int, int], um_per_px: float) -> Region | None:
    """The part of a scan in which cells are sought for a region of it; None for all of it, as of every field.

    It is asked for several times a picture, and an outline of thousands of corners takes half a second to grow.
    """
    if region is None or size_wh[0] * size_wh[1] * um_per_px**2 < LARGE_UM2:
        return None
    sought = region.grown(SOUGHT_UM / um_per_px)
    return None if sought.outline.covers(shapely.box(0, 0, *size_wh)) else sought


def with_edge_of(cells: Detections, view: Region | None) -> Detections:
    """The cells of a picture, those that reach the edge of a part of it marked as lying at the edge."""
    if view is None or not len(cells):
        return cells
    x_min, y_min, x_max, y_max = cells.boxes.T.astype(np.float64)
    x, y = (x_min + x_max) / 2, (y_min + y_max) / 2
    inner = view.outline.buffer(-EDGE_INSET_PX)
    sides = ((x_min, y), (x_max, y), (x, y_min), (x, y_max))
    reached = ~np.logical_and.reduce([shapely.contains_xy(inner, *side) for side in sides])
    return Detections(cells.boxes, cells.scores, cells.kinds, cells.at_edge | reached)


def polygons(shape: shapely.Geometry) -> shapely.Polygon | shapely.MultiPolygon | None:
    """The parts of a shape that have an area; None for none: an intersection may leave points and lines."""
    parts = [part for part in shapely.get_parts(shape, return_index=False) if part.geom_type.endswith("Polygon")]
    flat = [each for part in parts for each in shapely.get_parts(part) if each.area > 0]
    if not flat:
        return None
    return cast(shapely.Polygon, flat[0]) if len(flat) == 1 else shapely.MultiPolygon(flat)
