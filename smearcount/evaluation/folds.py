"""`smearcount train folds`: cross-validation, in which every labelled cell is judged by a network that never saw it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import Bools, FloatArray, Indices
from smearcount.calibration import fit_temperature
from smearcount.cards import Model
from smearcount.cellsets import CellSet
from smearcount.classifier import calibrated
from smearcount.errors import ConfigError, UsageError
from smearcount.evaluation.cells import CellViews, heat_of, judge_cells
from smearcount.images import make_folder, write_text_atomic
from smearcount.judging import Judged, figures, write_report
from smearcount.judging.record import SMALLEST
from smearcount.progress import Report
from smearcount.report import Row, to_csv
from smearcount.training.classifier import check_training, train_classifier
from smearcount.training.naming_cells import data_of, fair_cells, refuse_untrained_codes
from smearcount.training.naming_data import is_first
from smearcount.training.naming_model import finish_run
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.painted_cells import PAINTED
from smearcount.training.splits import folds

__all__ = ["COLUMNS", "FoldsJob", "cross_validate"]

COLUMNS = ("fold", "training_cells", "held_cells", "leaks", "accuracy", "macro_f1", "epochs", "seconds")
"""Columns of `folds.csv`."""


@dataclass(frozen=True)
class FoldsJob:
    """What `smearcount train folds` was asked for.

    Attributes:
        recipe: of every training; its split of the cells is not used.
        name: of the recipe.
        n: number of folds.
        out: folder, with one for each fold.
    """

    recipe: ClassifierRecipe
    name: str
    n: int
    out: Path


def cross_validate(job: FoldsJob, cells: CellSet, report: Report | None = None) -> dict[str, Any]:
    """Train a recipe once for each fold without the cells of that fold, then judge these by it; one report of all.

    Groups are never divided, and the codes are spread evenly over the folds. Painted cells are trained on where the
    cell below the paint is, and never judged. Finished folds are kept: run again, it goes on where it was. The folder
    gets the report of `evaluate classifier` over all cells, and `folds.csv`; that of each fold the model, and
    `leaks.txt`. The temperature by which the cells of a fold are judged is fitted to those of the other folds.

    Args:
        job: what is to be done.
        cells: of the recipe, however they are split.
        report: takes the lines of the trainings.

    Returns:
        The figures over all cells; nothing in the second and later ones of several training processes.

    Raises:
        ConfigError: there are fewer groups than folds, all cells of a code are in one fold, a fold has nothing to
            judge, or the recipe can't be trained.
    """
    say = report or (lambda _: None)
    held = _held_in(job, cells)
    # What stops one training stops all of them before the first.
    parts = [_divided(job, cells, held, fold) for fold in range(job.n)]
    models = []
    for fold, (part, leaks) in enumerate(parts):
        folder, name = _folder(job, fold), f"fold {fold + 1}"
        say(f"{name}: {leaks} leaks removed (leaks.txt)")
        train_classifier(job.recipe, part, folder, report=lambda line, name=name: say(f"{name}: {line}"))  # type: ignore[misc]
        if is_first():
            models.append(Model(finish_run(folder, job.recipe, part, f"{job.name} {name}")))
    if not is_first():
        return {}
    real = ~_painted(cells)
    return _judge(job, cells.take(real), held[real], models, [leaks for _, leaks in parts])


def _painted(cells: CellSet) -> Bools:
    return np.asarray(np.char.startswith(cells.sources, PAINTED), np.bool_)


def _held_in(job: FoldsJob, cells: CellSet) -> Indices:
    """The fold `(N,)` in which each cell is judged; those of the same choice of codes count as a class."""
    real = ~_painted(cells)
    groups = np.unique(cells.groups[real])
    if len(groups) < job.n:
        raise ConfigError(
            f"{len(groups)} groups of cells can't be shared out among {job.n} folds; ask for fewer folds, or add cells"
        )
    _, choice = np.unique(cells.targets[real], axis=0, return_inverse=True)
    fold = folds(cells.groups[real], choice, job.n, job.recipe.seed)
    # Painted cells are where the cell below the paint is.
    fold_of = dict(zip(cells.groups[real].tolist(), fold.tolist(), strict=True))
    return np.array([fold_of[group] for group in cells.groups.tolist()], np.intp)


def _divided(job: FoldsJob, cells: CellSet, held: Indices, fold: int) -> tuple[CellSet, int]:
    """The cells with one fold for validation, and how many of the others went as they show the same as one of these."""
    divided = replace(cells, splits=np.where(held == fold, "val", "train"))
    fair, leaks = fair_cells(divided.take((held != fold) | ~_painted(cells)), _folder(job, fold))
    try:
        refuse_untrained_codes(fair, data_of(job.recipe))
        check_training(job.recipe, fair)
    except (ConfigError, UsageError) as error:
        told = f"fold {fold + 1} of {job.n}: {error}; or ask for another number of folds"
        raise ConfigError(told) from error
    return fair, leaks


def _folder(job: FoldsJob, fold: int) -> Path:
    return make_folder(job.out / f"fold-{fold + 1}")


def _judge(job: FoldsJob, cells: CellSet, held: Indices, models: list[Model], leaks: list[int]) -> dict[str, Any]:
    """The report over all cells, each named by the model of its fold."""
    card = models[0].classifier_card
    logits, rows = np.zeros((len(cells), len(card.codes)), np.float32), []
    for fold, model in enumerate(models):
        judged = judge_cells(model, cells.take(held == fold))
        logits[held == fold] = np.log(np.maximum(judged.probs, SMALLEST)) * model.classifier_card.temperature
        rows.append({**_row(job, fold, figures(judged)), "leaks": leaks[fold]})
    probs = np.zeros_like(logits)
    for fold in range(job.n):
        others = fit_temperature(logits[held != fold], cells.targets[held != fold])
        probs[held == fold] = calibrated(logits[held == fold], others)
    views = CellViews(cells, card.patch_um, card.input_px)
    pooled = Judged(probs, cells.targets, card.codes, cells.origins, cells.sources, views, cells.shared_groups)

    def heat(wanted: Indices) -> FloatArray:
        maps = np.zeros((len(wanted), card.input_px, card.input_px), np.float32)
        for fold in np.unique(held[wanted]).tolist():
            own = held[wanted] == fold
            maps[own] = heat_of(models[fold], pooled)(wanted[own])
        return maps

    write_text_atomic(job.out / "folds.csv", to_csv(COLUMNS, rows))
    return write_report(pooled, job.out, f"{job.name}, {job.n} folds", heat)


def _row(job: FoldsJob, fold: int, found: dict[str, Any]) -> Row:
    summary = json.loads((_folder(job, fold) / "summary.json").read_text(encoding="utf-8"))
    return {
        **{"fold": fold + 1, "training_cells": summary["cells"]["train"], "held_cells": summary["cells"]["val"]},
        **{key: found[key]["value"] for key in ("accuracy", "macro_f1")},
        **{key: summary[key] for key in ("epochs", "seconds")},
    }
