"""The training system on little data: it learns, it masks what was not labelled, and it ends in a usable model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save
from typer.testing import CliRunner

from smearcount.cards import Model
from smearcount.cli import app
from smearcount.config import read_model, shipped
from smearcount.datasets import KINDS, LabelledField
from smearcount.errors import ConfigError, DatasetError, ModelError, UsageError
from smearcount.simulate import random_set, render, write_set
from smearcount.training import detector
from smearcount.training.detector import DetectorRecipe, KindMaskedBCE, collate, train
from smearcount.training.tiles import Augmentation, TileMaker

RECIPE = shipped("configs") / "train" / "detector.yaml"
STILL = Augmentation(
    plain=0, scale_sigma=0, stain_sigma=0, hue_sigma=0, brightness=0, blur_px=0.3, shrink=1, noise=0, grey=0
)


def maker(
    border_px: int = 0, labelled: frozenset[str] = frozenset(KINDS), places: tuple[int, ...] = (30, 70)
) -> TileMaker:
    """Tiles of two drawn fields with one dark square each, whose box is known."""
    fields = []
    for place in places:
        pixels = np.full((160, 200, 3), 220, np.uint8)
        pixels[place : place + 20, place : place + 24] = 40
        box = np.array([[place, place, place + 24, place + 20]], np.float32)
        path = Path(f"{place}.png")
        field = LabelledField(path, "drawn", box, np.array([0]), labelled, 0.16, border_px)
        fields.append((field, pixels))
    return TileMaker(fields, {"drawn": 1.0}, 256, 0.16, STILL, seed=3)


def test_the_shipped_recipe_is_valid() -> None:
    assert read_model(DetectorRecipe, RECIPE).architecture["nc"] == len(KINDS)


def test_a_wrong_recipe_names_the_key(tmp_path: Path) -> None:
    content = yaml.safe_load(RECIPE.read_text())
    content["epochs"] = 0
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="epochs"):
        read_model(DetectorRecipe, path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sources": {}}, "sources"),
        ({"sources": {"txl_pbc": 1, "deepbionet": 0}}, r"sources\.deepbionet"),
        ({"box_weight": {"WBC": 4}}, r"box_weight\.WBC"),
        ({"batch": 8, "tiles_per_epoch": 6}, "batch: expected at most the 6 tiles_per_epoch, got 8"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_the_fields_are_read(changes: dict[str, Any], reason: str) -> None:
    content = yaml.safe_load(RECIPE.read_text())
    with pytest.raises(ValidationError, match=reason):
        DetectorRecipe.model_validate({**content, **changes})


def test_a_kind_without_a_weight_weighs_one() -> None:
    from ultralytics.cfg import get_cfg

    content = yaml.safe_load(RECIPE.read_text()) | {"box_weight": {"wbc": 4}}
    model = detector._masked_model(DetectorRecipe.model_validate(content), None)
    model.args = get_cfg()
    batch = collate([maker().make(0)])
    batch["img"] = batch["img"].float() / 255
    model.train().loss(batch)
    assert model.criterion.bbox_loss.weights.tolist() == [1, 4, 1]


def test_a_wrong_word_of_the_card_is_known_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text("id: Mine\n")
    asked = ["train", "detector", str(RECIPE), "--card", str(tmp_path / "words.yaml"), "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2
    assert "words of the card of Mine: id: String should match pattern" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"no weights", save({"a": torch.zeros(2)})])
def test_weights_of_something_else_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "start.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"start\.safetensors: .*; give the model\.safetensors of a training"):
        detector._masked_model(read_model(DetectorRecipe, RECIPE), tmp_path / "start.safetensors")


@pytest.mark.parametrize("device", ["cuda", "99", "0,1"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match=r"--device: expected cpu or a number below \d+, of the cards that are here"):
        train(RECIPE, tmp_path, device=device)


def test_a_collection_without_a_field_is_named() -> None:
    with pytest.raises(DatasetError, match=r"no field of void to train on; add image stems to train\.txt"):
        TileMaker([], {"void": 1.0}, 256, 0.16, STILL, seed=3)


@pytest.mark.parametrize("number", range(12))
def test_boxes_stay_on_their_cells_however_a_tile_is_turned(number: int) -> None:
    tile = maker().make(number)
    assert len(tile.boxes) >= 1
    for x_min, y_min, x_max, y_max in tile.boxes.round().astype(int):
        inner = tile.pixels[y_min + 1 : y_max - 1, x_min + 1 : x_max - 1]
        assert inner.size
        assert inner.mean() < 90
    dark = tile.pixels[..., 1] < 60
    inside = np.zeros_like(dark)
    for x_min, y_min, x_max, y_max in tile.boxes.round().astype(int):
        inside[max(y_min - 2, 0) : y_max + 2, max(x_min - 2, 0) : x_max + 2] = True
    # Slivers of squares cut to less than 8 % have no box.
    assert (dark & ~inside).sum() < 0.15 * dark.sum()


def test_boxes_lie_exactly_on_the_cells_of_a_field_that_is_cut_and_enlarged() -> None:
    pixels = np.full((300, 400, 3), 230, np.uint8)
    places = [(x, y) for x in range(10, 370, 53) for y in range(10, 270, 47)]
    for x, y in places:
        pixels[y : y + 18, x : x + 22] = 30
    boxes = np.array([[x, y, x + 22, y + 18] for x, y in places], np.float32)
    field = LabelledField(
        Path("squares.png"), "drawn", boxes, np.zeros(len(boxes), np.int64), frozenset(KINDS), 0.33, 0
    )
    tiles = TileMaker([(field, pixels)], {"drawn": 1.0}, 256, 0.16, STILL, seed=3)
    off = []
    for tile in (tiles.make(number) for number in range(20)):
        dark = (230 - tile.pixels[..., 1].astype(float)) / 200
        for x_min, y_min, x_max, y_max in tile.boxes[np.all((tile.boxes > 8) & (tile.boxes < 248), axis=1)]:
            left, top = int(x_min) - 4, int(y_min) - 4
            seen = dark[top : int(y_max) + 5, left : int(x_max) + 5]
            y, x = np.indices(seen.shape) + 0.5
            middle = (x * seen).sum() / seen.sum() + left, (y * seen).sum() / seen.sum() + top
            off.append((middle[0] - (x_min + x_max) / 2, middle[1] - (y_min + y_max) / 2))
    assert len(off) > 50
    assert np.abs(off).max() < 0.1


def test_the_same_number_gives_the_same_tile() -> None:
    first, second = maker().make(5), maker().make(5)
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.boxes, second.boxes)


def test_an_unlabelled_border_is_cut_off() -> None:
    for number in range(6):
        assert len(maker(places=(30,)).make(number).boxes)
        assert not len(maker(places=(30,), border_px=56).make(number).boxes)


def test_an_unlabelled_kind_is_no_negative() -> None:
    loss = KindMaskedBCE()
    loss.labelled = torch.tensor([[True, False, False], [True, True, True]])
    logits, targets = torch.full((2, 4, 3), 3.0), torch.zeros(2, 4, 3)
    targets[0, 0, 1] = 1.0
    value = loss(logits, targets)
    full = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.equal(value[1], full[1])
    assert torch.equal(value[0, :, 0], full[0, :, 0])
    assert value[0, 0, 1] == full[0, 0, 1]
    assert value[0, 1:, 1:].abs().sum() == 0


def test_batches_hold_centre_size_boxes_in_shares_of_the_tile() -> None:
    tiles = [maker(labelled=frozenset({"rbc"})).make(n) for n in range(2)]
    batch = collate(tiles)
    assert batch["img"].shape == (2, 3, 256, 256)
    assert batch["labelled"].tolist() == [[True, False, False]] * 2
    assert batch["batch_idx"].tolist() == [float(i) for i, tile in enumerate(tiles) for _ in tile.boxes]
    first, box = tiles[0].boxes[0] / 256, batch["bboxes"][0].numpy()
    assert np.allclose(np.r_[box[:2] - box[2:] / 2, box[:2] + box[2:] / 2], first, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_short_training_lowers_the_loss_and_ends_in_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smearcount.probe import probe_errors
    from smearcount.training.packaging import assemble, detector_card, update_card

    write_set(
        {name: r.vary(width=320, height=240, um_per_px=0.16) for name, r in random_set(6, 1).items()}, sims(tmp_path)
    )
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    monkeypatch.setattr("smearcount.datasets.load_sources", sources)
    content = yaml.safe_load(RECIPE.read_text())
    changes = {"sources": {"sims": 1.0}, "tiles_per_epoch": 12, "batch": 4, "epochs": 3, "tile_px": 192}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**content, **changes}))
    run = train(recipe, tmp_path / "run")
    losses = [float(line.split("cls_loss ")[1].split()[0]) for line in (run / "train.log").read_text().splitlines()]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert not list(tmp_path.rglob("*.pt"))
    folder = run / "model"
    assemble(run, detector_card(recipe, None), folder)
    assert probe_errors(Model(folder), ("openvino", "torch"))
    assert "Not measured yet" in Model(folder).card.limits[0]
    assert Model(folder).detector_card.min_score_from == "cells-yolo11-p4, not fitted to this model"
    update_card(folder, um_per_px=0.2)
    assert Model(folder).card.limits
    update_card(folder, metrics=[{"name": "mAP", "data": "sims, val", "n": 3, "value": 0.5}])
    assert Model(folder).card.limits == ()


def sims(tmp_path: Path) -> Path:
    folder = tmp_path / "sims"
    folder.mkdir()
    return folder


def sources(datasets: Path | None = None) -> dict[str, object]:
    from smearcount.datasets import FieldSource

    kinds = {kind: kind for kind in KINDS}
    entry = {"format": "truth", "classes": kinds, "labelled": KINDS, "red_cell_px": {"any": 47}}
    return {"sims": FieldSource.model_validate({"name": "sims", **entry})}


def test_rendered_smears_are_read_as_labelled_fields(tmp_path: Path) -> None:
    from smearcount.datasets import read_source

    recipes = {"one": next(iter(random_set(1, 2).values())).vary(width=300, height=200)}
    write_set(recipes, sims(tmp_path))
    field = read_source(tmp_path, sources()["sims"], "train")[0]
    smear = render(recipes["one"])
    assert np.allclose(field.boxes, smear.boxes, atol=0.01)
    assert [KINDS[kind] for kind in field.kinds] == smear.kinds.tolist()
