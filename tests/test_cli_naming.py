"""Commands about naming cells as a user types them: survey, train, judge, classify, and analyse with the result."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import yaml
from conftest import SAMPLES, rows_of
from typer.testing import CliRunner, Result

from smearcount.arrays import Pixels
from smearcount.cards import Model
from smearcount.classify import label_columns
from smearcount.cli import app
from smearcount.config import Settings
from smearcount.images import write_picture
from smearcount.taxonomy import load_taxonomy

CODES = ("normocyte", "spherocyte")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def drawn_cell(seed: int, label: str) -> Pixels:
    """A cell that no other one looks like; spherocytes are small and dark."""
    rng = np.random.default_rng(seed)
    low, high, axes = ((40, 110, (12, 18)), (110, 180, (22, 30)))[label == "Normal"]
    coarse = rng.integers(low, high, (9, 9, 3)).astype(np.uint8)
    texture = cv2.resize(coarse, (80, 80), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((80, 80), np.uint8)
    cv2.ellipse(mask, (40, 40), tuple(rng.integers(*axes, 2).tolist()), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return np.asarray(np.where(mask[..., None] == 1, texture, 214), np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 drawn cells in two folders and a broken one, and a recipe that names LeNet-5 for two epochs."""
    root = tmp_path_factory.mktemp("own")
    for number in range(32):
        label = ("Normal", "Esferocito")[number % 2]
        (root / "cells" / label).mkdir(parents=True, exist_ok=True)
        write_picture(root / "cells" / label / f"{number:02d}.png", drawn_cell(number, label))
    (root / "cells" / "Normal" / "broken.png").write_bytes(b"no picture")
    phase = {"name": "all", "body": "trained", "epochs": 2, "learning_rate": 0.02, "batch": 8}
    recipe = {
        **{"data": {"folder": str(root / "cells"), "val_share": 0.25}, "patch_um": 12.0, "seed": 3},
        **{"net": {"backbone": "lenet5", "input_px": 32}, "phases": [phase], "accelerator": "cpu"},
    }
    (root / "my cells.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture(scope="module")
def trained(place: Path) -> Result:
    """`train classifier`, once for all tests."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        patch.setenv("OMP_NUM_THREADS", "1")
        return call("train", "classifier", place / "my cells.yaml", "--out", place / "run")


@pytest.fixture
def model(trained: Result, place: Path) -> Path:
    assert trained.exit_code == 0, trained.output
    return place / "run" / "model"


def test_a_survey_shows_what_would_be_trained_on(place: Path, tmp_path: Path) -> None:
    result = call("train", "survey", place / "my cells.yaml", "--out", tmp_path / "survey")
    assert result.exit_code == 0, result.output
    assert "normocyte" in result.output
    names = ("classes.csv", "faults.csv", "leaks.txt", "samples.png")
    assert "1 pictures left out (faults.csv), 0 leaks removed (leaks.txt)" in result.output
    assert sorted(path.name for path in (tmp_path / "survey").iterdir()) == sorted(names)
    (fault,) = rows_of(tmp_path / "survey" / "faults.csv")
    assert (fault["file"], fault["fault"], fault["action"]) == ("Normal/broken.png", "unreadable", "left out")
    classes = {
        row["class"]: (row["cells"], row["train"], row["val"]) for row in rows_of(tmp_path / "survey" / "classes.csv")
    }
    assert classes == {"normocyte": ("16", "12", "4"), "spherocyte": ("16", "12", "4"), "all": ("32", "24", "8")}
    assert (tmp_path / "survey" / "leaks.txt").read_text() == ""
    quiet = call("train", "survey", place / "my cells.yaml", "--out", tmp_path / "survey", "--quiet")
    assert quiet.output.startswith("written: ")


def test_results_are_not_written_among_the_cells(model: Path, place: Path) -> None:
    recipe, out, compared = place / "my cells.yaml", place / "cells" / "run", place / "comparison among cells.yaml"
    networks = {"backbones": [{"backbone": "lenet5", "input_px": 32}], "optimisers": ["sgd"]}
    compared.write_text(yaml.safe_dump({"base": yaml.safe_load(recipe.read_text()), **networks}))
    for words in (
        *(("train", command, recipe) for command in ("classifier", "folds", "survey")),
        ("train", "compare", compared),
        *((*command, recipe, "--model", model) for command in (("evaluate", "classifier"), ("mend", "merges"))),
    ):
        result = call(*words, "--out", out)
        assert result.exit_code == 2, result.output
        assert f"{out}: lies in {place / 'cells'}, whose pictures are cells to train on" in result.stderr
    assert not out.exists()


def test_a_folder_of_cells_becomes_a_model(trained: Result, model: Path, place: Path) -> None:
    assert "all epoch 2/2" in trained.output
    assert "1 pictures left out (faults.csv), 0 leaks removed (leaks.txt)" in trained.output
    assert f"smearcount evaluate classifier '{place / 'my cells.yaml'}' --model {model}" in trained.output
    card = Model(model).classifier_card
    assert (card.id, card.codes, card.kinds) == ("own-my-cells", CODES, ("rbc",))
    assert (card.patch_um, card.input_px, card.embedding) == (12.0, 32, 84)
    assert "Not measured yet" in card.limits[0]
    (learned,) = card.training_data
    assert (learned.name, learned.licence, learned.pictures) == ("cells", "own data; licence not stated", 32)
    assert learned.split == "24 cells to train on, 8 for validation; val_share 0.25, seed 3"
    assert str(place) not in (model / "card.yaml").read_text() + (model / "README.md").read_text()
    assert len(Model(model).verify()) == 5
    assert rows_of(place / "run" / "faults.csv")[0]["file"] == "Normal/broken.png"
    shown = call("models", "show", model)
    assert "# own-my-cells" in shown.output
    verified = call("models", "verify", model)
    assert verified.exit_code == 0, verified.output
    assert "largest difference to the probe" in verified.output


@pytest.mark.filterwarnings("ignore")
def test_the_same_line_again_trains_nothing_anew(model: Path, place: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    result = call("train", "classifier", place / "my cells.yaml", "--out", place / "run", "--quiet")
    assert result.exit_code == 0, result.output
    assert "epoch" not in result.output
    assert (model / "model.safetensors").read_bytes() == before


@pytest.fixture
def own(model: Path, place: Path, tmp_path: Path) -> Path:
    """A copy of cells, recipe and run, to be changed."""
    for name in ("cells", "run"):
        shutil.copytree(place / name, tmp_path / name)
    content = yaml.safe_load((place / "my cells.yaml").read_text())
    content["data"]["folder"] = str(tmp_path / "cells")
    (tmp_path / "my cells.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"min_label_scor": 0.6}, "min_label_scor"),
        ({"painted": ["target_cell"]}, "painted: target_cell are not among the codes"),
        ({"licence": None}, "licence"),
    ],
)
def test_a_wrong_word_of_a_card_is_told_before_the_training(
    place: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    words = {"id": "theirs", "description": "d", "licence": "MIT", "intended_use": "tests", "limits": ["few cells"]}
    words |= {"training_data": [], "min_label_score": 0.6, "probe_tolerance": 0.05, "kinds": ["rbc"]}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(words | changes))
    out = tmp_path / "run"
    refused = call("train", "classifier", place / "my cells.yaml", "--out", out, "--card", tmp_path / "words.yaml")
    assert refused.exit_code == 2
    assert "--card: words of the card of theirs: " in refused.stderr
    assert told in refused.stderr
    assert sorted(path.name for path in out.iterdir()) == ["faults.csv", "leaks.txt"]


def test_new_cells_are_no_cells_of_the_temperature(own: Path) -> None:
    """Those of one class only: the other code is named, and nothing was fitted to them."""
    recipe, content = own / "other.yaml", yaml.safe_load((own / "my cells.yaml").read_text())
    for label in ("Normal", "Esferocito"):
        (own / "new" / label).mkdir(parents=True)
    for number in range(40, 48):
        write_picture(own / "new" / "Normal" / f"{number}.png", drawn_cell(number, "Normal"))
    content["data"]["folder"] = str(own / "new")
    recipe.write_text(yaml.safe_dump(content))
    judged = call("evaluate", "classifier", recipe, "--model", own / "run" / "model", "--out", own / "judged")
    assert judged.exit_code == 0, judged.output
    assert "not judged, for want of cells: spherocyte; macro-F1 is that of the other codes" in judged.output
    assert "The temperature" not in judged.output + (own / "judged" / "report.html").read_text()


def test_a_refused_training_leaves_the_lists_of_the_run_that_is_there(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {name: (own / "run" / name).read_bytes() for name in ("faults.csv", "leaks.txt", "summary.json")}
    (own / "cells" / "Normal" / "empty.png").write_bytes(b"")
    write_picture(own / "cells" / "Normal" / "more.png", drawn_cell(99, "Normal"))
    refused = call("train", "classifier", own / "my cells.yaml", "--out", own / "run", "--quiet")
    assert refused.exit_code == 2
    assert "holds a run of another recipe or of other cells" in refused.stderr
    assert {name: (own / "run" / name).read_bytes() for name in before} == before
    # Without a picture that can be read, and stopped after the lists were written.
    for path in (own / "cells" / "Normal").iterdir():
        path.write_bytes(b"no picture")
    refused = call("train", "classifier", own / "my cells.yaml", "--out", own / "run", "--quiet")
    assert refused.exit_code == 2
    assert re.search(r"no usable picture in Normal .*; the lists in .* give another --out", refused.stderr)
    assert {name: (own / "run" / name).read_bytes() for name in before} == before
    new = call("train", "classifier", own / "my cells.yaml", "--out", own / "new", "--quiet")
    assert "the lists in" not in new.stderr
    assert len(rows_of(own / "new" / "faults.csv")) == 19
    monkeypatch.setattr("smearcount.training.naming_cells._refuse_unusable_folders", stop)
    stopped = call("train", "classifier", own / "my cells.yaml", "--out", own / "run", "--quiet")
    assert stopped.exit_code == 130
    assert {name: (own / "run" / name).read_bytes() for name in before} == before


@pytest.mark.filterwarnings("ignore")
def test_a_measured_card_survives_the_same_line_again(own: Path) -> None:
    recipe, model = own / "my cells.yaml", own / "run" / "model"
    judged = call("evaluate", "classifier", recipe, "--model", model, "--card", "--out", own / "judged")
    assert judged.exit_code == 0, judged.output
    measured = Model(model).classifier_card
    assert measured.metrics
    assert not any("Not measured" in limit for limit in measured.limits)
    assert "Not measured" not in (model / "README.md").read_text()
    again = call("train", "classifier", recipe, "--out", own / "run", "--quiet")
    assert again.exit_code == 0, again.output
    assert Model(model).classifier_card == measured
    words = {"id": "theirs", "description": "d", "licence": "MIT", "intended_use": "tests", "limits": ["few cells"]}
    words |= {"training_data": [], "min_label_score": 0.6, "probe_tolerance": 0.05}
    (own / "words.yaml").write_text(yaml.safe_dump(words))
    reworded = call("train", "classifier", recipe, "--out", own / "run", "--card", own / "words.yaml", "--quiet")
    assert reworded.exit_code == 0, reworded.output
    card = Model(model).classifier_card
    assert (card.id, card.limits, card.metrics, card.files) == (
        "theirs",
        ("few cells",),
        measured.metrics,
        measured.files,
    )
    # Which cells it is asked about is no part of the training, and may be told later.
    content = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**content, "data": {**content["data"], "asked_of": ["wbc"]}}))
    assert call("train", "classifier", recipe, "--out", own / "run", "--quiet").exit_code == 0
    assert (Model(model).classifier_card.kinds, Model(model).card.metrics) == (("wbc",), measured.metrics)
    # A model folder that is not whole is made once more.
    (model / "model.bin").unlink()
    whole = call("train", "classifier", recipe, "--out", own / "run", "--quiet")
    assert whole.exit_code == 0, whole.output
    assert len(Model(model).verify()) == 5


@pytest.mark.filterwarnings("ignore")
def test_cells_that_a_model_was_trained_on_are_not_judged(own: Path) -> None:
    """Whatever new pictures put on which side; also under other names, and in a copy made for another runtime."""
    recipe, run = own / "my cells.yaml", own / "run"
    rows = rows_of(run / "split.csv")
    assert {row["cell"]: row["split"] for row in rows}.keys() == {
        path.relative_to(own / "cells").as_posix() for path in (own / "cells").glob("*/[0-9]*.png")
    }
    assert [row["split"] for row in rows].count("train") == 24
    # What goes out with the model names no picture.
    assert set(rows_of(run / "model" / "split.csv")[0]) == {"split", "pixels_sha256", "group_sha256"}
    for number in range(32, 36):
        write_picture(own / "cells" / "Normal" / f"0_{number}.png", drawn_cell(number, "Normal"))
    for number, path in enumerate(sorted((own / "cells" / "Esferocito").iterdir())):
        path.rename(path.with_name(f"new {number}.png"))
    exported = call("export", run / "model", "--to", "onnx", "--out", own / "exported")
    assert exported.exit_code == 0, exported.output
    surveyed = call("train", "survey", recipe, "--out", own / "survey", "--quiet")
    assert surveyed.exit_code == 0, surveyed.output
    n_val = int(rows_of(own / "survey" / "classes.csv")[-1]["val"])
    for model in (run / "model", own / "exported" / "own-my-cells"):
        result = call("evaluate", "classifier", recipe, "--model", model, "--out", own / "judged")
        assert result.exit_code == 0, result.output
        found = json.loads(result.output[: result.output.rindex("}") + 1])
        left_out = int(result.output[result.output.rindex("}") + 1 :].split()[0])
        assert left_out > 0
        assert found["n"] == n_val - left_out
        assert f"{left_out} cells left out: {model} was trained on them" in result.output
    known = {row["pixels_sha256"] for row in rows if row["split"] == "train"}
    judged = [cv2.imread(str(own / "cells" / row["origin"])) for row in rows_of(own / "judged" / "predictions.csv")]
    shown = {hashlib.sha256(b"80x80" + pixels[..., ::-1].tobytes()).hexdigest()[:16] for pixels in judged}
    assert len(known) == 24
    assert not known & shown


@pytest.mark.filterwarnings("ignore")
def test_only_the_first_of_several_processes_packages_and_prints(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(own / "run" / "model")
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    second = call("train", "classifier", own / "my cells.yaml", "--out", own / "run")
    assert (second.exit_code, second.output) == (0, "")
    assert not (own / "run" / "model").exists()


def test_the_model_is_judged(model: Path, place: Path, tmp_path: Path) -> None:
    result = call("evaluate", "classifier", place / "my cells.yaml", "--model", model, "--out", tmp_path / "judged")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output[: result.output.rindex("}") + 1])
    assert found["n"] == 8
    assert 0 <= found["accuracy"]["value"] <= 1
    note = "The temperature of the model was fitted to 8 of these 8 cells"
    assert note in result.output
    assert note in (tmp_path / "judged" / "report.html").read_text()
    assert "not judged" not in result.output
    assert Model(model).classifier_card.metrics == ()
    wrong = call("evaluate", "classifier", place / "my cells.yaml", "--model", model, "--split", "test")
    assert wrong.exit_code == 2
    assert "--split: expected val, train or all" in wrong.stderr


def test_new_cells_are_classified(model: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    good = call("classify", place / "cells" / "Esferocito", "--model", model, "--out", out)
    assert good.exit_code == 0, good.output
    assert good.output.strip() == f"16 named, 0 failed; written: {out}"
    rows = rows_of(out)
    assert tuple(rows[0]) == label_columns(CODES)
    assert all(sum(float(row[f"p_{code}"]) for code in CODES) == pytest.approx(1, abs=2e-4) for row in rows)
    bad = call("classify", place / "cells", "--model", model, "--out", out, "--min-score", 1.0)
    assert bad.exit_code == 1
    assert "broken.png" in bad.stderr
    assert "32 named, 1 failed" in bad.output
    rows = rows_of(out)
    assert [row["status"] for row in rows].count("failed") == 1
    assert {row["label"] for row in rows if row["status"] == "ok"} == {"unclassified"}
    assert (
        call("classify", place / "cells" / "Normal" / "00.png", "--model", model, "--out", out, "--quiet").output == ""
    )


def test_names_are_told_to_machines(model: Path, place: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "labels.csv", place / "cells" / "Normal" / "broken.png"
    done = call("classify", place / "cells", "--model", model, "--out", out, "--json", "--quiet")
    told = json.loads(done.stdout)
    ((image, error),) = [each.values() for each in told.pop("failed")]
    assert (image, done.exit_code) == (str(broken), 1)
    assert error in done.stderr
    assert told == {"named": 32, "skipped": 0, "remarks": [], "labels": str(out)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_standard_output_costs_no_labels(model: Path, place: Path, tmp_path: Path) -> None:
    words = ("classify", place / "cells" / "Esferocito", "--model", model, "--out", tmp_path / "labels.csv")
    command = [sys.executable, "-m", "smearcount", *map(str, words)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "standard output can't be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(rows_of(tmp_path / "labels.csv")) == 16


def test_a_scale_a_search_and_examples(model: Path, place: Path, tmp_path: Path) -> None:
    out, cells = tmp_path / "labels.csv", place / "cells"
    assert call("classify", cells / "Esferocito", "--model", model, "--out", out, "--um-per-px", 0.15).exit_code == 0
    found = call("classify", cells / "Normal" / "00.png", "--model", model, "--out", out, "--um-per-px", 0.15, "--find")
    assert found.exit_code == 0, found.output
    for label in ("round", "small"):
        shutil.copytree(cells / {"round": "Normal", "small": "Esferocito"}[label], tmp_path / "shown" / label)
    (tmp_path / "shown" / "round" / "broken.png").unlink()
    shown = call("classify", cells / "Esferocito", "--model", model, "--out", out, "--examples", tmp_path / "shown")
    assert shown.exit_code == 0, shown.output
    assert "the examples name one another right in" in shown.output
    assert tuple(rows_of(out)[0]) == label_columns(("round", "small"))


def test_wrong_usage_is_told_in_one_line(model: Path, place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load((place / "my cells.yaml").read_text())
    recipe.write_text(yaml.safe_dump({**content, "data": {**content["data"], "colour": 1}}))
    for words, code, reason in (
        (("classify", tmp_path / "absent.txt", "--model", model), 2, "no list of pictures"),
        (("classify", place / "cells", "--model", "absent"), 2, "no such model"),
        (("classify", place / "cells", "--model", model, "--um-per-px", 9), 2, "um-per-px"),
        (("classify", place / "cells", "--model", model, "--min-score", 2), 2, " --min-score"),
        (("classify", place, "--model", SAMPLES.parent / "weights" / "cells-yolo11-p4"), 2, "a classifier is needed"),
        (("train", "classifier", recipe, "--out", tmp_path / "run"), 2, "data.colour"),
        (("train", "classifier", tmp_path / "absent.yaml"), 2, "does not exist"),
        (("evaluate", "names", "--source", "atlantis"), 2, "expected one of chula_rbc12"),
        (("evaluate", "names", "--scale", "guess"), 2, "expected estimated, slide or labels"),
    ):
        result = call(*words, *(("--out", tmp_path / "x.csv") if words[0] == "classify" else ()))
        assert (result.exit_code, reason in result.stderr) == (code, True), (words, result.output)
        assert "Traceback" not in result.output
    assert not (tmp_path / "x.csv").exists()


def test_whole_smears_are_named_with_it(model: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump({"classifiers": [str(model)], "min_label_score": 0.0}))
    result = call("analyze", SAMPLES / "sparse.jpg", "--config", config, "--out", tmp_path / "out", "--gallery")
    assert result.exit_code == 0, result.output
    assert "Normocyte" in result.output or "Spherocyte" in result.output
    rows = rows_of(tmp_path / "out" / "sparse.cells.csv")
    labels = {kind: {row["label"] for row in rows if row["kind"] == kind} for kind in ("rbc", "wbc", "platelet")}
    assert labels["rbc"] <= set(CODES)
    assert labels["wbc"] == {"unclassified"}
    assert labels["platelet"] == {"platelet"}
    report = json.loads((tmp_path / "out" / "sparse.json").read_text())
    assert "own-my-cells" in json.dumps(report)
    twice = tmp_path / "twice.yaml"
    twice.write_text(yaml.safe_dump({"classifiers": [str(model), str(model)]}))
    wrong = call("analyze", SAMPLES / "sparse.jpg", "--config", twice, "--out", tmp_path / "out")
    assert wrong.exit_code == 2
    assert "another classifier names rbc already" in wrong.stderr


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A sample smear as a collection of points, under the name of one that the configuration knows."""
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "chula_rbc12"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    shutil.copy(SAMPLES / "sparse.jpg", folder / "images")
    truth = json.loads((SAMPLES / "truth.json").read_text())["sparse.jpg"]
    red = [box for box, kind in zip(truth["boxes"], truth["kinds"], strict=True) if kind == "rbc"]
    lines = [f"{(box[0] + box[2]) / 2:.1f} {(box[1] + box[3]) / 2:.1f} 0\n" for box in red]
    (folder / "labels" / "sparse.txt").write_text("".join([*lines, "3 3 3\n"]))
    (folder / "val.txt").write_text("sparse\n")
    return {"red": len(red)}


def test_names_of_whole_fields_are_measured(model: Path, labelled: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump({"classifiers": [str(model)], "min_label_score": 0.0}))
    result = call("evaluate", "names", "--source", "chula_rbc12", "--config", config, "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    n = labelled["red"] + 1
    assert (found["source"], found["cells"], found["fields"]) == ("chula_rbc12", n, 1)
    # The detector finds the rendered red cells; the label in the corner lies on none.
    assert (n - 3) / n <= found["found"] <= (n - 1) / n
    assert found["accuracy"] <= found["found"]
    assert found["support"] == {"normocyte": n - 1, "spherocyte": 1}
    assert found["scale"] == "estimated"
    told = config.read_text()
    config.write_text(f"{told}um_per_px: 0.12\n")
    for asked, said in (("estimated", "settings"), ("labels", "labels")):
        given = call("evaluate", "names", "--config", config, "--scale", asked, "--quiet")
        assert json.loads(given.output)["scale"] == said
    config.write_text(told)
    cells = tmp_path / "cells.yaml"
    entry = {"format": "points", "find": "rbc", "um_per_px": {"any": 0.178}, "classes": {"0": "normocyte", "3": ""}}
    cells.write_text(yaml.safe_dump({"mine": {**entry, "folder": str(tmp_path / "data" / "chula_rbc12")}}))
    own = call("evaluate", "names", "--cells", cells, "--source", "mine", "--config", config, "--quiet")
    assert own.exit_code == 0, own.output
    assert json.loads(own.output)["support"] == {"normocyte": n - 1}
    (tmp_path / "data" / "chula_rbc12" / "labels" / "sparse.txt").write_text("")
    nothing = call("evaluate", "names", "--config", config)
    assert nothing.exit_code == 1
    assert "labelled with one code, got none" in nothing.stderr


def test_merges_and_confused_pairs_are_proposed(model: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merges"
    merges = call("mend", "merges", place / "my cells.yaml", "--model", model, "--clusters", "2-3", "--out", out)
    assert merges.exit_code == 0, merges.output
    assert sorted(path.name for path in out.iterdir()) == ["merges.png", "merges.yaml"]
    assert merges.stdout.startswith((out / "merges.yaml").read_text() + "written: ")
    # Four validation cells of either code are none to merge them on.
    assert merges.stdout.startswith("merge: {}\n# ")
    pairs = call("mend", "experts", place / "my cells.yaml", "--model", model)
    assert pairs.exit_code == 0, pairs.output
    assert json.loads(pairs.stdout)["cells"] == 8
    wrong = call("mend", "merges", place / "my cells.yaml", "--model", model, "--clusters", "5-2")
    assert wrong.exit_code == 2


def test_experts_are_not_judged_on_cells_that_they_know(own: Path) -> None:
    """An expert of another split was trained on validation cells of the generalist."""
    recipe, model, expert = own / "my cells.yaml", own / "run" / "model", own / "expert"
    shutil.copytree(model, expert)
    asked = ("mend", "experts", recipe, "--model", model, "--expert", expert)
    fair = call(*asked)
    assert fair.exit_code == 0, fair.output
    found = json.loads(fair.stdout)
    assert (found["n"], [each["codes"] for each in found["by_expert"]]) == (4, [list(CODES)])
    settings = Settings.model_validate({"experts": found["experts"]})
    assert settings.experts == {str(expert): pytest.approx(found["by_expert"][0]["margin"], abs=1e-4)}
    sides = (expert / "split.csv").read_text().replace("train,", "x,").replace("val,", "train,").replace("x,", "val,")
    (expert / "split.csv").write_text(sides)
    refused = call(*asked)
    assert refused.exit_code == 2
    assert "no val cell of the codes of the model is left that none was trained on" in refused.stderr


def test_experts_are_not_judged_on_one_group(own: Path) -> None:
    recipe, model, expert = own / "my cells.yaml", own / "run" / "model", own / "expert"
    shutil.copytree(model, expert)
    for folder in (model, expert):
        (folder / "split.csv").unlink()
    content = yaml.safe_load(recipe.read_text())
    groups = own / "groups.csv"
    names = [path.relative_to(own / "cells").as_posix() for path in sorted((own / "cells").glob("*/[0-9]*.png"))]
    groups.write_text("file,group\n" + "".join(f"{name},{'ab'[row % 2]}\n" for row, name in enumerate(names)))
    recipe.write_text(yaml.safe_dump({**content, "data": {**content["data"], "groups": str(groups)}}))
    pairs = call("mend", "experts", recipe, "--model", model)
    assert pairs.exit_code == 0, pairs.output
    refused = call("mend", "experts", recipe, "--model", model, "--expert", expert)
    assert refused.exit_code == 2
    assert "val cells are of one group" in refused.stderr
    assert "raise val_share" in refused.stderr


@pytest.mark.filterwarnings("ignore")
def test_compared_networks_see_all_the_detail_that_they_can(place: Path, tmp_path: Path) -> None:
    base = yaml.safe_load((place / "my cells.yaml").read_text())
    base["phases"][0]["epochs"] = 1
    networks = ["lenet5", {"backbone": "lenet5", "input_px": 40}]
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump({"base": base, "backbones": networks, "optimisers": ["sgd"]}))
    result = call("train", "compare", config, "--out", tmp_path / "compared")
    assert result.exit_code == 0, result.output
    # Pictures of 80 px: at 32 px alone, 64 of them would do.
    assert "80 80 80" in result.output
    assert "64 64 64" not in result.output


@pytest.mark.filterwarnings("ignore")
def test_networks_are_compared(place: Path, tmp_path: Path) -> None:
    base = yaml.safe_load((place / "my cells.yaml").read_text())
    base["phases"][0]["epochs"] = 1
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump({"base": base, "backbones": ["lenet5"], "optimisers": ["sgd", "adam"]}))
    result = call("train", "compare", config, "--out", tmp_path / "compared", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output.count("lenet5") >= 2
    assert (tmp_path / "compared" / "comparison.csv").is_file()
    model = tmp_path / "compared" / "lenet5-sgd" / "model"
    assert Model(model).classifier_card.id == "own-compare-lenet5-sgd"
    judged = call("evaluate", "classifier", place / "my cells.yaml", "--model", model, "--out", tmp_path / "judged")
    assert judged.exit_code == 0, judged.output
    # A run of other cells in the way is a failure, which the exit code tells.
    base["seed"] = 4
    config.write_text(yaml.safe_dump({"base": base, "backbones": ["lenet5"], "optimisers": ["sgd", "adam"]}))
    failed = call("train", "compare", config, "--out", tmp_path / "compared", "--quiet")
    assert failed.exit_code == 1, failed.output
    assert "holds a run of another recipe" in failed.output


def test_a_refused_comparison_leaves_the_lists_of_the_one_that_is_there(own: Path) -> None:
    base = yaml.safe_load((own / "my cells.yaml").read_text())
    config, out = own / "compare.yaml", own / "compared"
    (out / "cnn-sgd").mkdir(parents=True)
    (out / "cnn-sgd" / "summary.json").write_text("{}")
    for name in ("faults.csv", "leaks.txt"):
        (out / name).write_text("of an earlier run\n")
    # No label is exact, so that nothing can be judged.
    base["data"]["classes"] = {name: list(CODES) for name in ("Normal", "Esferocito")}
    config.write_text(yaml.safe_dump({"base": base, "backbones": ["lenet5"], "optimisers": ["sgd"]}))
    refused = call("train", "compare", config, "--out", out)
    assert refused.exit_code == 2
    assert "a validation cell with an exact label at least" in refused.stderr
    assert {(out / name).read_text() for name in ("faults.csv", "leaks.txt")} == {"of an earlier run\n"}
    # Weights that are not there are known before the cells are read.
    absent = {"backbone": "alexnet", "pretrained": "absent.safetensors"}
    config.write_text(yaml.safe_dump({"base": base, "backbones": ["lenet5", absent], "optimisers": ["sgd"]}))
    refused = call("train", "compare", config, "--out", own / "other")
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {config}: alexnet-sgd: pretrained: absent.safetensors: no such file")
    assert not (own / "other").exists()


def test_a_wrong_comparison_names_file_and_entry(place: Path, tmp_path: Path) -> None:
    base = yaml.safe_load((place / "my cells.yaml").read_text())
    for nets, reason in ((["lenet5", "resnet19"], "resnet19-adamw: net.backbone"), ([], "backbones")):
        (tmp_path / "compare.yaml").write_text(
            yaml.safe_dump({"base": base, "backbones": nets, "optimisers": ["adamw"]})
        )
        result = call("train", "compare", tmp_path / "compare.yaml", "--out", tmp_path / "compared")
        assert result.exit_code == 2, result.output
        assert "compare.yaml" in result.stderr
        assert reason in result.stderr
    assert not (tmp_path / "compared").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_brings_the_taxonomy_it_needs(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "cells", tmp_path / "cells")
    (tmp_path / "cells" / "target_cell").mkdir()
    for number in range(100, 116):
        write_picture(tmp_path / "cells" / "target_cell" / f"{number}.png", 255 - drawn_cell(number, "Normal"))
    content = yaml.safe_load((place / "my cells.yaml").read_text())
    content["data"] |= {"folder": str(tmp_path / "cells"), "merge": {"round_cell": list(CODES)}}
    (tmp_path / "merged.yaml").write_text(yaml.safe_dump(content))
    trained = call("train", "classifier", tmp_path / "merged.yaml", "--out", tmp_path / "run", "--quiet")
    assert trained.exit_code == 0, trained.output
    model = tmp_path / "run" / "model"
    assert Model(model).classifier_card.codes == ("round_cell", "target_cell")
    words = ("analyze", SAMPLES / "sparse.jpg", "--classifiers", model, "--out", tmp_path / "out", "--quiet")
    refused = call(*words)
    assert refused.exit_code == 2
    assert "--taxonomy" in refused.stderr
    assert call(*words, "--taxonomy", model / "taxonomy.yaml").exit_code == 0
    labels = {row["label"] for row in rows_of(tmp_path / "out" / "sparse.cells.csv") if row["kind"] == "rbc"}
    assert labels <= {"round_cell", "target_cell", "unclassified"}
    # A recipe that does not merge has cells that the model has no name for.
    content["data"].pop("merge")
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(content))
    asked = ("evaluate", "classifier", tmp_path / "whole.yaml", "--model", model, "--out", tmp_path / "judged")
    judged = call(*asked, "--quiet")
    assert judged.exit_code == 0, judged.output
    assert "gives none of their codes, or only one of several (4 normocyte, 4 spherocyte)" in judged.output


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_codes_of_your_own_brings_the_taxonomy_it_needs(place: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((SAMPLES.parent / "configs" / "taxonomy.yaml").read_text())
    content["codes"]["blister_cell"] = {"kind": "rbc", "name": "Blister cell", "colour": "#123456"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = yaml.safe_load((place / "my cells.yaml").read_text())
    recipe["data"] |= {"classes": {"Esferocito": "blister cells"}, "taxonomy": str(tmp_path / "own.yaml")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trained = call("train", "classifier", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--quiet")
    assert trained.exit_code == 0, trained.output
    model = tmp_path / "run" / "model"
    assert load_taxonomy(model / "taxonomy.yaml") == load_taxonomy(tmp_path / "own.yaml")
    words = ("analyze", SAMPLES / "sparse.jpg", "--classifiers", model, "--out", tmp_path / "out", "--quiet")
    assert call(*words, "--taxonomy", model / "taxonomy.yaml").exit_code == 0
    labels = {row["label"] for row in rows_of(tmp_path / "out" / "sparse.cells.csv") if row["kind"] == "rbc"}
    assert labels <= {"normocyte", "blister_cell", "unclassified"}


def test_a_wrong_recipe_is_told_in_one_line_with_its_file(place: Path, tmp_path: Path) -> None:
    """One class only, all codes merged into one, an unknown code, no devices: never a traceback."""
    content = yaml.safe_load((place / "my cells.yaml").read_text())
    for data, changes, reason in (
        ({"classes": {"Esferocito": ""}}, {}, "expected cells of two codes at least, got normocyte"),
        ({"merge": {"round_cell": list(CODES)}}, {}, "expected cells of two codes at least, got round_cell"),
        ({"codes": ["normocyte", "blah"]}, {}, "data.codes: blah unknown"),
        ({"codes": ["normocyte", "burr_cell"]}, {}, "no training cell of burr_cell"),
        ({}, {"devices": 0}, "devices"),
    ):
        recipe = tmp_path / "wrong.yaml"
        recipe.write_text(yaml.safe_dump({**content, **changes, "data": {**content["data"], **data}}))
        result = call("train", "classifier", recipe, "--out", tmp_path / "run", "--quiet")
        assert result.exit_code == 2, (reason, result.output)
        assert result.stderr.startswith(f"error: {recipe}: ")
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
    recipe.write_text(yaml.safe_dump({**content, "data": {**content["data"], "codes": ["blah"]}}))
    for command in ("merges", "experts"):
        refused = call("mend", command, recipe)
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"error: {recipe}: data.codes: blah unknown")
