"""Labelled single cells, whatever they were cut from: the record that training, judging and mending share.

A cell is kept as a square window that is larger than the patch of its classifier, so that it can be turned and shifted
in training without inventing pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CellSet", "join"]

Pixels = npt.NDArray[np.uint8]

_WORDS = ("sources", "groups", "splits", "origins")


@dataclass(frozen=True, eq=False)
class CellSet:
    """N labelled cells, in parallel.

    Attributes:
        pixels: N windows `(S, S, 3) uint8 RGB`, each of its own side S, centred on the cell.
        um_per_px: `(N,) float32`, scale of each window.
        targets: `(N, K) bool`, the codes a cell may be: one True where the label is exact, several where it is coarser
            than the taxonomy, such as "neither round nor sickle".
        codes: the K codes.
        sources: `(N,)` name of the collection of each cell.
        groups: `(N,)` what must stay on one side of a split: a slide, a photograph, an original picture.
        splits: `(N,)` `train` or `val`.
        origins: `(N,)` file and place of each cell, for reports.
    """

    pixels: tuple[Pixels, ...]
    um_per_px: npt.NDArray[np.float32]
    targets: npt.NDArray[np.bool_]
    codes: tuple[str, ...]
    sources: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    origins: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        """Check that everything is parallel, that windows are square, and that each cell may be something."""
        n = len(self.pixels)
        odd = {(w.shape, w.dtype.name) for w in self.pixels if w.shape != (len(w), len(w), 3) or w.dtype != np.uint8}
        if odd:
            raise ValueError(f"pixels: expected windows (S, S, 3) uint8, got {sorted(odd)}")
        lengths = {name: len(getattr(self, name)) for name in ("um_per_px", "sources", "groups", "splits", "origins")}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong or self.targets.shape != (n, len(self.codes)):
            raise ValueError(f"expected {n} cells of {len(self.codes)} codes, got {wrong or self.targets.shape}")
        if n and not self.targets.any(axis=1).all():
            raise ValueError("targets: a cell without any code")

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.pixels)

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> CellSet:
        """The cells of the given indices or mask, in that order."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return CellSet(
            tuple(self.pixels[i] for i in index),
            self.um_per_px[index],
            self.targets[index],
            self.codes,
            self.sources[index],
            self.groups[index],
            self.splits[index],
            self.origins[index],
        )

    @property
    def exact(self) -> npt.NDArray[np.bool_]:
        """`(N,)`, which cells have a single code."""
        return np.asarray(self.targets.sum(axis=1) == 1)

    @property
    def labels(self) -> npt.NDArray[np.intp]:
        """`(N,)` index of the code of each cell; of the first one where a cell may be several."""
        return np.asarray(self.targets.argmax(axis=1), np.intp)

    @property
    def shared_groups(self) -> npt.NDArray[np.str_] | None:
        """The groups `(N,)`, where a picture that nobody grouped is one by itself; None where each is a single cell."""
        alone = np.char.add(np.char.add(self.sources, "/"), self.groups)
        groups = np.asarray(np.where(self.groups == self.origins, alone, self.groups), np.str_)
        return None if len(np.unique(groups)) == len(self) else groups

    def split(self, name: str) -> CellSet:
        """The cells of `train` or `val`."""
        return self.take(self.splits == name)


def join(parts: Sequence[CellSet]) -> CellSet:
    """Several sets of the same codes as one.

    Raises:
        ValueError: there is none, or their codes differ.
    """
    if len({part.codes for part in parts}) != 1:
        raise ValueError(f"expected sets of the same codes, got {[part.codes for part in parts]}")
    return CellSet(
        tuple(window for part in parts for window in part.pixels),
        np.concatenate([part.um_per_px for part in parts]),
        np.concatenate([part.targets for part in parts]),
        parts[0].codes,
        *(np.concatenate([np.asarray(getattr(part, name), np.str_) for part in parts]) for name in _WORDS),
    )
