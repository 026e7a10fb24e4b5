"""Finds every cell: resampling to the canonical scale, network windows on a fixed grid, decoding, suppression.

A picture that fits one window is one window. A larger one is read in windows on a grid anchored at 0, 0: a core, and a
margin in which cells that reach into the core are still seen whole. How many windows are read together changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.cards import DetectorCard, Model
from smearcount.errors import ModelError
from smearcount.geometry import (
    FloatArray,
    areas,
    centres,
    clip_boxes,
    greedy_nms,
    iou_matrix,
    overlapping_pairs,
    resize_rgb,
    touches_edge,
)
from smearcount.records import Detections
from smearcount.runtimes import RuntimeChoice, make_runtime

__all__ = ["CELL_MARGIN_UM", "Detector", "PixelSource", "Window", "canonical_size", "plan_windows", "to_tensor"]

CELL_MARGIN_UM = 4.0
"""Added to half the largest cell to give the margin of a window."""

SEAM_UM = 2.0
"""A window also emits the cells whose centre lies this far beyond its core."""

EDGE_SLACK_PX = 2.0
FILL = 214
"""Grey level outside the picture: the light of an empty background."""

MIN_SIDE_PX = 3.0
BLANK_RANGE = 8
"""Grey levels; a view whose pixels differ by less is empty, whatever a network may see in it."""

Pixels = npt.NDArray[np.uint8]


class PixelSource(Protocol):
    """A picture that is read by regions, in pixels of its own."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """Region `(h, w, 3) uint8 RGB` with its top-left corner at x, y."""


@dataclass(frozen=True)
class Window:
    """A window of the grid, in pixels at the canonical scale.

    Attributes:
        core: x_min, y_min, x_max, y_max of the part whose cells the window answers for.
        view: the part that the network sees.
    """

    core: tuple[int, int, int, int]
    view: tuple[int, int, int, int]


def plan_windows(width: int, height: int, window_px: int, margin_px: int) -> Iterator[Window]:
    """The windows of a canonical picture of `width` x `height`, row by row; one window where all of it fits."""
    core_px = window_px - 2 * margin_px
    for y in _starts(height, window_px, core_px):
        for x in _starts(width, window_px, core_px):
            right = width if width <= window_px else min(x + core_px, width)
            bottom = height if height <= window_px else min(y + core_px, height)
            view = (
                max(x - margin_px, 0),
                max(y - margin_px, 0),
                min(right + margin_px, width),
                min(bottom + margin_px, height),
            )
            yield Window((x, y, right, bottom), view)


def _starts(length: int, window_px: int, core_px: int) -> range:
    return range(1) if length <= window_px else range(0, length, core_px)


class Detector:
    """A network with its card: pictures in, cells out.

    Args:
        model: a model folder of task `detector`.
        choice: runtime, device and precision.
        min_score: one threshold for all kinds instead of the card's.
    """

    def __init__(self, model: Model, choice: RuntimeChoice, min_score: float | None = None) -> None:
        self.card = model.detector_card
        self._margin = math.ceil((self.card.largest_cell_um / 2 + CELL_MARGIN_UM) / self.card.um_per_px)
        if self.card.window_px <= 2 * self._margin:
            raise ModelError(
                f"{self.card.id}: a window of {self.card.window_px} px has no core between margins of {self._margin} px"
                "; correct window_px or largest_cell_um on the card"
            )
        self._run, self.runtime = make_runtime(model, choice)
        self._kinds = np.array(self.card.codes)
        thresholds = [self.card.min_score[kind] if min_score is None else min_score for kind in self.card.codes]
        self._min_scores = np.array(thresholds, np.float32)

    @property
    def min_score(self) -> dict[str, float]:
        """Threshold of each kind."""
        return {str(kind): float(score) for kind, score in zip(self._kinds, self._min_scores, strict=True)}

    def find(self, source: PixelSource, um_per_px: float) -> Detections:
        """Every cell of a picture.

        Args:
            source: the picture.
            um_per_px: its scale in micrometres a pixel.

        Returns:
            Boxes in pixels of the picture, ordered from top to bottom, then from left to right.
        """
        width, height = source.size_wh
        canonical_wh = canonical_size(source.size_wh, um_per_px, self.card)
        windows = plan_windows(*canonical_wh, self.card.window_px, self._margin)
        parts = [self._emit(source, window, canonical_wh) for window in windows]
        boxes, scores, kinds = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if len(parts) > 1:
            keep = self._merge_seams(boxes, scores, kinds)
            boxes, scores, kinds = boxes[keep], scores[keep], kinds[keep]
        gain = np.array([width / canonical_wh[0], height / canonical_wh[1]] * 2, np.float32)
        boxes = clip_boxes(boxes * gain, width, height)
        order = np.lexsort((boxes[:, 2], boxes[:, 0], boxes[:, 1]))
        boxes, scores, kinds = boxes[order], scores[order], kinds[order]
        slack = EDGE_SLACK_PX * max(1.0, self.card.um_per_px / um_per_px)
        return Detections(boxes, scores, self._kinds[kinds], touches_edge(boxes, width, height, slack))

    def _emit(
        self, source: PixelSource, window: Window, canonical_wh: tuple[int, int]
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
        """Cells of one window in canonical pixels of the whole picture."""
        boxes, scores, kinds = self._look(source, window.view, canonical_wh)
        if window.core == (0, 0, *canonical_wh):
            return boxes, scores, kinds
        centre = centres(boxes)
        core, reach = np.array(window.core, np.float32), SEAM_UM / self.card.um_per_px
        inside = np.all((centre >= core[:2] - reach) & (centre < core[2:] + reach), axis=1)
        boxes, scores, kinds = boxes[inside], scores[inside], kinds[inside]
        for row in np.flatnonzero(self._cut(boxes, window.view, canonical_wh)):
            boxes[row], scores[row] = self._reread(source, boxes[row], scores[row], canonical_wh)
        return boxes, scores, kinds

    @staticmethod
    def _cut(
        boxes: FloatArray, view: tuple[int, int, int, int], canonical_wh: tuple[int, int]
    ) -> npt.NDArray[np.bool_]:
        """Which boxes end at an edge of the view that is not an edge of the picture."""
        x_min, y_min, x_max, y_max = boxes.T
        left, top, right, bottom = view
        cut: npt.NDArray[np.bool_] = (
            ((x_min <= left + 1) & (left > 0))
            | ((y_min <= top + 1) & (top > 0))
            | ((x_max >= right - 1) & (right < canonical_wh[0]))
            | ((y_max >= bottom - 1) & (bottom < canonical_wh[1]))
        )
        return cut

    def _reread(
        self, source: PixelSource, box: FloatArray, score: np.float32, canonical_wh: tuple[int, int]
    ) -> tuple[FloatArray, np.float32]:
        """The same cell seen in a window centred on it; unchanged where it is not found again."""
        centre, half = centres(box[None])[0], self.card.window_px // 2
        x, y = (int(v) for v in centre)
        view = (max(x - half, 0), max(y - half, 0), min(x + half, canonical_wh[0]), min(y + half, canonical_wh[1]))
        boxes, scores, _ = self._look(source, view, canonical_wh)
        overlaps = iou_matrix(box[None], boxes)[0]
        if not len(boxes) or overlaps.max() < 0.3:
            return box, score
        best = int(overlaps.argmax())
        return boxes[best], scores[best]

    def _look(
        self, source: PixelSource, view: tuple[int, int, int, int], canonical_wh: tuple[int, int]
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
        """Run the network on one view; boxes in canonical pixels of the whole picture."""
        width, height = source.size_wh
        per_x, per_y = width / canonical_wh[0], height / canonical_wh[1]
        left, top = math.floor(view[0] * per_x), math.floor(view[1] * per_y)
        right, bottom = (min(math.ceil(view[2] * per_x), width), min(math.ceil(view[3] * per_y), height))
        region = source.read(left, top, right - left, bottom - top)
        if np.ptp(region[::2, ::2]) < BLANK_RANGE:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp)
        out_w, out_h = (max(1, round((right - left) / per_x)), max(1, round((bottom - top) / per_y)))
        tensor = to_tensor(resize_rgb(region, out_w, out_h), self.card)
        boxes, scores, kinds = decode(self._run(tensor)[0][0], self._min_scores, self.card)
        gain = np.array([(right - left) / out_w / per_x, (bottom - top) / out_h / per_y] * 2, np.float32)
        offset = np.array([left / per_x, top / per_y] * 2, np.float32)
        boxes = clip_boxes(boxes, out_w, out_h)
        real = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= MIN_SIDE_PX
        return boxes[real] * gain + offset, scores[real], kinds[real]

    def _merge_seams(self, boxes: FloatArray, scores: FloatArray, kinds: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Rows that stay when cells emitted on both sides of a seam become one."""
        core_px, band = (self.card.window_px - 2 * self._margin, (SEAM_UM + CELL_MARGIN_UM) / self.card.um_per_px)
        # A cell larger than the margin is read again from both sides, however far from the seam its centre lies.
        reach = np.maximum(band, (boxes[:, 2:] - boxes[:, :2]) / 2)
        from_seam = centres(boxes) % core_px
        rows = np.flatnonzero(np.any((from_seam < reach) | (from_seam > core_px - reach), axis=1))
        order = rows[np.lexsort((kinds[rows], *boxes[rows].T[::-1], -scores[rows]))]
        first, second, common = overlapping_pairs(boxes[order])
        area, kind = areas(boxes[order]), kinds[order]
        overlap = common / (area[first] + area[second] - common)
        same = kind[first] == kind[second]
        clash = (first < second) & (overlap > np.where(same, self.card.nms_iou, self.card.cross_kind_iou))
        removed = np.zeros(len(order), bool)
        for better, worse in sorted(zip(first[clash].tolist(), second[clash].tolist(), strict=True)):
            removed[worse] |= not removed[better]
        return np.setdiff1d(np.arange(len(boxes)), order[removed])


def canonical_size(size_wh: tuple[int, int], um_per_px: float, card: DetectorCard) -> tuple[int, int]:
    """Width and height of a picture at the canonical scale of a detector."""
    factor = um_per_px / card.um_per_px
    return max(1, round(size_wh[0] * factor)), max(1, round(size_wh[1] * factor))


def to_tensor(pixels: Pixels, card: DetectorCard) -> FloatArray:
    """`pixels (H, W, 3) uint8 RGB` as `(1, 3, H', W') float32`, padded right and below to the card's stride."""
    height, width = pixels.shape[:2]
    padded_wh = width + -width % card.stride_px, height + -height % card.stride_px
    blob = np.empty((1, 3, padded_wh[1], padded_wh[0]), np.float32)
    blob[..., height:, :] = blob[..., width:] = FILL / 255
    for plane, channel in zip(blob[0], cv2.split(pixels), strict=True):
        np.multiply(channel, np.float32(1 / 255), out=plane[:height, :width])
    if card.mean == (0.0, 0.0, 0.0) and card.std == (1.0, 1.0, 1.0):
        return blob
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (card.mean, card.std))
    return ((blob - mean) / std).astype(np.float32)


def decode(
    output: FloatArray, min_scores: FloatArray, card: DetectorCard
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """Raw output `(4 + kinds, anchors)`, centre-size boxes and probabilities, to boxes `(N, 4)`, scores, kinds."""
    likely = np.flatnonzero((output[4:] >= min_scores[:, None]).any(axis=0))
    columns = output[:, likely]
    excess = np.where(columns[4:] >= min_scores[:, None], columns[4:], -1)
    kinds = excess.argmax(axis=0)
    scores = excess[kinds, np.arange(len(likely))]
    centre, half = columns[:2].T, columns[2:4].T / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    keep = greedy_nms(boxes, scores, kinds, card.nms_iou, card.cross_kind_iou)
    return boxes[keep], scores[keep], kinds[keep]
