"""The scale of drawn smears whose cells have a known size: estimated, taken from metadata, given, or not to be had."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shapely
from conftest import Cells, Draw

import smearcount.scale as scale_module
from smearcount.detector import Detector
from smearcount.geometry import centres, diameters, iou_matrix
from smearcount.images import ArraySource
from smearcount.records import RED_CELL_UM, Detections, Scale
from smearcount.region import LARGE_UM2, Region
from smearcount.scale import (
    _crop,
    _explained,
    _Look,
    check_scale,
    find_at_scale,
    isolated_red_diameters,
    settle_scale,
    spread_estimate,
)

Make = Callable[..., Detector]
WINDOW = {"window_px": 1024}


@pytest.mark.parametrize(
    ("red_px", "size_wh"),
    [(22, (500, 400)), (40, (700, 600)), (75, (1000, 800)), (120, (1024, 1000)), (170, (1024, 1024))],
)
def test_the_estimate_is_within_three_per_cent(
    scatter_discs: Draw, disc_detector: Make, red_px: float, size_wh: tuple[int, int]
) -> None:
    smear = scatter_discs(size_wh, red_px, 2)
    settled = settle_scale(smear, disc_detector(**WINDOW))
    assert settled.scale.source == "estimated"
    assert settled.scale.um_per_px == pytest.approx(RED_CELL_UM / red_px, rel=0.03)
    assert settled.scale.red_cell_px == pytest.approx(red_px, rel=0.03)
    assert "relative to this slide" in settled.scale.note
    # The whole picture was looked at: its cells are all there, in pixels of the picture.
    assert settled.cells is not None
    assert len(settled.cells) == len(smear.discs)
    assert iou_matrix(smear.boxes, settled.cells.boxes).max(axis=1).min() > 0.7


def test_a_large_picture_is_judged_by_its_crop(scatter_discs: Draw, disc_detector: Make) -> None:
    smear = scatter_discs((1700, 1100), 60, 4, mixed=True)
    settled = settle_scale(smear, disc_detector(**WINDOW))
    assert settled.scale.source == "estimated"
    assert settled.scale.um_per_px == pytest.approx(RED_CELL_UM / 60, rel=0.03)
    assert settled.cells is None


def larger_in_the_middle(size_wh: tuple[int, int], other_px: float) -> Any:
    """Discs on a grid: of 60 px in the middle, where the first crop lies, of another diameter around it."""
    width, height = size_wh
    x, y = (each.ravel() for each in np.meshgrid(np.arange(60, width, 110), np.arange(60, height, 110)))
    in_middle = (abs(x - width / 2) < 640) & (abs(y - height / 2) < 640)
    return np.column_stack([x, y, np.where(in_middle, 60, other_px)])


@pytest.mark.parametrize(("size_wh", "whole"), [((2300, 2200), True), ((4400, 3300), False)])
def test_a_measured_picture_tells_of_red_cells_all_over(
    draw_discs: Draw, disc_detector: Make, size_wh: tuple[int, int], *, whole: bool
) -> None:
    discs = larger_in_the_middle(size_wh, 56)
    smear, network = draw_discs(size_wh, discs, ("rbc",) * len(discs)), disc_detector(**WINDOW)
    settled = settle_scale(smear, network)
    assert settled.scale.red_cell_px == pytest.approx(60, rel=0.02)
    spread = spread_estimate(smear, network, settled)
    assert (spread.cells is not None) == whole
    assert spread.scale.red_cell_px == float(np.median(spread.red_px)) == pytest.approx(56, rel=0.02)
    assert len(spread.red_px) > (len(discs) / 2 if whole else 3 * len(settled.red_px))
    given = settle_scale(smear, network, metadata=0.125)
    assert spread_estimate(smear, network, given) is given


@pytest.mark.parametrize(("other_px", "looks"), [(62, 1), (57, 1), (50, 2)])
def test_the_estimate_is_that_of_all_red_cells(
    draw_discs: Draw, disc_detector: Make, other_px: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    discs = larger_in_the_middle((2800, 2200), other_px)
    smear, network = draw_discs((2800, 2200), discs, ("rbc",) * len(discs)), disc_detector(**WINDOW)
    assert settle_scale(smear, network).scale.red_cell_px == pytest.approx(60, rel=0.02)
    whole, find = [], network.find

    def watched(seen: Any, um_per_px: float, part: Any = None) -> Detections:
        whole.extend([um_per_px] if seen is smear else [])
        return find(seen, um_per_px, part)

    monkeypatch.setattr(network, "find", watched)
    scale, cells = find_at_scale(smear, network)
    assert scale.red_cell_px == pytest.approx(other_px, rel=0.02)
    assert (scale.source, len(cells), len(whole)) == ("estimated", len(discs), looks)
    if looks == 1:
        assert float(np.median(isolated_red_diameters(cells))) * scale.um_per_px == pytest.approx(RED_CELL_UM)
    else:
        assert whole[-1] == scale.um_per_px
    # What was given is not estimated.
    assert find_at_scale(smear, network, metadata=0.12)[0].um_per_px == 0.12
    assert find_at_scale(smear, network, slide=slide(55))[0].um_per_px == RED_CELL_UM / 55


def test_a_region_of_a_scan_has_the_scale_of_the_scan(draw_discs: Draw, disc_detector: Make) -> None:
    """Its red cells, in the middle, are larger than those of most of the scan; only windows near it are searched."""
    size_wh = (5600, 4400)
    discs = larger_in_the_middle(size_wh, 52)
    smear, network = draw_discs(size_wh, discs, ("rbc",) * len(discs)), disc_detector(**WINDOW)
    region = Region(shapely.box(2700, 2100, 2900, 2300))
    whole, everything = find_at_scale(smear, network)
    scale, found = find_at_scale(smear, network, region=region)
    assert math.prod(size_wh) * scale.um_per_px**2 > LARGE_UM2
    assert scale.um_per_px == pytest.approx(whole.um_per_px, rel=0.02)
    near = isolated_red_diameters(found.take(region.contains(centres(found.boxes))))
    assert float(np.median(near)) > 1.1 * scale.red_cell_px
    assert 1 < len(near) < len(found) < 0.6 * len(everything)
    # Of a field, all is searched.
    field = larger_in_the_middle((1400, 1100), 62)
    small = draw_discs((1400, 1100), field, ("rbc",) * len(field))
    corner = Region(shapely.box(0, 0, 100, 100))
    assert len(find_at_scale(small, network, region=corner)[1]) == len(find_at_scale(small, network)[1])


def test_a_region_of_a_small_scan_is_searched_at_its_scale(
    draw_discs: Draw, disc_detector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is estimated from all of it, by red cells that were sought at the scale of those in the middle."""
    monkeypatch.setattr("smearcount.region.LARGE_UM2", 5e4)
    monkeypatch.setattr("smearcount.region.SOUGHT_UM", 20.0)
    discs = larger_in_the_middle((2300, 2200), 50)
    smear, network = draw_discs((2300, 2200), discs, ("rbc",) * len(discs)), disc_detector(**WINDOW)
    searched, find = [], network.find

    def watched(seen: Any, um_per_px: float, part: Any = None) -> Detections:
        searched.append((um_per_px, part is not None))
        return find(seen, um_per_px, part)

    monkeypatch.setattr(network, "find", watched)
    scale, cells = find_at_scale(smear, network, region=Region(shapely.box(0, 0, 300, 300)))
    assert scale.red_cell_px == pytest.approx(50, rel=0.02)
    assert searched[-1] == (scale.um_per_px, True)
    assert len(cells) < 0.5 * len(discs)


def test_a_picture_of_one_crop_keeps_its_estimate(scatter_discs: Draw, disc_detector: Make) -> None:
    smear, network = scatter_discs((700, 600), 40, 2), disc_detector(**WINDOW)
    settled = settle_scale(smear, network)
    scale, cells = find_at_scale(smear, network)
    assert settled.cells is not None
    assert scale == settled.scale
    assert np.array_equal(cells.boxes, settled.cells.boxes)


def test_an_empty_middle_is_no_hindrance(draw_discs: Draw, scatter_discs: Draw, disc_detector: Make) -> None:
    corner = scatter_discs((700, 560), 50, 3)
    smear = draw_discs((2300, 1900), corner.discs, corner.kinds)
    settled = settle_scale(smear, disc_detector(**WINDOW))
    assert settled.scale.source == "estimated"
    assert settled.scale.um_per_px == pytest.approx(RED_CELL_UM / 50, rel=0.03)


def test_the_users_word_is_taken_as_it_is(scatter_discs: Draw, disc_detector: Make) -> None:
    network = disc_detector(**WINDOW)
    settled = settle_scale(scatter_discs((400, 300), 60), network, flag=0.4, metadata=0.125)
    assert (settled.scale, settled.cells) == (settled.scale, None)
    assert (settled.scale.um_per_px, settled.scale.source) == (0.4, "flag")
    assert network._run.shapes == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("red_um", [5.4, 7.5, 10.4])
def test_metadata_that_the_cells_agree_with_are_taken(scatter_discs: Draw, disc_detector: Make, red_um: float) -> None:
    smear = scatter_discs((600, 500), 60, 5)
    scale = settle_scale(smear, disc_detector(**WINDOW), metadata=red_um / 60).scale
    assert (scale.um_per_px, scale.source, scale.note) == (red_um / 60, "metadata", "")
    assert scale.red_cell_px == pytest.approx(60, rel=0.03)


@pytest.mark.parametrize("red_um", [3.5, 14.0])
def test_metadata_that_the_cells_contradict_are_refused_and_named(
    scatter_discs: Draw, disc_detector: Make, red_um: float
) -> None:
    smear = scatter_discs((600, 500), 60, 5)
    scale = settle_scale(smear, disc_detector(**WINDOW), metadata=red_um / 60).scale
    assert scale.source == "estimated"
    assert scale.um_per_px == pytest.approx(RED_CELL_UM / 60, rel=0.03)
    assert scale.note.startswith(f"metadata of {red_um / 60:.4g} um a pixel not used")


def test_metadata_stand_where_there_are_too_few_cells(scatter_discs: Draw, disc_detector: Make) -> None:
    scale = settle_scale(scatter_discs((250, 170), 60), disc_detector(**WINDOW), metadata=0.125).scale
    assert (scale.um_per_px, scale.source) == (0.125, "metadata")
    assert "too few red cells" in scale.note


@pytest.mark.parametrize(("red_um", "taken"), [(3.9, False), (5.4, True), (10.0, True), (12.5, False)])
def test_metadata_unseen_in_the_middle_are_held_against_cells_elsewhere(
    draw_discs: Draw, scatter_discs: Draw, disc_detector: Make, red_um: float, *, taken: bool
) -> None:
    corner = scatter_discs((700, 560), 50, 3)
    smear = draw_discs((2300, 1900), corner.discs, corner.kinds)
    scale = settle_scale(smear, disc_detector(**WINDOW), metadata=red_um / 50).scale
    assert scale.red_cell_px == pytest.approx(50, rel=0.03)
    if taken:
        assert (scale.um_per_px, scale.source, scale.note) == (red_um / 50, "metadata", "")
    else:
        assert scale.source == "estimated"
        assert scale.um_per_px == pytest.approx(RED_CELL_UM / 50, rel=0.03)
        assert scale.note.startswith(f"metadata of {red_um / 50:.4g} um a pixel not used")


def test_few_cells_are_assumed_and_said(scatter_discs: Draw, disc_detector: Make) -> None:
    smear = scatter_discs((250, 250), 60, 6)
    assert 1 <= len(smear.discs) < 10
    scale = settle_scale(smear, disc_detector(**WINDOW)).scale
    assert scale.source == "assumed"
    assert scale.um_per_px == pytest.approx(RED_CELL_UM / 60, rel=0.03)
    assert "can't be trusted" in scale.note


@pytest.mark.parametrize("size_wh", [(1, 1), (300, 200), (1500, 1300)])
def test_an_empty_picture_survives(draw_discs: Draw, disc_detector: Make, size_wh: tuple[int, int]) -> None:
    settled = settle_scale(draw_discs(size_wh, np.zeros((0, 3)), ()), disc_detector(**WINDOW))
    assert settled.scale.source == "assumed"
    assert settled.scale.um_per_px > 0
    assert np.isnan(settled.scale.red_cell_px)
    assert settled.cells is None or len(settled.cells) == 0


def test_isolated_red_cells_are_preferred(cells: Cells) -> None:
    x = np.arange(12) * 50.0
    alone = np.stack([x, x * 0, x + 30, x * 0 + 30], axis=1)
    heap = np.stack([x[:9] + 4, x[:9] * 0 + 100, x[:9] + 44, x[:9] * 0 + 140], axis=1)
    pairs = np.concatenate([heap, heap + 6])
    kinds = ["rbc"] * 30 + ["wbc"]
    found = cells(np.concatenate([alone, pairs, [[900, 0, 1000, 100]]]), kinds)
    assert isolated_red_diameters(found).tolist() == [30] * 12
    edge = np.zeros(31, np.bool_)
    edge[:4] = True
    fewer = Detections(found.boxes, found.scores, found.kinds, edge)
    assert sorted(isolated_red_diameters(fewer).tolist()) == [30] * 8 + [40] * 18
    assert isolated_red_diameters(Detections.empty()).shape == (0,)


def test_many_cells_of_an_implausible_size_weigh_less_than_a_few_good_ones(cells: Cells) -> None:
    crop = _crop(ArraySource(np.zeros((100, 200, 3), np.uint8)), 1000)

    def explained(found: Detections, red_px: float) -> float:
        return _explained(_Look(red_px, crop, found)) * 100 * 200

    good, small = cells([[0, 0, 60, 60]] * 5), cells([[0, 0, 15, 15]] * 50)
    assert explained(good, 60) == pytest.approx(5 * 0.9 * 60)
    assert explained(good, 60) > explained(good, 50) > explained(small, 60)
    white = cells([[0, 0, 108, 108]] * 3, ["wbc", "platelet", "wbc"])
    assert explained(white, 60) == pytest.approx(2 * 0.9 * 108 / 2)
    specks = cells([[0, 0, 15, 15]] * 16)
    assert explained(specks, 15) < explained(good, 60)


def test_a_look_is_certain_by_number_size_and_score(cells: Cells) -> None:
    crop = _crop(ArraySource(np.zeros((900, 900, 3), np.uint8)), 1000)
    x, y = (each.ravel() * 90.0 for each in np.meshgrid(np.arange(4), np.arange(3)))
    found = cells(np.stack([x, y, x + 60, y + 60], axis=1))
    assert _Look(60, crop, found).is_certain
    assert _Look(44, crop, found).is_certain
    assert not _Look(42, crop, found).is_certain
    assert not _Look(60, crop, found.take(np.arange(12) < 9)).is_certain
    unsure = Detections(found.boxes, np.full(12, 0.69, np.float32), found.kinds, found.at_edge)
    assert not _Look(60, crop, unsure).is_certain
    assert not _Look(60, crop, Detections.empty()).is_certain


def test_a_given_scale_is_checked_against_the_cells(cells: Cells) -> None:
    x = np.arange(12) * 90.0
    found = cells(np.stack([x, x * 0, x + 75, x * 0 + 75], axis=1))
    assert check_scale(Scale(0.1, "flag"), found) == Scale(0.1, "flag", 75.0, "")
    doubtful = check_scale(Scale(0.2, "flag"), found)
    assert (doubtful.um_per_px, doubtful.source) == (0.2, "flag")
    assert "15.0 um" in doubtful.note
    metadata = Scale(0.2, "metadata", 40.0, "as it was")
    assert check_scale(metadata, found) is metadata
    few = Scale(0.2, "flag")
    assert check_scale(few, found.take(np.arange(9))) is few


@pytest.mark.parametrize("wrong", [0.15, 0.2])
def test_a_scale_given_at_which_no_red_cell_is_found_is_doubted(
    scatter_discs: Draw, disc_detector: Make, wrong: float
) -> None:
    smear, given = scatter_discs((900, 700), 60, 5), wrong * RED_CELL_UM / 60
    scale, cells = find_at_scale(smear, disc_detector(**WINDOW), given, metadata=0.3, slide=slide(50))
    assert len(cells) == 0
    assert (scale.um_per_px, scale.source) == (given, "flag")
    assert scale.note.endswith("the picture looks like 0.12 um a pixel: check --um-per-px")


def test_empty_and_sparse_fields_at_the_right_scale_are_not_doubted(
    scatter_discs: Draw, draw_discs: Draw, disc_detector: Make
) -> None:
    few = scatter_discs((250, 250), 60, 6)
    at = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 80 + 100
    platelets = draw_discs((650, 650), np.column_stack([at, np.full(36, 16)]), ("platelet",) * 36)
    for smear in (few, draw_discs((600, 500), np.zeros((0, 3)), ()), platelets):
        scale, cells = find_at_scale(smear, disc_detector(**WINDOW), RED_CELL_UM / 60)
        assert (cells.kinds == "rbc").sum() < 10
        assert scale.note == ""


@pytest.mark.parametrize("n", [150, 900])
def test_isolated_cells_are_those_of_the_matrix(cells: Cells, n: int) -> None:
    rng = np.random.default_rng(n)
    corner = rng.uniform(0, 60 * np.sqrt(n), (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 50, (n, 2))], axis=1)
    found = cells(boxes, rng.choice(["rbc", "rbc", "wbc", "platelet"], n).tolist())
    touched = (iou_matrix(found.boxes, found.boxes) > 0.05).sum(axis=1) > 1
    expected = diameters(found.boxes[(found.kinds == "rbc") & ~touched])
    assert 10 <= len(expected) < (found.kinds == "rbc").sum()
    np.testing.assert_array_equal(isolated_red_diameters(found), expected)


def slide(red_px: float) -> Scale:
    return Scale(RED_CELL_UM / red_px, "estimated", red_px, "one scale for the slide")


@pytest.mark.parametrize(("red_px", "taken"), [(30, False), (44, True), (80, True), (120, False)])
def test_the_scale_of_the_slide_is_taken_where_the_cells_agree_with_it(
    scatter_discs: Draw, disc_detector: Make, red_px: float, *, taken: bool
) -> None:
    smear = scatter_discs((600, 500), 60, 5)
    settled = settle_scale(smear, disc_detector(**WINDOW), slide=slide(red_px))
    assert settled.scale.source == "estimated"
    assert settled.scale.red_cell_px == pytest.approx(60, rel=0.03)
    if taken:
        assert (settled.scale.um_per_px, settled.scale.note) == (RED_CELL_UM / red_px, "one scale for the slide")
        assert len(settled.red_px) == 0
    else:
        assert settled.scale.um_per_px == pytest.approx(RED_CELL_UM / 60, rel=0.03)
        assert settled.scale.note.startswith(
            f"slide scale of {RED_CELL_UM / red_px:.4g} um a pixel not used (red cells"
        )


def test_few_cells_take_the_scale_of_the_slide(scatter_discs: Draw, draw_discs: Draw, disc_detector: Make) -> None:
    empty = draw_discs((300, 200), np.zeros((0, 3)), ())
    for smear in (scatter_discs((250, 170), 60), empty):
        scale = settle_scale(smear, disc_detector(**WINDOW), slide=slide(50)).scale
        assert (scale.um_per_px, scale.source, scale.note) == (0.15, "estimated", "one scale for the slide")


def test_flag_and_good_metadata_win_over_the_slide(scatter_discs: Draw, disc_detector: Make) -> None:
    smear, network = scatter_discs((600, 500), 60, 5), disc_detector(**WINDOW)
    assert settle_scale(smear, network, flag=0.4, metadata=0.12, slide=slide(50)).scale == Scale(0.4, "flag")
    told = settle_scale(smear, network, metadata=0.12, slide=slide(50)).scale
    assert (told.um_per_px, told.source, told.note) == (0.12, "metadata", "")
    wrong = settle_scale(smear, network, metadata=0.3, slide=slide(50)).scale
    assert (wrong.um_per_px, wrong.source) == (0.15, "estimated")
    assert wrong.note == "metadata of 0.3 um a pixel not used (red cells of 18.0 um); one scale for the slide"
    assert wrong.in_doubt
    assert not told.in_doubt


def test_metadata_and_slide_are_both_refused_and_the_estimate_is_made_once(
    scatter_discs: Draw, draw_discs: Draw, disc_detector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    corner = scatter_discs((700, 560), 50, 3)
    network, made, estimate = disc_detector(**WINDOW), [], scale_module._estimate
    monkeypatch.setattr(scale_module, "_estimate", lambda *given: made.append(1) or estimate(*given))
    # In the first the cells are seen in the middle and contradict at once, in the second only by the estimate.
    for smear, why in ((corner, "red cells of"), (draw_discs((2300, 1900), corner.discs, corner.kinds), "no cells")):
        made.clear()
        scale = settle_scale(smear, network, metadata=0.05, slide=slide(20)).scale
        assert len(made) == 1
        assert scale.um_per_px == pytest.approx(RED_CELL_UM / 50, rel=0.03)
        assert (scale.source, scale.in_doubt) == ("estimated", True)
        metadata, told, origin = scale.note.split("; ")
        assert metadata.startswith(f"metadata of 0.05 um a pixel not used ({why}")
        assert told.startswith(f"slide scale of 0.375 um a pixel not used ({why}")
        assert origin.startswith("estimated from the median red cell")


def test_the_cells_of_an_estimate_are_told(scatter_discs: Draw, disc_detector: Make) -> None:
    smear, network = scatter_discs((600, 500), 60, 5), disc_detector(**WINDOW)
    settled = settle_scale(smear, network)
    assert len(settled.red_px) == len(smear.discs)
    assert float(np.median(settled.red_px)) == settled.scale.red_cell_px
    assert len(settle_scale(smear, network, metadata=0.12).red_px) == 0
    assert len(settle_scale(smear, network, metadata=0.3).red_px) == len(smear.discs)
