"""Prototypes on embeddings of known geometry, new codes beside a classifier's, and folders of examples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smearcount.arrays import FloatArray, Indices
from smearcount.errors import ImageError, UsageError
from smearcount.images import write_picture
from smearcount.mending.examples import Prototypes, extend, read_examples
from smearcount.records import Labels
from smearcount.taxonomy import load_taxonomy

CODES = ("normocyte", "spherocyte", "acanthocyte")


def separable(per_code: int, seed: int = 0, spread: float = 0.05, n_codes: int = 3) -> tuple[FloatArray, Indices]:
    """Cells about orthogonal directions, of any length."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_codes), per_code)
    points = np.eye(16)[labels] + rng.normal(0, spread, (len(labels), 16))
    return (points * rng.uniform(0.5, 30, (len(labels), 1))).astype(np.float32), labels


@pytest.mark.parametrize("per_code", [2, 5, 20])
def test_exact_on_separable_embeddings(per_code: int) -> None:
    prototypes = Prototypes.from_examples(*separable(per_code), CODES)
    features, labels = separable(50, seed=1)
    probs = prototypes.probs(features)
    np.testing.assert_array_equal(probs.argmax(axis=1), labels)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert probs.dtype == np.float32
    assert prototypes.check.accuracy == 1
    assert prototypes.check.n == dict.fromkeys(CODES, per_code)


def test_prototype_is_the_mean_of_unit_rows_and_probs_a_softmax_of_cosines() -> None:
    features = np.array([[2, 0], [0, 5], [-1, 0], [-1, 0]], np.float32)
    prototypes = replace(Prototypes.from_examples(features, np.array([0, 0, 1, 1]), CODES[:2]), temperature=0.5)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(prototypes.vectors, [[half, half], [-1, 0]], atol=1e-7)
    np.testing.assert_allclose(prototypes.cosines(np.float32([[3, 0]])), [[half, -1]], atol=1e-7)
    expected = 1 / (1 + np.exp((-1 - half) / 0.5))
    np.testing.assert_allclose(prototypes.probs(np.float32([[3, 0]])), [[expected, 1 - expected]], atol=1e-6)


def test_leaving_one_out_agrees_with_doing_it_one_by_one() -> None:
    features, labels = separable(7, spread=0.6)
    prototypes = Prototypes.from_examples(features, labels, CODES)
    right, own = [], []
    for row in range(len(labels)):
        rest = np.arange(len(labels)) != row
        others = Prototypes.from_examples(features[rest], labels[rest], CODES)
        cosines = others.cosines(features[[row]])[0]
        right.append(cosines.argmax() == labels[row])
        own.append(cosines[labels[row]])
    assert 0 < sum(right) < len(right)
    assert prototypes.check.accuracy == pytest.approx(np.mean(right))
    assert list(prototypes.check.right.values()) == [sum(np.array(right)[labels == code]) for code in range(3)]
    reach = [np.percentile(np.array(own)[labels == code], 5) for code in range(3)]
    np.testing.assert_allclose(prototypes.reach, reach, atol=1e-6)
    low, high = prototypes.check.limits
    assert low < prototypes.check.accuracy < high


def test_leave_one_out_does_not_flatter() -> None:
    # Directions at random: an example is nearest to the prototype it is part of, but to no other for a reason.
    features = np.random.default_rng(3).normal(size=(60, 200)).astype(np.float32)
    labels = np.arange(60) % 3
    prototypes = Prototypes.from_examples(features, labels, CODES)
    assert (prototypes.probs(features).argmax(axis=1) == labels).mean() > 0.9
    assert prototypes.check.accuracy < 0.6


def test_order_of_examples_and_of_codes_changes_nothing() -> None:
    features, labels = separable(6, spread=0.4)
    cells = separable(30, seed=2, spread=0.4)[0]
    order, names = np.random.default_rng(4).permutation(len(labels)), np.array([2, 0, 1])
    one = Prototypes.from_examples(features, labels, CODES)
    shuffled = Prototypes.from_examples(features[order], labels[order], CODES)
    renamed = Prototypes.from_examples(features, np.argsort(names)[labels], tuple(CODES[i] for i in names))
    assert one.temperature == shuffled.temperature == renamed.temperature
    np.testing.assert_allclose(shuffled.probs(cells), one.probs(cells), atol=1e-6)
    np.testing.assert_allclose(renamed.probs(cells), one.probs(cells)[:, names], atol=1e-6)
    np.testing.assert_allclose(shuffled.reach, one.reach, atol=1e-12)


def test_length_of_an_embedding_has_no_influence() -> None:
    features, labels = separable(5, spread=0.4)
    prototypes = Prototypes.from_examples(features, labels, CODES)
    np.testing.assert_allclose(prototypes.probs(features * 7), prototypes.probs(features), atol=1e-6)


@pytest.mark.parametrize("per_code", [2, 5, 20])
def test_a_handful_of_examples_does_not_end_in_certainty(per_code: int) -> None:
    prototypes = Prototypes.from_examples(*separable(per_code, spread=0.01), CODES)
    best = prototypes.probs(separable(50, seed=1, spread=0.01)[0]).max(axis=1)
    assert best.mean() == pytest.approx((per_code + 1) / (per_code + 2), abs=0.03)


def test_temperature_rises_with_disorder() -> None:
    clear, blurred = (Prototypes.from_examples(*separable(10, spread=s), CODES).temperature for s in (0.05, 1.5))
    assert clear < blurred


def test_too_few_examples_are_refused_and_few_are_warned_of() -> None:
    features, labels = separable(5)
    with pytest.raises(UsageError, match=r"2 or more of each code, got acanthocyte \(1\)"):
        Prototypes.from_examples(features[:11], labels[:11], CODES)
    with pytest.raises(UsageError, match=r"fancy \(0\)"):
        Prototypes.from_examples(features, labels, (*CODES, "fancy"))
    with pytest.raises(UsageError, match="got none"):
        Prototypes.from_examples(features[:0], labels[:0], ())
    (warning,) = Prototypes.from_examples(features[:14], labels[:14], CODES).warnings
    assert "acanthocyte (4)" in warning
    assert Prototypes.from_examples(features, labels, CODES).warnings == ()


def test_wrong_shapes_and_numbers_are_refused() -> None:
    features, labels = separable(5)
    with pytest.raises(ValueError, match="indices from 0 to 2"):
        Prototypes.from_examples(features, labels + 1, CODES)
    prototypes = Prototypes.from_examples(features, labels, CODES)
    with pytest.raises(ValueError, match=r"\(N, 16\)"):
        prototypes.probs(features[:, :8])
    features[3, 3] = np.inf
    with pytest.raises(ValueError, match="finite"):
        Prototypes.from_examples(features, labels, CODES)


def known_two(features: FloatArray, seed: int = 9) -> Labels:
    """What a classifier that knows two codes says of the cells: the nearer axis, not quite surely."""
    toward = np.stack([features[:, 0], features[:, 1]], axis=1) / np.linalg.norm(features, axis=1, keepdims=True)
    exp = np.exp(toward * 4 + np.random.default_rng(seed).normal(0, 0.1, toward.shape))
    return Labels((exp / exp.sum(axis=1, keepdims=True)).astype(np.float32), CODES[:2])


def test_a_new_code_is_added_without_touching_the_old_cells() -> None:
    prototypes = Prototypes.from_examples(*separable(10), CODES)
    features, labels = separable(40, seed=5)
    before = known_two(features)
    result = extend(before, features, prototypes)
    assert result.labels.codes == CODES
    named = result.labels.probs.argmax(axis=1)
    np.testing.assert_array_equal(named[labels < 2], labels[labels < 2])
    np.testing.assert_array_equal(result.labels.probs[labels < 2, :2], before.probs[labels < 2])
    # A cell of the class is within reach of the prototype about 19 times of 20.
    assert (named[labels == 2] == 2).mean() > 0.8
    assert result.warnings == ()


def test_the_rule_of_extension_cell_by_cell() -> None:
    examples, labels = separable(6, spread=0.5, n_codes=4)
    prototypes = Prototypes.from_examples(examples, labels, ("normocyte", "acanthocyte", "spherocyte", "bite_cell"))
    features = separable(30, seed=6, spread=0.5, n_codes=4)[0]
    before = Labels(np.random.default_rng(7).dirichlet((1, 1), 120).astype(np.float32), ("spherocyte", "normocyte"))
    after = extend(before, features, prototypes).labels
    assert after.codes == ("spherocyte", "normocyte", "acanthocyte", "bite_cell")
    cosines, probs = prototypes.cosines(features), prototypes.probs(features)
    for row in range(120):
        new = [min(probs[row, k], 7 / 8) if cosines[row, k] >= prototypes.reach[k] else 0 for k in (1, 3)]
        np.testing.assert_allclose(after.probs[row], [*before.probs[row] * (1 - sum(new)), *new], atol=1e-6)
    np.testing.assert_allclose(after.probs.sum(axis=1), 1, atol=1e-6)
    assert 0 < (after.probs[:, 2:] > 0).mean() < 1


def test_cells_of_codes_without_examples_keep_what_the_classifier_says() -> None:
    features, labels = separable(20, seed=8, n_codes=3)
    examples, codes = separable(10, n_codes=3)
    chosen = codes != 1
    prototypes = Prototypes.from_examples(examples[chosen], codes[chosen] // 2, ("normocyte", "acanthocyte"))
    # The classifier takes half of the new cells for a code with examples, and half for one without.
    given = np.where(labels == 2, np.arange(60) % 2, labels)
    before = Labels(np.float32([[0.8, 0.2], [0.2, 0.8]])[given], CODES[:2])
    result = extend(before, features, prototypes)
    assert result.warnings == ("no examples of spherocyte: what the classifier takes for these keeps its name",)
    np.testing.assert_array_equal(result.labels.probs[given == 1, :2], before.probs[given == 1])
    new = result.labels.probs.argmax(axis=1) == 2
    assert not new[(given == 1) | (labels == 0)].any()
    assert new[(given == 0) & (labels == 2)].mean() > 0.7


def test_a_new_code_is_never_certain() -> None:
    examples, codes = separable(3, spread=0.001, n_codes=3)
    prototypes = replace(Prototypes.from_examples(examples, codes, CODES), temperature=0.001)
    result = extend(known_two(examples), examples, prototypes)
    assert prototypes.probs(examples).max() > 0.999
    assert result.labels.probs[:, 2].max() == pytest.approx(4 / 5)


def test_cells_that_no_classifier_was_asked_about_stay_so() -> None:
    features, _ = separable(5)
    before = Labels(np.zeros((15, 2), np.float32), CODES[:2])
    result = extend(before, features, Prototypes.from_examples(*separable(5), CODES))
    assert not result.labels.probs.any()


def test_extension_needs_a_new_code_and_parallel_rows() -> None:
    features, labels = separable(5)
    prototypes = Prototypes.from_examples(features, labels, CODES)
    with pytest.raises(UsageError, match="knows them all"):
        extend(Labels(np.full((15, 3), 1 / 3, np.float32), CODES), features, prototypes)
    with pytest.raises(UsageError, match="own codes too"):
        extend(known_two(features), features, Prototypes.from_examples(features[10:], labels[10:] - 2, ("x",)))
    with pytest.raises(ValueError, match="15 rows, got 14"):
        extend(known_two(features), features[1:], prototypes)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, np.full((4, 4, 3), 90, np.uint8))


def test_folder_names_become_codes(tmp_path: Path) -> None:
    for name in (
        "HJ/b.png",
        "HJ/a.png",
        "Howell-Jolly body/c.png",
        "burr cell/d.png",
        "PB/e.png",
        "Mott cell/deep/f.png",
    ):
        picture(tmp_path / name)
    picture(tmp_path / ".hidden" / "g.png")
    (tmp_path / "notes.txt").write_text("which slide")
    found = [(path.relative_to(tmp_path).as_posix(), code) for path, code in read_examples(tmp_path, load_taxonomy())]
    assert found == [
        ("HJ/a.png", "howell_jolly_body"),
        ("HJ/b.png", "howell_jolly_body"),
        ("Howell-Jolly body/c.png", "howell_jolly_body"),
        ("Mott cell/deep/f.png", "mott_cell"),
        ("PB/e.png", "basophilic_stippling"),
        ("burr cell/d.png", "burr_cell"),
    ]


def test_every_code_synonym_and_name_of_the_taxonomy_is_understood(tmp_path: Path) -> None:
    taxonomy = load_taxonomy()
    words = {word: code for code, entry in taxonomy.codes.items() for word in (code, *entry.synonyms, entry.name)}
    for word in words:
        picture(tmp_path / word.upper() / "cell.png")
    assert {path.parent.name: code for path, code in read_examples(tmp_path, taxonomy)} == {
        word.upper(): code for word, code in words.items()
    }


def test_folders_are_called_as_for_a_training(tmp_path: Path) -> None:
    """In the plural, with accents and dashes; so are the codes of a classifier that no taxonomy knows."""
    names = {"Elliptocytes": "elliptocyte", "Esferócito": "spherocyte", "tear-drop cells": "tear_drop_cell"}
    names |= {"Target-Cells": "target_cell", "Round Cells": "round_cell"}
    for name in names:
        picture(tmp_path / name / "cell.png")
    found = read_examples(tmp_path, load_taxonomy(), ["tear_drop_cell", "round_cell"])
    assert {path.parent.name: code for path, code in found} == names


def test_folders_that_can_not_be_meant_are_refused(tmp_path: Path) -> None:
    taxonomy = load_taxonomy()
    with pytest.raises(ImageError, match="no such folder"):
        read_examples(tmp_path / "none", taxonomy)
    with pytest.raises(UsageError, match="no pictures; expected one folder a class"):
        read_examples(tmp_path, taxonomy)
    picture(tmp_path / "HJ" / "a.png")
    (tmp_path / "PB").mkdir()
    with pytest.raises(UsageError, match="no pictures in PB"):
        read_examples(tmp_path, taxonomy)
    picture(tmp_path / "PB" / "a.png")
    picture(tmp_path / "Unclassified" / "a.png")
    with pytest.raises(UsageError, match="Unclassified can't be a code"):
        read_examples(tmp_path, taxonomy)
    picture(tmp_path / "loose.png")
    with pytest.raises(UsageError, match=r"1 pictures such as loose\.png"):
        read_examples(tmp_path, taxonomy)


def test_pictures_of_a_type_that_is_not_read_are_listed(tmp_path: Path) -> None:
    picture(tmp_path / "HJ" / "a.png")
    (tmp_path / "HJ" / "b.heic").write_bytes(b"photograph")
    assert [path.name for path, _ in read_examples(tmp_path, load_taxonomy())] == ["a.png", "b.heic"]
