"""A directory of pictures, one row each: failures are rows too, and every output is whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import IO

from smearcount import report
from smearcount.errors import ImageError, SmearcountError
from smearcount.images import find_images, write_picture
from smearcount.pipeline import Analysis, Pipeline

__all__ = ["BatchJob", "Outcome", "analyze_each", "run_batch", "unique_stems"]

Progress = Callable[[Iterable[Path]], Iterable[Path]]


@dataclass(frozen=True)
class BatchJob:
    """What `smearcount batch` was asked for.

    Attributes:
        folder: where the pictures are.
        report: the CSV report to write.
        cells: a CSV of every cell, if wanted.
        overlays: a folder for the annotated pictures, if wanted.
        recursive: sub-folders too; a picture's slide is then its sub-folder.
    """

    folder: Path
    report: Path
    cells: Path | None = None
    overlays: Path | None = None
    recursive: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a batch went: pictures analysed, and the failures as (picture, reason)."""

    done: int
    failed: tuple[tuple[str, str], ...]


def analyze_each(
    pipeline: Pipeline, paths: Iterable[Path], ids: Callable[[Path], tuple[str, str]]
) -> Iterator[tuple[Path, Analysis | str]]:
    """Each picture with its analysis, or with the reason why there is none; a bad file costs only itself."""
    for path in paths:
        image_id, slide_id = ids(path)
        try:
            yield path, pipeline.analyze(path, image_id=image_id, slide_id=slide_id)
        except SmearcountError as error:
            yield path, str(error)
        except MemoryError:
            yield (
                path,
                f"{path}: not enough memory for this picture; analyse it on a larger machine or lower its size",
            )


def run_batch(pipeline: Pipeline, job: BatchJob, progress: Progress = iter) -> Outcome:
    """Analyse every picture of a folder and write the report.

    Raises:
        ImageError: the folder does not exist or holds no picture, or an output can't be written.
    """
    paths = find_images(job.folder, job.recursive)
    if not paths:
        hint = "" if job.recursive else "; use --recursive for sub-folders"
        raise ImageError(f"{job.folder}: no pictures found{hint}")

    def ids(path: Path) -> tuple[str, str]:
        relative = path.relative_to(job.folder)
        return (relative.as_posix(), "" if relative.parent == Path() else relative.parent.as_posix())

    failed: list[tuple[str, str]] = []
    with _whole_or_absent(job.report) as rows, _whole_or_absent(job.cells) as cells:
        columns = report.report_columns(pipeline.taxonomy)
        rows.write(report.to_csv(columns, []))
        cells.write(report.to_csv(report.CELL_COLUMNS, []))
        for path, analysis in analyze_each(pipeline, progress(paths), ids):
            if isinstance(analysis, str):
                failed.append((ids(path)[0], analysis))
                row = report.failure_row(*ids(path), analysis, pipeline.taxonomy)
            else:
                row = report.report_row(analysis.result, pipeline.taxonomy)
                cells.write(report.to_csv(report.CELL_COLUMNS, report.cell_rows(analysis.result), header=False))
                if job.overlays:
                    _write_overlay(job, path, analysis)
            rows.write(report.to_csv(columns, [row], header=False))
    return Outcome(len(paths) - len(failed), tuple(failed))


def _write_overlay(job: BatchJob, path: Path, analysis: Analysis) -> None:
    relative = path.relative_to(job.folder)
    target = (job.overlays or Path()) / relative.parent / f"{relative.name}.overlay.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_picture(target, analysis.overlay())


def unique_stems(paths: Iterable[Path]) -> dict[Path, str]:
    """Stem for the output files of each picture; pictures of one stem keep their full file names.

    Case makes no difference: files that differ in nothing else are one file on Windows and macOS.
    """
    listed = list(dict.fromkeys(paths))
    shared = Counter(path.stem.casefold() for path in listed)
    out: dict[Path, str] = {}
    taken: set[str] = set()
    for path in listed:
        wanted = path.stem if shared[path.stem.casefold()] == 1 else path.name
        numbered = (f"{wanted}-{i}" for i in count(2))
        stem = next(name for name in chain([wanted], numbered) if name.casefold() not in taken)
        taken.add(stem.casefold())
        out[path] = stem
    return out


@contextmanager
def _whole_or_absent(path: Path | None) -> Iterator[IO[str]]:
    """A text file that appears under its name when the block has ended well, and not at all otherwise."""
    if path is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield nowhere
        return
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}-", dir=path.parent)
        scratch = Path(name)
        # A file name that is no Unicode must not cost the report of all others.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
        scratch.chmod(0o644)
        scratch.replace(path)
    except OSError as error:
        raise ImageError(f"{path}: can't be written ({error.strerror}); free space or choose another place") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
