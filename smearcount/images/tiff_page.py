"""The samples of one TIFF page by rectangles: only the tiles or strips that a rectangle needs are decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from smearcount.images.headers import DamagedError, UnsupportedError
from smearcount.images.pixels import ORIENTATIONS, orient, stored_region
from smearcount.images.tiff_colour import Colour, colour_of

__all__ = ["StoredPage", "stored_page"]

Region = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class StoredPage:
    """A page as it lies in the file.

    Attributes:
        page: of the parsed file, which is closed; each read opens the file anew.
        decode: from the bytes of a tile or strip and its index to samples and their place.
        colour: what the samples mean.
        orientation: 1 to 8.
    """

    page: tifffile.TiffPage
    decode: Callable[..., Any]
    colour: Colour
    orientation: int

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height after the orientation was applied."""
        stored = (self.page.imagewidth, self.page.imagelength)
        return stored[::-1] if self.orientation >= 5 else stored

    @property
    def block_wh(self) -> tuple[int, int]:
        """Width and height of a tile or strip."""
        page = self.page
        if page.is_tiled:
            return page.tilewidth, page.tilelength
        return page.imagewidth, min(page.rowsperstrip, page.imagelength)

    @property
    def by_region(self) -> bool:
        """Whether rectangles are decoded as they are asked for: tiles, whose samples are 8 bits or less."""
        return bool(self.page.is_tiled) and self.page.dtype in (np.uint8, np.bool_)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is done to the stored samples."""
        notes = self.colour.notes
        if empty := sum(count == 0 for count in self.page.databytecounts):
            notes = (*notes, f"{empty} empty tiles shown white")
        return notes if self.orientation == 1 else (*notes, f"EXIF orientation {self.orientation} applied")

    def read(self, path: Path, region_xywh: Region) -> npt.NDArray[Any]:
        """The samples `(h, w, s)` of a rectangle of the upright picture, as stored.

        Raises:
            DamagedError: a tile can't be decoded.
            OSError: the file can't be read.
        """
        page = self.page
        x, y, w, h = stored_region(region_xywh, self.upright_wh, self.orientation)
        out = np.full((h, w, page.samplesperpixel), self.colour.blank, page.dtype)
        with path.open("rb") as file:
            for index in self._blocks(x, y, w, h):
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                if data:
                    self._paste(out, (x, y), index, data)
        return orient(out, self.orientation)

    def _blocks(self, x: int, y: int, w: int, h: int) -> Iterator[int]:
        columns, rows, planes = _grid(self)
        block_w, block_h = self.block_wh
        for plane in range(planes):
            for row in range(y // block_h, (y + h - 1) // block_h + 1):
                for column in range(x // block_w, (x + w - 1) // block_w + 1):
                    yield (plane * rows + row) * columns + column

    def _paste(self, out: npt.NDArray[Any], corner_xy: tuple[int, int], index: int, data: bytes) -> None:
        tables = {"jpegtables": self.page.jpegtables, "jpegheader": self.page.jpegheader}
        try:
            block, (plane, _, top, left, _), _ = self.decode(data, index, **tables)
        except Exception as error:
            # Each of the two dozen codecs raises an error of its own, all of them mean the same.
            raise DamagedError(f"is corrupt: tile or strip {index} can't be decoded ({error})") from error
        top, left = top - corner_xy[1], left - corner_xy[0]
        inner = block[0, max(0, -top) : out.shape[0] - top, max(0, -left) : out.shape[1] - left]
        rows = slice(max(0, top), max(0, top) + inner.shape[0])
        columns = slice(max(0, left), max(0, left) + inner.shape[1])
        channels = slice(plane, plane + inner.shape[2])
        out[rows, columns, channels] = inner


def stored_page(page: tifffile.TiffPage, file_bytes: int) -> StoredPage:
    """A page whose structure was checked: every tile lies inside a file of `file_bytes`.

    Raises:
        DamagedError: the file is truncated or its structure is broken.
        UnsupportedError: no picture that is read here.
    """
    if page.imagedepth != 1 or (page.is_tiled and page.tiledepth != 1):
        raise UnsupportedError("is a volume; save one of its planes as a picture")
    if min(page.imagewidth, page.imagelength) < 1:
        raise DamagedError("is corrupt: its header holds no picture")
    orientation = page.tags.valueof(274, default=1)
    stored = StoredPage(page, page.decode, colour_of(page), orientation if orientation in ORIENTATIONS else 1)
    expected = math.prod(_grid(stored))
    if min(len(page.dataoffsets), len(page.databytecounts)) < expected:
        raise DamagedError(f"is corrupt: {len(page.dataoffsets)} of {expected} tiles or strips are listed")
    end = max(at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=False))
    if end > file_bytes:
        raise DamagedError(f"is truncated: {file_bytes} of {end} bytes are there")
    return stored


def _grid(stored: StoredPage) -> tuple[int, int, int]:
    page = stored.page
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    block_w, block_h = stored.block_wh
    return -(-page.imagewidth // block_w), -(-page.imagelength // block_h), planes
