"""The changes of `evaluate conditions` and `evaluate magnification` do to pixels what their names say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from smearcount.cards import find_model
from smearcount.evaluation import conditions
from smearcount.evaluation.conditions import CONDITIONS, MAGNIFICATIONS, spread_fields
from smearcount.records import Detections

FLAT = np.full((120, 160, 3), 180, np.uint8)
FIELD = np.random.default_rng(0).integers(60, 220, (120, 160, 3), np.uint8)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_changes_a_field_and_leaves_its_size_and_the_original(name: str) -> None:
    before = FIELD.copy()
    changed = CONDITIONS[name](FIELD)
    assert (changed.shape, changed.dtype) == (FIELD.shape, np.uint8)
    assert (changed != FIELD).any()
    np.testing.assert_array_equal(FIELD, before)
    np.testing.assert_array_equal(CONDITIONS[name](FIELD), changed)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("brightness times 0.45", (81, 81, 81)),
        ("brightness times 1.25", (225, 225, 225)),
        ("yellow light", (180, 144, 90)),
        ("blue light", (135, 153, 198)),
        ("contrast times 0.4", (192, 192, 192)),
        ("contrast times 1.6", (168, 168, 168)),
        ("grey", (180, 180, 180)),
        ("sharpened", (180, 180, 180)),
        ("blurred by 2 px", (180, 180, 180)),
    ],
)
def test_an_even_field_becomes_the_level_of_its_condition(name: str, level: tuple[int, ...]) -> None:
    np.testing.assert_allclose(CONDITIONS[name](FLAT), np.broadcast_to(level, FLAT.shape), atol=1)


def test_light_falls_towards_the_corners_and_what_is_cut_round_keeps_its_middle() -> None:
    dimmed = CONDITIONS["light falls to 0.4 in the corners"](FLAT)
    assert (dimmed[60, 80, 0], dimmed[0, 0, 0]) == (pytest.approx(180, abs=1), pytest.approx(0.4 * 180, abs=3))
    for name, surround in (("through an eyepiece", 0), ("cut out round on white", 255)):
        cut = CONDITIONS[name](FIELD)
        assert (cut[0, 0] == surround).all()
        np.testing.assert_array_equal(cut[20:100, 30:130], FIELD[20:100, 30:130])


def test_noise_blur_and_sharpening_have_their_strength() -> None:
    noise = CONDITIONS["noise of 12 grey levels"](FLAT).astype(float) - 180
    assert noise.std() == pytest.approx(12, rel=0.03)
    edge = FLAT.copy()
    edge[:, 80:] = 120
    # A normal distribution holds 68 % within one standard deviation on either side.
    profile = CONDITIONS["blurred by 2 px"](edge)[60, :, 0]
    assert profile[77] - profile[81] == pytest.approx(0.68 * 60, abs=3)
    sharp = CONDITIONS["sharpened"](edge)[60, :, 0]
    assert int(sharp.max()) - int(sharp.min()) > 1.3 * 60


@pytest.mark.parametrize("name", MAGNIFICATIONS)
def test_a_magnification_changes_the_size_alone(name: str) -> None:
    factor = float(name.removesuffix("x"))
    larger = MAGNIFICATIONS[name](FLAT)
    assert larger.shape == (round(120 * factor), round(160 * factor), 3)
    assert np.abs(larger.astype(int) - 180).max() <= 1


def test_over_no_cells_nothing_is_told(cells: Callable[..., Detections]) -> None:
    """Fields of two red cells, of which a runtime finds one, with neither white cells nor platelets."""
    two, one = cells([[10, 10, 40, 40], [60, 60, 90, 90]]), cells([[10, 10, 40, 40]])
    told = conditions._compared([two, two], [two, one])
    assert {kind: told[f"{kind} over reference"] for kind in ("rbc", "wbc", "platelet")} == {
        **{"rbc": 0.75, "wbc": None, "platelet": None}
    }
    assert told["fields with the same counts"] == 0.5
    empty = conditions._against_plain(np.array([[0.0, 0, 0, 0, 1], [0, 3, 0, 0, 1]]))
    assert (empty["red cells over plain"], empty["mean absolute difference a field"]) == (None, 1.5)


def test_a_model_without_weights_for_pytorch_is_compared_in_openvino() -> None:
    names = [list(conditions._others(find_model(model))) for model in ("cells-yolo11-p4", "cells-yolo11-p4-int8")]
    assert names == [["openvino bf16", "torch f32"], ["openvino bf16"]]


@pytest.mark.parametrize(("number", "expected"), [(40, [10, 10, 10, 3]), (10, [3, 3, 2, 2]), (3, [1, 1, 1])])
def test_every_look_has_as_many_fields(monkeypatch: pytest.MonkeyPatch, number: int, expected: list[int]) -> None:
    looks = {"a": 30, "b": 20, "c": 12, "d": 3}
    fields = [SimpleNamespace(source=look, row=row) for look, n in looks.items() for row in range(n)]
    monkeypatch.setattr(conditions, "labelled_fields", lambda *_: fields)
    chosen = spread_fields(["any"], number)
    assert list(Counter(field.source for field in chosen).values()) == expected
    rows = [field.row for field in chosen if field.source == "a"]
    assert rows[0] == 0
    assert len(rows) == 1 or rows[-1] == 29
