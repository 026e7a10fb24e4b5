"""What a batch is asked for, and how it went."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from smearcount.batch.tables import ENDINGS
from smearcount.config import OverlayFormat
from smearcount.errors import UsageError
from smearcount.images import check_target, make_folder, refuse_input, refuse_inputs
from smearcount.manifests import MANIFEST, names_listed
from smearcount.output_names import OVERLAYS, place_of

__all__ = ["BatchJob", "Interrupted", "Outcome", "Stage", "Watch", "check_job"]

PAGE_ENDINGS = (".html", ".htm")
"""What the name of a page ends in."""

_NAME_BYTES = 255
"""Longest name that file systems take; that of a report leaves room for what SQLite puts beside its journal."""


@dataclass(frozen=True)
class BatchJob:
    """What `smearcount batch` was asked for.

    Attributes:
        folder: where the pictures are; names in the report are relative to it.
        report: the table to write, a row a picture: .csv, .parquet or .xlsx, as are the others.
        cells: a table of every cell, if wanted.
        overlays: a folder for the annotated pictures, if wanted.
        recursive: sub-folders too.
        slide_report: a table with the totals of every slide, if wanted.
        galleries: a folder for the sheets of cells, if wanted.
        globs: patterns of which a picture must match one, unless there are none.
        excluded: patterns of which it must match none.
        listed: a text file with one picture a line instead of all in the folder.
        slides: `folder`, `none`, or a regular expression with a group: how a picture's slide is told from its name.
        fresh: begin a new journal instead of going on with an old one.
        summary: an HTML page about the whole batch, if wanted.
        slide_scale: where the scale is estimated, one for all pictures of a slide instead of one for each picture.
        inputs: the settings file and those that the settings name, which no output may replace.
        overlay_format: of the annotated pictures.
    """

    folder: Path
    report: Path
    cells: Path | None = None
    overlays: Path | None = None
    recursive: bool = False
    slide_report: Path | None = None
    galleries: Path | None = None
    globs: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    listed: Path | None = None
    slides: str = "folder"
    fresh: bool = False
    summary: Path | None = None
    slide_scale: bool = True
    inputs: tuple[Path, ...] = ()
    overlay_format: OverlayFormat = "jpg"

    @property
    def journal(self) -> Path:
        """Where the finished rows are kept: beside the report, also after the run."""
        return self.report.with_name(f"{self.report.name}.journal")

    @property
    def tables(self) -> dict[str, Path]:
        """The tables to write by the flags that ask for them."""
        wanted = {"--out": self.report, "--cells": self.cells, "--slide-report": self.slide_report}
        return {flag: path for flag, path in wanted.items() if path}

    @property
    def files(self) -> dict[str, Path]:
        """The tables and the page by the flags that ask for them."""
        return self.tables | ({"--summary": self.summary} if self.summary else {})

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders to write pictures to."""
        return tuple(folder for folder in (self.overlays, self.galleries) if folder)


@dataclass(frozen=True)
class Stage:
    """How far a batch is.

    Attributes:
        label: what is being done: `measuring` the scales of slides, `checking` the journal, `analysing`, or `writing`
            the tables.
        done: pictures.
        total: pictures.
    """

    label: str
    done: int
    total: int


Watch = Callable[[Stage], None]


@dataclass(frozen=True)
class Outcome:
    """How a batch went.

    Attributes:
        done: pictures with a result.
        failed: (picture, reason) of the others.
        overlays: annotated pictures of an earlier run, left out.
        others: files that are no pictures, left out.
        unmatched: pictures left out by patterns, or listed twice.
        linked: folders that symbolic links reach a second time, left out there.
        warned: pictures with a warning, of `done`.
        copies: (picture, the first one of its slide with the same content), of `done`; the totals count both.
        reading: what was done to files on reading, or not read of them, and the number of pictures.
        reused: pictures whose rows were in the journal, of `done` and `failed`.
        left_over: files of earlier runs in the folders for overlays and sheets that no row has.
        seconds: of the whole run.
    """

    done: int
    failed: tuple[tuple[str, str], ...]
    overlays: int = 0
    others: int = 0
    unmatched: int = 0
    linked: int = 0
    warned: int = 0
    copies: tuple[tuple[str, str], ...] = ()
    reading: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0
    left_over: int = 0
    seconds: float = 0.0


class Interrupted(KeyboardInterrupt):
    """The user stopped a batch; `journal` has the rows of the `done` pictures known to be finished, out of `total`.

    Where it was stopped while the scales of slides were `measured`, what it has of these is told instead: which of the
    rows of an earlier run still hold is seen later.
    """

    def __init__(self, done: int, total: int, journal: Path, measured: Stage | None = None) -> None:
        told = f"{done} of {total} pictures done; their rows are in {journal}"
        if measured:
            told = f"{measured.done} of {measured.total} pictures measured for the scales of their slides; these"
            told = f"{told} measurements, and the rows of an earlier run, are in {journal}"
        super().__init__(f"stopped with {told}: the same command goes on from there")
        self.done = done
        self.total = total
        self.journal = journal


def check_job(job: BatchJob, pictures: Mapping[str, Path]) -> None:
    """Refuse, before the first picture, what would end badly after the last one.

    Args:
        job: what is wanted.
        pictures: to analyse, by their names in the report.

    Raises:
        UsageError: an output would replace another, a picture or another input, or its name is too long or has an
            ending of another kind of file.
        ImageError: an output can't be written.
    """
    taken = {os.path.realpath(job.journal): "the journal of --out"}
    inputs = [*job.inputs, *([job.listed] if job.listed else [])]
    real_pictures = {os.path.realpath(path) for path in pictures.values()}
    for flag, path in job.files.items():
        endings = tuple(ENDINGS) if flag in job.tables else PAGE_ENDINGS
        if path.suffix.lower() not in endings:
            raise UsageError(f"{path}: {flag} takes a name that ends in {', '.join(endings)}")
        real = os.path.realpath(path)  # unlike Path.resolve it takes links to themselves for names
        if taken.setdefault(real, flag) != flag:
            raise UsageError(f"{path}: {taken[real]} and {flag} are one file; give them different names")
        longest = _NAME_BYTES - (len(".journal-journal") if path == job.report else 0)
        if len(os.fsencode(path.name)) > longest:
            raise UsageError(f"{path}: its name is too long; give {flag} a shorter name, of at most {longest} bytes")
        if real in real_pictures:
            raise UsageError(f"{path}: is one of the pictures to analyse; give {flag} another name")
        refuse_input(path, inputs, flag)
        if any(each.name == MANIFEST and names_listed(each.parent) for each in (path, Path(real))):
            raise UsageError(f"{path}: lists patches of `smearcount crop`; give {flag} another name")
    _check_folders(job, pictures, [*inputs, *pictures.values()])
    for path in job.files.values():
        check_target(path)
    for folder in job.folders:
        make_folder(folder)


def _check_folders(job: BatchJob, pictures: Iterable[str], inputs: Sequence[Path]) -> None:
    """Refuse overlays and sheets of which one would replace a picture or another input."""
    if folder := job.overlays:
        files = (place_of(folder, name, ending) for name, ending in product(pictures, OVERLAYS))
        refuse_inputs(files, (), inputs, "--overlays")
    if folder := job.galleries:
        refuse_inputs((), (place_of(folder, name, ".gallery") for name in pictures), inputs, "--gallery")
