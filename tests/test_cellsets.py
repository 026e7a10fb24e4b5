"""Sets of labelled cells: parallel whatever is done to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from smearcount.cellsets import CellSet, join

SIDES = (8, 5, 12, 8)


def four(tag: str = "a", **changes: Any) -> CellSet:
    """Cells of sides 8, 5, 12 and 8, filled with their number; the third may be two things."""
    values: dict[str, Any] = {
        "pixels": tuple(np.full((side, side, 3), row, np.uint8) for row, side in enumerate(SIDES)),
        "um_per_px": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "targets": np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], bool),
        "codes": ("round", "oval", "long"),
        "sources": np.array([f"{tag}{row}" for row in (0, 0, 1, 1)]),
        "groups": np.array([f"{tag} group {row}" for row in range(4)]),
        "splits": np.array(["train", "val", "train", "val"]),
        "origins": np.array([f"{tag}/{row}.png" for row in range(4)]),
    }
    return CellSet(**{**values, **changes})


def rows_of(cells: CellSet) -> list[Any]:
    """Everything known of each cell, comparable."""
    return [
        (int(cells.pixels[row][0, 0, 0]), cells.pixels[row].shape, round(float(cells.um_per_px[row]), 5))
        + (tuple(cells.targets[row].tolist()), str(cells.sources[row]), str(cells.groups[row]))
        + (str(cells.splits[row]), str(cells.origins[row]))
        for row in range(len(cells))
    ]


def test_labels_exactness_and_splits() -> None:
    cells = four()
    assert len(cells) == 4
    assert cells.labels.tolist() == [0, 1, 1, 2]
    assert cells.exact.tolist() == [True, True, False, True]
    assert rows_of(cells.split("train")) == [rows_of(cells)[row] for row in (0, 2)]
    assert rows_of(cells.split("train")) + rows_of(cells.split("val")) == [rows_of(cells)[row] for row in (0, 2, 1, 3)]


def test_sources_take_turns() -> None:
    """Those of a0 and a1 as they come, first of each first."""
    assert four().in_turns(np.array([1, 0, 3, 2])).tolist() == [1, 3, 0, 2]
    assert four().in_turns(np.array([3, 0, 1])).tolist() == [3, 0, 1]
    assert four().in_turns(np.array([], np.intp)).tolist() == []


def test_groups_of_single_cells_are_none() -> None:
    assert four().shared_groups is None
    named = np.array(["slide", "slide", "x/1.png", "x/2.png"])
    groups = four(groups=named).shared_groups
    assert groups is not None
    assert groups.tolist() == named.tolist()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.array([3, 0, 0]), (3, 0, 0)),
        (np.array([False, True, True, False]), (1, 2)),
        (np.array([], np.intp), ()),
        (np.zeros(4, bool), ()),
    ],
)
def test_taking_rows_takes_them_of_every_field(rows: Any, expected: tuple[int, ...]) -> None:
    assert rows_of(four().take(rows)) == [rows_of(four())[row] for row in expected]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": np.array(["one"])}, "groups"),
        ({"um_per_px": np.ones(3, np.float32)}, "um_per_px"),
        ({"targets": np.ones((4, 2), bool)}, "4 cells of 3 codes"),
        ({"targets": np.eye(4, 3, dtype=bool)}, "without any code"),
        ({"pixels": tuple(np.zeros((4, 5, 3), np.uint8) for _ in SIDES)}, "square|S, S, 3"),
        ({"pixels": tuple(np.zeros((4, 4, 3), np.float32) for _ in SIDES)}, "uint8"),
        ({"pixels": tuple(np.zeros((4, 4), np.uint8) for _ in SIDES)}, "S, S, 3"),
    ],
)
def test_what_is_not_parallel_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        four(**changes)


def test_joining_is_putting_one_after_the_other() -> None:
    first, second = four("a"), four("long name of a source ")
    assert rows_of(join([first, second])) == rows_of(first) + rows_of(second)
    assert rows_of(join([first, first.take(np.zeros(4, bool)), second])) == rows_of(first) + rows_of(second)
    with pytest.raises(ValueError, match="same codes"):
        join([first, replace(second, codes=("a", "b", "c"))])
    with pytest.raises(ValueError, match="same codes"):
        join([])


def test_long_words_survive_joining() -> None:
    """A group that was cut short would put two slides on one side, or one on both."""
    deep = np.array(["folder/" * 60 + str(row) for row in range(4)])
    both = join([four(groups=deep), four("b", origins=deep)])
    assert both.groups[:4].tolist() == deep.tolist()
    assert both.origins[4:].tolist() == deep.tolist()
