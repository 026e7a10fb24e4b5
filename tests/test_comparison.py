from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.torch import save_file

from smearcount.cellsets import CellSet
from smearcount.config import read_model, shipped
from smearcount.errors import ConfigError
from smearcount.naming_heads import BACKBONES, NetSpec
from smearcount.naming_nets import build_net
from smearcount.training.comparison import COLUMNS, ComparisonRecipe, run_comparison
from smearcount.training.naming_recipe import ClassifierRecipe


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rendered_cells(n: int = 24) -> CellSet:
    """Small and large discs; every fourth is kept for validation."""
    labels, names = np.arange(n) % 2, np.array([f"c{i}" for i in range(n)])
    empty = np.full((40, 40, 3), 212, np.uint8)
    return CellSet(
        pixels=tuple(cv2.circle(empty.copy(), (20, 20), 5 + 8 * int(label), (150, 80, 120), -1) for label in labels),
        um_per_px=np.full(n, 0.3, np.float32),
        targets=np.eye(2, dtype=bool)[labels],
        codes=("small", "large"),
        sources=np.full(n, "drawn"),
        groups=names,
        splits=np.where(np.arange(n) % 4, "train", "val"),
        origins=names,
    )


def comparison(**changes: Any) -> ComparisonRecipe:
    phases = [
        {"name": "frozen", "body": "frozen", "epochs": 1, "learning_rate": 0.01, "batch": 6, "schedule": "constant"},
        {"name": "all", "body": "trained", "epochs": 2, "learning_rate": 0.01, "batch": 6, "schedule": "constant"},
    ]
    net = {"backbone": "resnet18", "input_px": 48}
    values = {
        "base": {"net": net, "patch_um": 9.6, "phases": phases, "accelerator": "cpu", "recalibrate": 0},
        "backbones": [{"backbone": "lenet5", "input_px": 32}, "alexnet"],
        "optimisers": ["adam", {"kind": "sgd", "momentum": 0.5, "rate_factor": 3}],
    }
    return ComparisonRecipe.model_validate({**values, **changes})


def test_an_optimiser_of_the_base_would_do_nothing() -> None:
    base = comparison().base.model_dump(exclude={"optimiser"})
    assert comparison(base=base).optimisers[1].momentum == 0.5
    with pytest.raises(ValueError, match=r"base\.optimiser: has no say; put its keys under `optimisers`"):
        comparison(base={**base, "optimiser": {"weight_decay": 0.1}})


def test_a_factor_for_rates_that_are_all_searched_for_would_do_nothing() -> None:
    base = comparison().base.model_dump(exclude={"optimiser"})
    searched = [{**phase, "find_rate": True} for phase in base["phases"]]
    assert comparison(base={**base, "phases": [searched[0], base["phases"][1]]}).optimisers[1].rate_factor == 3
    with pytest.raises(ValueError, match="rate_factor: has no say, as every phase searches for its rate"):
        comparison(base={**base, "phases": searched})


def table(out: Path) -> list[dict[str, str]]:
    with (out / "comparison.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_comparison_ends_in_a_table_and_a_failure_is_a_row(tmp_path: Path) -> None:
    weights = tmp_path / "alexnet.safetensors"
    weights.write_bytes(b"damaged")
    nets = [{"backbone": "alexnet", "pretrained": str(weights)}, {"backbone": "lenet5", "input_px": 32}]
    config, lines = comparison(backbones=nets), list[str]()
    finished = list[tuple[str, str, str]]()

    def finish(run: Path, recipe: ClassifierRecipe, name: str) -> None:
        finished.append((run.name, recipe.net.backbone, name))

    rows = run_comparison(config, rendered_cells(), tmp_path / "out", report=lines.append, finish=finish)
    assert finished == [(name, "lenet5", name) for name in ("lenet5-32-adam", "lenet5-32-sgd")]
    found = [(row["model"], row["optimiser"], row["phase"], str(row["epochs"])) for row in rows]
    lenet = [("lenet5-32", kind, *part) for kind in ("adam", "sgd") for part in (("frozen", "1"), ("all", "2"))]
    assert found == [("alexnet", "adam", "", ""), ("alexnet", "sgd", "", ""), *lenet]
    assert all("alexnet.safetensors: not a safetensors file" in row["error"] for row in rows[:2])
    assert all(not row["error"] and 0 <= row["accuracy"] <= 1 and row["seconds_per_cell"] > 0 for row in rows[2:])
    assert [tuple(str(row[key]) for key in COLUMNS) for row in rows] == [
        tuple(r.values()) for r in table(tmp_path / "out")
    ]
    shown = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert shown[0] == f"| {' | '.join(COLUMNS)} |"
    assert len(shown) == 2 + len(rows)
    assert f"| {rows[2]['valid_loss']:.4f} |" in shown[4]
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")

    # Run again: what is finished is kept, what failed is tried again.
    save_file(build_net(NetSpec(backbone="alexnet", codes=2, input_px=48)).body.state_dict(), weights)
    lines.clear()
    again = run_comparison(config, rendered_cells(), tmp_path / "out", report=lines.append)
    assert all(line.startswith("alexnet") for line in lines)
    assert len(lines) == 6
    assert again[4:] == rows[2:]
    # What had no pretrained weights was never frozen, and the table says so.
    assert [row["body"] for row in again] == ["frozen", "trained"] * 2 + ["from nothing"] * 4
    assert not any(row["error"] for row in again)


def test_what_can_be_known_beforehand_stops_all_before_the_first_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resnet19-adam: net\.backbone: Input should be"):
        comparison(backbones=["lenet5", "resnet19"])
    with pytest.raises(ValueError, match=r"lenet5-16-adam: net\.input_px"):
        comparison(backbones=[{"backbone": "lenet5", "input_px": 16}])
    with pytest.raises(ValueError, match="lenet5-adam: .*no published weights of lenet5"):
        comparison(backbones=["alexnet", {"backbone": "lenet5", "pretrained": "imagenet"}])
    absent = {"backbone": "alexnet", "pretrained": str(tmp_path / "absent.safetensors")}
    with pytest.raises(ConfigError, match=r"alexnet-adam: pretrained: .*absent\.safetensors: no such file"):
        run_comparison(comparison(backbones=["lenet5", absent]), rendered_cells(), tmp_path / "out")
    one = replace(rendered_cells(), codes=("round",), targets=np.ones((24, 1), bool))
    with pytest.raises(ConfigError, match="lenet5-32-adam: expected cells of two codes"):
        run_comparison(comparison(), one, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_combination_has_its_own_recipe(tmp_path: Path) -> None:
    run_comparison(comparison(backbones=[{"backbone": "lenet5", "input_px": 32}]), rendered_cells(), tmp_path)
    for name, rate in (("lenet5-32-adam", 0.01), ("lenet5-32-sgd", 0.03)):
        with (tmp_path / name / "history.csv").open(newline="") as stream:
            assert {float(row["learning_rate"]) for row in csv.DictReader(stream)} == {rate}
    with pytest.raises(ValueError, match="again"):
        comparison(backbones=["alexnet", "alexnet"])


def test_cells_are_shared_at_the_largest_input_of_all_networks() -> None:
    networks = ["lenet5", {"backbone": "lenet5", "input_px": 48}, {"backbone": "alexnet", "input_px": 64}]
    assert comparison(backbones=networks).largest_input_px == 64
    assert comparison(backbones=[{"backbone": "lenet5", "input_px": 32}]).largest_input_px == 32


def test_the_shipped_comparison_names_known_networks() -> None:
    config = read_model(ComparisonRecipe, shipped("configs") / "train" / "compare.yaml")
    assert {each.backbone for each in config.backbones} <= set(BACKBONES)
    assert {each.kind for each in config.optimisers} == {"adamw", "rmsprop", "sgd"}
