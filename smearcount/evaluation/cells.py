"""`smearcount evaluate classifier`: a classifier on cells cut out as in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import Bools, FloatArray, Indices, Pixels
from smearcount.calibration import abstention_rows
from smearcount.cards import Metric, Model, find_model
from smearcount.cellsets import CellSet
from smearcount.classifier import Classifier
from smearcount.config import read_model
from smearcount.errors import UsageError
from smearcount.images import make_folder
from smearcount.judging import Judged, heat_maps, write_report
from smearcount.patches import to_batch
from smearcount.runtimes import RuntimeChoice
from smearcount.torch_nets import network_of
from smearcount.training.cell_views import plain_view
from smearcount.training.naming_cells import cells_of, named_recipe, refuse_data_folder
from smearcount.training.naming_model import listless, trained_on
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.packaging import update_card

__all__ = ["CellViews", "Judging", "card_rows", "heat_of", "judge_cells", "run_judging"]

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(4, 20))
"""Thresholds of abstention on a card."""


FITTED = (
    "The temperature of the model was fitted to {n} of these {of} cells: on new ones its probabilities may be less "
    "well calibrated."
)

CHOSE = " They also chose the epoch, by early stopping: on new ones all figures may be somewhat worse."

SEEN = (
    "The model was trained on {n} of these {of} cells, or on others of their groups: the figures are better than those "
    "of new cells."
)

LISTLESS = (
    "The model has no list of the cells that it was trained on: if some of these are among them, the figures are "
    "better than those of new cells."
)


@dataclass(frozen=True, eq=False)
class CellViews(Sequence[Pixels]):
    """What a network sees of the cells of a set, `(side, side, 3) uint8 RGB` each, made when asked for."""

    cells: CellSet
    patch_um: float
    side: int

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.cells)

    def __getitem__(self, row: Any) -> Any:
        """The view of a row, or a list of those of a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return plain_view(self.cells.pixels[row], float(self.cells.um_per_px[row]), self.patch_um, self.side)


def judge_cells(model: Model, cells: CellSet, choice: RuntimeChoice | None = None) -> Judged:
    """What a classifier says of labelled cells; of those that it can't be judged on (see `_strangers`), nothing."""
    classifier = Classifier(model, choice or RuntimeChoice())
    columns = [cells.codes.index(code) for code in classifier.card.codes if code in cells.codes]
    shared = np.isin(classifier.card.codes, cells.codes)
    targets = np.zeros((len(cells), len(classifier.card.codes)), bool)
    targets[:, shared] = cells.targets[:, columns]
    known = np.flatnonzero(~_strangers(cells, classifier.card.codes))
    kept = cells.take(known)
    views = CellViews(kept, classifier.card.patch_um, classifier.card.input_px)
    probs = classifier.name_views(views[i] for i in range(len(kept))).probs
    return Judged(probs, targets[known], classifier.card.codes, kept.origins, kept.sources, views, kept.shared_groups)


def heat_of(model: Model, judged: Judged) -> Callable[[Indices], FloatArray]:
    """Grad-CAM of what was predicted, for rows of judged cells."""
    card = model.classifier_card

    def heat(rows: Indices) -> FloatArray:
        batch = to_batch([judged.views[int(row)] for row in rows], card.mean, card.std)
        return heat_maps(network_of(model), batch, judged.predictions[rows])

    return heat


def card_rows(found: dict[str, Any], judged: Judged, where: str) -> tuple[list[Metric], list[tuple[float, ...]]]:
    """The figures that belong on a card, and accuracy against the share left unclassified."""
    metrics = [
        Metric(name=name.replace("_", " "), data=where, n=found["n"], **found[name])
        for name in ("accuracy", "macro_f1", "balanced_accuracy")
    ]
    metrics.append(Metric(name="expected calibration error", data=where, n=found["n"], value=found["ece"]))
    for row in found["per_class"]:
        if row["support"]:
            metrics.append(Metric(name=f"F1 of {row['code']}", data=where, n=row["support"], value=row["f1"]))
    rows = abstention_rows(judged.probs[judged.exact], judged.targets[judged.exact], THRESHOLDS)
    return metrics, [tuple(round(value, 4) for value in row) for row in rows if not np.isnan(row[2])]


@dataclass(frozen=True)
class Judging:
    """What `smearcount evaluate classifier` was asked for; the fields are its flags."""

    recipe: Path
    model: str
    split: str
    sources: tuple[str, ...]
    on_card: bool
    out: Path

    def __post_init__(self) -> None:
        """Check the split."""
        if self.split not in ("val", "train", "all"):
            raise UsageError(f"--split: expected val, train or all, got {self.split!r}")


def run_judging(job: Judging) -> dict[str, Any]:
    """Judge a classifier on the cells of a recipe, and write the report, with heat maps if it has weights for PyTorch.

    Returns:
        The figures; as `note` whether the temperature was fitted to these cells, and they chose the epoch; as `warning`
        whether it was trained on some of them, or that this can't be told; as `missing` the pictures, fields or boxes
        that give no cell; as `unjudged` the codes without a cell of their own; as `left_out` how many validation cells
        are none for this classifier, which was trained on them; and as `strange` how many it can't be judged on, as it
        gives none of their codes, or of several that they may be only one, by these.

    Raises:
        UsageError: no cell is left to judge on, figures of cells that it was trained on are asked for on the card, or
            the report would lie among the pictures of the recipe.
        ConfigError: a collection, a code or a class of the recipe is unknown.
        DatasetError: the labelled cells are not at hand.
    """
    recipe, model = read_model(ClassifierRecipe, job.recipe), find_model(job.model)
    refuse_data_folder(recipe, job.out)
    kept = _judgeable(job, recipe, model)
    cells = kept.cells
    judged = judge_cells(model, cells)
    where = f"{', '.join(job.sources) or job.recipe.stem}, {job.split}"
    fitted = int(trained_on(model.folder, recipe, cells, "val").sum())
    chose = CHOSE if recipe.early_stopping else ""
    note = FITTED.format(n=fitted, of=len(cells)) + chose if fitted else ""
    warning = SEEN.format(n=kept.seen, of=len(cells)) if kept.seen else LISTLESS * listless(model.folder, recipe)
    title = f"{model.card.id} on {where}"
    above = ". ".join(filter(None, (*kept.missing, warning)))
    heat = heat_of(model, judged) if model.names("torch") else None
    found = write_report(judged, make_folder(job.out), title, heat, note, above)
    if job.on_card:
        use = "fitted the temperature and chose the epoch" if chose else "fitted the temperature"
        _to_card(model, found, judged, where, f"{fitted} of the {len(cells)} cells {use}" if fitted else "")
    unjudged = [row["code"] for row in found["per_class"] if not row["support"]]
    told = {"missing": kept.missing, "left_out": kept.left_out, "strange": kept.strange, "unjudged": unjudged}
    return {**found, **told, "note": note, "warning": warning}


@dataclass(frozen=True, eq=False)
class _Judgeable:
    """The cells that a classifier is judged on, and what is told of the others."""

    cells: CellSet
    seen: int
    """How many of the cells it was trained on."""
    missing: list[str]
    left_out: int
    strange: dict[str, int]


def _judgeable(job: Judging, recipe: ClassifierRecipe, model: Model) -> _Judgeable:
    """The cells asked for that a classifier can be judged on, of which there is one at least."""
    missing: list[str] = []
    with named_recipe(job.recipe):
        cells = cells_of(recipe, whole=True, seen_by=[model.classifier_card], report=missing.append)
    cells = _asked_for(job, cells)
    known = trained_on(model.folder, recipe, cells)
    left_out = known & (job.split == "val")
    if left_out.all():
        raise UsageError(
            f"{job.model} was trained on all {len(cells)} cells that are now for validation; label new ones"
        )
    cells, known = cells.take(~left_out), known[~left_out]
    strange = _strangers(cells, model.classifier_card.codes)
    strangers = _numbers(cells.take(strange))
    if strange.all():
        given = ", ".join(model.classifier_card.codes)
        raise UsageError(
            f"{job.model} gives none, or only one of several, of the codes of these cells: {', '.join(strangers)}; it "
            f"gives {given}: name another --model"
        )
    cells, seen = cells.take(~strange), int(known[~strange].sum())
    if seen and job.on_card:
        raise UsageError(
            f"--card: {job.model} was trained on {seen} of these {len(cells)} cells, or on others of their groups; a "
            "card has figures of other cells only: take --split val, or leave --card out"
        )
    return _Judgeable(cells, seen, missing, int(left_out.sum()), strangers)


def _asked_for(job: Judging, cells: CellSet) -> CellSet:
    """The cells of the split and the sources asked for, of each of which there is one at least."""
    inside = np.isin(cells.splits, ("train", "val") if job.split == "all" else (job.split,))
    absent = sorted(set(job.sources) - set(cells.sources[inside].tolist()))
    if absent or not inside.any():
        there = Counter(zip(cells.sources.tolist(), cells.splits.tolist(), strict=True))
        told = ", ".join(f"{n} of {source} in {split}" for (source, split), n in sorted(there.items()))
        asked = ", ".join(absent) or "any source"
        raise UsageError(f"{job.recipe}: no cell of {asked} in {job.split}; there are {told}")
    return cells.take(np.flatnonzero(inside & np.isin(cells.sources, job.sources or cells.sources)))


def _to_card(model: Model, found: dict[str, Any], judged: Judged, where: str, used: str) -> None:
    """Put figures in the place of those of the same cells; with what the training used these for, if anything."""
    metrics, abstention = card_rows(found, judged, f"{where}; {used}" if used else where)
    others = [each for each in model.card.metrics if not f"{each.data}; ".startswith(f"{where}; ")]
    update_card(model.folder, metrics=[each.model_dump() for each in [*others, *metrics]], abstention=abstention)


def _strangers(cells: CellSet, codes: Sequence[str]) -> Bools:
    """Which cells `(N,)` are none of some codes, or may be one of them or something else: as if that were their label.

    A cell that may be several of the codes is judged by whether it is named as one of them.
    """
    given = cells.targets[:, np.isin(cells.codes, codes)].sum(axis=1)
    return np.asarray((given == 0) | ((given == 1) & ~cells.exact))


def _numbers(cells: CellSet) -> dict[str, int]:
    """Cells by code, or by the codes that they may be."""
    rows = (np.array(cells.codes)[row].tolist() for row in cells.targets)
    return dict(sorted(Counter(" or ".join(row) for row in rows).items()))
