"""Naming: the cells of a field, from their boxes to probabilities, over the bare network on the same windows.

A window that is looked at again counts on both sides: naming asks the network about it four times, and so does the
bare network here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import Bools, FloatArray, Pixels
from smearcount.bench.fields import sample_fields
from smearcount.bench.timing import Contender, alternate
from smearcount.cards import ClassifierCard, Model, find_model, list_models
from smearcount.classifier import Batch, Classifier, calibrated, quarter_turns
from smearcount.config import Settings
from smearcount.detector import Detector
from smearcount.errors import ImageError, UsageError
from smearcount.geometry import centres
from smearcount.images import PixelSource, open_image
from smearcount.patches import sample_window, to_batch
from smearcount.runtimes import Runtime, RuntimeChoice, make_runtime
from smearcount.scale import find_at_scale

__all__ = ["NamingJob", "bench_naming"]


@dataclass(frozen=True)
class NamingJob:
    """What is timed.

    Attributes:
        image: a field; the first sample smear without one.
        um_per_px: its scale, estimated where it is None.
        classifiers: ids or folders; all shipped ones without any.
        cells: number of cells; those of the kinds that a classifier is asked about, or all where the field has none
            of them, come again until there are as many.
        threads: CPU threads of every contender.
        rounds: repetitions.
        runtime: the library of the networks, as in `RuntimeChoice`.
        device: where they run, as in `RuntimeChoice`.
    """

    image: Path | None = None
    um_per_px: float | None = None
    classifiers: tuple[str, ...] = ()
    cells: int = 100
    threads: int = 2
    rounds: int = 15
    runtime: str = "auto"
    device: str = "cpu"


def bench_naming(job: NamingJob) -> dict[str, Any]:
    """Milliseconds for all cells and for one, and naming over the bare network.

    Returns:
        Those of each classifier, by its id; and with several as `field` those of cells in the proportions of the field,
        each named by the classifier that is asked about its kind.

    Raises:
        UsageError: there is no classifier.
        ImageError: there is no picture, or no cell in it.
    """
    models = [find_model(name) for name in job.classifiers]
    models = models or [model for model in list_models() if model.card.task == "classifier"]
    if not models:
        raise UsageError("no classifier is installed; give one with --classifier ID or FOLDER")
    source = open_image(job.image or sample_fields()[0])
    detector = Detector(find_model(Settings().detector), RuntimeChoice("openvino", "cpu", "f32", job.threads))
    scale, found = find_at_scale(source, detector, job.um_per_px, source.um_per_px)
    if not len(found):
        raise ImageError(f"{source.path}: no cells to name; give another picture")
    figures: dict[str, Any] = {"cells": job.cells, "threads": job.threads, "rounds": job.rounds}
    for model in models:
        asked = found.boxes[np.isin(found.kinds, model.classifier_card.kinds)]
        boxes = np.resize(asked if len(asked) else found.boxes, (job.cells, 4))
        figures[model.card.id] = _times([(model, boxes)], source, scale.um_per_px, job)
    if len(models) > 1:
        some = found.take(np.resize(np.arange(len(found)), job.cells))
        mixed = [(model, some.boxes[np.isin(some.kinds, model.classifier_card.kinds)]) for model in models]
        mixed = [(model, boxes) for model, boxes in mixed if len(boxes)]
        figures["field"] = _times(mixed, source, scale.um_per_px, job) if mixed else {}
    return figures


def _times(
    asked: Sequence[tuple[Model, FloatArray]], source: PixelSource, um_per_px: float, job: NamingJob
) -> dict[str, Any]:
    """The times of some classifiers one after the other, each with the boxes of the cells that it is asked about."""
    cells = sum(len(boxes) for _, boxes in asked)
    contenders: dict[str, Contender] = {}
    figures: dict[str, Any] = {"cells named": cells}
    for label, precision in (("f32", "f32"), ("default", "auto")):
        choice = RuntimeChoice(job.runtime, job.device, precision, job.threads)
        named = [(_One(model, choice), boxes) for model, boxes in asked]
        looks = [(one, *one.batches(source, boxes, um_per_px)) for one, boxes in named]
        figures[f"runtime, {label}"] = ", ".join(dict.fromkeys(one.runtime for one, _ in named))
        figures[f"share looked at again, {label}"] = round(sum(again for *_, again in looks) / cells, 3)
        contenders[f"naming, {label}"] = partial(_name_all, named, source, um_per_px)
        contenders[f"network, {label}"] = partial(_run_all, [(one.run, batches) for one, batches, _ in looks])
    laps = alternate(contenders, job.rounds)
    ms = {name: 1000 * lap.wall for name, lap in laps.items()}
    figures |= {f"{name} (ms)": round(value, 2) for name, value in ms.items()}
    for label in ("f32", "default"):
        naming, network = ms[f"naming, {label}"], ms[f"network, {label}"]
        figures[f"a cell, {label} (ms)"] = round(naming / cells, 3)
        figures[f"cells a second, {label}"] = round(1000 * cells / naming)
        figures[f"naming over network, {label}"] = round(naming / network, 3)
        used = laps[f"naming, {label}"].cpu / laps[f"network, {label}"].cpu
        figures[f"naming over network, {label}, processor time"] = round(used, 3)
    return figures


class _One:
    """A classifier, and its bare network beside it."""

    def __init__(self, model: Model, choice: RuntimeChoice) -> None:
        self.classifier = Classifier(model, choice)
        self.run, self.runtime = make_runtime(model, choice)
        if "cuda" in self.runtime:  # a graphics card is handed grey levels, a quarter of the bytes
            self.run, _ = make_runtime(model, replace(choice, levels="views"))

    def batches(self, source: PixelSource, boxes: FloatArray, um_per_px: float) -> tuple[list[Batch], int]:
        """All that the network is asked for these cells, and how many of them are looked at again."""
        card = self.classifier.card
        views = _views(card, source, boxes, um_per_px)
        chunks = [views[row : row + self.run.at_once] for row in range(0, len(views), self.run.at_once)]
        levels = self.run.input_dtype == np.uint8
        batches = [np.stack(chunk) if levels else to_batch(chunk, card.mean, card.std) for chunk in chunks]
        unsure = [_unsure(self.run, batch, card) for batch in batches]
        turned = [quarter_turns(batch[rows]) for batch, rows in zip(batches, unsure, strict=True) if rows.any()]
        return batches + turned, int(np.concatenate(unsure).sum())


def _views(card: ClassifierCard, source: PixelSource, boxes: FloatArray, um_per_px: float) -> list[Pixels]:
    """What the network sees of these cells."""
    side_px = card.patch_um / um_per_px
    return [sample_window(source, (x, y), side_px, card.input_px)[0] for x, y in centres(boxes).tolist()]


def _unsure(run: Runtime, batch: Batch, card: ClassifierCard) -> Bools:
    """Which cells of a batch are looked at again."""
    return np.asarray(calibrated(run(batch)[0], card.temperature).max(axis=1) < np.float32(card.second_look))


def _name_all(named: Sequence[tuple[_One, FloatArray]], source: PixelSource, um_per_px: float) -> None:
    for one, boxes in named:
        one.classifier.name(source, boxes, um_per_px)


def _run_all(asked: Sequence[tuple[Runtime, list[Batch]]]) -> None:
    for run, batches in asked:
        for batch in batches:
            run(batch)
