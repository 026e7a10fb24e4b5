import math

import numpy as np
import pytest

from smearcount.arrays import Bools, Indices
from smearcount.calibration import TEMPERATURES, abstention_rows, fit_temperature


def one_hot(labels: Indices, k: int) -> Bools:
    return np.asarray(np.eye(k, dtype=np.bool_)[labels])


def two_way(n: int, right: int) -> Bools:
    return one_hot(np.where(np.arange(n) < right, 0, 1), 2)


def smoothed(right: float, n: int) -> float:
    """Mean of Platt's targets where a share of n cells is right."""
    return (right * (n + 1) + (1 - right)) / (n + 2)


@pytest.mark.parametrize(("gap", "right"), [(4.0, 90), (1.0, 60), (0.3, 99)])
def test_temperature_of_two_codes_is_the_closed_form(gap: float, right: int) -> None:
    # The cross-entropy is least where sigmoid(gap / T) is the mean of the targets.
    logits = np.tile(np.float32([gap, 0]), (100, 1))
    share = smoothed(right / 100, 100)
    assert fit_temperature(logits, two_way(100, right)) == pytest.approx(gap / math.log(share / (1 - share)), rel=1e-4)


@pytest.mark.parametrize("n", [8, 40, 200])
def test_a_few_cells_that_are_all_right_do_not_end_in_certainty(n: int) -> None:
    rng = np.random.default_rng(n)
    targets = one_hot(np.arange(n) % 3, 3)
    logits = (rng.normal(0, 1, (n, 3)) + 12 * targets).astype(np.float32)
    fitted = fit_temperature(logits, targets)
    assert fitted > 1
    odds = np.exp((logits - logits.max(axis=1, keepdims=True)) / fitted)
    assert (odds.max(axis=1) / odds.sum(axis=1)).mean() == pytest.approx((n + 1) / (n + 2), abs=0.01)
    # A cell that is hardly more like one code than like another is not named with certainty.
    assert 1 / (1 + math.exp(-1 / fitted)) < 0.75


@pytest.mark.parametrize("true_t", [0.4, 1.0, 2.5])
def test_temperature_recovers_a_known_scaling(true_t: float) -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(0, 2, (20_000, 5))
    # The largest of z + Gumbel noise is a draw from softmax(z).
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    assert fit_temperature((true_t * z).astype(np.float32), one_hot(labels, 5)) == pytest.approx(true_t, rel=0.03)


def test_temperature_of_partial_labels_is_the_closed_form() -> None:
    # 30 of 100 cells are "the second or the third": 2 / (exp(a / T) + 2) of the softmax.
    targets = np.zeros((100, 3), np.bool_)
    targets[:70, 0], targets[70:, 1:] = True, True
    logits, share = np.tile(np.float32([3, 0, 0]), (100, 1)), smoothed(0.7, 100)
    assert fit_temperature(logits, targets) == pytest.approx(3 / math.log(2 * share / (1 - share)), rel=1e-4)


def test_cells_that_may_be_anything_have_no_influence() -> None:
    logits = np.tile(np.float32([2, 0]), (100, 1))
    targets = two_way(100, 80)
    more = np.concatenate([logits, np.float32([[9, -9]] * 50)]), np.concatenate([targets, np.ones((50, 2), np.bool_)])
    assert fit_temperature(*more) == fit_temperature(logits, targets)


def test_temperature_does_not_change_with_a_shift_or_large_logits() -> None:
    logits, targets = np.tile(np.float32([2, 0]), (100, 1)), two_way(100, 80)
    assert fit_temperature(logits + 3000, targets) == pytest.approx(fit_temperature(logits, targets), rel=1e-4)


@pytest.mark.parametrize(("gap", "right", "limit"), [(0.1, 100, TEMPERATURES[0]), (2.0, 20, TEMPERATURES[1])])
def test_temperature_ends_at_its_limits(gap: float, right: int, limit: float) -> None:
    logits = np.tile(np.float32([gap, 0]), (100, 1))
    assert fit_temperature(logits, two_way(100, right)) == pytest.approx(limit)


def test_the_temperature_of_thousands_of_cells_hardly_moves() -> None:
    """The targets of 4,000 cells are 1 and 0 but for one cell's worth of doubt."""
    rng = np.random.default_rng(5)
    z = rng.normal(0, 4, (4_000, 5))
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    hard = np.linspace(0.7, 1.4, 701)
    losses = [float((np.log(np.exp(z / t).sum(axis=1)) - z[np.arange(4_000), labels] / t).mean()) for t in hard]
    assert fit_temperature(z, one_hot(labels, 5)) == pytest.approx(hard[int(np.argmin(losses))], rel=0.01)


def test_wrong_arrays_are_refused() -> None:
    logits, targets = np.zeros((3, 2), np.float32), two_way(3, 2)
    with pytest.raises(ValueError, match="rule some code out"):
        fit_temperature(logits, np.ones((3, 2), np.bool_))
    with pytest.raises(ValueError, match="without any code"):
        fit_temperature(logits, np.zeros((3, 2), np.bool_))
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.full((3, 2), np.nan, np.float32), targets)
    with pytest.raises(ValueError, match="targets"):
        abstention_rows(np.zeros((3, 3), np.float32), targets, (0.5,))
    with pytest.raises(ValueError, match="at least one cell"):
        abstention_rows(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.bool_), (0.5,))


def test_abstention_by_hand() -> None:
    probs = np.float32([[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.3, 0.3]])
    targets = one_hot(np.array([0, 1, 1, 0]), 3)
    targets[3] = [False, True, True]
    rows = abstention_rows(probs, targets, (0, 0.7, 0.8, 0.95))
    # A cell at the threshold itself keeps its name.
    assert rows[:3] == [(0.0, 0.0, 0.5), (0.7, 0.5, 1.0), (0.8, 0.75, 1.0)]
    assert rows[3][:2] == (0.95, 1.0)
    assert math.isnan(rows[3][2])


def test_abstention_is_monotone_and_accuracy_grows_where_probabilities_are_true() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(0, 2, (20_000, 4))
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    rows = abstention_rows(probs.astype(np.float32), one_hot(labels, 4), np.linspace(0, 0.95, 20))
    assert (np.diff([share for _, share, _ in rows]) >= 0).all()
    assert (np.diff([accuracy for _, _, accuracy in rows]) > -0.003).all()
    assert rows[-1][2] > rows[0][2] + 0.2
