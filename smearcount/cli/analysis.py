"""Commands that look at pictures: analyze, batch, crop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from smearcount.cli.common import (
    Config,
    Detector,
    Device,
    EdgeRule,
    Images,
    Json,
    MaxMegapixels,
    MinScore,
    Out,
    Precision,
    Quiet,
    RuntimeName,
    Scale,
    Threads,
    app,
    bar,
    clear_errors,
    plain,
    settings_from,
)
from smearcount.config import Settings

if TYPE_CHECKING:
    from smearcount.pipeline import Analysis


@app.command()
def analyze(
    images: Images,
    out: Out = Path("smearcount_out"),
    um_per_px: Scale = None,
    min_score: MinScore = None,
    edge_rule: EdgeRule = None,
    detector: Detector = None,
    device: Device = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    max_megapixels: MaxMegapixels = None,
    config: Config = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find, count and draw the cells of pictures: a table, and JSON, cells and overlay in the output folder."""
    flags = {"um_per_px": um_per_px, "min_score": min_score, "edge_rule": edge_rule, "detector": detector}
    flags |= {"device": device, "runtime": runtime, "precision": precision, "threads": threads}
    settings = settings_from(config, **flags, max_megapixels=max_megapixels)
    with clear_errors():
        failed = _analyze_all(images, out, settings, quiet=quiet, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def _analyze_all(images: list[Path], out: Path, settings: Settings, *, quiet: bool, as_json: bool) -> int:
    from smearcount.batch import analyze_each, unique_stems
    from smearcount.pipeline import Pipeline

    pipeline, stems, failed = Pipeline.load(settings), unique_stems(images), 0
    shown = bar(quiet or as_json or len(stems) < 2, "analysing")
    for path, analysis in analyze_each(pipeline, shown(stems), lambda path: (path.name, "")):
        if isinstance(analysis, str):
            failed += 1
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]failed:[/red] {plain(analysis)}")
            if as_json:
                typer.echo(json.dumps({"image": path.name, "status": "failed", "error": analysis}))
            continue
        written = analysis.save(out, stems[path])
        _show(analysis, written, quiet=quiet, as_json=as_json)
    return failed


def _show(analysis: Analysis, written: list[Path], *, quiet: bool, as_json: bool) -> None:
    from smearcount.report import report_row, screen_table

    if as_json:
        row = report_row(analysis.result, analysis.taxonomy)
        typer.echo(json.dumps({**row, "files": [str(path) for path in written]}))
    elif not quiet:
        console = Console(highlight=False)
        console.print(screen_table(analysis.result, analysis.taxonomy))
        console.print(f"written: {', '.join(plain(str(path)) for path in written)}\n", soft_wrap=True)


@app.command()
def batch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures.")],
    out: Annotated[Path, typer.Option("--out", help="CSV report to write.")] = Path("report.csv"),
    cells: Annotated[Path | None, typer.Option(help="CSV of every cell to write.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for annotated pictures.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Sub-folders too; each is a slide.")] = False,
    um_per_px: Scale = None,
    min_score: MinScore = None,
    edge_rule: EdgeRule = None,
    detector: Detector = None,
    device: Device = None,
    runtime: RuntimeName = None,
    precision: Precision = None,
    threads: Threads = None,
    max_megapixels: MaxMegapixels = None,
    config: Config = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Analyse every picture of a folder: one row an image, failures as rows."""
    flags = {"um_per_px": um_per_px, "min_score": min_score, "edge_rule": edge_rule, "detector": detector}
    flags |= {"device": device, "runtime": runtime, "precision": precision, "threads": threads}
    settings = settings_from(config, **flags, max_megapixels=max_megapixels)
    from smearcount.batch import BatchJob, run_batch
    from smearcount.pipeline import Pipeline

    job = BatchJob(folder, out, cells, overlays, recursive)
    with clear_errors():
        outcome = run_batch(Pipeline.load(settings), job, bar(quiet or as_json, "analysing"))
    if as_json:
        failed = [{"image": image, "error": error} for image, error in outcome.failed]
        typer.echo(json.dumps({"done": outcome.done, "failed": failed, "report": str(out)}))
    elif not quiet:
        console = Console(highlight=False, soft_wrap=True)
        for _, error in outcome.failed:
            console.print(f"[red]failed:[/red] {plain(error)}")
        console.print(f"{outcome.done} analysed, {len(outcome.failed)} failed; written: {plain(str(out))}")
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def crop(
    images: Images,
    out: Out = Path("smearcount_crops"),
    um_per_px: Scale = None,
    min_score: MinScore = None,
    detector: Detector = None,
    device: Device = None,
    runtime: RuntimeName = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Write the 452 x 452 px patch of every cell, and a manifest of them."""
    flags = {"um_per_px": um_per_px, "min_score": min_score, "detector": detector}
    settings = settings_from(config, **flags, device=device, runtime=runtime)
    from smearcount.crops import write_crops
    from smearcount.pipeline import Pipeline

    with clear_errors():
        written, failed = write_crops(Pipeline.load(settings), images, out, bar(quiet, "cutting out"))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for error in failed:
        console.print(f"[red]failed:[/red] {plain(error)}")
    if not quiet:
        typer.echo(f"{written} patches in {out}, listed in {out / 'manifest.csv'}")
    raise typer.Exit(1 if failed else 0)
