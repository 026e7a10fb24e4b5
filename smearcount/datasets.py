"""Labelled smears: importers for the formats that laboratories have, one record for all of them.

`configs/datasets.yaml` says where each collection lies, in which format, what its classes mean, which kinds of cells
were labelled at all, and how large a red cell is in its pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from smearcount.arrays import FloatArray
from smearcount.config import Strict, read_entries, shipped
from smearcount.errors import DatasetError, UsageError
from smearcount.geometry import clip_boxes, diameters, touches_edge
from smearcount.images import open_image
from smearcount.images.opening import SUFFIXES
from smearcount.records import RED_CELL_UM

__all__ = [
    "KINDS",
    "FieldSource",
    "LabelledField",
    "choose_sources",
    "data_root",
    "load_sources",
    "picture_finder",
    "read_source",
    "size_key",
    "stems_of",
    "validation_fields",
]

KINDS = ("rbc", "wbc", "platelet")
"""Kinds the detector tells apart, in the order of its outputs."""

_BESIDE_CHECKOUT = Path("shared/datasets")


@dataclass(frozen=True)
class LabelledField:
    """One photograph with its labelled boxes.

    Attributes:
        path: the picture.
        source: name of the collection and, where it has several microscopes, of the look.
        boxes: `(N, 4) float32` in pixels of the picture.
        kinds: `(N,) int64`, index into `KINDS`.
        labelled: kinds that were labelled in this collection; the absence of another kind means nothing.
        um_per_px: from the size of the red cells of the collection or of the field.
        border_px: outer strip in which cells were not labelled.
        names: what the collection calls each box.
    """

    path: Path
    source: str
    boxes: FloatArray
    kinds: npt.NDArray[np.int64]
    labelled: frozenset[str]
    um_per_px: float
    border_px: int = 0
    names: tuple[str, ...] = ()


class FieldEntry(Strict):
    """An entry of `configs/datasets.yaml`: how one collection is read.

    Attributes:
        format: `voc`, `yolo`, `coco`, `iml`, or `truth` for rendered smears.
        classes: from the collection's class names to kinds; a class mapped to the empty string is ignored.
        labelled: kinds that were labelled, called as the taxonomy calls them and not as the classes are.
        red_cell_px: diameter of a red cell by picture size `WIDTHxHEIGHT` or `any`.
        own_scale: fields with at least five whole red cells take their own median instead.
        swapped: stems whose red and white labels were exchanged by the labellers.
        border_px: outer strip in which cells were not labelled; it is left out in training and in judging.
        folder: where the collection lies, instead of the folder of its name below the data root.
    """

    format: Literal["voc", "yolo", "coco", "iml", "truth"]
    classes: dict[str, Literal["rbc", "wbc", "platelet", ""]]
    labelled: frozenset[Literal["rbc", "wbc", "platelet"]] = Field(min_length=1)
    red_cell_px: dict[Annotated[str, Field(pattern=r"^(\d+x\d+|any)$")], Annotated[float, Field(gt=0)]] = Field(
        min_length=1
    )
    own_scale: bool = False
    swapped: frozenset[str] = frozenset()
    border_px: int = Field(default=0, ge=0)
    folder: Path | None = None

    @field_validator("labelled", "swapped", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"expected a list, such as [{value}]")
        return value


class FieldSource(FieldEntry):
    """A collection of labelled fields: its entry, and its name, which is that of its folder below the data root."""

    name: str


def data_root() -> Path | None:
    """The folder of the labelled collections: `$SMEARCOUNT_DATA`, else `../shared/datasets` beside the checkout."""
    configured = os.environ.get("SMEARCOUNT_DATA")
    root = Path(configured) if configured else Path(__file__).resolve().parents[2] / _BESIDE_CHECKOUT
    return root if root.is_dir() else None


def load_sources(config: Path | None = None) -> dict[str, FieldSource]:
    """The entries of `configs/datasets.yaml`, or of a laboratory's own file.

    Raises:
        ConfigError: an entry is malformed; names the file, the entry and the key.
    """
    path = config or shipped("configs") / "datasets.yaml"
    return {name: FieldSource(name=name, **dict(entry)) for name, entry in read_entries(FieldEntry, path).items()}


def choose_sources(
    names: Iterable[str], config: Path | None = None, folder: Path | None = None
) -> tuple[Path, list[FieldSource]]:
    """The data root and the collections of the given names, in that order.

    Args:
        names: of entries.
        config: file of the collections, instead of `configs/datasets.yaml`.
        folder: where they lie, instead of what that file says.

    Raises:
        DatasetError: the data are not at hand.
        UsageError: a collection is unknown.
        ConfigError: the file of the collections is malformed.
    """
    root, known, wanted = data_root(), load_sources(config), list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"unknown collections {unknown}; known: {', '.join(known)}")
    chosen = [known[name].model_copy(update={"folder": folder or known[name].folder}) for name in wanted]
    if root is None and not all(each.folder for each in chosen):
        raise DatasetError("no labelled collections found: set SMEARCOUNT_DATA to their folder")
    return root or Path(), chosen


def read_source(root: Path, source: FieldSource, split: str) -> list[LabelledField]:
    """All fields of one split (`train` or `val`), in the order of `<split>.txt`.

    Raises:
        DatasetError: the folder, its split list or one of its label files is missing or malformed.
    """
    folder = source.folder or root / source.name
    if not folder.is_dir():
        remedy = f"make or copy them, or leave {source.name} out"
        raise DatasetError(f"{folder}: no such folder, where the fields of {source.name} should be; {remedy}")
    fields, at = [], folder
    try:
        boxes_of = _READERS[source.format](folder)
        picture_of = picture_finder(folder / "images" if (folder / "images").is_dir() else folder)
        for stem in stems_of(folder, split):
            at = folder / stem
            fields.append(_field(picture_of(stem), stem, source, boxes_of))
    except (OSError, KeyError, IndexError, ValueError, ElementTree.ParseError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{at}: labels of format {source.format} can't be read ({fault})") from error
    return fields


def validation_fields(root: Path, source: FieldSource) -> list[LabelledField]:
    """The fields of the `val` list; none for a collection that is for training only.

    Raises:
        DatasetError: a label file is missing or malformed.
    """
    has_list = ((source.folder or root / source.name) / "val.txt").is_file()
    return read_source(root, source, "val") if has_list else []


def stems_of(folder: Path, split: str) -> list[str]:
    """Stems of a split list; rendered smears need none, they are all for training."""
    listing = folder / f"{split}.txt"
    if listing.is_file():
        return [line.strip() for line in _text(listing).splitlines() if line.strip()]
    if split == "train" and (folder / "truth.json").is_file():
        return [Path(name).stem for name in json.loads(_text(folder / "truth.json"))]
    raise DatasetError(f"{listing}: no such split list; make it, with the name of one picture without suffix a line")


def _text(path: Path) -> str:
    """A file in UTF-8, with the mark that Windows puts before it or without."""
    return path.read_text(encoding="utf-8-sig")


LabelReader = Callable[[str, int, int], Iterator[tuple[str, float, float, float, float]]]


def _field(path: Path, stem: str, source: FieldSource, boxes_of: LabelReader) -> LabelledField:
    width, height = open_image(path).size_wh
    rows = [row for row in boxes_of(stem, width, height) if source.classes.get(row[0]) != ""]
    unknown = {row[0] for row in rows} - source.classes.keys()
    if unknown:
        raise DatasetError(f"{path}: classes {sorted(unknown)} are not mapped to kinds for {source.name}")
    kinds = np.array([KINDS.index(source.classes[row[0]]) for row in rows], np.int64)
    if stem in source.swapped:
        kinds = np.array([1, 0, 2])[kinds]
    corners = np.array([row[1:] for row in rows], np.float32).reshape(-1, 4)
    if not (corners[:, 2:] >= corners[:, :2]).all():
        raise DatasetError(f"{path}: a box whose right is left of its left, or bottom above its top, or no number")
    boxes = clip_boxes(corners, width, height)
    real = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= 3
    boxes, kinds = boxes[real], kinds[real]
    names = tuple(row[0] for row, kept in zip(rows, real.tolist(), strict=True) if kept)
    red_cell_px = _red_cell_px(source, boxes[kinds == 0], width, height)
    several = len(source.red_cell_px) > 1
    look = f"{source.name}/{size_key(source.red_cell_px, (width, height))}" if several else source.name
    return LabelledField(path, look, boxes, kinds, source.labelled, RED_CELL_UM / red_cell_px, source.border_px, names)


def size_key(table: Mapping[str, float], size_wh: tuple[int, int]) -> str:
    """The key of a picture's size in a table: `WIDTHxHEIGHT` where it is there, else `any`."""
    size = f"{size_wh[0]}x{size_wh[1]}"
    return size if size in table else "any"


def _red_cell_px(source: FieldSource, red_boxes: FloatArray, width: int, height: int) -> float:
    whole = red_boxes[~touches_edge(red_boxes, width, height)]
    if source.own_scale and len(whole) >= 5:
        return float(np.median(diameters(whole)))
    key = size_key(source.red_cell_px, (width, height))
    if key not in source.red_cell_px:
        size = f"{width}x{height}"
        raise DatasetError(f"{source.name}: red_cell_px has no entry for pictures of {size} px and none for 'any'")
    return source.red_cell_px[key]


def picture_finder(folder: Path) -> Callable[[str], Path]:
    """What gives the picture of a stem in a folder, whatever its format and however its suffix is written.

    The folder is listed once. Of several pictures of a stem the first is taken: JPEG, PNG, TIFF, then others.

    Raises:
        DatasetError: when called with a stem of which there is no picture.
    """
    listed = cache(_pictures_by_stem)

    def picture_of(stem: str) -> Path:
        path = folder / stem
        if path.name not in listed(path.parent):
            raise DatasetError(f"{path}: no picture of this name, such as a JPEG, PNG, BMP, WebP or TIFF file")
        return listed(path.parent)[path.name]

    return picture_of


_USUAL = (".jpg", ".jpeg", ".png", ".tif")


def _pictures_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        files = [Path(entry.path) for entry in entries if entry.is_file()]

    def rank(path: Path) -> tuple[int, str, str]:
        suffix = path.suffix.lower()
        return _USUAL.index(suffix) if suffix in _USUAL else len(_USUAL), suffix, path.suffix.swapcase()

    pictures = sorted((path for path in files if path.suffix.lower() in SUFFIXES), key=rank, reverse=True)
    return {path.stem: path for path in pictures}


def _read_voc(folder: Path) -> LabelReader:
    def boxes(stem: str, width: int, height: int) -> Iterator[tuple[str, float, float, float, float]]:
        for item in ElementTree.parse(folder / "annotations" / f"{stem}.xml").iter("object"):
            box = item.find("bndbox")
            if box is None:
                raise DatasetError(f"{folder / stem}: an object without bndbox")
            corners = [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            yield (item.findtext("name", ""), corners[0], corners[1], corners[2], corners[3])

    return boxes


def _read_yolo(folder: Path) -> LabelReader:
    names = dict(enumerate(_text(folder / "classes.txt").splitlines()))

    def boxes(stem: str, width: int, height: int) -> Iterator[tuple[str, float, float, float, float]]:
        for line in _text(folder / "labels" / f"{stem}.txt").splitlines():
            if not line.strip():
                continue
            index, *values = line.split()
            x, y, w, h = (float(value) for value in values)
            yield (
                names[int(index)].strip(),
                (x - w / 2) * width,
                (y - h / 2) * height,
                (x + w / 2) * width,
                (y + h / 2) * height,
            )

    return boxes


def _read_coco(folder: Path) -> LabelReader:
    content = json.loads(_text(folder / "annotations.json"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    rows: dict[str, list[tuple[str, float, float, float, float]]] = {stem: [] for stem in stems.values()}
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        rows[stems[item["image_id"]]].append((names[item["category_id"]], x, y, x + w, y + h))
    return lambda stem, width, height: iter(rows[stem])


def _read_iml(folder: Path) -> LabelReader:
    rows: dict[str, list[tuple[str, float, float, float, float]]] = {}
    for image in json.loads(_text(folder / "annotations.json")):
        listed = rows.setdefault(Path(image["image_name"]).stem, [])
        for item in image["objects"]:
            x, y, w, h = (float(item["bbox"][key]) for key in "xywh")
            listed.append((item["type"], x, y, x + w, y + h))
    return lambda stem, width, height: iter(rows[stem])


def _read_truth(folder: Path) -> LabelReader:
    content = {Path(name).stem: entry for name, entry in json.loads(_text(folder / "truth.json")).items()}

    def boxes(stem: str, width: int, height: int) -> Iterator[tuple[str, float, float, float, float]]:
        for kind, box in zip(content[stem]["kinds"], content[stem]["boxes"], strict=True):
            yield kind, box[0], box[1], box[2], box[3]

    return boxes


_READERS: dict[str, Callable[[Path], LabelReader]] = {
    "voc": _read_voc,
    "yolo": _read_yolo,
    "coco": _read_coco,
    "iml": _read_iml,
    "truth": _read_truth,
}
