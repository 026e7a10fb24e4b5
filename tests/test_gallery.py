"""Contact sheets: every cell of a code once, counted and least certain ones first, and what is not shown is said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from smearcount import gallery, panel
from smearcount.gallery import contact_sheets, write_gallery
from smearcount.images import ArraySource, open_image
from smearcount.panel import PAPER
from smearcount.patches import sample_window
from smearcount.pipeline import Analysis
from smearcount.records import Counts, Labels, Scale
from smearcount.report import cell_rows
from smearcount.taxonomy import Taxonomy, load_taxonomy

TAXONOMY = load_taxonomy()
CODES = tuple(TAXONOMY.codes)
UM_PER_PX = 0.5
SIZE_WH = (400, 300)


def probabilities(code, best, second="", runner_up=0.0):
    """A row of probabilities whose rest lies on codes of less weight."""
    row = np.zeros(len(CODES), np.float32)
    row[CODES.index(code)] = best
    if second:
        row[CODES.index(second)] = runner_up
    rest = row == 0
    row[rest] = (1 - best - runner_up) / rest.sum()
    return row


def shade(row):
    """The grey of a cell, which tells it apart on a sheet."""
    return 10 + 5 * row


@pytest.fixture
def analysis_of(cells, make_result):
    """Analyses of cells (kind, probabilities or None, counted), each a grey square of its own, 24 um apart."""

    def make(rows, scores=0.9, **changes):
        pixels = np.full((SIZE_WH[1], SIZE_WH[0], 3), 250, np.uint8)
        boxes = []
        for n in range(len(rows)):
            x, y = 2 + 48 * (n % 8), 2 + 48 * (n // 8)
            pixels[y : y + 44, x : x + 44] = shade(n)
            boxes.append((x + 12, y + 12, x + 32, y + 32))
        probs = np.stack([np.zeros(len(CODES), np.float32) if row[1] is None else row[1] for row in rows])
        found = cells(boxes, [row[0] for row in rows], scores)
        counted = np.array([row[2] for row in rows], np.bool_)
        result = make_result(found, Labels(probs, CODES), counted=counted, size_wh=SIZE_WH)
        result = replace(result, scale=Scale(UM_PER_PX, "flag"), **changes)
        return Analysis(result, TAXONOMY, ArraySource(pixels))

    return make


def mixed():
    """Cells of four codes, without a name, and of a kind that no classifier is asked about."""
    normal = [("rbc", probabilities("normocyte", p, "burr_cell", 0.02), True) for p in (0.9, 0.55, 0.97, 0.7)]
    return [
        *normal,
        ("rbc", probabilities("burr_cell", 0.8, "normocyte", 0.1), False),
        ("rbc", probabilities("target_cell", 0.4, "stomatocyte", 0.3), True),
        ("wbc", probabilities("monocyte", 0.45, "lymphocyte", 0.44), True),
        ("wbc", probabilities("erythroblast", 0.95), True),
        ("platelet", None, True),
        ("platelet", None, False),
    ]


@dataclass(frozen=True)
class Sheet:
    """A sheet, the texts of its title, and the corner (x, y) and captions (text, figure) of each tile."""

    code: str
    pixels: np.ndarray
    title: list
    corners: list
    captions: list

    @property
    def ids(self):
        return [int(lines[0][0].removeprefix("#").split()[0]) for lines in self.captions]

    def tile(self, n, border=0):
        x, y = self.corners[n]
        side = gallery._TILE_PX + border
        return self.pixels[y - border : y + side, x - border : x + side]


@pytest.fixture
def sheets_of(monkeypatch):
    """The sheets of an analysis with all that was written on them."""
    titles, tiles = [], []
    render, write = panel.render_rows, gallery._write_captions

    def spy_title(rows, face):
        titles.append([span.text for row in rows for span in row.spans])
        return render(rows, face)

    def spy_captions(canvas, corners, captions):
        tiles.append((corners, [[(line.text, line.figure) for line in lines] for lines in captions]))
        return write(canvas, corners, captions)

    monkeypatch.setattr(gallery, "render_rows", spy_title)
    monkeypatch.setattr(gallery, "_write_captions", spy_captions)

    def make(analysis, *args):
        made = []
        for code, pixels in contact_sheets(analysis, *args):
            made.append(Sheet(code, pixels, titles.pop(), *tiles.pop()))
        return made

    return make


def test_every_cell_is_on_one_tile_of_its_code(analysis_of, sheets_of):
    analysis = analysis_of(mixed())
    sheets = sheets_of(analysis)
    assert [sheet.code for sheet in sheets] == [
        *("normocyte", "burr_cell", "erythroblast", "platelet", "unclassified_rbc", "unclassified_wbc")
    ]
    assert sorted(row for sheet in sheets for row in sheet.ids) == list(range(len(mixed())))
    for sheet in sheets:
        assert sheet.pixels.dtype == np.uint8
        names = {str(analysis.result.names[row]) for row in sheet.ids}
        assert names == {"unclassified" if sheet.code.startswith("unclassified") else sheet.code}


def test_the_least_certain_comes_first(analysis_of, sheets_of):
    rows = [*mixed(), ("wbc", probabilities("platelet", 0.99), True), ("wbc", probabilities("platelet", 0.6), True)]
    scores = np.linspace(0.9, 0.4, len(rows))
    by_code = {sheet.code: sheet for sheet in sheets_of(analysis_of(rows, scores))}
    assert by_code["normocyte"].ids == [1, 3, 0, 2]
    # A classifier's word first; the others by the score of the detector, which falls with the number here.
    assert by_code["platelet"].ids == [11, 10, 8, 9]
    assert "least certain first; last, cells that no classifier was asked about" in by_code["platelet"].title[2]
    assert by_code["platelet"].captions[2] == [("#8", ""), ("found", f"{scores[8]:.2f}")]


def test_cells_that_do_not_count_are_behind_those_that_do(analysis_of, sheets_of):
    chances = np.linspace(0.55, 0.99, 12)
    rows = [("rbc", probabilities("normocyte", p), bool(n >= 9)) for n, p in enumerate(chances)]
    made = sheets_of(analysis_of(rows), 4, 2)
    assert [sheet.ids for sheet in made] == [[9, 10, 11, 0], [1, 2, 3, 4]]
    words = "least certain first; behind these, in the same order, cells that are not counted; 4 more are on no sheet"
    assert all(words in sheet.title[2] for sheet in made)


def test_equally_certain_cells_keep_their_order(analysis_of, sheets_of):
    rows = [("rbc", probabilities("normocyte", 0.75), True)] * 30
    assert sheets_of(analysis_of(rows))[0].ids == list(range(30))


def test_a_tile_shows_the_patch_of_its_cell(analysis_of, sheets_of):
    analysis = analysis_of(mixed())
    centres = {n: (2 + 48 * (n % 8) + 22.0, 2 + 48 * (n // 8) + 22.0) for n in range(len(mixed()))}
    for sheet in sheets_of(analysis):
        for n, row in enumerate(sheet.ids):
            tile = sheet.tile(n)
            kind = str(analysis.result.detections.kinds[row])
            expected, _ = sample_window(
                analysis.source, centres[row], analysis.patch_um[kind] / UM_PER_PX, gallery._TILE_PX
            )
            np.testing.assert_array_equal(tile, expected)
            assert np.all(tile[48:80, 48:80] == shade(row))


def test_captions_are_those_of_the_table_of_cells(analysis_of, sheets_of):
    analysis = analysis_of(mixed())
    table = cell_rows(analysis.result)
    for sheet in sheets_of(analysis):
        for row, lines in zip(sheet.ids, sheet.captions, strict=True):
            entry = table[row]
            assert lines[0][0] == f"#{row}" + ("" if entry["counted"] else " not counted")
            if not entry["runner_up"]:
                assert lines[1:] == [("found", f"{float(entry['score']):.2f}")]
                continue
            second = TAXONOMY.codes[entry["runner_up"]].name, f"{float(entry['runner_up_score']):.2f}"
            if entry["label"] == "unclassified":
                assert lines[0][1] == ""
                assert lines[1] == (f"{second[0]}?", second[1])
            else:
                assert lines[0][1] == f"{float(entry['label_score']):.2f}"
                assert lines[1:] == [second]


def test_a_cell_without_a_name_shows_both_candidates(analysis_of, sheets_of):
    sheet = next(sheet for sheet in sheets_of(analysis_of(mixed())) if sheet.code == "unclassified_wbc")
    assert sheet.captions == [[("#6", ""), ("Monocyte?", "0.45"), ("Lymphocyte?", "0.44")]]
    assert "its two likeliest names" in sheet.title[3]
    assert sheet.title[0] == "White blood cells, unclassified"


def test_the_title_has_count_and_share_with_exact_limits(analysis_of, sheets_of):
    titles = {sheet.code: sheet.title for sheet in sheets_of(analysis_of(mixed()))}
    assert titles["normocyte"][:2] == ["Normocyte", "4 counted: 100 (39.8 - 100) % of the named red blood cells"]
    assert titles["burr_cell"][:2] == ["Burr cell", "none counted; 1 not counted (dashed)"]
    assert titles["unclassified_rbc"][1] == "1 counted: 20.0 (0.51 - 71.6) % of the red blood cells"
    assert titles["erythroblast"][1] == "1 counted: 12.5 (0.32 - 52.7) % of all cells"
    found = "1 counted: 12.5 (0.32 - 52.7) % of all cells; 1 not counted (dashed)"
    order = (
        "least certain first by the score of the detector; behind these, in the same order, cells that are not counted"
    )
    assert titles["platelet"][1:3] == [found, f"all 2 shown, {order}"]
    assert "a tile is 24 µm wide" in titles["unclassified_wbc"][3]
    assert "a tile is 12 µm wide" in titles["normocyte"][3]


def test_cells_outside_the_counting_frame_have_a_dashed_frame(analysis_of, sheets_of):
    rows = [("rbc", probabilities("burr_cell", p), counted) for p, counted in ((0.6, True), (0.7, False))]
    (sheet,) = sheets_of(analysis_of(rows))
    colour = np.array(list(bytes.fromhex(TAXONOMY.codes["burr_cell"].colour[1:])))
    solid, dashed = (
        np.concatenate([sheet.tile(n, 2)[:2].reshape(-1, 3), sheet.tile(n, 2)[:, :2].reshape(-1, 3)]) for n in (0, 1)
    )
    assert np.all(solid == colour)
    share = np.all(dashed == panel.INK, axis=1).mean()
    assert 0.4 < share < 0.6
    assert not np.any(np.all(dashed == colour, axis=1))


@pytest.mark.parametrize(
    ("most", "sheets", "words"),
    [
        (None, [10, 10, 5], "sheet 3 of 3: 5 of 25 shown (21 to 25), least certain first"),
        (3, [10, 10, 5], "sheet 3 of 3: 5 of 25 shown (21 to 25), least certain first"),
        (2, [10, 10], "sheet 2 of 2: 10 of 25 shown (11 to 20), least certain first; 5 more are on no sheet"),
        (1, [10], "10 of 25 shown, least certain first; 15 more are on no sheet"),
    ],
)
def test_more_cells_than_a_sheet_holds_follow_on_further_sheets(analysis_of, sheets_of, most, sheets, words):
    rng = np.random.default_rng(5)
    chances = rng.permutation(np.linspace(0.55, 0.99, 25))
    rows = [("rbc", probabilities("normocyte", p), True) for p in chances]
    made = sheets_of(analysis_of(rows), 10, most)
    assert [len(sheet.ids) for sheet in made] == sheets
    shown = [row for sheet in made for row in sheet.ids]
    assert shown == np.argsort(chances).tolist()[: sum(sheets)]
    assert made[-1].title[2].startswith(words)
    assert made[0].title[1].startswith("25 counted")


def test_tiles_neither_overlap_nor_touch_the_title(analysis_of, sheets_of):
    for n in (1, 8, 9, 40):
        (sheet,) = sheets_of(analysis_of([("rbc", probabilities("normocyte", 0.75), True)] * n))
        used = np.zeros(sheet.pixels.shape[:2], np.int64)
        side = gallery._TILE_PX
        for x, y in sheet.corners:
            used[y - 2 : y + side + gallery._LINE_PX * 2 + 2, x - 2 : x + side + 2] += 1
        assert used.max() == 1
        assert sheet.pixels.shape[1] >= 8 * side
        free = sheet.pixels[used == 0].reshape(-1, 3)
        assert np.all(free[-sheet.pixels.shape[1] * 2 :] == PAPER)
        title = sheet.pixels[: min(y for _, y in sheet.corners) - 2]
        assert np.any(np.all(title == panel.INK, axis=2))


def test_captions_stay_under_their_tile_and_keep_number_and_figure():
    corners, side = [(10, 10), (10 + gallery._TILE_PX + gallery._GAP_PX, 10)], gallery._TILE_PX
    canvas = np.full((side + 60, 2 * side + 3 * gallery._GAP_PX, 3), PAPER, np.uint8)
    long = [gallery._Caption("#1234567 not counted", "1.00"), gallery._Caption("W" * 99, "0.00")]
    drawn = gallery._write_captions(canvas, corners, [long, [gallery._Caption("#1")]])
    ink = np.any(drawn != PAPER, axis=2)
    assert ink[:, 10 : 10 + side].any()
    assert not ink[:, 10 + side : corners[1][0]].any()
    assert not ink[: 10 + side].any()
    font = panel.face_for(gallery._CAPTION_PX, side).plain
    room = side - font.getlength("1.00") - 4
    assert panel.wrap("#1234567 not counted", font, room, 1)[0].startswith("#1234567")


def test_no_cells_no_sheets_and_wrong_numbers_are_refused(analysis_of, cells, make_result):
    nothing = Analysis(make_result(cells([])), TAXONOMY, ArraySource(np.zeros((480, 640, 3), np.uint8)))
    assert list(contact_sheets(nothing)) == []
    analysis = analysis_of(mixed())
    for numbers in ((0, None), (5, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            list(contact_sheets(analysis, *numbers))
    foreign = replace(analysis.result, names=np.array(["blob"] * len(mixed())))
    with pytest.raises(ValueError, match="blob"):
        list(contact_sheets(replace(analysis, result=foreign)))


def test_files_are_named_by_code_and_hold_one_result(analysis_of, tmp_path, monkeypatch):
    rows = [("rbc", probabilities("normocyte", 0.75), True)] * 5 + [("platelet", None, True)]
    analysis = analysis_of(rows)
    with monkeypatch.context() as small:
        small.setattr(gallery, "contact_sheets", partial(contact_sheets, per_sheet=2))
        written = write_gallery(analysis, tmp_path, "slide one")
    folder = tmp_path / "slide one.gallery"
    assert [path.name for path in written] == ["normocyte.jpg", "normocyte.2.jpg", "normocyte.3.jpg", "platelet.jpg"]
    assert sorted(folder.iterdir()) == sorted(written)
    sheets = [pixels for _, pixels in contact_sheets(analysis, 2)]
    for path, pixels in zip(written, sheets, strict=True):
        source = open_image(path)
        read = source.read(0, 0, *source.size_wh)
        assert np.abs(read.astype(int) - pixels).mean() < 3
    kept = [folder / name for name in ("notes.jpg", "normocyte.old.jpg", "readme.txt")]
    for path in kept:
        path.write_bytes(b"mine")
    again = write_gallery(analysis_of(rows[:2]), tmp_path, "slide one")
    assert [path.name for path in again] == ["normocyte.jpg"]
    assert sorted(folder.iterdir()) == sorted([*again, *kept])


def test_a_code_that_is_no_file_name_is_spelled(analysis_of, tmp_path):
    content = TAXONOMY.model_dump(mode="json")
    content["codes"] = {("../a.2/b" if key == "normocyte" else key): value for key, value in content["codes"].items()}
    analysis = analysis_of([("rbc", probabilities("normocyte", 0.75), True)])
    codes = tuple(content["codes"])
    result = replace(
        analysis.result,
        names=np.array(["../a.2/b"]),
        labels=Labels(analysis.result.labels.probs, codes),
        counts=Counts({"../a.2/b": 1}),
    )
    written = write_gallery(Analysis(result, Taxonomy(**content), analysis.source), tmp_path, "x")
    assert [path.name for path in written] == ["%2E%2E%2Fa%2E2%2Fb.jpg"]
    assert written[0].parent == tmp_path / "x.gallery"


def test_the_same_cells_give_the_same_bytes(analysis_of):
    first, second = ([pixels.tobytes() for _, pixels in contact_sheets(analysis_of(mixed()))] for _ in range(2))
    assert first == second
