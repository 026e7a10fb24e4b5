"""Pairs of boxes against the matrix of all of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from conftest import lying_on

from smearcount import geometry
from smearcount import pairs as module
from smearcount.arrays import FloatArray
from smearcount.geometry import iou_matrix
from smearcount.pairs import close_pairs


def random_boxes(n: int, seed: int = 5) -> FloatArray:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12 * int(np.sqrt(n) + 1), (n, 2))
    return np.concatenate([corner, corner + rng.integers(0, 25, (n, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("n", [0, 1, 2, 60, 199, 700])
def test_pairs_that_share_an_area_are_those_of_the_matrix(n: int) -> None:
    boxes = random_boxes(n)
    pairs = close_pairs(boxes, 0)
    found = np.sort(np.stack([pairs.first, pairs.second], axis=1), axis=1)
    assert sorted(found.tolist()) == np.argwhere(np.triu(iou_matrix(boxes, boxes) > 0, 1)).tolist()
    np.testing.assert_allclose(pairs.iou, iou_matrix(boxes, boxes)[pairs.first, pairs.second], rtol=1e-6)


@pytest.mark.parametrize("at_once", [7, 199, 700])
def test_pairs_are_the_same_however_many_are_sought_together(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    boxes = random_boxes(700)
    boxes[3] = (0, 0, 400, 400)
    whole = lying_on(boxes)
    monkeypatch.setattr(module, "BOXES_AT_ONCE", at_once)
    monkeypatch.setattr(geometry, "PAIRS_AT_ONCE", at_once)
    assert np.array_equal(lying_on(boxes), whole)
    assert 0 < whole.sum() < len(whole)


def test_pairs_of_many_boxes_need_little_memory() -> None:
    close_pairs(random_boxes(500), 0)
    boxes = random_boxes(8000)
    tracemalloc.start()
    pairs = len(close_pairs(boxes, 0).first)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs > 4000
    # The matrix of all pairs takes 256 MB a field.
    assert peak < 20e6


@pytest.mark.parametrize("at_once", [1, 7, 64, 1024])
@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.7])
def test_close_pairs_are_those_of_the_whole_matrix(
    at_once: int, min_iou: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BOXES_AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    corner = rng.uniform(0, 300, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 60, (200, 2))], axis=1).astype(np.float32)
    boxes[50:80] = boxes[20:50] + rng.normal(0, 2, (30, 4)).astype(np.float32)
    pairs = close_pairs(boxes, min_iou)
    iou = iou_matrix(boxes, boxes)
    expected = {(a, b) for a, b in np.argwhere(iou > min_iou).tolist() if a < b}
    found = [tuple(sorted(pair)) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    np.testing.assert_allclose(pairs.iou, iou[pairs.first, pairs.second], rtol=1e-6)
    assert len(close_pairs(boxes[:0], min_iou).first) == 0


@pytest.mark.parametrize("along", [(40.0, 0.5), (0.5, 40.0)])
def test_pairs_of_cells_in_one_line_are_sought_among_neighbours_only(along: tuple[float, float]) -> None:
    """Thousands side by side or above each other, as at the edge of a scan: no band across the picture holds them."""
    corner = np.arange(6000)[:, None] * np.array([along])
    boxes = np.concatenate([corner, corner + 45], axis=1).astype(np.float32)
    close_pairs(boxes[:50], 0.05)
    tracemalloc.start()
    found = close_pairs(boxes, 0.05)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set((found.second - found.first).tolist()) <= {-1, 1}
    assert len(found.first) == 5999
    assert peak < 10e6
