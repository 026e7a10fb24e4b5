"""Judging a detector on labelled fields: what is compared, and what is left out because nobody labelled it."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SAMPLES

from smearcount.cards import find_model
from smearcount.errors import DatasetError, UsageError
from smearcount.evaluation.detector import EvaluationJob, box_pairs, evaluate, labelled_fields
from smearcount.geometry import iou_matrix
from smearcount.images import open_image
from smearcount.training.packaging import update_card

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


def test_average_precision_ranks_each_kind_by_itself(unlabelled_border) -> None:
    """A red cell that may be a white one has its place among the white cells, however likely it is a red one."""
    datasets, _ = unlabelled_border
    pairs = box_pairs(find_model("cells-yolo11-p4"), labelled_fields(("field",), "train", datasets(0)), "labels")
    usual, curve = pairs.usual[0], pairs.curve[0]
    for kind in range(3):
        found, ranked = usual.found_kinds == kind, curve.found_kinds == kind
        assert found.any()
        assert ranked.sum() > found.sum()
        np.testing.assert_allclose(
            np.sort(curve.found_scores[ranked])[::-1][: found.sum()], np.sort(usual.found_scores[found])[::-1]
        )
    red, white = usual.found_boxes[usual.found_kinds == 0], curve.found_boxes[curve.found_kinds == 1]
    assert (iou_matrix(white, red) > 0.8).any()


def test_labels_in_the_strip_are_counted_as_left_out(unlabelled_border) -> None:
    datasets, labels = unlabelled_border
    wide = datasets(2 * BORDER)
    figures = evaluate(EvaluationJob("cells-yolo11-p4", ("field",), "train", datasets=wide))
    left = figures["left_out_at_border"]["field"]["labels"]
    assert 0 < left < labels
    assert sum(kind["true"] for kind in figures["groups"]["field"]["kinds"].values()) == labels - left


@pytest.fixture
def own_detector(tmp_path):
    """A copy of the shipped detector, whose card may be written on."""
    return Path(shutil.copytree(find_model("cells-yolo11-p4").folder, tmp_path / "own"))


def test_kinds_that_nobody_labelled_keep_their_thresholds(unlabelled_border, own_detector) -> None:
    datasets, _ = unlabelled_border
    path = datasets(BORDER)
    entry = yaml.safe_load(path.read_text())["field"]
    path.write_text(yaml.safe_dump({"field": entry | {"labelled": ["rbc"]}}))
    before = find_model(str(own_detector)).detector_card
    job = EvaluationJob(str(own_detector), ("field",), "train", fit=True, datasets=path)
    figures = evaluate(job)
    card = find_model(str(own_detector)).detector_card
    assert figures["not_fitted"] == ["wbc", "platelet"]
    assert figures["thresholds"] == card.min_score
    assert {kind: card.min_score[kind] for kind in figures["not_fitted"]} == {
        kind: before.min_score[kind] for kind in figures["not_fitted"]
    }
    assert card.min_score["rbc"] != before.min_score["rbc"]
    assert card.min_score_from == f"field, train list for rbc; wbc, platelet from {before.min_score_from}"
    evaluate(job)
    assert find_model(str(own_detector)).card == card
    path.write_text(yaml.safe_dump({"field": entry | {"classes": dict.fromkeys(entry["classes"], "")}}))
    (path.parent / "field" / "val.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"no field in the val list of field; add image stems to val\.txt"):
        evaluate(replace(job, split="val"))
    with pytest.raises(UsageError, match=r"--fit: no labelled cell in field, train list"):
        evaluate(job)


def test_a_kind_that_is_found_only_has_no_figures_on_the_card(unlabelled_border, own_detector) -> None:
    """White cells would have been labelled, but there are none: what is found of them is wrong."""
    datasets, _ = unlabelled_border
    path = datasets(BORDER)
    entry = yaml.safe_load(path.read_text())["field"]
    path.write_text(yaml.safe_dump({"field": entry | {"classes": entry["classes"] | {"wbc": ""}}}))
    figures = evaluate(EvaluationJob(str(own_detector), ("field",), "train", on_card=True, datasets=path))
    white = figures["groups"]["field"]["kinds"]["wbc"]
    assert white["found"] > white["true"] == 0
    names = [metric.name for metric in find_model(str(own_detector)).card.metrics if metric.data.startswith("field,")]
    assert "rbc F1 at IoU 0.5" in names
    assert not any(name.startswith("wbc") for name in names)


def test_figures_on_the_card_replace_those_of_the_same_fields_and_scale_only(unlabelled_border, own_detector) -> None:
    datasets, _ = unlabelled_border
    card = find_model(str(own_detector)).detector_card
    update_card(own_detector, metrics=[{"name": "x", "data": "field, val, scale from labels", "n": 1, "value": 0.5}])
    job = EvaluationJob(str(own_detector), ("field",), "train", on_card=True, datasets=datasets(BORDER))
    for each in (job, replace(job, scale="estimated"), job):
        evaluate(each)
    evaluate(replace(job, datasets=datasets(2 * BORDER)))
    told = Counter(metric.data for metric in find_model(str(own_detector)).card.metrics)
    kinds = len(card.codes)
    assert told == {
        "field, val, scale from labels": 1,
        "field, train, scale estimated, without 60 px at the border": 4 + 2 * kinds,
        "field, train, scale from labels, without 120 px at the border": 4 + 2 * kinds,
    }
