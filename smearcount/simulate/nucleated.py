"""White cells and platelets: cytoplasm, nucleus and granules as optical densities on a patch."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray
from smearcount.simulate.cells import Patch, Plane, Stain
from smearcount.simulate.outlines import Outline, blob, turned

__all__ = ["draw_platelet", "draw_white_cell"]

Density = FloatArray
"""`(h, w, 3) float32`, decadic optical density per RGB channel."""


def draw_white_cell(patch: Patch, stain: Stain) -> Density:
    """Optical densities of a white cell, `(h, w, 3) float32`."""
    rng = np.random.default_rng(patch.cell.seed)
    return patch.shrunk(_DRAWN[patch.cell.code](patch, stain, rng))


def draw_platelet(patch: Patch, stain: Stain) -> Density:
    """Optical densities of a platelet, `(h, w, 3) float32`: a pale body with a core of purple granules."""
    rng = np.random.default_rng(patch.cell.seed)
    radius = patch.cell.reach
    body = patch.blurred(patch.filled([patch.cell.outline]), 0.12)
    n = int(rng.integers(8, 18))
    grains = patch.dots(_scattered(rng, n, radius * 0.62), rng.uniform(0.14, 0.3, n), 0.09)
    core = patch.blurred(patch.filled([patch.cell.outline * rng.uniform(0.6, 0.8)]), 0.2)
    dense = body * (0.35 + 0.35 * core + 0.35 * np.minimum(grains, 1)) * rng.normal(1, 0.12)
    return patch.shrunk((dense[:, :, None] * stain.azurophil).astype(np.float32))


def _neutrophil(patch: Patch, stain: Stain, rng: np.random.Generator) -> Density:
    radius = patch.cell.reach
    inside = _body(patch)
    nucleus = _lobed(patch, rng, int(rng.choice([2, 3, 4, 5], p=[0.08, 0.42, 0.38, 0.12])))
    n = int(rng.integers(120, 220))
    grains = patch.dots(_scattered(rng, n, radius * 0.93), rng.uniform(0.09, 0.17, n), 0.07)
    cytoplasm = inside * (1 + 0.1 * patch.noise(rng, 0.6))
    density = _layers(cytoplasm * (1 - nucleus), stain.neutrophil)
    density += _layers(inside * (1 - nucleus) * np.minimum(grains, 1), stain.azurophil * 0.28)
    return density + _chromatin(patch, rng, nucleus, stain.nucleus)


def _eosinophil(patch: Patch, stain: Stain, rng: np.random.Generator) -> Density:
    radius = patch.cell.reach
    inside = _body(patch)
    nucleus = _lobed(patch, rng, int(rng.choice([2, 3], p=[0.85, 0.15])), 1.12)
    n = int(22 * radius + rng.integers(60, 120))
    grains = patch.dots(_scattered(rng, n, radius * 0.95), rng.uniform(0.28, 0.45, n), 0.09)
    filling = inside * (1 - nucleus) * (0.6 + 0.45 * np.minimum(grains, 1))
    return _layers(filling, stain.eosinophil) + _chromatin(patch, rng, nucleus, stain.nucleus * 0.92)


def _basophil(patch: Patch, stain: Stain, rng: np.random.Generator) -> Density:
    radius = patch.cell.reach
    inside = _body(patch)
    nucleus = _lobed(patch, rng, int(rng.integers(2, 4)), 1.25)
    n = int(rng.integers(130, 190))
    grains = patch.dots(_scattered(rng, n, radius * 0.97), rng.uniform(0.26, 0.5, n), 0.08)
    density = _layers(inside * (1 - nucleus), stain.azurophil * 0.45)
    density += _chromatin(patch, rng, nucleus, stain.nucleus * 0.75)
    return density + _layers(inside * np.minimum(grains, 1), stain.basophil * 0.62)


def _lymphocyte(patch: Patch, stain: Stain, rng: np.random.Generator) -> Density:
    radius = np.hypot(*patch.cell.outline.T).mean()
    share = np.interp(radius, [4, 6], [0.92, 0.76]) + rng.uniform(-0.03, 0.03)
    shift = (1 - share) * radius * rng.uniform(0.2, 0.8) * _direction(rng)
    lump = blob(rng, share * radius, 0.02, rng.uniform(0.88, 1)) + shift
    inside = _body(patch, 0.18)
    nucleus = _soft(patch, [lump])
    rim = inside * (1 - nucleus) * (1 + 0.12 * patch.noise(rng, 0.7))
    return _layers(rim, stain.lymphocyte) + _chromatin(patch, rng, nucleus * inside, stain.nucleus * 1.05)


def _monocyte(patch: Patch, stain: Stain, rng: np.random.Generator) -> Density:
    radius = np.hypot(*patch.cell.outline.T).mean()
    lump = _kidney(rng, radius * rng.uniform(0.62, 0.72)) + radius * rng.uniform(0.05, 0.18) * _direction(rng)
    inside = _body(patch)
    nucleus = _soft(patch, [lump]) * inside
    n = int(rng.integers(0, 7))
    holes = patch.dots(_scattered(rng, n, radius * 0.85), rng.uniform(0.25, 0.6, n), 0.1)
    ground = inside * (1 - nucleus) * (1 + 0.16 * patch.noise(rng, 0.45)) * (1 - 0.7 * holes)
    return _layers(ground, stain.monocyte) + _chromatin(patch, rng, nucleus, stain.nucleus * 0.78, 0.26)


_DRAWN: dict[str, Callable[[Patch, Stain, np.random.Generator], Density]] = {
    "neutrophil": _neutrophil,
    "eosinophil": _eosinophil,
    "basophil": _basophil,
    "lymphocyte": _lymphocyte,
    "monocyte": _monocyte,
}


def _body(patch: Patch, soft_um: float = 0.14) -> Plane:
    """The cell's mask in [0, 1], thinner towards the outline."""
    mask = patch.filled([patch.cell.outline])
    thin = 0.75 + 0.25 * np.minimum(patch.depth(mask) / 1.5, 1)
    return cast(Plane, patch.blurred(mask, soft_um) * thin)


def _soft(patch: Patch, outlines: list[Outline], round_um: float = 0.3) -> Plane:
    """Union of polygons with rounded inner corners and a soft edge, in [0, 1]."""
    wide = patch.blurred(patch.filled(outlines), round_um)
    ramp = np.clip((wide - 0.5) / 0.3 + 0.5, 0, 1)
    return cast(Plane, (ramp * ramp * (3 - 2 * ramp)).astype(np.float32))


def _chromatin(patch: Patch, rng: np.random.Generator, nucleus: Plane, dye: Plane, contrast: float = 0.22) -> Density:
    """Chromatin: clumps and lighter parachromatin within a nucleus mask."""
    clumps = np.clip(0.85 * patch.noise(rng, 0.38) + 0.45 * patch.noise(rng, 1.1), -1.8, 1.4)
    return _layers(nucleus * (1 + contrast * clumps), dye)


def _lobed(patch: Patch, rng: np.random.Generator, lobes: int, plump: float = 1.0) -> Plane:
    """A segmented nucleus: lobes along an arc, joined by filaments."""
    radius = np.hypot(*patch.cell.outline.T).mean()
    size = plump * radius * {2: 0.37, 3: 0.325, 4: 0.275, 5: 0.245}[lobes]
    ring = radius * {2: 0.4, 3: 0.44, 4: 0.47, 5: 0.5}[lobes]
    step = {2: 2.6, 3: 1.75, 4: 1.35, 5: 1.12}[lobes]
    angles = rng.uniform(0, 2 * np.pi) + step * (np.arange(lobes) + rng.uniform(-0.12, 0.12, lobes))
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1) * ring * rng.uniform(0.85, 1.12, (lobes, 1))
    centres += radius * rng.uniform(0, 0.08) * _direction(rng)
    parts = []
    for angle, centre in zip(angles, centres, strict=True):
        lump = blob(rng, size * rng.uniform(0.9, 1.12), 0.06, rng.uniform(0.68, 0.88))
        parts.append(turned(lump, angle + np.pi / 2 + rng.normal(0, 0.35)) + centre)
    bridges = [_bridge(a, b, rng.uniform(0.7, 1.15)) for a, b in zip(centres[:-1], centres[1:], strict=True)]
    return _soft(patch, parts + bridges, 0.22)


def _bridge(start: Outline, end: Outline, width: float) -> Outline:
    along = (end - start) / max(float(np.hypot(*(end - start))), 1e-6)
    across = np.array([-along[1], along[0]]) * width / 2
    return np.stack([start + across, end + across, end - across, start - across])


def _kidney(rng: np.random.Generator, radius: float) -> Outline:
    """A bean: a blob with one dent, or a fold of it."""
    lump = blob(rng, radius, 0.04, rng.uniform(0.7, 0.85))
    theta = np.arctan2(lump[:, 1], lump[:, 0])
    dent = rng.uniform(0.25, 0.6) * np.exp(-(((np.abs(theta) - np.pi / 2) / 0.55) ** 2)) * (theta > 0)
    return turned(lump * (1 - dent[:, None]), rng.uniform(0, 2 * np.pi))


def _layers(plane: npt.NDArray[np.floating], dye: Plane) -> Density:
    return cast(Density, (plane[:, :, None] * dye).astype(np.float32))


def _direction(rng: np.random.Generator) -> Outline:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _scattered(rng: np.random.Generator, n: int, radius: float) -> Outline:
    """`(n, 2)` points spread evenly over a disc of `radius`."""
    angle, far = rng.uniform(0, 2 * np.pi, n), radius * np.sqrt(rng.uniform(0, 1, n))
    return np.stack([far * np.cos(angle), far * np.sin(angle)], axis=1)
