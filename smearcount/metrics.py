"""How well found boxes agree with labelled ones: average precision, F1, counting error, intervals.

Boxes are `(N, 4) float32` x_min, y_min, x_max, y_max in pixels, half-open; kinds are indices. A kind that was not
labelled in a picture is left out of everything said of that picture: its found boxes are neither right nor wrong.
What can't be known (no labelled cell, nothing found) is NaN in the records and None in `evaluate_pairs`.

Average precision is that of COCO (Lin et al. 2014, 10.1007/978-3-319-10602-1_48) as pycocotools computes it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.errors import RuntimeMissingError
from smearcount.geometry import FloatArray, iou_matrix

__all__ = [
    "Agreement",
    "AveragePrecision",
    "BoxPair",
    "CountError",
    "Matches",
    "average_precision",
    "best_threshold",
    "bootstrap_interval",
    "count_error",
    "evaluate_pairs",
    "f1_at",
    "match_boxes",
    "pooled_map",
]

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]
MinScores = Mapping[int, float] | Sequence[float]

_F1_SLACK = 0.005
"""Thresholds whose F1 is this close to the best are alike: the differences are noise in a few hundred fields."""


@dataclass(frozen=True, eq=False)
class BoxPair:
    """Found and labelled boxes of one picture.

    Attributes:
        image_id: name of the picture.
        group: the look or source that it is reported under.
        found_boxes: `(N, 4) float32`, pixels.
        found_scores: `(N,) float32`.
        found_kinds: `(N,) int`.
        true_boxes: `(M, 4) float32`, pixels, each with an area.
        true_kinds: `(M,) int`.
        labelled: kinds that were labelled in this source; boxes of others are ignored, found or labelled.
    """

    image_id: str
    group: str
    found_boxes: FloatArray
    found_scores: FloatArray
    found_kinds: npt.NDArray[np.integer[Any]]
    true_boxes: FloatArray
    true_kinds: npt.NDArray[np.integer[Any]]
    labelled: frozenset[int]

    def __post_init__(self) -> None:
        """Check shapes, types and values."""
        found, true = len(self.found_boxes), len(self.true_boxes)
        for name, shape, kind in (
            ("found_boxes", (found, 4), np.float32),
            ("found_scores", (found,), np.float32),
            ("found_kinds", (found,), np.integer),
            ("true_boxes", (true, 4), np.float32),
            ("true_kinds", (true,), np.integer),
        ):
            array = getattr(self, name)
            if array.shape != shape or not np.issubdtype(array.dtype, kind):
                wanted = f"{name}: expected shape {shape} and {kind.__name__}"
                raise ValueError(f"{wanted}, got {array.shape} and {array.dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        # Without an area the overlap is 0 / 0, which the matching of pycocotools takes for a match.
        if not (self.true_boxes[:, 2:] > self.true_boxes[:, :2]).all():
            raise ValueError("true_boxes: expected boxes with an area, got one of zero or negative width or height")
        if not (self.found_boxes[:, 2:] >= self.found_boxes[:, :2]).all():
            raise ValueError("found_boxes: expected x_min <= x_max and y_min <= y_max, got a box turned inside out")


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """COCO average precision of each kind, NaN for a kind without labelled cells.

    Attributes:
        ap50: `(K,) float64`, at an overlap of 0.50.
        ap50_95: `(K,) float64`, mean over overlaps of 0.50 to 0.95 in steps of 0.05.
    """

    ap50: Doubles
    ap50_95: Doubles

    @property
    def map50(self) -> float:
        """Mean of `ap50` over the kinds with labelled cells."""
        return _mean_of_known(self.ap50)

    @property
    def map50_95(self) -> float:
        """Mean of `ap50_95` over the kinds with labelled cells."""
        return _mean_of_known(self.ap50_95)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which found box is which labelled one, as indices into the arrays given.

    Attributes:
        found: `(P,)`, found boxes that are right, best score first.
        true: `(P,)`, the labelled box of each.
        unmatched_found: `(N - P,)`, ascending.
        unmatched_true: `(M - P,)`, ascending.
    """

    found: Rows
    true: Rows
    unmatched_found: Rows
    unmatched_true: Rows


@dataclass(frozen=True)
class Agreement:
    """Found boxes that are right (tp) or wrong (fp), and labelled ones that were missed (fn)."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float:
        """Share of the found boxes that are right."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the labelled boxes that were found."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class CountError:
    """How far the counts are off, wherever the boxes lie.

    Attributes:
        found: cells found in all fields.
        true: cells labelled in all fields.
        mean_absolute_relative: mean of |found - true| / true over the fields with a labelled cell.
        fields: how many those are.
    """

    found: int
    true: int
    mean_absolute_relative: float
    fields: int

    @property
    def pooled_relative(self) -> float:
        """(found - true) / true of the sums, signed: positive where too many are counted."""
        return _ratio(self.found - self.true, self.true)


def average_precision(pairs: Sequence[BoxPair], n_kinds: int) -> AveragePrecision:
    """COCO average precision with all found boxes of a picture, however many.

    Neither the order of the pictures (if their group and name are unique) nor that of the boxes has an influence.

    Raises:
        ValueError: a kind is not in `range(n_kinds)`.
        RuntimeMissingError: pycocotools is not installed.
    """
    kinds = {int(kind) for pair in pairs for kind in (*pair.found_kinds, *pair.true_kinds, *pair.labelled)}
    if n_kinds < 1 or not kinds <= set(range(n_kinds)):
        raise ValueError(f"expected kinds from 0 to {n_kinds - 1}, got {sorted(kinds)}")
    pairs = sorted(pairs, key=lambda pair: (pair.group, pair.image_id))
    by_overlap = _coco_precision(pairs, n_kinds)
    return AveragePrecision(by_overlap[0], by_overlap.mean(axis=0))


def match_boxes(
    found_boxes: FloatArray, found_scores: FloatArray, true_boxes: FloatArray, min_iou: float = 0.5
) -> Matches:
    """Give each found box, best score first, the free labelled box it overlaps most: the matching of COCO.

    Ties in score or overlap go to the smaller coordinates (x_min, y_min, x_max, y_max).

    Args:
        found_boxes: `(N, 4) float32`, pixels.
        found_scores: `(N,) float32`.
        true_boxes: `(M, 4) float32`, pixels.
        min_iou: least intersection over union of a match, in (0, 1].

    Raises:
        ValueError: `min_iou` is out of range or the scores are not as many as the boxes.
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou: expected a number above 0 and at most 1, got {min_iou}")
    if len(found_scores) != len(found_boxes):
        raise ValueError(f"found_scores: expected {len(found_boxes)} scores, got {len(found_scores)}")
    ranking, columns = _ranking(found_boxes, found_scores), np.lexsort(true_boxes.T[::-1])
    overlaps = iou_matrix(found_boxes[ranking], true_boxes[columns])
    matched: list[tuple[int, int]] = []
    for rank in range(len(ranking) if len(columns) else 0):
        best = int(overlaps[rank].argmax())
        if overlaps[rank, best] >= float(min_iou):
            matched.append((ranking[rank], columns[best]))
            overlaps[:, best] = -1
    found, true = np.array(matched, np.intp).reshape(-1, 2).T
    return Matches(
        found, true, np.setdiff1d(np.arange(len(ranking)), found), np.setdiff1d(np.arange(len(columns)), true)
    )


def f1_at(pairs: Sequence[BoxPair], kind: int, min_score_by_kind: MinScores, min_iou: float = 0.5) -> Agreement:
    """Agreement of the boxes of one kind whose score is at least `min_score_by_kind[kind]`, pooled over pictures."""
    tp, fp, fn = _tallies(pairs, kind, min_score_by_kind[kind], min_iou).sum(axis=0).tolist()
    return Agreement(tp, fp, fn)


def count_error(pairs: Sequence[BoxPair], kind: int, min_score: float) -> CountError:
    """Error of the counts of one kind, over the pictures where it was labelled; `score >= min_score` is counted."""
    cells = [_of_kind(pair, kind) for pair in pairs if kind in pair.labelled]
    found = np.array([np.count_nonzero(scores >= np.float32(min_score)) for _, scores, _ in cells], np.int64)
    true = np.array([len(true_boxes) for *_, true_boxes in cells], np.int64)
    counted = true > 0
    relative = np.abs(found - true)[counted] / true[counted]
    return CountError(int(found.sum()), int(true.sum()), _mean_of_known(relative), int(counted.sum()))


def best_threshold(pairs: Sequence[BoxPair], kind: int, thresholds: Iterable[float]) -> float:
    """The threshold whose pooled count is nearest to the truth, of those with an F1 within 0.005 of the best.

    Ties go to the better F1, then to the lower threshold.

    Raises:
        ValueError: there is no threshold or no labelled cell of the kind.
    """
    candidates = sorted(float(threshold) for threshold in thresholds)
    cells = [_of_kind(pair, kind) for pair in pairs if kind in pair.labelled]
    n_true = sum(len(true_boxes) for *_, true_boxes in cells)
    if not candidates or not n_true:
        raise ValueError(f"kind {kind}: expected thresholds and labelled cells, got {len(candidates)} and {n_true}")
    # The matching runs down the scores: what is below a threshold has no influence on what is above it.
    scores = np.concatenate([scores for _, scores, _ in cells])
    right = np.concatenate([scores[match_boxes(boxes, scores, true).found] for boxes, scores, true in cells])
    rated: list[tuple[float, float, float]] = []
    for threshold in candidates:
        n_found = int(np.count_nonzero(scores >= np.float32(threshold)))
        tp = int(np.count_nonzero(right >= np.float32(threshold)))
        rated.append((abs(n_found - n_true), -Agreement(tp, n_found - tp, n_true - tp).f1, threshold))
    best_f1 = max(-negative for _, negative, _ in rated)
    return min(row for row in rated if -row[1] >= best_f1 - _F1_SLACK)[2]


def bootstrap_interval(
    values_by_field: npt.NDArray[Any], statistic: Callable[[npt.NDArray[Any]], float], seed: int, n: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval over fields drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    Args:
        values_by_field: `(F, ...)`, one row a field: cells of one field are not independent.
        statistic: from such an array to a number; a draw where it is NaN is left out.
        seed: of the draws.
        n: number of draws.

    Returns:
        Low and high; NaN for fewer than two fields, which say nothing of how fields differ.
    """
    if n < 1:
        raise ValueError(f"n: expected at least one draw, got {n}")
    n_fields = len(values_by_field)
    if n_fields < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, n_fields, (n, n_fields))
    drawn = np.array([statistic(values_by_field[rows]) for rows in draws], np.float64)
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5)).tolist()
    return low, high


def pooled_map(
    pairs_by_group: Mapping[str, Sequence[BoxPair]], pooled_kinds: Collection[int]
) -> dict[str, AveragePrecision]:
    """Average precision of each group, where a pooled kind takes its own from all groups together.

    For kinds so rare that a group's handful says nothing. A pooled kind stays NaN in a group that never labelled it.

    Raises:
        ValueError: no kind was labelled in any group.
        RuntimeMissingError: pycocotools is not installed.
    """
    every = [pair for pairs in pairs_by_group.values() for pair in pairs]
    n_kinds = 1 + max((int(k) for p in every for k in (*p.labelled, *p.found_kinds, *p.true_kinds)), default=-1)
    rare = [replace(pair, labelled=pair.labelled & frozenset(pooled_kinds)) for pair in every]
    pooled = average_precision(rare, n_kinds)
    return {
        group: _with_pooled(pairs, average_precision(pairs, n_kinds), pooled, pooled_kinds)
        for group, pairs in pairs_by_group.items()
    }


def evaluate_pairs(
    pairs: Sequence[BoxPair], kind_names: Sequence[str], min_score_by_kind: MinScores
) -> dict[str, Any]:
    """Everything this module measures, by group and overall, ready for JSON (None where nothing is known).

    The `pooled_map50` and `pooled_map50_95` of a group take the average precision of platelets from all groups.

    Raises:
        ValueError: a kind has no name.
        RuntimeMissingError: pycocotools is not installed.
    """
    groups = {name: [pair for pair in pairs if pair.group == name] for name in sorted({pair.group for pair in pairs})}
    rare = {index for index, name in enumerate(kind_names) if name == "platelet"}
    precision = average_precision(pairs, len(kind_names))
    report: dict[str, Any] = {"groups": {}, "overall": _summary(pairs, kind_names, min_score_by_kind, precision)}
    for name, members in groups.items():
        own = average_precision(members, len(kind_names))
        pooled = _with_pooled(members, own, precision, rare)
        report["groups"][name] = {
            "pooled_map50": _json_number(pooled.map50),
            "pooled_map50_95": _json_number(pooled.map50_95),
            **_summary(members, kind_names, min_score_by_kind, own),
        }
    return report


def _summary(
    pairs: Sequence[BoxPair], kind_names: Sequence[str], min_score_by_kind: MinScores, precision: AveragePrecision
) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for kind, name in enumerate(kind_names):
        tallies = _tallies(pairs, kind, min_score_by_kind[kind], 0.5)
        agreement = f1_at(pairs, kind, min_score_by_kind)
        counts = count_error(pairs, kind, min_score_by_kind[kind])
        numbers = {
            "min_score": float(min_score_by_kind[kind]),
            "ap50": precision.ap50[kind],
            "ap50_95": precision.ap50_95[kind],
            "precision": agreement.precision,
            "recall": agreement.recall,
            "f1": agreement.f1,
            "count_error": counts.pooled_relative,
            "count_error_mean_absolute": counts.mean_absolute_relative,
        }
        intervals = {
            "f1_interval": bootstrap_interval(tallies, _f1_of, seed=0),
            "count_error_interval": bootstrap_interval(tallies, _count_error_of, seed=0),
        }
        kinds[name] = {
            "fields": len(tallies),
            "fields_with_cells": counts.fields,
            "cells": counts.true,
            "found": counts.found,
            **{"tp": agreement.tp, "fp": agreement.fp, "fn": agreement.fn},
            **{key: _json_number(number) for key, number in numbers.items()},
            **{key: [_json_number(limit) for limit in limits] for key, limits in intervals.items()},
        }
    means = {"map50": _json_number(precision.map50), "map50_95": _json_number(precision.map50_95)}
    return {"fields": len(pairs), **means, "kinds": kinds}


def _coco_precision(pairs: Sequence[BoxPair], n_kinds: int) -> Doubles:
    """Average precision `(10, K)` at overlaps of 0.50 to 0.95, NaN for kinds without labelled cells."""
    try:
        # By name, since the package has no types; late, since only an evaluation needs it.
        coco, cocoeval = (importlib.import_module(f"pycocotools.{part}") for part in ("coco", "cocoeval"))
    except ImportError as error:
        raise RuntimeMissingError("pycocotools is not installed: python -m pip install pycocotools") from error
    true: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    most = 1
    for image, pair in enumerate(pairs):
        for kind in sorted(pair.labelled):
            boxes, scores, true_boxes = _of_kind(pair, kind)
            most = max(most, len(boxes))
            ranking = _ranking(boxes, scores)
            # pycocotools gives a tie in overlap to the last labelled box, `match_boxes` to the first.
            true += _coco_rows(image, kind, true_boxes[np.lexsort(true_boxes.T[::-1])[::-1]])
            rows = _coco_rows(image, kind, boxes[ranking])
            found += [{**row, "score": score} for row, score in zip(rows, scores[ranking].tolist(), strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        tables = []
        for rows in (true, found):
            tables.append(coco.COCO())
            tables[-1].dataset = {
                "images": [{"id": image} for image in range(len(pairs))],
                "categories": [{"id": kind} for kind in range(n_kinds)],
                # An id of 0 would mean "no match" there.
                "annotations": [{**row, "id": number} for number, row in enumerate(rows, 1)],
            }
            tables[-1].createIndex()
        evaluation = cocoeval.COCOeval(*tables, "bbox")
        evaluation.params.maxDets = [most]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, math.inf]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    by_recall: Doubles = evaluation.eval["precision"][..., 0, 0]
    return np.where(by_recall < 0, np.nan, by_recall).mean(axis=1)


def _coco_rows(image: int, kind: int, boxes_xyxy: FloatArray) -> list[dict[str, Any]]:
    corners = boxes_xyxy.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    return [
        {"image_id": image, "category_id": kind, "bbox": [*corner, *side], "area": side[0] * side[1], "iscrowd": 0}
        for corner, side in zip(corners[:, :2].tolist(), sides.tolist(), strict=True)
    ]


def _ranking(boxes: FloatArray, scores: FloatArray) -> Rows:
    """Best score first, ties by coordinates."""
    return np.lexsort((*boxes.T[::-1], -scores))


def _of_kind(pair: BoxPair, kind: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Found boxes, their scores and the labelled boxes of one kind."""
    found = pair.found_kinds == kind
    return pair.found_boxes[found], pair.found_scores[found], pair.true_boxes[pair.true_kinds == kind]


def _tallies(pairs: Sequence[BoxPair], kind: int, min_score: float, min_iou: float) -> Integers:
    """tp, fp and fn of each picture where the kind was labelled, `(F, 3)`."""
    rows = []
    for pair in pairs:
        if kind in pair.labelled:
            boxes, scores, true_boxes = _of_kind(pair, kind)
            kept = scores >= np.float32(min_score)
            matches = match_boxes(boxes[kept], scores[kept], true_boxes, min_iou)
            rows.append((len(matches.found), len(matches.unmatched_found), len(matches.unmatched_true)))
    return np.array(rows, np.int64).reshape(-1, 3)


def _f1_of(tallies: Integers) -> float:
    tp, fp, fn = tallies.sum(axis=0).tolist()
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _count_error_of(tallies: Integers) -> float:
    tp, fp, fn = tallies.sum(axis=0).tolist()
    return _ratio(fp - fn, tp + fn)


def _with_pooled(
    pairs: Sequence[BoxPair], own: AveragePrecision, pooled: AveragePrecision, pooled_kinds: Collection[int]
) -> AveragePrecision:
    labelled = frozenset().union(*(pair.labelled for pair in pairs))
    taken = np.isin(np.arange(len(own.ap50)), sorted(labelled & frozenset(pooled_kinds)))
    return AveragePrecision(np.where(taken, pooled.ap50, own.ap50), np.where(taken, pooled.ap50_95, own.ap50_95))


def _mean_of_known(values: Doubles) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _json_number(number: float) -> float | None:
    """NaN is no JSON."""
    return None if math.isnan(number) else float(number)
