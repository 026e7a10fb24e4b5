"""Judging a detector on labelled fields: what is compared, and what is left out because nobody labelled it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from smearcount.cards import find_model
from smearcount.evaluation.detector import EvaluationJob, box_pairs, evaluate, labelled_fields
from smearcount.images import open_image

SAMPLES = Path(__file__).parents[1] / "sample_smears"
BORDER = 60


@pytest.fixture
def unlabelled_border(tmp_path, monkeypatch):
    """A rendered field whose labels lack every cell near the border; returns (datasets file of a border, labels)."""
    folder = tmp_path / "field"
    folder.mkdir()
    shutil.copy(SAMPLES / "normal.jpg", folder)
    truth = json.loads((SAMPLES / "truth.json").read_text())["normal.jpg"]
    boxes = np.array(truth["boxes"])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inner = np.all(
        (centre >= BORDER) & (centre < np.array(open_image(SAMPLES / "normal.jpg").size_wh) - BORDER), axis=1
    )
    assert 10 < inner.sum() < len(inner) - 10
    kept = {key: [truth[key][row] for row in np.flatnonzero(inner)] for key in ("boxes", "kinds")}
    (folder / "truth.json").write_text(json.dumps({"normal.jpg": kept}))
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))

    def datasets(border_px):
        entry = {"format": "truth", "classes": {k: k for k in ("rbc", "wbc", "platelet")}, "own_scale": True}
        entry |= {"labelled": ["rbc", "wbc", "platelet"], "red_cell_px": {"any": 55}, "border_px": border_px}
        path = tmp_path / "datasets.yaml"
        path.write_text(yaml.safe_dump({"field": entry}))
        return path

    return datasets, int(inner.sum())


def test_a_strip_without_labels_is_not_judged(unlabelled_border) -> None:
    datasets, labels = unlabelled_border
    model = find_model("cells-yolo11-p4")

    def compared(border_px):
        fields = labelled_fields(("field",), "train", datasets(border_px))
        return box_pairs(model, fields, "labels")

    whole, inner = compared(0), compared(BORDER)
    assert len(whole.usual[0].true_boxes) == len(inner.usual[0].true_boxes) == labels
    assert len(whole.usual[0].found_boxes) > labels + 10
    assert len(inner.usual[0].found_boxes) == labels
    assert not whole.left_out
    assert inner.left_out == {"field": {"border_px": BORDER, "labels": 0}}


def test_labels_in_the_strip_are_counted_as_left_out(unlabelled_border) -> None:
    datasets, labels = unlabelled_border
    wide = datasets(2 * BORDER)
    figures = evaluate(EvaluationJob("cells-yolo11-p4", ("field",), "train", datasets=wide))
    left = figures["left_out_at_border"]["field"]["labels"]
    assert 0 < left < labels
    assert sum(kind["true"] for kind in figures["groups"]["field"]["kinds"].values()) == labels - left
