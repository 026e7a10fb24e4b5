"""`smearcount mend`: which codes to merge, and what a tie-breaker gains, on the labelled cells of a recipe."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import FloatArray
from smearcount.cards import Model, find_model
from smearcount.cellsets import CellSet
from smearcount.classifier import Classifier, Named
from smearcount.config import read_model
from smearcount.errors import ModelError, UsageError
from smearcount.images import make_folder, write_picture, write_text_atomic
from smearcount.mending.merging import plot_merges, propose_merges
from smearcount.mending.tiebreak import Expert, choose_margin, confusable_pairs, first_shared_pair, tiebreak_report
from smearcount.progress import Report
from smearcount.runtimes import RuntimeChoice
from smearcount.taxonomy import load_taxonomy
from smearcount.training.cell_views import plain_view
from smearcount.training.naming_cells import cells_of, data_of, named_recipe, refuse_data_folder
from smearcount.training.naming_model import listless, trained_on
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.splits import split_groups

__all__ = ["judge_experts", "propose"]


@dataclass(frozen=True, eq=False)
class _Heard:
    """What a classifier says of labelled cells, and the seconds it took for one."""

    named: Named
    seconds: float


def _labelled(recipe: Path, model: Model, report: Report | None, experts: Sequence[Model] = ()) -> CellSet:
    """The validation cells of a recipe that the model knows the codes of, without those that one was trained on."""
    asked, models = read_model(ClassifierRecipe, recipe), (model, *experts)
    with named_recipe(recipe):
        cells = cells_of(asked, whole=True, seen_by=[each.classifier_card for each in models], report=report)
    for each in models:
        if report and listless(each.folder, asked):
            report(f"{each.card.id} has no list of the cells that it was trained on: some of these may be among them")
    trained = np.any([trained_on(each.folder, asked, cells) for each in models], axis=0)
    cells = cells.take(cells.exact & (cells.splits == "val") & ~trained)
    known = cells.take(np.isin(np.array(cells.codes)[cells.labels], model.classifier_card.codes))
    if not len(known):
        raise UsageError(f"{recipe}: no val cell of the codes of the model is left that none was trained on")
    return known


def _hear(model: Model, cells: CellSet) -> _Heard:
    classifier = Classifier(model, RuntimeChoice())
    card, started = classifier.card, time.perf_counter()
    pairs = zip(cells.pixels, cells.um_per_px.tolist(), strict=True)
    named = classifier.name_views(plain_view(window, scale, card.patch_um, card.input_px) for window, scale in pairs)
    return _Heard(named, (time.perf_counter() - started) / max(len(cells), 1))


def propose(
    recipe: Path, model: str, clusters: Sequence[int], out: Path, report: Report | None = None
) -> tuple[str, Path]:
    """Clusters of the embeddings of validation cells; the content of `merges.yaml` and the plot beside it.

    That is the line for a recipe, then what it rests on, as comments. Only codes of one kind are proposed, as a
    training merges no others. What gives no cell is told to `report`.

    Raises:
        UsageError: there are too few cells, or `out` lies among the pictures of the recipe.
        DatasetError: the labelled cells are not at hand.
    """
    found, asked = find_model(model), read_model(ClassifierRecipe, recipe)
    refuse_data_folder(asked, out)
    codes = found.classifier_card.codes
    cells = _labelled(recipe, found, report)
    labels = np.array([codes.index(cells.codes[label]) for label in cells.labels.tolist()], np.intp)
    named = _hear(found, cells).named
    data = data_of(asked)
    taxonomy = load_taxonomy(data.taxonomy).merged(data.merge)
    proposal = propose_merges(named.features, labels, codes, clusters, 0, named.probs).within_kinds(taxonomy.kind_of)
    text = "\n".join((proposal.as_yaml(data.merge), *(f"# {reason}" for reason in proposal.reasons())))
    write_text_atomic(make_folder(out) / "merges.yaml", text + "\n")
    colours = {code: entry.colour for code, entry in taxonomy.codes.items()}
    return text, write_picture(out / "merges.png", plot_merges(proposal, colours))


def judge_experts(
    recipe: Path, generalist: str, experts: Sequence[str], report: Report | None = None
) -> dict[str, Any]:
    """Gain and cost of experts: margins chosen on one half of the validation groups, the report from the other half.

    Args:
        recipe: of the generalist, whose validation cells are used.
        generalist: id or folder.
        experts: ids or folders of classifiers of a few of its codes; without any, the pairs worth one are listed.
        report: is told what gives no cell.

    Returns:
        As `experts` the margin of each, as the settings take them; the confused pairs; what each expert did, as
        `by_expert`; and gain and cost of all of them.

    Raises:
        UsageError: there are too few cells, or with experts all of them are of one group.
        ModelError: an expert gives codes that the generalist does not know.
    """
    model = find_model(generalist)
    codes = model.classifier_card.codes
    models = [find_model(name) for name in experts]
    _check_experts(codes, models)
    cells = _labelled(recipe, model, report, models)
    labels = np.array([codes.index(cells.codes[label]) for label in cells.labels.tolist()], np.intp)
    heard = _hear(model, cells)
    pairs = [asdict(pair) for pair in confusable_pairs(heard.named.probs, labels, codes, 10)]
    if not experts:
        return {"cells": len(cells), "confused_pairs": pairs}
    if len(set(cells.groups.tolist())) < 2:
        raise UsageError(
            f"{recipe}: the {len(cells)} val cells are of one group, {cells.groups[0]}, but margins are chosen on "
            "one half of the groups and judged on the other; raise val_share, or label cells of other groups"
        )
    asked = [(each, _hear(each, cells)) for each in models]
    held = split_groups(cells.groups, labels, 0.5, 0) == "val"
    chosen, rest = np.flatnonzero(~held), np.flatnonzero(held)
    breaker = choose_margin(heard.named.probs[chosen], labels[chosen], codes, _experts(asked, chosen))
    judged = type(breaker)(codes, _experts(asked, rest), breaker.margins)
    seconds = max(each.seconds for _, each in asked)
    gain = tiebreak_report(heard.named.probs[rest], labels[rest], judged, heard.seconds, seconds)
    margins = dict(zip(experts, (round(margin, 4) for margin in breaker.margins), strict=True))
    found = json.loads(json.dumps(asdict(gain)))
    return {"experts": margins, "confused_pairs": pairs, "by_expert": found.pop("experts"), **found}


def _check_experts(codes: tuple[str, ...], models: Sequence[Model]) -> None:
    """Every expert gives codes of the generalist only, and no pair of codes has two experts."""
    for each in models:
        if strangers := [code for code in each.classifier_card.codes if code not in codes]:
            raise ModelError(f"{each.card.id}: gives {', '.join(strangers)}, which the generalist does not know")
    if twice := first_shared_pair(each.classifier_card.codes for each in models):
        both = " and ".join(twice[1])
        raise UsageError(f"--expert {models[twice[0]].card.id}: another expert knows {both}; leave one of them out")


def _experts(asked: Sequence[tuple[Model, _Heard]], rows: Any) -> tuple[Expert, ...]:
    return tuple(Expert(model.classifier_card.codes, _Answers(heard.named.probs[rows])) for model, heard in asked)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Answers given beforehand, looked up by row."""

    probs: FloatArray

    def __call__(self, rows: Any) -> FloatArray:
        return np.asarray(self.probs[rows], np.float32)
