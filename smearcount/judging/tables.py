"""The figures and the cells as CSV text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smearcount.judging.record import Judged
from smearcount.report import Row, to_csv

__all__ = ["confusion_csv", "figures_csv", "predictions_csv", "worst_csv", "worst_rows"]

_FIGURES = tuple(f"{name}{end}" for name in ("precision", "recall", "f1") for end in ("", "_low", "_high"))
_WORST = (
    *("rank", "row", "origin", "source", "true", "predicted", "probability", "probability_of_true", "loss"),
    *("runner_up", "runner_up_probability"),
)


def figures_csv(report: Mapping[str, Any]) -> str:
    """A line a code: cells, cells named so, precision, recall and F1 with limits; empty where unknown."""
    rows: list[Row] = [
        {
            **{"code": entry["code"], "support": entry["support"], "predicted": entry["predicted"]},
            **{name: _figure(entry[name]) for name in _FIGURES},
        }
        for entry in report["per_class"]
    ]
    return _csv(("code", "support", "predicted", *_FIGURES), rows)


def confusion_csv(report: Mapping[str, Any]) -> str:
    """A line a true code, a column a predicted code, in cells with an exact label."""
    codes = report["codes"]
    columns = ("true", *(f"predicted_{code}" for code in codes))
    rows: list[Row] = [
        dict(zip(columns, (code, *cells), strict=True)) for code, cells in zip(codes, report["confusion"], strict=True)
    ]
    return _csv(columns, rows)


def predictions_csv(judged: Judged) -> str:
    """A line a cell, in the order given: what it is, what it was called, and the probability of each code."""
    shares = tuple(f"p_{code}" for code in judged.codes)
    rows: list[Row] = []
    for row in range(len(judged)):
        cell = _cell(judged, row)
        group = "" if judged.groups is None else str(judged.groups[row])
        cell |= {"group": group, "exact": int(judged.exact[row]), "right": int(judged.right[row])}
        rows.append(cell | dict(zip(shares, (f"{p:.6f}" for p in judged.probs[row].tolist()), strict=True)))
    columns = ("row", "origin", "source", "group", "true", "exact", "predicted", "right", *_WORST[6:], *shares)
    return _csv(columns, rows)


def worst_rows(judged: Judged, n: int) -> list[Row]:
    """The `n` cells of the largest losses as rows of `worst.csv`, largest first."""
    return [{"rank": rank + 1, **_cell(judged, row)} for rank, row in enumerate(judged.worst(n).tolist())]


def worst_csv(judged: Judged, n: int) -> str:
    """A line for each of the `n` cells of the largest losses."""
    return _csv(_WORST, worst_rows(judged, n))


def _cell(judged: Judged, row: int) -> Row:
    probs = judged.probs[row]
    best, second = np.argsort(-probs, kind="stable")[:2].tolist()
    return {
        "row": row,
        "origin": str(judged.origins[row]),
        "source": str(judged.sources[row]),
        "true": judged.truth(row),
        "predicted": judged.codes[best],
        "probability": f"{probs[best]:.6f}",
        "probability_of_true": f"{probs[judged.targets[row]].sum():.6f}",
        "loss": f"{judged.losses[row]:.6f}",
        "runner_up": judged.codes[second],
        "runner_up_probability": f"{probs[second]:.6f}",
    }


def _figure(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6f}"


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """CSV text in which no spreadsheet takes words for a formula: a file may be named `=1+1`. No figure is negative."""
    return to_csv(columns, ({name: _plain(value) for name, value in row.items()} for row in rows))


def _plain(value: str | int) -> str | int:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
