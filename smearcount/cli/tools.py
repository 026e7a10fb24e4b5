"""Commands around the product: simulate, bench."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from smearcount.cli.common import Json, Out, Quiet, app, bar, clear_errors, known_classifier, waiting
from smearcount.config import RuntimeName, read_model
from smearcount.errors import UsageError


@app.command()
def simulate(
    out: Out = Path("simulated"),
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe; without one the sample set.")] = None,
    random: Annotated[int, typer.Option(help="This many very different smears instead.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's; of the random smears.", min=0)] = None,
    quiet: Quiet = False,
) -> None:
    """Render smears with exact ground truth."""
    from smearcount.images import make_folder, refuse_input
    from smearcount.simulate import SmearRecipe, random_set, sample_set, write_set
    from smearcount.simulate.output import TRUTH_FILE

    with clear_errors():
        if recipe and random:
            raise UsageError("--recipe and --random exclude each other: leave one of them out")
        recipes = {recipe.stem: read_model(SmearRecipe, recipe)} if recipe else sample_set()
        if random:
            recipes = random_set(random, seed or 0)
        elif seed is not None:
            recipes = {name: r.model_copy(update={"seed": seed}) for name, r in recipes.items()}
        refuse_input(out / TRUTH_FILE, [recipe] if recipe else ())
        write_set(recipes, make_folder(out), progress=bar(quiet, "rendering"))
    if not quiet:
        typer.echo(f"{len(recipes)} pictures and truth.json in {out}")


class _FieldsByDefault(TyperGroup):
    """`bench` without the name of a benchmark, or with pictures in its place, times fields."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `fields` in front where no benchmark is named."""
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["fields", *args])


bench_app = typer.Typer(cls=_FieldsByDefault, help="Measure speed, memory and steadiness; of fields by default.")
app.add_typer(bench_app, name="bench")

_Scale = Annotated[
    float | None, typer.Option("--um-per-px", min=0.02, max=2, help="Micrometres a pixel; estimated without it.")
]
_Threads = Annotated[int, typer.Option(min=1, help="CPU threads for every contender.")]
_Rounds = Annotated[int, typer.Option(min=1, help="Repetitions; the median counts.")]
_File = Annotated[Path | None, typer.Option("--out", help="JSON file to write.")]
_Folder = Annotated[
    Path | None, typer.Argument(metavar="[DIR]", exists=True, file_okay=False, help="Fields; the samples without one.")
]
_Fields = Annotated[int, typer.Option(min=2, help="Pictures of the batch; those of DIR in turn.")]


def _numbers(text: str) -> str:
    """Numbers with commas between them, as they were given."""
    try:
        [float(each) for each in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between them, got {text!r}") from error
    return text


@bench_app.command("fields")
def bench_fields(
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Fields to time.")] = None,
    um_per_px: _Scale = None,
    threads: _Threads = 2,
    rounds: _Rounds = 15,
    processes: Annotated[bool, typer.Option(help="Time whole processes from the shell too.")] = True,
    out: _File = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time the pipeline against the bare network and against ultralytics' own predict."""

    def run() -> dict[str, Any]:
        from smearcount.bench import FieldsJob, bench_fields

        return bench_fields(FieldsJob(tuple(images or ()), um_per_px, threads, rounds, processes))

    _report(run, out, images or (), quiet=quiet, as_json=as_json)


@bench_app.command("slides")
def bench_slides(
    slide: Annotated[Path | None, typer.Argument(metavar="[SLIDE]", help="Slide to measure.")] = None,
    um_per_px: _Scale = None,
    threads: _Threads = 2,
    rounds: _Rounds = 3,
    megapixels: Annotated[str, typer.Option(callback=_numbers, help="Sizes of the mosaics.")] = "10,25,50,100,200",
    simulated: Annotated[int, typer.Option(min=0, help="Side in px of a simulated slide; 0 for none.")] = 8000,
    share: Annotated[float, typer.Option(help="Part of the slide to measure.")] = 1.0,
    only: Annotated[str, typer.Option(help="Which parts.")] = "sizes,memory,network,origins,sahi",
    out: _File = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time and memory by size, end to end over the bare network, shifted grids of windows, and SAHI."""

    def run() -> dict[str, Any]:
        from smearcount.bench import SlidesJob, bench_slides

        sizes, parts = tuple(map(float, megapixels.split(","))), tuple(only.split(","))
        return bench_slides(SlidesJob(slide, um_per_px, threads, rounds, sizes, simulated, share, parts))

    _report(run, out, [slide] if slide else (), quiet=quiet, as_json=as_json)


@bench_app.command("directories")
def bench_directories(
    folder: _Folder = None,
    um_per_px: _Scale = None,
    fields: _Fields = 400,
    rounds: _Rounds = 1,
    out: _File = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time a batch by number of workers and threads."""

    def run() -> dict[str, Any]:
        from smearcount.bench import DirectoriesJob, bench_directories

        return bench_directories(DirectoriesJob(folder, um_per_px, fields, rounds))

    _report(run, out, _pictures_in(folder), quiet=quiet, as_json=as_json)


@bench_app.command("engines")
def bench_engines(
    folder: _Folder = None,
    um_per_px: _Scale = None,
    fields: _Fields = 400,
    rounds: _Rounds = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes, and Ray actors.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each.")] = 1,
    ray_address: Annotated[str, typer.Option(help="Of a running Ray cluster; else one is started here.")] = "",
    out: _File = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time a batch on local processes and on Ray."""

    def run() -> dict[str, Any]:
        from smearcount.bench import DirectoriesJob, EnginesJob, bench_engines

        return bench_engines(
            EnginesJob(DirectoriesJob(folder, um_per_px, fields, rounds), workers, threads, ray_address)
        )

    _report(run, out, _pictures_in(folder), quiet=quiet, as_json=as_json)


@bench_app.command("naming")
def bench_naming(
    image: Annotated[Path | None, typer.Argument(metavar="[IMAGE]", help="Field whose cells are named.")] = None,
    um_per_px: _Scale = None,
    classifier: Annotated[list[str] | None, typer.Option(help="Model id or folder; may be repeated.")] = None,
    cells: Annotated[int, typer.Option(min=1, help="Number of cells.")] = 100,
    threads: _Threads = 2,
    rounds: _Rounds = 15,
    runtime: Annotated[RuntimeName, typer.Option(help="Library of the networks.")] = "auto",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where they run.")] = "cpu",
    out: _File = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time the naming of the cells of a field against the bare network."""
    for model in classifier or ():
        known_classifier(model)

    def run() -> dict[str, Any]:
        from smearcount.bench import NamingJob, bench_naming

        job = NamingJob(image, um_per_px, tuple(classifier or ()), cells, threads, rounds)
        return bench_naming(replace(job, runtime=runtime, device=device))

    _report(run, out, [image] if image else (), quiet=quiet, as_json=as_json)


def _pictures_in(folder: Path | None) -> list[Path]:
    from smearcount.images import find_images

    with clear_errors():
        return find_images(folder, recursive=True) if folder else []


def _report(
    run: Callable[[], dict[str, Any]], out: Path | None, inputs: Iterable[Path], *, quiet: bool, as_json: bool
) -> None:
    """Run a benchmark; print its figures, and write them where a file is asked for."""
    from smearcount.images import check_target, write_text_atomic

    with clear_errors():
        if out:
            check_target(out, inputs)
        with waiting(quiet or as_json, "measuring"):
            figures = run()
        text = json.dumps(figures, indent=2)
        if out:
            write_text_atomic(out, text + "\n")
    if as_json:
        typer.echo(text)
    elif not quiet:
        for name, value in _flat(figures):
            typer.echo(f"{name:72} {value}")


def _flat(figures: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Figures of figures as `part: figure`."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{name}: ")
        else:
            yield f"{under}{name}", value
