"""Finds every cell: windows through the network, decoding, suppression, one cell from both sides of a seam."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, FloatArray, Indices, Pixels
from smearcount.cards import DetectorCard, Model
from smearcount.errors import ModelError
from smearcount.geometry import centres, clip_boxes, iou_matrix, touches_edge
from smearcount.images import PixelSource
from smearcount.pairs import close_pairs
from smearcount.records import Detections
from smearcount.runtimes import Runtime, RuntimeChoice, make_runtime
from smearcount.suppression import VOTE_IOU, greedy_nms, voted_boxes
from smearcount.windows import (
    Box,
    InFlight,
    Place,
    Window,
    canonical_size,
    in_strips,
    plan_windows,
    read_view,
    to_planes,
    to_tensor,
)

__all__ = ["Detector", "decode"]

CELL_MARGIN_UM = 4.0
"""Added to half the largest cell to give the margin of a window."""

SEAM_UM = 2.0
"""A window also emits the cells whose centre lies this far beyond its core."""

MANY_WINDOWS = 16
"""Windows of a scan, of which several at a time are worth a network in streams: it is ready after some 0.2 s."""

EDGE_SLACK_PX = 2.0
MIN_SIDE_PX = 3.0

Found = tuple[FloatArray, FloatArray, Indices]
"""Boxes `(N, 4)`, scores and kinds by number `(N,)`."""

Read = tuple[Pixels | FloatArray, Place] | None
"""A view as the network takes it, and its place; None where it is blank."""

NOTHING: Found = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp)


class Part(Protocol):
    """A part of a picture in which cells are sought."""

    def touches(self, boxes_xyxy: npt.NDArray[Any], /) -> Bools:
        """Which rectangles `(N, 4)`, in pixels, reach into it."""


Look = Callable[[Box], Found]
"""The cells of a view of the picture that is being searched."""


class Detector:
    """A network with its card: pictures in, cells out.

    Args:
        model: a model folder of task `detector`.
        choice: runtime, device and precision.
        min_score: one threshold for all kinds instead of the card's.
        tile: how many windows of a large picture are read together; without influence on what is found.
        each_kind: a box stands for every kind whose threshold it reaches, as for average precision, which ranks the
            boxes of each kind by themselves; without it for the best of them.
    """

    def __init__(
        self,
        model: Model,
        choice: RuntimeChoice,
        min_score: float | None = None,
        tile: int = 1,
        each_kind: bool = False,
    ) -> None:
        self.card, self._tile = model.detector_card, tile
        self._margin = math.ceil((self.card.largest_cell_um / 2 + CELL_MARGIN_UM) / self.card.um_per_px)
        if self.card.window_px <= 2 * self._margin:
            raise ModelError(
                f"{self.card.id}: a window of {self.card.window_px} px has no core between margins of {self._margin} px"
                "; correct window_px or largest_cell_um on the card"
            )
        self._run, self.runtime = make_runtime(model, replace(choice, levels="planes"))
        self._to_batch = to_planes if self._run.input_dtype == np.uint8 else to_tensor
        self._kinds = np.array(self.card.codes)
        thresholds = [self.card.min_score[kind] if min_score is None else min_score for kind in self.card.codes]
        self._min_scores = np.array(thresholds, np.float32)
        self._decode, self._cross_kind_iou = decode, self.card.cross_kind_iou
        if each_kind:
            self._decode, self._cross_kind_iou = _decode_each_kind, 1.0

    @property
    def min_score(self) -> dict[str, float]:
        """Threshold of each kind."""
        return {str(kind): float(score) for kind, score in zip(self._kinds, self._min_scores, strict=True)}

    @property
    def core_px(self) -> int:
        """Side of the core of a window at the canonical scale."""
        return self.card.window_px - 2 * self._margin

    def windows(self, canonical_wh: tuple[int, int]) -> Iterator[Window]:
        """The windows in which a picture of this size at the canonical scale is read."""
        return plan_windows(*canonical_wh, self.card.window_px, self._margin)

    def find(self, source: PixelSource, um_per_px: float, part: Part | None = None) -> Detections:
        """Every cell of a picture.

        Args:
            source: the picture.
            um_per_px: its scale in micrometres a pixel.
            part: where cells are sought: in the windows that answer for some of it; None for all.

        Returns:
            Boxes in pixels of the picture, ordered from top to bottom, then from left to right.
        """
        width, height = source.size_wh
        canonical_wh = canonical_size(source.size_wh, um_per_px, self.card)
        boxes, scores, kinds = self._search(source, canonical_wh, part)
        gain = np.array([width / canonical_wh[0], height / canonical_wh[1]] * 2, np.float32)
        boxes = clip_boxes(boxes * gain, width, height)
        order = np.lexsort((boxes[:, 2], boxes[:, 0], boxes[:, 1]))
        boxes, scores, kinds = boxes[order], scores[order], kinds[order]
        slack = EDGE_SLACK_PX * max(1.0, self.card.um_per_px / um_per_px)
        return Detections(boxes, scores, self._kinds[kinds], touches_edge(boxes, width, height, slack))

    def _search(self, source: PixelSource, canonical_wh: tuple[int, int], part: Part | None) -> Found:
        """Cells of the windows in canonical pixels; while the network is at some, others are read and decoded."""
        if max(canonical_wh) <= self.card.window_px:
            return self._cells_in(self._read(source, (0, 0, *canonical_wh), canonical_wh), self._run)
        windows = list(self.windows(canonical_wh))
        if part is not None:
            cores = np.array([window.core for window in windows]) * np.divide(source.size_wh * 2, canonical_wh * 2)
            windows = [window for window, wanted in zip(windows, part.touches(cores), strict=True) if wanted]
        run, at_once = self._run.streams if len(windows) >= MANY_WINDOWS else (self._run, 1)

        def work(read: Read) -> Found:
            return self._cells_in(read, run)

        # Two threads at least, so that the network is at the next window while one decodes the last.
        with InFlight(work, max(at_once, 2)) as flight:

            def look(view: Box) -> Found:
                return flight.ask(self._read(source, view, canonical_wh)).result()

            places = in_strips(source, [window.view for window in windows], canonical_wh, self._tile)
            answers = flight.answers(self._read(strip, view, canonical_wh) for strip, view in places)
            parts = [
                self._emit(found, window, canonical_wh, look) for window, found in zip(windows, answers, strict=True)
            ]
        boxes, scores, kinds = (np.concatenate(columns) for columns in zip(NOTHING, *parts, strict=True))
        keep = self._merge_seams(boxes, scores, kinds)
        return boxes[keep], scores[keep], kinds[keep]

    def _read(self, source: PixelSource, view: Box, canonical_wh: tuple[int, int]) -> Read:
        """A view of a picture as the network takes it."""
        found = read_view(source, view, canonical_wh, self.card.stride_px)
        return None if found is None else (self._to_batch(found[0], self.card), found[1])

    def _cells_in(self, read: Read, run: Runtime) -> Found:
        """Cells of one view, in canonical pixels of the whole picture."""
        if read is None:
            return NOTHING
        batch, place = read
        output = run(batch)[0][0]
        boxes, scores, kinds = self._decode(output, self._min_scores, self.card)
        boxes = clip_boxes(boxes, *place.size_wh)
        real = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) >= MIN_SIDE_PX
        return place.to_picture(boxes[real]), scores[real], kinds[real]

    def _emit(self, found: Found, window: Window, canonical_wh: tuple[int, int], look: Look) -> Found:
        """Those cells of a window that it answers for."""
        boxes, scores, kinds = found
        centre = centres(boxes)
        core, reach = np.array(window.core, np.float32), SEAM_UM / self.card.um_per_px
        inside = np.all((centre >= core[:2] - reach) & (centre < core[2:] + reach), axis=1)
        boxes, scores, kinds = boxes[inside], scores[inside], kinds[inside]
        for row in np.flatnonzero(self._cut(boxes, window.view, canonical_wh)):
            again = self._reread(boxes[row], canonical_wh, look)
            if again is not None:
                boxes[row], scores[row], kinds[row] = again
        return boxes, scores, kinds

    @staticmethod
    def _cut(boxes: FloatArray, view: Box, canonical_wh: tuple[int, int]) -> Bools:
        """Which boxes end at an edge of the view that is not an edge of the picture."""
        x_min, y_min, x_max, y_max = boxes.T
        left, top, right, bottom = view
        cut: Bools = (
            ((x_min <= left + 1) & (left > 0))
            | ((y_min <= top + 1) & (top > 0))
            | ((x_max >= right - 1) & (right < canonical_wh[0]))
            | ((y_max >= bottom - 1) & (bottom < canonical_wh[1]))
        )
        return cut

    def _reread(
        self, box: FloatArray, canonical_wh: tuple[int, int], look: Look
    ) -> tuple[FloatArray, np.float32, np.intp] | None:
        """Box, score and kind of the same cell in a window centred on it; None where it is not found again."""
        centre, half = centres(box[None])[0], self.card.window_px // 2
        x, y = (int(v) for v in centre)
        view = (max(x - half, 0), max(y - half, 0), min(x + half, canonical_wh[0]), min(y + half, canonical_wh[1]))
        boxes, scores, kinds = look(view)
        overlaps = iou_matrix(box[None], boxes)[0]
        if not len(boxes) or overlaps.max() < 0.3:
            return None
        best = int(overlaps.argmax())
        return boxes[best], scores[best], kinds[best]

    def _merge_seams(self, boxes: FloatArray, scores: FloatArray, kinds: Indices) -> Indices:
        """Rows that stay when cells emitted on both sides of a seam become one."""
        core_px, band = self.core_px, (SEAM_UM + CELL_MARGIN_UM) / self.card.um_per_px
        # A cell larger than the margin is read again from both sides, however far from the seam its centre lies.
        reach = np.maximum(band, (boxes[:, 2:] - boxes[:, :2]) / 2)
        from_seam = centres(boxes) % core_px
        rows = np.flatnonzero(np.any((from_seam < reach) | (from_seam > core_px - reach), axis=1))
        keep = greedy_nms(boxes[rows], scores[rows], kinds[rows], self.card.nms_iou, self._cross_kind_iou)
        return np.setdiff1d(np.arange(len(boxes)), np.delete(rows, keep))


def decode(output: FloatArray, min_scores: FloatArray, card: DetectorCard) -> Found:
    """Raw output `(4 + kinds, anchors)`, centre-size boxes and probabilities, to boxes `(N, 4)`, scores, kinds."""
    above = output[4:] >= min_scores[:, None]
    likely = np.flatnonzero(above.any(axis=0))
    columns = output[:, likely]
    excess = np.where(above[:, likely], columns[4:], -1)
    kinds, scores = excess.argmax(axis=0), excess.max(axis=0)
    centre, half = columns[:2].T, columns[2:4].T / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    pairs = close_pairs(boxes, min(card.nms_iou, card.cross_kind_iou, VOTE_IOU))
    keep = greedy_nms(boxes, scores, kinds, card.nms_iou, card.cross_kind_iou, pairs)
    return voted_boxes(boxes, scores, kinds, keep, pairs), scores[keep], kinds[keep]


def _decode_each_kind(output: FloatArray, min_scores: FloatArray, card: DetectorCard) -> Found:
    """The same, as if each kind were the only one."""
    alone = np.where(np.eye(len(min_scores), dtype=np.bool_), min_scores, np.float32(np.inf))
    parts = [decode(output, thresholds, card) for thresholds in alone]
    boxes, scores, kinds = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return boxes, scores, kinds
