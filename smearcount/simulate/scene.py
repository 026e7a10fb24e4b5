"""Which cells lie where, in micrometres: placed by chance, resampled until no truth about them is arguable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import cv2
import numpy as np

from smearcount.arrays import Doubles, Pixels
from smearcount.errors import ConfigError
from smearcount.simulate.outlines import Outline, outline_of
from smearcount.simulate.recipe import SmearRecipe

__all__ = ["Cell", "overlap_areas", "place_cells"]

_RASTER_UM = 0.08
_BUCKET_UM = 12.0
_GAP_UM = {"rbc": 0.3, "wbc": 0.4, "platelet": 0.45}
_MIN_INSIDE = {"rbc": 0.33, "wbc": 0.6, "platelet": 0.75}
_MAX_COVERED = 0.6
_TRIES = 4000
_PATIENCE = 50


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of the scene.

    Attributes:
        kind: `rbc`, `wbc` or `platelet`.
        code: of the taxonomy.
        outline: `(M, 2)` um around the centre.
        centre: x, y in um from the top-left corner of the field.
        seed: of all that is random in its look.
    """

    kind: str
    code: str
    outline: Outline
    centre: tuple[float, float]
    seed: tuple[int, ...]

    @cached_property
    def outline_um(self) -> Outline:
        """The outline in um of the field, `(M, 2)`."""
        return self.outline + self.centre

    @cached_property
    def reach(self) -> float:
        """Largest distance of the outline from the centre in um."""
        return float(np.hypot(*self.outline.T).max())


@dataclass(eq=False)
class _Scene:
    """Placed cells in buckets of the plane, with the share of each that others cover."""

    size_um: tuple[float, float]
    cells: list[Cell] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    buckets: defaultdict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))

    def near(self, cell: Cell) -> Iterator[int]:
        column, row = _bucket(cell.centre)
        for dx in (-1, 0, 1, 2, -2):
            for dy in (-1, 0, 1, 2, -2):
                yield from self.buckets.get((column + dx, row + dy), ())

    def add(self, cell: Cell, shares: dict[int, tuple[float, float]]) -> None:
        self.buckets[_bucket(cell.centre)].append(len(self.cells))
        self.cells.append(cell)
        self.covered.append(sum(own for own, _ in shares.values()))
        for other, (_, its) in shares.items():
            self.covered[other] += its


def place_cells(recipe: SmearRecipe, seed: int) -> list[Cell]:
    """The scene of a recipe: white cells, then platelets, then red cells.

    Every cell has at least a third of its area in the field (white cells and platelets more), and at most 60 %
    of a red cell lies under or over others. White cells and platelets are covered by nothing.

    Raises:
        ConfigError: the field has no room for so many cells.
    """
    rng = np.random.default_rng([seed, 1])
    scene = _Scene(recipe.field_um)
    plan = [("wbc", code) for code in _white_codes(recipe, rng)]
    plan += [("platelet", "platelet")] * recipe.platelets
    codes = list(recipe.red_mix)
    weights = np.array(list(recipe.red_mix.values()))
    plan += [("rbc", str(code)) for code in rng.choice(codes, recipe.red_cell_number, p=weights / weights.sum())]
    for kind, code in plan:
        _place(scene, recipe, (kind, code, (seed, 2, len(scene.cells))), rng)
    return scene.cells


def overlap_areas(first: Outline, second: Outline) -> tuple[float, float, float]:
    """Areas in um2 of two outlines `(M, 2)` and of their intersection, on a raster of 0.08 um."""
    low = np.floor(np.minimum(first.min(axis=0), second.min(axis=0)) / _RASTER_UM) - 1
    high = np.maximum(first.max(axis=0), second.max(axis=0)) / _RASTER_UM + 2
    shape = (int(high[1] - low[1]), int(high[0] - low[0]))
    one, two = (_filled(outline, low, shape) for outline in (first, second))
    pixel = _RASTER_UM**2
    return (cv2.countNonZero(one) * pixel, cv2.countNonZero(two) * pixel, cv2.countNonZero(one & two) * pixel)


def _filled(outline: Outline, low: Doubles, shape: tuple[int, int]) -> Pixels:
    mask = np.zeros(shape, np.uint8)
    points = np.round((outline / _RASTER_UM - low - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [points], 1, shift=4)
    return mask


def _white_codes(recipe: SmearRecipe, rng: np.random.Generator) -> list[str]:
    if isinstance(recipe.white_cells, dict):
        return [code for code, n in recipe.white_cells.items() for _ in range(n)]
    weights = np.array(list(recipe.white_mix.values()))
    drawn = rng.choice(list(recipe.white_mix), recipe.white_cells, p=weights / weights.sum())
    return [str(code) for code in drawn]


def _place(
    scene: _Scene, recipe: SmearRecipe, what: tuple[str, str, tuple[int, ...]], rng: np.random.Generator
) -> None:
    kind, code, key = what
    joins = rng.random() < {"rbc": recipe.clumped, "platelet": recipe.platelet_clumps}.get(kind, 0)
    limit = recipe.overlap if joins and kind == "rbc" else 0.0
    for attempt in range(_TRIES):
        outline = outline_of(code, rng)
        beside = joins and attempt < _TRIES // 2
        cell = Cell(kind, code, outline, (0.0, 0.0), key)
        cell = replace(cell, centre=_position(scene, cell, beside, rng))
        if not _inside_enough(cell, scene.size_um):
            continue
        shares = _shares(scene, cell, limit)
        if shares is not None and (shares or not (beside and limit) or attempt > _PATIENCE):
            scene.add(cell, shares)
            return
    number = sum(c.kind == kind for c in scene.cells)
    raise ConfigError(f"no room for {kind} {number + 1} after {_TRIES} tries; lower the density or raise clumped")


def _position(scene: _Scene, cell: Cell, beside: bool, rng: np.random.Generator) -> tuple[float, float]:
    reach = cell.reach
    if beside and scene.cells and scene.cells[-1].kind == cell.kind:
        same = [i for i in rng.integers(0, len(scene.cells), 8) if scene.cells[i].kind == cell.kind]
        other = scene.cells[same[0]] if same else scene.cells[-1]
        near = (0.55, 1.0) if cell.kind == "rbc" else (1.0, 1.4)
        distance, angle = (rng.uniform(*near) * (reach + other.reach), rng.uniform(0, 2 * np.pi))
        return other.centre[0] + distance * np.cos(angle), other.centre[1] + distance * np.sin(angle)
    x, y = (float(rng.uniform(-reach, size + reach)) for size in scene.size_um)
    return x, y


def _inside_enough(cell: Cell, size_um: tuple[float, float]) -> bool:
    low, high = cell.outline_um.min(axis=0), cell.outline_um.max(axis=0)
    if (low >= 0).all() and (high <= size_um).all():
        return True
    width, height = size_um
    window = np.array([(0, 0), (width, 0), (width, height), (0, height)])
    clipped = np.clip(window, low - 1, high + 1)
    own, _, inside = overlap_areas(cell.outline_um, clipped)
    return inside >= _MIN_INSIDE[cell.kind] * own


def _shares(scene: _Scene, cell: Cell, limit: float) -> dict[int, tuple[float, float]] | None:
    """Overlap with each neighbour as shares of the own and of the other's area; None where it is not allowed."""
    shares = {}
    reach = cell.reach
    for index in scene.near(cell):
        other = scene.cells[index]
        may_overlap = limit if cell.kind == other.kind == "rbc" else 0.0
        gap = 0.0 if may_overlap else max(_GAP_UM[cell.kind], _GAP_UM[other.kind])
        apart = float(np.hypot(cell.centre[0] - other.centre[0], cell.centre[1] - other.centre[1]))
        if apart >= reach + other.reach + gap:
            continue
        own, its, both = overlap_areas(cell.outline_um, _grown(other, gap))
        if both > may_overlap * min(own, its):
            return None
        if both:
            shares[index] = (both / own, both / its)
    if sum(own for own, _ in shares.values()) > _MAX_COVERED:
        return None
    return None if any(scene.covered[i] + its > _MAX_COVERED for i, (_, its) in shares.items()) else shares


def _grown(cell: Cell, gap: float) -> Outline:
    """The outline moved outwards by `gap` um, radially."""
    if not gap:
        return cell.outline_um
    radius = np.hypot(*cell.outline.T)[:, None]
    return cast(Outline, cell.outline * (1 + gap / np.maximum(radius, gap)) + cell.centre)


def _bucket(centre: tuple[float, float]) -> tuple[int, int]:
    return int(centre[0] // _BUCKET_UM), int(centre[1] // _BUCKET_UM)
