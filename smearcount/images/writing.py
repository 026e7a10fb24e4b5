"""Writing: a file is whole or absent, never half."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import tifffile

from smearcount.arrays import Pixels
from smearcount.config import OverlayFormat
from smearcount.errors import ImageError, UsageError
from smearcount.output_names import OVERLAYS, shortened

__all__ = [
    "JPEG_MAX_SIDE_PX",
    "check_target",
    "encoded",
    "grow_text",
    "make_folder",
    "part_key",
    "partial_path",
    "real_path",
    "refuse_input",
    "refuse_inputs",
    "replacing",
    "through_jpeg",
    "write_bytes_atomic",
    "write_overlay",
    "write_picture",
    "write_text_atomic",
]

JPEG_MAX_SIDE_PX = 65_500
"""The sides of a JPEG are 16-bit numbers (ITU-T T.81, B.2.2), of which libjpeg leaves the last 35 unused."""

_TILE_PX = 512

_KEPT = "free some space or check the permissions, and run it again: what is finished is kept"
"""Remedy for the outputs of a long run."""


def make_folder(path: Path) -> Path:
    """Make a folder for outputs, with those above it, and see that it takes files; returns it.

    Raises:
        ImageError: a file has this name or the place can't be written; names the path and the remedy.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        remedy = "a file is in the way: choose another folder" if _file_above(path) else "choose another folder"
        raise ImageError(f"{path}: no folder that can be written ({error.strerror or error}); {remedy}") from error
    return path


def refuse_input(path: Path, inputs: Iterable[Path], flag: str = "--out") -> None:
    """See that an output replaces nothing that is read.

    Args:
        path: of the output, as the user named it by `flag`.
        inputs: every file that the run reads.
        flag: for the error.

    Raises:
        UsageError: it is one of them, under this or another name.
    """
    if os.path.realpath(path) in {os.path.realpath(each) for each in inputs}:
        raise UsageError(f"{path}: is read by this run; give {flag} another name")


def refuse_inputs(files: Iterable[Path], folders: Iterable[Path], inputs: Iterable[Path], flag: str = "--out") -> None:
    """See that none of the outputs that are called after pictures replaces anything that is read.

    Args:
        files: the outputs.
        folders: of outputs, in which nothing may be read, nor by a link in them: what an earlier run left there is
            removed or written over.
        inputs: every file that the run reads.
        flag: that says where the outputs go, for the error.

    Raises:
        UsageError: one of them is read, or holds what is, under this or another name.
    """
    listed = list(inputs)
    read = {os.path.realpath(each) for each in listed}
    held = {os.path.realpath(each) for each in {path.parent for path in (*listed, *map(Path, read))}}
    for path in files:
        if os.path.realpath(path) in read:
            raise UsageError(f"{path}: is read by this run; give {flag} another folder")
    for folder in folders:
        if os.path.realpath(folder) in held or not read.isdisjoint(_linked_from(folder)):
            raise UsageError(f"{folder}: holds what is read by this run; give {flag} another folder")


def _linked_from(folder: Path) -> set[str]:
    """What links in a folder lead to."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return {os.path.realpath(entry.path) for entry in entries if entry.is_symlink()}
    return set()


def check_target(path: Path, inputs: Iterable[Path] = ()) -> Path:
    """See, before the work, that a file can be written under this name; returns it.

    Args:
        path: as the user gave it by `--out`.
        inputs: every file that the run reads.

    Raises:
        UsageError: it is one of the inputs.
        ImageError: a folder has this name, or its folder can't be written.
    """
    refuse_input(path, inputs)
    make_folder(real_path(path).parent)
    if os.path.isdir(path):
        raise ImageError(f"{path}: can't be written (Is a directory); {_remedy(path)}")
    return path


def write_picture(path: Path, pixels: Pixels, quality: int = 92) -> Path:
    """Write pixels `(H, W, 3) uint8 RGB` as the suffix of `path` says: .jpg, .jpeg, .png, .tif or .tiff.

    A picture that is too long for JPEG becomes a tiled JPEG-compressed BigTIFF with the suffix .tif.

    Returns:
        The path that was written.

    Raises:
        ValueError: the pixels or the suffix are of another kind.
        ImageError: the folder can't be written or is full; nothing is left behind.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels: expected (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}")
    suffix = path.suffix.lower()
    if suffix not in (".jpg", ".jpeg", ".png", ".tif", ".tiff"):
        raise ValueError(f"{path}: expected the suffix .jpg, .png or .tif, got {path.suffix!r}")
    if suffix in (".jpg", ".jpeg") and max(pixels.shape) > JPEG_MAX_SIDE_PX:
        path = path.with_suffix(".tif")
        _write_tiff(path, pixels, quality)
        return path
    if suffix in (".tif", ".tiff"):
        _write_tiff(path, pixels, None)
        return path
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix != ".png" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    try:
        _, encoded = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    except cv2.error as error:
        size = f"{pixels.shape[1]} x {pixels.shape[0]} px"
        raise ImageError(f"{path}: {size} can't be encoded as {suffix} ({error.err}); use .tif") from error
    write_bytes_atomic(path, encoded.data)
    return path


def write_overlay(place: Path, pixels: Pixels, overlay_format: OverlayFormat) -> Path:
    """Write an annotated picture `(H, W, 3) uint8 RGB`; one of this stem in another format is removed.

    Returns:
        The path that was written: a picture that is too long for JPEG is a `.tif`.

    Raises:
        ValueError: the pixels or the format are of another kind.
        ImageError: the folder can't be written or is full; what was there is still there.
    """
    written = write_picture(place.with_name(f"{place.name}.overlay.{overlay_format}"), pixels)
    for other in (place.with_name(f"{place.name}{ending}") for ending in OVERLAYS):
        if other != written:
            with contextlib.suppress(OSError):
                other.unlink()
    return written


def through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Pixels `(H, W, 3) uint8 RGB` as they come back from a JPEG of this quality, with its halved colour."""
    # Brightness is kept apart from colour by weights of blue, green and red, in OpenCV's order.
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cast(Pixels, cv2.cvtColor(cast(Pixels, cv2.imdecode(encoded, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB))


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is whole or absent.

    Raises:
        ImageError: the folder can't be written or is full; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text with its line ends as given; whole or absent.

    Raises:
        ImageError: the folder can't be written or is full; nothing is left behind.
    """
    write_bytes_atomic(path, encoded(text))


def partial_path(path: Path) -> Path:
    """Where `grow_text` leaves what was written when the user stopped it: `report.partial.csv`."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


@contextlib.contextmanager
def grow_text(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that adds UTF-8 text to a file, which appears under its name when the block has ended well.

    After a `KeyboardInterrupt` the text so far is kept as `partial_path` of it; after any other exception nothing is. A
    link stays, and what it leads to is replaced.

    Raises:
        ImageError: the file can't be written; at once where that can be known.
    """
    target, place = real_path(check_target(path)), None
    temporary = _temporary(target)
    with _named(path):
        stream = temporary.open("xb")

    def add(text: str) -> None:
        with _named(path):
            stream.write(encoded(text))
            stream.flush()

    try:
        try:
            yield add
            place = target
        except KeyboardInterrupt:
            place = partial_path(target)
            raise
        finally:
            with _named(path):
                stream.close()
                if place:
                    os.replace(temporary, place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def encoded(text: str) -> bytes:
    """Text in UTF-8, whatever is in it: a file name that is no Unicode must not cost the report of all others."""
    return text.encode("utf-8", errors="backslashreplace")


def _write_tiff(path: Path, pixels: Pixels, jpeg_quality: int | None) -> None:
    big = jpeg_quality is not None or pixels.nbytes > 2**31
    lossless = {"compression": "deflate", "predictor": True}
    lossy = {"compression": "jpeg", "compressionargs": {"level": jpeg_quality}}
    options = lossless if jpeg_quality is None else lossy
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as writer:
        writer.write(pixels, photometric="rgb", tile=(_TILE_PX, _TILE_PX), metadata=None, **options)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name to write to; the file takes its place under `path` when the block has ended well.

    Args:
        path: of the file; a link stays, and what it leads to is replaced.
        durable: it is on the disk then, also when the power goes: for the outputs of a long run.

    Raises:
        ImageError: it can't be written; what was under `path` before is still there.
    """
    target = real_path(path)
    temporary = _temporary(target)
    try:
        with _named(path, _KEPT if durable else ""):
            yield temporary
            if durable:
                _to_disk(temporary)
            os.replace(temporary, target)
        if durable:
            with contextlib.suppress(OSError):  # some file systems can't do this with folders
                _to_disk(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _to_disk(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return  # folders can't be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def real_path(path: Path) -> Path:
    """Where an output of this name is written: a link is followed, to where there is nothing yet as well."""
    # Unlike Path.resolve, os.path.realpath takes links to themselves for names.
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def part_key(path: Path) -> str:
    """What the name of an output, and of no other in its folder, begins with while it is half-written."""
    return shortened(path.name)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{part_key(path)}.{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def _named(path: Path, remedy: str = "") -> Iterator[None]:
    """Errors of the file system that name the output and the remedy."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"{path}: can't be written ({error.strerror or error}); {remedy or _remedy(path)}") from error


def _remedy(path: Path) -> str:
    # Unlike Path.is_dir, os.path.isdir answers for a name that is too long as well.
    if not os.path.isdir(path.parent):
        return f"make the folder {path.parent} first"
    if os.path.isdir(path):
        return "a folder has this name: choose another one"
    return "check the permissions and the free space of the folder, and the length of the name"


def _file_above(path: Path) -> bool:
    return any(os.path.lexists(each) and not os.path.isdir(each) for each in (path, *path.parents))
