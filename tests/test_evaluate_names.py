"""Names of whole fields where the answer is known: drawn fields with right, wrong and misplaced labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RED, UM_PER_PX, Draw

from smearcount.errors import DatasetError
from smearcount.evaluation.names import NamedPoints, field_scales, name_points, point_figures
from smearcount.images import write_picture
from smearcount.pipeline import Pipeline
from smearcount.training.cell_sources import CellSource

DISCS = [
    *((100, 100, 46, "normocyte"), (200, 100, 46, "spherocyte"), (300, 100, 46, "target_cell")),
    *((400, 100, 46, "normocyte"), (100, 300, 46, "neutrophil"), (250, 300, 46, "spherocyte")),
    (286, 336, 40, "normocyte"),
]
POINTS = [
    (100, 100, "normocyte"),  # named so
    (205, 90, "spherocyte"),  # named so, beside its middle
    (300, 100, "normocyte"),  # named target_cell
    (500, 400, "target_cell"),  # nothing there: missed
    (100, 300, "normocyte"),  # found as a white cell: missed
    (270, 320, "normocyte"),  # in the boxes of two cells; the middle of the normocyte is nearer
]


@pytest.fixture
def field(tmp_path: Path, draw_discs: Draw, monkeypatch: pytest.MonkeyPatch) -> CellSource:
    """A collection of one field, whose labels are right, wrong, or where no cell is."""
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    places, codes = np.array([disc[:3] for disc in DISCS], float), tuple(disc[3] for disc in DISCS)
    write_picture(folder / "images" / "a.png", draw_discs((640, 480), places, codes).pixels)
    (folder / "labels" / "a.txt").write_text("".join(f"{x} {y} {code}\n" for x, y, code in POINTS))
    (folder / "val.txt").write_text("a\n")
    (folder / "wbc_types.csv").write_text("image,type\na,neutrophil\n")
    entry = {"format": "points", "find": "rbc", "classes": {code: code for code in RED}}
    return CellSource.model_validate({**entry, "um_per_px": {"any": UM_PER_PX}})


def test_names_at_labelled_points(naming_pipeline: Callable[..., Pipeline], field: CellSource) -> None:
    named = name_points(naming_pipeline(), ("own", field), "val", own_scale=True)
    assert named.truth == [code for *_, code in POINTS]
    assert named.named == ["normocyte", "spherocyte", "target_cell", "missed", "missed", "normocyte"]
    assert named.best == named.named
    assert named.kinds == ["rbc", "rbc", "rbc", "missed", "missed", "rbc"]
    found = point_figures(named)
    assert (found["cells"], found["fields"], found["unclassified"]) == (6, 1, 0)
    assert found["found"] == pytest.approx(4 / 6)
    assert found["accuracy"] == pytest.approx(3 / 6)
    # Normocytes: 2 of 4 found so, none wrongly; the spherocyte right; the target cell missed and once named wrongly.
    assert found["f1"] == {"normocyte": pytest.approx(0.6667, abs=1e-4), "spherocyte": 1.0, "target_cell": 0.0}
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["support"] == {"normocyte": 4, "spherocyte": 1, "target_cell": 1}


def test_a_cell_is_sought_among_those_of_the_kind_of_its_code(
    naming_pipeline: Callable[..., Pipeline], field: CellSource, tmp_path: Path, draw_discs: Draw
) -> None:
    """`find` says nothing of it: own points have none, and a field may have cells of all kinds labelled."""
    told = name_points(naming_pipeline(), ("own", field), "val", own_scale=True)
    assert name_points(naming_pipeline(), ("own", field.model_copy(update={"find": ""})), "val", own_scale=True) == told
    discs = np.array([[100, 100, 46], [300, 100, 60], [500, 100, 24], [100, 300, 60], [300, 300, 46]])
    drawn = ("spherocyte", "neutrophil", "platelet", "erythroblast", "normocyte")
    write_picture(tmp_path / "own" / "images" / "a.png", draw_discs((640, 480), discs, drawn).pixels)
    labels = ("spherocyte", "neutrophil", "platelet", "erythroblast", "platelet")
    rows = zip(discs.tolist(), labels, strict=True)
    (tmp_path / "own" / "labels" / "a.txt").write_text("".join(f"{x} {y} {code}\n" for (x, y, _), code in rows))
    mixed = field.model_copy(update={"find": "", "classes": {code: code for code in labels}})
    named = name_points(naming_pipeline(), ("own", mixed), "val", own_scale=True)
    assert named.named == named.best == ["spherocyte", "neutrophil", "platelet", "erythroblast", "missed"]
    assert named.kinds == ["rbc", "wbc", "platelet", "nrbc", "missed"]
    found = name_points(naming_pipeline(classifiers=()), ("own", mixed), "val", own_scale=True)
    assert found.kinds == ["rbc", "wbc", "platelet", "wbc", "missed"]


def test_an_unclassified_cell_is_found_but_wrong(naming_pipeline: Callable[..., Pipeline], field: CellSource) -> None:
    named = name_points(naming_pipeline(min_label_score=1.0), ("own", field), "val", own_scale=True)
    assert named.named == ["unclassified"] * 3 + ["missed"] * 2 + ["unclassified"]
    assert named.best == ["normocyte", "spherocyte", "target_cell", "missed", "missed", "normocyte"]
    found = point_figures(named)
    assert (found["found"], found["unclassified"], found["accuracy"]) == (pytest.approx(4 / 6), 4 / 6, 0)
    assert found["at_best_guess"]["accuracy"] == pytest.approx(3 / 6)


def test_the_scale_may_be_estimated(naming_pipeline: Callable[..., Pipeline], field: CellSource) -> None:
    """Discs of 46 px come out as 7.5 um at an estimate of 0.163 um a pixel: the names are the same."""
    named = name_points(naming_pipeline(), ("own", field), "val", own_scale=False)
    assert named.named == ["normocyte", "spherocyte", "target_cell", "missed", "missed", "normocyte"]


def test_the_scale_may_be_one_for_all_fields(
    naming_pipeline: Callable[..., Pipeline], field: CellSource, tmp_path: Path, draw_discs: Draw
) -> None:
    places = np.array([[60.0 + 80 * (n % 7), 60.0 + 80 * (n // 7), 46.0] for n in range(21)])
    for name, red_px in (("b", 50.0), ("c", 42.0), ("d", 42.0)):
        places[:, 2] = red_px
        pixels = draw_discs((640, 480), places, ("normocyte",) * 21).pixels
        write_picture(tmp_path / "own" / "images" / f"{name}.png", pixels)
        (tmp_path / "own" / "labels" / f"{name}.txt").write_text("60 60 normocyte\n")
    (tmp_path / "own" / "val.txt").write_text("b\nc\nd\n")
    pipeline = naming_pipeline()
    scales = field_scales(pipeline, ("own", field), "val")
    assert list(scales) == [(640, 480)]
    assert scales[640, 480].um_per_px == pytest.approx(7.5 / 42, rel=0.03)
    named = name_points(pipeline, ("own", field), "val", own_scale=False, scales=scales)
    assert named.kinds == ["rbc"] * 3
    analysis = pipeline.analyze(tmp_path / "own" / "images" / "b.png", slide_scales=scales)
    assert analysis.result.scale.um_per_px == scales[640, 480].um_per_px


def test_without_classifiers_cells_are_only_found(naming_pipeline: Callable[..., Pipeline], field: CellSource) -> None:
    named = name_points(naming_pipeline(classifiers=()), ("own", field), "val", own_scale=True)
    assert named.named == ["unclassified"] * 3 + ["missed"] * 2 + ["unclassified"]
    assert named.best == named.named


def test_the_white_cell_of_a_field_needs_no_place(
    naming_pipeline: Callable[..., Pipeline], field: CellSource, tmp_path: Path, draw_discs: Draw
) -> None:
    """It is the largest of the cells that were not found as red ones, whatever it is named."""
    entry = {"format": "typed", "find": "wbc", "um_per_px": {"any": UM_PER_PX}}
    source = CellSource.model_validate({**entry, "classes": {"neutrophil": "neutrophil"}})
    pipeline = naming_pipeline()
    assert name_points(pipeline, ("own", source), "val", own_scale=True).named == ["neutrophil"]
    discs = np.array([[100, 100, 40], [300, 200, 60], [500, 300, 24], [500, 100, 90]])
    kinds = ("neutrophil", "erythroblast", "platelet", "normocyte")
    write_picture(tmp_path / "own" / "images" / "a.png", draw_discs((640, 480), discs, kinds).pixels)
    named = name_points(pipeline, ("own", source), "val", own_scale=True)
    assert (named.named, named.kinds) == (["erythroblast"], ["nrbc"])
    write_picture(tmp_path / "own" / "images" / "a.png", draw_discs((640, 480), discs[3:], kinds[3:]).pixels)
    assert name_points(pipeline, ("own", source), "val", own_scale=True).named == ["missed"]


def test_a_red_cell_that_is_named_a_platelet_was_found(
    naming_pipeline: Callable[..., Pipeline], field: CellSource
) -> None:
    """The white classifier asked about red cells: its platelet changes the kind, but nothing was missed."""
    pipeline = naming_pipeline(classifiers=("white-discs",))
    card = pipeline.namer.classifiers[0].card
    object.__setattr__(pipeline.namer.classifiers[0], "card", card.model_copy(update={"kinds": ("rbc",)}))
    named = name_points(pipeline, ("own", field), "val", own_scale=True)
    assert (named.named[2], named.kinds[2]) == ("platelet", "platelet")


def test_merged_codes_are_called_as_the_classifier_does(
    naming_pipeline: Callable[..., Pipeline], field: CellSource
) -> None:
    pipeline = naming_pipeline()
    pipeline.taxonomy = pipeline.taxonomy.merged({"round_cell": ("spherocyte", "ovalocyte")})
    truth = [code for *_, code in POINTS]
    # What a classifier still gives is no part of another code.
    assert name_points(pipeline, ("own", field), "val", own_scale=True).truth == truth
    red = pipeline.namer.classifiers[0]
    renamed = tuple(code.replace("spherocyte", "round_cell") for code in red.card.codes)
    object.__setattr__(red, "card", red.card.model_copy(update={"codes": renamed}))
    pipeline.namer.codes = (*renamed, *pipeline.namer.codes[len(renamed) :])
    named = name_points(pipeline, ("own", field), "val", own_scale=True)
    assert named.truth == [code.replace("spherocyte", "round_cell") for code in truth]
    assert named.named[1] == "round_cell"
    both = field.model_copy(update={"classes": {**field.classes, "spherocyte": ("spherocyte", "ovalocyte")}})
    assert name_points(pipeline, ("own", both), "val", own_scale=True).truth == named.truth


def test_codes_that_no_classifier_gives_are_left_out_and_counted() -> None:
    truth = ["normocyte", "spherocyte", "normocyte", "platelet"]
    points = NamedPoints(truth, ["normocyte", "normocyte", "missed", "platelet"], list(truth), list(truth), {"a"})
    found = point_figures(points, ("normocyte", "target_cell"))
    assert (found["cells"], found["strange"]) == (3, {"spherocyte": 1})
    assert (found["accuracy"], found["found"]) == pytest.approx((2 / 3, 2 / 3))
    assert point_figures(points)["cells"] == 4
    with pytest.raises(DatasetError, match="no classifier gives normocyte, spherocyte"):
        point_figures(points.without(["platelet"]), ("target_cell",))


def test_nothing_to_measure_is_said(naming_pipeline: Callable[..., Pipeline], field: CellSource) -> None:
    with pytest.raises(DatasetError, match="labelled with one code, got none; see `classes`"):
        point_figures(NamedPoints())
    coarse = field.model_copy(update={"classes": dict.fromkeys(RED, RED)})
    assert name_points(naming_pipeline(), ("own", coarse), "val", own_scale=True).truth == []
    with pytest.raises(DatasetError, match=r"train\.txt: no such split list"):
        name_points(naming_pipeline(), ("own", field), "train", own_scale=True)
