"""Slides of any size, made of a smaller one: written as the tiled, JPEG-compressed TIFFs that scanners write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from smearcount.arrays import Pixels
from smearcount.geometry import resize_rgb
from smearcount.images import PixelSource

__all__ = ["Mosaic", "mosaic_size", "write_canonical", "write_tiled"]

_TILE_PX = 512
_QUALITY = 92


@dataclass(frozen=True)
class Mosaic:
    """A picture repeated side by side until it fills `size_wh` pixels."""

    source: PixelSource
    size_wh: tuple[int, int]

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """Region `(h, w, 3) uint8 RGB` with its top-left corner at x, y; repeats beyond `size_wh` too."""
        out = np.empty((h, w, 3), np.uint8)
        width, height = self.source.size_wh
        for top, rows in _runs(y, h, height):
            for left, columns in _runs(x, w, width):
                n_columns, n_rows = columns.stop - columns.start, rows.stop - rows.start
                out[rows, columns] = self.source.read(left, top, n_columns, n_rows)
        return out


def _runs(start: int, length: int, period: int) -> Iterator[tuple[int, slice]]:
    """Pieces of a stretch that do not cross a multiple of `period`: where each begins in it, and where in the whole."""
    done = 0
    while done < length:
        begin = (start + done) % period
        piece = min(period - begin, length - done)
        yield begin, slice(done, done + piece)
        done += piece


def mosaic_size(source_wh: tuple[int, int], megapixels: float) -> tuple[int, int]:
    """Width and height of about so many megapixels in the proportions of a picture."""
    factor = (megapixels * 1e6 / (source_wh[0] * source_wh[1])) ** 0.5
    return max(32, round(source_wh[0] * factor)), max(32, round(source_wh[1] * factor))


def write_tiled(source: PixelSource, size_wh: tuple[int, int], path: Path) -> Path:
    """Write a mosaic of a picture tile by tile; memory does not grow with its size."""
    mosaic, (width, height) = Mosaic(source, size_wh), size_wh

    def tiles() -> Iterator[Pixels]:
        for y in range(0, height, _TILE_PX):
            for x in range(0, width, _TILE_PX):
                yield mosaic.read(x, y, _TILE_PX, _TILE_PX)

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            tiles(),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(_TILE_PX, _TILE_PX),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": _QUALITY},
            metadata=None,
        )
    return path


def write_canonical(source: PixelSource, size_wh: tuple[int, int], path: Path) -> Path:
    """Write a picture resampled to `size_wh`, bare, as the quickest to read there is for tools that read it whole."""
    pixels = resize_rgb(source.read(0, 0, *source.size_wh), *size_wh)
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None)
    return path
