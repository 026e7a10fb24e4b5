"""Model folders: what is damaged, missing or unknown is refused with the file and the remedy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smearcount.cards import Card, Model, as_yaml, find_model, list_models
from smearcount.config import Settings
from smearcount.errors import ConfigError, ModelError

CONTENT = bytes(range(256)) * 4
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, make_card: Callable[..., Card]) -> Path:
    """A model folder with two files."""
    target = tmp_path / "weights" / "discs"
    target.mkdir(parents=True)
    entry = {"runtime": "onnx", "sha256": SHA256, "bytes": len(CONTENT)}
    card = make_card(files={"model.onnx": entry, "probe.npz": {**entry, "runtime": "probe"}})
    (target / "card.yaml").write_text(yaml.safe_dump(as_yaml(card), sort_keys=False))
    for name in card.files:
        (target / name).write_bytes(CONTENT)
    return target


def change(folder: Path, **values: Any) -> None:
    content = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump({**content, **values}))


def test_a_good_model_is_read_and_verified(folder: Path, make_card: Callable[..., Card]) -> None:
    model = Model(folder)
    assert model.read("model.onnx") == CONTENT
    assert model.verify() == ["model.onnx", "probe.npz"]
    assert model.names("onnx") == ["model.onnx"]
    assert model.card.checksums()["discs/probe.npz"] == SHA256
    # The card survives its way through YAML.
    assert model.card == make_card(files=model.card.files)


@pytest.mark.parametrize("place", [0, 511, len(CONTENT) - 1])
def test_one_changed_byte_is_found(folder: Path, place: int) -> None:
    changed = bytearray(CONTENT)
    changed[place] ^= 1
    (folder / "model.onnx").write_bytes(changed)
    with pytest.raises(ModelError, match=r"model\.onnx: changed or damaged.*copy it again"):
        Model(folder).read("model.onnx")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        Model(folder).verify()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"\0", b""])
def test_a_file_of_another_length_is_refused_with_both_lengths(folder: Path, content: bytes) -> None:
    (folder / "probe.npz").write_bytes(content)
    with pytest.raises(ModelError, match=rf"probe\.npz.*{len(CONTENT)} bytes.*found {len(content)} bytes"):
        Model(folder).verify()


def test_a_missing_file_is_named_with_the_remedy(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: can't be read.*copy it again"):
        Model(folder).read("model.onnx")


def test_a_shipped_model_comes_with_the_program() -> None:
    assert find_model(Settings().detector).remedy == "install smearcount again"


def test_a_file_that_is_not_on_the_card_is_not_read(folder: Path) -> None:
    (folder / "other.bin").write_bytes(CONTENT)
    ways = {"model.xml": f"run `smearcount export {folder} --to openvino`", "other.bin": "copy it again, or make it"}
    change(folder, files={})
    ways["model.onnx"] = f"run `smearcount export {folder} --to onnx`"
    for name, way in (*ways.items(), ("../discs/other.bin", "copy it again")):
        with pytest.raises(ModelError, match=rf"not listed on the card; {way}"):
            Model(folder).read(name)
    with pytest.raises(ModelError, match="not listed on the card; run `smearcount export red-cells --to onnx`"):
        find_model("red-cells").read("model.onnx")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": "red"}, r"card\.yaml: colour: "),
        ({"um_per_px": 0}, r"card\.yaml: um_per_px: "),
        ({"id": "Discs 1"}, "id"),
        ({"nms_iou": 1.0}, "nms_iou"),
        ({"task": "segmenter"}, "task"),
        ({"files": {"m": {"runtime": "onnx", "sha256": "abc", "bytes": 3}}}, r"files\.m\.sha256"),
        ({"files": {"m": {"runtime": "pickle", "sha256": SHA256, "bytes": 3}}}, r"files\.m\.runtime"),
        ({"min_score": {"rbc": 0.3}}, "min_score.*platelet"),
    ],
)
def test_a_wrong_card_is_refused_with_the_key(folder: Path, values: dict[str, Any], words: str) -> None:
    change(folder, **values)
    with pytest.raises(ConfigError, match=words):
        Model(folder)


def test_a_card_without_a_key_names_the_key(folder: Path) -> None:
    content = yaml.safe_load((folder / "card.yaml").read_text())
    del content["licence"]
    (folder / "card.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"card\.yaml: licence: Field required"):
        Model(folder)


def test_models_are_found_by_id_and_by_folder(folder: Path) -> None:
    weights = folder.parent
    assert find_model("discs", weights).folder == folder
    assert find_model(str(folder), weights).card.id == "discs"
    assert [model.card.id for model in list_models(weights)] == ["discs"]
    with pytest.raises(ModelError, match=rf"rings: no such model in {weights}; known: discs; or give the folder of"):
        find_model("rings", weights)
    with pytest.raises(ModelError, match="known: none"):
        find_model("rings", weights / "none")
    with pytest.raises(
        ModelError,
        match=r"no card\.yaml; give the id of a shipped model, or a folder that a training or `export` wrote",
    ):
        Model(weights)


def test_the_shipped_cards_are_sound() -> None:
    for model in list_models():
        assert model.folder.name == model.card.id
        assert model.card.training_data
        assert model.card.limits
