"""Names cells: windows of a fixed physical side around each box, sampled straight at the network's size, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, FloatArray, Pixels
from smearcount.cards import ClassifierCard, Model
from smearcount.geometry import centres, diameters, resize_rgb
from smearcount.images import ArraySource, PixelSource
from smearcount.patches import sample_window, to_batch
from smearcount.runtimes import InferWindows, RuntimeChoice, make_runtime
from smearcount.windows import Block, InFlight

__all__ = ["Batch", "Classifier", "Named", "calibrated", "fitted", "name_thresholds", "quarter_turns", "without_giants"]

Batch = Pixels | FloatArray

Ask = Callable[[Bools | None], tuple[FloatArray, ...]]
"""Logits and embeddings of some cells, or the logits of the unsure among them by each of `QUARTERS`."""

QUARTERS = (1, 2, 3)
"""Quarter turns in which an unsure cell is looked at again."""

FINEST = 2
"""Resolution over that of the network at which single cells are kept: finer ones are shrunk first."""

BLOCK_PX = 1024
"""Side of the squares of a picture that are read at once, so that a compressed scan is decoded once only."""


@dataclass(frozen=True, eq=False)
class Named:
    """What a classifier says of N cells.

    Attributes:
        probs: `(N, K) float32`, calibrated; rows sum to 1.
        features: `(N, D) float32`, the embedding.
    """

    probs: FloatArray
    features: FloatArray


class Classifier:
    """A network with its card: windows around cells in, probabilities per code out.

    Args:
        model: a model folder of task `classifier`.
        choice: runtime, device and precision.
        min_label_score: threshold below which a cell is unclassified, instead of the card's.

    Raises:
        ModelError: the model is no classifier, or a file is missing or damaged.
    """

    def __init__(self, model: Model, choice: RuntimeChoice, min_label_score: float | None = None) -> None:
        self.card = model.classifier_card
        self.min_label_score = self.card.min_label_score if min_label_score is None else min_label_score
        self._run, self.runtime = make_runtime(model, replace(choice, levels="views"))

    def name(self, source: PixelSource, boxes: FloatArray, um_per_px: float) -> Named:
        """Name the cells in `boxes (N, 4)` of a picture whose scale is `um_per_px`."""
        if not len(boxes):
            return self._join([])
        middles, side_px = centres(boxes), self.card.patch_um / um_per_px
        order: list[int] = []
        if self._run.infer_windows:
            named = self._name_blocks(source, middles, side_px, order, self._run.infer_windows)
        else:
            named = self.name_views(self._windows(source, middles, side_px, order))
        back = np.argsort(np.array(order))
        ordered = Named(named.probs[back], named.features[back])
        return without_giants(ordered, diameters(boxes) * np.float32(um_per_px), self.card)

    def _windows(self, source: PixelSource, middles: FloatArray, side_px: float, order: list[int]) -> Iterator[Pixels]:
        """The window of each cell, block by block of the picture; `order` receives the row of each."""
        for rows, block in _blocks(source, middles, side_px):
            order += rows
            for row in rows:
                x, y = middles[row].tolist()
                yield sample_window(block, (x, y), side_px, self.card.input_px)[0]

    def name_views(self, views: Iterable[Pixels]) -> Named:
        """Name views `(S, S, 3) uint8 RGB` of the network's size."""
        left = iter(views)
        chunks = iter(lambda: list(islice(left, self._run.at_once)), [])

        def ask(batch: Batch, unsure: Bools | None) -> tuple[FloatArray, ...]:
            return self._run(batch if unsure is None else quarter_turns(batch[unsure]))

        # While the network is at one batch, the windows of the next are sampled.
        with InFlight(self._look) as flight:
            return self._join(list(flight.answers(partial(ask, self._batch(chunk)) for chunk in chunks)))

    def _name_blocks(
        self, source: PixelSource, middles: FloatArray, side_px: float, order: list[int], infer: InferWindows
    ) -> Named:
        """The names of all cells, whose windows the runtime samples, in the order that `order` receives."""

        def ask(block: Block, places: FloatArray, unsure: Bools | None) -> tuple[FloatArray, ...]:
            asked, turns = (places, (0,)) if unsure is None else (places[unsure], QUARTERS)
            return infer(block.pixels, asked, side_px, self.card.input_px, turns)

        def asks() -> Iterator[Ask]:
            for rows, block in _blocks(source, middles, side_px):
                order.extend(rows)
                yield partial(ask, block, middles[rows] - np.array((block.left, block.top), np.float32))

        # While the network is at one block, the next is read.
        with InFlight(self._look) as flight:
            return self._join(list(flight.answers(asks())))

    def _look(self, ask: Ask) -> tuple[FloatArray, FloatArray]:
        """Probabilities and embeddings; of cells of which one look leaves it unsure, the mean of four quarter turns."""
        logits, features = ask(None)
        probs = calibrated(logits, self.card.temperature)
        unsure = probs.max(axis=1) < np.float32(self.card.second_look)
        if unsure.any():
            turned = calibrated(ask(unsure)[0], self.card.temperature)
            probs[unsure] = (probs[unsure] + turned.reshape(3, -1, turned.shape[1]).sum(axis=0)) / 4
        return probs, features

    def _batch(self, views: Sequence[Pixels]) -> Batch:
        """Views as the network takes them: normalised, unless the runtime does that."""
        if self._run.input_dtype == np.uint8:
            return np.stack(views)
        return to_batch(views, self.card.mean, self.card.std)

    def _join(self, parts: Sequence[tuple[FloatArray, FloatArray]]) -> Named:
        if not parts:
            widths = (len(self.card.codes), self.card.embedding)
            return Named(np.zeros((0, widths[0]), np.float32), np.zeros((0, widths[1]), np.float32))
        probs, features = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Named(probs, features)


def name_thresholds(min_label_score: float, min_move_score: float, moved: Bools) -> FloatArray:
    """The probability that the names of cells must reach, where some `(N,)` move a cell to another kind."""
    return np.where(moved, max(min_label_score, min_move_score), min_label_score).astype(np.float32)


def quarter_turns(batch: Batch) -> npt.NDArray[Any]:
    """A batch, `(N, S, S, 3) uint8` or `(N, 3, S, S) float32`, by 90, then by 180, then by 270 degrees: `(3N, ...)`."""
    axes = (1, 2) if batch.dtype == np.uint8 else (2, 3)
    return np.concatenate([np.rot90(batch, turns, axes) for turns in QUARTERS])


def calibrated(logits: FloatArray, temperature: float) -> FloatArray:
    """Probabilities `(N, K)` of logits `(N, K)`: the softmax of the logits over the temperature.

    Source: Guo et al. 2017, On calibration of modern neural networks, arXiv 1706.04599.
    """
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def without_giants(named: Named, sizes_um: FloatArray, card: ClassifierCard) -> Named:
    """N cells of which none has a code that its size `(N,)` rules out; what is left of its probabilities sums to 1."""
    allowed = np.stack([sizes_um <= card.largest_um.get(code, np.inf) for code in card.codes], axis=1)
    kept = named.probs * allowed
    total = kept.sum(axis=1, keepdims=True)
    probs = np.where(total > 0, kept / np.maximum(total, np.float32(1e-12)), named.probs)
    return Named(np.asarray(probs, np.float32), named.features)


def fitted(picture: Pixels, card: ClassifierCard) -> Pixels:
    """A picture of any size as a view `(S, S, 3)`: its central square, as training sees a picture without a scale.

    The square is the window of the classifier, or its middle is, where the card says that a picture stands for more.
    """
    height, width = picture.shape[:2]
    square = min(height, width)
    top, left = round((height - square) / 2), round((width - square) / 2)
    central = picture[top : top + square, left : left + square]
    if square > FINEST * card.input_px:
        square = FINEST * card.input_px
        central = resize_rgb(central, square, square)
    side_px = square * card.patch_um / (card.picture_um or card.patch_um)
    return sample_window(ArraySource(central), (square / 2, square / 2), side_px, card.input_px)[0]


def _blocks(source: PixelSource, middles: FloatArray, side_px: float) -> Iterator[tuple[list[int], Block]]:
    """Rows of the cells whose centre lies in one square of the picture, and the pixels that their windows need."""
    width, height = source.size_wh
    reach = int(side_px / 2) + 4
    squares = (middles // BLOCK_PX).astype(np.intp)
    order = np.lexsort((squares[:, 0], squares[:, 1]))
    for _, members in groupby(order.tolist(), key=lambda row: tuple(squares[row])):
        rows = list(members)
        low, high = middles[rows].min(axis=0) - reach, middles[rows].max(axis=0) + reach
        left, top = max(int(low[0]), 0), max(int(low[1]), 0)
        right, bottom = min(int(high[0]) + 1, width), min(int(high[1]) + 1, height)
        pixels: Pixels = source.read(left, top, right - left, bottom - top)
        yield rows, Block(pixels, left, top, (width, height))
