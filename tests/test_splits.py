"""Splits by group: whole groups, even classes, the same for the same seed."""

import itertools

import numpy as np
import pytest

from smearcount.errors import ConfigError
from smearcount.training.splits import folds, split_groups


def made(seed: int, n: int = 900, n_groups: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Groups of very different size, each with a class mix of its own; the last class is rare."""
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.choice(n_groups, n, p=rng.dirichlet(np.full(n_groups, 0.6))))
    mixes = rng.dirichlet((2.0, 1.0, 0.5, 0.1), n_groups)
    return groups, np.array([rng.choice(4, p=mixes[group]) for group in groups])


def worst_share(groups: np.ndarray, labels: np.ndarray, in_val: np.ndarray, share: float) -> float:
    return max(abs(float(in_val[labels == each].mean()) - share) for each in np.unique(labels))


def largest_group(groups: np.ndarray, labels: np.ndarray) -> float:
    """The largest share of a class that one group holds."""
    return max(float((groups[labels == k] == g).mean()) for k in np.unique(labels) for g in np.unique(groups))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_no_group_is_on_both_sides_and_classes_are_even(seed: int, share: float) -> None:
    groups, labels = made(seed)
    in_val = split_groups(groups, labels, share, seed) == "val"
    assert all(len(set(in_val[groups == group])) == 1 for group in np.unique(groups))
    assert worst_share(groups, labels, in_val, share) < max(0.03, largest_group(groups, labels) / 2)


@pytest.mark.parametrize("seed", range(6))
def test_few_groups_are_split_as_well_as_by_trying_everything(seed: int) -> None:
    groups, labels = made(seed, n=300, n_groups=11)
    names, classes = np.unique(groups), np.unique(labels)
    counts = np.array([[((groups == g) & (labels == k)).sum() for k in classes] for g in names])
    total = counts.sum(axis=0)

    def distance(taken: np.ndarray) -> float:
        one_sided = ((counts > 0).sum(axis=0) > 1) & ((taken == 0) | (taken == total))
        return float(((taken / total - 0.2) ** 2 + one_sided).sum())

    best = min(
        distance(counts[list(some)].sum(axis=0))
        for size in range(1, len(names))
        for some in itertools.combinations(range(len(names)), size)
    )
    in_val = split_groups(groups, labels, 0.2, seed) == "val"
    got = distance(np.array([(in_val & (labels == k)).sum() for k in classes]))
    assert got <= best + 0.003


def test_rows_split_to_the_very_share() -> None:
    labels = np.repeat(["a", "b", "c"], [500, 100, 5])
    in_val = split_groups(np.arange(len(labels)), labels, 0.2, seed=1) == "val"
    assert [int(in_val[labels == each].sum()) for each in "abc"] == [100, 20, 1]


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    groups, labels = made(5)
    split = split_groups(groups, labels, 0.2, seed=3)
    assert (split == split_groups(groups, labels, 0.2, seed=3)).all()
    assert (split != split_groups(groups, labels, 0.2, seed=4)).any()
    order = np.random.default_rng(0).permutation(len(groups))
    assert (split_groups(groups[order], labels[order], 0.2, seed=3) == split[order]).all()


def test_a_class_of_two_groups_is_on_both_sides() -> None:
    groups = np.repeat(np.arange(20), 10)
    labels = np.where(groups < 2, "rare", "common")
    split = split_groups(groups, labels, 0.1, seed=0)
    assert set(split[labels == "rare"]) == {"train", "val"}


def test_a_class_of_one_group_is_trained_on() -> None:
    groups = np.repeat(np.arange(20), 10)
    labels = np.where(groups < 1, "rare", "common")
    assert set(split_groups(groups, labels, 0.2, seed=0)[labels == "rare"]) == {"train"}


def test_both_sides_have_a_group_whatever_the_classes() -> None:
    groups = np.array([0, 0, 1, 1])
    assert set(split_groups(groups, groups, 0.2, seed=0)) == {"train", "val"}
    assert set(split_groups(groups, groups, 0.9, seed=0)) == {"train", "val"}


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="val_share"):
        split_groups(np.arange(4), np.arange(4), share, seed=0)


def test_one_group_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="all 4 cells are of one group, 0.0, "):
        split_groups(np.zeros(4), np.arange(4), 0.2, seed=0)
    with pytest.raises(ValueError, match="labels: expected 4"):
        split_groups(np.zeros(4), np.arange(3), 0.2, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_whole_groups_of_even_classes(seed: int) -> None:
    groups, labels = made(seed, n=2000, n_groups=120)
    fold = folds(groups, labels, 5, seed)
    assert all(len(set(fold[groups == group])) == 1 for group in np.unique(groups))
    for number in range(5):
        # The rarest class may be mostly in one group, which no way of splitting makes even.
        assert worst_share(groups, labels, fold == number, 0.2) < 0.02 + largest_group(groups, labels)
    assert (fold == folds(groups, labels, 5, seed)).all()


def test_as_many_folds_as_groups_leave_one_group_out_each() -> None:
    groups, labels = np.repeat(np.arange(6), 4), np.tile([0, 0, 1, 2], 6)
    fold = folds(groups, labels, 6, seed=0)
    assert sorted(fold[::4].tolist()) == list(range(6))
    with pytest.raises(ValueError, match="expected 2 to 6 folds"):
        folds(groups, labels, 7, seed=0)
