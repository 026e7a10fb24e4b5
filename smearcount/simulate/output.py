"""Simulated pictures on disk: one JPEG or PNG a recipe and one truth.json for the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from smearcount.errors import ConfigError
from smearcount.images import make_folder, write_picture, write_text_atomic
from smearcount.simulate.picture import SimulatedSmear, render, truth
from smearcount.simulate.recipe import SmearRecipe

__all__ = ["TRUTH_FILE", "read_truth", "write", "write_set"]

TRUTH_FILE = "truth.json"


def write(smear: SimulatedSmear, folder: Path, stem: str, suffix: str = ".jpg", quality: int = 92) -> Path:
    """Write one picture and enter it into the folder's truth.json.

    Returns:
        The path of the picture.

    Raises:
        ConfigError: the folder's truth.json is damaged.
        ImageError: the folder can't be written.
    """
    path = make_folder(folder) / f"{stem}{suffix}"
    known = read_truth(folder)
    write_picture(path, smear.pixels, quality)
    write_text_atomic(folder / TRUTH_FILE, _as_json({**known, path.name: truth(smear)}))
    return path


def write_set(
    recipes: Mapping[str, SmearRecipe],
    folder: Path,
    suffix: str = ".jpg",
    quality: int = 92,
    *,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> list[Path]:
    """Render and write every recipe as `<stem><suffix>`; returns the paths in the order given."""
    return [write(render(recipes[stem]), folder, stem, suffix, quality) for stem in progress(recipes)]


def read_truth(folder: Path) -> dict[str, Any]:
    """The folder's truth by file name; empty where there is none yet.

    Raises:
        ConfigError: truth.json is no JSON object.
    """
    path = folder / TRUTH_FILE
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); delete it to start afresh") from error
    if not isinstance(known, dict):
        raise ConfigError(f"{path}: expected an object by file name, got {type(known).__name__}")
    return known


def _as_json(known: Mapping[str, Any]) -> str:
    # One line a picture: a whole indented file would have one line a coordinate.
    rows = [f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known)]
    return "{\n" + ",\n".join(rows) + "\n}\n"
