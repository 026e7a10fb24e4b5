"""Boxes against closed forms, and the suppression against a slow and obvious one."""

from __future__ import annotations

import numpy as np
import pytest

from smearcount import geometry
from smearcount.geometry import (
    VOTE_IOU,
    FloatArray,
    areas,
    centres,
    clip_boxes,
    close_pairs,
    diameters,
    greedy_nms,
    iou_matrix,
    resize_rgb,
    touches_edge,
    voted_boxes,
)


def slow_iou(a: FloatArray, b: FloatArray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


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


def tied_boxes(seed: int, n: int = 90) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Small integers, three scores, three kinds: ties, copies and empty boxes by the dozen."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 6, (n, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 7, (n, 2))], axis=1).astype(np.float32)
    return boxes, rng.choice([0.25, 0.5, 0.75], n).astype(np.float32), rng.integers(0, 3, n)


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


def test_overlap_of_known_boxes() -> None:
    square = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4], [3, 3, 3, 3]], np.float32)
    assert np.allclose(iou_matrix(square, others), [[1, 1 / 3, 0, 0.04, 0]])
    assert iou_matrix(others[4:], others[4:]).tolist() == [[0]]
    assert iou_matrix(square, others[:0]).shape == (1, 0)
    boxes = tied_boxes(5)[0]
    slow = [[slow_iou(a, b) for b in boxes] for a in boxes]
    assert np.allclose(iou_matrix(boxes, boxes), slow, atol=1e-6)


def test_areas_centres_diameters_and_clipping() -> None:
    boxes = np.array([[2, 3, 12, 9], [-5, -5, 5, 30], [8, 8, 4, 4]], np.float32)
    assert areas(boxes).tolist() == [60, 350, 0]
    assert centres(boxes)[0].tolist() == [7, 6]
    assert diameters(boxes)[0] == 8
    assert clip_boxes(boxes, 10, 20)[:2].tolist() == [[2, 3, 10, 9], [0, 0, 5, 20]]


@pytest.mark.parametrize(
    ("box", "touches"),
    [
        ((3, 3, 97, 47), False),
        ((2, 3, 97, 47), True),
        ((3, 2, 97, 47), True),
        ((3, 3, 98, 47), True),
        ((3, 3, 97, 48), True),
    ],
)
def test_each_border_is_seen_from_two_pixels_away(box: tuple[float, ...], touches: bool) -> None:
    boxes = np.array([box], np.float32)
    assert touches_edge(boxes, 100, 50).tolist() == [touches]
    assert not touches_edge(boxes, 100, 50, slack_px=0).any()
    assert touches_edge(boxes, 100, 50, slack_px=3).all()


def test_resampling_keeps_the_mean_and_the_place() -> None:
    rng = np.random.default_rng(3)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8), 4, 0), 4, 1)
    assert resize_rgb(pixels, 160, 120) is pixels
    assert np.array_equal(resize_rgb(pixels, 40, 30), pixels[::4, ::4])
    grown = resize_rgb(pixels, 320, 240)
    assert grown.shape == (240, 320, 3)
    assert abs(float(grown.mean()) - float(pixels.mean())) < 0.5


def test_voted_boxes_are_the_weighted_means_of_those_that_were_removed() -> None:
    rng = np.random.default_rng(4)
    cells = rng.uniform(20, 480, (60, 2)).repeat(8, axis=0) + rng.normal(0, 2, (480, 2))
    sides = rng.uniform(28, 44, (480, 2))
    boxes = np.concatenate([cells - sides / 2, cells + sides / 2], axis=1).astype(np.float32)
    scores, kinds = rng.uniform(0.2, 1, 480).astype(np.float32), rng.integers(0, 2, 480)
    keep = greedy_nms(boxes, scores, kinds, 0.6, 0.8)
    overlaps = iou_matrix(boxes[keep], boxes)
    moved = 0
    for row, box in enumerate(voted_boxes(boxes, scores, kinds, keep)):
        voters = (overlaps[row] > VOTE_IOU) & (kinds == kinds[keep[row]])
        weights = scores[voters] * overlaps[row, voters] ** 2
        np.testing.assert_allclose(box, np.average(boxes[voters], axis=0, weights=weights), atol=1e-3)
        moved += voters.sum() > 1
    assert moved > 40


def test_a_box_without_voters_stays_and_order_is_without_influence() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60.5], [5, 5, 5, 5]], np.float32)
    scores, kinds = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0, 0, 1, 0])
    voted = voted_boxes(boxes, scores, kinds, np.array([0, 1, 3]))
    np.testing.assert_array_equal(voted, boxes[[0, 1, 3]])
    turned = voted_boxes(boxes[::-1], scores[::-1], kinds[::-1], np.array([3, 2, 0]))
    np.testing.assert_array_equal(turned, voted)
    assert voted_boxes(boxes[:0], scores[:0], kinds[:0], np.zeros(0, np.intp)).shape == (0, 4)


@pytest.mark.parametrize("at_once", [1, 7, 64, 1024])
@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.7])
def test_close_pairs_are_those_of_the_whole_matrix(
    at_once: int, min_iou: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "CLOSE_BOXES", at_once)
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
