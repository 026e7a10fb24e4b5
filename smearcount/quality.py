"""First advice on whether a field can be counted: focus, crowding, emptiness, and what its counts can't tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import cv2
import numpy as np

from smearcount.arrays import Bools, Pixels
from smearcount.counting import kind_total, kind_totals, names_kind
from smearcount.geometry import areas, centres, overlapping_discs, resize_rgb
from smearcount.images import PixelSource, peek
from smearcount.light.glass import CLIPPED
from smearcount.records import Detections, Quality, Scale, SmearResult
from smearcount.region import Region
from smearcount.taxonomy import Taxonomy

__all__ = ["NOT_RECOGNISED", "assess", "focus_view", "overlapping_red", "remarks", "sharpness", "warnings_of"]


FOCUS_UM_PER_PX = 0.2
FOCUS_SIDE_UM = 25.0
SHARPEST_RATIO = 0.068
"""Ratio that a well focused field reaches: the median of 80 labelled validation photographs (5 %: 0.032)."""

ROUNDING_NOISE = (1 - 3 / (4 * math.pi)) / 12
"""What rounding to whole grey levels leaves of the finest detail; without it a heavy blur would look sharper again."""

BLURRED = 0.3
"""None of those photographs is below; blurred by 0.4 um (sigma) 95 % of them are."""

CROWDED_COVER = 0.75
CROWDED_OVERLAP = 0.5
SPARSE_RED = 20
_ROW_PX = 2048
OVEREXPOSED = 0.55
"""Of the pixels of some rows of a picture. Lightened until cells were lost, photographs had 0.5 to 0.9; none
of 562 validation photographs has more than 0.1."""

ODD_SHARES = {"platelet": (0.5, 20, "platelets"), "wbc": (0.2, 10, "white cells")}
"""Of the red cells, from so many cells on, which no healthy blood has: dirt, lines or tiny red cells may be among them.
Usual are 0.04 to 0.1 platelets and 0.001 to 0.002 white cells."""

EXCLUDED_SHARE = 0.5
ENOUGH_WHITE = 100
"""White cells of the usual differential (Rumke 1985, Am J Clin Pathol 84:256)."""

NOT_RECOGNISED = ("blasts", "atypical lymphocytes", "smudge cells")


def focus_view(green: Pixels, um_per_px: float) -> Pixels:
    """The green channel `(H, W)` of a picture at 0.2 um a pixel, so that magnification has no part in its focus."""
    factor = um_per_px / FOCUS_UM_PER_PX
    return resize_rgb(green, max(8, round(green.shape[1] * factor)), max(8, round(green.shape[0] * factor)))


def sharpness(view: Pixels) -> float:
    """Strength of the detail of 0.2 to 0.4 um against that of 0.4 to 1.6 um.

    Args:
        view: as from `focus_view`.

    Returns:
        A ratio without unit: 0 for a blank picture.
    """
    seen = view.astype(np.float32)
    fine = cv2.GaussianBlur(seen, (0, 0), 1.0)
    # What is left of the detail needs no more pixels than this.
    half = cv2.resize(fine, (seen.shape[1] // 2, seen.shape[0] // 2), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(half, (0, 0), 2.0)
    # OpenCV takes a mean square several times as fast as NumPy.
    structure = cv2.norm(half, coarse, cv2.NORM_L2SQR) / half.size
    detail = max(cv2.norm(seen, fine, cv2.NORM_L2SQR) / seen.size - ROUNDING_NOISE, 0.0)
    return detail / structure if structure > 1 else 0.0


def _clipped(source: PixelSource, part: Region | None) -> float:
    """Share of the pixels of some rows of a part of a picture whose green is as light as can be."""
    left, top, right, bottom = _bounds(source, part)
    wide = min(right - left, _ROW_PX)
    left, tops = left + (right - left - wide) // 2, [top + (bottom - top - 1) * n // 8 for n in range(1, 8)]
    green = np.concatenate([peek(source, left, row, wide, 1)[0, :, 1] for row in tops])
    if part is not None:
        x, y = np.meshgrid(left + 0.5 + np.arange(wide), np.array(tops) + 0.5)
        green = green[part.contains(np.stack([x.ravel(), y.ravel()], axis=1))]
    return float(np.mean(green >= CLIPPED)) if len(green) else 0.0


def _focus(source: PixelSource, um_per_px: float, part: Region | None) -> float:
    """Sharpness of the middle of a part of a picture, as a share of that of a well focused field."""
    left, top, right, bottom = _bounds(source, part)
    side = max(32, round(FOCUS_SIDE_UM / um_per_px))
    w, h = min(side, source.size_wh[0]), min(side, source.size_wh[1])
    x, y = ((left + right) / 2, (top + bottom) / 2) if part is None else part.middle
    left, top = (
        min(max(math.floor(middle - length / 2), 0), most - length)
        for middle, length, most in ((x, w, source.size_wh[0]), (y, h, source.size_wh[1]))
    )
    green = cast(Pixels, cv2.extractChannel(peek(source, left, top, w, h), 1))
    return sharpness(focus_view(green, um_per_px)) / SHARPEST_RATIO


def _bounds(source: PixelSource, part: Region | None) -> tuple[int, int, int, int]:
    """The rectangle around a part of a picture, or all of it."""
    width, height = source.size_wh
    if part is None:
        return 0, 0, width, height
    left, top, right, bottom = part.outline.bounds
    return (
        max(math.floor(left), 0),
        max(math.floor(top), 0),
        min(math.ceil(right), width),
        min(math.ceil(bottom), height),
    )


def overlapping_red(cells: Detections) -> Bools:
    """Which cells are red cells that lie on another one, `(N,)`."""
    red, pairs = cells.kinds == "rbc", cells.touching
    return overlapping_discs(cells.boxes, pairs.where(red[pairs.first] & red[pairs.second]))


def assess(
    source: PixelSource,
    scale: Scale,
    cells: Detections,
    counted: Bools,
    excluded: Mapping[str, int],
    part: Region | None = None,
) -> Quality:
    """Focus from the middle, crowding from the boxes of all cells found there, numbers from those counted.

    Args:
        source: the picture.
        scale: how large a pixel is.
        cells: every cell found.
        counted: `(N,) bool`, the cell enters the counts.
        excluded: cells that do not, by reason.
        part: what of the picture is looked at: the field of view, the region; None for all of it.
    """
    focus = _focus(source, scale.um_per_px, part)
    is_red = cells.kinds == "rbc"
    within = np.ones(len(cells), np.bool_) if part is None else part.contains(centres(cells.boxes))
    red_within = is_red & within
    seen_px = math.prod(source.size_wh) if part is None else part.area_px(source.size_wh)
    cover = float(areas(cells.boxes[red_within]).sum()) * np.pi / 4 / seen_px
    overlapping = float(overlapping_red(cells)[red_within].mean()) if red_within.any() else 0.0
    warnings = []
    if focus < BLURRED:
        warnings.append(f"out of focus (sharpness {focus:.2f} of 1): names and small cells can't be trusted")
    if cover > CROWDED_COVER or overlapping > CROWDED_OVERLAP:
        warnings.append(f"too dense ({overlapping:.0%} of the red cells overlap): choose a thinner region")
    if (clipped := _clipped(source, part)) > OVEREXPOSED:
        warnings.append(f"over-exposed ({clipped:.0%} of the picture is pure white): faint cells may be lost in it")
    for kind, (share, fewest, name) in ODD_SHARES.items():
        n, n_red = int((within & (cells.kinds == kind)).sum()), int(red_within.sum())
        if n >= fewest and n > share * n_red:
            warnings.append(f"{n} {name} for {_red_cells(n_red)}: see on the overlay whether all of them are such")
    red_counted, at_edge = int((counted & is_red).sum()), excluded.get("edge", 0)
    if red_counted < SPARSE_RED:
        warnings.append(f"too sparse ({_red_cells(red_counted)} counted): count more fields")
    if at_edge > EXCLUDED_SHARE * len(cells):
        warnings.append(f"{at_edge} of {len(cells)} cells lie at the edge and are not counted: take a larger field")
    if scale.note and (scale.source != "estimated" or scale.in_doubt):
        warnings.append(scale.note)
    return Quality(round(focus, 3), round(cover, 4), round(overlapping, 4), tuple(warnings))


def _red_cells(n: int) -> str:
    return f"{n} red cell{'s' * (n != 1)}"


def warnings_of(result: SmearResult, taxonomy: Taxonomy) -> tuple[str, ...]:
    """What speaks against the counts: the advice on the field, and too few white cells for a differential.

    Without names of white cells there is no differential, and nothing to warn of.
    """
    white = kind_total(result.counts, "wbc", taxonomy)
    if white >= ENOUGH_WHITE or not names_kind(result.labels, "wbc", taxonomy):
        return result.quality.warnings
    few = f"{white} white cell{'s' * (white != 1)} counted: a differential needs at least {ENOUGH_WHITE}"
    return (*result.quality.warnings, few)


def remarks(result: SmearResult, taxonomy: Taxonomy) -> tuple[str, ...]:
    """What a reader must know of the scale, and what the models used can't tell."""
    red, white = (names_kind(result.labels, kind, taxonomy) for kind in ("rbc", "wbc"))
    words = [] if red or white else ["no classifier used: types are unclassified"]
    if kind_totals(result.counts, result.labels, taxonomy)["nrbc"] is None:
        words.append("nucleated red cells are among the white cells")
    note = "" if result.scale.note in result.quality.warnings else result.scale.note
    told = f"{', '.join(NOT_RECOGNISED[:-1])} and {NOT_RECOGNISED[-1]} are not recognised"
    return tuple(filter(None, (note, "; ".join(words), told if white else "")))
