"""The legend of the overlay: a line with sample, count and share for every type that is present, all of it readable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from outlined_cells import TAXONOMY, blank, rgb

from smearcount import counting, overlay, panel
from smearcount.countable import COLOURS, TINT


@pytest.fixture
def named(cells, make_result):
    """Results whose counts are those of their cells: (kind, name, counted), on a grid."""

    def make(size_wh, rows):
        columns = size_wh[0] // 60
        corners = [(10 + 60 * (n % columns), 10 + 60 * (n // columns)) for n in range(len(rows))]
        kinds, names, counted = ([row[n] for row in rows] for n in range(3))
        found = cells([(x, y, x + 40, y + 40) for x, y in corners], kinds)
        result = make_result(found, size_wh=size_wh, names=np.array(names, "<U24"), counted=np.array(counted))
        result = replace(result, detections=found)
        edge = {"edge": int((~result.counted).sum())}
        return replace(result, counts=counting.count_cells(found, result.names, result.counted, edge, TAXONOMY))

    return make


def drawn_rows(result, pixels=None, factor=1):
    """Every row of the panel with the face it is drawn in."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        render = panel.render_rows
        patch.setattr(
            overlay,
            "render_rows",
            lambda block, face: drawn.extend((row, face) for row in block) or render(block, face),
        )
        pixels = blank(result.size_wh) if pixels is None else pixels
        overlay.draw_overlay(pixels, result, TAXONOMY, factor=factor)
    return drawn


def legend_of(result):
    """Rows of the legend between its heading and its footnote: colour and dashes of the sample, and the texts."""
    rows = [row for row, _ in drawn_rows(result)]
    start = next(n for n, row in enumerate(rows) if row.spans and row.spans[0].text == "type") + 1
    end = next(n for n, row in enumerate(rows) if row.spans and "sampling error only" in row.spans[0].text)
    return [
        (row.pen and (row.pen.colour, row.pen.dashed), *(span.text for span in row.spans)) for row in rows[start:end]
    ]


def test_a_legend_without_names_shows_the_kinds(named):
    cells = [("rbc", "unclassified", True)] * 3 + [("platelet", "platelet", True)]
    rows = legend_of(named((640, 480), cells))
    red, yellow = ((rgb(TAXONOMY.kinds[kind].colour), False) for kind in ("rbc", "platelet"))
    assert rows == [
        (red, "Red blood cells", "3", "75.0 (19.4 - 99.4)"),
        (None, "White blood cells", "0", "0 (0 - 60.2)"),
        (yellow, "Platelets", "1", "25.0 (0.63 - 80.6)"),
    ]


def test_the_tints_of_a_large_picture_have_a_key(named):
    result = named((640, 480), [("rbc", "unclassified", True)] * 3 + [("rbc", "unclassified", False)] * 2)
    shares = {"countable": 0.9, "background": 0.0, "too thick": 0.08, "debris": 0.02}
    quality = replace(result.quality, shares=shares)
    counts = replace(result.counts, excluded={"edge": 0, "too thick": 2, "debris": 0})
    drawn = drawn_rows(replace(result, quality=quality, counts=counts))
    tinted = [(row, face) for row, face in drawn if row.tint]
    assert [tuple(span.text for span in row.spans) for row, _ in tinted] == [
        ("tinted: too thick", "2", "8.0 % of the area"),
        ("tinted: debris", "0", "2.0 % of the area"),
    ]
    for (row, face), name in zip(tinted, ("too thick", "debris"), strict=True):
        # As the tint looks on the paper of the panel.
        expected = (1 - TINT) * np.array(panel.PAPER) + TINT * np.array(COLOURS[name])
        np.testing.assert_allclose(row.tint, expected, atol=1)
        pixels = panel.render_rows([row], face)
        assert (pixels[face.margin + face.leading // 2, face.margin + face.size] == row.tint).all()
    assert not any(row.tint for row, _ in drawn_rows(result))


def test_a_legend_with_names_shows_sample_count_and_share_of_each_type(named):
    cells = [("rbc", "normocyte", True)] * 4 + [("rbc", "unclassified", True), ("rbc", "sickle_cell", False)]
    cells += [("nrbc", "erythroblast", True), ("nrbc", "unclassified", False), ("wbc", "unclassified", True)]
    rows = legend_of(named((640, 480), cells))
    colours = {name: (rgb(entry.colour), False) for name, entry in (*TAXONOMY.codes.items(), *TAXONOMY.kinds.items())}
    assert [row[:3] for row in rows] == [
        (None, "Red blood cells", "5"),
        (colours["normocyte"], "Normocyte", "4"),
        (colours["rbc"], "Unclassified", "1"),
        (colours["sickle_cell"], "Sickle cell", "0"),
        (colours["wbc"], "White blood cells", "1"),
        (colours["erythroblast"], "Nucleated red cells", "1"),
        (colours["nrbc"], "Nucleated red cells, unclassified", "0"),
        (None, "Platelets", "0"),
        ((panel.FAINT, True), "not counted (dashed)", "2"),
    ]
    assert rows[1][3] == "100 (39.8 - 100)"


EVERY_CODE = [(entry.kind, code, True) for code, entry in TAXONOMY.codes.items()]
EVERY_CODE += [(kind, "unclassified", True) for kind in TAXONOMY.kinds] + [("rbc", "normocyte", False)]


@pytest.mark.parametrize(("size_wh", "factor"), [((640, 480), 1), ((5000, 3000), 1), ((10_000, 9_000), 2)])
def test_every_code_of_a_full_legend_is_readable(named, size_wh, factor):
    """Each present type has its own line: no text is wrapped or cut, no sample is smaller than a letter."""
    result = named(size_wh, EVERY_CODE)
    pixels = blank([side // factor for side in size_wh])
    drawn = [(row, face) for row, face in drawn_rows(result, pixels, factor) if row.pen]
    names = [entry.name for code, entry in TAXONOMY.codes.items() if code not in ("erythroblast", "platelet")]
    assert set(names) <= {row.spans[0].text for row, _ in drawn}
    shown = {row.pen.colour for row, _ in drawn}
    assert {rgb(entry.colour) for entry in (*TAXONOMY.codes.values(), *TAXONOMY.kinds.values())} <= shown
    for row, face in drawn:
        font = face.bold if row.bold else face.plain
        wide = [panel.wrap(span.text, font, span.width, 9) for span in row.spans]
        assert "unclassified" in row.spans[0].text or max(map(len, wide)) == 1, row.spans
        assert row.pen.line_px >= face.size / 7
        left, right = row.spans[0].left, row.spans[0].left + row.spans[0].width
        assert left >= 2 * face.size
        assert right <= row.spans[1].left + 1e-6
    assert face.size >= 12


def test_a_long_legend_goes_on_in_another_block(named, monkeypatch):
    blocks = []
    render = panel.render_rows
    monkeypatch.setattr(overlay, "render_rows", lambda rows, face: blocks.append(rows) or render(rows, face))
    overlay.draw_overlay(blank((640, 480)), named((640, 480), EVERY_CODE), TAXONOMY)
    legend = [rows for rows in blocks if any(row.pen for row in rows)]
    assert len(legend) > 1
    assert legend[1][0].spans[0].text == "White blood cells"
    assert max(map(len, legend)) <= 32


def test_the_legend_has_headings_and_a_footnote(named):
    for code, foot in (("unclassified", ""), ("normocyte", "below a kind: % of its named cells; ")):
        rows = [row for row, _ in drawn_rows(named((640, 480), [("rbc", code, True)])) if row.small]
        texts = [[span.text for span in row.spans] for row in rows]
        assert texts == [["type", "count", "% of all cells (95 %)"], [foot + "limits: sampling error only"]]
        assert {row.colour for row in rows} == {panel.FAINT}
