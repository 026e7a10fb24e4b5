"""The report: one HTML file that needs nothing else, its tables as CSV, its figures as pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import FloatArray, Indices, Pixels
from smearcount.geometry import resize_rgb
from smearcount.images import make_folder, write_picture, write_text_atomic
from smearcount.judging.bootstrap import DRAWS, FEWEST_GROUPS
from smearcount.judging.figures import BINS, figures
from smearcount.judging.heat import overlay_heat
from smearcount.judging.plots import abstention_plot, confusion_plot, reliability_plot
from smearcount.judging.record import Judged
from smearcount.judging.tables import confusion_csv, figures_csv, predictions_csv, worst_csv, worst_rows
from smearcount.pages import data_uri, page_of

__all__ = ["WORST", "HeatOf", "write_report"]

HeatOf = Callable[[Indices], FloatArray]
"""Gives the heat maps `(n, H, W) float32` in [0, 1] of some rows."""

WORST = 48
"""Cells on the sheet of the worst losses."""

_PAIRS = 20
_SHOWN_PX = 224
_SMALL_PX = 96


def write_report(
    judged: Judged, out_dir: Path, title: str, heat: HeatOf | None = None, note: str = "", warning: str = ""
) -> dict[str, Any]:
    """Judge the cells and write everything into a folder, which is made; each file is whole or absent.

    `report.html` stands alone: its pictures are inside, it asks for nothing and runs nothing. Beside it are
    `figures.csv` (a line a code), `confusion.csv`, `predictions.csv` (a line a cell), `worst.csv`, `figures.json`
    (all figures) and the plots as PNG. The same cells give the same files.

    Args:
        judged: the named cells.
        out_dir: the folder.
        title: what was judged on what, as the heading.
        heat: gives the heat maps of the worst cells, asked once with their rows; None leaves them out.
        note: a sentence on the probabilities.
        warning: a sentence on all figures, below the heading.

    Returns:
        All figures, as `figures` gives them.

    Raises:
        DatasetError: no cell has an exact label.
        ImageError: the folder can't be written.
        ValueError: there is not one heat map for each cell asked.
    """
    report = figures(judged)
    plots = _plots(report)
    texts = {
        "figures.csv": figures_csv(report),
        "confusion.csv": confusion_csv(report),
        "predictions.csv": predictions_csv(judged),
        "worst.csv": worst_csv(judged, WORST),
        "figures.json": json.dumps(report, indent=1) + "\n",
        "report.html": page_of(
            Path(__file__).with_name("report.html.j2"),
            {"percent": _percent, "number": _number},
            title=title,
            note=note,
            warning=warning,
            report=report,
            pairs=report["confused_pairs"][:_PAIRS],
            bins=BINS,
            draws=DRAWS,
            fewest=FEWEST_GROUPS,
            plots={name: (data_uri(pixels), pixels.shape[1] // 2) for name, pixels in plots.items()},
            worst=_sheet(judged, heat),
            with_heat=heat is not None,
        ),
    }
    make_folder(out_dir)
    for name, pixels in plots.items():
        write_picture(out_dir / f"{name}.png", pixels)
    for name, text in texts.items():
        write_text_atomic(out_dir / name, text)
    return report


def _plots(report: dict[str, Any]) -> dict[str, Pixels]:
    return {
        "confusion": confusion_plot(report["confusion"], report["codes"], shares=False),
        "confusion_normalised": confusion_plot(report["confusion_normalised"], report["codes"], shares=True),
        "reliability": reliability_plot(report["reliability"]),
        "abstention": abstention_plot(report["abstention"]),
    }


def _sheet(judged: Judged, heat: HeatOf | None) -> list[dict[str, Any]]:
    """The worst cells with their pictures as data URIs."""
    rows = judged.worst(WORST)
    maps = None if heat is None else heat(rows)
    if maps is not None and len(maps) != len(rows):
        raise ValueError(f"heat: expected a map for each of {len(rows)} cells, got {len(maps)}")
    sheet: list[dict[str, Any]] = []
    for place, (row, entry) in enumerate(zip(rows.tolist(), worst_rows(judged, WORST), strict=True)):
        view = _shown(judged.views[row])
        pictures = {"view": data_uri(view)}
        if maps is not None:
            pictures["heat"] = data_uri(overlay_heat(view, maps[place]))
        sheet.append({**entry, **pictures})
    return sheet


def _shown(view: Pixels) -> Pixels:
    """A view `(S, S, 3) uint8 RGB` at a size for the sheet: whole pixels enlarged where it is small."""
    height, width = view.shape[:2]
    longest = max(height, width)
    if longest > _SHOWN_PX:
        shrink = _SHOWN_PX / longest
        return resize_rgb(view, max(round(width * shrink), 1), max(round(height * shrink), 1))
    times = max(_SMALL_PX // longest, 1)
    return np.asarray(view.repeat(times, axis=0).repeat(times, axis=1), np.uint8)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
