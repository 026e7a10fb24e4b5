"""Where collections of labelled cells lie, in which format, and what their classes mean: `configs/cells.yaml`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from smearcount.config import Strict, read_entries, shipped
from smearcount.datasets import choose_sources, data_root, size_key
from smearcount.errors import ConfigError, DatasetError
from smearcount.taxonomy import Taxonomy

__all__ = [
    "CellSource",
    "Meaning",
    "TextKeys",
    "class_of",
    "codes_meant",
    "folder_of",
    "groups_of",
    "in_codes",
    "load_cell_sources",
    "point_rows",
    "readable",
    "types_of",
]


def _text_keys(mapping: Any) -> Any:
    return {str(key): value for key, value in mapping.items()} if isinstance(mapping, dict) else mapping


TextKeys = BeforeValidator(_text_keys)
"""For a mapping by name: YAML reads the name of a folder or of a class that is called 1 as a number."""


Meaning = str | tuple[str, ...]
"""What a class is: a code, several where it is coarser than these, or nothing where it is left out."""


def codes_meant(meant: Meaning) -> tuple[str, ...]:
    """The codes that a class may be."""
    return tuple(filter(None, [meant] if isinstance(meant, str) else meant))


_TAKEN_BY = {
    **dict.fromkeys(("um_per_px", "find"), ("points", "typed", "folders")),
    **dict.fromkeys(("datasets", "looks", "outline", "at_most"), ("boxes",)),
    **dict.fromkeys(("train_groups", "groups", "without"), ("folders",)),
    **{"types": ("typed",), "list": ("listed",), "val_share": ("folders", "truth")},
}
"""The formats of the keys that not every entry takes."""


class CellSource(Strict):
    """One entry of `configs/cells.yaml`, where each key is explained."""

    format: Literal["points", "typed", "listed", "boxes", "folders", "truth"]
    classes: Annotated[dict[str, Meaning], TextKeys]
    um_per_px: dict[Annotated[str, Field(pattern=r"^(\d+x\d+|any)$")], Annotated[float, Field(gt=0)]] = {}
    find: Literal["rbc", "wbc", ""] = ""
    folder: Path | None = None
    fields: str = ""
    datasets: Path | None = None
    looks: frozenset[str] = frozenset()
    outline: bool = False
    types: str = "wbc_types.csv"
    list: Path = Path()
    val_share: float = Field(default=0.0, ge=0, lt=1)
    train_groups: str = ""
    groups: Path | None = None
    at_most: int | None = Field(default=None, ge=1)
    without: frozenset[Path] = frozenset()

    @model_validator(mode="after")
    def _keys_of_its_format(self) -> CellSource:
        if self.format == "boxes" and not self.fields:
            raise ValueError("fields: expected the entry of the file of datasets whose boxes these are")
        if self.groups and self.train_groups:
            raise ValueError("groups: not beside train_groups, by which pictures of one name are a group")
        for key, formats in _TAKEN_BY.items():
            if self.format not in formats and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key}: only an entry of format {' or '.join(formats)} takes it, not one of {self.format}"
                )
        return self

    def scale(self, size_wh: tuple[int, int]) -> float:
        """Micrometres a pixel of a picture of this size.

        Raises:
            ConfigError: there is no entry for it.
        """
        key = size_key(self.um_per_px, size_wh)
        if key not in self.um_per_px:
            size = f"{size_wh[0]}x{size_wh[1]}"
            raise ConfigError(f"um_per_px: no entry for pictures of {size} px and none for 'any'; add one of them")
        return self.um_per_px[key]

    def look(self, size_wh: tuple[int, int]) -> str:
        """What tells the microscopes of a collection apart: the size of their pictures; empty where there is one."""
        return "" if len(self.um_per_px) < 2 else f"/{size_key(self.um_per_px, size_wh)}"

    def codes_of(self, label: str) -> set[str]:
        """What a cell of a class may be; nothing where the class is left out.

        Raises:
            ValueError: the class is unknown.
        """
        if label not in self.classes:
            raise ValueError(f"class {label!r} is not among {', '.join(self.classes)}")
        return set(codes_meant(self.classes[label]))


def load_cell_sources(config: Path | None = None) -> dict[str, CellSource]:
    """The entries of `configs/cells.yaml`, or of a laboratory's own file.

    Raises:
        ConfigError: an entry is malformed; names the file, the entry and the key.
    """
    return read_entries(CellSource, config or shipped("configs") / "cells.yaml")


def in_codes(source: CellSource, taxonomy: Taxonomy, where: str) -> CellSource:
    """An entry whose classes may be called by any name of a code, by the codes.

    Args:
        source: the entry.
        taxonomy: the codes.
        where: file and name of the entry.

    Raises:
        ConfigError: a class means what is no code; names the entry, the word, and what may be meant.
    """
    classes: dict[str, Meaning] = {}
    for label, meant in source.classes.items():
        codes = taxonomy.as_codes(codes_meant(meant))
        for word in codes:
            if word not in taxonomy.codes:
                near = taxonomy.nearest(word)
                known = f"{near} may be meant" if near else f"known: {', '.join(taxonomy.codes)}"
                raise ConfigError(f"{where}: classes.{label}: {word} is no code; {known}")
        classes[label] = codes if len(codes) > 1 else next(iter(codes), "")
    return source.model_copy(update={"classes": classes})


def folder_of(name: str, source: CellSource) -> Path:
    """Where a collection lies; one of boxes lies where its fields do, unless it has a folder of its own."""
    if source.format == "boxes":
        home, [fields] = choose_sources([source.fields], source.datasets, source.folder)
        return fields.folder or home / fields.name
    root = data_root()
    if root is None and source.folder is None:
        raise DatasetError("no labelled collections found: set SMEARCOUNT_DATA to their folder")
    folder = source.folder or Path(root or "", source.fields or name)
    if not folder.is_dir():
        remedy = f"make or copy them, or leave {name} out"
        raise DatasetError(f"{folder}: no such folder, where the cells of {name} should be; {remedy}")
    return folder


@contextmanager
def readable(name: str, folder: Path, source: CellSource) -> Iterator[None]:
    """Whatever is wrong with a collection or its files says which collection it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except (OSError, KeyError, ValueError, IndexError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{name}: {folder}: cells of format {source.format} can't be read ({fault})") from error


def point_rows(path: Path) -> list[tuple[float, float, str]]:
    """The lines `x y class` of a file."""
    rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return [(float(x), float(y), label) for x, y, label in rows]


def types_of(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column `image`."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def class_of(picture: Path, folder: Path) -> str:
    """The class of a picture of one cell: the first folder below the collection's."""
    return picture.relative_to(folder).parts[0]


def groups_of(pictures: Sequence[Path], folder: Path, listed: Path | None = None) -> list[str]:
    """What must stay on one side of a split, for each picture of one cell.

    It is the folder inside that of the class, such as a patient or a slide, whatever classes it is in; without one the
    picture itself, by its path below the collection's folder.

    Args:
        pictures: in the folders of the classes.
        folder: of the collection.
        listed: a CSV file with the columns `file`, as below `folder`, and `group`, which goes before the folders.

    Raises:
        DatasetError: the file can't be read, or names a picture that is not there.
    """
    told = _told_groups(listed, folder) if listed else {}
    names = [picture.relative_to(folder) for picture in pictures]
    return [told.get(name.as_posix()) or (name.parts[1] if name.parts[2:] else name.as_posix()) for name in names]


def _told_groups(listed: Path, folder: Path) -> dict[str, str]:
    try:
        with listed.open(newline="", encoding="utf-8-sig") as stream:
            told = {row["file"]: row["group"] for row in csv.DictReader(stream)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        fault = "no such column" if isinstance(error, KeyError) else "can't be read"
        raise DatasetError(
            f"{listed}: {fault} ({error}); expected a CSV file with the columns file and group"
        ) from error
    if absent := [name for name in told if not (folder / name).is_file()]:
        raise DatasetError(
            f"{listed}: {len(absent)} files such as {absent[0]} are not in {folder}; give them as paths below it"
        )
    return told
