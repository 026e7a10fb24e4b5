"""Outputs of a batch on the disk: nothing half-written stays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from smearcount.images import part_key, real_path

__all__ = ["sweep"]

_PART = re.compile(r"\.(.+)\.[0-9a-f]{16}\.part", re.DOTALL)


def sweep(files: Iterable[Path], galleries: Iterable[Path]) -> None:
    """Remove what a run that was killed left half-written of these outputs; only while their locks are held.

    What other runs are writing in the same folders stays.

    Args:
        files: tables, pages and overlays.
        galleries: folders of the sheets of one picture each.
    """
    keys: dict[Path, set[str]] = {}
    for path in map(real_path, files):
        keys.setdefault(path.parent, set()).add(part_key(path))
    for folder, own in keys.items():
        _sweep(folder, own.__contains__)
    for folder in galleries:
        _sweep(folder, bool)


def _sweep(folder: Path, own: Callable[[str], bool]) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _PART.fullmatch(path.name)
            if found and own(found[1]):
                with contextlib.suppress(OSError):
                    path.unlink()
