"""TIFF: tiles of 8 bits and everything large are read region by region, the rest is decoded once and held.

Each read opens the file anew and decodes only the tiles or strips it needs, so a source holds no file handle, and the
memory does not depend on the size of the slide; only of strips a row of windows is held, up to 1 GB of a very wide one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tifffile

from smearcount.arrays import Pixels
from smearcount.errors import ImageError
from smearcount.images.choice import PageChoice
from smearcount.images.headers import DamagedError, UnsupportedError
from smearcount.images.machine import faults_named, is_of_machine
from smearcount.images.scale import PixelSize
from smearcount.images.source import ArraySource, ImageSource, ReadLimits, check_region, file_sha256, reopened
from smearcount.images.tiff_choice import choose_page
from smearcount.images.tiff_colour import SampleRange
from smearcount.images.tiff_page import StoredPage, stored_page
from smearcount.images.tiff_scale import pixel_size
from smearcount.images.tiff_stack import stacks_of

__all__ = ["TiffSource", "open_tiff", "scanner_of"]

_PIXEL_TAGS = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530)
)
"""Tags without which the samples are misunderstood."""

_NO_FURTHER_PAGE = re.compile(r"invalid page offset|invalid offset to page|corrupted tag list of page")
"""What tifffile says where the list of pages leads beyond the end of the file, or to what is no page."""

_HELD_MEGAPIXELS = 32.0
"""Larger pictures are not held in memory, if their parts can be read alone."""

_AGAIN = "copy or export it again from the microscope"


@dataclass(frozen=True, eq=False)
class TiffSource:
    """A TIFF of any size, read region by region.

    Attributes:
        path: the file.
        stored: the page as it lies in the file.
        asked: what it was opened with.
        um_per_px: micrometres a pixel from the metadata.
        scale_origin: where the scale was found.
        notes: what is done to the stored pixels.
        within: range of the stored values, where they have more than 8 bits.
        downsample: pixels of the full resolution a pixel.
    """

    path: Path
    stored: StoredPage
    asked: tuple[ReadLimits, PageChoice]
    um_per_px: float | None
    scale_origin: str
    notes: tuple[str, ...]
    within: SampleRange | None = None
    downsample: float = 1.0

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.stored.upright_wh

    def __reduce__(self) -> tuple[Callable[..., ImageSource], tuple[Any, ...]]:
        """What another process opens the same picture from."""
        return reopened, (open_tiff, self.path, self.asked, self.notes)

    @cached_property
    def sha256(self) -> str:
        """Of the bytes of the file, computed when first asked for."""
        return file_sha256(self.path)

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """The rectangle with the top-left corner x, y as `(h, w, 3) uint8 RGB`.

        Raises:
            ValueError: the rectangle is empty or reaches beyond the picture.
            ImageError: a tile there is damaged, or the file is gone.
        """
        check_region((x, y, w, h), self.size_wh)
        with _reading(self.path):
            samples = self.stored.read(self.path, (x, y, w, h))
        return self.stored.to_rgb(samples, (x, y, w, h), self.within)[0]


def open_tiff(path: Path, limits: ReadLimits, choice: PageChoice) -> ImageSource:
    """Open one page of a TIFF.

    Args:
        path: the file.
        limits: what is refused before decoding.
        choice: which page, level and channel.

    Raises:
        ImageError: damaged, of an unsupported kind, too large or too small, or without that page.
    """
    stored, size, downsample, notes = _parse(path, limits, choice)
    limits.check_side(path, stored.upright_wh)
    width, height = stored.upright_wh
    large = width * height > min(_HELD_MEGAPIXELS, limits.max_megapixels) * 1e6
    by_region = stored.is_light or (large and stored.least_wh != stored.stored_wh)
    limits.check_area(path, stored.least_wh if by_region else stored.upright_wh)
    notes = (*notes, *stored.notes, *((size.note,) if size.note else ()))
    with _reading(path):
        if by_region:
            return _by_region(path, stored, (limits, choice), size, downsample, notes)
        samples = stored.read(path, (0, 0, width, height))
    within = stored.range_of(lambda at: samples[at[1] : at[1] + at[3], at[0] : at[0] + at[2]])
    pixels, range_note = stored.to_rgb(samples, (0, 0, width, height), within)
    notes = (*notes, range_note) if range_note else notes
    return ArraySource(pixels, size.um_per_px, path, size.origin, notes, file_sha256(path), downsample)


def scanner_of(path: Path) -> str:
    """The make of scanner that a TIFF says it comes from, such as `Aperio`; empty for any other file.

    Sources: the formats that OpenSlide describes (openslide.org/formats).
    """
    try:
        with _heard(), tifffile.TiffFile(path, _multifile=False) as file:
            page = file.pages.first
            scanners = {
                "Hamamatsu": page.is_ndpi,
                "Aperio": page.is_svs and page.is_tiled,
                "Leica": page.is_scn,
                "Philips": page.is_philips,
                "Ventana": page.is_bif,
                "Trestle": page.software.startswith("MedScan"),
            }
            return next((name for name, is_so in scanners.items() if is_so), "")
    except Exception as error:
        if is_of_machine(error):
            raise
        # Whatever is wrong with the file, reading it as a TIFF says so.
        return ""


def _by_region(
    path: Path,
    stored: StoredPage,
    asked: tuple[ReadLimits, PageChoice],
    size: PixelSize,
    downsample: float,
    notes: tuple[str, ...],
) -> TiffSource:
    if within := stored.range_of(partial(stored.read, path)):
        notes = (*notes, stored.to_rgb(stored.read(path, (0, 0, 1, 1)), (0, 0, 1, 1), within)[1])
    return TiffSource(path, stored, asked, size.um_per_px, size.origin, notes, within, downsample)


def _parse(path: Path, limits: ReadLimits, choice: PageChoice) -> tuple[StoredPage, PixelSize, float, tuple[str, ...]]:
    try:
        with _heard() as messages, tifffile.TiffFile(path, _multifile=False) as file:
            pages = _pages_of(file)
            unread = (*_unread_tags(messages), *_unread_pages(messages, len(pages)))
            stacks = stacks_of(pages)
            chosen = choose_page(pages, choice, stacks)
            stored = stored_page(chosen.page, chosen.full, file.filehandle.size, chosen.channel)
            downsample = chosen.full.imagewidth / chosen.page.imagewidth
            size = pixel_size(pages, chosen.full, stacks).times(downsample)
            if size.too_coarse and not limits.scale_given:
                name = "level" if choice.level else "page"
                remedy = f"give a finer --{name}, or the scale by --um-per-px"
                raise UnsupportedError(f"{name} {getattr(choice, name)} {size.too_coarse}; {remedy}")
            return stored, size.believed(), downsample, (*chosen.notes, *unread)
    except (DamagedError, UnsupportedError) as error:
        raise _named(path, error) from error
    except Exception as error:
        if is_of_machine(error):
            raise
        # A damaged header can fail anywhere inside the parser, with any exception.
        raise ImageError(f"{path}: is corrupt or no TIFF ({error}); {_AGAIN}") from error


def _pages_of(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    pages: dict[int, tifffile.TiffPage] = {}
    for each in file.pages:
        if each.offset in pages:
            raise DamagedError("is corrupt: one of its pages is followed by an earlier one")
        if isinstance(each, tifffile.TiffPage):
            pages[each.offset] = each
    if not pages:
        raise DamagedError("is corrupt: a TIFF without a page")
    return list(pages.values())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of what is read inside name the file and the remedy; what tifffile logs meanwhile is not printed."""
    try:
        with _heard(), faults_named(path):
            yield
    except (DamagedError, UnsupportedError) as error:
        raise _named(path, error) from error
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror}); check the disk") from error


def _named(path: Path, error: DamagedError | UnsupportedError) -> ImageError:
    return ImageError(f"{path}: {error}; {_AGAIN}" if isinstance(error, DamagedError) else f"{path}: {error}")


_HEARD: ContextVar[list[str] | None] = ContextVar("what tifffile says in this thread", default=None)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what tifffile logs in this thread instead of printing it: what matters of it is raised or noted here."""
    messages: list[str] = []
    # Never removed: a thread that goes through the filters meanwhile would miss one.
    logging.getLogger("tifffile").addFilter(_passed_on)
    before = _HEARD.set(messages)
    try:
        yield messages
    finally:
        _HEARD.reset(before)


def _passed_on(record: logging.LogRecord) -> bool:
    """Keep a message where this thread listens, and say whether it goes on to the log."""
    messages = _HEARD.get()
    if messages is None:
        return True
    messages.append(record.getMessage())
    return False


def _unread_tags(messages: list[str]) -> tuple[str, ...]:
    found = (re.search(r"TiffTag\.fromfile.*TiffTag (\d+)", message) for message in messages)
    tags = sorted({int(each.group(1)) for each in found if each})
    if lost := _PIXEL_TAGS.intersection(tags):
        raise DamagedError(f"is truncated or corrupt: its tag {min(lost)} can't be read")
    return tuple(f"TIFF tag {tag} can't be read and was left out" for tag in tags)


def _unread_pages(messages: list[str], pages: int) -> tuple[str, ...]:
    if not any(map(_NO_FURTHER_PAGE.search, messages)):
        return ()
    return (f"the file is truncated or corrupt behind page {pages}: further pages can't be read",)
