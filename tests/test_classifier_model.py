"""The model folder of a classifier: its card, its weights in every runtime, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load, load_file, save_file

from smearcount.cards import ClassifierCard, Model, as_yaml, find_model, list_models
from smearcount.config import Settings
from smearcount.errors import ConfigError, ImageError, ModelError, UsageError
from smearcount.naming_heads import NetSpec
from smearcount.naming_nets import build_net
from smearcount.probe import probe_errors
from smearcount.runtimes import RuntimeChoice, make_runtime
from smearcount.torch_nets import network_of
from smearcount.training.packaging import (
    export_model,
    half_weights,
    package_classifier,
    package_naming_run,
    update_card,
)
from smearcount.training.readme import render_readme

FILES = {"model.safetensors", "architecture.yaml", "model.xml", "model.bin", "probe.npz"}
ABOUT: dict[str, Any] = {
    **{"id": "own", "description": "d", "licence": "MIT", "intended_use": "tests", "limits": ["none"]},
    **{"training_data": (), "min_label_score": 0.5, "probe_tolerance": 0.05, "kinds": ("rbc",)},
}


@pytest.fixture
def model(naming_models: Path, tmp_path: Path) -> Model:
    """A copy that may be damaged."""
    shutil.copytree(naming_models / "red-discs", tmp_path / "red-discs")
    return Model(tmp_path / "red-discs")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a training leaves, without any training."""
    folder = tmp_path / "run"
    folder.mkdir()
    net = build_net(NetSpec(backbone="lenet5", codes=2, input_px=32))
    save_file(net.state_dict(), str(folder / "model.safetensors"))
    (folder / "architecture.yaml").write_text(yaml.safe_dump(net.spec.model_dump()))
    summary = {"codes": ["round", "long"], "mean": [0.5] * 3, "std": [0.25] * 3, "input_px": 32, "temperature": 1.25}
    summary |= {"embedding": 84, "recipe": {"patch_um": 11.0}, "accuracy": 0.9}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def forge(model: Model, name: str, content: bytes) -> Model:
    """Another content of a file that the card vouches for."""
    (model.folder / name).write_bytes(content)
    card = yaml.safe_load((model.folder / "card.yaml").read_text())
    card["files"][name] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (model.folder / "card.yaml").write_text(yaml.safe_dump(card))
    return Model(model.folder)


@pytest.mark.filterwarnings("ignore")  # of the exporter, about its own future
def test_a_run_becomes_a_model_as_a_whole(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights" / "own"
    out.mkdir(parents=True)
    (out / "left over").write_text("of another model")
    card = package_classifier(run, {**ABOUT, "painted": ("long",), "second_look": 0.7}, out)
    assert {path.name for path in out.iterdir()} == FILES | {"card.yaml", "README.md"}
    assert [path.name for path in out.parent.iterdir()] == ["own"]
    assert Model(out).card == card
    assert isinstance(card, ClassifierCard)
    assert (card.codes, card.patch_um, card.input_px, card.embedding) == (("round", "long"), 11.0, 32, 84)
    assert (card.temperature, card.mean, card.std) == (1.25, (0.5,) * 3, (0.25,) * 3)
    assert set(Model(out).verify()) == FILES
    errors = probe_errors(Model(out))
    assert sorted(errors) == ["openvino cpu f32", "torch cpu f32"]
    assert max(error.value for error in errors.values()) < 0.01
    readme = (out / "README.md").read_text()
    assert readme == render_readme(card)
    for line in (
        "gives round, long",
        "Asked about: rbc",
        "a square of 11 um around the cell at 32 x 32 px",
        "Temperature 1.25; below a probability of 0.5 a cell is unclassified",
        "Below 0.7 it looks again, in four quarter turns, and takes the mean",
        "painted cells, without any test on real ones: long",
    ):
        assert line in readme


@pytest.mark.filterwarnings("ignore")
def test_openvino_files_are_in_float32_where_half_precision_changes_the_answers(run: Path, tmp_path: Path) -> None:
    half = Model(package_naming_run(run, "plain", None, ("rbc",))).card.files["model.bin"].bytes
    weights = load_file(run / "model.safetensors")
    last = next(key for key, value in weights.items() if value.shape == (2,))
    # Numbers of this size are a quarter apart in half precision.
    save_file({**weights, last: torch.tensor([300.12, 300.37])}, str(run / "model.safetensors"))
    model = Model(package_naming_run(run, "sensitive", None, ("rbc",)))
    assert model.card.files["model.bin"].bytes > 1.8 * half
    for each in (model, Model(export_model(str(model.folder), "openvino", tmp_path / "exported"))):
        assert set(probe_errors(each)) == {"openvino cpu f32", "torch cpu f32"}


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_openvino_answers_otherwise_is_not_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "own"
    with pytest.raises(ModelError, match=rf"^{out}: not written, since openvino differs.*try another version"):
        package_classifier(run, {**ABOUT, "probe_tolerance": 1e-12}, out)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_laboratory_s_own_run_gets_plain_words_or_its_own(run: Path, tmp_path: Path) -> None:
    card = Model(package_naming_run(run, "My cells (2nd)", None, ("rbc", "platelet"))).classifier_card
    assert (card.id, card.kinds) == ("own-my-cells-2nd", ("rbc", "platelet"))
    assert card.picture_um is None
    card = Model(package_naming_run(run, "My cells", None, ("rbc",), 12.0)).classifier_card
    assert card.picture_um == 12.0
    assert "Takes a whole picture of one cell to be 12 um wide" in (run / "model" / "README.md").read_text()
    words = tmp_path / "words.yaml"
    words.write_text(yaml.safe_dump({**ABOUT, "training_data": [], "id": "theirs", "kinds": ["wbc"]}))
    card = Model(package_naming_run(run, "My cells", words, ("rbc",))).classifier_card
    assert (card.id, card.kinds) == ("theirs", ("wbc",))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kinds": ["red"]}, r"kinds\.0"),
        ({"painted": ["square"]}, "painted: square are not among the codes"),
        ({"largest_um": {"square": 4.0}}, "largest_um: square are not among the codes"),
        ({"min_label_score": 1.0}, "min_label_score"),
        ({"second_look": 1.1}, "second_look"),
        ({"id": "Own Model"}, "id"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_words_name_the_key(run: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    words = tmp_path / "words.yaml"
    words.write_text(yaml.safe_dump({**ABOUT, "training_data": [], "kinds": ["rbc"], **changes}))
    with pytest.raises(ConfigError, match=reason):
        package_naming_run(run, "x", words, ("rbc",))
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes": ["normocyte"]}, "two or more"),
        ({"codes": ["normocyte", "normocyte", "spherocyte"]}, "each once"),
        ({"temperature": 0.0}, "temperature"),
        ({"patch_um": 0.1}, "patch_um"),
        ({"embedding": 0}, "embedding"),
        ({"task": "namer"}, "expected detector or classifier, got 'namer'"),
    ],
)
def test_a_malformed_card_is_refused(model: Model, changes: dict[str, Any], reason: str) -> None:
    card = yaml.safe_load((model.folder / "card.yaml").read_text())
    (model.folder / "card.yaml").write_text(yaml.safe_dump({**card, **changes}))
    with pytest.raises(ConfigError, match=reason):
        Model(model.folder)


def test_each_task_has_its_own_card(model: Model) -> None:
    assert model.classifier_card is model.card
    with pytest.raises(ModelError, match="red-discs: a classifier, where a detector is needed"):
        _ = model.detector_card
    with pytest.raises(ModelError, match="a detector, where a classifier is needed"):
        _ = find_model(Settings().detector).classifier_card


def test_figures_on_the_card_come_into_its_readme(model: Model) -> None:
    metrics = [{"name": "accuracy", "data": "drawn, val", "n": 40, "value": 0.975, "low": 0.9, "high": 1.0}]
    update_card(model.folder, metrics=metrics, abstention=[(0.5, 0.01, 0.98), (0.9, 0.25, 1.0)])
    card = Model(model.folder).classifier_card
    assert card.metrics[0].value == 0.975
    assert card.abstention == ((0.5, 0.01, 0.98), (0.9, 0.25, 1.0))
    readme = (model.folder / "README.md").read_text()
    assert "| accuracy | drawn, val | 40 | 0.975 | 0.9 to 1 |" in readme
    assert "| 0.90 | 25.0 % | 1.0000 |" in readme
    assert set(Model(model.folder).verify()) == FILES
    assert as_yaml(card)["codes"] == ["normocyte", "spherocyte", "target_cell"]


def test_weights_are_kept_in_half_and_used_in_single_precision(model: Model, run: Path) -> None:
    kept = load(half_weights(run / "model.safetensors"))
    whole = load_file(run / "model.safetensors")
    assert {key: value.dtype for key, value in kept.items()} == {
        key: torch.float16 if value.ndim > 1 else torch.float32 for key, value in whole.items()
    }
    net = network_of(model)
    assert not net.training
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    probe = np.load(io.BytesIO(model.read("probe.npz")))
    with torch.inference_mode():
        logits, features = net(torch.from_numpy(probe["pixels"].astype(np.float32)))
    np.testing.assert_allclose(logits.numpy(), probe["expected"], atol=1e-6)
    assert features.shape == (2, model.classifier_card.embedding)


@pytest.mark.filterwarnings("ignore")
def test_every_runtime_gives_logits_and_features_for_any_batch(model: Model, tmp_path: Path) -> None:
    exported = Model(export_model(str(model.folder), "onnx", tmp_path / "exported"))
    assert set(exported.verify()) == FILES | {"model.onnx"}
    assert set(probe_errors(exported)) == {"openvino cpu f32", "onnx cpu f32", "torch cpu f32"}
    batch = np.random.default_rng(0).normal(0, 1, (5, 3, 32, 32)).astype(np.float32)
    reference = network_of(exported)(torch.from_numpy(batch))
    for name in ("openvino", "onnx", "torch"):
        run, _ = make_runtime(exported, RuntimeChoice(name, "cpu"))
        for rows in (slice(0, 5), slice(1, 2)):
            for ours, theirs in zip(run(batch[rows])[:2], reference, strict=True):
                np.testing.assert_allclose(ours, theirs[rows].detach().numpy(), atol=5e-3)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_model_knows_its_cells_and_its_codes(model: Model, tmp_path: Path) -> None:
    """The list of the cells that it was trained on, and the taxonomy of merged codes."""
    own = shutil.copytree(model.folder, tmp_path / "own")
    companions = {"split.csv": "split,picture_sha256,group_sha256\n", "taxonomy.yaml": "codes: {}\n"}
    for name, text in companions.items():
        (own / name).write_text(text)
    exported = export_model(str(own), "onnx", tmp_path / "exported")
    assert {name: (exported / name).read_text() for name in companions} == companions


def test_a_card_is_written_whole_or_not_at_all(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (model.folder / "card.yaml").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ImageError, match=r"card\.yaml: can't be written \(No space left on device\); check the"):
        update_card(model.folder, probe_tolerance=0.1)
    assert (model.folder / "card.yaml").read_bytes() == before
    assert {path.name for path in model.folder.iterdir()} == FILES | {"card.yaml", "README.md"}


@pytest.mark.filterwarnings("ignore")
def test_an_export_replaces_nothing_but_an_earlier_one(model: Model, naming_models: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model.folder, tmp_path / "own")
    (own / "split.csv").write_text("split,picture_sha256,group_sha256\n")
    target = tmp_path / "out" / "red-discs"
    target.mkdir(parents=True)
    for to in ("onnx", "openvino", "onnx"):
        assert export_model(str(own), to, tmp_path / "out") == target
    # The same weights, whatever was measured since.
    update_card(own, metrics=[{"name": "accuracy", "data": "x", "n": 3, "value": 0.5}])
    export_model(str(own), "onnx", tmp_path / "out")
    assert Model(target).card.metrics
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    other = shutil.copytree(naming_models / "white-discs", tmp_path / "other")
    update_card(other, id="red-discs")
    with pytest.raises(UsageError, match=r"out/red-discs: holds another model of this name.*give another folder with"):
        export_model(str(other), "onnx", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    (target / "labels.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"files that are not on its card, such as labels\.csv; move it away"):
        export_model(str(own), "onnx", tmp_path / "out")
    (target / "card.yaml").unlink()
    with pytest.raises(UsageError, match="other files than those of a model"):
        export_model(str(own), "onnx", tmp_path / "out")
    assert (target / "labels.csv").read_text() == "mine"
    target.rename(tmp_path / "moved")
    for make in (target.touch, lambda: target.symlink_to(tmp_path / "moved")):
        make()
        with pytest.raises(UsageError, match="red-discs: is no folder; move it away"):
            export_model(str(own), "onnx", tmp_path / "out")
        target.unlink()


def test_a_network_that_is_none_of_ours_is_refused(model: Model) -> None:
    plain = yaml.safe_load(model.read("architecture.yaml"))
    for changes, reason in (({"backbone": "resnet19"}, "resnet19|resnet18"), ({"run": "rm -rf"}, "Extra inputs")):
        forged = forge(model, "architecture.yaml", yaml.safe_dump({**plain, **changes}).encode())
        with pytest.raises(ModelError, match=rf"architecture\.yaml: (.|\n)*({reason})"):
            network_of(forged)


def test_another_answer_than_the_probe_s_is_found(model: Model) -> None:
    update_card(model.folder, probe_tolerance=1e-9)
    with pytest.raises(ModelError, match=rf"differs from the probe.*run `smearcount export {model.folder} --to"):
        probe_errors(Model(model.folder), ("openvino",))


def test_a_model_that_is_still_being_made_is_not_listed(model: Model) -> None:
    shutil.copytree(model.folder, model.folder.parent / ".packaging-1")
    assert [each.folder.name for each in list_models(model.folder.parent)] == ["red-discs"]
