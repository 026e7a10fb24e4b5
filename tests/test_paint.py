"""Painted inclusions on drawn red cells: where they lie, how many and how large they are, and what stays untouched."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from smearcount.arrays import Doubles, Pixels
from smearcount.datasets import data_root
from smearcount.geometry import FILL
from smearcount.images import open_image
from smearcount.taxonomy import load_taxonomy
from smearcount.training import paint as painting
from smearcount.training.bodies import Body, Stain, with_bodies
from smearcount.training.paint import PAINTED_CODES, paint, retouch
from smearcount.training.red_cells import find_red_cell

BACKGROUND, CELL = (228, 220, 212), (196, 130, 140)
WINDOW_UM = 18.0
FINE = 0.05
INCLUSIONS = PAINTED_CODES[:3]


def distance_um(um_per_px: float, at_um: tuple[float, float] = (9.0, 9.0)) -> Doubles:
    """`(S, S)` distance of each pixel's centre from a point of the window."""
    size = round(WINDOW_UM / um_per_px)
    rows, columns = (np.indices((size, size)) + 0.5) * um_per_px
    return np.hypot(columns - at_um[0], rows - at_um[1])


def red_cells(um_per_px: float, *discs: tuple[float, float, float], pallor: float = 0.5, noise: float = 1.5) -> Pixels:
    """Discs of centre x, y and diameter in micrometres, with a pallor of a part of the density, on a plain ground."""
    light = np.log(np.array(BACKGROUND, float))
    depth = np.zeros((round(WINDOW_UM / um_per_px),) * 2)
    for x, y, diameter in discs:
        away = distance_um(um_per_px, (x, y))
        disc = np.clip((diameter / 2 - away) / 0.3 + 0.5, 0, 1)
        depth = np.maximum(depth, disc * (1 - pallor * np.exp(-((away / 1.5) ** 2))))
    picture = np.exp(light - depth[..., None] * (light - np.log(np.array(CELL, float))))
    grain = np.random.default_rng(0).normal(0, noise, picture.shape)
    return np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8)


def round_cell(um_per_px: float, diameter: float = 7.4, noise: float = 1.5) -> Pixels:
    return red_cells(um_per_px, (9.0, 9.0, diameter), noise=noise)


def density(pixels: Pixels) -> Doubles:
    return -np.log((pixels.astype(float) + 1) / 256)


def added(before: Pixels, after: Pixels) -> Doubles:
    """Mean optical density that was added to each pixel."""
    return np.asarray((density(after) - density(before)).mean(axis=2))


def lost(before: Pixels, after: Pixels) -> Doubles:
    """Share of the light that each pixel lost."""
    return np.asarray(1 - (after.astype(float) + 1).sum(axis=2) / (before.astype(float) + 1).sum(axis=2))


def spots(change: Doubles, um_per_px: float) -> list[tuple[float, float, float]]:
    """Distance from the middle of the window, diameter and roundness of the spots above half their own height."""
    found = []
    _, parts, boxes, _ = cv2.connectedComponentsWithStats((change > 0.06).astype(np.uint8), connectivity=4)
    for label, (left, top, width, height, _) in enumerate(boxes.tolist()[1:], 1):
        here = slice(top, top + height), slice(left, left + width)
        spot = np.where(parts[here] == label, change[here], 0)
        if spot.max() > 0.1:
            rows, columns = np.nonzero(spot > spot.max() / 2)
            x, y = left + columns.mean() + 0.5, top + rows.mean() + 0.5
            spread = np.sqrt(np.linalg.eigvalsh(np.cov(rows, columns) + np.eye(2) / 12))
            off = math.hypot(x * um_per_px - 9, y * um_per_px - 9)
            found.append((off, 2 * math.sqrt(len(rows) / math.pi) * um_per_px, float(spread[0] / spread[1])))
    return found


PLAIN = {um_per_px: round_cell(um_per_px, noise=0) for um_per_px in (FINE, 0.1)}


def painted(code: str, seed: int, um_per_px: float = FINE) -> tuple[Pixels, Pixels]:
    """A cell before and after."""
    before = PLAIN[um_per_px]
    after = paint(before, um_per_px, code, np.random.default_rng(seed))
    assert after is not None
    return before, after


@pytest.mark.parametrize("um_per_px", [0.055, 0.09, 0.14, 0.19])
@pytest.mark.parametrize("diameter", [5.5, 7.4, 9.0])
def test_the_cell_in_the_middle_is_found_with_its_size_and_stain(um_per_px: float, diameter: float) -> None:
    pixels = red_cells(um_per_px, (9.2, 8.9, diameter), (2.0, 3.0, 7.0))
    cell = find_red_cell(pixels, um_per_px)
    assert cell is not None
    assert cell.diameter_um == pytest.approx(diameter, abs=0.3)
    assert cell.centre_um == pytest.approx((9.2, 8.9), abs=0.1)
    assert cell.background == pytest.approx(np.log(256 / (np.array(BACKGROUND) + 1)), abs=0.01)
    assert cell.density == pytest.approx(np.log(np.array(BACKGROUND) / CELL), rel=0.12, abs=0.02)
    assert not cell.cut
    inside = cell.inside_at(pixels.shape[0])
    truth = diameter / 2 - distance_um(um_per_px, (9.2, 8.9))
    near = np.abs(truth) < 2.5
    near &= distance_um(um_per_px, (2.0, 3.0)) > 4
    assert np.abs(inside - truth)[near].max() < 0.35


@pytest.mark.parametrize("sigma_um", [0.15, 0.25, 0.4])
def test_the_blur_of_the_outline_is_measured(sigma_um: float) -> None:
    step = np.where(distance_um(FINE)[..., None] < 3.7, CELL, BACKGROUND).astype(np.uint8)
    cell = find_red_cell(cv2.GaussianBlur(step, (0, 0), sigma_um / FINE).astype(np.uint8), FINE)
    assert cell is not None
    assert cell.edge_um == pytest.approx(sigma_um, rel=0.25)


def test_touching_cells_are_cut_apart() -> None:
    cell = find_red_cell(red_cells(0.1, (9, 9, 7.4), (16.1, 9, 7.4), (5.5, 2.85, 7.0)), 0.1)
    assert cell is not None
    assert cell.diameter_um == pytest.approx(7.4, abs=0.4)


UNSUITABLE = {
    "empty": red_cells(0.1),
    "off the middle": red_cells(0.1, (12.0, 9, 7.4)),
    "overlapping": red_cells(0.1, (9, 9, 7.4), (12.5, 9, 7.4)),
    "fragment": red_cells(0.1, (9, 9, 3.0)),
    "giant": red_cells(0.1, (9, 9, 12.5)),
    "full": np.full((180, 180, 3), 120, np.uint8),
    "outside the picture": np.full((180, 180, 3), FILL, np.uint8),
    "holds a parasite": np.where(distance_um(0.1, (10, 9))[..., None] < 0.6, (90, 40, 120), round_cell(0.1)),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_what_is_no_single_whole_cell_is_left_alone(name: str) -> None:
    pixels = UNSUITABLE[name].astype(np.uint8)
    assert find_red_cell(pixels, 0.1) is None
    assert [paint(pixels, 0.1, code, np.random.default_rng(0)) for code in PAINTED_CODES] == [None] * 4
    assert np.array_equal(retouch(pixels, 0.1, np.random.default_rng(0)), pixels)


def test_a_cell_cut_by_the_border_of_the_picture_is_known_as_such() -> None:
    pixels = round_cell(0.1)
    pixels[:, 118:] = FILL
    cell = find_red_cell(pixels, 0.1)
    assert cell is not None
    assert cell.cut
    assert paint(pixels, 0.1, "reticulocyte", np.random.default_rng(0)) is None
    assert paint(pixels, 0.1, "howell_jolly_body", np.random.default_rng(0)) is not None


def test_the_codes_are_those_of_the_taxonomy_and_others_are_refused() -> None:
    assert set(PAINTED_CODES) <= set(load_taxonomy().codes_of("rbc"))
    with pytest.raises(ValueError, match="normocyte"):
        paint(round_cell(0.1), 0.1, "normocyte", np.random.default_rng(0))
    with pytest.raises(ValueError, match="square"):
        paint(round_cell(0.1)[:100], 0.1, PAINTED_CODES[0], np.random.default_rng(0))


@pytest.mark.parametrize("code", PAINTED_CODES)
def test_painting_is_seeded_and_leaves_the_window_as_it_was(code: str) -> None:
    pixels = round_cell(0.1)
    before = pixels.copy()
    first, again, other = (paint(pixels, 0.1, code, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first is not None
    assert other is not None
    assert (first.shape, first.dtype) == (pixels.shape, np.uint8)
    assert (first == again).all()
    assert (first != other).any()
    assert (pixels == before).all()


@pytest.mark.parametrize("code", INCLUSIONS)
@pytest.mark.parametrize("um_per_px", [0.055, 0.1, 0.19])
def test_inclusions_lie_in_the_cell_and_everything_else_stays(code: str, um_per_px: float) -> None:
    """Outside the cell not one pixel differs but for the blur, and inside most do not where bodies are few."""
    pixels = red_cells(um_per_px, (9, 9, 7.4), (16.2, 9, 7.4))
    away = distance_um(um_per_px)
    for seed in range(6):
        after = paint(pixels, um_per_px, code, np.random.default_rng(seed))
        assert after is not None
        changed = (after != pixels).any(axis=2)
        assert not changed[away > 3.7 + 0.3 + 3 * um_per_px].any()
        assert not (added(pixels, after) > 0.1)[away > 3.7 + 0.3].any()
        assert changed[away < 3.7].mean() < (1 if code == "basophilic_stippling" else 0.45)


def test_howell_jolly_bodies_are_one_or_two_round_and_off_centre() -> None:
    counts = []
    for seed in range(25):
        before, after = painted("howell_jolly_body", seed)
        found = spots(lost(before, after), FINE)
        counts.append(len(found))
        for off, diameter, roundness in found:
            assert 0.45 < diameter < 1.05
            assert 0.8 < off < 3.2
            assert roundness > 0.8
        more = density(after)[added(before, after) > 0.1] - density(before)[added(before, after) > 0.1]
        assert more.mean(axis=0).argmax() == 1
        assert more[:, 0].mean() > more[:, 2].mean()
    assert set(counts) == {1, 2}
    assert np.mean(np.array(counts) == 1) > 0.7


def test_pappenheimer_bodies_are_a_few_small_granules_in_a_group_near_the_rim() -> None:
    counts = []
    for seed in range(20):
        before, after = painted("pappenheimer_bodies", seed)
        change = lost(before, after)
        found = spots(change, FINE)
        counts.append(len(found))
        off, diameter, _ = np.array(found).T
        # Neighbours may run together in the blur.
        assert np.median(diameter) < 0.6
        assert diameter.max() < 1.3
        assert diameter.min() > 0.15
        assert off.min() > 3.7 - 2.6
        rows, columns = np.nonzero(change > 0.1)
        assert max(np.ptp(rows), np.ptp(columns)) * FINE < 3.7
    assert 1 <= min(counts) <= 3
    assert 4 <= max(counts) <= 8


def test_stippling_is_many_dots_all_over_the_cell() -> None:
    counts, sizes = [], []
    for seed in range(20):
        before, after = painted("basophilic_stippling", seed)
        change = lost(before, after)
        found = spots(change, FINE)
        counts.append(len(found))
        sizes.append(np.median([diameter for _, diameter, _ in found]))
        half = change.shape[0] // 2
        quarters = [change[y : y + half, x : x + half].sum() for y in (0, half) for x in (0, half)]
        assert min(quarters) > 0.08 * sum(quarters)
        assert max(off for off, _, _ in found) > 2
        more = (density(after) - density(before))[change > 0.1].mean(axis=0)
        assert min(more[:2]) > 1.3 * more[2]
    assert min(counts) >= 7
    assert 25 < max(counts) <= 60
    assert 0.15 < min(sizes) < 0.33
    assert 0.33 < max(sizes) < 0.5


@pytest.mark.parametrize("code", INCLUSIONS)
def test_what_is_painted_can_be_seen_on_pale_and_on_dark_cells(code: str) -> None:
    for share in (0.45, 1.0):
        pixels = np.rint(share * red_cells(0.1, (9, 9, 7.4), noise=0).astype(float)).astype(np.uint8)
        for seed in range(5):
            after = paint(pixels, 0.1, code, np.random.default_rng(seed))
            assert after is not None
            darkest = (pixels.astype(float) - after) @ (0.299, 0.587, 0.114)
            assert darkest.max() > 8


def test_a_polychromatic_cell_is_larger_bluer_and_without_pallor() -> None:
    for seed in range(12):
        before, after = painted("reticulocyte", seed, 0.1)
        old, new = find_red_cell(before, 0.1), find_red_cell(after, 0.1)
        assert old is not None
        assert new is not None
        assert 1.07 < new.diameter_um / old.diameter_um < 1.23
        away = distance_um(0.1)
        over_old, over_new = (density(p) - density(np.array(BACKGROUND, np.uint8)) for p in (before, after))
        middle, ring = away < 0.5, (away > 2.3) & (away < 2.8)
        assert over_old[middle].mean() < 0.6 * over_old[ring].mean()
        assert over_new[middle].mean() > 0.85 * over_new[ring].mean()
        redness_before, redness_after = ((o[ring][:, 2] - o[ring][:, 0]).mean() for o in (over_old, over_new))
        assert redness_after < redness_before - 0.04
        assert (after == before)[away > 3.7 * 1.2 + 1.7].all()


def test_a_microcyte_does_not_become_polychromatic() -> None:
    assert paint(round_cell(0.1, 5.0), 0.1, "reticulocyte", np.random.default_rng(0)) is None


def test_a_body_takes_light_as_beer_and_lambert_say() -> None:
    """A wide body: in its middle the light falls by its density, far from it not at all, whatever the scale."""
    pixels = np.full((90, 90, 3), 200, np.uint8)
    stain = Stain(np.array([0.3, 1.0, 0.5], np.float32), 0.1)
    for um_per_px in (0.05, 0.1, 0.19):
        middle = 45 * um_per_px
        after = with_bodies(pixels, um_per_px, [Body(middle, middle, 1.0)], stain)
        assert after[45, 45] == pytest.approx(201 * np.exp(-np.array([0.3, 1.0, 0.5])) - 1, abs=1.5)
        lost = -np.log((after[..., 1].astype(float) + 1) / 201)
        rows, columns = np.nonzero(lost > 0.35)
        assert len(rows) * um_per_px**2 == pytest.approx(math.pi, rel=0.08)
        assert (rows.mean() + 0.5, columns.mean() + 0.5) == pytest.approx((45, 45), abs=0.51)
        far = np.hypot(*(np.indices((90, 90)) - 45)) * um_per_px > 1 + 0.4 + 4 * um_per_px
        assert (after == pixels)[far].all()
    assert (with_bodies(pixels, 0.1, [], stain) == pixels).all()
    assert (with_bodies(pixels, 0.1, [Body(-50, 4, 1.0)], stain) == pixels).all()


def test_soft_colours_keep_the_brightness_of_a_body() -> None:
    pixels = np.full((60, 60, 3), 200, np.uint8)
    density_ = np.array([0.3, 1.0, 0.5], np.float32)
    soft, hard = (with_bodies(pixels, 0.1, [Body(3, 3, 0.2)], Stain(density_, 0.1, 0, on)) for on in (True, False))
    brightness = [picture.astype(float) @ (0.299, 0.587, 0.114) for picture in (soft, hard)]
    assert np.abs(brightness[0] - brightness[1]).max() < 1
    assert np.ptp(soft[30, 30].astype(int)) < np.ptp(hard[30, 30].astype(int))


def test_retouching_is_seeded_and_does_not_reach_far() -> None:
    pixels = red_cells(0.1, (9, 9, 7.4), (16.2, 9, 7.4))
    different = 0
    for seed in range(24):
        first, again = (retouch(pixels, 0.1, np.random.default_rng(seed)) for _ in range(2))
        assert (first == again).all()
        assert (first.shape, first.dtype) == (pixels.shape, np.uint8)
        assert (first == pixels)[distance_um(0.1) > 3.7 + 4 + 2.5].all()
        different += bool((first != pixels).any())
    assert different > 18


@pytest.mark.parametrize("trace", [painting._precipitate, painting._dirt, painting._platelet_beside])
def test_what_is_put_beside_the_cell_stays_outside(trace: painting.Trace) -> None:
    pixels = round_cell(0.1)
    cell = find_red_cell(pixels, 0.1)
    assert cell is not None
    dark = 0
    for seed in range(12):
        change = added(pixels, trace(pixels, 0.1, cell, np.random.default_rng(seed)))
        assert change[distance_um(0.1) < 3.5].max() < 0.05
        dark += bool(change.max() > 0.15)
    assert dark > 8


@pytest.mark.parametrize("trace", [painting._faint, painting._other_size])
def test_neutral_traces_are_too_faint_to_see(trace: painting.Trace) -> None:
    pixels = round_cell(0.1, noise=0)
    cell = find_red_cell(pixels, 0.1)
    assert cell is not None
    for seed in range(8):
        after = trace(pixels, 0.1, cell, np.random.default_rng(seed))
        away = distance_um(0.1)
        assert np.abs(after.astype(int) - pixels)[away < 3.2].max() <= 9
        assert find_red_cell(after, 0.1) is not None


def test_bubbles_are_bright_and_platelets_on_a_cell_larger_than_any_inclusion() -> None:
    pixels = round_cell(0.1, noise=0)
    cell = find_red_cell(pixels, 0.1)
    assert cell is not None
    for seed in range(6):
        bubble = added(pixels, painting._bubble(pixels, 0.1, cell, np.random.default_rng(seed)))
        assert -bubble.min() > 2 * bubble.max()
        platelet = added(pixels, painting._platelet_on_top(pixels, 0.1, cell, np.random.default_rng(seed)))
        assert (platelet > 0.05).sum() * 0.1**2 > math.pi / 4 * 1.1**2


@pytest.mark.skipif(data_root() is None, reason="the labelled collections are not at hand")
def test_real_cells_can_be_painted() -> None:
    """Labelled cells of one collection, and ready-cut ones of another whose stain is blue."""
    root = data_root()
    assert root is not None
    windows = []
    for path in sorted((root / "chula_rbc12" / "labels").iterdir())[:12]:
        picture = open_image(root / "chula_rbc12" / "images" / f"{path.stem}.jpg")
        for x, y, code in np.loadtxt(path, ndmin=2)[:3].astype(int).tolist():
            if code < 4 and min(x, y) >= 47 and x + 47 < picture.size_wh[0] and y + 47 < picture.size_wh[1]:
                windows.append((picture.read(x - 47, y - 47, 94, 94), 0.19))
    for path in sorted((root / "erythrocytes_idb" / "circular").iterdir())[:12]:
        windows.append((open_image(path).read(0, 0, 80, 80), 0.15))
    rng = np.random.default_rng(0)
    done = [paint(window, um_per_px, code, rng) is not None for window, um_per_px in windows for code in INCLUSIONS]
    assert len(done) > 40
    assert np.mean(done) > 0.5
