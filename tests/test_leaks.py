"""The leak check: the same field is recognised however it was shrunk or restained, another field never is."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from smearcount.simulate import SmearRecipe, render
from smearcount.training.leaks import near_duplicates, signature


def field(seed: int) -> np.ndarray:
    return render(SmearRecipe(width=480, height=360, um_per_px=0.16, red_cells=25, white_cells=1, seed=seed)).pixels


def shrunk(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)


def compressed(pixels: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)


def darker(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.7).astype(np.uint8)


@pytest.mark.parametrize("change", [shrunk, compressed, darker], ids=lambda change: change.__name__)
def test_the_same_field_is_found_again(change: object) -> None:
    first = [(Path(f"{seed}.jpg"), signature(field(seed))) for seed in range(4)]
    second = [(Path("other.jpg"), signature(field(9))), (Path("copy.jpg"), signature(change(field(2))))]
    assert near_duplicates(first, second) == [(Path("2.jpg"), Path("copy.jpg"))]


def test_blank_pictures_and_empty_lists_are_no_duplicates() -> None:
    blank = [(Path("blank.png"), signature(np.full((50, 60, 3), 200, np.uint8)))]
    assert near_duplicates(blank, blank) == []
    assert near_duplicates([], blank) == []
