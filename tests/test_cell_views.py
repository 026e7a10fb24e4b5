"""Views of a cell: where every pixel comes from is known, and nothing but what was asked for is changed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from smearcount.arrays import Doubles, Pixels
from smearcount.config import read_model
from smearcount.training.cell_views import CellAugmentation, Warp, augmented_view, plain_view, warped_view
from smearcount.training.naming_recipe import ClassifierRecipe

STILL = CellAugmentation()
THESIS, STRONG = (
    read_model(ClassifierRecipe, Path(__file__).parents[1] / "configs" / "train" / name).augmentation
    for name in ("thesis.yaml", "white-cells.yaml")
)


def scene(size: int = 160, seed: int = 0, block: int = 8) -> Pixels:
    """Blocks of colours, so that every way of turning it looks different."""
    coarse = np.random.default_rng(seed).integers(20, 236, (-(-size // block), -(-size // block), 3)).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(coarse, block, axis=0), block, axis=1)[:size, :size])


def stained_cell(size: int = 120) -> Pixels:
    """A red disc on a light ground, at 0.1 um a pixel."""
    away = np.hypot(*(np.indices((size, size)) + 0.5 - size / 2))
    share = np.clip(36 - away, 0, 1)[..., None]
    return np.rint((1 - share) * (230, 222, 214) + share * (205, 130, 140)).astype(np.uint8)


def view(pixels: Pixels, augmentation: CellAugmentation, seed: int = 0, out_px: int = 96) -> Pixels:
    return augmented_view(pixels, 0.1, 10.0, out_px, augmentation, np.random.default_rng(seed))


def middle_of_dark(picture: Pixels) -> Doubles:
    """Centre of gravity x, y of what is darker than white, from the top-left corner."""
    weight = 255 - picture[..., 1].astype(float)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize("size", [141, 160, 400])
@pytest.mark.parametrize("out_px", [96, 224])
def test_without_augmentation_a_view_is_the_patch_of_inference(size: int, out_px: int) -> None:
    pixels = scene(size)
    um_per_px = 10 / (0.8 * size)
    plain = plain_view(pixels, um_per_px, 10.0, out_px)
    same = augmented_view(pixels, um_per_px, 10.0, out_px, STILL, np.random.default_rng(3))
    assert np.abs(plain.astype(int) - same).max() <= 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("size", [160, 330])
def test_quarter_turns_are_exact(quarters: int, size: int) -> None:
    pixels = scene(size)
    turned = warped_view(pixels, 0.75 * size, 96, Warp(turn=quarters * math.pi / 2))
    plain = warped_view(pixels, 0.75 * size, 96, Warp())
    assert np.abs(np.rot90(plain, quarters).astype(int) - turned).max() <= 2
    assert np.abs(plain.astype(int) - turned).mean() > 20


@pytest.mark.parametrize(("mirror", "axis"), [((-1.0, 1.0), 1), ((1.0, -1.0), 0)])
def test_mirror_images_are_exact(mirror: tuple[float, float], axis: int) -> None:
    pixels = scene()
    mirrored = warped_view(pixels, 120.0, 96, Warp(mirror=mirror))
    assert np.abs(np.flip(plain_view(pixels, 0.1, 12.0, 96), axis).astype(int) - mirrored).max() <= 2


def test_a_view_that_is_surely_mirrored_both_ways_is_upside_down() -> None:
    pixels = scene()
    both = view(pixels, CellAugmentation(flip=1))
    assert np.abs(np.rot90(plain_view(pixels, 0.1, 10.0, 96), 2).astype(int) - both).max() <= 2


@pytest.mark.parametrize("turn", [0.3, 1.9, 4.0])
@pytest.mark.parametrize("magnification", [0.8, 1.0, 1.5])
def test_a_dot_lands_where_the_map_says(turn: float, magnification: float) -> None:
    """A dot 30 px right of the middle and 10 above it, anticlockwise by the turn, off by the shift."""
    pixels = np.full((200, 200, 3), 255, np.uint8)
    pixels[88:92, 128:132] = 0
    warp = Warp(turn=turn, magnification=magnification, shift_px=(4.0, -6.0))
    dot = np.array([30 - 4, -10 + 6])
    cos, sin = math.cos(turn), math.sin(turn)
    expected = 50 + magnification * np.array([cos * dot[0] + sin * dot[1], -sin * dot[0] + cos * dot[1]])
    assert middle_of_dark(warped_view(pixels, 100.0, 100, warp)) == pytest.approx(expected, abs=0.1)


def test_a_stretched_disc_is_longer_along_its_direction() -> None:
    pixels = np.full((200, 200, 3), 255, np.uint8)
    pixels[np.hypot(*(np.indices((200, 200)) - 99.5)) < 40] = 0
    for stretched in (0.0, 0.6, 2.0):
        dark = warped_view(pixels, 150.0, 150, Warp(aspect=1.44, stretched=stretched))[..., 1] < 128
        rows, columns = np.nonzero(dark)
        (small, large), axes = np.linalg.eigh(np.cov(columns, rows))
        assert math.sqrt(large / small) == pytest.approx(1.44, rel=0.01)
        assert abs(axes[:, 1] @ (math.cos(stretched), math.sin(stretched))) == pytest.approx(1, abs=0.01)
        assert dark.sum() == pytest.approx(math.pi * 40**2, rel=0.01)


def test_fine_detail_is_averaged_where_a_view_shrinks() -> None:
    board = np.repeat((np.indices((600, 600)).sum(axis=0) % 2 * 200)[..., None], 3, axis=2).astype(np.uint8)
    for turn in (0.0, 0.4, 1.0):
        assert np.abs(warped_view(board, 400.0, 48, Warp(turn=turn)).astype(int) - 100).max() <= 12


def test_beyond_the_window_the_picture_is_mirrored() -> None:
    pixels = scene(100)
    wide = warped_view(pixels, 140.0, 140, Warp())
    assert (wide[20:120, 20:120] == pixels).all()
    assert (wide[20:120, :20] == pixels[:, :20][:, ::-1]).all()


def test_magnification_and_shift_keep_within_their_bounds() -> None:
    """The diameter of a disc and its place tell what was drawn: a normal spread, cut off at 2.3 deviations."""
    pixels = np.full((160, 160, 3), 255, np.uint8)
    pixels[np.hypot(*(np.indices((160, 160)) - 79.5)) < 25] = 0
    sizes, places = [], []
    for seed in range(150):
        moved = view(pixels, CellAugmentation(scale_sigma=0.1, shift_um=0.5), seed, 100)
        sizes.append(math.log(math.sqrt((moved[..., 1] < 128).sum() / (math.pi * 25**2))))
        places.append((middle_of_dark(moved) - 50) / math.exp(sizes[-1]) / 10)
    assert np.abs(sizes).max() < 0.24
    assert np.std(sizes) == pytest.approx(0.1, rel=0.2)
    assert np.abs(places).max() < 1.25
    assert np.std(places) == pytest.approx(0.5, rel=0.2)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    pixels = stained_cell()
    first, again, other = (view(pixels, STRONG, seed) for seed in (5, 5, 6))
    assert (first == again).all()
    assert (first != other).any()
    assert (first.shape, first.dtype, first.flags["C_CONTIGUOUS"]) == ((96, 96, 3), np.uint8, True)


@pytest.mark.parametrize("size", [60, 121])
def test_views_of_any_size_leave_the_window_untouched(size: int) -> None:
    pixels = scene(size)
    before = pixels.copy()
    for seed in range(40):
        assert view(pixels, STRONG, seed, 64).shape == (64, 64, 3)
    assert (pixels == before).all()


def test_a_cell_laid_over_the_edge_adds_its_density_there_and_leaves_the_middle() -> None:
    """Two equal discs: where they overlap the light is that through both, elsewhere that through one or none."""
    pixels, size = stained_cell(), 60
    background, stained = np.array([230, 222, 214]), np.array([205, 130, 140])
    both, overlapped = stained**2 / background, 0
    for seed in range(40):
        chance = np.random.default_rng(seed)
        laid = augmented_view(pixels, 0.1, 12.0, size, CellAugmentation(overlap_share=1), chance, lambda: (pixels, 0.1))
        away = np.hypot(*(np.indices((size, size)) + 0.5 - size / 2)) * 0.2
        assert np.abs(laid[away < 0.3] - stained).max() <= 2
        far = np.abs(laid - background).max(axis=2) <= 2
        doubled = np.abs(laid - both).max(axis=2) <= 3
        assert not doubled[away > 3.7].any()
        assert (far | doubled | (np.abs(laid - stained).max(axis=2) <= 2)).mean() > 0.75
        overlapped += bool(doubled.any())
    assert 15 <= overlapped < 40


def test_a_cell_without_a_share_of_overlaps_stays_alone() -> None:
    pixels = stained_cell()
    alone = augmented_view(pixels, 0.1, 10.0, 96, STILL, np.random.default_rng(0), lambda: (scene(), 0.1))
    assert (alone == view(pixels, STILL)).all()


def test_steps_of_no_strength_change_nothing() -> None:
    """Density to light and back, a turn of hues by nothing, contrast 1: within the rounding."""
    for pixels in (scene(), stained_cell()):
        neutral = CellAugmentation(stain_share=1, colour_share=1, light_share=1)
        assert np.abs(view(pixels, neutral).astype(int) - view(pixels, STILL)).max() <= 1


def test_another_stain_keeps_the_light_and_another_light_keeps_the_stain() -> None:
    pixels = (0.7 * stained_cell()).astype(np.uint8)
    before = view(pixels, STILL).astype(int)
    for seed in range(10):
        stained = view(pixels, CellAugmentation(stain_share=1, stain_sigma=0.4), seed).astype(int)
        assert np.abs(stained[:8] - before[:8]).max() <= 1
        lit = view(pixels, CellAugmentation(light_share=1, brightness=0.3), seed).astype(float)
        ratio = np.log(lit[48, 48] + 1) - np.log(lit[2, 2] + 1)
        assert ratio == pytest.approx(np.log(before[48, 48] + 1) - np.log(before[2, 2] + 1), abs=0.02)
    changes = [view(pixels, CellAugmentation(stain_share=1, stain_sigma=0.4), s)[48, 48] for s in range(10)]
    assert np.ptp(changes, axis=0).min() > 10


def test_hues_turn_about_grey_and_keep_the_brightness() -> None:
    grey = np.full((120, 120, 3), 150, np.uint8)
    turning = CellAugmentation(colour_share=1, hue_sigma=0.2, saturation_sigma=0.1)
    assert np.abs(view(grey, turning).astype(int) - 150).max() <= 1
    thirds = [view(np.full((120, 120, 3), (160, 140, 140), np.uint8), turning, s)[0, 0] for s in range(20)]
    assert {int(colour.argmax()) for colour in thirds} == {0, 1, 2}
    assert np.ptp(np.array(thirds) @ (0.299, 0.587, 0.114)) < 8


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"blur_share": 1.0, "blur_um": 0.5}, "softer"),
        ({"shrink_share": 1.0, "coarsest_um": 1.0}, "softer"),
        ({"sharpen_share": 1.0, "sharpen": 2.0}, "harder"),
        ({"noise_share": 1.0, "noise": 20.0}, "harder"),
    ],
)
def test_focus_and_noise_change_the_detail_as_named(changes: dict[str, float], expected: str) -> None:
    def detail(picture: Pixels) -> float:
        return float((np.diff(picture.astype(float), axis=0) ** 2).mean())

    pixels = stained_cell()
    before = detail(view(pixels, STILL))
    after = [detail(view(pixels, CellAugmentation.model_validate(changes), seed)) for seed in range(8)]
    assert max(after) < 1.001 * before if expected == "softer" else min(after) > before
    assert np.mean(after) < 0.95 * before if expected == "softer" else np.mean(after) > 1.05 * before


def test_compression_keeps_the_colours() -> None:
    pixels = stained_cell()
    packed = view(pixels, CellAugmentation(jpeg_share=1, jpeg_quality=30)).astype(float)
    assert (packed != view(pixels, STILL)).any()
    assert np.abs(packed.mean(axis=(0, 1)) - view(pixels, STILL).mean(axis=(0, 1))).max() < 2


def test_grey_and_plain_views_come_in_their_shares() -> None:
    pixels = stained_cell()
    still = view(pixels, STILL, out_px=32)
    views = [view(pixels, CellAugmentation(grey=0.3), seed, 32) for seed in range(200)]
    assert np.mean([(v[..., 0] == v[..., 2]).all() for v in views]) == pytest.approx(0.3, abs=0.09)
    loud = CellAugmentation(plain=0.4, light_share=1, brightness=0.5, noise_share=1, noise=10)
    plain = [np.array_equal(view(pixels, loud, seed, 32), still) for seed in range(200)]
    assert np.mean(plain) == pytest.approx(0.4, abs=0.09)


def test_the_thesis_can_be_said() -> None:
    """Mirror images, zoom and light each in three of four views; zoom to 1.1, no warp, light by a fifth."""
    pixels = np.full((160, 160, 3), 120, np.uint8)
    pixels[40:70, 40:60] = 60
    still = THESIS.model_copy(update={"rotate": 0.0})
    top, left, dark, sizes = [], [], [], []
    for seed in range(250):
        picture = view(pixels, still, seed, 100)
        mark = picture[..., 1] < picture[0, 0, 1] * 0.75
        rows, columns = np.nonzero(mark)
        top.append(rows.mean() < 50)
        left.append(columns.mean() < 50)
        dark.append(math.log(picture[99, 50, 1] / 120))
        sizes.append(abs(rows.mean() + 0.5 - 50) / 25)
    assert np.mean(top) == pytest.approx(0.25, abs=0.07)
    assert np.mean(left) == pytest.approx(0.25, abs=0.07)
    assert np.mean(np.abs(dark) > 0.005) == pytest.approx(0.75, abs=0.07)
    assert 0.15 < np.abs(dark).max() < 0.21
    assert np.mean(np.array(sizes) > 1.01) == pytest.approx(0.9 * 0.75, abs=0.07)
    assert 1.08 < np.max(sizes) < 1.11
    unturned = view(pixels, STILL, 0, 32)
    turned = [not np.array_equal(view(pixels, CellAugmentation(rotate=0.75), s, 32), unturned) for s in range(200)]
    assert np.mean(turned) == pytest.approx(0.75, abs=0.09)


def test_strong_views_still_show_the_cell() -> None:
    for seed in range(60):
        picture = view(stained_cell(), STRONG, seed, 64).astype(float).mean(axis=2)
        assert picture[28:36, 28:36].mean() < np.percentile(picture, 95) - 4


@pytest.mark.parametrize("wrong", [{"plain": 1.5}, {"zoom_to": 0.9}, {"blur_um": 0}, {"rotation": 1}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CellAugmentation.model_validate(wrong)
