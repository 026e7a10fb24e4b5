"""Funnel limits: which densities lie further from the pooled one than chance explains (Spiegelhalter 2005).

Source: Spiegelhalter 2005, Funnel plots for comparing institutional performance, Stat Med 24:1185. A flag is a reason
to look at a slide, not to leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FEWEST", "FEWEST_TO_WIDEN", "LEVEL", "Funnel", "fit_funnel", "poisson_point"]

LEVEL = 0.998
"""Share of slides inside the limits where nothing but chance is at work."""

FEWEST = 3
"""Slides below which there is no funnel: each would be compared with little but itself."""

FEWEST_TO_WIDEN = 10
"""Slides below which limits stay those of sampling: one odd slide of a few would widen them until it fits."""

_WINSORISED = 0.1


def poisson_point(p: float, mean: float) -> float:
    """The p-quantile of a Poisson count, interpolated between whole numbers (Spiegelhalter 2005, appendix A.1.1).

    r - (F(r) - p) / (F(r) - F(r - 1)), with r the least count whose distribution function F reaches p. A point
    below zero, which no count is under, becomes zero.

    Raises:
        ValueError: p is not between 0 and 1, or the mean is not above zero.
    """
    if not (0 < p < 1 and 0 < mean < math.inf):
        raise ValueError(f"expected 0 < p < 1 and a mean above zero, got p = {p}, mean = {mean}")
    from scipy.special import pdtr, pdtrik

    r = 0
    if pdtr(0, mean) < p:
        r = max(math.ceil(float(pdtrik(p, mean))), 1)
        # The inverse may be off by its last bit, which ceil turns into a whole count.
        while r > 1 and pdtr(r - 1, mean) >= p:
            r -= 1
        while pdtr(r, mean) < p:
            r += 1
    below = float(pdtr(r - 1, mean)) if r else 0.0
    reached = float(pdtr(r, mean))
    return max(r - (reached - p) / (reached - below), 0.0)


@dataclass(frozen=True)
class Funnel:
    """Limits about the pooled density of some slides.

    Attributes:
        per_mm2: the pooled density, cells a square millimetre.
        dispersion: mean squared z-score of the slides, winsorised; 1 where only chance is at work.
        widened: whether the limits are wider than those of sampling, by the root of `dispersion`.
        slides: how many slides it is fitted to.
    """

    per_mm2: float
    dispersion: float
    widened: bool
    slides: int

    def limits(self, area_mm2: float, *, sampling_only: bool = False) -> tuple[float, float]:
        """Lowest and highest density, cells a square millimetre, that is not flagged on this counted area.

        Args:
            area_mm2: counted area, square millimetres, above zero.
            sampling_only: the limits of sampling alone, also where those in use are wider.
        """
        mean = self.per_mm2 * area_mm2
        factor = math.sqrt(self.dispersion) if self.widened and not sampling_only else 1.0
        low, high = (mean + factor * (poisson_point(p, mean) - mean) for p in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return max(low, 0.0) / area_mm2, high / area_mm2

    def side(self, count: int, area_mm2: float) -> str:
        """`high`, `low`, or nothing where the density is inside the limits."""
        low, high = self.limits(area_mm2)
        density = count / area_mm2
        return "high" if density > high else "low" if density < low else ""


def fit_funnel(counts: Sequence[int], areas_mm2: Sequence[float]) -> Funnel | None:
    """The funnel of some slides; None for fewer than `FEWEST`, or without a single cell.

    Slides differ by more than sampling. From `FEWEST_TO_WIDEN` slides on, the limits are widened by the root of the
    dispersion where that exceeds its value under chance, 1, by two standard errors, 2 sqrt(2 / slides); the highest and
    lowest tenth of the z-scores (count - expected) / sqrt(expected) is winsorised first (Spiegelhalter 2005, the
    section on over-dispersion).

    Args:
        counts: cells of each slide.
        areas_mm2: counted area of each, square millimetres, above zero.

    Raises:
        ValueError: there is not one area above zero for each count.
    """
    if len(counts) != len(areas_mm2) or any(not area > 0 for area in areas_mm2):
        raise ValueError(f"expected an area above zero for each of {len(counts)} counts, got {list(areas_mm2)[:20]}")
    if len(counts) < FEWEST or not sum(counts):
        return None
    per_mm2 = sum(counts) / math.fsum(areas_mm2)
    expected = per_mm2 * np.array(areas_mm2, np.float64)
    scores = (np.array(counts, np.float64) - expected) / np.sqrt(expected)
    kept = np.clip(scores, *np.quantile(scores, (_WINSORISED, 1 - _WINSORISED)))
    dispersion = float(np.mean(kept**2))
    widened = len(counts) >= FEWEST_TO_WIDEN and dispersion > 1 + 2 * math.sqrt(2 / len(counts))
    return Funnel(per_mm2, dispersion, widened, len(counts))
