"""JPEG, PNG, WebP and BMP: checked by their headers, decoded once, held in memory."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, cast

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from smearcount.arrays import Pixels
from smearcount.errors import ImageError
from smearcount.images.damage import decoders_heard, fault_in, jpeg_fault, webp_fault
from smearcount.images.headers import DamagedError, Header, UnsupportedError, read_header
from smearcount.images.machine import check_memory, is_of_machine
from smearcount.images.pixels import (
    alpha_to_uint8,
    cmyk_to_rgb,
    composite_on_white,
    grey_to_rgb,
    opaque_of,
    orient,
    range_of,
    to_uint8,
)
from smearcount.images.source import ArraySource, ReadLimits

__all__ = ["open_raster"]

_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

_MAX_PIXELS, _MAX_SIDE_PX = 2**30, 2**20
"""What OpenCV decodes (loadsave.cpp); only the environment that it is loaded in can change that."""


def open_raster(path: Path, kind: str, data: bytes, limits: ReadLimits) -> ArraySource:
    """The decoded picture of a file of the kind `JPEG`, `PNG`, `WebP` or `BMP` with the bytes `data`.

    Raises:
        ImageError: too large, too small, truncated, corrupt, or of an unsupported variant.
    """
    try:
        header = read_header(kind, data)
        limits.check_side(path, header.size_wh)
        _check_decodable(path, kind, header.size_wh)
        limits.check_area(path, header.size_wh)
        pixels, notes = _decode(kind, data, header)
    except DamagedError as error:
        raise ImageError(f"{path}: {error}; copy or export it again from the microscope") from error
    except UnsupportedError as error:
        raise ImageError(f"{path}: {error}") from error
    if header.animated:
        notes = (*notes, "first frame of an animation read")
    if header.orientation != 1:
        pixels = np.ascontiguousarray(orient(pixels, header.orientation))
        notes = (*notes, f"EXIF orientation {header.orientation} applied")
    size = header.pixel_size
    notes = (*notes, size.note) if size.note else notes
    return ArraySource(pixels, size.um_per_px, path, size.origin, notes, hashlib.sha256(data).hexdigest())


def _check_decodable(path: Path, kind: str, size_wh: tuple[int, int]) -> None:
    if math.prod(size_wh) > _MAX_PIXELS or max(size_wh) > _MAX_SIDE_PX:
        raise ImageError(
            f"{path}: {size_wh[0]} x {size_wh[1]} px, but a {kind} is read up to {_MAX_PIXELS // 10**6} megapixels "
            f"and {_MAX_SIDE_PX} px a side; save it as a tiled TIFF, which is read region by region"
        )


def _decode(kind: str, data: bytes, header: Header) -> tuple[Pixels, tuple[str, ...]]:
    if kind == "JPEG" and header.channels == 4:
        return _decode_cmyk(data, header), ("CMYK converted without a colour profile",)
    if kind == "JPEG":
        return _decode_jpeg(data, header), ()
    if kind == "BMP":
        # A BMP's fourth byte is padding far more often than alpha, so it is not asked for.
        return _opencv(data, _AS_STORED, header), ()
    pixels, notes = _flatten(_opencv(data, cv2.IMREAD_UNCHANGED, header))
    if kind == "WebP" and (fault := webp_fault(data)):
        raise DamagedError(f"is corrupt or truncated: {fault}")
    return pixels, tuple(note for note in notes if note)


def _flatten(samples: npt.NDArray[Any]) -> tuple[Pixels, tuple[str, str]]:
    """Grey `(H, W)`, BGR or BGRA samples as RGB on white."""
    if samples.ndim == 2:
        grey, range_note = to_uint8(samples)
        return grey_to_rgb(grey), (range_note, "")
    low_high = None if samples.dtype == np.uint8 else range_of(samples[..., :3])
    colour, range_note = to_uint8(samples[..., :3], low_high)
    rgb = np.ascontiguousarray(colour[..., ::-1])
    if samples.shape[2] == 3:
        return rgb, (range_note, "")
    opaque = 255 if low_high is None else opaque_of(samples[..., 3], low_high)
    alpha = alpha_to_uint8(samples[..., 3], opaque)
    if alpha.min() == 255:
        return rgb, (range_note, "")
    return composite_on_white(rgb, alpha), (range_note, "alpha composited on white")


def _decode_jpeg(data: bytes, header: Header) -> Pixels:
    """Grey or coloured; TurboJPEG stops where libjpeg would warn, and OpenCV is then heard whether that is damage."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return _opencv(data, _AS_STORED, header)
    _check_size(pixels, header)
    return cast(Pixels, pixels)


def _decode_cmyk(data: bytes, header: Header) -> Pixels:
    try:
        ink = imagecodecs.jpeg8_decode(data, outcolorspace="CMYK")
    except imagecodecs.Jpeg8Error as error:
        if is_of_machine(error):
            raise
        raise DamagedError(f"is corrupt: the JPEG can't be decoded ({error})") from error
    if fault := jpeg_fault(data):
        raise DamagedError(f"is corrupt or truncated: {fault}")
    _check_size(ink, header)
    return cmyk_to_rgb(ink, header.inverted)


def _opencv(data: bytes, flags: int, header: Header) -> npt.NDArray[Any]:
    with decoders_heard() as spoken:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            if is_of_machine(error):
                raise
            raise DamagedError(f"is corrupt: it can't be decoded ({error.err})") from error
    if fault := fault_in("".join(spoken)):
        raise DamagedError(f"is corrupt or truncated: {fault}")
    if pixels is None:
        check_memory(math.prod(header.size_wh))
        raise DamagedError("is corrupt or truncated: it can't be decoded")
    _check_size(pixels, header)
    return pixels


def _check_size(pixels: npt.NDArray[Any], header: Header) -> None:
    if (pixels.shape[1], pixels.shape[0]) != header.size_wh:
        raise DamagedError(f"is corrupt: decoded to {pixels.shape[:2]}, its header says {header.size_wh}")
