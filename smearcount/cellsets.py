"""Labelled single cells, whatever they were cut from: the record that training, judging and mending share.

A cell is kept as a square window that is larger than the patch of its classifier, so that it can be turned and shifted
in training without inventing pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import Bools, FloatArray, Indices, Pixels, Strings
from smearcount.geometry import resize_rgb
from smearcount.images import ReadLimits, open_image

__all__ = ["CellSet", "Kept", "PictureWindow", "Windows", "join", "pixels_of", "side_of"]


@dataclass(frozen=True)
class PictureWindow:
    """A window that is read from its picture when it is asked for.

    Attributes:
        path: of the picture.
        square: left, top and side of its part, in pixels of the picture.
        side_px: of the window that the part is resampled to.
    """

    path: Path
    square: tuple[int, int, int]
    side_px: int

    def read(self) -> Pixels:
        """The window `(side_px, side_px, 3) uint8 RGB`.

        Raises:
            ImageError: the picture is gone or damaged.
        """
        left, top, side = self.square
        part = open_image(self.path, ReadLimits(min_side_px=1)).read(left, top, side, side)
        return resize_rgb(part, self.side_px, self.side_px)


Kept = Pixels | PictureWindow
"""A window `(S, S, 3) uint8 RGB`, or where it can be read."""


def pixels_of(window: Kept) -> Pixels:
    """The pixels of a window, read where they are not at hand."""
    return window.read() if isinstance(window, PictureWindow) else window


def side_of(window: Kept) -> int:
    """The side of a window in pixels, without reading it."""
    return window.side_px if isinstance(window, PictureWindow) else len(window)


class Windows(Sequence[Pixels]):
    """Square windows `(S, S, 3) uint8 RGB`, each of its own side S; some are only read when they are asked for.

    Raises:
        ValueError: a window is of another shape or type.
    """

    def __init__(self, kept: Iterable[Kept]) -> None:
        self._kept = tuple(kept)
        arrays = [each for each in self._kept if not isinstance(each, PictureWindow)]
        odd = {(w.shape, w.dtype.name) for w in arrays if w.shape != (len(w), len(w), 3) or w.dtype != np.uint8}
        if odd:
            raise ValueError(f"pixels: expected windows (S, S, 3) uint8, got {sorted(odd)}")

    @classmethod
    def of(cls, windows: Sequence[Pixels]) -> Windows:
        """Any windows as such."""
        return windows if isinstance(windows, Windows) else cls(windows)

    @classmethod
    def joined(cls, parts: Iterable[Sequence[Pixels]]) -> Windows:
        """Those of several, one after the other."""
        return cls(window for part in parts for window in cls.of(part)._kept)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._kept)

    def __getitem__(self, row: Any) -> Any:
        """The pixels of a row, or a list of those of a slice."""
        return [pixels_of(each) for each in self._kept[row]] if isinstance(row, slice) else pixels_of(self._kept[row])

    def take(self, rows: Indices) -> Windows:
        """The windows of the given rows, in that order."""
        return Windows(self._kept[row] for row in rows)

    @property
    def sides(self) -> Indices:
        """The side of each window in pixels, `(N,)`."""
        return np.array([side_of(each) for each in self._kept], np.intp)


_WORDS = ("sources", "groups", "splits", "origins")


@dataclass(frozen=True, eq=False)
class CellSet:
    """N labelled cells, in parallel.

    Attributes:
        pixels: N windows `(S, S, 3) uint8 RGB`, each of its own side S, centred on the cell; see `Windows`.
        um_per_px: `(N,) float32`, scale of each window.
        targets: `(N, K) bool`, the codes a cell may be: one True where the label is exact, several where it is coarser
            than the taxonomy, such as "neither round nor sickle".
        codes: the K codes.
        sources: `(N,)` name of the collection of each cell.
        groups: `(N,)` what must stay on one side of a split: a slide, a photograph, an original picture; in folders of
            classes the collection and the name of the group, or of the picture where nobody grouped it.
        splits: `(N,)` `train` or `val`.
        origins: `(N,)` file and place of each cell, for reports.
    """

    pixels: Sequence[Pixels]
    um_per_px: FloatArray
    targets: Bools
    codes: tuple[str, ...]
    sources: Strings
    groups: Strings
    splits: Strings
    origins: Strings

    def __post_init__(self) -> None:
        """Check that everything is parallel, that windows are square, and that each cell may be something."""
        n = len(Windows.of(self.pixels))
        lengths = {name: len(getattr(self, name)) for name in ("um_per_px", "sources", "groups", "splits", "origins")}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong or self.targets.shape != (n, len(self.codes)):
            raise ValueError(f"expected {n} cells of {len(self.codes)} codes, got {wrong or self.targets.shape}")
        if n and not self.targets.any(axis=1).all():
            raise ValueError("targets: a cell without any code")

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.pixels)

    def take(self, rows: Indices | Bools) -> CellSet:
        """The cells of the given indices or mask, in that order."""
        index = np.asarray(np.flatnonzero(rows) if rows.dtype == np.bool_ else rows, np.intp)
        return CellSet(
            Windows.of(self.pixels).take(index),
            self.um_per_px[index],
            self.targets[index],
            self.codes,
            self.sources[index],
            self.groups[index],
            self.splits[index],
            self.origins[index],
        )

    @property
    def sides_px(self) -> Indices:
        """`(N,)`, the side of each window."""
        return Windows.of(self.pixels).sides

    @property
    def exact(self) -> Bools:
        """`(N,)`, which cells have a single code."""
        return np.asarray(self.targets.sum(axis=1) == 1)

    @property
    def labels(self) -> Indices:
        """`(N,)` index of the code of each cell; of the first one where a cell may be several."""
        return np.asarray(self.targets.argmax(axis=1), np.intp)

    @property
    def shared_groups(self) -> Strings | None:
        """The groups `(N,)`; None where each is a single cell."""
        return None if len(np.unique(self.groups)) == len(self) else self.groups

    def in_turns(self, rows: Indices) -> Indices:
        """Rows `(M,)` in their order, but the sources taking turns: the first of each, then the second of each."""
        turn = np.zeros(len(rows), np.intp)
        for source in np.unique(self.sources[rows]):
            members = self.sources[rows] == source
            turn[members] = np.arange(members.sum())
        return np.asarray(rows[np.argsort(turn, kind="stable")], np.intp)

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
        Windows.joined(part.pixels for part in parts),
        np.concatenate([part.um_per_px for part in parts]),
        np.concatenate([part.targets for part in parts]),
        parts[0].codes,
        *(np.concatenate([np.asarray(getattr(part, name), np.str_) for part in parts]) for name in _WORDS),
    )
