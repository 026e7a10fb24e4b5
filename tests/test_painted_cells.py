"""Sets with painted cells: how many, from which cells, with which labels, and on which side of the split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from smearcount.arrays import Pixels
from smearcount.cellsets import CellSet
from smearcount.training.paint import PAINTED_CODES
from smearcount.training.painted_cells import with_painted

CODES = ("normocyte", "target_cell", "sickle_cell", *PAINTED_CODES)
ANY_SHAPE = (True, True, True, False, False, False, False)
UM_PER_PX = 0.12
SIDE = 150
SOURCES = ["many"] * 16 + ["some"] * 6 + ["few"] * 2


def red_cell(rng: np.random.Generator) -> Pixels:
    """A round cell with a pallor and grain in the middle of a window of 18 um."""
    away = np.hypot(*(np.indices((SIDE, SIDE)) + 0.5 - SIDE / 2)) * UM_PER_PX
    disc = np.clip((rng.uniform(3.4, 3.9) - away) / 0.3 + 0.5, 0, 1) * (1 - 0.5 * np.exp(-((away / 1.5) ** 2)))
    light, dark = np.log((228.0, 220.0, 212.0)), np.log((196.0, 130.0, 140.0))
    picture = np.exp(light - disc[..., None] * (light - dark)) + rng.normal(0, 1.5, (SIDE, SIDE, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def drawn(**changes: Any) -> CellSet:
    """24 training cells of three sources and 12 validation cells, of any shape but without an inclusion."""
    rng = np.random.default_rng(0)
    n = len(SOURCES) + 12
    names = np.array([f"cell {row}" for row in range(n)])
    values: dict[str, Any] = {
        "pixels": tuple(red_cell(rng) for _ in range(n)),
        "um_per_px": np.full(n, UM_PER_PX, np.float32),
        "targets": np.tile(np.array(ANY_SHAPE), (n, 1)),
        "codes": CODES,
        "sources": np.array([*SOURCES, *["many"] * 12]),
        "groups": names,
        "splits": np.array(["train"] * len(SOURCES) + ["val"] * 12),
        "origins": names,
    }
    return CellSet(**{**values, **changes})


@pytest.fixture(scope="module")
def cells() -> CellSet:
    return drawn()


@pytest.fixture(scope="module")
def painted(cells: CellSet) -> CellSet:
    return with_painted(cells, 6, seed=1)


def made(painted: CellSet, what: str) -> CellSet:
    """The cells that were added as a code, or as `retouched`."""
    return painted.take(np.array([origin.endswith(f" {what}") for origin in painted.origins.tolist()]))


def test_the_cells_themselves_stay_as_they_are(cells: CellSet, painted: CellSet) -> None:
    first = painted.take(np.arange(len(cells)))
    for ours, theirs in zip(first.pixels, cells.pixels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(first.targets, cells.targets)
    for name in ("sources", "groups", "splits", "origins"):
        assert getattr(first, name).tolist() == getattr(cells, name).tolist()


@pytest.mark.parametrize("code", PAINTED_CODES)
def test_so_many_of_each_code_and_a_sixth_for_validation(painted: CellSet, code: str) -> None:
    part = made(painted, code)
    assert Counter(part.splits.tolist()) == {"train": 6, "val": 1}
    assert part.exact.all()
    assert {CODES[label] for label in part.labels} == {code}
    # The sources take turns, however unequal they are.
    assert Counter(part.split("train").sources.tolist()) == {f"painted:{name}": 2 for name in ("many", "some", "few")}


def test_as_many_are_retouched_and_keep_their_label(cells: CellSet, painted: CellSet) -> None:
    part = made(painted, "retouched")
    assert Counter(part.splits.tolist()) == {"train": 24, "val": 4}
    np.testing.assert_array_equal(part.targets, np.tile(np.array(ANY_SHAPE), (28, 1)))
    assert Counter(part.split("train").sources.tolist()) == {"painted:many": 16, "painted:some": 6, "painted:few": 2}
    assert len(painted) == len(cells) + 4 * 7 + 28


def test_paint_is_on_the_cell_it_is_said_to_be_on(cells: CellSet, painted: CellSet) -> None:
    """Each new cell belongs to the group, the side and the picture of the cell that carries the paint."""
    rows = {origin: row for row, origin in enumerate(cells.origins.tolist())}
    unchanged = 0
    for row in range(len(cells), len(painted)):
        of = rows[" ".join(painted.origins[row].split()[:2])]
        assert painted.groups[row] == cells.groups[of]
        assert painted.splits[row] == cells.splits[of]
        assert painted.sources[row] == f"painted:{cells.sources[of]}"
        assert painted.um_per_px[row] == cells.um_per_px[of]
        away = np.abs(painted.pixels[row].astype(int) - cells.pixels[of]).max(axis=2)
        # The corners show whose window it is; polychromatic cells alone are larger than before.
        assert away[:20, :20].max() == 0
        unchanged += not away.any()
        if not painted.origins[row].endswith("retouched"):
            assert away.any()
    # Nearly all of the retouched cells differ from what they were, or paint alone would tell an inclusion.
    assert unchanged <= 0.15 * 28


def test_the_seed_decides_on_everything(cells: CellSet, painted: CellSet) -> None:
    again, other = with_painted(cells, 6, seed=1), with_painted(cells, 6, seed=2)
    assert again.origins.tolist() == painted.origins.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(again.pixels, painted.pixels, strict=True))
    assert other.origins.tolist() != painted.origins.tolist()


def test_sickles_and_cells_with_inclusions_carry_no_paint(cells: CellSet) -> None:
    targets = np.zeros((len(cells), len(CODES)), bool)
    targets[:, CODES.index("normocyte")] = True
    targets[:8] = False
    targets[:4, CODES.index("sickle_cell")] = True
    targets[4:8, CODES.index("howell_jolly_body")] = True
    painted = with_painted(replace(cells, targets=targets), 6, seed=1)
    used = {" ".join(origin.split()[:2]) for origin in painted.origins[len(cells) :].tolist()}
    assert used
    assert used.isdisjoint({f"cell {row}" for row in range(8)})
    assert {CODES[label] for label in made(painted, "retouched").labels} == {"normocyte"}


def test_without_codes_to_paint_nothing_is_added(cells: CellSet) -> None:
    shapes = replace(cells, targets=cells.targets[:, :3], codes=CODES[:3])
    assert with_painted(shapes, 6, seed=1).origins.tolist() == cells.origins.tolist()


def test_only_the_codes_of_the_set_are_painted(cells: CellSet) -> None:
    columns = [0, 1, 2, CODES.index("reticulocyte")]
    some = replace(cells, targets=cells.targets[:, columns], codes=tuple(CODES[column] for column in columns))
    painted = with_painted(some, 6, seed=1)
    assert painted.codes == some.codes
    assert Counter(origin.split()[-1] for origin in painted.origins[len(cells) :].tolist()) == {
        "reticulocyte": 7,
        "retouched": 7,
    }


def test_what_holds_no_red_cell_is_not_painted(cells: CellSet) -> None:
    """Windows without a cell stay as they are under the brush: the number painted says so."""
    bare, told = tuple(np.full((SIDE, SIDE, 3), 220, np.uint8) for _ in range(len(cells))), list[str]()
    painted = with_painted(replace(cells, pixels=bare), 6, seed=1, report=told.append)
    assert told[0] == "howell_jolly_body: 0 of 6 train cells painted, as no others suit"
    assert len(told) == 2 * len(PAINTED_CODES)
    with_painted(cells, 6, seed=1, report=told.append)
    assert len(told) == 2 * len(PAINTED_CODES)
    assert not any(len(made(painted, code)) for code in PAINTED_CODES)
    assert all((window == 220).all() for window in painted.pixels)


def test_long_origins_are_not_cut_short(cells: CellSet) -> None:
    deep = np.array(["folder/" * 60 + f"cell {row}" for row in range(len(cells))])
    painted = with_painted(replace(cells, origins=deep), 2, seed=1)
    assert all(origin.split()[-1] in (*PAINTED_CODES, "retouched") for origin in painted.origins[len(cells) :].tolist())
