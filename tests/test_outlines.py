"""Outlines: where the boxes are, in colours that can be told apart, around cells that stay as photographed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from outlined_cells import GREY, TAXONOMY, blank, make, one, outlined, rgb, scattered
from skimage.color import deltaE_ciede2000, rgb2lab

from smearcount import outlines


def on_the_line(result, row=0):
    """Pixel x, y in the middle of the line, right of the box at half its height."""
    style = outlines.outline_style(result, TAXONOMY)
    line = style.line_px * (1.5 if result.detections.kinds[row] in ("wbc", "nrbc") else 1)
    _, y_min, x_max, y_max = result.detections.boxes[row]
    return int(x_max + 1 + style.casing_px + line / 2), int((y_min + y_max) / 2)


@pytest.mark.parametrize("kind", ["rbc", "wbc", "nrbc", "platelet"])
def test_unnamed_cell_has_the_colour_of_its_kind_just_outside_its_box(kind):
    result = one(kind)
    x, y = on_the_line(result)
    assert tuple(outlined(result)[y, x]) == rgb(TAXONOMY.kinds[kind].colour)


@pytest.mark.parametrize("code", ["teardrop_cell", "sickle_cell", "neutrophil", "erythroblast"])
def test_named_cell_has_the_colour_of_its_code(code):
    result = one(TAXONOMY.kind_of[code], code)
    x, y = on_the_line(result)
    assert tuple(outlined(result)[y, x]) == rgb(TAXONOMY.codes[code].colour)


@pytest.mark.parametrize("box", [(250, 200, 310, 280), (100, 100, 400, 300), (10.3, 20.7, 31.9, 41.2)])
def test_inside_of_a_cell_stays_as_photographed(box):
    photo = outlined(one("wbc", box=box))
    y, x = np.mgrid[:480, :640] + 0.5
    inside = ((2 * x - box[0] - box[2]) / (box[2] - box[0] - 2)) ** 2 + (
        (2 * y - box[1] - box[3]) / (box[3] - box[1] - 2)
    ) ** 2 < 1
    assert np.all(photo[inside] == GREY)
    far = (x < box[0] - 25) | (x > box[2] + 25) | (y < box[1] - 25) | (y > box[3] + 25)
    assert np.all(photo[far] == GREY)
    assert np.any(photo != GREY)


def test_light_lines_have_a_dark_casing_and_dark_lines_a_light_one():
    for kind, casing in (("platelet", 0), ("rbc", 255)):
        photo = outlined(one(kind, box=(100, 100, 400, 300)))
        assert np.any(np.all(photo == casing, axis=2))
        assert not np.any(np.all(photo == 255 - casing, axis=2))


def test_cell_not_counted_is_dashed():
    colour = rgb(TAXONOMY.kinds["rbc"].colour)
    solid, dashed = (np.all(outlined(one("rbc", counted=c)) == colour, axis=2) for c in (True, False))
    assert 0.3 * solid.sum() < dashed.sum() < 0.7 * solid.sum()
    assert not np.any(dashed & ~solid)


@pytest.mark.parametrize("upper", ["wbc", "nrbc", "platelet"])
def test_nucleated_cells_and_platelets_lie_over_red_cells(upper):
    red = ((60, 100, 140, 180), "rbc", "unclassified", True)
    other = ((100, 60, 180, 140), upper, "unclassified", True)
    both = outlined(make((640, 480), [other, red]))
    np.testing.assert_array_equal(both, outlined(make((640, 480), [red, other])))
    colour = rgb(TAXONOMY.kinds[upper].colour)
    line = np.all(outlined(make((640, 480), [other])) == colour, axis=2)
    crossed = np.any(outlined(make((640, 480), [red])) != GREY, axis=2) & line
    assert crossed.any()
    assert np.all(both[line] == colour)


@pytest.mark.parametrize("tile", [(400, 300), (64, 64), (37, 111), (7, 300)])
def test_tiles_give_the_bytes_of_the_whole(tile):
    result = scattered()
    whole, parts = outlined(result), blank(result.size_wh)
    style = outlines.outline_style(result, TAXONOMY)
    for x, y in itertools.product(range(0, 400, tile[0]), range(0, 300, tile[1])):
        outlines.draw_outlines(parts[y : y + tile[1], x : x + tile[0]], (x, y), result, style)
    np.testing.assert_array_equal(parts, whole)


def test_cell_at_the_border_keeps_a_closed_line_inside_the_picture():
    photo = outlined(one("rbc", box=(0, 100, 40, 160)))
    near_border = photo[115:145, :8]
    assert np.all(np.any(np.all(near_border == rgb(TAXONOMY.kinds["rbc"].colour), axis=2), axis=1))


def test_many_colours_get_a_wider_line():
    codes, box = TAXONOMY.codes_of("rbc"), (100, 100, 140, 140)
    few, many = (make((640, 480), [(box, "rbc", code, True) for code in codes[:n]]) for n in (3, 17))
    widths = [outlines.outline_style(result, TAXONOMY).line_px for result in (few, many)]
    assert 1.2 * widths[0] < widths[1] <= 0.08 * 40


def test_name_outside_the_taxonomy_is_refused():
    with pytest.raises(ValueError, match="blob"):
        outlines.outline_style(one("rbc", "blob"), TAXONOMY)


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as seen without one kind of cone.
PROTAN = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])
DEUTAN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
TRITAN = np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]])


@pytest.mark.parametrize("vision", [np.eye(3), PROTAN, DEUTAN])
def test_colours_of_kinds_differ_for_every_colour_vision(vision):
    colours = np.array([rgb(kind.colour) for kind in TAXONOMY.kinds.values()]) / 255
    seen = np.clip(colours**2.2 @ vision.T, 0, 1) ** (1 / 2.2)
    distances = [np.abs(a - b).max() for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 0.2


@pytest.mark.parametrize(("vision", "least"), [(np.eye(3), 16), (PROTAN, 9), (DEUTAN, 9), (TRITAN, 9)])
def test_colours_of_codes_differ_within_a_kind_for_every_colour_vision(vision, least):
    """CIEDE2000 differences; about 2.3 is just noticeable side by side, a thin line far off needs a multiple."""
    for kind, entry in TAXONOMY.kinds.items():
        colours = {code: TAXONOMY.codes[code].colour for code in TAXONOMY.codes_of(kind)}
        colours |= {} if len(colours) == 1 else {"unclassified": entry.colour}
        linear = (np.array([rgb(colour) for colour in colours.values()]) / 255) ** 2.2
        lab = rgb2lab(np.clip(linear @ vision.T, 0, 1) ** (1 / 2.2))
        for (a, first), (b, second) in itertools.combinations(zip(colours, lab, strict=True), 2):
            assert deltaE_ciede2000(first, second) >= least, (kind, a, b)
