"""The simulated smear against what its recipe asks for and against its own truth."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pydantic
import pytest

from smearcount.config import read_model, shipped
from smearcount.errors import ConfigError
from smearcount.simulate import (
    RED_CODES,
    WHITE_CODES,
    SimulatedSmear,
    SmearRecipe,
    picture,
    read_truth,
    render,
    sample_set,
    truth,
    write,
    write_set,
)
from smearcount.simulate.cells import Patch, Stain, draw_red_cell
from smearcount.simulate.outlines import blob, outline_of
from smearcount.simulate.scene import Cell, overlap_areas, place_cells
from smearcount.taxonomy import load_taxonomy

SMALL = SmearRecipe(width=400, height=320, um_per_px=0.16, red_cells=18, white_cells=1, platelets=3, debris=2, seed=5)
ALONE = SMALL.vary(red_cells=0, white_cells=0, platelets=0, debris=0, noise=0, light_unevenness=0)


@pytest.fixture(scope="module")
def smear() -> SimulatedSmear:
    return render(SMALL)


def _spans(outline: np.ndarray) -> np.ndarray:
    return outline.max(axis=0) - outline.min(axis=0)


def _disc(centre: tuple[float, float], radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + centre


def test_same_seed_same_bytes_and_another_seed_another_scene(smear: SimulatedSmear) -> None:
    again = render(SMALL)
    assert np.array_equal(smear.pixels, again.pixels)
    assert np.array_equal(smear.boxes, again.boxes)
    other = render(SMALL, seed=6)
    assert other.seed == 6
    assert not np.array_equal(smear.pixels, other.pixels)


def test_counts_are_those_of_the_recipe(smear: SimulatedSmear) -> None:
    assert truth(smear)["counts"] == {"rbc": 18, "wbc": 1, "platelet": 3}
    assert len(smear.boxes) == len(smear.kinds) == len(smear.codes) == len(smear.centres) == 22
    kind_of = load_taxonomy().kind_of
    assert [kind_of[code] for code in smear.codes] == smear.kinds.tolist()


def test_density_times_area_gives_the_number() -> None:
    recipe = SmearRecipe(width=1000, height=500, um_per_px=0.2, red_cells_per_mm2=5000)
    assert recipe.red_cell_number == 100  # 0.2 mm x 0.1 mm x 5000


def test_numbers_of_each_white_cell_are_kept() -> None:
    wanted = {"neutrophil": 2, "basophil": 1, "lymphocyte": 0}
    codes = [cell.code for cell in place_cells(SMALL.vary(white_cells=wanted, red_cells=0, platelets=0), 1)]
    assert sorted(codes) == ["basophil", "neutrophil", "neutrophil"]


def test_boxes_lie_in_the_picture_and_hold_dark_pixels(smear: SimulatedSmear) -> None:
    height, width = smear.pixels.shape[:2]
    assert smear.boxes.dtype == np.float32
    assert (smear.boxes >= 0).all()
    assert (smear.boxes[:, 2:] <= (width, height)).all()
    green = smear.pixels[:, :, 1].astype(int)
    empty = np.ones(green.shape, bool)
    for box in smear.boxes:
        x_min, y_min, x_max, y_max = np.round(box).astype(int)
        empty[max(y_min - 3, 0) : y_max + 3, max(x_min - 3, 0) : x_max + 3] = False
        assert green[y_min:y_max, x_min:x_max].min() < SMALL.background[1] - 30
    assert np.median(green[empty]) > SMALL.background[1] - 15
    assert np.mean(green[empty] < SMALL.background[1] - 40) < 0.002  # the specks of stain only


@pytest.mark.parametrize("code", ["normocyte", "macrocyte", "spherocyte", "neutrophil", "lymphocyte", "platelet"])
def test_box_is_tight_around_what_is_seen(code: str) -> None:
    rng = np.random.default_rng(3)
    kind = load_taxonomy().kind_of[code]
    cell = Cell(kind, code, outline_of(code, rng), (20.3, 18.9), (1, 2))
    recipe = ALONE.vary(width=600, height=560, um_per_px=0.07, refraction=0, blur_um=0)
    pixels = picture._photograph(recipe, [cell], 0)
    clean = picture._photograph(recipe, [], 0)
    rows, columns = np.nonzero((clean.astype(int) - pixels).max(axis=2) > 8)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 0.07
    told = np.concatenate([cell.outline_um.min(axis=0), cell.outline_um.max(axis=0)])
    assert np.abs(seen - told).max() < 0.35  # um: two pixels of a usual photograph


def test_box_of_a_cell_cut_by_the_border_is_around_what_is_left_of_it() -> None:
    recipe = ALONE.vary(width=300, height=240, um_per_px=0.1, refraction=0, blur_um=0)
    mix = {"teardrop_cell": 1.0, "sickle_cell": 1.0}
    cut = 0
    for seed in range(12):
        smear = render(recipe.vary(red_cells=3, clumped=0.0, red_mix=mix), seed)
        clean = picture._photograph(recipe, [], seed)
        seen = ((clean.astype(int) - smear.pixels).max(axis=2) > 8).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(seen)
        x, y, width, height = stats[stats[:, cv2.CC_STAT_AREA] > 60][1:, :4].T
        parts = np.stack([x, y, x + width, y + height], axis=1)
        for box in smear.boxes:
            assert np.abs(parts - box).max(axis=1).min() < 4
            cut += bool((box[:2] == 0).any() or (box[2:] == (300, 240)).any())
    assert cut > 6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overlaps_stay_below_the_limits(seed: int) -> None:
    recipe = SMALL.vary(red_cells=50, clumped=0.7, overlap=0.35, width=600, height=400)
    cells = place_cells(recipe, seed)
    covered = np.zeros(len(cells))
    overlapping = 0
    for i, one in enumerate(cells):
        for j, two in enumerate(cells[:i]):
            own, its, both = overlap_areas(one.outline_um, two.outline_um)
            if both:
                assert one.kind == two.kind == "rbc"
                assert both <= 0.35 * min(own, its) + 1e-9
                overlapping += 1
            covered[i] += both / own
            covered[j] += both / its
    assert covered.max() <= 0.61
    assert overlapping > 10


def test_without_overlap_nothing_touches() -> None:
    cells = place_cells(SMALL.vary(overlap=0, clumped=0.5, red_cells=24), 4)
    for i, one in enumerate(cells):
        for two in cells[:i]:
            gaps = np.hypot(*(one.outline_um[:, None] - two.outline_um[None]).transpose(2, 0, 1))
            assert gaps.min() > 0.1


def test_cells_cut_by_the_border_keep_their_share_inside() -> None:
    recipe = SMALL.vary(width=200, height=150, red_cells=7, white_cells=1, platelets=3)
    size = recipe.field_um
    frame = np.array([(0, 0), (size[0], 0), size, (0, size[1])])
    least = {"rbc": 0.32, "wbc": 0.59, "platelet": 0.74}
    cut = 0
    for seed in range(6):
        for cell in place_cells(recipe, seed):
            own, _, inside = overlap_areas(cell.outline_um, frame)
            assert inside >= least[cell.kind] * own
            cut += inside < 0.99 * own
    assert cut > 10


def test_overlap_area_of_two_discs_is_that_of_the_lens() -> None:
    radius, apart = 4.0, 5.0
    lens = 2 * radius**2 * np.arccos(apart / 2 / radius) - apart / 2 * np.sqrt(4 * radius**2 - apart**2)
    first, second, both = overlap_areas(_disc((1, 1), radius), _disc((1 + apart, 1), radius))
    assert (first, second) == pytest.approx((np.pi * radius**2,) * 2, rel=0.03)
    assert both == pytest.approx(lens, rel=0.06)
    assert overlap_areas(_disc((0, 0), 1), _disc((5, 0), 1))[2] == 0


def test_too_many_cells_are_an_error() -> None:
    with pytest.raises(ConfigError, match="no room for rbc"):
        place_cells(SMALL.vary(width=100, height=100, red_cells=200, white_cells=0, platelets=0), 0)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_other_magnification_is_the_same_scene(smear: SimulatedSmear, factor: float) -> None:
    other = render(SMALL.at_magnification(factor))
    assert other.pixels.shape == (320 * factor, 400 * factor, 3)
    assert other.codes.tolist() == smear.codes.tolist()
    np.testing.assert_allclose(other.boxes, smear.boxes * factor, atol=1e-3)
    small, large = sorted((smear.pixels, other.pixels), key=len)
    shrunk = cv2.resize(large, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(shrunk.astype(int) - small)
    assert difference.mean() < 2.5
    assert np.percentile(difference, 99) < 16


def test_tiles_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SMALL.vary(noise=0, light_unevenness=0.3, blur_um=0.4)
    whole = render(recipe).pixels
    monkeypatch.setattr(picture, "_TILE", 96)
    assert np.abs(render(recipe).pixels.astype(int) - whole).max() <= 1


def test_overlapping_cells_multiply_their_transmission() -> None:
    stain = Stain.of(1, 0, 0)
    left = Cell("rbc", "spherocyte", _disc((0, 0), 3), (10, 10), (1,))
    right = Cell("rbc", "spherocyte", _disc((0, 0), 3), (13, 10), (2,))
    window = (0, 0, 240, 200)
    both = picture._density([Patch(left, 0.1), Patch(right, 0.1)], stain, window)
    alone = [picture._density([Patch(cell, 0.1)], stain, window) for cell in (left, right)]
    np.testing.assert_allclose(10**-both, 10 ** -alone[0] * 10 ** -alone[1], rtol=1e-5)
    assert both[100, 115, 1] > 1.5 * alone[0][100, 95, 1]


def test_normocyte_has_a_pallor_and_a_spherocyte_none() -> None:
    stain = Stain.of(1, 0, 1)
    ratio = {}
    for code in ("normocyte", "spherocyte", "hypochromic_cell", "target_cell"):
        middle, ring = [], []
        for seed in range(12):
            cell = Cell("rbc", code, _disc((0, 0), 3.75), (5.0, 5.0), (seed,))
            patch = Patch(cell, 0.1)
            drawn = draw_red_cell(patch, stain)[:, :, 1]
            x, y = (round(5 / 0.1) - patch.window[0], round(5 / 0.1) - patch.window[1])
            middle.append(drawn[y, x])
            ring.append(drawn[y, x + 26] if code != "target_cell" else drawn[y, x + 18])
        ratio[code] = np.median(np.array(middle) / ring)
    assert 0.25 < ratio["normocyte"] < 0.75
    assert 0.93 < ratio["spherocyte"] < 1.1
    assert ratio["hypochromic_cell"] < 0.3
    assert ratio["target_cell"] > 1.3


LIMITS_UM = {
    "normocyte": (6, 9.3),
    "macrocyte": (8.3, 11.2),
    "microcyte": (4.4, 6.7),
    "spherocyte": (5, 7.2),
    "neutrophil": (12, 15),
    "eosinophil": (12, 16),
    "basophil": (10, 14),
    "lymphocyte": (8, 12),
    "monocyte": (14, 19),
    "platelet": (1.8, 3.5),
}


@pytest.mark.parametrize("code", LIMITS_UM)
def test_sizes_are_those_of_the_textbook(code: str) -> None:
    rng = np.random.default_rng(8)
    sizes = np.array([_spans(outline_of(code, rng)).mean() for _ in range(200)])
    low, high = LIMITS_UM[code]
    assert low * 0.95 <= sizes.min()
    assert sizes.max() <= high * 1.08
    if code == "normocyte":
        assert sizes.mean() == pytest.approx(7.5, abs=0.12)
        assert 0.3 < sizes.std() < 0.6


@pytest.mark.parametrize(
    ("code", "low", "high"),
    [("normocyte", 0.8, 1), ("ovalocyte", 0.6, 0.84), ("elliptocyte", 0.38, 0.6), ("sickle_cell", 0.15, 0.5)],
)
def test_axis_ratio_tells_the_long_shapes(code: str, low: float, high: float) -> None:
    rng = np.random.default_rng(9)
    for _ in range(40):
        (_, sides, _) = cv2.minAreaRect(outline_of(code, rng).astype(np.float32))
        assert low <= min(sides) / max(sides) <= high


def test_outlines_are_centred_and_do_not_cross_themselves() -> None:
    rng = np.random.default_rng(10)
    for code in (*RED_CODES, *WHITE_CODES, "platelet"):
        for _ in range(10):
            outline = outline_of(code, rng)
            np.testing.assert_allclose(outline.min(axis=0), -outline.max(axis=0), atol=1e-9)
            x, y = outline.T
            shoelace = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
            raster = overlap_areas(outline, outline)[0]
            assert raster == pytest.approx(shoelace, rel=0.25, abs=0.8), code


def test_blob_keeps_its_radius() -> None:
    outline = blob(np.random.default_rng(1), 4, 0)
    np.testing.assert_allclose(np.hypot(*outline.T), 4)


@pytest.mark.parametrize(
    ("change", "brighter"),
    [({"stain_strength": 0.5}, True), ({"stain_strength": 1.6}, False), ({"light_unevenness": 0.4}, False)],
)
def test_stain_and_light_change_the_brightness(smear: SimulatedSmear, change: dict[str, float], brighter: bool) -> None:
    mean = render(SMALL.vary(**change)).pixels.mean()
    assert (mean > smear.pixels.mean() + 1) if brighter else (mean < smear.pixels.mean() - 1)


def test_hue_turns_red_cells_from_pink_to_blue() -> None:
    pink, blue = (Stain.of(1, hue, 1).red for hue in (-1.0, 1.0))
    assert pink[0] < blue[0]
    assert pink[2] > blue[2]


def test_defocus_takes_detail_and_noise_adds_it(smear: SimulatedSmear) -> None:
    def detail(recipe: SmearRecipe) -> float:
        return float(np.abs(cv2.Laplacian(render(recipe).pixels.astype(np.float32), cv2.CV_32F)).mean())

    still = SMALL.vary(noise=0)
    assert detail(still.vary(blur_um=0.8)) < 0.6 * detail(still)
    assert detail(SMALL.vary(noise=6)) > 1.5 * detail(SMALL)


def test_noise_has_the_asked_deviation_at_full_light() -> None:
    recipe = ALONE.vary(background=(200, 200, 200))
    noisy, still = (render(recipe.vary(noise=level)).pixels.astype(float) for level in (4, 0))
    assert (noisy - still).std() == pytest.approx(4 * np.sqrt(200 / 255), rel=0.08)


def test_empty_slide_has_empty_truth() -> None:
    smear = render(ALONE)
    assert smear.boxes.shape == (0, 4)
    assert smear.centres.shape == (0, 2)
    assert truth(smear)["counts"] == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"red_mix": {"discocyte": 1}},
        {"red_mix": {}},
        {"white_cells": {"blast": 1}},
        {"white_cells": -1},
        {"white_cells": {"monocyte": -2}},
        {"um_per_px": 0.01},
        {"overlap": 0.7},
        {"background": (300, 0, 0)},
        {"colour": 1},
    ],
)
def test_wrong_recipes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        SMALL.vary(**wrong)


def test_codes_are_those_of_the_taxonomy() -> None:
    kind_of = load_taxonomy().kind_of
    assert {kind_of[code] for code in RED_CODES} == {"rbc"}
    assert {kind_of[code] for code in WHITE_CODES} == {"wbc"}


def test_written_set_reads_back(tmp_path: Path) -> None:
    recipes = {"one": SMALL, "two": SMALL.vary(seed=9, red_cells=4)}
    paths = write_set(recipes, tmp_path / "new", suffix=".png")
    assert [path.name for path in paths] == ["one.png", "two.png"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["one.png", "truth.json", "two.png"]
    known = read_truth(tmp_path / "new")
    assert known["two.png"]["counts"]["rbc"] == 4
    decoded = cv2.imread(str(paths[0]))[:, :, ::-1]
    assert np.array_equal(decoded, render(SMALL).pixels)
    assert len(known["one.png"]["boxes"]) == 22


def test_writing_again_gives_the_same_bytes(tmp_path: Path, smear: SimulatedSmear) -> None:
    path = write(smear, tmp_path, "field")
    before = path.read_bytes(), (tmp_path / "truth.json").read_bytes()
    write(smear, tmp_path, "field")
    assert (path.read_bytes(), (tmp_path / "truth.json").read_bytes()) == before
    with pytest.raises(ValueError, match="suffix"):
        write(smear, tmp_path, "field", suffix=".bmp")


@pytest.mark.parametrize(
    "line", ["red_cells_per_mm2: .inf", "red_mix: {normocyte: .inf}", "red_mix: {normocyte: 1.0e+308}", "noise: .nan"]
)
def test_numbers_beyond_all_cells_are_refused_by_their_key(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.yaml").write_text(line)
    with pytest.raises(ConfigError, match=line.partition(":")[0]):
        read_model(SmearRecipe, tmp_path / "r.yaml")


@pytest.mark.parametrize("content", ["{", json.dumps([1])])
def test_damaged_truth_is_not_overwritten(tmp_path: Path, smear: SimulatedSmear, content: str) -> None:
    (tmp_path / "truth.json").write_text(content)
    with pytest.raises(ConfigError, match=r"truth\.json"):
        write(smear, tmp_path, "field")
    assert [p.name for p in tmp_path.iterdir()] == ["truth.json"]


def test_shipped_recipe_is_the_default_but_for_its_mix() -> None:
    recipe = read_model(SmearRecipe, shipped("configs") / "simulate" / "field.yaml")
    assert recipe.vary(red_mix={"normocyte": 1}) == SmearRecipe()


def test_samples_cover_what_they_promise() -> None:
    samples = sample_set()
    assert len(samples) >= 8
    normal, half, double = (samples[name] for name in ("normal", "half_magnification", "double_magnification"))
    assert normal.field_um == half.field_um == double.field_um
    assert normal.seed == half.seed == double.seed
    assert samples["large_field"].red_cell_number > 1000
    assert set(samples["morphology_mix"].red_mix) == set(RED_CODES)
