"""The `data` part of a classifier's recipe: which cells it learns from, what they may be called, what is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from smearcount.cards import ClassifierCard, find_model
from smearcount.cellsets import CellSet
from smearcount.config import Settings, Strict, faults_of, yaml_line
from smearcount.detector import Detector
from smearcount.errors import ConfigError, UsageError
from smearcount.images import find_images, write_text_atomic
from smearcount.mending.merging import merge_targets
from smearcount.progress import Report
from smearcount.records import KINDS, KindName
from smearcount.runtimes import RuntimeChoice
from smearcount.taxonomy import Taxonomy, load_taxonomy
from smearcount.training.cell_formats import boxes_without_code
from smearcount.training.cell_sources import (
    CellSource,
    Meaning,
    TextKeys,
    class_of,
    codes_meant,
    folder_of,
    in_codes,
    load_cell_sources,
)
from smearcount.training.cells import read_cells
from smearcount.training.leaks import without_leaks
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.paint import PAINTED_CODES
from smearcount.training.painted_cells import below_paint, with_painted
from smearcount.training.survey import PictureFault, check_folder, faults_csv, folder_classes

__all__ = [
    "CellData",
    "asked_kinds",
    "cells_of",
    "checked_cells",
    "data_of",
    "fair_cells",
    "named_recipe",
    "picture_um",
    "pictures_of",
    "refuse_data_folder",
    "refuse_untrained_codes",
    "usable_cells",
]


class CellData(Strict):
    """Where the cells of a training come from.

    Attributes:
        kinds: the classifier gives every code of these kinds that its cells have; those of red cells by default.
        codes: these codes instead of all of the kinds.
        asked_of: kinds of found cells that it is asked about; by default `kinds`, else those that its codes are of.
        collections: entries of the file of collections.
        cells: that file, instead of `configs/cells.yaml`.
        folder: a folder with one sub-folder a class, instead of collections.
        classes: what the sub-folders are called in the taxonomy, where that can't be told from their names.
        groups: a CSV file `file,group` of the folder's pictures that belong together, such as those of a patient;
            without one, those of a folder inside the class folders do.
        val_share: share of the folder's groups kept for validation.
        painted: training cells of each inclusion that are painted; 0 none.
        leave_out: sources without any part in the training, to be judged on afterwards.
        merge: codes that become one, `new: [old, old]`; the old ones by any of their names.
        taxonomy: a taxonomy file instead of the shipped one.
        detector: finds the cells in the pictures of the collections.
    """

    kinds: tuple[KindName, ...] = ()
    codes: tuple[str, ...] = ()
    asked_of: tuple[KindName, ...] = ()
    collections: tuple[str, ...] = ()
    cells: Path | None = None
    folder: Path | None = None
    classes: Annotated[dict[str, Meaning], TextKeys] = {}
    groups: Path | None = None
    val_share: float = Field(default=0.2, gt=0, lt=1)
    painted: int = Field(default=0, ge=0)
    leave_out: tuple[str, ...] = ()
    merge: Annotated[dict[str, tuple[str, ...]], TextKeys] = {}
    taxonomy: Path | None = None
    detector: str = Settings().detector

    @model_validator(mode="after")
    def _one_origin(self) -> CellData:
        if bool(self.collections) == bool(self.folder):
            raise ValueError("give either collections or a folder")
        if self.groups and not self.folder:
            raise ValueError("groups are those of the pictures of a folder; give a folder")
        alien = ("cells",) if self.folder else ("classes", "val_share")
        if idle := [key for key in alien if key in self.model_fields_set]:
            owner = "collections, not of a folder" if self.folder else "a folder; collections have their own"
            raise ValueError(f"{' and '.join(idle)}: of {owner}")
        return self


def data_of(recipe: ClassifierRecipe) -> CellData:
    """The checked form of a recipe's `data`, merged codes by their codes.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    try:
        data = CellData.model_validate(recipe.data)
    except ValidationError as error:
        raise ConfigError(faults_of(error, CellData, "data")) from error
    if not data.merge:
        return data
    taxonomy = load_taxonomy(data.taxonomy)
    merge = {new: taxonomy.as_codes(olds) for new, olds in data.merge.items()}
    return data.model_copy(update={"merge": merge})


def refuse_data_folder(recipe: ClassifierRecipe, out: Path) -> None:
    """See that results are written beside the pictures of a recipe, not among them, where they would become cells.

    Raises:
        UsageError: the folder of the results lies in that of the pictures, or is it.
    """
    folder = data_of(recipe).folder
    if folder and out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{out}: lies in {folder}, whose pictures are cells to train on; give --out another folder")


@contextmanager
def named_recipe(path: Path) -> Iterator[None]:
    """Whatever is wrong with the values of a recipe, or of a file of collections, says which file it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def checked_cells(recipe: ClassifierRecipe, out: Path, report: Report | None = None, *, input_px: int = 0) -> CellSet:
    """The cells of a recipe without training cells that show the same as a validation cell; these are in `leaks.txt`.

    For a folder, pictures that are left out are listed in `faults.csv`, with those that are merely suspicious.

    Args:
        recipe: whose `data` decides.
        out: folder for both files.
        report: takes the lines that say how many pictures, fields or boxes were left out and how many leaks removed.
        input_px: side of the largest input that will be shown them, where it is larger than the recipe's own.

    Raises:
        ConfigError: a collection, a code or a class is unknown, or nothing is left to learn one of them from.
        DatasetError: the labelled cells are not at hand.
    """
    cells, left_out = usable_cells(recipe, out, report, input_px=input_px)
    cells, leaks = fair_cells(cells, out)
    if report:
        report(f"{left_out} pictures left out (faults.csv), {leaks} leaks removed (leaks.txt)")
    refuse_untrained_codes(cells, data_of(recipe))
    return cells


def usable_cells(
    recipe: ClassifierRecipe, out: Path, report: Report | None = None, *, input_px: int = 0
) -> tuple[CellSet, int]:
    """The cells of a recipe, however they are split, and the number of pictures left out; arguments as above.

    Raises:
        ConfigError: a collection, a code or a class is unknown, or a class has no usable picture.
        DatasetError: the labelled cells are not at hand.
    """
    data = data_of(recipe)
    faults = _faults(data)
    write_text_atomic(out / "faults.csv", faults_csv(faults, data.folder))
    asked = _asked(data, faults)
    _refuse_unusable_folders(data, asked, out)
    return _cells(recipe, data, asked, input_px, report=report), len(_left_out(faults))


def fair_cells(cells: CellSet, out: Path) -> tuple[CellSet, int]:
    """The cells without the training cells that show the same as a validation cell, and how many those were.

    They are listed in `leaks.txt` in the folder `out`.
    """
    cells, leaks = without_leaks(cells)
    write_text_atomic(out / "leaks.txt", "".join(f"{ours} shows the same as {theirs}\n" for ours, theirs in leaks))
    return cells, len(leaks)


def refuse_untrained_codes(cells: CellSet, data: CellData) -> None:
    """Stop where a code has no cell on the side of the training.

    Raises:
        ConfigError: it names the codes, and what to do.
    """
    trained = cells.targets[cells.splits == "train"].any(axis=0)
    idle = [code for code, any_cell in zip(cells.codes, trained.tolist(), strict=True) if not any_cell]
    if not idle:
        return
    meant = {old for code in idle for old in data.merge.get(code, (code,))}
    source = _asked(data, ()).sources["folder"] if data.folder else None
    folders = [name for name in source.classes if source.codes_of(name) & meant] if source else []
    without = f"leave these classes out with `{yaml_line('classes', dict.fromkeys(folders, ''))}`"
    remedy = without if folders else "list the others under `data: codes:`"
    copies = "copies of validation cells are left out (leaks.txt): put all copies of a cell into one group"
    raise ConfigError(f"no training cell of {', '.join(idle)}; add some, or {remedy}; {copies}")


def cells_of(
    recipe: ClassifierRecipe,
    *,
    whole: bool = False,
    seen_by: Iterable[ClassifierCard] = (),
    report: Report | None = None,
) -> CellSet:
    """The cells that a recipe asks for, cut out, split and painted.

    Args:
        recipe: whose `data` decides.
        whole: also those that it leaves out of the training.
        seen_by: classifiers that will be shown the cells, which may see more detail than the recipe's own.
        report: takes the lines that say how many pictures, fields or boxes were left out, and why.

    Raises:
        ConfigError: a collection, a code or a class is unknown.
        DatasetError: the labelled cells are not at hand.
    """
    data = data_of(recipe)
    faults = _faults(data)
    asked = _asked(data, faults)
    reasons = Counter(fault.fault for fault in faults if fault.action == "left out")
    if report and reasons:
        listed = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        report(f"{len(_left_out(faults))} pictures left out ({listed}); `smearcount train survey` lists them")
    sides = [math.ceil(card.input_px * recipe.window_um / card.patch_um) for card in seen_by]
    return _cells(recipe, data, asked, max(sides, default=0), whole=whole, report=report)


def asked_kinds(data: CellData, codes: Sequence[str]) -> tuple[str, ...]:
    """Kinds of found cells that a classifier of some codes is asked about, as `data` says or as its codes are.

    The detector finds nucleated cells without telling erythroblasts, and a classifier that knows platelets among others
    knows them to put a wrong detection right.

    Raises:
        ConfigError: codes of several kinds are merged.
    """
    if told := data.asked_of or data.kinds:
        return told
    kind_of = load_taxonomy(data.taxonomy).merged(data.merge).kind_of
    kinds = {"wbc" if kind_of[code] == "nrbc" else kind_of[code] for code in codes}
    return tuple(kind for kind in KINDS if kind in (kinds - {"platelet"} or kinds))


def picture_um(recipe: ClassifierRecipe) -> float | None:
    """Physical side for which a picture without a scale stood in training, where cells are named in another window."""
    sources = _asked(data_of(recipe), ()).sources.values()
    unscaled = any(each.format == "folders" and not each.um_per_px for each in sources)
    return recipe.patch_um if unscaled and recipe.window_um != recipe.patch_um else None


def pictures_of(recipe: ClassifierRecipe, cells: CellSet) -> list[Path | None]:
    """The picture of each cell that has one of its own, also below paint; None for those cut out of a field."""
    sources = _asked(data_of(recipe), ()).sources
    folders = {name: folder_of(name, each) for name, each in sources.items() if each.format == "folders"}
    pairs = (below_paint(*pair) for pair in zip(cells.sources.tolist(), cells.origins.tolist(), strict=True))
    return [folders[source] / origin if source in folders else None for source, origin in pairs]


@dataclass(frozen=True)
class _Asked:
    """The codes of a classifier, before any are merged, and the collections that its cells come from, by name."""

    codes: tuple[str, ...]
    sources: dict[str, CellSource]


def _asked(data: CellData, faults: Sequence[PictureFault]) -> _Asked:
    taxonomy = load_taxonomy(data.taxonomy)
    sources = _sources(data, taxonomy, _left_out(faults))
    if data.codes:
        return _Asked(_known_codes(data.codes, taxonomy), sources)
    if data.folder:
        given = [code for meant in sources["folder"].classes.values() for code in codes_meant(meant)]
        given = [code for code in given if not data.kinds or taxonomy.kind_of[code] in data.kinds]
        if data.kinds and not given:
            raise ConfigError(f"data.kinds: {data.folder} has no class of {' or '.join(data.kinds)}")
        return _Asked(tuple(dict.fromkeys((*(code for code in taxonomy.codes if code in given), *given))), sources)
    return _Asked(tuple(code for kind in data.kinds or ("rbc",) for code in taxonomy.codes_of(kind)), sources)


def _known_codes(names: Sequence[str], taxonomy: Taxonomy) -> tuple[str, ...]:
    codes = {name: taxonomy.code_of(name) for name in names}
    if unknown := [name for name, code in codes.items() if code is None]:
        raise ConfigError(f"data.codes: {', '.join(unknown)} unknown; known: {', '.join(taxonomy.codes)}")
    return tuple(dict.fromkeys(code for code in codes.values() if code))


def _refuse_unusable_folders(data: CellData, asked: _Asked, out: Path) -> None:
    """Stop where the folder of a class that is asked for has no picture to learn from."""
    if not data.folder:
        return
    source, pictures = asked.sources["folder"], find_images(data.folder, recursive=True)
    usable = {class_of(path, data.folder) for path in pictures if path not in source.without}
    empty = [name for name in source.classes if source.codes_of(name) & set(asked.codes) and name not in usable]
    if empty:
        raise ConfigError(
            f"{data.folder}: no usable picture in {', '.join(empty)} (see {out / 'faults.csv'}); add some, or leave "
            f"these classes out with `{yaml_line('classes', dict.fromkeys(empty, ''))}`"
        )


def _faults(data: CellData) -> list[PictureFault]:
    """What is wrong with the pictures of a folder; collections are as they were published."""
    if not data.folder:
        return []
    return check_folder(data.folder, folder_classes(data.folder, load_taxonomy(data.taxonomy), data.classes))


def _left_out(faults: Sequence[PictureFault]) -> frozenset[Path]:
    return frozenset(fault.file for fault in faults if fault.action == "left out")


def _cells(
    recipe: ClassifierRecipe,
    data: CellData,
    asked: _Asked,
    input_px: int,
    *,
    whole: bool = False,
    report: Report | None = None,
) -> CellSet:
    detector, side = Detector(find_model(data.detector), RuntimeChoice()), max(recipe.largest_input_px, input_px)
    with named_recipe(data.cells) if data.cells else nullcontext():
        cells = read_cells(asked.sources, asked.codes, detector, recipe.patch_um, side, recipe.seed, report=report)
    if report:
        _tell_boxes(asked, report)
    known = np.unique(cells.sources).tolist()
    if unknown := sorted(set(data.leave_out).difference(known)):
        raise ConfigError(f"data.leave_out: no cells of {', '.join(unknown)}; there are those of {', '.join(known)}")
    if not whole:
        cells = cells.take(~np.isin(cells.sources, data.leave_out))
        if not len(cells):
            raise ConfigError(f"data.leave_out: no cell is left to train on; leave in some of {', '.join(known)}")
    if data.painted:
        if not set(PAINTED_CODES).intersection(cells.codes):
            raise ConfigError(f"data.painted: none of {', '.join(PAINTED_CODES)} is among the codes; leave it out")
        cells = with_painted(cells, data.painted, recipe.seed, report)
    if not data.codes:
        cells = _without_empty_codes(cells)
    if data.merge:
        targets, merged = merge_targets(cells.targets, cells.codes, data.merge)
        load_taxonomy(data.taxonomy).merged(data.merge)  # that they can be merged is to be known before the training
        cells = replace(cells, targets=targets, codes=merged)
    return cells


def _tell_boxes(asked: _Asked, report: Report) -> None:
    for name, source in asked.sources.items():
        if boxes := boxes_without_code(source):
            listed = ", ".join(f"{n} {label}" for label, n in boxes.items())
            report(f"{name}: {sum(boxes.values())} boxes left out, of classes without a code ({listed})")


def _without_empty_codes(cells: CellSet) -> CellSet:
    """The set without the codes that no cell may be."""
    kept = np.flatnonzero(cells.targets.any(axis=0))
    return replace(cells, targets=cells.targets[:, kept], codes=tuple(cells.codes[column] for column in kept))


def _sources(data: CellData, taxonomy: Taxonomy, without: frozenset[Path]) -> dict[str, CellSource]:
    if data.folder:
        entry: dict[str, Any] = {"format": "folders", "folder": data.folder, "without": without, "groups": data.groups}
        classes = folder_classes(data.folder, taxonomy, data.classes)
        return {"folder": CellSource.model_validate({**entry, "val_share": data.val_share, "classes": classes})}
    known = load_cell_sources(data.cells)
    unknown = [name for name in data.collections if name not in known]
    if unknown:
        raise ConfigError(f"data.collections: {', '.join(unknown)} unknown; known: {', '.join(known)}")
    file = data.cells or "cells.yaml"
    return {name: in_codes(known[name], taxonomy, f"{file}: {name}") for name in data.collections}
