"""Tinted light and faint cells: what is usual stays as it is, what is not is counted like the plain picture."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import shapely
from conftest import SAMPLES

from smearcount import Pipeline, Settings
from smearcount.arrays import Pixels
from smearcount.images import ArraySource, open_image, write_picture
from smearcount.light.glass import (
    BLUE_OVER_GREEN,
    CLEAR,
    CLIPPED,
    FAINT,
    FEWEST_CELLS,
    RED_OVER_GREEN,
    USUAL_GLASS,
    contrast_wanted,
    glass_colour,
    is_tinted,
    untinted,
)
from smearcount.light.illumination import Lit, even_light, find_cells
from smearcount.region import Region

TINTS = {"yellow": (1.0, 0.8, 0.4), "blue": (0.6, 0.75, 1.1), "green": (0.55, 1.0, 0.6)}


def field(name: str = "large_field.jpg") -> Pixels:
    return open_image(SAMPLES / name).read(600, 400, 1200, 900)


def tinted(pixels: Pixels, tint: tuple[float, float, float]) -> Pixels:
    return np.clip(pixels * np.array(tint) + 0.5, 0, 255).astype(np.uint8)


def hazy(pixels: Pixels, share: float) -> Pixels:
    """With a share of its contrast about a light grey."""
    return np.clip((pixels - 220.0) * share + 220.5, 0, 255).astype(np.uint8)


def drawn(density: float, cells: int, glass: tuple[int, int, int] = (220, 200, 190)) -> tuple[Pixels, npt.NDArray]:
    """Discs of one optical density in every channel, and their boxes."""
    pixels = np.full((400, 600, 3), glass, np.uint8)
    places = [(50 + 100 * (number % 6), 50 + 100 * (number // 6)) for number in range(cells)]
    for place in places:
        colour = [round(level * math.exp(-density)) for level in glass]
        cv2.circle(pixels, place, 25, colour, -1)
    return pixels, np.float32([(x - 25, y - 25, x + 25, y + 25) for x, y in places]).reshape(-1, 4)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(Settings(classifiers=()))


def counts(pipeline: Pipeline, pixels: Pixels) -> dict[str, int]:
    kinds = pipeline.analyze(pixels).result.detections.kinds
    return {kind: int((kinds == kind).sum()) for kind in ("rbc", "wbc")}


def test_the_glass_is_what_is_lightest() -> None:
    pixels, _ = drawn(0.5, 12)
    assert glass_colour(pixels.reshape(-1, 3)).tolist() == [220, 200, 190]
    assert glass_colour(np.zeros((40, 3), np.uint8)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("red", "blue", "expected"),
    [
        (1.0, 1.0, False),
        (RED_OVER_GREEN[0] + 0.01, 1.0, False),
        (RED_OVER_GREEN[0] - 0.01, 1.0, True),
        (RED_OVER_GREEN[1] + 0.01, 0.8, True),
        (RED_OVER_GREEN[1] + 0.01, 1.0, False),  # pink is stain
        (1.0, BLUE_OVER_GREEN[0] - 0.01, True),
        (1.0, BLUE_OVER_GREEN[1] + 0.01, True),
        (RED_OVER_GREEN[1] - 0.01, BLUE_OVER_GREEN[0] + 0.01, False),
    ],
)
def test_limits_of_a_tint(red: float, blue: float, expected: bool) -> None:
    assert is_tinted(np.array([red, 1.0, blue]) * 150) is expected


def test_tinted_glass_gets_the_usual_colour_and_keeps_its_lightness() -> None:
    pixels, _ = drawn(0.4, 12, (200, 160, 70))
    balanced, told = untinted(pixels, np.ones((400, 600), bool))
    glass = balanced[0, 0].astype(float)
    np.testing.assert_allclose(glass / glass[1], USUAL_GLASS, atol=0.01)
    assert glass.max() == 200
    # A cell keeps its optical density in every channel.
    np.testing.assert_allclose(balanced[50, 50] / glass, math.exp(-0.4), atol=0.01)
    assert told == "tinted light balanced: red, green and blue of the glass were as 1.25 : 1 : 0.44"
    again, nothing = untinted(balanced, np.ones((400, 600), bool))
    assert again is balanced
    assert nothing == ""


def test_a_channel_without_light_is_not_blown_up() -> None:
    pixels = np.full((100, 100, 3), (200, 150, 4), np.uint8)
    balanced, told = untinted(pixels, np.ones((100, 100), bool))
    assert told
    assert balanced[0, 0, 2] == 16


def test_only_what_shows_the_smear_decides_on_its_tint() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    pixels[:, 50:] = (255, 255, 0)
    inside = np.zeros((100, 100), bool)
    inside[:, :50] = True
    assert untinted(pixels, inside)[1] == ""
    assert untinted(pixels, ~inside)[1] != ""
    assert untinted(pixels, np.zeros((100, 100), bool)) == (pixels, "")


@pytest.mark.parametrize("name", list(TINTS))
def test_a_tinted_picture_is_counted_like_a_plain_one(pipeline: Pipeline, name: str) -> None:
    plain = counts(pipeline, field())
    shown = tinted(field(), TINTS[name])
    assert is_tinted(glass_colour(shown.reshape(-1, 3)))
    analysis = pipeline.analyze(shown)
    found = counts(pipeline, shown)
    assert abs(found["rbc"] - plain["rbc"]) <= 0.02 * plain["rbc"]
    assert found["wbc"] == plain["wbc"]
    assert [note.split(":")[0] for note in analysis.result.reading] == ["tinted light balanced"]
    # What is shown and cut out is what was looked at.
    glass = glass_colour(analysis.source.read(0, 0, 1200, 900).reshape(-1, 3))
    np.testing.assert_allclose(glass / glass[1], USUAL_GLASS, atol=0.03)


@pytest.mark.parametrize("density", [0.05, 0.10, 0.13])
def test_faint_cells_become_clear_ones(density: float) -> None:
    pixels, boxes = drawn(density, 12)
    wanted = contrast_wanted(pixels, boxes)
    assert wanted is not None
    assert wanted.density == pytest.approx(density, abs=0.01)
    clear, told = wanted.raised(pixels)
    assert told.startswith("contrast raised")
    glass, cell = clear[0, 0].astype(float), clear[50, 50].astype(float)
    assert (glass == pixels[0, 0]).all()
    reached = math.log(glass[1] / cell[1])
    assert reached == pytest.approx(CLEAR if density > 0.09 else -math.log(1 - 4 * (1 - math.exp(-density))), abs=0.03)


@pytest.mark.parametrize(("density", "cells"), [(FAINT + 0.02, 12), (0.5, 12), (0.05, FEWEST_CELLS - 1), (0.05, 0)])
def test_clear_cells_and_few_cells_leave_the_contrast_alone(density: float, cells: int) -> None:
    pixels, boxes = drawn(density, cells)
    assert contrast_wanted(pixels, boxes) is None


def test_clipped_glass_is_no_measure_of_contrast() -> None:
    pixels, boxes = drawn(0.05, 12)
    lighter = np.clip(pixels * 1.4, 0, 255).astype(np.uint8)
    assert (lighter[0, 0] >= CLIPPED).all()
    assert contrast_wanted(pixels, boxes) is not None
    assert contrast_wanted(lighter, boxes) is None


@pytest.mark.parametrize("share", [0.35, 0.25])
def test_a_hazy_picture_is_counted_like_a_plain_one(pipeline: Pipeline, share: float) -> None:
    plain = counts(pipeline, field())
    analysis = pipeline.analyze(hazy(field(), share))
    found = counts(pipeline, hazy(field(), share))
    assert abs(found["rbc"] - plain["rbc"]) <= 0.03 * plain["rbc"]
    assert found["wbc"] == plain["wbc"]
    assert [note.split(" ")[:2] for note in analysis.result.reading] == [["contrast", "raised"]]


@pytest.mark.parametrize("noise", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("fall", [0.0, 25.0])
def test_an_empty_field_stays_empty(pipeline: Pipeline, noise: float, fall: float) -> None:
    """Its grain and its shading are fainter than any cell, and are no cells with more contrast either."""
    rng, shade = np.random.default_rng(0), np.linspace(0, fall, 640)[None, :, None]
    empty = np.clip(np.array([225, 212, 200]) - shade + rng.normal(0, noise, (480, 640, 3)), 0, 255).astype(np.uint8)
    result = pipeline.analyze(empty, um_per_px=0.15).result
    assert len(result.detections.boxes) == 0
    assert result.reading == ()


def test_a_hazy_picture_has_the_scale_of_a_plain_one(pipeline: Pipeline, tmp_path: Path) -> None:
    """The scale of a slide, too, is estimated from what is looked at in the end."""
    part = field()[:800, :800]
    for share in (1.0, 0.2, 0.1):
        write_picture(tmp_path / "field.png", hazy(part, share))
        found = pipeline.analyze(tmp_path / "field.png").result
        measured = pipeline.measure(tmp_path / "field.png").diameters_px
        assert 7.5 / np.median(measured) == pytest.approx(found.scale.um_per_px, rel=1e-4)
        assert len(found.reading) == (share < 1)


def test_a_hazy_scan_is_made_clear_where_its_region_is(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its middle, where nothing is sought for a region in a corner, would tell of no faint cell."""
    for name, value in (("region.LARGE_UM2", 1e5), ("region.SOUGHT_UM", 10.0), ("light.illumination._PART_PX", 400)):
        monkeypatch.setattr(f"smearcount.{name}", value)
    whole = open_image(SAMPLES / "large_field.jpg")
    lit, corner = Lit(ArraySource(hazy(whole.read(0, 0, *whole.size_wh), 0.25))), Region(shapely.box(40, 40, 360, 360))
    everywhere, _, all_cells = find_cells(lit, pipeline.detector, 0.15)
    near, _, cells = find_cells(lit, pipeline.detector, 0.15, region=corner)
    assert len(cells) < 0.5 * len(all_cells)
    for each in (near, everywhere):
        assert [note.partition(" ")[0] for note in each.source.notes] == ["contrast"]
    inside = [int(corner.contains(each.boxes[:, :2]).sum()) for each in (cells, all_cells)]
    assert inside[0] == pytest.approx(inside[1], abs=1)


def test_a_hazy_picture_through_an_eyepiece_is_made_clear(pipeline: Pipeline) -> None:
    y, x = np.mgrid[:900, :1200]
    seen = (np.hypot(x - 600, y - 450) < 430)[..., None]
    plain, shown = (pipeline.analyze(pixels * seen).result for pixels in (field(), hazy(field(), 0.2)))
    assert [note.split(" ")[0] for note in shown.reading] == ["the", "contrast"]
    red = [int((each.counted & (each.detections.kinds == "rbc")).sum()) for each in (plain, shown)]
    assert red[1] == pytest.approx(red[0], rel=0.03)


@pytest.mark.parametrize("stain", [(171, 114, 137), (230, 150, 150), (190, 130, 180)])
def test_a_picture_of_nothing_but_cells_is_not_balanced(stain: tuple[int, int, int]) -> None:
    grain = np.random.default_rng(0).normal(0, 6, (200, 300, 3))
    picture = ArraySource(np.clip(np.array(stain) + grain, 0, 255).astype(np.uint8))
    assert even_light(picture).source is picture
