"""Judging a classifier on cut-out cells where the answer is known: drawn cells with right and wrong labels."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from conftest import RED, UM_PER_PX, Draw

from smearcount.cards import Model, find_model
from smearcount.cellsets import CellSet
from smearcount.classifier import Classifier
from smearcount.config import read_model
from smearcount.errors import ModelError, UsageError
from smearcount.evaluation.cells import Judging, card_rows, heat_of, judge_cells, run_judging
from smearcount.evaluation.mending import judge_experts
from smearcount.images import write_picture
from smearcount.judging import figures
from smearcount.runtimes import RuntimeChoice
from smearcount.training.cell_views import plain_view
from smearcount.training.naming_cells import cells_of as recipe_cells
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.packaging import update_card


@pytest.fixture
def model(naming_models: Path) -> Model:
    return find_model("red-discs", naming_models)


def cells_of(draw: Draw, codes: tuple[str, ...], truth: list[tuple[str, ...]], drawn: list[str]) -> CellSet:
    """Windows of 120 px with a disc that is drawn as one thing and labelled as another."""
    rng, windows = np.random.default_rng(0), []
    for code in drawn:
        disc = np.array([[60, 60, rng.uniform(40, 52)]])
        windows.append(draw((120, 120), disc, (code,)).pixels)
    n = len(drawn)
    return CellSet(
        pixels=tuple(windows),
        um_per_px=np.full(n, UM_PER_PX, np.float32),
        targets=np.array([[code in allowed for code in codes] for allowed in truth], bool),
        codes=codes,
        sources=np.array(["east", "west"] * n)[:n],
        groups=np.array([f"slide {row // 2}" for row in range(n)]),
        splits=np.full(n, "val"),
        origins=np.array([f"cell {row}" for row in range(n)]),
    )


def test_cells_are_judged_by_what_the_classifier_can_say(model: Model, draw_discs: Draw) -> None:
    """Codes in another order, one that the classifier lacks, and coarse labels.

    Of a cell that is the one that it lacks or one that it has, the right name is not known.
    """
    codes = ("burr_cell", "target_cell", "normocyte", "spherocyte")
    truth: list[tuple[str, ...]] = [
        *(("normocyte",), ("spherocyte",), ("target_cell",), ("normocyte",)),
        *(("burr_cell",), ("spherocyte", "target_cell"), ("burr_cell", "normocyte")),
    ]
    drawn = ["normocyte", "spherocyte", "target_cell", "spherocyte", "normocyte", "target_cell", "normocyte"]
    cells = cells_of(draw_discs, codes, truth, drawn)
    judged = judge_cells(model, cells)
    assert judged.codes == RED
    assert judged.origins.tolist() == [f"cell {row}" for row in (0, 1, 2, 3, 5)]
    assert judged.right.tolist() == [True, True, True, False, True]
    assert judged.exact.tolist() == [True, True, True, True, False]
    truths = ["normocyte", "spherocyte", "target_cell", "normocyte", "spherocyte|target_cell"]
    assert [judged.truth(row) for row in range(5)] == truths
    classifier = Classifier(model, RuntimeChoice())
    views = [plain_view(cells.pixels[row], UM_PER_PX, 12.0, 32) for row in (0, 1, 2, 3, 5)]
    np.testing.assert_allclose(judged.probs, classifier.name_views(views).probs, atol=1e-6)
    for row in range(5):
        np.testing.assert_array_equal(judged.views[row], views[row])
    assert len(judged.views[1:3]) == 2
    assert judged.groups is not None
    assert judged.groups.tolist() == ["slide 0", "slide 0", "slide 1", "slide 1", "slide 2"]


def test_heat_maps_are_of_what_was_predicted(model: Model, draw_discs: Draw) -> None:
    judged = judge_cells(model, cells_of(draw_discs, RED, [("normocyte",), ("spherocyte",)], ["normocyte"] * 2))
    maps = heat_of(model, judged)(np.array([1, 0]))
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_rows_of_a_card_have_their_closed_form(model: Model, draw_discs: Draw) -> None:
    drawn = ["normocyte"] * 6 + ["spherocyte"] * 4
    truth = [(code,) for code in drawn]
    truth[0] = ("spherocyte",)
    judged = judge_cells(model, cells_of(draw_discs, RED, truth, drawn))
    metrics, abstention = card_rows(figures(judged), judged, "drawn, val")
    values = {metric.name: metric.value for metric in metrics}
    assert values["accuracy"] == pytest.approx(0.9)
    # Of normocytes 5 of 6 named so are right and all are found; of spherocytes 4 of 5 are found, and all are right.
    assert values["F1 of normocyte"] == pytest.approx(2 * (5 / 6) / (1 + 5 / 6))
    assert values["F1 of spherocyte"] == pytest.approx(2 * 0.8 / 1.8)
    assert values["macro f1"] == pytest.approx((values["F1 of normocyte"] + values["F1 of spherocyte"]) / 2)
    assert "F1 of target_cell" not in values
    assert {metric.data for metric in metrics} == {"drawn, val"}
    assert {metric.n for metric in metrics if metric.name.startswith("F1")} == {5}
    assert abstention[0] == (0.2, 0.0, pytest.approx(0.9))
    assert all(later[1] >= earlier[1] for earlier, later in zip(abstention, abstention[1:], strict=False))
    assert all(0 <= accuracy <= 1 for _, _, accuracy in abstention)


@pytest.fixture
def asked(tmp_path: Path, draw_discs: Draw, naming_models: Path) -> dict[str, Any]:
    """A recipe over two collections of drawn cells in folders, and a copy of the model to be judged."""
    rng = np.random.default_rng(0)
    entries = {}
    for source in ("east", "west"):
        for code in RED[:2]:
            (tmp_path / source / code).mkdir(parents=True)
            for row in range(8):
                disc = np.array([[37.5, 37.5, rng.uniform(38, 54)]])
                pixels = draw_discs((75, 75), disc, (code,)).pixels
                write_picture(tmp_path / source / code / f"{row}.png", pixels)
        classes = {code: code for code in RED[:2]}
        entry = {"format": "folders", "folder": str(tmp_path / source), "classes": classes, "val_share": 0.25}
        entries[source] = {**entry, "um_per_px": {"any": UM_PER_PX}}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(entries))
    content = {
        "data": {"collections": ["east", "west"], "cells": str(tmp_path / "cells.yaml"), "leave_out": ["west"]},
        **{"net": {"backbone": "lenet5", "input_px": 32}, "patch_um": 12.0},
        "phases": [{"name": "all", "body": "trained", "epochs": 1, "learning_rate": 0.01}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(naming_models / "red-discs", tmp_path / "model")
    return {"recipe": tmp_path / "recipe.yaml", "model": str(tmp_path / "model"), "out": tmp_path / "judged"}


def test_pictures_that_give_no_cell_are_told(tmp_path: Path, naming_models: Path, draw_discs: Any) -> None:
    rng = np.random.default_rng(0)
    for n, code in enumerate(["normocyte", "spherocyte"] * 6):
        (tmp_path / "in" / code).mkdir(parents=True, exist_ok=True)
        drawn = draw_discs((64, 64), np.array([[32.0, 32.0, 40 + n]]), (code,)).pixels
        noisy = np.clip(drawn + rng.normal(0, 3, drawn.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "in" / code / f"{n}.png"), noisy[..., ::-1])
    (tmp_path / "in" / "normocyte" / "bad.png").write_bytes(b"no picture")
    content = {
        **{"data": {"folder": str(tmp_path / "in")}, "net": {"backbone": "lenet5", "input_px": 32}, "patch_um": 12.0},
        "phases": [{"name": "all", "body": "trained", "epochs": 1, "learning_rate": 0.01}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    told = "1 pictures left out (1 unreadable); `smearcount train survey` lists them"
    model = str(naming_models / "red-discs")
    found = run_judging(Judging(tmp_path / "recipe.yaml", model, "all", (), on_card=False, out=tmp_path / "judged"))
    assert (found["n"], found["missing"]) == (12, [told])
    assert told in (tmp_path / "judged" / "report.html").read_text()


def test_a_classifier_is_judged_on_the_cells_of_a_recipe(asked: dict[str, Any]) -> None:
    """Also on the sources that the recipe leaves out of the training, which is what they were left out for."""
    found = run_judging(Judging(**asked, split="val", sources=(), on_card=True))
    assert (found["n"], found["accuracy"]["value"]) == (8, 1.0)
    assert {each["source"] for each in found["sources"]} == {"east", "west"}
    page = (asked["out"] / "report.html").read_text()
    assert "red-discs on recipe, val" in page
    # Nobody named groups, and none are claimed.
    assert found["n_groups"] is None
    assert "groups (slides" not in page
    assert "takes them as independent" in page
    card = Model(Path(asked["model"])).classifier_card
    assert {metric.data for metric in card.metrics} == {"recipe, val"}
    assert card.abstention
    found = run_judging(Judging(**asked, split="all", sources=("west",), on_card=True))
    assert found["n"] == 16
    assert [each["source"] for each in found["sources"]] == ["west"]
    run_judging(Judging(**asked, split="val", sources=(), on_card=True))
    metrics = Model(Path(asked["model"])).classifier_card.metrics
    names = [(metric.name, metric.data) for metric in metrics]
    assert len(names) == len(set(names))
    assert {metric.data for metric in metrics} == {"recipe, val", "west, all"}
    json.dumps(found)


def test_a_recipe_of_less_detail_changes_nothing_of_what_a_classifier_is_shown(asked: dict[str, Any]) -> None:
    content = yaml.safe_load(asked["recipe"].read_text())
    predictions = []
    for patch_um in (12.0, 24.0):
        asked["recipe"].write_text(yaml.safe_dump({**content, "patch_um": patch_um}))
        run_judging(Judging(**asked, split="val", sources=(), on_card=False))
        predictions.append((asked["out"] / "predictions.csv").read_text())
    assert predictions[0] == predictions[1]


def test_cells_that_are_not_judged_are_none_of_the_temperature(asked: dict[str, Any], tmp_path: Path) -> None:
    content = yaml.safe_load((tmp_path / "cells.yaml").read_text())
    content["east"]["classes"][RED[0]] = "burr_cell"
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(content))
    sums = (hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in (tmp_path / "east").glob("*/*.png"))
    rows = "".join(f"val,{each},\n" for each in sums)
    (Path(asked["model"]) / "split.csv").write_text("split,picture_sha256,group_sha256\n" + rows)
    found = run_judging(Judging(**asked, split="all", sources=("east",), on_card=False))
    assert (found["n"], found["strange"]) == (8, {"burr_cell": 8})
    assert found["note"].startswith("The temperature of the model was fitted to 8 of these 8 cells")


def test_figures_on_a_card_say_what_their_cells_were_used_for(asked: dict[str, Any], tmp_path: Path) -> None:
    """Half of the cells, that of one collection, fitted the temperature; early stopping looks at the same."""
    model, job = Path(asked["model"]), Judging(**asked, split="all", sources=(), on_card=True)
    run_judging(job)
    assert {metric.data for metric in Model(model).card.metrics} == {"recipe, all"}
    sums = (hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in (tmp_path / "east").glob("*/*.png"))
    (model / "split.csv").write_text("split,picture_sha256,group_sha256\n" + "".join(f"val,{e},\n" for e in sums))
    assert "epoch" not in run_judging(job)["note"]
    use = "recipe, all; 16 of the 32 cells fitted the temperature"
    assert {metric.data for metric in Model(model).card.metrics} == {use}
    assert f"| expected calibration error | {use} | 32 |" in (model / "README.md").read_text()
    content = yaml.safe_load(asked["recipe"].read_text())
    early = {"early_stopping": {"monitor": "macro_f1", "patience": 2}}
    asked["recipe"].write_text(yaml.safe_dump(content | early))
    note = run_judging(job)["note"]
    assert note.startswith("The temperature of the model was fitted to 16 of these 32 cells")
    assert note.endswith("They also chose the epoch, by early stopping: on new ones all figures may be somewhat worse.")
    assert note in (asked["out"] / "report.html").read_text()
    assert {metric.data for metric in Model(model).card.metrics} == {f"{use} and chose the epoch"}


def test_cells_of_codes_that_a_classifier_lacks_are_counted(asked: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "east" / RED[0], tmp_path / "east" / "burr_cell")
    content = yaml.safe_load((tmp_path / "cells.yaml").read_text())
    content["east"]["classes"] |= {"burr_cell": "burr_cell"}
    content["west"]["classes"] |= {"burr_cell": "burr_cell", RED[0]: ["burr_cell", "ovalocyte"]}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(content))
    found = run_judging(Judging(**asked, split="all", sources=(), on_card=False))
    assert (found["n"], found["left_out"]) == (24, 0)
    assert found["strange"] == {"burr_cell": 8, "ovalocyte or burr_cell": 8}
    content["east"]["classes"] = dict.fromkeys(RED[:2], "ovalocyte") | {"burr_cell": "burr_cell"}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="of these cells: burr_cell, ovalocyte; it gives normocyte, "):
        run_judging(Judging(**asked, split="all", sources=("east",), on_card=False))


@pytest.fixture
def patients(tmp_path: Path, draw_discs: Draw, naming_models: Path) -> dict[str, Any]:
    """Cells of four patients in class folders, and a model that was trained on two of them."""
    rng = np.random.default_rng(1)
    for row in range(16):
        code, patient = RED[row % 2], tmp_path / "cells" / RED[row % 2] / f"patient{row // 4}"
        patient.mkdir(parents=True, exist_ok=True)
        disc = np.array([[37.5, 37.5, rng.uniform(38, 54)]])
        write_picture(patient / f"{row}.png", draw_discs((75, 75), disc, (code,)).pixels)
    content = {
        **{"data": {"folder": str(tmp_path / "cells"), "val_share": 0.5}, "patch_um": 12.0},
        **{"net": {"backbone": "lenet5", "input_px": 32}},
        "phases": [{"name": "all", "body": "trained", "epochs": 1, "learning_rate": 0.01}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(naming_models / "red-discs", tmp_path / "model")
    return {"recipe": tmp_path / "recipe.yaml", "model": str(tmp_path / "model"), "out": tmp_path / "judged"}


def listed(model: str, patients: Mapping[int, bytes]) -> None:
    """The list of a training on one picture of each of some patients, as models of version 0.11 have it."""
    ids = {hashlib.sha256(f"patient{number}".encode()).hexdigest()[:16]: each for number, each in patients.items()}
    rows = "".join(f"train,{hashlib.sha256(each).hexdigest()[:16]},{name}\n" for name, each in ids.items())
    (Path(model) / "split.csv").write_text("split,picture_sha256,group_sha256\n" + rows)


def test_patients_that_a_model_was_trained_on_are_not_judged(patients: dict[str, Any]) -> None:
    job = Judging(**patients, split="val", sources=(), on_card=False)
    assert (run_judging(job)["n"], run_judging(job)["left_out"]) == (8, 0)
    # Without a list nobody knows.
    assert run_judging(job)["warning"].startswith("The model has no list of the cells that it was trained on")
    assert run_judging(job)["warning"] in (patients["out"] / "report.html").read_text()
    told: list[str] = []
    judge_experts(patients["recipe"], patients["model"], [], told.append)
    assert told == ["red-discs has no list of the cells that it was trained on: some of these may be among them"]
    cells = recipe_cells(read_model(ClassifierRecipe, patients["recipe"]))
    val = sorted({int(name[-1]) for name in cells.groups[cells.splits == "val"].tolist()})
    assert len(val) == 2
    # Another laboratory has a patient of that number too.
    listed(patients["model"], dict.fromkeys(val, b"another picture"))
    assert (run_judging(job)["n"], run_judging(job)["left_out"]) == (8, 0)
    one = {each: cells.origins[cells.groups == f"folder/patient{each}"][0] for each in val}
    pictures = {each: (patients["recipe"].parent / "cells" / origin).read_bytes() for each, origin in one.items()}
    listed(patients["model"], {val[0]: pictures[val[0]]})
    found = run_judging(job)
    assert (found["n"], found["left_out"]) == (4, 4)
    assert found["warning"] == ""
    told.clear()
    judge_experts(patients["recipe"], patients["model"], [], told.append)
    assert not told
    # Asked for by name, training cells are judged, which is said; they are none for the card.
    found = run_judging(replace(job, split="all"))
    assert (found["n"], found["left_out"]) == (16, 0)
    assert found["warning"].startswith("The model was trained on 4 of these 16 cells")
    assert found["warning"] in (patients["out"] / "report.html").read_text()
    before = (Path(patients["model"]) / "card.yaml").read_bytes()
    with pytest.raises(UsageError, match="--card: .* trained on 4 of these 16 cells.*take --split val"):
        run_judging(replace(job, split="all", on_card=True))
    assert (Path(patients["model"]) / "card.yaml").read_bytes() == before
    listed(patients["model"], pictures)
    with pytest.raises(UsageError, match="trained on all 8 cells that are now for validation; label new ones"):
        run_judging(job)
    (Path(patients["model"]) / "split.csv").write_text("cell,side\n")
    with pytest.raises(ModelError, match=r"split\.csv: expected the columns split, pixels_sha256, group_sha256"):
        run_judging(job)


@pytest.mark.parametrize(("quality", "known"), [(0, True), (90, False)])
def test_a_training_picture_is_known_by_its_pixels(patients: dict[str, Any], quality: int, known: bool) -> None:
    """Also saved again without loss, in a file of other bytes; with loss it is another one, as the guide says."""
    folder = patients["recipe"].parent / "cells"
    paths = sorted(folder.glob("*/*/*.png"))
    shown = {path: hashlib.sha256(b"75x75" + cv2.imread(str(path))[..., ::-1].tobytes()).hexdigest() for path in paths}
    rows = "".join(f"train,{each[:16]},\n" for each in shown.values())
    (Path(patients["model"]) / "split.csv").write_text("split,pixels_sha256,group_sha256\n" + rows)
    for path in paths:
        pixels = cv2.imread(str(path))
        path.unlink()
        if quality:
            cv2.imwrite(str(path.with_suffix(".jpg")), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        else:
            cv2.imwrite(str(path.with_suffix(".bmp")), pixels)
    job = Judging(**patients, split="val", sources=(), on_card=False)
    if known:
        with pytest.raises(UsageError, match="trained on all 8 cells"):
            run_judging(job)
    else:
        assert run_judging(job)["left_out"] == 0


def test_a_version_without_weights_for_pytorch_is_judged_without_heat_maps(asked: dict[str, Any]) -> None:
    """As an INT8 one."""
    files = Model(Path(asked["model"])).card.files
    kept = {name: entry.model_dump() for name, entry in files.items() if entry.runtime != "torch"}
    update_card(Path(asked["model"]), files=kept)
    found = run_judging(Judging(**asked, split="val", sources=(), on_card=True))
    assert (found["n"], found["accuracy"]["value"]) == (8, 1.0)
    page = (asked["out"] / "report.html").read_text()
    assert "heat map" not in page
    assert Model(Path(asked["model"])).card.metrics


def test_without_the_card_flag_the_model_stays_as_it_is(asked: dict[str, Any]) -> None:
    before = (Path(asked["model"]) / "card.yaml").read_bytes()
    run_judging(Judging(**asked, split="train", sources=("east",), on_card=False))
    assert (Path(asked["model"]) / "card.yaml").read_bytes() == before


def test_what_can_not_be_judged_is_refused(asked: dict[str, Any]) -> None:
    told = r"recipe\.yaml: no cell of north in val; there are 12 of east in train, 4 of east in val, 12 of west in"
    for sources in (("north",), ("east", "north")):
        with pytest.raises(UsageError, match=told):
            run_judging(Judging(**asked, split="val", sources=sources, on_card=False))
    with pytest.raises(UsageError, match="--split: expected val, train or all, got 'test'"):
        Judging(**asked, split="test", sources=(), on_card=False)
