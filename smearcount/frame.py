"""Which cells enter the counts: the frame of the picture, the region the user drew, and what can't be counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from smearcount.countable import COUNTABLE, REASONS, CountableMap, countable_map
from smearcount.counting import Bools, counted_mask
from smearcount.detector import PixelSource
from smearcount.geometry import FloatArray
from smearcount.records import Detections
from smearcount.region import Region, counted_in_region

__all__ = ["Frame", "MAP_FROM_UM2", "frame_of"]

MAP_FROM_UM2 = 250_000.0
"""Area from which a picture is judged square by square: smaller ones are fields that a person chose."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The cells that count, and why the others do not.

    Attributes:
        counted: `(N,) bool`.
        area_um2: area that the counts refer to.
        excluded: cells left out, by reason.
        shares: share of the picture by reason, where it was judged square by square; empty elsewhere.
        squares: the map itself.
        notes: what was done to the region.
    """

    counted: Bools
    area_um2: float
    excluded: Mapping[str, int]
    shares: Mapping[str, float] = field(default_factory=dict)
    squares: CountableMap | None = None
    notes: tuple[str, ...] = ()


def frame_of(
    source: PixelSource, cells: Detections, um_per_px: float, edge_rule: str, region: Region | None, *, whole: bool
) -> Frame:
    """Decide which cells of a picture count.

    Args:
        source: the picture.
        cells: every cell found.
        um_per_px: its scale.
        edge_rule: `corner` or `all`.
        region: where to count; None for everywhere.
        whole: count also where the picture is too thick, too thin, out of focus, dirty or empty.

    Raises:
        ConfigError: the region lies outside the picture.
    """
    width, height = source.size_wh
    inside, area_um2 = counted_mask(cells.boxes, source.size_wh, um_per_px, edge_rule)
    judged = not whole and width * height * um_per_px**2 >= MAP_FROM_UM2
    if region is None and not judged:
        return Frame(inside, area_um2, {"edge": int((~inside).sum())})
    drawn = None if region is None else region.within(source.size_wh)
    squares = countable_map(source, um_per_px, cells) if judged else None
    allowed = drawn if squares is None else squares.region()
    if squares is not None and drawn is not None and allowed is not None:
        allowed = allowed.intersection(drawn)
    counted, area_um2 = counted_in_region(cells.boxes, source.size_wh, um_per_px, allowed, edge_rule)
    excluded = {"edge": int((~inside).sum())}
    left = inside & ~counted
    if drawn is not None:
        beyond = left & ~drawn.contains(cells.boxes[:, :2])
        excluded["outside the region"] = int(beyond.sum())
        left &= ~beyond
    if squares is not None:
        excluded |= _by_reason(squares, cells.boxes[left, :2])
    shares = squares.shares() if squares else {}
    return Frame(counted, area_um2, excluded, shares, squares, drawn.notes if drawn else ())


def _by_reason(squares: CountableMap, corners: FloatArray) -> dict[str, int]:
    rows, columns = squares.grid.squares_of(corners)
    n = np.bincount(squares.reasons[rows, columns], minlength=len(REASONS))
    return {name: int(count) for index, (name, count) in enumerate(zip(REASONS, n, strict=True)) if index != COUNTABLE}
