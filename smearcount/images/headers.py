"""What a JPEG, PNG, WebP or BMP says of itself, read before a pixel is decoded; and whether the file is whole.

Sources: ITU-T T.81 (JPEG), JFIF 1.02, PNG 3rd edition (W3C), RFC 9649 (WebP), BITMAPINFOHEADER (BMP).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from smearcount.images.exif import exif_facts
from smearcount.images.scale import PixelSize, from_density

__all__ = ["DamagedError", "Header", "UnsupportedError", "read_header"]


class DamagedError(Exception):
    """The bytes are cut off or contradict themselves; the message is the second half of a sentence."""


class UnsupportedError(Exception):
    """A picture of a kind that is not read; the message says which, and what to do."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    Attributes:
        size_wh: stored width and height in pixels.
        orientation: 1 to 8, as in TIFF and Exif.
        pixel_size: from the density of the file, where plausible.
        channels: stored colour channels of a JPEG, else 0.
        inverted: a CMYK JPEG by Adobe, which stores paper and not ink.
        animated: the first of several frames is read.
    """

    size_wh: tuple[int, int]
    orientation: int = 1
    pixel_size: PixelSize = PixelSize()
    channels: int = 0
    inverted: bool = False
    animated: bool = False


def read_header(kind: str, data: bytes) -> Header:
    """The header of the `data` of a whole file of the kind `JPEG`, `PNG`, `WebP` or `BMP`.

    Raises:
        DamagedError: the file is truncated or its structure broken.
        UnsupportedError: a variant of the format that no decoder here reads.
    """
    try:
        return {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "BMP": _bmp}[kind](data)
    except (struct.error, IndexError) as error:
        raise DamagedError("is truncated: it ends within its header") from error


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_OR_ARITHMETIC = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})


def _jpeg(data: bytes) -> Header:
    size_wh, channels, inverted, orientation = (0, 0), 0, False, 1
    jfif, exif = PixelSize(), PixelSize()
    scan = 0
    for marker, body, end in _jpeg_segments(data):
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack(">BHHB", body[:6])
            if marker in _LOSSLESS_OR_ARITHMETIC or bits != 8:
                raise UnsupportedError(f"is a lossless, arithmetic or {bits}-bit JPEG; save it as PNG or TIFF")
            size_wh = (width, height)
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):
            unit, x, y = struct.unpack(">BHH", body[7:12])
            jfif = from_density(x, y, {1: "inch", 2: "cm"}.get(unit, ""), "JFIF density")
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation, exif = exif_facts(body[6:])
        elif marker == 0xEE and body.startswith(b"Adobe"):
            inverted = True
        elif marker == 0xDA:
            scan = end
    if not scan or 0 in size_wh:
        raise DamagedError("is corrupt: its header holds no picture")
    if data.rfind(b"\xff\xd9", scan) < 0:
        raise DamagedError("is truncated: the end marker of the JPEG is missing")
    return Header(size_wh, orientation, exif if exif.origin or exif.note else jfif, channels, inverted)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, body and end of each segment up to and including the first start of scan."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise DamagedError("is corrupt: no marker where the JPEG should have one")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        elif marker == 0xD9:
            return
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            end = at + 2 + length
            if length < 2 or end > len(data):
                raise DamagedError("is truncated: it ends within its header")
            yield marker, data[at + 4 : end], end
            if marker == 0xDA:
                return
            at = end


def _png(data: bytes) -> Header:
    size_wh, orientation, animated = (0, 0), 1, False
    pixel_size = PixelSize()
    for name, body in _png_chunks(data):
        if name == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
            size_wh = (width, height)
        elif name == b"pHYs":
            x, y, unit = struct.unpack(">IIB", body[:9])
            pixel_size = from_density(x, y, "m" if unit == 1 else "", "PNG pHYs")
        elif name == b"eXIf":
            orientation, _ = exif_facts(body)
        elif name == b"acTL":
            animated = True
    if 0 in size_wh:
        raise DamagedError("is corrupt: the PNG has no header")
    return Header(size_wh, orientation, pixel_size, animated=animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and body of each chunk; the checksum of each is verified, so a decoder meets no damage."""
    view, at = memoryview(data), 8
    while True:
        if at + 12 > len(data):
            raise DamagedError("is truncated: the end of the PNG (IEND) is missing")
        (length,) = struct.unpack_from(">I", data, at)
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise DamagedError("is truncated: the end of the PNG (IEND) is missing")
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise DamagedError(f"is corrupt: the checksum of its part {name.decode('latin-1')!r} is wrong")
        yield name, view[at + 8 : end - 4]
        if name == b"IEND":
            return
        at = end


def _webp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise DamagedError(f"is truncated: {len(data)} of {size + 8} bytes are there")
    size_wh, orientation, animated = (0, 0), 1, False
    for name, body in _riff_chunks(data, size + 8):
        if name == b"VP8X":
            animated = bool(body[0] & 2)
            size_wh = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif name == b"VP8 " and 0 in size_wh:
            width, height = struct.unpack("<HH", body[6:10])
            size_wh = (width & 0x3FFF, height & 0x3FFF)
        elif name == b"VP8L" and 0 in size_wh:
            (bits,) = struct.unpack("<I", body[1:5])
            size_wh = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif name == b"EXIF":
            orientation, _ = exif_facts(body.removeprefix(b"Exif\0\0"))
    if 0 in size_wh:
        raise DamagedError("is corrupt: the WebP holds no picture")
    return Header(size_wh, orientation, animated=animated)


def _riff_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= end:
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _bmp(data: bytes) -> Header:
    start, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, x, y = 0, 0, 0
    else:
        width, height, _, bits, compression, _, x, y = struct.unpack_from("<iiHHIIii", data, 18)
    if width <= 0 or height == 0:
        raise DamagedError(f"is corrupt: its header says {width} x {height} px")
    needed = start + (width * bits + 31) // 32 * 4 * abs(height)
    if compression in (0, 3) and needed > len(data):
        raise DamagedError(f"is truncated: {len(data)} of {needed} bytes are there")
    return Header((width, abs(height)), pixel_size=from_density(x, y, "m", "BMP density"))
