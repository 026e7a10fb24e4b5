"""What the samples of a TIFF page mean, and how they become RGB.

Source: TIFF 6.0, sections 4 to 6 (PhotometricInterpretation), 16 (CMYK), 18 (ExtraSamples), 21 (YCbCr).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from smearcount.arrays import Pixels
from smearcount.images.headers import UnsupportedError
from smearcount.images.pixels import (
    alpha_to_uint8,
    cmyk_to_rgb,
    composite_on_white,
    grey_to_rgb,
    opaque_of,
    range_of,
    to_uint8,
)

__all__ = ["Colour", "SampleRange", "colour_of"]

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_BASE_SAMPLES = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_DECODED_AS_RGB = frozenset({6, 7, 33007, 34892, 50001, 50002, 52546})
"""Compressions whose decoder undoes YCbCr itself: JPEG, WebP and JPEG XL."""
_MOST_BITS = 16
"""Of samples whose full scale is known: see `to_uint8`."""
_BY_COMPRESSION = {33003: _YCBCR, 33005: _RGB}
"""Aperio's JPEG 2000: the compression says how colours are stored, whatever the photometric (openslide.org/formats)."""


@dataclass(frozen=True)
class SampleRange:
    """What the values of a picture of more than 8 bits mean.

    Attributes:
        low_high: that become 0 and 255.
        opaque: alpha that hides the ground.
    """

    low_high: tuple[float, float]
    opaque: float


@dataclass(frozen=True, eq=False)
class Colour:
    """How the samples `(h, w, s)` of a page become `(h, w, 3) uint8 RGB`.

    Attributes:
        photometric: PhotometricInterpretation.
        base: number of colour samples.
        first: the first of them; 0 but where one channel of several is shown.
        alpha: `""`, `straight` or `premultiplied`; the sample after the base.
        bits: bits a sample.
        palette: `(2**bits, 3) uint8` of a palette picture.
        notes: what is done to the samples.
    """

    photometric: int
    base: int
    first: int
    alpha: str
    bits: int
    palette: Pixels | None
    notes: tuple[str, ...]

    def of_colour(self, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The samples that are colour, without alpha; a view."""
        return samples[..., self.first : self.first + self.base]

    def range_of(self, samples: npt.NDArray[Any]) -> SampleRange:
        """The range of samples `(..., s)` that stand for a whole picture of more than 8 bits.

        Where zero is white the largest value is the darkest pixel, which says nothing of the bits in use: they are
        those of the header.
        """
        full = self.photometric == _MIN_IS_WHITE and samples.dtype.kind == "u" and self.bits <= _MOST_BITS
        low_high = (0.0, 2.0**self.bits - 1) if full else range_of(self.of_colour(samples))
        return SampleRange(low_high, opaque_of(samples[..., self.base], low_high) if self.alpha else 0.0)

    def to_rgb(self, samples: npt.NDArray[Any], within: SampleRange | None = None) -> tuple[Pixels, str]:
        """RGB of stored samples, and a note on their range.

        Args:
            samples: `(h, w, s)` as stored.
            within: range of the whole picture, where it has more than 8 bits.
        """
        colour, note = self.of_colour(samples), ""
        if self.bits < 8:
            full = 1 if self.palette is not None else 255 / (2**self.bits - 1)
            colour = np.rint(colour * full).astype(np.uint8)
        elif within is not None:
            colour, note = to_uint8(colour, within.low_high)
        rgb = self._convert(colour)
        if self.alpha:
            cover = alpha_to_uint8(samples[..., self.base], within.opaque if within else 2**self.bits - 1)
            rgb = composite_on_white(rgb, cover, self.alpha == "premultiplied")
        return rgb, note

    def _convert(self, colour: Pixels) -> Pixels:
        if self.palette is not None:
            return self.palette[colour[..., 0]]
        if self.photometric == _CMYK:
            return cmyk_to_rgb(colour)
        if self.photometric == _YCBCR:
            swapped = np.ascontiguousarray(colour[..., [0, 2, 1]])
            return cv2.cvtColor(swapped, cv2.COLOR_YCrCb2RGB).astype(np.uint8, copy=False)
        if self.base == 3:
            return np.ascontiguousarray(colour)
        grey = np.ascontiguousarray(colour[..., 0])
        return grey_to_rgb(255 - grey if self.photometric == _MIN_IS_WHITE else grey)


def colour_of(page: tifffile.TiffPage, channel: int | None = None) -> Colour:
    """How the samples of a page are meant; `channel`, from 0, is shown grey instead of all of them.

    Raises:
        UnsupportedError: the samples are no grey, RGB, palette or CMYK picture, or the channel is one of CMYK.
    """
    photometric, samples, bits = (int(page.photometric), int(page.samplesperpixel), int(page.bitspersample))
    if samples == 3:
        photometric = _BY_COMPRESSION.get(int(page.compression), photometric)
    base = _BASE_SAMPLES.get(photometric, 0)
    extra = tuple(int(value) for value in page.extrasamples)
    if channel is not None and photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR) and _is_number(page):
        note = f"channel {channel + 1} of {samples} shown grey"
        return Colour(min(photometric, _MIN_IS_BLACK), 1, channel, "", bits, None, (note,))
    if channel is not None and photometric == _CMYK:
        raise UnsupportedError("has channels of ink (CMYK), which are not shown alone; leave the channel out")
    if not base or not base <= samples <= base + 1 or not _is_number(page):
        raise UnsupportedError(
            f"has {samples} channels of {bits} bits, photometric {photometric}; expected grey, RGB, RGBA or CMYK: "
            "export the bright-field picture as RGB"
        )
    alpha = {1: "premultiplied", 2: "straight"}.get(extra[0], "") if samples > base and extra else ""
    notes = []
    if samples > base:
        notes.append("alpha composited on white" if alpha else f"channel {samples} of unknown meaning left out")
    if photometric == _CMYK:
        notes.append("CMYK converted without a colour profile")
    palette = _palette(page, bits) if photometric == _PALETTE else None
    decoded = photometric == _YCBCR and int(page.compression) in _DECODED_AS_RGB
    return Colour(_RGB if decoded else photometric, base, 0, alpha, bits, palette, tuple(notes))


def _is_number(page: tifffile.TiffPage) -> bool:
    return page.dtype is not None and page.dtype.kind in "buif"


def _palette(page: tifffile.TiffPage, bits: int) -> Pixels:
    table = page.colormap
    if table is None or bits > 8 or table.shape != (3, 2**bits):
        raise UnsupportedError(f"is a palette picture of {bits} bits without a fitting palette; save it as RGB")
    # Entries are 16 bit by the standard; some writers store 8-bit values.
    scaled = table if table.max() <= 255 else table >> 8
    return np.ascontiguousarray(scaled.T.astype(np.uint8))
