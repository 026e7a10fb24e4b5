"""Commands that look at single pictures: analyze, crop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smearcount.cli.common import (
    Images,
    Json,
    Out,
    Overlays,
    Quiet,
    app,
    bar,
    clear_errors,
    errors,
    plain,
    printed,
    screen,
    show_failure,
    with_settings,
)
from smearcount.config import OverlayFormat, Settings

if TYPE_CHECKING:
    from smearcount.pipeline import Analysis
    from smearcount.records import SmearResult
    from smearcount.taxonomy import Taxonomy


@app.command()
@with_settings
def analyze(
    images: Images,
    settings: Settings,
    inputs: tuple[Path, ...],
    out: Out = Path("smearcount_out"),
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Write a contact sheet of the cells of each code.")
    ] = False,
    overlay_format: Overlays = "jpg",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find, count and draw the cells of pictures: a table, and JSON, cells and overlay in the output folder."""
    with clear_errors():
        options = {"gallery": gallery, "quiet": quiet, "as_json": as_json}
        failed = _analyze_all(images, out, settings, inputs, overlay_format, **options)
    raise typer.Exit(1 if failed else 0)


def _analyze_all(
    images: list[Path],
    out: Path,
    settings: Settings,
    inputs: tuple[Path, ...],
    overlay_format: OverlayFormat,
    *,
    gallery: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    from smearcount.batch import Failure, analyze_each
    from smearcount.geojson import check_shared
    from smearcount.images import make_folder, refuse_inputs
    from smearcount.images.locks import own_stem
    from smearcount.output_names import OVERLAYS, unique_stems
    from smearcount.pipeline import Pipeline
    from smearcount.report import failure_row
    from smearcount.report_json import json_line

    stems, failed = unique_stems(images), 0

    def refuse(stems: Sequence[str]) -> None:
        files = (out / f"{stem}{ending}" for stem, ending in product(stems, (".json", ".cells.csv", *OVERLAYS)))
        refuse_inputs(files, [out / f"{stem}.gallery" for stem in stems], [*images, *inputs])

    refuse(list(stems.values()))
    check_shared(settings.region, images)
    make_folder(out)
    pipeline = Pipeline.load(settings)

    def finish(path: Path, analysis: Analysis) -> tuple[SmearResult, list[Path]]:
        with own_stem(out, stems[path], analysis.result) as stem:
            if stem != stems[path]:
                refuse([stem])
                _show_renamed(path, stem, out)
            sheets = _write_gallery(analysis, out, stem, wanted=gallery)
            return analysis.result, [*sheets, *analysis.save(out, stem, overlay_format=overlay_format)]

    shown = bar(quiet or as_json, "analysing")
    for path, outcome in analyze_each(pipeline, shown(stems), lambda path: (path.name, ""), finish):
        if not isinstance(outcome, Failure):
            failed += not printed(partial(_show, *outcome, pipeline.taxonomy, quiet=quiet, as_json=as_json))
            continue
        failed += 1
        show_failure(outcome.reason)
        if as_json:
            row = failure_row(path.name, "", outcome.reason, pipeline.taxonomy)
            printed(partial(typer.echo, json_line(row, None, pipeline.taxonomy)))
    return failed


def _write_gallery(analysis: Analysis, out: Path, stem: str, *, wanted: bool) -> list[Path]:
    """The folder of the contact sheets; where they are not wanted, those of an earlier result are removed."""
    place = out / f"{stem}.gallery"
    if not wanted and not place.is_dir():
        return []
    from smearcount.gallery import clear_gallery, write_gallery

    if not wanted:
        clear_gallery(place, analysis.taxonomy)
        return []
    return [place] if write_gallery(analysis, out, stem) else []


def _show(result: SmearResult, written: list[Path], taxonomy: Taxonomy, *, quiet: bool, as_json: bool) -> None:
    from smearcount.report import report_row, screen_table
    from smearcount.report_json import json_line

    if as_json:
        typer.echo(json_line(report_row(result, taxonomy), result, taxonomy, map(str, written)))
    elif not quiet:
        console, table = screen(), screen_table(result, taxonomy)
        # A window too narrow for the figures breaks the lines; none of them is left out.
        console.width = max(console.width, console.measure(table, options=console.options.update_width(1000)).minimum)
        console.print(table)
        console.print(f"written: {', '.join(plain(str(path)) for path in written)}\n", soft_wrap=True)


def _show_renamed(path: Path, stem: str, out: Path) -> None:
    """Say, even where little else is said, that what a script expects under one name stands under another."""
    told = f"{path}: {out} holds another picture of that name; what is written of this one begins with {stem}"
    errors().print(f"[yellow]renamed:[/yellow] {plain(told)}")


@app.command()
@with_settings
def crop(
    images: Images,
    settings: Settings,
    inputs: tuple[Path, ...],
    out: Out = Path("smearcount_crops"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the 452 x 452 px patch of every cell, and a manifest of them."""
    from smearcount.crops import check_crops, write_crops
    from smearcount.geojson import check_shared
    from smearcount.pipeline import Pipeline

    with clear_errors():
        check_crops(images, out, inputs)
        check_shared(settings.region, images)
        found = write_crops(Pipeline.load(settings), images, out, bar(quiet or as_json, "cutting out"))
    for path, stem in found.renamed:
        _show_renamed(path, stem, out)
    for _, error in found.failed:
        show_failure(error)
    told = f"{found.written} patches in {out}, listed in {out / 'manifest.csv'}"
    if as_json:
        failed = [{"image": path.name, "error": error} for path, error in found.failed]
        told = json.dumps({"patches": found.written, "failed": failed, "manifest": str(out / "manifest.csv")})
    shown = (quiet and not as_json) or printed(partial(typer.echo, told))
    raise typer.Exit(1 if found.failed or not shown else 0)
