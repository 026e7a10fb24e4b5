"""Which page of a TIFF is read: the full resolution of the first picture, unless another one is named.

Of several pictures that OME-XML describes it is the largest: others are labels and overviews of the slide.

Sources: TIFF 6.0 (NewSubfileType), Adobe TIFF Technical Note 1 (SubIFDs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tifffile

from smearcount.images.choice import PageChoice
from smearcount.images.headers import UnsupportedError
from smearcount.images.tiff_stack import AXES, Stack

__all__ = ["Chosen", "choose_page", "levels_of"]


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


def choose_page(pages: Sequence[tifffile.TiffPage], choice: PageChoice, stacks: Sequence[Stack]) -> Chosen:
    """The page to read.

    Args:
        pages: of the file, at least one.
        choice: what was asked for.
        stacks: pictures that the first page describes.

    Raises:
        UnsupportedError: the page, level or channel is not there, or a channel must be named.
    """
    here = [each for each in stacks if each.is_here]
    stack = max(here, key=lambda each: each.plane_px, default=None)
    in_plane = choice.channel
    if choice.page is not None:
        if not 1 <= choice.page <= len(pages):
            raise UnsupportedError(f"page {choice.page} was asked for, it has {len(pages)}; give 1 to {len(pages)}")
        full = pages[choice.page - 1]
        notes = [f"page {choice.page} of {len(pages)} read"] if len(pages) > 1 else []
    elif stack and (stack.planes > 1 or not stack.has_page(0)):
        full, notes = _plane(pages, stack, choice.channel)
        if len(here) > 1:
            notes.append(f"picture {here.index(stack) + 1} of {len(here)} read, the largest")
        in_plane = choice.channel if stack.sizes["C"] == 1 else None
    else:
        full, notes = _largest(pages)
    levels = levels_of(pages, full)
    page = _at_level(levels, choice.level)
    if choice.level:
        notes.append(f"level {choice.level} of 0 to {len(levels) - 1} read")
    elif len(levels) > 1 and choice.page is None:
        notes.insert(0, f"full resolution of {len(levels)} pyramid levels read")
    return Chosen(page, full, _sample(page, in_plane), tuple(notes))


def _plane(
    pages: Sequence[tifffile.TiffPage], stack: Stack, channel: int | None
) -> tuple[tifffile.TiffPage, list[str]]:
    channels, depth, times = (stack.sizes[axis] for axis in AXES)
    if channels > 1 and channel is None:
        # Fluorescence channels as pages: the first of them alone is no bright-field picture.
        raise UnsupportedError(
            f"{channels} channels on separate pages, not one colour picture; export the bright-field picture as RGB, "
            "or name the channel to read with --channel N, or its page with --page N"
        )
    if channels > 1:
        _check_channel(channel, channels)
    at = {"C": (channel or 1) - 1 if channels > 1 else 0, "Z": (depth - 1) // 2, "T": 0}
    file, index = stack.place_of(at)
    notes = [f"channel {channel} of {channels} read"] if channels > 1 else []
    if not file and index is not None and index < len(pages):
        notes += [f"middle focus plane, {at['Z'] + 1} of {depth}, read"] if depth > 1 else []
        notes += [f"time point 1 of {times} read"] if times > 1 else []
        return pages[index], notes
    if channels > 1:
        where = f"in the file {file}; give that one" if file else "on no page of its own; save each channel as a page"
        raise UnsupportedError(f"channel {channel} of {channels} is {where}")
    full, _ = _largest(pages)
    number = f"page {pages.index(full) + 1} of {len(pages)}"
    return full, [f"{number} read: the middle one of {stack.planes} planes is no page of this file"]


def _largest(pages: Sequence[tifffile.TiffPage]) -> tuple[tifffile.TiffPage, list[str]]:
    first = next((each for each in pages if not each.is_reduced), pages[0])
    if first.is_reduced and first.subifds:
        raise UnsupportedError("holds only a preview outside its parts, as a camera's raw file; export it as TIFF")
    family = [each for each in pages if each is first or _same_picture(first, each)]
    chosen = max(family, key=lambda each: each.imagewidth * each.imagelength)
    others = [each for each in pages if each not in family and not each.is_reduced]
    return chosen, [f"page {pages.index(chosen) + 1} of {len(pages)} read"] if others else []


def levels_of(pages: Sequence[tifffile.TiffPage], full: tifffile.TiffPage) -> list[tifffile.TiffPage | None]:
    """The picture at each resolution, largest first: inside the page itself, or among the pages after or before it.

    None where it can't be told which of several pages shows this picture.
    """
    inside = [each for each in (full.pages or ()) if isinstance(each, tifffile.TiffPage)] if full.subifds else []
    if smaller := [each for each in inside if each.imagewidth < full.imagewidth]:
        return [full, *_one_a_size(full, smaller, 0, 1)]
    at = next(index for index, each in enumerate(pages) if each is full)
    others = {index for index, each in enumerate(pages) if each is full or _is_another(full, each)}
    start, end = at, at + 1
    while start - 1 in others:
        start -= 1
    while end in others:
        end += 1
    # Channels or focus planes follow each other at full size, and then in the same order at each other size.
    planes = [each for each in pages[start:end] if _size(each) == _size(full)]
    place = next(index for index, each in enumerate(planes) if each is full)
    after = pages[end : min((index for index in others if index >= end), default=len(pages))]
    before = pages[:start] if min(others) == start else []
    for beside in (after, before):
        if levels := [each for each in beside if _is_level(full, each)]:
            return [full, *_one_a_size(full, levels, place, len(planes))]
    return [full]


def _one_a_size(
    full: tifffile.TiffPage, levels: list[tifffile.TiffPage], place: int, planes: int
) -> list[tifffile.TiffPage | None]:
    """The page at one place of those of each size, largest first; None unless there is one for each of the planes."""
    sizes: dict[float, list[tifffile.TiffPage]] = {}
    for each in levels:
        sizes.setdefault(round(full.imagewidth / each.imagewidth, 1), []).append(each)
    return [sizes[step][place] if len(sizes[step]) == planes else None for step in sorted(sizes)]


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def _is_another(full: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """Whether a page is too large to be a level of another one: it has more than half the pixels."""
    return not other.is_reduced and 2 * other.imagewidth * other.imagelength > full.imagewidth * full.imagelength


def _is_level(full: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    return other.imagewidth < full.imagewidth and (_same_picture(full, other) or _shrunk(full, other))


def _at_level(levels: list[tifffile.TiffPage | None], level: int | None) -> tifffile.TiffPage:
    if not 0 <= (level or 0) < len(levels):
        there = f"0 to {len(levels) - 1}" if len(levels) > 1 else "0, the full resolution"
        raise UnsupportedError(f"level {level} was asked for, it has {len(levels)}; give {there}")
    if (page := levels[level or 0]) is None:
        raise UnsupportedError(
            f"level {level} was asked for, and it can't be told which page of its size it is; name that with --page N"
        )
    return page


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
