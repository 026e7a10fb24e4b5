"""Small bodies of stain added to a photograph, as the microscope and the camera would have shown them.

The light of a pixel is multiplied by what a body lets through (Beer-Lambert), after the body went through the blur of
the picture, the area of a pixel, a camera's sharpening and the soft colours of a JPEG file. Every other pixel stays as
it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray, Pixels
from smearcount.training.colours import LUMA

__all__ = ["Body", "Stain", "blended", "smooth_step", "with_bodies"]

FINE_UM = 0.06
"""Bodies are drawn at this scale or finer, then photographed."""

COLOUR_BLUR_PX = 0.9
"""Standard deviation that stands for colours kept at half the resolution (JPEG 4:2:0, and most sensors)."""

SHARPENING_PX = 1.3


@dataclass(frozen=True)
class Body:
    """An ellipse of stain.

    Attributes:
        x_um: centre, from the left of the window.
        y_um: centre, from the top.
        radius_um: the larger one.
        aspect: the smaller radius over the larger one.
        turn: angle of the larger one, in radians.
        share: density, as a share of that of the stain.
    """

    x_um: float
    y_um: float
    radius_um: float
    aspect: float = 1.0
    turn: float = 0.0
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Stain:
    """What bodies are made of, and how the picture shows them.

    Attributes:
        density: `(3,) float32`, optical density in the middle of a body; less than zero where it is clearer.
        blur_um: standard deviation of the picture's blur.
        halo: share of the detail that the camera's sharpening adds.
        soft_colours: whether colour is less sharp than brightness.
    """

    density: FloatArray
    blur_um: float
    halo: float = 0.0
    soft_colours: bool = True


def with_bodies(pixels: Pixels, um_per_px: float, bodies: Sequence[Body], stain: Stain) -> Pixels:
    """A window `(S, S, 3) uint8 RGB` with bodies of one stain added; where they overlap, the denser one shows."""
    if not bodies:
        return pixels.copy()
    x0, y0, x1, y1 = _region(pixels.shape[0], um_per_px, bodies, stain)
    finer = max(1, math.ceil(um_per_px / FINE_UM))
    step_um = um_per_px / finer
    thickness = np.zeros(((y1 - y0) * finer, (x1 - x0) * finer), np.float32)
    for body in bodies:
        _add(thickness, body, (x0 * um_per_px, y0 * um_per_px), step_um)
    passed = np.exp(-thickness[..., None] * stain.density)
    passed = cv2.GaussianBlur(passed, (0, 0), max(stain.blur_um / step_um, 0.3))
    if finer > 1:
        passed = cv2.resize(passed, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    if stain.halo:
        passed = passed + stain.halo * (passed - cv2.GaussianBlur(passed, (0, 0), SHARPENING_PX))
    result = pixels.copy()
    before = pixels[y0:y1, x0:x1]
    result[y0:y1, x0:x1] = blended(before, (before + np.float32(1)) * passed - 1, stain.soft_colours)
    return result


def blended(before: Pixels, after: npt.NDArray[np.floating], soft_colours: bool) -> Pixels:
    """`after (H, W, 3)` in grey levels as `uint8`, where the change has softer colours than brightness if wanted."""
    change = (after - before).astype(np.float32)
    if soft_colours:
        brightness = (change @ np.float32(LUMA))[..., None]
        change = brightness + cv2.GaussianBlur(change - brightness, (0, 0), COLOUR_BLUR_PX)
    return cast(Pixels, np.clip(np.rint(before + change), 0, 255).astype(np.uint8))


def smooth_step(values: FloatArray) -> FloatArray:
    """0 up to 0, 1 from 1 on, and 3 t^2 - 2 t^3 between."""
    t = np.clip(values, 0, 1)
    return cast(FloatArray, t * t * (3 - 2 * t))


def _region(size: int, um_per_px: float, bodies: Sequence[Body], stain: Stain) -> tuple[int, int, int, int]:
    """The pixels x0, y0, x1, y1 that the bodies can change, blurs included."""
    reach = 3.5 * stain.blur_um / um_per_px + (4 * SHARPENING_PX if stain.halo else 0) + 3 * COLOUR_BLUR_PX + 1
    low_x = min(b.x_um - b.radius_um for b in bodies) / um_per_px - reach
    low_y = min(b.y_um - b.radius_um for b in bodies) / um_per_px - reach
    high_x = max(b.x_um + b.radius_um for b in bodies) / um_per_px + reach
    high_y = max(b.y_um + b.radius_um for b in bodies) / um_per_px + reach
    x0, y0 = max(math.floor(low_x), 0), max(math.floor(low_y), 0)
    return x0, y0, max(min(math.ceil(high_x), size), x0 + 1), max(min(math.ceil(high_y), size), y0 + 1)


def _add(thickness: FloatArray, body: Body, corner_um: tuple[float, float], step_um: float) -> None:
    """Draw one body: flat in the middle, rounded off at the edge, which is smooth to a fraction of a step."""
    reach = body.radius_um + step_um
    x, y = body.x_um - corner_um[0], body.y_um - corner_um[1]
    x0, y0 = max(math.floor((x - reach) / step_um), 0), max(math.floor((y - reach) / step_um), 0)
    part = thickness[y0 : math.ceil((y + reach) / step_um) + 1, x0 : math.ceil((x + reach) / step_um) + 1]
    along_x = (np.arange(part.shape[1], dtype=np.float32) + (x0 + 0.5)) * np.float32(step_um) - np.float32(x)
    along_y = (np.arange(part.shape[0], dtype=np.float32) + (y0 + 0.5)) * np.float32(step_um) - np.float32(y)
    cos, sin = math.cos(body.turn) / body.radius_um, math.sin(body.turn) / body.radius_um
    u = cos * along_x + sin * along_y[:, None]
    v = (cos * along_y[:, None] - sin * along_x) / body.aspect
    away = u * u + v * v
    edge = (1 - np.sqrt(away)) * (body.radius_um * body.aspect / step_um) + 0.5
    dense = np.clip(edge, 0, 1) * (body.share * (0.7 + 0.3 * np.sqrt(np.clip(1 - away, 0, 1))))
    np.maximum(part, dense, out=part)
