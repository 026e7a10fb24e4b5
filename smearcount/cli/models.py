"""Commands about models: list, show, verify, train, evaluate, export."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smearcount.cli.common import Json, Out, Quiet, app, bar, clear_errors, known_detector, known_model, waiting
from smearcount.config import Settings
from smearcount.errors import DatasetError, ModelError, UsageError

if TYPE_CHECKING:
    from smearcount.probe import ProbeError
    from smearcount.training.quantising import Agreement

_DETECTOR = Settings().detector
_LOOKS = "txl_pbc,deepbionet"
_ALL = f"{_LOOKS},iml_malaria"

ModelName = Annotated[str, typer.Option("--model", callback=known_detector, help="Detector: id or folder.")]
Compared = Annotated[str, typer.Option("--sources", help="Collections, comma-separated.")]
Spread = Annotated[int, typer.Option("--fields", min=1, help="Number of fields, spread over the looks.")]

models_app = typer.Typer(help="Shipped and own models.", no_args_is_help=True)
train_app = typer.Typer(help="Train a model of your own.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure a model against labelled pictures.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")


Datasets = Annotated[
    Path | None,
    typer.Option("--datasets", exists=True, dir_okay=False, help="Own collections, a file like configs/datasets.yaml."),
]


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
def models_show(
    model: Annotated[str, typer.Argument(callback=known_model, help="Model id or folder.")], as_json: Json = False
) -> None:
    """The card of a model."""
    from smearcount.cards import as_yaml, find_model

    with clear_errors():
        found = find_model(model)
        readme = found.folder / "README.md"
        if not as_json and not readme.is_file():
            raise ModelError(f"{readme}: missing; {found.remedy}, or show the card with --json")
    typer.echo(json.dumps(as_yaml(found.card)) if as_json else readme.read_text(encoding="utf-8"))


@models_app.command("verify")
def models_verify(
    model: Annotated[
        str | None, typer.Argument(callback=known_model, help="Model id or folder; all without one.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check every file against its card, and every runtime at hand against the probe."""
    from smearcount.cards import find_model, list_models
    from smearcount.probe import probe_errors

    checked = []
    with clear_errors():
        for found in bar(quiet or as_json, "verifying")([find_model(model)] if model else list_models()):
            files, errors = list(found.verify()), probe_errors(found)
            runtimes = {runtime: {"value": worst.value, "score": worst.score} for runtime, worst in errors.items()}
            checked.append({"id": found.card.id, "files": files, "runtimes": runtimes})
            if not quiet and not as_json:
                _show_verified(found.card.id, files, errors)
    if as_json:
        typer.echo(json.dumps(checked))


def _show_verified(model: str, files: Iterable[str], errors: Mapping[str, ProbeError]) -> None:
    for name in files:
        typer.echo(f"{model}/{name}  ok")
    for runtime, worst in errors.items():
        scores = f" px, scores {worst.score:.2g}" if worst.score else ""
        typer.echo(f"{model}  {runtime}  largest difference to the probe {worst.value:.2g}{scores}  ok")


@train_app.command("detector")
def train_detector(
    recipe: Annotated[Path, typer.Argument(help="A file like configs/train/detector.yaml.")],
    out: Out = Path("runs/detector"),
    card: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Words of the card, a file like detector-card.yaml."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Weights (safetensors) to go on from.")
    ] = None,
    datasets: Datasets = None,
    device: Annotated[str, typer.Option(help="cpu or a CUDA device number.")] = "cpu",
) -> None:
    """Train a detector from a YAML recipe; the model is written into the sub-folder `model` of the output folder."""
    from smearcount.images import make_folder
    from smearcount.training.detector import train
    from smearcount.training.packaging import assemble, detector_card

    with clear_errors():
        own_card, folder = detector_card(recipe, card), out / "model"
        run = train(recipe, make_folder(out), device=device, start=start, datasets=datasets)
        assemble(run, own_card, folder)
    measure = shlex.join(["smearcount", "evaluate", "detector", "--model", str(folder)])
    typer.echo(f"model in {folder}; measure it with: {measure}")


@train_app.command("labels")
def train_labels(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of pictures without boxes.")
    ],
    um_per_px: Annotated[
        float, typer.Option("--um-per-px", min=0.02, max=2, help="Their scale in micrometres a pixel.")
    ],
    out: Out = Path("runs/labels"),
    listing: Annotated[
        Path | None, typer.Option("--list", exists=True, dir_okay=False, help="File of stems to take, one a line.")
    ] = None,
    central: Annotated[bool, typer.Option("--central", help="Take only pictures with a cell in the middle.")] = False,
    model: Annotated[str, typer.Option(callback=known_detector, help="The teacher: id or folder.")] = _DETECTOR,
    quiet: Quiet = False,
) -> None:
    """Label pictures with a detector, as a COCO collection for training."""
    from smearcount.images import make_folder
    from smearcount.training.pseudo import LabelJob, label_folder

    with clear_errors(), waiting(quiet, "labelling"):
        done = label_folder(LabelJob(folder, um_per_px, make_folder(out), listing, central, model))
    if quiet:
        return
    if done.faults:
        typer.echo(f"{len(done.faults)} pictures left out, as they can't be read, such as {done.faults[0]}")
    without = f", {done.left_out} left out without a cell in the middle" if central else ""
    typer.echo(f"{done.taken} pictures labelled{without}; collection in {out}")


@evaluate_app.command("detector")
def evaluate_detector(
    model: ModelName = _DETECTOR,
    sources: Compared = _ALL,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    scale: Annotated[str, typer.Option(help="labels (from the labelled red cells) or estimated.")] = "labels",
    card: Annotated[bool, typer.Option("--card", help="Write the figures on the model's card.")] = False,
    fit: Annotated[bool, typer.Option("--fit", help="First fit the thresholds on the card to the counts.")] = False,
    datasets: Datasets = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    quiet: Quiet = False,
) -> None:
    """Average precision, agreement and counting error on labelled fields."""
    from smearcount.evaluation.detector import EvaluationJob, evaluate
    from smearcount.images import check_target, write_text_atomic

    with clear_errors():
        if out:
            check_target(out, [datasets] if datasets else ())
        job = EvaluationJob(model, tuple(sources.split(",")), split, scale, card, fit, datasets)
        figures = evaluate(job, bar(quiet, "evaluating"))
        text = json.dumps(figures, indent=2)
        if out:
            write_text_atomic(out, text + "\n")
    if not quiet:
        typer.echo(text)


@evaluate_app.command("magnification")
def evaluate_magnification(
    model: ModelName = _DETECTOR, sources: Compared = _LOOKS, fields: Spread = 40, quiet: Quiet = False
) -> None:
    """Counts of the same fields at a quarter to four times the magnification."""
    from smearcount.evaluation.conditions import MAGNIFICATIONS

    _show_changes(model, sources, fields, MAGNIFICATIONS, quiet=quiet)


@evaluate_app.command("conditions")
def evaluate_conditions(
    model: ModelName = _DETECTOR, sources: Compared = _LOOKS, fields: Spread = 40, quiet: Quiet = False
) -> None:
    """Counts of the same fields in other light, focus, contrast, noise and compression."""
    from smearcount.evaluation.conditions import CONDITIONS

    _show_changes(model, sources, fields, CONDITIONS, quiet=quiet)


def _show_changes(model: str, sources: str, fields: int, changes: Mapping[str, Any], *, quiet: bool) -> None:
    from smearcount.evaluation.conditions import across_changes, spread_fields

    with clear_errors():
        chosen = spread_fields(sources.split(","), fields)
        typer.echo(json.dumps(across_changes(model, chosen, changes, bar(quiet, "evaluating")), indent=2))


@evaluate_app.command("runtimes")
def evaluate_runtimes(
    model: ModelName = _DETECTOR, sources: Compared = _ALL, fields: Spread = 100, quiet: Quiet = False
) -> None:
    """Counts and boxes in every runtime and precision at hand against OpenVINO in float32."""
    from smearcount.evaluation.conditions import across_runtimes, spread_fields

    with clear_errors():
        chosen = spread_fields(sources.split(","), fields)
        typer.echo(json.dumps(across_runtimes(model, chosen, bar(quiet, "evaluating")), indent=2))


@app.command()
def export(
    model: Annotated[str, typer.Argument(callback=known_model, help="Model id or folder.")],
    to: Annotated[str, typer.Option("--to", help="openvino, onnx, or openvino-int8.")] = "onnx",
    out: Annotated[Path, typer.Option("--out", help="Folder for the new model.")] = Path("exported"),
    calibrate: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Pictures to calibrate INT8 on instead of the collections; single cells for a classifier.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a copy of a model with the files of another runtime, checked against the probe; INT8 against counts too."""
    from smearcount.images import make_folder
    from smearcount.training.packaging import export_model

    if to not in ("openvino", "onnx", "openvino-int8"):
        raise typer.BadParameter("expected openvino, onnx or openvino-int8", param_hint="--to")
    if calibrate and to != "openvino-int8":
        raise typer.BadParameter("pictures are for --to openvino-int8 only", param_hint="--calibrate")
    told: tuple[Agreement, ...] = ()
    with clear_errors(), waiting(quiet, "writing"):
        if to == "openvino-int8":
            folder, told = _export_int8(model, calibrate, make_folder(out), quiet=quiet)
        else:
            folder = export_model(model, to, make_folder(out))
    for line in (*told, f"model in {folder}; use it with: smearcount {_use_of(folder, to)}"):
        if not quiet:
            typer.echo(str(line))


def _use_of(folder: Path, to: str) -> str:
    """A command that runs with the files just written: every model of an analysis needs those of its runtime."""
    from smearcount.cards import Model

    runtime = "onnx" if to == "onnx" else "openvino"
    if Model(folder).card.task == "classifier":
        return f"classify --model {folder} --runtime {runtime} PICTURE"
    alone = " --classifiers none" if to == "onnx" else ""
    return f"analyze --detector {folder}{alone} --runtime {runtime} IMAGE"


def _export_int8(model: str, calibrate: Path | None, out: Path, *, quiet: bool) -> tuple[Path, tuple[Agreement, ...]]:
    """The folder of the INT8 version, and how well it agrees."""
    from smearcount.cards import find_model
    from smearcount.training.quantising import quantise
    from smearcount.training.samples import SINGLE_CELLS, samples_in, samples_of

    found = find_model(model)
    if calibrate is None and found.card.task == "classifier":
        raise UsageError(f"{model}: give --calibrate a folder of {SINGLE_CELLS:,} or more pictures of single cells")
    try:
        samples = samples_in(calibrate, found) if calibrate else samples_of(tuple(_ALL.split(",")))
    except DatasetError as error:
        raise DatasetError(f"{error}; or give --calibrate a folder of 100 fields or more") from error
    if samples.faults and not quiet:
        typer.echo(f"{len(samples.faults)} pictures left out, as they can't be read, such as {samples.faults[0]}")
    folder, agreements = quantise(found, samples, out)
    return folder, tuple(agreements)
