"""A tie-breaker: experts for codes that are hard to tell apart, asked only where the generalist is unsure between them.

`probs` is `(N, K) float32`, rows that sum to 1 or are all zero; `labels` is `(N,)`, the index of the true code. The
gap of a cell is p1 - p2, the best probability less the second best one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, FloatArray, Indices

__all__ = [
    "ConfusedPair",
    "Expert",
    "ExpertReport",
    "TieBreakReport",
    "TieBreaker",
    "break_ties",
    "choose_margin",
    "confusable_pairs",
    "confusion_counts",
    "first_shared_pair",
    "tiebreak_report",
]

Counted = npt.NDArray[np.int64]

_CANDIDATES = 200
"""Margins tried for each expert: a finer choice would follow single cells."""


@dataclass(frozen=True)
class Expert:
    """A classifier of a few codes that are hard to tell apart.

    Attributes:
        codes: its codes, two or more, in the order of the columns of its answers.
        ask: from the rows `(M,)` of the cells to probabilities `(M, len(codes)) float32` whose rows sum to 1. What it
            says of a cell does not depend on which other cells are asked about.
    """

    codes: tuple[str, ...]
    ask: Callable[[Indices], FloatArray]


@dataclass(frozen=True)
class TieBreaker:
    """Experts for the codes of a generalist.

    An expert is asked about a cell when the generalist's two best codes are both among the expert's own, and the gap
    between them is below the expert's margin.

    Attributes:
        codes: the K codes of the generalist.
        experts: no two of them know the same pair of codes.
        margins: in [0, 1], one an expert; at 0 it is never asked.
    """

    codes: tuple[str, ...]
    experts: tuple[Expert, ...]
    margins: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the codes and the margins."""
        if len(set(self.codes)) != len(self.codes) or len(self.codes) < 2:
            raise ValueError(f"codes: expected two or more, each once, got {self.codes}")
        if len(self.margins) != len(self.experts) or not all(0 <= margin <= 1 for margin in self.margins):
            raise ValueError(f"margins: expected {len(self.experts)} numbers from 0 to 1, got {self.margins}")
        for expert in self.experts:
            if len(set(expert.codes)) != len(expert.codes) or len(expert.codes) < 2:
                raise ValueError(f"expert: expected two or more codes, each once, got {expert.codes}")
            if not set(expert.codes) <= set(self.codes):
                raise ValueError(f"expert: expected codes out of {self.codes}, got {expert.codes}")
        if twice := first_shared_pair(expert.codes for expert in self.experts):
            raise ValueError(f"experts: {list(twice[1])} belong to two of them")


def first_shared_pair(experts: Iterable[Sequence[str]]) -> tuple[int, tuple[str, str]] | None:
    """The first expert, by its place, that knows two codes of one before it, and these codes; None for none.

    Args:
        experts: the codes of each.
    """
    known: set[tuple[str, str]] = set()
    for place, codes in enumerate(experts):
        pairs = set(combinations(sorted(codes), 2))
        if pairs & known:
            return place, min(pairs & known)
        known |= pairs
    return None


@dataclass(frozen=True)
class ConfusedPair:
    """Two codes that are taken for one another.

    Attributes:
        first: the code that comes first among the codes.
        second: the other one.
        first_as_second: cells of the first named as the second.
        second_as_first: cells of the second named as the first.
    """

    first: str
    second: str
    first_as_second: int
    second_as_first: int

    @property
    def total(self) -> int:
        """Confused cells, both ways."""
        return self.first_as_second + self.second_as_first


@dataclass(frozen=True)
class ExpertReport:
    """What one expert did: cells it was asked about, of them wrong names put right and right ones lost (spoiled)."""

    codes: tuple[str, ...]
    margin: float
    asked: int
    repaired: int
    spoiled: int


@dataclass(frozen=True)
class TieBreakReport:
    """Gain and cost of a tie-breaker on `n` labelled cells.

    Macro-F1 is the mean over the codes that have a labelled cell. Seconds are those of all cells: of the generalist
    alone, and on top of it of the experts.
    """

    n: int
    accuracy_before: float
    accuracy_after: float
    macro_f1_before: float
    macro_f1_after: float
    asked: int
    generalist_seconds: float
    extra_seconds: float
    experts: tuple[ExpertReport, ...]


def break_ties(probs: FloatArray, breaker: TieBreaker) -> tuple[FloatArray, Bools]:
    """Probabilities after the experts were heard, `(N, K) float32`, and which cells `(N,)` they were asked about.

    An expert shares out the mass that the generalist gave to its codes together; other codes keep theirs, so a row sums
    to what it did. With two codes the winner is one of them: half their mass is no less than the generalist's second
    best probability.

    Raises:
        ValueError: `probs` do not fit the codes, or an expert's answers are no distributions over its codes.
    """
    who, gap = _candidates(probs, breaker)
    asked_by = np.where(gap < np.append(breaker.margins, 0.0)[who], who, -1)
    heard = probs.astype(np.float64)
    for index, expert in enumerate(breaker.experts):
        rows = np.flatnonzero(asked_by == index)
        if rows.size:
            cells = np.ix_(rows, np.array([breaker.codes.index(code) for code in expert.codes]))
            heard[cells] = heard[cells].sum(axis=1, keepdims=True) * _answers(expert, rows)
    return heard.astype(np.float32), np.asarray(asked_by >= 0)


def choose_margin(
    probs: FloatArray, labels: Indices, codes: tuple[str, ...], experts: tuple[Expert, ...]
) -> TieBreaker:
    """A tie-breaker that is no worse on these cells, in accuracy and in macro-F1, than the generalist alone.

    One expert after the other gets the margin of the best accuracy among those that lower neither figure; ties go to
    the better macro-F1, then to the fewer questions. As the margins are fitted to these cells, the gain on them
    flatters: report it on others.

    Raises:
        ValueError: as for `break_ties`, or `labels` do not fit.
    """
    always = TieBreaker(codes, experts, (1.0,) * len(experts))
    who, gap = _candidates(probs, always)
    heard, _ = break_ties(probs, always)
    before, after = probs.argmax(axis=1), heard.argmax(axis=1)
    confusion = confusion_counts(labels, before, len(codes))
    margins = []
    for index in range(len(experts)):
        rows = np.flatnonzero((who == index) & (gap < 1))
        rows = rows[np.argsort(gap[rows], kind="stable")]
        changes = _Changes(gap[rows], labels[rows], before[rows], after[rows])
        margin, confusion = _best_margin(changes, confusion)
        margins.append(margin)
    return TieBreaker(codes, experts, tuple(margins))


def tiebreak_report(
    probs: FloatArray, labels: Indices, breaker: TieBreaker, generalist_seconds: float, expert_seconds: float
) -> TieBreakReport:
    """Gain and cost on labelled cells, best others than those the margins were chosen on; seconds are those of a cell.

    Raises:
        ValueError: as for `break_ties`, there is no cell, or `labels` do not fit.
    """
    heard, asked = break_ties(probs, breaker)
    who, _ = _candidates(probs, breaker)
    right, right_after = (part.argmax(axis=1) == labels for part in (probs, heard))
    scores = [_scores(confusion_counts(labels, p.argmax(axis=1), len(breaker.codes))) for p in (probs, heard)]
    experts = []
    for index, (expert, margin) in enumerate(zip(breaker.experts, breaker.margins, strict=True)):
        own = asked & (who == index)
        repaired, spoiled = int((own & ~right & right_after).sum()), int((own & right & ~right_after).sum())
        experts.append(ExpertReport(expert.codes, margin, int(own.sum()), repaired, spoiled))
    n, n_asked = len(probs), int(asked.sum())
    return TieBreakReport(
        n,
        scores[0][0] / n,
        scores[1][0] / n,
        scores[0][1],
        scores[1][1],
        n_asked,
        n * generalist_seconds,
        n_asked * expert_seconds,
        tuple(experts),
    )


def confusable_pairs(probs: FloatArray, labels: Indices, codes: tuple[str, ...], n: int) -> tuple[ConfusedPair, ...]:
    """The at most `n` pairs of codes with most confused cells, most first; pairs never confused are left out.

    Raises:
        ValueError: there is no cell, or `labels` do not fit.
    """
    confusion = confusion_counts(labels, probs.argmax(axis=1), len(codes))
    every = [
        ConfusedPair(codes[i], codes[j], int(confusion[i, j]), int(confusion[j, i]))
        for i, j in combinations(range(len(codes)), 2)
    ]
    return tuple(sorted((pair for pair in every if pair.total), key=lambda pair: -pair.total)[:n])


def confusion_counts(labels: Indices, predicted: Indices, n_codes: int) -> Counted:
    """Cells by true code (row) and given code (column), `(K, K) int64`.

    Raises:
        ValueError: there is no cell, the two are of different length, or an index is not in `range(n_codes)`.
    """
    if not len(labels) or len(labels) != len(predicted):
        raise ValueError(f"labels: expected {len(predicted)} and at least one, got {len(labels)}")
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= n_codes:
        raise ValueError(f"labels: expected indices from 0 to {n_codes - 1}, got {labels.min()} to {labels.max()}")
    return np.bincount(labels * n_codes + predicted, minlength=n_codes**2).reshape(n_codes, n_codes).astype(np.int64)


def _candidates(probs: FloatArray, breaker: TieBreaker) -> tuple[Indices, Doubles]:
    """Which expert knows the two best codes of each cell, `(N,)`, -1 for none; and the gap between them."""
    if probs.ndim != 2 or probs.shape[1] != len(breaker.codes) or not np.isfinite(probs).all():
        raise ValueError(f"probs: expected finite (N, {len(breaker.codes)}), got shape {probs.shape} or a NaN in it")
    expert_of = np.full((len(breaker.codes),) * 2, -1, np.intp)
    for index, expert in enumerate(breaker.experts):
        columns = [breaker.codes.index(code) for code in expert.codes]
        expert_of[np.ix_(columns, columns)] = index
    best, second = np.argsort(-probs, axis=1, kind="stable")[:, :2].T
    rows = np.arange(len(probs))
    p1, p2 = probs[rows, best].astype(np.float64), probs[rows, second].astype(np.float64)
    # A code without any probability is no rival, and an empty row belongs to a cell that no classifier was asked about.
    return np.where(p2 > 0, expert_of[best, second], -1), p1 - p2


def _answers(expert: Expert, rows: Indices) -> Doubles:
    answers = np.asarray(expert.ask(rows), np.float64)
    if answers.shape != (len(rows), len(expert.codes)):
        raise ValueError(f"{expert.codes}: expected answers {(len(rows), len(expert.codes))}, got {answers.shape}")
    sums = answers.sum(axis=1, keepdims=True)
    if not (np.abs(sums - 1) < 1e-3).all() or (answers < 0).any():
        raise ValueError(f"{expert.codes}: expected answers that sum to 1, got sums {sums.min()} to {sums.max()}")
    return np.asarray(answers / sums)


@dataclass(frozen=True, eq=False)
class _Changes:
    """Cells an expert knows the two best codes of, by ascending gap; all `(M,)`, names before and after asking."""

    gap: Doubles
    labels: Indices
    before: Indices
    after: Indices


def _best_margin(cells: _Changes, confusion: Counted) -> tuple[float, Counted]:
    """The margin of one expert, and the confusion `(K, K)` once it is asked up to there."""
    lowest = _scores(confusion)
    best, margin, kept = (*lowest, 0), 0.0, confusion
    # Cells of one gap are asked together, so a margin can only lie where the gap changes.
    ends = np.flatnonzero(np.append(np.diff(cells.gap) > 0, True)[: len(cells.gap)]) + 1
    for end in ends[np.unique(np.linspace(0, len(ends) - 1, min(len(ends), _CANDIDATES)).astype(np.intp))]:
        asked = slice(None, end)
        moved = confusion - confusion_counts(cells.labels[asked], cells.before[asked], len(confusion))
        moved += confusion_counts(cells.labels[asked], cells.after[asked], len(confusion))
        right, macro_f1 = _scores(moved)
        if right >= lowest[0] and macro_f1 >= lowest[1] and (right, macro_f1, -int(end)) > best:
            best, margin, kept = (right, macro_f1, -int(end)), _between(cells.gap, int(end)), moved
    return margin, kept


def _between(gap: Doubles, end: int) -> float:
    """A margin that the first `end` gaps are below and the next one is not."""
    return float((gap[end - 1] + gap[end]) / 2 if end < len(gap) else np.nextafter(gap[-1], 1))


def _scores(confusion: Counted) -> tuple[int, float]:
    """Cells named right, and macro-F1 over the codes that have a labelled cell."""
    right, true, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    labelled = true > 0
    return int(right.sum()), float((2 * right[labelled] / (true + given)[labelled]).mean())
