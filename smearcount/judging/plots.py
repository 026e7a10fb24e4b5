"""Figures of the report as pictures `(H, W, 3) uint8 RGB`, drawn without a screen and without a global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smearcount.arrays import Pixels
from smearcount.counting import binomial_limits
from smearcount.pages import BLUE, FAINT, INK, ORANGE, make_figure, one_line, rendered, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["abstention_plot", "confusion_plot", "reliability_plot"]

Entry = Mapping[str, Any]

_DPI = 144
_MARGIN_PX = 12


def confusion_plot(table: Sequence[Sequence[float | None]], codes: Sequence[str], *, shares: bool) -> Pixels:
    """True codes down, predicted codes across, a number in each field that has cells.

    Args:
        table: K x K cells, or their shares of the row, None in the rows of codes without cells.
        codes: the K codes.
        shares: the table holds shares, which are written in per cent.
    """
    from matplotlib.colors import PowerNorm

    values = np.array(table, np.float64) * (100 if shares else 1)
    values[np.nansum(values, axis=1) == 0] = np.nan
    k = len(codes)
    figure = make_figure(2.9 + 0.46 * k, 2.5 + 0.46 * k, _DPI)
    axes = figure.add_subplot()
    # A square root shows the few wrong cells beside the many right ones.
    norm = PowerNorm(0.5, 0, 100 if shares else max(float(np.nanmax(values)), 1))
    mesh = axes.imshow(values, cmap="Blues", norm=norm)
    axes.set_facecolor("#e3e3e3")
    words = [one_line(code) for code in codes]
    axes.set_xticks(range(k), words, rotation=50, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(k), words, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    for (i, j), value in np.ndenumerate(values):
        if value > 0:
            dark = norm(value) > 0.55
            look: dict[str, Any] = {"color": "white" if dark else INK, "weight": "bold" if i == j else "normal"}
            words_in = _number(value, shares)
            axes.text(j, i, words_in, ha="center", va="center", fontsize=8 if len(words_in) < 5 else 6, **look)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("per cent of the true code" if shares else "cells")
    bar.outline.set_visible(False)
    return _trimmed(rendered(figure))


def reliability_plot(bins: Sequence[Entry]) -> Pixels:
    """How often a classifier is right, by how sure it says it is, with exact 95 % limits; below, where the cells are.

    Args:
        bins: entries `low`, `high`, `n`, `confidence`, `accuracy`.
    """
    figure = make_figure(6.4, 5.6, _DPI)
    upper, lower = _two_panels(figure)
    filled = [entry for entry in bins if entry["n"]]
    sure, right = ([float(entry[name]) for entry in filled] for name in ("confidence", "accuracy"))
    limits = [binomial_limits(round(entry["accuracy"] * entry["n"]), entry["n"]) for entry in filled]
    # Rounding may leave a limit on the wrong side of its value by the last bit.
    low = [max(value - limit[0], 0) for limit, value in zip(limits, right, strict=True)]
    high = [max(limit[1] - value, 0) for limit, value in zip(limits, right, strict=True)]
    upper.plot([0, 1], [0, 1], color=FAINT, linestyle="--", label="as sure as right")
    style: dict[str, Any] = {"fmt": "o-", "color": BLUE, "markersize": 5, "capsize": 2.5, "elinewidth": 1}
    upper.errorbar(sure, right, [low, high], label="classifier, 95 % limits", **style)
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("share named rightly")
    upper.legend(loc="upper left", frameon=False)
    total = sum(entry["n"] for entry in bins)
    width = bins[0]["high"] - bins[0]["low"]
    middles = [(entry["low"] + entry["high"]) / 2 for entry in bins]
    lower.bar(middles, [entry["n"] / total for entry in bins], 0.9 * width, color=BLUE)
    lower.set_ylabel("share of cells")
    lower.set_xlabel("highest probability")
    lower.set_xlim(-0.01, 1.01)
    return _trimmed(rendered(figure))


def abstention_plot(rows: Sequence[Entry]) -> Pixels:
    """Accuracy of the cells that keep a name, and below, the share of those that lose it, by threshold.

    Args:
        rows: entries `threshold`, `abstained`, `accuracy` (None where no cell keeps a name), thresholds ascending.
    """
    figure = make_figure(6.4, 5.6, _DPI)
    upper, lower = _two_panels(figure)
    thresholds = [entry["threshold"] for entry in rows]
    accuracy = np.array([entry["accuracy"] for entry in rows], np.float64)
    upper.plot(thresholds, accuracy, "o-", color=BLUE, markersize=4)
    upper.set_ylabel("accuracy of the rest")
    upper.set_ylim(min(0.9, np.floor(10 * np.nanmin(accuracy)) / 10), 1.005)
    lower.plot(thresholds, [entry["abstained"] for entry in rows], "s-", color=ORANGE, markersize=4)
    lower.set_ylabel("share abstained")
    lower.set_xlabel("threshold on the highest probability")
    lower.set_ylim(0, None)
    lower.set_xlim(-0.01, 1.01)
    return _trimmed(rendered(figure))


def _two_panels(figure: Figure) -> tuple[Axes, Axes]:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    for axes in (upper, lower):
        tidy(axes)
    return upper, lower


def _number(value: float, shares: bool) -> str:
    if shares and value < 0.5:
        return "<1"
    # No rounding up to a perfect score.
    return f"{min(round(value), 99) if shares and value < 100 else round(value)}"


def _trimmed(pixels: Pixels) -> Pixels:
    """The picture without its white margins but for a few pixels: square fields leave room that nothing fills."""
    used = pixels.min(axis=2) < 255
    rows, columns = (np.flatnonzero(used.any(axis=axis)) for axis in (1, 0))
    top, left = max(rows[0] - _MARGIN_PX, 0), max(columns[0] - _MARGIN_PX, 0)
    return np.ascontiguousarray(pixels[top : rows[-1] + 1 + _MARGIN_PX, left : columns[-1] + 1 + _MARGIN_PX])
