"""Focus falls with blur and not with magnification; crowding is that of boxes drawn by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import shapely

from smearcount.arrays import FloatArray, Pixels
from smearcount.quality import assess, focus_view, overlapping_red, sharpness
from smearcount.records import Detections, Scale
from smearcount.region import Region

Draw = Callable[..., Any]
Cells = Callable[..., Detections]
UM_PER_PX = 0.1


@pytest.fixture
def field(scatter_discs: Draw) -> Pixels:
    """Cells with a soft edge and grain of 0.3 um at 0.1 um a pixel."""
    pixels = scatter_discs((600, 600), 75, 3, mixed=True).pixels.astype(np.float32)
    grain = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 40, (600, 600)).astype(np.float32), (0, 0), 1.5)
    return np.clip(cv2.GaussianBlur(pixels, (0, 0), 1.5) + grain[..., None], 0, 255).astype(np.uint8)


def sharp(pixels: Pixels, um_per_px: float = UM_PER_PX) -> float:
    """The sharpness of a picture `(H, W, 3)`."""
    return sharpness(focus_view(np.ascontiguousarray(pixels[..., 1]), um_per_px))


def test_sharpness_falls_with_every_step_of_blur(field: Pixels) -> None:
    values = [sharp(field)]
    for sigma in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0):
        values.append(sharp(cv2.GaussianBlur(field, (0, 0), sigma)))
    assert all(b < a for a, b in zip(values[:-1], values[1:], strict=True)), values
    assert values[-1] < values[0] / 5


@pytest.mark.parametrize("factor", [0.6, 0.75, 1.5, 2.0])
def test_magnification_has_little_part_in_it(field: Pixels, factor: float) -> None:
    size = (round(600 * factor),) * 2
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(field, size, interpolation=method).astype(np.uint8)
    value = sharp(resized, UM_PER_PX / factor)
    assert value == pytest.approx(sharp(field), rel=0.35)
    blurred = sharp(cv2.GaussianBlur(field, (0, 0), 4))
    assert value > 1.5 * blurred


def test_turning_and_brightness_change_nothing(field: Pixels) -> None:
    value = sharp(field)
    assert sharp(np.rot90(field)) == pytest.approx(value, rel=1e-3)
    assert sharp(field // 2) == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 200), (64, 64)])
def test_a_blank_picture_has_no_sharpness(size_hw: tuple[int, int]) -> None:
    for um_per_px in (0.02, 0.2, 2.0):
        assert sharp(np.full((*size_hw, 3), 214, np.uint8), um_per_px) == 0


def boxes_in_a_row(n: int, side: float, step: float) -> FloatArray:
    x = 10 + np.arange(n) * step
    return np.stack([x, np.full(n, 20.0), x + side, np.full(n, 20.0 + side)], axis=1).astype(np.float32)


def words(draw: Draw, found: Detections, scale: Scale | None = None, size_wh: tuple[int, int] = (900, 200)) -> Any:
    counted = np.ones(len(found), np.bool_)
    return assess(draw(size_wh, np.zeros((0, 3)), ()), scale or Scale(0.2, "flag"), found, counted, {})


def test_cover_and_overlap_of_known_boxes(draw_discs: Draw, cells: Cells) -> None:
    apart = words(draw_discs, cells(boxes_in_a_row(25, 30, 31)))
    assert apart.red_cell_cover == pytest.approx(25 * 900 * np.pi / 4 / (900 * 200), abs=1e-4)
    assert apart.overlapping == 0
    # Discs 30 px wide, 24 px on: 10.4 % of each is shared with the next; 25 px on: 8.0 %.
    assert words(draw_discs, cells(boxes_in_a_row(25, 30, 24))).overlapping == 1
    assert words(draw_discs, cells(boxes_in_a_row(25, 30, 25))).overlapping == 0
    pair = np.concatenate([boxes_in_a_row(24, 30, 31), boxes_in_a_row(1, 30, 31) + np.array([0, 5, 0, 5], np.float32)])
    assert words(draw_discs, cells(pair)).overlapping == pytest.approx(2 / 25)
    # Only red cells crowd a field.
    mixed = cells(np.tile(boxes_in_a_row(1, 30, 1), (30, 1)), "wbc")
    assert (words(draw_discs, mixed).overlapping, words(draw_discs, mixed).red_cell_cover) == (0, 0)
    # A white cell on a red one is no crowd either.
    boxes = np.tile(boxes_in_a_row(1, 30, 1), (2, 1))
    both = replace(cells(boxes), kinds=np.array(["rbc", "wbc"]))
    assert not overlapping_red(both).any()
    assert overlapping_red(cells(boxes)).all()


def test_each_warning_has_its_cause(draw_discs: Draw, cells: Cells, field: Pixels) -> None:
    good = cells(boxes_in_a_row(25, 30, 22.5)[:25] * np.float32(1), "rbc")
    crowded = words(draw_discs, good).warnings
    assert [text.split(" (")[0] for text in crowded] == ["out of focus", "too dense"]
    assert "100% of the red cells overlap" in crowded[1]
    few = words(draw_discs, cells(boxes_in_a_row(19, 30, 31))).warnings
    assert few[1] == "too sparse (19 red cells counted): count more fields"
    noted = Scale(0.2, "assumed", note="the scale can't be trusted")
    assert words(draw_discs, cells(boxes_in_a_row(25, 30, 31)), noted).warnings[-1] == noted.note
    for in_doubt in (False, True):
        estimated = Scale(0.2, "estimated", note="metadata of 0.5 um a pixel not used", in_doubt=in_doubt)
        told = words(draw_discs, cells(boxes_in_a_row(25, 30, 31)), estimated).warnings
        assert (estimated.note in told) is in_doubt


def test_a_good_field_has_no_warning_and_a_blurred_one_has(scatter_discs: Draw, field: Pixels) -> None:
    smear = scatter_discs((600, 600), 75, 3)
    red = Detections(
        smear.boxes,
        np.full(len(smear.boxes), 0.9, np.float32),
        np.array(["rbc"] * len(smear.boxes)),
        np.zeros(len(smear.boxes), np.bool_),
    )
    scale = Scale(UM_PER_PX, "flag")
    counted = np.ones(len(red), np.bool_)
    sharp = assess(type(smear)(field, smear.discs, smear.kinds), scale, red, counted, {})
    assert sharp.warnings == ()
    blurred = cv2.GaussianBlur(field, (0, 0), 8).astype(np.uint8)
    soft = assess(type(smear)(blurred, smear.discs, smear.kinds), scale, red, counted, {})
    assert soft.sharpness < sharp.sharpness
    assert [text[:12] for text in soft.warnings] == ["out of focus"]


@pytest.mark.parametrize(("lighter", "told"), [(1.0, False), (1.25, False), (2.0, True)])
def test_a_picture_that_is_mostly_white_is_over_exposed(
    scatter_discs: Draw, cells: Cells, lighter: float, *, told: bool
) -> None:
    smear = scatter_discs((900, 800), 40, 2)
    pixels = np.clip(smear.pixels * lighter, 0, 255).astype(np.uint8)
    found = cells(smear.boxes, "rbc")
    shown = type(smear)(pixels, smear.discs, smear.kinds)
    quality = assess(shown, Scale(0.2, "flag"), found, np.ones(len(found), np.bool_), {})
    assert any("over-exposed" in warning for warning in quality.warnings) is told


def test_a_region_is_judged_by_itself(scatter_discs: Draw, cells: Cells) -> None:
    """Sharp, and of single cells, in a picture that is blurred and crowded everywhere else."""
    smear = scatter_discs((1600, 1200), 40, 2)
    region = Region(shapely.box(1200, 800, 1500, 1100))
    pixels = cv2.GaussianBlur(smear.pixels, (0, 0), 6)
    pixels[700:, 1100:] = smear.pixels[700:, 1100:]
    far = smear.boxes[smear.discs[:, 0] < 1000]
    found = cells(np.concatenate([smear.boxes, far + 4, far - 4]), "rbc")
    shown, counted = type(smear)(pixels, smear.discs, smear.kinds), np.ones(len(found), np.bool_)
    whole, part = (assess(shown, Scale(0.2, "flag"), found, counted, {}, seen) for seen in (None, region))
    assert part.sharpness > 3 * whole.sharpness
    assert (whole.overlapping > 0.6, part.overlapping) == (True, 0)
    inside = region.contains(smear.discs[:, :2]).sum()
    assert part.red_cell_cover == pytest.approx(inside * np.pi * 20**2 / 300**2, rel=0.01)


def test_only_the_view_is_looked_at_for_over_exposure(scatter_discs: Draw, cells: Cells) -> None:
    smear = scatter_discs((900, 800), 40, 2)
    pixels = smear.pixels.copy()
    view = Region(shapely.Point(450, 400).buffer(300))
    pixels[view.mask((900, 800)) == 0] = 255
    shown = type(smear)(pixels, smear.discs, smear.kinds)
    found = cells(smear.boxes, "rbc")
    for seen, expected in ((None, True), (view, False)):
        quality = assess(shown, Scale(0.2, "flag"), found, np.ones(len(found), np.bool_), {}, seen)
        assert any("over-exposed" in warning for warning in quality.warnings) is expected


@pytest.mark.parametrize(
    ("red", "white", "platelets", "told"),
    [(100, 2, 40, []), (100, 25, 8, ["25 white cells"]), (33, 0, 737, ["737 platelets"]), (15, 3, 10, [])],
)
def test_shares_that_no_blood_has_are_told(
    draw_discs: Draw, red: int, white: int, platelets: int, told: list[str]
) -> None:
    kinds = np.repeat(["rbc", "wbc", "platelet"], [red, white, platelets])
    found = Detections(boxes_in_a_row(len(kinds), 15, 20), np.ones(len(kinds), np.float32), kinds, kinds == "none")
    shown = [text for text in words(draw_discs, found).warnings if "see on the overlay" in text]
    assert [warning.partition(" for ")[0] for warning in shown] == told


def test_nothing_at_all_is_sparse_and_out_of_focus(draw_discs: Draw, cells: Cells) -> None:
    found = words(draw_discs, Detections.empty(), size_wh=(1, 1))
    assert (found.sharpness, found.red_cell_cover, found.overlapping) == (0, 0, 0)
    assert any("too sparse (0 red cells counted)" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("red", "white", "left_out", "expected"),
    [
        (20, 0, 0, []),
        (40, 0, 20, []),
        (41, 0, 21, ["21 of 41 cells lie at the edge and are not counted: take a larger field"]),
        (25, 0, 6, ["too sparse (19 red cells counted): count more fields"]),
        (19, 3, 0, ["too sparse (19 red cells counted): count more fields"]),
        (2, 0, 1, ["too sparse (1 red cell counted): count more fields"]),
    ],
)
def test_advice_goes_by_the_cells_that_count(
    draw_discs: Draw, cells: Cells, red: int, white: int, left_out: int, expected: list[str]
) -> None:
    found = cells(boxes_in_a_row(red + white, 9, 10), ["rbc"] * red + ["wbc"] * white)
    counted = np.arange(red + white) >= left_out
    excluded = {"edge": left_out, "outside the region": red}
    quality = assess(draw_discs((900, 200), np.zeros((0, 3)), ()), Scale(0.2, "flag"), found, counted, excluded)
    assert [text for text in quality.warnings if not text.startswith("out of focus")] == expected
