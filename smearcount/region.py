"""A region of interest drawn by a person: GeoJSON in, which points lie in it, and the area that counts refer to.

Coordinates are pixels of the picture at full resolution, x to the right and y downwards, as QuPath exports them.
Source: RFC 7946 (GeoJSON), sections 3.1 to 3.3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely.affinity import translate

from smearcount.counting import EDGE_INSET_PX, counted_mask, counting_frame
from smearcount.errors import ConfigError
from smearcount.geometry import FloatArray
from smearcount.records import Detections

__all__ = [
    "Region",
    "counted_area_um2",
    "counted_in_region",
    "parse_region",
    "polygons",
    "read_region",
    "region_file",
    "regions_in",
    "with_edge_of",
]

Bools = npt.NDArray[np.bool_]

_NUDGE_XY = (2.0**-20, 2.0**-21)
"""Pixels a point is moved to the right and down: one on an outline belongs to the region right of or below it, and a
point on the common edge of two regions to one of them. Far below the steps of `float32` in a picture."""

_REMEDY = "export the outline as GeoJSON polygons, as QuPath does, in pixels at full resolution"
_POINTS_AND_LINES = ("Point", "MultiPoint", "LineString", "MultiLineString")
_LEAST_PX = 64.0
"""Square pixels of a region: the smallest cell that is found has more."""

_MOST_BYTES = 200_000_000
_FARTHEST_PX = 1e9
"""No picture is that large; what is no number at all is not below it either."""


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

    def mask(self, shape_wh: tuple[int, int], size_wh: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
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
                f"less than a cell: are its coordinates in another unit? {_REMEDY}"
            )
        if inside is None:
            bounds = " ".join(f"{value:.0f}" for value in self.outline.bounds)
            raise ConfigError(
                f"{self.name} ({bounds}) lies outside the picture of {size_wh[0]} x {size_wh[1]} px; {_REMEDY}"
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


def regions_in(folder: Path) -> list[Path]:
    """The files of a folder of regions and its sub-folders, sorted.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(folder.rglob("*.geojson"))
    if not found:
        raise ConfigError(f"{folder}: holds no region; give a folder with NAME.geojson for each picture")
    return found


def region_file(folder: Path, name: str) -> Path:
    """The file with the region of a picture: `<stem>.geojson` or `<full name>.geojson`, below the same sub-folders.

    Raises:
        ConfigError: there is neither.
    """
    places = (Path(f"{name}.geojson"), Path(name).with_suffix(".geojson"))
    found = next((folder / place for place in places if (folder / place).is_file()), None)
    if found is None:
        raise ConfigError(
            f"{name}: has no region: expected {places[1].as_posix()} or {places[0].as_posix()} in the folder of "
            "regions; draw one, or leave the picture out"
        )
    return found


def read_region(path: Path, called: str = "") -> Region:
    """The region of a GeoJSON file.

    Args:
        path: of the file.
        called: what errors call it instead of its path.

    Raises:
        ConfigError: the file is missing, no GeoJSON, or holds no polygon with an area; names the file.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{called or path}: {path.stat().st_size / 1e6:.0f} MB are no outline; {_REMEDY}")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{called or path}: can't be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{called or path}: no GeoJSON ({error}); {_REMEDY}") from error
    return parse_region(content, called or str(path))


def parse_region(content: Any, name: str) -> Region:
    """The region of parsed GeoJSON: the union of every polygon in it; points and lines beside them are left out.

    What QuPath is told to ignore, annotations of a class such as `Ignore*`, is cut out of it.

    Args:
        content: a Polygon, MultiPolygon, GeometryCollection, Feature or FeatureCollection, or a list of them.
        name: of the file, for the errors.

    Raises:
        ConfigError: it is something else, or has no area.
    """
    try:
        ignored: list[dict[str, Any]] = []
        geometries = list(_geometries(content, name, ignored))
    except RecursionError as error:
        raise ConfigError(f"{name}: no GeoJSON (nested too deeply); {_REMEDY}") from error
    others = [each for each in geometries if each["type"] in _POINTS_AND_LINES]
    areal = [each for each in geometries if each["type"] not in _POINTS_AND_LINES]
    drawn = [polygon for each in areal for polygon in _drawn(each, name)]
    if others and not drawn:
        raise _no_region(others[0], name)
    cut = [polygon for each in ignored if each["type"] not in _POINTS_AND_LINES for polygon in _drawn(each, name)]
    crossing = sum(not each.is_valid for each in (*drawn, *cut))
    inner, outer = (shapely.union_all([_mended(each) for each in some]) for some in (cut, drawn))
    whole = polygons(outer.difference(inner))
    if whole is None:
        raise ConfigError(f"{name}: the region has no area; {_REMEDY}")
    words = "outlines that cross themselves" if crossing > 1 else "outline that crosses itself"
    notes = [f"{crossing} {words} mended"] if crossing else []
    if others:
        notes.append(f"{len(others)} {'points or lines' if len(others) > 1 else 'point or line'} left out")
    if cut:
        notes.append(f"{len(cut)} {'outlines' if len(cut) > 1 else 'outline'} of a class to ignore cut out")
    return Region(whole, tuple(notes), f"the region of {Path(name).name}")


def _geometries(content: Any, name: str, ignored: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every geometry that holds no others; a feature may be without one (RFC 7946, 3.2).

    Those of features to ignore are put into `ignored` instead.
    """
    if isinstance(content, list):
        for each in content:
            yield from _geometries(each, name, ignored)
        return
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Feature":
        if content.get("geometry") is not None:
            found = _geometries(content["geometry"], name, ignored)
            if _is_ignored(content):
                ignored.extend(found)
            else:
                yield from found
    elif kind in ("FeatureCollection", "GeometryCollection"):
        members = content.get("features" if kind == "FeatureCollection" else "geometries")
        if not isinstance(members, list):
            raise ConfigError(f"{name}: a {kind} without a list of members; {_REMEDY}")
        yield from _geometries(members, name, ignored)
    elif kind in ("Polygon", "MultiPolygon", *_POINTS_AND_LINES):
        yield content
    else:
        raise _no_region(content, name)


def _is_ignored(feature: dict[str, Any]) -> bool:
    """Whether QuPath gives a feature a class that it ignores, as a name or as a list of them."""
    properties = feature.get("properties")
    given = properties.get("classification") if isinstance(properties, dict) else None
    known = [given.get("name"), given.get("names")] if isinstance(given, dict) else [given]
    names = [name for each in known for name in (each if isinstance(each, list) else [each])]
    return any(isinstance(name, str) and name.startswith("Ignore") for name in names)


def _no_region(content: Any, name: str) -> ConfigError:
    kind = content.get("type") if isinstance(content, dict) else None
    found = f"a {kind}" if isinstance(kind, str) else f"{json.dumps(content, default=str)[:40]}"
    return ConfigError(
        f"{name}: expected a Polygon, MultiPolygon, Feature or FeatureCollection, got {found}; {_REMEDY}"
    )


def _drawn(geometry: dict[str, Any], name: str) -> list[shapely.Polygon]:
    """The polygons of a Polygon or MultiPolygon as they were drawn."""
    polygons = geometry.get("coordinates")
    if geometry["type"] == "Polygon":
        return [_polygon(polygons, name)]
    if not isinstance(polygons, list):
        raise ConfigError(f"{name}: a MultiPolygon without coordinates; {_REMEDY}")
    return [_polygon(rings, name) for rings in polygons]


def _mended(drawn: shapely.Polygon) -> shapely.Geometry:
    """A polygon without crossings; outline and holes are mended apart, or a hole outside would become an area."""
    if drawn.is_valid:
        return drawn
    rings = [shapely.Polygon(ring) for ring in (drawn.exterior, *drawn.interiors)]
    outer, *holes = shapely.make_valid(rings, method="structure", keep_collapsed=False)
    return cast(shapely.Geometry, outer.difference(shapely.union_all(holes)))


def _polygon(rings: Any, name: str) -> shapely.Polygon:
    if not isinstance(rings, list) or not rings:
        raise ConfigError(f"{name}: a Polygon without coordinates; {_REMEDY}")
    outer, *holes = (_ring(ring, name) for ring in rings)
    return shapely.Polygon(outer, holes)


def _ring(points: Any, name: str) -> list[tuple[float, float]]:
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        raise ConfigError(f"{name}: a ring that is no list of points of two finite numbers; {_REMEDY}")
    ring = [(float(point[0]), float(point[1])) for point in points]
    if len(set(ring)) < 3:
        raise ConfigError(f"{name}: a ring of {len(set(ring))} different points, expected at least 3; {_REMEDY}")
    return ring


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, Sequence)
        and len(point) >= 2
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in point[:2])
        and all(abs(value) < _FARTHEST_PX for value in point[:2])
    )


def polygons(shape: shapely.Geometry) -> shapely.Polygon | shapely.MultiPolygon | None:
    """The parts of a shape that have an area; None for none: an intersection may leave points and lines."""
    parts = [part for part in shapely.get_parts(shape, return_index=False) if part.geom_type.endswith("Polygon")]
    flat = [each for part in parts for each in shapely.get_parts(part) if each.area > 0]
    if not flat:
        return None
    return cast(shapely.Polygon, flat[0]) if len(flat) == 1 else shapely.MultiPolygon(flat)
