"""Made-up collections in every format: which cells come out, where they were cut, and on which side they stay."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from smearcount.arrays import Pixels
from smearcount.cellsets import CellSet, join
from smearcount.datasets import load_sources
from smearcount.detector import Detector
from smearcount.errors import ConfigError, DatasetError, ImageError, UsageError
from smearcount.geometry import FILL
from smearcount.images import write_picture
from smearcount.taxonomy import load_taxonomy
from smearcount.training.cell_formats import CONTEXT, boxes_without_code, cut_window
from smearcount.training.cell_sources import CellSource, load_cell_sources
from smearcount.training.cells import read_cells
from smearcount.training.labelled_points import labelled_points

Draw = Callable[..., Any]

UM_PER_PX = 0.16
PATCH_UM = 12.0
SIDE_PX = round(CONTEXT * PATCH_UM / UM_PER_PX)
RED = ("normocyte", "spherocyte", "target_cell")
WHITE = ("neutrophil", "erythroblast")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def read(disc_detector: Callable[..., Detector]) -> Callable[..., CellSet]:
    """The cells of one source called `own`, in windows fine enough to be kept as they are."""
    detector = disc_detector()

    def cells(
        codes: tuple[str, ...], seed: int = 0, input_px: int = 96, patch_um: float = PATCH_UM, **entry: Any
    ) -> CellSet:
        scaled = {"um_per_px": {"any": UM_PER_PX}} if entry["format"] in ("points", "typed", "folders") else {}
        source = CellSource.model_validate({**scaled, **entry})
        return read_cells({"own": source}, codes, detector, patch_um, input_px, seed)

    return cells


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, pixels)


def fields(root: Path, draw: Draw, discs: dict[str, list[tuple[float, float, float, str]]], val: Sequence[str]) -> Path:
    """Drawn fields of 640 x 480 px and their split lists; each disc is x, y, diameter and code."""
    folder = root / "own"
    for stem, listed in discs.items():
        places = np.array([disc[:3] for disc in listed]).reshape(-1, 3)
        save(folder / "images" / f"{stem}.png", draw((640, 480), places, tuple(disc[3] for disc in listed)).pixels)
    for split in ("train", "val"):
        stems = [stem for stem in discs if (stem in val) == (split == "val")]
        (folder / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return folder


def middle(window: Pixels) -> tuple[float, float]:
    """Centre of gravity (x, y) of what is dark, of the one cell in a window."""
    weight = np.clip(FILL - window[..., 1].astype(float), 0, None)
    at = np.arange(len(window)) + 0.5
    return float(weight.sum(axis=0) @ at / weight.sum()), float(weight.sum(axis=1) @ at / weight.sum())


def codes_of(cells: CellSet) -> list[set[str]]:
    return [{code for code, may in zip(cells.codes, row, strict=True) if may} for row in cells.targets.tolist()]


POINT_DISCS = {
    "a": [(200.3, 150.8, 46.0, "normocyte"), (450.0, 300.0, 50.0, "spherocyte"), (40.0, 40.0, 46.0, "target_cell")],
    "b": [(320.5, 240.25, 44.0, "target_cell"), (120.0, 400.0, 46.0, "neutrophil")],
}
POINT_LABELS = {
    # Points lie off the middle of their cells; the last one of each field lies on no red cell at all.
    "a": "210 160 0\n\n445.5 290 1\n38 44 2\n620 460 1\n",
    "b": "310 250 2\n120 400 3\n500 100 9\n",
}
CLASSES = {"0": "normocyte", "1": "spherocyte", "2": ["normocyte", "target_cell"], "3": "normocyte", "9": ""}


@pytest.fixture
def points(root: Path, draw_discs: Draw) -> Path:
    folder = fields(root, draw_discs, POINT_DISCS, ["b"])
    (folder / "labels").mkdir()
    for stem, text in POINT_LABELS.items():
        (folder / "labels" / f"{stem}.txt").write_text(text)
    return folder


def test_points_are_cut_out_where_the_detector_sees_the_cell(points: Path, read: Callable[..., CellSet]) -> None:
    cells = read(RED, format="points", find="rbc", classes=CLASSES)
    assert codes_of(cells) == [
        *({"normocyte"}, {"spherocyte"}, {"normocyte", "target_cell"}, {"spherocyte"}),
        *({"normocyte", "target_cell"}, {"normocyte"}),
    ]
    assert cells.splits.tolist() == ["train"] * 4 + ["val"] * 2
    assert cells.groups.tolist() == ["own/a"] * 4 + ["own/b"] * 2
    assert set(cells.sources.tolist()) == {"own"}
    assert cells.origins[0] == "a.png 210 160"
    assert {window.shape for window in cells.pixels} == {(SIDE_PX, SIDE_PX, 3)}
    np.testing.assert_allclose(cells.um_per_px, UM_PER_PX)
    for row in (0, 1, 4):
        assert middle(cells.pixels[row]) == pytest.approx((SIDE_PX / 2, SIDE_PX / 2), abs=1.0)
    # Beyond the corner of the field there is background: 20 px of the window's half of 60 are left of the picture.
    assert (cells.pixels[2][:, :19] == FILL).all()
    # On no red cell, the point itself is the middle: bare background, and the white cell at its own place.
    assert (cells.pixels[3] == FILL).mean() > 0.4
    assert middle(cells.pixels[5]) == pytest.approx((SIDE_PX / 2, SIDE_PX / 2), abs=1.0)


def test_windows_are_kept_no_finer_than_the_network_can_see(points: Path, read: Callable[..., CellSet]) -> None:
    cells = read(RED, input_px=24, format="points", find="rbc", classes=CLASSES)
    finest = PATCH_UM / 48
    assert {len(window) for window in cells.pixels} == {round(SIDE_PX * UM_PER_PX / finest)}
    for window, scale in zip(cells.pixels, cells.um_per_px.tolist(), strict=True):
        assert len(window) * scale == pytest.approx(SIDE_PX * UM_PER_PX, rel=1e-6)
        assert scale == pytest.approx(finest, rel=0.02)
    assert middle(cells.pixels[0]) == pytest.approx((len(cells.pixels[0]) / 2,) * 2, abs=1.0)


def test_cells_of_other_codes_are_left_out(points: Path, read: Callable[..., CellSet]) -> None:
    cells = read(("target_cell", "spherocyte"), format="points", find="rbc", classes=CLASSES)
    assert codes_of(cells) == [{"spherocyte"}, {"target_cell"}, {"spherocyte"}, {"target_cell"}]
    with pytest.raises(DatasetError, match="no labelled cell of burr_cell in own; see their"):
        read(("burr_cell",), format="points", find="rbc", classes=CLASSES)


TYPED = {
    "one": [(300.0, 200.0, 70.0, "neutrophil"), (100.0, 100.0, 46.0, "rbc")],
    "two": [(300.0, 200.0, 70.0, "neutrophil"), (500.0, 300.0, 70.0, "neutrophil")],
    "none": [(100.0, 100.0, 46.0, "rbc")],
    "unknown": [(300.0, 200.0, 70.0, "neutrophil")],
    "held": [(411.0, 222.0, 70.0, "erythroblast")],
}


def types(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "wbc_types.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def typed(root: Path, draw_discs: Draw) -> Path:
    folder = fields(root, draw_discs, TYPED, ["held"])
    names = {stem: "erythroblast" if stem == "held" else "neutrophil" for stem in TYPED if stem != "unknown"}
    types(folder, [{"image": stem, "original": f"orig_{stem}.jpg", "type": name} for stem, name in names.items()])
    return folder


def test_typed_fields_give_their_one_white_cell(typed: Path, read: Callable[..., CellSet]) -> None:
    classes = {code: code for code in WHITE}
    cells = read(WHITE, format="typed", find="wbc", classes=classes)
    assert codes_of(cells) == [{"neutrophil"}, {"erythroblast"}]
    assert cells.splits.tolist() == ["train", "val"]
    assert cells.groups.tolist() == ["orig_one", "orig_held"]
    assert cells.origins.tolist() == ["one.png", "held.png"]
    assert middle(cells.pixels[1]) == pytest.approx((SIDE_PX / 2, SIDE_PX / 2), abs=1.0)
    types(typed, [{"image": "one", "type": "neutrophil"}])
    cells = read(WHITE, format="typed", find="wbc", classes=classes)
    assert cells.groups.tolist() == ["one"]


def test_lists_of_windows_begin_with_a_mark(
    points: Path, typed: Path, read: Callable[..., CellSet], tmp_path: Path
) -> None:
    """One folder is both: fields with points, and typed ones."""
    classes = {code: code for code in WHITE}
    entries: list[dict[str, Any]] = [
        {"format": "typed", "classes": classes},
        {"format": "points", "find": "rbc", "classes": CLASSES},
        {"format": "listed", "list": tmp_path / "listed.csv", "classes": classes},
    ]
    (points / "train.txt").write_text("a\none\n")
    (points / "val.txt").write_text("b\n")
    (points / "labels" / "one.txt").write_text("")
    (tmp_path / "listed.csv").write_text("image,x_px,y_px,um_per_px,type\none,300,200,0.16,neutrophil\n")
    plain = [read((*RED, *WHITE), **entry).origins.tolist() for entry in entries]
    assert [len(origins) for origins in plain] == [1, 6, 1]
    for path in (*tmp_path.rglob("*.txt"), *tmp_path.rglob("*.csv")):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert [read((*RED, *WHITE), **entry).origins.tolist() for entry in entries] == plain


def test_a_collection_without_a_cell_of_the_codes_is_told(
    boxes: Path, draw_discs: Draw, root: Path, disc_detector: Callable[..., Detector]
) -> None:
    folder_of_cells(root, draw_discs, {"round": 3})
    sources = {
        "own": CellSource.model_validate({"format": "folders", "classes": {"round": "normocyte"}}),
        "theirs": CellSource.model_validate(
            {"format": "boxes", "fields": "deepbionet", "classes": {"rbc": "normocyte"}}
        ),
        "other": CellSource.model_validate(
            {"format": "boxes", "fields": "deepbionet", "classes": {"platelet": "platelet"}}
        ),
    }
    told = list[str]()
    cells = read_cells(sources, RED, disc_detector(), PATCH_UM, 96, report=told.append)
    assert set(cells.sources.tolist()) == {"own", "theirs"}
    assert told == ["other: no cell of normocyte, spherocyte, target_cell"]


def test_typed_fields_that_give_no_cell_are_told_by_reason(typed: Path, disc_detector: Callable[..., Detector]) -> None:
    """One has two white cells, one has none, and of one no type is known; the cells sought are white by default."""
    entry = {"format": "typed", "um_per_px": {"any": UM_PER_PX}, "classes": {code: code for code in WHITE}}
    told = list[str]()
    source = CellSource.model_validate(entry)
    cells = read_cells({"own": source}, WHITE, disc_detector(), PATCH_UM, 96, report=told.append)
    assert cells.origins.tolist() == ["one.png", "held.png"]
    reasons = "1 with no cell found as wbc, 1 with several cells found as wbc, 1 without a type in wbc_types.csv"
    assert told == [f"own: 3 fields left out ({reasons})"]
    (typed / "train.txt").write_text("one\n")
    read_cells({"own": source}, WHITE, disc_detector(), PATCH_UM, 96, report=told.append)
    assert len(told) == 1


def test_looks_of_a_collection_are_sources_of_their_own(
    typed: Path, read: Callable[..., CellSet], draw_discs: Draw
) -> None:
    """Where pictures of different size have different scales, so have their cells."""
    save(typed / "images" / "held.png", draw_discs((400, 400), np.array([[200, 200, 35]]), ("neutrophil",)).pixels)
    types(typed, [{"image": stem, "type": "neutrophil"} for stem in ("one", "held")])
    scales = {"640x480": 0.16, "any": 0.32}
    cells = read(("neutrophil",), format="typed", find="wbc", classes={"neutrophil": "neutrophil"}, um_per_px=scales)
    assert cells.sources.tolist() == ["own/640x480", "own/any"]
    np.testing.assert_allclose(cells.um_per_px, [0.16, 0.32])
    with pytest.raises(ConfigError, match="own: um_per_px: no entry for pictures of 640x480 px.*add one"):
        read(("neutrophil",), format="typed", find="wbc", classes={"neutrophil": "neutrophil"}, um_per_px={"9x9": 1.0})


def test_listed_cells_are_cut_out_at_their_places_and_scales(
    typed: Path, read: Callable[..., CellSet], tmp_path: Path
) -> None:
    listed = tmp_path / "listed.csv"
    rows = ["image,x_px,y_px,um_per_px,type", "two,300,200,0.16,granulocyte", "held,411,222,0.32,erythroblast"]
    listed.write_text("\n".join(rows), encoding="utf-8")
    classes = {"granulocyte": ("neutrophil", "eosinophil"), "erythroblast": "erythroblast"}
    cells = read((*WHITE, "eosinophil"), format="listed", list=listed, classes=classes)
    assert codes_of(cells) == [{"neutrophil", "eosinophil"}, {"erythroblast"}]
    assert cells.splits.tolist() == ["train", "val"]
    assert cells.groups.tolist() == ["own/two", "own/held"]
    assert middle(cells.pixels[1]) == pytest.approx((len(cells.pixels[1]) / 2,) * 2, abs=1.0)
    np.testing.assert_allclose(cells.um_per_px, [0.16, 0.32], rtol=0.05)
    assert len(cells.pixels[0]) == pytest.approx(2 * len(cells.pixels[1]), abs=2)
    listed.write_text("image,x_px,y_px,um_per_px,type\nabsent,1,1,0.16,erythroblast\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="absent"):
        read(WHITE, format="listed", list=listed, classes=classes)


def voc(path: Path, boxes: list[tuple[str, list[int]]]) -> None:
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for name, box in boxes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{objects}</annotation>")


@pytest.fixture
def boxes(root: Path, draw_discs: Draw) -> Path:
    """Six red cells and one platelet in each of two fields, labelled as Pascal VOC under the name of a collection."""
    folder = root / "deepbionet"
    for stem in ("a", "b"):
        discs = np.array([[60 + 90 * k, 100 + 10 * k, 46] for k in range(6)] + [[300, 400, 20]], float)
        kinds = ("rbc",) * 6 + ("platelet",)
        save(folder / "images" / f"{stem}.png", draw_discs((640, 480), discs, kinds).pixels)
        rows = [(x - d / 2, y - d / 2, x + d / 2, y + d / 2) for x, y, d in discs.tolist()]
        names = ["RBC"] * 6 + ["Platelets"]
        labelled = zip(names, rows, strict=True)
        voc(folder / "annotations" / f"{stem}.xml", [(name, [int(v) for v in row]) for name, row in labelled])
    (folder / "train.txt").write_text("a\n")
    (folder / "val.txt").write_text("b\n")
    return folder


def test_boxes_give_cells_of_the_kinds_asked_for(boxes: Path, read: Callable[..., CellSet]) -> None:
    cells = read(("platelet",), format="boxes", fields="deepbionet", classes={"platelet": "platelet"})
    assert cells.groups.tolist() == ["deepbionet/a", "deepbionet/b"]
    assert cells.splits.tolist() == ["train", "val"]
    # The scale is that of the field, whose red cells of 46 px are 7.5 um.
    np.testing.assert_allclose(cells.um_per_px, 7.5 / 46, rtol=1e-3)
    for window in cells.pixels:
        assert len(window) == round(CONTEXT * PATCH_UM / (7.5 / 46))
        assert middle(window) == pytest.approx((len(window) / 2,) * 2, abs=0.6)


def test_boxes_of_an_own_file_of_fields(
    boxes: Path, read: Callable[..., CellSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, elsewhere = tmp_path / "own.yaml", boxes.rename(tmp_path / "elsewhere")
    fields = {"format": "voc", "classes": {"RBC": "rbc", "Platelets": "platelet"}, "labelled": ["rbc", "platelet"]}
    own.write_text(yaml.safe_dump({"mine": {**fields, "red_cell_px": {"any": 46}}}))
    entry = {"format": "boxes", "datasets": own, "fields": "mine", "classes": {"platelet": "platelet"}}
    monkeypatch.delenv("SMEARCOUNT_DATA")
    monkeypatch.setattr("smearcount.datasets.data_root", lambda: None)
    monkeypatch.setattr("smearcount.training.cell_sources.data_root", lambda: None)
    with pytest.raises(DatasetError, match="set SMEARCOUNT_DATA"):
        read(("platelet",), **entry)
    assert read(("platelet",), **entry, folder=elsewhere).groups.tolist() == ["mine/a", "mine/b"]
    own.write_text(yaml.safe_dump({"mine": {**fields, "red_cell_px": {"any": 46}, "folder": str(elsewhere)}}))
    assert read(("platelet",), **entry).groups.tolist() == ["mine/a", "mine/b"]
    with pytest.raises(UsageError, match="unknown collections"):
        read(("platelet",), **{**entry, "fields": "other"})


TYPED_BOXES = {"a": ["Normal", "Oval", "Dust", "Esferocito"], "b": ["Normal", "Esferocito", "Dust", "Dust"]}


@pytest.fixture(params=["voc", "yolo", "coco"])
def typed_boxes(request: pytest.FixtureRequest, root: Path, draw_discs: Draw) -> dict[str, Any]:
    """The entry of two fields of four cells each, whose boxes are called by what the cells are."""
    folder, places = root / "theirs", np.array([[100 + 140 * k, 200, 46] for k in range(4)], float)
    names = ["Normal", "Oval", "Dust", "Esferocito"]
    corners = [[int(x) - 23, 177, int(x) + 23, 223] for x, _, _ in places.tolist()]
    images, annotations = [], []
    for number, (stem, called) in enumerate(TYPED_BOXES.items()):
        save(folder / "images" / f"{stem}.png", draw_discs((640, 480), places, ("rbc",) * 4).pixels)
        voc(folder / "annotations" / f"{stem}.xml", list(zip(called, corners, strict=True)))
        lines = [
            f"{names.index(name)} {(x0 + 23) / 640} {200 / 480} {46 / 640} {46 / 480}"
            for name, (x0, *_) in zip(called, corners, strict=True)
        ]
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(lines))
        images.append({"id": number, "file_name": f"{stem}.png"})
        for name, (x0, y0, *_) in zip(called, corners, strict=True):
            box = {"bbox": [x0, y0, 46, 46], "category_id": names.index(name)}
            annotations.append({"image_id": number, **box})
    (folder / "classes.txt").write_text("\n".join(names))
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "train.txt").write_text("a\n")
    (folder / "val.txt").write_text("b\n")
    fields = {"format": request.param, "folder": str(folder), "classes": dict.fromkeys(names, "rbc")}
    own = root / "own_fields.yaml"
    own.write_text(yaml.safe_dump({"mine": {**fields, "labelled": ["rbc"], "red_cell_px": {"any": 46}}}))
    classes = {"Normal": "normocyte", "Esferocito": "spherocyte", "Oval": ["normocyte", "target_cell"]}
    return {"format": "boxes", "datasets": own, "fields": "mine", "classes": classes}


def test_boxes_are_what_they_are_called(typed_boxes: dict[str, Any], read: Callable[..., CellSet]) -> None:
    cells = read(RED, **typed_boxes)
    normal, round_one = {"normocyte"}, {"spherocyte"}
    assert codes_of(cells) == [normal, {"normocyte", "target_cell"}, round_one, normal, round_one]
    assert cells.splits.tolist() == ["train"] * 3 + ["val"] * 2
    assert cells.groups.tolist() == ["mine/a"] * 3 + ["mine/b"] * 2
    assert cells.origins[2] == "a.png 520 200"
    for window in cells.pixels:
        assert middle(window) == pytest.approx((len(window) / 2,) * 2, abs=0.6)
    assert boxes_without_code(CellSource.model_validate(typed_boxes)) == {"Dust": 3}
    # What has no name among the classes may still be told by its kind.
    by_kind = {**typed_boxes, "classes": {"Normal": "", "rbc": "target_cell"}}
    assert codes_of(read(RED, **by_kind)) == [{"target_cell"}] * 6
    assert boxes_without_code(CellSource.model_validate(by_kind)) == {}
    wrong = {**typed_boxes, "classes": {"Norml": "normocyte"}}
    with pytest.raises(ConfigError, match="own: classes: no box of mine is called Norml; known: Dust, Esferocito"):
        read(RED, **wrong)


def test_exchanged_labels_are_told_by_their_kind(boxes: Path, read: Callable[..., CellSet], tmp_path: Path) -> None:
    """Fields whose boxes are called as the kinds are; in the second one the labellers exchanged red and white."""
    for stem, names in (("a", ("rbc", "wbc")), ("b", ("wbc", "rbc"))):
        voc(boxes / "annotations" / f"{stem}.xml", [(names[0], [37, 77, 83, 123]), (names[1], [127, 87, 173, 133])])
    fields = {"format": "voc", "folder": str(boxes), "classes": {"rbc": "rbc", "wbc": "wbc"}, "swapped": ["b"]}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"mine": {**fields, "labelled": ["rbc", "wbc"], "red_cell_px": {"any": 46}}}))
    entry = {"format": "boxes", "datasets": own, "fields": "mine"}
    cells = read(RED, **entry, classes={"rbc": "normocyte"})
    assert cells.origins.tolist() == ["a.png 60 100", "b.png 60 100"]
    white = read(WHITE, **entry, classes={"wbc": "neutrophil"})
    assert white.origins.tolist() == ["a.png 150 110", "b.png 150 110"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"format": "boxes"}, "fields: expected the entry"),
        ({"format": "points", "datasets": "own.yaml"}, "datasets: only an entry of format boxes"),
        (
            {"format": "points", "val_share": 0.2},
            "val_share: only an entry of format folders or truth takes it, not one",
        ),
        ({"format": "folders", "groups": "a.csv", "train_groups": "b.csv"}, "groups: not beside train_groups"),
        ({"format": "folders", "at_most": 9}, "at_most: only an entry of format boxes"),
        ({"format": "boxes", "fields": "x", "um_per_px": {"any": 0.1}}, "um_per_px: only an entry of format points or"),
        ({"format": "truth", "groups": "groups.csv"}, "groups: only an entry of format folders"),
        ({"format": "listed", "types": "types.csv"}, "types: only an entry of format typed"),
        ({"format": "folders", "um_per_px": {"any": 0}}, r"um_per_px\.any: Input should be greater than 0"),
        ({"format": "folders", "um_per_px": {"Any": 0.1}}, r"um_per_px\.Any"),
    ],
)
def test_keys_that_do_not_fit_the_format_are_refused(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"mine": {"classes": {"rbc": "normocyte"}, **entry}}))
    with pytest.raises(ConfigError, match=rf"cells\.yaml: mine(: |\.){reason}"):
        load_cell_sources(tmp_path / "cells.yaml")


def test_boxes_of_some_looks_only(root: Path, read: Callable[..., CellSet], draw_discs: Draw) -> None:
    folder = root / "txl_pbc"
    for stem, size in (("a", (640, 480)), ("b", (575, 575)), ("c", (360, 363))):
        save(folder / "images" / f"{stem}.png", draw_discs(size, np.array([[200, 200, 90.0]]), ("rbc",)).pixels)
        box = (200 / size[0], 200 / size[1], 90 / size[0], 90 / size[1])
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{stem}.txt").write_text(" ".join(map(str, (1, *box))))
    (folder / "classes.txt").write_text("WBC\nRBC\nPlatelets\n")
    (folder / "train.txt").write_text("a\nb\nc\n")
    (folder / "val.txt").write_text("")
    entry = {"format": "boxes", "fields": "txl_pbc", "classes": {"rbc": "normocyte"}}
    taken = {looks: read(RED, **entry, looks=looks).groups.tolist() for looks in ((), ("any",), ("575x575", "640x480"))}
    assert taken == {
        (): ["txl_pbc/a", "txl_pbc/b", "txl_pbc/c"],
        ("any",): ["txl_pbc/c"],
        ("575x575", "640x480"): ["txl_pbc/a", "txl_pbc/b"],
    }


def test_red_cells_are_sorted_by_their_outline(root: Path, read: Callable[..., CellSet]) -> None:
    """Ellipses of known length over width, one of them cut by the border."""
    folder, shapes = root / "deepbionet", [(46, 46), (46, 42), (54, 43), (60, 38), (48, 48)]
    pixels = np.full((200, 640, 3), (230, 222, 214), np.uint8)
    places = [(60, 100), (170, 100), (280, 100), (390, 100), (632, 100)]
    for (x, y), (long, wide) in zip(places, shapes, strict=True):
        cv2.ellipse(pixels, (x, y), (long // 2, wide // 2), 20, 0, 360, (205, 130, 140), -1, cv2.LINE_AA)
    save(folder / "images" / "a.png", pixels)
    boxes = [("RBC", [x - 26, y - 26, min(x + 26, 640), y + 26]) for x, y in places]
    voc(folder / "annotations" / "a.xml", boxes)
    (folder / "train.txt").write_text("a\n")
    (folder / "val.txt").write_text("")
    classes = {"round": "normocyte", "oval": "spherocyte", "long": "target_cell", "rbc": list(RED)}
    cells = read(RED, format="boxes", fields="deepbionet", outline=True, classes=classes)
    assert codes_of(cells) == [{"normocyte"}, {"normocyte"}, {"spherocyte"}, {"target_cell"}, set(RED)]
    assert len(read(RED, format="boxes", fields="deepbionet", outline=True, classes={**classes, "rbc": ""})) == 4


def test_at_most_so_many_cells_are_drawn_by_the_seed(boxes: Path, read: Callable[..., CellSet]) -> None:
    entry = {"format": "boxes", "fields": "deepbionet", "classes": {"rbc": ["normocyte", "spherocyte"]}}
    whole = read(RED, **entry)
    assert len(whole) == 12
    assert codes_of(whole) == [{"normocyte", "spherocyte"}] * 12
    drawn = [read(RED, seed, **entry, at_most=5).origins.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(set(origins)) for origins in drawn] == [5, 5, 5]
    assert set(drawn[0]) | set(drawn[2]) <= set(whole.origins.tolist())


def folder_of_cells(root: Path, draw: Draw, counts: dict[str, int], name: str = "own") -> Path:
    """One folder a class of drawn cells, 75 px a side and 12 um, all of them a little different."""
    rng = np.random.default_rng(0)
    for label, n in counts.items():
        for row in range(n):
            disc = np.array([[*rng.uniform(36, 39, 2), rng.uniform(40, 52)]])
            save(root / name / label / f"{label}_{row:02d}.png", draw((75, 75), disc, ("normocyte",)).pixels)
    return root / name


def test_folders_are_split_by_class(root: Path, read: Callable[..., CellSet], draw_discs: Draw) -> None:
    folder_of_cells(root, draw_discs, {"round": 20, "odd": 10, "other": 4, "left out": 3})
    classes = {"round": "normocyte", "odd": "spherocyte", "left out": ""}
    entry = {"format": "folders", "classes": classes, "val_share": 0.2}
    cells = read(RED, **entry)
    assert len(cells) == 30
    in_val = cells.splits == "val"
    assert [int((in_val & (cells.labels == code)).sum()) for code in (0, 1)] == [4, 2]
    assert cells.origins[0] == "odd/odd_00.png"
    assert len(set(cells.groups.tolist())) == 30
    assert cells.splits.tolist() == read(RED, **entry).splits.tolist()
    assert cells.splits.tolist() != read(RED, seed=1, **entry).splits.tolist()
    assert set(read(RED, **{**entry, "val_share": 0.0}).splits.tolist()) == {"train"}
    for path in (root / "own" / "odd" / "odd_00.png", "odd/odd_00.png"):
        less = read(RED, **entry, without=[path])
        assert set(cells.origins.tolist()) - set(less.origins.tolist()) == {"odd/odd_00.png"}


def test_without_a_scale_a_picture_is_the_patch(root: Path, read: Callable[..., CellSet], draw_discs: Draw) -> None:
    folder_of_cells(root, draw_discs, {"round": 2})
    wide = draw_discs((130, 90), np.array([[65, 45, 40]]), ("normocyte",)).pixels
    save(root / "own" / "round" / "wide.png", wide)
    cells = read(RED, format="folders", classes={"round": "normocyte"}, um_per_px={})
    assert [len(window) for window in cells.pixels] == [75, 75, 90]
    np.testing.assert_allclose([len(w) * s for w, s in zip(cells.pixels, cells.um_per_px, strict=True)], 12, rtol=1e-6)
    np.testing.assert_array_equal(cells.pixels[2], wide[:, 20:110])


def test_what_lies_in_training_elsewhere_stays_in_training(
    root: Path, read: Callable[..., CellSet], draw_discs: Draw
) -> None:
    """Pictures of one name are one original, in whatever class; those of the fields of another keep their side."""
    folder = folder_of_cells(root, draw_discs, {"round": 20, "odd": 20})
    for row in range(20):
        (folder / "odd" / f"odd_{row:02d}.png").rename(folder / "odd" / f"round_{row:02d}.png")
    (root / "fields").mkdir()
    types(root / "fields", [{"image": f"f{row}", "original": f"round_{row:02d}.jpg"} for row in range(10)])
    classes = {"round": "normocyte", "odd": "spherocyte"}
    cells = read(RED, format="folders", classes=classes, val_share=0.3, train_groups="fields/wbc_types.csv")
    assert set(cells.groups.tolist()) == {f"round_{row:02d}" for row in range(20)}
    sides = {group: set(cells.splits[cells.groups == group].tolist()) for group in cells.groups.tolist()}
    assert all(len(side) == 1 for side in sides.values())
    assert all(sides[f"round_{row:02d}"] == {"train"} for row in range(10))
    assert sum(side == {"val"} for side in sides.values()) == 3


def test_the_cell_of_a_single_picture_is_moved_to_the_middle(
    root: Path, read: Callable[..., CellSet], draw_discs: Draw
) -> None:
    """By no more than leaves nine tenths of the picture; the cell that covers the middle most is meant."""
    places = {"near": [[156, 153, 60]], "far": [[200, 150, 60]], "two": [[148, 152, 60], [40, 40, 60]], "bare": []}
    for name, discs in places.items():
        array = np.array(discs, float).reshape(-1, 3)
        pixels = draw_discs((300, 300), array, ("neutrophil",) * len(array)).pixels
        save(root / "own" / "white" / f"{name}.png", pixels)
    cells = read(("neutrophil",), format="folders", find="wbc", classes={"white": "neutrophil"})
    windows = dict(zip(("bare", "far", "near", "two"), cells.pixels, strict=True))
    assert {name: len(window) for name, window in windows.items()} == {"bare": 300, "far": 270, "near": 288, "two": 296}
    assert middle(windows["near"]) == pytest.approx((144, 144), abs=1.0)
    assert middle(windows["far"])[0] == pytest.approx(200 - 30, abs=1.0)
    still = read(("neutrophil",), format="folders", classes={"white": "neutrophil"})
    assert {len(window) for window in still.pixels} == {300}


@pytest.mark.parametrize("input_px", [96, 24])
def test_pictures_beyond_what_memory_may_hold_are_read_again_when_shown(
    root: Path, read: Callable[..., CellSet], draw_discs: Draw, monkeypatch: pytest.MonkeyPatch, input_px: int
) -> None:
    """The same pixels, also of a part of the picture, and shrunk; sides are known without reading."""
    for row in range(4):
        discs = np.array([[150 + 8 * row, 153, 60], [40, 40, 30]])
        save(root / "own" / "white" / f"{row}.png", draw_discs((300, 280), discs, ("neutrophil",) * 2).pixels)
    asked: dict[str, Any] = {"format": "folders", "find": "wbc", "classes": {"white": "neutrophil"}}
    kept = read(("neutrophil",), input_px=input_px, **asked)
    monkeypatch.setattr("smearcount.training.cells.MOST_BYTES", sum(each.nbytes for each in kept.pixels[:2]))
    light = read(("neutrophil",), input_px=input_px, **asked)
    assert light.sides_px.tolist() == [len(window) for window in kept.pixels]
    assert light.um_per_px.tolist() == kept.um_per_px.tolist()
    for ours, theirs in zip(light.pixels, kept.pixels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    both = join([light.take(np.array([3, 1])), light.take(np.array([0]))])
    (root / "own" / "white" / "3.png").unlink()
    assert len(both.sides_px) == 3
    np.testing.assert_array_equal(both.pixels[1], kept.pixels[1])
    with pytest.raises(ImageError, match=r"3\.png"):
        both.pixels[0]


def test_platelets_are_looked_for_as_platelets(root: Path, read: Callable[..., CellSet], draw_discs: Draw) -> None:
    discs = np.array([[80, 75, 20], [76, 110, 46]])
    save(root / "own" / "plt" / "a.png", draw_discs((150, 150), discs, ("platelet", "neutrophil")).pixels)
    cells = read(("platelet",), format="folders", find="wbc", classes={"plt": "platelet"})
    assert len(cells.pixels[0]) == 140


def test_rendered_smears_know_their_codes(root: Path, read: Callable[..., CellSet], draw_discs: Draw) -> None:
    truth = {}
    for name in ("a.png", "b.png", "c.png"):
        discs = np.array([[100, 100, 46], [300, 200, 46], [500, 300, 46]])
        picture = draw_discs((640, 480), discs, ("normocyte", "spherocyte", "neutrophil"))
        save(root / "own" / name, picture.pixels)
        codes = ["normocyte", "spherocyte", "neutrophil"]
        truth[name] = {"um_per_px": 0.16, "boxes": picture.boxes.tolist(), "codes": codes}
    (root / "own" / "truth.json").write_text(json.dumps(truth))
    classes = {"normocyte": "normocyte", "spherocyte": "spherocyte"}
    cells = read(RED, format="truth", classes=classes, val_share=0.34)
    assert codes_of(cells) == [{"normocyte"}, {"spherocyte"}] * 3
    assert sorted(cells.splits[::2].tolist()) == ["train", "train", "val"]
    assert (cells.splits[::2] == cells.splits[1::2]).all()
    for window in cells.pixels:
        assert middle(window) == pytest.approx((SIDE_PX / 2, SIDE_PX / 2), abs=0.6)
    assert set(read(RED, format="truth", classes=classes).splits.tolist()) == {"train"}


@pytest.mark.parametrize(
    ("centre", "side", "corner"),
    [
        ((50.0, 40.0), 20, (40, 30)),
        ((50.4, 39.6), 20, (40, 30)),
        ((50.0, 40.0), 21, (40, 30)),
        ((50.7, 40.0), 21, (40, 30)),
    ],
)
def test_a_window_is_centred_to_half_a_pixel(
    centre: tuple[float, float], side: int, corner: tuple[int, int], draw_discs: Draw
) -> None:
    picture = draw_discs((100, 90), np.zeros((0, 3)), ())
    picture.pixels[:] = np.random.default_rng(0).integers(0, 255, picture.pixels.shape)
    x, y = corner
    np.testing.assert_array_equal(cut_window(picture, centre, side), picture.pixels[y : y + side, x : x + side])
    assert abs(x + side / 2 - centre[0]) <= 0.5 + 1e-9
    assert abs(y + side / 2 - centre[1]) <= 0.5 + 1e-9


def test_beyond_the_picture_a_window_is_background(draw_discs: Draw) -> None:
    picture = draw_discs((100, 90), np.zeros((0, 3)), ())
    picture.pixels[:] = 7
    for centre, inside in (((0, 0), 0.25), ((100, 45), 0.5), ((-50, 45), 0.0), ((50, 45), 1.0)):
        window = cut_window(picture, centre, 40)
        assert (window == 7).mean() == inside
        assert (window == FILL).mean() == 1 - inside


def test_a_collection_that_can_not_be_read_is_named(points: Path, read: Callable[..., CellSet]) -> None:
    entry: dict[str, Any] = {"format": "points", "find": "rbc"}
    with pytest.raises(DatasetError, match=r"own: cells of format points.*class '2' is not among 0, 1"):
        read(RED, **entry, classes={"0": "normocyte", "1": "spherocyte"})
    (points / "labels" / "a.txt").write_text("12 13\n")
    with pytest.raises(DatasetError, match="own: cells of format points can't be read"):
        read(RED, **entry, classes=CLASSES)
    (points / "labels" / "a.txt").unlink()
    with pytest.raises(DatasetError, match=r"FileNotFoundError.*a\.txt"):
        read(RED, **entry, classes=CLASSES)
    (points / "val.txt").unlink()
    with pytest.raises(DatasetError, match=r"val\.txt: no such split list"):
        read(RED, **entry, classes=CLASSES)
    with pytest.raises(DatasetError, match=r"elsewhere: no such folder, where the cells of own should be"):
        read(RED, **entry, classes=CLASSES, folder=points / "elsewhere")


def test_a_broken_picture_is_named(points: Path, read: Callable[..., CellSet]) -> None:
    (points / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png"):
        read(RED, format="points", find="rbc", classes=CLASSES)


def test_without_any_data_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read: Callable[..., CellSet]
) -> None:
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path / "absent"))
    for entry in ({"format": "points"}, {"format": "boxes", "fields": "deepbionet"}):
        with pytest.raises(DatasetError, match="set SMEARCOUNT_DATA"):
            read(RED, **entry, classes={"rbc": "normocyte"})


def test_labelled_points_are_those_with_one_code(points: Path) -> None:
    source = CellSource.model_validate(
        {"format": "points", "find": "rbc", "um_per_px": {"any": 0.2}, "classes": CLASSES}
    )
    train = labelled_points("own", source, "train")
    assert [(point.path.name, point.code, point.xy) for point in train] == [
        ("a.png", "normocyte", (210.0, 160.0)),
        ("a.png", "spherocyte", (445.5, 290.0)),
        ("a.png", "spherocyte", (620.0, 460.0)),
    ]
    assert {point.um_per_px for point in train} == {0.2}
    assert [point.code for point in labelled_points("own", source, "val")] == ["normocyte"]
    (points / "labels" / "b.txt").write_text("1 2 77\n")
    with pytest.raises(DatasetError, match="class '77' is not among"):
        labelled_points("own", source, "val")
    with pytest.raises(UsageError, match="expected a collection of points or typed fields, got folders"):
        labelled_points("own", source.model_copy(update={"format": "folders"}), "val")


def test_labelled_types_have_no_place(typed: Path) -> None:
    classes = {"neutrophil": "neutrophil", "erythroblast": ["erythroblast", "neutrophil"]}
    entry = {"format": "typed", "find": "wbc", "um_per_px": {"any": 0.2}, "classes": classes}
    source = CellSource.model_validate(entry)
    assert [(point.path.stem, point.code, point.xy) for point in labelled_points("own", source, "train")] == [
        (stem, "neutrophil", None) for stem in ("one", "two", "none")
    ]
    assert labelled_points("own", source, "val") == []
    (typed / "wbc_types.csv").unlink()
    with pytest.raises(DatasetError, match=r"wbc_types\.csv"):
        labelled_points("own", source, "train")


def test_the_shipped_collections_agree_with_the_taxonomy() -> None:
    taxonomy, known = load_taxonomy(), load_sources()
    for name, source in load_cell_sources().items():
        codes = {code for label in source.classes for code in source.codes_of(label)}
        assert codes, name
        assert codes <= taxonomy.codes.keys(), name
        if source.format in ("points", "typed"):
            assert source.find, name
            assert source.scale((1, 1)), name
        if source.format == "boxes":
            assert source.fields in known, name
            outlines = {"round", "oval", "long"} if source.outline else set()
            assert set(source.classes) - outlines <= set(known[source.fields].classes.values()), name


def test_an_own_file_of_collections(tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(yaml.safe_dump({"mine": {"format": "folders", "classes": {"a": "normocyte"}}}))
    assert load_cell_sources(path)["mine"].codes_of("a") == {"normocyte"}
    for content, reason in (
        ("[1, 2]", "expected entries by name"),
        ("mine: {format: zip, classes: {}}", "format"),
        ("mine: {format: folders}", "classes"),
        ("mine: {format: folders, classes: {a: b}, color: red}", "color"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=rf"cells\.yaml: (.|\n)*{reason}"):
            load_cell_sources(path)
