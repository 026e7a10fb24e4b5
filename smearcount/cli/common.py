"""What all commands share: the application, its flags, settings from flags, and errors as one clear line."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from smearcount import __version__
from smearcount.config import OverlayFormat, Settings, read_model
from smearcount.errors import ConfigError, ModelError, RuntimeMissingError, SmearcountError, UsageError

Item = TypeVar("Item")

app = typer.Typer(
    help="Counts the cells of stained blood smears, with exact limits. Research use; no medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures of stained smears.")]
Scale = Annotated[float | None, typer.Option("--um-per-px", help="Micrometres a pixel, where known.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Overlays = Annotated[OverlayFormat, typer.Option("--overlay-format", help="Of annotated pictures.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="auto, openvino, onnx or torch.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; 0 leaves it to the library.")]
Experts = Annotated[str | None, typer.Option("--experts", help="MODEL=GAP, comma-separated; see mend experts.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; flags win over it.")]

_SETTINGS: dict[str, Any] = {
    "um_per_px": Scale,
    "min_score": Annotated[
        float | None, typer.Option("--min-score", help="Detection threshold instead of the model's.")
    ],
    "edge_rule": Annotated[str | None, typer.Option("--edge-rule", help="corner (unbiased frame) or all.")],
    "detector": Annotated[str | None, typer.Option("--detector", help="Model id or folder.")],
    "classifiers": Annotated[
        str | None, typer.Option("--classifiers", help="Ids or folders, comma-separated; none for kinds only.")
    ],
    "experts": Experts,
    "device": Device,
    "runtime": Runtime,
    "precision": Annotated[
        str | None,
        typer.Option("--precision", help="auto (INT8 for finding where the processor is made for it), f32 or bf16."),
    ],
    "threads": Threads,
    "batch_size": Annotated[
        int | None, typer.Option("--batch-size", help="Windows a call of PyTorch; 0 for 4 on CUDA, 1 on the CPU.")
    ],
    "tile": Annotated[
        int | None, typer.Option("--tile", help="Windows of a large picture read together; changes no count.")
    ],
    "max_megapixels": Annotated[float | None, typer.Option("--max-megapixels", help="Refuse larger pictures.")],
    "page": Annotated[int | None, typer.Option("--page", help="Page of multi-page TIFFs, from 1.")],
    "level": Annotated[int | None, typer.Option("--level", help="Resolution of a pyramid, from 0 for the finest.")],
    "channel": Annotated[int | None, typer.Option("--channel", help="Channel of a multi-channel picture, from 1.")],
    "region": Annotated[
        Path | None, typer.Option("--region", help="GeoJSON of where to count, in pixels, or a folder of them.")
    ],
    "countable": Annotated[
        str | None, typer.Option("--countable", help="auto, or all to count thick, thin and blurred parts too.")
    ],
    "taxonomy": Annotated[
        Path | None, typer.Option("--taxonomy", help="Codes and names instead of configs/taxonomy.yaml.")
    ],
    "min_label_score": Annotated[
        float | None,
        typer.Option(
            "--min-label-score",
            help="Below it a cell is unclassified, instead of the model's. A change of kind may need more.",
        ),
    ],
    "config": Config,
}
"""The flags of every command that analyses pictures, by their names in `Settings`, and `--config`."""


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Counts the cells of stained blood smears."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal can't show must not cost the result.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if version:
        typer.echo(__version__)
        raise typer.Exit


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `settings: Settings` the flags of `_SETTINGS` in its place.

    What it takes as `inputs: tuple[Path, ...]` are the settings file and the files that the settings name.
    """
    signature = inspect.signature(command, eval_str=True)
    kept = [each for each in signature.parameters.values() if each.name not in ("settings", "inputs")]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        flags = {name: values.pop(name) for name in _SETTINGS}
        config = flags.pop("config")
        settings = settings_from(config, **flags)
        if "inputs" in signature.parameters:
            values["inputs"] = files_of(config, settings)
        with _stoppable():
            command(**values, settings=settings)

    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=None, annotation=of) for name, of in _SETTINGS.items()]
    parameters = [each.replace(kind=kind) for each in (*kept, *added)]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def settings_from(config: Path | None, called: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """The settings file, if any, with every flag that was given on top of it.

    Args:
        config: the settings file.
        called: flags by the names of their settings, where these differ.
        flags: their values by the names of their settings.
    """
    with clear_errors():
        base = read_model(Settings, config).model_dump(exclude_unset=True) if config else {}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings(**(base | given))
    except ValueError as error:
        first = error.errors()[0] if hasattr(error, "errors") else {"loc": ("?",), "msg": str(error)}
        name = str(first["loc"][0])
        flag = (called or {}).get(name, "--" + name.replace("_", "-"))
        raise typer.BadParameter(str(first["msg"]).removeprefix("Value error, "), param_hint=flag) from error
    known_detector(settings.detector)
    for model in (*settings.classifiers, *settings.experts):
        known_classifier(model)
    return settings


def files_of(config: Path | None, settings: Settings) -> tuple[Path, ...]:
    """The settings file and the files that the settings name, which no output may replace."""
    return tuple(path for path in (config, settings.region, settings.taxonomy) if path)


def known_model(model: str | None) -> str | None:
    """The id or folder of a model as it was given, if any; without such a model the program ends as wrong usage."""
    if model:
        from smearcount.cards import find_model

        with clear_errors(ModelError):
            find_model(model)
    return model


def _known(task: str) -> Callable[[str], str]:
    def known(model: str) -> str:
        """The id or folder of a model as it was given; without one of this task the program ends as wrong usage."""
        from smearcount.cards import find_model

        with clear_errors(ModelError):
            found = find_model(model)
            _ = found.classifier_card if task == "classifier" else found.detector_card
        return model

    return known


known_classifier, known_detector = _known("classifier"), _known("detector")


@contextmanager
def clear_errors(*usage: type[SmearcountError]) -> Iterator[None]:
    """Errors of smearcount end the program with one clear line; exit code 2 for wrong usage, 1 for all else.

    Args:
        usage: kinds of errors that are wrong usage here, besides the usual ones.
    """
    wrong: tuple[type[SmearcountError], ...] = (UsageError, ConfigError, RuntimeMissingError, *usage)
    try:
        yield
    except SmearcountError as error:
        show_error(str(error))
        raise typer.Exit(2 if isinstance(error, wrong) else 1) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, by which schedulers stop a program, ends it like Ctrl-C: nothing half-written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def errors() -> Console:
    """Where errors are printed."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(reason: str) -> None:
    """Say why the program ends."""
    errors().print(f"[red]error:[/red] {plain(reason)}")


def show_failure(reason: str) -> None:
    """Say why there is no result of a picture."""
    errors().print(f"[red]failed:[/red] {plain(reason)}")


class _Screen(Console):
    """A console that leaves a closed standard output to its caller, instead of ending the program."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def screen(*, soft_wrap: bool = False) -> Console:
    """Where results are printed."""
    return _Screen(highlight=False, soft_wrap=soft_wrap)


def printed(show: Callable[[], None]) -> bool:
    """Print, and say whether it could be done.

    Where standard output is closed or full the rest of what is printed goes nowhere: files do not depend on it.
    """
    try:
        show()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        errors().print(
            f"[red]failed:[/red] standard output can't be written ({error.strerror}); files are still written"
        )
        muted()
        return False
    return True


def muted() -> None:
    """Let what is printed from now on, and what was not written yet, go nowhere."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def plain(text: str) -> str:
    """Text in which square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def waiting(quiet: bool, label: str, console: Console | None = None) -> Iterator[None]:
    """A spinner and the time on stderr around a long step, if that is a terminal and `quiet` is not set."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    shown = console or Console(stderr=True)
    if quiet or not shown.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # Seldom, so that what is being timed is not disturbed.
    look: dict[str, Any] = {"transient": True, "redirect_stdout": sys.stdout.isatty(), "refresh_per_second": 1}
    with Progress(*columns, console=shown, **look) as display:
        display.add_task(label, total=None)
        yield


def bar(quiet: bool, label: str, console: Console | None = None) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Progress on stderr around a list, as of pictures, if that is a terminal and `quiet` is not set.

    A single item has a spinner and the time, several have a bar too.
    """

    def wrap(items: Iterable[Item]) -> Iterator[Item]:
        from rich import progress

        listed = list(items)
        columns = [progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn()]
        if len(listed) > 1:
            columns[2:2] = [progress.BarColumn(), progress.MofNCompleteColumn()]
        shown = console or Console(stderr=True)
        # Rich would send what is printed meanwhile to stderr, even where stdout goes to a file.
        redirect = sys.stdout.isatty()
        with progress.Progress(*columns, console=shown, transient=True, redirect_stdout=redirect) as display:
            yield from display.track(listed, description=label)

    def silent(items: Iterable[Item]) -> Iterable[Item]:
        return items

    return silent if quiet or not (console or Console(stderr=True)).is_terminal else wrap
