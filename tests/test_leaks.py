"""The leak check: the same field or cell is recognised however it was shrunk or cut out, another one never is."""

import csv
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from smearcount.cellsets import CellSet
from smearcount.datasets import data_root
from smearcount.images import ArraySource
from smearcount.patches import sample_window
from smearcount.simulate import SmearRecipe, render
from smearcount.training import leaks
from smearcount.training.leaks import cross_split_leaks, near_duplicates, same_cells, signature, without_leaks


def field(seed: int) -> np.ndarray:
    return render(SmearRecipe(width=480, height=360, um_per_px=0.16, red_cells=25, white_cells=1, seed=seed)).pixels


def shrunk(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)


def compressed(pixels: np.ndarray, quality: int = 40) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


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


WHITE = {"neutrophil": 3, "eosinophil": 1, "lymphocyte": 3, "monocyte": 1}


@lru_cache
def windows(um_per_px: float, side_um: float, shift_um: float, seed: int = 1) -> list[np.ndarray]:
    """The white cells of one scene, photographed at any magnification and cut out beside their middle."""
    size = (round(160 / um_per_px), round(120 / um_per_px))
    recipe = SmearRecipe(
        width=size[0], height=size[1], um_per_px=um_per_px, red_cells=110, white_cells=WHITE, noise=2.0, seed=seed
    )
    smear = render(recipe)
    source, rng = ArraySource(smear.pixels), np.random.default_rng(seed)
    cells = []
    for box, kind in zip(smear.boxes, smear.kinds, strict=True):
        if kind == "wbc":
            angle = rng.uniform(0, 2 * np.pi)
            x, y = (box[:2] + box[2:]) / 2 + shift_um / um_per_px * np.array([np.cos(angle), np.sin(angle)])
            px = round(side_um / um_per_px)
            cells.append(sample_window(source, (float(x), float(y)), px, px)[0])
    return cells


@pytest.mark.parametrize("change", [compressed, darker, shrunk], ids=lambda change: change.__name__)
def test_the_same_cell_is_found_at_another_scale_and_place(change: object) -> None:
    first, second = windows(0.16, 34, 0.0), [change(each) for each in windows(0.2, 31, 2.0)]
    assert len(first) == len(second) == sum(WHITE.values())
    order = np.random.default_rng(0).permutation(len(second))
    found = same_cells(first, [second[row] for row in order])
    assert {tuple(pair) for pair in found.tolist()} == {(int(order[row]), row) for row in range(len(order))}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_turned_and_mirrored_copies_are_found(quarters: int, mirrored: bool) -> None:
    first = windows(0.16, 34, 0.0)
    second = [compressed(turned(each, quarters, mirrored)) for each in first]
    assert same_cells(first, second).tolist() == [[row, row] for row in range(len(first))]


def test_other_cells_are_never_the_same_in_any_way() -> None:
    assert same_cells(windows(0.16, 34, 0.0), [turned(each, 1, True) for each in windows(0.16, 34, 0.0, 2)]).size == 0


def test_all_copies_of_a_cell_are_found_however_many_there_are() -> None:
    """Saved again and again at falling quality, upright or turned, among cells that look like it."""
    cell, *others = windows(0.16, 34, 0.0)
    copies = [compressed(cell, 95 - 3 * number) for number in range(13)]
    assert same_cells([*others, *copies], [cell]).tolist() == [[len(others) + row, 0] for row in range(13)]
    copies = [turned(each, 1, True) for each in copies]
    assert same_cells([*copies, *others], [cell]).tolist() == [[row, 0] for row in range(13)]


def turned(pixels: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    pixels = np.rot90(pixels, quarters)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def test_other_cells_are_never_the_same() -> None:
    assert same_cells(windows(0.16, 34, 0.0), windows(0.16, 34, 0.0, seed=2)).tolist() == []


def test_a_list_is_not_compared_with_itself_row_by_row() -> None:
    cells = windows(0.16, 34, 0.0)[:4]
    assert same_cells(cells, cells).tolist() == []
    doubled = [*cells, darker(cells[2])]
    assert sorted(map(tuple, same_cells(doubled, doubled).tolist())) == [(2, 4), (4, 2)]


def test_discs_of_one_shape_but_other_texture_are_not_the_same() -> None:
    rng, y, x = np.random.default_rng(7), *np.mgrid[:96, :96]
    inside = np.hypot(x - 48, y - 48) < 30

    def cell() -> np.ndarray:
        texture = cv2.GaussianBlur(rng.normal(size=(96, 96)), (0, 0), 2) * 80
        return np.repeat(np.where(inside, 100 + texture, 210).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)

    cells = [cell() for _ in range(6)]
    bodies = leaks._Bodies(leaks._thumbs_of(cells))
    assert (bodies.signatures @ bodies.signatures.T).min() > leaks.ALIKE
    assert same_cells(cells, cells).tolist() == []
    assert same_cells(cells, [compressed(each) for each in cells]).tolist() == [[row, row] for row in range(6)]


def cell_set() -> CellSet:
    """Eight cells for training, then six of them again, found a little beside, with others, for validation."""
    ours, theirs = windows(0.16, 34, 0.0), windows(0.16, 34, 1.0)[:6] + windows(0.16, 34, 0.0, seed=2)[:3]
    n = len(ours) + len(theirs)
    return CellSet(
        pixels=(*ours, *theirs),
        um_per_px=np.full(n, 0.16, np.float32),
        targets=np.ones((n, 1), np.bool_),
        codes=("neutrophil",),
        sources=np.full(n, "made"),
        groups=np.arange(n).astype("<U5"),
        splits=np.array(["train"] * len(ours) + ["val"] * len(theirs)),
        origins=np.array([f"cell {row}" for row in range(n)]),
    )


def test_training_cells_that_show_a_validation_cell_are_left_out_and_listed() -> None:
    cells = cell_set()
    assert cross_split_leaks(cells) == [(row, 8 + row) for row in range(6)]
    kept, pairs = without_leaks(cells)
    assert pairs == [(f"cell {row}", f"cell {8 + row}") for row in range(6)]
    assert kept.origins.tolist() == [f"cell {row}" for row in range(6, 17)]
    assert cross_split_leaks(kept) == []


def test_a_group_on_both_sides_is_a_leak_whatever_the_cells_show() -> None:
    # The last two of training and the last three of validation show nothing that the other side shows.
    cells = cell_set().take(np.array([6, 7, 14, 15, 16]))
    assert cross_split_leaks(cells) == []
    cells = replace(cells, groups=np.array(["a", "slide", "b", "slide", "slide"]))
    assert cross_split_leaks(cells) == [(1, 3)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_side_alone_has_no_leaks(split: str) -> None:
    cells = cell_set().split(split)
    kept, pairs = without_leaks(cells)
    assert len(kept) == len(cells)
    assert pairs == []


def test_shrunk_originals_are_found_among_real_fields_by_their_look() -> None:
    root = data_root()
    if root is None or not (root / "pbc8").is_dir():
        pytest.skip("pbc8 and txl_pbc are not at hand")
    with (root / "txl_pbc" / "wbc_types.csv").open(newline="") as stream:
        originals = {row["original"]: row["image"] for row in csv.DictReader(stream) if row["source"] == "PBC"}
    singles = sorted((root / "pbc8").glob("*/*.jpg"))
    named = [path for path in singles if path.name in originals]
    assert len(named) > 70
    # Pictures are known by their names, and others of the same microscope must not be taken for them.
    shown = [*named, *singles[::30]]
    fields = [root / "txl_pbc" / "images" / f"{originals[path.name]}.jpg" for path in named]
    small, large = ([(path, signature(cv2.imread(str(path)))) for path in paths] for paths in (shown, fields))
    pairs = {(single.name, field.stem) for single, field in near_duplicates(small, large)}
    assert {(path.name, originals[path.name]) for path in named} <= pairs
    assert len(pairs) <= len(named) + 1
