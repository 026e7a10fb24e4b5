"""Counts, the counting frame and the limits, against published tables, defining sums and an exact tiling."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Cells, unasked

from smearcount.arrays import FloatArray
from smearcount.counting import (
    Estimate,
    binomial_limits,
    classified_total,
    codes_given,
    count_cells,
    counted_mask,
    density_per_mm2,
    final_kinds,
    kind_total,
    kind_totals,
    name_cells,
    names_kind,
    percentage,
    poisson_limits,
    rate,
)
from smearcount.records import UNCLASSIFIED, Counts, Labels
from smearcount.taxonomy import Taxonomy


# Exact limits in per cent as printed in tables of Clopper and Pearson's, which Rumke's (n = 100) rounds.
@pytest.mark.parametrize(
    ("k", "n", "low", "high", "digits"),
    [
        (5, 100, 1.64, 11.28, 2),
        (0, 100, 0.0, 3.62, 2),
        (100, 100, 96.38, 100.0, 2),
        (10, 100, 4.9, 17.6, 1),
        (50, 100, 39.8, 60.2, 1),
        (1, 100, 0.0, 5.4, 1),
        (3, 10, 6.67, 65.25, 2),
        (0, 10, 0.0, 30.85, 2),
    ],
)
def test_binomial_limits_of_the_tables(k: int, n: int, low: float, high: float, digits: int) -> None:
    share = percentage(k, n)
    assert share.value == 100 * k / n
    assert (round(share.low, digits), round(share.high, digits)) == (low, high)


@pytest.mark.parametrize(
    ("k", "low", "high"),
    [(0, 0, 3.689), (1, 0.025, 5.572), (5, 1.623, 11.668), (10, 4.795, 18.390), (100, 81.36, 121.63)],
)
def test_poisson_limits_of_the_tables(k: int, low: float, high: float) -> None:
    assert poisson_limits(k) == pytest.approx((low, high), abs=0.006 if k == 100 else 0.0006)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize(("k", "n"), [(1, 7), (3, 20), (19, 20), (37, 150)])
def test_binomial_limits_leave_half_the_error_in_each_tail(k: int, n: int, confidence: float) -> None:
    def mass(first: int, last: int, p: float) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(first, last + 1))

    low, high = binomial_limits(k, n, confidence)
    tail = (1 - confidence) / 2
    assert mass(k, n, low) == pytest.approx(tail, rel=1e-6)
    assert mass(0, k, high) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_poisson_limits_leave_half_the_error_in_each_tail(k: int) -> None:
    def up_to(last: int, mean: float) -> float:
        return sum(math.exp(-mean) * mean**i / math.factorial(i) for i in range(last + 1))

    low, high = poisson_limits(k)
    assert 1 - up_to(k - 1, low) == pytest.approx(0.025, rel=1e-6)
    assert up_to(k, high) == pytest.approx(0.025, rel=1e-6)


def test_limits_mirror_and_refuse_the_impossible() -> None:
    low, high = binomial_limits(12, 80)
    assert binomial_limits(68, 80) == pytest.approx((1 - high, 1 - low))
    for k, n in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"k = {k}, n = {n}"):
            binomial_limits(k, n)
    with pytest.raises(ValueError, match="-3"):
        poisson_limits(-3)


def is_nothing(estimate: Estimate) -> bool:
    return all(math.isnan(v) for v in (estimate.value, estimate.low, estimate.high))


def test_nothing_observed_is_nothing_said() -> None:
    assert is_nothing(percentage(0, 0))
    assert is_nothing(rate(5, 0, 100))
    assert is_nothing(density_per_mm2(5, 0))
    assert all(math.isnan(v) for v in binomial_limits(0, 0))


@pytest.mark.parametrize(("x", "y", "per"), [(0, 40, 100.0), (7, 100, 100.0), (300, 20, 1000.0), (1, 1, 1.0)])
def test_a_rate_has_the_limits_of_its_proportion(x: int, y: int, per: float) -> None:
    found, (low, high) = rate(x, y, per), binomial_limits(x, x + y)
    assert found.value == per * x / y
    assert (found.low, found.high) == pytest.approx((per / (1 / low - 1) if low else 0.0, per / (1 / high - 1)))
    assert found.low <= found.value <= found.high


def test_a_density_is_a_count_by_its_area() -> None:
    found = density_per_mm2(10, 2e6)
    assert (found.value, found.low, found.high) == pytest.approx((5.0, 4.795 / 2, 18.390 / 2), abs=0.001)


def parts_of(boxes: FloatArray, plane: int, part: int, shift: tuple[int, int]) -> Iterator[FloatArray]:
    """Boxes as the non-overlapping square parts of a plane that closes on itself see them, cut off at each part."""
    for y in range(0, plane, part):
        for x in range(0, plane, part):
            # The copy of a box that begins before the part is the one that may reach into it.
            corner = (boxes[:, :2] - (x + shift[0], y + shift[1]) + plane / 2) % plane - plane / 2
            seen = np.concatenate([corner, corner + boxes[:, 2:] - boxes[:, :2]], axis=1)
            cut = np.clip(seen, 0, part)
            yield cut[(cut[:, 2:] > cut[:, :2]).all(axis=1)]


def test_the_counting_frame_is_unbiased() -> None:
    """Over all places of the grid of parts, each cell counts in exactly the share of places that the area says."""
    rng = np.random.default_rng(1)
    plane, part, um_per_px, n = 96, 32, 0.5, 25
    corner, size = rng.integers(0, plane, (n, 2)), rng.integers(7, 16, (n, 1))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    counted, area_um2, every = 0, 0.0, 0
    for shift in np.ndindex(part, part):
        for seen in parts_of(boxes, plane, part, shift):
            mask, area = counted_mask(seen, (part, part), um_per_px)
            counted, area_um2, every = counted + int(mask.sum()), area_um2 + area, every + len(seen)
    per_place = part**2
    assert area_um2 / per_place == 9 * (32 - 6 - 2) ** 2 * 0.25
    assert counted / area_um2 == pytest.approx(n / (plane * um_per_px) ** 2, rel=1e-12)
    # Counting all that is seen would have doubled the density.
    assert every / per_place > 1.5 * n


@pytest.mark.parametrize("diameter_um", [2.5, 7.5, 14.0])
def test_parts_and_whole_have_the_same_density(diameter_um: float) -> None:
    rng = np.random.default_rng(7)
    um_per_px, plane, part, n = 0.2, 6000, 500, 9000
    side = diameter_um / um_per_px * rng.uniform(0.8, 1.2, (n, 1))
    corner = rng.uniform(0, plane, (n, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    seen = [counted_mask(b, (part, part), um_per_px) for b in parts_of(boxes, plane, part, (0, 0))]
    k, area = sum(int(mask.sum()) for mask, _ in seen), sum(one for _, one in seen)
    whole_mask, whole_area = counted_mask(boxes, (plane, plane), um_per_px)
    found, whole = k / area, whole_mask.sum() / whole_area
    truth = n / (plane * um_per_px) ** 2
    assert found == pytest.approx(truth, rel=4 / math.sqrt(n) * 0.5)
    assert whole == pytest.approx(truth, rel=4 / math.sqrt(n) * 0.5)


@pytest.mark.parametrize("guard_px", [6, 15])
def test_an_ideal_tiling_counts_every_cell_once(guard_px: int) -> None:
    """Pictures that overlap by the guard and the inset: their frames tile the plane."""
    rng = np.random.default_rng(2)
    part, um_per_px = (120, 90), 3.0 / guard_px
    step = part[0] - guard_px - 2, part[1] - guard_px - 2
    corner = rng.uniform(2, [2 + 5 * step[0], 2 + 4 * step[1]], (400, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + 20], axis=1)
    times = np.zeros(len(boxes), int)
    for column, row in np.ndindex(5, 4):
        moved = boxes - np.array([column * step[0], row * step[1]] * 2, np.float32)
        times += counted_mask(moved, part, um_per_px)[0]
    assert times.tolist() == [1] * len(boxes)


def test_the_frame_has_its_bounds_and_may_be_left_out() -> None:
    boxes = np.array([[2, 2, 9, 9], [1.9, 50, 9, 60], [84.9, 5, 99, 9], [85, 5, 99, 9], [50, 35, 60, 50]], np.float32)
    mask, area = counted_mask(boxes, (100, 50), 0.2)  # g = 15 px
    assert mask.tolist() == [True, False, True, False, False]
    assert area == pytest.approx(83 * 33 * 0.04)
    mask, area = counted_mask(boxes, (100, 50), 0.2, "all")
    assert (mask.all(), area) == (True, pytest.approx(200))
    assert counted_mask(boxes, (10, 10), 0.2)[1] == 0
    with pytest.raises(ValueError, match="'left'"):
        counted_mask(boxes, (10, 10), 0.2, "left")


def test_a_higher_threshold_only_takes_names_away() -> None:
    rng = np.random.default_rng(4)
    codes = ("normocyte", "target_cell", "neutrophil")
    probs = rng.dirichlet((0.6, 0.6, 0.6), 200).astype(np.float32)
    kinds = np.array(["rbc"] * 200)
    before = np.array(codes)[probs.argmax(axis=1)]
    unnamed = 0
    for threshold in np.linspace(0, 1.01, 23):
        names = name_cells(kinds, Labels(probs, codes), float(threshold))
        assert np.all((names == before) | (names == UNCLASSIFIED))
        now = int((names == UNCLASSIFIED).sum())
        assert now >= unnamed
        before, unnamed = np.where(names == UNCLASSIFIED, UNCLASSIFIED, before), now
    assert unnamed == 200


def test_names_without_a_classifier() -> None:
    kinds = np.array(["rbc", "platelet", "wbc", "platelet"])
    assert name_cells(kinds, unasked(4), 0.5).tolist() == [UNCLASSIFIED, "platelet", UNCLASSIFIED, "platelet"]
    asked = Labels(np.array([[0, 0], [0, 0], [0.1, 0.9], [0.55, 0.45]], np.float32), ("basophil", "monocyte"))
    for threshold in (0.0, 0.5):
        names = name_cells(kinds, asked, threshold).tolist()
        assert names == [UNCLASSIFIED, "platelet", "monocyte", "basophil"]
    assert name_cells(kinds[:0], Labels(np.zeros((0, 2), np.float32), ("a", "b")), 0.5).shape == (0,)


def test_a_named_erythroblast_is_no_white_cell(cells: Cells, taxonomy: Taxonomy) -> None:
    names = np.array(["erythroblast", UNCLASSIFIED, "neutrophil", "neutrophil", UNCLASSIFIED, "platelet"])
    before = np.array(["wbc", "wbc", "wbc", "wbc", "rbc", "platelet"])
    kinds = final_kinds(before, names, taxonomy)
    assert kinds.tolist() == ["nrbc", "wbc", "wbc", "wbc", "rbc", "platelet"]
    counted = np.array([True, True, True, False, True, True])
    counts = count_cells(
        cells(np.zeros((6, 4)), kinds.tolist()), names, counted, {"edge": int((~counted).sum())}, taxonomy
    )
    assert counts.excluded == {"edge": 1}
    totals = {kind: kind_total(counts, kind, taxonomy) for kind in ("rbc", "wbc", "nrbc", "platelet")}
    assert totals == {"rbc": 1, "wbc": 2, "nrbc": 1, "platelet": 1}
    assert classified_total(counts, "wbc", taxonomy) == 1
    assert sum(totals.values()) + 1 == len(names)
    assert final_kinds(before[:0], names[:0], taxonomy).shape == (0,)


def test_fields_pool_to_the_slide(cells: Cells, taxonomy: Taxonomy) -> None:
    rng = np.random.default_rng(8)
    names = rng.choice(["normocyte", "target_cell", "neutrophil", "platelet", UNCLASSIFIED], 90)
    kinds = final_kinds(np.array(["rbc"] * 90), names, taxonomy)
    counted = rng.random(90) < 0.8
    whole = cells(np.zeros((90, 4)), kinds.tolist())
    total = Counts()
    for rows in np.array_split(rng.permutation(90), 7):
        total = total + count_cells(
            whole.take(rows), names[rows], counted[rows], {"edge": int((~counted[rows]).sum())}, taxonomy
        )
    assert total == count_cells(whole, names, counted, {"edge": int((~counted).sum())}, taxonomy)


def test_nucleated_red_cells_are_unknown_without_a_model_for_them(taxonomy: Taxonomy) -> None:
    counts = Counts({"platelet": 2}, {"rbc": 4, "wbc": 3})
    without, white = unasked(9), Labels(np.zeros((9, 2), np.float32), ("neutrophil", "monocyte"))
    both = Labels(np.zeros((9, 2), np.float32), ("neutrophil", "erythroblast"))
    assert codes_given(without) == {"platelet"}
    assert codes_given(white) == {"platelet", "neutrophil", "monocyte"}
    assert [names_kind(white, kind, taxonomy) for kind in ("rbc", "wbc", "nrbc")] == [False, True, False]
    for labels, n in ((without, None), (white, None), (both, 0)):
        assert kind_totals(counts, labels, taxonomy) == {"rbc": 4, "wbc": 3, "nrbc": n, "platelet": 2}
    # A detector may tell them apart by itself.
    seen = Counts({}, {"nrbc": 1})
    assert kind_totals(seen, without, taxonomy)["nrbc"] == 1
