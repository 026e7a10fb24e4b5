"""From whatever samples a file stores to upright `(H, W, 3) uint8 RGB`: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Pixels

__all__ = [
    "ORIENTATIONS",
    "alpha_to_uint8",
    "cmyk_to_rgb",
    "composite_on_white",
    "grey_to_rgb",
    "opaque_of",
    "orient",
    "range_of",
    "sample_of",
    "stored_region",
    "to_uint8",
]

ORIENTATIONS = range(1, 9)
"""Values of the Orientation tag (TIFF 6.0, page 36; Exif 2.32, table 4)."""

_OPAQUE = 255

_ROWS = 128
"""Rows converted at once, so that wide intermediates stay small beside the picture."""

_MAX_16_BIT = 65_535
_FLOAT32_HOLDS_BYTES = 2
_HUGE = 1e150
"""Keeps differences of damaged values finite."""

_SAMPLED = 4_000_000
"""Samples that the range of a picture is taken from."""

_PATCHES, _PATCH_SIDE = 8, 128
"""Rows and columns of patches that stand for a picture which is not held as a whole, and their side in pixels."""


def orient(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Stored pixels `(H, W, ...)` turned upright by an Orientation tag of 1 to 8; a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def stored_region(
    region_xywh: tuple[int, int, int, int], upright_wh: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a rectangle of the upright picture lies in the stored one: the inverse of `orient`."""
    x, y, w, h = region_xywh
    if orientation in (2, 3, 6, 7):
        x = upright_wh[0] - x - w
    if orientation in (3, 4, 7, 8):
        y = upright_wh[1] - y - h
    return (y, x, h, w) if orientation >= 5 else (x, y, w, h)


def grey_to_rgb(grey: Pixels) -> Pixels:
    """Grey `(H, W) uint8` as three equal channels."""
    return cast(Pixels, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


def composite_on_white(colour: Pixels, alpha: Pixels, premultiplied: bool = False) -> Pixels:
    """Colour `(H, W, 3) uint8` over a white ground by `alpha (H, W) uint8`; 0 is transparent.

    Porter and Duff, Compositing digital images, SIGGRAPH 1984: colour over white.
    """
    if alpha.min() == _OPAQUE:
        return colour
    out = np.empty_like(colour)
    for top in range(0, len(colour), _ROWS):
        rows = slice(top, top + _ROWS)
        cover = alpha[rows, :, None].astype(np.uint16)
        share = colour[rows].astype(np.uint16) if premultiplied else (colour[rows] * cover + 127) // 255
        out[rows] = np.minimum(share + (255 - cover), 255)
    return out


def cmyk_to_rgb(ink: Pixels, inverted: bool = False) -> Pixels:
    """Ink `(H, W, 4) uint8` cyan, magenta, yellow, black without a profile: R = (1 - C)(1 - K).

    255 is full ink, or bare paper where `inverted`.
    """
    out = np.empty((*ink.shape[:2], 3), np.uint8)
    for top in range(0, len(ink), _ROWS):
        rows = ink[top : top + _ROWS].astype(np.uint16)
        light = rows if inverted else 255 - rows
        out[top : top + _ROWS] = (light[..., :3] * light[..., 3:] + 127) // 255
    return out


def to_uint8(samples: npt.NDArray[Any], low_high: tuple[float, float] | None = None) -> tuple[Pixels, str]:
    """Samples of any number type as `uint8` of the same shape, and a note that says how.

    The range is that of the samples, or `low_high` where they are a part of a larger picture.

    A bright-field picture is transmitted light: zero stays black and ratios are kept, so the range is scaled, never
    stretched from its minimum. Its end is the full scale of the bits in use, the smallest `2**k - 1` (k = 8 to 16)
    that holds 99.9 % of the samples: a camera of 12 bits in a file of 16 is as bright as its 8-bit copy, and one
    hot pixel changes nothing. Fractions up to 1 are scaled from 0 to 1. Data with negative values, beyond 16 bits, or
    fractions that end between 1 and 127 have no known full scale and go from their 0.1 to their 99.9 percentile.
    """
    if samples.dtype == np.uint8:
        return cast(Pixels, samples), ""
    floating = samples.dtype.kind == "f"
    low, high = low_high or range_of(samples)
    out, lost = np.empty(samples.shape, np.uint8), 0
    for top in range(0, len(samples), _ROWS):
        rows = _exact(samples[top : top + _ROWS])
        lost += rows.size - int(np.isfinite(rows).sum()) if floating else 0
        rows = np.nan_to_num(rows, nan=low, posinf=high, neginf=low)
        out[top : top + _ROWS] = np.rint((np.clip(rows, low, high) - low) * (255 / (high - low)))
    kind = "floating point" if floating else f"{samples.dtype.itemsize * 8} bit"
    without = f", {lost} values that are no numbers shown dark or full" if lost else ""
    return out, f"{kind} range scaled from {low:g} to {high:g}{without}"


def alpha_to_uint8(alpha: npt.NDArray[Any], opaque: float) -> Pixels:
    """Alpha `(H, W)` of any number type as uint8; `opaque` becomes 255: see `opaque_of`."""
    if alpha.dtype == np.uint8 and opaque == _OPAQUE:
        return cast(Pixels, alpha)
    share = np.clip(np.nan_to_num(alpha.astype(np.float32)) / opaque, 0, 1)
    return cast(Pixels, np.rint(share * 255).astype(np.uint8))


def opaque_of(alpha: npt.NDArray[Any], low_high: tuple[float, float]) -> float:
    """The alpha that is opaque: the end of its number type, which is 1 in floating point, or that of the colours.

    A camera of 12 bits in a file of 16 may have an alpha of 12 bits, so the least of them that alpha never exceeds.
    """
    end = 1.0 if alpha.dtype.kind in "fb" else float(np.iinfo(alpha.dtype).max)
    low, high = low_high
    ends = sorted((end, high if low == 0 else end))
    most = float(np.nan_to_num(alpha).max(initial=0))
    return next((each for each in ends if most <= each), end)


def _exact(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(invalid="ignore"):  # a signalling NaN of a damaged file is lost like a quiet one
        return samples.astype(np.float32 if samples.dtype.itemsize <= _FLOAT32_HOLDS_BYTES else np.float64)


def range_of(samples: npt.NDArray[Any]) -> tuple[float, float]:
    """The stored values that become 0 and 255: see `to_uint8`."""
    floating = samples.dtype.kind == "f"
    step = min(samples.size // _SAMPLED, len(samples) // 64)
    values = _exact(samples[:: max(1, step)]).astype(np.float64)
    values = values[np.isfinite(values)].clip(-_HUGE, _HUGE)
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    if floating and low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and (128 if floating else 0) <= high <= _MAX_16_BIT:
        bits = max(8, int(np.ceil(np.log2(high + 1))))
        return 0.0, float(2**bits - 1)
    return low, high if high > low else low + max(1.0, abs(low))


def sample_of(
    read: Callable[[tuple[int, int, int, int]], npt.NDArray[Any]], size_wh: tuple[int, int]
) -> npt.NDArray[Any]:
    """Samples `(..., s)` that stand for a picture: 8 x 8 patches of it, or all of a small one.

    The patches lie at fixed places, so that a picture has one range, however it is read.

    Args:
        read: gives the samples of a rectangle x, y, w, h.
        size_wh: width and height of the picture.
    """
    if size_wh[0] * size_wh[1] <= _PATCHES**2 * _PATCH_SIDE**2:
        return read((0, 0, *size_wh))
    w, h = (min(_PATCH_SIDE, side) for side in size_wh)
    places = ((np.arange(_PATCHES) + 0.5) / _PATCHES).tolist()
    corners = [(int((size_wh[0] - w) * at_x), int((size_wh[1] - h) * at_y)) for at_y in places for at_x in places]
    patches = [read((x, y, w, h)) for x, y in corners]
    return np.concatenate([patch.reshape(-1, patch.shape[-1]) for patch in patches])
