"""Labelled cells of several collections as one `CellSet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from smearcount.cellsets import CellSet, Windows, join, pixels_of, side_of
from smearcount.classifier import FINEST
from smearcount.detector import Detector
from smearcount.errors import DatasetError
from smearcount.geometry import resize_rgb
from smearcount.progress import Report
from smearcount.training.cell_formats import Reading, Skipped, Window, windows_of
from smearcount.training.cell_sources import CellSource, folder_of, readable

__all__ = ["read_cells"]

MOST_BYTES = 2 * 2**30
"""Pixels that are kept in memory, those of 3,500 pictures of 452 px. Further pictures of single cells are read each
time that they are shown; windows of fields are always kept, as a field would have to be decoded for each."""


def read_cells(
    sources: Mapping[str, CellSource],
    codes: tuple[str, ...],
    detector: Detector,
    patch_um: float,
    input_px: int,
    seed: int = 0,
    *,
    report: Report | None = None,
) -> CellSet:
    """The labelled cells of some collections; cells of classes without a code are left out.

    Args:
        sources: by name, as `load_cell_sources` gives them.
        codes: of the classifier; labels outside of them are left out.
        detector: finds the cells on fields and single pictures, so that training sees what inference sees.
        patch_um: side of the classifier's window; more is kept around it.
        input_px: side of the largest input they are shown at; windows are kept at no more than twice that resolution.
        seed: of the splits and of the choice where a collection is larger than wanted.
        report: takes a line for each collection that has no cell of the codes, or of which fields were skipped, with
            their numbers by reason.

    Raises:
        DatasetError: a collection is missing or malformed, or none has a cell of the codes.
        ConfigError: the entry of a collection does not fit its pictures.
    """
    finest, parts, room, homes = patch_um / (FINEST * input_px), [], MOST_BYTES, dict[Path, str]()
    for name, source in sources.items():
        folder = folder_of(name, source)
        home = homes.setdefault(folder.resolve(), name)
        reading = Reading(folder, name, home, source, detector, patch_um, seed)
        skipped, windows = Counter[str](), list[Window]()
        with readable(name, reading.folder, source):
            for each in windows_of(reading):
                if isinstance(each, Skipped):
                    skipped[each.why] += 1
                elif source.codes_of(each.label) & set(codes):
                    window = _coarse(each, finest)
                    room -= 3 * side_of(window.pixels) ** 2
                    windows.append(window if room >= 0 else replace(window, pixels=window.again or window.pixels))
        if skipped and report:
            listed = ", ".join(f"{n} {why}" for why, n in sorted(skipped.items()))
            report(f"{name}: {skipped.total()} fields left out ({listed})")
        if windows:
            parts.append(_as_set(windows, name, source, codes))
        elif report:
            report(f"{name}: no cell of {', '.join(codes)}")
    if not parts:
        raise DatasetError(
            f"no labelled cell of {', '.join(codes)} in {', '.join(sources)}; see their `classes`, or ask for other "
            "codes or kinds under `data`"
        )
    return join(parts)


def _coarse(window: Window, finest_um_per_px: float) -> Window:
    """The window at no finer a scale than given, which is all that the network can see and less to keep."""
    before = side_of(window.pixels)
    side = round(before * window.um_per_px / finest_um_per_px)
    if side >= before:
        return window
    pixels, scale = resize_rgb(pixels_of(window.pixels), side, side), window.um_per_px * before / side
    again = replace(window.again, side_px=side) if window.again else None
    return replace(window, pixels=pixels, um_per_px=scale, again=again)


def _as_set(windows: list[Window], name: str, source: CellSource, codes: tuple[str, ...]) -> CellSet:
    allowed = [source.codes_of(window.label) for window in windows]
    return CellSet(
        pixels=Windows(window.pixels for window in windows),
        um_per_px=np.array([window.um_per_px for window in windows], np.float32),
        targets=np.array([[code in each for code in codes] for each in allowed], bool),
        codes=codes,
        sources=np.array([name + window.look for window in windows]),
        groups=np.array([window.group for window in windows]),
        splits=np.array([window.split for window in windows]),
        origins=np.array([window.origin for window in windows]),
    )
