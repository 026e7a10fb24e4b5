"""Intervals of the figures of a classifier: confusion matrices of drawn groups of cells, and figures derived from them.

Everything is computed from K x K tables of cells, true code by predicted code, so that the figures of a thousand draws
cost one pass each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, Indices
from smearcount.counting import binomial_limits

__all__ = ["DRAWS", "FEWEST_GROUPS", "Draws", "Rows", "draw", "interval", "macro", "per_class", "share_limits"]

DRAWS = 1000

FEWEST_GROUPS = 5
"""Of fewer groups, draws repeat themselves and say little of how groups differ: no interval."""

_ALIKE = 1e-9
"""Figures that differ by less are the same."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Cells with an exact label, in parallel.

    Attributes:
        labels: `(N,)` index of the true code.
        predictions: `(N,)` index of the predicted code.
        groups: `(N,)` what is drawn as a whole, as any integers.
        scores: `(N, M) float64`, figures whose mean over the cells is wanted.
        n_codes: K.
    """

    labels: Indices
    predictions: Indices
    groups: Indices
    scores: Doubles
    n_codes: int

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.labels)

    def take(self, mask: Bools) -> Rows:
        """The cells of a mask."""
        return Rows(self.labels[mask], self.predictions[mask], self.groups[mask], self.scores[mask], self.n_codes)


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn.

    Attributes:
        tables: of cells, `(D, K, K) float64`.
        means: of the scores, `(D, M)`.
        groups: their number.
        independent: each group is a single cell.
    """

    tables: Doubles
    means: Doubles
    groups: int
    independent: bool


def draw(rows: Rows, seed: int, draws: int = DRAWS) -> Draws:
    """Draw as many groups as there are, with replacement, `draws` times (Efron and Tibshirani 1993, chapter 13).

    Cells of one slide resemble each other, so it is the slides that are drawn where groups tell them apart.
    """
    names, group = np.unique(rows.groups, return_inverse=True)
    place = rows.labels * rows.n_codes + rows.predictions
    tables = np.zeros((draws, rows.n_codes**2))
    means = np.full((draws, rows.scores.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    for number in range(draws if len(rows) else 0):
        weights = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[group]
        tables[number] = np.bincount(place, weights, rows.n_codes**2)
        means[number] = weights @ rows.scores / weights.sum()
    return Draws(tables.reshape(draws, rows.n_codes, rows.n_codes), means, len(names), len(names) == len(rows))


def per_class(tables: npt.NDArray[Any]) -> tuple[Doubles, Doubles, Doubles]:
    """Precision, recall and F1 of each code, `(..., K) float64`, from tables `(..., K, K)`; NaN for 0 / 0.

    F1 is 2 tp / (support + predicted), which is 0 for a code that was never given though cells of it were there.
    """
    tp = np.diagonal(tables, axis1=-2, axis2=-1).astype(np.float64)
    support, predicted = tables.sum(axis=-1), tables.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return tp / predicted, tp / support, 2 * tp / (support + predicted)


def macro(values: Doubles, tables: npt.NDArray[Any]) -> Doubles:
    """Mean of a figure of each code `(..., K)` over the codes that have labelled cells in `tables (..., K, K)`."""
    present = tables.sum(axis=-1) > 0
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(present, values, 0).sum(axis=-1) / present.sum(axis=-1), np.float64)


def interval(drawn: Doubles, groups: int) -> tuple[float, float]:
    """95 % percentile interval of drawn figures `(D,)`, without those that are NaN.

    NaN where there are too few groups, or the draws do not differ: they say nothing of other cells.
    """
    known = drawn[~np.isnan(drawn)]
    if groups < FEWEST_GROUPS or not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5)).tolist()
    return (low, high) if high - low > _ALIKE else (math.nan, math.nan)


def share_limits(drawn: Doubles, draws: Draws, k: int, n: int) -> tuple[float, float]:
    """95 % limits of a share, k of n cells, whose draws are `drawn (D,)`.

    Exact ones (Clopper and Pearson 1934) where cells are independent or the draws do not differ; else those of
    `interval`, NaN where there are too few groups.
    """
    if draws.independent:
        return binomial_limits(k, n)
    if draws.groups < FEWEST_GROUPS:
        return math.nan, math.nan
    low, high = interval(drawn, draws.groups)
    return binomial_limits(k, n) if math.isnan(low) else (low, high)
