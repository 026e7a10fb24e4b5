"""What each cell absorbs: optical densities on a small patch, drawn finer than the picture and averaged down.

A patch is `(h, w, 3) float32` of decadic optical density per RGB channel. All that is random in a cell is drawn in
micrometres from the cell's own seed, so that it looks the same at every magnification and in every tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Doubles, FloatArray, Pixels
from smearcount.simulate.outlines import Outline
from smearcount.simulate.scene import Cell

__all__ = ["Plane", "Patch", "Stain", "draw_red_cell"]

Plane = FloatArray
"""`(h, w) float32` on the fine grid of a patch."""

_FINE_UM = 0.07
_MARGIN_UM = 0.8
_PALLOR = {
    "microcyte": 0.7,
    "teardrop_cell": 0.6,
    "burr_cell": 0.5,
    "schistocyte": 0.2,
    "stomatocyte": 0.1,
    "sickle_cell": 0.1,
}
"""Depth of the pallor relative to a normocyte."""


@dataclass(frozen=True)
class Stain:
    """Optical densities `(3,) float32`, RGB, of the things that take up dye, and the depth of the pallor.

    Attributes:
        red: a red cell where it is thickest.
        nucleus: chromatin.
        neutrophil: cytoplasm of neutrophils.
        lymphocyte: cytoplasm of lymphocytes.
        monocyte: cytoplasm of monocytes.
        eosinophil: granules of eosinophils.
        azurophil: fine granules of neutrophils, granules and body of platelets.
        basophil: granules of basophils.
        pallor: factor on the depth of the central pallor of red cells.
    """

    red: Plane
    nucleus: Plane
    neutrophil: Plane
    lymphocyte: Plane
    monocyte: Plane
    eosinophil: Plane
    azurophil: Plane
    basophil: Plane
    pallor: float = 1.0

    @staticmethod
    def of(strength: float, hue: float, pallor: float) -> Stain:
        """The stain of a given strength; `hue` -1 is pink, 1 blue-grey.

        The densities are medians measured on Wright and May-Gruenwald-Giemsa photographs (display values).
        """
        tint = np.array([1 + 0.45 * hue, 1 - 0.05 * hue, 1 - 0.3 * hue], np.float32)

        def dye(red: float, green: float, blue: float, share: float = 1.0) -> Plane:
            colour = np.array([red, green, blue], np.float32)
            return cast(Plane, strength * colour * (1 + share * (tint - 1)))

        return Stain(
            red=dye(0.112, 0.178, 0.105),
            nucleus=dye(0.44, 0.74, 0.2, 0.3),
            neutrophil=dye(0.075, 0.125, 0.035, 0.5),
            lymphocyte=dye(0.22, 0.24, 0.045, 0.3),
            monocyte=dye(0.155, 0.17, 0.06, 0.3),
            eosinophil=dye(0.085, 0.3, 0.24, 0.5),
            azurophil=dye(0.3, 0.52, 0.13, 0.3),
            basophil=dye(0.55, 0.88, 0.25, 0.3),
            pallor=pallor,
        )


@dataclass(frozen=True, eq=False)
class Patch:
    """The pixels around one cell, each divided into `fine` x `fine` parts.

    Attributes:
        cell: the cell drawn.
        um_per_px: of the picture.
    """

    cell: Cell
    um_per_px: float

    @cached_property
    def fine(self) -> int:
        """Parts of a pixel along each axis."""
        return max(2, int(np.ceil(self.um_per_px / _FINE_UM)))

    @cached_property
    def window(self) -> tuple[int, int, int, int]:
        """x, y, width and height in pixels of the picture; may lie partly outside of it."""
        low = np.floor((self.cell.outline_um.min(axis=0) - _MARGIN_UM) / self.um_per_px).astype(int)
        high = np.ceil((self.cell.outline_um.max(axis=0) + _MARGIN_UM) / self.um_per_px).astype(int)
        return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])

    @cached_property
    def x_um(self) -> Plane:
        """Columns: x from the cell's centre at every fine point, `(1, w)`."""
        return self._axis(0)[None, :]

    @cached_property
    def y_um(self) -> Plane:
        """Rows: y from the cell's centre at every fine point, `(h, 1)`."""
        return self._axis(1)[:, None]

    def _axis(self, axis: int) -> Plane:
        steps = (np.arange(self.window[axis + 2] * self.fine) + 0.5) / self.fine + self.window[axis]
        return cast(Plane, (steps * self.um_per_px - self.cell.centre[axis]).astype(np.float32))

    @property
    def fine_um(self) -> float:
        """Distance of fine points in um."""
        return self.um_per_px / self.fine

    def filled(self, outlines: list[Outline]) -> Pixels:
        """Fine mask, 0 or 1, of polygons `(M, 2)` in um around the cell's centre."""
        mask = np.zeros((self.window[3] * self.fine, self.window[2] * self.fine), np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [self._points(outline)], 1, shift=4)
        return mask

    def dots(self, centres: Outline, radii: Doubles, soft_um: float) -> Plane:
        """Soft discs in [0, 1] at centres `(M, 2)` with radii `(M,)`, both in um."""
        mask = np.zeros((self.window[3] * self.fine, self.window[2] * self.fine), np.float32)
        for point, radius in zip(self._points(centres), radii / self.fine_um * 16, strict=True):
            cv2.circle(mask, tuple(map(int, point)), max(int(radius), 8), 1.0, -1, cv2.LINE_8, 4)
        return self.blurred(mask, soft_um)

    def blurred(self, plane: FloatArray | Pixels, sigma_um: float) -> Plane:
        """Gaussian of `sigma_um` on the fine grid."""
        return cast(Plane, cv2.GaussianBlur(plane.astype(np.float32), (0, 0), sigma_um / self.fine_um))

    def depth(self, mask: Pixels) -> Plane:
        """Distance in um from the outside of a fine mask."""
        far = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)
        return cast(Plane, np.maximum(far - 0.5, 0) * np.float32(self.fine_um))

    def noise(self, rng: np.random.Generator, grain_um: float) -> Plane:
        """Smooth noise of unit variance on its lattice with a grain of `grain_um`, anchored at the cell's centre."""
        n = int(np.ceil(2 * (self.cell.reach + 2 * _MARGIN_UM) / grain_um)) + 6
        lattice = rng.standard_normal((n, n)).astype(np.float32)
        x, y = (np.float32(n / 2) + axis / np.float32(grain_um) for axis in (self.x_um, self.y_um))
        shape = (y.shape[0], x.shape[1])
        columns, rows = (np.ascontiguousarray(np.broadcast_to(axis, shape)) for axis in (x, y))
        return cast(Plane, cv2.remap(lattice, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))

    def shrunk(self, plane: FloatArray) -> FloatArray:
        """Means over each pixel of the picture of `(h, w[, 3])` on the fine grid."""
        size = self.window[2], self.window[3]
        return cast(FloatArray, cv2.resize(plane, size, interpolation=cv2.INTER_AREA))

    def _points(self, outline: Outline) -> npt.NDArray[np.int32]:
        corner = np.array(self.window[:2]) * self.um_per_px - self.cell.centre
        return cast("npt.NDArray[np.int32]", np.round(((outline - corner) / self.fine_um - 0.5) * 16).astype(np.int32))


def draw_red_cell(patch: Patch, stain: Stain) -> FloatArray:
    """Optical densities of a red cell, `(h, w, 3) float32`."""
    rng = np.random.default_rng(patch.cell.seed)
    deep = patch.depth(patch.filled([patch.cell.outline]))
    rise = 1 - deep / max(float(deep.max()), 1e-6)
    table = _profile(patch.cell.code, rng, stain.pallor)
    at = (rise * (len(table) - 1)).astype(np.intp)
    thickness = np.where(deep > 0, table[at], np.float32(0)).astype(np.float32)
    if patch.cell.code == "stomatocyte":
        thickness *= _slit(patch, rng)
    angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.1) / patch.cell.reach
    slope = 1 + tilt * (np.cos(angle) * patch.x_um + np.sin(angle) * patch.y_um)
    thickness *= slope.astype(np.float32) * (1 + np.float32(0.02) * patch.noise(rng, 0.9))
    colour = stain.red * rng.normal(1, 0.07) * rng.normal(1, 0.02, 3).astype(np.float32)
    density = patch.shrunk(patch.blurred(thickness, 0.1))
    return density[:, :, None] * colour.astype(np.float32)


def _profile(code: str, rng: np.random.Generator, pallor: float) -> Plane:
    """Thickness from the centre (index 0) to the outline (last), 1 where thickest, `(257,) float32`.

    A dried disc, flat with a pale hole of varied depth and softness, mixed with a quarter of the biconcave disc of
    Evans and Fung, Microvasc Res 1972, 4:335 (c0 0.81, c1 7.83, c2 -4.39 um).
    """
    s = np.linspace(0, 1, 257)
    flat = np.sqrt(1 - s**7)
    hole, soft, depth = (rng.uniform(0.26, 0.46), rng.uniform(0.04, 0.12), rng.uniform(0.4, 1.05))
    if code == "spherocyte":
        return (1.32 * np.sqrt(1 - s**5)).astype(np.float32)
    if code == "hypochromic_cell":
        pale = 1 / (1 + np.exp((s - rng.uniform(0.6, 0.68)) / 0.06))
        return (0.78 * flat * (1 - 0.86 * pale)).astype(np.float32)
    if code == "target_cell":
        middle, wide = rng.uniform(0.44, 0.52), rng.uniform(0.13, 0.19)
        pale = np.exp(-(np.abs((s - middle) / wide) ** 2.6))
        return (0.88 * flat * (1 - rng.uniform(0.45, 0.7) * pale)).astype(np.float32)
    depth = min(pallor * depth * _PALLOR.get(code, 1.0), 1.0)
    biconcave = np.sqrt(1 - s**2) * (0.81 + 7.83 * s**2 - 4.39 * s**4) / 2.6
    mixed = (1 - 0.35 * depth) * flat + 0.35 * depth * biconcave
    return (mixed * (1 - 0.85 * depth / (1 + np.exp((s - hole) / soft)))).astype(np.float32)


def _slit(patch: Patch, rng: np.random.Generator) -> Plane:
    """The mouth of a stomatocyte as a factor on its thickness."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = (cos * patch.x_um + sin * patch.y_um, cos * patch.y_um - sin * patch.x_um)
    long, wide, bend = (rng.uniform(1.4, 2.1), rng.uniform(0.5, 0.95), rng.normal(0, 0.12))
    mouth = np.exp(-((along / long) ** 4) - ((across + bend * along**2) / wide) ** 2)
    return cast(Plane, (1 - rng.uniform(0.6, 0.85) * mouth).astype(np.float32))
