"""The list of patches that `smearcount crop` writes beside them, as `smearcount classify` reads it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from smearcount.errors import UsageError
from smearcount.patches import PatchSizes
from smearcount.report import CELL_COLUMNS

__all__ = ["MANIFEST", "MANIFEST_COLUMNS", "ListedPatch", "listed_patches", "manifests_beside", "names_listed"]

MANIFEST = "manifest.csv"
MANIFEST_COLUMNS = ("file", *CELL_COLUMNS, "found_as", "side_um", "filled", "um_per_px", "image_sha256")


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


def names_listed(folder: Path) -> frozenset[str]:
    """The names of the patches of `smearcount crop` in a folder; none where it has no manifest of them."""
    try:
        with (folder / MANIFEST).open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            ours = {"file", "found_as", "side_um"} <= set(table.fieldnames or ())
            return frozenset(row["file"] for row in table) if ours else frozenset()
    except (OSError, ValueError, csv.Error):
        return frozenset()


def listed_patches(paths: Iterable[Path]) -> dict[Path, ListedPatch]:
    """Those pictures that the manifest in their folder lists as patches of `smearcount crop`.

    Raises:
        UsageError: a manifest can't be read.
    """
    listed: dict[Path, ListedPatch] = {}
    for manifest in manifests_beside(paths):
        listed |= _patches_in(manifest)
    return listed


def _patches_in(manifest: Path) -> dict[Path, ListedPatch]:
    columns = ("file", "kind", "diameter_um", "side_um", "um_per_px")
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row.get(column) for column in columns)]
        patches = {manifest.parent / row["file"]: _patch_of(row) for row in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{manifest}: no manifest of `smearcount crop` ({error}); move it elsewhere") from error
    for path, patch in patches.items():
        sizes = (patch.sizes.side_um, patch.sizes.um_per_px, patch.diameter_um)
        if not all(0 < size < 1000 for size in sizes):
            raise UsageError(
                f"{manifest}: the sizes of {path.name} are none in micrometres; move the manifest elsewhere"
            )
    return patches


def _patch_of(row: Mapping[str, str]) -> ListedPatch:
    sizes = PatchSizes(float(row["side_um"]), float(row["um_per_px"]))
    return ListedPatch(sizes, row.get("found_as") or row["kind"], float(row["diameter_um"]))
