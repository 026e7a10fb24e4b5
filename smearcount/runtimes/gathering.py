"""Calls of several threads, answered as one batch: small pictures fill a graphics card only together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray

__all__ = ["Gathering", "calls_for"]

BATCHES = 2
"""Batches under way: while the network is at one, the next is handed over to it."""

Waiting = tuple[npt.NDArray[Any], "Future[tuple[FloatArray, ...]]"]


def calls_for(size: int) -> int:
    """Calls at a time that fill all batches under way, of this size."""
    return BATCHES * size if size > 1 else 1


class Gathering:
    """A network that is asked for one picture at a time, by several threads, and is given several.

    Nothing waits for company. While the network is busy, calls come together by themselves, and the first that gets
    hold of it takes those along that wait with a picture of the same size. The rest of the batch is filled up: it
    always has the same shape, so that a picture has the same answer whatever else is in it.

    Args:
        run: a batch in, outputs out; for as many threads at a time as there are batches under way.
        size: pictures of a batch.
    """

    def __init__(self, run: Callable[[npt.NDArray[Any]], tuple[FloatArray, ...]], size: int) -> None:
        self._run, self._size = run, size
        self._free, self._listing = BoundedSemaphore(BATCHES), Lock()
        self._waiting: list[Waiting] = []

    def __call__(self, picture: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        """The outputs for `picture (1, ...)`; what the network raises is raised for every picture of a batch."""
        mine: Waiting = picture, Future()
        with self._listing:
            self._waiting.append(mine)
        with self._free:
            self._answer(self._taken(mine))
        answer = mine[1]
        try:
            return answer.result()
        finally:
            # An error leads to this frame, and from it to what holds the error: the tensors of its frames would stay.
            del mine, answer

    def _taken(self, mine: Waiting) -> list[Waiting]:
        """A call, and those that wait with a picture of its size; none where another took it along."""
        with self._listing:
            if not any(each is mine for each in self._waiting):
                return []
            others = [each for each in self._waiting if each is not mine and each[0].shape == mine[0].shape]
            batch = [mine, *others[: self._size - 1]]
            self._waiting = [each for each in self._waiting if not any(each is one for one in batch)]
            return batch

    def _answer(self, batch: list[Waiting]) -> None:
        if not batch:
            return
        pictures = [picture for picture, _ in batch]
        try:
            outputs = self._run(np.concatenate(pictures + pictures[:1] * (self._size - len(pictures))))
        except BaseException as error:
            while batch:
                batch.pop()[1].set_exception(error)
            return
        for row, (_, answer) in enumerate(batch):
            answer.set_result(tuple(output[row : row + 1] for output in outputs))
