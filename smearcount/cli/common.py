"""What all commands share: the application, its flags, settings from flags, and errors as one clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from smearcount import __version__
from smearcount.config import Settings, read_model
from smearcount.errors import SmearcountError

app = typer.Typer(
    help="Counts the cells of stained blood smears, with exact limits. Research use; no medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {plain(str(error))}")
        raise typer.Exit(2) from error


def plain(text: str) -> str:
    """Text in which square brackets are no markup."""
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
