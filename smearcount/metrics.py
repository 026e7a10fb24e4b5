"""How well found boxes agree with labelled ones: average precision, F1, counting error, intervals.

Boxes are `(N, 4) float32` x_min, y_min, x_max, y_max in pixels, half-open; kinds are indices. A kind that was not
labelled in a picture is left out of everything said of that picture: its found boxes are neither right nor wrong.
A box counts as found where `score >= min_score`. What can't be known (no labelled cell, say) is NaN.
Average precision is that of COCO (Lin et al. 2014, 10.1007/978-3-319-10602-1_48) as pycocotools computes it, and beside
it that of ultralytics, in which `yolo val` and most published figures of its networks are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, FloatArray, Indices
from smearcount.errors import RuntimeMissingError
from smearcount.geometry import iou_matrix
from smearcount.offline import ultralytics_module

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
    "match_boxes",
]

Formula = Literal["coco", "ultralytics"]
"""COCO takes the precision at 101 recalls, ultralytics the area under straight lines between them."""

OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Intersections over union from which on a found box is right, for average precision."""

Integers = npt.NDArray[np.integer[Any]]
MinScores = Mapping[int, float] | Sequence[float]


@dataclass(frozen=True, eq=False)
class BoxPair:
    """Found boxes `(N, 4) float32` and labelled ones `(M, 4) float32` of one picture, reported under its `group`.

    Scores are `(N,) float32`, kinds `(N,)` and `(M,)` integers; `labelled` are the kinds that were labelled at all.
    """

    image_id: str
    group: str
    found_boxes: FloatArray
    found_scores: FloatArray
    found_kinds: Integers
    true_boxes: FloatArray
    true_kinds: Integers
    labelled: frozenset[int]

    def __post_init__(self) -> None:
        """Check shapes, types and values."""
        found, true = (len(self.found_boxes),), (len(self.true_boxes),)
        shapes = {"found_boxes": (*found, 4), "found_scores": found, "found_kinds": found}
        for name, shape in (shapes | {"true_boxes": (*true, 4), "true_kinds": true}).items():
            array, kind = (getattr(self, name), np.integer if name.endswith("kinds") else np.float32)
            if array.shape != shape or not np.issubdtype(array.dtype, kind) or not np.isfinite(array).all():
                got = f"{array.dtype} of shape {array.shape}"
                raise ValueError(f"{name}: expected finite {kind.__name__} of shape {shape}, got {got} or a NaN in it")
        # Two boxes without area overlap by 0 / 0, which pycocotools takes for a match.
        if not (self.true_boxes[:, 2:] > self.true_boxes[:, :2]).all():
            raise ValueError("true_boxes: expected x_min < x_max and y_min < y_max, got a side of 0 or less")


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Average precision by kind, `(K,) float64`, NaN without labelled cells; the means are over those that have one."""

    map50: float
    map50_95: float
    ap50: Doubles
    ap50_95: Doubles


ByFormula = Mapping[Formula, AveragePrecision]


@dataclass(frozen=True, eq=False)
class Matches:
    """Indices of the pairs, `found` and `true` `(P,)`, best score first, and of the boxes left over, ascending."""

    found: Indices
    true: Indices
    unmatched_found: Indices
    unmatched_true: Indices


@dataclass(frozen=True)
class Agreement:
    """Found boxes that are right (tp) or wrong (fp), labelled ones missed (fn); F1 is 2 tp / (2 tp + fp + fn)."""

    tp: int
    fp: int
    fn: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CountError:
    """Counts wherever the boxes lie: (found - true) / true of the sums, positive where too many are counted.

    `mean_absolute_relative` is the mean of |found - true| / true over the `fields` that have a labelled cell.
    """

    found: int
    true: int
    pooled_relative: float
    mean_absolute_relative: float
    fields: int


def average_precision(pairs: Sequence[BoxPair], n_kinds: int, formula: Formula = "coco") -> AveragePrecision:
    """Average precision at an overlap of 0.50, and averaged over 0.50, 0.55 to 0.95; all found boxes count.

    Neither the order of the pictures (if group and name tell them apart) nor that of the boxes has an influence.

    Raises:
        ValueError: a labelled kind is not in `range(n_kinds)`.
        RuntimeMissingError: the library of the formula is not installed.
    """
    if not _labelled(pairs) <= set(range(n_kinds)):
        raise ValueError(f"expected labelled kinds from 0 to {n_kinds - 1}, got {sorted(_labelled(pairs))}")
    by_formula = _coco_precision if formula == "coco" else _ultralytics_precision
    by_overlap = by_formula(sorted(pairs, key=lambda pair: (pair.group, pair.image_id)), n_kinds)
    return _averaged(by_overlap[0], by_overlap.mean(axis=0))


def match_boxes(
    found_boxes: FloatArray, found_scores: FloatArray, true_boxes: FloatArray, min_iou: float = 0.5
) -> Matches:
    """Give each found box, best score first, the free labelled box that it overlaps most: the matching of COCO.

    Boxes are `(N, 4)` and `(M, 4)`; ties in score or overlap go to the smaller x_min, y_min, x_max, y_max.

    Raises:
        ValueError: `min_iou` is not in (0, 1].
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou: expected a number above 0 and at most 1, got {min_iou}")
    ranking = np.lexsort((*found_boxes.T[::-1], -found_scores))
    columns = np.lexsort(true_boxes.T[::-1])
    overlaps = iou_matrix(found_boxes[ranking], true_boxes[columns])
    matched: list[tuple[int, int]] = []
    for rank in np.flatnonzero((overlaps >= float(min_iou)).any(axis=1)):
        best = int(overlaps[rank].argmax())
        if overlaps[rank, best] >= float(min_iou):
            matched.append((ranking[rank], columns[best]))
            overlaps[:, best] = -1
    found, true = np.array(matched, np.intp).reshape(-1, 2).T
    unmatched = (np.setdiff1d(np.arange(len(every)), some) for every, some in ((ranking, found), (columns, true)))
    return Matches(found, true, *unmatched)


def count_error(pairs: Sequence[BoxPair], kind: int, min_score: float) -> CountError:
    """Error of the counts of one kind, over the pictures where it was labelled."""
    return _count_error(_tallies(pairs, kind, min_score))


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
    # The matching runs down the scores, so one is enough: what lies below a threshold changes nothing above it.
    scores = np.concatenate([scores for _, scores, _ in cells])
    right = np.concatenate([scores[match_boxes(boxes, scores, true).found] for boxes, scores, true in cells])
    rated = []
    for threshold in candidates:
        n_found, tp = (int(np.count_nonzero(part >= np.float32(threshold))) for part in (scores, right))
        rated.append((abs(n_found - n_true), -2 * tp / (n_found + n_true), threshold))
    best_f1 = max(-row[1] for row in rated)
    return min(row for row in rated if -row[1] >= best_f1 - 0.005)[2]


def bootstrap_interval(
    values_by_field: npt.NDArray[Any], statistic: Callable[[npt.NDArray[Any]], float], seed: int, n: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval over `n` draws of fields (Efron and Tibshirani 1993, chapter 13).

    `values_by_field (F, ...)` has a row a field, as the cells of a field are not independent. Draws where the statistic
    is NaN are left out. Fewer than two fields say nothing of how fields differ: NaN.
    """
    n_fields = len(values_by_field)
    draws = np.random.default_rng(seed).integers(0, max(n_fields, 1), (n, n_fields))
    drawn = [value for rows in draws if not math.isnan(value := statistic(values_by_field[rows]))]
    limits = np.percentile(drawn, (2.5, 97.5)).tolist() if n_fields > 1 and drawn else (math.nan, math.nan)
    return limits[0], limits[1]


def evaluate_pairs(
    pairs: Sequence[BoxPair],
    kind_names: Sequence[str],
    min_score_by_kind: MinScores,
    curve: Sequence[BoxPair] | None = None,
) -> dict[str, Any]:
    """Everything this module measures, as `{"groups": {group: ...}, "overall": ...}` ready for JSON, where NaN is None.

    `pooled_map50` and `pooled_map50_95` of a group take the average precision of platelets from all groups; those of
    ultralytics have its name before them. `n_fields` are those where the kind was labelled, `fields` those with a
    labelled cell of it.

    Args:
        pairs: found and labelled boxes of some pictures.
        kind_names: of the kinds 0, 1, ...
        min_score_by_kind: thresholds from which on a box is counted.
        curve: the same pictures with boxes of any score, for average precision; `pairs` without it.
    """
    curve = pairs if curve is None else curve
    rare = [kind for kind, name in enumerate(kind_names) if name == "platelet"]
    overall = _by_formula(curve, len(kind_names))
    groups: dict[str, dict[str, Any]] = {}
    for group in sorted({pair.group for pair in pairs}):
        members, ranked = ([pair for pair in some if pair.group == group] for some in (pairs, curve))
        own, lent = _by_formula(ranked, len(kind_names)), _labelled(ranked).intersection(rare)
        pooled = {formula: _pooled(own[formula], overall[formula], lent) for formula in own}
        means = {f"pooled_{name}": value for name, value in _means(pooled).items()}
        groups[group] = means | _summary(members, kind_names, min_score_by_kind, own)
    report = {"groups": groups, "overall": _summary(pairs, kind_names, min_score_by_kind, overall)}
    return dict(json.loads(json.dumps(report), parse_constant=lambda _: None))


def _summary(
    pairs: Sequence[BoxPair], kind_names: Sequence[str], min_score_by_kind: MinScores, precision: ByFormula
) -> dict[str, Any]:
    kinds = {}
    for kind, name in enumerate(kind_names):
        tallies = _tallies(pairs, kind, min_score_by_kind[kind])
        kinds[name] = {
            "n_fields": len(tallies),
            "min_score": float(min_score_by_kind[kind]),
            "ap50": precision["coco"].ap50[kind],
            "ap50_95": precision["coco"].ap50_95[kind],
            **asdict(_agreement(tallies)),
            "f1_interval": bootstrap_interval(tallies, lambda rows: _agreement(rows).f1, 0),
            **asdict(_count_error(tallies)),
            "pooled_relative_interval": bootstrap_interval(tallies, lambda rows: _count_error(rows).pooled_relative, 0),
        }
    return {"n_fields": len(pairs), **_means(precision), "kinds": kinds}


def _by_formula(pairs: Sequence[BoxPair], n_kinds: int) -> ByFormula:
    formulas: tuple[Formula, ...] = get_args(Formula)
    return {formula: average_precision(pairs, n_kinds, formula) for formula in formulas}


def _means(precision: ByFormula) -> dict[str, float]:
    """`map50` and `map50_95` of COCO, and those of ultralytics with its name before them."""
    return {
        f"{'' if formula == 'coco' else formula + '_'}{name}": getattr(of_kinds, name)
        for formula, of_kinds in precision.items()
        for name in ("map50", "map50_95")
    }


def _coco_precision(pairs: Sequence[BoxPair], n_kinds: int) -> Doubles:
    """Average precision `(10, K)` at overlaps of 0.50 to 0.95, NaN for kinds without labelled cells."""
    try:
        # By name, since the package has no types; late, since only an evaluation needs it.
        coco, cocoeval = (importlib.import_module(f"pycocotools.{part}") for part in ("coco", "cocoeval"))
    except ImportError as error:
        raise RuntimeMissingError("pycocotools is not installed: python -m pip install pycocotools") from error
    found, true = [], []
    for image, pair in enumerate(pairs):
        for kind in pair.labelled:
            boxes, scores, true_boxes = _of_kind(pair, kind)
            found.append(_coco_rows(image, kind, boxes, scores))
            # Reversed, as pycocotools gives a tie in overlap to the last labelled box, `match_boxes` to the first.
            true.append(_coco_rows(image, kind, true_boxes, np.ones(len(true_boxes), np.float32))[::-1])
    with contextlib.redirect_stdout(io.StringIO()):
        empty = coco.COCO()  # its loadRes fails on nothing
        images, categories = ([{"id": number} for number in range(n)] for n in (len(pairs), n_kinds))
        empty.dataset = {"images": images, "categories": categories, "annotations": []}
        empty.createIndex()
        tables = [empty.loadRes(np.concatenate(rows)) if any(map(len, rows)) else empty for rows in (true, found)]
        evaluation = cocoeval.COCOeval(*tables, "bbox")
        evaluation.params.iouThrs = np.array(OVERLAPS)
        evaluation.params.maxDets = [max([1, *map(len, found)])]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = ([[0, math.inf]], ["all"])
        evaluation.evaluate()
        evaluation.accumulate()
    by_recall = np.asarray(evaluation.eval["precision"], np.float64)[..., 0, 0]
    return np.asarray(np.where(by_recall < 0, np.nan, by_recall).mean(axis=1), np.float64)


def _ultralytics_precision(pairs: Sequence[BoxPair], n_kinds: int) -> Doubles:
    """The same `(10, K)` as the validation of ultralytics computes it."""
    metrics = ultralytics_module("utils.metrics")
    by_overlap = np.full((len(OVERLAPS), n_kinds), np.nan)
    for kind in _labelled(pairs):
        cells = [_of_kind(pair, kind) for pair in pairs if kind in pair.labelled]
        n_true = sum(len(true_boxes) for *_, true_boxes in cells)
        if n_true:
            right = np.concatenate([_right(boxes, scores, true_boxes) for boxes, scores, true_boxes in cells])
            scores = np.concatenate([scores for _, scores, _ in cells])
            # Places instead of scores, since it ranks those that are equal as it likes.
            order = np.argsort(-scores, kind="stable")
            found, true = np.zeros(len(order)), np.zeros(n_true)
            by_overlap[:, kind] = metrics.ap_per_class(right[order], -np.arange(len(order)), found, true)[5][0]
    return by_overlap


def _right(boxes: FloatArray, scores: FloatArray, true_boxes: FloatArray) -> Bools:
    """Which found boxes are right at each overlap, `(N, 10)`."""
    right = np.zeros((len(boxes), len(OVERLAPS)), np.bool_)
    for column, overlap in enumerate(OVERLAPS):
        right[match_boxes(boxes, scores, true_boxes, overlap).found, column] = True
    return right


def _coco_rows(image: int, kind: int, boxes: FloatArray, scores: FloatArray) -> Doubles:
    """Rows of image, x, y, width, height, score, kind."""
    same, corners = np.ones(len(boxes)), boxes.astype(np.float64)
    return np.column_stack((image * same, corners[:, :2], corners[:, 2:] - corners[:, :2], scores, kind * same))


def _labelled(pairs: Iterable[BoxPair]) -> set[int]:
    return {kind for pair in pairs for kind in pair.labelled}


def _of_kind(pair: BoxPair, kind: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Found boxes, best first, their scores and the labelled boxes of one kind; ties go by coordinates."""
    found, true = np.flatnonzero(pair.found_kinds == kind), np.flatnonzero(pair.true_kinds == kind)
    found = found[np.lexsort((*pair.found_boxes[found].T[::-1], -pair.found_scores[found]))]
    true = true[np.lexsort(pair.true_boxes[true].T[::-1])]
    return pair.found_boxes[found], pair.found_scores[found], pair.true_boxes[true]


def _tallies(pairs: Sequence[BoxPair], kind: int, min_score: float) -> Integers:
    """tp, fp and fn of each picture where the kind was labelled, `(F, 3) int64`."""
    rows = []
    for boxes, scores, true_boxes in (_of_kind(pair, kind) for pair in pairs if kind in pair.labelled):
        kept = scores >= np.float32(min_score)
        matches = match_boxes(boxes[kept], scores[kept], true_boxes)
        rows.append((len(matches.found), len(matches.unmatched_found), len(matches.unmatched_true)))
    return np.array(rows, np.int64).reshape(-1, 3)


def _agreement(tallies: Integers) -> Agreement:
    tp, fp, fn = tallies.sum(axis=0).tolist()
    return Agreement(tp, fp, fn, _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn))


def _count_error(tallies: Integers) -> CountError:
    found, true = tallies[:, 0] + tallies[:, 1], tallies[:, 0] + tallies[:, 2]
    relative = np.abs(found - true)[true > 0] / true[true > 0]
    sums = int(found.sum()), int(true.sum())
    return CountError(*sums, _ratio(sums[0] - sums[1], sums[1]), _mean_of_known(relative), len(relative))


def _pooled(own: AveragePrecision, of_all: AveragePrecision, kinds: Collection[int]) -> AveragePrecision:
    """Average precision of a group, of some kinds that of all groups."""
    taken = np.isin(np.arange(len(own.ap50)), sorted(kinds))
    return _averaged(np.where(taken, of_all.ap50, own.ap50), np.where(taken, of_all.ap50_95, own.ap50_95))


def _averaged(ap50: Doubles, ap50_95: Doubles) -> AveragePrecision:
    return AveragePrecision(_mean_of_known(ap50), _mean_of_known(ap50_95), ap50, ap50_95)


def _mean_of_known(values: Doubles) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
