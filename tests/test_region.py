"""Regions whose areas are known from a formula, drawn by hand in GeoJSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from smearcount.arrays import FloatArray
from smearcount.counting import counted_mask
from smearcount.errors import ConfigError
from smearcount.geojson import parse_region, read_region, region_file
from smearcount.region import Region, counted_area_um2, counted_in_region


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: Any) -> dict[str, Any]:
    """As QuPath writes an annotation."""
    properties = {"objectType": "annotation", "classification": {"name": "Region*", "color": [150, 150, 150]}}
    return {"type": "Feature", "id": "a", "geometry": geometry, "properties": properties}


def region_of(content: Any) -> Region:
    return parse_region(content, "roi.geojson")


SQUARE = polygon(rectangle(10, 20, 100, 50))
TRIANGLE = polygon([[0, 0], [80, 0], [0, 60], [0, 0]])
DONUT = polygon(rectangle(0, 0, 90, 90), rectangle(30, 30, 30, 30))
SHAPES = [
    (SQUARE, 5000),
    (TRIANGLE, 2400),
    (DONUT, 7200),
    ({"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"], [rectangle(200, 0, 10, 10)]]}, 5100),
    # Two rectangles that share 50 x 50: the shared part counts once.
    ([SQUARE, polygon(rectangle(60, 20, 100, 50))], 7500),
    ({"type": "FeatureCollection", "features": [feature(SQUARE), feature(polygon(rectangle(200, 0, 10, 10)))]}, 5100),
    # The corner of the square cuts a triangle off the triangle, whose sides are 13/24 of it.
    ({"type": "GeometryCollection", "geometries": [SQUARE, TRIANGLE]}, 5000 + 2400 - 2400 * (13 / 24) ** 2),
    (feature(DONUT), 7200),
]


@pytest.mark.parametrize(("content", "area"), SHAPES)
def test_areas_are_those_of_the_formulas(content: Any, area: float) -> None:
    assert region_of(content).area_px((1000, 1000)) == pytest.approx(area)
    assert region_of(content).notes == ()


def test_a_ring_need_not_be_closed_and_may_run_either_way() -> None:
    for ring in ([[0, 0], [80, 0], [0, 60]], [[0, 60], [80, 0], [0, 0], [0, 60]], [[0, 0, 7], [80, 0, 7], [0, 60, 7]]):
        assert region_of(polygon(ring)).area_px((100, 100)) == pytest.approx(2400)


def test_points_of_a_triangle_and_a_donut() -> None:
    grid = np.stack(np.meshgrid(np.arange(0.5, 100), np.arange(0.5, 100)), axis=-1).reshape(-1, 2)
    x, y = grid.T
    # 3 x + 4 y = 240 is the long side; no pixel centre lies on it.
    assert np.array_equal(region_of(TRIANGLE).contains(grid), 3 * x + 4 * y < 240)
    hole = (x > 30) & (x < 60) & (y > 30) & (y < 60)
    inside = region_of(DONUT).contains(grid)
    assert np.array_equal(inside, (x < 90) & (y < 90) & ~hole)
    assert inside.sum() == 7200
    assert region_of(DONUT).contains(np.zeros((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match=r"expected \(N, 2\), got \(2,\)"):
        region_of(DONUT).contains(np.zeros(2))


def test_points_agree_with_the_slow_obvious_way() -> None:
    rng = np.random.default_rng(1)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(20, 100, (40, 1)) + 100
    points = rng.uniform(0, 200, (500, 2))
    shape = shapely.Polygon(ring)
    expected = [shape.contains(shapely.Point(*point)) for point in points]
    assert region_of(polygon(ring.tolist())).contains(points).tolist() == expected
    assert 50 < sum(expected) < 450


def test_a_point_on_a_common_edge_lies_in_one_of_the_regions() -> None:
    quarters = [region_of(polygon(rectangle(x, y, 50, 50))) for x in (0, 50) for y in (0, 50)]
    halves = [region_of(polygon(ring)) for ring in ([[0, 0], [100, 0], [100, 100]], [[0, 0], [100, 100], [0, 100]])]
    points = np.stack(np.meshgrid(np.arange(0, 100, 12.5), np.arange(0, 100, 12.5)), axis=-1).reshape(-1, 2)
    for parts in (quarters, halves):
        assert np.sum([part.contains(points) for part in parts], axis=0).tolist() == [1] * len(points)
    corners = np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    assert quarters[0].contains(corners).tolist() == [True, False, False, False]


# Inside the picture


def test_an_outline_at_full_resolution_is_scaled_to_the_level_that_is_read() -> None:
    region = region_of(polygon(rectangle(80, 40, 40, 20)))
    assert region.at(1) is region
    half = region.at(2)
    assert half.outline.bounds == (40, 20, 60, 30)
    assert half.notes == region.notes


def test_what_lies_outside_the_picture_is_left_out_and_noted() -> None:
    region = region_of(polygon(rectangle(80, 80, 40, 40)))
    assert region.area_px((100, 100)) == pytest.approx(400)
    inside = region.within((100, 100))
    assert inside.outline.area == pytest.approx(400)
    assert inside.notes == ("75.0% of the region lies outside the picture and is left out",)
    assert region.within((120, 120)) is region
    assert region.area_px((80, 80)) == 0
    for size in ((80, 80), (50, 50)):  # touching is not inside
        with pytest.raises(
            ConfigError, match=r"region of roi.geojson \(80 80 120 120\) lies outside the picture of .* pixels at full"
        ):
            region.within(size)


def test_intersection() -> None:
    common = region_of(SQUARE).intersection(region_of(polygon(rectangle(60, 0, 500, 500))))
    assert common is not None
    assert common.outline.area == pytest.approx(50 * 50)
    assert region_of(SQUARE).intersection(region_of(polygon(rectangle(110, 20, 10, 10)))) is None
    # A shape that touches in a line and shares an area elsewhere has the area only.
    comb = polygon([[0, 0], [300, 0], [300, 20], [60, 20], [60, 40], [0, 40]])
    shared = region_of(SQUARE).intersection(region_of(comb))
    assert shared is not None
    assert shared.outline.area == pytest.approx(50 * 20)


# Counting


def boxes_at(corners: npt.ArrayLike, side: float = 8) -> FloatArray:
    xy = np.asarray(corners, np.float32)
    return np.concatenate([xy, xy + side], axis=1)


def test_the_frame_cuts_the_region() -> None:
    # 0.5 um a pixel: the frame of 100 x 80 px is [2, 94) x [2, 74).
    whole = region_of(polygon(rectangle(0, 0, 100, 80)))
    corners = [[2, 2], [1.9, 2], [2, 1.9], [93.9, 73.9], [94, 10], [10, 74], [50, 50]]
    mask, area = counted_in_region(boxes_at(corners), (100, 80), 0.5, whole)
    assert mask.tolist() == [True, False, False, True, False, False, True]
    assert area == pytest.approx(92 * 72 * 0.25)
    half = region_of(polygon(rectangle(50, 0, 50, 80)))
    mask, area = counted_in_region(boxes_at(corners), (100, 80), 0.5, half)
    assert mask.tolist() == [False, False, False, True, False, False, True]
    assert area == pytest.approx(44 * 72 * 0.25)
    assert counted_area_um2((100, 80), 0.5, half) == area
    assert counted_area_um2((100, 80), 0.5, half, "all") == pytest.approx(50 * 80 * 0.25)
    assert counted_area_um2((100, 80), 0.5, None) == counted_area_um2((7, 7), 0.5, half) == 0


@pytest.mark.parametrize("rule", ["corner", "all"])
def test_a_region_of_the_whole_picture_changes_nothing(rule: str) -> None:
    rng = np.random.default_rng(2)
    corners = np.concatenate([rng.uniform(0, (300, 200), (400, 2)), [[0, 0], [2, 2], [0, 150], [299.9, 150]]])
    expected = counted_mask(boxes_at(corners), (300, 200), 0.15, rule)
    for region in (rectangle(0, 0, 300, 200), rectangle(-50, -50, 900, 900)):
        found = counted_in_region(boxes_at(corners), (300, 200), 0.15, region_of(polygon(region)), rule)
        assert np.array_equal(found[0], expected[0])
        assert found[1] == pytest.approx(expected[1])


def test_parts_sum_to_the_whole() -> None:
    rng = np.random.default_rng(3)
    boxes = boxes_at(np.concatenate([rng.uniform(0, 500, (3000, 2)), rng.integers(0, 500, (500, 2))]))
    size, um = (512, 512), 0.2
    cuts = [0, 100, 256, 300, 512]
    tiles = [
        polygon(rectangle(x, y, right - x, bottom - y))
        for x, right in zip(cuts, cuts[1:], strict=False)
        for y, bottom in zip(cuts, cuts[1:], strict=False)
    ]
    parts = [counted_in_region(boxes, size, um, region_of(tile)) for tile in tiles]
    whole, area = counted_mask(boxes, size, um)
    assert np.array_equal(np.sum([mask for mask, _ in parts], axis=0), whole)
    assert sum(area for _, area in parts) == pytest.approx(area)


def test_density_in_a_region_is_that_of_the_process() -> None:
    """A tenth of a triangle and a donut on a random field: the count is the density times the area."""
    rng = np.random.default_rng(4)
    boxes = boxes_at(rng.uniform(0, 2000, (40_000, 2)), 30)
    disc = [
        [1000 + 800 * math.cos(a), 1000 + 800 * math.sin(a)] for a in np.linspace(0, 2 * np.pi, 720, endpoint=False)
    ]
    hole = [[1000 + (x - 1000) / 2, 1000 + (y - 1000) / 2] for x, y in disc]
    for content in (polygon([[0, 0], [1500, 0], [0, 1200]]), polygon(disc, hole)):
        mask, area = counted_in_region(boxes, (2000, 2000), 0.2, region_of(content))
        assert mask.sum() == pytest.approx(area / 0.04 * 0.01, rel=0.03)
    assert area / 0.04 == pytest.approx(np.pi * (800**2 - 400**2), rel=1e-4)


def test_nowhere_to_count() -> None:
    boxes = boxes_at([[10, 10]])
    for found in (
        counted_in_region(boxes, (100, 100), 0.2, None),
        counted_in_region(boxes, (12, 12), 0.3, region_of(SQUARE)),
        counted_in_region(boxes, (100, 100), 0.2, region_of(polygon(rectangle(0, 0, 1, 1)))),
    ):
        assert (found[0].tolist(), found[1]) == ([False], 0.0)
    with pytest.raises(ValueError, match="edge rule"):
        counted_in_region(boxes, (100, 100), 0.2, region_of(SQUARE), "half")


# Files


def test_a_file_as_qupath_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "roi.geojson"
    content = {"type": "FeatureCollection", "features": [feature(SQUARE), feature(DONUT)]}
    for text in (json.dumps(content), "\ufeff" + json.dumps([feature(SQUARE), feature(DONUT)], indent=1)):
        path.write_text(text, encoding="utf-8")
        assert read_region(path).area_px((500, 500)) == pytest.approx(5000 + 7200 - 80 * 50 + 30 * 30)


@pytest.mark.parametrize(
    "classification", [{"name": "Ignore*"}, {"names": ["Ignore*", "left"]}, "Ignore*", {"name": "Ignore: dirt"}]
)
def test_what_qupath_ignores_is_cut_out(classification: Any) -> None:
    ignored = {**feature(polygon(rectangle(40, 30, 20, 20))), "properties": {"classification": classification}}
    beside = {**feature(polygon(rectangle(900, 0, 20, 20))), "properties": {"classification": classification}}
    dot = {**feature({"type": "Point", "coordinates": [3, 3]}), "properties": {"classification": classification}}
    region = region_of([ignored, feature(SQUARE), beside, dot])
    assert region.outline.area == pytest.approx(5000 - 400)
    assert region.notes == ("2 outlines of a class to ignore cut out",)
    assert region_of([feature(SQUARE), dot]).notes == ()
    for nothing in ([ignored], [ignored, feature(polygon(rectangle(45, 35, 5, 5)))]):
        with pytest.raises(ConfigError, match="no area"):
            region_of(nothing)


def test_a_picture_finds_its_file_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.geojson", "s/b.png.geojson", "s/b.geojson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert region_file(tmp_path, "a.jpg") == tmp_path / "a.geojson"
    assert region_file(tmp_path, "s/b.png") == tmp_path / "s" / "b.png.geojson"
    assert region_file(tmp_path, "s/b.jpg") == tmp_path / "s" / "b.geojson"
    with pytest.raises(
        ConfigError, match=r"s/c\.v2\.jpg: has no region: expected s/c\.v2\.geojson or s/c\.v2\.jpg\.geojson"
    ):
        region_file(tmp_path, "s/c.v2.jpg")
    with pytest.raises(ConfigError, match=r"c: has no region: expected c\.geojson in"):
        region_file(tmp_path, "c")
    with pytest.raises(ConfigError, match="pixels without a name .* image_id"):
        region_file(tmp_path, "")


def test_outlines_that_cross_themselves_are_mended_and_noted() -> None:
    bow = polygon([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]])
    region = region_of([bow, SQUARE])
    assert region.notes == ("1 outline that crosses itself mended",)
    assert region_of(bow).area_px((200, 200)) == pytest.approx(5000)
    assert region_of(bow).contains(np.array([[50.0, 20], [90, 50], [10, 50]])).tolist() == [False, True, True]
    assert region_of([bow, bow]).notes == ("2 outlines that cross themselves mended",)


@pytest.mark.parametrize(
    ("holes", "area"),
    [
        ([rectangle(200, 200, 50, 50)], 5000),
        ([rectangle(200, 200, 50, 50), rectangle(20, 30, 10, 10)], 4900),
        ([rectangle(60, 30, 100, 20)], 4000),
        ([rectangle(20, 30, 20, 20), rectangle(30, 40, 20, 20)], 5000 - 700),
        ([rectangle(0, 0, 60, 90), rectangle(60, 0, 60, 45)], 50 * 25),
    ],
    ids=["outside", "outside and inside", "over the edge", "over each other", "all but a corner"],
)
def test_a_hole_takes_away_and_never_adds(holes: list[list[list[float]]], area: float) -> None:
    region = region_of(polygon(rectangle(10, 20, 100, 50), *holes))
    assert region.area_px((1000, 1000)) == pytest.approx(area)
    assert region.notes == ("1 outline that crosses itself mended",)


def test_what_has_no_area_beside_polygons_is_left_out() -> None:
    point, line = ({"type": kind, "coordinates": [[1, 2], [3, 4]]} for kind in ("MultiPoint", "LineString"))
    nowhere = feature(None)
    assert region_of([nowhere, feature(SQUARE)]).notes == ()
    for others, words in (
        ([point], "1 point or line left out"),
        ([feature(line), point], "2 points or lines left out"),
    ):
        region = region_of({"type": "FeatureCollection", "features": [*others, nowhere, feature(SQUARE)]})
        assert region.area_px((1000, 1000)) == pytest.approx(5000)
        assert region.notes == (words,)
    with pytest.raises(ConfigError, match="got a LineString"):
        region_of([nowhere, line, point])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no GeoJSON"),
        ("{", "no GeoJSON"),
        ("\x80", "no GeoJSON"),
        ("[" * 100_000, "no GeoJSON"),
        ("[" * 600 + "]" * 600, "no "),
        ("[]", "no area"),
        ("null", "got null"),
        ("7", "got 7"),
        ("{}", "got {}"),
        ('{"type": "Point", "coordinates": [1, 2]}', "got a Point"),
        ('{"type": "LineString", "coordinates": [[1, 2], [3, 4]]}', "got a LineString"),
        ('{"type": 5}', 'got {"type": 5}'),
        ('{"type": "Feature", "geometry": null}', "no area"),
        ('{"type": "Feature", "geometry": 5}', "got 5"),
        ('{"type": "FeatureCollection"}', "without a list of members"),
        ('{"type": "FeatureCollection", "features": []}', "no area"),
        ('{"type": "GeometryCollection", "geometries": {}}', "without a list of members"),
        ('{"type": "MultiPolygon"}', "without coordinates"),
        ('{"type": "MultiPolygon", "coordinates": [5]}', "without coordinates"),
        ('{"type": "Polygon"}', "without coordinates"),
        ('{"type": "Polygon", "coordinates": []}', "without coordinates"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "2 different points"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0], [1, 1]]]}', "2 different points"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2]]]}', "no area"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, "1"], [2, 0]]]}', "two finite numbers"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1], [2, 0]]]}', "two finite numbers"),
        ('{"type": "Polygon", "coordinates": [["00", "11", "20"]]}', "two finite numbers"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [2, 0]]]}', "two finite numbers"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1e999, 1], [2, 0]]]}', "two finite numbers"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [true, 1], [2, 0]]]}', "two finite numbers"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1' + "0" * 400 + ", 1], [2, 0]]]}", "two finite numbers"),
    ],
)
def test_what_is_no_region_is_refused_with_its_name_and_a_remedy(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "roi.geojson"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_region(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert message.endswith("; export the outline as GeoJSON polygons, as QuPath does, in pixels at full resolution")


def test_a_region_in_shares_of_the_picture_is_refused() -> None:
    shares = parse_region(polygon(rectangle(0, 0, 1, 1)), "roi.geojson")
    with pytest.raises(ConfigError, match=r"the region of roi.geojson covers 1 square pixels .* another unit\?"):
        shares.within((640, 480))


def test_a_missing_file_and_a_wrong_outline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.geojson: can't be read .*; check the path"):
        read_region(tmp_path / "absent.geojson")
    for outline in (shapely.Polygon(), shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])):
        with pytest.raises(ValueError, match="valid polygons with an area"):
            Region(outline)
    with (tmp_path / "huge.geojson").open("wb") as file:
        file.truncate(300_000_000)  # sparse
    with pytest.raises(ConfigError, match="300 MB"):
        read_region(tmp_path / "huge.geojson")
