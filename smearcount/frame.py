"""Which cells enter the counts: the frame of the picture, the region the user drew, and what can't be counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from smearcount.arrays import Bools, FloatArray
from smearcount.countable import COUNTABLE, REASONS, CountableMap, countable_map
from smearcount.counting import EDGE_INSET_PX, counted_mask
from smearcount.images import PixelSource
from smearcount.light.field_stop import counted_in_view
from smearcount.records import Detections
from smearcount.region import LARGE_UM2, Region, common_part, counted_area_um2, counted_in_region

__all__ = ["Frame", "frame_of"]

SCAN_EDGE_UM = 3.0
"""How far within what was scanned the counts begin: up to there the edge is that of squares of a lossy compression."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The cells that count, and why the others do not.

    Attributes:
        counted: `(N,) bool`.
        area_um2: area that the counts refer to.
        excluded: cells left out, by reason.
        shares: share of the picture, or of the squares of the region, by reason; empty where none were judged.
        squares: the map itself.
        notes: what was done to the view and the region.
    """

    counted: Bools
    area_um2: float
    excluded: Mapping[str, int]
    shares: Mapping[str, float] = field(default_factory=dict)
    squares: CountableMap | None = None
    notes: tuple[str, ...] = ()

    @property
    def judged_um2(self) -> float:
        """Area that the shares refer to; 0 where none was judged."""
        return float(self.squares.judged_um2.sum()) if self.squares else 0.0


def frame_of(
    source: PixelSource,
    cells: Detections,
    um_per_px: float,
    edge_rule: str,
    region: Region | None,
    *,
    view: Region | None = None,
    whole: bool,
) -> Frame:
    """Decide which cells of a picture count.

    Args:
        source: the picture.
        cells: every cell found.
        um_per_px: its scale.
        edge_rule: `corner` or `all`.
        region: where to count, within the picture; None for everywhere.
        view: what the field stop leaves of the picture; None for all of it.
        whole: count also where the picture is too thick, too thin, out of focus, dirty or empty.
    """
    width, height = source.size_wh
    inside, area_um2 = counted_mask(cells.boxes, source.size_wh, um_per_px, edge_rule)
    judged = not whole and width * height * um_per_px**2 >= LARGE_UM2
    if region is None and view is None and not judged:
        return Frame(inside, area_um2, {"edge": int((~inside).sum())})
    squares = countable_map(source, um_per_px, cells, region) if judged else None
    limits = [region] * (region is not None) + ([squares.region()] if squares else [])
    counted = inside
    if limits:
        counted, area_um2 = counted_in_region(cells.boxes, source.size_wh, um_per_px, common_part(limits), edge_rule)
    inset_px, seen_part = EDGE_INSET_PX, view
    if view is None and squares is not None:
        inset_px, seen_part = SCAN_EDGE_UM / um_per_px, squares.scanned
    if seen_part is not None:
        within, seen = counted_in_view(cells.boxes, seen_part, um_per_px, edge_rule, inset_px)
        inside, counted = inside & within, counted & within
        area_um2 = counted_area_um2(source.size_wh, um_per_px, common_part([*limits, seen]), edge_rule)
    excluded = {"edge": int((~inside).sum())}
    left = inside & ~counted
    if region is not None:
        beyond = left & ~region.contains(cells.boxes[:, :2])
        excluded["outside the region"] = int(beyond.sum())
        left &= ~beyond
    if squares is not None:
        excluded |= _by_reason(squares, cells.boxes[left, :2])
    shares = squares.shares() if squares else {}
    notes = tuple(note for each in (view, region) if each is not None for note in each.notes)
    return Frame(counted, area_um2, excluded, shares, squares, notes)


def _by_reason(squares: CountableMap, corners: FloatArray) -> dict[str, int]:
    rows, columns = squares.grid.squares_of(corners)
    n = np.bincount(squares.reasons[rows, columns], minlength=len(REASONS))
    return {name: int(count) for index, (name, count) in enumerate(zip(REASONS, n, strict=True)) if index != COUNTABLE}
