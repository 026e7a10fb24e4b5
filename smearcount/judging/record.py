"""What is judged: the probabilities that a classifier gave to labelled cells, wherever they came from."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from smearcount.arrays import Bools, Doubles, FloatArray, Indices, Pixels, Strings

__all__ = ["Judged"]

SMALLEST = float(np.finfo(np.float32).eps)
"""Probabilities below the resolution of float32 near 1 enter logarithms as this, which caps a loss at 15.9."""


@dataclass(frozen=True, eq=False)
class Judged:
    """N named cells with their labels, in parallel.

    Attributes:
        probs: `(N, K) float32`, rows sum to 1.
        targets: `(N, K) bool`, the codes that a cell may be: one True where the label is exact, several where it is
            coarser than the codes.
        codes: the K codes.
        origins: `(N,)` file and place of each cell.
        sources: `(N,)` collection of each cell.
        views: N pictures `(S, S, 3) uint8 RGB`, what the network saw; any sequence that gives them when asked.
        groups: `(N,)` slide, patient or photograph of each cell; None where the cells are taken as independent.
    """

    probs: FloatArray
    targets: Bools
    codes: tuple[str, ...]
    origins: Strings
    sources: Strings
    views: Sequence[Pixels]
    groups: Strings | None = None

    def __post_init__(self) -> None:
        """Check that everything is parallel, and that rows are distributions."""
        shape = (len(self.probs), len(self.codes))
        for name, array, dtype in (("probs", self.probs, np.float32), ("targets", self.targets, np.bool_)):
            if array.shape != shape or array.dtype != dtype:
                kind = np.dtype(dtype).name
                raise ValueError(f"{name}: expected {kind} of shape {shape}, got {array.dtype} of {array.shape}")
        columns: dict[str, Sized] = {"origins": self.origins, "sources": self.sources, "views": self.views}
        if self.groups is not None:
            columns["groups"] = self.groups
        wrong = {name: len(column) for name, column in columns.items() if len(column) != shape[0]}
        if wrong:
            raise ValueError(f"expected {shape[0]} rows of everything, got {wrong}")
        if len(set(self.codes)) != shape[1] or shape[1] < 2:
            raise ValueError(f"codes: expected two or more, each once, got {list(self.codes)}")
        if not self.targets.any(axis=1).all():
            raise ValueError("targets: a cell without any code")
        # A NaN fails both comparisons.
        if not ((self.probs >= 0).all() and (np.abs(self.probs.sum(axis=1) - 1) < 1e-3).all()):
            raise ValueError("probs: expected rows of 0 or more that sum to 1")

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.probs)

    @cached_property
    def exact(self) -> Bools:
        """`(N,)`, which cells have a single code."""
        return np.asarray(self.targets.sum(axis=1) == 1)

    @cached_property
    def predictions(self) -> Indices:
        """`(N,)` index of the most probable code, the first of equals."""
        return np.asarray(self.probs.argmax(axis=1), np.intp)

    @cached_property
    def right(self) -> Bools:
        """`(N,)`, whether the most probable code is an allowed one."""
        return np.asarray(self.targets[np.arange(len(self)), self.predictions])

    @cached_property
    def losses(self) -> Doubles:
        """`(N,)` -log(sum of the probabilities of the allowed codes), the loss that training minimises."""
        allowed = np.where(self.targets, self.probs.astype(np.float64), 0).sum(axis=1)
        # Subtracted from 0, since minus zero would be printed with its sign.
        return np.asarray(0 - np.log(np.clip(allowed, SMALLEST, 1)), np.float64)

    def worst(self, n: int) -> Indices:
        """Rows of the `n` largest losses, largest first; of equals the first row."""
        return np.asarray(np.argsort(-self.losses, kind="stable")[:n], np.intp)

    def truth(self, row: int) -> str:
        """The code of a cell, or its codes joined by `|` where it may be several."""
        return "|".join(code for code, allowed in zip(self.codes, self.targets[row], strict=True) if allowed)
