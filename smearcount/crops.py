"""`smearcount crop`: the 452 x 452 px patch of every cell as a PNG, and a manifest that lists them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from smearcount.batch import Failure, Progress, analyze_each, unique_stems
from smearcount.errors import UsageError
from smearcount.images import grow_text, make_folder, write_picture
from smearcount.manifests import MANIFEST, MANIFEST_COLUMNS
from smearcount.pipeline import Analysis, Pipeline
from smearcount.report import Row, cell_rows, to_csv
from smearcount.taxonomy import file_name_of

__all__ = ["write_crops"]


def write_crops(
    pipeline: Pipeline, images: Iterable[Path], out: Path, progress: Progress = iter
) -> tuple[int, list[str]]:
    """Cut every cell of every picture out; returns the number of patches and the reasons of the failures.

    Patches of other pictures that lie in the folder already stay in the manifest; those of a picture of the same name
    are replaced, unless it fails now.

    Raises:
        ImageError: the folder can't be written.
        UsageError: it holds another file of the name of the manifest.
    """
    stems = unique_stems(images, full=True)
    written = 0
    failed: list[str] = []
    before = _listed(make_folder(out) / MANIFEST)

    def finish(path: Path, analysis: Analysis) -> list[Row]:
        rows = _write_patches(analysis, out, stems[path])
        for name in {row["file"] for row in before.pop(stems[path], [])} - {row["file"] for row in rows}:
            (out / str(name)).unlink(missing_ok=True)
        return rows

    with grow_text(out / MANIFEST) as add:
        add(to_csv(MANIFEST_COLUMNS, []))
        for _, outcome in analyze_each(pipeline, progress(stems), lambda path: (path.name, ""), finish):
            if isinstance(outcome, Failure):
                failed.append(outcome.reason)
                continue
            add(to_csv(MANIFEST_COLUMNS, outcome, header=False))
            written += len(outcome)
        for rows in before.values():
            add(to_csv(MANIFEST_COLUMNS, [row for row in rows if (out / str(row["file"])).is_file()], header=False))
    return written, failed


def _listed(manifest: Path) -> dict[str, list[Row]]:
    """The rows of a manifest by the stem of their files; nothing where there is none."""
    if not manifest.is_file():
        return {}
    refused = UsageError(f"{manifest}: no manifest of this version of `smearcount crop`; give another folder")
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != MANIFEST_COLUMNS:
                raise refused
            rows: dict[str, list[Row]] = {}
            for row in reader:
                stem = row["file"].rpartition(f"_{row['cell_id'].zfill(5)}_{row['kind']}_")[0]
                rows.setdefault(stem, []).append(dict(row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise refused from error
    return rows


def _write_patches(analysis: Analysis, out: Path, stem: str) -> list[Row]:
    """The rows of the manifest for one picture, whose patches are all there or, if it fails, none of them."""
    rows: list[Row] = []
    written: list[Path] = []
    try:
        result = analysis.result
        found_as = result.detections.kinds if result.found_as is None else result.found_as
        for patch, row, found in zip(analysis.patches(), cell_rows(result), found_as.tolist(), strict=True):
            name = f"{stem}_{patch.cell_id:05d}_{row['kind']}_{file_name_of(str(row['label']))}.png"
            written.append(write_picture(out / name, patch.pixels))
            size = {"side_um": f"{patch.side_um:g}", "um_per_px": f"{patch.um_per_px:.6g}"}
            rows.append({"file": name, **row, "found_as": found, **size, "filled": f"{patch.filled:.4f}"})
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return rows
