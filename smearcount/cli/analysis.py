"""Commands that look at pictures: analyze, batch, crop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from smearcount.cli.common import Images, Json, Out, Quiet, app, bar, clear_errors, errors, plain, with_settings
from smearcount.config import Settings

if TYPE_CHECKING:
    from smearcount.batch import BatchJob, Outcome
    from smearcount.pipeline import Analysis
    from smearcount.records import SmearResult
    from smearcount.taxonomy import Taxonomy


@app.command()
@with_settings
def analyze(
    images: Images, settings: Settings, out: Out = Path("smearcount_out"), quiet: Quiet = False, as_json: Json = False
) -> None:
    """Find, count and draw the cells of pictures: a table, and JSON, cells and overlay in the output folder."""
    with clear_errors():
        failed = _analyze_all(images, out, settings, quiet=quiet, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def _analyze_all(images: list[Path], out: Path, settings: Settings, *, quiet: bool, as_json: bool) -> int:
    from smearcount.batch import Failure, analyze_each, unique_stems
    from smearcount.images import make_folder
    from smearcount.pipeline import Pipeline

    make_folder(out)
    pipeline, stems, failed = Pipeline.load(settings), unique_stems(images), 0

    def finish(path: Path, analysis: Analysis) -> tuple[SmearResult, list[Path]]:
        return analysis.result, analysis.save(out, stems[path])

    shown = bar(quiet or as_json, "analysing")
    for path, outcome in analyze_each(pipeline, shown(stems), lambda path: (path.name, ""), finish):
        if not isinstance(outcome, Failure):
            _show(*outcome, pipeline.taxonomy, quiet=quiet, as_json=as_json)
            continue
        failed += 1
        _show_failure(outcome.reason)
        if as_json:
            typer.echo(json.dumps({"image": path.name, "status": "failed", "error": outcome.reason}))
    return failed


def _show(result: SmearResult, written: list[Path], taxonomy: Taxonomy, *, quiet: bool, as_json: bool) -> None:
    from smearcount.report import report_row, screen_table

    if as_json:
        row = report_row(result, taxonomy)
        typer.echo(json.dumps({**row, "files": [str(path) for path in written]}))
    elif not quiet:
        console = Console(highlight=False)
        console.print(screen_table(result, taxonomy))
        console.print(f"written: {', '.join(plain(str(path)) for path in written)}\n", soft_wrap=True)


def _show_failure(reason: str) -> None:
    errors().print(f"[red]failed:[/red] {plain(reason)}")


@app.command()
@with_settings
def batch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of pictures.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="CSV report to write.")] = Path("report.csv"),
    cells: Annotated[Path | None, typer.Option(help="CSV of every cell to write.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for annotated pictures.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Sub-folders too; each is a slide.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Analyse every picture of a folder: one row an image, failures as rows."""
    from smearcount.batch import BatchJob, Interrupted, run_batch
    from smearcount.pipeline import Pipeline

    job = BatchJob(folder, out, cells, overlays, recursive)
    try:
        with clear_errors():
            outcome = run_batch(Pipeline.load(settings), job, bar(quiet or as_json, "analysing"))
    except Interrupted as stop:
        errors().print(plain(str(stop)))
        raise typer.Exit(130) from stop
    _show_outcome(job, outcome, quiet=quiet, as_json=as_json)
    raise typer.Exit(1 if outcome.failed else 0)


def _show_outcome(job: BatchJob, outcome: Outcome, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        failed = [{"image": image, "error": error} for image, error in outcome.failed]
        ignored = {"overlays_skipped": outcome.overlays, "other_files_ignored": outcome.others}
        typer.echo(json.dumps({"done": outcome.done, "failed": failed, "report": str(job.report), **ignored}))
        return
    for _, error in outcome.failed:
        _show_failure(error)
    if not quiet:
        words = [f"{outcome.done} analysed, {len(outcome.failed)} failed"]
        words += [f"{outcome.overlays} overlays skipped"] * bool(outcome.overlays)
        words += [f"{outcome.others} other files ignored"] * bool(outcome.others)
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"{', '.join(words)}; written: {plain(str(job.report))}")


@app.command()
@with_settings
def crop(images: Images, settings: Settings, out: Out = Path("smearcount_crops"), quiet: Quiet = False) -> None:
    """Write the 452 x 452 px patch of every cell, and a manifest of them."""
    from smearcount.crops import write_crops
    from smearcount.pipeline import Pipeline

    with clear_errors():
        written, failed = write_crops(Pipeline.load(settings), images, out, bar(quiet, "cutting out"))
    for error in failed:
        _show_failure(error)
    if not quiet:
        typer.echo(f"{written} patches in {out}, listed in {out / 'manifest.csv'}")
    raise typer.Exit(1 if failed else 0)
