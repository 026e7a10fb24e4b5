"""One picture after the other through a pipeline; one that fails costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2

from smearcount.errors import ImageError, SmearcountError
from smearcount.images import is_of_machine, lack_of_memory
from smearcount.pipeline import Analysis, Pipeline

__all__ = ["Failure", "analyze_each", "attempt"]

Found = TypeVar("Found")
Finished = TypeVar("Finished")


@dataclass(frozen=True)
class Failure:
    """Why a picture has no result.

    Attributes:
        reason: names the file, what is wrong and what to do.
        lasting: the picture itself is at fault, so the same bytes fail again.
    """

    reason: str
    lasting: bool = False


def analyze_each(
    pipeline: Pipeline,
    paths: Iterable[Path],
    ids: Callable[[Path], tuple[str, str]],
    finish: Callable[[Path, Analysis], Finished],
) -> Iterator[tuple[Path, Finished | Failure]]:
    """Each picture with what `finish` made of its analysis; a picture that fails, there too, costs only itself.

    Args:
        pipeline: finds and counts.
        paths: pictures.
        ids: names of picture and slide in reports.
        finish: writes what is wanted of a picture, and returns what the caller needs.
    """
    try:
        for path in paths:
            image_id, slide_id = ids(path)
            analyze = partial(pipeline.analyze, image_id=image_id, slide_id=slide_id)
            yield path, attempt(path, analyze, finish)
    finally:
        # A progress bar that is closed later than this wipes the words that say why the run was stopped.
        if isinstance(paths, Generator):
            paths.close()


def attempt(
    path: Path, analyze: Callable[[Path], Found], finish: Callable[[Path, Found], Finished]
) -> Finished | Failure:
    """What `finish` made of the analysis of one picture, or why there is none: one of thousands costs no other."""
    analysis: Found | None = None
    try:
        analysis = analyze(path)
        return finish(path, analysis)
    except Exception as error:
        at_fault = isinstance(error, ImageError | cv2.error) and not is_of_machine(error)
        return Failure(_reason(path, error), lasting=analysis is None and at_fault)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, SmearcountError):
        return str(error)
    if told := lack_of_memory(error):
        return f"{path}: {told}"
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}; check the disk"
    if isinstance(error, cv2.error):
        return f"{path}: can't be processed ({error.err or error}); save it as PNG or TIFF and try again"
    return f"{path}: unexpected {type(error).__name__}: {error}; please report it as a fault"
