"""A picture in windows of the network: where they lie, their pixels at the canonical scale, several under way at once.

A picture that fits one window is one window. A larger one is read in windows on a grid anchored at 0, 0: a core, and a
margin in which cells that reach into the core are still seen whole. How many windows are under way changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Generic, TypeVar

import cv2
import numpy as np

from smearcount.arrays import FloatArray, Pixels
from smearcount.cards import DetectorCard
from smearcount.geometry import resize_rgb
from smearcount.images import PixelSource, peek

__all__ = ["Block", "InFlight", "Place", "Window", "canonical_size", "in_strips"]
__all__ += ["plan_windows", "read_view", "to_planes", "to_tensor"]

BLANK_RANGE = 8
"""Grey levels; a view whose pixels differ by less in every channel is empty, whatever a network may see in it."""

Box = tuple[int, int, int, int]
Given = TypeVar("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Window:
    """A window of the grid, in pixels at the canonical scale.

    Attributes:
        core: x_min, y_min, x_max, y_max of the part whose cells the window answers for.
        view: the part that the network sees.
    """

    core: Box
    view: Box


def plan_windows(width: int, height: int, window_px: int, margin_px: int) -> Iterator[Window]:
    """The windows of a canonical picture of `width` x `height`, row by row; one window where all of it fits.

    The view of the first of a row or column reaches further than its margin, since a network holds memory for each
    shape that it is given: all but the last have one.
    """
    core_px = window_px - 2 * margin_px
    for y in _starts(height, window_px, core_px):
        for x in _starts(width, window_px, core_px):
            right = width if width <= window_px else min(x + core_px, width)
            bottom = height if height <= window_px else min(y + core_px, height)
            view = (
                max(x - margin_px, 0),
                max(y - margin_px, 0),
                min(max(right + margin_px, window_px), width),
                min(max(bottom + margin_px, window_px), height),
            )
            yield Window((x, y, right, bottom), view)


def _starts(length: int, window_px: int, core_px: int) -> range:
    return range(1) if length <= window_px else range(0, length, core_px)


def canonical_size(size_wh: tuple[int, int], um_per_px: float, card: DetectorCard) -> tuple[int, int]:
    """Width and height of a picture at the canonical scale of a detector."""
    factor = um_per_px / card.um_per_px
    return max(1, round(size_wh[0] * factor)), max(1, round(size_wh[1] * factor))


@dataclass(frozen=True)
class Place:
    """Where the resampled pixels of a view lie in the canonical picture.

    Attributes:
        size_wh: width and height in pixels.
        gain_xy: canonical pixels per pixel of the view: not quite 1, since what is read begins and ends at a pixel.
        corner_xy: its top-left corner in the canonical picture.
    """

    size_wh: tuple[int, int]
    gain_xy: tuple[float, float]
    corner_xy: tuple[float, float]

    def to_picture(self, boxes: FloatArray) -> FloatArray:
        """Boxes `(N, 4)` of the view in pixels of the canonical picture."""
        if self.gain_xy == (1.0, 1.0) and self.corner_xy == (0.0, 0.0):
            return boxes
        return boxes * np.array(self.gain_xy * 2, np.float32) + np.array(self.corner_xy * 2, np.float32)


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a picture in memory, in the coordinates of the whole."""

    pixels: Pixels
    left: int
    top: int
    size_wh: tuple[int, int]

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """The rectangle at x, y of the whole picture."""
        return self.pixels[y - self.top : y - self.top + h, x - self.left : x - self.left + w]


def in_strips(
    source: PixelSource, views: Sequence[Box], canonical_wh: tuple[int, int], together: int
) -> Iterator[tuple[PixelSource, Box]]:
    """Each view, row by row, with what it is read from: a strip of so many views of one row, or the picture for one."""
    if together == 1:
        yield from ((source, view) for view in views)
        return
    for _, row in groupby(views, key=lambda view: view[1]):
        waiting = iter(row)
        while some := list(islice(waiting, together)):
            boxes = np.array([_stored(view, canonical_wh, source.size_wh) for view in some])
            (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
            strip = Block(source.read(left, top, right - left, bottom - top), left, top, source.size_wh)
            yield from ((strip, view) for view in some)


def _stored(view: Box, canonical_wh: tuple[int, int], size_wh: tuple[int, int]) -> Box:
    """The whole pixels of a picture that a view of the canonical picture touches."""
    per_x, per_y = size_wh[0] / canonical_wh[0], size_wh[1] / canonical_wh[1]
    right, bottom = min(math.ceil(view[2] * per_x), size_wh[0]), min(math.ceil(view[3] * per_y), size_wh[1])
    return math.floor(view[0] * per_x), math.floor(view[1] * per_y), right, bottom


def read_view(
    source: PixelSource, view: Box, canonical_wh: tuple[int, int], stride_px: int = 1
) -> tuple[Pixels, Place] | None:
    """A view of the canonical picture.

    Returns:
        Its pixels `(H, W, 3) uint8 RGB`, resampled to it and padded to the stride, and their place; None where it is
        blank.
    """
    width, height = source.size_wh
    per_x, per_y = width / canonical_wh[0], height / canonical_wh[1]
    left, top, right, bottom = _stored(view, canonical_wh, source.size_wh)
    region = peek(source, left, top, right - left, bottom - top)
    if _is_blank(region):
        return None
    size_wh = (max(1, round((right - left) / per_x)), max(1, round((bottom - top) / per_y)))
    gain_xy = ((right - left) / size_wh[0] / per_x, (bottom - top) / size_wh[1] / per_y)
    return resize_rgb(region, *size_wh, stride_px), Place(size_wh, gain_xy, (left / per_x, top / per_y))


def _is_blank(region: Pixels) -> bool:
    """Whether every second pixel is nearly the same; a few of them, in green, mostly settle that it is not."""
    if np.ptp(region[::32, ::32, 1]) >= BLANK_RANGE:
        return False
    return all(np.ptp(region[::2, ::2, channel]) < BLANK_RANGE for channel in range(3))


def to_planes(pixels: Pixels, card: DetectorCard) -> Pixels:
    """`pixels (H, W, 3) uint8 RGB` as `(1, 3, H', W')`, padded right and below to the card's stride."""
    padded = resize_rgb(pixels, pixels.shape[1], pixels.shape[0], card.stride_px)
    planes = np.empty((1, 3, *padded.shape[:2]), np.uint8)
    cv2.split(padded, list(planes[0]))
    return planes


def to_tensor(pixels: Pixels, card: DetectorCard) -> FloatArray:
    """`pixels (H, W, 3) uint8 RGB` as `(1, 3, H', W') float32`: the planes over 255, less the mean, over the spread."""
    tensor = np.multiply(to_planes(pixels, card), np.float32(1 / 255), dtype=np.float32)
    if card.mean == (0.0, 0.0, 0.0) and card.std == (1.0, 1.0, 1.0):
        return tensor
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (card.mean, card.std))
    return ((tensor - mean) / std).astype(np.float32)


class InFlight(Generic[Given, Answer]):
    """Work on threads of its own, while the caller's thread works on what came before.

    Args:
        work: what is done to each, such as asking the network; begun in the order asked.
        at_once: how many at a time.
    """

    def __init__(self, work: Callable[[Given], Answer], at_once: int = 1) -> None:
        self._work, self._under_way = work, at_once + 1
        self._threads = ThreadPoolExecutor(at_once, "smearcount-work")

    def __enter__(self) -> InFlight[Given, Answer]:
        """A thread starts with the first thing asked."""
        return self

    def __exit__(self, *_: Any) -> None:
        """What has not begun is dropped."""
        self._threads.shutdown(cancel_futures=True)

    def ask(self, given: Given) -> Future[Answer]:
        """Work on it as soon as a thread is free; an error of the work is raised by `result()`."""
        return self._threads.submit(self._work, given)

    def answers(self, given: Iterable[Given]) -> Iterator[Answer]:
        """What comes of each, in order; never more than those that are worked on and one more under way."""
        begun: deque[Future[Answer]] = deque()
        for each in given:
            begun.append(self.ask(each))
            if len(begun) > self._under_way:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
