"""Labelled cells of whole fields, by their places: what the pipeline's names are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smearcount.datasets import picture_finder, stems_of
from smearcount.errors import UsageError
from smearcount.images import open_image
from smearcount.training.cell_sources import CellSource, folder_of, point_rows, readable, types_of

__all__ = ["LabelledPoint", "labelled_points"]


@dataclass(frozen=True)
class LabelledPoint:
    """A labelled cell of a field: where it is, or None for the one white cell of its field."""

    path: Path
    code: str
    xy: tuple[float, float] | None
    um_per_px: float


def labelled_points(
    name: str, source: CellSource, split: str, merged: Mapping[str, str] | None = None
) -> list[LabelledPoint]:
    """The labelled cells of the fields of a collection of points or types, where the label is one code.

    Args:
        name: of the collection.
        source: its entry.
        split: `train` or `val`.
        merged: codes that are called otherwise, as they are part of a merged one.

    Raises:
        DatasetError: the collection is missing or malformed.
        UsageError: it is of another format.
    """
    if source.format not in ("points", "typed"):
        raise UsageError(
            f"{name}: expected a collection of points or typed fields, got {source.format}; name another one"
        )
    folder = folder_of(name, source)
    with readable(name, folder, source):
        types = types_of(folder / source.types) if source.format == "typed" else None
        picture_of = picture_finder(folder / "images")
        return [
            point
            for stem in stems_of(folder, split)
            for point in _points_of(picture_of(stem), _labels_of(folder, stem, types), source, merged or {})
        ]


def _labels_of(
    folder: Path, stem: str, types: dict[str, dict[str, str]] | None
) -> list[tuple[str, tuple[float, float] | None]]:
    """Label and place of each cell of a field; with `types` of its one white cell, if that has one."""
    if types is None:
        return [(label, (x, y)) for x, y, label in point_rows(folder / "labels" / f"{stem}.txt")]
    return [(types[stem]["type"], None)] if stem in types else []


def _points_of(
    path: Path, labels: Iterable[tuple[str, tuple[float, float] | None]], source: CellSource, merged: Mapping[str, str]
) -> Iterator[LabelledPoint]:
    scale = source.scale(open_image(path).size_wh)
    for label, place in labels:
        codes = {merged.get(code, code) for code in source.codes_of(label)}
        if len(codes) == 1:
            yield LabelledPoint(path, codes.pop(), place, scale)
