"""The command batch: a folder of pictures over night, on all cores or a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from smearcount.cli.common import (
    Json,
    Overlays,
    Quiet,
    app,
    clear_errors,
    errors,
    plain,
    printed,
    screen,
    show_failure,
    with_settings,
)
from smearcount.config import Settings
from smearcount.errors import UsageError

if TYPE_CHECKING:
    from smearcount.batch import BatchJob, Outcome, Stage
    from smearcount.engines import Engine

SHOWN_NOTES = 10
SHOWN_COPIES = 5
GPU_WORKERS = 2
"""Processes for each graphics card: while it works for one of them, the others read and decode."""

_TABLE = ".csv, .parquet or .xlsx"
_Pattern = Annotated[list[str] | None, typer.Option("--glob", help="Only pictures that match; may be repeated.")]
_Without = Annotated[list[str] | None, typer.Option("--exclude", help="No pictures that match; may be repeated.")]


@app.command()
@with_settings
def batch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of pictures.")],
    settings: Settings,
    inputs: tuple[Path, ...],
    out: Annotated[Path, typer.Option("--out", help=f"Report to write, a row a picture: {_TABLE}.")] = Path(
        "report.csv"
    ),
    cells: Annotated[Path | None, typer.Option(help=f"Table of every cell to write: {_TABLE}.")] = None,
    slide_report: Annotated[Path | None, typer.Option(help=f"Table of slides to write: {_TABLE}.")] = None,
    summary: Annotated[Path | None, typer.Option(help="HTML page to write: totals, plots, outliers.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for annotated pictures.")] = None,
    overlay_format: Overlays = "jpg",
    gallery: Annotated[Path | None, typer.Option(help="Folder for sheets with the cells of each code.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Sub-folders too; each is a slide.")] = False,
    pattern: _Pattern = None,
    exclude: _Without = None,
    listed: Annotated[Path | None, typer.Option("--list", help="Text file: one picture in DIR a line.")] = None,
    slides: Annotated[str, typer.Option(help="folder, none, or a pattern whose group is the slide.")] = "folder",
    slide_scale: Annotated[
        bool, typer.Option("--slide-scale/--no-slide-scale", help="An estimated scale is one for the whole slide.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run finished.")] = False,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Processes here, or a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0 for none but this one.")] = None,
    ray_address: Annotated[str, typer.Option(help="Of a running Ray cluster; else one is started here.")] = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Analyse every picture of a folder: one row an image, failures as rows. Run again, it goes on where it stopped."""
    from smearcount.batch import BatchJob, Interrupted, PipelineMaker, run_batch

    job = BatchJob(folder, out, cells, overlays, recursive, slide_report, gallery)
    job = replace(job, globs=tuple(pattern or ()), excluded=tuple(exclude or ()))
    job = replace(job, listed=listed, slides=slides, fresh=fresh, summary=summary, slide_scale=slide_scale)
    job = replace(job, inputs=inputs, overlay_format=overlay_format)
    try:
        with clear_errors(), progress(quiet or as_json) as watch:
            mapped = _engine(settings, engine, workers, ray_address)
            outcome = run_batch(PipelineMaker(settings), job, mapped, watch)
    except Interrupted as stop:
        errors().print(plain(str(stop)))
        raise typer.Exit(130) from stop
    told = printed(partial(_show_outcome, job, outcome, quiet=quiet, as_json=as_json))
    raise typer.Exit(1 if outcome.failed or not told else 0)


def _engine(settings: Settings, name: str, workers: int | None, address: str) -> Engine:
    from smearcount.cuda import cards_in_turn
    from smearcount.engines import LocalPlan, RayPlan, run_here, run_local, run_ray
    from smearcount.runtimes import calls_at_once

    if name == "ray":
        wanted = settings.device == "cuda"
        at_once = calls_at_once(settings.batch_size, on_card=wanted)
        return partial(run_ray, RayPlan(address, workers or 0, settings.threads, wanted, at_once))
    if address:
        raise UsageError("--ray-address: the pictures would be analysed on this machine alone; give --engine ray too")
    if workers == 0:
        return run_here
    on_card = _on_card(settings)
    at_once = calls_at_once(settings.batch_size, on_card=on_card)
    cards = cards_in_turn() if on_card else ()
    most = GPU_WORKERS * max(1, len(cards)) if on_card else 0
    return partial(run_local, LocalPlan(workers or 0, settings.threads, at_once, most, cards))


def _on_card(settings: Settings) -> bool:
    """Whether the pipeline is likely to take a graphics card: by it go the workers, and the pictures in their hands."""
    from smearcount.cuda import has_driver

    could = find_spec("torch") is not None and settings.device == "auto" and settings.runtime in ("auto", "torch")
    return settings.device == "cuda" or (could and has_driver())


@contextmanager
def progress(quiet: bool, console: Console | None = None) -> Iterator[Callable[[Stage], None]]:
    """A bar with rate and time left on stderr, if that is a terminal and `quiet` is not set."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    shown = console or Console(stderr=True)
    if quiet or not shown.is_terminal:
        yield lambda stage: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    told = TextColumn("{task.fields[pace]}")
    with Progress(*columns, TimeElapsedColumn(), told, console=shown, transient=True) as display:
        task = display.add_task("", total=None, pace="")
        label, first, start = "", 0, 0.0

        def watch(stage: Stage) -> None:
            nonlocal label, first, start
            if stage.label != label:
                label, first, start = stage.label, stage.done, time.monotonic()
            speed = pace(stage.done - first, stage.total - stage.done, time.monotonic() - start)
            display.update(task, description=label, completed=stage.done, total=stage.total, pace=speed)

        yield watch


def pace(done: int, left: int, seconds: float) -> str:
    """Rate and time left in words, from what was done in so many seconds; empty at the start."""
    if not done or seconds <= 0:
        return ""
    rate, unit = next(
        (done / seconds * size, unit)
        for size, unit in ((1, "s"), (60, "min"), (3600, "h"))
        if done / seconds * size >= 1 or unit == "h"
    )
    rest = round(left * seconds / done)
    return f"{rate:.3g} a {unit}, {rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02} left"


def _show_outcome(job: BatchJob, outcome: Outcome, *, quiet: bool, as_json: bool) -> None:
    left_out = {
        "outputs_skipped": outcome.overlays,
        "other_files_ignored": outcome.others,
        "pictures_left_out": outcome.unmatched,
        "folders_linked_twice": outcome.linked,
    }
    if as_json:
        failed = [{"image": image, "error": error} for image, error in outcome.failed]
        run = {
            "with_a_warning": outcome.warned,
            "copies": [{"image": image, "copy_of": first} for image, first in outcome.copies],
            "reading": outcome.reading,
            "from_journal": outcome.reused,
            "outputs_of_no_row": outcome.left_over,
            "seconds": round(outcome.seconds, 3),
            "journal": str(job.journal),
        }
        typer.echo(json.dumps({"done": outcome.done, "failed": failed, "report": str(job.report), **left_out, **run}))
        return
    for _, error in outcome.failed:
        show_failure(error)
    if not quiet:
        words = [f"{outcome.done} analysed, {len(outcome.failed)} failed"]
        words += [f"{outcome.reused} of them in an earlier run"] * bool(outcome.reused)
        words += [f"{outcome.warned} with a warning"] * bool(outcome.warned)
        words += [f"{outcome.left_over} files of earlier runs, of no row, still there"] * bool(outcome.left_over)
        words += [f"{n} {name.replace('_', ' ')}" for name, n in left_out.items() if n]
        written = ", ".join(dict.fromkeys(plain(str(path)) for path in (*job.files.values(), *job.folders)))
        console = screen(soft_wrap=True)
        console.print(f"{', '.join(words)}; written: {written}")
        _show_copies(outcome.copies)
        notes = [f"{n} picture{'s' * (n != 1)}: {plain(note)}" for note, n in outcome.reading.items()]
        more = [f"{len(notes) - SHOWN_NOTES} more notes on how files were read: --summary has them"]
        for line in notes[:SHOWN_NOTES] + more * (len(notes) > SHOWN_NOTES):
            console.print(line)


def _show_copies(copies: Sequence[tuple[str, str]]) -> None:
    """Say which pictures of a slide are counted twice."""
    if n := len(copies):
        named = ", ".join(f"{image} ({first})" for image, first in copies[:SHOWN_COPIES]) + " ..." * (n > SHOWN_COPIES)
        have = "has" if n == 1 else "have"
        told = f"{n} of them {have} the content of another one of their slide; the totals count both: {named}"
        errors().print(f"[yellow]warning:[/yellow] {plain(told)}")
