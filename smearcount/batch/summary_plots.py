"""Plots of the summary of a batch as pictures `(H, W, 3) uint8 RGB`, drawn without a screen or a global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smearcount.arrays import Pixels
from smearcount.batch.funnel import Funnel
from smearcount.counting import Estimate
from smearcount.pages import BLUE, FAINT, INK, ORANGE, make_figure, one_line, rendered, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NAMED", "WITH_BARS", "Panel", "Point", "funnel_plot", "level_plot"]

NAMED = 40
"""Slides up to which a plot has their names; with more it has their numbers in the table."""

WITH_BARS = 600
"""Slides up to which all have bars for their limits; of more only those that are flagged, or nothing else is seen."""

_LABELLED = 12
_DPI = 120


@dataclass(frozen=True)
class Point:
    """One slide in a panel.

    Attributes:
        name: of the slide.
        number: its place in the table, from 1.
        area_mm2: its counted area, square millimetres.
        estimate: its count or density with limits.
        side: `high` or `low` where it is flagged.
    """

    name: str
    number: int
    area_mm2: float
    estimate: Estimate
    side: str


@dataclass(frozen=True)
class Panel:
    """One kind of cell: what its axis says, its slides, and the funnel, if there is one."""

    title: str
    points: Sequence[Point]
    funnel: Funnel | None = None


def level_plot(panels: Sequence[Panel], unit: str) -> Pixels:
    """The slides side by side in the order of the table, one panel below the other, with their limits.

    Args:
        panels: the kinds, all with the same slides but those that have no value.
        unit: of the estimates, on the axes.
    """
    numbers = sorted({point.number for panel in panels for point in panel.points})
    few = len(numbers) <= NAMED
    size = 2.1 * len(panels) + (1.3 if few else 0.5)
    figure = make_figure(min(max(3.5 + 0.32 * len(numbers), 6.4), 11), size, _DPI)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        _label(axes, panel.title, unit)
        if panel.funnel:
            axes.axhline(panel.funnel.per_mm2, color=INK, linestyle="--", linewidth=1, zorder=4)
        for points, style in _groups(panel.points):
            values = np.array([point.estimate.value for point in points])
            if len(numbers) > WITH_BARS and not points[0].side:
                axes.plot([point.number for point in points], values, ".", color=style["color"], markersize=1)
                continue
            # Rounding may leave a limit on the wrong side of its value by the last bit.
            low = np.maximum(values - [point.estimate.low for point in points], 0)
            high = np.maximum([point.estimate.high for point in points] - values, 0)
            where = [point.number for point in points]
            thin = 1 if few else 0.6
            axes.errorbar(where, values, [low, high], **style, markersize=4 if few else 2.5, elinewidth=thin)
        axes.set_ylim(0, None)
    rows[-1].set_xlim(numbers[0] - 0.7, numbers[-1] + 0.7)
    if few:
        names = {point.number: point.name for panel in panels for point in panel.points}
        # The end is kept: it tells pictures of one folder apart.
        words = [one_line(names[number], keep_end=True) for number in numbers]
        rows[-1].set_xticks(numbers, words, rotation=50, ha="right", rotation_mode="anchor", parse_math=False)
    else:
        rows[-1].set_xlabel("number in the table")
    return rendered(figure)


def funnel_plot(panels: Sequence[Panel]) -> Pixels:
    """Density by counted area, with the limits about the pooled density; flagged slides in orange with a name.

    Args:
        panels: the kinds that have a funnel.

    Raises:
        ValueError: a panel has none.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = make_figure(5.4 * columns, 3.7 * rows, _DPI)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(places, panels, strict=False):
        if panel.funnel is None:
            raise ValueError(f"{panel.title}: expected a funnel, got none")
        _label(axes, panel.title, "per mm²")
        axes.set_xlabel("counted area, mm²")
        _draw_limits(axes, panel, panel.funnel)
        for points, style in _groups(panel.points):
            x, y = [point.area_mm2 for point in points], [point.estimate.value for point in points]
            axes.plot(x, y, style["fmt"], color=style["color"], markersize=4)
        _name_flagged(axes, panel.points)
    return rendered(figure)


def _draw_limits(axes: Axes, panel: Panel, funnel: Funnel) -> None:
    areas = [point.area_mm2 for point in panel.points]
    grid = np.linspace(min(areas) * 0.6, max(areas) * 1.12, 160)
    used = np.array([funnel.limits(area) for area in grid.tolist()])
    axes.axhline(funnel.per_mm2, color=FAINT, linestyle="--", linewidth=1, label="pooled density")
    for side in (0, 1):
        named = "99.8 % limits" if side else None
        axes.plot(grid, used[:, side], color=INK, linewidth=1, label=named)
    if funnel.widened:
        sampling = np.array([funnel.limits(area, sampling_only=True) for area in grid.tolist()])
        for side in (0, 1):
            named = "of sampling alone" if side else None
            axes.plot(grid, sampling[:, side], color=INK, linewidth=1, linestyle=":", label=named)
    axes.set_xlim(grid[0], grid[-1])
    highest = max(used[:, 1].max(), *(point.estimate.value for point in panel.points))
    lowest = min(used[:, 0].min(), *(point.estimate.value for point in panel.points))
    # Room above the points for the legend.
    axes.set_ylim(max(lowest - 0.1 * (highest - lowest), 0), highest + 0.3 * (highest - lowest))
    axes.legend(loc="upper right", frameon=False, fontsize=8, ncols=3)


def _name_flagged(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside the flagged points, but none upon another: the table of the page has them all."""
    flagged = [point for point in points if point.side]
    room_x, room_y = 0.25 * np.ptp(axes.get_xlim()), 0.05 * np.ptp(axes.get_ylim())
    placed: list[tuple[float, float]] = []
    for point in flagged if len(flagged) <= _LABELLED else ():
        x, y = point.area_mm2, point.estimate.value
        if any(abs(x - other_x) < room_x and abs(y - other_y) < room_y for other_x, other_y in placed):
            continue
        placed.append((x, y))
        left = x > np.mean(axes.get_xlim())
        axes.annotate(
            one_line(point.name, keep_end=True),
            (x, y),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            color=ORANGE,
            parse_math=False,
        )


def _groups(points: Sequence[Point]) -> list[tuple[list[Point], dict[str, Any]]]:
    """The slides within limits and those that are flagged, with their looks: colour and shape both tell."""
    looks = (("o", BLUE, False), ("D", ORANGE, True))
    found = [([p for p in points if bool(p.side) is flagged], marker, colour) for marker, colour, flagged in looks]
    return [(group, {"fmt": marker, "color": colour}) for group, marker, colour in found if group]


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(one_line(title), loc="left", fontsize=10, parse_math=False)
    axes.set_ylabel(unit)
    tidy(axes)
    axes.ticklabel_format(axis="y", useOffset=False)
