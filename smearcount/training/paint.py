"""Paints inclusions on cut-out red cells, for classes of which no photographs are to be had.

Howell-Jolly bodies, Pappenheimer bodies and basophilic stippling are bodies of stain; a polychromatic cell is larger,
bluish and without pallor. Sizes and looks follow Bain, Blood Cells (5th ed.), chapter 3, and the recommendations of the
ICSH (Palmer et al. 2015, 10.1111/ijlh.12327).

`retouch` handles cells whose label stays in the same way: bodies of the same colours beside the cell, and harmless
traces in it, so that a network can't take the painting itself for the inclusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from smearcount.arrays import FloatArray, Pixels
from smearcount.training.bodies import Body, Stain, blended, smooth_step, with_bodies
from smearcount.training.colours import LUMA
from smearcount.training.red_cells import RedCell, densities, find_red_cell

__all__ = ["PAINTED_CODES", "paint", "retouch"]

PAINTED_CODES = ("howell_jolly_body", "pappenheimer_bodies", "basophilic_stippling", "reticulocyte")

PURPLE, BLUE = np.array([0.60, 1.0, 0.36]), np.array([0.98, 1.0, 0.33])
"""Optical density in red, green and blue, relative to the highest, of nuclear purple (azure B with eosin Y) and of the
blue of ribosomes and iron granules, as on the nuclei, platelets and lymphocyte cytoplasm of the collections."""

POLYCHROMASIA = np.array([1.0, 0.65, 0.0], np.float32)
"""Optical density that ribosomes add to haemoglobin, less what a young cell's haemoglobin lacks in the blue."""

LENS_UM = 0.09
"""Sharpest blur: 0.21 wavelengths of 0.55 um over an aperture of 1.25 (Zhang et al. 2007, 10.1364/AO.46.001819)."""

MARGIN_UM = 0.3
"""Between a body and the outline of the cell."""

LEAST_CHANGE = {"howell_jolly_body": 24.0, "pappenheimer_bodies": 14.0, "basophilic_stippling": 9.0}
"""Grey levels by which the typical body darkens its middle: what nobody can see must not be a label."""

FALL_OFF_UM = 1.6
"""Distance over which the surroundings of an enlarged cell make room for it."""

Drawing = Callable[[RedCell, np.random.Generator], list[Body]]
Range = tuple[float, float]
Trace = Callable[[Pixels, float, RedCell, np.random.Generator], Pixels]


def paint(pixels: Pixels, um_per_px: float, code: str, rng: np.random.Generator) -> Pixels | None:
    """A red cell with an inclusion, or turned into a polychromatic one.

    Args:
        pixels: square window `(S, S, 3) uint8 RGB` with a red cell in the middle.
        um_per_px: its scale.
        code: one of `PAINTED_CODES`.
        rng: all chance comes from it.

    Returns:
        The window painted, of the same shape; None where the cell does not suit: it is not single, whole and free of
        other things, it is too small or too large, or the inclusion could not be seen.

    Raises:
        ValueError: the code can't be painted.
    """
    if code not in PAINTED_CODES:
        raise ValueError(f"code: expected one of {', '.join(PAINTED_CODES)}, got {code!r}")
    cell = find_red_cell(pixels, um_per_px)
    if cell is None:
        return None
    if code == "reticulocyte":
        return _polychromatic(pixels, um_per_px, cell, rng)
    draw, bluest, strongest = _INCLUSIONS[code]
    bodies, stain = draw(cell, rng), _stain(cell, um_per_px, bluest, strongest, rng)
    for _ in range(4):
        painted = with_bodies(pixels, um_per_px, bodies, stain)
        if bodies and _typical_change(pixels, painted, bodies, um_per_px) >= LEAST_CHANGE[code]:
            return painted
        stain = replace(stain, density=stain.density * np.float32(1.5))
    return None


def retouch(pixels: Pixels, um_per_px: float, rng: np.random.Generator) -> Pixels:
    """The same cell with harmless traces of the painter's hand; its label stays.

    One of: faint spots in the cell, stain precipitate, a platelet or dirt beside it, a platelet on it, a refractile
    bubble, a dark rim, a change of size too small to see. A window without a single red cell stays as it is.

    Args:
        pixels: square window `(S, S, 3) uint8 RGB`.
        um_per_px: its scale.
        rng: all chance comes from it.
    """
    cell = find_red_cell(pixels, um_per_px)
    if cell is None:
        return pixels.copy()
    return _TRACES[int(rng.integers(len(_TRACES)))](pixels, um_per_px, cell, rng)


def _stain(cell: RedCell, um_per_px: float, bluest: Range, strongest: Range, rng: np.random.Generator) -> Stain:
    """Purple to blue, in the strength of the field's own stain, as sharp as the field or a little less."""
    hue = rng.uniform(*bluest)
    colour = ((1 - hue) * PURPLE + hue * BLUE) * np.exp(0.13 * np.clip(rng.standard_normal(3), -2, 2))
    strength = rng.uniform(*strongest) * (0.45 + 0.9 * float(cell.density.max()))
    density = min(strength, 1.9) * colour / colour.max()
    halo = max(0.0, float(rng.uniform(-0.6, 0.6)))
    return Stain(density.astype(np.float32), _blur_um(cell, um_per_px, rng), halo, bool(rng.random() < 0.75))


def _blur_um(cell: RedCell, um_per_px: float, rng: np.random.Generator) -> float:
    """No sharper than the lens and the pixels allow; an outline is softer than the picture, as cells thin out there."""
    return max(LENS_UM, 0.4 * um_per_px, min(float(rng.uniform(0.45, 0.85)) * cell.edge_um, 0.28))


def _typical_change(before: Pixels, after: Pixels, bodies: Sequence[Body], um_per_px: float) -> float:
    """Median over the bodies of the grey levels by which their middles were darkened."""
    columns = np.array([int(body.x_um / um_per_px) for body in bodies])
    rows = np.array([int(body.y_um / um_per_px) for body in bodies])
    return float(np.median((before[rows, columns].astype(np.float32) - after[rows, columns]) @ np.float32(LUMA)))


def _places(cell: RedCell, nearest_um: float, farthest_um: float) -> FloatArray:
    """Points `(N, 2)` x, y in micrometres whose distance inside the outline lies between two values."""
    rows, columns = np.nonzero((cell.inside_um > nearest_um) & (cell.inside_um < farthest_um))
    return ((np.column_stack([columns, rows]) + 0.5) * cell.step_um).astype(np.float32)


def _one_of(places: FloatArray, rng: np.random.Generator) -> tuple[float, float]:
    x, y = places[rng.integers(len(places))] + rng.uniform(-0.06, 0.06, 2)
    return float(x), float(y)


def _free(places: FloatArray, others: Sequence[Body], distance_um: float) -> FloatArray:
    """The places that keep this distance from the edges of other bodies."""
    for other in others:
        away = np.hypot(places[:, 0] - other.x_um, places[:, 1] - other.y_um)
        places = places[away > distance_um + other.radius_um]
    return places


def _howell_jolly(cell: RedCell, rng: np.random.Generator) -> list[Body]:
    """One, seldom two, round bodies off centre, 0.5 to 1 um across."""
    bodies: list[Body] = []
    for _ in range(1 if rng.random() < 0.9 else 2):
        radius = rng.uniform(0.27, 0.5)
        places = _free(_places(cell, radius + MARGIN_UM, 0.65 * float(cell.inside_um.max())), bodies, radius + 0.8)
        if len(places):
            bodies.append(Body(*_one_of(places, rng), radius, rng.uniform(0.9, 1), rng.uniform(0, math.pi)))
    return bodies


def _pappenheimer(cell: RedCell, rng: np.random.Generator) -> list[Body]:
    """Two to eight irregular granules of 0.2 to 0.5 um in a group near the rim."""
    edge = _places(cell, MARGIN_UM + 0.25, 1.2)
    if not len(edge):
        return []
    middle = Body(*_one_of(edge, rng), rng.uniform(0.75, 1.5))
    inner = _places(cell, MARGIN_UM + 0.25, 2.2)
    inner = inner[np.hypot(inner[:, 0] - middle.x_um, inner[:, 1] - middle.y_um) < middle.radius_um]
    granules: list[Body] = []
    for _ in range(int(rng.integers(2, 9))):
        radius = rng.uniform(0.1, 0.25)
        places = _free(inner, granules, radius + 0.15)
        if len(places):
            granules.append(Body(*_one_of(places, rng), radius))
    return [lobe for granule in granules for lobe in _lobes(granule, rng)] if len(granules) > 1 else []


def _lobes(granule: Body, rng: np.random.Generator) -> list[Body]:
    """An irregular granule: one to three ellipses that reach no farther than the disc given."""
    share, lobes = rng.uniform(0.7, 1), []
    for _ in range(int(rng.integers(1, 4))):
        size = granule.radius_um * rng.uniform(0.6, 0.95)
        angle, away = rng.uniform(0, 2 * math.pi), (granule.radius_um - size) * rng.uniform(0.5, 1)
        x, y = granule.x_um + away * math.cos(angle), granule.y_um + away * math.sin(angle)
        lobes.append(Body(x, y, size, rng.uniform(0.6, 1), rng.uniform(0, math.pi), share))
    return lobes


def _stippling(cell: RedCell, rng: np.random.Generator) -> list[Body]:
    """12 to 60 dots all over the cell, fine (0.15 um) to coarse (0.45 um), those of one cell much alike."""
    coarseness = rng.uniform(0, 1)
    wanted = int(rng.integers(12, 61 - round(24 * coarseness)))
    # A distance between dots that only just leaves room for all of them spreads them evenly.
    spacing = rng.uniform(0.4, 0.6) * cell.diameter_um * math.sqrt(math.pi / 4 / wanted)
    dots = np.zeros((wanted, 3), np.float32)
    found = 0
    for place in rng.permutation(_places(cell, MARGIN_UM + 0.2, np.inf)):
        radius = float(np.clip((0.095 + 0.1 * coarseness) * math.exp(0.2 * rng.standard_normal()), 0.075, 0.225))
        x, y = place + rng.uniform(-0.06, 0.06, 2)
        others = dots[:found]
        if (np.hypot(others[:, 0] - x, others[:, 1] - y) > np.maximum(others[:, 2] + radius + 0.12, spacing)).all():
            dots[found] = x, y, radius
            found += 1
        if found == wanted:
            break
    if found < 12:
        return []
    shapes = rng.uniform((0.75, 0, 0.55), (1, math.pi, 1), (found, 3))
    return [Body(*dot, *shape) for dot, shape in zip(dots[:found].tolist(), shapes.tolist(), strict=True)]


_INCLUSIONS: dict[str, tuple[Drawing, Range, Range]] = {
    "howell_jolly_body": (_howell_jolly, (0.0, 0.4), (0.8, 1.8)),
    "pappenheimer_bodies": (_pappenheimer, (0.3, 0.9), (1.0, 2.4)),
    "basophilic_stippling": (_stippling, (0.5, 1.0), (0.5, 1.5)),
}
"""How the bodies of a code are drawn, how blue they are, and how much denser than the field's red cells."""


def _polychromatic(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels | None:
    """10 to 20 % larger, the pallor filled in, and bluish grey."""
    growth = rng.uniform(1.1, 1.2)
    if cell.cut or not 6.3 < cell.diameter_um * growth < 10.5:
        return None
    larger, inside = _resized(pixels, um_per_px, cell, growth)
    over = densities(larger) - cell.background
    # Only what is coarser than the grain is filled, so that noise and focus stay.
    coarse = cv2.GaussianBlur(over, (0, 0), max(0.2 / um_per_px, 1.0))
    inner = smooth_step((inside - 0.4) / 0.9)[..., None]
    filled = over + rng.uniform(0.8, 1) * inner * np.maximum(rng.uniform(0.9, 1) * cell.density - coarse, 0)
    amount = rng.uniform(0.07, 0.2) * (0.5 + 1.8 * float(cell.density.mean()))
    cloud = cv2.resize(rng.standard_normal((9, 9), np.float32), inside.shape[::-1], interpolation=cv2.INTER_CUBIC)
    colour = (amount * (POLYCHROMASIA + rng.uniform(-0.12, 0.12, 3))).astype(np.float32)
    tint = np.maximum(1 + 0.12 * cloud[..., None], 0.4) * colour
    edge = max(1.2 * cell.edge_um, 0.5 * um_per_px)
    cell_share = smooth_step(0.5 + inside / (2.5 * edge))[..., None]
    fade = 1 - rng.uniform(0, 0.15) * cell_share
    after = 256 * np.exp(-(cell.background + np.maximum(filled * fade + tint * cell_share, np.minimum(filled, 0)))) - 1
    return np.where(cell_share > 0, blended(larger, after, bool(rng.random() < 0.75)), larger).astype(np.uint8)


def _resized(pixels: Pixels, um_per_px: float, cell: RedCell, growth: float) -> tuple[Pixels, FloatArray]:
    """The central cell enlarged about its centre, its surroundings moved aside, and `inside_um` of the new outline."""
    size = pixels.shape[0]
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    away_x, away_y = (at - np.float32(um / um_per_px - 0.5) for at, um in zip((x, y), cell.centre_um, strict=True))
    move = np.float32(1 - 1 / growth)
    from_x, from_y = x - move * away_x, y - move * away_y
    inside = cv2.remap(cell.inside_at(size), from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.float32(growth) * inside
    share = smooth_step(1 + inside / FALL_OFF_UM) * move
    from_x, from_y = x - share * away_x, y - share * away_y
    moved = cv2.remap(pixels, from_x, from_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.where(share[..., None] > 0, moved, pixels).astype(np.uint8), inside


def _faint(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    places = _places(cell, 0.5, np.inf)
    bodies = [Body(*_one_of(places, rng), rng.uniform(0.15, 0.7)) for _ in range(int(rng.integers(1, 12)))]
    density = cell.density * rng.uniform(-0.12, 0.12, 3).astype(np.float32)
    return with_bodies(pixels, um_per_px, bodies, Stain(density, 1.5 * _blur_um(cell, um_per_px, rng)))


def _beside(cell: RedCell, radius_um: float, rng: np.random.Generator) -> Body | None:
    """A disc somewhere outside the cell, up to 4 um from it."""
    places = _places(cell, -4.0, -(radius_um + 0.6))
    return Body(*_one_of(places, rng), radius_um) if len(places) else None


def _precipitate(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    """Bodies of the stain of any inclusion, single or in a group, beside the cell or on its neighbours."""
    group = _beside(cell, rng.uniform(0.3, 1.2), rng)
    if group is None:
        return _faint(pixels, um_per_px, cell, rng)
    bodies = []
    for _ in range(int(rng.integers(1, 10))):
        radius = min(rng.uniform(0.1, 0.5), group.radius_um)
        angle, away = rng.uniform(0, 2 * math.pi), (group.radius_um - radius) * rng.random()
        x, y = group.x_um + away * math.cos(angle), group.y_um + away * math.sin(angle)
        bodies.append(Body(x, y, radius, rng.uniform(0.6, 1), rng.uniform(0, math.pi), rng.uniform(0.6, 1)))
    return with_bodies(pixels, um_per_px, bodies, _stain(cell, um_per_px, (0.0, 1.0), (0.8, 2.6), rng))


def _dirt(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    """A dark, irregular, colourless speck beside the cell."""
    speck = _beside(cell, rng.uniform(0.15, 0.7), rng)
    if speck is None:
        return _faint(pixels, um_per_px, cell, rng)
    density = (rng.uniform(0.4, 2) * rng.uniform((0.8, 0.85, 0.9), (1, 1, 1.2))).astype(np.float32)
    return with_bodies(pixels, um_per_px, _lobes(speck, rng), Stain(density, _blur_um(cell, um_per_px, rng)))


def _platelet(pixels: Pixels, um_per_px: float, place: Body, cell: RedCell, rng: np.random.Generator) -> Pixels:
    """A pale purple body with darker granules in its middle."""
    stain = _stain(cell, um_per_px, (0.0, 0.6), (0.5, 1.1), rng)
    whole = replace(place, aspect=rng.uniform(0.7, 1), turn=rng.uniform(0, math.pi), share=rng.uniform(0.35, 0.6))
    bodies = [whole]
    for _ in range(int(rng.integers(6, 16))):
        angle, away = rng.uniform(0, 2 * math.pi), 0.6 * whole.radius_um * math.sqrt(rng.random())
        x, y = whole.x_um + away * math.cos(angle), whole.y_um + away * math.sin(angle)
        bodies.append(Body(x, y, rng.uniform(0.1, 0.3), share=rng.uniform(0.7, 1)))
    return with_bodies(pixels, um_per_px, bodies, stain)


def _platelet_beside(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    place = _beside(cell, rng.uniform(0.8, 1.4), rng)
    return _faint(pixels, um_per_px, cell, rng) if place is None else _platelet(pixels, um_per_px, place, cell, rng)


def _platelet_on_top(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    """A platelet that lies on the cell has a pale halo, which no inclusion has."""
    radius = rng.uniform(0.85, 1.4)
    places = _places(cell, 1.35 * radius, np.inf)
    if not len(places):
        return _faint(pixels, um_per_px, cell, rng)
    place = Body(*_one_of(places, rng), radius)
    clear = Stain(-rng.uniform(0.15, 0.5) * cell.density, 0.15)
    halo = with_bodies(pixels, um_per_px, [replace(place, radius_um=1.2 * radius)], clear)
    return _platelet(halo, um_per_px, place, cell, rng)


def _bubble(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    """A refractile drop: bright, with a dark ring."""
    radius = rng.uniform(0.2, 0.6)
    place = Body(*_one_of(_places(cell, 1.0, np.inf), rng), radius, rng.uniform(0.7, 1), rng.uniform(0, math.pi))
    blur_um = _blur_um(cell, um_per_px, rng)
    ring = (cell.density * rng.uniform(0.2, 0.7)).astype(np.float32)
    dark = with_bodies(pixels, um_per_px, [replace(place, radius_um=radius + 0.15)], Stain(ring, blur_um))
    return with_bodies(dark, um_per_px, [place], Stain(-ring - rng.uniform(0.4, 1.1) * cell.density, blur_um))


def _dark_rim(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    inside = cell.inside_at(pixels.shape[0])
    width = rng.uniform(0.15, 0.35)
    rim = np.exp(-(((inside - rng.uniform(0.1, 0.5)) / width) ** 2) / 2) * (inside > -2 * width)
    passed = np.exp(-rng.uniform(0.15, 0.5) * rim[..., None] * cell.density)
    return blended(pixels, (pixels + np.float32(1)) * passed - 1, bool(rng.random() < 0.75))


def _other_size(pixels: Pixels, um_per_px: float, cell: RedCell, rng: np.random.Generator) -> Pixels:
    return pixels.copy() if cell.cut else _resized(pixels, um_per_px, cell, rng.uniform(0.97, 1.03))[0]


_TRACES: tuple[Trace, ...] = (
    _faint,
    _precipitate,
    _dirt,
    _platelet_beside,
    _platelet_on_top,
    _bubble,
    _dark_rim,
    _other_size,
)
