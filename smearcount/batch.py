"""A directory of pictures, one row each: failures are rows too, and every output is whole or absent."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import cv2

from smearcount import report
from smearcount.errors import SmearcountError, UsageError
from smearcount.images import FolderListing, grow_text, list_folder, make_folder, partial_path, write_picture
from smearcount.pipeline import Analysis, Pipeline

__all__ = ["BatchJob", "Failure", "Interrupted", "Outcome", "analyze_each", "run_batch", "unique_stems"]

Progress = Callable[[Iterable[Path]], Iterable[Path]]
Finished = TypeVar("Finished")

_NAME_BYTES = 200
"""Longest stem in bytes: file systems take names of 255, and up to 50 are added to it."""


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

    def ids(self, path: Path) -> tuple[str, str]:
        """Names of a picture and its slide in the report."""
        relative = path.relative_to(self.folder)
        return relative.as_posix(), "" if relative.parent == Path() else relative.parent.as_posix()


@dataclass(frozen=True)
class Outcome:
    """How a batch went.

    Attributes:
        done: pictures analysed.
        failed: (picture, reason) of the others.
        overlays: annotated pictures of an earlier run, left out.
        others: files that are no pictures, left out.
    """

    done: int
    failed: tuple[tuple[str, str], ...]
    overlays: int = 0
    others: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a picture has no result."""

    reason: str


class Interrupted(KeyboardInterrupt):
    """The user stopped a batch; `kept` are the files with the rows finished by then, `done` is their number."""

    def __init__(self, done: int, kept: tuple[Path, ...]) -> None:
        super().__init__(f"stopped after {done} pictures; finished rows: {', '.join(map(str, kept))}")
        self.done = done
        self.kept = kept


def analyze_each(
    pipeline: Pipeline,
    paths: Iterable[Path],
    ids: Callable[[Path], tuple[str, str]],
    finish: Callable[[Path, Analysis], Finished],
) -> Iterator[tuple[Path, Finished | Failure]]:
    """Each picture with what `finish` made of its analysis; a picture that fails, there too, costs only itself.

    Args:
        pipeline: finds and counts.
        paths: pictures.
        ids: names of picture and slide in reports.
        finish: writes what is wanted of a picture, and returns what the caller needs.
    """
    try:
        for path in paths:
            image_id, slide_id = ids(path)
            outcome: Finished | Failure
            try:
                outcome = finish(path, pipeline.analyze(path, image_id=image_id, slide_id=slide_id))
            except (SmearcountError, MemoryError, OSError, cv2.error) as error:
                outcome = Failure(_reason(path, error))
            yield path, outcome
    finally:
        # A progress bar that is closed later than this wipes the words that say why the run was stopped.
        if isinstance(paths, Generator):
            paths.close()


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, SmearcountError):
        return str(error)
    if isinstance(error, MemoryError) or getattr(error, "code", None) == cv2.Error.StsNoMem:
        return f"{path}: not enough memory for this picture; analyse it on a larger machine or lower its size"
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}; check the disk"
    return f"{path}: can't be processed ({getattr(error, 'err', '') or error}); save it as PNG or TIFF and try again"


def run_batch(pipeline: Pipeline, job: BatchJob, progress: Progress = iter) -> Outcome:
    """Analyse every picture of a folder and write the report.

    Raises:
        UsageError: there is no picture, or an output would replace another or a picture.
        ImageError: the folder can't be listed, or an output can't be written.
        Interrupted: the user stopped it; the finished rows are kept beside the report.
    """
    listing = list_folder(job.folder, job.recursive, job.overlays)
    _check(job, listing)
    columns = report.report_columns(pipeline.taxonomy)
    failed: list[tuple[str, str]] = []
    done = 0
    try:
        with grow_text(job.report) as add_row, grow_text(job.cells) if job.cells else nullcontext(_drop) as add_cells:
            add_row(report.to_csv(columns, []))
            add_cells(report.to_csv(report.CELL_COLUMNS, []))
            for path, outcome in analyze_each(pipeline, progress(listing.pictures), job.ids, partial(_finish, job)):
                if isinstance(outcome, Failure):
                    failed.append((job.ids(path)[0], outcome.reason))
                    row = report.failure_row(*job.ids(path), outcome.reason, pipeline.taxonomy)
                else:
                    row, cells = outcome
                    add_cells(report.to_csv(report.CELL_COLUMNS, cells, header=False))
                add_row(report.to_csv(columns, [row], header=False))
                done += 1
    except KeyboardInterrupt as stop:
        raise Interrupted(done, tuple(partial_path(path) for path in (job.report, job.cells) if path)) from stop
    return Outcome(done - len(failed), tuple(failed), listing.overlays, listing.others)


def _finish(job: BatchJob, path: Path, analysis: Analysis) -> tuple[report.Row, list[report.Row]]:
    """Write the overlay, if wanted; the row of the report and those of the cells, if wanted."""
    if job.overlays:
        relative = path.relative_to(job.folder)
        target = job.overlays / relative.parent / f"{_shortened(relative.name)}.overlay.jpg"
        make_folder(target.parent)
        write_picture(target, analysis.overlay())
    cells = report.cell_rows(analysis.result) if job.cells else []
    return report.report_row(analysis.result, analysis.taxonomy), cells


def _drop(text: str) -> None:
    """For the cells of a batch that lists none."""


def _check(job: BatchJob, listing: FolderListing) -> None:
    """Refuse, before the first picture, what would end badly after the last one."""
    if not listing.pictures:
        left_out = f" ({listing.overlays} overlays left out)" if listing.overlays else ""
        hint = "" if job.recursive else "; use --recursive for sub-folders"
        raise UsageError(f"{job.folder}: no pictures found{left_out}{hint}")
    targets = [path.resolve() for path in (job.report, job.cells) if path]
    if len(set(targets)) < len(targets):
        raise UsageError(f"{job.report}: --out and --cells are one file; give them different names")
    pictures = {path.resolve() for path in listing.pictures}
    for target in targets:
        if target in pictures:
            raise UsageError(f"{target}: is one of the pictures to analyse; give the report another name")
    if job.overlays:
        make_folder(job.overlays)


def _shortened(name: str) -> str:
    """A name of at most `_NAME_BYTES` bytes; a long one ends in a digest, so that no two become the same."""
    encoded = os.fsencode(name)
    if len(encoded) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: _NAME_BYTES - 13].decode('utf-8', 'ignore')}-{digest}"


def unique_stems(paths: Iterable[Path]) -> dict[Path, str]:
    """Stem for the output files of each picture; pictures of one stem keep their full file names.

    Stems of more than 200 bytes are shortened, so that there is room for the endings of the outputs. Case makes no
    difference: files that differ in nothing else are one file on Windows and macOS.
    """
    listed = list(dict.fromkeys(paths))
    shared = Counter(path.stem.casefold() for path in listed)
    out: dict[Path, str] = {}
    taken: set[str] = set()
    for path in listed:
        wanted = _shortened(path.stem if shared[path.stem.casefold()] == 1 else path.name)
        numbered = (f"{wanted}-{i}" for i in count(2))
        stem = next(name for name in chain([wanted], numbered) if name.casefold() not in taken)
        taken.add(stem.casefold())
        out[path] = stem
    return out
