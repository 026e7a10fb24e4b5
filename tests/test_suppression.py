"""Suppression against a slow and obvious one, and voting against weighted means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import slow_iou, tied_boxes

from smearcount.arrays import FloatArray
from smearcount.geometry import iou_matrix
from smearcount.pairs import close_pairs
from smearcount.suppression import VOTE_IOU, greedy_nms, voted_boxes


def slow_nms(
    boxes: FloatArray, scores: FloatArray, kinds: np.ndarray, same: float, cross: float
) -> list[tuple[float, ...]]:
    """Kept boxes as (score, x_min, y_min, x_max, y_max, kind), best first."""
    rows = sorted((-s, *b, k) for s, b, k in zip(scores.tolist(), boxes.tolist(), kinds.tolist(), strict=True))
    kept: list[tuple[float, ...]] = []
    for row in rows:
        if all(slow_iou(np.array(row[1:5]), np.array(k[1:5])) <= (same if row[5] == k[5] else cross) for k in kept):
            kept.append(row)
    return kept


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("thresholds", [(0.45, 0.7), (0.6, 1.0), (0.3, 0.2)])
def test_suppression_agrees_with_the_obvious_one_in_any_order(seed: int, thresholds: tuple[float, float]) -> None:
    boxes, scores, kinds = tied_boxes(seed)
    expected = slow_nms(boxes, scores, kinds, *thresholds)
    assert 1 < len(expected) < len(boxes)
    for shuffle in range(3):
        order = np.random.default_rng(shuffle).permutation(len(boxes))
        keep = order[greedy_nms(boxes[order], scores[order], kinds[order], *thresholds)]
        assert len(set(keep.tolist())) == len(keep)
        assert [(-scores[i], *boxes[i], kinds[i]) for i in keep] == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thresholds", [(0.6, 0.8), (0.45, 0.5), (0.5, 0.3), (0.5, 5e-5)])
def test_suppression_of_boxes_as_a_network_gives_them(seed: int, thresholds: tuple[float, float]) -> None:
    """Ten shaken copies of each cell, scores all different, few of a rare kind that lie on cells of another."""
    rng = np.random.default_rng(seed)
    middles = np.repeat(rng.uniform(0, 400, (30, 2)), 10, axis=0)
    sides = 40 + rng.normal(0, 3, (300, 2))
    corner = middles + rng.normal(0, 3, (300, 2)) - sides / 2
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.3, 0.9, 300)).astype(np.float32)
    kinds = (rng.uniform(size=300) < 0.15) * rng.integers(1, 3, 300)
    assert len(set(scores.tolist())) == 300
    keep = greedy_nms(boxes, scores, kinds, *thresholds)
    expected = slow_nms(boxes, scores, kinds, *thresholds)
    assert [(-scores[i], *boxes[i], kinds[i]) for i in keep] == expected


def test_suppression_of_nothing_is_nothing_and_is_idempotent() -> None:
    none = np.zeros(0, np.float32)
    assert greedy_nms(none.reshape(0, 4), none, np.zeros(0, np.intp), 0.5, 0.5).shape == (0,)
    boxes, scores, kinds = tied_boxes(99)
    keep = greedy_nms(boxes, scores, kinds, 0.5, 0.7)
    again = greedy_nms(boxes[keep], scores[keep], kinds[keep], 0.5, 0.7)
    assert again.tolist() == list(range(len(keep)))


def test_kinds_have_thresholds_of_their_own() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7]], np.float32)  # IoU 0.7
    scores = np.array([0.9, 0.8], np.float32)
    for kinds, same, cross, kept in (([0, 0], 0.6, 0.8, 1), ([0, 1], 0.6, 0.8, 2), ([0, 1], 0.8, 0.6, 1)):
        assert len(greedy_nms(boxes, scores, np.array(kinds), same, cross)) == kept


def voted(boxes: Any, scores: Any, kinds: Any, keep: Any) -> Any:
    return voted_boxes(boxes, scores, kinds, keep, close_pairs(boxes, VOTE_IOU))


def test_voted_boxes_are_the_weighted_means_of_those_that_were_removed() -> None:
    rng = np.random.default_rng(4)
    cells = rng.uniform(20, 480, (60, 2)).repeat(8, axis=0) + rng.normal(0, 2, (480, 2))
    sides = rng.uniform(28, 44, (480, 2))
    boxes = np.concatenate([cells - sides / 2, cells + sides / 2], axis=1).astype(np.float32)
    scores, kinds = rng.uniform(0.2, 1, 480).astype(np.float32), rng.integers(0, 2, 480)
    keep = greedy_nms(boxes, scores, kinds, 0.6, 0.8)
    overlaps = iou_matrix(boxes[keep], boxes)
    moved = 0
    for row, box in enumerate(voted(boxes, scores, kinds, keep)):
        voters = (overlaps[row] > VOTE_IOU) & (kinds == kinds[keep[row]])
        weights = scores[voters] * overlaps[row, voters] ** 2
        np.testing.assert_allclose(box, np.average(boxes[voters], axis=0, weights=weights), atol=1e-3)
        moved += voters.sum() > 1
    assert moved > 40


def test_a_box_without_voters_stays_and_order_is_without_influence() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60.5], [5, 5, 5, 5]], np.float32)
    scores, kinds = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0, 0, 1, 0])
    moved = voted(boxes, scores, kinds, np.array([0, 1, 3]))
    np.testing.assert_array_equal(moved, boxes[[0, 1, 3]])
    turned = voted(boxes[::-1], scores[::-1], kinds[::-1], np.array([3, 2, 0]))
    np.testing.assert_array_equal(turned, moved)
    assert voted(boxes[:0], scores[:0], kinds[:0], np.zeros(0, np.intp)).shape == (0, 4)
