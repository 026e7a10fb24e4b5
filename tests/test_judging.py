import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from smearcount.arrays import FloatArray, Indices
from smearcount.errors import DatasetError
from smearcount.judging import Judged, figures
from smearcount.judging.bootstrap import Rows, draw, interval
from smearcount.judging.figures import BINS, calibration_error, reliability_bins

VIEW = np.full((8, 8, 3), 200, np.uint8)


def judge(probs: npt.ArrayLike, allowed: list[int | tuple[int, ...]], **changes: Any) -> Judged:
    rows = np.asarray(probs, np.float32)
    n, k = rows.shape
    targets = np.zeros((n, k), np.bool_)
    for row, codes in enumerate(allowed):
        targets[row, codes] = True
    values: dict[str, Any] = {
        **{"codes": tuple("abcdefghij"[:k]), "origins": np.array([f"cell {i}" for i in range(n)], "<U20")},
        **{"sources": np.full(n, "one"), "views": [VIEW] * n},
    }
    return Judged(rows, targets, **{**values, **changes})


def sure_of(predictions: list[int], k: int) -> FloatArray:
    return np.asarray(np.eye(k)[predictions] * 0.9 + 0.1 / k, np.float32)


def drawn(n: int, k: int, seed: int, **changes: Any) -> Judged:
    """Cells whose labels follow the probabilities given."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, k))
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return judge(probs, labels.tolist(), **changes)


def test_confusion_and_codes_by_hand() -> None:
    report = figures(judge(sure_of([0, 0, 1, 1, 1, 0, 2], 3), [0, 0, 0, 1, 1, 1, 1]))
    assert report["confusion"] == [[2, 1, 0], [1, 2, 1], [0, 0, 0]]
    assert report["confusion_normalised"] == [[2 / 3, 1 / 3, 0], [0.25, 0.5, 0.25], [None, None, None]]
    first, second, third = report["per_class"]
    assert (first["support"], first["predicted"], third["support"], third["predicted"]) == (3, 3, 0, 1)
    assert [first[name] for name in ("precision", "recall", "f1")] == pytest.approx([2 / 3] * 3)
    assert [second[name] for name in ("precision", "recall", "f1")] == pytest.approx([2 / 3, 1 / 2, 4 / 7])
    assert third["recall"] is None
    assert report["accuracy"]["value"] == pytest.approx(4 / 7)
    # The third code has no cells, so it is no part of the means.
    assert report["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert report["macro_f1"]["value"] == pytest.approx((2 / 3 + 4 / 7) / 2)


def test_pairs_are_sorted_and_hold_every_wrong_cell() -> None:
    report = figures(judge(sure_of([1, 1, 0, 0, 2, 0], 3), [0, 0, 1, 2, 1, 0]))
    pairs = [(pair["true"], pair["predicted"], pair["count"]) for pair in report["confused_pairs"]]
    assert pairs == [("a", "b", 2), ("b", "a", 1), ("b", "c", 1), ("c", "a", 1)]
    assert report["confused_pairs"][0]["share"] == pytest.approx(2 / 3)


def test_perfect_predictor() -> None:
    labels = [0, 1, 2, 2, 1, 0, 0]
    report = figures(judge(np.eye(3)[labels], list(labels)))
    # No draw differs: 7 of 7 are at least 0.025 ** (1 / 7), and means over codes have no limits.
    for name in ("accuracy", "top2_accuracy"):
        assert report[name] == {"value": 1.0, "low": pytest.approx(0.025 ** (1 / 7)), "high": 1.0}
    for name in ("balanced_accuracy", "macro_f1"):
        assert report[name] == {"value": 1.0, "low": None, "high": None}
    assert (report["ece"], report["nll"]["value"], report["brier"]["value"]) == (0, 0, 0)
    assert report["confused_pairs"] == []


@pytest.mark.parametrize("k", [2, 3, 7])
def test_uniform_predictor_has_closed_forms(k: int) -> None:
    labels = [0] * 30 + [k - 1] * 20
    report = figures(judge(np.full((50, k), 1 / k), list(labels)))
    # The first code always wins, with a share of 0.6 right where 1 / k was said.
    assert report["accuracy"]["value"] == pytest.approx(0.6)
    assert report["ece"] == pytest.approx(abs(0.6 - 1 / k), abs=1e-6)
    assert report["nll"]["value"] == pytest.approx(math.log(k), rel=1e-6)
    assert report["brier"]["value"] == pytest.approx(1 - 1 / k, rel=1e-6)
    assert report["top2_accuracy"]["value"] == pytest.approx(1.0 if k == 2 else 0.6)


def test_means_agree_with_scikit_learn() -> None:
    judged = drawn(500, 5, 1)
    report, truth = figures(judged), judged.targets.argmax(axis=1)
    assert report["macro_f1"]["value"] == pytest.approx(f1_score(truth, judged.predictions, average="macro"))
    assert report["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(truth, judged.predictions))


def test_coarse_labels_are_left_out_and_counted() -> None:
    probs = sure_of([0, 1, 2, 1, 0], 3)
    exact = figures(judge(probs[:3], [0, 1, 1]))
    report = figures(judge(probs, [0, 1, 1, (0, 2), (0, 2)]))
    assert (report["n"], report["n_partial"], report["partial_right"]) == (3, 2, 0.5)
    assert report["sources"][0]["n_partial"] == 2
    same = set(report) - {"n_partial", "partial_right", "sources"}
    assert {name: report[name] for name in same} == {name: exact[name] for name in same}


def test_loss_of_a_coarse_label_is_that_of_the_sum() -> None:
    judged = judge([[0.5, 0.3, 0.2], [1, 0, 0], [1, 0, 0]], [(1, 2), 0, 1])
    assert judged.losses[:2].tolist() == pytest.approx([-math.log(0.5), 0])
    assert judged.losses[2] == pytest.approx(15.94, abs=0.01)
    assert judged.worst(2).tolist() == [2, 0]
    assert judged.truth(0) == "b|c"
    assert judged.right.tolist() == [False, True, False]


def test_bins_are_open_below_and_closed_above() -> None:
    bins = reliability_bins(np.array([1.0, 14 / 15, 0.9, 0.94]), np.array([True, False, True, True]))
    assert [entry["n"] for entry in bins[-2:]] == [2, 2]
    assert bins[0] == {"low": 0.0, "high": 1 / BINS, "n": 0, "confidence": None, "accuracy": None}
    low, high = 0.5 * abs((14 / 15 + 0.9) / 2 - 0.5), 0.5 * abs(0.97 - 1)
    assert calibration_error(bins) == pytest.approx(low + high)


def test_probabilities_that_are_true_have_a_small_calibration_error() -> None:
    judged = drawn(20_000, 4, 2)
    z = np.log(judged.probs)
    sharp = np.exp(3 * z) / np.exp(3 * z).sum(axis=1, keepdims=True)
    errors = [calibration_error(reliability_bins(probs.max(axis=1), judged.right)) for probs in (judged.probs, sharp)]
    assert errors[0] < 0.012
    assert errors[1] > 0.1


def coin_rows(n: int, p: float, rng: np.random.Generator, groups: Indices) -> Rows:
    right = (rng.random(groups.max() + 1) < p)[groups]
    zeros = np.zeros(n, np.intp)
    return Rows(zeros, np.where(right, 0, 1), groups, right[:, None].astype(np.float64), 2)


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(120):
        rows = coin_rows(200, 0.8, rng, np.arange(200))
        many = draw(rows, seed, 300)
        low, high = interval(many.means[:, 0], many.groups)
        covered += low <= 0.8 <= high
    # 95 % of 120 is 114; fewer than 105 or all of them would be 3 deviations or more away.
    assert 105 <= covered < 120


def test_interval_of_groups_is_as_wide_as_the_groups_are_few() -> None:
    groups = np.repeat(np.arange(100), 9)
    rows = coin_rows(900, 0.7, np.random.default_rng(6), groups)
    alone = Rows(rows.labels, rows.predictions, np.arange(900), rows.scores, 2)
    p = rows.scores.mean()
    for cells, n in ((rows, 100), (alone, 900)):
        many = draw(cells, 0)
        low, high = interval(many.means[:, 0], many.groups)
        # 1.96 standard errors of a share either side.
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / n), rel=0.1)
        accuracy = many.tables[:, 0, 0] / many.tables.sum(axis=(1, 2))
        assert accuracy == pytest.approx(many.means[:, 0])


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_few_groups_say_nothing_of_others(n_groups: int) -> None:
    groups = np.array([f"slide {row % n_groups}" for row in range(12)])
    report = figures(judge(sure_of([0, 1, 0] * 4, 2), [0, 1, 1] * 4, groups=groups))
    assert report["accuracy"] == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert (report["n_groups"], report["intervals"]) == (n_groups, "none")
    assert report["per_class"][0]["recall_low"] is None


def test_shares_of_independent_cells_have_exact_limits() -> None:
    """Clopper and Pearson: 3 of 4 lie from 0.194 to 0.994, 4 of 4 from 0.398; 4 of 5 from 0.284 to 0.995."""
    for groups in (None, np.array([f"patient {row}" for row in range(8)])):
        report = figures(judge(sure_of([0, 0, 0, 1, 1, 1, 1, 1], 2), [0, 0, 0, 0, 1, 1, 1, 1], groups=groups))
        first, second = report["per_class"]
        assert [first["recall_low"], first["recall_high"]] == pytest.approx([0.194, 0.994], abs=1e-3)
        assert [second["recall_low"], second["recall_high"]] == pytest.approx([0.398, 1], abs=1e-3)
        assert [second["precision_low"], second["precision_high"]] == pytest.approx([0.284, 0.995], abs=1e-3)
        assert report["intervals"] == "cells"


def test_draws_that_do_not_differ_are_no_interval() -> None:
    """Five slides, half of the cells of each named right: every draw has an accuracy of a half."""
    groups = np.repeat([f"slide {row}" for row in range(5)], 2)
    report = figures(judge(sure_of([0, 0] * 5, 2), [0, 1] * 5, groups=groups))
    # 5 of 10 lie from 0.187 to 0.813.
    assert [report["accuracy"][key] for key in ("low", "high")] == pytest.approx([0.187, 0.813], abs=1e-3)
    assert report["macro_f1"]["low"] is None
    assert report["intervals"] == "groups"


def test_order_of_cells_has_no_influence_where_groups_are_known() -> None:
    judged = drawn(300, 3, 7, groups=np.array([f"slide {i % 20}" for i in range(300)]))
    order = np.random.default_rng(0).permutation(300)
    assert judged.groups is not None
    mixed = Judged(
        *(judged.probs[order], judged.targets[order], judged.codes, judged.origins[order], judged.sources[order]),
        *(judged.views, judged.groups[order]),
    )
    first, second = figures(judged, 1), figures(mixed, 1)
    assert first["confusion"] == second["confusion"]
    assert first["macro_f1"] == second["macro_f1"]
    assert first["nll"] == pytest.approx(second["nll"])
    assert first["n_groups"] == 20
    assert figures(judged, 1) == first
    assert figures(judged, 2)["macro_f1"]["low"] != first["macro_f1"]["low"]


def test_order_of_codes_only_reorders() -> None:
    judged = drawn(300, 4, 8)
    turn = [2, 0, 3, 1]
    codes = tuple(judged.codes[i] for i in turn)
    turned = Judged(
        *(judged.probs[:, turn].copy(), judged.targets[:, turn].copy(), codes),
        *(judged.origins, judged.sources, judged.views),
    )
    first, second = figures(judged), figures(turned)
    assert np.array(first["confusion"])[np.ix_(turn, turn)].tolist() == second["confusion"]
    assert second["macro_f1"] == pytest.approx(first["macro_f1"])
    assert [first["per_class"][i] for i in turn] == [pytest.approx(entry) for entry in second["per_class"]]


def test_sources_add_up_to_the_whole() -> None:
    sources = np.array(["a", "b", "b", "c"] * 50)
    judged = drawn(200, 3, 9, sources=sources)
    report = figures(judged)
    parts = report["sources"]
    assert [part["source"] for part in parts] == ["a", "b", "c"]
    assert sum(part["n"] for part in parts) == report["n"]
    pooled = sum(part["n"] * part["accuracy"]["value"] for part in parts) / report["n"]
    assert pooled == pytest.approx(report["accuracy"]["value"])
    only = judge(sure_of([0, 1, 1], 2), [0, 1, (0, 1)], sources=np.array(["a", "a", "coarse"]))
    unknown = {"value": None, "low": None, "high": None}
    assert figures(only)["sources"][1] == {
        **{"source": "coarse", "n": 0, "n_partial": 1, "codes": 0},
        **{"accuracy": unknown, "macro_f1": unknown},
    }


def test_abstention_starts_with_the_accuracy_and_only_grows() -> None:
    report = figures(drawn(1000, 4, 10))
    curve = report["abstention"]
    assert curve[0] == {"threshold": 0.0, "abstained": 0.0, "accuracy": report["accuracy"]["value"]}
    assert (np.diff([row["abstained"] for row in curve]) >= 0).all()


def test_figures_are_ready_for_json() -> None:
    report = figures(judge(sure_of([0, 0], 3), [0, 0]))
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(DatasetError, match="none among 1"):
        figures(judge(sure_of([0], 3), [(0, 1)]))
    with pytest.raises(DatasetError, match="none among 0"):
        figures(judge(np.zeros((0, 3)), []))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origins": np.array(["x"])}, "expected 2 rows of everything"),
        ({"groups": np.array(["x"])}, "groups"),
        ({"views": [VIEW]}, "views"),
        ({"codes": ("a", "a", "b")}, "each once"),
        ({"codes": ("a", "b")}, "probs"),
    ],
)
def test_records_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(sure_of([0, 1], 3), [0, 1], **changes)


@pytest.mark.parametrize("row", [[0.5, 0.2, 0.2], [1.5, -0.5, 0], [math.nan, 0.5, 0.5]])
def test_rows_that_are_no_distribution_are_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        judge([row], [0])


def test_a_cell_without_a_label_is_refused() -> None:
    with pytest.raises(ValueError, match="without any code"):
        judge(sure_of([0], 3), [()])
