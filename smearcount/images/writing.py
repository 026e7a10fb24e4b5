"""Writing: a file is whole or absent, never half."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile

from smearcount.errors import ImageError
from smearcount.images.source import Rgb

__all__ = ["JPEG_MAX_SIDE_PX", "write_bytes_atomic", "write_picture", "write_text_atomic"]

JPEG_MAX_SIDE_PX = 65_500
"""The sides of a JPEG are 16-bit numbers (ITU-T T.81, B.2.2), of which libjpeg leaves the last 35 unused."""

_TILE_PX = 512


def write_picture(path: Path, pixels: Rgb, quality: int = 92) -> Path:
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
        return _replace(path, lambda temporary: _write_tiff(temporary, pixels, quality))
    if suffix in (".tif", ".tiff"):
        return _replace(path, lambda temporary: _write_tiff(temporary, pixels, None))
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix != ".png" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    try:
        _, encoded = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    except cv2.error as error:
        size = f"{pixels.shape[1]} x {pixels.shape[0]} px"
        raise ImageError(f"{path}: {size} can't be encoded as {suffix} ({error.err}); use .tif") from error
    return _replace(path, lambda temporary: temporary.write_bytes(encoded.data))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file that is whole or absent.

    Raises:
        ImageError: the folder can't be written or is full; nothing is left behind.
    """
    _replace(path, lambda temporary: temporary.write_bytes(data))


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text with its line ends as given; whole or absent.

    Raises:
        ImageError: the folder can't be written or is full; nothing is left behind.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def _write_tiff(path: Path, pixels: Rgb, jpeg_quality: int | None) -> None:
    big = pixels.nbytes > 2**31
    lossless = {"compression": "deflate", "predictor": True}
    lossy = {"compression": "jpeg", "compressionargs": {"level": jpeg_quality}}
    options = lossless if jpeg_quality is None else lossy
    with tifffile.TiffWriter(path, bigtiff=big or jpeg_quality is not None) as writer:
        writer.write(pixels, photometric="rgb", tile=(_TILE_PX, _TILE_PX), metadata=None, **options)


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ImageError(f"{path}: can't be written ({error.strerror or error}); {_remedy(path)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _remedy(path: Path) -> str:
    if not path.parent.is_dir():
        return f"make the folder {path.parent} first"
    if path.is_dir():
        return "a folder has this name: choose another one"
    return "check the permissions and the free space of the folder"
