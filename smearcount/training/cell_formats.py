"""Reads the labelled cells of each format: a window around every cell, cut out where the detector sees it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smearcount.arrays import FloatArray, Pixels
from smearcount.cellsets import Kept, PictureWindow
from smearcount.config import shipped
from smearcount.datasets import KINDS, LabelledField, choose_sources, data_root, picture_finder, read_source, stems_of
from smearcount.detector import Detector
from smearcount.errors import ConfigError
from smearcount.geometry import FILL, centres, iou_matrix
from smearcount.images import PixelSource, ReadLimits, find_images, open_image
from smearcount.patches import SMALLEST_CELL_PX
from smearcount.training.cell_sources import CellSource, class_of, groups_of, point_rows, types_of
from smearcount.training.red_cells import find_red_cell
from smearcount.training.splits import split_groups

__all__ = ["CONTEXT", "Reading", "Skipped", "Window", "boxes_without_code", "cut_window", "windows_of"]

ROUND_TO, OVAL_TO = 1.2, 1.35
"""Length over width up to which a red cell is round, or oval. Of the training cells of Chula RBC-12, 95 % of the
normocytes lie below 1.29, 95 % of the ovalocytes above 1.23, and 95 % of the elliptocytes above 1.40."""

OUTLINES = ("round", "oval", "long")
"""What an outline may be like."""

CONTEXT = 1.6
"""Side of a kept window over the side of the patch: room for turning, shifting and a lower magnification."""


@dataclass(frozen=True, eq=False)
class Window:
    """One labelled cell before the sets are joined: a window, its scale and what is known of the cell.

    Where the cell has a picture of its own, `again` tells how the window is read from it once more.
    """

    pixels: Kept
    um_per_px: float
    label: str
    group: str
    split: str
    origin: str
    look: str = ""
    again: PictureWindow | None = None


@dataclass(frozen=True)
class Skipped:
    """A field that gives no cell, and why: the second half of a sentence."""

    why: str


@dataclass(frozen=True)
class Reading:
    """What every reader needs.

    Attributes:
        folder: where the collection lies.
        name: its entry.
        home: the first entry that lies in this folder, after which its groups are called: many laboratories have a
            `patient1`.
        source: what the entry says.
        detector: finds the cells.
        patch_um: side of the classifier's window.
        seed: of splits and choices.
    """

    folder: Path
    name: str
    home: str
    source: CellSource
    detector: Detector
    patch_um: float
    seed: int

    @property
    def side_um(self) -> float:
        """Side of a kept window."""
        return self.patch_um * CONTEXT


def windows_of(reading: Reading) -> Iterable[Window | Skipped]:
    """The labelled cells of a collection, one after the other, and fields that should have had one."""
    return _READERS[reading.source.format](reading)


def cut_window(source: PixelSource, centre_xy: tuple[float, float], side_px: int) -> Pixels:
    """A square of `side_px` around a point at the picture's own resolution; what lies outside is background."""
    width, height = source.size_wh
    left, top = round(centre_xy[0] - side_px / 2), round(centre_xy[1] - side_px / 2)
    window = np.full((side_px, side_px, 3), FILL, np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side_px, width), min(top + side_px, height)
    if x1 > x0 and y1 > y0:
        window[y0 - top : y1 - top, x0 - left : x1 - left] = source.read(x0, y0, x1 - x0, y1 - y0)
    return window


def _points(reading: Reading) -> Iterator[Window]:
    """Cells labelled by a point `x y class`; the window is centred on the box found around the point."""
    picture_of = picture_finder(reading.folder / "images")
    for split, stem in _split_stems(reading.folder):
        path = picture_of(stem)
        picture = open_image(path)
        scale = reading.source.scale(picture.size_wh)
        cells = reading.detector.find(picture, scale)
        boxes = cells.boxes[cells.kinds == reading.source.find]
        for x, y, label in point_rows(reading.folder / "labels" / f"{stem}.txt"):
            pixels = cut_window(picture, _around(boxes, x, y), round(reading.side_um / scale))
            yield Window(pixels, scale, label, f"{reading.name}/{stem}", split, f"{path.name} {x:.0f} {y:.0f}")


def _around(boxes: FloatArray, x: float, y: float) -> tuple[float, float]:
    """Centre of the box nearest to a point among those that hold it; the point itself where none does."""
    held = boxes[(boxes[:, 0] <= x) & (boxes[:, 1] <= y) & (boxes[:, 2] >= x) & (boxes[:, 3] >= y)]
    if not len(held):
        return x, y
    middles = centres(held)
    nearest = middles[np.hypot(middles[:, 0] - x, middles[:, 1] - y).argmin()]
    return float(nearest[0]), float(nearest[1])


def _typed(reading: Reading) -> Iterator[Window | Skipped]:
    """The one white cell of every field whose type is known; fields with none or several are skipped."""
    types, find = types_of(reading.folder / reading.source.types), reading.source.find or "wbc"
    picture_of = picture_finder(reading.folder / "images")
    for split, stem in _split_stems(reading.folder):
        if stem not in types:
            yield Skipped(f"without a type in {reading.source.types}")
            continue
        path = picture_of(stem)
        picture = open_image(path)
        scale = reading.source.scale(picture.size_wh)
        cells = reading.detector.find(picture, scale)
        found = cells.boxes[cells.kinds == find]
        if len(found) != 1:
            yield Skipped(f"with {'several cells' if len(found) else 'no cell'} found as {find}")
            continue
        x, y = centres(found)[0].tolist()
        original = Path(types[stem].get("original") or stem).stem
        pixels = cut_window(picture, (x, y), round(reading.side_um / scale))
        look = reading.source.look(picture.size_wh)
        yield Window(pixels, scale, types[stem]["type"], original, split, path.name, look)


def _listed(reading: Reading) -> Iterator[Window]:
    """Cells in a list `image,x_px,y_px,um_per_px,type` that lies apart from the pictures."""
    picture_of = picture_finder(reading.folder / "images")
    split_of = {stem: split for split, stem in _split_stems(reading.folder)}
    with (shipped("configs") / reading.source.list).open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        stem, x, y, scale = row["image"], float(row["x_px"]), float(row["y_px"]), float(row["um_per_px"])
        path = picture_of(stem)
        pixels = cut_window(open_image(path), (x, y), round(reading.side_um / scale))
        group = f"{reading.folder.name}/{stem}"
        yield Window(pixels, scale, row["type"], group, split_of[stem], f"{path.name} {x:.0f} {y:.0f}")


def _boxes(reading: Reading) -> Iterator[Window]:
    """Cells by what their boxes are called, or by their kinds, from the labelled boxes of a collection of fields."""
    source = reading.source
    listed = [row for row in labelled_boxes(source) if row.label]
    rng = np.random.default_rng(reading.seed)
    limit = min(source.at_most or len(listed), len(listed))
    for index in sorted(rng.choice(len(listed), limit, replace=False).tolist()):
        box = listed[index]
        field, (x, y) = box.field, centres(box.field.boxes[[box.row]])[0].tolist()
        pixels = cut_window(open_image(field.path), (x, y), round(reading.side_um / field.um_per_px))
        label = (_outline(pixels, field.um_per_px) if source.outline and box.label in KINDS else "") or box.label
        group, origin = f"{source.fields}/{field.path.stem}", f"{field.path.name} {x:.0f} {y:.0f}"
        yield Window(pixels, field.um_per_px, label, group, box.split, origin)


@dataclass(frozen=True)
class LabelledBox:
    """A box of a field by its row; its class by an entry, empty where it has none; and what it is called."""

    field: LabelledField
    row: int
    split: str
    label: str
    name: str


def labelled_boxes(source: CellSource) -> list[LabelledBox]:
    """The boxes of an entry of boxes, field by field, training fields first.

    Raises:
        DatasetError: the fields are missing or malformed.
        ConfigError: a class is neither a kind nor what the fields call a box.
    """
    root, [fields] = choose_sources([source.fields], source.datasets, source.folder)
    known = [*fields.classes, *KINDS, *(OUTLINES if source.outline else ())]
    if unknown := [name for name in source.classes if name not in known]:
        raise ConfigError(f"classes: no box of {fields.name} is called {', '.join(unknown)}; known: {', '.join(known)}")
    found = []
    for split in ("train", "val"):
        for field in read_source(root, fields, split):
            if source.looks and field.source.partition("/")[2] not in source.looks:
                continue
            for row, (name, kind) in enumerate(zip(field.names, field.kinds.tolist(), strict=True)):
                # Of labels that were exchanged, a name says nothing.
                words = (name, KINDS[kind]) if fields.classes[name] == KINDS[kind] else (KINDS[kind],)
                label = next((word for word in words if word in source.classes), "")
                found.append(LabelledBox(field, row, split, label, name))
    return found


def boxes_without_code(source: CellSource) -> dict[str, int]:
    """Boxes that an entry leaves out as it says nothing of what they are called, by that; none for kinds alone."""
    if source.format != "boxes" or set(source.classes) <= {*KINDS, *OUTLINES}:
        return {}
    return dict(sorted(Counter(box.name for box in labelled_boxes(source) if not box.label).items()))


def _outline(pixels: Pixels, um_per_px: float) -> str:
    """What the outline of a red cell is like: `round`, `oval` or `long`; empty where no single cell is to be seen."""
    cell = find_red_cell(pixels, um_per_px)
    if cell is None or cell.cut:
        return ""
    return "round" if cell.aspect < ROUND_TO else "oval" if cell.aspect < OVAL_TO else "long"


def _truth(reading: Reading) -> Iterator[Window]:
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


def _folders(reading: Reading) -> Iterator[Window]:
    """Single cells in one folder a class; the window is the whole picture, moved so that the cell is in the middle."""
    source = reading.source
    listed = find_images(reading.folder, recursive=True)
    paths = [path for path in listed if _wanted(path, reading)]
    groups = np.array(
        [path.stem for path in paths] if source.train_groups else groups_of(paths, reading.folder, source.groups)
    )
    labels = np.array([class_of(path, reading.folder) for path in paths])
    kept = _originals_in_training(reading)
    free = np.array([group not in kept for group in groups.tolist()])
    splits = np.full(len(paths), "train", "<U5")
    if source.val_share and free.any():
        splits[free] = split_groups(groups[free], labels[free], source.val_share, reading.seed)
    for path, label, group, split in zip(paths, labels.tolist(), groups.tolist(), splits.tolist(), strict=True):
        picture = open_image(path, ReadLimits(min_side_px=SMALLEST_CELL_PX))
        scale = source.scale(picture.size_wh) if source.um_per_px else reading.patch_um / min(picture.size_wh)
        left, top, side = square = _square_around(_middle(picture, scale, reading, label), picture.size_wh)
        pixels, origin = picture.read(left, top, side, side), path.relative_to(reading.folder).as_posix()
        # Originals have names that other collections call them by as well.
        own = group if source.train_groups else f"{reading.home}/{group}"
        yield Window(pixels, scale, label, own, split, origin, again=PictureWindow(path, square, side))


def _wanted(path: Path, reading: Reading) -> bool:
    known = path.parent != reading.folder and reading.source.classes.get(class_of(path, reading.folder))
    return bool(known) and reading.source.without.isdisjoint((path, path.relative_to(reading.folder)))


def _originals_in_training(reading: Reading) -> frozenset[str]:
    if not reading.source.train_groups:
        return frozenset()
    with Path(data_root() or "", reading.source.train_groups).open(newline="", encoding="utf-8-sig") as stream:
        return frozenset(Path(row["original"]).stem for row in csv.DictReader(stream))


def _middle(picture: PixelSource, scale: float, reading: Reading, label: str) -> tuple[float, float]:
    """Centre of the found cell that overlaps the middle of the picture most; the middle without any."""
    width, height = picture.size_wh
    if not reading.source.find:
        return width / 2, height / 2
    cells = reading.detector.find(picture, scale)
    kind = "platelet" if reading.source.classes[label] == "platelet" else reading.source.find
    boxes = cells.boxes[cells.kinds == kind]
    central = np.array([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]], np.float32)
    overlaps = iou_matrix(central, boxes)[0]
    if not len(boxes) or overlaps.max() <= 0:
        return width / 2, height / 2
    x, y = centres(boxes[[int(overlaps.argmax())]])[0].tolist()
    return x, y


def _square_around(centre_xy: tuple[float, float], size_wh: tuple[int, int]) -> tuple[int, int, int]:
    """Left, top and side of the largest square of a picture around a point, at least nine tenths of the whole."""
    (x, y), (width, height) = centre_xy, size_wh
    whole = min(width, height)
    side = round(max(min(2 * x, 2 * (width - x), 2 * y, 2 * (height - y), whole), 0.9 * whole))
    left = min(max(round(x - side / 2), 0), width - side)
    top = min(max(round(y - side / 2), 0), height - side)
    return left, top, side


def _split_stems(folder: Path) -> list[tuple[str, str]]:
    return [(split, stem) for split in ("train", "val") for stem in stems_of(folder, split)]


_READERS: dict[str, Callable[[Reading], Iterable[Window | Skipped]]] = {
    "points": _points,
    "typed": _typed,
    "listed": _listed,
    "boxes": _boxes,
    "folders": _folders,
    "truth": _truth,
}
