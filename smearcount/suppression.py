"""Of the boxes that a network gives for each cell, one: the best, moved to where the others have it."""

from __future__ import annotations

import numpy as np

from smearcount.arrays import FloatArray, Indices
from smearcount.pairs import ClosePairs, close_pairs

__all__ = ["VOTE_IOU", "greedy_nms", "voted_boxes"]

VOTE_IOU = 0.7
"""Overlap from which on a removed box has a say in where the kept one lies."""


def greedy_nms(
    boxes_xyxy: FloatArray,
    scores: FloatArray,
    kinds: Indices,
    same_kind_iou: float,
    cross_kind_iou: float,
    pairs: ClosePairs | None = None,
) -> Indices:
    """Greedy non-maximum suppression: the best box removes those that overlap it by more than a threshold.

    Boxes of the same kind and of different kinds have thresholds of their own. Ties in score are broken by coordinates
    (x_min, y_min, x_max, y_max), then by kind, so that the order of the input is without influence.

    Args:
        boxes_xyxy: `(N, 4) float32`.
        scores: `(N,) float32`.
        kinds: `(N,) int`.
        same_kind_iou: threshold of boxes of one kind.
        cross_kind_iou: threshold of boxes of two.
        pairs: `close_pairs` of the boxes at the lower of both thresholds, or below, where they are known already.

    Returns:
        Indices of the kept boxes, best first.
    """
    order = _best_first(boxes_xyxy, scores, kinds)
    pairs = pairs or close_pairs(boxes_xyxy, min(same_kind_iou, cross_kind_iou))
    same = kinds[pairs.first] == kinds[pairs.second]
    clash = pairs.iou > np.where(same, np.float32(same_kind_iou), np.float32(cross_kind_iou))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ours, theirs = rank[pairs.first[clash]], rank[pairs.second[clash]]
    better, worse = np.minimum(ours, theirs), np.maximum(ours, theirs)
    kept, waiting = np.zeros(len(order), np.bool_), np.ones(len(order), np.bool_)
    while waiting.any():
        # What no better box stands against is kept, and what it overlaps too much is gone; everywhere at once.
        opposed = np.zeros_like(waiting)
        opposed[worse] = True
        chosen = waiting & ~opposed
        kept |= chosen
        waiting &= opposed
        waiting[worse[chosen[better]]] = False
        left = waiting[better] & waiting[worse]
        better, worse = better[left], worse[left]
    return order[kept]


def voted_boxes(
    boxes_xyxy: FloatArray, scores: FloatArray, kinds: Indices, keep: Indices, pairs: ClosePairs
) -> FloatArray:
    """The kept boxes `(K, 4)`, each moved to the mean of the boxes of its kind that were removed for it.

    Box voting (Gidaris and Komodakis 2015, arXiv 1505.01749, section 4.3): a mean over those that overlap the kept one
    by more than `VOTE_IOU`, itself included, weighted by the score and here also by the square of the overlap.

    Args:
        boxes_xyxy: `(N, 4) float32`.
        scores: `(N,) float32`.
        kinds: `(N,) int`.
        keep: `(K,) int`, rows of the kept boxes.
        pairs: `close_pairs` of the boxes at `VOTE_IOU` or below.
    """
    place = np.full(len(boxes_xyxy), -1, np.intp)
    place[keep] = np.arange(len(keep))
    votes = (pairs.iou > VOTE_IOU) & (kinds[pairs.first] == kinds[pairs.second])
    first, second = pairs.first[votes], pairs.second[votes]
    ours, theirs = np.concatenate([first, second]), np.concatenate([second, first])
    weight = np.concatenate([pairs.iou[votes]] * 2) ** 2 * scores[theirs]
    asked = place[ours] >= 0
    ours, theirs, weight = ours[asked], theirs[asked], weight[asked]
    total = scores[keep] + np.bincount(place[ours], weight, len(keep))
    # Shifts instead of places: boxes that are the same to the last bit stay so.
    sides = np.ascontiguousarray(boxes_xyxy.T)
    moved = np.stack([np.bincount(place[ours], (x[theirs] - x[ours]) * weight, len(keep)) for x in sides], axis=1)
    return (boxes_xyxy[keep] + moved / np.where(total > 0, total, 1)[:, None]).astype(np.float32)


def _best_first(boxes: FloatArray, scores: FloatArray, kinds: Indices) -> Indices:
    """Rows by falling score; those of equal scores by coordinates and kinds, which only they are worth looking at."""
    order = np.argsort(-scores)
    ranked = scores[order]
    equal = ranked[1:] == ranked[:-1]
    tied = np.flatnonzero(np.concatenate([equal, [False]]) | np.concatenate([[False], equal]))
    rows = order[tied]
    order[tied] = rows[np.lexsort((kinds[rows], *boxes[rows].T[::-1], -scores[rows]))]
    return order
