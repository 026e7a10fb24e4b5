"""TIFF: tiled ones are read region by region, others are decoded as a whole; the first page, the full resolution.

Each read opens the file anew and decodes only the tiles it needs, so a source holds no file handle, and the memory
does not depend on the size of the slide.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tifffile

from smearcount.errors import ImageError
from smearcount.images.headers import DamagedError, UnsupportedError
from smearcount.images.scale import PixelSize, from_density, from_description
from smearcount.images.source import ArraySource, ImageSource, ReadLimits, Rgb, check_region
from smearcount.images.tiff_page import StoredPage, stored_page

__all__ = ["TiffSource", "open_tiff"]

_PIXEL_TAGS = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530)
)
"""Tags without which the samples are misunderstood."""

_AGAIN = "copy or export it again from the microscope"


@dataclass(frozen=True, eq=False)
class TiffSource:
    """A tiled TIFF of 8 bits, of any size, read region by region.

    Attributes:
        path: the file.
        stored: the page as it lies in the file.
        um_per_px: micrometres a pixel from the metadata.
        scale_origin: where the scale was found.
        notes: what is done to the stored pixels.
    """

    path: Path
    stored: StoredPage
    um_per_px: float | None
    scale_origin: str
    notes: tuple[str, ...]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.stored.upright_wh

    @cached_property
    def sha256(self) -> str:
        """Of the bytes of the file, computed when first asked for."""
        return _sha256(self.path)

    def read(self, x: int, y: int, w: int, h: int) -> Rgb:
        """The rectangle with the top-left corner x, y as `(h, w, 3) uint8 RGB`.

        Raises:
            ValueError: the rectangle is empty or reaches beyond the picture.
            ImageError: a tile there is damaged, or the file is gone.
        """
        check_region((x, y, w, h), self.size_wh)
        return _decode(self.path, self.stored, (x, y, w, h))[0]


def open_tiff(path: Path, limits: ReadLimits, page: int | None) -> ImageSource:
    """Open one page of a TIFF at its full resolution.

    Args:
        path: the file.
        limits: what is refused before decoding.
        page: from 1; None for the first one.

    Raises:
        ImageError: damaged, of an unsupported kind, too large or too small, or without that page.
    """
    stored, size, notes = _parse(path, page)
    limits.check_side(path, stored.upright_wh)
    limits.check_area(path, stored.block_wh if stored.by_region else stored.upright_wh)
    notes = (*notes, *stored.notes, *((size.note,) if size.note else ()))
    if stored.by_region:
        return TiffSource(path, stored, size.um_per_px, size.origin, notes)
    pixels, range_note = _decode(path, stored, (0, 0, *stored.upright_wh))
    notes = (*notes, range_note) if range_note else notes
    return ArraySource(pixels, size.um_per_px, path, size.origin, notes, _sha256(path))


def _parse(path: Path, page: int | None) -> tuple[StoredPage, PixelSize, tuple[str, ...]]:
    try:
        with _heard() as messages, tifffile.TiffFile(path, _multifile=False) as file:
            pages = [each for each in file.pages if isinstance(each, tifffile.TiffPage)]
            unread = _unread_tags(messages)
            chosen, notes = _choose(path, pages, page)
            if page is None:
                _refuse_split_channels(path, pages[0], len(pages))
            return (stored_page(chosen, file.filehandle.size), _pixel_size(pages[0], chosen), (*notes, *unread))
    except DamagedError as error:
        raise ImageError(f"{path}: {error}; {_AGAIN}") from error
    except UnsupportedError as error:
        raise ImageError(f"{path}: {error}") from error
    except ImageError:
        raise
    except Exception as error:
        # A damaged header can fail anywhere inside the parser, with any exception.
        raise ImageError(f"{path}: is corrupt or no TIFF ({error}); {_AGAIN}") from error


def _decode(path: Path, stored: StoredPage, region_xywh: tuple[int, int, int, int]) -> tuple[Rgb, str]:
    try:
        with _heard():
            return stored.colour.to_rgb(stored.read(path, region_xywh))
    except DamagedError as error:
        raise ImageError(f"{path}: {error}; {_AGAIN}") from error
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror}); check the disk") from error


def _choose(path: Path, pages: list[tifffile.TiffPage], page: int | None) -> tuple[tifffile.TiffPage, tuple[str, ...]]:
    if not pages:
        raise DamagedError("is corrupt: a TIFF without a page")
    if page is not None:
        if not 1 <= page <= len(pages):
            raise ImageError(f"{path}: page {page} was asked for, it has {len(pages)}; give 1 to {len(pages)}")
        return pages[page - 1], (f"page {page} of {len(pages)} read",) if len(pages) > 1 else ()
    first = next((each for each in pages if not each.is_reduced), pages[0])
    if first.is_reduced and first.subifds:
        raise UnsupportedError("holds only a preview outside its parts, as a camera's raw file; export it as TIFF")
    family = [each for each in pages if each is first or _same_picture(first, each)]
    chosen = max(family, key=lambda each: each.imagewidth * each.imagelength)
    levels = [each for each in pages if each in family or each.is_reduced]
    resolutions = len(levels) + len(chosen.subifds or ())
    notes = [f"full resolution of {resolutions} pyramid levels read"] if resolutions > 1 else []
    if len(pages) > len(levels):
        notes.append(f"page {pages.index(chosen) + 1} of {len(pages)} read")
    return chosen, tuple(notes)


def _same_picture(first: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """Whether one page is the other at a resolution 2, 4, 8, ... times lower; not every writer flags its levels."""
    if first.samplesperpixel != other.samplesperpixel or first.dtype != other.dtype:
        return False
    small, large = sorted((first, other), key=lambda each: each.imagewidth)
    factor = 2 ** round(math.log2(large.imagewidth / max(small.imagewidth, 1)))
    return factor > 1 and all(
        abs(getattr(large, side) / factor - getattr(small, side)) <= 1 for side in ("imagewidth", "imagelength")
    )


def _refuse_split_channels(path: Path, first: tifffile.TiffPage, pages: int) -> None:
    """Fluorescence channels as pages: the first of them alone is no bright-field picture."""
    pattern = r"<(?:\w{1,20}:)?Pixels\s[^<>]{0,4000}?SizeC\s*=\s*\"(\d{1,6})\"|^channels=(\d{1,6})$"
    found = re.search(pattern, first.description[:4_000_000], re.MULTILINE)
    channels = int(found.group(1) or found.group(2)) if found else 1
    if channels > 1 and first.samplesperpixel == 1 and pages >= channels:
        raise ImageError(
            f"{path}: {channels} channels on separate pages, not one colour picture; "
            "export the bright-field picture as RGB, or name the page to read with --page N"
        )


def _pixel_size(first: tifffile.TiffPage, chosen: tifffile.TiffPage) -> PixelSize:
    page = chosen if 282 in chosen.tags else first
    density = tuple(_ratio(page.tags.valueof(tag)) for tag in (282, 283))
    told = from_description(chosen.description or first.description, (density[0], density[1]))
    if told.origin or told.note:
        return told
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof(296, default=2)), "")
    return from_density(density[0], density[1], unit, "TIFF resolution")


def _ratio(value: object) -> float:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return float(value[0]) / float(value[1])
    return 0.0


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect the log of tifffile instead of printing it: what matters of it is raised or noted here."""
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)


def _unread_tags(messages: list[str]) -> tuple[str, ...]:
    found = (re.search(r"TiffTag\.fromfile.*TiffTag (\d+)", message) for message in messages)
    tags = sorted({int(each.group(1)) for each in found if each})
    if lost := _PIXEL_TAGS.intersection(tags):
        raise DamagedError(f"is truncated or corrupt: its tag {min(lost)} can't be read")
    return tuple(f"TIFF tag {tag} can't be read and was left out" for tag in tags)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror}); check the disk") from error
