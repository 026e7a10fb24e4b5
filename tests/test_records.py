"""The records refuse what is not parallel, take rows of all fields alike, and add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from conftest import Cells, unasked

from smearcount.records import Counts, Detections, Labels, Scale, SmearResult


def random_cells(cells: Cells, n: int = 12, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 30, (n, 2))], axis=1)
    return cells(boxes, rng.choice(["rbc", "wbc", "platelet"], n).tolist(), rng.uniform(0.3, 1, n))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("boxes", np.zeros((2, 5), np.float32), "boxes"),
        ("boxes", np.zeros((2, 4), np.float64), "float64"),
        ("scores", np.zeros(3, np.float32), r"\(2,\)"),
        ("scores", np.zeros((2, 1), np.float32), "scores"),
        ("kinds", np.array(["rbc"]), "kinds"),
        ("kinds", np.array(["rbc", "yeast"]), "yeast"),
        ("at_edge", np.zeros(2, np.uint8), "bool"),
    ],
)
def test_detections_refuse_arrays_that_do_not_fit(cells: Cells, field: str, value: Any, words: str) -> None:
    good = cells([[0, 0, 5, 5], [5, 5, 9, 9]])
    fields = {name: getattr(good, name) for name in ("boxes", "scores", "kinds", "at_edge")}
    with pytest.raises(ValueError, match=words):
        Detections(**{**fields, field: value})


def test_take_gives_the_same_rows_of_every_field(cells: Cells) -> None:
    found = random_cells(cells)
    mask = found.kinds == "rbc"
    by_mask, by_index = found.take(mask), found.take(np.flatnonzero(mask))
    assert 0 < len(by_mask) < len(found)
    for name in ("boxes", "scores", "kinds", "at_edge"):
        assert np.array_equal(getattr(by_mask, name), getattr(found, name)[mask])
        assert np.array_equal(getattr(by_mask, name), getattr(by_index, name))


def test_records_are_frozen_and_the_empty_one_is_typed(cells: Cells) -> None:
    empty = Detections.empty()
    assert (len(empty), empty.boxes.shape, empty.boxes.dtype, empty.at_edge.dtype) == (0, (0, 4), np.float32, np.bool_)
    assert len(empty.take(np.zeros(0, np.bool_))) == 0
    with pytest.raises(FrozenInstanceError):
        empty.scores = np.zeros(1, np.float32)  # type: ignore[misc]


@pytest.mark.parametrize("row", [[0.5, 0.4], [0.6, 0.6], [np.nan, 1.0]])
def test_labels_refuse_rows_that_are_no_distribution(row: list[float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Labels(np.array([[0.5, 0.5], row], np.float32), ("a", "b"))


def test_labels_take_rows() -> None:
    labels = Labels(np.array([[0.5, 0.5], [1, 0], [0, 0]], np.float32), ("a", "b"))
    assert labels.take(np.array([2, 1])).probs.tolist() == [[0, 0], [1, 0]]
    with pytest.raises(ValueError, match="probs"):
        Labels(np.zeros((1, 3), np.float32), ("a", "b"))


def random_counts(rng: np.random.Generator) -> Counts:
    def part(words: str) -> dict[str, int]:
        return {word: int(rng.integers(0, 9)) for word in rng.permutation(list(words))[: rng.integers(0, 5)]}

    return Counts(part("abcde"), part("rwp"), part("xy"))


@pytest.mark.parametrize("seed", range(5))
def test_counts_add_up_in_any_grouping_and_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields = [random_counts(rng) for _ in range(6)]
    total = Counts()
    for one in fields:
        total = total + one
    right = fields[-1]
    for one in fields[-2::-1]:
        right = one + right
    assert total == right == fields[3] + fields[0] + (fields[5] + fields[1]) + (fields[4] + fields[2])
    pooled: Counter[str] = Counter()
    for one in fields:
        pooled.update(one.named)
    assert total.named == dict(pooled)
    assert total + Counts() == total


def test_counts_refuse_what_is_below_zero() -> None:
    with pytest.raises(ValueError, match="excluded.*edge.*-1"):
        Counts(excluded={"edge": -1})


def test_scale_knows_its_sources_and_is_positive() -> None:
    assert np.isnan(Scale(0.1, "flag").red_cell_px)
    with pytest.raises(ValueError, match="guess"):
        Scale(0.1, "guess")
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            Scale(wrong, "flag")


@pytest.mark.parametrize("field", ["labels", "names", "counted"])
def test_a_result_refuses_arrays_that_are_not_parallel(
    cells: Cells, make_result: Callable[..., SmearResult], field: str
) -> None:
    found = cells([[0, 0, 5, 5], [5, 5, 9, 9]])
    wrong = {"labels": unasked(1), "names": np.array(["unclassified"]), "counted": np.ones(3, np.bool_)}[field]
    good = make_result(found)
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    with pytest.raises(ValueError, match=field):
        SmearResult(**{**fields, field: wrong})
