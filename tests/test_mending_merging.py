"""Planted groups of codes are found in made-up embeddings, and targets and probabilities follow a merge."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from smearcount.arrays import FloatArray, Indices
from smearcount.errors import ConfigError, UsageError
from smearcount.mending import merging
from smearcount.mending.merging import CodePair, MergeProposal, merge_targets, plot_merges, propose_merges, unit_rows

CODES = ("burr_cell", "ovalocyte", "elliptocyte", "target_cell", "stomatocyte", "macrocyte", "sickle_cell")
PLANTED = {
    "ovalocyte_or_elliptocyte": ("ovalocyte", "elliptocyte"),
    "target_cell_or_macrocyte": ("target_cell", "macrocyte"),
}
CLUSTER_OF = np.array([0, 1, 1, 2, 3, 2, 4])


def planted(seed: int = 0, counts: tuple[int, ...] = (40, 60, 20, 30, 30, 15, 25)) -> tuple[FloatArray, Indices]:
    """Seven codes in five well separated directions, as many cells of each as `counts` says."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CODES)), counts)
    directions = np.linalg.qr(rng.normal(size=(64, 5)))[0].T
    points = directions[CLUSTER_OF[labels]] + rng.normal(0, 0.03, (len(labels), 64))
    lengths = rng.uniform(1, 20, (len(labels), 1))  # which the clusters must not see
    return (points * lengths).astype(np.float32), labels


@pytest.fixture(scope="module")
def proposal() -> MergeProposal:
    return propose_merges(*planted(), CODES, range(2, 9), seed=3)


def test_planted_groups_are_found(proposal: MergeProposal) -> None:
    assert proposal.best_k == 5
    assert proposal.silhouettes[5] == max(proposal.silhouettes.values()) > 0.5
    assert list(proposal.silhouettes) == list(range(2, 9))
    assert proposal.merges() == PLANTED


def test_table_counts_every_cell_once(proposal: MergeProposal) -> None:
    np.testing.assert_array_equal(proposal.table.sum(axis=1), (40, 60, 20, 30, 30, 15, 25))
    # Clusters are in the order of their main code: burr, oval, target, stomatocyte, sickle.
    np.testing.assert_array_equal(proposal.table.argmax(axis=1), CLUSTER_OF)
    for seed in range(4):
        other = propose_merges(*planted(), CODES, (5,), seed)
        np.testing.assert_array_equal(other.table, proposal.table)


def test_pairs_are_scored_whatever_the_numbers_of_cells(proposal: MergeProposal) -> None:
    assert len(proposal.pairs) == 21
    assert {pair.overlap for pair in proposal.pairs[:2]} == {1}
    overlaps = {(pair.first, pair.second): pair.overlap for pair in proposal.pairs}
    assert {pair for pair, overlap in overlaps.items() if overlap == 1} == set(PLANTED.values())
    assert all(overlap == 0 for pair, overlap in overlaps.items() if pair not in PLANTED.values())
    assert all(np.isnan(pair.confusion) for pair in proposal.pairs)


def test_overlap_is_the_intersection_of_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    # a: 6 of 8 on the left; b: 2 of 8 on the left. min(3/4, 1/4) + min(1/4, 3/4) = 1/2.
    left, right = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    points = np.array([left] * 6 + [right] * 2 + [left] * 2 + [right] * 6)
    noise = np.random.default_rng(0).normal(0, 0.01, points.shape)
    result = propose_merges(
        (points + noise).astype(np.float32), np.repeat([0, 1], (8, 8)), ("ovalocyte", "elliptocyte"), (2,), 0
    )
    assert result.pairs[0].overlap == pytest.approx(0.5)
    assert result.merges() == {"ovalocyte_or_elliptocyte": ("ovalocyte", "elliptocyte")}
    monkeypatch.setattr(merging, "MIN_OVERLAP", 0.51)
    assert result.merges() == {}


@pytest.mark.parametrize(("n", "enough"), [(1, False), (4, False), (5, True)])
def test_a_merge_is_proposed_on_five_cells_of_either_code_at_least(n: int, enough: bool) -> None:
    """Elliptocytes lie among the ovalocytes, half of which are taken for them."""
    features, labels = planted(counts=(40, 60, n, 30, 30, 15, 25))
    given = labels.copy()
    given[(labels == 1).nonzero()[0][:30]] = 2
    given[labels == 5] = 3
    probs = np.eye(7, dtype=np.float32)[given]
    result = propose_merges(features, labels, CODES, (5,), 0, probs)
    assert ("ovalocyte_or_elliptocyte" in result.merges()) == enough
    assert "target_cell_or_macrocyte" in result.merges()
    why = "" if enough else "; not proposed on fewer than 5 cells of either"
    assert result.reasons() == [
        f"ovalocyte and elliptocyte: 60 and {n} cells, overlap 1.00, confusion 0.25{why}",
        "target_cell and macrocyte: 30 and 15 cells, overlap 1.00, confusion 0.50",
    ]


def test_codes_the_classifier_tells_apart_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = planted()
    given = labels.copy()
    given[(labels == 1).nonzero()[0][:12]] = 2  # 12 of 60 oval cells are named elliptic, 5 of 20 the other way
    given[(labels == 2).nonzero()[0][:5]] = 1
    probs = np.eye(7, dtype=np.float32)[given]
    result = propose_merges(features, labels, CODES, (5,), 0, probs)
    confusion = {(pair.first, pair.second): pair.confusion for pair in result.pairs}
    assert confusion["ovalocyte", "elliptocyte"] == pytest.approx((12 / 60 + 5 / 20) / 2)
    assert confusion["target_cell", "macrocyte"] == 0
    assert list(result.merges()) == ["ovalocyte_or_elliptocyte"]
    told = "target_cell and macrocyte: 30 and 15 cells, overlap 1.00, confusion 0.00"
    assert f"{told}; not proposed, as the classifier tells them apart" in result.reasons()
    monkeypatch.setattr(merging, "MIN_CONFUSION", 0)
    assert result.merges() == PLANTED


def test_codes_of_two_kinds_are_not_proposed(proposal: MergeProposal) -> None:
    kind_of = {**dict.fromkeys(CODES, "rbc"), "macrocyte": "platelet"}
    kept = proposal.within_kinds(kind_of)
    assert kept.merges() == {"ovalocyte_or_elliptocyte": PLANTED["ovalocyte_or_elliptocyte"]}
    assert len(kept.pairs) == 21 - 6


def test_the_most_alike_pair_is_told_where_none_shares_its_clusters(proposal: MergeProposal) -> None:
    apart = replace(proposal, pairs=tuple(pair for pair in proposal.pairs if not pair.overlap))
    first = apart.pairs[0]
    told = f"{first.first} and {first.second}: {first.cells[0]} and {first.cells[1]} cells, overlap 0.00"
    assert apart.reasons() == [f"{told}; not proposed, as they lie in different clusters"]


def test_nothing_is_proposed_without_clusters() -> None:
    # One shapeless cloud: two halves of it share out every code, which says nothing of the codes.
    rng = np.random.default_rng(6)
    result = propose_merges(rng.normal(size=(200, 32)).astype(np.float32), np.arange(200) % 4, tuple("abcd"), (2, 3), 0)
    assert max(pair.overlap for pair in result.pairs) > 0.5
    assert not result.clustered
    assert result.as_yaml() == "merge: {}"
    assert result.reasons() == [
        f"no clusters: the best mean silhouette is {result.silhouettes[result.best_k]:.2f}, below 0.25"
    ]


def test_chains_do_not_join_codes_that_are_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # b lies half with a and half with c, which share nothing.
    rng = np.random.default_rng(2)
    axes = np.eye(4)
    points = np.concatenate([np.repeat(axes[[0]], 20, 0), np.repeat(axes[[0, 1]], 10, 0), np.repeat(axes[[1]], 20, 0)])
    features = (points + rng.normal(0, 0.02, points.shape)).astype(np.float32)
    result = propose_merges(features, np.repeat([0, 1, 2], 20), ("a", "b", "c"), (2,), 0)
    monkeypatch.setattr(merging, "MIN_OVERLAP", 0.4)
    assert result.merges() in ({"a_or_b": ("a", "b")}, {"b_or_c": ("b", "c")})
    monkeypatch.setattr(merging, "MIN_OVERLAP", 0)
    assert result.merges() == {"a_or_b_or_c": ("a", "b", "c")}


def test_order_of_cells_and_of_codes_changes_nothing(proposal: MergeProposal) -> None:
    features, labels = planted()
    rng = np.random.default_rng(5)
    cells, names = rng.permutation(len(labels)), rng.permutation(len(CODES))
    place = np.argsort(names)
    other = propose_merges(features[cells], place[labels[cells]], tuple(CODES[i] for i in names), range(2, 9), seed=3)
    assert other.silhouettes == pytest.approx(proposal.silhouettes, abs=1e-9)
    assert {frozenset(group) for group in other.merges().values()} == {frozenset(g) for g in PLANTED.values()}


def test_same_cells_give_the_same_proposal_when_shuffled_and_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smearcount.mending.merging._MOST_CELLS", 70)
    features, labels = planted()
    features += np.random.default_rng(8).normal(0, 1.5, features.shape).astype(np.float32)
    cells = np.random.default_rng(9).permutation(len(labels))
    one = propose_merges(features, labels, CODES, (3, 4), seed=1)
    other = propose_merges(features[cells], labels[cells], CODES, (3, 4), seed=1)
    np.testing.assert_array_equal(one.table, other.table)
    assert one.pairs == other.pairs
    # Ten cells of each code, common or rare.
    assert one.table.sum(axis=1).tolist() == [10] * 7


def test_the_line_for_the_recipe_reads_back(proposal: MergeProposal) -> None:
    line = proposal.as_yaml()
    assert "\n" not in line
    assert yaml.safe_load(line) == {"merge": {new: list(old) for new, old in PLANTED.items()}}


def test_a_second_round_speaks_of_the_codes_of_the_cells(proposal: MergeProposal) -> None:
    before = {"ovalocyte": ["plain_oval", "oval_with_tip"], "sickle_cell": ["long", "bent"]}
    assert yaml.safe_load(proposal.as_yaml(before))["merge"] == {
        "sickle_cell": ["long", "bent"],
        "ovalocyte_or_elliptocyte": ["plain_oval", "oval_with_tip", "elliptocyte"],
        "target_cell_or_macrocyte": list(PLANTED["target_cell_or_macrocyte"]),
    }


def test_the_line_keeps_the_order_of_the_codes(proposal: MergeProposal) -> None:
    pairs = (CodePair("b", "a", (9, 9), 1.0, np.nan), CodePair("z", "y", (9, 9), 1.0, np.nan))
    assert (
        replace(proposal, codes=("z", "y", "b", "a"), pairs=pairs).as_yaml()
        == "merge: {z_or_y: [z, y], b_or_a: [b, a]}"
    )


def test_the_proposal_goes_straight_into_the_targets(proposal: MergeProposal) -> None:
    targets = np.eye(7, dtype=np.bool_)
    merged, after = merge_targets(targets, CODES, yaml.safe_load(proposal.as_yaml())["merge"])
    assert after == ("burr_cell", "ovalocyte_or_elliptocyte", "target_cell_or_macrocyte", "stomatocyte", "sickle_cell")
    assert [after[i] for i in merged.argmax(axis=1)] == [
        next((new for new, old in PLANTED.items() if code in old), code) for code in CODES
    ]
    np.testing.assert_array_equal(merged.sum(axis=1), 1)


def test_a_coarse_label_becomes_exact_where_its_codes_are_merged() -> None:
    targets = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]], np.bool_)
    merged, after = merge_targets(targets, ("a", "b", "c"), {"ab": ("a", "b")})
    assert after == ("ab", "c")
    np.testing.assert_array_equal(merged, np.array([[1, 0], [1, 1], [0, 1]], np.bool_))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"x": ("a", "z")}, "got z"),
        ({"x": ()}, "got none"),
        ({"x": ("a", "b"), "y": ("b", "c")}, "b can be merged only once"),
        ({"x": ("a", "a")}, "only once"),
        ({"c": ("a", "b")}, "c is the name of another code"),
    ],
)
def test_merges_that_do_not_fit_are_refused(merge: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge_targets(np.eye(3, dtype=np.bool_), ("a", "b", "c"), merge)


def test_too_few_cells_or_codes_are_refused() -> None:
    features, labels = planted()
    with pytest.raises(UsageError, match="two codes"):
        propose_merges(features, np.zeros_like(labels), CODES, range(2, 4), 0)
    with pytest.raises(UsageError, match="two clusters"):
        propose_merges(features, labels, CODES, range(1, 4), 0)
    with pytest.raises(UsageError, match="more than 8 different cells, got 8"):
        propose_merges(features[:8].repeat(4, 0), np.arange(32) % 2, CODES, (8,), 0)
    with pytest.raises(ValueError, match="expected features"):
        propose_merges(features[1:], labels, CODES, range(2, 4), 0)
    features[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        propose_merges(features, labels, CODES, range(2, 4), 0)


def test_rows_get_length_one_and_zeros_stay() -> None:
    units = unit_rows(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(units, [[0.6, 0.8], [0, 0]])


def test_plot_shows_each_code_in_its_colour(proposal: MergeProposal) -> None:
    colours = {code: f"#{40 * index:02x}0a{250 - 30 * index:02x}" for index, code in enumerate(CODES)}
    picture = plot_merges(proposal, colours)
    assert picture.shape == (600, 1300, 3)
    assert picture.dtype == np.uint8
    for index in range(len(CODES)):
        assert (picture == (40 * index, 10, 250 - 30 * index)).all(axis=2).any()
