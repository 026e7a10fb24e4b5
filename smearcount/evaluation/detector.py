"""`smearcount evaluate detector`: average precision, agreement and counting error on labelled fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import Bools, FloatArray
from smearcount.cards import Metric, Model, find_model
from smearcount.counting import counted_mask
from smearcount.datasets import KINDS, LabelledField, choose_sources, read_source
from smearcount.detector import Detector
from smearcount.errors import DatasetError, UsageError
from smearcount.geometry import centres
from smearcount.images import ImageSource, open_image
from smearcount.metrics import BoxPair, best_threshold, count_error, evaluate_pairs
from smearcount.progress import Progress
from smearcount.records import Detections
from smearcount.runtimes import RuntimeChoice
from smearcount.scale import find_at_scale

__all__ = ["EvaluationJob", "FieldPairs", "box_pairs", "card_metrics", "evaluate", "labelled_fields"]

LOWEST_SCORE = 1e-5
"""Average precision looks at the whole curve, counts only at what is above the card's thresholds."""

CANDIDATES = tuple(round(0.25 + 0.01 * step, 2) for step in range(46))
"""Thresholds tried by `--fit`."""


@dataclass(frozen=True)
class EvaluationJob:
    """What is measured.

    Attributes:
        model: id or folder.
        sources: collections of `configs/datasets.yaml`.
        split: `train` or `val`.
        scale: `labels` takes the scale from the labelled red cells, `estimated` as for an unknown picture.
        on_card: write the figures on the card of the model.
        fit: first set the thresholds of kinds with labelled cells to those at which the counts come out right.
        datasets: a file like `configs/datasets.yaml`, which is taken without one.
    """

    model: str
    sources: tuple[str, ...]
    split: str = "val"
    scale: str = "labels"
    on_card: bool = False
    fit: bool = False
    datasets: Path | None = None

    def __post_init__(self) -> None:
        """Check the words."""
        if self.split not in ("train", "val") or self.scale not in ("labels", "estimated"):
            raise UsageError(
                f"expected split train or val and scale labels or estimated, got {self.split!r} and {self.scale!r}"
            )


def labelled_fields(sources: Iterable[str], split: str, datasets: Path | None = None) -> list[LabelledField]:
    """The labelled fields of some collections, of which there is one at least.

    Raises:
        DatasetError: the data are not at hand, or their list is empty.
        UsageError: a collection is unknown.
    """
    root, chosen = choose_sources(sources, datasets)
    fields = [field for source in chosen for field in read_source(root, source, split)]
    if not fields:
        names = ", ".join(source.name for source in chosen)
        raise DatasetError(f"no field in the {split} list of {names}; add image stems to {split}.txt, or name others")
    return fields


@dataclass(frozen=True)
class FieldPairs:
    """Found and labelled boxes of some fields, three times; without strips at the border in which labels are missing.

    Attributes:
        curve: found at a very low threshold, each kind by itself, for average precision, which ranks the boxes of a
            kind: one that is likelier another kind has its place there too.
        usual: found as the product finds them.
        framed: of these, what the counting frame of a report takes.
        left_out: by collection with such a strip, its width in pixels and the number of labels in it.
    """

    curve: list[BoxPair]
    usual: list[BoxPair]
    framed: list[BoxPair]
    left_out: dict[str, Counter[str]]


def box_pairs(model: Model, fields: Iterable[LabelledField], scale: str) -> FieldPairs:
    """Run a detector on every field; the scale is that of the labels, or estimated as for an unknown picture."""
    detector, ranking = Detector(model, RuntimeChoice()), Detector(model, RuntimeChoice(), LOWEST_SCORE, each_kind=True)
    pairs = FieldPairs([], [], [], {})
    for field in fields:
        source = open_image(field.path)
        um_per_px = _scale_of(field, source, detector, scale)
        pairs.curve.append(_pair(field, source.size_wh, ranking.find(source, um_per_px)))
        pairs.usual.append(_pair(field, source.size_wh, detector.find(source, um_per_px)))
        pairs.framed.append(_framed(pairs.usual[-1], field.border_px, source.size_wh, um_per_px))
        if field.border_px:
            left = pairs.left_out.setdefault(field.source, Counter({"border_px": field.border_px}))
            left["labels"] += len(field.boxes) - len(pairs.usual[-1].true_boxes)
    return pairs


def _scale_of(field: LabelledField, source: ImageSource, detector: Detector, scale: str) -> float:
    return find_at_scale(source, detector)[0].um_per_px if scale == "estimated" else field.um_per_px


def _pair(field: LabelledField, size_wh: tuple[int, int], cells: Detections) -> BoxPair:
    """What was found and labelled in a field, without the strip at its border in which labels are missing."""
    true = _within(field.boxes, size_wh, field.border_px)
    cells = cells.take(_within(cells.boxes, size_wh, field.border_px))
    return BoxPair(
        image_id=field.path.name,
        group=field.source,
        found_boxes=cells.boxes,
        found_scores=cells.scores,
        found_kinds=np.array([KINDS.index(kind) for kind in cells.kinds.tolist()], np.int64),
        true_boxes=field.boxes[true],
        true_kinds=field.kinds[true],
        labelled=frozenset(KINDS.index(kind) for kind in field.labelled),
    )


def _within(boxes: FloatArray, size_wh: tuple[int, int], border_px: int) -> Bools:
    """Which boxes have their centre at least `border_px` from the border of the picture."""
    if not border_px:
        return np.ones(len(boxes), np.bool_)
    centre = centres(boxes)
    inner: Bools = np.all((centre >= border_px) & (centre < np.array(size_wh) - border_px), axis=1)
    return inner


def _framed(pair: BoxPair, border_px: int, size_wh: tuple[int, int], um_per_px: float) -> BoxPair:
    """Only the boxes, found and labelled, that would enter the counts of a report on the labelled part of a field."""
    inner_wh = size_wh[0] - 2 * border_px, size_wh[1] - 2 * border_px
    found, _ = counted_mask(pair.found_boxes - np.float32(border_px), inner_wh, um_per_px)
    true, _ = counted_mask(pair.true_boxes - np.float32(border_px), inner_wh, um_per_px)
    return replace(
        pair,
        found_boxes=pair.found_boxes[found],
        found_scores=pair.found_scores[found],
        found_kinds=pair.found_kinds[found],
        true_boxes=pair.true_boxes[true],
        true_kinds=pair.true_kinds[true],
    )


def evaluate(job: EvaluationJob, progress: Progress = iter) -> dict[str, Any]:
    """Measure a detector; the figures by look and overall, as `metrics.evaluate_pairs` gives them.

    All boxes are compared with all labels, but for strips in which labels are missing: `left_out_at_border` has
    their width and the number of labels there. `counting_frame` repeats the counting errors for the cells that the
    corner rule takes, which is what a report on the rest would count. `not_fitted` are the kinds without a labelled
    cell, whose thresholds a fit leaves as they are on the card.

    Raises:
        DatasetError: the labelled data are not at hand.
        UsageError: thresholds are to be fitted, but there is no labelled cell.
    """
    model = find_model(job.model)
    by_path = {field.path: field for field in labelled_fields(job.sources, job.split, job.datasets)}
    not_fitted: dict[str, list[str]] = {}
    if job.fit:
        fitted = _fitted(model, (by_path[path] for path in progress(list(by_path))), job)
        model = _with_thresholds(model, fitted, f"{', '.join(job.sources)}, {job.split} list")
        not_fitted["not_fitted"] = [kind for kind in KINDS if kind not in fitted]
    pairs = box_pairs(model, (by_path[path] for path in progress(list(by_path))), job.scale)
    card = model.detector_card
    thresholds = [card.min_score[kind] for kind in KINDS]
    figures = {"model": card.id, "split": job.split, "scale": job.scale, "thresholds": card.min_score, **not_fitted}
    figures |= evaluate_pairs(pairs.usual, KINDS, thresholds, pairs.curve)
    figures["left_out_at_border"] = {group: dict(left) for group, left in pairs.left_out.items()}
    figures["counting_frame"] = {
        group: {kind: asdict(count_error(members, i, thresholds[i])) for i, kind in enumerate(KINDS) if i in labelled}
        for group, members, labelled in _by_group(pairs.framed)
    }
    if job.on_card:
        _to_card(model, figures)
    return figures


def _by_group(pairs: list[BoxPair]) -> Iterator[tuple[str, list[BoxPair], frozenset[int]]]:
    for group in sorted({pair.group for pair in pairs}):
        members = [pair for pair in pairs if pair.group == group]
        present = {int(kind) for pair in members for kind in pair.true_kinds}
        yield group, members, members[0].labelled & present


def _fitted(model: Model, fields: Iterable[LabelledField], job: EvaluationJob) -> dict[str, float]:
    """The best threshold of each kind that has labelled cells."""
    usual, candidates = Detector(model, RuntimeChoice()), Detector(model, RuntimeChoice(), CANDIDATES[0])
    pairs = []
    for field in fields:
        source = open_image(field.path)
        cells = candidates.find(source, _scale_of(field, source, usual, job.scale))
        pairs.append(_pair(field, source.size_wh, cells))
    labelled = {int(kind) for pair in pairs for kind in pair.labelled.intersection(pair.true_kinds.tolist())}
    if not labelled:
        raise UsageError(f"--fit: no labelled cell in {', '.join(job.sources)}, {job.split} list; name others")
    return {kind: best_threshold(pairs, index, CANDIDATES) for index, kind in enumerate(KINDS) if index in labelled}


def _with_thresholds(model: Model, fitted: dict[str, float], where: str) -> Model:
    """The model with the thresholds fitted; those of other kinds stay, and the card says where each is from."""
    from smearcount.training.packaging import update_card

    card = model.detector_card
    if rest := [kind for kind in card.min_score if kind not in fitted]:
        told = f"{where} for {', '.join(fitted)}; {', '.join(rest)} from "
        where = told + card.min_score_from.removeprefix(told)
    update_card(model.folder, min_score={**card.min_score, **fitted}, min_score_from=where)
    return Model(model.folder)


def _to_card(model: Model, figures: dict[str, Any]) -> None:
    """Put figures in the place of those of the same fields at a scale of the same origin."""
    from smearcount.training.packaging import update_card

    measured = tuple(f"{group}, {_suffix(figures)}, " for group in figures["groups"])
    kept = [m for m in model.card.metrics if not f"{m.data}, ".startswith(measured)]
    update_card(model.folder, metrics=[m.model_dump() for m in [*kept, *card_metrics(figures)]])


def card_metrics(figures: dict[str, Any]) -> list[Metric]:
    """The figures that belong on a card: per look, average precision, agreement and counting error.

    Kinds without a labelled cell have none.
    """
    metrics = []
    for group, summary in figures["groups"].items():
        data = f"{group}, {_suffix(figures)}"
        if left := figures["left_out_at_border"].get(group):
            data += f", without {left['border_px']} px at the border"
        pooled = {name: value for name, value in summary.items() if name.startswith("pooled_") and value is not None}
        metrics += [Metric(name=name, data=data, n=summary["n_fields"], value=value) for name, value in pooled.items()]
        for kind, values in summary["kinds"].items():
            if not values["true"]:
                continue
            low, high = values["f1_interval"]
            metrics.append(
                Metric(
                    name=f"{kind} F1 at IoU 0.5", data=data, n=values["true"], value=values["f1"], low=low, high=high
                )
            )
            low, high = values["pooled_relative_interval"]
            error = values["pooled_relative"]
            metrics.append(
                Metric(name=f"{kind} count error", data=data, n=values["true"], value=error, low=low, high=high)
            )
    return metrics


def _suffix(figures: dict[str, Any]) -> str:
    """What the card says of the fields of a look: their list, and where their scale is from."""
    return f"{figures['split']}, scale {'from labels' if figures['scale'] == 'labels' else 'estimated'}"
