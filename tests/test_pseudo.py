"""Labels that a model gives to drawn fields: a COCO collection that other tools read as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from smearcount.detector import Detector
from smearcount.images import write_picture
from smearcount.training.pseudo import LabelJob, label_folder

UM_PER_PX = 0.16


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
) -> Callable[..., tuple[int, int]]:
    detector = disc_detector()
    monkeypatch.setattr("smearcount.training.pseudo.Detector", lambda *_: detector)
    return lambda listing=None: label_folder(
        LabelJob(fields, UM_PER_PX, tmp_path / "out", listing, central=False, model="cells-yolo11-p4")
    )


@pytest.mark.filterwarnings("ignore")
def test_labels_are_a_whole_coco_collection(label: Callable[..., tuple[int, int]], tmp_path: Path) -> None:
    assert label() == (2, 0)
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


def test_a_list_may_have_blanks_around_the_stems(label: Callable[..., tuple[int, int]], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(" f1 \n\n")
    assert label(tmp_path / "list.txt") == (1, 0)
    (image,) = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert image["file_name"].endswith("f1.png")
