"""The folder of a training: what is checked before it, the model, and the list of the cells on either side.

Cells that a classifier was trained on are recognised by that list, `split.csv`, whatever a recipe puts on which side
later. The one of the run names pictures and groups; the one that goes out with the model has their checksums only.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from smearcount.arrays import Bools
from smearcount.cards import ClassifierCard, TrainingData
from smearcount.cellsets import CellSet
from smearcount.errors import ConfigError, ModelError, UsageError
from smearcount.images import ReadLimits, open_image, write_text_atomic
from smearcount.report import to_csv
from smearcount.taxonomy import load_taxonomy
from smearcount.training.naming_cells import CellData, asked_kinds, data_of, picture_um, pictures_of
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.packaging import SPLIT_FILE, TAXONOMY_FILE, checked_card, load_about, package_naming_run
from smearcount.training.survey import pixels_sum

__all__ = ["check_words", "finish_run", "listless", "lists_kept", "trained_on"]

_PRIVATE = ("source", "cell", "group")
_PUBLIC = ("split", "pixels_sha256", "group_sha256")
_OF_FILES = ("split", "picture_sha256", "group_sha256")
"""Columns of lists that know pictures by the bytes of their files, as models up to version 0.11 have them."""

_DIGITS = 16

Sums = list[tuple[str, str]]


@contextmanager
def lists_kept(out: Path) -> Iterator[None]:
    """The lists of the run that a folder holds stay as they are where another one fails there or is stopped.

    Raises:
        ConfigError: as inside, where it may speak of the lists, with what became of them.
    """
    lists, run = (
        [path for name in names for at in (name, f"*/{name}") for path in out.glob(at)]
        for names in (("faults.csv", "leaks.txt"), ("summary.json", "last.ckpt"))
    )
    before = {path: path.read_text(encoding="utf-8") for path in lists if run}
    try:
        yield
    except BaseException as error:
        for path, text in before.items():
            write_text_atomic(path, text)
        if before and isinstance(error, ConfigError):
            told = f"the lists in {out} are those of the run that is there: give another --out for new ones"
            raise ConfigError(f"{error}; {told}") from error
        raise


def check_words(run: Path, about_path: Path | None, codes: Sequence[str]) -> None:
    """See, before a training, that the words of a classifier's card are right: a wrong one is told hours later else.

    Args:
        run: folder of the training; the words of a finished one are put on the card it has, and may be a part.
        about_path: the words, as for `package_naming_run`.
        codes: of the classifier.

    Raises:
        UsageError: a word is missing or wrong.
    """
    if about_path is None or (run / "summary.json").is_file():
        return
    # What the recipe and the training put on the card.
    learned = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_px": 64, "temperature": 1.0, "patch_um": 12.0}
    learned |= {"embedding": 1, "metrics": (), "git_commit": "", "files": {}, "codes": tuple(codes)}
    try:
        checked_card(ClassifierCard, {"kinds": ("rbc",), **load_about(about_path), **learned})
    except (ConfigError, ModelError) as error:
        raise UsageError(f"--card: {error}") from error


def finish_run(run: Path, recipe: ClassifierRecipe, cells: CellSet, name: str, about: Path | None = None) -> Path:
    """The model folder of a finished run, with the words of the file `about` or plain ones under the name.

    Where its codes may be none of the shipped taxonomy, merged ones or those of a taxonomy of its own, that goes along.

    Raises:
        ConfigError: the words are malformed.
    """
    data = data_of(recipe)
    kinds, learned = asked_kinds(data, cells.codes), _training_data(recipe, data, cells)
    folder = package_naming_run(run, name, about, kinds, picture_um(recipe), learned)
    if data.merge or data.taxonomy:
        own = load_taxonomy(data.taxonomy).merged(data.merge).model_dump(mode="json", exclude_defaults=True)
        write_text_atomic(folder / TAXONOMY_FILE, yaml.safe_dump(own, sort_keys=False, allow_unicode=True))
    _write_split(run, folder, recipe, cells)
    return folder


def _write_split(run: Path, folder: Path, recipe: ClassifierRecipe, cells: CellSet) -> None:
    words = zip(*(each.tolist() for each in (cells.sources, cells.origins, cells.groups)), strict=True)
    each_cell = zip(cells.splits.tolist(), words, _sums(recipe, cells, _of_pixels), strict=True)
    columns = (*_PUBLIC[:1], *_PRIVATE, *_PUBLIC[1:])
    rows = [dict(zip(columns, (side, *told, *sums), strict=True)) for side, told, sums in each_cell]
    write_text_atomic(run / SPLIT_FILE, to_csv(columns, rows))
    write_text_atomic(folder / SPLIT_FILE, to_csv(_PUBLIC, [{key: row[key] for key in _PUBLIC} for row in rows]))


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


def trained_on(model: Path, recipe: ClassifierRecipe, cells: CellSet, side: str = "train") -> Bools:
    """Which cells `(N,)` a classifier was trained on: the picture itself, or another one of its group.

    A picture is known by its pixels, whatever the file is called or how it was saved without loss. A group is known by
    its name together with one of its pictures, as many laboratories have a `patient1`; that of a field, whose cells
    have no picture of their own, by its name. None of them where the model has no list, as the shipped ones, whose
    collections have fixed lists of their own.

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
    columns, rows = _read_rows(model / SPLIT_FILE)
    seen = {(picture, group) for split, picture, group in rows if split == side}
    here = _sums(recipe, cells, _of_pixels if columns == _PUBLIC else _of_file)
    pictures = {picture for picture, _ in seen} - {""}
    own = cells.groups.tolist()
    groups = {group for group, sums in zip(own, here, strict=True) if sums[1] and sums in seen}
    return np.array([sums[0] in pictures or group in groups for group, sums in zip(own, here, strict=True)], np.bool_)


def listless(model: Path, recipe: ClassifierRecipe) -> bool:
    """Whether nobody can tell if a classifier was trained on cells of a recipe.

    It has no list, and they are not of the shipped collections, of which validation cells are the same in any training.
    """
    data = data_of(recipe)
    return not (model / SPLIT_FILE).is_file() and bool(data.folder or data.cells)


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns of a list, which tell what its pictures are known by, and its rows."""
    with path.open(newline="", encoding="utf-8") as stream:
        columns, *rows = [tuple(row) for row in csv.reader(stream) if row] or [()]
    if columns not in (_PUBLIC, _OF_FILES) or any(len(row) != len(columns) for row in rows):
        raise ModelError(f"{path}: expected the columns {', '.join(_PUBLIC)}; run the training once more")
    return columns, rows


def _sums(recipe: ClassifierRecipe, cells: CellSet, of_picture: Callable[[Path], str]) -> Sums:
    """Checksums of the picture and of the group of each cell.

    That of the picture is empty for cells of a field, that of a group that is nothing but the cell itself as well. A
    group of pictures goes without its collection, which another recipe may call otherwise.
    """
    pictures = pictures_of(recipe, cells)
    known = {picture: of_picture(picture)[:_DIGITS] for picture in set(pictures) if picture}
    alone = np.char.add(np.char.add(cells.sources, "/"), cells.origins)
    own = zip(pictures, cells.groups.tolist(), alone.tolist(), strict=True)
    return [
        (known[picture], "" if group == name else _short(group.partition("/")[2] or group))
        if picture
        else ("", _short(group))
        for picture, group, name in own
    ]


def _of_pixels(picture: Path) -> str:
    source = open_image(picture, ReadLimits(min_side_px=1))
    return pixels_sum(source.read(0, 0, *source.size_wh))


def _of_file(picture: Path) -> str:
    return _sha256(picture.read_bytes())


def _short(group: str) -> str:
    return _sha256(group.encode())[:_DIGITS]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
