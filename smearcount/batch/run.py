"""A batch from its listing to its tables: what is in the journal is not done again, what is done is in the journal.

The tables are written once, at the end, from the journal alone and in the order of the listing: every picture has one
row, and neither the engine nor an interruption has an effect on a single byte.
"""

from __future__ import annotations

import contextlib
import csv
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from smearcount import report
from smearcount.batch.attempts import Failure
from smearcount.batch.files import sweep
from smearcount.batch.jobs import BatchJob, Interrupted, Outcome, Stage, Watch, check_job
from smearcount.batch.journal import Journal, Record
from smearcount.batch.listing import Picture, list_pictures
from smearcount.batch.scales import Measuring
from smearcount.batch.slides import slide_columns, slide_rows
from smearcount.batch.summary import write_summary
from smearcount.batch.tables import write_table
from smearcount.batch.work import BatchWork, Maker, Task, Wishes, failed_record, picture_digest
from smearcount.engines import Engine, Lost, run_here
from smearcount.errors import ImageError
from smearcount.images.locks import locked
from smearcount.output_names import OVERLAYS, place_of
from smearcount.records import KINDS
from smearcount.report import Row
from smearcount.slide_scale import SlideScales

__all__ = ["run_batch"]

_CELLS = ("n_excluded", *(f"n_{kind}" for kind in KINDS))
"""Columns of the report that have all cells of a picture together."""


def run_batch(maker: Maker, job: BatchJob, engine: Engine = run_here, watch: Watch = lambda stage: None) -> Outcome:
    """Analyse every picture that the journal does not have, and write the tables.

    Args:
        maker: makes the pipeline in every worker.
        job: what is wanted.
        engine: maps the work over the pictures, on this machine or on a cluster.
        watch: is told of every step.

    Raises:
        UsageError: there is no picture, an output would replace another or an input, another run is writing it, or
            the journal is of another version, or a worker uses another one or another runtime.
        ImageError: the folder can't be listed, or an output or the journal can't be written; what is finished stays.
        Interrupted: the user stopped it; what is finished is in the journal.
    """
    start = time.perf_counter()
    listing = list_pictures(job)
    check_job(job, {picture.image_id: picture.path for picture in listing.pictures})
    with locked((*job.files.values(), *job.folders)):
        _sweep(job, listing.pictures)
        with contextlib.closing(Journal(job.journal, maker.identity(), fresh=job.fresh)) as journal:
            batch = _Batch(maker, job, listing.pictures, journal, watch)
            try:
                reused = batch.analyse(engine)
                outcome = batch.write()
            except KeyboardInterrupt as stop:
                raise Interrupted(batch.finished, len(listing.pictures), job.journal, batch.measured) from stop
    return replace(
        outcome,
        overlays=listing.overlays,
        others=listing.others,
        unmatched=listing.unmatched,
        linked=listing.linked,
        reused=reused,
        seconds=time.perf_counter() - start,
    )


def _sweep(job: BatchJob, pictures: Sequence[Picture]) -> None:
    named = product(pictures, OVERLAYS)
    overlays = (place_of(job.overlays, each.image_id, ending) for each, ending in named if job.overlays)
    galleries = (place_of(job.galleries, each.image_id, ".gallery") for each in pictures if job.galleries)
    sweep((*job.files.values(), *overlays), galleries)


def _as_copy(counts: Mapping[str, Any], first: str) -> dict[str, Any]:
    """What the counts of a picture say besides if an earlier one of its slide has the same content."""
    told = f"has the same content as {first}, and the totals count both"
    return {"copy_of": first, "warnings": [*counts["warnings"], told]}


class _Batch:
    """One run: its pictures, its journal, what is wanted, and how many are `finished`, or `measured` till then."""

    def __init__(
        self, maker: Maker, job: BatchJob, pictures: Sequence[Picture], journal: Journal, watch: Watch
    ) -> None:
        self.taxonomy, self.job, self.pictures = maker.taxonomy(), job, pictures
        self.journal, self.watch = journal, watch
        # Absolute, since a worker may have another working directory.
        overlays, galleries = (folder.absolute() if folder else None for folder in (job.overlays, job.galleries))
        self.wishes = Wishes(job.cells is not None, overlays, galleries, job.overlay_format)
        self.work = BatchWork(maker, self.wishes)
        estimates = job.slide_scale and not maker.scale_given()
        self.measuring = Measuring(maker, journal, self._watch_measured) if estimates else None
        self.measured: Stage | None = None
        self.scales: Mapping[str, SlideScales] = {}
        self.finished = 0

    def analyse(self, engine: Engine) -> int:
        """Fill the journal; returns the number of pictures that were in it already."""
        if self.measuring:
            self.scales = self.measuring.scales(self.pictures, engine)
            self.measured = None
        tasks = list(map(self._task, self._waiting()))
        missing = set(range(len(tasks)))
        total = len(self.pictures)
        self.watch(Stage("analysing", self.finished, total))
        with contextlib.closing(engine(self.work, tasks)) as results:
            for found in results:
                missing -= {number for number, _ in found}
                self.journal.add(self._named(tasks, found))
                self.finished = total - len(missing)
                self.watch(Stage("analysing", self.finished, total))
        if missing:
            raise RuntimeError(f"expected a result for each of {len(tasks)} pictures, {len(missing)} had none")
        return total - len(tasks) - sum(bool(picture.fault) for picture in self.pictures)

    def _watch_measured(self, stage: Stage) -> None:
        self.measured = stage
        self.watch(stage)

    def _task(self, picture: Picture) -> Task:
        scales, region = self.scales.get(picture.slide_id, {}), self.work.maker.region_of(picture.image_id)
        return Task(picture.path.absolute(), picture.image_id, picture.slide_id, scales, region)

    def _waiting(self) -> list[Picture]:
        """The pictures that must be analysed; those that can't be have their row at once."""
        waiting: list[Picture] = []
        for number, picture in enumerate(self.pictures):
            self.watch(Stage("checking", number, len(self.pictures)))
            if picture.fault:
                record = failed_record(
                    self._task(picture), Failure(f"{picture.image_id}: {picture.fault}"), self.taxonomy
                )
                self.journal.add([(picture.image_id, record)])
            elif not self._reusable(picture):
                waiting.append(picture)
            self.finished = number + 1 - len(waiting)
        return waiting

    def _reusable(self, picture: Picture) -> bool:
        """Whether the journal has all that is wanted of a picture, of the same bytes.

        A failure is tried again unless the picture itself was at fault: the disk may have room by now.
        """
        record = self.journal.find(picture.image_id, cells=False)
        if record is None or not record.lasting:
            return False
        try:
            row, _, files = record.content()
            complete = set(row) == set(report.report_columns(self.taxonomy))
            if record.status == "ok":
                complete &= record.given == self._task(picture).given
                complete &= not (self.wishes.cells and record.cells is None)
                complete &= self._has(self.wishes.overlays, files, f"*.overlay.{self.wishes.overlay_format}")
                # A picture without a cell has no sheet.
                complete &= not any(row.get(name) for name in _CELLS) or self._has(
                    self.wishes.galleries, files, "*.gallery/*"
                )
            return complete and picture_digest(picture.path) == record.sha256
        except (ValueError, TypeError, OSError):
            return False  # it is analysed, and the reason, if there still is one, becomes its row

    def _has(self, wanted: Path | None, files: Mapping[str, Mapping[str, str]], pattern: str) -> bool:
        """Whether every picture that was written to this folder is still there as it was; one not wanted has all.

        One of them must fit the pattern: overlays and sheets may have one folder.
        """
        if wanted is None:
            return True
        written = files.get(str(wanted), {})
        if not any(fnmatchcase(name, pattern) for name in written):
            return False
        return all(picture_digest(wanted / name) == sha256 for name, sha256 in written.items())

    def _named(self, tasks: Sequence[Task], found: Sequence[tuple[int, Any]]) -> Iterator[tuple[str, Record]]:
        for number, result in found:
            task = tasks[number]
            record = self._lost(task, result) if isinstance(result, Lost) else result
            if record.status != "ok":
                self._clear(task.image_id)
            yield task.image_id, record

    def _clear(self, image_id: str) -> None:
        """Remove what was written for a picture that has no result any more, unless somebody changed it."""
        with contextlib.suppress(ValueError, TypeError, AttributeError, OSError):
            for files, folder in product(map(json.loads, self.journal.files_of(image_id)), self.wishes.folders):
                for name, sha256 in files.get(str(folder), {}).items():
                    with contextlib.suppress(OSError):
                        if picture_digest(folder / name) == sha256:
                            (folder / name).unlink()
            if self.wishes.galleries:
                place_of(self.wishes.galleries, image_id, ".gallery").rmdir()

    def _lost(self, task: Task, lost: Lost) -> Record:
        reason = (
            f"{task.path}: its worker ended twice while it was being analysed, often for lack of memory; run it again "
            "with fewer --workers, or on a larger machine"
        )
        # How the worker ended depends on the engine, and so it is no part of the report.
        return replace(failed_record(task, Failure(reason), self.taxonomy), worker=lost.reason)

    def write(self) -> Outcome:
        """Write the tables.

        Returns:
            What the rows tell of how it went.

        Raises:
            ImageError: a table can't be written, or the journal is damaged.
        """
        try:
            return self._write()
        except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
            raise ImageError(f"{self.job.journal}: is damaged ({error!r}); give --fresh for a new one") from error

    def _write(self) -> Outcome:
        failed: list[tuple[str, str]] = []
        copies: list[tuple[str, str]] = []
        reading: Counter[str] = Counter()
        warned = 0

        def rows() -> Iterator[Row]:
            nonlocal warned
            for row, counts in self._rows("writing"):
                if row["status"] != "ok":
                    failed.append((str(row["image"]), str(row["error"])))
                else:
                    reading.update(counts["reading"])
                    warned += bool(counts["warnings"])
                    copies.extend([(str(row["image"]), counts["copy_of"])] if "copy_of" in counts else [])
                yield row

        job, taxonomy = self.job, self.taxonomy
        if job.cells:
            write_table(job.cells, report.CELL_COLUMNS, self._cells())
        if job.slide_report:
            write_table(job.slide_report, slide_columns(taxonomy), slide_rows(self._rows(""), taxonomy))
        if job.summary:
            by_slide = any(picture.slide_id for picture in self.pictures)
            write_summary(job.summary, self._rows(""), taxonomy, slides=by_slide)
        # Last: where there is a report, the others are there as well.
        write_table(job.report, report.report_columns(taxonomy), rows())
        done, read = len(self.pictures) - len(failed), dict(reading.most_common())
        told = Outcome(done, tuple(failed), warned=warned, copies=tuple(copies), reading=read)
        return replace(told, left_over=self._left_over())

    def _left_over(self) -> int:
        """Number of overlays and sheets that the journal knows in the folders of this run, and no row of it has."""

        def names(kept: Iterable[str]) -> set[Path]:
            written = product(map(json.loads, kept), self.wishes.folders)
            return {folder / name for files, folder in written for name in files.get(str(folder), ())}

        if not self.wishes.folders:
            return 0
        ours = names(record.files for _, record in self._records(cells=False))
        return sum(path.is_file() for path in names(self.journal.all_files()) - ours)

    def _rows(self, label: str) -> Iterator[tuple[Row, Mapping[str, Any]]]:
        """Row and counts of every picture, in the order of the listing; a copy within a slide has a warning."""
        first: dict[tuple[str, str], str] = {}
        for number, (picture, record) in enumerate(self._records(cells=False), start=1):
            row, counts, _ = record.content()
            if record.status == "ok":
                before = first.setdefault((picture.slide_id, record.sha256), picture.image_id)
                counts |= _as_copy(counts, before) if before != picture.image_id else {}
            yield row | {"image": picture.image_id, "slide": picture.slide_id}, counts
            if label:
                self.watch(Stage(label, number, len(self.pictures)))

    def _cells(self) -> Iterator[Row]:
        for picture, record in self._records(cells=True):
            if record.status == "ok":
                for line in csv.reader(record.cell_lines().decode().splitlines()):
                    yield dict(zip(report.CELL_COLUMNS, (picture.image_id, picture.slide_id, *line), strict=True))

    def _records(self, *, cells: bool) -> Iterator[tuple[Picture, Record]]:
        for picture in self.pictures:
            record = self.journal.find(picture.image_id, cells=cells)
            if record is None:
                raise ImageError(f"{self.job.journal}: has no row of {picture.image_id}; run the same command again")
            yield picture, record
