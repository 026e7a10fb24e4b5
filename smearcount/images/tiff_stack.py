"""Pictures of a TIFF whose planes are pages of their own, as OME-XML or ImageJ describe them.

The text is searched, never parsed as XML: entities in it are not expanded and nothing outside it is fetched.
Sources: OME-TIFF specification 6 (TiffData), OME-XML 2016-06 (Pixels), ImageJ's TIFF.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import tifffile

from smearcount.images.scale import MAX_DESCRIPTION, attributes_of

__all__ = ["AXES", "Stack", "stacks_of"]

AXES = ("C", "Z", "T")

_PIXELS = re.compile(r"<(?:\w{1,20}:)?Pixels\s[^<>]{0,4000}")
_TIFF_DATA = re.compile(
    r"<(?:\w{1,20}:)?TiffData\b([^<>]{0,400})>(?:\s*<(?:\w{1,20}:)?UUID\b([^<>]{0,1000})>([^<]{0,100}))?"
)
_OME = re.compile(r"<(?:\w{1,20}:)?OME\s[^<>]{0,4000}")


@dataclass(frozen=True)
class _Run:
    """Planes that follow each other on following pages.

    Attributes:
        plane: place of the first of them in the order of the stack.
        page: index of its page.
        count: how many there are.
        file: that holds them; empty for this one.
    """

    plane: int
    page: int
    count: int
    file: str = ""


@dataclass(frozen=True)
class Stack:
    """One picture: how many planes it has, in which order, and where they are.

    Attributes:
        sizes: number of channels, focus planes and time points.
        order: the axes, the fastest first.
        runs: where the planes are.
        pixels: attributes of the `Pixels` of OME-XML; empty for ImageJ.
    """

    sizes: dict[str, int]
    order: str
    runs: tuple[_Run, ...]
    pixels: dict[str, str] = field(default_factory=dict)

    @property
    def planes(self) -> int:
        """How many there are, in this file and others."""
        return math.prod(self.sizes.values())

    @property
    def plane_px(self) -> int:
        """Pixels of a plane by OME-XML; 0 for ImageJ, which describes one picture."""
        return math.prod(_whole(self.pixels.get(f"Size{axis}", "0")) for axis in "XY")

    @property
    def is_here(self) -> bool:
        """Whether a plane is in this file."""
        return any(not run.file for run in self.runs)

    def place_of(self, at: dict[str, int]) -> tuple[str, int | None]:
        """Of a plane, whose places on the axes count from 0: its file, empty for this one, and the index of its page.

        None for the page of a plane that is in no file.
        """
        plane = _index(at, self.sizes, self.order)
        for run in self.runs:
            if run.plane <= plane < run.plane + run.count:
                return run.file, run.page + plane - run.plane
        return "", None

    def has_page(self, index: int) -> bool:
        """Whether a page of this file is a plane of the picture."""
        return any(not run.file and run.page <= index < run.page + run.count for run in self.runs)


def stacks_of(pages: Sequence[tifffile.TiffPage]) -> list[Stack]:
    """The pictures that the description of the first page tells of; none where it is of another kind."""
    text = pages[0].description[:MAX_DESCRIPTION]
    if text.startswith("ImageJ="):
        told = dict(re.findall(r"^(channels|slices|frames)=(\d{1,6})$", text, re.MULTILINE))
        sizes = {axis: told.get(name, "1") for axis, name in zip(AXES, ("channels", "slices", "frames"), strict=True)}
        counts = _counts(sizes, pages[0])
        return [Stack(counts, "CZT", (_Run(0, 0, min(len(pages), math.prod(counts.values()))),))]
    starts = [found.start() for found in _PIXELS.finditer(text)]
    bounds = itertools.pairwise([*starts, len(text)])
    stacks = [_of_pixels(text[: starts[0]], text[start:end], pages) for start, end in bounds]
    if len({run.file for stack in stacks for run in stack.runs}) == 1:
        # Whatever the one file is called now, it is this one.
        return [replace(stack, runs=tuple(replace(run, file="") for run in stack.runs)) for stack in stacks]
    return stacks


def _of_pixels(head: str, text: str, pages: Sequence[tifffile.TiffPage]) -> Stack:
    """The stack of one `Pixels` element with what follows it; `head` is what precedes the first of them."""
    found = _PIXELS.match(text)
    pixels = attributes_of(found.group() if found else "")
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    order = order if sorted(order) == sorted(AXES) else "CZT"
    elements = [(attributes_of(data), attributes_of(uuid), name) for data, uuid, name in _TIFF_DATA.findall(text)]
    first = min((_whole(data.get("IFD", "0")) for data, *_ in elements), default=0)
    sizes = _counts({axis: pixels.get(f"Size{axis}", "1") for axis in AXES}, pages[min(first, len(pages) - 1)])
    runs = []
    for data, uuid, name in elements or [({}, {}, "")]:
        plane = _index({axis: _whole(data.get(f"First{axis}", "0")) for axis in AXES}, sizes, order)
        count = _whole(data.get("PlaneCount", "1" if "IFD" in data else str(len(pages))))
        file = _file_of(head, uuid, name, pages[0].parent.filename)
        runs.append(_Run(plane, _whole(data.get("IFD", "0")), min(count, math.prod(sizes.values()) - plane), file))
    return Stack(sizes, order, tuple(runs), pixels)


def _file_of(head: str, uuid: dict[str, str], name: str, own: str) -> str:
    found = _OME.search(head)
    own_uuid = attributes_of(found.group() if found else "").get("UUID", "")
    if own_uuid and name.strip():
        return "" if name.strip() == own_uuid else uuid.get("FileName", name.strip())
    told = uuid.get("FileName", name.strip())
    return "" if told == own else told


def _counts(sizes: dict[str, str], page: tifffile.TiffPage) -> dict[str, int]:
    counts = {axis: max(1, _whole(size)) for axis, size in sizes.items()}
    return {**counts, "C": max(1, counts["C"] // int(page.samplesperpixel))}


def _index(at: dict[str, int], sizes: dict[str, int], order: str) -> int:
    index, step = 0, 1
    for axis in order:
        index += at[axis] * step
        step *= sizes[axis]
    return index


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0
