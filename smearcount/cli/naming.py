"""Commands about naming cells: classify; train classifier, compare, folds, survey; evaluate classifier, names; mend."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from smearcount.cli.common import (
    Config,
    Device,
    Experts,
    Json,
    Out,
    Quiet,
    Runtime,
    Threads,
    app,
    bar,
    clear_errors,
    files_of,
    known_classifier,
    printed,
    settings_from,
    show_failure,
    waiting,
)
from smearcount.cli.models import evaluate_app, train_app
from smearcount.config import Settings, read_model

if TYPE_CHECKING:
    from smearcount.cellsets import CellSet
    from smearcount.classify import ClassifyOutcome
    from smearcount.training.comparison import ComparisonRecipe
    from smearcount.training.naming_recipe import ClassifierRecipe

Asked = TypeVar("Asked", "ClassifierRecipe", "ComparisonRecipe")

Recipe = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file like configs/train/thesis.yaml.")]
Classifier = Annotated[str, typer.Option("--model", callback=known_classifier, help="Classifier: id or folder.")]
Sources = Annotated[str, typer.Option("--sources", help="Only these sources of cells, comma-separated.")]

_SHOWN = ("n", "accuracy", "macro_f1", "ece")
"""Figures of a report that are shown on screen."""

mend_app = typer.Typer(
    help="Mend a classifier: merge codes, add an expert for a confusable pair.", no_args_is_help=True
)
app.add_typer(mend_app, name="mend")


@app.command()
def classify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures, folders, or lists (.txt).")],
    model: Classifier = "red-cells",
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")] = Path("labels.csv"),
    um_per_px: Annotated[
        float | None,
        typer.Option("--um-per-px", help="Scale; else what the manifest of `crop` says, or the picture is the window."),
    ] = None,
    find: Annotated[bool, typer.Option("--find", help="Look for the cell instead of taking the middle.")] = False,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Below it a cell is unclassified.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of examples, five to twenty a class folder."),
    ] = None,
    experts: Experts = None,
    device: Device = None,
    runtime: Runtime = None,
    threads: Threads = None,
    config: Config = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Name ready-made pictures of single cells, with the probability of every code."""
    from smearcount.classify import ClassifyRun, run_classify

    asked = {"um_per_px": um_per_px, "min_label_score": min_score, "experts": experts}
    called = {"min_label_score": "--min-score"}
    settings = settings_from(config, called, **asked, device=device, runtime=runtime, threads=threads)
    run = ClassifyRun(model, settings, find, examples, files_of(config, settings))
    with clear_errors():
        outcome = run_classify(run, paths, out, bar(quiet or as_json, "naming"))
    for _, reason in outcome.failed:
        show_failure(reason)
    told = (quiet and not as_json) or printed(partial(_show_named, outcome, out, as_json=as_json))
    raise typer.Exit(1 if outcome.failed or not told else 0)


def _show_named(outcome: ClassifyOutcome, out: Path, *, as_json: bool) -> None:
    if as_json:
        failed = [{"image": image, "error": error} for image, error in outcome.failed]
        numbers = {"named": outcome.named, "skipped": outcome.skipped}
        typer.echo(json.dumps({**numbers, "failed": failed, "remarks": outcome.remarks, "labels": str(out)}))
        return
    skipped = f"{outcome.skipped} of other kinds skipped, " if outcome.skipped else ""
    words = f"{outcome.named} named, {skipped}{len(outcome.failed)} failed; written: {out}"
    typer.echo("\n".join((*outcome.remarks, words)))


@contextmanager
def _training_in(out: Path, recipe: Path, kind: type[Asked]) -> Iterator[Asked]:
    """A recipe to be trained in a folder; errors end the program, and a refusal leaves the run that is there."""
    from smearcount.images import make_folder
    from smearcount.training.naming_cells import named_recipe, refuse_data_folder
    from smearcount.training.naming_model import lists_kept
    from smearcount.training.naming_recipe import ClassifierRecipe

    with clear_errors():
        asked = read_model(kind, recipe)
        with named_recipe(recipe):
            asked.check_pretrained()
            refuse_data_folder(asked if isinstance(asked, ClassifierRecipe) else asked.base, out)
            with lists_kept(make_folder(out)):
                yield asked


@train_app.command("classifier")
def train_classifier(
    recipe: Recipe,
    out: Out = Path("runs/classifier"),
    card: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Words of the card, a file like red-cells-card.yaml."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a classifier from a YAML recipe, or go on with an interrupted training of the same folder."""
    from smearcount.training.classifier import train_classifier as train
    from smearcount.training.naming_data import is_first
    from smearcount.training.naming_model import check_words, finish_run
    from smearcount.training.naming_recipe import ClassifierRecipe

    with _training_in(out, recipe, ClassifierRecipe) as asked:
        cells = _checked_cells(asked, out, quiet=quiet or not is_first())
        check_words(out, card, cells.codes)
        run = train(asked, cells, out, report=None if quiet else typer.echo)
    if not is_first():
        return
    with clear_errors():
        folder = finish_run(run, asked, cells, recipe.stem, card)
    judge = shlex.join(["smearcount", "evaluate", "classifier", str(recipe), "--model", str(folder)])
    typer.echo(f"model in {folder}; judge it with: {judge}")


@train_app.command("compare")
def train_compare(
    config: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A file like configs/train/compare.yaml.")
    ],
    out: Out = Path("runs/comparison"),
    quiet: Quiet = False,
) -> None:
    """Train several backbones and optimisers by one recipe; ends in a table as CSV and Markdown."""
    from smearcount.training.comparison import ComparisonRecipe, run_comparison
    from smearcount.training.naming_data import is_first
    from smearcount.training.naming_model import finish_run

    def finish(run: Path, recipe: ClassifierRecipe, name: str) -> None:
        finish_run(run, recipe, cells, f"{config.stem} {name}")

    with _training_in(out, config, ComparisonRecipe) as asked:
        side = asked.largest_input_px
        cells = _checked_cells(asked.base, out, quiet=quiet or not is_first(), input_px=side)
        rows = run_comparison(asked, cells, out, report=None if quiet else typer.echo, finish=finish)
    if is_first():
        typer.echo((out / "comparison.md").read_text(encoding="utf-8"))
        typer.echo(f"models in {out}/*/model")
    raise typer.Exit(1 if any(row["error"] for row in rows) else 0)


@train_app.command("folds")
def train_folds(
    recipe: Recipe,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Number of folds.")] = 5,
    out: Out = Path("runs/folds"),
    quiet: Quiet = False,
) -> None:
    """Cross-validation: each cell is judged by a network that was trained without its fold; one report of all cells."""
    from smearcount.evaluation.folds import FoldsJob, cross_validate
    from smearcount.training.naming_cells import usable_cells
    from smearcount.training.naming_data import is_first
    from smearcount.training.naming_recipe import ClassifierRecipe

    with _training_in(out, recipe, ClassifierRecipe) as asked:
        told = is_first() and not quiet
        cells, left_out = usable_cells(asked, out, typer.echo if told else None)
        if told:
            typer.echo(f"{len(cells)} cells in {folds} folds, {left_out} pictures left out (faults.csv)")
        found = cross_validate(FoldsJob(asked, recipe.stem, folds, out), cells, None if quiet else typer.echo)
    if not is_first():
        return
    if not quiet:
        typer.echo(json.dumps({name: found[name] for name in _SHOWN}, indent=2))
    typer.echo(f"report in {out / 'report.html'}, a row for each fold in {out / 'folds.csv'}")


@train_app.command("survey")
def train_survey(recipe: Recipe, out: Out = Path("runs/survey"), quiet: Quiet = False) -> None:
    """What a recipe would train on: faulty pictures, numbers and sizes of each class, a sheet of samples, leaks."""
    from smearcount.images import make_folder, write_picture, write_text_atomic
    from smearcount.training.naming_cells import named_recipe, refuse_data_folder
    from smearcount.training.naming_recipe import ClassifierRecipe
    from smearcount.training.survey import sample_sheet, summary

    with clear_errors():
        asked = read_model(ClassifierRecipe, recipe)
        with named_recipe(recipe):
            refuse_data_folder(asked, out)
            cells = _checked_cells(asked, make_folder(out), quiet=quiet)
        write_text_atomic(out / "classes.csv", summary(cells).as_csv())
        written = write_picture(out / "samples.png", sample_sheet(cells, per_code=12, seed=asked.seed))
    typer.echo(f"written: {out / 'classes.csv'}, {out / 'faults.csv'}, {out / 'leaks.txt'}, {written}")


def _checked_cells(recipe: ClassifierRecipe, out: Path, *, quiet: bool, input_px: int = 0) -> CellSet:
    """The cells of a recipe without broken pictures and leaks, both listed in `out`; their summary on screen."""
    from rich.console import Console

    from smearcount.training.naming_cells import checked_cells
    from smearcount.training.survey import summary

    cells = checked_cells(recipe, out, None if quiet else typer.echo, input_px=input_px)
    if not quiet:
        Console(highlight=False).print(summary(cells).as_table())
    return cells


@evaluate_app.command("classifier")
def evaluate_classifier(
    recipe: Recipe,
    model: Classifier = "red-cells",
    split: Annotated[str, typer.Option(help="val, train, or all.")] = "val",
    sources: Sources = "",
    card: Annotated[bool, typer.Option("--card", help="Write the figures on the model's card.")] = False,
    out: Out = Path("runs/judged"),
    quiet: Quiet = False,
) -> None:
    """Judge a classifier on the labelled cells of a recipe: one HTML report with pictures, and CSV."""
    from smearcount.evaluation.cells import Judging, run_judging

    with clear_errors():
        job = Judging(recipe, model, split, tuple(filter(None, sources.split(","))), card, out)
        figures = run_judging(job)
    if not quiet:
        typer.echo(json.dumps({name: figures[name] for name in _SHOWN}, indent=2))
    if figures["unjudged"]:
        typer.echo(
            f"not judged, for want of cells: {', '.join(figures['unjudged'])}; macro-F1 is that of the other codes"
        )
    if figures["left_out"]:
        typer.echo(f"{figures['left_out']} cells left out: {model} was trained on them, or on others of their groups")
    if figures["strange"]:
        listed = ", ".join(f"{n} {code}" for code, n in figures["strange"].items())
        n = sum(figures["strange"].values())
        typer.echo(f"{n} cells left out: {model} gives none of their codes, or only one of several ({listed})")
    for told in filter(None, (*figures["missing"], figures["warning"], figures["note"])):
        typer.echo(told)
    typer.echo(f"report in {out / 'report.html'}")


@evaluate_app.command("names")
def evaluate_names(
    source: Annotated[str, typer.Option("--source", help="Collection of points or typed fields.")] = "chula_rbc12",
    cells: Annotated[
        Path | None,
        typer.Option("--cells", exists=True, dir_okay=False, help="Own collections, a file like configs/cells.yaml."),
    ] = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    scale: Annotated[str, typer.Option(help="estimated a picture, slide (one for all), or labels.")] = "estimated",
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    quiet: Quiet = False,
) -> None:
    """Accuracy of names on whole fields: cells found and named by the pipeline, at the places that were labelled."""
    from smearcount.evaluation.names import field_scales, name_points, point_figures
    from smearcount.pipeline import Pipeline
    from smearcount.training.cell_sources import in_codes, load_cell_sources

    with clear_errors():
        settings = read_model(Settings, config) if config else Settings()
        known = load_cell_sources(cells)
        if scale not in ("estimated", "slide", "labels"):
            raise typer.BadParameter("expected estimated, slide or labels", param_hint="--scale")
        if source not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}", param_hint="--source")
        pipeline = Pipeline.load(settings)
        fields = source, in_codes(known[source], pipeline.taxonomy, f"{cells or 'cells.yaml'}: {source}")
        named = name_points(
            pipeline,
            fields,
            split,
            own_scale=scale == "labels",
            scales=field_scales(pipeline, fields, split) if scale == "slide" else None,
            progress=bar(quiet, "evaluating"),
        )
        # Settings go before what is estimated.
        told = scale if scale == "labels" or settings.um_per_px is None else "settings"
        found = {"source": source, "split": split, "scale": told, **point_figures(named, pipeline.namer.codes)}
    typer.echo(json.dumps(found, indent=2))


@mend_app.command("merges")
def mend_merges(
    recipe: Recipe,
    model: Classifier = "red-cells",
    clusters: Annotated[str, typer.Option(help="Numbers of clusters to try, from-to.")] = "2-15",
    out: Out = Path("runs/merges"),
    quiet: Quiet = False,
) -> None:
    """Clusters of the embeddings, the codes that share them, and the line that merges these in a recipe."""
    from smearcount.evaluation.mending import propose
    from smearcount.images import refuse_input

    low, _, high = clusters.partition("-")
    if not (low.isdigit() and high.isdigit() and 2 <= int(low) <= int(high)):
        raise typer.BadParameter("expected two numbers such as 2-15", param_hint="--clusters")
    with clear_errors():
        refuse_input(out / "merges.yaml", [recipe])
        with waiting(quiet, "clustering"):
            told = None if quiet else partial(typer.echo, err=True)
            text, plot = propose(recipe, model, range(int(low), int(high) + 1), out, told)
    if not quiet:
        typer.echo(f"{text}\nwritten: {out / 'merges.yaml'}, {plot}")


@mend_app.command("experts")
def mend_experts(
    recipe: Recipe,
    model: Classifier = "red-cells",
    expert: Annotated[
        list[str] | None, typer.Option("--expert", help="Classifier of a few of the codes; may be repeated.")
    ] = None,
) -> None:
    """Gain and cost of experts that are asked only when the model is unsure between their codes.

    Without an expert, the pairs worth one. The margins printed go under `experts` of a settings file.
    """
    from smearcount.evaluation.mending import judge_experts

    with clear_errors(), waiting(False, "judging"):
        found = judge_experts(recipe, model, expert or [], partial(typer.echo, err=True))
    typer.echo(json.dumps(found, indent=2))
