"""Regions of interest from GeoJSON files, as QuPath exports them.

Source: RFC 7946 (GeoJSON), sections 3.1 to 3.3.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import shapely

from smearcount.errors import ConfigError, UsageError
from smearcount.region import REMEDY, Region, polygons

__all__ = ["check_regions", "check_shared", "parse_region", "read_region", "region_file"]

_POINTS_AND_LINES = ("Point", "MultiPoint", "LineString", "MultiLineString")
_MOST_BYTES = 200_000_000
_FARTHEST_PX = 1e9
"""No picture is that large; what is no number at all is not below it either."""


def check_regions(folder: Path) -> None:
    """Refuse a folder that holds no region, in sub-folders neither.

    Raises:
        ConfigError: there is none.
    """
    names = (name for _, _, names in os.walk(folder, followlinks=True) for name in names)
    if not any(name.endswith(".geojson") for name in names):
        raise ConfigError(f"{folder}: holds no region; give a folder with NAME.geojson for each picture")


def region_file(folder: Path, name: str) -> Path:
    """The file with the region of a picture: `<stem>.geojson` or `<full name>.geojson`, below the same sub-folders.

    Raises:
        ConfigError: there is neither, or the picture has no name.
    """
    if not Path(name).name:
        raise ConfigError("pixels without a name have no region in a folder of regions; name them by image_id")
    places = dict.fromkeys((Path(name).with_suffix(".geojson"), Path(f"{name}.geojson")))
    found = next((folder / place for place in reversed(places) if (folder / place).is_file()), None)
    if found is None:
        expected = " or ".join(place.as_posix() for place in places)
        raise ConfigError(
            f"{name}: has no region: expected {expected} in the folder of regions; draw one, or leave the picture out"
        )
    return found


def check_shared(regions: Path | None, pictures: Iterable[Path]) -> None:
    """Refuse pictures of several folders that would be counted in one region, since it is found by their names alone.

    Args:
        regions: a folder of them; nothing is refused where it is a file, or None.
        pictures: files.

    Raises:
        UsageError: two pictures of one name, of different folders, have a region.
    """
    if regions is None or not regions.is_dir():
        return
    first: dict[Path, Path] = {}
    for picture in pictures:
        with suppress(ConfigError):  # one without a region fails when it is analysed
            region = region_file(regions, picture.name)
            other = first.setdefault(region, picture)
            if os.path.realpath(other.parent) != os.path.realpath(picture.parent):
                raise UsageError(
                    f"{other} and {picture}: would both be counted in {region}; give the pictures of one folder at a "
                    "time, each with its own --region, or the folder above them to `smearcount batch --recursive`"
                )


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
            raise ConfigError(f"{called or path}: {path.stat().st_size / 1e6:.0f} MB are no outline; {REMEDY}")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{called or path}: can't be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{called or path}: no GeoJSON ({error}); {REMEDY}") from error
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
        raise ConfigError(f"{name}: no GeoJSON (nested too deeply); {REMEDY}") from error
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
        raise ConfigError(f"{name}: the region has no area; {REMEDY}")
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
            raise ConfigError(f"{name}: a {kind} without a list of members; {REMEDY}")
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
    return ConfigError(f"{name}: expected a Polygon, MultiPolygon, Feature or FeatureCollection, got {found}; {REMEDY}")


def _drawn(geometry: dict[str, Any], name: str) -> list[shapely.Polygon]:
    """The polygons of a Polygon or MultiPolygon as they were drawn."""
    polygons = geometry.get("coordinates")
    if geometry["type"] == "Polygon":
        return [_polygon(polygons, name)]
    if not isinstance(polygons, list):
        raise ConfigError(f"{name}: a MultiPolygon without coordinates; {REMEDY}")
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
        raise ConfigError(f"{name}: a Polygon without coordinates; {REMEDY}")
    outer, *holes = (_ring(ring, name) for ring in rings)
    return shapely.Polygon(outer, holes)


def _ring(points: Any, name: str) -> list[tuple[float, float]]:
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        raise ConfigError(f"{name}: a ring that is no list of points of two finite numbers; {REMEDY}")
    ring = [(float(point[0]), float(point[1])) for point in points]
    if len(set(ring)) < 3:
        raise ConfigError(f"{name}: a ring of {len(set(ring))} different points, expected at least 3; {REMEDY}")
    return ring


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, Sequence)
        and len(point) >= 2
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in point[:2])
        and all(abs(value) < _FARTHEST_PX for value in point[:2])
    )
