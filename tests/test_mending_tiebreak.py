"""A tie-breaker on made-up cells whose truth is known: gain where the expert knows more, never a loss."""

import numpy as np
import pytest

from smearcount.arrays import FloatArray, Indices
from smearcount.mending.tiebreak import (
    Expert,
    TieBreaker,
    break_ties,
    choose_margin,
    confusable_pairs,
    confusion_counts,
    first_shared_pair,
    tiebreak_report,
)

CODES = ("normocyte", "spherocyte", "ovalocyte", "elliptocyte")
ROUND = ("normocyte", "spherocyte")
LONG = ("ovalocyte", "elliptocyte")


def oracle(labels: Indices, codes: tuple[str, ...], right: float = 0.9) -> Expert:
    """Gives the true code `right`, the rest evenly; is undecided about cells of other codes."""
    columns = np.array([CODES.index(code) for code in codes])

    def ask(rows: Indices) -> FloatArray:
        hit = labels[rows][:, None] == columns
        other = (1 - right) / (len(codes) - 1)
        return np.where(hit.any(axis=1, keepdims=True), np.where(hit, right, other), 1 / len(codes)).astype(np.float32)

    return Expert(codes, ask)


def generalist(seed: int, n: int = 600) -> tuple[FloatArray, Indices]:
    """Noisy probabilities of a net that confuses the members of each pair, and the truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    scores = rng.normal(0, 1.2, (n, 4))
    scores[np.arange(n), labels] += 2
    scores[np.arange(n), labels ^ 1] += 1.5
    exp = np.exp(scores)
    return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32), labels


def brute_asked(probs: FloatArray, breaker: TieBreaker) -> list[int]:
    """Which expert is asked about each cell, cell by cell; -1 for none."""
    asked = []
    for row in probs.astype(float):
        best, second = sorted(range(len(row)), key=lambda k: (-row[k], k))[:2]
        pair = {CODES[best], CODES[second]}
        fits = [
            index
            for index, (expert, margin) in enumerate(zip(breaker.experts, breaker.margins, strict=True))
            if pair <= set(expert.codes) and row[best] - row[second] < margin
        ]
        asked.append(fits[0] if fits else -1)
    return asked


def macro_f1(labels: Indices, given: Indices) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, given, labels=np.unique(labels), average="macro", zero_division=0.0))


def test_expert_shares_out_the_mass_of_the_pair() -> None:
    probs = np.array([[0.5, 0.4, 0.1, 0], [0.9, 0.1, 0, 0], [0.4, 0.1, 0.35, 0.15]], np.float32)
    breaker = TieBreaker(CODES, (oracle(np.array([1, 1, 0]), ROUND, 0.8),), (0.3,))
    heard, asked = break_ties(probs, breaker)
    np.testing.assert_allclose(heard[0], [0.18, 0.72, 0.1, 0], atol=1e-6)
    assert asked.tolist() == [True, False, False]
    np.testing.assert_array_equal(heard[1:], probs[1:])


def test_answers_follow_the_order_of_the_experts_own_codes() -> None:
    probs = np.array([[0.5, 0.4, 0.1, 0]], np.float32)
    swapped = Expert(ROUND[::-1], lambda rows: np.tile(np.float32([0.8, 0.2]), (len(rows), 1)))
    heard, _ = break_ties(probs, TieBreaker(CODES, (swapped,), (0.5,)))
    np.testing.assert_allclose(heard[0], [0.18, 0.72, 0.1, 0], atol=1e-6)


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.2, 0.5), (1.0, 1.0)])
def test_who_is_asked_agrees_with_the_rule_cell_by_cell(margins: tuple[float, float]) -> None:
    probs, labels = generalist(1)
    probs[:5] = 0.25
    probs[5:8] = (0.5, 0.5, 0, 0)
    breaker = TieBreaker(CODES, (oracle(labels, ROUND), oracle(labels, LONG)), margins)
    heard, asked = break_ties(probs, breaker)
    expected = np.array(brute_asked(probs, breaker))
    np.testing.assert_array_equal(asked, expected >= 0)
    assert asked.any() == any(margins)
    np.testing.assert_allclose(heard.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(heard[~asked], probs[~asked])
    untouched = np.array([[CODES[k] not in breaker.experts[e].codes for k in range(4)] for e in expected])
    np.testing.assert_array_equal(heard[asked[:, None] & untouched], probs[asked[:, None] & untouched])


def test_winner_of_a_pair_stays_in_the_pair() -> None:
    probs, labels = generalist(2)
    undecided = Expert(ROUND, lambda rows: np.full((len(rows), 2), 0.5, np.float32))
    heard, asked = break_ties(probs, TieBreaker(CODES, (undecided,), (1.0,)))
    assert asked.any()
    assert set(heard[asked].argmax(axis=1).tolist()) <= {0, 1}


def test_a_group_of_three_is_asked_for_any_two_of_them() -> None:
    probs = np.array([[0.4, 0.3, 0.2, 0.1], [0.2, 0.4, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32)
    group = Expert(CODES[:3], lambda rows: np.tile(np.float32([0, 0, 1]), (len(rows), 1)))
    heard, asked = break_ties(probs, TieBreaker(CODES, (group,), (0.2,)))
    assert asked.tolist() == [True, True, False]
    np.testing.assert_allclose(heard[:2], [[0, 0, 0.9, 0.1]] * 2, atol=1e-6)


def test_cells_without_a_classifier_and_codes_without_probability_are_left_alone() -> None:
    probs = np.array([[0, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    heard, asked = break_ties(probs, TieBreaker(CODES, (oracle(np.array([1, 1]), ROUND),), (1.0,)))
    assert not asked.any()
    np.testing.assert_array_equal(heard, probs)


def test_order_of_the_cells_changes_nothing() -> None:
    probs, labels = generalist(3)
    order = np.random.default_rng(0).permutation(len(probs))
    experts = [(oracle(part, ROUND, 0.7), oracle(part, LONG, 0.7)) for part in (labels, labels[order])]
    one = choose_margin(probs, labels, CODES, experts[0])
    other = choose_margin(probs[order], labels[order], CODES, experts[1])
    assert one.margins == other.margins
    np.testing.assert_array_equal(break_ties(probs, one)[0][order], break_ties(probs[order], other)[0])


def test_made_up_case_with_known_answer() -> None:
    # The expert is right on the two close calls and wrong on the clear ones: the best margin lies between.
    probs = np.array([[0.52, 0.48], [0.55, 0.45], [0.8, 0.2], [0.9, 0.1]], np.float32)
    labels = np.array([1, 1, 0, 0])
    always_second = Expert(ROUND, lambda rows: np.tile(np.float32([0.1, 0.9]), (len(rows), 1)))
    breaker = choose_margin(probs, labels, ROUND, (always_second,))
    assert 0.1 < breaker.margins[0] < 0.6
    report = tiebreak_report(probs, labels, breaker, generalist_seconds=0.001, expert_seconds=0.01)
    assert (report.accuracy_before, report.accuracy_after, report.asked / report.n) == (0.5, 1.0, 0.5)
    assert report.macro_f1_before == pytest.approx(1 / 3)
    assert report.macro_f1_after == 1.0
    assert report.generalist_seconds == pytest.approx(0.004)
    assert report.extra_seconds == pytest.approx(0.02)
    (expert,) = report.experts
    assert (expert.asked, expert.repaired, expert.spoiled) == (2, 2, 0)
    # Better than the expert alone as well, who names all four cells the same.
    assert report.accuracy_after > float((labels == 1).mean())


def test_a_bad_expert_is_never_asked() -> None:
    probs, labels = generalist(4)
    breaker = choose_margin(probs, labels, CODES, (oracle(labels ^ 1, ROUND), oracle(labels, LONG)))
    assert breaker.margins[0] == 0
    assert breaker.margins[1] > 0


def test_accuracy_is_not_bought_with_a_rare_code() -> None:
    # Naming every unsure cell the common code repairs three and spoils the only two of the rare one.
    labels = np.array([0] * 10 + [1] * 2)
    probs = np.array([[0.9, 0.1]] * 7 + [[0.45, 0.55]] * 5, np.float32)
    always_first = Expert(ROUND, lambda rows: np.tile(np.float32([0.9, 0.1]), (len(rows), 1)))
    report = tiebreak_report(probs, labels, TieBreaker(ROUND, (always_first,), (0.5,)), 1, 1)
    assert report.accuracy_after > report.accuracy_before
    assert report.macro_f1_after < report.macro_f1_before
    assert choose_margin(probs, labels, ROUND, (always_first,)).margins == (0.0,)


@pytest.mark.parametrize("seed", range(8))
def test_never_worse_than_the_generalist_on_the_cells_it_was_chosen_on(seed: int) -> None:
    probs, labels = generalist(seed, 150)
    noise = np.random.default_rng(seed + 100)
    rare = noise.random(150) < 0.3
    labels = np.where(rare, labels, 0)
    answers = noise.dirichlet((1, 1), (2, len(labels))).astype(np.float32)
    experts = (Expert(ROUND, lambda rows: answers[0, rows]), Expert(LONG, lambda rows: answers[1, rows]))
    report = tiebreak_report(probs, labels, choose_margin(probs, labels, CODES, experts), 1, 1)
    assert report.accuracy_after >= report.accuracy_before
    assert report.macro_f1_after >= report.macro_f1_before


def test_margin_is_the_best_of_all_where_only_accuracy_matters() -> None:
    probs, labels = generalist(5, 120)
    answers = np.random.default_rng(6).dirichlet((1, 1), len(labels)).astype(np.float32)
    answers[:, 1] += 2 * (labels == 1)
    answers /= answers.sum(axis=1, keepdims=True)
    expert = Expert(ROUND, lambda rows: answers[rows])
    chosen = tiebreak_report(probs, labels, choose_margin(probs, labels, CODES, (expert,)), 1, 1)
    every = [tiebreak_report(probs, labels, TieBreaker(CODES, (expert,), (m,)), 1, 1) for m in np.linspace(0, 1, 2001)]
    allowed = [r for r in every if r.macro_f1_after >= r.macro_f1_before]
    assert chosen.accuracy_after == max(r.accuracy_after for r in allowed)
    assert chosen.asked == min(
        r.asked
        for r in allowed
        if (r.accuracy_after, r.macro_f1_after) == (chosen.accuracy_after, chosen.macro_f1_after)
    )
    assert chosen.accuracy_after > chosen.accuracy_before


def test_report_agrees_with_scikit_learn() -> None:
    probs, labels = generalist(7)
    labels[labels == 3] = 2
    breaker = TieBreaker(CODES, (oracle(labels, ROUND), oracle(labels, LONG)), (0.3, 0.1))
    heard, asked = break_ties(probs, breaker)
    report = tiebreak_report(probs, labels, breaker, 1, 1)
    assert report.macro_f1_before == pytest.approx(macro_f1(labels, probs.argmax(axis=1)))
    assert report.macro_f1_after == pytest.approx(macro_f1(labels, heard.argmax(axis=1)))
    assert report.asked == asked.sum() == sum(expert.asked for expert in report.experts)
    gained = sum(expert.repaired - expert.spoiled for expert in report.experts)
    assert gained == round((report.accuracy_after - report.accuracy_before) * report.n) > 0


def test_most_confused_pairs_come_first() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, 3])
    given = np.array([1, 1, 0, 0, 3, 2, 3])
    probs = np.eye(4, dtype=np.float32)[given]
    first, second = confusable_pairs(probs, labels, CODES, 5)
    assert (first.first, first.second, first.first_as_second, first.second_as_first, first.total) == (*ROUND, 2, 1, 3)
    assert (second.first, second.second, second.total) == (*LONG, 1)
    assert confusable_pairs(probs, labels, CODES, 1) == (first,)


def test_confusion_counts_have_true_codes_in_rows() -> None:
    table = confusion_counts(np.array([0, 0, 2]), np.array([1, 0, 2]), 3)
    np.testing.assert_array_equal(table, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="expected indices from 0 to 1"):
        confusion_counts(np.array([0, 2]), np.array([0, 0]), 2)
    with pytest.raises(ValueError, match="at least one"):
        confusion_counts(np.zeros(0, np.intp), np.zeros(0, np.intp), 2)


@pytest.mark.parametrize(
    ("experts", "margins", "message"),
    [
        ((ROUND,), (), "expected 1 numbers"),
        ((ROUND,), (1.5,), "from 0 to 1"),
        ((("normocyte",),), (0.1,), "two or more"),
        ((("normocyte", "basophil"),), (0.1,), "out of"),
        ((ROUND, CODES[:3]), (0.1, 0.1), "belong to two"),
    ],
)
def test_contradictory_tie_breakers_are_refused(
    experts: tuple[tuple[str, ...], ...], margins: tuple[float, ...], message: str
) -> None:
    labels = np.zeros(1, np.intp)
    with pytest.raises(ValueError, match=message):
        TieBreaker(CODES, tuple(Expert(codes, lambda rows: labels) for codes in experts), margins)


@pytest.mark.parametrize(
    ("answer", "message"), [([0.5, 0.4], "sum to 1"), ([1.2, -0.2], "sum to 1"), ([0.2, 0.3, 0.5], "expected answers")]
)
def test_answers_that_are_no_distribution_are_refused(answer: list[float], message: str) -> None:
    expert = Expert(ROUND, lambda rows: np.tile(np.float32(answer), (len(rows), 1)))
    with pytest.raises(ValueError, match=message):
        break_ties(np.array([[0.5, 0.4, 0.1, 0]], np.float32), TieBreaker(CODES, (expert,), (1.0,)))


def test_probabilities_of_other_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        break_ties(np.full((2, 3), 1 / 3, np.float32), TieBreaker(CODES, (), ()))


def test_the_second_expert_of_a_pair_is_found() -> None:
    assert first_shared_pair([("a", "b"), ("b", "c"), ("c", "a")]) is None
    assert first_shared_pair([("a", "b"), ("d", "c"), ("c", "b", "a")]) == (2, ("a", "b"))
    assert first_shared_pair([]) is None
