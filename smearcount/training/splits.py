"""Splits for training and validation: by group, and with the same share of every class on both sides.

A group is what shows the same blood or the same picture: a slide, a photograph, an original. It is never divided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, Indices
from smearcount.errors import ConfigError

__all__ = ["folds", "split_groups"]

Labels = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

_STARTS = 5
_EXCHANGES = 50_000
"""Pairs of groups up to which exchanges are tried; where there are more, moving single groups comes near enough."""


def split_groups(groups: Labels, labels: Labels, val_share: float, seed: int) -> npt.NDArray[np.str_]:
    """The side `(N,)` of each row, `train` or `val`: no group on both, and of each class about `val_share` in val.

    A class of two groups or more is on both sides wherever that can be had. Groups are taken up in a random order as
    long as that brings the shares nearer, then exchanged one by one; the best of a few such starts is kept.

    Args:
        groups: `(N,)` names or numbers.
        labels: `(N,)` names or numbers of classes.
        val_share: between 0 and 1.
        seed: the same seed gives the same split, whatever the order of the rows within a group.

    Raises:
        ConfigError: there are fewer than two groups.
        ValueError: lengths differ, or the share is out of range.
    """
    group_of, counts = _counts(groups, labels)
    if not 0 < val_share < 1:
        raise ValueError(f"val_share: expected a number between 0 and 1, got {val_share}")
    if len(counts) < 2:
        known = f"all {len(groups)} cells are of one group, {groups[0]}" if len(groups) else "there are no cells"
        raise ConfigError(
            f"{known}, and a group is not divided between training and validation; add another one (a folder for each "
            "patient or slide inside those of the classes), or take away what groups them"
        )
    chosen = _choose(counts, val_share, len(counts) - 1, np.random.default_rng(seed))
    return np.where(chosen[group_of], "val", "train")


def folds(groups: Labels, labels: Labels, n: int, seed: int) -> Indices:
    """The fold `(N,)` of each row, 0 to n - 1, for cross-validation: groups are whole, classes spread evenly.

    Raises:
        ValueError: lengths differ, or there are fewer than two folds or fewer groups than folds.
    """
    group_of, counts = _counts(groups, labels)
    if not 2 <= n <= len(counts):
        raise ValueError(f"n: expected 2 to {len(counts)} folds, the number of groups, got {n}")
    rng = np.random.default_rng(seed)
    fold, left = np.full(len(counts), n - 1, np.intp), np.arange(len(counts))
    for number in range(n - 1):
        # Every later fold needs a group as well.
        most = len(left) - (n - 1 - number)
        chosen = _choose(counts[left], 1 / (n - number), most, rng)
        fold[left[chosen]] = number
        left = left[~chosen]
    return fold[group_of]


def _counts(groups: Labels, labels: Labels) -> tuple[Indices, Counts]:
    """The number `(N,)` of each row's group, and the rows `(G, K)` of each group and class."""
    if len(groups) != len(labels):
        raise ValueError(f"labels: expected {len(groups)}, one for each row, got {len(labels)}")
    names, group_of = np.unique(groups, return_inverse=True)
    classes, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(counts, (group_of, class_of), 1)
    return group_of, counts


@dataclass(frozen=True, eq=False)
class _Aim:
    """What a choice of groups is to come near to.

    Attributes:
        counts: `(G, K)` rows of each group and class; no class is empty.
        share: of each class.
        most: groups that may be chosen; one at least must be.
    """

    counts: Counts
    share: float
    most: int

    @cached_property
    def total(self) -> Counts:
        return np.asarray(self.counts.sum(axis=0))

    @cached_property
    def divisible(self) -> Bools:
        return np.asarray((self.counts > 0).sum(axis=0) > 1)

    def distance(self, taken: Counts) -> Doubles:
        """How far `taken (..., K)` rows of each class are off; a class that is all on one side costs 1."""
        one_sided = self.divisible & ((taken == 0) | (taken == self.total))
        return np.asarray(((taken / self.total - self.share) ** 2 + one_sided).sum(axis=-1))


def _choose(counts: Counts, share: float, most: int, rng: np.random.Generator) -> Bools:
    """The groups `(G,)` whose classes make up nearest to `share` of `counts (G, K)`; one to `most` of them."""
    aim = _Aim(counts[:, counts.any(axis=0)], share, most)
    starts = [_improve(aim, _take_up(aim, rng)) for _ in range(_STARTS)]
    return min(starts, key=lambda chosen: float(aim.distance(aim.counts[chosen].sum(axis=0))))


def _take_up(aim: _Aim, rng: np.random.Generator) -> Bools:
    """Groups in random order, each if it brings the shares nearer."""
    chosen = np.zeros(len(aim.counts), np.bool_)
    taken, n = np.zeros(len(aim.total), np.int64), 0
    now = aim.distance(taken)
    for group in rng.permutation(len(aim.counts)):
        then = aim.distance(taken + aim.counts[group])
        if then < now and n < aim.most:
            chosen[group], taken, n, now = True, taken + aim.counts[group], n + 1, then
    if not n:
        chosen[aim.distance(aim.counts).argmin()] = True
    return chosen


def _improve(aim: _Aim, chosen: Bools) -> Bools:
    """Move the one group, or exchange the two, that bring the shares nearest, until none does."""
    chosen = chosen.copy()
    while True:
        taken = aim.counts[chosen].sum(axis=0)
        now = float(aim.distance(taken)) - 1e-12
        moves = _best_move(aim, chosen, taken)
        if moves[0] >= now and chosen.sum() * (~chosen).sum() <= _EXCHANGES:
            moves = _best_exchange(aim, chosen, taken)
        if moves[0] >= now:
            return chosen
        chosen[moves[1]] = ~chosen[moves[1]]


def _best_move(aim: _Aim, chosen: Bools, taken: Counts) -> tuple[float, list[int]]:
    """The distance after the best change of side of one group, and that group."""
    after = aim.distance(taken + np.where(chosen[:, None], -aim.counts, aim.counts))
    after[chosen & (chosen.sum() == 1)] = np.inf
    after[~chosen & (chosen.sum() == aim.most)] = np.inf
    return float(after.min()), [int(after.argmin())]


def _best_exchange(aim: _Aim, chosen: Bools, taken: Counts) -> tuple[float, list[int]]:
    """The distance after the best exchange of two groups, and these."""
    out, into = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    after = aim.distance(taken - aim.counts[out][:, None] + aim.counts[into][None])
    a, b = np.unravel_index(after.argmin(), after.shape)
    return float(after.min()), [int(out[a]), int(into[b])]
