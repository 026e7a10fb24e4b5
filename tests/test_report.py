"""Columns that scripts depend on, numbers that add up, and text that is the same for the same result."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rich.console
from conftest import Cells, unasked

from smearcount import report
from smearcount.counting import Estimate
from smearcount.records import Detections, Labels, Quality, Scale, SmearResult
from smearcount.report_json import json_line, json_report
from smearcount.taxonomy import Taxonomy

Make = Callable[..., SmearResult]

CELLS_HEADER = (
    "image,slide,cell_id,kind,label,score,label_score,x_min,y_min,x_max,y_max,diameter_um,at_edge,counted,"
    "runner_up,runner_up_score"
)
REPORT_HEAD = (
    "image,slide,status,error,width,height,um_per_px,um_per_px_source,n_rbc,n_wbc,n_nrbc,n_platelet,n_unclassified,"
    "n_excluded"
)
REPORT_TAIL = (
    "nrbc_per_100_wbc,nrbc_per_100_wbc_low,nrbc_per_100_wbc_high,platelet_per_1000_rbc,platelet_per_1000_rbc_low,"
    "platelet_per_1000_rbc_high,model_ids,version,image_sha256"
)
CODES = ("normocyte", "target_cell", "neutrophil", "erythroblast")


@pytest.fixture
def result(cells: Cells, make_result: Make) -> SmearResult:
    """Eight cells: three normocytes (one not counted), a target cell, a red cell without a name, and so on."""
    probs = np.array(
        [
            [0.9, 0.1, 0, 0],
            [0.8, 0.15, 0.05, 0],
            [0.7, 0.2, 0.1, 0],
            [0.25, 0.75, 0, 0],
            [0.4, 0.3, 0.3, 0],
            [0, 0, 0.6, 0.4],
            [0, 0, 0.1, 0.9],
            [0, 0, 0, 0],
        ],
        np.float32,
    )
    kinds = ["rbc"] * 5 + ["wbc"] * 2 + ["platelet"]
    boxes = np.array([[i * 50, 10, i * 50 + 40, 60] for i in range(8)])
    counted = np.array([True, True, False, True, True, True, True, True])
    return make_result(cells(boxes, kinds, np.linspace(0.4, 0.95, 8)), Labels(probs, CODES), counted=counted)


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_cells_csv_has_the_columns_of_the_contract(result: SmearResult) -> None:
    text = report.cells_csv(result)
    assert text.splitlines()[0] == CELLS_HEADER
    assert "\r" not in text
    rows = parsed(text)
    assert [row["cell_id"] for row in rows] == [str(i) for i in range(8)]
    assert [row["kind"] for row in rows] == ["rbc"] * 5 + ["wbc", "nrbc", "platelet"]
    labels = "normocyte normocyte normocyte target_cell unclassified neutrophil erythroblast platelet"
    assert " ".join(row["label"] for row in rows) == labels
    assert [row["counted"] for row in rows] == list("11011111")
    first, last = rows[0], rows[-1]
    assert (first["label_score"], first["runner_up"], first["runner_up_score"]) == ("0.9000", "target_cell", "0.1000")
    assert (last["label_score"], last["runner_up"], last["runner_up_score"]) == ("", "", "")
    unnamed = rows[4]
    assert unnamed["label_score"] == ""
    assert unnamed["runner_up"] == result.labels.codes[int(result.labels.probs[4].argmax())]
    assert unnamed["runner_up_score"] == f"{result.labels.probs[4].max():.4f}"
    assert (first["x_min"], first["y_max"], first["diameter_um"]) == ("0.00", "60.00", f"{45 * 0.16:.2f}")


def test_report_csv_has_the_columns_of_the_contract(taxonomy: Taxonomy) -> None:
    middle = []
    for code, kind in taxonomy.kind_of.items():
        middle.append(f"count_{code}")
        if kind in ("rbc", "wbc"):
            middle += [f"pct_{code}", f"pct_{code}_low", f"pct_{code}_high"]
    columns = report.report_columns(taxonomy)
    assert ",".join(columns) == ",".join([REPORT_HEAD, *middle, REPORT_TAIL])
    assert len(set(columns)) == len(columns)


def test_the_row_of_a_picture(result: SmearResult, taxonomy: Taxonomy) -> None:
    row = parsed(report.to_csv(report.report_columns(taxonomy), [report.report_row(result, taxonomy)]))[0]
    expected = {
        **{"image": "a/b.jpg", "slide": "a", "status": "ok", "error": "", "width": "640", "height": "480"},
        **{"um_per_px": "0.16", "um_per_px_source": "estimated", "n_rbc": "4", "n_wbc": "1", "n_nrbc": "1"},
        **{"n_platelet": "1", "n_unclassified": "1", "n_excluded": "1", "count_normocyte": "2"},
        **{"count_target_cell": "1", "count_macrocyte": "", "pct_normocyte": "66.67", "pct_macrocyte": ""},
        **{"pct_neutrophil": "100", "pct_neutrophil_high": "100", "nrbc_per_100_wbc": "100"},
        **{"platelet_per_1000_rbc": "250", "model_ids": "discs", "version": "1.2.3", "image_sha256": "f" * 64},
    }
    assert {key: row[key] for key in expected} == expected
    # 2 of 3, Clopper and Pearson: 9.43 to 99.16 %.
    assert (float(row["pct_normocyte_low"]), float(row["pct_normocyte_high"])) == pytest.approx((9.43, 99.16), abs=0.01)


def test_all_that_is_found_is_counted_or_excluded(result: SmearResult, taxonomy: Taxonomy) -> None:
    row = report.report_row(result, taxonomy)
    named = sum(int(value or 0) for key, value in row.items() if key.startswith("count_"))
    counted = sum(int(row[f"n_{kind}"]) for kind in ("rbc", "wbc", "nrbc", "platelet"))
    assert counted == named + int(row["n_unclassified"])
    assert counted + int(row["n_excluded"]) == len(result.detections)


def test_an_empty_picture_has_empty_percentages(make_result: Make, taxonomy: Taxonomy) -> None:
    empty = make_result(Detections.empty())
    row = parsed(report.to_csv(report.report_columns(taxonomy), [report.report_row(empty, taxonomy)]))[0]
    assert row["n_rbc"] == row["n_wbc"] == row["count_platelet"] == "0"
    blank = {key for key, value in row.items() if value == ""}
    unknown = {key for key in row if key.startswith(("pct_", "nrbc_per", "platelet_per", "count_"))} - {
        "count_platelet"
    }
    assert blank == unknown | {"error", "n_nrbc"}
    assert report.cells_csv(empty) == CELLS_HEADER + "\n"


def test_a_failure_is_a_row_too(taxonomy: Taxonomy) -> None:
    reason = 'b.jpg: damaged, "twice"\nsecond line'
    columns = report.report_columns(taxonomy)
    row = parsed(report.to_csv(columns, [report.failure_row("a/b.jpg", "a", reason, taxonomy)]))[0]
    filled = {key: value for key, value in row.items() if value}
    assert filled == {"image": "a/b.jpg", "slide": "a", "status": "failed", "error": reason}
    assert tuple(row) == columns


def no_constants(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("scale", [Scale(0.16, "flag"), Scale(1 / 3, "assumed", float("nan"), "few")])
def test_the_json_report_has_no_nan_and_is_the_same_twice(
    make_result: Make, taxonomy: Taxonomy, scale: Scale, result: SmearResult
) -> None:
    nothing = make_result(Detections.empty(), scale=scale, quality=Quality(math.nan, 0, 0), counted_area_um2=0.0)
    for one in (nothing, result):
        read = replace(one, reading=("read with care",))
        text = json_report(read, taxonomy)
        content = json.loads(text, parse_constant=no_constants)
        assert text == json_report(read, taxonomy)
        assert text.endswith("}\n")
        assert content["reading"] == ["read with care"]
        assert content["not_recognised"] == ["blasts", "atypical lymphocytes", "smudge cells"]
        assert content["limits"] == "95 %, sampling error only"
    content = json.loads(json_report(nothing, taxonomy))
    assert content["quality"]["sharpness"] is None
    assert content["rates"]["nrbc_per_100_wbc"] == {"value": None, "low": None, "high": None}


def test_the_json_report_counts_what_the_row_counts(result: SmearResult, taxonomy: Taxonomy) -> None:
    content = json.loads(json_report(result, taxonomy))
    row = report.report_row(result, taxonomy)
    for key in ("n_rbc", "n_wbc", "n_nrbc", "n_platelet"):
        assert content["counts"][key] == row[key]
    assert content["counts"]["found"] == len(result.detections)
    assert content["counts"]["excluded"] == {"edge": 1}
    assert content["counts"]["named"] == {
        **{"normocyte": 2, "target_cell": 1, "neutrophil": 1, "erythroblast": 1, "platelet": 1}
    }
    table = {line["type"]: line for line in content["table"]}
    assert table["normocyte"]["percent"]["value"] == pytest.approx(200 / 3, rel=1e-5)
    assert table["rbc"]["per_mm2"]["value"] == pytest.approx(4 / 0.01)


@pytest.mark.parametrize("name", ['Müller, "A"\t血.jpg', "a\rb.jpg", "a\nb\r\n.jpg", "\r"])
def test_text_survives_what_a_file_name_may_hold(make_result: Make, taxonomy: Taxonomy, name: str) -> None:
    one = make_result(Detections.empty(), image_id=name)
    assert json.loads(json_report(one, taxonomy))["image"] == name
    columns = report.report_columns(taxonomy)
    table = report.to_csv(columns, [report.report_row(one, taxonomy)])
    assert [row["image"] for row in parsed(table)] == [name]
    assert table.endswith("\n")
    assert not table.endswith("\r\n")


def test_the_lines_of_the_table_add_up(result: SmearResult, taxonomy: Taxonomy) -> None:
    lines = report.summary_lines(result, taxonomy)
    kinds = {line.key: line for line in lines if line.level == 0}
    assert {key: line.count for key, line in kinds.items()} == {"rbc": 4, "wbc": 1, "nrbc": 1, "platelet": 1}
    assert sum(line.share.value for line in kinds.values()) == pytest.approx(100)
    red = [line for line in lines if line.level == 1 and line.key in ("normocyte", "target_cell")]
    assert sum(line.share.value for line in red) == pytest.approx(100)
    unnamed = next(line for line in lines if line.key == "unclassified")
    assert (unnamed.count, math.isnan(unnamed.share.value)) == (1, True)
    for line in lines:
        assert line.density.low <= line.density.value <= line.density.high


def test_cells_that_all_lack_a_name_have_a_line_where_there_could_be_names(
    result: SmearResult, taxonomy: Taxonomy
) -> None:
    found = replace(result.counts, named={"platelet": 1}, unclassified={"rbc": 4, "wbc": 1})
    lines = report.summary_lines(replace(result, counts=found), taxonomy)
    assert [(line.kind, line.count) for line in lines if line.key == "unclassified"] == [("rbc", 4), ("wbc", 1)]
    bare = replace(result, counts=found, labels=unasked(len(result.detections)))
    assert "unclassified" not in [line.key for line in report.summary_lines(bare, taxonomy)]


def test_limits_as_text() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan)
    assert (report.limits_text(nothing), report.percent_text(nothing)) == ("-", "-")
    some = Estimate(12.34, 10.06, 14.849)
    assert report.percent_text(some) == "12.3 (10.1 - 14.8)"
    assert report.limits_text(some, report.whole_number) == "10 - 15"


def test_shares_below_one_per_cent_keep_two_digits(make_result: Make, cells: Cells, taxonomy: Taxonomy) -> None:
    shares = {0.0: "0", 0.0376: "0.038", 0.0996: "0.10", 0.998: "1.0", 1.04: "1.0", 99.96: "100.0", 100.0: "100"}
    assert {value: report.percent_number(value) for value in shares} == shares
    boxes = np.tile([100, 100, 150, 150], (2000, 1))
    one = make_result(cells(boxes, ["rbc"] * 1992 + ["wbc"] * 7 + ["platelet"]))
    red, white, platelets = (
        line for line in on_screen_lines(one, taxonomy) if line.lstrip().startswith(("R", "W", "Pla"))
    )
    assert ("0.35 " in white, "0.14 - 0.72" in white, "0.050" in platelets) == (True, True, True)
    assert red.index("99.6") + 2 == white.index("0.35") + 1 == platelets.index("0.050") + 1


def on_screen_lines(result: SmearResult, taxonomy: Taxonomy) -> list[str]:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=140, color_system=None).print(report.screen_table(result, taxonomy))
    return stream.getvalue().splitlines()


def on_screen(result: SmearResult, taxonomy: Taxonomy) -> str:
    return " ".join(" ".join(on_screen_lines(result, taxonomy)).split())


def test_the_table_on_screen_says_what_was_left_out(result: SmearResult, taxonomy: Taxonomy) -> None:
    text = on_screen(result, taxonomy)
    said = (
        *("a/b.jpg", "Normocyte", "66.7", "8 cells found, 1 at the edge not counted", "sampling error only", "sparse"),
        *(
            "per cent: of all cells; of a type: of the named cells of its kind",
            "platelets per 1,000 red cells: 250.0 (",
        ),
        *("nucleated red cells per 100 white cells: 100 (", "1 white cell counted: a differential needs at least"),
    )
    assert [words for words in said if words not in text] == []
    assert text.count("blasts, atypical lymphocytes and smudge cells are not recognised") == 1
    assert "classifier" not in text


UNNAMED = ["rbc"] * 30 + ["wbc"] * 5 + ["platelet"] * 2


@pytest.fixture
def found_only(cells: Cells, make_result: Make) -> SmearResult:
    """Cells of a detector alone."""
    boxes = np.array([[i * 15, 10, i * 15 + 12, 22] for i in range(len(UNNAMED))])
    return make_result(cells(boxes, UNNAMED))


def test_what_no_model_can_tell_is_empty_and_not_zero(found_only: SmearResult, taxonomy: Taxonomy) -> None:
    row = parsed(report.to_csv(report.report_columns(taxonomy), [report.report_row(found_only, taxonomy)]))[0]
    assert (row["n_rbc"], row["n_wbc"], row["n_nrbc"], row["n_platelet"]) == ("30", "5", "", "2")
    assert {key for key, value in row.items() if key.startswith("count_") and value} == {"count_platelet"}
    assert not any(value for key, value in row.items() if key.startswith(("pct_", "nrbc_per")))
    assert float(row["platelet_per_1000_rbc"]) == pytest.approx(2000 / 30, rel=1e-3)
    content = json.loads(json_report(found_only, taxonomy))
    assert (content["counts"]["n_nrbc"], content["counts"]["n_wbc"]) == (None, 5)
    assert content["rates"]["nrbc_per_100_wbc"] == {"value": None, "low": None, "high": None}
    said = "no classifier used: types are unclassified; nucleated red cells are among the white cells"
    assert content["notes"] == [said]
    text = on_screen(found_only, taxonomy)
    assert text.count(said) == 1
    assert not [words for words in ("differential", "blasts", "per 100 white", "of a type") if words in text]


def test_limits_without_end_are_null_in_a_line_of_json(make_result: Make, cells: Cells, taxonomy: Taxonomy) -> None:
    one = make_result(cells([[0, 0, 50, 50], [60, 0, 90, 30]], ["platelet", "rbc"]))
    row = report.report_row(one, taxonomy) | {"platelet_per_1000_rbc_high": "inf"}
    line = json.loads(json_line(row, one, taxonomy, ["a.json"]))
    assert (line["platelet_per_1000_rbc_high"], line["n_platelet"], line["files"]) == (None, 1, ["a.json"])


def test_a_code_that_was_looked_for_and_not_found_is_zero(make_result: Make, cells: Cells, taxonomy: Taxonomy) -> None:
    labels = Labels(np.array([[0.9, 0.1, 0], [0, 0, 0]], np.float32), ("neutrophil", "monocyte", "erythroblast"))
    row = report.report_row(make_result(cells([[0, 0, 50, 50], [60, 0, 90, 30]], ["wbc", "rbc"]), labels), taxonomy)
    assert (row["count_monocyte"], row["count_lymphocyte"], row["n_nrbc"], row["count_normocyte"]) == (0, "", 0, "")
    assert (row["pct_monocyte"], row["pct_lymphocyte"], row["nrbc_per_100_wbc"]) == ("0", "", "0")


def test_nucleated_red_cells_are_named_where_only_they_are_missing(
    make_result: Make, cells: Cells, taxonomy: Taxonomy
) -> None:
    labels = Labels(np.array([[0.9, 0.1]], np.float32), ("neutrophil", "monocyte"))
    content = json.loads(json_report(make_result(cells([[0, 0, 50, 50]], "wbc"), labels), taxonomy))
    assert content["notes"] == [
        "nucleated red cells are among the white cells",
        "blasts, atypical lymphocytes and smudge cells are not recognised",
    ]


def test_what_is_to_be_known_of_the_scale_is_told_once(make_result: Make, cells: Cells, taxonomy: Taxonomy) -> None:
    said = "macrocytes and microcytes are relative to this slide"
    one = make_result(cells([[0, 0, 50, 50]], "rbc"), scale=Scale(0.1, "estimated", note=said))
    line = json.loads(json_line(report.report_row(one, taxonomy), one, taxonomy))
    for notes in (json.loads(json_report(one, taxonomy))["notes"], line["notes"]):
        assert notes.count(said) == 1
    assert on_screen(one, taxonomy).count(said) == 1
    warned = replace(one, quality=replace(one.quality, warnings=(said,)))
    assert on_screen(warned, taxonomy).count(said) == 1


@pytest.mark.parametrize(("n", "warned"), [(0, True), (5, True), (99, True), (100, False)])
def test_a_differential_of_few_white_cells_is_warned_of(
    make_result: Make, cells: Cells, taxonomy: Taxonomy, n: int, *, warned: bool
) -> None:
    # The cells that do not count make no differential.
    counted = np.arange(n + 60) < n
    labels = Labels(np.tile(np.array([[0.9, 0.1]], np.float32), (n + 60, 1)), ("neutrophil", "lymphocyte"))
    one = make_result(cells(np.tile([0, 0, 50, 50], (n + 60, 1)), "wbc"), labels, counted=counted)
    said = f"{n} white cells counted: a differential needs at least 100"
    assert (said in on_screen(one, taxonomy)) == warned
    warnings = json.loads(json_report(one, taxonomy))["quality"]["warnings"]
    assert warnings == ["too sparse", *[said] * warned]


def test_a_file_name_is_no_markup(make_result: Make, taxonomy: Taxonomy) -> None:
    one = make_result(Detections.empty(), image_id="[red]x[/red] [/nothing].jpg")
    assert "[red]x[/red] [/nothing].jpg" in on_screen(one, taxonomy)


def test_large_figures_have_separators_in_limits_too(make_result: Make, cells: Cells, taxonomy: Taxonomy) -> None:
    text = on_screen(make_result(cells(np.tile([0, 0, 9, 9], (40, 1))), counted_area_um2=4000.0), taxonomy)
    # 40 in 0.004 mm2, Garwood: 28.58 to 54.47.
    assert "10,000" in text
    assert "7,144 - 13,617" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_of_the_table_is_ever_cut(width: int, make_result: Make, cells: Cells, taxonomy: Taxonomy) -> None:
    many = cells([[5, 5, 40, 40]] * 21_300)
    result = make_result(many)
    console = rich.console.Console(width=width, file=io.StringIO(), record=True)
    console.print(report.screen_table(result, taxonomy))
    shown = console.export_text()
    assert "21,300" in shown
    assert "\u2026" not in shown
