"""Reads labelled cells of every format into one `CellSet`, cut out where the detector sees them.

`configs/cells.yaml` says where each collection lies, in which format, and what its classes mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from smearcount.cellsets import CellSet, Pixels, join
from smearcount.classifier import FINEST
from smearcount.config import Strict, load_yaml, shipped
from smearcount.datasets import KINDS, LabelledField, choose_sources, data_root, picture_of, read_source, stems_of
from smearcount.detector import FILL, Detector, PixelSource
from smearcount.errors import ConfigError, DatasetError
from smearcount.geometry import FloatArray, centres, iou_matrix, resize_rgb
from smearcount.images import find_images, open_image
from smearcount.training.splits import split_groups

__all__ = [
    "CONTEXT",
    "CellSource",
    "Window",
    "cut_window",
    "folder_of",
    "load_cell_sources",
    "point_rows",
    "read_cells",
    "readable",
    "types_of",
]

CONTEXT = 1.6
"""Side of a kept window over the side of the patch: room for turning, shifting and a lower magnification."""


class CellSource(Strict):
    """One entry of `configs/cells.yaml`, where each key is explained."""

    format: Literal["points", "typed", "boxes", "folders", "truth"]
    classes: dict[str, str | tuple[str, ...]]
    um_per_px: dict[str, float] = {}
    find: Literal["rbc", "wbc", ""] = ""
    folder: Path | None = None
    fields: str = ""
    types: str = "wbc_types.csv"
    val_share: float = Field(default=0.0, ge=0, lt=1)
    train_groups: str = ""
    at_most: int | None = Field(default=None, ge=1)
    without: frozenset[Path] = frozenset()

    def scale(self, size_wh: tuple[int, int]) -> float:
        """Micrometres a pixel of a picture of this size.

        Raises:
            ConfigError: there is no entry for it.
        """
        size = f"{size_wh[0]}x{size_wh[1]}"
        if size not in self.um_per_px and "any" not in self.um_per_px:
            raise ConfigError(f"um_per_px: no entry for pictures of {size} px and none for 'any'")
        return self.um_per_px.get(size) or self.um_per_px["any"]

    def look(self, size_wh: tuple[int, int]) -> str:
        """What tells the microscopes of a collection apart: the size of their pictures; empty where there is one."""
        size = f"{size_wh[0]}x{size_wh[1]}"
        return "" if len(self.um_per_px) < 2 else f"/{size if size in self.um_per_px else 'any'}"

    def codes_of(self, label: str) -> set[str]:
        """What a cell of a class may be; nothing where the class is left out.

        Raises:
            ValueError: the class is unknown.
        """
        if label not in self.classes:
            raise ValueError(f"class {label!r} is not among {', '.join(self.classes)}")
        meant = self.classes[label]
        return {meant} - {""} if isinstance(meant, str) else set(meant)


@dataclass(frozen=True, eq=False)
class Window:
    """One labelled cell before the sets are joined: a window, its scale and what is known of the cell."""

    pixels: Pixels
    um_per_px: float
    label: str
    group: str
    split: str
    origin: str
    look: str = ""


@dataclass(frozen=True)
class _Reading:
    """What every reader needs."""

    folder: Path
    name: str
    source: CellSource
    detector: Detector
    patch_um: float
    seed: int

    @property
    def side_um(self) -> float:
        return self.patch_um * CONTEXT


def load_cell_sources(config: Path | None = None) -> dict[str, CellSource]:
    """The entries of `configs/cells.yaml`, or of a laboratory's own file.

    Raises:
        ConfigError: an entry is malformed.
    """
    path = config or shipped("configs") / "cells.yaml"
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected collections by name")
    try:
        return {name: CellSource.model_validate(entry) for name, entry in content.items()}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_cells(
    sources: Mapping[str, CellSource],
    codes: tuple[str, ...],
    detector: Detector,
    patch_um: float,
    input_px: int,
    seed: int = 0,
) -> CellSet:
    """The labelled cells of some collections; cells of classes without a code are left out.

    Args:
        sources: by name, as `load_cell_sources` gives them.
        codes: of the classifier; labels outside of them are left out.
        detector: finds the cells on fields and single pictures, so that training sees what inference sees.
        patch_um: side of the classifier's window; more is kept around it.
        input_px: side of its input; windows are kept at no more than twice that resolution.
        seed: of the splits and of the choice where a collection is larger than wanted.

    Raises:
        DatasetError: a collection is missing or malformed.
    """
    finest, parts = patch_um / (FINEST * input_px), []
    for name, source in sources.items():
        reading = _Reading(folder_of(name, source), name, source, detector, patch_um, seed)
        with readable(reading.folder, source):
            read = _READERS[source.format](reading)
            windows = [_coarse(window, finest) for window in read if source.codes_of(window.label) & set(codes)]
        if windows:
            parts.append(_as_set(windows, name, source, codes))
    if not parts:
        raise DatasetError("no labelled cell of the wanted codes was found")
    return join(parts)


def _coarse(window: Window, finest_um_per_px: float) -> Window:
    """The window at no finer a scale than given, which is all that the network can see and less to keep."""
    side = round(window.pixels.shape[0] * window.um_per_px / finest_um_per_px)
    if side >= window.pixels.shape[0]:
        return window
    scale = window.um_per_px * window.pixels.shape[0] / side
    return replace(window, pixels=resize_rgb(window.pixels, side, side), um_per_px=scale)


def folder_of(name: str, source: CellSource) -> Path:
    """Where a collection lies; one of boxes lies where its fields do."""
    root = data_root()
    if root is None and source.folder is None:
        raise DatasetError("no labelled collections found: set SMEARCOUNT_DATA to their folder")
    folder = source.folder or Path(root or "", source.fields or name)
    if not folder.is_dir() and source.format != "boxes":
        raise DatasetError(f"{folder}: no such folder, where the cells of {name} should be")
    return folder


@contextmanager
def readable(folder: Path, source: CellSource) -> Iterator[None]:
    """Whatever is wrong with the files of a collection says which collection it is."""
    try:
        yield
    except (OSError, KeyError, ValueError, IndexError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{folder}: cells of format {source.format} can't be read ({fault})") from error


def _as_set(windows: list[Window], name: str, source: CellSource, codes: tuple[str, ...]) -> CellSet:
    allowed = [source.codes_of(window.label) for window in windows]
    return CellSet(
        pixels=tuple(window.pixels for window in windows),
        um_per_px=np.array([window.um_per_px for window in windows], np.float32),
        targets=np.array([[code in each for code in codes] for each in allowed], bool),
        codes=codes,
        sources=np.array([name + window.look for window in windows]),
        groups=np.array([window.group for window in windows]),
        splits=np.array([window.split for window in windows]),
        origins=np.array([window.origin for window in windows]),
    )


def cut_window(source: PixelSource, centre_xy: tuple[float, float], side_px: int) -> Pixels:
    """A square of `side_px` around a point at the picture's own resolution; what lies outside is background."""
    width, height = source.size_wh
    left, top = round(centre_xy[0] - side_px / 2), round(centre_xy[1] - side_px / 2)
    window = np.full((side_px, side_px, 3), FILL, np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side_px, width), min(top + side_px, height)
    if x1 > x0 and y1 > y0:
        window[y0 - top : y1 - top, x0 - left : x1 - left] = source.read(x0, y0, x1 - x0, y1 - y0)
    return window


def _points(reading: _Reading) -> Iterator[Window]:
    """Cells labelled by a point `x y class`; the window is centred on the box found around the point."""
    for split, stem in _split_stems(reading.folder):
        path = picture_of(reading.folder / "images", stem)
        picture = open_image(path)
        scale = reading.source.scale(picture.size_wh)
        cells = reading.detector.find(picture, scale)
        boxes = cells.boxes[cells.kinds == reading.source.find]
        for x, y, label in point_rows(reading.folder / "labels" / f"{stem}.txt"):
            pixels = cut_window(picture, _around(boxes, x, y), round(reading.side_um / scale))
            yield Window(pixels, scale, label, f"{reading.name}/{stem}", split, f"{path.name} {x:.0f} {y:.0f}")


def point_rows(path: Path) -> list[tuple[float, float, str]]:
    """The lines `x y class` of a file."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(float(x), float(y), label) for x, y, label in rows]


def types_of(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column `image`."""
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def _around(boxes: FloatArray, x: float, y: float) -> tuple[float, float]:
    """Centre of the box nearest to a point among those that hold it; the point itself where none does."""
    held = boxes[(boxes[:, 0] <= x) & (boxes[:, 1] <= y) & (boxes[:, 2] >= x) & (boxes[:, 3] >= y)]
    if not len(held):
        return x, y
    middles = centres(held)
    nearest = middles[np.hypot(middles[:, 0] - x, middles[:, 1] - y).argmin()]
    return float(nearest[0]), float(nearest[1])


def _typed(reading: _Reading) -> Iterator[Window]:
    """The white cell of every field whose type is known; fields with several white cells are left out."""
    types = types_of(reading.folder / reading.source.types)
    for split, stem in _split_stems(reading.folder):
        if stem not in types:
            continue
        path = picture_of(reading.folder / "images", stem)
        picture = open_image(path)
        scale = reading.source.scale(picture.size_wh)
        cells = reading.detector.find(picture, scale)
        found = cells.boxes[cells.kinds == reading.source.find]
        if len(found) != 1:
            continue
        x, y = centres(found)[0].tolist()
        original = Path(types[stem].get("original") or stem).stem
        pixels = cut_window(picture, (x, y), round(reading.side_um / scale))
        look = reading.source.look(picture.size_wh)
        yield Window(pixels, scale, types[stem]["type"], original, split, path.name, look)


def _boxes(reading: _Reading) -> Iterator[Window]:
    """Cells of some kinds, from the labelled boxes of a collection of fields."""
    root, [fields] = choose_sources([reading.source.fields])
    wanted = [KINDS.index(kind) for kind in reading.source.classes]
    listed: list[tuple[str, LabelledField, int]] = []
    for split in ("train", "val"):
        for field in read_source(root, fields, split):
            listed += [(split, field, int(row)) for row in np.flatnonzero(np.isin(field.kinds, wanted))]
    rng = np.random.default_rng(reading.seed)
    limit = min(reading.source.at_most or len(listed), len(listed))
    for index in sorted(rng.choice(len(listed), limit, replace=False).tolist()):
        split, field, row = listed[index]
        x, y = centres(field.boxes[row : row + 1])[0].tolist()
        pixels = cut_window(open_image(field.path), (x, y), round(reading.side_um / field.um_per_px))
        label, stem = KINDS[field.kinds[row]], field.path.stem
        yield Window(
            pixels, field.um_per_px, label, f"{fields.name}/{stem}", split, f"{field.path.name} {x:.0f} {y:.0f}"
        )


def _truth(reading: _Reading) -> Iterator[Window]:
    """Cells of rendered smears, which know their codes; `truth.json` lies beside the pictures."""
    smears = json.loads((reading.folder / "truth.json").read_text(encoding="utf-8"))
    names = np.array(list(smears))
    share = reading.source.val_share
    labels = np.full(len(names), "smear")
    splits = split_groups(names, labels, share, reading.seed) if share else np.full(len(names), "train")
    for name, split in zip(names.tolist(), splits.tolist(), strict=True):
        smear, picture = smears[name], open_image(reading.folder / name)
        rows = [row for row, code in enumerate(smear["codes"]) if code in reading.source.classes]
        for (x, y), row in zip(
            centres(np.array(smear["boxes"], np.float32).reshape(-1, 4)[rows]).tolist(), rows, strict=True
        ):
            pixels = cut_window(picture, (x, y), round(reading.side_um / smear["um_per_px"]))
            origin = f"{name} {x:.0f} {y:.0f}"
            yield Window(pixels, smear["um_per_px"], smear["codes"][row], f"{reading.name}/{name}", split, origin)


def _folders(reading: _Reading) -> Iterator[Window]:
    """Single cells in one folder a class; the window is the whole picture, moved so that the cell is in the middle."""
    source = reading.source
    listed = find_images(reading.folder, recursive=True)
    paths = [path for path in listed if source.classes.get(path.parent.name) and path not in source.without]
    groups = np.array([path.stem if source.train_groups else str(path.relative_to(reading.folder)) for path in paths])
    labels = np.array([path.parent.name for path in paths])
    kept = _originals_in_training(reading)
    free = np.array([group not in kept for group in groups.tolist()])
    splits = np.full(len(paths), "train", "<U5")
    if source.val_share and free.any():
        splits[free] = split_groups(groups[free], labels[free], source.val_share, reading.seed)
    for path, group, split in zip(paths, groups.tolist(), splits.tolist(), strict=True):
        picture = open_image(path)
        scale = source.scale(picture.size_wh) if source.um_per_px else reading.patch_um / min(picture.size_wh)
        pixels = picture.read(0, 0, *picture.size_wh)
        yield Window(
            _centred(pixels, _middle(picture, scale, reading, path)),
            scale,
            path.parent.name,
            group,
            split,
            f"{path.parent.name}/{path.name}",
        )


def _originals_in_training(reading: _Reading) -> frozenset[str]:
    if not reading.source.train_groups:
        return frozenset()
    with Path(data_root() or "", reading.source.train_groups).open(newline="", encoding="utf-8") as stream:
        return frozenset(Path(row["original"]).stem for row in csv.DictReader(stream))


def _middle(picture: PixelSource, scale: float, reading: _Reading, path: Path) -> tuple[float, float]:
    """Centre of the found cell that overlaps the middle of the picture most; the middle without any."""
    width, height = picture.size_wh
    if not reading.source.find:
        return width / 2, height / 2
    cells = reading.detector.find(picture, scale)
    kind = "platelet" if reading.source.classes[path.parent.name] == "platelet" else reading.source.find
    boxes = cells.boxes[cells.kinds == kind]
    central = np.array([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]], np.float32)
    overlaps = iou_matrix(central, boxes)[0]
    if not len(boxes) or overlaps.max() <= 0:
        return width / 2, height / 2
    x, y = centres(boxes[[int(overlaps.argmax())]])[0].tolist()
    return x, y


def _centred(pixels: Pixels, centre_xy: tuple[float, float]) -> Pixels:
    """The largest square of a picture around a point, but never less than nine tenths of the whole."""
    height, width = pixels.shape[:2]
    x, y = centre_xy
    whole = min(width, height)
    side = round(max(min(2 * x, 2 * (width - x), 2 * y, 2 * (height - y), whole), 0.9 * whole))
    left = min(max(round(x - side / 2), 0), width - side)
    top = min(max(round(y - side / 2), 0), height - side)
    return pixels[top : top + side, left : left + side]


def _split_stems(folder: Path) -> list[tuple[str, str]]:
    return [(split, stem) for split in ("train", "val") for stem in stems_of(folder, split)]


_READERS: dict[str, Callable[[_Reading], Iterable[Window]]] = {
    "points": _points,
    "typed": _typed,
    "boxes": _boxes,
    "folders": _folders,
    "truth": _truth,
}
