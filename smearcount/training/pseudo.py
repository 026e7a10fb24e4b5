"""Labels pictures with a model, so that looks without labels of their own can be trained on too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smearcount.cards import find_model
from smearcount.detector import Detector
from smearcount.errors import DatasetError, ImageError
from smearcount.images import list_folder, open_image, write_text_atomic
from smearcount.records import Detections
from smearcount.runtimes import RuntimeChoice

__all__ = ["LabelJob", "Labelled", "label_folder", "label_pictures"]

Accept = Callable[[Path, Detections, tuple[int, int]], bool]


@dataclass(frozen=True)
class Labelled:
    """How it went: pictures taken, those whose labels can't be trusted, and why others can't be read."""

    taken: int
    left_out: int
    faults: tuple[str, ...]


def label_pictures(
    detector: Detector, pictures: Iterable[Path], um_per_px: float, out: Path, accept: Accept | None = None
) -> Labelled:
    """Write a COCO collection of the cells that a detector finds.

    Args:
        detector: the teacher; its thresholds decide what becomes a label.
        pictures: to label; copied into `out/images` under a number and the names of folder and file.
        um_per_px: their scale.
        out: folder of the new collection, with `annotations.json` and `train.txt`.
        accept: says whether the labels of a picture can be trusted.

    Raises:
        DatasetError: no picture was taken.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    faults: list[str] = []
    left_out = 0
    for path in pictures:
        try:
            cells, size_wh = _found_in(path, detector, um_per_px)
        except ImageError as error:
            faults.append(str(error))
            continue
        if accept and not accept(path, cells, size_wh):
            left_out += 1
            continue
        name = f"{len(images):05d}_{path.parent.name}_{path.stem.strip()}{path.suffix}"
        shutil.copyfile(path, out / "images" / name)
        images.append({"id": len(images), "file_name": name, "width": size_wh[0], "height": size_wh[1]})
        for box, kind in zip(cells.boxes.tolist(), cells.kinds.tolist(), strict=True):
            category = detector.card.codes.index(kind)
            entry = {"id": len(annotations) + 1, "image_id": images[-1]["id"], "category_id": category}
            annotations.append({**entry, **_coco_box(box)})
    if not images:
        rejected = f"; {left_out} left out" if left_out else ""
        unread = f"; {len(faults)} can't be read, such as {faults[0]}" if faults else ""
        raise DatasetError(f"{out}: no picture could be labelled{rejected}{unread}")
    categories = [{"id": index, "name": kind} for index, kind in enumerate(detector.card.codes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text_atomic(out / "annotations.json", json.dumps(content))
    write_text_atomic(out / "train.txt", "\n".join(Path(str(image["file_name"])).stem for image in images) + "\n")
    return Labelled(len(images), left_out, tuple(faults))


def _found_in(path: Path, detector: Detector, um_per_px: float) -> tuple[Detections, tuple[int, int]]:
    """The cells of a picture, and its width and height in pixels."""
    if path.suffix.lower() == ".mrxs":
        raise ImageError(f"{path}: a slide of several files, which is not copied; export fields of it as TIFF")
    source = open_image(path)
    return detector.find(source, um_per_px), source.size_wh


def _coco_box(box_xyxy: Sequence[float]) -> dict[str, object]:
    """The keys of a box in COCO: left, top, width and height in hundredths of a pixel, its area, and no crowd."""
    x_min, y_min, x_max, y_max = (round(value, 2) for value in box_xyxy)
    width, height = round(x_max - x_min, 2), round(y_max - y_min, 2)
    return {"bbox": [x_min, y_min, width, height], "area": round(width * height, 2), "iscrowd": 0}


@dataclass(frozen=True)
class LabelJob:
    """What `smearcount train labels` was asked for.

    Attributes:
        folder: pictures, sub-folders included.
        um_per_px: their scale.
        out: folder of the new collection.
        listing: stems to take, one a line; all without it.
        central: take single-cell pictures only where a cell was found in the middle, a platelet where the sub-folder
            is called `platelet`, else a white cell.
        model: the teacher.
    """

    folder: Path
    um_per_px: float
    out: Path
    listing: Path | None
    central: bool
    model: str


def label_folder(job: LabelJob) -> Labelled:
    """Label the pictures of a folder; those that can't be read are left out.

    Raises:
        DatasetError: no picture was taken, or one that is listed is not there.
        ImageError: the folder can't be listed.
    """
    pictures = list_folder(job.folder, recursive=True).pictures
    if job.listing:
        stems = {line.strip() for line in job.listing.read_text(encoding="utf-8-sig").splitlines()} - {""}
        pictures = tuple(path for path in pictures if path.stem.strip() in stems)
        if absent := sorted(stems - {path.stem.strip() for path in pictures}):
            raise DatasetError(
                f"{job.listing}: {len(absent)} of its stems, such as {absent[0]}, are of no picture in {job.folder}; "
                "give names without folder and suffix"
            )
    detector = Detector(find_model(job.model), RuntimeChoice(precision="f32"))
    return label_pictures(detector, pictures, job.um_per_px, job.out, _has_central_cell if job.central else None)


def _has_central_cell(path: Path, cells: Detections, size_wh: tuple[int, int]) -> bool:
    x, y = size_wh[0] / 2, size_wh[1] / 2
    boxes = cells.boxes[cells.kinds == ("platelet" if path.parent.name == "platelet" else "wbc")]
    return bool(((boxes[:, 0] < x) & (boxes[:, 1] < y) & (boxes[:, 2] > x) & (boxes[:, 3] > y)).any())
