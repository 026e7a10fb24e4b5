"""The same two pictures labelled in every format give the same boxes; what is malformed is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from smearcount.datasets import KINDS, FieldSource, data_root, load_sources, picture_finder, read_source
from smearcount.errors import ConfigError, DatasetError

SIZE_WH = (80, 60)
# Two pictures, the second without cells: class, x_min, y_min, x_max, y_max.
CELLS = {
    "one": [("RBC", 5, 6, 25, 26), ("WBC", 30, 10, 70, 50), ("Platelets", 70, 50, 80, 60), ("dirt", 1, 1, 9, 9)],
    "two": [],
}
CLASSES = {"RBC": "rbc", "WBC": "wbc", "Platelets": "platelet", "dirt": ""}
NAMES = list(CLASSES)


def voc(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for stem, cells in CELLS.items():
        keys = ("xmin", "ymin", "xmax", "ymax")
        items = [
            f"<object><name>{name}</name><bndbox>"
            + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
            + "</bndbox></object>"
            for name, *box in cells
        ]
        (folder / "annotations" / f"{stem}.xml").write_text(f"<annotation>{''.join(items)}</annotation>")


def yolo(folder: Path) -> None:
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    width, height = SIZE_WH
    for stem, cells in CELLS.items():
        lines = [
            f"{NAMES.index(name)} {(a + c) / 2 / width} {(b + d) / 2 / height} {(c - a) / width} {(d - b) / height}"
            for name, a, b, c, d in cells
        ]
        (folder / "labels" / f"{stem}.txt").write_text("\n".join([*lines, "", ""]))


def coco(folder: Path) -> None:
    stems = list(CELLS)
    content = {
        "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(NAMES)],
        "images": [{"id": 3 * i, "file_name": f"{stem}.png"} for i, stem in enumerate(stems)],
        "annotations": [
            {"image_id": 3 * stems.index(stem), "category_id": 7 + NAMES.index(name), "bbox": [a, b, c - a, d - b]}
            for stem, cells in CELLS.items()
            for name, a, b, c, d in cells
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def iml(folder: Path) -> None:
    content = [
        {
            "image_name": f"{stem}.png",
            "objects": [
                {"type": name, "bbox": {"x": str(a), "y": str(b), "w": str(c - a), "h": str(d - b)}}
                for name, a, b, c, d in cells
            ],
        }
        for stem, cells in CELLS.items()
    ]
    (folder / "annotations.json").write_text(json.dumps(content))


WRITERS: dict[str, Callable[[Path], None]] = {"voc": voc, "yolo": yolo, "coco": coco, "iml": iml}


def made(name: str, form: str, classes: dict[str, str], red_cell_px: dict[str, float], **more: Any) -> FieldSource:
    entry = {"name": name, "format": form, "classes": classes, "labelled": KINDS, "red_cell_px": red_cell_px, **more}
    return FieldSource.model_validate(entry)


def replace(source: FieldSource, **changes: Any) -> FieldSource:
    return source.model_copy(update=changes)


def collection(root: Path, form: str) -> tuple[Path, FieldSource]:
    folder = root / "lab"
    (folder / "images").mkdir(parents=True)
    for stem in CELLS:
        cv2.imwrite(str(folder / "images" / f"{stem}.png"), np.full((SIZE_WH[1], SIZE_WH[0], 3), 214, np.uint8))
    (folder / "val.txt").write_text("two\none\n")
    WRITERS[form](folder)
    return folder, made("lab", form, CLASSES, {"any": 25.0})


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_same_cells(tmp_path: Path, form: str) -> None:
    _, source = collection(tmp_path, form)
    two, one = read_source(tmp_path, source, "val")
    assert (one.path.name, two.path.name, one.source) == ("one.png", "two.png", "lab")
    assert (two.boxes.shape, two.kinds.shape) == ((0, 4), (0,))
    # The box of the dirt is not a cell; the others come in the order of the file.
    assert np.allclose(one.boxes, [cell[1:] for cell in CELLS["one"][:3]], atol=1e-4)
    assert (one.boxes.dtype, one.kinds.tolist()) == (np.float32, [0, 1, 2])
    assert one.um_per_px == pytest.approx(7.5 / 25)


@pytest.mark.parametrize("form", WRITERS)
def test_files_of_windows_begin_with_a_mark(tmp_path: Path, form: str) -> None:
    folder, source = collection(tmp_path, form)
    plain = read_source(tmp_path, source, "val")
    for path in folder.rglob("*.*"):
        if path.suffix in (".txt", ".json", ".xml"):
            path.write_text(path.read_text(), encoding="utf-8-sig")
    for ours, theirs in zip(read_source(tmp_path, source, "val"), plain, strict=True):
        assert (ours.path, ours.names, ours.boxes.tolist()) == (theirs.path, theirs.names, theirs.boxes.tolist())


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "bmp", "webp", "TIFF", "tif"])
def test_the_suffix_of_a_picture_is_any_of_those_read(tmp_path: Path, suffix: str) -> None:
    folder, source = collection(tmp_path, "voc")
    content = cv2.imencode(f".{suffix.lower()}", np.full((SIZE_WH[1], SIZE_WH[0], 3), 214, np.uint8))[1].tobytes()
    (folder / "images" / "one.png").unlink()
    (folder / "images" / f"one.{suffix}").write_bytes(content)
    (folder / "images" / "one.txt").write_text("no picture")
    (folder / "images" / "one.jpg").mkdir()
    assert read_source(tmp_path, source, "val")[1].path.name == f"one.{suffix}"


def test_of_several_pictures_of_a_stem_one_is_taken(tmp_path: Path) -> None:
    for name in ("a.b.png", "a.png", "a.JPG", "a.jpg", "a.tiff", "c.tiff", "c.bmp"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "d.png").touch()
    picture_of = picture_finder(tmp_path)
    found = [picture_of(stem).name for stem in ("a", "a.b", "c", "below/d")]
    assert found == ["a.jpg", "a.b.png", "c.bmp", "d.png"]
    with pytest.raises(DatasetError, match="below/a: no picture of this name"):
        picture_of("below/a")
    with pytest.raises(DatasetError, match="none/a: no picture of this name"):
        picture_finder(tmp_path / "none")("a")


@pytest.mark.parametrize("form", WRITERS)
def test_a_damaged_label_file_is_named(tmp_path: Path, form: str) -> None:
    folder, source = collection(tmp_path, form)
    target = {"voc": "annotations/one.xml", "yolo": "labels/one.txt"}.get(form, "annotations.json")
    whole = (folder / target).read_text()
    for text in (whole[: len(whole) // 2], "0 0.5 0.5 0.1"):
        (folder / target).write_text(text)
        with pytest.raises(DatasetError, match="lab"):
            read_source(tmp_path, source, "val")
    (folder / target).unlink()
    with pytest.raises(DatasetError, match="lab"):
        read_source(tmp_path, source, "val")


@pytest.mark.parametrize("form", WRITERS)
def test_a_picture_without_labels_is_not_an_empty_one(tmp_path: Path, form: str) -> None:
    folder, source = collection(tmp_path, form)
    (folder / "val.txt").write_text("one\nthree\n")
    cv2.imwrite(str(folder / "images" / "three.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DatasetError, match="three"):
        read_source(tmp_path, source, "val")


def test_a_box_without_a_corner_is_refused(tmp_path: Path) -> None:
    folder, source = collection(tmp_path, "voc")
    path = folder / "annotations" / "one.xml"
    path.write_text(path.read_text().replace("<xmin>30</xmin>", ""))
    with pytest.raises(DatasetError, match="lab"):
        read_source(tmp_path, source, "val")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder, source = collection(tmp_path, "yolo")
    with pytest.raises(DatasetError, match=r"absent: no such folder, where the fields of lab should be; make or copy"):
        read_source(tmp_path, replace(source, folder=tmp_path / "absent"), "val")
    with pytest.raises(DatasetError, match=r"train\.txt: no such split list"):
        read_source(tmp_path, source, "train")
    (folder / "images" / "two.png").unlink()
    with pytest.raises(DatasetError, match="two: no picture of this name"):
        read_source(tmp_path, source, "val")


def test_a_class_without_a_kind_is_refused(tmp_path: Path) -> None:
    _, source = collection(tmp_path, "coco")
    classes = {name: kind for name, kind in CLASSES.items() if name != "WBC"}
    with pytest.raises(DatasetError, match=r"one\.png.*WBC.*not mapped"):
        read_source(tmp_path, replace(source, classes=classes), "val")


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (("RBC", 25, 6, 5, 26), r"one\.png: a box whose right is left of its left"),
        (("RBC", 5, 6, 25, float("nan")), r"one\.png: a box whose .* no number"),
        (("", 5, 6, 25, 26), r"one\.png: classes \[''\] are not mapped"),
    ],
)
def test_a_box_that_says_nothing_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, cell: Any, reason: str
) -> None:
    monkeypatch.setitem(CELLS, "one", [*CELLS["one"], cell])
    monkeypatch.setattr("test_datasets.NAMES", [*NAMES, ""])
    _, source = collection(tmp_path, form)
    with pytest.raises(DatasetError, match=reason):
        read_source(tmp_path, source, "val")


@pytest.mark.parametrize("number", [4, -1])
def test_a_number_that_is_none_of_the_classes_is_refused(tmp_path: Path, number: int) -> None:
    """As where the numbers begin at 1, or the last class is not in the list."""
    folder, source = collection(tmp_path, "yolo")
    (folder / "labels" / "one.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{number} 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DatasetError, match=rf"one: labels of format yolo can't be read \(KeyError: {number}\)"):
        read_source(tmp_path, source, "val")


def test_exchanged_labels_are_exchanged_back(tmp_path: Path) -> None:
    _, source = collection(tmp_path, "voc")
    one = read_source(tmp_path, replace(source, swapped=frozenset({"one"})), "val")[1]
    assert one.kinds.tolist() == [1, 0, 2]


def test_boxes_are_clipped_and_slivers_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: Any = [("RBC", -9, -9, 20, 20), ("RBC", 78, 10, 99, 40), ("RBC", 70, 30, 99, 99)]
    monkeypatch.setitem(CELLS, "one", boxes)
    _, source = collection(tmp_path, "coco")
    assert read_source(tmp_path, source, "val")[1].boxes.tolist() == [[0, 0, 20, 20], [70, 30, 80, 60]]


def test_the_scale_comes_from_the_cells_or_the_picture_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: Any = [("RBC", 4 + 14 * i, 20, 4 + 14 * i + 12, 32) for i in range(5)]
    monkeypatch.setitem(CELLS, "one", boxes)
    _, source = collection(tmp_path, "coco")
    two, one = read_source(tmp_path, replace(source, own_scale=True), "val")
    assert (one.um_per_px, two.um_per_px) == pytest.approx((7.5 / 12, 7.5 / 25))
    sized = replace(source, red_cell_px={"80x60": 30.0, "any": 25.0})
    field = read_source(tmp_path, sized, "val")[1]
    assert (field.um_per_px, field.source) == (pytest.approx(7.5 / 30), "lab/80x60")
    with pytest.raises(DatasetError, match="no entry for pictures of 80x60 px"):
        read_source(tmp_path, replace(source, red_cell_px={"640x480": 30.0}), "val")


def test_the_shipped_sources_are_sound() -> None:
    for name, source in load_sources().items():
        assert source.name == name
        assert set(source.classes.values()) <= {*KINDS, ""}
        assert source.labelled <= set(KINDS)
        assert all(size > 0 for size in source.red_cell_px.values())


SOUND = {"format": "voc", "classes": {"R": "rbc"}, "labelled": ["rbc"], "red_cell_px": {"any": 60}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labelled": ["RBC", "rbc"]}, r"lab\.labelled\.0: Input should be 'rbc', 'wbc' or 'platelet'"),
        ({"labelled": "rbc"}, r"lab\.labelled: expected a list, such as \[rbc\]"),
        ({"labelled": []}, r"lab\.labelled: "),
        ({"classes": {"R": "RBC"}}, r"lab\.classes\.R: Input should be 'rbc', 'wbc', 'platelet' or ''"),
        ({"format": "xml"}, r"lab\.format: Input should be 'voc', 'yolo'"),
        ({"red_cell_px": {"any": 0}}, r"lab\.red_cell_px\.any: "),
        ({"red_cell_px": {"640": 60}}, r"lab\.red_cell_px\.640"),
        ({"red_cel_px": {"any": 60}}, r"lab\.red_cel_px: unknown key; red_cell_px may be meant"),
        ({"swapped": [370]}, r"lab\.swapped\.0: Input should be a valid string"),
        ({"border_px": -1}, r"lab\.border_px: "),
        ({"name": "other"}, r"lab\.name: unknown key"),
    ],
)
def test_a_wrong_entry_is_refused_with_file_and_key(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"lab": SOUND}))
    assert load_sources(path)["lab"].labelled == {"rbc"}
    path.write_text(yaml.safe_dump({"lab": {**SOUND, **changes}}))
    with pytest.raises(ConfigError, match=rf"own\.yaml: {reason}"):
        load_sources(path)


def test_a_source_without_its_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    for text, reason in (
        ("lab: {format: voc}", r"lab\.classes: .*lab\.red_cell_px: "),
        ("lab: 3", "lab: "),
        ("[1]", "by"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"own\.yaml: .*{reason}"):
            load_sources(path)


def test_the_data_root_is_the_one_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path / "none"))
    assert data_root() is None
