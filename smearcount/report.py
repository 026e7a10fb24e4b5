"""Results as rows and text: the cells table, the report row, the table on screen.

Columns and their order are fixed: scripts depend on them. The same result gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smearcount.counting import (
    NOTHING,
    Estimate,
    classified_total,
    codes_given,
    density_per_mm2,
    kind_total,
    kind_totals,
    names_kind,
    percentage,
    rate,
)
from smearcount.geometry import diameters
from smearcount.quality import remarks, warnings_of
from smearcount.records import KINDS, UNCLASSIFIED, Counts, SmearResult
from smearcount.taxonomy import Taxonomy

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "CELL_COLUMNS",
    "TEXT_COLUMNS",
    "Line",
    "cell_rows",
    "cells_csv",
    "failure_row",
    "limits_text",
    "percent_number",
    "percent_text",
    "rates_of",
    "report_columns",
    "report_row",
    "screen_table",
    "summary_lines",
    "to_csv",
]

CELL_COLUMNS = (
    *("image", "slide", "cell_id", "kind", "label", "score", "label_score", "x_min", "y_min", "x_max", "y_max"),
    *("diameter_um", "at_edge", "counted", "runner_up", "runner_up_score"),
)
HEAD_COLUMNS = (
    *("image", "slide", "status", "error", "width", "height", "um_per_px", "um_per_px_source"),
    *("n_rbc", "n_wbc", "n_nrbc", "n_platelet", "n_unclassified", "n_excluded"),
)
RATES = (
    ("nrbc_per_100_wbc", "nrbc", "wbc", 100.0, "nucleated red cells per 100 white cells"),
    ("platelet_per_1000_rbc", "platelet", "rbc", 1000.0, "platelets per 1,000 red cells"),
)
TAIL_COLUMNS = ("model_ids", "version", "image_sha256")
TEXT_COLUMNS = ("image", "slide", "status", "error", "um_per_px_source", *TAIL_COLUMNS)
"""The other columns of the report are numbers."""

WITH_PERCENTAGES = ("rbc", "wbc")

Row = dict[str, str | int]


def cell_rows(result: SmearResult) -> list[Row]:
    """One row for every cell above the threshold, in the order of the detections."""
    cells = result.detections
    sizes = diameters(cells.boxes) * result.scale.um_per_px
    named = _best_two(result)
    rows: list[Row] = []
    for i in range(len(cells)):
        best, second, second_code = named[i]
        x_min, y_min, x_max, y_max = (f"{v:.2f}" for v in cells.boxes[i])
        values = (
            *(result.image_id, result.slide_id, i, str(cells.kinds[i]), str(result.names[i])),
            *(f"{cells.scores[i]:.4f}", best, x_min, y_min, x_max, y_max, f"{sizes[i]:.2f}"),
            *(int(cells.at_edge[i]), int(result.counted[i]), second_code, second),
        )
        rows.append(dict(zip(CELL_COLUMNS, values, strict=True)))
    return rows


def _best_two(result: SmearResult) -> list[tuple[str, str, str]]:
    """Probability of the name, that of the runner-up, and the runner-up; empty where no classifier was asked.

    Of a cell without a name the runner-up is the most probable code.
    """
    probs, codes = result.labels.probs, result.labels.codes
    if len(codes) < 2:
        return [("", "", "")] * len(probs)
    order = np.argsort(-probs, axis=1, kind="stable")[:, :2]
    best: list[tuple[str, str, str]] = []
    for row, (first, second), name in zip(probs, order, result.names.tolist(), strict=True):
        if not row.any():
            best.append(("", "", ""))
        elif name == UNCLASSIFIED:
            best.append(("", f"{row[first]:.4f}", codes[first]))
        else:
            best.append((f"{row[first]:.4f}", f"{row[second]:.4f}", codes[second]))
    return best


class _Lines(io.StringIO):
    """Takes rows as `csv` writes them. It quotes the characters of the end of a row alone, so it is told of both."""

    END = "\r\n"

    def write(self, row: str) -> int:
        """Add one row."""
        return super().write(row.removesuffix(self.END) + "\n")


def to_csv(columns: Sequence[str], rows: Iterable[Row], *, header: bool = True) -> str:
    """Rows as CSV text with line feeds at the ends of lines."""
    stream = _Lines(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator=_Lines.END)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def cells_csv(result: SmearResult) -> str:
    """The content of `<stem>.cells.csv`."""
    return to_csv(CELL_COLUMNS, cell_rows(result))


def report_columns(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Columns of `report.csv` for a taxonomy."""
    columns = list(HEAD_COLUMNS)
    for code, kind in taxonomy.kind_of.items():
        columns.append(f"count_{code}")
        if kind in WITH_PERCENTAGES:
            columns += [f"pct_{code}", f"pct_{code}_low", f"pct_{code}_high"]
    for name, *_ in RATES:
        columns += [name, f"{name}_low", f"{name}_high"]
    return (*columns, *TAIL_COLUMNS)


def report_row(result: SmearResult, taxonomy: Taxonomy) -> Row:
    """The row of a picture in `report.csv`; empty where no model can give the code or the kind."""
    counts, given = result.counts, codes_given(result.labels)
    totals = kind_totals(result.counts, result.labels, taxonomy)
    row: Row = {
        "image": result.image_id,
        "slide": result.slide_id,
        "status": "ok",
        "error": "",
        "width": result.size_wh[0],
        "height": result.size_wh[1],
        "um_per_px": f"{result.scale.um_per_px:.6g}",
        "um_per_px_source": result.scale.source,
        **{f"n_{kind}": "" if n is None else n for kind, n in totals.items()},
        "n_unclassified": sum(counts.unclassified.values()),
        "n_excluded": sum(counts.excluded.values()),
    }
    for code, kind in taxonomy.kind_of.items():
        n = counts.named.get(code, 0)
        row[f"count_{code}"] = n if code in given else ""
        if kind in WITH_PERCENTAGES:
            share = percentage(n, classified_total(counts, kind, taxonomy)) if code in given else NOTHING
            row |= _columns(f"pct_{code}", share)
    for name, value in rates_of(totals).items():
        row |= _columns(name, value)
    row["model_ids"] = " ".join(result.provenance.model_ids)
    row["version"] = result.provenance.version
    row["image_sha256"] = result.image_sha256
    return row


def rates_of(totals: Mapping[str, int | None]) -> dict[str, Estimate]:
    """Each of `RATES` by its name, from the counted cells of every kind."""
    rates = {}
    for name, part, whole, per, _ in RATES:
        x, y = totals[part], totals[whole]
        rates[name] = NOTHING if x is None or y is None else rate(x, y, per)
    return rates


def failure_row(image_id: str, slide_id: str, error: str, taxonomy: Taxonomy) -> Row:
    """The row of a picture that could not be analysed: status, reason, and nothing else."""
    row: Row = dict.fromkeys(report_columns(taxonomy), "")
    return {**row, "image": image_id, "slide": slide_id, "status": "failed", "error": error}


def _columns(name: str, estimate: Estimate) -> Row:
    values = (estimate.value, estimate.low, estimate.high)
    return {
        f"{name}{suffix}": f"{v:.4g}" if math.isfinite(v) else "inf" if v > 0 else ""
        for suffix, v in zip(("", "_low", "_high"), values, strict=True)
    }


@dataclass(frozen=True)
class Line:
    """One line of the table: a kind (level 0) or a code of it (level 1)."""

    level: int
    kind: str
    key: str
    name: str
    count: int
    share: Estimate
    density: Estimate


def summary_lines(result: SmearResult, taxonomy: Taxonomy) -> list[Line]:
    """Kinds with their share of all cells and density, and below each the codes seen, in per cent of the classified.

    Cells without a name have a line of their own where the models name cells of their kind.
    """
    counts, area_um2 = result.counts, result.counted_area_um2
    everything = sum(kind_total(counts, kind, taxonomy) for kind in KINDS)
    lines = []
    for kind in taxonomy.kinds:
        n, classified = (kind_total(counts, kind, taxonomy), classified_total(counts, kind, taxonomy))
        if n == 0 and kind == "nrbc":
            continue
        density = density_per_mm2(n, area_um2)
        lines.append(Line(0, kind, kind, taxonomy.kinds[kind].name, n, percentage(n, everything), density))
        codes = [code for code in taxonomy.codes_of(kind) if counts.named.get(code, 0)]
        if len(taxonomy.codes_of(kind)) == 1:
            continue
        for code in codes:
            k = counts.named[code]
            share = percentage(k, classified)
            lines.append(Line(1, kind, code, taxonomy.codes[code].name, k, share, density_per_mm2(k, area_um2)))
        k = counts.unclassified.get(kind, 0)
        if k and (codes or names_kind(result.labels, kind, taxonomy)):
            lines.append(Line(1, kind, UNCLASSIFIED, "Unclassified", k, NOTHING, density_per_mm2(k, area_um2)))
    return lines


def percent_number(value: float) -> str:
    """`12.3`; with two significant digits below 1: `0.038`; `0`, `100`, or a dash where there is nothing to say."""
    if math.isnan(value):
        return "-"
    if value in (0, 100):
        return f"{value:.0f}"
    return f"{value:,.1f}" if value >= 1 else f"{Decimal(f'{value:.1e}'):f}"


def whole_number(value: float) -> str:
    """`1,234`, or a dash where there is nothing to say."""
    return "-" if math.isnan(value) else f"{value:,.0f}"


def limits_text(estimate: Estimate, number: Callable[[float], str] = percent_number) -> str:
    """`low - high`, or a dash where there is nothing to say."""
    return "-" if math.isnan(estimate.value) else f"{number(estimate.low)} - {number(estimate.high)}"


def percent_text(estimate: Estimate) -> str:
    """`12.3 (10.1 - 14.8)`, or a dash."""
    number = percent_number(estimate.value)
    return number if math.isnan(estimate.value) else f"{number} ({limits_text(estimate)})"


def screen_table(result: SmearResult, taxonomy: Taxonomy) -> Table:
    """The table a technician reads at a glance: type, count, per cent, 95 % limits, density."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lines = summary_lines(result, taxonomy)
    # Text, not str: a file name may hold what rich would read as markup.
    title, caption = Text(result.image_id, "bold"), Text(_caption(result, taxonomy, lines))
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", **look)
    shares = _pointed([percent_number(line.share.value) for line in lines])
    rows = [_cells_of(line, share) for line, share in zip(lines, shares, strict=True)]
    table.add_column("type", overflow="fold", min_width=12)
    for column, heading in enumerate(("count", "per cent", "95 % limits", "per mm2", "95 % limits"), start=1):
        # In a narrow window the type may wrap, but no number is ever cut.
        widest = max([len(heading), *(len(row[column]) for row in rows)])
        # Of what is flush right, rich takes the spaces off that keep the points below each other.
        side: Literal["left", "right"] = "left" if heading == "per cent" else "right"
        table.add_column(heading, justify=side, no_wrap=True, min_width=widest)
    for line, row in zip(lines, rows, strict=True):
        table.add_row(*row, style="bold" if line.level == 0 else "")
    return table


def _pointed(numbers: Sequence[str]) -> list[str]:
    """Numbers of a column with their decimal points below each other, flush right below its heading."""
    behind = [len("".join(number.partition(".")[1:])) for number in numbers]
    most = max(behind, default=0)
    return [(number + " " * (most - n)).rjust(len("per cent")) for number, n in zip(numbers, behind, strict=True)]


def _cells_of(line: Line, share: str) -> tuple[str, ...]:
    return (
        "  " * line.level + line.name,
        f"{line.count:,}",
        share,
        limits_text(line.share),
        whole_number(line.density.value),
        limits_text(line.density, whole_number),
    )


def _excluded(counts: Counts) -> str:
    """How many cells are not counted, and why."""
    reasons = [f"{n:,} {'at the edge' if name == 'edge' else name}" for name, n in counts.excluded.items() if n]
    return f"{', '.join(reasons) or 'none'} not counted"


def _caption(result: SmearResult, taxonomy: Taxonomy, lines: Sequence[Line]) -> str:
    rates = rates_of(kind_totals(result.counts, result.labels, taxonomy))
    of_codes = "; of a type: of the named cells of its kind" if any(line.level for line in lines) else ""
    words = [
        *(f"{words}: {percent_text(rates[name])}" for name, *_, words in RATES if not math.isnan(rates[name].value)),
        f"per cent: of all cells{of_codes}; limits: sampling error only",
        f"{len(result.detections):,} cells found, {_excluded(result.counts)}",
        f"scale {result.scale.um_per_px:.4g} um/px ({result.scale.source})",
        *([f"read: {'; '.join(result.reading)}"] if result.reading else []),
        *remarks(result, taxonomy),
        *warnings_of(result, taxonomy),
    ]
    return "\n".join(words)
