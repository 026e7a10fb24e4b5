"""Splits for training and validation: by group, and with the same share of every class on both sides.

A group is what shows the same blood or the same picture: a slide, a photograph, an original. It is never divided.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.cellsets import CellSet

__all__ = ["folds", "split_groups", "split_rows", "with_split"]

Labels = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STARTS = 5


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
        ValueError: lengths differ, the share is out of range, or there are fewer than two groups.
    """
    group_of, counts = _counts(groups, labels)
    if not 0 < val_share < 1:
        raise ValueError(f"val_share: expected a number between 0 and 1, got {val_share}")
    if len(counts) < 2:
        raise ValueError(f"groups: expected two or more to split, got {len(counts)}")
    chosen = _choose(counts, val_share, np.random.default_rng(seed))
    return np.where(chosen[group_of], "val", "train")


def split_rows(labels: Labels, val_share: float, seed: int) -> npt.NDArray[np.str_]:
    """The random split of rows, such as 80/20, stratified by class: every row is a group of its own.

    Raises:
        ValueError: the share is out of range, or there are fewer than two rows.
    """
    return split_groups(np.arange(len(labels)), labels, val_share, seed)


def folds(groups: Labels, labels: Labels, n: int, seed: int) -> npt.NDArray[np.intp]:
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
        chosen = _choose(counts[left], 1 / (n - number), rng, reserve=n - 1 - number)
        fold[left[chosen]] = number
        left = left[~chosen]
    return fold[group_of]


def with_split(cells: CellSet, val_share: float, seed: int) -> CellSet:
    """The cells split anew by their groups; cells of the same choice of codes count as a class.

    Raises:
        ValueError: the share is out of range, or there are fewer than two groups.
    """
    _, choice = np.unique(cells.targets, axis=0, return_inverse=True)
    return replace(cells, splits=split_groups(cells.groups, choice, val_share, seed))


def _counts(groups: Labels, labels: Labels) -> tuple[npt.NDArray[np.intp], Counts]:
    """The number `(N,)` of each row's group, and the rows `(G, K)` of each group and class."""
    if len(groups) != len(labels):
        raise ValueError(f"labels: expected {len(groups)}, one for each row, got {len(labels)}")
    names, group_of = np.unique(groups, return_inverse=True)
    classes, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(counts, (group_of, class_of), 1)
    return group_of, counts


def _choose(counts: Counts, share: float, rng: np.random.Generator, reserve: int = 1) -> Bools:
    """The groups `(G,)` whose classes make up nearest to `share` of `counts (G, K)`; at least `reserve` are left."""
    best, least = np.zeros(len(counts), np.bool_), np.inf
    counts = counts[:, counts.any(axis=0)]
    for _ in range(_STARTS):
        chosen = _improve(counts, _take_up(counts, share, rng), share, reserve)
        distance = float(_distance(counts[chosen].sum(axis=0), counts, share))
        if distance < least:
            best, least = chosen, distance
    return best


def _distance(taken: Counts, counts: Counts, share: float) -> npt.NDArray[np.float64]:
    """How far the rows `taken (..., K)` of each class are from their share; a class that is all on one side costs 1."""
    total = counts.sum(axis=0)
    divisible = (counts > 0).sum(axis=0) > 1
    one_sided = divisible & ((taken == 0) | (taken == total))
    return np.asarray((((taken / total - share) ** 2) + one_sided).sum(axis=-1))


def _take_up(counts: Counts, share: float, most: int, rng: np.random.Generator) -> Bools:
    """One to `most` groups, taken up in random order where each brings the shares nearer."""
    chosen = np.zeros(len(counts), np.bool_)
    total, divisible = counts.sum(axis=0), (counts > 0).sum(axis=0) > 1
    taken = np.zeros_like(total)
    now = _distance(taken, counts, share)
    for group in rng.permutation(len(counts)):
        then = _distance(taken + counts[group], counts, share)
        if then < now and chosen.sum() < most:
            chosen[group], taken, now = True, taken + counts[group], then
    if not chosen.any():
        chosen[_distance(counts, counts, share).argmin()] = True
    return chosen


def _improve(counts: Counts, chosen: Bools, share: float, most: int) -> Bools:
    """Move the one group whose change of side brings the shares nearest, until none does."""
    chosen = chosen.copy()
    now = np.inf
    while True:
        step = np.where(chosen, -1, 1)[:, None] * counts
        after = _distance(counts[chosen].sum(axis=0) + step, counts, share)
        after[chosen & (chosen.sum() == 1)] = np.inf
        after[~chosen & (chosen.sum() == most)] = np.inf
        now = min(now, float(_distance(counts[chosen].sum(axis=0), counts, share)))
        group = int(after.argmin())
        if after[group] > now - 1e-12:
            return chosen
        chosen[group] = not chosen[group]
