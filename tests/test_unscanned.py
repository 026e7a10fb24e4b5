"""What was never scanned is no area that is counted, and glass is never taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import tifffile
from conftest import Cells, Draw

from smearcount.arrays import Pixels
from smearcount.frame import frame_of
from smearcount.images import ArraySource, open_image
from smearcount.squares import measure_squares

UM = 0.25
SIDE = 1200


@pytest.fixture(scope="module")
def glass() -> npt.NDArray[np.int16]:
    return np.random.default_rng(0).integers(-6, 7, (SIDE, SIDE, 3)).astype(np.int16)


@pytest.fixture
def piece(scatter_discs: Draw, glass: npt.NDArray[np.int16]) -> tuple[Pixels, Any]:
    """A monolayer on glass with noise, and its boxes."""
    drawn = scatter_discs((SIDE, SIDE), 7.5 / UM, 3)
    return np.clip(drawn.pixels + glass, 0, 255).astype(np.uint8), drawn.boxes


def islands(piece: Any, colour: int, at: list[tuple[int, int]], canvas: int = 3600) -> tuple[Any, Any]:
    pixels, boxes = piece
    whole = np.full((canvas, canvas, 3), colour, np.uint8)
    for x, y in at:
        whole[y : y + SIDE, x : x + SIDE] = pixels
    return whole, np.concatenate([boxes + np.float32([x, y, x, y]) for x, y in at])


AT = [(130, 170), (2210, 150), (1010, 2070)]


@pytest.mark.parametrize("colour", [255, 0, 214])
def test_what_was_scanned_is_found_to_the_micrometre(piece: Any, cells: Cells, colour: int) -> None:
    pixels, boxes = islands(piece, colour, AT)
    scanned = measure_squares(ArraySource(pixels), UM, cells(boxes)).scanned
    truth = shapely.union_all([shapely.box(x, y, x + SIDE, y + SIDE) for x, y in AT])
    assert scanned is not None
    assert truth.difference(scanned.outline).area == 0
    assert scanned.outline.area == pytest.approx(truth.area, rel=0.01)


@pytest.mark.parametrize("colour", [255, 0])
@pytest.mark.parametrize("rule", ["corner", "all"])
def test_the_density_of_islands_is_that_of_one_of_them(piece: Any, cells: Cells, rule: str, colour: int) -> None:
    pixels, boxes = islands(piece, colour, AT)
    found = cells(boxes)
    frame = frame_of(ArraySource(pixels), found, UM, rule, None, whole=False)
    # Drawn cells keep away from the edge of their piece: without its squares, the density is somewhat higher.
    truth = len(piece[1]) / (SIDE * UM) ** 2
    assert frame.counted.sum() / frame.area_um2 == pytest.approx(truth, rel=0.05)
    assert frame.counted.sum() > (0.8 if colour else 0.5) * len(found)
    assert frame.counted.sum() + sum(frame.excluded.values()) == len(found)


def test_measured_areas_sum_to_what_was_scanned(piece: Any, cells: Cells) -> None:
    pixels, boxes = islands(piece, 255, AT)
    measures = measure_squares(ArraySource(pixels), UM, cells(boxes))
    assert measures.scanned is not None
    assert measures.scanned_um2 is not None
    assert measures.scanned_um2.sum() == pytest.approx(measures.scanned.outline.area * UM**2, rel=1e-4)
    assert (measures.scanned_um2 <= measures.grid.areas_um2 * 1.0001).all()


def test_empty_tiles_are_no_area(piece: Any, tmp_path: Path, cells: Cells) -> None:
    """A page of 15 x 15 tiles, of which only those of one piece have bytes."""
    pixels, boxes = piece
    tile, inner = 240, [(y, x) for y in range(5) for x in range(5)]
    filled = {(y + 5, x + 5): pixels[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y, x in inner}
    stored = (filled[y, x].tobytes() if (y, x) in filled else b"" for y in range(15) for x in range(15))
    options: Any = {"photometric": "rgb", "tile": (tile, tile), "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", stored, shape=(3600, 3600, 3), dtype="uint8", **options)
    source = open_image(tmp_path / "a.tif")
    assert "200 empty tiles shown white" in source.notes
    scanned = measure_squares(source, UM, cells(boxes + 5 * tile)).scanned
    assert scanned is not None
    assert scanned.outline.symmetric_difference(shapely.box(1200, 1200, 2400, 2400)).area < 0.01 * SIDE**2


def test_clear_and_clipped_glass_was_scanned(piece: Any, cells: Cells, glass: npt.NDArray[np.int16]) -> None:
    pixels, boxes = piece
    empty = (240 + glass).astype(np.uint8)
    assert measure_squares(ArraySource(empty), UM, cells([])).scanned is None
    few = np.arange(len(boxes)) % 3 == 0
    burnt = np.where(pixels > 180, 255, pixels).astype(np.uint8)
    for x0, y0, x1, y1 in boxes[~few].astype(int).tolist():
        burnt[y0 - 1 : y1 + 2, x0 - 1 : x1 + 2] = 255
    assert measure_squares(ArraySource(burnt), UM, cells(boxes[few])).scanned is None
