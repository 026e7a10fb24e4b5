"""Labels that a model gives to drawn fields: a COCO collection that other tools read as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import UM_PER_PX
from pycocotools.coco import COCO
from typer.testing import CliRunner

from smearcount.cli import app
from smearcount.datasets import FieldSource, read_source
from smearcount.detector import Detector
from smearcount.errors import DatasetError
from smearcount.images import write_picture
from smearcount.training.pseudo import LabelJob, Labelled, label_folder


@pytest.fixture
def fields(tmp_path: Path, draw_discs: Callable[..., Any]) -> Path:
    """Two fields of two red cells each."""
    for number in range(2):
        discs = np.array([[150.0, 120, 46], [400 + 40 * number, 300, 50]])
        (tmp_path / "fields").mkdir(exist_ok=True)
        write_picture(tmp_path / "fields" / f"f{number}.png", draw_discs((640, 480), discs, ("rbc",) * 2).pixels)
    return tmp_path / "fields"


@pytest.fixture
def label(
    fields: Path, tmp_path: Path, disc_detector: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Labelled]:
    detector = disc_detector()
    monkeypatch.setattr("smearcount.training.pseudo.Detector", lambda *_: detector)
    return lambda listing=None: label_folder(
        LabelJob(fields, UM_PER_PX, tmp_path / "out", listing, central=False, model="cells-yolo11-p4")
    )


@pytest.mark.filterwarnings("ignore")
def test_labels_are_a_whole_coco_collection(label: Callable[..., Labelled], tmp_path: Path) -> None:
    assert label() == Labelled(2, 0, ())
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    found = coco.loadAnns(coco.getAnnIds(iscrowd=False))
    assert [each["id"] for each in found] == [1, 2, 3, 4]
    assert [each["image_id"] for each in found] == [0, 0, 1, 1]
    for each in found:
        left, top, width, height = each["bbox"]
        assert min(left, top) > 0
        assert 40 < width < 60
        assert each["area"] == pytest.approx(width * height, abs=0.01)
    assert len(coco.getAnnIds(areaRng=[1600, 3600])) == 4


def test_a_list_may_have_blanks_around_the_stems(label: Callable[..., Labelled], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(" f1 \n\n")
    assert label(tmp_path / "list.txt") == Labelled(1, 0, ())
    (image,) = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert image["file_name"].endswith("f1.png")


def test_a_picture_that_is_listed_and_not_there_is_named(label: Callable[..., Labelled], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("f0\nf1.png\nf7\n")
    with pytest.raises(
        DatasetError, match=r"list\.txt: 2 of its stems, such as f1\.png, are of no picture in .*fields"
    ):
        label(tmp_path / "list.txt")
    assert not (tmp_path / "out" / "annotations.json").exists()


SUFFIXES = ("bmp", "JPG", "jpeg", "PNG", "tif", "TIFF", "tiff", "Webp")


def test_what_is_labelled_can_be_read_again(label: Callable[..., Labelled], fields: Path, tmp_path: Path) -> None:
    """Pictures of every type, and one with a blank at the end of its name, are a collection like any other."""
    pixels = cv2.imread(str(fields / "f0.png"))
    for path in fields.iterdir():
        path.unlink()
    for suffix in SUFFIXES:
        (fields / f"of {suffix}.{suffix}").write_bytes(cv2.imencode(f".{suffix.lower()}", pixels)[1].tobytes())
    (fields / "blank .png").write_bytes((fields / "of PNG.PNG").read_bytes())
    assert label() == Labelled(len(SUFFIXES) + 1, 0, ())
    classes = {kind: kind for kind in ("rbc", "wbc", "platelet")}
    entry = {"format": "coco", "classes": classes, "labelled": ["rbc"], "red_cell_px": {"any": 46}}
    found = read_source(tmp_path, FieldSource.model_validate({"name": "out", **entry}), "train")
    assert [field.path.suffix[1:] for field in found] == ["png", *sorted(SUFFIXES, key=lambda suffix: f"of {suffix}")]
    assert [len(field.boxes) for field in found] == [2] * len(found)


def test_pictures_that_cannot_be_read_are_left_out_and_told(
    label: Callable[..., Labelled], fields: Path, tmp_path: Path
) -> None:
    content = (fields / "f0.png").read_bytes()
    (fields / "cut.png").write_bytes(content[:-20])
    (fields / "empty.jpg").write_bytes(b"")
    (fields / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (fields / "slide.mrxs").write_bytes(content)
    done = label()
    assert (done.taken, done.left_out) == (2, 0)
    reasons = ("cut.png: is truncated", "empty.jpg: the file is empty", "phone.heic: ", "slide.mrxs: a slide of")
    assert len(done.faults) == len(reasons)
    for fault, reason in zip(done.faults, reasons, strict=True):
        assert fault.startswith(f"{fields}/{reason}")
    asked = ["train", "labels", str(fields), "--um-per-px", str(UM_PER_PX), "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert f"4 pictures left out, as they can't be read, such as {fields}/cut.png: is truncated" in told.output
    assert f"2 pictures labelled; collection in {tmp_path / 'out'}" in told.output
    without = CliRunner().invoke(app, [*asked, "--central"])
    assert without.exit_code == 1
    assert "no picture could be labelled; 2 left out; 4 can't be read, such as" in without.stderr
    for path in fields.glob("f?.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"no picture could be labelled; 4 can't be read, such as .*cut\.png"):
        label()
