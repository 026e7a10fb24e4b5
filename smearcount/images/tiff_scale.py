"""The size of a pixel of a TIFF page: from the description of its picture, else from the tags of the page.

Sources: TIFF 6.0 (XResolution, ResolutionUnit), OME-XML 2016-06 (PhysicalSizeX), ImageJ (unit), Aperio (MPP).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import tifffile

from smearcount.images.scale import MAX_DESCRIPTION, PixelSize, from_density, from_sizes, um_per
from smearcount.images.tiff_choice import levels_of
from smearcount.images.tiff_stack import Stack

__all__ = ["pixel_size"]


def pixel_size(pages: Sequence[tifffile.TiffPage], page: tifffile.TiffPage, stacks: Sequence[Stack]) -> PixelSize:
    """The size of a pixel of a page: what its picture or itself tells, or as a level of what the first page tells.

    Args:
        pages: of the file.
        page: one of them.
        stacks: pictures that the first page describes.
    """
    told, first = _told(pages, page, stacks), pages[0]
    if told.origin or told.note or page not in levels_of(pages, first):
        return told
    return _told(pages, first, stacks).times(first.imagewidth / page.imagewidth)


def _told(pages: Sequence[tifffile.TiffPage], page: tifffile.TiffPage, stacks: Sequence[Stack]) -> PixelSize:
    stack = next((each for each in stacks if each.has_page(pages.index(page))), None)
    if stack and stack.pixels:
        told = _from_ome(stack.pixels)
    elif stack:
        page = pages[0]
        told = _from_imagej(page.description[:MAX_DESCRIPTION], _density_xy(page))
    else:
        told = _from_aperio(page.description[:MAX_DESCRIPTION])
    if told.origin or told.note:
        return told
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof(296, default=2)), "")
    return from_density(*_density_xy(page), unit, "TIFF resolution")


def _from_ome(pixels: dict[str, str]) -> PixelSize:
    sizes = [_number(pixels.get(f"PhysicalSize{axis}", "")) for axis in "XY"]
    units = [pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in "XY"]
    if (sizes[0] > 0) != (sizes[1] > 0):
        return PixelSize(note="OME ignored: it tells only one side of a pixel")
    if sizes[0] > 0 and (unknown := _unknown(*units)):
        return PixelSize(note=f"OME ignored: unknown unit {unknown!r}")
    x_um, y_um = (size * um_per(unit) for size, unit in zip(sizes, units, strict=True))
    return from_sizes(x_um, y_um, "OME")


def _from_imagej(text: str, density_xy: tuple[float, float]) -> PixelSize:
    found = re.search(r"^unit=(.{1,40})$", text, re.MULTILINE)
    unit = found.group(1).strip().replace("\\u00B5", "\u00b5") if found else ""
    if unknown := _unknown(unit):
        return PixelSize(note=f"ImageJ ignored: unknown unit {unknown!r}")
    if unit.lower() in ("in", "inch", "cm"):
        return from_density(*density_xy, unit, "ImageJ")
    x_um, y_um = (um_per(unit) / density if density > 0 else 0.0 for density in density_xy)
    return from_sizes(x_um, y_um, "ImageJ")


def _unknown(*units: str) -> str:
    """The first unit that is neither known nor none: pixels have no length."""
    none = ("", "pixel", "pixels")
    return next((each for each in units if each.lower() not in none and math.isnan(um_per(each))), "")


def _from_aperio(text: str) -> PixelSize:
    """MPP is that of the scan, which a smaller picture of it says as well: `46000x32914] (256x256) -> 1024x732`."""
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]{1,30})", text)
    scaled = re.search(r"(\d{1,9})x\d{1,9}\]?\s*(?:\(\d{1,9}x\d{1,9}\)\s*)?->\s*([1-9]\d{0,8})x", text)
    size = _number(found.group(1)) if found else 0.0
    size *= int(scaled.group(1)) / int(scaled.group(2)) if scaled else 1.0
    return from_sizes(size, size, "Aperio MPP")


def _density_xy(page: tifffile.TiffPage) -> tuple[float, float]:
    return _ratio(page.tags.valueof(282)), _ratio(page.tags.valueof(283))


def _ratio(value: object) -> float:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return float(value[0]) / float(value[1])
    return 0.0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
