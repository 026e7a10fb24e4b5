"""Tinted light and faint cells: a picture gets the colour of glass, and the contrast, that the networks know.

Yellow halogen light, a missing white balance, a hazy lens or an open condenser lie beyond what the labelled photographs
show. Within what they show nothing is changed: stains differ, and the networks have learned to live with that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, FloatArray, Pixels

__all__ = ["CLIPPED", "Contrast", "contrast_wanted", "glass_colour", "is_tinted", "lightest", "ranked"]
__all__ += ["thinned", "untinted"]

AnyLevel = TypeVar("AnyLevel", np.uint8, np.bool_)

RED_OVER_GREEN, BLUE_OVER_GREEN = (0.65, 1.35), (0.62, 1.2)
"""Of bare glass, between which a picture stays as it is; of 6,300 labelled photographs five lie beyond."""

PINK = (1.1, 0.95)
"""Red and blue over green above which, both, the lightest is stain: no light is pink, and where there is nothing but
cells, there is no glass."""

USUAL_GLASS = (1.05, 1.0, 0.92)
"""Red, green and blue of the glass over its green, which a tinted picture is given."""

FAINT, CLEAR = 0.15, 0.30
"""Optical density in green of the darker quarter of what lies in the boxes of red cells: below the first the contrast
is raised, to the second. Of the labelled photographs it is 0.24 to 0.67 in the middle of a collection."""

FEWEST_CELLS = 10
"""Red cells by which the contrast is judged: without any, what is raised is dust and noise."""

CLIPPED, MOST_CLIPPED = 254, 0.1
"""Green from which on a pixel is over-exposed; share of them beyond which the colour of the glass is not known. Of 562
validation photographs none has more."""

_MOST = 4.0
"""A channel, and differences to the glass, are multiplied by this at most: beyond, they are noise and rounding."""

_MEASURED, _AT_A_GLANCE = 20_000, 5_000
"""Pixels of a picture that are measured: for its tint, and in every picture."""

_PLACES = np.array([(x, y) for x in (0.3, 0.5, 0.7) for y in (0.3, 0.5, 0.7)], np.float32)
"""Where a red cell is looked at, in shares of its box."""


def lightest(pixels: Pixels) -> Pixels:
    """The lightest channel of each pixel of `(..., 3)`."""
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def ranked(levels: Pixels) -> Pixels:
    """Grey levels in order, `(N,)`: by radix, several times as fast as by comparing them."""
    return np.sort(levels, axis=None, kind="stable")


def thinned(array: npt.NDArray[AnyLevel], number: int = 250_000) -> npt.NDArray[AnyLevel]:
    """About so many of the pixels `(H, W, ...)`, evenly spaced."""
    step = max(1, round(math.sqrt(array.shape[0] * array.shape[1] / number)))
    return array[::step, ::step]


def glass_colour(pixels: Pixels) -> Doubles:
    """Mean red, green and blue, 1 at least, of the lightest tenth of the pixels `(N, 3)`."""
    level = np.add(pixels[:, 0], pixels[:, 1], dtype=np.int16) + pixels[:, 2]
    light = np.flatnonzero(level >= np.sort(level)[int(0.9 * len(level))])
    return np.asarray(np.maximum(pixels.take(light, axis=0).mean(axis=0), 1.0), np.float64)


def is_tinted(glass: Doubles) -> bool:
    """Whether a colour of the glass is beyond those of the labelled photographs, and one that light may have."""
    red, green, blue = glass.tolist()
    (low_red, high_red), (low_blue, high_blue) = RED_OVER_GREEN, BLUE_OVER_GREEN
    usual = low_red <= red / green <= high_red and low_blue <= blue / green <= high_blue
    return not usual and not (red / green > PINK[0] and blue / green > PINK[1])


def untinted(pixels: Pixels, inside: Bools) -> tuple[Pixels, str]:
    """A picture `(H, W, 3)` with glass of the usual colour and unchanged lightness, and what was done; nothing is "".

    Args:
        pixels: the picture.
        inside: `(H, W)`, where it shows the smear.
    """
    seen = thinned(pixels, _MEASURED)[thinned(inside, _MEASURED)]
    glass = glass_colour(seen) if len(seen) else np.array(USUAL_GLASS)
    if not is_tinted(glass):
        return pixels, ""
    gains = np.minimum(np.array(USUAL_GLASS) / max(USUAL_GLASS) * glass.max() / glass, _MOST)
    shown = " : 1 : ".join(f"{glass[channel] / glass[1]:.2f}" for channel in (0, 2))
    told = f"tinted light balanced: red, green and blue of the glass were as {shown}"
    return _mapped(pixels, np.arange(256.0)[:, None] * gains), told


def contrast_wanted(pixels: Pixels, red_cells: FloatArray) -> Contrast | None:
    """How much more contrast the red cells of a picture need; None where they are clear, or too few to tell.

    Nor is it raised where the glass is clipped: nobody knows how light it is then, nor what else is lost.

    Args:
        pixels: the picture `(H, W, 3)`, or a part of it.
        red_cells: boxes `(N, 4)` of those that were found in it as it is.
    """
    if len(red_cells) < FEWEST_CELLS:
        return None
    seen = thinned(pixels, _AT_A_GLANCE).reshape(-1, 3)
    if np.mean(seen[:, 1] >= CLIPPED) > MOST_CLIPPED:
        return None
    glass = glass_colour(seen)
    places = red_cells[:, None, :2] + _PLACES * (red_cells[:, None, 2:] - red_cells[:, None, :2])
    x, y = np.clip(places.reshape(-1, 2), 0, np.array(pixels.shape[1::-1]) - 1).astype(np.intp).T
    green = ranked(pixels[y, x, 1])
    density = max(math.log(glass[1] / max(int(green[len(green) // 4]), 1)), 0.01)
    return Contrast(glass, density) if density < FAINT else None


@dataclass(frozen=True, eq=False)
class Contrast:
    """Red cells that are too faint.

    Attributes:
        glass: its red, green and blue.
        density: optical density in green of the darker quarter of the red cells.
    """

    glass: Doubles
    density: float

    def raised(self, pixels: Pixels) -> tuple[Pixels, str]:
        """A picture `(H, W, 3)` in which they are clear, and what was done."""
        gain = min((1 - math.exp(-CLEAR)) / (1 - math.exp(-self.density)), _MOST)
        told = f"contrast raised {gain:.1f} times: red cells have an optical density of {self.density:.2f}"
        return _mapped(pixels, self.glass - gain * (self.glass - np.arange(256.0)[:, None])), told


def _mapped(pixels: Pixels, levels: Doubles) -> Pixels:
    """A picture with each level of each channel replaced by that of a table `(256, 3)`."""
    return cast(Pixels, cv2.LUT(pixels, np.clip(levels + 0.5, 0, 255).astype(np.uint8)[None]))
