"""Whole slides of scanners through OpenSlide: SVS, NDPI, SCN, BIF, Philips and Trestle TIFF, MIRAX, plain tiled TIFF.

Which library reads a file: a TIFF that names its scanner, and a MIRAX slide, belong to OpenSlide, which knows how each
make lays out levels, overlaps and missing tiles. Any other TIFF is read in `tiff.py`, tiled ones as well: it reads
more of them (16 bit, planar, many codecs), gives the same pixels, and takes a third of the time. A page that is asked
for by number is a TIFF's page, so it is read there, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smearcount.arrays import Pixels
from smearcount.errors import ChangedError, ImageError
from smearcount.images.choice import PageChoice
from smearcount.images.machine import faults_named, is_of_machine
from smearcount.images.pixels import composite_on_white
from smearcount.images.scale import PixelSize, from_sizes
from smearcount.images.source import ImageSource, ReadLimits, check_region, file_sha256, reopened

if TYPE_CHECKING:
    from openslide import OpenSlide

__all__ = ["SlideSource", "State", "content_sha256", "is_mirax", "open_slide", "slide_vendor", "unchanged"]

State = tuple[tuple[int, int], ...]
"""Size and time of the last change of each file of a picture."""

_AGAIN = "copy it again with all its parts, or export it again from the scanner as a tiled TIFF"
_MAX_TILE_PIXELS = 64_000_000
_BLOCK = 512
"""Side in pixels of what is read at once: OpenSlide gives four bytes a pixel."""


@dataclass(frozen=True, eq=False)
class SlideSource:
    """A slide at one level, read region by region; OpenSlide keeps 32 MB of decoded tiles.

    After a damaged region OpenSlide reads no other one either.

    Attributes:
        path: the file, or the one that stands for all files of the slide.
        slide: opened; OpenSlide allows reads from several threads.
        asked: what it was opened with: limits, choice, make of the scanner.
        level: 0 is the full resolution.
        corner_xy: where the scanned part begins, in pixels of level 0.
        size_wh: width and height of the scanned part at this level.
        um_per_px: micrometres a pixel at this level.
        scale_origin: where the scale was found.
        notes: what is done to the stored pixels.
    """

    path: Path
    slide: OpenSlide
    asked: tuple[ReadLimits, PageChoice, str]
    level: int
    corner_xy: tuple[int, int]
    size_wh: tuple[int, int]
    um_per_px: float | None
    scale_origin: str
    notes: tuple[str, ...]

    @property
    def downsample(self) -> float:
        """Pixels of level 0 a pixel."""
        return float(self.slide.level_downsamples[self.level])

    def __reduce__(self) -> tuple[Callable[..., ImageSource], tuple[Any, ...]]:
        """What another process opens the same slide from."""
        return reopened, (open_slide, self.path, self.asked, self.notes)

    @cached_property
    def sha256(self) -> str:
        """Of all bytes of the slide, computed when first asked for."""
        return content_sha256(self.path)

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """The rectangle with the top-left corner x, y as `(h, w, 3) uint8 RGB`; what was not scanned is white.

        Raises:
            ValueError: the rectangle is empty or reaches beyond the picture.
            ImageError: the slide is damaged there, or gone.
        """
        check_region((x, y, w, h), self.size_wh)
        out = np.empty((h, w, 3), np.uint8)
        for (left, right), (top, bottom) in itertools.product(_spans(x, w), _spans(y, h)):
            out[top - y : bottom - y, left - x : right - x] = self._within_block(left, top, right, bottom)
        return out

    def _within_block(self, left: int, top: int, right: int, bottom: int) -> Pixels:
        """A rectangle that lies in one block.

        OpenSlide takes a corner in whole pixels of level 0. Where these are no whole number to a pixel, it shifts what
        it shows by a part of a pixel, so that the whole block is read from its own corner: a pixel has one value.
        """
        factor = self.downsample
        start_x, start_y = (at if factor.is_integer() else at - at % _BLOCK for at in (left, top))
        corner = (self.corner_xy[0] + round(start_x * factor), self.corner_xy[1] + round(start_y * factor))
        try:
            with faults_named(self.path):
                part = self.slide.read_region(corner, self.level, (right - start_x, bottom - start_y))
        except _errors() as error:
            raise ImageError(f"{self.path}: is corrupt or truncated ({error}); {_AGAIN}") from error
        rgba = np.asarray(part)[top - start_y :, left - start_x :]
        return composite_on_white(rgba[..., :3], rgba[..., 3])


def _spans(start: int, length: int) -> Iterator[tuple[int, int]]:
    """A side of a rectangle, cut where blocks end."""
    end = start + length
    while start < end:
        stop = min(start - start % _BLOCK + _BLOCK, end)
        yield start, stop
        start = stop


def is_mirax(path: Path) -> bool:
    """Whether a file is named as a MIRAX slide, whose own bytes are no more than a preview."""
    return path.suffix.lower() == ".mrxs"


def content_sha256(path: Path) -> str:
    """SHA-256 of all bytes of a picture without opening it: of a MIRAX slide the folder beside it is a part.

    Raises:
        ImageError: a file can't be read.
    """
    return file_sha256(path, _parts(path))


def _state(path: Path) -> State:
    """Size and time of the last change of all files of a picture; empty where they can't be asked for."""
    try:
        return tuple((each.st_size, each.st_mtime_ns) for each in (part.stat() for part in (path, *_parts(path))))
    except OSError:
        return ()


@contextmanager
def unchanged(path: Path, since: State = ()) -> Iterator[State]:
    """See that all that is done inside is done with one state of a picture: what changes is no fault of its bytes.

    Args:
        path: of the picture.
        since: the state that an earlier block was given, which it must still have.

    Raises:
        ChangedError: a file of it changed meanwhile, whatever else was raised, or is no longer there.
    """
    before, when = since or _state(path), "since it was analysed" if since else "while it was read"
    told = f"{path}: changed {when}; run it again once it is complete"
    if since and not (now := _state(path)):
        raise ChangedError(f"{path}: no longer there; put it back, or analyse it again where it is")
    if since and now != since:
        raise ChangedError(told)
    try:
        yield before
    except Exception as error:
        if _state(path) != before:
            raise ChangedError(told) from error
        raise
    if _state(path) != before:
        raise ChangedError(told)


def _parts(path: Path) -> list[Path]:
    """The files beside the one that stands for a MIRAX slide."""
    if not is_mirax(path) or not (folder := path.with_suffix("")).is_dir():
        return []
    return sorted(part for part in folder.iterdir() if part.is_file())


def slide_vendor(path: Path, make: str) -> str:
    """What OpenSlide takes a file for, such as `aperio` or `generic-tiff`; empty if for no slide.

    Args:
        path: the file.
        make: of the scanner, for the error.

    Raises:
        ImageError: OpenSlide is not installed.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise ImageError(
            f"{path}: a slide by {make}, which is read with OpenSlide, and that is not installed; "
            "python -m pip install openslide-python openslide-bin"
        ) from error
    try:
        return openslide.OpenSlide.detect_format(path) or ""
    except openslide.OpenSlideError as error:
        if is_of_machine(error):
            raise
        return ""


def open_slide(path: Path, limits: ReadLimits, choice: PageChoice, make: str) -> SlideSource:
    """Open a slide: the scanned part at full resolution, or at the level chosen.

    Args:
        path: a file that OpenSlide reads.
        limits: the shortest side.
        choice: the level.
        make: of the scanner, for the errors.

    Raises:
        ImageError: OpenSlide is missing, or the slide is damaged, too small, or without that level.
    """
    if not slide_vendor(path, make):
        parts = f", or its folder {path.stem!r} is not beside it" if is_mirax(path) else ""
        raise ImageError(f"{path}: a slide by {make} that is corrupt or truncated{parts}; {_AGAIN}")
    import openslide

    choice.refuse(path, f"slide by {make}", "page", "channel")
    try:
        with faults_named(path):
            slide = openslide.OpenSlide(path)
        return _at_level(path, slide, limits, choice, make)
    except _errors() as error:
        raise ImageError(f"{path}: a slide by {make} that can't be opened ({error}); {_AGAIN}") from error


def _at_level(path: Path, slide: OpenSlide, limits: ReadLimits, choice: PageChoice, make: str) -> SlideSource:
    level, levels = choice.level or 0, slide.level_count
    if not 0 <= level < levels:
        raise ImageError(f"{path}: level {level} was asked for, it has {levels}; give 0 to {levels - 1}")
    tile_wh = [_number(slide.properties.get(f"openslide.level[{level}].tile-{side}")) for side in ("width", "height")]
    if math.prod(tile_wh) > _MAX_TILE_PIXELS:
        # OpenSlide ends the process where it can't have the memory for one tile.
        raise ImageError(f"{path}: is corrupt: its tiles have {tile_wh[0]:.0f} x {tile_wh[1]:.0f} px; {_AGAIN}")
    left, top, width, height = _bounds(slide)
    factor = slide.level_downsamples[level]
    stored = slide.level_dimensions[level]
    is_whole = (width, height) == slide.dimensions
    size_wh = stored if is_whole else (min(int(width / factor), stored[0]), min(int(height / factor), stored[1]))
    limits.check_side(path, size_wh)
    size = _pixel_size(slide.properties).times(factor)
    if size.too_coarse and not limits.scale_given:
        raise ImageError(f"{path}: level {level} {size.too_coarse}; give a finer --level, or the scale by --um-per-px")
    size = size.believed()
    notes = [f"read with OpenSlide as {slide.properties.get('openslide.vendor', 'slide')}"]
    if levels > 1:
        notes.append(f"level {level} of 0 to {levels - 1} read" if level else "full resolution of the slide read")
    if not is_whole:
        notes.append(f"scanned part of {width} x {height} px at {left}, {top} read")
    notes += [size.note] if size.note else []
    asked = (limits, choice, make)
    return SlideSource(path, slide, asked, level, (left, top), size_wh, size.um_per_px, size.origin, tuple(notes))


def _bounds(slide: OpenSlide) -> tuple[int, int, int, int]:
    """Left, top, width and height of the scanned part in pixels of level 0: all of it where the slide says nothing."""
    width, height = slide.dimensions
    told = [_number(slide.properties.get(f"openslide.bounds-{name}")) for name in ("x", "y", "width", "height")]
    if not all(math.isfinite(value) for value in told):
        return 0, 0, width, height
    left, top = (min(max(0, int(value)), side - 1) for value, side in zip(told[:2], (width, height), strict=True))
    return left, top, max(1, min(int(told[2]), width - left)), max(1, min(int(told[3]), height - top))


def _pixel_size(properties: Any) -> PixelSize:
    x_um, y_um = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return from_sizes(x_um, y_um, "OpenSlide mpp")


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _errors() -> tuple[type[Exception], ...]:
    import openslide

    return openslide.OpenSlideError, OSError
