"""The countable area of drawn slides whose parts are known, and each rule on measures made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from conftest import Cells, Draw

from smearcount.arrays import Bools, Pixels
from smearcount.countable import COLOURS, REASONS, TINT, CountableMap, countable_map, judge_squares, shade
from smearcount.geometry import centres
from smearcount.images import ArraySource
from smearcount.records import Detections
from smearcount.squares import LEVELS, SquareMeasures, square_grid

UM_PER_PX = 0.25
SIDE_PX = 240  # 60 um
CODE = {name: code for code, name in enumerate(REASONS)}


def squares_at(found: CountableMap, reason: str) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in np.argwhere(found.reasons == CODE[reason])}


def block(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(row, column) for row in rows for column in columns}


# Rules


def measures(shape: tuple[int, int] = (7, 7), **changes: Any) -> SquareMeasures:
    """A monolayer: 40 red cells a square on half of its area, in focus, nothing else; changes fill or replace it."""
    full = np.ones(shape, np.float32)
    on_cells, off_cells = (np.zeros((*shape, LEVELS), np.uint16) for _ in range(2))
    on_cells[..., 30] = on_cells[..., 56] = off_cells[..., 56] = 1200
    values: dict[str, Any] = {
        "grid": square_grid((shape[1] * SIDE_PX, shape[0] * SIDE_PX), UM_PER_PX),
        **{"red": 40 * full, "red_area_um2": 1800 * full, "overlapping": 4 * full, "sharpness": full},
        **{"on_cells": on_cells, "off_cells": off_cells},
    }
    return SquareMeasures(**{**values, **changes})


def changed(base: SquareMeasures, at: Any, **values: float) -> SquareMeasures:
    """The same with some measures of some squares replaced."""
    fields = {name: getattr(base, name).copy() for name in values}
    for name, value in values.items():
        fields[name][at] = value
    return replace(base, **fields)


def recoloured(base: SquareMeasures, at: Any, on: dict[int, int], off: dict[int, int]) -> SquareMeasures:
    """The same with other grey levels in some squares: pixels by bin."""
    fields = {"on_cells": base.on_cells.copy(), "off_cells": base.off_cells.copy()}
    for field, levels in zip(fields.values(), (on, off), strict=True):
        field[at] = 0
        for level, pixels in levels.items():
            field[(*at, level)] = pixels
    return replace(base, **fields)


CENTRE = np.s_[2:5, 2:5]
NINE = block(range(2, 5), range(2, 5))


def test_a_monolayer_is_countable() -> None:
    found = judge_squares(measures())
    assert found.shares() == {name: float(name == "countable") for name in REASONS}


def test_background() -> None:
    bare = recoloured(changed(measures(), CENTRE, red=0, red_area_um2=0, overlapping=0), CENTRE, {}, {56: 3600})
    # The middle has no cells around it, and the bare squares beside it go with it.
    assert squares_at(judge_squares(bare), "background") == NINE
    assert squares_at(judge_squares(bare), "countable") == block(range(7), range(7)) - NINE
    # One empty square in a monolayer is a gap between its cells and part of the density.
    one = np.s_[3:4, 3:4]
    gap = recoloured(changed(measures(), one, red=0, red_area_um2=0, overlapping=0), one, {}, {56: 3600})
    assert judge_squares(gap).shares()["countable"] == 1


def test_too_thick_by_overlap() -> None:
    thick = changed(measures(), CENTRE, overlapping=30)
    assert squares_at(judge_squares(thick), "too thick") == NINE
    assert judge_squares(changed(measures(), CENTRE, overlapping=19)).shares()["too thick"] == 0
    # A crowd of one square among loose ones is chance.
    assert judge_squares(changed(measures(), np.s_[3, 3], overlapping=40)).shares()["too thick"] == 0


def test_too_thick_by_cover_and_by_stain() -> None:
    covered = changed(measures(), CENTRE, red_area_um2=0.85 * 3600)
    assert squares_at(judge_squares(covered), "too thick") == NINE
    # A layer so thick that no cell is found in it is no debris.
    solid = recoloured(changed(measures(), CENTRE, red=0, red_area_um2=0, overlapping=0), CENTRE, {}, {20: 3600})
    assert (3, 3) in squares_at(judge_squares(solid), "too thick")
    assert squares_at(judge_squares(solid), "too thick") == NINE


@pytest.mark.parametrize(("share", "thick"), [(0.88, False), (0.96, True)])
def test_a_layer_without_gaps_is_too_thick(share: float, thick: bool) -> None:
    """Stained up to where hardly any glass is left, whatever the cells found there cover."""
    pixels = round(share * 3600)
    layer = recoloured(measures(), CENTRE, {45: pixels}, {56: 3600 - pixels})
    assert squares_at(judge_squares(layer), "too thick") == (NINE if thick else set())
    assert thick or judge_squares(layer).shares()["countable"] == 1


def test_too_thin() -> None:
    # 20 cells in 100 x 75 um are 9.6 in a square.
    thin = changed(measures(), CENTRE, red=9, red_area_um2=400, overlapping=0)
    assert squares_at(judge_squares(thin), "too thin") == NINE
    assert judge_squares(changed(measures(), np.s_[:], red=9, overlapping=0)).shares()["too thin"] == 1
    assert judge_squares(changed(measures(), np.s_[:], red=10, overlapping=0)).shares()["countable"] == 1


def test_out_of_focus() -> None:
    blurred = changed(measures(), CENTRE, sharpness=0.25)
    assert squares_at(judge_squares(blurred), "out of focus") == NINE
    assert judge_squares(changed(measures(), CENTRE, sharpness=0.35)).shares()["countable"] == 1
    # A gap without anything to see has no focus.
    one = np.s_[3:4, 3:4]
    gap = recoloured(changed(measures(), one, sharpness=0, red=0, overlapping=0), one, {}, {56: 3600})
    assert judge_squares(gap).shares()["countable"] == 1


@pytest.mark.parametrize(("dark", "level", "expected"), [(180, 30, True), (100, 30, False), (1200, 45, False)])
def test_debris_is_dark_and_belongs_to_no_cell(dark: int, level: int, expected: bool) -> None:
    one = np.s_[3:4, 3:4]
    speck = recoloured(measures(), one, {30: 1200, 56: 1200}, {level: dark, 56: 1200 - dark})
    # Haze of level 45 of 56 is no debris, however much there is of it.
    assert squares_at(judge_squares(speck), "debris") == ({(3, 3)} if expected else set())
    on_a_cell = recoloured(measures(), one, {30: 1200 + dark, 56: 1200 - dark}, {56: 1200})
    assert judge_squares(on_a_cell).shares()["countable"] == 1


def test_the_first_reason_that_holds_is_given() -> None:
    all_wrong = changed(measures(), np.s_[:], overlapping=30, sharpness=0.1)
    assert judge_squares(all_wrong).shares()["out of focus"] == 1
    thick_and_dirty = recoloured(
        changed(measures(), np.s_[:], overlapping=30), np.s_[0:7, 0:7], {30: 1200, 56: 1200}, {20: 600, 56: 600}
    )
    assert judge_squares(thick_and_dirty).shares()["too thick"] == 1


def test_what_was_not_scanned_is_background_and_does_not_brighten_the_rest() -> None:
    empty = np.s_[:, 3:]
    dim = recoloured(measures(), np.s_[0:7, 0:7], {20: 1200, 50: 1200}, {50: 1200})
    base = changed(dim, empty, red=0, red_area_um2=0, overlapping=0, sharpness=0)
    found = judge_squares(recoloured(base, (slice(None), slice(3, None)), {}, {63: 3600}))
    assert squares_at(found, "background") == block(range(7), range(3, 7))
    assert squares_at(found, "countable") == block(range(7), range(3))
    nothing = recoloured(changed(measures(), np.s_[:], red=0, red_area_um2=0), np.s_[0:7, 0:7], {}, {63: 3600})
    assert judge_squares(changed(nothing, np.s_[:], overlapping=0)).shares()["background"] == 1


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.transpose, lambda a: np.rot90(a, 1)])
def test_turning_the_picture_turns_the_map(turn: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(5)
    base = measures()
    factors = {
        "red": (0.1, 0.1, 0.5),
        "red_area_um2": (0.1, 1),
        "overlapping": (0.1, 1, 3),
        "sharpness": (0.1, 1, 1, 1),
    }
    names = tuple(factors)
    random = {n: (getattr(base, n) * rng.choice(values, (7, 7))).astype(np.float32) for n, values in factors.items()}
    dirty = rng.choice([0, 0, 0, 300], (7, 7))
    off_cells = base.off_cells.copy()
    off_cells[..., 20], off_cells[..., 56] = dirty, 1200 - dirty
    first = replace(base, **random, off_cells=off_cells)

    def turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.ndim == 2:
            return np.asarray(turn(array))
        return np.stack([turn(array[..., level]) for level in range(LEVELS)], axis=-1)

    second = replace(first, **{name: turned(getattr(first, name)) for name in (*names, "on_cells", "off_cells")})
    reasons = judge_squares(first).reasons
    assert len(np.unique(reasons)) >= 4
    assert np.array_equal(judge_squares(second).reasons, turn(reasons))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (5, 2), (3, 1)])
def test_small_pictures_have_a_map_as_well(shape: tuple[int, int]) -> None:
    assert judge_squares(measures(shape)).shares()["countable"] == 1
    thick = changed(measures(shape), np.s_[:], overlapping=30)
    assert judge_squares(thick).shares()["too thick"] == 1


# Maps


def random_map(seed: int = 0, size_wh: tuple[int, int] = (1000, 770)) -> CountableMap:
    grid = square_grid(size_wh, 0.3)
    return CountableMap(grid, np.random.default_rng(seed).integers(0, len(REASONS), grid.shape).astype(np.int8))


def test_shares_are_areas() -> None:
    found = random_map()
    shares = found.shares()
    assert list(shares) == list(REASONS)
    assert sum(shares.values()) == pytest.approx(1)
    by_pixel = np.zeros((770, 1000), int)
    for row, column in np.ndindex(found.grid.shape):
        y, x = found.grid.y_edges[row : row + 2], found.grid.x_edges[column : column + 2]
        by_pixel[y[0] : y[1], x[0] : x[1]] = found.reasons[row, column]
    for code, name in enumerate(REASONS):
        assert shares[name] == pytest.approx((by_pixel == code).mean())


def in_countable(found: CountableMap, points_xy: Any) -> Any:
    """Which of the points `(N, 2)` lie in a countable square; none outside the picture."""
    rows, columns = found.grid.squares_of(points_xy)
    inside = np.all((points_xy >= 0) & (points_xy < found.grid.size_wh), axis=1)
    return inside & (found.reasons[rows, columns] == REASONS.index("countable"))


def test_the_squares_and_their_region_agree_everywhere() -> None:
    found = random_map(1)
    region = found.region()
    assert region is not None
    assert region.area_px((1000, 770)) == pytest.approx(found.shares()["countable"] * 770_000)
    rng = np.random.default_rng(2)
    edges = np.stack(np.meshgrid(found.grid.x_edges, found.grid.y_edges), axis=-1).reshape(-1, 2)
    sides = np.column_stack([rng.uniform(0, 1000, 50), rng.choice(found.grid.y_edges, 50)])
    points = np.concatenate([rng.uniform(-50, 1050, (2000, 2)), edges, sides])
    mask = in_countable(found, points)
    assert np.array_equal(mask, region.contains(points))
    assert 100 < mask.sum() < len(points) / 2


def test_nothing_countable_has_no_region() -> None:
    found = random_map()
    nothing = CountableMap(found.grid, np.maximum(found.reasons, np.int8(1)))
    assert nothing.region() is None
    everything = CountableMap(found.grid, np.zeros_like(found.reasons)).region()
    assert everything is not None
    assert everything.area_px((1000, 770)) == pytest.approx(770_000)


def test_wrong_maps_are_refused() -> None:
    found = random_map()
    for reasons in (found.reasons[:-1], found.reasons.astype(np.int64), found.reasons + np.int8(9), -found.reasons - 1):
        with pytest.raises(ValueError, match="reasons: expected"):
            CountableMap(found.grid, reasons)


def test_what_is_not_counted_is_tinted() -> None:
    found = random_map(3)
    pixels = np.random.default_rng(4).integers(0, 256, (77, 100, 3), dtype=np.uint8)
    shown = shade(pixels, found)
    assert set(COLOURS) == set(REASONS) - {"countable"}
    for row, column in np.ndindex(77, 100):
        x, y = column * 10 + 5, row * 10 + 5
        at = found.grid.squares_of(np.array([[float(x), float(y)]]))
        name = REASONS[int(found.reasons[at][0])]
        expected = pixels[row, column].astype(float)
        if name != "countable":
            expected = (1 - TINT) * expected + TINT * np.array(COLOURS[name])
        assert np.abs(shown[row, column] - expected).max() <= 1


# Pictures


@pytest.fixture
def slide(scatter_discs: Draw, cells: Cells) -> tuple[Pixels, Detections]:
    """A monolayer of 7 x 7 squares of 60 um."""
    drawn = scatter_discs((7 * SIDE_PX, 7 * SIDE_PX), 7.5 / UM_PER_PX, 3)
    return drawn.pixels, cells(drawn.boxes)


def found_in(pixels: Pixels, cells: Detections) -> CountableMap:
    return countable_map(ArraySource(pixels), UM_PER_PX, cells)


def without(cells: Detections, rows: range, columns: range) -> tuple[Detections, Bools]:
    """The cells outside a block of squares, and which those are."""
    low, high = np.array([columns.start, rows.start]) * SIDE_PX, np.array([columns.stop, rows.stop]) * SIDE_PX
    inside = np.all((cells.boxes[:, :2] < high) & (cells.boxes[:, 2:] > low), axis=1)
    return cells.take(~inside), inside


def erase(pixels: Pixels, cells: Detections) -> None:
    for x_min, y_min, x_max, y_max in cells.boxes.astype(int).tolist():
        pixels[max(y_min - 2, 0) : y_max + 3, max(x_min - 2, 0) : x_max + 3] = 214


def area_of(rows: range, columns: range) -> tuple[slice, slice]:
    return (slice(rows.start * SIDE_PX, rows.stop * SIDE_PX), slice(columns.start * SIDE_PX, columns.stop * SIDE_PX))


def test_a_drawn_monolayer_is_countable(slide: tuple[Pixels, Detections]) -> None:
    assert found_in(*slide).shares()["countable"] == 1


def test_an_empty_half_is_background(slide: tuple[Pixels, Detections]) -> None:
    pixels, cells = slide
    rows, columns = range(7), range(4, 7)
    kept, inside = without(cells, rows, columns)
    erase(pixels, cells.take(inside))
    found = found_in(pixels, kept)
    assert squares_at(found, "background") == block(rows, columns)
    assert squares_at(found, "countable") == block(rows, range(4))


def test_a_blurred_part_is_out_of_focus(slide: tuple[Pixels, Detections]) -> None:
    pixels, cells = slide
    part = area_of(range(2, 5), range(3))
    pixels[part] = cv2.GaussianBlur(pixels, (0, 0), 1 / UM_PER_PX)[part]
    found = found_in(pixels, cells)
    assert squares_at(found, "out of focus") == block(range(2, 5), range(3))
    assert found.shares()["countable"] == pytest.approx(1 - 9 / 49)


def test_a_speck_of_dirt_is_debris(slide: tuple[Pixels, Detections]) -> None:
    pixels, cells = slide
    at, radius = (3 * SIDE_PX + 120, 5 * SIDE_PX + 120), round(10 / UM_PER_PX)
    cv2.circle(pixels, at, radius, (30, 20, 40), -1)
    hidden = np.hypot(*(centres(cells.boxes) - np.array(at)).T) < radius
    assert hidden.sum() > 2
    found = found_in(pixels, cells.take(~hidden))
    assert squares_at(found, "debris") == {(5, 3)}
    assert found.shares()["countable"] == pytest.approx(48 / 49)


def test_a_second_layer_of_cells_is_too_thick(scatter_discs: Draw, cells: Cells) -> None:
    size = (7 * SIDE_PX, 7 * SIDE_PX)
    one, two = (scatter_discs(size, 7.5 / UM_PER_PX, seed) for seed in (3, 4))
    shift = np.array([18.0, 12, 18, 12], np.float32)
    upper = np.roll(two.pixels, (12, 18), axis=(0, 1))
    left = np.arange(size[0]) < 4 * SIDE_PX
    pixels = np.where(left[None, :, None], np.minimum(one.pixels, upper), one.pixels)
    over = two.boxes + shift
    boxes = np.concatenate([one.boxes, over[over[:, 2] < 4 * SIDE_PX]])
    found = found_in(pixels.astype(np.uint8), cells(boxes))
    assert block(range(7), range(4)) <= squares_at(found, "too thick") <= block(range(7), range(5))
    assert block(range(7), range(5, 7)) <= squares_at(found, "countable")


def test_few_cells_are_too_thin(slide: tuple[Pixels, Detections]) -> None:
    pixels, cells = slide
    _, inside = without(cells, range(4, 7), range(7))
    kept = ~inside | (np.cumsum(inside) % 5 == 0)
    erase(pixels, cells.take(~kept))
    found = found_in(pixels, cells.take(kept))
    assert squares_at(found, "too thin") >= block(range(5, 7), range(7))
    assert squares_at(found, "countable") >= block(range(3), range(7))
    assert set(np.unique(found.reasons).tolist()) == {CODE["countable"], CODE["too thin"]}
