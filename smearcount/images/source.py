"""What the rest of smearcount sees of a picture: its size, its scale, and rectangles of RGB pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from smearcount.arrays import Pixels
from smearcount.errors import ImageError

__all__ = [
    "DEFAULT_LIMITS",
    "ArraySource",
    "ImageSource",
    "PartSource",
    "PixelSource",
    "ReadLimits",
    "check_region",
    "file_sha256",
    "reopened",
    "with_notes",
]


@dataclass(frozen=True)
class ReadLimits:
    """What is refused before a single pixel is decoded.

    Attributes:
        max_megapixels: largest picture decoded as a whole; TIFFs in tiles or short strips and slides of scanners are
            read region by region and may be larger.
        min_side_px: shortest side of a picture.
        scale_given: the user says the scale, so that no level is too coarse by the metadata.
    """

    max_megapixels: float = 300.0
    min_side_px: int = 32
    scale_given: bool = False

    def check_side(self, path: Path, size_wh: tuple[int, int]) -> None:
        """Refuse a picture that is too small to show a cell.

        Raises:
            ImageError: a side is shorter than `min_side_px`.
        """
        if min(size_wh) < self.min_side_px:
            raise ImageError(
                f"{path}: only {size_wh[0]} x {size_wh[1]} px, expected at least {self.min_side_px} px a side; "
                "give the original picture, not a thumbnail"
            )

    def check_area(self, path: Path, size_wh: tuple[int, int]) -> None:
        """Refuse a picture that would fill the memory once decoded.

        Raises:
            ImageError: more than `max_megapixels`.
        """
        megapixels = size_wh[0] * size_wh[1] / 1e6
        if megapixels > self.max_megapixels:
            shown = f"{megapixels:.2g}" if megapixels < 10 else f"{megapixels:.0f}"
            raise ImageError(
                f"{path}: {size_wh[0]} x {size_wh[1]} px are {shown} megapixels, more than the limit of "
                f"{self.max_megapixels:g}; allow it with --max-megapixels {int(megapixels) + 1}, "
                "or save it as a tiled TIFF, which is read region by region"
            )


DEFAULT_LIMITS = ReadLimits()


class PixelSource(Protocol):
    """A picture that is read by regions, in pixels of its own."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels, after the orientation was applied."""

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """Region `(h, w, 3) uint8 RGB` with its top-left corner at x, y."""


class ImageSource(PixelSource, Protocol):
    """A picture of any size and origin; a whole slide is one as well as a JPEG."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def um_per_px(self) -> float | None:
        """Micrometres a pixel from the metadata, None where absent or implausible."""

    @property
    def scale_origin(self) -> str:
        """Where `um_per_px` was found, such as `TIFF resolution`; empty without one."""

    @property
    def downsample(self) -> float:
        """Pixels of the full resolution a pixel: 1 unless another level of a pyramid was chosen."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything that was done to the stored pixels and a reader should know of."""

    @property
    def sha256(self) -> str:
        """Of the bytes of the file; of pixels given by a script, of their shape and values."""

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """The rectangle with the top-left corner x, y as `(h, w, 3) uint8 RGB`, the caller's own copy.

        Raises:
            ValueError: the rectangle is empty or reaches beyond the picture.
            ImageError: the file is damaged there.
        """


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A picture held in memory: given by a script, or decoded from a file.

    Attributes:
        pixels: `(H, W, 3) uint8 RGB`.
        um_per_px: micrometres a pixel, where known.
        path: the file, empty for pixels given by a script.
        scale_origin: where the scale was found.
        notes: what was done to the stored pixels.
        sha256: of the bytes of the file, or of shape and values.
        downsample: pixels of the full resolution a pixel.
    """

    pixels: Pixels
    um_per_px: float | None = None
    path: Path = Path()
    scale_origin: str = ""
    notes: tuple[str, ...] = ()
    sha256: str = ""
    downsample: float = 1.0

    def __post_init__(self) -> None:
        """Check shape, dtype and scale."""
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8 or not self.pixels.size:
            raise ValueError(f"pixels: expected (H, W, 3) uint8 RGB, got {self.pixels.shape} {self.pixels.dtype}")
        if self.um_per_px is not None and not self.um_per_px > 0:
            raise ValueError(f"um_per_px: expected a positive number, got {self.um_per_px}")

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """The rectangle with the top-left corner x, y as `(h, w, 3) uint8 RGB`, a copy.

        Raises:
            ValueError: the rectangle is empty or reaches beyond the picture.
        """
        return peek(self, x, y, w, h).copy()


@dataclass(frozen=True)
class PartSource:
    """A rectangle of a picture, as a picture.

    Attributes:
        source: the whole picture.
        left_top: corner of the rectangle in pixels.
        size_wh: width and height in pixels.
    """

    source: PixelSource
    left_top: tuple[int, int]
    size_wh: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the picture."""
        return self.size_wh == self.source.size_wh

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """Region `(h, w, 3) uint8 RGB` with its top-left corner at x, y of the part."""
        return self.source.read(self.left_top[0] + x, self.left_top[1] + y, w, h)


def check_region(region_xywh: tuple[int, int, int, int], size_wh: tuple[int, int]) -> None:
    """Refuse a rectangle that is not wholly inside a picture of `size_wh`.

    Raises:
        ValueError: the rectangle is empty or reaches beyond the picture.
    """
    x, y, w, h = region_xywh
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > size_wh[0] or y + h > size_wh[1]:
        raise ValueError(f"region: expected x, y, w, h inside {size_wh[0]} x {size_wh[1]} px, got {region_xywh}")


def file_sha256(path: Path, parts: Iterable[Path] = ()) -> str:
    """SHA-256 of the bytes of a file, or of a slide of several files: then of their names and bytes, in order of name.

    Raises:
        ImageError: a file can't be read.
    """
    try:
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256")
        for part in sorted(parts):
            with part.open("rb") as file:
                whole.update(part.name.encode(errors="surrogateescape") + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror}); check the path and the disk") from error
    return whole.hexdigest()


def peek(source: PixelSource, x: int, y: int, w: int, h: int) -> Pixels:
    """A rectangle of a picture to look at only: of one that is held in memory it is no copy."""
    if isinstance(source, PartSource):
        return peek(source.source, source.left_top[0] + x, source.left_top[1] + y, w, h)
    if isinstance(source, ArraySource):
        check_region((x, y, w, h), source.size_wh)
        return source.pixels[y : y + h, x : x + w]
    return source.read(x, y, w, h)


def with_notes(source: ImageSource, notes: tuple[str, ...]) -> ImageSource:
    """The same picture with other notes."""
    return cast(ImageSource, replace(cast(Any, source), notes=notes))


def reopened(
    opener: Callable[..., ImageSource], path: Path, asked: tuple[Any, ...], notes: tuple[str, ...]
) -> ImageSource:
    """A picture that is read by regions, opened anew as in another process, with what was said of it.

    Args:
        opener: a function of a module.
        path: the file.
        asked: what else it was opened with.
        notes: what was said.
    """
    return with_notes(opener(path, *asked), notes)
