"""The red cell in the middle of a window: its outline, its stain and how sharp it was photographed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, FloatArray, Pixels
from smearcount.geometry import FILL, resize_rgb

__all__ = ["RedCell", "densities", "find_red_cell"]

STEP_UM = 0.14
"""Scale at which cells are looked for: fine enough for an outline, and the same for every collection."""

DIAMETERS_UM = (4.5, 10.5)
"""Smaller ones are fragments or platelets, larger ones overlap or are no red cells."""

LEAST_SOLIDITY = 0.935
"""Area over that of the convex hull; overlapping cells have less, as have sickles, and are left alone."""

LEAST_DENSITY = 0.06
BRIDGES_UM = (0.9, 1.5, 2.1)
"""Half the widths of contacts at which touching cells are cut apart, tried from the narrowest."""

LARGEST_PALLOR_UM2 = 20.0


@dataclass(frozen=True, eq=False)
class RedCell:
    """The central red cell of a window; lengths in micrometres from the window's top-left corner.

    Attributes:
        inside_um: `(h, w) float32`, distance to the outline, positive inside and negative outside, `step_um` a pixel.
        step_um: scale of `inside_um`.
        centre_um: x, y of its centre of gravity.
        diameter_um: of the disc of the same area.
        aspect: length over width of the ellipse with the same second moments.
        background: `(3,) float32`, optical density of the background in red, green and blue.
        density: `(3,) float32`, optical density over the background, pallor left out.
        edge_um: standard deviation of the blur that the sharpest part of the outline would have if it were a step;
            the photograph is at least as sharp.
        cut: whether the border of the picture goes through it.
    """

    inside_um: FloatArray
    step_um: float
    centre_um: tuple[float, float]
    diameter_um: float
    aspect: float
    background: FloatArray
    density: FloatArray
    edge_um: float
    cut: bool

    def inside_at(self, side_px: int) -> FloatArray:
        """`inside_um` at the `side_px` pixels a side of the window."""
        return cast(FloatArray, cv2.resize(self.inside_um, (side_px, side_px), interpolation=cv2.INTER_LINEAR))


def densities(pixels: Pixels) -> FloatArray:
    """Optical densities `(..., 3) float32` of `uint8` levels; one is added so that black has one."""
    return cast(FloatArray, cv2.LUT(pixels, -np.log((np.arange(256, dtype=np.float32) + 1) / 256)))


def find_red_cell(pixels: Pixels, um_per_px: float) -> RedCell | None:
    """The red cell in the middle of a square window `(S, S, 3) uint8 RGB`.

    Returns:
        None where there is no single, whole and roughly convex cell, or where it already holds something dark.

    Raises:
        ValueError: the window is not square.
    """
    if pixels.shape[0] != pixels.shape[1]:
        raise ValueError(f"pixels: expected a square window, got {pixels.shape}")
    side_um = pixels.shape[0] * um_per_px
    size = max(8, round(side_um / max(um_per_px, STEP_UM)))
    step_um = side_um / size
    coarse = resize_rgb(pixels, size, size)
    density = densities(coarse)
    filled = _filled(pixels, coarse)
    dark, background = _dark(_mean(density), filled, step_um)
    mask = _central(dark, step_um)
    if mask is None or not background.any():
        return None
    inside = (cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)) * step_um
    clear = np.median(density[background], axis=0).astype(np.float32)
    over = density - clear
    stain = np.percentile(over[inside > 0.3], 75, axis=0).astype(np.float32)
    if stain.mean() < LEAST_DENSITY or _holds_something(_mean(over), inside, step_um):
        return None
    moments = cv2.moments(mask, binaryImage=True)
    x, y = ((moments[key] / moments["m00"] + 0.5) * step_um for key in ("m10", "m01"))
    return RedCell(
        inside_um=inside.astype(np.float32),
        step_um=step_um,
        centre_um=(x, y),
        diameter_um=2 * math.sqrt(moments["m00"] / math.pi) * step_um,
        aspect=_aspect(moments),
        background=clear,
        density=stain,
        edge_um=_edge_um(pixels, um_per_px, cv2.resize(inside.astype(np.float32), pixels.shape[1::-1])),
        cut=bool((filled & (inside > -0.6)).any()),
    )


def _aspect(moments: dict[str, float]) -> float:
    """Square root of the ratio of the variances along and across (Gonzalez and Woods, Digital Image Processing)."""
    mean, half = moments["mu20"] + moments["mu02"], moments["mu20"] - moments["mu02"]
    apart = math.hypot(half, 2 * moments["mu11"])
    return math.sqrt((mean + apart) / max(mean - apart, 1e-9))


def _filled(pixels: Pixels, coarse: Pixels) -> Bools:
    """Which pixels of the coarse window lie outside the picture: of the filling grey, and without any grain."""
    filled = cv2.inRange(coarse, np.full(3, FILL), np.full(3, FILL)) > 0
    if filled.any():
        flat = cv2.morphologyEx(pixels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(axis=2)
        filled &= cv2.resize(flat, coarse.shape[1::-1], interpolation=cv2.INTER_NEAREST) == 0
    return filled


def _mean(density: FloatArray) -> FloatArray:
    """Mean of the three colours; NumPy's own takes ten times as long."""
    return cast(FloatArray, cv2.transform(density, np.full((1, 3), 1 / 3)))


def _dark(density: FloatArray, filled: Bools, step_um: float) -> tuple[Pixels, Bools]:
    """What is denser than the background (Otsu 1979), and where the background is.

    White cells and platelets are taken as no denser than the central cell, or they would be the only dark class.
    """
    size = density.shape[0]
    away = np.hypot(*(np.indices(density.shape) + 0.5 - size / 2)) * step_um
    ceiling = float(np.percentile(density[away < 3.5], 85))
    seen = density[~filled]
    floor = float(np.percentile(seen, 1)) if len(seen) else 0.0
    levels = np.clip((density - floor) / max(ceiling - floor, 1e-3) * 255, 0, 255).astype(np.uint8)
    near = levels[~filled & (away < 9)]
    threshold, _ = cv2.threshold(near.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    dark = ((levels > threshold) & ~filled).astype(np.uint8)
    return dark, (dark == 0) & ~filled


def _central(dark: Pixels, step_um: float) -> Pixels | None:
    """The single cell in the middle of what is dark, its pallor filled in; None if there is none."""
    solid = _without_holes(dark, step_um)
    parted = (_parted(solid, max(1, round(bridge / step_um)), step_um) for bridge in BRIDGES_UM)
    return next((mask for mask in parted if mask is not None), None)


def _parted(solid: Pixels, radius: int, step_um: float) -> Pixels | None:
    """The part in the middle after contacts of less than twice `radius` pixels are cut, if it looks like one cell."""
    size = solid.shape[0]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    core = cv2.erode(solid, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    _, parts = cv2.connectedComponents(core, connectivity=4)
    label = parts[size // 2, size // 2]
    if label == 0:
        return None
    mask = cast(Pixels, cv2.dilate((parts == label).astype(np.uint8), disc)) & solid
    x, y, width, height = cv2.boundingRect(mask)
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    # The hull of the outline runs through pixel centres: half a pixel is lost all around.
    hull = cv2.contourArea(cv2.convexHull(outline)) + cv2.arcLength(cv2.convexHull(outline), True) / 2 + 1
    area = int(mask.sum())
    low, high = (math.pi / 4 * (d / step_um) ** 2 for d in DIAMETERS_UM)
    off = math.hypot(x + width / 2 - size / 2, y + height / 2 - size / 2) * step_um
    whole = min(x, y) > 0 and max(x + width, y + height) < size
    return mask if whole and low < area < high and area > LEAST_SOLIDITY * hull and off < 1.5 else None


def _without_holes(dark: Pixels, step_um: float) -> Pixels:
    """Holes of the size of a pallor filled in; larger ones are background among cells that touch."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - dark, connectivity=4)
    size = dark.shape[0]
    left, top, width, height, area = stats.T
    small = (area * step_um**2 < LARGEST_PALLOR_UM2) & (left > 0) & (top > 0)
    small &= (left + width < size) & (top + height < size) & (np.arange(count) > 0)
    return cast(Pixels, (dark | small[parts]).astype(np.uint8))


def _holds_something(density: FloatArray, inside_um: npt.NDArray[np.floating], step_um: float) -> bool:
    """Whether the cell holds a parasite, a platelet or an inclusion: a spot much denser than what surrounds it."""
    scale = 255 / 2.5
    levels = np.clip(density * scale, 0, 255).astype(np.uint8)
    kernel = 2 * round(1.0 / step_um) + 1
    excess = (levels.astype(np.float32) - cv2.medianBlur(levels, kernel)) / scale
    inner = inside_um > 0.7
    return bool((excess[inner] > max(0.12, 0.35 * float(np.median(density[inner])))).sum() * step_um**2 > 0.08)


def _edge_um(pixels: Pixels, um_per_px: float, inside_um: FloatArray) -> float:
    """Height of the step at the outline over its steepest slope; for a blurred step that is sigma * sqrt(2 pi)."""
    density = _mean(densities(pixels))
    slope = np.hypot(cv2.Scharr(density, cv2.CV_32F, 1, 0), cv2.Scharr(density, cv2.CV_32F, 0, 1)) / (32 * um_per_px)
    rim, outer = (inside_um > 0.4) & (inside_um < 1.2), (inside_um < -0.4) & (inside_um > -1.0)
    if not rim.any() or not outer.any():
        return um_per_px
    height = float(np.median(density[rim]) - np.percentile(density[outer], 25))
    steepest = float(np.percentile(slope[np.abs(inside_um) < 0.35], 85))
    return max(height, 0.01) / max(steepest, 1e-3) / math.sqrt(2 * math.pi)
