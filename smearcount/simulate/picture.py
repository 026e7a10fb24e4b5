"""From a scene to a photograph: light through the stain (Beer-Lambert), optics, sensor.

The picture is made tile by tile, so that memory does not grow with it beyond the picture itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import shapely

from smearcount.arrays import FloatArray, Pixels, Strings
from smearcount.simulate.cells import Patch, Stain, draw_red_cell
from smearcount.simulate.nucleated import draw_platelet, draw_white_cell
from smearcount.simulate.outlines import blob
from smearcount.simulate.recipe import SmearRecipe
from smearcount.simulate.scene import Cell, place_cells

__all__ = ["SimulatedSmear", "render", "truth"]

_TILE = 1024
_OPTICS_UM = 0.09
_HALO_UM = 0.45
_LEAST_BLUR_PX = 0.15
_DRAW = {"rbc": draw_red_cell, "wbc": draw_white_cell, "platelet": draw_platelet, "debris": draw_platelet}


@dataclass(frozen=True, eq=False)
class SimulatedSmear:
    """A simulated photograph with all there is to know of its cells.

    Attributes:
        pixels: `(H, W, 3) uint8 RGB`.
        boxes: `(N, 4) float32` px, half-open, around what of the outline lies in the picture, overlapped or not.
        kinds: `(N,)` strings, `rbc`, `wbc` or `platelet`.
        codes: `(N,)` strings of the taxonomy.
        centres: `(N, 2) float32` px of the outlines' middles; outside of the picture for some cells it cuts.
        um_per_px: micrometres a pixel.
        seed: that reproduces it together with the recipe.
    """

    pixels: Pixels
    boxes: FloatArray
    kinds: Strings
    codes: Strings
    centres: FloatArray
    um_per_px: float
    seed: int


def render(recipe: SmearRecipe, seed: int | None = None) -> SimulatedSmear:
    """Photograph the scene of a recipe; the same recipe and seed give the same bytes.

    Args:
        recipe: what to draw.
        seed: replaces the recipe's own.

    Raises:
        ConfigError: the field has no room for so many cells.
    """
    seed = recipe.seed if seed is None else seed
    cells = place_cells(recipe, seed)
    pixels = _photograph(recipe, cells + _debris(recipe, cells, seed), seed)
    scale = recipe.um_per_px
    centres = (np.array([cell.centre for cell in cells]).reshape(-1, 2) / scale).astype(np.float32)
    return SimulatedSmear(
        pixels=pixels,
        boxes=_boxes(cells, recipe),
        kinds=np.array([cell.kind for cell in cells], "<U8"),
        codes=np.array([cell.code for cell in cells], "<U24"),
        centres=centres,
        um_per_px=scale,
        seed=seed,
    )


def truth(smear: SimulatedSmear) -> dict[str, Any]:
    """What a perfect counter would say of a picture, ready for JSON."""
    height, width = smear.pixels.shape[:2]
    return {
        "width": width,
        "height": height,
        "um_per_px": smear.um_per_px,
        "seed": smear.seed,
        "counts": _tally(smear.kinds),
        "counts_by_code": _tally(smear.codes),
        "boxes": [[round(float(value), 2) for value in box] for box in smear.boxes],
        "kinds": smear.kinds.tolist(),
        "codes": smear.codes.tolist(),
    }


def _boxes(cells: list[Cell], recipe: SmearRecipe) -> FloatArray:
    outlines = [shapely.Polygon(cell.outline_um / recipe.um_per_px) for cell in cells]
    inside = shapely.clip_by_rect(outlines, 0, 0, recipe.width, recipe.height)
    return np.asarray(shapely.bounds(inside).reshape(-1, 4), np.float32)


def _tally(names: Strings) -> dict[str, int]:
    values, numbers = np.unique(names, return_counts=True)
    return {str(value): int(number) for value, number in zip(values, numbers, strict=True)}


def _debris(recipe: SmearRecipe, cells: list[Cell], seed: int) -> list[Cell]:
    """Specks of stain under half a um in free places: drawn like platelets, but too small for one, not in the truth."""
    rng = np.random.default_rng([seed, 3])
    specks = []
    for number in range(recipe.debris):
        outline = blob(rng, rng.uniform(0.1, 0.24), 0.15, rng.uniform(0.6, 1))
        x, y = (float(rng.uniform(0, size)) for size in recipe.field_um)
        if all(np.hypot(x - cell.centre[0], y - cell.centre[1]) > cell.reach + 0.5 for cell in cells):
            specks.append(Cell("debris", "debris", outline, (x, y), (seed, 4, number)))
    return specks


def _photograph(recipe: SmearRecipe, cells: list[Cell], seed: int) -> Pixels:
    stain = Stain.of(recipe.stain_strength, recipe.hue, recipe.pallor)
    patches = [Patch(cell, recipe.um_per_px) for cell in cells]
    margin = int(np.ceil(4 * (recipe.blur_um + _HALO_UM + _OPTICS_UM) / recipe.um_per_px)) + 4
    by_tile = _sorted_into_tiles(patches, margin)
    pixels = np.empty((recipe.height, recipe.width, 3), np.uint8)
    for top in range(0, recipe.height, _TILE):
        for left in range(0, recipe.width, _TILE):
            right, bottom = (min(left + _TILE, recipe.width), min(top + _TILE, recipe.height))
            window = (left - margin, top - margin, right + margin, bottom + margin)
            density = _density(by_tile[left // _TILE, top // _TILE], stain, window)
            light = _through_optics(density, recipe, window, seed)[margin:-margin, margin:-margin]
            rng = np.random.default_rng([seed, 5, left // _TILE, top // _TILE])
            pixels[top:bottom, left:right] = _sensed(light, recipe.noise, rng)
    return pixels


def _sorted_into_tiles(patches: list[Patch], margin: int) -> defaultdict[tuple[int, int], list[Patch]]:
    """The patches that reach into each tile with its margin, by column and row."""
    tiles: defaultdict[tuple[int, int], list[Patch]] = defaultdict(list)
    for patch in patches:
        x, y, width, height = patch.window
        for column in range((x - margin) // _TILE, (x + width + margin) // _TILE + 1):
            for row in range((y - margin) // _TILE, (y + height + margin) // _TILE + 1):
                tiles[column, row].append(patch)
    return tiles


def _density(patches: list[Patch], stain: Stain, window: tuple[int, int, int, int]) -> FloatArray:
    """Sum of the optical densities of all cells within `window` x_min, y_min, x_max, y_max, `(h, w, 3)`."""
    left, top, right, bottom = window
    total = np.zeros((bottom - top, right - left, 3), np.float32)
    for patch in patches:
        x, y, width, height = patch.window
        x_min, y_min, x_max, y_max = (max(x, left), max(y, top), min(x + width, right), min(y + height, bottom))
        if x_min >= x_max or y_min >= y_max:
            continue
        drawn = _DRAW[patch.cell.kind](patch, stain)[y_min - y : y_max - y, x_min - x : x_max - x]
        total[y_min - top : y_max - top, x_min - left : x_max - left] += drawn
    return total


def _through_optics(
    density: FloatArray, recipe: SmearRecipe, window: tuple[int, int, int, int], seed: int
) -> FloatArray:
    """Light in grey levels behind the smear: refraction at edges, absorption, uneven lamp, defocus."""
    scale = recipe.um_per_px
    if recipe.refraction:
        density = density + recipe.refraction * (density - _blur(density, _HALO_UM / scale))
    density = density + _film(window, recipe, seed)[:, :, None]
    light = np.array(recipe.background, np.float32) * np.power(np.float32(10), -density)
    light *= _lamp(window, recipe, seed)[:, :, None]
    return _blur(light, float(np.hypot(recipe.blur_um, _OPTICS_UM)) / scale)


def _film(window: tuple[int, int, int, int], recipe: SmearRecipe, seed: int) -> FloatArray:
    """Faint dried plasma between the cells: optical density `(h, w)`, of grains of 14 and 1.6 um."""
    total = np.zeros((window[3] - window[1], window[2] - window[0]), np.float32)
    for number, (grain_um, strength) in enumerate(((14.0, 0.0035), (1.6, 0.002))):
        rng = np.random.default_rng([seed, 6, number])
        lattice = rng.standard_normal((256, 256)).astype(np.float32)
        step = recipe.um_per_px / grain_um
        # The lattice repeats every 256 grains: far more than an eye compares, and memory stays small.
        x, y = ((np.arange(low, high) + 0.5) * step % 252 for low, high in (window[::2], window[1::2]))
        at = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
        wave = cv2.remap(lattice, at[0], at[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        total += np.float32(strength) * wave
    return total


def _lamp(window: tuple[int, int, int, int], recipe: SmearRecipe, seed: int) -> FloatArray:
    """Light from the lamp as a share of its maximum `(h, w)`: brightest off the middle, falling with the square."""
    rng = np.random.default_rng([seed, 7])
    middle = rng.uniform(0.3, 0.7, 2)
    x = (np.arange(window[0], window[2]) + 0.5) / recipe.width - middle[0]
    y = (np.arange(window[1], window[3]) + 0.5) / recipe.height - middle[1]
    worst = float((np.maximum(middle, 1 - middle) ** 2).sum())
    away = (x[None, :] ** 2 + y[:, None] ** 2) / worst
    return cast(FloatArray, (1 - recipe.light_unevenness * away).astype(np.float32))


def _sensed(light: FloatArray, noise: float, rng: np.random.Generator) -> Pixels:
    """Grey levels with noise that grows with the root of the light and is shared a little by neighbours."""
    grain = rng.standard_normal(light.shape, np.float32)
    # 1.9 restores the unit variance that the small blur of the colour filter array takes away.
    grain = 1.9 * _blur(grain, 0.55)
    noisy = light + noise * np.sqrt(np.clip(light, 0, None) / 255) * grain
    return cast(Pixels, np.clip(np.round(noisy), 0, 255).astype(np.uint8))


def _blur(planes: FloatArray, sigma_px: float) -> FloatArray:
    return cast(FloatArray, cv2.GaussianBlur(planes, (0, 0), sigma_px)) if sigma_px > _LEAST_BLUR_PX else planes
