"""Views of labelled cells for training: turned, shifted and scaled in one step, then stained and photographed anew.

Everything that has a size is in micrometres, so that one recipe holds at every input size of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from pydantic import Field

from smearcount.arrays import Doubles, FloatArray, Pixels
from smearcount.config import Strict
from smearcount.geometry import resize_rgb, samples_across
from smearcount.images import ArraySource, through_jpeg
from smearcount.patches import sample_window
from smearcount.training.colours import HED_FROM_RGB, LUMA, RGB_FROM_HED

__all__ = ["CellAugmentation", "Warp", "augmented_view", "plain_view", "warped_view"]

LOG_OF_LEVEL = np.log((np.arange(256) + 1) / 256).astype(np.float32)
"""Minus the optical density of each grey level; one is added so that black has one."""

MOST_LIGHT = 0.08
"""Logarithm of the light of the background, over white, up to which views are exposed."""

OVERLAP_UM = (4.5, 8.5)
"""Between the centres of two red cells of which one lies over the other's edge, or nearly touches it."""

OVERLAP_RADIUS_UM = 4.4
OVERLAP_RIM_UM = 0.4
"""The disc that is taken for the upper cell, and the rim in which it fades."""

MIRRORED_BORDER = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR


class CellAugmentation(Strict):
    """How strongly views are varied. Every default is off: without arguments a view is the plain one.

    A `_share` is the probability of a step, a `_sigma` the standard deviation of a normal draw, cut off at 2.3.

    Attributes:
        flip: probability of a mirror image, for each of the two ways.
        rotate: probability of a turn by any angle.
        zoom_share: probability of a zoom.
        zoom_to: largest zoom, drawn evenly from 1.
        scale_sigma: of the logarithm of the magnification.
        aspect_sigma: of the logarithm of width to height, along any direction.
        shift_um: standard deviation of the shift of the centre, in x and in y.
        overlap_share: probability that another cell of the collection lies over the edge of this one.
        plain: share of the views that keep stain, light, focus and camera.
        stain_share: probability of another stain.
        stain_sigma: of the logarithm of the optical densities of haematoxylin, eosin and residual over the background.
        stain_offset: of the densities added to each of the three everywhere.
        background_sigma: of the optical density that the light gains or loses in each of red, green and blue; also of
            the logarithm of the density of the background.
        colour_share: probability of a turn of the hues.
        hue_sigma: in turns.
        saturation_sigma: of the logarithm of the saturation.
        light_share: probability of another exposure.
        brightness: largest change of the logarithm of the light, drawn evenly.
        contrast_sigma: of the logarithm of the contrast about the mean.
        gamma_sigma: of the logarithm of the exponent.
        grey: share of the views without colour.
        blur_share: probability of a view out of focus.
        blur_um: largest standard deviation of the blur.
        shrink_share: probability of a lower optical resolution, where it is not blurred.
        coarsest_um: size of the largest pixels to which such a view is reduced, before it is enlarged again.
        sharpen_share: probability of a camera's sharpening, where it is neither.
        sharpen: largest share of the detail that is added.
        noise_share: probability of noise.
        noise: largest standard deviation in grey levels.
        jpeg_share: probability of a compression.
        jpeg_quality: lowest quality.
    """

    flip: float = Field(default=0, ge=0, le=1)
    rotate: float = Field(default=0, ge=0, le=1)
    zoom_share: float = Field(default=0, ge=0, le=1)
    zoom_to: float = Field(default=1, ge=1, le=3)
    scale_sigma: float = Field(default=0, ge=0, le=0.5)
    aspect_sigma: float = Field(default=0, ge=0, le=0.2)
    shift_um: float = Field(default=0, ge=0, le=5)
    overlap_share: float = Field(default=0, ge=0, le=1)
    plain: float = Field(default=0, ge=0, le=1)
    stain_share: float = Field(default=0, ge=0, le=1)
    stain_sigma: float = Field(default=0, ge=0, le=1)
    stain_offset: float = Field(default=0, ge=0, le=0.5)
    background_sigma: float = Field(default=0, ge=0, le=0.5)
    colour_share: float = Field(default=0, ge=0, le=1)
    hue_sigma: float = Field(default=0, ge=0, le=0.5)
    saturation_sigma: float = Field(default=0, ge=0, le=1)
    light_share: float = Field(default=0, ge=0, le=1)
    brightness: float = Field(default=0, ge=0, le=1)
    contrast_sigma: float = Field(default=0, ge=0, le=1)
    gamma_sigma: float = Field(default=0, ge=0, le=1)
    grey: float = Field(default=0, ge=0, le=1)
    blur_share: float = Field(default=0, ge=0, le=1)
    blur_um: float = Field(default=0.3, gt=0, le=5)
    shrink_share: float = Field(default=0, ge=0, le=1)
    coarsest_um: float = Field(default=0.3, gt=0, le=5)
    sharpen_share: float = Field(default=0, ge=0, le=1)
    sharpen: float = Field(default=1, ge=0, le=3)
    noise_share: float = Field(default=0, ge=0, le=1)
    noise: float = Field(default=6, ge=0, le=50)
    jpeg_share: float = Field(default=0, ge=0, le=1)
    jpeg_quality: int = Field(default=35, ge=5, le=95)


@dataclass(frozen=True)
class Warp:
    """Where a view is taken from.

    Attributes:
        turn: angle in radians by which the picture is turned, anticlockwise as it is seen.
        mirror: -1 where left and right, or top and bottom, are exchanged, before the turn.
        magnification: of the cell.
        shift_px: x, y by which the middle of the view lies off the middle of the window, in pixels of the window.
        aspect: by how much the picture is longer along one direction than across it.
        stretched: that direction, in radians.
    """

    turn: float = 0.0
    mirror: tuple[float, float] = (1.0, 1.0)
    magnification: float = 1.0
    shift_px: tuple[float, float] = (0.0, 0.0)
    aspect: float = 1.0
    stretched: float = 0.0


def plain_view(pixels: Pixels, um_per_px: float, patch_um: float, out_px: int) -> Pixels:
    """The patch about the centre of a window `(H, W, 3) uint8 RGB`, as in inference: `(out_px, out_px, 3) uint8`."""
    height, width = pixels.shape[:2]
    return sample_window(ArraySource(pixels), (width / 2, height / 2), patch_um / um_per_px, out_px)[0]


def augmented_view(
    pixels: Pixels,
    um_per_px: float,
    patch_um: float,
    out_px: int,
    augmentation: CellAugmentation,
    rng: np.random.Generator,
    other: Callable[[], tuple[Pixels, float]] | None = None,
) -> Pixels:
    """One varied view of the cell in the middle of a window.

    Args:
        pixels: window `(H, W, 3) uint8 RGB`; beyond it the picture is mirrored.
        um_per_px: scale of the window.
        patch_um: physical side of a view at magnification 1.
        out_px: side of the view in pixels.
        augmentation: strength of the variations.
        rng: all chance comes from it.
        other: gives window and scale of the red cell that may lie over this one's edge, where it does.

    Returns:
        `(out_px, out_px, 3) uint8 RGB`.
    """
    view = _warped(pixels, um_per_px, (patch_um, out_px), augmentation, rng)
    if other is not None and rng.random() < augmentation.overlap_share:
        view = _overlapped(view, _warped(*other(), (patch_um, out_px), augmentation, rng), patch_um / out_px, rng)
    if rng.random() < augmentation.plain:
        return view
    view = _recoloured(view, augmentation, rng)
    view = _refocused(view, patch_um / out_px, augmentation, rng)
    return _recorded(view, augmentation, rng)


def _warped(
    pixels: Pixels, um_per_px: float, size: tuple[float, int], augmentation: CellAugmentation, rng: np.random.Generator
) -> Pixels:
    patch_um, out_px = size
    return warped_view(pixels, patch_um / um_per_px, out_px, _drawn_warp(um_per_px, augmentation, rng))


def _overlapped(view: Pixels, other: Pixels, um_per_px: float, rng: np.random.Generator) -> Pixels:
    """The red cell in the middle of `other` laid over the edge of that of `view`: optical densities add up."""
    distance, angle = rng.uniform(*OVERLAP_UM) / um_per_px, 2 * math.pi * rng.random()
    move = np.array([[1, 0, distance * math.cos(angle)], [0, 1, distance * math.sin(angle)]], np.float32)
    y, x = np.indices(other.shape[:2], np.float32) + 0.5 - other.shape[0] / 2
    disc = np.clip((OVERLAP_RADIUS_UM - np.hypot(x, y) * um_per_px) / OVERLAP_RIM_UM, 0, 1)[..., None]
    clear = np.maximum(np.percentile(other[::4, ::4], 90, axis=(0, 1)), 1)
    let_through = (1 - disc * (1 - np.minimum(other / clear, 1))).astype(np.float32)
    moved = cv2.warpAffine(let_through, move, other.shape[1::-1], borderValue=(1, 1, 1))
    return cast(Pixels, np.rint(view * moved).astype(np.uint8))


def _normal(rng: np.random.Generator, sigma: float, count: int = 1) -> Doubles:
    """Normal draws `(count,)`, cut off so that no view is beyond recognition."""
    return sigma * np.clip(rng.standard_normal(count), -2.3, 2.3)


def warped_view(pixels: Pixels, side_px: float, out_px: int, warp: Warp) -> Pixels:
    """The middle of a window, turned, mirrored, scaled and shifted by one affine map, averaged where it shrinks.

    Args:
        pixels: window `(H, W, 3) uint8 RGB`; beyond it the picture is mirrored.
        side_px: side of the view at magnification 1, in pixels of the window.
        out_px: side of the result.
        warp: the map.
    """
    side_px /= warp.magnification
    finer = samples_across(side_px / out_px)
    along = _rotation(warp.stretched)
    stretch = along @ np.diag([1 / math.sqrt(warp.aspect), math.sqrt(warp.aspect)]) @ along.T
    linear = side_px / (out_px * finer) * _rotation(warp.turn) @ stretch @ np.diag(warp.mirror)
    # Pixel centres are at half-integers, as in `sample_window`; the middle of the result is the middle of the window.
    middle = np.array([pixels.shape[1], pixels.shape[0]]) / 2 + warp.shift_px - 0.5
    origin = middle - linear @ np.full(2, (out_px * finer - 1) / 2)
    size = (out_px * finer, out_px * finer)
    move = np.column_stack([linear, origin])
    view = cv2.warpAffine(pixels, move, size, flags=MIRRORED_BORDER, borderMode=cv2.BORDER_REFLECT)
    if finer > 1:
        view = cv2.resize(view, (out_px, out_px), interpolation=cv2.INTER_AREA)
    return cast(Pixels, view)


def _drawn_warp(um_per_px: float, a: CellAugmentation, rng: np.random.Generator) -> Warp:
    zoom = rng.uniform(1, a.zoom_to) if rng.random() < a.zoom_share else 1.0
    turn, stretched = 2 * math.pi * rng.random(2)
    mirror = np.where(rng.random(2) < a.flip, -1.0, 1.0)
    shift = _normal(rng, a.shift_um, 2) / um_per_px
    return Warp(
        turn=turn if rng.random() < a.rotate else 0.0,
        mirror=(float(mirror[0]), float(mirror[1])),
        magnification=zoom * math.exp(_normal(rng, a.scale_sigma)[0]),
        shift_px=(float(shift[0]), float(shift[1])),
        aspect=math.exp(_normal(rng, a.aspect_sigma)[0]),
        stretched=stretched,
    )


def _rotation(angle: float) -> Doubles:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _recoloured(view: Pixels, a: CellAugmentation, rng: np.random.Generator) -> Pixels:
    """Another stain, light and camera: linear in optical density, then linear in grey levels."""
    stained, coloured, lit = rng.random(3) < (a.stain_share, a.colour_share, a.light_share)
    if not (stained or coloured or lit):
        return _greyed(view, a, rng)
    log_light = cast(FloatArray, cv2.LUT(view, LOG_OF_LEVEL))
    sample = log_light[::5, ::5].reshape(-1, 3)
    of_density, of_levels = _drawn_colours(sample, (bool(stained), bool(coloured), bool(lit)), a, rng)
    image = cv2.transform(cv2.exp(cv2.transform(log_light, of_density)), of_levels)
    # Rounds and cuts off at 0 and 255, several times as fast as NumPy.
    return _greyed(cast(Pixels, cv2.addWeighted(image, 1, image, 0, 0, dtype=cv2.CV_8U)), a, rng)


def _drawn_colours(
    sample: FloatArray, steps: tuple[bool, bool, bool], a: CellAugmentation, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """The change of colour of one view.

    Densities are varied over those of the background, so that another stain does not turn the light. Varying the
    densities of the stains by factors and offsets follows Tellez et al. 2018 (10.1109/TMI.2018.2820199).

    Args:
        sample: `(N, 3)` logarithms of the light of some pixels of the view.
        steps: whether stain, hues and light are changed.
        a: strengths.
        rng: chance.

    Returns:
        Two affine maps `(3, 4)` of red, green, blue: of the logarithm of the light, then from light to grey levels.
    """
    stained, coloured, lit = steps
    log_mix, log_shift = np.eye(3), np.zeros(3)
    rank = int(0.9 * len(sample))
    background = np.partition(sample, rank, axis=0)[rank]
    if stained:
        log_mix = HED_FROM_RGB @ np.diag(np.exp(_normal(rng, a.stain_sigma, 3))) @ RGB_FROM_HED
        light = background * np.exp(_normal(rng, a.background_sigma)) + _normal(rng, a.background_sigma, 3)
        log_shift = light - background @ log_mix - _normal(rng, a.stain_offset, 3) @ RGB_FROM_HED
    contrast, mix = 1.0, np.eye(3)
    if lit:
        gamma = np.exp(_normal(rng, a.gamma_sigma))
        log_mix, log_shift = log_mix * gamma, log_shift * gamma + rng.uniform(-a.brightness, a.brightness)
        contrast = float(np.exp(_normal(rng, a.contrast_sigma)[0]))
    if stained or lit:
        # Only what was overexposed before may lose its cells in white.
        most = max(float(background.max()), MOST_LIGHT)
        log_shift = log_shift - max(float((background @ log_mix + log_shift).max()) - most, 0)
    if coloured:
        mix = _hue_turn(2 * math.pi * _normal(rng, a.hue_sigma)[0], math.exp(_normal(rng, a.saturation_sigma)[0]))
    mean = np.minimum(np.exp(sample @ log_mix + log_shift), 1).mean(axis=0) @ mix
    # A level L was taken as (L + 1) / 256.
    shift = 256 * mean * (1 - contrast) - 1
    of_levels = np.column_stack([256 * contrast * mix.T, shift])
    return np.column_stack([log_mix.T, log_shift]).astype(np.float32), of_levels.astype(np.float32)


def _hue_turn(angle: float, saturation: float) -> Doubles:
    """`(3, 3)`, for `rgb @ matrix`: turns colours about the grey axis and scales their distance from it.

    The brightness stays. Rodrigues' rotation about (1, 1, 1), then a mixture with the grey of the same luma.
    """
    axis = np.ones((3, 3)) / 3
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turned = math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) * axis + math.sin(angle) * cross
    grey = np.outer(LUMA, np.ones(3))
    matrix: Doubles = saturation * turned.T @ (np.eye(3) - grey) + grey
    return matrix


def _greyed(view: Pixels, a: CellAugmentation, rng: np.random.Generator) -> Pixels:
    if rng.random() >= a.grey:
        return view
    return cast(Pixels, cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _refocused(view: Pixels, um_per_px: float, a: CellAugmentation, rng: np.random.Generator) -> Pixels:
    """Out of focus, or of lower resolution, or sharpened by the camera, or as it is."""
    size = view.shape[0]
    chance = rng.random()
    if chance < a.blur_share:
        sigma = rng.uniform(0.2, 1) * a.blur_um / um_per_px
        return cast(Pixels, cv2.GaussianBlur(view, (0, 0), max(sigma, 0.1)))
    if chance < a.blur_share + (1 - a.blur_share) * a.shrink_share:
        small = max(4, round(size * um_per_px / max(um_per_px, rng.uniform(um_per_px, a.coarsest_um))))
        return resize_rgb(resize_rgb(view, small, small), size, size)
    if rng.random() < a.sharpen_share:
        soft = cv2.GaussianBlur(view, (0, 0), 1.5)
        amount = float(rng.uniform(0.3, 1)) * a.sharpen
        return cast(Pixels, cv2.addWeighted(view, 1 + amount, soft, -amount, 0))
    return view


def _recorded(view: Pixels, a: CellAugmentation, rng: np.random.Generator) -> Pixels:
    """Noise and compression of a camera."""
    if rng.random() < a.noise_share:
        noise = rng.standard_normal(view.shape, np.float32)
        noise *= rng.uniform(0, a.noise)
        view = cast(Pixels, cv2.add(view, noise, dtype=cv2.CV_8U))
    if rng.random() < a.jpeg_share:
        view = through_jpeg(view, int(rng.integers(a.jpeg_quality, 96)))
    return view
