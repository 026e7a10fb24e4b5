"""Pictures that an INT8 version of a model is made from, and others that it is compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.cards import ClassifierCard, Model
from smearcount.datasets import LabelledField, choose_sources, read_source
from smearcount.errors import DatasetError, ImageError, UsageError
from smearcount.images import ReadLimits, list_folder, open_image
from smearcount.patches import SMALLEST_CELL_PX

__all__ = ["LEAST_CELLS", "SINGLE_CELLS", "Sample", "Samples", "limits_of", "samples_in", "samples_of"]

Sample = tuple[Path, float | None]
"""A picture, and its scale in micrometres a pixel where that is known."""

LEAST_CELLS = 200
"""With fewer cells to compare, one of them would decide."""

SINGLE_CELLS = 5 * LEAST_CELLS
"""Pictures that a classifier needs, of which every fifth is compared."""

CALIBRATION, CHECK = 120, 100
"""Pictures: more make the ranges no better, and the counts of fewer say little."""

_READ_PX = 4096


@dataclass(frozen=True)
class Samples:
    """Pictures for making an INT8 version.

    Attributes:
        calibration: the ranges of the activations are taken from these.
        check: the answers are compared on these, which are others.
        faults: of pictures that were left out, as they can't be read.
    """

    calibration: tuple[Sample, ...]
    check: tuple[Sample, ...]
    faults: tuple[str, ...] = ()


def samples_in(folder: Path, model: Model) -> Samples:
    """All pictures of a folder and below that can be read; every fifth is kept for the comparison.

    Args:
        folder: of fields for a detector, of single cells for a classifier.
        model: what they are for.

    Raises:
        ImageError: the folder can't be listed.
        UsageError: there are fewer than ten pictures.
    """
    listed = list_folder(folder, recursive=True).pictures
    faults = {path: fault for path in listed if (fault := _fault(path, limits_of(model)))}
    pictures: list[Sample] = [(path, None) for path in listed if path not in faults]
    if len(pictures) < 10:
        unread = f" ({len(faults)} more can't be read, such as {next(iter(faults.values()))})" if faults else ""
        wanted = f"{SINGLE_CELLS:,} single cells" if isinstance(model.card, ClassifierCard) else "100 fields"
        raise UsageError(f"{folder}: {len(pictures)} pictures{unread} are too few to calibrate with; give {wanted}")
    others = [each for row, each in enumerate(pictures) if row % 5 != 4]
    return Samples(tuple(_spread(others, CALIBRATION)), tuple(pictures[4::5]), tuple(faults.values()))


def limits_of(model: Model) -> ReadLimits:
    """What is refused of pictures for a model: that of a single cell may be small."""
    return ReadLimits(min_side_px=SMALLEST_CELL_PX) if isinstance(model.card, ClassifierCard) else ReadLimits()


def _fault(path: Path, limits: ReadLimits) -> str:
    """Why a picture can't be read to its last pixel; empty where it can."""
    try:
        source = open_image(path, limits)
        width, height = source.size_wh
        for top in range(0, height, _READ_PX):
            for left in range(0, width, _READ_PX):
                source.read(left, top, min(_READ_PX, width - left), min(_READ_PX, height - top))
    except ImageError as error:
        return str(error)
    return ""


def samples_of(sources: Sequence[str], datasets: Path | None = None) -> Samples:
    """Fields of labelled collections, with their scales: of the train lists to calibrate, of the val lists to compare.

    Raises:
        DatasetError: the data are not at hand, or a list is empty.
    """
    root, chosen = choose_sources(sources, datasets)
    parts = []
    for split, number in (("train", CALIBRATION), ("val", CHECK)):
        looks: dict[str, list[LabelledField]] = {}
        for field in (field for source in chosen for field in read_source(root, source, split)):
            looks.setdefault(field.source, []).append(field)
        if not looks:
            raise DatasetError(f"no field in the {split} list of {', '.join(each.name for each in chosen)}")
        share = -(-number // len(looks))
        picked = [field for fields in looks.values() for field in _spread(fields, share)]
        parts.append(tuple((field.path, field.um_per_px) for field in picked[:number]))
    return Samples(parts[0], parts[1])


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    """At most so many of a list, evenly spaced."""
    return [items[int(row)] for row in np.linspace(0, len(items) - 1, min(number, len(items)))]
