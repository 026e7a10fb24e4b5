"""The model folder of a finished training, and the list of the cells on either side of its split.

Cells that a classifier was trained on are recognised by that list, `split.csv`, whatever a recipe puts on which side
later. The one of the run names pictures and groups; the one that goes out with the model has their checksums only.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from smearcount.cards import TrainingData
from smearcount.cellsets import CellSet
from smearcount.errors import ModelError
from smearcount.images import write_text_atomic
from smearcount.report import Row, to_csv
from smearcount.taxonomy import load_taxonomy
from smearcount.training.naming_cells import CellData, asked_kinds, data_of, picture_um, pictures_of
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.packaging import SPLIT_FILE, TAXONOMY_FILE, package_naming_run

__all__ = ["finish_run", "trained_on"]

_PRIVATE = ("source", "cell", "group")
_PUBLIC = ("split", "picture_sha256", "group_sha256")
_DIGITS = 16


def finish_run(run: Path, recipe: ClassifierRecipe, cells: CellSet, name: str, about: Path | None = None) -> Path:
    """The model folder of a finished run, with the words of the file `about` or plain ones under the name.

    Raises:
        ConfigError: the words are malformed.
    """
    data = data_of(recipe)
    kinds, learned = asked_kinds(data, cells.codes), _training_data(recipe, data, cells)
    folder = package_naming_run(run, name, about, kinds, picture_um(recipe), learned)
    if data.merge:
        merged = load_taxonomy(data.taxonomy).merged(data.merge).model_dump(mode="json", exclude_defaults=True)
        write_text_atomic(folder / TAXONOMY_FILE, yaml.safe_dump(merged, sort_keys=False, allow_unicode=True))
    rows = _split_rows(recipe, cells)
    write_text_atomic(run / SPLIT_FILE, to_csv((*_PUBLIC[:1], *_PRIVATE, *_PUBLIC[1:]), rows))
    write_text_atomic(folder / SPLIT_FILE, to_csv(_PUBLIC, [{key: row[key] for key in _PUBLIC} for row in rows]))
    return folder


def _training_data(recipe: ClassifierRecipe, data: CellData, cells: CellSet) -> list[TrainingData]:
    """What the card says of the cells of each source: a folder by its name, without the path."""
    told = []
    for source in np.unique(cells.sources).tolist():
        splits = cells.splits[cells.sources == source].tolist()
        split = f"{splits.count('train')} cells to train on, {splits.count('val')} for validation"
        words = {"name": source, "licence": "not stated", "split": f"{split}; seed {recipe.seed}"}
        if data.folder:
            words["name"] = source.replace("folder", data.folder.resolve().name)
            words["licence"] = "own data; licence not stated"
            words["split"] = f"{split}; val_share {data.val_share:g}, seed {recipe.seed}"
        told.append(TrainingData.model_validate({**words, "pictures": len(splits)}))
    return told


def trained_on(model: Path, recipe: ClassifierRecipe, cells: CellSet, side: str = "train") -> npt.NDArray[np.bool_]:
    """Which cells `(N,)` a classifier was trained on: the picture itself, or another one of its group.

    A group is known by its name together with one of its pictures, as many laboratories have a `patient1`; that of a
    field, whose cells have no picture of their own, by its name. None of them where the model has no list, as the
    shipped ones, whose collections have fixed lists of their own.

    Args:
        model: its folder.
        recipe: that the cells are of.
        cells: to be judged on.
        side: `train`, or `val` for those that its temperature was fitted to.

    Raises:
        ModelError: the list is malformed.
    """
    if not (model / SPLIT_FILE).is_file():
        return np.zeros(len(cells), np.bool_)
    seen = {_sums(row) for row in _read_rows(model / SPLIT_FILE) if row["split"] == side}
    here = [_sums(row) for row in _split_rows(recipe, cells)]
    pictures = {picture for picture, _ in seen} - {""}
    groups = {group for _, group in seen.intersection(here)} - {""}
    return np.array([picture in pictures or group in groups for picture, group in here], np.bool_)


def _sums(row: Mapping[str, object]) -> tuple[str, str]:
    """Checksums of the picture and of the group; each may be empty."""
    return str(row["picture_sha256"]), str(row["group_sha256"])


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        table = csv.DictReader(stream)
        if tuple(table.fieldnames or ()) != _PUBLIC:
            raise ModelError(f"{path}: expected the columns {', '.join(_PUBLIC)}; run the training once more")
        return list(table)


def _split_rows(recipe: ClassifierRecipe, cells: CellSet) -> list[Row]:
    """A row for each cell. The checksum of a group that is nothing but the cell itself is left empty."""
    words = (cells.splits, cells.sources, cells.origins, cells.groups)
    rows = zip(*(each.tolist() for each in words), pictures_of(recipe, cells), strict=True)
    return [
        {
            **{"split": split, "source": source, "cell": origin, "group": group},
            "picture_sha256": _digest(picture.read_bytes()) if picture else "",
            "group_sha256": "" if group == origin else _digest(group.encode()),
        }
        for split, source, origin, group, picture in rows
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
