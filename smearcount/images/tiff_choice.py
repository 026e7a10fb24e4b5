"""Which page of a TIFF is read: the full resolution of the first picture, unless another one is named.

Sources: TIFF 6.0 (NewSubfileType), Adobe TIFF Technical Note 1 (SubIFDs), OME-XML 2016-06 (Pixels), ImageJ's TIFF.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import tifffile

from smearcount.images.choice import PageChoice
from smearcount.images.headers import DamagedError, UnsupportedError
from smearcount.images.scale import MAX_DESCRIPTION, ome_pixels

__all__ = ["Chosen", "choose_page"]

_AXES = ("C", "Z", "T")


@dataclass(frozen=True, eq=False)
class Chosen:
    """The page that is read.

    Attributes:
        page: at the level that was asked for.
        full: the same picture at full resolution.
        channel: sample to show grey, from 0; None for all colours.
        notes: what was chosen where there is more than one page.
    """

    page: tifffile.TiffPage
    full: tifffile.TiffPage
    channel: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Stack:
    """Planes of one picture on pages of their own: how many there are, and which axis runs fastest."""

    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_AXES, 1))
    order: str = "CZT"

    def __len__(self) -> int:
        return math.prod(self.sizes.values())

    def page_of(self, at: dict[str, int]) -> int:
        """Index of the page of a plane, whose places on the axes count from 0."""
        index, step = 0, 1
        for axis in self.order:
            index += at[axis] * step
            step *= self.sizes[axis]
        return index


def choose_page(pages: list[tifffile.TiffPage], choice: PageChoice) -> Chosen:
    """The page to read.

    Raises:
        DamagedError: there is no page.
        UnsupportedError: the page, level or channel is not there, or a channel must be named.
    """
    if not pages:
        raise DamagedError("is corrupt: a TIFF without a page")
    stack = _stack_of(pages[0])
    if choice.page is not None:
        if not 1 <= choice.page <= len(pages):
            raise UnsupportedError(f"page {choice.page} was asked for, it has {len(pages)}; give 1 to {len(pages)}")
        full = pages[choice.page - 1]
        notes = [f"page {choice.page} of {len(pages)} read"] if len(pages) > 1 else []
        in_plane = choice.channel
    elif 1 < len(stack) <= len(pages):
        full, notes = _plane(pages, stack, choice.channel)
        in_plane = choice.channel if stack.sizes["C"] == 1 else None
    else:
        full, notes = _largest(pages)
        in_plane = choice.channel
    levels = _levels(pages, full)
    page = _at_level(levels, choice.level)
    if choice.level:
        notes.append(f"level {choice.level} of 0 to {len(levels) - 1} read")
    elif len(levels) > 1 and choice.page is None:
        notes.insert(0, f"full resolution of {len(levels)} pyramid levels read")
    return Chosen(page, full, _sample(page, in_plane), tuple(notes))


def _stack_of(first: tifffile.TiffPage) -> _Stack:
    text = first.description[:MAX_DESCRIPTION]
    if text.startswith("ImageJ="):
        told = dict(re.findall(r"^(channels|slices|frames)=(\d{1,6})$", text, re.MULTILINE))
        sizes = {axis: told.get(name, "1") for axis, name in zip(_AXES, ("channels", "slices", "frames"), strict=True)}
        order = "CZT"
    else:
        attributes = ome_pixels(text)
        sizes = {axis: attributes.get(f"Size{axis}", "1") for axis in _AXES}
        order = attributes.get("DimensionOrder", "XYCZT")[2:]
    counts = {axis: max(1, int(n)) if n.isdecimal() else 1 for axis, n in sizes.items()}
    counts["C"] = max(1, counts["C"] // int(first.samplesperpixel))
    return _Stack(counts, order if sorted(order) == sorted(_AXES) else "CZT")


def _plane(pages: list[tifffile.TiffPage], stack: _Stack, channel: int | None) -> tuple[tifffile.TiffPage, list[str]]:
    channels, depth, times = (stack.sizes[axis] for axis in _AXES)
    if channels > 1 and channel is None:
        # Fluorescence channels as pages: the first of them alone is no bright-field picture.
        raise UnsupportedError(
            f"{channels} channels on separate pages, not one colour picture; export the bright-field picture as RGB, "
            "or name the channel to read with --channel N, or its page with --page N"
        )
    if channels > 1:
        _check_channel(channel, channels)
    at = {"C": (channel or 1) - 1 if channels > 1 else 0, "Z": (depth - 1) // 2, "T": 0}
    notes = [f"channel {channel} of {channels} read"] if channels > 1 else []
    notes += [f"middle focus plane, {at['Z'] + 1} of {depth}, read"] if depth > 1 else []
    notes += [f"time point 1 of {times} read"] if times > 1 else []
    return pages[stack.page_of(at)], notes


def _largest(pages: list[tifffile.TiffPage]) -> tuple[tifffile.TiffPage, list[str]]:
    first = next((each for each in pages if not each.is_reduced), pages[0])
    if first.is_reduced and first.subifds:
        raise UnsupportedError("holds only a preview outside its parts, as a camera's raw file; export it as TIFF")
    family = [each for each in pages if each is first or _same_picture(first, each)]
    chosen = max(family, key=lambda each: each.imagewidth * each.imagelength)
    others = [each for each in pages if each not in family and not each.is_reduced]
    return chosen, [f"page {pages.index(chosen) + 1} of {len(pages)} read"] if others else []


def _levels(pages: list[tifffile.TiffPage], full: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    """The picture at each resolution, largest first: flagged as reduced, by size, or inside the page itself."""
    inside = [each for each in (full.pages or ()) if isinstance(each, tifffile.TiffPage)] if full.subifds else []
    beside = [each for each in pages if each is not full and (_same_picture(full, each) or _shrunk(full, each))]
    smaller = [each for each in (*inside, *beside) if each.imagewidth < full.imagewidth]
    return [full, *sorted(smaller, key=lambda each: -int(each.imagewidth))]


def _at_level(levels: list[tifffile.TiffPage], level: int | None) -> tifffile.TiffPage:
    if not 0 <= (level or 0) < len(levels):
        there = f"0 to {len(levels) - 1}" if len(levels) > 1 else "0, the full resolution"
        raise UnsupportedError(f"level {level} was asked for, it has {len(levels)}; give {there}")
    return levels[level or 0]


def _sample(page: tifffile.TiffPage, channel: int | None) -> int | None:
    if channel is None:
        return None
    samples = int(page.samplesperpixel)
    _check_channel(channel, samples)
    return channel - 1 if samples > 1 else None


def _check_channel(channel: int | None, channels: int) -> None:
    if channel is not None and not 1 <= channel <= channels:
        raise UnsupportedError(f"channel {channel} was asked for, it has {channels}; give 1 to {channels}")


def _same_picture(first: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """Whether one page is the other at a resolution 2, 4, 8, ... times lower; not every writer flags its levels."""
    if first.samplesperpixel != other.samplesperpixel or first.dtype != other.dtype:
        return False
    small, large = sorted((first, other), key=lambda each: each.imagewidth)
    factor = 2 ** round(math.log2(large.imagewidth / max(small.imagewidth, 1)))
    return factor > 1 and all(
        abs(getattr(large, side) / factor - getattr(small, side)) <= 1 for side in ("imagewidth", "imagelength")
    )


def _shrunk(full: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """Whether a page flagged as reduced shows the whole of another one, and not its label or the slide around it."""
    if not other.is_reduced or other.imagewidth >= full.imagewidth:
        return False
    factor = full.imagewidth / max(other.imagewidth, 1)
    return bool(abs(full.imagelength / factor - other.imagelength) <= 1 + full.imagelength / full.imagewidth)
