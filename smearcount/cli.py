"""The command line: flags in, calls to the library, exit code out (0 good, 1 some pictures failed, 2 wrong usage)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from smearcount import __version__
from smearcount.config import Settings, read_model
from smearcount.errors import SmearcountError

if TYPE_CHECKING:
    from smearcount.pipeline import Analysis

app = typer.Typer(
    help="Counts the cells of stained blood smears, with exact limits. Research use; no medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Shipped and own models.", no_args_is_help=True)
train_app = typer.Typer(help="Train a model of your own.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure a model against labelled pictures.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures of stained smears.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; flags win over it.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="auto, openvino, onnx or torch.")]
Precision = Annotated[str | None, typer.Option(help="auto, f32 or bf16.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; 0 leaves it to the library.")]
Scale = Annotated[float | None, typer.Option("--um-per-px", help="Micrometres a pixel, where known.")]
MinScore = Annotated[float | None, typer.Option("--min-score", help="Detection threshold instead of the model's.")]
EdgeRule = Annotated[str | None, typer.Option("--edge-rule", help="corner (unbiased frame) or all.")]
MaxMegapixels = Annotated[float | None, typer.Option("--max-megapixels", help="Refuse larger pictures.")]
Detector = Annotated[str | None, typer.Option("--detector", help="Model id or folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Counts the cells of stained blood smears."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def settings_from(config: Path | None, **flags: Any) -> Settings:
    """The settings file, if any, with every flag that was given on top of it."""
    with clear_errors():
        base = read_model(Settings, config).model_dump(exclude_unset=True) if config else {}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**(base | given))
    except ValueError as error:
        first = error.errors()[0] if hasattr(error, "errors") else {"loc": ("?",), "msg": str(error)}
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"{first['msg']}", param_hint=flag) from error


@contextmanager
def clear_errors() -> Iterator[None]:
    """Errors of smearcount end the program with one clear line and exit code 2."""
    try:
        yield
    except SmearcountError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {_plain(str(error))}")
        raise typer.Exit(2) from error


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def bar(quiet: bool, label: str) -> Callable[[Iterable[Path]], Iterable[Path]]:
    """A progress bar on stderr around a list of pictures, or nothing at all."""

    def wrap(items: Iterable[Path]) -> Iterable[Path]:
        if quiet:
            return items
        from rich.progress import track

        return track(list(items), description=label, console=Console(stderr=True), transient=True)

    return wrap


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
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]failed:[/red] {_plain(analysis)}")
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
        console.print(f"written: {', '.join(_plain(str(path)) for path in written)}\n", soft_wrap=True)


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
            console.print(f"[red]failed:[/red] {_plain(error)}")
        console.print(f"{outcome.done} analysed, {len(outcome.failed)} failed; written: {_plain(str(out))}")
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
        console.print(f"[red]failed:[/red] {_plain(error)}")
    if not quiet:
        typer.echo(f"{written} patches in {out}, listed in {out / 'manifest.csv'}")
    raise typer.Exit(1 if failed else 0)


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """Ids, tasks and sizes of the installed models."""
    from smearcount.cards import list_models

    with clear_errors():
        models = list_models()
    sizes = [sum(entry.bytes for entry in model.card.files.values()) for model in models]
    if as_json:
        rows = [{"id": m.card.id, "task": m.card.task, "bytes": size} for m, size in zip(models, sizes, strict=True)]
        typer.echo(json.dumps(rows))
        return
    for model, size in zip(models, sizes, strict=True):
        typer.echo(f"{model.card.id}  {model.card.task}  {size / 1e6:.1f} MB")


@models_app.command("show")
def models_show(model: Annotated[str, typer.Argument(help="Model id or folder.")], as_json: Json = False) -> None:
    """The card of a model."""
    from smearcount.cards import as_yaml, find_model

    with clear_errors():
        card = find_model(model)
    typer.echo(json.dumps(as_yaml(card.card)) if as_json else (card.folder / "README.md").read_text(encoding="utf-8"))


@models_app.command("verify")
def models_verify(
    model: Annotated[str | None, typer.Argument(help="Model id or folder; all without one.")] = None,
) -> None:
    """Check every file against its card, and every runtime at hand against the probe."""
    from smearcount.cards import find_model, list_models
    from smearcount.probe import probe_errors

    with clear_errors():
        for found in [find_model(model)] if model else list_models():
            for name in found.verify():
                typer.echo(f"{found.card.id}/{name}  ok")
            for runtime, worst in probe_errors(found).items():
                typer.echo(f"{found.card.id}  {runtime}  largest difference to the probe {worst:.2g}  ok")


@app.command()
def simulate(
    out: Out = Path("simulated"),
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe; without one the sample set.")] = None,
    random: Annotated[int, typer.Option(help="This many very different smears instead.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Seed instead of the recipe's.")] = None,
) -> None:
    """Render smears with exact ground truth."""
    from smearcount.simulate import SmearRecipe, random_set, sample_set, write_set

    with clear_errors():
        recipes = {recipe.stem: read_model(SmearRecipe, recipe)} if recipe else sample_set()
        if random:
            recipes = random_set(random, seed or 0)
        elif seed is not None:
            recipes = {name: r.model_copy(update={"seed": seed}) for name, r in recipes.items()}
        out.mkdir(parents=True, exist_ok=True)
        write_set(recipes, out)
    typer.echo(f"{len(recipes)} pictures and truth.json in {out}")


@app.command()
def bench(
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Fields to time.")] = None,
    um_per_px: Scale = None,
    threads: Annotated[int, typer.Option(help="CPU threads for every contender.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the median counts.")] = 15,
    processes: Annotated[bool, typer.Option(help="Time whole processes from the shell too.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Time the pipeline against the bare network and against ultralytics' own predict, in one run."""
    from smearcount.bench import BenchJob, run_bench
    from smearcount.images import write_text_atomic

    with clear_errors():
        figures = run_bench(BenchJob(tuple(images or ()), um_per_px, threads, rounds, processes))
        text = json.dumps(figures, indent=2)
        if out:
            write_text_atomic(out, text + "\n")
    if as_json:
        typer.echo(text)
    else:
        for name, value in figures.items():
            typer.echo(f"{name:48} {value}")


@train_app.command("detector")
def train_detector(
    recipe: Annotated[Path, typer.Argument(help="A file like configs/train/detector.yaml.")],
    out: Out = Path("runs/detector"),
    card: Annotated[Path | None, typer.Option(help="Words of the card; writes a model folder MODEL in OUT.")] = None,
    start: Annotated[Path | None, typer.Option(help="Weights (safetensors) to go on from.")] = None,
    device: Annotated[str, typer.Option(help="cpu or a CUDA device number.")] = "cpu",
) -> None:
    """Train a detector from a YAML recipe on the collections of configs/datasets.yaml."""
    from smearcount.training.detector import train
    from smearcount.training.packaging import package_run

    with clear_errors():
        run = train(recipe, out, device=device, start=start)
        folder = package_run(run, recipe, card)
    typer.echo(f"model in {folder}; measure it with: smearcount evaluate detector --model {folder}")


@train_app.command("labels")
def train_labels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures without boxes.")],
    um_per_px: Annotated[float, typer.Option("--um-per-px", help="Their scale in micrometres a pixel.")],
    out: Out = Path("runs/labels"),
    listing: Annotated[Path | None, typer.Option("--list", help="File of stems to take, one a line.")] = None,
    central: Annotated[bool, typer.Option("--central", help="Take only pictures with a cell in the middle.")] = False,
    model: Annotated[str, typer.Option(help="The teacher: model id or folder.")] = Settings().detector,
) -> None:
    """Label pictures with a detector, as a COCO collection for training."""
    from smearcount.training.pseudo import LabelJob, label_folder

    with clear_errors():
        taken, left_out = label_folder(LabelJob(folder, um_per_px, out, listing, central, model))
    typer.echo(f"{taken} pictures labelled, {left_out} left out; collection in {out}")


@evaluate_app.command("detector")
def evaluate_detector(
    model: Annotated[str, typer.Option(help="Model id or folder.")] = Settings().detector,
    sources: Annotated[str, typer.Option(help="Collections, comma-separated.")] = "txl_pbc,deepbionet,iml_malaria",
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    scale: Annotated[str, typer.Option(help="labels (from the labelled red cells) or estimated.")] = "labels",
    card: Annotated[bool, typer.Option("--card", help="Write the figures on the model's card.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    quiet: Quiet = False,
) -> None:
    """Average precision, agreement and counting error on labelled fields."""
    from smearcount.evaluate import EvaluationJob, evaluate
    from smearcount.images import write_text_atomic

    with clear_errors():
        job = EvaluationJob(model, tuple(sources.split(",")), split, scale, card)
        figures = evaluate(job, bar(quiet, "evaluating"))
        text = json.dumps(figures, indent=2)
        if out:
            write_text_atomic(out, text + "\n")
    if not quiet:
        typer.echo(text)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model id or folder.")],
    to: Annotated[str, typer.Option("--to", help="openvino or onnx.")] = "onnx",
    out: Annotated[Path, typer.Option("--out", help="Folder for the new model.")] = Path("exported"),
) -> None:
    """Write a copy of a model with the files of another runtime, checked against the probe."""
    from smearcount.training.packaging import export_model

    if to not in ("openvino", "onnx"):
        raise typer.BadParameter("expected openvino or onnx", param_hint="--to")
    with clear_errors():
        folder = export_model(model, to, out)
    typer.echo(f"model in {folder}; use it with: smearcount analyze --detector {folder} --runtime {to} IMAGE")
