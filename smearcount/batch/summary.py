"""The summary of a batch: one HTML file that needs nothing else, made from the rows of its pictures alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smearcount.arrays import Pixels
from smearcount.batch.funnel import FEWEST, FEWEST_TO_WIDEN, Funnel, fit_funnel
from smearcount.batch.slides import slide_rows
from smearcount.batch.summary_plots import WITH_BARS, Panel, Point, funnel_plot, level_plot
from smearcount.counting import NOTHING, Estimate, density_per_mm2, percentage, poisson_limits
from smearcount.images import replacing
from smearcount.pages import data_uri, page_of
from smearcount.quality import ENOUGH_WHITE
from smearcount.records import KINDS
from smearcount.report import Row, percent_number
from smearcount.taxonomy import Taxonomy

__all__ = ["SHOWN_FAILED", "SHOWN_UNITS", "SHOWN_WARNED", "Unit", "write_summary"]

SHOWN_FAILED = 200
"""Failed pictures named on the page."""

SHOWN_WARNED = 200
"""Pictures with a warning named on the page."""

SHOWN_NOTES = 50
"""Notes on how files were read on the page."""

SHOWN_UNITS = 1000
"""Slides in the tables of the page."""

_UNNAMED = "(no slide)"


@dataclass(frozen=True)
class Unit:
    """A slide, or a picture where there are no slides, or all of them together.

    Attributes:
        name: of the slide or picture, with what can't be printed escaped.
        images: its pictures.
        failed: those without a result.
        area_mm2: counted area, square millimetres.
        totals: counted cells by kind, None where no model can tell.
        white: counted cells by code of the white cells, None where no model gives the code.
        unclassified: counted cells without a name.
        excluded: cells found and not counted.
    """

    name: str
    images: int
    failed: int
    area_mm2: float
    totals: Mapping[str, int | None]
    white: Mapping[str, int | None]
    unclassified: int
    excluded: int

    @property
    def classified(self) -> int:
        """White cells with a name: the denominator of the differential."""
        return sum(n or 0 for n in self.white.values())

    def density(self, kind: str) -> Estimate:
        """Cells a square millimetre with exact 95 % Poisson limits."""
        n = self.totals[kind]
        return NOTHING if n is None else density_per_mm2(n, self.area_mm2 * 1e6)

    def count(self, kind: str) -> Estimate:
        """Counted cells with exact 95 % Poisson limits."""
        n = self.totals[kind]
        return NOTHING if n is None or self.failed == self.images else Estimate(n, *poisson_limits(n))

    def share(self, code: str) -> Estimate:
        """A white cell's code in per cent of the classified ones, with exact 95 % binomial limits."""
        n = self.white[code]
        return NOTHING if n is None else percentage(n, self.classified)


@dataclass
class _Tally:
    """What is said of the pictures one by one."""

    pictures: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    failures: int = 0
    models: dict[str, None] = field(default_factory=dict)
    versions: dict[str, None] = field(default_factory=dict)
    scales: dict[str, int] = field(default_factory=dict)
    warned: list[tuple[str, list[str]]] = field(default_factory=list)
    warnings: int = 0
    reading: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    judged_um2: Counter[str] = field(default_factory=Counter)

    def see(self, row: Row, counts: Mapping[str, Any]) -> None:
        self.pictures += 1
        if row["status"] != "ok":
            self.failures += 1
            if len(self.failed) < SHOWN_FAILED:
                self.failed.append((_shown(row["image"]), _shown(row["error"])))
            return
        self.models |= dict.fromkeys(_shown(row["model_ids"]).split())
        self.versions[_shown(row["version"])] = None
        source = _shown(row["um_per_px_source"])
        self.scales[source] = self.scales.get(source, 0) + 1
        self.reading.update(map(_shown, counts["reading"]))
        if counts["warnings"]:
            self.warnings += 1
            if len(self.warned) < SHOWN_WARNED:
                self.warned.append((_shown(row["image"]), [_shown(each) for each in counts["warnings"]]))
        self.excluded.update({_shown(reason): n for reason, n in counts["excluded"].items()})
        for reason, share in counts["shares"].items():
            self.judged_um2[_shown(reason)] += share * counts["judged_um2"]

    @property
    def area_shares(self) -> dict[str, float]:
        """Of what was judged square by square, the share of its area by what was found there."""
        whole = self.judged_um2.total()
        return {reason: area / whole for reason, area in self.judged_um2.items()} if whole else {}


def write_summary(
    path: Path, pictures: Iterable[tuple[Row, Mapping[str, Any]]], taxonomy: Taxonomy, *, slides: bool
) -> None:
    """Write the page: what was analysed, a table with limits, plots, slides to look at, and what failed.

    It stands alone: its pictures are inside, it asks for nothing and runs nothing. The same rows give the same bytes.

    Args:
        path: the HTML file; it is whole or absent.
        pictures: row of the report of each picture, and its `counts_as_json`, which is empty where it failed.
        taxonomy: names and kinds of the codes.
        slides: pool the pictures of a slide; without, each picture stands for itself.

    Raises:
        ImageError: the file can't be written; what was there before still is.
    """
    tally = _Tally()

    def seen() -> Iterator[tuple[Row, Mapping[str, Any]]]:
        for row, counts in pictures:
            tally.see(row, counts)
            yield row if slides else {**row, "slide": row["image"]}, counts

    units = [_unit(row, taxonomy) for row in slide_rows(seen(), taxonomy)]
    content = _content(units, tally, taxonomy, "slide" if slides else "picture")
    filters = {"figure": _figure, "percent": percent_number}
    page = page_of(Path(__file__).with_name("summary.html.j2"), filters, **content)
    with replacing(path, durable=True) as temporary:
        temporary.write_bytes(page.encode())


def _unit(row: Row, taxonomy: Taxonomy) -> Unit:
    def number(column: str) -> int | None:
        return None if row[column] == "" else int(row[column])

    return Unit(
        name=_shown(row["slide"]) or _UNNAMED,
        images=int(row["images"]),
        failed=int(row["failed"]),
        area_mm2=float(row["counted_area_mm2"] or 0),
        totals={kind: number(f"n_{kind}") for kind in KINDS},
        white={code: number(f"count_{code}") for code in taxonomy.codes_of("wbc")},
        unclassified=number("n_unclassified") or 0,
        excluded=number("n_excluded") or 0,
    )


def _pooled(units: Sequence[Unit]) -> Unit:
    def sums(parts: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
        known = {key: [part[key] for part in parts if part[key] is not None] for key in parts[0]}
        return {key: sum(n for n in found if n is not None) if found else None for key, found in known.items()}

    return Unit(
        name="all",
        images=sum(unit.images for unit in units),
        failed=sum(unit.failed for unit in units),
        area_mm2=math.fsum(unit.area_mm2 for unit in units),
        totals=sums([unit.totals for unit in units]),
        white=sums([unit.white for unit in units]),
        unclassified=sum(unit.unclassified for unit in units),
        excluded=sum(unit.excluded for unit in units),
    )


def _funnel(kind: str, units: Sequence[Unit]) -> Funnel | None:
    counted = [(unit.totals[kind], unit.area_mm2) for unit in units if unit.area_mm2 > 0]
    known = [(n, area) for n, area in counted if n is not None]
    return fit_funnel([n for n, _ in known], [area for _, area in known])


def _sides(unit: Unit, funnels: Mapping[str, Funnel | None]) -> dict[str, str]:
    """The kinds in which a slide is outside the funnel, with the side."""
    sides: dict[str, str] = {}
    for kind, funnel in funnels.items():
        n = unit.totals[kind]
        if funnel and n is not None and unit.area_mm2 > 0 and (side := funnel.side(n, unit.area_mm2)):
            sides[kind] = side
    return sides


def _content(units: Sequence[Unit], tally: _Tally, taxonomy: Taxonomy, noun: str) -> dict[str, Any]:
    pooled = _pooled(units)
    kinds = [kind for kind in taxonomy.kinds if pooled.totals.get(kind) is not None]
    names: dict[str, str] = {kind: taxonomy.kinds[kind].name for kind in kinds}
    funnels: dict[str, Funnel | None] = {kind: _funnel(kind, units) for kind in kinds}
    sides = [_sides(unit, funnels) for unit in units]
    lines = [{"number": n, "unit": unit, "sides": sides[n - 1]} for n, unit in enumerate(units, start=1)]
    return {
        "noun": noun,
        "tally": tally,
        "pooled": pooled,
        "kinds": names,
        "codes": {code: taxonomy.codes[code].name for code, n in pooled.white.items() if n is not None},
        "funnels": funnels,
        "lines": lines[:SHOWN_UNITS],
        "n_units": len(units),
        "flagged": [line for line in lines if line["sides"]],
        "without_area": sum(unit.failed < unit.images and not unit.area_mm2 > 0 for unit in units),
        "plots": {
            name: (data_uri(pixels), *pixels.shape[1::-1])
            for name, pixels in _plots(units, sides, funnels, names).items()
        },
        "few_white": ENOUGH_WHITE,
        "shown_notes": SHOWN_NOTES,
        "with_bars": WITH_BARS,
        "fewest": FEWEST,
        "fewest_to_widen": FEWEST_TO_WIDEN,
    }


def _plots(
    units: Sequence[Unit],
    sides: Sequence[Mapping[str, str]],
    funnels: Mapping[str, Funnel | None],
    names: Mapping[str, str],
) -> dict[str, Pixels]:
    """The plots for which there is something to draw."""
    counts: list[Panel] = []
    densities: list[Panel] = []
    for kind, funnel in funnels.items():
        for panels, measure in ((counts, Unit.count), (densities, Unit.density)):
            found = [(n, unit, measure(unit, kind)) for n, unit in enumerate(units, start=1)]
            marks = [sides[n - 1].get(kind, "") if panels is densities else "" for n, _, _ in found]
            points = [
                Point(unit.name, n, unit.area_mm2, value, mark)
                for (n, unit, value), mark in zip(found, marks, strict=True)
                if not math.isnan(value.value)
            ]
            if points:
                panels.append(Panel(names[kind], points, funnel if panels is densities else None))
    fitted = [panel for panel in densities if panel.funnel]
    plots = {"counts": level_plot(counts, "cells")} if counts else {}
    plots |= {"densities": level_plot(densities, "per mm²")} if densities else {}
    return plots | ({"funnels": funnel_plot(fitted)} if fitted else {})


def _shown(text: object) -> str:
    """A name with what can't be printed, or turns the direction of the text, as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def _figure(value: float) -> str:
    """A number with three significant digits at least: `1,234`, `45.6`, `0.0789`."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
