"""Directories: a batch of many fields with one and more workers, and the default against the best setting."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from smearcount.batch import BatchJob, PipelineMaker, Stage, run_batch
from smearcount.bench.fields import sample_fields
from smearcount.config import Settings
from smearcount.engines import Engine, LocalPlan, run_local, usable_cores
from smearcount.errors import SmearcountError, UsageError
from smearcount.images import find_images

__all__ = ["DirectoriesJob", "Run", "bench_directories", "link_fields", "race"]

_CHECKED = 12
"""Fields of the first, untimed run of each setting, whose reports must be equal."""


@dataclass(frozen=True)
class DirectoriesJob:
    """What is timed.

    Attributes:
        folder: of pictures; the sample smears without one.
        um_per_px: their scale; each is estimated where it is None.
        fields: number of pictures of the batch; those of the folder come again until there are as many.
        rounds: repetitions.
    """

    folder: Path | None = None
    um_per_px: float | None = None
    fields: int = 400
    rounds: int = 1


@dataclass(frozen=True)
class Run:
    """One batch.

    Attributes:
        seconds: of the whole run.
        start_up: seconds until the first picture was done.
        steady: seconds that all pictures take at the pace between the first and the last one.
        closing: seconds after the last picture was done, for the tables and for the end of all workers.
        report: the bytes of the report.
    """

    seconds: float
    start_up: float
    steady: float
    closing: float
    report: bytes


def bench_directories(job: DirectoriesJob) -> dict[str, Any]:
    """Seconds of a batch by number of workers and threads, and the ratios that matter.

    Raises:
        UsageError: there is no picture.
        SmearcountError: the report depends on the setting.
    """
    cores = usable_cores()
    plans = {
        "1 worker, 1 thread": LocalPlan(1, 1),
        "2 workers, 1 thread": LocalPlan(2, 1),
        f"1 worker, {max(cores, 2)} threads": LocalPlan(1, max(cores, 2)),
        "default": LocalPlan(),
    }
    if cores > 2:
        plans[f"{cores // 2} workers, 2 threads"] = LocalPlan(cores // 2, 2)
        plans[f"{cores} workers, 1 thread"] = LocalPlan(cores, 1)
    engines: dict[str, Engine] = {name: partial(run_local, plan) for name, plan in plans.items()}
    runs = race(job, engines)
    wall = {name: median(each.seconds for each in laps) for name, laps in runs.items()}
    steady = {name: median(each.steady for each in laps) for name, laps in runs.items()}
    return {
        **{"fields": job.fields, "cores": cores, "rounds": job.rounds, "reports": "equal byte for byte"},
        **{f"{name} (s)": round(value, 2) for name, value in wall.items()},
        **{f"{name}, start-up (s)": round(median(e.start_up for e in laps), 2) for name, laps in runs.items()},
        "one worker over two, 1 thread each": round(wall["1 worker, 1 thread"] / wall["2 workers, 1 thread"], 3),
        "one worker over two, start-up excluded": round(
            steady["1 worker, 1 thread"] / steady["2 workers, 1 thread"], 3
        ),
        "default over the best setting": round(wall["default"] / min(wall.values()), 3),
    }


def race(job: DirectoriesJob, engines: dict[str, Engine]) -> dict[str, list[Run]]:
    """Runs of one batch on several engines in turn, after a short one on each has shown that their reports are equal.

    Raises:
        UsageError: there is no picture.
        SmearcountError: a report depends on the engine.
    """
    scratch = Path(tempfile.mkdtemp(prefix="smearcount-bench-"))
    try:
        few = link_fields(job.folder, min(_CHECKED, job.fields), scratch / "few")
        _check_equal({name: [_run(job, few, engine)] for name, engine in engines.items()})
        folder = link_fields(job.folder, job.fields, scratch / "fields")
        runs: dict[str, list[Run]] = {name: [] for name in engines}
        for _ in range(job.rounds):
            for name, engine in engines.items():
                runs[name].append(_run(job, folder, engine))
        _check_equal(runs)
        return runs
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_equal(runs: dict[str, list[Run]]) -> None:
    first, *others = ((name, each.report) for name, laps in runs.items() for each in laps)
    for name, content in others:
        if content != first[1]:
            raise SmearcountError(f"the report of {name!r} differs from that of {first[0]!r}: please report this")


def link_fields(folder: Path | None, number: int, target: Path) -> Path:
    """A folder of `number` pictures, links to those of `folder`, or of the sample smears, in turn.

    Raises:
        UsageError: there is no picture.
    """
    pictures = find_images(folder, recursive=True) if folder else list(sample_fields())
    if not pictures:
        raise UsageError(f"{folder}: no pictures; give another folder")
    target.mkdir()
    for row in range(number):
        picture = pictures[row % len(pictures)]
        os.symlink(picture.resolve(), target / f"{row:06}{picture.suffix}")
    return target


def _run(job: DirectoriesJob, folder: Path, engine: Engine) -> Run:
    """One batch from an empty journal to the report."""
    settings = Settings(um_per_px=job.um_per_px, device="cpu", classifiers=(), experts={})
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        report = Path(out) / "report.csv"
        begin = time.perf_counter()
        marks: list[tuple[float, int]] = []
        run_batch(PipelineMaker(settings), BatchJob(folder, report), engine, _noting(marks))
        end = time.perf_counter()
        (first, done), (last, total) = marks[0], marks[-1]
        steady = (last - first) / max(total - done, 1) * total
        return Run(end - begin, first - begin, steady, end - last, report.read_bytes())


def _noting(marks: list[tuple[float, int]]) -> Callable[[Stage], None]:
    """A watch that notes when pictures were done, and how many these were by then."""

    def watch(stage: Stage) -> None:
        if stage.label == "analysing" and stage.done:
            marks.append((time.perf_counter(), stage.done))

    return watch
