"""`smearcount evaluate names`: labelled cells of whole fields, as the pipeline finds and names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import Bools
from smearcount.errors import DatasetError
from smearcount.pipeline import Analysis, Pipeline
from smearcount.progress import Progress
from smearcount.records import UNCLASSIFIED, SmearResult
from smearcount.slide_scale import SlideScales, pooled_scales, spread_rows
from smearcount.training.cell_sources import CellSource
from smearcount.training.labelled_points import LabelledPoint, labelled_points

__all__ = ["NamedPoints", "field_scales", "name_points", "point_figures"]

MISSED = "missed"
"""What is predicted for a labelled cell that was not found as a cell of the right kind."""


@dataclass(frozen=True)
class NamedPoints:
    """Labelled cells of whole fields, and what the pipeline made of them.

    Attributes:
        truth: code of each labelled cell.
        named: code given, `unclassified`, or `missed`.
        best: the most probable code whatever its probability, or `missed`.
        kinds: kind of the found cell, or `missed`.
        fields: number of fields.
    """

    truth: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    best: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)

    def without(self, codes: Collection[str]) -> NamedPoints:
        """The same without the cells of some codes."""
        rows = [row for row, code in enumerate(self.truth) if code not in codes]
        columns = (self.truth, self.named, self.best, self.kinds)
        truth, named, best, kinds = ([column[row] for row in rows] for column in columns)
        return NamedPoints(truth, named, best, kinds, self.fields)


def name_points(
    pipeline: Pipeline,
    source: tuple[str, CellSource],
    split: str,
    *,
    own_scale: bool,
    scales: SlideScales | None = None,
    progress: Progress = iter,
) -> NamedPoints:
    """Analyse every field of a collection, and look its labelled cells up in the result.

    Args:
        pipeline: finds and names.
        source: name and entry of a collection of points or typed fields, its classes by codes of the taxonomy; a cell
            is sought among those of the kind of its code.
        split: `train` or `val`.
        own_scale: take the scale of the collection instead of estimating it as for an unknown picture.
        scales: of all fields, where they are to be looked at as those of one slide.
        progress: wraps the list of pictures.
    """
    by_path: dict[Path, list[LabelledPoint]] = {}
    for point in labelled_points(*source, split, _merged(pipeline)):
        by_path.setdefault(point.path, []).append(point)
    out = NamedPoints()
    for path in progress(list(by_path)):
        points = by_path[path]
        given = points[0].um_per_px if own_scale else None
        analysis = pipeline.analyze(path, um_per_px=given, slide_scales=scales)
        out.fields.add(path.name)
        for point in points:
            _look_up(analysis, point, pipeline.taxonomy.kind_of[point.code], out)
    return out


def _merged(pipeline: Pipeline) -> dict[str, str]:
    """The code that a classifier gives of those merged into it, by each that none gives any more."""
    given = pipeline.namer.codes
    listed = [(old, new) for new in given for old in pipeline.taxonomy.codes[new].merges if old not in given]
    return dict(listed)


def field_scales(pipeline: Pipeline, source: tuple[str, CellSource], split: str) -> SlideScales:
    """The scale of all fields of a collection as if they were one slide of a batch."""
    paths = sorted({point.path for point in labelled_points(*source, split)})
    found = [pipeline.measure(paths[row]) for row in spread_rows(len(paths))]
    return pooled_scales(((each.size_wh, each.diameters_px) for each in found), len(paths))


def _look_up(analysis: Analysis, point: LabelledPoint, kind: str, out: NamedPoints) -> None:
    """The cell whose box holds a point, of its kind as the detector saw it; the one whose centre is nearest."""
    result = analysis.result
    boxes, right = result.detections.boxes, _of_kind(result, kind)
    if point.xy is None:
        held = np.flatnonzero(right)
        size = (boxes[held, 2:] - boxes[held, :2]).prod(axis=1)
        nearest = held[np.argsort(-size)]
    else:
        x, y = point.xy
        inside = (boxes[:, 0] <= x) & (boxes[:, 1] <= y) & (boxes[:, 2] >= x) & (boxes[:, 3] >= y)
        held = np.flatnonzero(inside & right)
        middles = (boxes[held, :2] + boxes[held, 2:]) / 2
        nearest = held[np.argsort(np.hypot(middles[:, 0] - x, middles[:, 1] - y))]
    out.truth.append(point.code)
    if not len(nearest):
        out.named.append(MISSED)
        out.best.append(MISSED)
        out.kinds.append(MISSED)
        return
    row = int(nearest[0])
    named, probs = str(result.names[row]), result.labels.probs[row]
    best = result.labels.codes[int(probs.argmax())] if probs.any() else named
    out.named.append(named)
    out.best.append(best)
    out.kinds.append(str(result.detections.kinds[row]))


def _of_kind(result: SmearResult, kind: str) -> Bools:
    """Which cells `(N,)` the detector took for a kind, as far as that can be told from what they are now."""
    kinds = result.detections.kinds
    if kind == "platelet":
        return np.asarray(kinds == kind)
    asked = result.labels.probs.any(axis=1) if result.labels.codes else kinds != "platelet"
    # A red cell that is named a platelet is one by now, but was found.
    return np.asarray(asked & (~np.isin(kinds, ("wbc", "nrbc")) if kind == "rbc" else kinds != "rbc"))


def point_figures(points: NamedPoints, given: Sequence[str] = ()) -> dict[str, Any]:
    """Share found, accuracy and macro-F1 over the labelled codes; a missed or unclassified cell is a wrong one.

    `at_best_guess` repeats both without abstention.

    Args:
        points: labelled cells and their names.
        given: codes that the classifiers can give; cells of others are left out, and counted as `strange`. Without any
            classifier none is left out.

    Raises:
        DatasetError: there is no labelled cell of these codes.
    """
    from sklearn.metrics import accuracy_score, f1_score

    strange = Counter(code for code in points.truth if given and code not in (*given, "platelet"))
    points = points.without(strange)
    if not points.truth:
        listed = f"; no classifier gives {', '.join(sorted(strange))}" if strange else ""
        remedy = "see `classes` of the collection, or name other classifiers with --config"
        raise DatasetError(f"expected cells that are labelled with one code, got none{listed}; {remedy}")
    codes = sorted(set(points.truth))

    def both(said: list[str]) -> dict[str, float]:
        f1 = f1_score(points.truth, said, labels=codes, average="macro", zero_division=0)
        return {"accuracy": float(accuracy_score(points.truth, said)), "macro_f1": float(f1)}

    n = len(points.truth)
    per_code = f1_score(points.truth, points.named, labels=codes, average=None, zero_division=0)
    return {
        "cells": n,
        "fields": len(points.fields),
        "found": 1 - points.named.count(MISSED) / n,
        "unclassified": points.named.count(UNCLASSIFIED) / n,
        **both(points.named),
        "at_best_guess": both(points.best),
        "f1": dict(zip(codes, (round(float(value), 4) for value in per_code), strict=True)),
        "support": {code: points.truth.count(code) for code in codes},
        "strange": dict(sorted(strange.items())),
    }
