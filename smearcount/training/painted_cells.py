"""Adds painted cells to a set: inclusions on real red cells of every source, and the same cells with harmless traces.

The cells that carry the paint have no label of their own but "anything without an inclusion", or are normal ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from smearcount.arrays import Indices, Pixels
from smearcount.cellsets import CellSet, join
from smearcount.progress import Report
from smearcount.training.paint import PAINTED_CODES, paint, retouch

__all__ = ["PAINTED", "below_paint", "with_painted"]

PAINTED = "painted:"
"""Before the name of the collection that a painted cell is of."""


def with_painted(cells: CellSet, per_code: int, seed: int, report: Report | None = None) -> CellSet:
    """The set with `per_code` painted training cells of each painted code, and a sixth as many for validation.

    As many cells again get harmless traces of the painter's hand and keep what is known of them, so that the paint is
    not what gives an inclusion away. Cells are taken evenly from every source; `sources` become `painted:<source>`.
    Where too few cells suit, `report` takes a line that says how many there are.
    """
    codes = [code for code in PAINTED_CODES if code in cells.codes]
    rng = np.random.default_rng(seed)
    parts = [cells]
    for split, n in (("train", per_code), ("val", max(per_code // 6, 1))):
        for code in codes:
            parts.append(_painted(cells, _spread(cells, split, rng), (code, n), rng))
            if report and len(parts[-1]) < n:
                report(f"{code}: {len(parts[-1])} of {n} {split} cells painted, as no others suit")
        parts.append(_retouched(cells, _spread(cells, split, rng)[: n * len(codes)], rng))
    return join([part for part in parts if len(part)])


def _spread(cells: CellSet, split: str, rng: np.random.Generator) -> Indices:
    """Rows that can carry paint, shuffled, the sources taking turns."""
    plain = ~cells.targets[:, [cells.codes.index(code) for code in PAINTED_CODES if code in cells.codes]].any(axis=1)
    if "sickle_cell" in cells.codes:
        plain &= ~(cells.exact & (cells.labels == cells.codes.index("sickle_cell")))
    return cells.in_turns(rng.permutation(np.flatnonzero(plain & (cells.splits == split))))


def _painted(cells: CellSet, rows: Indices, wanted: tuple[str, int], rng: np.random.Generator) -> CellSet:
    code, n = wanted
    windows: list[Pixels] = []
    kept: list[int] = []
    for row in rows.tolist():
        if len(kept) == n:
            break
        picture = paint(cells.pixels[row], float(cells.um_per_px[row]), code, rng)
        if picture is not None:
            windows.append(picture)
            kept.append(row)
    targets = np.zeros((len(kept), len(cells.codes)), bool)
    targets[:, cells.codes.index(code)] = True
    return _renamed(replace(cells.take(np.array(kept, np.intp)), pixels=tuple(windows), targets=targets), code)


def _retouched(cells: CellSet, rows: Indices, rng: np.random.Generator) -> CellSet:
    part = cells.take(rows)
    pairs = zip(part.pixels, part.um_per_px.tolist(), strict=True)
    return _renamed(replace(part, pixels=tuple(retouch(window, scale, rng) for window, scale in pairs)), "retouched")


def below_paint(source: str, origin: str) -> tuple[str, str]:
    """Source and origin of the cell that a cell was painted on; its own where there is no paint."""
    plain = source.removeprefix(PAINTED)
    return plain, origin if plain == source else origin.rpartition(" ")[0]


def _renamed(part: CellSet, what: str) -> CellSet:
    return replace(
        part,
        sources=np.array([f"{PAINTED}{name}" for name in part.sources.tolist()], np.str_),
        origins=np.array([f"{origin} {what}" for origin in part.origins.tolist()], np.str_),
    )
