"""Totals of slides: the counts of a slide's fields are pooled, and percentages and limits follow from the sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smearcount.records import Counts, Detections, Labels, Provenance, Quality, Scale, SmearResult
from smearcount.report import Row, report_columns, report_row
from smearcount.taxonomy import Taxonomy

__all__ = ["counts_as_json", "slide_columns", "slide_rows"]

_HEAD = ("slide", "status", "error", "images", "failed", "warned", "copies", "excluded", "counted_area_mm2")


@dataclass
class _Slide:
    images: int = 0
    failed: int = 0
    warned: int = 0
    copies: int = 0
    area_um2: float = 0.0
    counts: Counts = field(default_factory=Counts)
    codes: tuple[str, ...] = ()
    models: str = ""
    version: str = ""


def slide_columns(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Columns of the slide report: those of the report that can be pooled, behind the slide and its pictures."""
    columns = report_columns(taxonomy)
    return (*_HEAD, *columns[columns.index("n_rbc") : columns.index("image_sha256")])


def counts_as_json(result: SmearResult) -> dict[str, Any]:
    """What slides and the summary need of one picture, as plain values."""
    counts = result.counts
    return {
        "named": {code: n for code, n in counts.named.items() if n},
        "unclassified": dict(counts.unclassified),
        "excluded": dict(counts.excluded),
        "codes": list(result.labels.codes),
        "area_um2": result.counted_area_um2,
        "warnings": list(result.quality.warnings),
        "reading": list(result.reading),
        "shares": dict(result.quality.shares),
        "judged_um2": result.quality.judged_um2,
    }


def slide_rows(pictures: Iterable[tuple[Row, Mapping[str, Any]]], taxonomy: Taxonomy) -> Iterator[Row]:
    """One row a slide, in the order in which they first appear; the pictures without a slide are pooled, too.

    Args:
        pictures: row of the report of each picture, and its `counts_as_json`, which is empty where it failed; it has
            `copy_of` where an earlier picture of the slide has the same content.
        taxonomy: names and kinds of the codes.
    """
    slides: dict[str, _Slide] = {}
    for row, counts in pictures:
        slide = slides.setdefault(str(row["slide"]), _Slide())
        slide.images += 1
        if not counts:
            slide.failed += 1
            continue
        slide.counts += Counts(counts["named"], counts["unclassified"], counts["excluded"])
        slide.warned += bool(counts["warnings"])
        slide.copies += "copy_of" in counts
        slide.area_um2 += counts["area_um2"]
        slide.codes = tuple(dict.fromkeys((*slide.codes, *counts["codes"])))
        slide.models, slide.version = str(row["model_ids"]), str(row["version"])
    for name, slide in slides.items():
        yield _row(name, slide, taxonomy)


def _row(name: str, slide: _Slide, taxonomy: Taxonomy) -> Row:
    head: Row = {
        "slide": name,
        "status": "ok" if not slide.failed else "partial" if slide.failed < slide.images else "failed",
        "error": f"{slide.failed} of {slide.images} pictures failed" if slide.failed else "",
        "images": slide.images,
        "failed": slide.failed,
        "warned": slide.warned,
        "copies": slide.copies,
        "excluded": "; ".join(f"{reason} {n}" for reason, n in slide.counts.excluded.items() if n),
        "counted_area_mm2": f"{slide.area_um2 / 1e6:.6g}",
    }
    if slide.failed == slide.images:
        return {**dict.fromkeys(slide_columns(taxonomy), ""), **head, "counted_area_mm2": ""}
    pooled = report_row(_as_result(slide), taxonomy)
    return {column: head.get(column, pooled.get(column, "")) for column in slide_columns(taxonomy)}


def _as_result(slide: _Slide) -> SmearResult:
    """The slide as one picture without cells: only its counts and codes are looked at."""
    return SmearResult(
        image_id="",
        slide_id="",
        size_wh=(0, 0),
        image_sha256="",
        scale=Scale(1.0, "assumed"),
        detections=Detections.empty(),
        labels=Labels(np.zeros((0, len(slide.codes)), np.float32), slide.codes),
        names=np.zeros(0, "<U8"),
        counted=np.zeros(0, np.bool_),
        counts=slide.counts,
        counted_area_um2=slide.area_um2,
        quality=Quality(0.0, 0.0, 0.0),
        provenance=Provenance(slide.version, tuple(slide.models.split()), {}, "", {}),
    )
