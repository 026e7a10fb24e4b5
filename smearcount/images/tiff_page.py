"""The samples of one TIFF page by rectangles: only the tiles or strips that a rectangle needs are decoded."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from smearcount.arrays import Bools, Pixels
from smearcount.images.damage import block_fault
from smearcount.images.headers import DamagedError, UnsupportedError
from smearcount.images.machine import check_memory, is_of_machine
from smearcount.images.pixels import ORIENTATIONS, orient, sample_of, stored_region
from smearcount.images.tiff_colour import Colour, SampleRange, colour_of

__all__ = ["StoredPage", "stored_page"]

Region = tuple[int, int, int, int]

_TILES_HELD = 32_000_000
_STRIPS_HELD, _MOST_HELD = 256_000_000, 1_000_000_000
"""Bytes of decoded blocks that are kept: neighbouring windows share tiles, and all windows of a row share strips. Of a
very wide picture the strips of a row of windows are more, or each would be decoded again for each window."""

_WINDOW_ROWS = 1632
"""Of a picture that a window covers: 1088 px at 0.15 um, at 0.1 um a pixel."""

_YCBCR = 6


@dataclass(frozen=True, eq=False)
class _Block:
    """A decoded tile or strip: `samples (h, w, s)`, and where it begins in the page."""

    samples: npt.NDArray[Any]
    left: int
    top: int
    plane: int


class _Blocks:
    """The blocks decoded last, so that overlapping regions do not decode them again; safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._held: OrderedDict[int, _Block] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, index: int) -> _Block | None:
        """A block that is still held."""
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
            return self._held.get(index)

    def keep(self, index: int, block: _Block) -> None:
        """Hold a block, and let go of those unused for longest."""
        with self._lock:
            if index in self._held or block.samples.nbytes > self._max_bytes:
                return
            self._held[index] = block
            self._bytes += block.samples.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._held.popitem(last=False)[1].samples.nbytes


@dataclass(frozen=True, eq=False)
class StoredPage:
    """A page as it lies in the file.

    Attributes:
        page: of the parsed file, which is closed; each read opens the file anew.
        decode: from the bytes of a tile or strip and its index to samples and their place.
        colour: what the samples mean.
        orientation: 1 to 8.
        is_bare: whether the samples lie in the file as they are, row after row.
        blocks: those decoded last.
    """

    page: tifffile.TiffPage
    decode: Callable[..., Any]
    colour: Colour
    orientation: int
    is_bare: bool
    blocks: _Blocks

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height after the orientation was applied."""
        return self.stored_wh[::-1] if self.orientation >= 5 else self.stored_wh

    @property
    def stored_wh(self) -> tuple[int, int]:
        """Width and height as in the file."""
        return self.page.imagewidth, self.page.imagelength

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type of a sample, in the byte order of the machine."""
        return np.dtype(self.page.dtype)

    @property
    def block_wh(self) -> tuple[int, int]:
        """Width and height of a tile or strip."""
        page = self.page
        if page.is_tiled:
            return page.tilewidth, page.tilelength
        return page.imagewidth, min(page.rowsperstrip, page.imagelength)

    @property
    def least_wh(self) -> tuple[int, int]:
        """Width and height of the least part that can be read alone: a row where the samples lie bare in strips."""
        return (self.block_wh[0], 1) if self.is_bare else self.block_wh

    @property
    def is_light(self) -> bool:
        """Whether rectangles are as quick to read as from memory: tiles, whose samples are 8 bits or less."""
        return bool(self.page.is_tiled) and not self.is_deep

    @property
    def is_deep(self) -> bool:
        """Whether the samples have more than 8 bits, so that the range of all must be known to show a part."""
        return self.dtype not in (np.uint8, np.bool_)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is done to the stored samples."""
        notes = self.colour.notes
        if self._empty:
            notes = (*notes, f"{len(self._empty)} empty tiles shown white")
        return notes if self.orientation == 1 else (*notes, f"EXIF orientation {self.orientation} applied")

    def to_rgb(
        self, samples: npt.NDArray[Any], region_xywh: Region, within: SampleRange | None = None
    ) -> tuple[Pixels, str]:
        """RGB of the samples of a rectangle, white where there are none, and a note on their range.

        Args:
            samples: `(h, w, s)` as read.
            region_xywh: the rectangle of the upright picture.
            within: range of the whole picture, where it has more than 8 bits.
        """
        rgb, note = self.colour.to_rgb(samples, within)
        if self._empty:
            rgb[~self._filled(region_xywh)] = 255
        return rgb, note

    def range_of(self, read: Callable[[Region], npt.NDArray[Any]]) -> SampleRange | None:
        """The range of a picture of more than 8 bits by its tiles that are not empty, however `read` gets them."""

        def filled(at: Region) -> npt.NDArray[Any]:
            return read(at)[self._filled(at)] if self._empty else read(at)

        return self.colour.range_of(sample_of(filled, self.upright_wh)) if self.is_deep else None

    def read(self, path: Path, region_xywh: Region) -> npt.NDArray[Any]:
        """The samples `(h, w, s)` of a rectangle of the upright picture, as stored; 0 in empty tiles.

        Raises:
            DamagedError: a tile can't be decoded.
            OSError: the file can't be read.
        """
        page = self.page
        x, y, w, h = stored_region(region_xywh, self.upright_wh, self.orientation)
        out = np.zeros((h, w, page.samplesperpixel), self.dtype)
        with path.open("rb", buffering=0) as file:
            if self.is_bare:
                self._read_rows(file, out, (x, y))
            else:
                for index, _ in self._blocks_of(x, y, w, h):
                    if index not in self._empty:
                        _paste(out, (x, y), self.blocks.get(index) or self._decoded(file, index))
        return orient(out, self.orientation)

    def _read_rows(self, file: BinaryIO, out: npt.NDArray[Any], corner_xy: tuple[int, int]) -> None:
        page, (x, y) = self.page, corner_xy
        _, strips, planes = _grid(self)
        samples = page.samplesperpixel // planes
        stored = self.dtype.newbyteorder(page.parent.byteorder)
        row_bytes = page.imagewidth * samples * stored.itemsize
        for plane, row in np.ndindex(planes, len(out)):
            strip, within = divmod(y + row, self.block_wh[1])
            index = plane * strips + strip
            if index in self._empty:
                continue
            if page.databytecounts[index] < (within + 1) * row_bytes:
                raise DamagedError(f"is corrupt: strip {index} is shorter than its rows")
            wanted = out.shape[1] * samples * stored.itemsize
            file.seek(page.dataoffsets[index] + within * row_bytes + x * samples * stored.itemsize)
            data = file.read(wanted)
            if len(data) < wanted:
                raise DamagedError(f"is truncated: row {y + row} is not all there")
            row_samples = np.frombuffer(data, stored).reshape(-1, samples)
            out[row, :, plane : plane + samples] = row_samples

    @cached_property
    def _empty(self) -> frozenset[int]:
        """Tiles or strips that take no bytes: nothing was scanned there."""
        return frozenset(index for index, count in enumerate(self.page.databytecounts) if not count)

    def _filled(self, region_xywh: Region) -> Bools:
        """Which pixels `(h, w)` of a rectangle of the upright picture are stored in the file."""
        x, y, w, h = stored_region(region_xywh, self.upright_wh, self.orientation)
        block_w, block_h = self.block_wh
        filled = np.ones((h, w), np.bool_)
        for index, (left, top) in self._blocks_of(x, y, w, h):
            if index in self._empty:
                filled[max(0, top - y) : top - y + block_h, max(0, left - x) : left - x + block_w] = False
        return orient(filled, self.orientation)

    def _blocks_of(self, x: int, y: int, w: int, h: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Index of each tile or strip that a rectangle of the stored picture touches, and its corner x, y."""
        columns, rows, planes = _grid(self)
        block_w, block_h = self.block_wh
        for plane in range(planes):
            for row in range(y // block_h, (y + h - 1) // block_h + 1):
                for column in range(x // block_w, (x + w - 1) // block_w + 1):
                    yield (plane * rows + row) * columns + column, (column * block_w, row * block_h)

    def _decoded(self, file: BinaryIO, index: int) -> _Block:
        file.seek(self.page.dataoffsets[index])
        data = file.read(self.page.databytecounts[index])
        tables, header = self.page.jpegtables, self.page.jpegheader
        try:
            samples, (plane, _, top, left, _), _ = self.decode(data, index, jpegtables=tables, jpegheader=header)
        except Exception as error:
            if is_of_machine(error):
                raise
            check_memory(math.prod(self.block_wh))
            # Each of the two dozen codecs raises an error of its own, all of them mean the same.
            raise DamagedError(f"is corrupt: tile or strip {index} can't be decoded ({error})") from error
        if fault := block_fault(int(self.page.compression), data, samples[0], tables, header):
            raise DamagedError(f"is corrupt or truncated: tile or strip {index}: {fault}")
        block = _Block(samples[0], left, top, plane)
        self.blocks.keep(index, block)
        return block


def _paste(out: npt.NDArray[Any], corner_xy: tuple[int, int], block: _Block) -> None:
    top, left = block.top - corner_xy[1], block.left - corner_xy[0]
    inner = block.samples[max(0, -top) : out.shape[0] - top, max(0, -left) : out.shape[1] - left]
    rows = slice(max(0, top), max(0, top) + inner.shape[0])
    columns = slice(max(0, left), max(0, left) + inner.shape[1])
    out[rows, columns, block.plane : block.plane + inner.shape[2]] = inner


def stored_page(
    page: tifffile.TiffPage, full: tifffile.TiffPage, file_bytes: int, channel: int | None = None
) -> StoredPage:
    """A page whose structure was checked: every tile lies inside a file of `file_bytes`.

    Args:
        page: of an open file.
        full: the same picture at full resolution, turned as its smaller levels where these don't say otherwise.
        file_bytes: size of the file.
        channel: sample to show grey, from 0; None for all colours.

    Raises:
        DamagedError: the file is truncated or its structure is broken.
        UnsupportedError: no picture that is read here.
    """
    if page.imagedepth != 1 or (page.is_tiled and page.tiledepth != 1):
        raise UnsupportedError("is a volume; save one of its planes as a picture")
    if min(page.imagewidth, page.imagelength) < 1:
        raise DamagedError("is corrupt: its header holds no picture")
    orientation = page.tags.valueof(274, default=full.tags.valueof(274, default=1))
    orientation = orientation if orientation in ORIENTATIONS else 1
    blocks = _Blocks(_TILES_HELD if page.is_tiled else _strips_held(page))
    stored = StoredPage(page, page.decode, colour_of(page, channel), orientation, _is_bare(page), blocks)
    expected = math.prod(_grid(stored))
    if min(len(page.dataoffsets), len(page.databytecounts)) < expected:
        raise DamagedError(f"is corrupt: {len(page.dataoffsets)} of {expected} tiles or strips are listed")
    end = max(at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=False))
    if end > file_bytes:
        raise DamagedError(f"is truncated: {file_bytes} of {end} bytes are there")
    return stored


def _strips_held(page: tifffile.TiffPage) -> int:
    """Bytes of decoded strips that are kept: those of a row of windows, which may begin and end within a strip."""
    row_bytes = page.imagewidth * page.samplesperpixel * np.dtype(page.dtype).itemsize
    rows = _WINDOW_ROWS + 2 * min(page.rowsperstrip, page.imagelength)
    return min(max(_STRIPS_HELD, rows * row_bytes), _MOST_HELD)


def _is_bare(page: tifffile.TiffPage) -> bool:
    plain = int(page.compression) == 1 and int(page.predictor) == 1 and int(page.fillorder) == 1
    whole_bytes = int(page.bitspersample) == 8 * np.dtype(page.dtype).itemsize and int(page.photometric) != _YCBCR
    return plain and whole_bytes and not page.is_tiled


def _grid(stored: StoredPage) -> tuple[int, int, int]:
    page = stored.page
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    block_w, block_h = stored.block_wh
    return -(-page.imagewidth // block_w), -(-page.imagelength // block_h), planes
