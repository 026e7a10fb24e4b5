"""Naming: the cells of a field, from their boxes to probabilities, over the bare network on the same windows.

A window that is looked at again counts on both sides: naming asks the network about it four times, and so does the
bare network here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.bench.fields import sample_fields
from smearcount.bench.timing import Contender, alternate
from smearcount.cards import ClassifierCard, Model, find_model, list_models
from smearcount.classifier import Classifier, calibrated, quarter_turns
from smearcount.config import Settings
from smearcount.detector import Detector, PixelSource
from smearcount.errors import ImageError, UsageError
from smearcount.geometry import FloatArray, centres
from smearcount.images import open_image
from smearcount.patches import Pixels, sample_window, to_batch
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
    """

    image: Path | None = None
    um_per_px: float | None = None
    classifiers: tuple[str, ...] = ()
    cells: int = 100
    threads: int = 2
    rounds: int = 15


def bench_naming(job: NamingJob) -> dict[str, Any]:
    """Milliseconds for all cells and for one, and naming over the bare network, for each classifier.

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
        figures[model.card.id] = _times(model, source, boxes, (scale.um_per_px, job))
    return figures


def _times(model: Model, source: PixelSource, boxes: FloatArray, how: tuple[float, NamingJob]) -> dict[str, Any]:
    """The times of one classifier."""
    um_per_px, job = how
    contenders: dict[str, Contender] = {}
    again: dict[str, float] = {}
    views = _views(model.classifier_card, source, boxes, um_per_px)
    for label, precision in (("f32", "f32"), ("default", "auto")):
        choice = RuntimeChoice("openvino", "cpu", precision, job.threads)
        classifier = Classifier(model, choice)
        run, _ = make_runtime(model, choice)
        chunks = [views[row : row + run.at_once] for row in range(0, len(views), run.at_once)]
        batches = [to_batch(chunk, classifier.card.mean, classifier.card.std) for chunk in chunks]
        unsure = [_unsure(run, batch, classifier.card) for batch in batches]
        again[f"share looked at again, {label}"] = round(float(np.concatenate(unsure).mean()), 3)
        batches += [quarter_turns(batch[rows]) for batch, rows in zip(batches, unsure, strict=True) if rows.any()]
        contenders[f"naming, {label}"] = partial(classifier.name, source, boxes, um_per_px)
        contenders[f"network, {label}"] = partial(_run_all, run, batches)
    laps = alternate(contenders, job.rounds)
    ms = {name: 1000 * each.wall for name, each in laps.items()}
    figures = {f"{name} (ms)": round(value, 2) for name, value in ms.items()} | again
    for label in ("f32", "default"):
        naming, network = ms[f"naming, {label}"], ms[f"network, {label}"]
        figures[f"a cell, {label} (ms)"] = round(naming / job.cells, 3)
        figures[f"naming over network, {label}"] = round(naming / network, 3)
        used = laps[f"naming, {label}"].cpu / laps[f"network, {label}"].cpu
        figures[f"naming over network, {label}, processor time"] = round(used, 3)
    return figures


def _views(card: ClassifierCard, source: PixelSource, boxes: FloatArray, um_per_px: float) -> list[Pixels]:
    """What the network sees of these cells."""
    side_px = card.patch_um / um_per_px
    return [sample_window(source, (x, y), side_px, card.input_px)[0] for x, y in centres(boxes).tolist()]


def _unsure(run: Runtime, batch: FloatArray, card: ClassifierCard) -> npt.NDArray[np.bool_]:
    """Which cells of a batch are looked at again."""
    return np.asarray(calibrated(run(batch)[0], card.temperature).max(axis=1) < np.float32(card.second_look))


def _run_all(run: Runtime, batches: list[FloatArray]) -> None:
    for batch in batches:
        run(batch)
