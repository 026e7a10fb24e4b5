"""Outlines of blood cells as polygons in micrometres around the cell's centre: pure functions of a generator.

Sizes: Bain, Blood Cells, 5th edition, chapters 2 and 3; the shapes follow the ICSH nomenclature (Palmer et al., Int
J Lab Hematol 2015, 37:287).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from smearcount.arrays import Doubles

__all__ = ["Outline", "blob", "outline_of", "turned"]

Outline = Doubles
"""`(M, 2)` x, y in micrometres, closed, centred on the middle of its bounding box."""

_POINTS = 128
_HELMETS = 0.55
_THETA = np.linspace(0, 2 * np.pi, _POINTS, endpoint=False)


def outline_of(code: str, rng: np.random.Generator) -> Outline:
    """A random outline of one code of the taxonomy, randomly turned."""
    outline = turned(_SHAPES[code](rng), rng.uniform(0, 2 * np.pi))
    return cast(Outline, outline - (outline.min(axis=0) + outline.max(axis=0)) / 2)


def blob(rng: np.random.Generator, radius: float, roughness: float, flat: float = 1.0) -> Outline:
    """A round outline with harmonics 2 to 7 of falling strength.

    Args:
        rng: source of the harmonics.
        radius: mean radius in micrometres.
        roughness: standard deviation of the second harmonic as a share of the radius.
        flat: ratio of the short to the long axis, along y.
    """
    return cast(Outline, _polar(radius * _ripple(rng, roughness)) * (flat**-0.5, flat**0.5))


def _ripple(rng: np.random.Generator, roughness: float) -> Doubles:
    order = np.arange(2, 8)
    strength = rng.normal(0, roughness, len(order)) * (2 / order) ** 1.3
    phase = rng.uniform(0, 2 * np.pi, len(order))
    waves = strength[:, None] * np.cos(order[:, None] * _THETA + phase[:, None])
    return cast(Doubles, 1 + waves.sum(axis=0))


def _polar(radius: Doubles) -> Outline:
    return np.stack([radius * np.cos(_THETA), radius * np.sin(_THETA)], axis=1)


def _smooth(outline: Outline, times: int) -> Outline:
    """Corners rounded by averaging neighbours `times` times."""
    for _ in range(times):
        outline = (np.roll(outline, 1, axis=0) + 2 * outline + np.roll(outline, -1, axis=0)) / 4
    return outline


def turned(outline: Outline, angle: float) -> Outline:
    """The outline turned about its centre by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cast(Outline, outline @ np.array([[cos, sin], [-sin, cos]]))


def _bounded(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, sd), low, high))


def _disc(mean: float, sd: float, low: float, high: float, roughness: float = 0.022) -> Callable[..., Outline]:
    def draw(rng: np.random.Generator) -> Outline:
        flat = 1 - min(abs(rng.normal(0, 0.07)), 0.16)
        return blob(rng, _bounded(rng, mean, sd, low, high) / 2, roughness, flat)

    return draw


def _oval(low: float, high: float) -> Callable[..., Outline]:
    def draw(rng: np.random.Generator) -> Outline:
        outline = blob(rng, _bounded(rng, 7.5, 0.4, 6.6, 8.4) / 2, 0.012, rng.uniform(low, high))
        egg = 1 + rng.uniform(0, 0.02) * outline[:, :1]
        return np.hstack([outline[:, :1], outline[:, 1:] * egg])

    return draw


def _teardrop(rng: np.random.Generator) -> Outline:
    radius = _bounded(rng, 6.6, 0.4, 5.8, 7.4) / 2
    tail = rng.uniform(0.75, 1.25) * radius
    power = rng.uniform(2.2, 3.4)
    body = blob(rng, radius, 0.012, rng.uniform(0.86, 1))
    along = np.clip(np.cos(_THETA), 0, 1) ** (power * 2.2)
    pulled = body + np.stack([tail * along, np.zeros(_POINTS)], axis=1)
    pulled[:, 1] *= 1 - 0.35 * np.clip(np.cos(_THETA), 0, 1) ** power
    bend = rng.normal(0, 0.02) * np.clip(pulled[:, 0], 0, None) ** 2
    return pulled + np.stack([np.zeros(_POINTS), bend], axis=1)


def _sickle(rng: np.random.Generator) -> Outline:
    length, width = rng.uniform(9.0, 11.5), rng.uniform(2.9, 3.7)
    curve = rng.uniform(0.5, 1.5)
    half = _POINTS // 2
    along = np.cos(np.linspace(0, np.pi, half))
    thick = width / 2 * (1 - along**2) ** 0.7
    spine = 1.3 * curve * (1 - along**2)
    upper = np.stack([along * length / 2, spine + thick], axis=1)
    lower = np.stack([-along * length / 2, spine - thick], axis=1)
    return np.vstack([upper, lower[1:-1]])


def _burr(rng: np.random.Generator) -> Outline:
    spikes, depth = int(rng.integers(10, 17)), rng.uniform(0.035, 0.06)
    wave = np.abs(np.cos(spikes / 2 * _THETA + rng.uniform(0.3, 0.9) * np.sin(_THETA * 2 + rng.uniform(0, 6))))
    radius = _bounded(rng, 7.0, 0.35, 6.2, 7.8) / 2
    return _smooth(_polar(radius * _ripple(rng, 0.02) * (1 - depth + depth * 2 * (1 - wave))), 1)


def _schistocyte(rng: np.random.Generator) -> Outline:
    """A disc cut by one chord (helmet) or by two that meet (triangle), corners drawn out a little."""
    radius = rng.uniform(2.9, 3.8)
    normals = rng.uniform(-0.2, 0.2) + (
        np.zeros(1) if rng.random() < _HELMETS else np.array([0, rng.uniform(1.9, 2.3)])
    )
    cuts = radius * rng.uniform(0.15, 0.5, len(normals))
    facing = np.cos(_THETA[None, :] - normals[:, None])
    chord = np.where(facing > 0, cuts[:, None] / np.maximum(facing, 1e-3), np.inf).min(axis=0)
    return _smooth(_polar(np.minimum(radius * _ripple(rng, 0.03), chord)), 2)


def _white(low: float, high: float, roughness: float) -> Callable[..., Outline]:
    def draw(rng: np.random.Generator) -> Outline:
        outline = blob(rng, 1.0, roughness, 1 - min(abs(rng.normal(0, 0.05)), 0.12))
        return _scaled(outline, rng.uniform(low, high))

    return draw


def _scaled(outline: Outline, diameter: float) -> Outline:
    """The outline grown so that its area is that of a disc of `diameter` um."""
    x, y = outline.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return cast(Outline, outline * (diameter / np.sqrt(4 * area / np.pi)))


def _platelet(rng: np.random.Generator) -> Outline:
    return _scaled(blob(rng, 1.0, 0.09, rng.uniform(0.72, 1)), _bounded(rng, 2.8, 0.35, 2.0, 3.4))


_SHAPES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "normocyte": _disc(7.5, 0.45, 6.5, 8.5),
    "macrocyte": _disc(9.4, 0.3, 8.9, 10.2),
    "microcyte": _disc(5.6, 0.3, 4.9, 6.1),
    "hypochromic_cell": _disc(7.4, 0.4, 6.5, 8.4),
    "spherocyte": _disc(6.1, 0.25, 5.5, 6.6, 0.01),
    "target_cell": _disc(8.0, 0.4, 7.2, 8.8),
    "stomatocyte": _disc(7.5, 0.4, 6.6, 8.4),
    "ovalocyte": _oval(0.64, 0.76),
    "elliptocyte": _oval(0.42, 0.56),
    "teardrop_cell": _teardrop,
    "burr_cell": _burr,
    "schistocyte": _schistocyte,
    "sickle_cell": _sickle,
    "neutrophil": _white(12, 15, 0.026),
    "eosinophil": _white(12, 15.5, 0.022),
    "basophil": _white(10, 14, 0.025),
    "lymphocyte": _white(8, 12, 0.028),
    "monocyte": _white(14, 19, 0.045),
    "platelet": _platelet,
}
