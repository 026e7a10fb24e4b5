"""Orientation and density from an Exif block: a small TIFF inside another file.

Source: Exif 2.32, section 4.6; TIFF 6.0, section 2.
"""

from __future__ import annotations

import struct

from smearcount.images.pixels import ORIENTATIONS
from smearcount.images.scale import PixelSize, from_density

__all__ = ["exif_facts"]

_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _UNIT = 0x0112, 0x011A, 0x011B, 0x0128
_SHORT, _RATIONAL = 3, 5


def exif_facts(block: bytes | memoryview) -> tuple[int, PixelSize]:
    """Orientation (1 to 8; 1 where absent or senseless) and pixel size; a damaged block says nothing."""
    try:
        tags = _first_directory(bytes(block))
    except struct.error:
        return 1, PixelSize()
    orientation = int(tags.get(_ORIENTATION, 1))
    unit = {2: "inch", 3: "cm"}.get(int(tags.get(_UNIT, 2)), "")
    size = from_density(tags.get(_X_RESOLUTION, 0), tags.get(_Y_RESOLUTION, 0), unit, "Exif resolution")
    return orientation if orientation in ORIENTATIONS else 1, size


def _first_directory(block: bytes) -> dict[int, float]:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return {}
    (at,) = struct.unpack_from(order + "I", block, 4)
    (entries,) = struct.unpack_from(order + "H", block, at)
    tags: dict[int, float] = {}
    for entry in range(min(entries, 256)):
        tag, kind, count = struct.unpack_from(order + "HHI", block, at + 2 + 12 * entry)
        value_at = at + 10 + 12 * entry
        if kind == _SHORT and count == 1:
            (tags[tag],) = struct.unpack_from(order + "H", block, value_at)
        elif kind == _RATIONAL and count == 1:
            (value_at,) = struct.unpack_from(order + "I", block, value_at)
            numerator, denominator = struct.unpack_from(order + "II", block, value_at)
            tags[tag] = numerator / denominator if denominator else 0.0
    return tags
