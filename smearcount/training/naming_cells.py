"""The `data` part of a classifier's recipe: which cells it learns from, what they may be called, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from smearcount.cards import find_model
from smearcount.cellsets import CellSet
from smearcount.config import Settings, Strict
from smearcount.detector import Detector
from smearcount.errors import ConfigError
from smearcount.images import find_images, write_text_atomic
from smearcount.mending.merging import merge_targets
from smearcount.runtimes import RuntimeChoice
from smearcount.taxonomy import Taxonomy, load_taxonomy
from smearcount.training.cell_sources import CellSource, load_cell_sources
from smearcount.training.cells import read_cells
from smearcount.training.leaks import without_leaks
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.painted_cells import with_painted
from smearcount.training.survey import PictureFault, check_pictures, faults_csv, folder_classes

__all__ = ["CellData", "cells_of", "checked_cells", "data_of"]

Kinds = tuple[Literal["rbc", "wbc", "nrbc", "platelet"], ...]


class CellData(Strict):
    """Where the cells of a training come from.

    Attributes:
        kinds: the classifier gives every code of these kinds that its cells have.
        codes: these codes instead of all of the kinds.
        asked_of: kinds of found cells that it is asked about; `kinds` by default.
        collections: entries of the file of collections.
        cells: that file, instead of `configs/cells.yaml`.
        folder: a folder with one sub-folder a class, instead of collections.
        classes: what the sub-folders are called in the taxonomy, where that can't be told from their names.
        val_share: share of the folder's pictures kept for validation.
        painted: training cells of each inclusion that are painted; 0 none.
        leave_out: sources without any part in the training, to be judged on afterwards.
        merge: codes that become one, `new: [old, old]`.
        taxonomy: a taxonomy file instead of the shipped one.
        detector: finds the cells in the pictures of the collections.
    """

    kinds: Kinds = ("rbc",)
    codes: tuple[str, ...] = ()
    asked_of: Kinds = ()
    collections: tuple[str, ...] = ()
    cells: Path | None = None
    folder: Path | None = None
    classes: dict[str, str | tuple[str, ...]] = {}
    val_share: float = Field(default=0.2, gt=0, lt=1)
    painted: int = Field(default=0, ge=0)
    leave_out: tuple[str, ...] = ()
    merge: dict[str, tuple[str, ...]] = {}
    taxonomy: Path | None = None
    detector: str = Settings().detector

    @model_validator(mode="after")
    def _one_origin(self) -> CellData:
        if bool(self.collections) == bool(self.folder):
            raise ValueError("give either collections or a folder")
        return self


def data_of(recipe: ClassifierRecipe) -> CellData:
    """The checked form of a recipe's `data`.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    try:
        return CellData.model_validate(recipe.data)
    except ValidationError as error:
        faults = "; ".join(f"data.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(faults) from error


def checked_cells(recipe: ClassifierRecipe, out: Path) -> CellSet:
    """The cells of a recipe without training cells that show the same as a validation cell; these are in `leaks.txt`.

    For a folder, pictures that are left out are listed in `faults.csv`, with those that are merely suspicious.

    Raises:
        ConfigError: a collection, a code or a class is unknown.
        DatasetError: the labelled cells are not at hand.
    """
    data = data_of(recipe)
    faults = _faults(data)
    write_text_atomic(out / "faults.csv", faults_csv(faults, data.folder))
    cells, leaks = without_leaks(_cells(recipe, data, faults))
    write_text_atomic(out / "leaks.txt", "".join(f"{ours} shows the same as {theirs}\n" for ours, theirs in leaks))
    return cells


def cells_of(recipe: ClassifierRecipe, *, whole: bool = False) -> CellSet:
    """The cells that a recipe asks for, cut out, split and painted; with `whole` also those it leaves out.

    Raises:
        ConfigError: a collection, a code or a class is unknown.
        DatasetError: the labelled cells are not at hand.
    """
    data = data_of(recipe)
    return _cells(recipe, data, _faults(data), whole=whole)


def _faults(data: CellData) -> list[PictureFault]:
    """What is wrong with the pictures of a folder; collections are as they were published."""
    return check_pictures(find_images(data.folder, recursive=True)) if data.folder else []


def _cells(recipe: ClassifierRecipe, data: CellData, faults: Sequence[PictureFault], *, whole: bool = False) -> CellSet:
    taxonomy = load_taxonomy(data.taxonomy)
    codes = data.codes or tuple(code for kind in data.kinds for code in taxonomy.codes_of(kind))
    without = frozenset(fault.file for fault in faults if fault.action == "left out")
    sources = _sources(data, taxonomy, without)
    if data.folder and not data.codes:
        given = [code for meant in sources["folder"].classes.values() for code in _as_tuple(meant)]
        codes = tuple(dict.fromkeys((*(code for code in taxonomy.codes if code in given), *given)))
    detector = Detector(find_model(data.detector), RuntimeChoice())
    cells = read_cells(sources, codes, detector, recipe.patch_um, recipe.input_px, recipe.seed)
    if unknown := sorted(set(data.leave_out) - set(cells.sources.tolist())):
        known = ", ".join(np.unique(cells.sources).tolist())
        raise ConfigError(f"data.leave_out: no cells of {', '.join(unknown)}; there are those of {known}")
    if not whole:
        cells = cells.take(~np.isin(cells.sources, data.leave_out))
    if data.painted:
        cells = with_painted(cells, data.painted, recipe.seed)
    if not data.codes:
        cells = _without_empty_codes(cells)
    if data.merge:
        targets, merged = merge_targets(cells.targets, cells.codes, data.merge)
        cells = replace(cells, targets=targets, codes=merged)
    return cells


def _without_empty_codes(cells: CellSet) -> CellSet:
    """The set without the codes that no cell may be."""
    kept = np.flatnonzero(cells.targets.any(axis=0))
    return replace(cells, targets=cells.targets[:, kept], codes=tuple(cells.codes[column] for column in kept))


def _as_tuple(meant: str | tuple[str, ...]) -> tuple[str, ...]:
    return () if not meant else (meant,) if isinstance(meant, str) else meant


def _sources(data: CellData, taxonomy: Taxonomy, without: frozenset[Path]) -> dict[str, CellSource]:
    if data.folder:
        entry: dict[str, Any] = {"format": "folders", "folder": data.folder, "without": without}
        classes = folder_classes(data.folder, taxonomy, data.classes)
        return {"folder": CellSource.model_validate({**entry, "val_share": data.val_share, "classes": classes})}
    known = load_cell_sources(data.cells)
    unknown = [name for name in data.collections if name not in known]
    if unknown:
        raise ConfigError(f"data.collections: {', '.join(unknown)} unknown; known: {', '.join(known)}")
    return {name: known[name] for name in data.collections}
