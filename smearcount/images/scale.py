"""The size of a pixel from metadata: believed only where it can be a microscope's.

Sources: TIFF 6.0 (XResolution, ResolutionUnit), OME-XML 2016-06 (units of length).
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass, replace

__all__ = [
    "MAX_DESCRIPTION",
    "MAX_UM_PER_PX",
    "MIN_UM_PER_PX",
    "PixelSize",
    "attributes_of",
    "from_density",
    "from_sizes",
    "um_per",
]

MIN_UM_PER_PX = 0.02
MAX_UM_PER_PX = 2.0
"""Beyond these no light microscope shows a smear: 72 to 600 dots an inch are 353 to 42 um."""

_MAX_ANISOTROPY = 0.02
MAX_DESCRIPTION = 4_000_000
"""Characters of a description that are searched."""

_UM_PER_UNIT = {
    "pm": 1e-6,
    "\u00c5": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "um": 1.0,
    "\u00b5m": 1.0,
    "\u03bcm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "meter": 1e6,
    "in": 25_400.0,
    "inch": 25_400.0,
}


@dataclass(frozen=True)
class PixelSize:
    """The size of a pixel, or why there is none.

    Attributes:
        um_per_px: None where unknown or not believed.
        origin: where it was found; empty without one.
        note: what a reader should know; empty where there is nothing to say.
    """

    um_per_px: float | None = None
    origin: str = ""
    note: str = ""

    def times(self, factor: float) -> PixelSize:
        """The size of a pixel of the same picture reduced by `factor`."""
        return self if self.um_per_px is None else replace(self, um_per_px=self.um_per_px * factor)

    @property
    def too_coarse(self) -> str:
        """Why a level or a smaller page can't be counted, the second half of a sentence; empty where it can."""
        if self.um_per_px is None or self.um_per_px <= MAX_UM_PER_PX:
            return ""
        return f"is {self.um_per_px:.3g} um a pixel, too coarse to count"

    def believed(self) -> PixelSize:
        """Itself, or a note in its place where it is too coarse."""
        if self.um_per_px is None or not self.too_coarse:
            return self
        return PixelSize(note=_not_believed(self.origin, self.um_per_px))


def _not_believed(origin: str, um_per_px: float) -> str:
    return f"{origin} {um_per_px:.4g} um a pixel not believed"


def from_sizes(x_um: float, y_um: float, origin: str) -> PixelSize:
    """The size of a pixel that metadata say is `x_um` by `y_um` micrometres, if it is plausible and square."""
    if not all(math.isfinite(size) and size > 0 for size in (x_um, y_um)):
        return PixelSize()
    size = (x_um + y_um) / 2
    if not MIN_UM_PER_PX <= size <= MAX_UM_PER_PX:
        return PixelSize(note=_not_believed(origin, size))
    if abs(x_um - y_um) > _MAX_ANISOTROPY * size:
        return PixelSize(note=f"{origin} ignored: pixels of {x_um:.4g} x {y_um:.4g} um are not square")
    return PixelSize(size, origin)


def from_density(x_per_unit: float, y_per_unit: float, unit: str, origin: str) -> PixelSize:
    """The size of a pixel from pixels a `unit` (`inch`, `cm`, `m`, `um` and so on); an unknown unit says nothing.

    A density is that of a print or a screen far more often than of a microscope, so one out of range says nothing.
    """
    if not (x_per_unit > 0 and y_per_unit > 0):
        return PixelSize()
    sizes = um_per(unit) / x_per_unit, um_per(unit) / y_per_unit
    size = sum(sizes) / 2
    return from_sizes(*sizes, origin) if MIN_UM_PER_PX <= size <= MAX_UM_PER_PX else PixelSize()


def um_per(unit: str) -> float:
    """Micrometres a unit of length by its name or sign; no number where it is unknown."""
    return _UM_PER_UNIT.get(unit.strip(), _UM_PER_UNIT.get(unit.strip().lower(), math.nan))


def attributes_of(tag: str) -> dict[str, str]:
    """Attributes of an opening tag of XML, as text."""
    pairs = re.findall(r"(\w+)\s*=\s*(?:\"([^\"]{0,200})\"|'([^']{0,200})')", tag)
    return {key: html.unescape(double or single) for key, double, single in pairs}
