"""Agreement of found and labelled boxes: closed forms on shifted squares, and a slow average precision."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from smearcount.errors import RuntimeMissingError
from smearcount.geometry import iou_matrix
from smearcount.metrics import (
    BoxPair,
    average_precision,
    best_threshold,
    bootstrap_interval,
    count_error,
    evaluate_pairs,
    match_boxes,
)

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
ALL_KINDS = frozenset({0, 1, 2})


def boxes_at(*corners, side=20):
    return np.array([(x, y, x + side, y + side) for x, y in corners], np.float32).reshape(-1, 4)


def pair_of(found=(), true=(), image_id="a", group="look", labelled=ALL_KINDS, shift=0):
    """A picture from rows of (place, score, kind) and (place, kind); a place is a square of 20 px, 100 px apart."""
    return BoxPair(
        image_id,
        group,
        boxes_at(*((100 * place + shift, 0) for place, *_ in found)),
        np.array([score for _, score, _ in found], np.float32),
        np.array([kind for *_, kind in found], np.int64),
        boxes_at(*((100 * place, 0) for place, _ in true)),
        np.array([kind for _, kind in true], np.int64),
        frozenset(labelled),
    )


def random_pair(rng, image_id, group="look", labelled=ALL_KINDS):
    """A crowded picture on a coarse grid of coordinates and scores, so that overlaps and scores tie."""
    n_found, n_true = rng.integers(0, 25), rng.integers(0, 15)

    def boxes(n):
        corner = rng.integers(0, 12, (n, 2)) * 5
        return np.hstack([corner, corner + rng.integers(3, 6, (n, 2)) * 5]).astype(np.float32)

    true = boxes(n_true)
    found = np.vstack([boxes(n_found), true[: n_true // 2] + rng.integers(-1, 2, (n_true // 2, 1)) * 2])
    return BoxPair(
        image_id,
        group,
        found.astype(np.float32),
        (rng.integers(1, 10, len(found)) / 10).astype(np.float32),
        rng.integers(0, 3, len(found)),
        true,
        rng.integers(0, 3, n_true),
        frozenset(labelled),
    )


def slow_right(boxes, scores, true, min_iou):
    """Whether each found box is right, one box at a time: a list of (score, right), best score first."""
    free = sorted(range(len(true)), key=lambda t: tuple(true[t]))
    rows = []
    for row in sorted(range(len(boxes)), key=lambda f: (-scores[f], tuple(boxes[f]))):
        best, best_iou = None, min_iou
        for t in free:
            overlap = float(iou_matrix(boxes[row : row + 1].astype(float), true[t : t + 1].astype(float))[0, 0])
            if overlap >= best_iou and (best is None or overlap > best_iou):
                best, best_iou = t, overlap
        if best is not None:
            free.remove(best)
        rows.append((float(scores[row]), best is not None))
    return rows


def slow_average_precision(pairs, kind, min_iou):
    rows, n_true = [], 0
    for pair in pairs:
        if kind in pair.labelled:
            mine, true = (pair.found_kinds == kind, pair.true_boxes[pair.true_kinds == kind])
            rows += slow_right(pair.found_boxes[mine], pair.found_scores[mine], true, min_iou)
            n_true += len(true)
    if not n_true:
        return math.nan
    rows.sort(key=lambda row: -row[0])
    right = np.cumsum([hit for _, hit in rows]) if rows else np.zeros(0)
    precision, recall = right / np.arange(1, len(rows) + 1), right / n_true
    return np.mean([max(precision[recall >= level], default=0.0) for level in RECALLS])


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_equals_the_slow_one(seed):
    rng = np.random.default_rng(seed)
    labelled = [ALL_KINDS, {0, 1}, {1, 2}]
    pairs = [random_pair(rng, f"{i:02}", labelled=labelled[i % 3]) for i in range(8)]
    result = average_precision(pairs, 3)
    slow = np.array([[slow_average_precision(pairs, kind, overlap) for kind in range(3)] for overlap in OVERLAPS])
    assert 0.02 < slow[0].mean() < 0.98
    np.testing.assert_allclose(result.ap50, slow[0], atol=1e-9)
    np.testing.assert_allclose(result.ap50_95, slow.mean(axis=0), atol=1e-9)
    assert result.map50 == pytest.approx(slow[0].mean())
    assert result.map50_95 == pytest.approx(slow.mean())


@pytest.mark.parametrize(("shift", "passed"), [(0, 10), (1, 9), (2, 7), (3, 5), (4, 4), (5, 3), (6, 1), (7, 0)])
def test_average_precision_of_shifted_squares(shift, passed):
    # A square of side 20 shifted by d overlaps by (20 - d) / (20 + d): d = 1 gives 0.905, 5 gives 0.6, 7 gives 0.48.
    assert passed == sum((20 - shift) / (20 + shift) >= overlap for overlap in OVERLAPS)
    pair = pair_of([(0, 0.9, 0), (1, 0.8, 0)], [(0, 0), (1, 0)], shift=shift)
    result = average_precision([pair], 3)
    assert result.ap50_95[0] == pytest.approx(passed / 10)
    assert result.ap50[0] == pytest.approx(float(passed > 0))


def test_average_precision_in_closed_form():
    # Right, wrong, right of two: precision 1 up to recall 0.5 (51 levels), 2/3 beyond (50 levels).
    pair = pair_of([(0, 0.9, 0), (7, 0.8, 0), (1, 0.7, 0)], [(0, 0), (1, 0)])
    assert average_precision([pair], 3).ap50[0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_average_precision_of_ultralytics_in_closed_form():
    # The same boxes: straight lines between 101 points of the curve, the last of which lies at no precision.
    pair = pair_of([(0, 0.9, 0), (7, 0.8, 0), (1, 0.7, 0)], [(0, 0), (1, 0)])
    area = 0.5 + (0.01 / 2) * (2 / 3 - 1) + 0.5 * 2 / 3 - (0.01 / 2) * 2 / 3
    assert average_precision([pair], 3, "ultralytics").ap50[0] == pytest.approx(area)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_ultralytics_is_near_that_of_coco(seed):
    rng = np.random.default_rng(seed)
    labelled = [ALL_KINDS, {0, 1}, {1, 2}]
    pairs = [random_pair(rng, f"{i:02}", labelled=labelled[i % 3]) for i in range(8)]
    coco, ultralytics = (average_precision(pairs, 3, formula) for formula in ("coco", "ultralytics"))
    np.testing.assert_allclose(ultralytics.ap50, coco.ap50, atol=0.03)
    np.testing.assert_allclose(ultralytics.ap50_95, coco.ap50_95, atol=0.03)
    assert ultralytics.map50 != coco.map50


@pytest.mark.parametrize(("formula", "perfect"), [("coco", 1), ("ultralytics", 0.995)])
def test_kinds_without_labels_are_unknown_and_not_zero(formula, perfect):
    result = average_precision([pair_of([(0, 0.9, 0), (3, 0.9, 1)], [(0, 0), (1, 2)])], 3, formula)
    np.testing.assert_allclose(result.ap50, [perfect, np.nan, 0])
    np.testing.assert_allclose(result.ap50_95, [perfect, np.nan, 0])
    assert result.map50 == pytest.approx(perfect / 2)


@pytest.mark.parametrize("formula", ["coco", "ultralytics"])
@pytest.mark.parametrize("pairs", [[], [pair_of()], [pair_of([(0, 0.9, 0)])]], ids=["none", "empty", "no_labels"])
def test_nothing_labelled_is_unknown(pairs, formula):
    result = average_precision(pairs, 3, formula)
    assert np.isnan(result.ap50).all()
    assert math.isnan(result.map50)
    assert math.isnan(result.map50_95)


def test_nothing_found_is_zero():
    assert average_precision([pair_of(true=[(0, 0)])], 3).map50 == 0


def test_all_of_many_cells_count():
    # COCO looks at the first 100 boxes of a picture only: a field of red cells has more.
    cells = [(place, 0.5, 0) for place in range(250)]
    pair = pair_of(cells, [(place, kind) for place, _, kind in cells])
    assert average_precision([pair], 3).ap50_95[0] == pytest.approx(1)


def test_large_cells_count():
    side = 200_000
    big = np.array([[0, 0, side, side]], np.float32)
    pair = BoxPair("a", "look", big, np.ones(1, np.float32), np.zeros(1, int), big, np.zeros(1, int), frozenset({0}))
    assert average_precision([pair], 1).ap50_95[0] == pytest.approx(1)


def test_unlabelled_kinds_change_nothing():
    rng = np.random.default_rng(3)
    pairs = [random_pair(rng, str(i), labelled={0, 1}) for i in range(4)]
    stripped = []
    for pair in pairs:
        found, true = pair.found_kinds != 2, pair.true_kinds != 2
        found_part = {name: getattr(pair, name)[found] for name in ("found_boxes", "found_scores", "found_kinds")}
        true_part = {name: getattr(pair, name)[true] for name in ("true_boxes", "true_kinds")}
        stripped.append(replace(pair, **found_part, **true_part))
    assert any((pair.found_kinds == 2).any() and (pair.true_kinds == 2).any() for pair in pairs)
    names, scores = ("rbc", "wbc", "platelet"), (0.3, 0.3, 0.3)
    report = evaluate_pairs(pairs, names, scores)
    assert report == evaluate_pairs(stripped, names, scores)
    platelets = report["overall"]["kinds"]["platelet"]
    assert (platelets["n_fields"], platelets["found"], platelets["ap50"], platelets["f1"]) == (0, 0, None, None)


def f1_at(pairs, kind, min_score):
    """Figures of one kind as an evaluation reports them, without the intervals, which depend on the order."""
    names = ("rbc", "wbc", "platelet")
    figures = evaluate_pairs(pairs, names, dict.fromkeys(range(3), min_score))["overall"]["kinds"][names[kind]]
    return {name: value for name, value in figures.items() if "interval" not in name}


@pytest.mark.parametrize("formula", ["coco", "ultralytics"])
def test_order_has_no_influence(formula):
    rng = np.random.default_rng(8)
    pairs = [random_pair(rng, str(i)) for i in range(6)]
    shuffled = []
    for pair in reversed(pairs):
        found, true = (rng.permutation(len(pair.found_boxes)), rng.permutation(len(pair.true_boxes)))
        found_part = {name: getattr(pair, name)[found] for name in ("found_boxes", "found_scores", "found_kinds")}
        true_part = {name: getattr(pair, name)[true] for name in ("true_boxes", "true_kinds")}
        shuffled.append(replace(pair, **found_part, **true_part))
    first, second = average_precision(pairs, 3, formula), average_precision(shuffled, 3, formula)
    np.testing.assert_array_equal(first.ap50_95, second.ap50_95)
    assert f1_at(pairs, 0, 0.3) == f1_at(shuffled, 0, 0.3)


def test_average_precision_prints_nothing(capsys):
    average_precision([pair_of([(0, 0.9, 0)], [(0, 0)])], 3)
    assert capsys.readouterr() == ("", "")


def test_average_precision_without_its_library_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(RuntimeMissingError, match="pip install pycocotools"):
        average_precision([], 3)


def test_the_other_average_precision_without_its_library_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics.utils.metrics", None)
    with pytest.raises(RuntimeMissingError, match="pip install ultralytics"):
        average_precision([], 3, "ultralytics")


def test_a_kind_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="labelled kinds from 0 to 1"):
        average_precision([pair_of(labelled={2})], 2)


@pytest.mark.parametrize("shift", range(21))
def test_match_of_shifted_squares(shift):
    overlap = (20 - shift) / (20 + shift)
    square, moved, score = (boxes_at((0, 0)), boxes_at((0, shift)), np.ones(1, np.float32))
    for min_iou in (0.25, 0.5, 0.6, 0.75):
        assert len(match_boxes(moved, score, square, min_iou).found) == (overlap >= min_iou)


def test_each_labelled_box_is_used_once_and_by_the_best_score():
    found = boxes_at((2, 0), (0, 0), (300, 0))
    matches = match_boxes(found, np.array([0.9, 0.4, 0.6], np.float32), boxes_at((500, 0), (0, 0)))
    assert (matches.found.tolist(), matches.true.tolist()) == ([0], [1])
    assert (matches.unmatched_found.tolist(), matches.unmatched_true.tolist()) == ([1, 2], [0])


def test_a_found_box_takes_the_labelled_one_it_overlaps_most():
    matches = match_boxes(boxes_at((4, 0)), np.ones(1, np.float32), boxes_at((0, 0), (5, 0), (9, 0)))
    assert matches.true.tolist() == [1]


def test_ties_go_to_the_smaller_coordinates():
    found, true, equal = (boxes_at((6, 0), (0, 0)), boxes_at((4, 0), (0, 0)), np.full(2, 0.5, np.float32))
    assert match_boxes(found, equal, true).found.tolist() == [1, 0]
    assert match_boxes(boxes_at((2, 0)), equal[:1], true).true.tolist() == [1]


def test_average_precision_breaks_ties_as_the_matching_does():
    # The first found box lies midway between both labelled ones; only if it takes the left one, the second finds one.
    found, true = boxes_at((2, 0), (8, 0)), boxes_at((0, 0), (4, 0))
    scores, kinds = np.array([0.9, 0.5], np.float32), np.zeros(2, int)
    for order in ([0, 1], [1, 0]):
        pair = BoxPair("a", "look", found, scores, kinds, true[order], kinds, frozenset({0}))
        assert len(match_boxes(found, scores, true[order]).found) == 2
        assert average_precision([pair], 1).ap50[0] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(10))
def test_matches_equal_the_slow_ones_and_keep_each_index_once(seed):
    pair = random_pair(np.random.default_rng(seed), "a")
    matches = match_boxes(pair.found_boxes, pair.found_scores, pair.true_boxes, 0.4)
    assert sorted([*matches.found, *matches.unmatched_found]) == list(range(len(pair.found_boxes)))
    assert sorted([*matches.true, *matches.unmatched_true]) == list(range(len(pair.true_boxes)))
    slow = slow_right(pair.found_boxes, pair.found_scores, pair.true_boxes, 0.4)
    assert pair.found_scores[matches.found].tolist() == pytest.approx([score for score, right in slow if right])


@pytest.mark.parametrize(("n_found", "n_true"), [(0, 0), (2, 0), (0, 2)])
def test_match_of_nothing(n_found, n_true):
    found, true = boxes_at(*[(0, 0)] * n_found), boxes_at(*[(0, 0)] * n_true)
    matches = match_boxes(found, np.ones(n_found, np.float32), true)
    assert (len(matches.found), len(matches.unmatched_found), len(matches.unmatched_true)) == (0, n_found, n_true)


@pytest.mark.parametrize("min_iou", [0, 1.1, math.nan])
def test_match_refuses_an_impossible_overlap(min_iou):
    with pytest.raises(ValueError, match="min_iou"):
        match_boxes(boxes_at(), np.ones(0, np.float32), boxes_at(), min_iou)


def test_f1_pools_pictures_and_leaves_out_those_without_labels_of_the_kind():
    pairs = [
        pair_of([(0, 0.9, 0), (1, 0.7, 0), (2, 0.1, 0)], [(0, 0), (2, 0)]),
        pair_of([(0, 0.3, 0)], [(0, 0), (1, 0), (2, 1)]),
        pair_of([(0, 0.9, 0)], [(1, 0)], labelled={1}),
    ]
    result = f1_at(pairs, 0, 0.3)
    assert (result["tp"], result["fp"], result["fn"]) == (2, 1, 2)
    assert (result["precision"], result["recall"], result["f1"]) == (2 / 3, 2 / 4, 4 / 7)


def test_a_box_of_another_kind_is_no_match():
    result = f1_at([pair_of([(0, 0.9, 1)], [(0, 0)])], 0, 0.5)
    assert (result["tp"], result["fp"], result["fn"], result["recall"]) == (0, 0, 1, 0)
    assert result["precision"] is None


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_a_score_equal_to_the_threshold_is_found(threshold):
    pair = pair_of([(0, threshold, 0)], [(0, 0)])
    assert f1_at([pair], 0, np.float64(threshold))["tp"] == 1


def test_count_error_in_closed_form():
    pairs = [
        pair_of([(p, 0.9, 0) for p in range(3)], [(9, 0), (8, 0)]),
        pair_of([(0, 0.9, 0), (1, 0.2, 0)], [(p, 0) for p in range(4)]),
        pair_of([(0, 0.9, 0)]),
        pair_of([(0, 0.9, 0)], [(0, 0)], labelled={1}),
    ]
    result = count_error(pairs, 0, 0.5)
    assert (result.found, result.true, result.fields) == (5, 6, 2)
    assert result.pooled_relative == pytest.approx(-1 / 6)
    assert result.mean_absolute_relative == pytest.approx((1 / 2 + 3 / 4) / 2)


def test_count_error_without_cells_is_unknown():
    result = count_error([pair_of([(0, 0.9, 0)])], 0, 0.5)
    assert (result.found, result.true, result.fields) == (1, 0, 0)
    assert math.isnan(result.pooled_relative)
    assert math.isnan(result.mean_absolute_relative)


def test_best_threshold_balances_the_count_among_the_best_f1():
    # 1000 cells: at 0.5 3 too many and F1 0.9935, at 0.6 5 too few and the best F1 of 0.9975.
    right = [(place, 0.9, 0) for place in range(995)]
    wrong = [(5000 + place, 0.55, 0) for place in range(8)]
    pair = pair_of([*right, *wrong], [(place, 0) for place in range(1000)])
    best, balanced = (f1_at([pair], 0, threshold)["f1"] for threshold in (0.6, 0.5))
    assert best > balanced > best - 0.005
    assert best_threshold([pair], 0, [0.95, 0.6, 0.5]) == 0.5
    few = replace(pair, found_scores=np.where(pair.found_scores > 0.8, np.float32(0.9), np.float32(0.3)))
    assert best_threshold([few], 0, [0.1, 0.2, 0.3]) == 0.1


def test_best_threshold_prefers_f1_to_a_lucky_count():
    right = [(place, 0.9, 0) for place in range(8)]
    wrong = [(50 + place, 0.4, 0) for place in range(2)]
    pair = pair_of([*right, *wrong], [(place, 0) for place in range(10)])
    assert count_error([pair], 0, 0.3).pooled_relative == 0
    assert best_threshold([pair], 0, np.arange(1, 20) / 20) == pytest.approx(0.45)


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_equals_the_slow_search(seed):
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng, str(i)) for i in range(6)]
    thresholds = np.arange(1, 20) / 20
    rows = []
    for threshold in thresholds.tolist():
        f1 = f1_at(pairs, 1, threshold)["f1"]
        rows.append((abs(count_error(pairs, 1, threshold).pooled_relative), -f1, threshold))
    best = max(-row[1] for row in rows)
    expected = min(row for row in rows if -row[1] >= best - 0.005)[2]
    assert best_threshold(pairs, 1, rng.permutation(thresholds)) == expected


@pytest.mark.parametrize(("pairs", "thresholds"), [([], [0.5]), ([pair_of([(0, 0.9, 0)])], [0.5]), ([pair_of()], [])])
def test_best_threshold_of_nothing_is_an_error(pairs, thresholds):
    with pytest.raises(ValueError, match="expected thresholds and labelled cells"):
        best_threshold(pairs, 0, thresholds)


def test_bootstrap_interval_is_that_of_the_normal_mean():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values, lambda rows: float(rows.mean()), seed=2, n=4000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(values, np.mean, seed=3) == bootstrap_interval(values, np.mean, seed=3)
    assert bootstrap_interval(values, np.mean, seed=3) != bootstrap_interval(values, np.mean, seed=4)


def test_bootstrap_draws_whole_fields():
    rows = np.repeat(np.arange(5), 2).reshape(5, 2)
    seen = []
    bootstrap_interval(rows, lambda drawn: seen.append(drawn) or 0.0, seed=0, n=20)
    assert len(seen) == 20
    assert all(drawn.shape == (5, 2) and (drawn[:, 0] == drawn[:, 1]).all() for drawn in seen)


def test_bootstrap_of_one_value_is_that_value_and_of_one_field_unknown():
    assert bootstrap_interval(np.full(10, 3.0), np.mean, seed=0) == (3, 3)
    for values in (np.ones(1), np.ones(0)):
        assert np.isnan(bootstrap_interval(values, np.sum, seed=0)).all()


def test_bootstrap_leaves_out_draws_without_a_value():
    values = np.array([0.0, 4.0])
    low, high = bootstrap_interval(values, lambda drawn: math.nan if drawn.sum() == 0 else drawn.mean(), seed=0)
    assert (low, high) == (2, 4)
    assert np.isnan(bootstrap_interval(values, lambda drawn: math.nan, seed=0)).all()


def two_looks():
    """Red cells perfect in one look, half in the other; platelets only in the second, none in the third."""
    first = pair_of([(0, 0.9, 0), (5, 0.9, 2)], [(0, 0), (7, 2)], group="first")
    second = pair_of([(0, 0.9, 0), (5, 0.9, 2)], [(0, 0), (1, 0), (5, 2)], "b", "second")
    third = pair_of([(0, 0.9, 0), (5, 0.9, 2)], [(0, 0)], "c", "third", {0, 1})
    return {"first": [first], "second": [second], "third": [third]}


def test_pooled_map_takes_platelets_from_all_groups():
    groups = two_looks()
    pairs = [pair for members in groups.values() for pair in members]
    result = evaluate_pairs(pairs, ("rbc", "wbc", "platelet"), dict.fromkeys(range(3), 0.5))["groups"]
    # Platelets over all: one right and one wrong of equal score, of two; the wrong one of the first look comes first.
    platelet = 51 * 0.5 / 101
    half = 51 / 101
    assert platelet == pytest.approx(average_precision([*groups["first"], *groups["second"]], 3).ap50[2])
    assert result["first"]["pooled_map50"] == pytest.approx((1 + platelet) / 2)
    assert result["second"]["pooled_map50"] == pytest.approx((half + platelet) / 2)
    assert result["second"]["pooled_map50_95"] == pytest.approx((half + platelet) / 2)
    # Never labelled there: no part of that look's mean.
    assert result["third"]["pooled_map50"] == pytest.approx(1)
    assert [result["third"]["kinds"][name]["ap50"] for name in ("wbc", "platelet")] == [None, None]


def test_evaluation_is_json_and_agrees_with_its_parts():
    groups = two_looks()
    pairs = [pair for members in groups.values() for pair in members]
    report = evaluate_pairs(pairs, ("rbc", "wbc", "platelet"), {0: 0.5, 1: 0.4, 2: 0.3})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["groups"]) == ["first", "second", "third"]
    red = report["overall"]["kinds"]["rbc"]
    assert (red["n_fields"], red["fields"], red["true"], red["found"]) == (3, 3, 4, 3)
    assert (red["tp"], red["fp"], red["fn"], red["min_score"]) == (3, 0, 1, 0.5)
    assert red["f1"] == pytest.approx(6 / 7)
    assert red["f1_interval"][0] <= red["f1"] <= red["f1_interval"][1]
    assert red["pooled_relative"] == pytest.approx(-1 / 4)
    assert red["pooled_relative_interval"] == pytest.approx([-1 / 2, 0], abs=0.1)
    assert red["mean_absolute_relative"] == pytest.approx(1 / 6)
    assert report["overall"]["map50"] == average_precision(pairs, 3).map50
    for group in groups:
        assert report["groups"][group]["map50"] == average_precision(groups[group], 3).map50
    assert report["overall"]["ultralytics_map50"] == average_precision(pairs, 3, "ultralytics").map50
    assert report["overall"]["kinds"]["wbc"]["ap50"] is None
    assert report["groups"]["first"]["kinds"]["rbc"]["f1_interval"] == [None, None]


def test_average_precision_is_that_of_the_curve_and_all_else_of_what_is_counted():
    counted = pair_of([(0, 0.9, 0)], [(0, 0), (1, 0)])
    curve = pair_of([(0, 0.9, 0), (1, 0.01, 0)], [(0, 0), (1, 0)])
    report = evaluate_pairs([counted], ("rbc", "wbc", "platelet"), (0.001,) * 3, [curve])
    red = report["groups"]["look"]["kinds"]["rbc"]
    assert (red["found"], red["f1"], red["ap50"]) == (1, pytest.approx(2 / 3), pytest.approx(1))
    assert report["groups"]["look"]["pooled_map50"] == report["overall"]["map50"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("found_boxes", np.zeros((1, 4))),
        ("found_boxes", np.full((1, 4), np.nan, np.float32)),
        ("found_scores", np.zeros(2, np.float32)),
        ("found_scores", np.full(1, np.inf, np.float32)),
        ("found_kinds", np.zeros(1, np.float32)),
        ("true_boxes", np.zeros((1, 5), np.float32)),
        ("true_boxes", np.zeros((1, 4), np.float32)),
        ("true_kinds", np.zeros(0, int)),
    ],
)
def test_pair_refuses_wrong_arrays(name, value):
    with pytest.raises(ValueError, match=name):
        replace(pair_of([(0, 0.9, 0)], [(0, 0)]), **{name: value})
