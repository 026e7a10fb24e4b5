"""INT8: offered where it can run, made from some pictures, compared on others, and not written where it differs."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from smearcount.cards import Model, as_yaml
from smearcount.cli import app
from smearcount.errors import ModelError, RuntimeMissingError, UsageError
from smearcount.offline import quiet_openvino
from smearcount.runtimes import has_int8
from smearcount.training import quantising
from smearcount.training.packaging import update_card
from smearcount.training.quantising import Agreement, compare, quantise
from smearcount.training.samples import Samples, samples_in

SIDE = 32


@pytest.mark.parametrize(
    ("flags", "able"),
    [("fpu avx2 avx512_vnni", True), ("fpu avx_vnni", True), ("amx_int8", True), ("fpu avx2 avx512f", False)],
)
def test_instructions_decide(tmp_path: Path, flags: str, able: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert has_int8(tmp_path / "cpuinfo") is able


def test_what_scores_and_decodes_stays_exact() -> None:
    kept = ["/model.0/conv/Conv", "/model.9/cv3.0/cv3.0.0/conv/Conv", "/model.9/dfl/Softmax", "/model.9/Sub"]
    kept += ["/model.9/cv2.1/cv2.1.2/Conv"]
    made = ["/model.1/conv/Conv", "/model.9/cv2.1/cv2.1.0/conv/Conv", "/model.10x/Conv", "/model.8/cv3.0/Conv"]
    patterns = [re.compile(each) for each in quantising._kept_exact(kept + made)]
    assert [name for name in kept + made if any(each.fullmatch(name) for each in patterns)] == kept
    assert quantising._kept_exact(["/features/0/Conv"]) == []


def test_a_rare_kind_is_judged_by_itself() -> None:
    counts = {"rbc": (4865, 4879), "wbc": (49, 40), "platelet": (109, 104)}
    assert Agreement("f32", 100, counts, 0.9, 0.002).kinds_apart() == ["platelet"]
    assert Agreement("bf16", 100, counts | {"platelet": (109, 106)}, 0.9, 0.002).kinds_apart() == []


@pytest.mark.parametrize(("others", "allowed"), [(1, True), (2, False)])
def test_the_allowed_limit_itself_is_allowed(
    toy: Model, others: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One label of 200 is 0.5 %, though 1 - 0.995 is more."""
    labels = [[[1, 0], [1, 0]]] * (200 - others) + [[[1, 0], [0, 1]]] * others
    monkeypatch.setattr(quantising, "_labels", lambda *_: labels)
    found = compare(toy, toy, [])
    assert (found.pictures, found.apart, found.same) == (200, others / 200, pytest.approx(1 - others / 200))
    made: Any = SimpleNamespace(card=toy.card)
    if allowed:
        quantising._check(made, [found])
    else:
        with pytest.raises(ModelError, match=r"1\.00 % from those in float32 \(allowed 0\.5 %\)"):
            quantising._check(made, [found])


def test_the_screen_says_what_was_left_out(toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _reds_and_blues(tmp_path / "in", 12)
    (folder / "004.png").write_bytes(b"")
    monkeypatch.setattr(quantising, "quantise", lambda model, samples, out: (toy.folder, []))
    asked = ["export", str(toy.folder), "--to", "openvino-int8", "--calibrate", str(folder), "--out", str(tmp_path)]
    told = CliRunner().invoke(app, asked)
    assert told.output.startswith(
        f"1 pictures left out, as they can't be read, such as {folder / '004.png'}: the file is"
    )
    assert CliRunner().invoke(app, [*asked, "--quiet"]).output == ""


def test_pooled_counts_are_compared(
    tmp_path: Path, make_card: Callable[..., Any], scatter_discs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = scatter_discs((600, 600), 47)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(drawing.pixels, cv2.COLOR_RGB2BGR))
    empty = np.full((100, 100, 3), 214, np.uint8)
    cv2.imwrite(str(tmp_path / "b.png"), empty)
    lost = {"exact": 0, "other": 4}

    class Finder:
        def __init__(self, model: Any, choice: Any) -> None:
            self.card, self._lost = model.card, lost[model.name]

        def find(self, source: Any, um_per_px: float) -> Any:
            number = len(drawing.discs) - self._lost if source.size_wh[0] == 600 else 0
            return SimpleNamespace(kinds=np.array(["rbc"] * number))

    monkeypatch.setattr(quantising, "Detector", Finder)
    models: Any = [SimpleNamespace(card=make_card(), name=name) for name in lost]
    pictures = [(tmp_path / "a.png", 0.16), (tmp_path / "b.png", 0.16)]
    found = compare(models[0], models[1], pictures)
    total = len(drawing.discs)
    assert found.counts["rbc"] == (total, total - 4)
    assert (found.pictures, found.cells, found.same) == (2, total, 0.5)
    assert found.apart == pytest.approx(4 / total)
    assert compare(models[0], models[0], pictures).apart == 0


def _reds_and_blues(folder: Path, number: int, side: int = SIDE) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for row in range(number):
        pixels = rng.integers(0, 60, (side, side, 3), np.uint8)
        pixels[..., 0 if row % 2 else 2] += rng.integers(60, 190, dtype=np.uint8)
        cv2.imwrite(str(folder / f"{row:03}.png"), pixels)
    return folder


def _toy_network() -> Any:
    """Two convolutions that tell red from blue: logits `(B, 2)` and features `(B, 8)`."""
    quiet_openvino()
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(1)
    pixels = ops.parameter([-1, 3, SIDE, SIDE], np.float32, name="pixels")
    first = rng.normal(0, 0.02, (8, 3, 3, 3)).astype(np.float32)
    first[0, 0, 1, 1] = first[1, 2, 1, 1] = 1
    second = rng.normal(0, 0.02, (8, 8, 3, 3)).astype(np.float32)
    second[0, 0, 1, 1] = second[1, 1, 1, 1] = 1
    value: Any = pixels
    for weights in (first, second):
        value = ops.relu(ops.convolution(value, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
    features = ops.reduce_mean(value, np.array([2, 3]), keep_dims=False)
    head = np.zeros((2, 8), np.float32)
    head[0, 0] = head[1, 1] = 9
    return openvino.Model([ops.matmul(features, head, False, True), features], [pixels], "toy")


@pytest.fixture
def toy(tmp_path: Path) -> Model:
    """A classifier of red and blue squares, with its card, OpenVINO files and probe."""
    import openvino

    folder = tmp_path / "toy"
    folder.mkdir()
    network = _toy_network()
    openvino.save_model(network, folder / "model.xml", compress_to_fp16=False)
    pixels = np.random.default_rng(2).random((2, 3, SIDE, SIDE), np.float32)
    expected = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels])[0]
    stream = io.BytesIO()
    np.savez_compressed(stream, pixels=pixels, expected=expected)
    (folder / "probe.npz").write_bytes(stream.getvalue())
    files = {}
    for name, runtime in (("model.xml", "openvino"), ("model.bin", "openvino"), ("probe.npz", "probe")):
        content = (folder / name).read_bytes()
        files[name] = {"runtime": runtime, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    card = {
        **{"id": "toy", "task": "classifier", "description": "Red or blue.", "codes": ["red", "blue"]},
        **{"mean": [0.0] * 3, "std": [1.0] * 3, "probe_tolerance": 0.01, "licence": "MIT", "intended_use": "tests"},
        **{"limits": [], "training_data": [], "metrics": [], "git_commit": "0", "files": files, "kinds": ["rbc"]},
        **{"patch_um": 12.0, "input_px": SIDE, "temperature": 1.0, "min_label_score": 0.5, "embedding": 8},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return Model(folder)


needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None or not has_int8(), reason="NNCF or the instructions for INT8 are missing"
)


@needs_nncf
@pytest.mark.filterwarnings("ignore")
def test_an_int8_version_is_a_checked_copy(toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantising, "LEAST_CELLS", 10)
    unmeasured = "Not measured yet: run `smearcount evaluate classifier`."
    update_card(toy.folder, limits=(unmeasured,))
    toy = Model(toy.folder)
    samples = samples_in(_reds_and_blues(tmp_path / "in", 60, 8), toy)
    (toy.folder / "split.csv").write_text("split,picture_sha256,group_sha256\n")
    folder, agreements = quantise(toy, samples, tmp_path / "out")
    assert (folder / "split.csv").is_file()
    assert folder == tmp_path / "out" / "toy-int8"
    made = Model(folder)
    assert (made.card.id, made.card.precision) == ("toy-int8", "int8")
    assert sorted(made.verify()) == ["model.bin", "model.xml", "probe.npz"]
    assert b"FakeQuantize" in made.read("model.xml")
    assert b"FakeQuantize" not in toy.read("model.xml")
    for each in agreements:
        assert (each.pictures, each.counts, each.apart) == (12, {"red": (6, 6), "blue": (6, 6)}, 0)
    assert {metric.value for metric in made.card.metrics} == {1.0}
    assert made.card.limits == (unmeasured, "Figures against labels are those of toy; INT8 was compared with it.")
    assert "12 pictures not used to calibrate" in made.card.metrics[0].data
    assert quantise(toy, samples, tmp_path / "out")[0] == folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"toy-int8: holds files that are not on its card, such as notes\.txt"):
        quantise(toy, samples, tmp_path / "out")
    with pytest.raises(UsageError, match="INT8 version already"):
        quantise(made, samples, tmp_path / "out")

    monkeypatch.setattr(quantising, "MOST_APART", -1.0)
    with pytest.raises(ModelError, match="not written"):
        quantise(toy, samples, tmp_path / "none")
    monkeypatch.setattr(quantising, "LEAST_CELLS", 200)
    with pytest.raises(UsageError, match="too few to compare"):
        quantise(toy, samples, tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_without_the_instructions_there_is_no_int8(toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantising, "has_int8", lambda: False)
    with pytest.raises(RuntimeMissingError, match="no instructions for INT8"):
        quantise(toy, Samples((), ()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert as_yaml(toy.card)["precision"] == "f32"
