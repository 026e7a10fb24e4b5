"""The annotated picture: the photograph unhidden, a legend that stays readable, texts inside their panel."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from outlined_cells import GREY, TAXONOMY, blank, make, one, outlined, rgb, scattered

from smearcount import overlay, panel
from smearcount.images import ArraySource, write_overlay
from smearcount.pipeline import Analysis
from smearcount.records import Counts, Labels, Scale
from smearcount.taxonomy import Taxonomy

LONG = "W" * 300 + " a_very-long.name \u00b5\u00fc\u00df\u2013 " * 40


@pytest.mark.parametrize("size_wh", [(1, 1), (64, 64), (300, 40), (640, 480), (1200, 300), (300, 1200)])
def test_photograph_stands_unhidden_in_the_corner(size_wh):
    result = make(size_wh, [((0, 0, size_wh[0] / 2, size_wh[1] / 2), "rbc", "normocyte", True)])
    sheet = overlay.draw_overlay(blank(size_wh), result, TAXONOMY)
    zoom = max(1, -(-500 // max(size_wh)))
    height, width = size_wh[1] * zoom, size_wh[0] * zoom
    np.testing.assert_array_equal(sheet[:height, :width], outlined(result, zoom))
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] * sheet.shape[1] > height * width


def test_an_overlay_of_an_earlier_run_in_the_other_format_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.full((50, 60, 3), 200, np.uint8)
    (tmp_path / "a.tif").touch()
    for most, suffix in ((100, ".jpg"), (40, ".tif"), (100, ".jpg")):
        monkeypatch.setattr("smearcount.images.writing.JPEG_MAX_SIDE_PX", most)
        assert write_overlay(tmp_path / "a", pixels, "jpg") == tmp_path / f"a.overlay{suffix}"
        assert {each.name for each in tmp_path.iterdir()} == {"a.tif", f"a.overlay{suffix}"}


def test_empty_result_draws_and_leaves_its_input():
    pixels = blank((640, 480))
    sheet = overlay.draw_overlay(pixels, make((640, 480)), TAXONOMY)
    assert np.all(pixels == GREY)
    np.testing.assert_array_equal(sheet[:480, :640], pixels)


def test_same_input_same_bytes():
    result = scattered()
    first, second = (overlay.draw_overlay(blank(result.size_wh), result, TAXONOMY) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def has(panel, colour) -> bool:
    return bool(np.any(np.all(panel == colour, axis=2)))


def panel_of(result):
    sheet = overlay.draw_overlay(blank(result.size_wh), result, TAXONOMY)
    sheet[: result.size_wh[1], : result.size_wh[0]] = panel.PAPER
    return sheet


def test_legend_holds_what_is_present_and_nothing_else():
    cells = [((20, 20, 80, 80), "rbc", "teardrop_cell", True), ((100, 20, 160, 80), "wbc", "unclassified", True)]
    panel = panel_of(make((640, 480), cells))
    assert has(panel, rgb(TAXONOMY.codes["teardrop_cell"].colour))
    assert has(panel, rgb(TAXONOMY.kinds["wbc"].colour))
    assert not has(panel, rgb(TAXONOMY.codes["burr_cell"].colour))
    assert not has(panel, rgb(TAXONOMY.kinds["platelet"].colour))


def test_warnings_stand_in_the_panel():
    assert not has(panel_of(make((640, 480))), panel.ALERT)
    assert has(panel_of(make((640, 480), warnings=["The field is out of focus."])), panel.ALERT)


def rows_of(result, pixels=None, factor=1):
    """Every row of the panel as (text, colour, small)."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        render = panel.render_rows
        patch.setattr(overlay, "render_rows", lambda block, face: drawn.extend(block) or render(block, face))
        pixels = blank(result.size_wh) if pixels is None else pixels
        overlay.draw_overlay(pixels, result, TAXONOMY, factor=factor)
    return [(" | ".join(span.text for span in row.spans), row.colour, row.small) for row in drawn]


ESTIMATED = Scale(0.1, "estimated", 75.0, "estimated from the median red cell")


@pytest.mark.parametrize(
    ("scale", "warnings", "colour"),
    [(ESTIMATED, (), panel.FAINT), (Scale(0.1, "assumed", note="no trust"), ("no trust",), panel.ALERT)],
)
def test_the_note_on_the_scale_stands_once_and_alerts_only_where_it_warns(scale, warnings, colour):
    result = make((640, 480), warnings=warnings, scale=scale)
    assert [row[1] for row in rows_of(result) if scale.note in row[0]] == [colour]


def test_few_white_cells_of_a_differential_alert_and_a_missing_classifier_does_not():
    plain = rows_of(make((640, 480)))
    assert [row[1] for row in plain if "no classifier" in row[0]] == [panel.FAINT]
    assert not [row for row in plain if "differential" in row[0]]
    labels = Labels(np.ones((1, 1), np.float32), ("neutrophil",))
    cell = [((20, 20, 80, 80), "wbc", "neutrophil", True)]
    named = rows_of(make((640, 480), cell, labels=labels, counts=Counts({"neutrophil": 1})))
    assert [row[1] for row in named if "a differential needs at least 100" in row[0]] == [panel.ALERT]
    assert [row[1] for row in named if "blasts" in row[0]] == [panel.FAINT]


class Recorder(ArraySource):
    """A picture that remembers the rectangles read of it."""

    def read(self, x, y, w, h):
        self.notes.append((x, y, w, h))
        return super().read(x, y, w, h)


@pytest.mark.parametrize(("size_wh", "factor"), [((640, 480), 4), ((641, 483), 4), ((333, 70), 7), ((50, 40), 1)])
def test_a_reduced_picture_is_the_mean_of_its_blocks(size_wh, factor, monkeypatch):
    monkeypatch.setattr(overlay, "_BLOCK_PX", 130)
    pixels = np.random.default_rng(0).integers(0, 256, (size_wh[1], size_wh[0], 3)).astype(np.uint8)
    source = Recorder(pixels, notes=[])
    reduced = overlay.read_reduced(source, factor)
    h, w = (math.ceil(side / factor) for side in pixels.shape[:2])
    padded = np.pad(pixels, ((0, h * factor - size_wh[1]), (0, w * factor - size_wh[0]), (0, 0)), "edge")
    mean = padded.reshape(h, factor, w, factor, 3).mean(axis=(1, 3))
    assert reduced.shape == (h, w, 3)
    assert np.abs(reduced - mean).max() <= 0.5 + 1e-9
    if factor > 1:
        assert max(max(read[2:]) for read in source.notes) <= 130
        assert sum(read[2] * read[3] for read in source.notes) == size_wh[0] * size_wh[1]


@pytest.mark.parametrize(
    ("size_wh", "factor"),
    [((640, 480), 1), ((10240, 5120), 1), ((7746, 7746), 2), ((20000, 9000), 2), ((100_000, 80_000), 12)],
)
def test_only_huge_pictures_are_reduced(size_wh, factor):
    assert overlay.reduction(size_wh) == factor
    assert size_wh[0] * size_wh[1] / factor**2 <= 60e6


def test_outlines_lie_around_the_cells_of_a_reduced_picture():
    result = make((2560, 1920), [((1000, 800, 1240, 1120), "rbc", "unclassified", True)])
    source = ArraySource(blank((2560, 1920)))
    sheet = overlay.draw_overlay(overlay.read_reduced(source, 4), result, TAXONOMY, factor=4)
    small = make((640, 480), [((250, 200, 310, 280), "rbc", "unclassified", True)])
    np.testing.assert_array_equal(sheet[:480, :640], outlined(small))
    texts = [row[0] for row in rows_of(result, pixels=blank((640, 480)), factor=4)]
    assert "Shown at 1/4 size" in texts
    assert not [text for text in texts if "magnified" in text]
    with pytest.raises(ValueError, match="pixels: expected uint8"):
        overlay.draw_overlay(blank((2560, 1920)), result, TAXONOMY, factor=4)


def test_an_analysis_reads_a_huge_picture_in_blocks(monkeypatch):
    monkeypatch.setattr(overlay, "_MOST_PIXELS", 640 * 480)
    monkeypatch.setattr(overlay, "_BLOCK_PX", 256)
    source = Recorder(blank((2560, 1920)), notes=[])
    sheet = Analysis(make((2560, 1920)), TAXONOMY, source).overlay()
    assert np.all(sheet[:480, :640] == GREY)
    assert max(sheet.shape) < 1400
    assert max(max(read[2:]) for read in source.notes) <= 256


@pytest.mark.parametrize(
    ("um_per_px", "room_px", "expected"),
    [(0.1, 300, (20, 200)), (0.1, 199.9, (10, 100)), (0.25, 4000, (500, 2000)), (0.07, 300, (20, 286)), (2, 0.1, None)],
)
def test_scale_bar_is_the_longest_round_one_that_fits(um_per_px, room_px, expected):
    assert overlay.scale_bar(um_per_px, room_px) == expected


@pytest.mark.parametrize(("side", "zoom"), [(640, 1), (250, 2)])
def test_drawn_scale_bar_is_as_long_as_its_label_says(side, zoom, monkeypatch):
    rows = []
    render = panel.render_rows
    monkeypatch.setattr(overlay, "render_rows", lambda block, face: rows.extend(block) or render(block, face))
    sheet = overlay.draw_overlay(blank((side, side)), make((side, side), um_per_px=0.13), TAXONOMY)
    label = next(after.spans[0].text for row, after in itertools.pairwise(rows) if row.bar_px)
    ink = np.all(sheet == panel.INK, axis=2)
    runs = [len(list(run)) for row in ink for is_ink, run in itertools.groupby(row.tolist()) if is_ink]
    assert max(runs) == round(float(label.split()[0]) * zoom / 0.13)


def test_long_texts_stay_in_the_margins_of_every_column(font_kind, monkeypatch):
    drawn = []
    render = panel.render_rows
    monkeypatch.setattr(
        overlay, "render_rows", lambda rows, face: drawn.append((render(rows, face), face)) or drawn[-1][0]
    )
    content = TAXONOMY.model_dump(mode="json")
    content["codes"]["normocyte"]["name"] = content["kinds"]["wbc"]["name"] = LONG
    cell = ((9, 9, 70, 70), "rbc", "normocyte", False)
    result = make((640, 480), [cell, cell], warnings=[LONG, LONG], image_id=LONG, counts=Counts({"normocyte": 10**9}))
    overlay.draw_overlay(blank((640, 480)), result, Taxonomy(**content))
    assert len(drawn) == 5, font_kind
    for block, face in drawn:
        assert np.all(block[:, : face.margin - 2] == panel.PAPER)
        assert np.all(block[:, -(face.margin - 2) :] == panel.PAPER)
        assert np.any(block != panel.PAPER)


def test_blocks_overlap_neither_the_photograph_nor_each_other():
    rng = np.random.default_rng(3)
    for _ in range(50):
        heights = rng.integers(10, 400, rng.integers(1, 7)).tolist()
        photo_wh, column = tuple(rng.integers(50, 1500, 2).tolist()), 200
        (width, height), places = overlay._layout(heights, photo_wh, column)
        used = np.zeros((height, width), np.int64)
        used[: photo_wh[1], : photo_wh[0]] += 1
        for (x, y), tall in zip(places, heights, strict=True):
            used[y : y + tall, x : x + column] += 1
        assert used.max() == 1
        assert used.sum() == photo_wh[0] * photo_wh[1] + column * sum(heights)


def test_panel_takes_more_columns_where_one_would_waste_paper():
    assert overlay._layout([300] * 4, (640, 640), 200)[0] == (640 + 2 * 200, 640)


@pytest.mark.parametrize(
    "pixels", [blank((10, 20)), np.zeros((480, 640, 3), np.float32), np.zeros((480, 640), np.uint8)]
)
def test_pixels_of_another_picture_are_refused(pixels):
    with pytest.raises(ValueError, match="pixels: expected uint8"):
        overlay.draw_overlay(pixels, one("rbc"), TAXONOMY)
