"""The list of patches that `smearcount crop` writes beside them, as `smearcount classify` reads it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from smearcount.errors import UsageError
from smearcount.patches import PatchSizes
from smearcount.report import CELL_COLUMNS

__all__ = [
    "MANIFEST",
    "MANIFEST_COLUMNS",
    "ListedPatch",
    "listed_patches",
    "manifests_beside",
    "names_listed",
    "read_manifest",
]

MANIFEST = "manifest.csv"
MANIFEST_COLUMNS = ("file", *CELL_COLUMNS, "found_as", "side_um", "filled", "um_per_px", "image_sha256")
_NEEDED = ("file", "kind", "diameter_um", "side_um", "um_per_px")


@dataclass(frozen=True)
class ListedPatch:
    """What the manifest of `smearcount crop` says of a patch.

    Attributes:
        sizes: of the patch.
        found_as: kind that the detector gave the cell, whatever its name made of it.
        diameter_um: of the cell.
    """

    sizes: PatchSizes
    found_as: str
    diameter_um: float


def manifests_beside(pictures: Iterable[Path]) -> list[Path]:
    """The manifests in the folders of some pictures."""
    return [path for path in dict.fromkeys(picture.parent / MANIFEST for picture in pictures) if path.is_file()]


def read_manifest(path: Path) -> list[dict[str, str]] | None:
    """The rows of a manifest of `smearcount crop`, this version's or an older one's; None where there is none.

    Raises:
        UsageError: it can't be read, or a row is incomplete.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            table = csv.DictReader(file)
            if not set(_NEEDED) <= set(table.fieldnames or ()):
                return None
            rows = []
            for row in table:
                if None in row or None in row.values() or not all(row[column] for column in _NEEDED):
                    raise ValueError(f"line {table.line_num} is not whole")
                rows.append(row)
            return rows
    except FileNotFoundError:
        return None
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: no manifest of `smearcount crop` ({error}); move it elsewhere") from error


def names_listed(folder: Path) -> frozenset[str]:
    """The names of the patches of `smearcount crop` in a folder; none where it has no manifest of them.

    Raises:
        UsageError: the manifest can't be read.
    """
    return frozenset(row["file"] for row in read_manifest(folder / MANIFEST) or ())


def listed_patches(paths: Iterable[Path]) -> dict[Path, ListedPatch]:
    """Those pictures that the manifest in their folder lists as patches of `smearcount crop`.

    Raises:
        UsageError: a manifest can't be read.
    """
    manifests = manifests_beside(paths)
    return {path.parent / row["file"]: _patch_of(row, path) for path in manifests for row in read_manifest(path) or ()}


def _patch_of(row: Mapping[str, str], manifest: Path) -> ListedPatch:
    try:
        side_um, um_per_px, diameter_um = (float(row[column]) for column in ("side_um", "um_per_px", "diameter_um"))
        if not all(0 < size < 1000 for size in (side_um, um_per_px, diameter_um)):
            raise ValueError("expected numbers of micrometres")
    except ValueError as error:
        raise UsageError(f"{manifest}: the sizes of {row['file']} are none ({error}); move it elsewhere") from error
    return ListedPatch(PatchSizes(side_um, um_per_px), row.get("found_as") or row["kind"], diameter_um)
