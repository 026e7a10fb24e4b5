"""Commands around the product: simulate, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from smearcount.cli.common import Json, Out, Scale, app, clear_errors
from smearcount.config import read_model


@app.command()
def simulate(
    out: Out = Path("simulated"),
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe; without one the sample set.")] = None,
    random: Annotated[int, typer.Option(help="This many very different smears instead.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Seed instead of the recipe's.", min=0)] = None,
) -> None:
    """Render smears with exact ground truth."""
    from smearcount.images import make_folder
    from smearcount.simulate import SmearRecipe, random_set, sample_set, write_set

    with clear_errors():
        recipes = {recipe.stem: read_model(SmearRecipe, recipe)} if recipe else sample_set()
        if random:
            recipes = random_set(random, seed or 0)
        elif seed is not None:
            recipes = {name: r.model_copy(update={"seed": seed}) for name, r in recipes.items()}
        write_set(recipes, make_folder(out))
    typer.echo(f"{len(recipes)} pictures and truth.json in {out}")


@app.command()
def bench(
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Fields to time.")] = None,
    um_per_px: Scale = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for every contender.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the median counts.")] = 15,
    processes: Annotated[bool, typer.Option(help="Time whole processes from the shell too.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Time the pipeline against the bare network and against ultralytics' own predict, in one run."""
    from smearcount.bench import BenchJob, run_bench
    from smearcount.images import check_target, write_text_atomic

    with clear_errors():
        if out:
            check_target(out)
        figures = run_bench(BenchJob(tuple(images or ()), um_per_px, threads, rounds, processes))
        text = json.dumps(figures, indent=2)
        if out:
            write_text_atomic(out, text + "\n")
    if as_json:
        typer.echo(text)
    else:
        for name, value in figures.items():
            typer.echo(f"{name:48} {value}")
