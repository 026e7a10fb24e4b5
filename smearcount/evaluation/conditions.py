"""Does the count stay the same: at another magnification, in another light, runtime or precision?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Doubles, Pixels
from smearcount.cards import Model, find_model
from smearcount.datasets import KINDS, LabelledField
from smearcount.detector import Detector
from smearcount.evaluation.detector import labelled_fields
from smearcount.geometry import iou_matrix
from smearcount.images import ArraySource, open_image, through_jpeg
from smearcount.light.field_stop import counted_in_view
from smearcount.light.illumination import even_light, find_cells
from smearcount.progress import Progress
from smearcount.records import Detections
from smearcount.runtimes import RuntimeChoice
from smearcount.scale import find_at_scale

__all__ = ["CONDITIONS", "MAGNIFICATIONS", "across_changes", "across_runtimes", "spread_fields"]

Change = Callable[[Pixels], Pixels]


def _magnified(pixels: Pixels, factor: float) -> Pixels:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cast(Pixels, cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=method))


def _levels(values: npt.NDArray[Any]) -> Pixels:
    levels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return levels


def _lit(pixels: Pixels, red: float, green: float, blue: float) -> Pixels:
    """In another light: each channel times a factor."""
    return _levels(pixels * np.array([red, green, blue]))


def _distances(pixels: Pixels) -> Doubles:
    """Of every pixel from the middle, 1 in the corners."""
    height, width = pixels.shape[:2]
    y, x = np.ogrid[:height, :width]
    from_middle: Doubles = np.hypot(x + 0.5 - width / 2, y + 0.5 - height / 2)
    return from_middle / math.hypot(width / 2, height / 2)


def _vignetted(pixels: Pixels, fall: float) -> Pixels:
    light = 1 - fall * _distances(pixels)[..., None] ** 2
    return _levels(pixels * light)


def _round(pixels: Pixels, surround: int) -> Pixels:
    """A disc as wide as the picture, and around it one grey level."""
    seen = _distances(pixels) < max(pixels.shape[:2]) / math.hypot(*pixels.shape[:2])
    return np.where(seen[..., None], pixels, np.uint8(surround))


def _contrasted(pixels: Pixels, factor: float, about: float = 200.0) -> Pixels:
    return _levels((pixels - about) * factor + about)


def _blurred(pixels: Pixels, sigma_px: float) -> Pixels:
    return cast(Pixels, cv2.GaussianBlur(pixels, (0, 0), sigma_px))


def _sharpened(pixels: Pixels) -> Pixels:
    return cast(Pixels, cv2.addWeighted(pixels, 2.2, cv2.GaussianBlur(pixels, (0, 0), 2), -1.2, 0))


def _noisy(pixels: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return _levels(pixels + noise)


def _grey(pixels: Pixels) -> Pixels:
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


MAGNIFICATIONS: Mapping[str, Change] = {
    f"{factor:g}x": partial(_magnified, factor=factor) for factor in (0.25, 0.5, 0.75, 1.5, 2.0, 4.0)
}
CONDITIONS: Mapping[str, Change] = {
    "brightness times 0.45": partial(_lit, red=0.45, green=0.45, blue=0.45),
    "brightness times 1.25": partial(_lit, red=1.25, green=1.25, blue=1.25),
    "yellow light": partial(_lit, red=1.0, green=0.8, blue=0.5),
    "blue light": partial(_lit, red=0.75, green=0.85, blue=1.1),
    "grey": _grey,
    "through an eyepiece": partial(_round, surround=0),
    "cut out round on white": partial(_round, surround=255),
    "light falls to 0.4 in the corners": partial(_vignetted, fall=0.6),
    "contrast times 0.4": partial(_contrasted, factor=0.4),
    "contrast times 1.6": partial(_contrasted, factor=1.6),
    "sharpened": _sharpened,
    "blurred by 2 px": partial(_blurred, sigma_px=2.0),
    "noise of 12 grey levels": partial(_noisy, sigma=12.0),
    "JPEG quality 20": partial(through_jpeg, quality=20),
}


def spread_fields(sources: Sequence[str], number: int) -> list[LabelledField]:
    """`number` validation fields, from every look as many, or one more from the first, evenly spaced in its list."""
    looks: dict[str, list[LabelledField]] = {}
    for field in labelled_fields(sources, "val"):
        looks.setdefault(field.source, []).append(field)
    share, more = divmod(number, len(looks))
    return [
        fields[int(row)]
        for n, fields in enumerate(looks.values())
        for row in np.linspace(0, len(fields) - 1, min(share + (n < more), len(fields)))
    ]


def across_changes(
    model: str, fields: Sequence[LabelledField], changes: Mapping[str, Change], progress: Progress = iter
) -> dict[str, Any]:
    """Counts of the same fields changed, the scale estimated anew each time, against those of the fields as they are.

    Where a change leaves only a part to see, the cells of that part are compared.

    Returns:
        For each change: pooled red cells over those of the plain fields, mean absolute difference a field, the share of
        fields with the same number of white cells, and the range of the estimated scale over that of the plain field.
        Over no cells nothing is told: None.
    """
    detector = Detector(find_model(model), RuntimeChoice())
    table: dict[str, list[tuple[float, ...]]] = {name: [] for name in changes}
    for path in progress([field.path for field in fields]):
        source = open_image(path)
        pixels = source.read(0, 0, *source.size_wh)
        scale, cells = find_at_scale(ArraySource(pixels), detector)
        for name, change in changes.items():
            lit = even_light(ArraySource(np.ascontiguousarray(change(pixels))))
            lit, changed, found = find_cells(lit, detector)
            plain = cells
            if lit.view is not None:
                plain = cells.take(counted_in_view(cells.boxes, lit.view, scale.um_per_px, "corner")[0])
                found = found.take(counted_in_view(found.boxes, lit.view, changed.um_per_px, "corner")[0])
            counts = [float((each.kinds == kind).sum()) for kind in ("rbc", "wbc") for each in (plain, found)]
            zoom = lit.source.size_wh[0] / source.size_wh[0]
            table[name].append((*counts, changed.um_per_px * zoom / scale.um_per_px))
    return {name: _against_plain(np.array(rows)) for name, rows in table.items()}


def _against_plain(rows: Doubles) -> dict[str, Any]:
    red, red_changed, white, white_changed, scales = rows.T
    return {
        "red cells over plain": _over(red_changed.sum(), red.sum(), 4),
        "mean absolute difference a field": round(float(np.mean(np.abs(red_changed - red) / np.maximum(red, 1))), 4),
        "fields with the same white cells": round(float(np.mean(white == white_changed)), 4),
        "scale over plain, least and most": [round(float(each), 3) for each in (scales.min(), scales.max())],
        "fields": len(rows),
    }


def _over(found: float, reference: float, digits: int) -> float | None:
    """A number of cells over another one; None over none."""
    return round(float(found / reference), digits) if reference else None


def across_runtimes(model: str, fields: Sequence[LabelledField], progress: Progress = iter) -> dict[str, Any]:
    """Every runtime and precision at hand against OpenVINO in float32, scale from the labels.

    Returns:
        For each: share of fields with the same counts, pooled counts over the reference, None over none, and the
        largest distance in pixels between corners of matched boxes.
    """
    found = find_model(model)
    # Bf16 first, which is the one to use AMX: with it the others have the same bits.
    choices = {**_others(found), "openvino f32": RuntimeChoice("openvino", "cpu", "f32")}
    detectors = {name: Detector(found, choice) for name, choice in choices.items()}
    cells: dict[str, list[Detections]] = {name: [] for name in detectors}
    scales = {field.path: field.um_per_px for field in fields}
    for path in progress(list(scales)):
        source = open_image(path)
        for name, detector in detectors.items():
            cells[name].append(detector.find(source, scales[path]))
    reference = cells.pop("openvino f32")
    return {name: _compared(reference, others) for name, others in cells.items()}


def _others(model: Model) -> dict[str, RuntimeChoice]:
    choices = {"openvino bf16": RuntimeChoice("openvino", "cpu", "bf16")}
    if model.names("torch"):
        choices["torch f32"] = RuntimeChoice("torch", "cpu")
    if model.names("onnx"):
        choices["onnx f32"] = RuntimeChoice("onnx", "cpu")
    return choices


def _compared(reference: Sequence[Detections], others: Sequence[Detections]) -> dict[str, Any]:
    same, farthest, totals = [], 0.0, np.zeros((2, len(KINDS)))
    for first, second in zip(reference, others, strict=True):
        numbers = np.array([[(part.kinds == kind).sum() for kind in KINDS] for part in (first, second)])
        same.append(bool((numbers[0] == numbers[1]).all()))
        totals += numbers
        overlap = iou_matrix(first.boxes, second.boxes)
        rows = np.flatnonzero(overlap.max(axis=1, initial=0) > 0.8)
        if len(rows):
            shift = np.abs(first.boxes[rows] - second.boxes[overlap[rows].argmax(axis=1)]).max()
            farthest = max(farthest, float(shift))
    return {
        "fields": len(same),
        "fields with the same counts": round(float(np.mean(same)), 4),
        "largest shift of a box (px)": round(farthest, 3),
        **{f"{kind} over reference": _over(totals[1, i], totals[0, i], 5) for i, kind in enumerate(KINDS)},
    }
