"""Lines across a picture are removed, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from conftest import SAMPLES

from smearcount import Pipeline, Settings
from smearcount.arrays import Pixels
from smearcount.images import open_image
from smearcount.light import illumination
from smearcount.light.reticle import without_lines
from smearcount.records import Detections, Scale


def field() -> Pixels:
    return open_image(SAMPLES / "large_field.jpg").read(600, 400, 1200, 900)


def ruled(pixels: Pixels, degrees: float, mesh_px: int = 150, width_px: int = 2) -> Pixels:
    """The picture behind a black grid."""
    height, width = pixels.shape[:2]
    ruled, angle, reach = pixels.copy(), np.radians(degrees), width + height
    for along in (np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])):
        for offset in range(-reach, reach, mesh_px):
            middle = np.array([width / 2, height / 2]) + along[::-1] * np.array([-1, 1]) * (offset + 20)
            first, last = (np.rint(middle + sign * reach * along).astype(int).tolist() for sign in (-1, 1))
            cv2.line(ruled, first, last, (10, 10, 10), width_px, cv2.LINE_AA)
    return ruled


@pytest.mark.parametrize("name", [path.name for path in sorted(SAMPLES.glob("*.jpg"))])
def test_a_picture_without_lines_stays_as_it_is(name: str) -> None:
    source = open_image(SAMPLES / name)
    pixels = source.read(0, 0, *source.size_wh)
    mended, told = without_lines(pixels)
    assert mended is pixels
    assert told == ""


def test_the_grain_of_large_nuclei_is_no_line() -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((360, 360, 3), 225, np.uint8)
    for place in ((180, 95), (180, 265)):
        grain = rng.integers(60, 150, (360, 360, 1), dtype=np.uint8).repeat(3, axis=2)
        inside = cv2.circle(np.zeros((360, 360), np.uint8), place, 82, 1, -1)
        pixels[inside != 0] = grain[inside != 0]
    assert without_lines(pixels)[1] == ""


@pytest.mark.parametrize("side", range(4))
def test_a_row_of_cells_at_the_border_is_no_line(side: int) -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((2400, 560, 3), 225, np.uint8)
    scattered = rng.uniform((0, 0), (560, 2400), (650, 2)).astype(int).tolist()
    row = [(12 + int(rng.integers(-2, 3)), y) for y in range(15, 2400, 31)]
    for place in (*scattered, *row):
        cv2.circle(pixels, place, 15, (200, 110, 120), -1, cv2.LINE_AA)
    assert without_lines(np.ascontiguousarray(np.rot90(pixels, side)))[1] == ""


@pytest.mark.parametrize("far_px", [2, 6, 10])
def test_a_line_of_a_grid_at_the_border_is_removed(far_px: int) -> None:
    plain = field()
    shown = plain.copy()
    for first in (far_px, far_px + 1):
        shown[first::150] = shown[:, first::150] = 10
    mended, _ = without_lines(shown)
    on = np.s_[:, far_px : far_px + 2]
    before, after = (np.abs(each[on].astype(int) - plain[on]).mean() for each in (shown, mended))
    assert after < 0.3 * before


@pytest.mark.parametrize("degrees", [0, 3, 5])
def test_lines_are_replaced_and_nothing_else(degrees: float) -> None:
    plain = field()
    shown = ruled(plain, degrees)
    mended, told = without_lines(shown)
    assert told.startswith("lines across the picture")
    on = (shown != plain).any(axis=2)
    before, after = (np.abs(each.astype(int) - plain)[on].mean() for each in (shown, mended))
    assert after < 0.25 * before
    far = cv2.dilate(on.astype(np.uint8), np.ones((25, 25), np.uint8)) == 0
    assert (mended[far] == plain[far]).mean() > 0.999


@pytest.mark.parametrize(("pieces", "removed"), [(3, False), (4, True)])
def test_a_few_pieces_are_no_grid(pieces: int, *, removed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the lines of a grid on bare glass only some are found."""
    shown, find = ruled(np.full((900, 1200, 3), 225, np.uint8), 0), cv2.HoughLinesP

    def some(*given: Any, **more: Any) -> Any:
        found = find(*given, **more)
        assert len(found) > 8
        return found[:pieces]

    monkeypatch.setattr(cv2, "HoughLinesP", some)
    assert bool(without_lines(shown)[1]) == removed


@pytest.mark.parametrize("kind", ["round", "border"])
def test_lines_end_where_the_view_does(kind: str) -> None:
    plain = field()
    y, x = np.mgrid[:900, :1200]
    inside = (np.hypot(x - 600, y - 450) < 400) if kind == "round" else (abs(x - 600) < 330) & (abs(y - 450) < 270)
    seen = inside.astype(np.uint8)
    shown = np.where(inside[..., None], ruled(plain, 2), np.uint8(225))
    mended, told = without_lines(shown, seen)
    assert told.startswith("lines across the picture")
    on = (shown != plain).any(axis=2) & (cv2.erode(seen, np.ones((9, 9), np.uint8)) != 0)
    before, after = (np.abs(each.astype(int) - plain)[on].mean() for each in (shown, mended))
    assert after < 0.3 * before


@pytest.mark.parametrize("size_wh", [(40, 6400), (6400, 40), (33, 33), (640, 20)])
def test_narrow_pictures_have_no_lines(size_wh: tuple[int, int]) -> None:
    pixels = ruled(np.full((*size_wh[::-1], 3), 220, np.uint8), 0, 12)
    assert without_lines(pixels)[1] == ""


@pytest.mark.parametrize(("degrees", "most_pixels"), [(0, illumination.MOST_PIXELS), (4, 1000)])
def test_a_field_behind_a_grid_is_counted_like_a_plain_one(
    monkeypatch: pytest.MonkeyPatch, degrees: float, most_pixels: int
) -> None:
    """Also one that is larger than what is read by regions may be: it is held in memory."""
    monkeypatch.setattr(illumination, "MOST_PIXELS", most_pixels)
    pipeline = Pipeline.load(Settings(classifiers=()))
    plain, shown = (pipeline.analyze(pixels).result for pixels in (field(), ruled(field(), degrees)))
    assert any("lines across the picture" in note for note in shown.reading)
    assert shown.scale.um_per_px == pytest.approx(plain.scale.um_per_px, rel=0.03)
    for kind in ("rbc", "wbc"):
        there, found = (int((each.detections.kinds == kind).sum()) for each in (plain, shown))
        assert abs(found - there) <= 0.05 * there, kind


@pytest.mark.parametrize(("um_per_px", "kept"), [(0.3, True), (0.1, False)])
def test_a_scan_is_not_searched_for_lines(um_per_px: float, *, kept: bool) -> None:
    """A picture of 0.25 mm2 and more that is read by regions was not made through an eyepiece."""
    pixels = ruled(np.tile(field(), (2, 3, 1)), 0, 450, 8)
    scan = Scan(pixels.shape[1::-1], pixels)
    found = Detections(*(np.zeros(shape, kind) for shape, kind in (((0, 4), "f4"), (0, "f4"), (0, "U3"), (0, "?"))))
    lit = illumination.Lit(cast(Any, scan))
    assert (illumination._without_reticle(lit, Scale(um_per_px, "estimated"), found, None) is lit) == kept


@dataclass
class Scan:
    """A picture that is not held in memory, as far as anybody asks."""

    size_wh: tuple[int, int]
    pixels: Pixels
    um_per_px: float | None = None
    path: Path = Path("scan.tif")
    scale_origin: str = ""
    notes: tuple[str, ...] = ()
    sha256: str = ""
    downsample: float = 1.0

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        return self.pixels[y : y + h, x : x + w]
