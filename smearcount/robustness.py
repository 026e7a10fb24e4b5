"""Does the count stay the same: at another magnification, in another runtime, at another precision?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from smearcount.cards import Model, find_model
from smearcount.datasets import KINDS, LabelledField
from smearcount.detector import Detector
from smearcount.evaluate import labelled_fields
from smearcount.geometry import iou_matrix
from smearcount.images import ArraySource, open_image
from smearcount.records import Detections
from smearcount.runtimes import RuntimeChoice
from smearcount.scale import find_at_scale

__all__ = ["FACTORS", "across_magnifications", "across_runtimes", "spread_fields"]

FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
Progress = Callable[[Iterable[Path]], Iterable[Path]]


def spread_fields(sources: Sequence[str], number: int) -> list[LabelledField]:
    """`number` validation fields, the same number from every look, evenly spaced in its list."""
    looks: dict[str, list[LabelledField]] = {}
    for field in labelled_fields(sources, "val"):
        looks.setdefault(field.source, []).append(field)
    share = -(-number // len(looks))
    picked = [
        fields[int(row)]
        for fields in looks.values()
        for row in np.linspace(0, len(fields) - 1, min(share, len(fields)))
    ]
    return picked[:number]


def across_magnifications(model: str, fields: Sequence[LabelledField], progress: Progress = iter) -> dict[str, Any]:
    """Counts of the same fields resampled, the scale estimated anew each time, against those of the original size.

    Returns:
        For each factor: pooled red cells over those at 1x, mean absolute difference a field, and the share of fields
        with the same number of white cells.
    """
    detector = Detector(find_model(model), RuntimeChoice())
    counts: dict[float, list[tuple[int, int]]] = {factor: [] for factor in FACTORS}
    for path in progress([field.path for field in fields]):
        source = open_image(path)
        pixels = source.read(0, 0, *source.size_wh)
        for factor in FACTORS:
            _, cells = find_at_scale(ArraySource(_magnified(pixels, factor)), detector)
            kinds = cells.kinds.tolist()
            counts[factor].append((kinds.count("rbc"), kinds.count("wbc")))
    table = {factor: np.array(rows) for factor, rows in counts.items()}
    base = table[1.0]
    return {
        f"{factor:g}x": {
            "red cells over 1x": round(float(rows[:, 0].sum() / base[:, 0].sum()), 4),
            "mean absolute difference a field": round(
                float(np.mean(np.abs(rows[:, 0] - base[:, 0]) / np.maximum(base[:, 0], 1))), 4
            ),
            "fields with the same white cells": round(float(np.mean(rows[:, 1] == base[:, 1])), 4),
            "fields": len(rows),
        }
        for factor, rows in table.items()
    }


def _magnified(pixels: np.ndarray[Any, np.dtype[np.uint8]], factor: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if factor == 1.0:
        return pixels
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=method).astype(np.uint8)


def across_runtimes(model: str, fields: Sequence[LabelledField], progress: Progress = iter) -> dict[str, Any]:
    """Every runtime and precision at hand against OpenVINO in float32, scale from the labels.

    Returns:
        For each: share of fields with the same counts, pooled counts over the reference, and the largest distance in
        pixels between corners of matched boxes.
    """
    found = find_model(model)
    choices = {"openvino f32": RuntimeChoice("openvino", "cpu", "f32"), **_others(found)}
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
    choices = {"openvino bf16": RuntimeChoice("openvino", "cpu", "bf16"), "torch f32": RuntimeChoice("torch", "cpu")}
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
        **{
            f"{kind} over reference": round(float(totals[1, i] / max(totals[0, i], 1)), 5)
            for i, kind in enumerate(KINDS)
        },
    }
