"""Names of output files: never shared, never too long."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import get_args

from smearcount.config import OverlayFormat
from smearcount.errors import ImageError
from smearcount.records import SmearResult

__all__ = ["OVERLAYS", "is_free", "numbered", "place_of", "shortened", "unique_stems"]

OVERLAYS = tuple(f".overlay.{ending}" for ending in get_args(OverlayFormat))
"""What is added to the name of a picture for its annotated copy."""

_NAME_BYTES = 200
"""Longest stem in bytes: file systems take names of 255, and up to 50 are added to it."""


def shortened(name: str) -> str:
    """A name of at most 200 bytes; a long one ends in a digest, so that no two become the same."""
    encoded = os.fsencode(name)
    if len(encoded) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: _NAME_BYTES - 13].decode('utf-8', 'ignore')}-{digest}"


def place_of(folder: Path, image_id: str, ending: str) -> Path:
    """Where an output about a picture stands in a folder: below the same sub-folders as the picture in its own."""
    return folder / Path(image_id).parent / f"{shortened(Path(image_id).name)}{ending}"


def unique_stems(paths: Iterable[Path]) -> dict[Path, str]:
    """Stem for the output files of each picture; pictures of one stem keep their full file names.

    Stems of more than 200 bytes are shortened, so that there is room for the endings of the outputs. Case makes no
    difference: files that differ in nothing else are one file on Windows and macOS.
    """
    listed = list(dict.fromkeys(paths))
    shared = Counter(path.stem.casefold() for path in listed)
    out: dict[Path, str] = {}
    taken: set[str] = set()
    for path in listed:
        wanted = shortened(path.name if shared[path.stem.casefold()] > 1 else path.stem)
        stem = next(name for name in numbered(wanted) if name.casefold() not in taken)
        taken.add(stem.casefold())
        out[path] = stem
    return out


def numbered(wanted: str) -> Iterator[str]:
    """`wanted`, then the same with 2, 3 and so on behind it."""
    return chain([wanted], (f"{wanted}-{i}" for i in count(2)))


def is_free(path: Path, result: SmearResult) -> bool:
    """Whether a report is of the picture of a result, or is not there yet.

    Raises:
        ImageError: what has this name can't be looked at.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError as error:
        if isinstance(error, PermissionError | IsADirectoryError) and os.path.lexists(path):
            return False
        raise ImageError(f"{path}: can't be read ({error.strerror}); check the disk, or give another folder") from error
    try:
        content = json.loads(data)
    except ValueError:
        return False
    ours = {"image": result.image_id, "image_sha256": result.image_sha256}
    return isinstance(content, dict) and any(ours.values()) and all(content.get(k) == v for k, v in ours.items())
