"""Cut-outs of a drawn grid: what lies in the middle, how large a pixel is, and how much was filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Draw

from smearcount.arrays import Pixels
from smearcount.geometry import FILL, samples_across
from smearcount.images import ArraySource
from smearcount.patches import PATCH_PX, PATCH_SIDE_UM, cut_patches, sample_window
from smearcount.records import KINDS


def middle(patch: Pixels) -> tuple[float, float, float]:
    """Centre of gravity (x, y) in pixels and the area of what is darker than the background."""
    weight = np.clip(FILL - patch[..., 1].astype(float), 0, None)
    weight[weight < 20] = 0
    at = np.arange(len(patch)) + 0.5
    total = weight.sum()
    return (
        float((weight.sum(axis=0) @ at) / total),
        float((weight.sum(axis=1) @ at) / total),
        float(total / weight.max()),
    )


@pytest.mark.parametrize("side_px", [30.0, 75.3, 200.0, 1000.5])
def test_the_cell_stands_in_the_middle_at_its_size(draw_discs: Draw, side_px: float) -> None:
    diameter = side_px * 0.5
    for fraction in ((0.0, 0.0), (0.25, 0.5), (0.5, 0.75), (0.9375, 0.125)):
        centre = 700 + fraction[0], 650 + fraction[1]
        source = draw_discs((1400, 1300), np.array([[*centre, diameter]]), ("rbc",))
        patch, filled = sample_window(source, centre, side_px, PATCH_PX)
        assert (patch.shape, patch.dtype, filled) == ((PATCH_PX, PATCH_PX, 3), np.uint8, 0)
        x, y, area = middle(patch)
        assert (x, y) == pytest.approx((PATCH_PX / 2, PATCH_PX / 2), abs=0.5)
        assert 2 * np.sqrt(area / np.pi) == pytest.approx(diameter / side_px * PATCH_PX, rel=0.01)


def test_a_drawn_grid_keeps_its_pitch() -> None:
    """Lines every 20 px, seen at 452 px for 100 px: five lines, 90.4 px apart, the fourth in the middle."""
    pixels = np.full((400, 400, 3), FILL, np.uint8)
    pixels[10::20] = 0
    source = Grid(pixels)
    patch, _ = sample_window(source, (190.5, 190.5), 100.0, PATCH_PX)
    dark = FILL - patch[:, 200, 1].astype(float)
    at = np.arange(PATCH_PX) + 0.5
    for line in range(-2, 3):
        expected = PATCH_PX / 2 + line * 20 * PATCH_PX / 100
        near = np.abs(at - expected) < 20
        assert (dark[near] @ at[near]) / dark[near].sum() == pytest.approx(expected, abs=0.5)
    assert np.ptp(patch[:, :, 1].astype(int), axis=1).max() <= 1


class Grid:
    """Pixels as a source that refuses to be read beyond its border."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.size_wh = (pixels.shape[1], pixels.shape[0])

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        assert 0 <= x < x + w <= self.size_wh[0]
        assert 0 <= y < y + h <= self.size_wh[1]
        return self.pixels[y : y + h, x : x + w].copy()


@pytest.mark.parametrize(
    ("centre", "side", "filled"),
    [
        ((50.0, 40.0), 40.0, 0.0),
        ((0.0, 40.0), 40.0, 0.5),
        ((0.0, 0.0), 40.0, 0.75),
        ((100.0, 80.0), 40.0, 0.75),
        ((95.0, 40.0), 40.0, 15 / 40),
        ((50.0, 40.0), 200.0, 1 - 100 * 80 / 200**2),
        ((50.25, 70.5), 40.0, 10.5 / 40),
        ((-30.0, 40.0), 40.0, 1.0),
        ((50.0, 500.0), 40.0, 1.0),
    ],
)
def test_the_share_filled_is_known_and_seen(centre: tuple[float, float], side: float, filled: float) -> None:
    source = Grid(np.zeros((80, 100, 3), np.uint8))
    for out_px in (64, PATCH_PX):
        patch, share = sample_window(source, centre, side, out_px)
        assert share == pytest.approx(filled, abs=1e-4)
        # The border between picture and filling is soft over a pixel of the picture.
        assert (patch / FILL).mean() == pytest.approx(filled, abs=0.02 if side < 100 else 0.01)


def scene(seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (20, 26, 3)).astype(np.uint8)
    return np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)


TURNS: dict[str, tuple[Callable[[Any], Any], Callable[[float, float, int, int], tuple[float, float]]]] = {
    "mirror": (lambda a: a[:, ::-1], lambda x, y, w, h: (w - x, y)),
    "upside down": (lambda a: a[::-1], lambda x, y, w, h: (x, h - y)),
    "quarter turn": (np.rot90, lambda x, y, w, h: (y, w - x)),
    "half turn": (lambda a: np.rot90(a, 2), lambda x, y, w, h: (w - x, h - y)),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("centre", [(100.0, 80.0), (61.25, 50.5), (5.0, 150.0)])
def test_turning_and_cutting_commute(turn: str, centre: tuple[float, float]) -> None:
    pixels = scene()
    of_pixels, of_point = TURNS[turn]
    turned = np.ascontiguousarray(of_pixels(pixels))
    moved = of_point(*centre, pixels.shape[1], pixels.shape[0])
    first, share = sample_window(Grid(pixels), centre, 70.0, 224)
    second, same_share = sample_window(Grid(turned), moved, 70.0, 224)
    assert share == same_share
    difference = np.abs(of_pixels(first).astype(int) - second.astype(int))
    assert difference.mean() < 2
    assert np.percentile(difference, 99) < 25


def test_boxes_become_patches_of_a_fixed_physical_side(draw_discs: Draw) -> None:
    """A cell twice as large fills twice the patch; another magnification changes nothing."""
    shares = {}
    for um_per_px in (0.1, 0.2):
        sizes = np.array([6.0, 9.0]) / um_per_px
        discs = np.array([[150, 150, sizes[0]], [350, 150, sizes[1]]])
        source = draw_discs((500, 300), discs, ("rbc", "rbc"))
        patches = list(cut_patches(source, source.boxes, np.array([12, 12], np.float32), um_per_px, 120))
        assert [(p.cell_id, p.side_um, p.filled, p.pixels.shape) for p in patches] == [
            (0, 12.0, 0.0, (120, 120, 3)),
            (1, 12.0, 0.0, (120, 120, 3)),
        ]
        shares[um_per_px] = [2 * np.sqrt(middle(p.pixels)[2] / np.pi) / 120 for p in patches]
    assert shares[0.1] == pytest.approx([6 / 12, 9 / 12], abs=0.02)
    assert shares[0.2] == pytest.approx(shares[0.1], abs=0.02)
    assert list(cut_patches(source, source.boxes[:0], np.zeros(0, np.float32), 0.1)) == []


def test_fine_detail_is_averaged_where_the_patch_is_coarser() -> None:
    board = np.indices((600, 600)).sum(axis=0) % 2 * 200
    source = Grid(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    patch, _ = sample_window(source, (300.0, 300.0), 400.0, 50)
    assert np.abs(patch.astype(int) - 100).max() <= 2


def test_every_kind_has_a_side() -> None:
    assert set(PATCH_SIDE_UM) == set(KINDS)


@pytest.mark.parametrize(
    ("px_per_px", "samples"), [(0.2, 1), (1.0, 1), (1.49, 1), (1.5, 2), (2.49, 2), (2.5, 3), (4.7, 5)]
)
def test_samples_across_leave_no_pixel_out(px_per_px: float, samples: int) -> None:
    assert samples_across(px_per_px) == samples
    assert px_per_px / samples <= 1.5


def test_a_window_of_a_small_step_is_one_bilinear_sample_a_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    view, _ = sample_window(ArraySource(pixels), (30.0, 30.0), 28.0, 20)
    at = 16 + (np.arange(20) + 0.5) * 1.4 - 0.5
    low, share = np.floor(at).astype(int), at - np.floor(at)
    rows = pixels[low] * (1 - share)[:, None, None] + pixels[low + 1] * share[:, None, None]
    expected = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
    assert np.abs(view - expected).max() <= 1
