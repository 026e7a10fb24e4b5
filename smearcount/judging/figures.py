"""Every figure of a classifier on labelled cells, as one dictionary ready for JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools
from smearcount.calibration import abstention_rows
from smearcount.errors import DatasetError
from smearcount.judging.bootstrap import FEWEST_GROUPS, Draws, Rows, draw, interval, macro, per_class, share_limits
from smearcount.judging.record import Judged
from smearcount.mending.tiebreak import confusion_counts

__all__ = ["BINS", "THRESHOLDS", "calibration_error", "figures", "reliability_bins"]

BINS = 15
"""Bins of the reliability curve, as in Guo et al. 2017, arXiv 1706.04599."""

THRESHOLDS = (*(round(0.05 * step, 2) for step in range(20)), 0.97, 0.98, 0.99)

Entry = dict[str, Any]

_SHARES = ("accuracy", "top2_accuracy")
"""Of the figures of all cells, those that are shares of them."""


def figures(judged: Judged, seed: int = 0) -> dict[str, Any]:
    """Everything that is measured, ready for JSON, where what can't be known is None.

    All figures are of the cells with an exact label; `n_partial` says how many were left out, `partial_right` for what
    share of those the most probable code was an allowed one. Intervals are 95 % percentile bootstrap intervals over
    groups, or over cells where there are none; None of fewer than five. Those of shares of cells (accuracy, precision,
    recall) are exact where cells are independent or the draws do not differ. Means over codes are over those that have
    labelled cells.

    - `intervals`: `cells` or `groups`, what they are over; `none` where there are too few groups;

    - `accuracy`, `balanced_accuracy` (mean recall), `macro_f1`, `top2_accuracy`, each `{value, low, high}`;
    - `nll`: mean of -log(probability of the true code), natural logarithm;
    - `brier`: mean over cells of the sum over codes of (probability - truth)^2, from 0 to 2 (Brier 1950, Monthly
      Weather Review 78:1);
    - `ece`: expected calibration error, see `calibration_error`;
    - `per_class`, `confusion` (true by predicted), `confusion_normalised` (rows sum to 1), `confused_pairs`,
      `reliability`, `abstention`, `sources`.

    Args:
        judged: the named cells.
        seed: of the bootstrap.

    Raises:
        DatasetError: no cell has an exact label.
    """
    exact = judged.exact
    if not exact.any():
        raise DatasetError(f"expected cells with an exact label, got none among {len(judged)}; label some of them")
    rows = _rows(judged)
    draws = draw(rows, seed)
    probs, right = judged.probs[exact], judged.right[exact]
    bins = reliability_bins(probs.max(axis=1), right)
    partial = judged.right[~exact]
    report = {
        "n": int(exact.sum()),
        "n_partial": len(partial),
        "partial_right": float(partial.mean()) if len(partial) else None,
        "n_groups": draws.groups if judged.groups is not None else None,
        "intervals": "cells" if draws.independent else "none" if draws.groups < FEWEST_GROUPS else "groups",
        "codes": list(judged.codes),
        **_overall(rows, draws),
        "ece": calibration_error(bins),
        **_by_code(rows, draws, judged.codes),
        "reliability": bins,
        "abstention": [
            dict(zip(("threshold", "abstained", "accuracy"), row, strict=True))
            for row in abstention_rows(probs, judged.targets[exact], THRESHOLDS)
        ],
        "sources": [_of_source(judged, rows, name, seed) for name in np.unique(judged.sources).tolist()],
    }
    return dict(json.loads(json.dumps(report), parse_constant=lambda _: None))


def reliability_bins(sureness: npt.NDArray[np.floating[Any]], right: Bools) -> list[Entry]:
    """Cells by their highest probability `(N,)` in `BINS` equal bins, each open below and closed above.

    Returns:
        For each bin its limits `low` and `high`, `n`, and the means `confidence` and `accuracy`, None where empty.
    """
    number = np.clip(np.ceil(sureness.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for index in range(BINS):
        inside = number == index
        means = [float(values[inside].mean()) if inside.any() else None for values in (sureness, right)]
        limits = {"low": index / BINS, "high": (index + 1) / BINS, "n": int(inside.sum())}
        bins.append({**limits, "confidence": means[0], "accuracy": means[1]})
    return bins


def calibration_error(bins: Sequence[Entry]) -> float:
    """Expected calibration error: the sum over bins of n_m / n |accuracy_m - confidence_m| (Guo et al. 2017, eq. 3)."""
    gaps = [entry["n"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins if entry["n"]]
    return float(sum(gaps) / sum(entry["n"] for entry in bins))


def _rows(judged: Judged) -> Rows:
    exact = judged.exact
    probs, targets = judged.probs[exact].astype(np.float64), judged.targets[exact]
    labels = targets.argmax(axis=1)
    best_two = np.argsort(-probs, axis=1, kind="stable")[:, :2]
    scores = np.column_stack(
        [(best_two == labels[:, None]).any(axis=1), judged.losses[exact], ((probs - targets) ** 2).sum(axis=1)]
    )
    every = np.arange(len(judged)) if judged.groups is None else np.unique(judged.groups, return_inverse=True)[1]
    return Rows(labels, judged.predictions[exact], every[exact], scores.astype(np.float64), len(judged.codes))


def _overall(rows: Rows, draws: Draws) -> dict[str, Entry]:
    def three(tables: npt.NDArray[Any]) -> tuple[Any, Any, Any]:
        _, recall, f1 = per_class(tables)
        tp = np.trace(tables, axis1=-2, axis2=-1)
        return tp / tables.sum(axis=(-2, -1)), macro(recall, tables), macro(f1, tables)

    table = confusion_counts(rows.labels, rows.predictions, rows.n_codes)
    values = (*three(table), *rows.scores.mean(axis=0))
    drawn = (*three(draws.tables), *draws.means.T)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "top2_accuracy", "nll", "brier")
    entries = {}
    for name, value, many in zip(names, values, drawn, strict=True):
        if name in _SHARES:
            low, high = share_limits(many, draws, round(value * len(rows)), len(rows))
        else:
            low, high = interval(many, draws.groups)
        entries[name] = {"value": float(value), "low": low, "high": high}
    return entries


def _by_code(rows: Rows, draws: Draws, codes: tuple[str, ...]) -> dict[str, Any]:
    table = confusion_counts(rows.labels, rows.predictions, rows.n_codes)
    points, support = per_class(table), table.sum(axis=1)
    precisions, recalls, f1s = per_class(draws.tables)
    entries = []
    for index, code in enumerate(codes):
        entry: Entry = {"code": code, "support": int(support[index]), "predicted": int(table[:, index].sum())}
        right = int(table[index, index])
        limits = {
            "precision": share_limits(precisions[:, index], draws, right, entry["predicted"]),
            "recall": share_limits(recalls[:, index], draws, right, entry["support"]),
            "f1": interval(f1s[:, index], draws.groups),
        }
        for (name, (low, high)), values in zip(limits.items(), points, strict=True):
            entry |= {name: float(values[index]), f"{name}_low": low, f"{name}_high": high}
        entries.append(entry)
    with np.errstate(invalid="ignore"):
        shares = table / support[:, None]
    return {
        "per_class": entries,
        "confusion": table.tolist(),
        "confusion_normalised": shares.tolist(),
        "confused_pairs": _pairs(table, codes),
    }


def _pairs(table: npt.NDArray[np.int64], codes: tuple[str, ...]) -> list[Entry]:
    """Pairs of a true and another predicted code, most cells first, with their share of the cells of the true code."""
    off = table - np.diag(np.diag(table))
    true, predicted = np.nonzero(off)
    order = np.lexsort((predicted, true, -off[true, predicted]))
    support = table.sum(axis=1)
    return [
        {"true": codes[i], "predicted": codes[j], "count": int(off[i, j]), "share": float(off[i, j] / support[i])}
        for i, j in zip(true[order].tolist(), predicted[order].tolist(), strict=True)
    ]


def _of_source(judged: Judged, rows: Rows, source: str, seed: int) -> Entry:
    inside = judged.sources == source
    own = rows.take(inside[judged.exact])
    entry: Entry = {"source": source, "n": len(own), "n_partial": int((inside & ~judged.exact).sum())}
    codes = int(len(np.unique(own.labels)))
    if not len(own):
        unknown = {"value": None, "low": None, "high": None}
        return {**entry, "codes": codes, "accuracy": unknown, "macro_f1": unknown}
    overall = _overall(own, draw(own, seed))
    return {**entry, "codes": codes, "accuracy": overall["accuracy"], "macro_f1": overall["macro_f1"]}
