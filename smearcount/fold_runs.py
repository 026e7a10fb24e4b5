"""`smearcount train folds`: cross-validation, in which every labelled cell is judged by a network that never saw it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.cards import Model
from smearcount.cellsets import CellSet
from smearcount.errors import ConfigError, UsageError
from smearcount.evaluate_cells import CellViews, heat_of, judge_cells
from smearcount.geometry import FloatArray
from smearcount.images import make_folder, write_text_atomic
from smearcount.judging import Judged, figures, write_report
from smearcount.report import Row, to_csv
from smearcount.training.classifier import check_training, train_classifier
from smearcount.training.naming_cells import data_of, fair_cells, refuse_untrained_codes
from smearcount.training.naming_data import is_first
from smearcount.training.naming_model import finish_run
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.splits import folds

__all__ = ["COLUMNS", "FoldsJob", "cross_validate"]

COLUMNS = ("fold", "training_cells", "held_cells", "accuracy", "macro_f1", "epochs", "seconds")
"""Columns of `folds.csv`."""

Report = Callable[[str], None]
Indices = npt.NDArray[np.intp]


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

    Groups are never divided, and the codes are spread evenly over the folds. Finished folds are kept: run again, it
    goes on where it was. The folder gets the report of `evaluate classifier` over all cells, and `folds.csv`; that of
    each fold the model, and `leaks.txt`.

    Args:
        job: what is to be done.
        cells: of the recipe, however they are split.
        report: takes the lines of the trainings.

    Returns:
        The figures over all cells; nothing in the second and later ones of several training processes.

    Raises:
        UsageError: there are fewer groups than folds.
        ConfigError: all cells of a code are in one fold, or the recipe can't be trained.
    """
    say = report or (lambda _: None)
    held = _held_in(job, cells)
    # What stops one training stops all of them before the first.
    parts = [_divided(job, cells, held, fold) for fold in range(job.n)]
    for part in parts:
        check_training(job.recipe, part)
    models = []
    for fold, part in enumerate(parts):
        folder = _folder(job, fold)
        train_classifier(job.recipe, part, folder, report=lambda line, n=fold + 1: say(f"fold {n}: {line}"))  # type: ignore[misc]
        if is_first():
            models.append(Model(finish_run(folder, job.recipe, part, f"{job.name} fold {fold + 1}")))
    return _judge(job, cells, held, models) if is_first() else {}


def _held_in(job: FoldsJob, cells: CellSet) -> Indices:
    """The fold `(N,)` in which each cell is judged; those of the same choice of codes count as a class."""
    groups = len(np.unique(cells.groups))
    if groups < job.n:
        raise UsageError(f"{job.name}: {groups} groups of cells can't be shared out among {job.n} folds; ask for fewer")
    _, choice = np.unique(cells.targets, axis=0, return_inverse=True)
    return folds(cells.groups, choice, job.n, job.recipe.seed)


def _divided(job: FoldsJob, cells: CellSet, held: Indices, fold: int) -> CellSet:
    """The cells with one fold for validation, without those of the others that show the same."""
    divided = replace(cells, splits=np.where(held == fold, "val", "train"))
    fair, _ = fair_cells(divided, _folder(job, fold))
    try:
        refuse_untrained_codes(fair, data_of(job.recipe))
    except ConfigError as error:
        raise ConfigError(f"fold {fold + 1} of {job.n}: {error}; or ask for more folds") from error
    return fair


def _folder(job: FoldsJob, fold: int) -> Path:
    return make_folder(job.out / f"fold-{fold + 1}")


def _judge(job: FoldsJob, cells: CellSet, held: Indices, models: list[Model]) -> dict[str, Any]:
    """The report over all cells, each named by the model of its fold."""
    card = models[0].classifier_card
    probs, rows = np.zeros((len(cells), len(card.codes)), np.float32), []
    for fold, model in enumerate(models):
        judged = judge_cells(model, cells.take(held == fold))
        probs[held == fold] = judged.probs
        rows.append(_row(job, fold, figures(judged)))
    views = CellViews(cells, card.patch_um, card.input_px)
    pooled = Judged(probs, cells.targets, card.codes, cells.origins, cells.sources, views, cells.groups)

    def heat(wanted: Indices) -> FloatArray:
        maps = np.zeros((len(wanted), card.input_px, card.input_px), np.float32)
        for fold in np.unique(held[wanted]).tolist():
            own = held[wanted] == fold
            maps[own] = heat_of(models[fold], pooled)(wanted[own])
        return maps

    write_text_atomic(job.out / "folds.csv", to_csv(COLUMNS, rows))
    write_report(pooled, job.out, f"{job.name}, {job.n} folds", heat)
    return figures(pooled)


def _row(job: FoldsJob, fold: int, found: dict[str, Any]) -> Row:
    summary = json.loads((_folder(job, fold) / "summary.json").read_text(encoding="utf-8"))
    return {
        **{"fold": fold + 1, "training_cells": summary["cells"]["train"], "held_cells": summary["cells"]["val"]},
        **{key: found[key]["value"] for key in ("accuracy", "macro_f1")},
        **{key: summary[key] for key in ("epochs", "seconds")},
    }
