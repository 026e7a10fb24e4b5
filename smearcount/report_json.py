"""Results as JSON: the report of a picture, and the line that `analyze --json` prints of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from smearcount.counting import Estimate, kind_totals
from smearcount.quality import NOT_RECOGNISED, remarks, warnings_of
from smearcount.records import SmearResult
from smearcount.report import TEXT_COLUMNS, Row, rates_of, report_columns, summary_lines
from smearcount.taxonomy import Taxonomy

__all__ = ["json_line", "json_report"]


def json_report(result: SmearResult, taxonomy: Taxonomy) -> str:
    """The content of `<stem>.json`: everything but the single cells.

    Null stands for what no model can tell.
    """
    totals = kind_totals(result.counts, result.labels, taxonomy)
    content: dict[str, Any] = {
        "image": result.image_id,
        "slide": result.slide_id,
        "image_sha256": result.image_sha256,
        "width": result.size_wh[0],
        "height": result.size_wh[1],
        "reading": list(result.reading),
        "scale": {
            "um_per_px": result.scale.um_per_px,
            "source": result.scale.source,
            "median_red_cell_px": result.scale.red_cell_px,
            "note": result.scale.note,
        },
        "counts": {
            **{f"n_{kind}": n for kind, n in totals.items()},
            "named": {code: n for code, n in result.counts.named.items() if n},
            "unclassified": dict(result.counts.unclassified),
            "excluded": dict(result.counts.excluded),
            "found": len(result.detections),
        },
        "counted_area_mm2": result.counted_area_um2 / 1e6,
        "limits": "95 %, sampling error only",
        "table": [
            {
                **{"type": line.key, "kind": line.kind, "name": line.name, "count": line.count},
                **{"percent": _triple(line.share), "per_mm2": _triple(line.density)},
            }
            for line in summary_lines(result, taxonomy)
        ],
        "rates": {name: _triple(value) for name, value in rates_of(totals).items()},
        "quality": {
            "sharpness": result.quality.sharpness,
            "red_cell_cover": result.quality.red_cell_cover,
            "overlapping": result.quality.overlapping,
            "warnings": list(warnings_of(result, taxonomy)),
            "area_shares": {name: round(share, 4) for name, share in result.quality.shares.items()},
        },
        "notes": list(remarks(result, taxonomy)),
        "not_recognised": list(NOT_RECOGNISED),
        "provenance": {
            "version": result.provenance.version,
            "models": list(result.provenance.model_ids),
            "sha256": dict(result.provenance.sha256),
            "runtime": result.provenance.runtime,
            "settings": dict(result.provenance.settings),
        },
        "use": "research use; no medical device",
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def json_line(row: Row, result: SmearResult | None, taxonomy: Taxonomy, files: Iterable[str] = ()) -> str:
    """What `analyze --json` prints of a picture: the columns of its row, then warnings, notes and the files written.

    Args:
        row: of the report.
        result: what the row is about; None for a picture that failed.
        taxonomy: of both.
        files: paths as they were written.

    Returns:
        One line with the same keys for every picture; what is empty in the row is null.
    """
    values: dict[str, Any] = {column: row[column] for column in report_columns(taxonomy)}
    for column, value in values.items():
        if value == "":
            values[column] = None
        elif column not in TEXT_COLUMNS:
            values[column] = value if isinstance(value, int) else float(value)
    values["reading"] = result.reading if result else ()
    values["warnings"] = warnings_of(result, taxonomy) if result else ()
    values["notes"] = remarks(result, taxonomy) if result else ()
    return json.dumps(_finite({**values, "files": list(files)}))


def _triple(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: they become null. Floats are rounded to six significant digits."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
