"""Cross-validation on drawn cells: every cell judged once, by the network that did not learn from its group."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import rows_of
from typer.testing import CliRunner, Result

from smearcount.calibration import fit_temperature
from smearcount.cards import Model
from smearcount.cellsets import join
from smearcount.classifier import calibrated
from smearcount.cli import app
from smearcount.config import read_model
from smearcount.evaluation.cells import judge_cells
from smearcount.evaluation.folds import FoldsJob, cross_validate
from smearcount.images import write_picture
from smearcount.training.naming_cells import usable_cells
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.painted_cells import PAINTED

CODES = ("normocyte", "spherocyte")
FOLDS = 3


def call(*words: object) -> Result:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        patch.setenv("OMP_NUM_THREADS", "1")
        return CliRunner().invoke(app, [str(word) for word in words])


def draw(path: Path, seed: int, label: str) -> None:
    """A cell that no other one looks like; spherocytes are dark."""
    rng = np.random.default_rng(seed)
    low, high = (20, 90) if label == "Esferocito" else (110, 180)
    texture = cv2.resize(rng.integers(low, high, (9, 9, 3)).astype(np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((64, 64), np.uint8)
    cv2.ellipse(mask, (32, 32), (int(rng.integers(12, 26)), int(rng.integers(12, 26))), 0, 0, 360, 1, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, np.where(mask[..., None] == 1, texture, 214).astype(np.uint8))


def recipe_in(root: Path, **changes: object) -> Path:
    content = {
        **{"data": {"folder": str(root / "cells")}, "patch_um": 12.0, "seed": 3, "accelerator": "cpu"},
        **{"net": {"backbone": "lenet5", "input_px": 32}},
        **{"phases": [{"name": "all", "body": "trained", "epochs": 3, "learning_rate": 0.02, "batch": 8}]},
    }
    (root / "own.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return root / "own.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients, each with three cells of either class; one picture stands twice, under two patients."""
    root = tmp_path_factory.mktemp("own")
    for patient in range(8):
        for number in range(6):
            label = ("Normal", "Esferocito")[number % 2]
            draw(root / "cells" / label / f"p{patient}" / f"{number}.png", 10 * patient + number, label)
    twin = root / "cells" / "Normal" / "p1" / "0.png"
    twin.write_bytes((root / "cells" / "Normal" / "p0" / "0.png").read_bytes())
    recipe_in(root)
    return root


@pytest.fixture(scope="module")
def ran(place: Path) -> Result:
    return call("train", "folds", place / "own.yaml", "--folds", FOLDS, "--out", place / "out")


def test_every_cell_is_judged_once_by_a_network_that_did_not_see_its_patient(ran: Result, place: Path) -> None:
    assert ran.exit_code == 0, ran.output
    judged = {row["origin"]: row for row in rows_of(place / "out" / "predictions.csv")}
    assert len(judged) == 48
    seen: list[str] = []
    for fold in range(1, FOLDS + 1):
        rows = rows_of(place / "out" / f"fold-{fold}" / "split.csv")
        held = {row["group"] for row in rows if row["split"] == "val"}
        assert held.isdisjoint(row["group"] for row in rows if row["split"] == "train")
        seen += [row["cell"] for row in rows if row["split"] == "val"]
    assert sorted(seen) == sorted(judged)


def test_the_probabilities_are_of_the_model_of_the_fold_at_the_temperature_of_the_others(
    ran: Result, place: Path
) -> None:
    cells, left_out = usable_cells(read_model(ClassifierRecipe, place / "own.yaml"), place)
    assert (len(cells), left_out) == (48, 0)
    judged = {row["origin"]: row for row in rows_of(place / "out" / "predictions.csv")}
    logits, fold_of = np.zeros((48, 2)), np.zeros(48, int)
    for fold in range(1, FOLDS + 1):
        folder = place / "out" / f"fold-{fold}"
        held = [row["cell"] for row in rows_of(folder / "split.csv") if row["split"] == "val"]
        rows = np.flatnonzero(np.isin(cells.origins, held))
        model = Model(folder / "model")
        probs = judge_cells(model, cells.take(rows)).probs
        fold_of[rows], logits[rows] = fold, np.log(probs) * model.classifier_card.temperature
    for fold in range(1, FOLDS + 1):
        others = fold_of != fold
        expected = calibrated(logits[~others], fit_temperature(logits[others], cells.targets[others]))
        shown = [[float(judged[origin][f"p_{code}"]) for code in CODES] for origin in cells.origins[~others].tolist()]
        np.testing.assert_allclose(shown, expected, atol=1e-4)


def test_figures_are_over_all_cells_and_a_row_tells_each_fold(ran: Result, place: Path) -> None:
    found = json.loads((place / "out" / "figures.json").read_text())
    rows = rows_of(place / "out" / "folds.csv")
    assert [row["fold"] for row in rows] == ["1", "2", "3"]
    assert sum(int(row["held_cells"]) for row in rows) == found["n"] == 48
    leaks = [(place / "out" / f"fold-{fold}" / "leaks.txt").read_text().splitlines() for fold in range(1, FOLDS + 1)]
    assert [int(row["leaks"]) for row in rows] == [len(listed) for listed in leaks]
    right = sum(float(row["accuracy"]) * int(row["held_cells"]) for row in rows)
    assert found["accuracy"]["value"] == pytest.approx(right / 48)
    assert found["accuracy"]["value"] > 0.9
    assert f'"value": {found["macro_f1"]["value"]}' in ran.output
    assert "48 cells in 3 folds, 0 pictures left out" in ran.output
    assert "fold 3: all epoch 3/3" in ran.output
    assert (place / "out" / "report.html").read_text().count("<img") > 40


def test_a_copy_under_another_patient_is_not_trained_on(ran: Result, place: Path) -> None:
    leaks = [(place / "out" / f"fold-{fold}" / "leaks.txt").read_text() for fold in range(1, FOLDS + 1)]
    held = [
        {row["cell"] for row in rows_of(place / "out" / f"fold-{fold}" / "split.csv") if row["split"] == "val"}
        for fold in range(1, FOLDS + 1)
    ]
    twins = [f"Normal/{name}/0.png" for name in ("p0", "p1")]
    for listed, cells in zip(leaks, held, strict=True):
        told = any(all(twin in line for twin in twins) for line in listed.splitlines())
        assert told == (sum(twin in cells for twin in twins) == 1)


def test_run_again_it_trains_nothing_anew(ran: Result, place: Path) -> None:
    weights = [place / "out" / f"fold-{fold}" / "model.safetensors" for fold in range(1, FOLDS + 1)]
    before = [path.stat().st_mtime_ns for path in weights]
    figures = (place / "out" / "figures.json").read_bytes()
    again = call("train", "folds", place / "own.yaml", "--folds", FOLDS, "--out", place / "out", "--quiet")
    assert again.exit_code == 0, again.output
    assert "epoch" not in again.output
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert (place / "out" / "figures.json").read_bytes() == figures


def test_more_folds_than_patients_are_refused(place: Path, tmp_path: Path) -> None:
    result = call("train", "folds", place / "own.yaml", "--folds", 9, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "8 groups of cells can't be shared out among 9 folds" in " ".join(result.output.split())
    assert not list((tmp_path / "out").glob("fold-*"))


def test_a_class_of_one_patient_stops_all_before_the_first_training(tmp_path: Path) -> None:
    for patient in range(4):
        for number in range(4):
            draw(tmp_path / "cells" / "Normal" / f"p{patient}" / f"{number}.png", 10 * patient + number, "Normal")
    for number in range(4):
        draw(tmp_path / "cells" / "Esferocito" / "p3" / f"{number}.png", 90 + number, "Esferocito")
    result = call("train", "folds", recipe_in(tmp_path), "--folds", 2, "--out", tmp_path / "out")
    said = " ".join(result.output.split())
    assert result.exit_code != 0
    assert "of 2: no training cell of spherocyte" in said
    assert "own.yaml" in said
    assert not list((tmp_path / "out").rglob("train.log"))


@pytest.mark.filterwarnings("ignore")
def test_painted_cells_are_trained_on_and_never_judged(place: Path, tmp_path: Path) -> None:
    recipe = read_model(ClassifierRecipe, place / "own.yaml")
    cells, _ = usable_cells(recipe, place)
    chosen = cells.take(np.arange(0, 48, 5))
    painted = replace(
        chosen,
        sources=np.array([f"{PAINTED}folder"] * len(chosen)),
        origins=np.array([f"{origin} painted" for origin in chosen.origins.tolist()]),
    )
    found = cross_validate(FoldsJob(recipe, "own", 2, tmp_path), join([cells, painted]))
    assert found["n"] == 48
    rows = [rows_of(tmp_path / f"fold-{fold}" / "split.csv") for fold in (1, 2)]
    for one in rows:
        held = {row["group"] for row in one if row["split"] == "val"}
        with_paint = [row for row in one if row["cell"].endswith("painted")]
        assert {row["split"] for row in with_paint} == {"train"}
        assert held.isdisjoint(row["group"] for row in with_paint)
    assert sum(row["cell"].endswith("painted") for one in rows for row in one) >= 8


def test_a_fold_without_an_exact_label_says_which(tmp_path: Path) -> None:
    for number in range(6):
        for label in ("Normal", "Esferocito"):
            draw(tmp_path / "cells" / label / "p0" / f"{number}.png", 20 * number + len(label), label)
        draw(tmp_path / "cells" / "either" / "p1" / f"{number}.png", 900 + number, "Normal")
    classes = {"Normal": "normocyte", "Esferocito": "spherocyte", "either": ["normocyte", "spherocyte"]}
    recipe = recipe_in(tmp_path, data={"folder": str(tmp_path / "cells"), "classes": classes})
    result = call("train", "folds", recipe, "--folds", 2, "--out", tmp_path / "out")
    said = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "own.yaml: fold" in said
    assert "ask for another number of folds" in said
    assert not list((tmp_path / "out").rglob("train.log"))
