"""Damage that decoders pass over: libjpeg only prints of it, libwebp says nothing.

Every block of a slide is looked at, so that comes in two steps: a quick look for signs, which whole data can bear as
well, and a second decoding where there are any, which proves the damage.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

__all__ = ["block_fault", "decoders_heard", "fault_in", "jpeg_fault", "webp_fault"]

_JPEG = frozenset({6, 7, 33007, 34892})
_WEBP = 50001
"""Values of the Compression tag."""

_START, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends the entropy-coded data of a JPEG: no stuffed byte, restart or fill (ITU-T T.81, B.1.1)."""

_LOST = b"\x80"
"""What libjpeg fills blocks with whose data are missing, in every channel."""

_JPEG_ZEROS, _WEBP_ZEROS = bytes(32), bytes(64)
"""Of such runs whole data have one only where a picture is flat."""

_TAIL_BYTES = 16
"""Encoders end with fewer bytes of padding than this."""


def block_fault(
    compression: int, data: bytes, samples: npt.NDArray[Any], tables: bytes | None = None, header: bytes | None = None
) -> str:
    """What is wrong with a tile or strip of a TIFF that was decoded without an error; empty for nothing.

    Args:
        compression: value of the Compression tag.
        data: the block as it is stored.
        samples: `(h, w, s)`, decoded from it.
        tables: the JPEGTables tag, where there is one.
        header: what goes before each block of a JPEG that was cut into pieces; they have no end marker.
    """
    if compression == _WEBP:
        return webp_fault(data)
    if compression not in _JPEG or not _has_signs(data, samples, header is not None):
        return ""
    whole = header + data if header else data[:2] + (tables or b"").removeprefix(_START).removesuffix(_END) + data[2:]
    return jpeg_fault(whole + _END)


def _has_signs(data: bytes, samples: npt.NDArray[Any], is_piece: bool) -> bool:
    """Whether a JPEG does not end as it should, holds a run of zeros, or blocks at its right edge are mid grey.

    Blocks are stored row by row, and missing are all that follow, up to the next restart or the end.
    """
    scan = 0 if is_piece else data.find(_SCAN) + len(_SCAN)
    end = _MARKER.search(data, scan)
    if not is_piece and (end is None or end.group() != _END):
        return True
    if data.find(_JPEG_ZEROS, scan, end.start() if end else len(data)) >= 0:
        return True
    # A search in bytes takes a quarter of the time of a comparison of arrays.
    return _LOST * samples.shape[-1] in samples[3::8, -1].tobytes()


def jpeg_fault(data: bytes) -> str:
    """What libjpeg says of a whole JPEG, if it means that pixels are wrong."""
    # A picture of an eighth of the size tells as much, in half the time.
    with decoders_heard() as spoken, suppress(cv2.error):
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    return fault_in("".join(spoken))


def webp_fault(data: bytes) -> str:
    """What is wrong with a WebP that was decoded without an error; empty for nothing.

    Zeros stand for flat colour and are soon used up, so a picture with a part of its data zeroed is complete before
    its data end. A whole one can't be decoded without its last bytes.
    """
    at, end = _picture_chunk(data) if _WEBP_ZEROS in data else (0, 0)
    if end - at <= 8 + _TAIL_BYTES:
        return ""
    cut = bytearray(data[: end - _TAIL_BYTES])
    struct.pack_into("<I", cut, at + 4, len(cut) - at - 8)
    cut += bytes(len(cut) % 2)
    struct.pack_into("<I", cut, 4, len(cut) - 8)
    try:
        imagecodecs.webp_decode(bytes(cut))
    except imagecodecs.WebpError:
        return ""
    return "a part of its data is zeros"


def _picture_chunk(data: bytes) -> tuple[int, int]:
    """Where the chunk with the picture of a WebP begins and ends; an animation has none of its own (RFC 9649)."""
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data[at : at + 4] in (b"VP8 ", b"VP8L"):
            return at, at + 8 + length
        at += 8 + length + length % 2
    return 0, 0


_SPOKEN = re.compile(
    r"^.*(?:JPEG data|JPEG file|sequential JPEG|JFIF revision|progression sequence|Adobe color|libpng "
    r"|^\[ ?(?:WARN|INFO|ERROR):).*\n*",
    re.MULTILINE,
)
"""Lines of libjpeg (jerror.h), libpng and OpenCV."""

_DAMAGE = re.compile(r"Corrupt JPEG data: (?!\d)|Premature end of JPEG|libpng error")
_STRAY = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes")
_HARMLESS_BYTES = 32
"""Some cameras pad the end of a scan; more stray bytes than this mean that the decoder lost its way."""


def fault_in(spoken: str) -> str:
    """What the decoder said, if it means that pixels are wrong."""
    stray = _STRAY.search(spoken)
    wrong = _DAMAGE.search(spoken) or (stray and int(stray.group(1)) > _HARMLESS_BYTES)
    return spoken.strip().split("\n")[0] if wrong else ""


_STDERR = threading.Lock()


@contextmanager
def decoders_heard() -> Iterator[list[str]]:
    """Collect what the C decoders print on file descriptor 2: their only way to say that a picture is damaged.

    libjpeg fills what is missing with grey and goes on; it would be counted as an empty field. Lines that anybody
    else printed meanwhile are passed on.
    """
    spoken: list[str] = []
    with _STDERR:
        kept = _scratch_file()
        try:
            stderr = os.dup(2)
        except OSError:
            stderr = -1  # a process without a stderr
        os.dup2(kept, 2)
        try:
            yield spoken
        finally:
            if stderr >= 0:
                os.dup2(stderr, 2)
            else:
                os.close(2)
            length = os.lseek(kept, 0, os.SEEK_END)
            os.lseek(kept, 0, os.SEEK_SET)
            said = os.read(kept, length)
            os.close(kept)
            if said:
                text = said.decode("utf-8", "replace")
                spoken += _SPOKEN.findall(text)
                rest = _SPOKEN.sub("", text)
                if rest and stderr >= 0:
                    os.write(stderr, rest.encode())
            if stderr >= 0:
                os.close(stderr)


def _scratch_file() -> int:
    """Descriptor of a nameless file; in memory where the system has such, which is ten times as quick as on a disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("smearcount")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
