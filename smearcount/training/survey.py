"""What a laboratory sees before a training: faulty pictures, what folders mean, numbers and sizes, a sample sheet."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Pixels
from smearcount.cellsets import CellSet
from smearcount.errors import ConfigError, DatasetError, ImageError
from smearcount.geometry import resize_rgb
from smearcount.images import ReadLimits, find_images, list_folder, open_image
from smearcount.images.opening import first_bytes, kind_of_file, unnamed_pictures
from smearcount.patches import SMALLEST_CELL_PX
from smearcount.report import Row, to_csv
from smearcount.taxonomy import Taxonomy
from smearcount.training.cell_sources import Meaning, class_of, codes_meant

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from rich.table import Table

__all__ = [
    "PictureFault",
    "Survey",
    "check_folder",
    "check_pictures",
    "faults_csv",
    "folder_classes",
    "pixels_sum",
    "sample_sheet",
    "summary",
]

Classes = Mapping[str, Meaning]

BLANK_RANGE = 12
"""Grey levels between the 1st and the 99th percentile of green below which a picture shows nothing; the faintest red
cells of erythrocytesIDB and Chula span 33 and more."""

GREY_CHROMA = 6
"""Grey levels between the channels, 99th percentile, up to which a picture is grey; stained cells have 15 and more."""

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".ndpi", ".scn", ".bif"),
}


@dataclass(frozen=True)
class PictureFault:
    """Something wrong with a picture.

    Attributes:
        file: the picture.
        fault: `unreadable`, `too small`, `blank`, `several pictures`, `two classes`, `wrong suffix`, `copy`, `grey`.
        action: `left out` where it would teach something wrong, `reported` where it can be used.
        detail: a sentence for the reader.
    """

    file: Path
    fault: str
    action: Literal["left out", "reported"]
    detail: str


@dataclass(frozen=True)
class _Checked:
    """What is kept of a picture that was read: enough to compare it with the others."""

    file: Path
    label: str
    sha256: str
    grey: bool


def check_folder(folder: Path, classes: Classes | None = None) -> list[PictureFault]:
    """What is wrong with the pictures of a folder of classes, also those that are not named like pictures.

    Args:
        folder: its folders are the classes.
        classes: what each of them means, as `folder_classes` says; without it each is a class of its own.

    Raises:
        ImageError: the folder is missing or can't be listed.
    """
    unnamed = [
        PictureFault(path, "wrong suffix", "left out", f"named {path.suffix or 'without'}, is a {kind}: rename it")
        for path, kind in unnamed_pictures(folder)
    ]
    return check_pictures(list_folder(folder, recursive=True).pictures, folder, classes) + unnamed


def check_pictures(
    paths: Iterable[Path], folder: Path | None = None, classes: Classes | None = None
) -> list[PictureFault]:
    """Read every picture once and list what is wrong, in the order of the paths.

    Left out: what can't be decoded or is of a type that is not read, truncated, too small, blank, of several frames or
    pages, or stands in two classes pixel by pixel. Reported: a suffix that is not that of the content, a copy within
    its class, grey among coloured ones.

    The class of a picture is what the first folder below `folder` means by `classes`; without them that folder, and
    without that one the folder that it is in.
    """
    faults: list[PictureFault] = []
    read: list[_Checked] = []
    order: dict[Path, int] = {}
    for path in paths:
        order[path] = len(order)
        found, checked = _check(path, class_of(path, folder) if folder else path.parent.name)
        faults += found
        read += [checked] if checked else []
    faults += _copies(read, classes or {})
    if not all(each.grey for each in read):
        faults += [
            PictureFault(each.file, "grey", "reported", "no colour, others have it") for each in read if each.grey
        ]
    return sorted(faults, key=lambda fault: order[fault.file])


def faults_csv(faults: Iterable[PictureFault], folder: Path | None = None) -> str:
    """CSV with a row for each fault: file (relative to `folder` if given), fault, action, detail."""
    rows: list[Row] = [
        {
            "file": (each.file.relative_to(folder) if folder else each.file).as_posix(),
            **{"fault": each.fault, "action": each.action, "detail": each.detail},
        }
        for each in faults
    ]
    return to_csv(("file", "fault", "action", "detail"), rows)


def _check(path: Path, label: str) -> tuple[list[PictureFault], _Checked | None]:
    """The faults of one picture by itself; and, unless it is left out, what it is compared by."""
    try:
        source = open_image(path, ReadLimits(min_side_px=1))
        width, height = source.size_wh
        several = [note for note in source.notes if "of an animation" in note or note.startswith("page ")]
        if several:
            return [PictureFault(path, "several pictures", "left out", several[0])], None
        if min(width, height) < SMALLEST_CELL_PX:
            told = f"{width} x {height} px, expected {SMALLEST_CELL_PX} px a side"
            return [PictureFault(path, "too small", "left out", told)], None
        pixels = source.read(0, 0, width, height)
        kind = kind_of_file(first_bytes(path))
    except ImageError as error:
        return [PictureFault(path, "unreadable", "left out", str(error).removeprefix(f"{path}: "))], None
    step = max(min(width, height) // 128, 1)
    sampled = pixels[::step, ::step]
    low, high = np.percentile(sampled[..., 1], (1, 99))
    if high - low < BLANK_RANGE:
        return [PictureFault(path, "blank", "left out", f"green spans {high - low:.0f} grey levels")], None
    faults = []
    if path.suffix.lower() not in _SUFFIXES[kind]:
        faults.append(PictureFault(path, "wrong suffix", "reported", f"named {path.suffix or 'without'}, is a {kind}"))
    chroma = sampled.max(axis=2) - sampled.min(axis=2)
    return faults, _Checked(path, label, pixels_sum(pixels), bool(np.percentile(chroma, 99) <= GREY_CHROMA))


def pixels_sum(pixels: Pixels) -> str:
    """SHA-256 of what a picture `(H, W, 3) uint8 RGB` shows, in whatever file it is kept."""
    height, width = pixels.shape[:2]
    return hashlib.sha256(f"{width}x{height}".encode() + pixels.tobytes()).hexdigest()


def _copies(read: list[_Checked], meant: Classes) -> list[PictureFault]:
    """Pictures that are equal pixel by pixel: in two classes nobody knows which is right, in one the first counts.

    Those of folders that mean nothing are not used, and compared with no other.
    """
    same: dict[str, list[_Checked]] = {}
    for each in read:
        if codes_meant(meant.get(each.label, each.label)):
            same.setdefault(each.sha256, []).append(each)
    faults = []
    for twins in same.values():
        classes = sorted({each.label for each in twins})
        if len({frozenset(codes_meant(meant.get(name, name))) for name in classes}) > 1:
            told = f"the same picture in {' and '.join(classes)}"
            faults += [PictureFault(each.file, "two classes", "left out", told) for each in twins]
        else:
            told = f"the same picture as {twins[0].file.name}"
            faults += [PictureFault(each.file, "copy", "reported", told) for each in twins[1:]]
    return faults


def folder_classes(folder: Path, taxonomy: Taxonomy, classes: Classes | None = None) -> dict[str, Meaning]:
    """What each class folder below `folder` means: a code, several where it is coarser, or "" to leave it out.

    A folder is known by a code, its display name or a synonym, in any case, with `_`, `-` or blanks, with or without
    accents, and in the plural.

    Args:
        folder: its folders are the classes, also those without any picture.
        taxonomy: the codes.
        classes: what folders mean, by the codes or other names, which goes before their names.

    Raises:
        ConfigError: a folder is unknown, or `classes` names a folder or code that is not there.
        DatasetError: there is no class folder, or a picture lies beside them.
    """
    pictures = find_images(folder, recursive=True)
    beside = [path.name for path in pictures if path.parent == folder]
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if beside or not pictures:
        fault = f"{len(beside)} pictures such as {beside[0]} beside the class folders" if beside else "no pictures"
        raise DatasetError(f"{folder}: {fault}; expected one folder of pictures for each class")
    # A file system may write an accent as a character of its own, unlike a keyboard.
    on_disk = {unicodedata.normalize("NFC", name): name for name in names}
    given = {on_disk.get(unicodedata.normalize("NFC", name), name): meant for name, meant in (classes or {}).items()}
    unknown = [name for name in names if name not in given and taxonomy.code_of(name) is None]
    if unknown:
        raise ConfigError(
            f"{folder}: no code for the folders {', '.join(unknown)}; say what they are under `classes`, "
            f'"" to leave one out; known codes: {", ".join(taxonomy.codes)}'
        )
    if absent := sorted(given.keys() - set(names)):
        raise ConfigError(f"classes: no folder {', '.join(absent)} in {folder}; there are {', '.join(names)}")
    meant = {name: _known(given[name], taxonomy) if name in given else taxonomy.code_of(name) or "" for name in names}
    wrong = {code for each in meant.values() for code in codes_meant(each)} - taxonomy.codes.keys()
    if wrong:
        raise ConfigError(f"classes: unknown codes {', '.join(sorted(wrong))}; known: {', '.join(taxonomy.codes)}")
    return meant


def _known(meant: Meaning, taxonomy: Taxonomy) -> Meaning:
    """The same by codes, where it is told by their names or synonyms."""
    return taxonomy.as_codes([meant])[0] if isinstance(meant, str) else taxonomy.as_codes(meant)


@dataclass(frozen=True)
class Survey:
    """Numbers and sizes of labelled cells.

    Attributes:
        classes: a row for each code or, where a label is coarser, choice of codes; then one for all. Columns: `class`,
            `cells`, `train`, `val`, `px_min`, `px_median`, `px_max`, `um_min`, `um_median`, `um_max`, then a column
            for each source.
        sources: names of the sources.
        imbalance: cells of the largest code over those of the smallest that has any, in training; NaN without two.
        empty: codes without a cell of their own.
        unjudged: other codes without such a cell in validation.
    """

    classes: tuple[Row, ...]
    sources: tuple[str, ...]
    imbalance: float
    empty: tuple[str, ...]
    unjudged: tuple[str, ...]

    def as_csv(self) -> str:
        """The rows with all columns."""
        return to_csv(tuple(self.classes[0]), self.classes)

    def as_table(self) -> Table:
        """The rows for the screen, sizes and sources in short."""
        from rich.table import Table

        told = f"largest code : smallest code in training = {self.imbalance:.1f} : 1"
        empty = f"; no cells of {', '.join(self.empty)}" if self.empty else ""
        unjudged = f"; not judged, for want of validation cells: {', '.join(self.unjudged)}" if self.unjudged else ""
        sizes = "\npx: as the pictures are kept, which is no finer than twice the largest input"
        table = Table(
            title="Labelled cells",
            caption=told + empty + unjudged + sizes,
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("class", max_width=40)
        for heading in ("cells", "train", "val", "px", "µm"):
            table.add_column(heading, justify="right")
        table.add_column("sources")
        for row in self.classes:
            px, um = (" ".join(str(row[f"{unit}_{at}"]) for at in ("min", "median", "max")) for unit in ("px", "um"))
            sources = ", ".join(f"{name} {row[name]}" for name in self.sources if row[name])
            table.add_row(*(str(row[name]) for name in ("class", "cells", "train", "val")), px, um, sources)
        return table


def summary(cells: CellSet) -> Survey:
    """Numbers by class, split and source, and the sides of the windows in pixels and micrometres.

    Raises:
        ValueError: there are no cells.
    """
    if not len(cells):
        raise ValueError("cells: expected at least one, got none")
    sources = tuple(np.unique(cells.sources).tolist())
    rows = [_class_row(cells, name, members, sources) for name, members in _choices(cells)]
    rows.append(_class_row(cells, "all", np.ones(len(cells), np.bool_), sources))
    own = {code: cells.exact & cells.targets[:, k] for k, code in enumerate(cells.codes)}
    trained = [int((mask & (cells.splits == "train")).sum()) for mask in own.values()]
    trained = [n for n in trained if n]
    imbalance = max(trained) / min(trained) if len(trained) > 1 else float("nan")
    empty = tuple(code for code, mask in own.items() if not mask.any())
    judged = {code for code, mask in own.items() if (mask & (cells.splits == "val")).any()}
    unjudged = tuple(code for code in own if code not in (*empty, *judged))
    return Survey(tuple(rows), sources, imbalance, empty, unjudged)


def _choices(cells: CellSet) -> list[tuple[str, Bools]]:
    """Each code with cells of its own, in order, then each coarser label; name and members `(N,) bool`."""
    choices, which = np.unique(cells.targets, axis=0, return_inverse=True)
    order = sorted(range(len(choices)), key=lambda row: (choices[row].sum(), (~choices[row]).tolist()))
    names = [" or ".join(np.array(cells.codes)[choices[row]].tolist()) for row in order]
    return [(name, which.ravel() == row) for name, row in zip(names, order, strict=True)]


def _class_row(cells: CellSet, name: str, members: Bools, sources: tuple[str, ...]) -> Row:
    px = cells.sides_px[members]
    um = px * cells.um_per_px[members]
    row: Row = {"class": name, "cells": int(members.sum())}
    row |= {split: int((members & (cells.splits == split)).sum()) for split in ("train", "val")}
    row |= {f"px_{at}": f"{pick(px):.0f}" for at, pick in _PICKS.items()}
    row |= {f"um_{at}": f"{pick(um):.1f}" for at, pick in _PICKS.items()}
    return row | {source: int((members & (cells.sources == source)).sum()) for source in sources}


_PICKS: dict[str, Callable[[npt.NDArray[Any]], float]] = {"min": np.min, "median": np.median, "max": np.max}

_TILE_PX, _GAP_PX, _TEXT_PX, _NAME_PX = 96, 6, 15, 190


def sample_sheet(cells: CellSet, per_code: int, seed: int) -> Pixels:
    """A labelled sheet `(H, W, 3) uint8 RGB`: a row of examples for each class, the sources taking turns.

    Args:
        cells: at least one.
        per_code: examples a row.
        seed: of the choice.

    Raises:
        ValueError: there are no cells, or no example is asked for.
    """
    from PIL import Image, ImageDraw

    from smearcount.panel import PAPER

    if not len(cells) or per_code < 1:
        raise ValueError(f"expected cells and at least one example of each, got {len(cells)} and {per_code}")
    rows = _choices(cells)
    pitch_x, pitch_y = _TILE_PX + _GAP_PX, _TILE_PX + _TEXT_PX + _GAP_PX
    sheet = Image.new("RGB", (_NAME_PX + per_code * pitch_x, len(rows) * pitch_y + _GAP_PX), PAPER)
    pen, rng = ImageDraw.Draw(sheet), np.random.default_rng(seed)
    for y, (name, members) in zip(range(_GAP_PX, sheet.height, pitch_y), rows, strict=False):
        counts = [int((members & (cells.splits == split)).sum()) for split in ("train", "val")]
        _write(pen, (_GAP_PX, y), name, _NAME_PX - 2 * _GAP_PX, bold=True)
        _write(pen, (_GAP_PX, y + 3 * _TEXT_PX), f"{counts[0]} train, {counts[1]} val", _NAME_PX - 2 * _GAP_PX)
        examples = cells.in_turns(rng.permutation(np.flatnonzero(members))).tolist()
        for x, row in zip(range(_NAME_PX, sheet.width, pitch_x), examples, strict=False):
            sheet.paste(Image.fromarray(resize_rgb(cells.pixels[row], _TILE_PX, _TILE_PX)), (x, y))
            _write(pen, (x, y + _TILE_PX), str(cells.sources[row]), _TILE_PX, lines=1)
    return cast(Pixels, np.array(sheet))


def _write(
    pen: ImageDraw, corner_xy: tuple[int, int], text: str, width: int, *, bold: bool = False, lines: int = 2
) -> None:
    from smearcount.panel import INK, face_for, letters, wrap

    face = face_for(12, width)
    font = face.bold if bold else face.small
    for number, line in enumerate(wrap(letters(text, face), font, width, lines)):
        pen.text((corner_xy[0], corner_xy[1] + number * _TEXT_PX), line, INK, font)
