"""Boxes against closed forms, and the suppression against a slow and obvious one."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import slow_iou, tied_boxes

from smearcount.geometry import FILL, areas, centres, clip_boxes, diameters, iou_matrix, resize_rgb, touches_edge


def test_overlap_of_known_boxes() -> None:
    square = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4], [3, 3, 3, 3]], np.float32)
    assert np.allclose(iou_matrix(square, others), [[1, 1 / 3, 0, 0.04, 0]])
    assert iou_matrix(others[4:], others[4:]).tolist() == [[0]]
    assert iou_matrix(square, others[:0]).shape == (1, 0)
    boxes = tied_boxes(5)[0]
    slow = [[slow_iou(a, b) for b in boxes] for a in boxes]
    assert np.allclose(iou_matrix(boxes, boxes), slow, atol=1e-6)


def test_areas_centres_diameters_and_clipping() -> None:
    boxes = np.array([[2, 3, 12, 9], [-5, -5, 5, 30], [8, 8, 4, 4]], np.float32)
    assert areas(boxes).tolist() == [60, 350, 0]
    assert centres(boxes)[0].tolist() == [7, 6]
    assert diameters(boxes)[0] == 8
    assert clip_boxes(boxes, 10, 20)[:2].tolist() == [[2, 3, 10, 9], [0, 0, 5, 20]]


@pytest.mark.parametrize(
    ("box", "touches"),
    [
        ((3, 3, 97, 47), False),
        ((2, 3, 97, 47), True),
        ((3, 2, 97, 47), True),
        ((3, 3, 98, 47), True),
        ((3, 3, 97, 48), True),
    ],
)
def test_each_border_is_seen_from_two_pixels_away(box: tuple[float, ...], touches: bool) -> None:
    boxes = np.array([box], np.float32)
    assert touches_edge(boxes, 100, 50).tolist() == [touches]
    assert not touches_edge(boxes, 100, 50, slack_px=0).any()
    assert touches_edge(boxes, 100, 50, slack_px=3).all()


def test_resampling_keeps_the_mean_and_the_place() -> None:
    rng = np.random.default_rng(3)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8), 4, 0), 4, 1)
    assert resize_rgb(pixels, 160, 120) is pixels
    assert np.array_equal(resize_rgb(pixels, 40, 30), pixels[::4, ::4])
    grown = resize_rgb(pixels, 320, 240)
    assert grown.shape == (240, 320, 3)
    assert abs(float(grown.mean()) - float(pixels.mean())) < 0.5


@pytest.mark.parametrize("size_wh", [(160, 120), (70, 50), (333, 241)])
@pytest.mark.parametrize("shape", [(120, 160), (120, 160, 3)])
def test_what_is_resampled_may_be_padded_to_a_stride(size_wh: tuple[int, int], shape: tuple[int, ...]) -> None:
    (width, height), pixels = size_wh, np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    padded = resize_rgb(pixels, width, height, 32)
    assert padded.shape == (-(-height // 32) * 32, -(-width // 32) * 32, *shape[2:])
    assert np.array_equal(padded[:height, :width], resize_rgb(pixels, width, height))
    assert (padded[height:] == FILL).all()
    assert (padded[:, width:] == FILL).all()
    assert resize_rgb(pixels, 160, 120, 40) is pixels
