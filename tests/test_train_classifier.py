from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score

from smearcount.arrays import Bools, Doubles, Indices
from smearcount.calibration import fit_temperature
from smearcount.cards import Model
from smearcount.cellsets import CellSet
from smearcount.config import read_model, shipped
from smearcount.errors import ConfigError, ModelError, UsageError
from smearcount.judging import Judged, figures
from smearcount.naming_heads import BACKBONES, NetSpec
from smearcount.naming_nets import build_net
from smearcount.patches import to_batch
from smearcount.training import naming_data
from smearcount.training.cell_views import CellAugmentation, plain_view
from smearcount.training.classifier import train_classifier
from smearcount.training.naming_cells import CellData
from smearcount.training.naming_data import balance_weights, epoch_rows
from smearcount.training.naming_module import (
    NamingModule,
    make_optimiser,
    make_schedule,
    partial_losses,
    validation_figures,
)
from smearcount.training.naming_recipe import Balance, ClassifierRecipe, EarlyStop, NetChoice, Optimiser, Phase
from smearcount.training.naming_setting import find_rate, quiet_lightning, steepest
from smearcount.training.packaging import package_naming_run

PATCH_UM = 9.6
LEFT = {"model.safetensors", "architecture.yaml", "history.csv", "losses.png", "summary.json", "train.log"}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rendered_cells(n: int = 32) -> CellSet:
    """Discs of three sizes and colours on a noisy background; every fourth is kept for validation."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    windows = []
    for label in labels:
        window = rng.normal(212, 4, (40, 40, 3)).astype(np.uint8)
        windows.append(
            cv2.circle(window, (20, 20), (5, 9, 13)[label], ((180, 90, 110), (90, 60, 150), (40,) * 3)[label], -1)
        )
    names = np.array([f"c{i}" for i in range(n)])
    return CellSet(
        pixels=tuple(windows),
        um_per_px=np.full(n, 0.3, np.float32),
        targets=np.eye(3, dtype=bool)[labels],
        codes=("small", "middle", "large"),
        sources=np.full(n, "drawn"),
        groups=names,
        splits=np.where(np.arange(n) % 4, "train", "val"),
        origins=names,
    )


def recipe(backbone: str = "lenet5", **changes: Any) -> ClassifierRecipe:
    values: dict[str, Any] = {
        **{"net": {"backbone": backbone, "input_px": 32}, "patch_um": PATCH_UM, "seed": 3, "accelerator": "cpu"},
        **{"phases": [phase()], "optimiser": {"kind": "sgd", "weight_decay": 0.0}},
    }
    return ClassifierRecipe.model_validate({**values, **changes})


def phase(**changes: Any) -> dict[str, Any]:
    return {"name": "all", "body": "trained", "epochs": 1, "learning_rate": 0.01, "batch": 8, **changes}


def history(run: Path) -> list[dict[str, Any]]:
    with (run / "history.csv").open(newline="") as stream:
        return [{k: v if k == "phase" else float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def answers(run: Path, cells: CellSet, window_um: float = PATCH_UM) -> torch.Tensor:
    """Logits of the validation cells by the files of the run alone."""
    spec = NetSpec.model_validate(yaml.safe_load((run / "architecture.yaml").read_text()))
    net = build_net(spec)
    net.load_state_dict(load_file(run / "model.safetensors"))
    net.eval()
    val, said = cells.split("val"), summary(run)
    views = [plain_view(window, 0.3, window_um, spec.input_px) for window in val.pixels]
    with torch.inference_mode():
        logits, _ = net(torch.from_numpy(to_batch(views, tuple(said["mean"]), tuple(said["std"]))))
    return logits


@pytest.mark.parametrize("backbone", BACKBONES)
def test_three_steps_of_every_backbone(backbone: str, tmp_path: Path) -> None:
    cells = rendered_cells()
    run = train_classifier(recipe(backbone), cells, tmp_path / "run")
    assert {path.name for path in run.iterdir()} == LEFT
    torch.manual_seed(3)
    before = build_net(NetSpec(backbone=backbone, codes=3, input_px=32)).state_dict()
    after = load_file(run / "model.safetensors")
    assert all(
        not torch.equal(before[key], after[key]) for key in after if key.endswith("weight") and before[key].ndim > 1
    )
    logits, truth = answers(run, cells), cells.split("val").targets
    said = summary(run)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth.argmax(1)))
    assert said["valid_loss"] == pytest.approx(float(loss), rel=1e-3)
    assert said["accuracy"] == pytest.approx((logits.argmax(1).numpy() == truth.argmax(1)).mean())
    assert said["temperature"] == pytest.approx(fit_temperature(logits.numpy(), truth), rel=1e-2)
    assert (said["codes"], said["epochs"], said["cells"]) == (list(cells.codes), 1, {"train": 24, "val": 8})
    assert said["seconds_per_cell"] > 0


@pytest.mark.filterwarnings("ignore")  # of the exporter, about its own future
def test_cells_are_judged_in_the_window_of_the_finished_classifier(tmp_path: Path) -> None:
    """What was learned is the same, whatever the window is in which it is judged."""
    cells, said = rendered_cells(), {}
    for named_um in (None, 0.8 * PATCH_UM):
        run = train_classifier(recipe(named_um=named_um), cells, tmp_path / f"{named_um}")
        logits = answers(run, cells, named_um or PATCH_UM)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(cells.split("val").targets.argmax(1)))
        said[named_um] = summary(run)["valid_loss"], load_file(run / "model.safetensors")
        assert said[named_um][0] == pytest.approx(float(loss), rel=1e-3)
        card = Model(package_naming_run(run, "own", None, ("rbc",))).classifier_card
        assert card.patch_um == pytest.approx(named_um or PATCH_UM)
    (plain, first), (nearer, second) = said.values()
    assert plain != nearer
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a body of LeNet-5, to start from."""
    file = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    save_file(build_net(NetSpec(backbone="lenet5", codes=2, input_px=32)).body.state_dict(), file)
    return file


def eventful(body: Path, **changes: Any) -> ClassifierRecipe:
    """Everything that has a state or chance of its own: dropout, BatchNorm, momentum, averages, mixing, turning."""
    frozen = phase(name="frozen", body="frozen", epochs=2, find_rate=True)
    trained = phase(epochs=3, learning_rate=0.02, body_rate_first=1e-4, body_rate_last=1e-2)
    return recipe(
        net={"backbone": "lenet5", "input_px": 32, "head": "thesis"},
        phases=[frozen, trained],
        pretrained=str(body),
        **{"optimiser": {"kind": "adamw"}, "balance": {"kind": "undersample"}, "mixup": 0.3, "ema": 0.8},
        **{"early_stopping": {"monitor": "valid_loss", "patience": 9}, "cells_per_epoch": 21},
        **{"augmentation": {"flip": 0.5, "rotate": 1.0, "light_share": 1.0, "brightness": 0.2, "noise_share": 0.5}},
        **changes,
    )


class Interrupted(Exception):
    """Stands for a power cut."""


def test_a_run_interrupted_in_every_epoch_gives_the_same_weights(body: Path, tmp_path: Path) -> None:
    cells, seen = rendered_cells(), set()

    def cut_once(line: str) -> None:
        if "train_loss" in line and line.split("train_loss")[0] not in seen:
            seen.add(line.split("train_loss")[0])
            raise Interrupted

    for _ in range(5):
        with pytest.raises(Interrupted):
            train_classifier(eventful(body), cells, tmp_path / "cut", report=cut_once)
        assert not (tmp_path / "cut" / "summary.json").exists()
    train_classifier(eventful(body), cells, tmp_path / "cut", report=cut_once)
    train_classifier(eventful(body), cells, tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {path.name for path in (tmp_path / "cut").iterdir()} == LEFT | {"lr_find.png"}
    for row, other in zip(history(tmp_path / "cut"), history(tmp_path / "whole"), strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    assert "resumed after epoch 2" in (tmp_path / "cut" / "train.log").read_text()
    again = train_classifier(eventful(body, seed=4), cells, tmp_path / "other")
    assert not torch.equal(load_file(again / "model.safetensors")["head.decide.2.weight"], ours["head.decide.2.weight"])


def test_a_cut_within_an_epoch_and_more_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, whole = (
        rendered_cells(),
        train_classifier(recipe(phases=[phase(epochs=3)]), rendered_cells(), tmp_path / "whole"),
    )
    made = []
    with monkeypatch.context() as patch:

        def fails(*given: Any) -> Any:
            made.append(1)
            if len(made) == 60:
                raise Interrupted
            return real(*given)

        real = naming_data.augmented_view
        patch.setattr(naming_data, "augmented_view", fails)
        with pytest.raises(Interrupted):
            train_classifier(recipe(phases=[phase(epochs=3)]), cells, tmp_path / "cut")
    resumed = train_classifier(recipe(phases=[phase(epochs=3)], workers=3), cells, tmp_path / "cut")
    ours, theirs = load_file(resumed / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def told_to_stop(out: Path) -> None:
    """Train until SIGTERM comes after the second epoch; ends with 130 where that is an interruption."""

    def stop(line: str) -> None:
        if "epoch 2/3" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train_classifier(recipe(phases=[phase(epochs=3)]), rendered_cells(), out, report=stop)
    except KeyboardInterrupt:
        sys.exit(130 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else 1)


def test_a_scheduler_that_stops_a_training_is_not_told_that_it_is_finished(tmp_path: Path) -> None:
    """SIGTERM ends it like Ctrl-C, and the next call goes on."""
    process = multiprocessing.get_context("spawn").Process(target=told_to_stop, args=(tmp_path / "cut",))
    process.start()
    process.join()
    assert process.exitcode == 130
    assert not (tmp_path / "cut" / "summary.json").exists()
    runs = [
        train_classifier(recipe(phases=[phase(epochs=3)]), rendered_cells(), tmp_path / name)
        for name in ("cut", "whole")
    ]
    ours, theirs = (load_file(run / "model.safetensors") for run in runs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_training_that_comes_apart_is_stopped_with_the_remedy(tmp_path: Path) -> None:
    wild = phase(epochs=9, learning_rate=10.0, schedule="constant")
    lines = list[str]()
    with pytest.raises(ConfigError, match="came apart in epoch .*lower learning_rate"):
        train_classifier(
            recipe("alexnet", phases=[wild], optimiser={"kind": "sgd", "momentum": 0.99}),
            rendered_cells(),
            tmp_path,
            report=lines.append,
        )
    assert "nan" in lines[-1]
    assert len(lines) < 9
    assert not (tmp_path / "summary.json").exists()


def test_a_finished_run_is_kept_and_another_refused(tmp_path: Path) -> None:
    cells, lines = rendered_cells(), list[str]()
    train_classifier(recipe(), cells, tmp_path / "run")
    train_classifier(recipe(workers=2, data={"folder": "elsewhere"}), cells, tmp_path / "run", report=lines.append)
    assert lines == []
    with pytest.raises(UsageError, match="another recipe or of other cells"):
        train_classifier(recipe(seed=9), cells, tmp_path / "run")
    with pytest.raises(UsageError, match="another recipe or of other cells"):
        train_classifier(recipe(), cells.take(np.arange(31)), tmp_path / "run")


def test_training_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_classifier(recipe(phases=[phase(find_rate=True)]), rendered_cells(), tmp_path / "run")
    assert capfd.readouterr() == ("", "")


def test_a_frozen_body_keeps_the_pretrained_weights(tmp_path: Path) -> None:
    name = "mobilenet_v3_small"
    body = build_net(NetSpec(backbone=name, codes=2, input_px=32)).body.state_dict()
    save_file(body, tmp_path / "body.safetensors")
    frozen = {"phases": [phase(body="frozen")], "pretrained": str(tmp_path / "body.safetensors")}
    exact = load_file(
        train_classifier(recipe(name, **frozen, recalibrate=0), rendered_cells(), tmp_path / "exact")
        / "model.safetensors"
    )
    assert all(torch.equal(exact[f"body.{key}"], value) for key, value in body.items())
    fitted = load_file(
        train_classifier(recipe(name, **frozen), rendered_cells(), tmp_path / "fitted") / "model.safetensors"
    )
    changed = {key for key, value in body.items() if not torch.equal(fitted[f"body.{key}"], value)}
    assert changed
    assert all(body[key].ndim == 1 for key in changed)
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        train_classifier(recipe(name, pretrained="missing.safetensors"), rendered_cells(), tmp_path / "missing")


def test_a_body_that_starts_from_nothing_learns_in_every_phase_at_the_rate_of_the_head(tmp_path: Path) -> None:
    """Whatever the phases say, which were written for pretrained weights."""
    frozen = phase(name="frozen", body="frozen", epochs=2, schedule="constant")
    tuned = phase(body_rate_first=1e-6, body_rate_last=1e-5, schedule="constant")
    run = train_classifier(recipe(phases=[frozen, tuned]), rendered_cells(), tmp_path / "run")
    assert {(row["body_rate"], row["learning_rate"]) for row in history(run)} == {(0.01, 0.01)}
    plain = [phase(name=name, epochs=n, schedule="constant") for name, n in (("frozen", 2), ("all", 1))]
    same = train_classifier(recipe(phases=plain), rendered_cells(), tmp_path / "same")
    ours, theirs = (load_file(each / "model.safetensors") for each in (run, same))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    torch.manual_seed(3)
    before = build_net(NetSpec(backbone="lenet5", codes=3, input_px=32)).state_dict()
    assert not any(torch.equal(ours[key], before[key]) for key in ours)
    told = "no pretrained weights: all layers learn in every phase, at the rate of the head"
    assert (run / "train.log").read_text().splitlines()[0] == told
    assert [each["body"] for each in summary(run)["recipe"]["phases"]] == ["trained", "trained"]


def test_early_stopping_stops_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    # No schedule and a rate at which nothing moves: the first epoch stays the best one.
    still = recipe(
        phases=[phase(epochs=20, learning_rate=1e-12, schedule="constant")],
        early_stopping={"monitor": "macro_f1", "patience": 2},
    )
    run = train_classifier(still, rendered_cells(), tmp_path / "still")
    assert len(history(run)) == summary(run)["epochs"] == 3
    assert summary(run)["phases"][0]["epoch"] == 1
    # A rate that is far too high: losses go up and down.
    wild = recipe(
        phases=[phase(epochs=12, learning_rate=0.7, schedule="constant")],
        early_stopping={"monitor": "valid_loss", "patience": 3},
        label_smoothing=0.1,
    )
    run = train_classifier(wild, rendered_cells(), tmp_path / "wild")
    losses = [row["valid_loss"] for row in history(run)]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    assert len(losses) == min(best + 1 + 3, 12)
    assert summary(run)["valid_loss"] == pytest.approx(losses[best], rel=1e-4)
    assert summary(run)["phases"][0]["epoch"] == best + 1


def test_another_size_in_the_last_phase(tmp_path: Path) -> None:
    sized = recipe("mobilenet_v3_small", phases=[phase(name="a"), phase(name="b", input_px=48)], precision="bf16-mixed")
    run = train_classifier(sized, rendered_cells(), tmp_path / "run")
    assert yaml.safe_load((run / "architecture.yaml").read_text())["input_px"] == summary(run)["input_px"] == 48
    assert [row["phase"] for row in history(run)] == ["a", "b"]
    with pytest.raises(ValueError, match="fits one size only"):
        recipe(phases=[phase(name="a"), phase(name="b", input_px=48)])


def test_cells_that_may_be_several_things_are_learned_from(tmp_path: Path) -> None:
    cells = rendered_cells()
    targets = cells.targets.copy()
    targets[::5] |= np.array([True, True, False])
    coarse = CellSet(
        *(cells.pixels, cells.um_per_px, targets, cells.codes, cells.sources, cells.groups, cells.splits, cells.origins)
    )
    run = train_classifier(recipe(balance={"kind": "class_weights"}), coarse, tmp_path / "run")
    logits, val = answers(run, cells), coarse.split("val")
    assert summary(run)["valid_loss"] == pytest.approx(
        float(np.mean(slow_losses(logits.numpy(), val.targets))), rel=1e-3
    )
    right = (logits.argmax(1).numpy() == val.labels)[val.exact]
    assert summary(run)["accuracy"] == pytest.approx(right.mean())


def slow_losses(logits: npt.NDArray[Any], targets: Bools) -> list[float]:
    losses = []
    for row, allowed in zip(logits.astype(float), targets, strict=True):
        probs = [math.exp(z) / sum(math.exp(other) for other in row) for z in row]
        losses.append(-math.log(sum(p for p, may in zip(probs, allowed, strict=True) if may)))
    return losses


def test_partial_losses_against_a_slow_version() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 3, (40, 5)).astype(np.float32), rng.random((40, 5)) < 0.4
    targets[np.arange(40), rng.integers(0, 5, 40)] = True
    found = partial_losses(torch.from_numpy(logits), torch.from_numpy(targets))
    np.testing.assert_allclose(found.numpy(), slow_losses(logits, targets), rtol=1e-4, atol=1e-6)
    # Smoothing changes exact labels only, and as PyTorch does it.
    smooth = partial_losses(torch.from_numpy(logits), torch.from_numpy(targets), 0.2).numpy()
    exact = targets.sum(1) == 1
    assert exact.any()
    assert not exact.all()
    np.testing.assert_array_equal(smooth[~exact], found.numpy()[~exact])
    labels = torch.from_numpy(targets[exact].argmax(1))
    usual = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[exact]), labels, reduction="none", label_smoothing=0.2
    )
    np.testing.assert_allclose(smooth[exact], usual.numpy(), rtol=1e-5)


def test_all_codes_allowed_is_no_loss_and_no_gradient() -> None:
    logits = torch.tensor([[1.0, -30.0, 4.0], [80.0, 0.0, -80.0]], requires_grad=True)
    losses = partial_losses(logits, torch.ones(2, 3, dtype=torch.bool))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_weighted_loss_is_that_of_pytorch() -> None:
    weights = np.array([0.5, 1.0, 1.5], np.float32)
    net = build_net(NetSpec(backbone="lenet5", codes=3, input_px=32))
    module = NamingModule(net, recipe(), recipe().phases[0], weights)
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    usual = torch.nn.functional.cross_entropy(logits, labels, torch.from_numpy(weights))
    assert float(module.loss(logits, torch.eye(3, dtype=torch.bool)[labels])) == pytest.approx(float(usual), rel=1e-5)


def counts_of(*sizes: int, coarse: int = 0) -> Bools:
    exact = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=0)
    return np.concatenate([exact, np.ones((coarse, len(sizes)), bool)])


def test_balance_weights_have_their_closed_forms() -> None:
    targets = counts_of(1, 2, 4, 0, coarse=3)
    assert balance_weights(targets, Balance()).tolist() == [1, 1, 1, 1]
    inverse = balance_weights(targets, Balance(kind="class_weights"))
    np.testing.assert_allclose(inverse, [12 / 7, 6 / 7, 3 / 7, 1], rtol=1e-6)
    flat = balance_weights(targets, Balance(kind="effective_number", beta=0))
    np.testing.assert_allclose(flat, 1, rtol=1e-6)
    # 0.1 / (1 - 0.9 ** n) for n of 1, 2 and 4: 1, 1 / 1.9 and 1 / 3.439.
    effective = balance_weights(targets, Balance(kind="effective_number", beta=0.9))
    expected = np.array([1, 1 / 1.9, 1 / 3.439])
    np.testing.assert_allclose(effective[:3], expected / expected.mean(), rtol=1e-5)
    nearly = balance_weights(targets, Balance(kind="effective_number", beta=0.999999))
    np.testing.assert_allclose(nearly, inverse, rtol=1e-3)


def test_a_code_without_a_labelled_cell_has_no_part_in_macro_f1() -> None:
    """As in the report: of four codes the last is given once, but no validation cell is one."""
    truth, named = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 3, 1, 0, 2])
    logits, targets = torch.eye(4)[named], torch.eye(4)[truth].bool()
    found = validation_figures(logits, targets)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, named, labels=[0, 1, 2], average="macro"))
    probs = torch.softmax(logits, dim=1).numpy()
    cells = (np.array(["cell"] * 6), np.array(["own"] * 6), np.zeros((6, 4, 4, 3), np.uint8))
    assert figures(Judged(probs, targets.numpy(), ("a", "b", "c", "d"), *cells))["macro_f1"]["value"] == pytest.approx(
        found["macro_f1"]
    )


def test_epochs_are_balanced() -> None:
    targets = counts_of(3, 7, 20, coarse=5)
    strata = np.where(targets.sum(1) > 1, 3, targets.argmax(1))

    def shown(kind: str, n: int | None = None, seed: int = 0) -> Indices:
        return epoch_rows(targets, kind, n, np.random.default_rng(seed))

    assert sorted(shown("none").tolist()) == list(range(35))
    assert shown("none").tolist() != list(range(35))
    over = shown("oversample")
    assert np.bincount(strata[over]).tolist() == [20, 20, 20, 5]
    assert set(np.bincount(over)[:3].tolist()) <= {6, 7}
    under = shown("undersample")
    assert np.bincount(strata[under]).tolist() == [3, 3, 3, 3]
    assert len(set(under.tolist())) == 12
    assert len(set(np.concatenate([shown("undersample", seed=seed) for seed in range(60)]).tolist())) == 35
    few, many = shown("none", 10), shown("none", 80)
    assert len(set(few.tolist())) == 10
    assert sorted(np.bincount(many, minlength=35).tolist())[0] == 2
    assert len(many) == 80


def test_no_batch_of_a_single_cell() -> None:
    cells = rendered_cells()
    for batch, shown in ((23, 23), (8, 24), (7, 24)):
        data = naming_data.NamingData(cells, recipe(), Phase.model_validate(phase(batch=batch)), NORMAL)
        sizes = [len(views) for views, _ in data.train_dataloader()]
        assert sum(sizes) == shown
        assert min(sizes) > 1


NORMAL = naming_data.Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def rates(kind: str, schedule: str, steps: int = 40) -> Doubles:
    """`(steps, groups)` learning rates of a ResNet, first layers first, head last."""
    net = build_net(NetSpec(backbone="resnet18", codes=3, input_px=32))
    stretch = Phase(
        **{"name": "all", "body": "trained", "epochs": 1, "learning_rate": 1e-2, "schedule": schedule},
        **{"body_rate_first": 1e-6, "body_rate_last": 1e-4},
    )
    choice = Optimiser.model_validate({"kind": kind})
    optimiser = make_optimiser(net, stretch, choice)
    plan = make_schedule(optimiser, stretch, choice, steps)
    table = []
    for _ in range(steps):
        table.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        if plan:
            plan.step()
    return np.array(table)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "rmsprop"])
def test_one_cycle_rises_then_falls_and_layers_lie_in_order(kind: str) -> None:
    table = rates(kind, "one_cycle")
    top = int(table[:, -1].argmax())
    assert top == 11
    assert (np.diff(table[: top + 1], axis=0) > 0).all()
    assert (np.diff(table[top:], axis=0) < 0).all()
    np.testing.assert_allclose(table[top], [*np.geomspace(1e-6, 1e-4, 5), 1e-2])
    assert (np.diff(table, axis=1) > 0).all()
    np.testing.assert_allclose(table[0], table[top] / 25)


def test_other_schedules() -> None:
    assert (rates("sgd", "constant") == rates("sgd", "constant")[0]).all()
    cosine = rates("sgd", "cosine")[:, -1]
    np.testing.assert_allclose(cosine, 0.005 * (1 + np.cos(np.pi * np.arange(40) / 40)))


def test_the_steepest_fall_is_found() -> None:
    found = np.geomspace(1e-7, 1, 90)
    fall = 1 / (1 + np.exp(3 * (np.log10(found) + 3)))
    at = steepest(found, fall)
    assert at is not None
    assert abs(math.log10(at) + 3) < 0.06
    broken = fall.copy()
    broken[-20:] = np.nan
    assert steepest(found, broken) == at
    assert steepest(found, found) is None
    assert steepest(found, np.full(90, np.inf)) is None


class _Level(pl.LightningModule):
    """A network whose loss is 2 whatever is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any) -> torch.Tensor:
        return 2 + 0 * self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_curve_of_a_level_loss_is_level(tmp_path: Path) -> None:
    places = {"default_root_dir": tmp_path, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(**places, max_epochs=-1, enable_checkpointing=False, enable_model_summary=False)
    data: Any = pl.LightningDataModule.from_datasets(list(range(150)), num_workers=0)
    level: Any = _Level()
    with quiet_lightning():
        found = find_rate(trainer, level, data)
    assert len(found["losses"]) > 80
    assert found["losses"] == pytest.approx([2.0] * len(found["losses"]), abs=1e-6)


def test_a_found_rate_is_used_for_all_layers(body: Path, tmp_path: Path) -> None:
    searching = recipe(
        pretrained=str(body),
        phases=[
            phase(find_rate=True, schedule="constant", learning_rate=1e-3, body_rate_first=1e-5, body_rate_last=1e-4)
        ],
    )
    killed = tmp_path / "run" / ".lr_find_of-a-search-that-was-killed.ckpt"
    killed.parent.mkdir()
    killed.touch()
    run = train_classifier(searching, rendered_cells(), tmp_path / "run")
    assert not killed.exists()
    (row,) = history(run)
    assert 1e-7 < row["learning_rate"] < 1
    assert row["learning_rate"] != 1e-3
    assert row["body_rate"] == pytest.approx(row["learning_rate"] / 100)
    assert f"learning rate {row['learning_rate']:.3g} found" in (run / "train.log").read_text()
    assert (run / "lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_what_can_not_be_trained_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = rendered_cells()
    with pytest.raises(UsageError, match="validation cell"):
        train_classifier(recipe(), cells.split("train"), tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        train_classifier(recipe(precision="16-mixed"), cells, tmp_path)
    one = replace(cells, codes=("round",), targets=np.ones((len(cells), 1), bool))
    with pytest.raises(ConfigError, match="expected cells of two codes at least, got round"):
        train_classifier(recipe(), one, tmp_path)
    for wrong, reason in (
        ({"phases": [phase(), phase()]}, "a name of its own"),
        ({"phases": [phase(body="frozen", body_rate_first=1e-5, body_rate_last=1e-4)]}, "frozen body"),
        ({"phases": [phase(body_rate_first=1e-5)]}, "give both"),
        ({"net": {"backbone": "resnet19", "input_px": 32}}, "resnet19|resnet18"),
        ({"patience": 3}, "Extra inputs"),
        ({"devices": 0}, "devices.*\n.*greater than 0"),
        ({"std": [0.2, 0, 0.2]}, r"std\.1\n.*greater than 0"),
        ({"std": [0.2, 0.2, -0.1]}, r"std\.2\n.*greater than 0"),
        ({"std": [float("inf"), 0.2, 0.2]}, r"std\.0\n.*finite"),
        ({"mean": [124, 0.4, 0.4]}, r"mean\.0\n.*less than or equal to 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            recipe(**wrong)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_refused(tmp_path: Path, accelerator: str) -> None:
    with pytest.raises(ConfigError, match=f"accelerator: {accelerator}, devices: auto: not on this machine"):
        train_classifier(recipe(accelerator=accelerator), rendered_cells(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "part", [ClassifierRecipe, NetChoice, Optimiser, Phase, Balance, EarlyStop, CellData, CellAugmentation]
)
def test_the_recipe_of_the_thesis_explains_every_key(part: type[BaseModel]) -> None:
    """As what it sets, or as a comment that can be uncommented."""
    text = (shipped("configs") / "train" / "thesis.yaml").read_text()
    assert [key for key in part.model_fields if not re.search(rf"\b{key}:", text)] == []


def test_what_the_recipe_of_the_thesis_only_mentions_is_valid_too() -> None:
    text = (shipped("configs") / "train" / "thesis.yaml").read_text()
    every = yaml.safe_load(re.sub(r"^( *)# (?=\w+: )", r"\1", text, flags=re.MULTILINE))
    data = {key: value for key, value in every["data"].items() if key not in ("collections", "cells")}
    recipe = ClassifierRecipe.model_validate({**every, "data": data, "net": {**every["net"], "head": "plain"}})
    assert recipe.augmentation.jpeg_share == 0.3
    assert recipe.early_stopping == EarlyStop()
    assert CellData.model_validate(data).painted == 700


def test_the_shipped_recipe_is_that_of_the_thesis() -> None:
    thesis = read_model(ClassifierRecipe, shipped("configs") / "train" / "thesis.yaml")
    frozen, tuned, larger = thesis.phases
    assert (thesis.net.input_px, thesis.net.head, thesis.pretrained) == (224, "thesis", "imagenet")
    assert (frozen.body, frozen.epochs, frozen.schedule, frozen.find_rate) == ("frozen", 20, "one_cycle", True)
    assert (tuned.body, tuned.epochs, tuned.schedule) == ("trained", 5, "one_cycle")
    assert (tuned.body_rate_first, tuned.body_rate_last) == (1e-6, 1e-4)
    assert larger.input_px == thesis.input_px == 452
    turned = thesis.augmentation
    assert {turned.flip, turned.rotate, turned.zoom_share, turned.light_share} == {0.75}
    assert (turned.zoom_to, turned.brightness, turned.aspect_sigma) == (1.1, 0.2, 0)
    assert thesis.data["val_share"] == 0.2
