"""`smearcount crop`: the 452 x 452 px patch of every cell as a PNG, and a manifest that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from smearcount.batch import Progress, analyze_each, unique_stems
from smearcount.images import write_picture, write_text_atomic
from smearcount.pipeline import Pipeline
from smearcount.report import CELL_COLUMNS, Row, cell_rows, to_csv

__all__ = ["MANIFEST_COLUMNS", "write_crops"]

MANIFEST_COLUMNS = ("file", *CELL_COLUMNS, "side_um", "filled")


def write_crops(
    pipeline: Pipeline, images: Iterable[Path], out: Path, progress: Progress = iter
) -> tuple[int, list[str]]:
    """Cut every cell of every picture out; returns the number of patches and the reasons of the failures.

    Raises:
        ImageError: the folder can't be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    stems = unique_stems(images)
    rows: list[Row] = []
    failed: list[str] = []
    for path, analysis in analyze_each(pipeline, progress(stems), lambda path: (path.name, "")):
        if isinstance(analysis, str):
            failed.append(analysis)
            continue
        for patch, row in zip(analysis.patches(), cell_rows(analysis.result), strict=True):
            name = f"{stems[path]}_{patch.cell_id:05d}_{row['kind']}_{row['label']}.png"
            write_picture(out / name, patch.pixels)
            rows.append({"file": name, **row, "side_um": f"{patch.side_um:g}", "filled": f"{patch.filled:.4f}"})
    write_text_atomic(out / "manifest.csv", to_csv(MANIFEST_COLUMNS, rows))
    return len(rows), failed
