"""Where windows lie, what the network is given of them, and that several under way change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from smearcount.arrays import Pixels
from smearcount.cards import DetectorCard
from smearcount.geometry import FILL
from smearcount.windows import (
    BLANK_RANGE,
    InFlight,
    Place,
    canonical_size,
    plan_windows,
    read_view,
    to_planes,
    to_tensor,
)

MakeCard = Callable[..., DetectorCard]
PATIENCE_S = 20.0
"""A step that waits for another one to begin gives up after this long: then nothing overlaps."""


def random_plans(n: int) -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng(0)
    plans = [(64, 64, 64, 10), (65, 64, 64, 10), (64, 65, 64, 10), (1, 1, 64, 31), (44, 89, 64, 10), (133, 45, 64, 10)]
    for _ in range(n):
        window = int(rng.integers(32, 100))
        plans.append((*(int(v) for v in rng.integers(1, 400, 2)), window, int(rng.integers(0, window // 2))))
    return plans


@pytest.mark.parametrize(("width", "height", "window", "margin"), random_plans(60))
def test_the_cores_tile_the_picture_exactly_once(width: int, height: int, window: int, margin: int) -> None:
    times = np.zeros((height, width), int)
    sides: tuple[set[int], set[int]] = set(), set()
    for one in plan_windows(width, height, window, margin):
        (left, top, right, bottom), (x0, y0, x1, y1) = one.core, one.view
        times[top:bottom, left:right] += 1
        assert 0 <= x0 <= left < right <= x1 <= width
        assert 0 <= y0 <= top < bottom <= y1 <= height
        assert max(x1 - x0, y1 - y0) <= window
        # The margin is whole, or the picture ends; only the first window of a row or column has more.
        assert left - x0 == margin or x0 == 0
        assert top - y0 == margin or y0 == 0
        assert x1 == min(max(right + margin, window), width)
        assert y1 == min(max(bottom + margin, window), height)
        sides[0].add(x1 - x0)
        sides[1].add(y1 - y0)
    assert (times == 1).all()
    # A network is at its quickest with few shapes: whole windows, and what is left at the end of a row or column.
    if margin <= window - 2 * margin:
        assert all(len(each - {window}) <= 2 for each in sides)
    if max(width, height) <= window:
        assert len(list(plan_windows(width, height, window, margin))) == 1


# What the network is given


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size_hw", [(33, 50), (64, 32), (1, 1)])
def test_planes_are_padded_to_the_stride_and_keep_rgb(make_card: MakeCard, size_hw: tuple[int, int]) -> None:
    pixels, (height, width) = noise(*size_hw), size_hw
    planes = to_planes(pixels, make_card(stride_px=32))
    assert (planes.shape, planes.dtype) == ((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), np.uint8)
    assert np.array_equal(planes[0, :, :height, :width], pixels.transpose(2, 0, 1))
    assert (planes[..., height:, :] == FILL).all()
    assert (planes[..., width:] == FILL).all()


def test_a_tensor_is_the_planes_over_255(make_card: MakeCard) -> None:
    pixels = noise(33, 50)
    card = make_card(stride_px=32)
    tensor = to_tensor(pixels, card)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 64, 64), np.float32)
    # To the last bit, padding included: a runtime that divides by itself must give the same answer.
    assert np.array_equal(tensor, to_planes(pixels, card).astype(np.float32) * np.float32(1 / 255))
    assert np.allclose(tensor[0, :, :33, :50], pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    scaled = to_tensor(pixels, make_card(stride_px=32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)))
    assert np.allclose(scaled[0, 1], (tensor[0, 1] - 0.25) / 0.25, atol=1e-5)
    assert np.allclose(scaled[0, 2], tensor[0, 2] / 2, atol=1e-5)


def test_the_canonical_size_goes_by_the_scale_and_is_never_zero(make_card: MakeCard) -> None:
    assert canonical_size((640, 480), 0.32, make_card()) == (1280, 960)
    assert canonical_size((3, 1), 0.02, make_card()) == (1, 1)


def test_a_view_knows_its_place_in_the_picture(draw_discs: Callable[..., Any]) -> None:
    """A corner of the drawing, seen at two thirds of its size, is led back to where it is."""
    smear = draw_discs((303, 240), np.array([[200.0, 150.0, 40.0]]), ("rbc",))
    canonical_wh = (202, 160)
    for view in ((0, 0, 202, 160), (101, 70, 180, 160), (57, 33, 158, 121)):
        found = read_view(smear, view, canonical_wh)
        assert found is not None
        pixels, place = found
        assert place.size_wh == (pixels.shape[1], pixels.shape[0])
        dark = np.argwhere(pixels[..., 1] < 157)[:, ::-1]
        box = np.array([[*dark.min(axis=0), *(dark.max(axis=0) + 1)]], np.float32)
        assert np.abs(place.to_picture(box) * np.float32(1.5) - smear.boxes).max() <= 1.6
        assert abs(place.corner_xy[0] - view[0]) < 1
    assert Place((10, 10), (0.5, 2.0), (3.0, 4.0)).to_picture(np.array([[2, 2, 4, 4]], np.float32)).tolist() == [
        [4, 8, 5, 12]
    ]


class Flat:
    """A picture of one colour with a spot of one pixel."""

    def __init__(self, at_xy: tuple[int, int], depth: int, channel: int = 1) -> None:
        self.pixels = np.full((90, 130, 3), (240, 225, 205), np.uint8)
        self.pixels[at_xy[1], at_xy[0], channel] -= depth
        self.size_wh = (130, 90)

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        return self.pixels[y : y + h, x : x + w]


@pytest.mark.parametrize("at_xy", [(0, 0), (64, 32), (2, 4), (128, 88)])
def test_a_single_spot_is_not_blank(at_xy: tuple[int, int]) -> None:
    whole = (0, 0, 130, 90)
    assert read_view(Flat(at_xy, BLANK_RANGE), whole, (130, 90)) is not None
    assert read_view(Flat(at_xy, BLANK_RANGE - 1), whole, (130, 90)) is None
    # Every second pixel is looked at, as ever: a slow picture of the rule.
    odd = Flat((at_xy[0] + 1, at_xy[1]), 100)
    assert all(np.ptp(odd.pixels[::2, ::2, channel]) == 0 for channel in range(3))
    assert read_view(odd, whole, (130, 90)) is None


@pytest.mark.parametrize("channel", range(3))
def test_a_spot_shows_in_any_channel_of_tinted_glass(channel: int) -> None:
    whole = (0, 0, 130, 90)
    assert read_view(Flat((64, 32), BLANK_RANGE, channel), whole, (130, 90)) is not None
    assert read_view(Flat((64, 32), BLANK_RANGE - 1, channel), whole, (130, 90)) is None


# Several under way


def test_answers_come_in_order_and_few_are_under_way() -> None:
    taken, given_back = [], []

    def numbers() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            assert len(taken) - len(given_back) <= 4
            yield number

    with InFlight(lambda number: number + 1) as flight:
        for answer in flight.answers(numbers()):
            given_back.append(answer)
    assert given_back == [number + 1 for number in range(200)]


def test_several_at_once_answer_in_order() -> None:
    """Three calls wait for each other: fewer at a time would not come through."""
    together = threading.Barrier(3)

    def work(number: int) -> int:
        together.wait(PATIENCE_S)
        return -number

    with InFlight(work, 3) as flight:
        assert list(flight.answers(range(30))) == [-number for number in range(30)]


def test_the_next_is_worked_on_while_the_caller_is_at_the_last() -> None:
    """The caller waits until the next is begun: in turns, it would not come through."""
    begun = [threading.Event() for _ in range(9)]

    def work(number: int) -> int:
        begun[number].set()
        return number

    with InFlight(work) as flight:
        for answer in flight.answers(range(9)):
            assert begun[min(answer + 1, 8)].wait(PATIENCE_S)


def test_an_error_arrives_in_its_place_and_no_thread_stays() -> None:
    def fail(number: int) -> int:
        if number == 4:
            raise OSError("disk gone")
        return number

    seen, before = list[int](), threading.active_count()
    with InFlight(fail, 2) as flight:
        answers = flight.answers(range(10))
        seen += [next(answers) for _ in range(4)]
        with pytest.raises(OSError, match="disk gone"):
            next(answers)
    assert seen == [0, 1, 2, 3]
    assert threading.active_count() == before


def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    ran, before = [], threading.active_count()

    def leave() -> None:
        with InFlight(ran.append) as flight:
            for _ in flight.answers(iter(range(1000))):
                raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        leave()
    assert 1 <= len(ran) <= 4
    assert threading.active_count() == before


def test_a_question_in_between_has_its_answer_too() -> None:
    with InFlight(lambda number: -number) as flight:
        for number, answer in enumerate(flight.answers(range(20))):
            assert answer == -number
            assert flight.ask(1000 + number).result() == -1000 - number
