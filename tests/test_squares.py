"""Measures of squares against drawn cells whose number, area and overlap are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import shapely
from conftest import lying_on

from smearcount.arrays import FloatArray, Pixels
from smearcount.countable import judge_squares
from smearcount.geometry import centres
from smearcount.images import ArraySource
from smearcount.records import Detections
from smearcount.region import SOUGHT_UM, Region
from smearcount.squares import _RING, LEVELS, measure_squares, square_grid

Draw = Callable[..., Any]
Cells = Callable[..., Detections]
UM_PER_PX = 0.25
SIDE_PX = 240


@pytest.mark.parametrize("size_wh", [(1680, 1680), (1000, 333), (20, 2000), (1, 1), (3, 900)])
@pytest.mark.parametrize("um_per_px", [0.02, 0.17, 2.0])
def test_squares_cover_the_picture_without_remainder(size_wh: tuple[int, int], um_per_px: float) -> None:
    grid = square_grid(size_wh, um_per_px)
    assert grid.size_wh == size_wh
    assert grid.areas_um2.shape == grid.shape
    assert grid.areas_um2.sum() == pytest.approx(size_wh[0] * size_wh[1] * um_per_px**2)
    for edges, length in ((grid.x_edges, size_wh[0]), (grid.y_edges, size_wh[1])):
        assert edges[0] == 0
        assert np.diff(edges).min() >= 1
        assert np.ptp(np.diff(edges)) <= 1
        if 90 < length * um_per_px < 60 * length:
            assert 40 < np.diff(edges).mean() * um_per_px < 75


def test_each_point_lies_in_one_square() -> None:
    grid = square_grid((1000, 700), 0.2)
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(grid.x_edges[:-1], grid.y_edges[:-1]), axis=-1).reshape(-1, 2)
    points = np.concatenate([rng.uniform(0, (1000, 700), (200, 2)), corners])
    weights = rng.uniform(0, 1, len(points))
    rows, columns = grid.squares_of(points)
    total = np.zeros(grid.shape)
    for (x, y), row, column, weight in zip(points, rows, columns, weights, strict=True):
        assert grid.x_edges[column] <= x < grid.x_edges[column + 1]
        assert grid.y_edges[row] <= y < grid.y_edges[row + 1]
        total[row, column] += weight
    assert grid.total(points, weights) == pytest.approx(total)
    outside = np.array([[-5.0, -5.0], [1000.0, 700.0], [2000.0, 10.0]])
    assert [part.tolist() for part in grid.squares_of(outside)] == [[0, 1, 0], [0, 2, 2]]


# Overlap


def discs(circles: npt.ArrayLike) -> FloatArray:
    x, y, r = np.asarray(circles, float).T
    return np.stack([x - r, y - r, x + r, y + r], axis=1).astype(np.float32)


def share_of_lens(apart: float) -> float:
    """Share of a disc of radius 1 under an equal one (Weisstein, MathWorld, eq. 15)."""
    return float((2 * np.arccos(apart / 2) - apart / 2 * np.sqrt(4 - apart**2)) / np.pi)


def test_equal_discs_overlap_from_a_tenth_on() -> None:
    distances = np.linspace(0.01, 2.2, 120)
    for apart in distances:
        pair = discs([[100, 100, 50], [100 + 50 * apart * 0.6, 100 + 50 * apart * 0.8, 50]])
        expected = apart < 2 and share_of_lens(apart) > 0.1
        assert lying_on(pair).tolist() == [expected] * 2, apart
    assert share_of_lens(1.61) == pytest.approx(0.1, abs=0.001)


def test_a_small_disc_on_a_large_one() -> None:
    # Wholly inside: all of the small one is shared, and (10 / 50)**2 = 4 % of the large one, or 36 % of one of 30.
    assert lying_on(discs([[100, 100, 50], [110, 100, 10]])).tolist() == [False, True]
    assert lying_on(discs([[100, 100, 50], [100, 100, 30]])).tolist() == [True, True]
    assert lying_on(discs([[100, 100, 50], [100, 100, 50]])).tolist() == [True, True]


def test_cells_that_touch_do_not_overlap_though_their_boxes_do() -> None:
    # Boxes 12 % wider than the cells, on a diagonal.
    step = 40 / np.sqrt(2)
    row = discs([[50 + n * step, 50 + n * step, 20 * 1.12] for n in range(6)])
    assert not lying_on(row).any()
    assert lying_on(np.zeros((0, 4), np.float32)).shape == (0,)


def test_overlap_agrees_with_counted_pixels() -> None:
    rng = np.random.default_rng(2)
    circles = np.column_stack([rng.uniform(60, 540, (60, 2)), rng.uniform(15, 45, 60)])
    y, x = np.mgrid[:600, :600] + 0.5
    masks = [np.hypot(x - cx, y - cy) < r for cx, cy, r in circles]
    shares = np.array([[(a & b).sum() / a.sum() for b in masks] for a in masks])
    np.fill_diagonal(shares, 0)
    sure = ~((shares > 0.08) & (shares < 0.12)).any(axis=1)
    assert sure.sum() > 30
    assert np.array_equal(lying_on(discs(circles))[sure], (shares > 0.1).any(axis=1)[sure])


# Measures


def test_measures_of_a_drawn_smear(scatter_discs: Draw, cells: Cells) -> None:
    drawn = scatter_discs((1200, 960), 7.5 / UM_PER_PX, 3)
    found = cells(drawn.boxes)
    measures = measure_squares(drawn, UM_PER_PX, found)
    assert measures.grid.shape == (4, 5)
    assert measures.red.sum() == len(found)
    assert measures.red_area_um2.sum() == pytest.approx(len(found) * np.pi / 4 * 7.5**2, rel=1e-4)
    assert not measures.overlapping.any()
    assert measures.sharpness.min() > 1
    at = drawn.discs[:, :2]
    inside = (at[:, 0] >= 480) & (at[:, 0] < 720) & (at[:, 1] >= 240) & (at[:, 1] < 480)
    assert measures.red[1, 2] == inside.sum() > 20
    # 60 x 60 pixels of 1 um each; everything dark lies in boxes, and everything outside is background.
    assert (measures.on_cells.sum(axis=2) + measures.off_cells.sum(axis=2) == 3600).all()
    background = 214 // (256 // LEVELS)
    assert measures.off_cells[..., background].sum() == measures.off_cells.sum()
    dark = measures.on_cells[..., : 160 * LEVELS // 256].sum(axis=2)
    assert dark.sum() == pytest.approx(len(found) * np.pi / 4 * 7.5**2, rel=0.05)


def test_white_cells_and_platelets_are_no_red_cells(scatter_discs: Draw, cells: Cells) -> None:
    drawn = scatter_discs((720, 720), 7.5 / UM_PER_PX, 3, mixed=True)
    measures = measure_squares(drawn, UM_PER_PX, cells(drawn.boxes, list(drawn.kinds)))
    assert measures.red.sum() == drawn.kinds.count("rbc") < len(drawn.kinds)
    assert measures.off_cells[..., : 160 * LEVELS // 256].sum() == 0


def test_without_cells_everything_is_off_cells(scatter_discs: Draw, cells: Cells) -> None:
    drawn = scatter_discs((480, 480), 7.5 / UM_PER_PX)
    measures = measure_squares(drawn, UM_PER_PX, cells(np.zeros((0, 4))))
    assert measures.red.sum() == measures.on_cells.sum() == measures.overlapping.sum() == 0
    assert measures.off_cells.sum() == 4 * 3600


def test_magnification_has_little_part_in_it(scatter_discs: Draw, cells: Cells) -> None:
    drawn = scatter_discs((1200, 960), 7.5 / UM_PER_PX, 3)
    first = measure_squares(drawn, UM_PER_PX, cells(drawn.boxes))
    twice = ArraySource(cv2.resize(drawn.pixels, (2400, 1920), interpolation=cv2.INTER_CUBIC).astype(np.uint8))
    second = measure_squares(twice, UM_PER_PX / 2, cells(drawn.boxes * 2))
    for name in ("red", "overlapping"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert second.red_area_um2 == pytest.approx(first.red_area_um2, rel=1e-4)
    dark = [each.on_cells[..., : 160 * LEVELS // 256].sum(axis=2) for each in (first, second)]
    assert dark[1] == pytest.approx(dark[0], rel=0.05)


def test_each_pixel_is_read_once_in_small_parts(scatter_discs: Draw, cells: Cells) -> None:
    drawn = scatter_discs((2640, 720), 7.5 / UM_PER_PX)
    seen = np.zeros((720, 2640), int)

    class Source:
        size_wh = drawn.size_wh

        def read(self, x: int, y: int, w: int, h: int) -> Pixels:
            assert w * h <= 8 * SIDE_PX**2
            seen[y : y + h, x : x + w] += 1
            read: Pixels = drawn.read(x, y, w, h)
            return read

    whole = measure_squares(Source(), UM_PER_PX, cells(drawn.boxes))
    assert (seen == 1).all()
    assert whole.grid.shape == (3, 11)


@pytest.mark.parametrize("corner", [(0, 0), (1500, 1100), (2640, 2160)])
def test_a_region_is_judged_as_within_the_whole(
    scatter_discs: Draw, cells: Cells, corner: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd at the border, where a square is judged with those up to two away; what is far is not read."""
    monkeypatch.setattr("smearcount.squares._LIGHT_SQUARES", 1)
    left, top = corner
    drawn = scatter_discs((2880, 2400), 7.5 / UM_PER_PX, 3)
    crowd = np.abs(centres(drawn.boxes) - corner).max(axis=1) < 700
    found = cells(np.concatenate([drawn.boxes, drawn.boxes[crowd] + 3]))
    region = Region(shapely.box(left, top, left + 230, top + 230))
    reads: list[int] = []

    class Source:
        size_wh = drawn.size_wh

        def read(self, x: int, y: int, w: int, h: int) -> Pixels:
            reads.append(w * h)
            read: Pixels = drawn.read(x, y, w, h)
            return read

    measures = measure_squares(Source(), UM_PER_PX, found, region)
    assert sum(reads) < 0.5 * 2880 * 2400
    part, whole = judge_squares(measures), judge_squares(measure_squares(drawn, UM_PER_PX, found))
    judged = part.grid.touching(region)
    assert np.array_equal(part.reasons[judged], whole.reasons[judged])
    assert (part.reasons[judged] > 0).any()
    assert (part.reasons[~judged] == 0).all()
    assert sum(part.shares().values()) == pytest.approx(1)
    assert part.shares()["countable"] == pytest.approx((part.reasons[judged] == 0).mean(), abs=0.01)


def add_haze(drawn: Any, left_px: int) -> None:
    """Darken the glass of a drawn picture from a column on."""
    bare = (drawn.pixels == drawn.pixels[0, 0]).all(axis=2)
    bare[:, :left_px] = False
    drawn.pixels[bare] = 171


def test_a_region_that_ends_within_a_large_square_is_judged_as_within_the_whole(
    scatter_discs: Draw, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of 63.75 um; from the second one on there is haze, which only its neighbours' neighbours are sure of."""
    # But for one, no square is measured beside those that belong to the region; how light the picture is, is given.
    monkeypatch.setattr("smearcount.squares._LIGHT_SQUARES", 1)
    monkeypatch.setattr("smearcount.countable._background_level", lambda _: 53.5)
    drawn = scatter_discs((2040, 2040), 30, 3)
    add_haze(drawn, 510)
    found, region = cells(drawn.boxes), Region(shapely.box(300, 900, 514, 1100))
    part, whole = (judge_squares(measure_squares(drawn, UM_PER_PX, found, each)) for each in (region, None))
    judged = part.grid.touching(region)
    assert set(whole.reasons[judged].tolist()) == {0, 3}
    assert np.array_equal(part.reasons[judged], whole.reasons[judged])


def test_a_region_is_judged_by_the_light_of_the_picture(scatter_discs: Draw, cells: Cells) -> None:
    """Haze all around it, which would be taken for glass."""
    drawn = scatter_discs((2880, 2880), 30, 3)
    add_haze(drawn, 960)
    found, region = cells(drawn.boxes), Region(shapely.box(2000, 900, 2300, 1300))
    part, whole = (judge_squares(measure_squares(drawn, UM_PER_PX, found, each)) for each in (region, None))
    judged = part.grid.touching(region)
    assert (whole.reasons[judged] == 3).all()
    assert np.array_equal(part.reasons[judged], whole.reasons[judged])


@pytest.mark.parametrize("um_per_px", [0.1, 1.0])
def test_all_that_a_region_of_a_scan_is_judged_by_is_searched(um_per_px: float) -> None:
    # From the far side of its squares to that of the ones measured around them, or of the picture.
    for length in range(30, 2000):
        edges = square_grid((round(length / um_per_px), 40), um_per_px).x_edges
        assert (edges[_RING + 1 :] - edges[: -_RING - 1]).max(initial=0) * um_per_px <= SOUGHT_UM
