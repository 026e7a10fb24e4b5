"""Calls of several threads, answered together."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from threading import Event, Lock
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from conftest import SAMPLES

from smearcount.arrays import FloatArray
from smearcount.cards import find_model
from smearcount.config import Settings
from smearcount.runtimes import TorchRuntime, calls_at_once
from smearcount.runtimes.gathering import BATCHES, Gathering, calls_for


class Network:
    """Sums of pictures; it notes the batches, and the first ones last until there is company."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on, self.listing, self.at_work, self.most = Event(), Lock(), 0, 0

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        with self.listing:
            self.batches.append(batch[:, 0].tolist())
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        assert self.go_on.wait(20)
        with self.listing:
            self.at_work -= 1
        if -1 in batch:
            raise RuntimeError("out of memory")
        return batch.sum(axis=1, keepdims=True, dtype=np.float32), -batch.astype(np.float32)


def answers(network: Network, size: int, pictures: list[npt.NDArray[Any]]) -> list[Any]:
    """What each of some calls at a time gave, or the error that it raised; the network begins when all have asked."""
    gathering = Gathering(network, size)

    def ask(picture: npt.NDArray[Any]) -> Any:
        try:
            return gathering(picture)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(len(pictures)) as threads:
        asked = [threads.submit(ask, picture) for picture in pictures]
        while len(gathering._waiting) + len({*chain(*network.batches)}) < len(pictures):
            assert not any(each.done() for each in asked)
        network.go_on.set()
        return [each.result(20) for each in asked]


def test_calls_that_wait_share_batches_of_one_size() -> None:
    network = Network()
    pictures = [np.full((1, 3), value) for value in range(10)]
    found = answers(network, 4, pictures)
    assert [(total.tolist(), minus.tolist()) for total, minus in found] == [([[3 * n]], [[-n] * 3]) for n in range(10)]
    assert {len(batch) for batch in network.batches} == {4}
    # At the worst two began alone; the eight others fill two batches.
    assert 3 <= len(network.batches) <= BATCHES + 2
    assert sorted({value for batch in network.batches for value in batch}) == list(range(10))
    assert network.most == BATCHES


def test_pictures_of_other_sizes_go_in_other_batches() -> None:
    network = Network()
    pictures = [np.full((1, 3 + value % 2), value) for value in range(12)]
    found = answers(network, 4, pictures)
    assert [total.tolist() for total, _ in found] == [[[value * (3 + value % 2)]] for value in range(12)]
    assert all(len({value % 2 for value in batch}) == 1 for batch in network.batches)
    assert len(network.batches) < 12


def test_an_error_of_the_network_is_that_of_every_call_in_the_batch_and_of_no_other() -> None:
    network = Network()
    pictures = [np.full((1, 3), value) for value in (0, 1, -1, 3, 4, 5, 6, 7, 8, 9)]
    found = answers(network, 4, pictures)
    hit = next({*batch} for batch in network.batches if -1 in batch)
    failed = {int(pictures[row][0, 0]) for row, answer in enumerate(found) if isinstance(answer, RuntimeError)}
    assert failed == hit


@pytest.mark.parametrize(("size", "on_card", "expected"), [(0, False, 1), (1, True, 1), (0, True, 8), (3, False, 6)])
def test_as_many_calls_as_fill_the_batches_are_made(size: int, expected: int, *, on_card: bool) -> None:
    assert calls_at_once(size, on_card=on_card) == expected
    assert calls_for(max(size, 1)) == (1 if size < 2 else 2 * size)


def test_a_field_has_the_same_answer_alone_and_in_company() -> None:
    model = find_model(Settings().detector)
    together, alone = (TorchRuntime(model, threads=1, levels="planes", batch_size=size) for size in (3, 1))
    assert (together.streams, alone.streams) == ((together, 6), (alone, 1))
    pixels = cv2.imread(str(SAMPLES / "normal.jpg"))[..., ::-1].transpose(2, 0, 1)[None]
    fields = [np.ascontiguousarray(pixels[..., 16 * n : 16 * n + 160, : 160 + 32 * (n % 2)]) for n in range(8)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(together, fields))
    for field, (answer,) in zip(fields, found, strict=True):
        # The last numbers of a batch are worked out by other instructions.
        np.testing.assert_allclose(answer, together(field)[0], atol=1e-12)
        assert np.abs(answer - alone(field)[0]).max() < 1e-2


def test_an_error_leaves_nothing_of_the_call_behind() -> None:
    """Of a graphics card without memory the tensors of the failed call must go, or the next call fails too."""

    class Tensor:
        pass

    left: list[weakref.ref[Tensor]] = []

    def run(batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        tensor = Tensor()
        left.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    gathering = Gathering(run, 2)
    gc.disable()
    try:
        with suppress(RuntimeError):
            gathering(np.zeros((1, 3)))
        assert left[0]() is None
    finally:
        gc.enable()
