"""From named cells to counts, percentages, rates and densities with exact limits of the sampling error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from smearcount.arrays import Bools, FloatArray, Strings
from smearcount.records import KINDS, UNCLASSIFIED, Counts, Detections, Labels
from smearcount.taxonomy import Taxonomy

__all__ = [
    "EDGE_RULES",
    "Estimate",
    "NOTHING",
    "binomial_limits",
    "codes_given",
    "count_cells",
    "counted_mask",
    "counting_frame",
    "density_per_mm2",
    "final_kinds",
    "kind_total",
    "kind_totals",
    "names_kind",
    "name_cells",
    "percentage",
    "poisson_limits",
    "rate",
]

EDGE_RULES = ("corner", "all")
EDGE_INSET_PX = 2.0
EDGE_GUARD_UM = 3.0


@dataclass(frozen=True)
class Estimate:
    """A figure with its exact 95 % limits; all NaN where nothing was observed."""

    value: float
    low: float
    high: float


NOTHING = Estimate(math.nan, math.nan, math.nan)


def counting_frame(
    size_wh: tuple[int, int], um_per_px: float, rule: str = "corner"
) -> tuple[float, float, float, float]:
    """The counting frame of a picture as x_min, y_min, x_max, y_max in pixels; without an area where it has no room.

    With `corner` it is [2 px, W - g) x [2 px, H - g), g = 3 um; with `all` it is the whole picture.

    Raises:
        ValueError: the rule is unknown.
    """
    if rule not in EDGE_RULES:
        raise ValueError(f"edge rule: expected one of {EDGE_RULES}, got {rule!r}")
    width, height = size_wh
    if rule == "all":
        return 0, 0, width, height
    right, bottom = (max(side - EDGE_GUARD_UM / um_per_px, EDGE_INSET_PX) for side in size_wh)
    return EDGE_INSET_PX, EDGE_INSET_PX, right, bottom


def counted_mask(
    boxes: FloatArray, size_wh: tuple[int, int], um_per_px: float, rule: str = "corner"
) -> tuple[Bools, float]:
    """Which cells enter the counts, and the area in square micrometres that the counts refer to.

    With `corner` a cell counts when the top-left corner of its box lies in the `counting_frame`: an unbiased one, so
    that the densities of the parts of a mosaic and of the whole agree (after Gundersen 1977, J Microsc 111:219). With
    `all` every cell counts.

    Raises:
        ValueError: the rule is unknown.
    """
    left, top, right, bottom = counting_frame(size_wh, um_per_px, rule)
    area_um2 = (right - left) * (bottom - top) * um_per_px**2
    if rule == "all":
        return np.ones(len(boxes), np.bool_), area_um2
    x, y = boxes[:, 0], boxes[:, 1]
    return (x >= left) & (x < right) & (y >= top) & (y < bottom), area_um2


def name_cells(kinds: Strings, labels: Labels, min_label_score: float | FloatArray) -> Strings:
    """Final code of each cell: the most probable one, or `unclassified` where that is below `min_label_score (N,)`.

    A platelet that no classifier was asked about is named `platelet`: the kind has one code only.
    """
    # As narrow as the names allow: on a slide this is the largest array after the probabilities.
    names = np.full(len(kinds), UNCLASSIFIED, np.array([UNCLASSIFIED, *labels.codes]).dtype)
    if labels.codes:
        best = labels.probs.argmax(axis=1)
        highest = labels.probs.max(axis=1)
        sure = (highest >= min_label_score) & (highest > 0)
        names[sure] = np.array(labels.codes)[best[sure]]
    asked = labels.probs.sum(axis=1) > 0
    names[(kinds == "platelet") & ~asked] = "platelet"
    return names


def final_kinds(kinds: Strings, names: Strings, taxonomy: Taxonomy) -> Strings:
    """Kind of each cell once it is named: an erythroblast among the white cells becomes `nrbc`."""
    moved = kinds.astype("<U8")
    for code in set(names):
        if code in taxonomy.kind_of:
            moved[names == code] = taxonomy.kind_of[code]
    return moved


def codes_given(labels: Labels) -> frozenset[str]:
    """Codes that the models of a result can give; a count of another code is unknown, which is not zero."""
    return frozenset((*labels.codes, "platelet"))


def count_cells(
    detections: Detections, names: Strings, counted: Bools, excluded: Mapping[str, int], taxonomy: Taxonomy
) -> Counts:
    """Counts per code; what is not named or not counted, the latter by reason, is summed apart."""
    named = dict.fromkeys(taxonomy.codes, 0)
    unclassified = dict.fromkeys(KINDS, 0)
    # Cell by cell as they stand: lists of the strings of a slide take more memory than all else about its cells.
    for kind, name, is_counted in zip(detections.kinds, names, counted, strict=True):
        if is_counted and name == UNCLASSIFIED:
            unclassified[kind] += 1
        elif is_counted:
            named[name] += 1
    return Counts(named, unclassified, dict(excluded))


def kind_total(counts: Counts, kind: str, taxonomy: Taxonomy) -> int:
    """Counted cells of a kind, unclassified ones included."""
    return classified_total(counts, kind, taxonomy) + counts.unclassified.get(kind, 0)


def names_kind(labels: Labels, kind: str, taxonomy: Taxonomy) -> bool:
    """Whether the models of a result can give a code of this kind."""
    return not codes_given(labels).isdisjoint(taxonomy.codes_of(kind))


def kind_totals(counts: Counts, labels: Labels, taxonomy: Taxonomy) -> dict[str, int | None]:
    """Counted cells of each kind; None for nucleated red cells where no model tells them from white cells."""
    totals: dict[str, int | None] = {kind: kind_total(counts, kind, taxonomy) for kind in KINDS}
    if not (totals["nrbc"] or names_kind(labels, "nrbc", taxonomy)):
        totals["nrbc"] = None
    return totals


def classified_total(counts: Counts, kind: str, taxonomy: Taxonomy) -> int:
    """Counted cells of a kind that have a name: the denominator of its percentages."""
    return sum(counts.named.get(code, 0) for code in taxonomy.codes_of(kind))


def binomial_limits(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact limits of a proportion k of n (Clopper and Pearson 1934, Biometrika 26:404); NaN for n = 0.

    The basis of Rumke's table for differential counts (Rumke 1985, Am J Clin Pathol 84:256).
    """
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k = {k}, n = {n}")
    if n == 0:
        return math.nan, math.nan
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def poisson_limits(k: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact limits of the mean of a Poisson count k (Garwood 1936, Biometrika 28:437)."""
    if k < 0:
        raise ValueError(f"expected a count of zero or more, got {k}")
    from scipy.special import gammaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(gammaincinv(k, tail))
    return low, float(gammaincinv(k + 1, 1 - tail))


def percentage(k: int, n: int) -> Estimate:
    """K of n in per cent with exact binomial limits."""
    if n == 0:
        return NOTHING
    low, high = binomial_limits(k, n)
    return Estimate(100 * k / n, 100 * low, 100 * high)


def rate(x: int, y: int, per: float) -> Estimate:
    """X per `per` of y, with limits from the proportion p of x in x + y, turned to the ratio p / (1 - p)."""
    if y == 0:
        return NOTHING
    low, high = binomial_limits(x, x + y)
    return Estimate(per * x / y, per * low / (1 - low), per * high / (1 - high) if high < 1 else math.inf)


def density_per_mm2(k: int, area_um2: float) -> Estimate:
    """Cells a square millimetre with exact Poisson limits."""
    if not area_um2 > 0:
        return NOTHING
    low, high = poisson_limits(k)
    area_mm2 = area_um2 / 1e6
    return Estimate(k / area_mm2, low / area_mm2, high / area_mm2)
