"""Who is asked about which cell, and what the names do to the counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RED, UM_PER_PX, Cells, Draw

from smearcount.arrays import FloatArray
from smearcount.cards import ClassifierCard, find_model, list_models
from smearcount.classifier import Classifier
from smearcount.config import Settings
from smearcount.counting import kind_totals, name_cells
from smearcount.errors import ConfigError, ModelError
from smearcount.naming import Namer
from smearcount.pipeline import Pipeline
from smearcount.records import UNCLASSIFIED, Detections, Labels
from smearcount.runtimes import RuntimeChoice
from smearcount.taxonomy import Taxonomy, load_taxonomy
from smearcount.training.packaging import update_card

WHITE = ("neutrophil", "erythroblast", "platelet")
BOTH = ("red-discs", "white-discs")
DRAWN = (*RED, "neutrophil", "erythroblast", "white platelet", "platelet")
KINDS = (*["rbc"] * 3, *["wbc"] * 3, "platelet")


def namer(weights: Path, names: tuple[str, ...] = BOTH, taxonomy: Taxonomy | None = None, **changes: Any) -> Namer:
    return Namer(Settings(classifiers=names, **changes), taxonomy or load_taxonomy(), RuntimeChoice(), weights)


@pytest.fixture
def field(draw_discs: Draw) -> tuple[Any, list[str]]:
    """A field of every drawn cell eight times in random order, and what was drawn."""
    codes = np.random.default_rng(0).permutation(np.repeat(DRAWN, 8)).tolist()
    at = (np.indices((8, 7)).reshape(2, -1).T + 0.5) * 80
    sizes = [24 if code == "platelet" else 46 for code in codes]
    return draw_discs((640, 560), np.column_stack([at, sizes]), tuple(codes)), codes


def test_every_shipped_card_agrees_with_the_taxonomy() -> None:
    taxonomy = load_taxonomy()
    cards = [model.card for model in list_models() if isinstance(model.card, ClassifierCard)]
    for card in cards:
        assert set(card.codes) <= taxonomy.codes.keys(), card.id
        assert card.kinds, card.id
    # As they stand, the shipped settings are ready to run.
    named = Namer(Settings(), taxonomy, RuntimeChoice(), None)
    assert [card.id for card in named.cards] == list(Settings().classifiers)


def test_a_code_without_an_entry_in_the_taxonomy_is_refused(naming_models: Path) -> None:
    whole = load_taxonomy()
    less = whole.model_copy(update={"codes": {k: v for k, v in whole.codes.items() if k != "target_cell"}})
    with pytest.raises(ConfigError, match=r"red-discs: gives target_cell, which the taxonomy lacks; .*--taxonomy"):
        namer(naming_models, taxonomy=less)
    assert namer(naming_models, ("white-discs",), less).codes == WHITE


def test_two_classifiers_for_one_kind_are_refused(naming_models: Path, tmp_path: Path) -> None:
    for name in BOTH:
        shutil.copytree(naming_models / name, tmp_path / name)
    shutil.copytree(naming_models / "red-discs", tmp_path / "others")
    update_card(tmp_path / "others", id="others", kinds=("wbc", "rbc"))
    with pytest.raises(ConfigError, match="others: another classifier names rbc already"):
        namer(tmp_path, ("red-discs", "others"))
    with pytest.raises(ConfigError, match="red-discs: another classifier names rbc already"):
        namer(tmp_path, ("others", "red-discs"))
    with pytest.raises(ConfigError, match="another classifier names rbc already"):
        namer(tmp_path, ("red-discs", "red-discs"))
    assert namer(tmp_path).patch_um == {"rbc": 12.0, "wbc": 12.0}


def test_an_expert_needs_a_generalist_of_all_its_codes(naming_models: Path) -> None:
    with pytest.raises(ConfigError, match=r"white-discs: no classifier gives all of its codes, neutrophil"):
        namer(naming_models, ("red-discs",), experts={"white-discs": 0.2})
    assert len(namer(naming_models, ("red-discs",), experts={"red-discs": 0.2}).cards) == 2
    with pytest.raises(ModelError, match="no such model"):
        namer(naming_models, ("absent",))


def test_only_cells_of_its_kinds_reach_a_classifier(
    naming_models: Path, field: tuple[Any, list[str]], cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, codes = field
    kinds = [KINDS[DRAWN.index(code)] for code in codes]
    asked: dict[str, FloatArray] = {}
    name = Classifier.name

    def spy(self: Classifier, source: Any, boxes: Any, um_per_px: float) -> Any:
        asked[self.card.id] = boxes
        return name(self, source, boxes, um_per_px)

    monkeypatch.setattr(Classifier, "name", spy)
    labels, thresholds = namer(naming_models).name(picture, cells(picture.boxes, kinds), UM_PER_PX)
    red, white, none = (np.array([kind == each for kind in kinds]) for each in ("rbc", "wbc", "platelet"))
    np.testing.assert_array_equal(asked["red-discs"], picture.boxes[red])
    np.testing.assert_array_equal(asked["white-discs"], picture.boxes[white])
    assert labels.codes == (*RED, *WHITE)
    np.testing.assert_allclose(labels.probs[red, :3].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(labels.probs[white, 3:].sum(axis=1), 1, atol=1e-6)
    assert not labels.probs[red, 3:].any()
    assert not labels.probs[white, :3].any()
    assert not labels.probs[none].any()
    assert thresholds.tolist() == [1.0 if kind == "platelet" else 0.5 for kind in kinds]
    named = name_cells(np.array(kinds), labels, thresholds)
    assert named.tolist() == ["platelet" if "platelet" in code else code for code in codes]


def test_without_classifiers_nothing_is_asked(naming_models: Path, field: tuple[Any, list[str]], cells: Cells) -> None:
    picture, codes = field
    labels, _ = namer(naming_models, ()).name(picture, cells(picture.boxes), UM_PER_PX)
    assert (labels.codes, labels.probs.shape) == ((), (len(codes), 0))


def test_a_field_without_cells_is_named(naming_models: Path, field: tuple[Any, list[str]]) -> None:
    labels, thresholds = namer(naming_models).name(field[0], Detections.empty(), UM_PER_PX)
    assert (labels.probs.shape, thresholds.shape) == ((0, 6), (0,))


def test_the_pipeline_names_what_was_drawn(
    naming_pipeline: Callable[..., Pipeline], field: tuple[Any, list[str]]
) -> None:
    picture, codes = field
    result = naming_pipeline().analyze(picture.pixels, um_per_px=UM_PER_PX).result
    middles = (result.detections.boxes[:, :2] + result.detections.boxes[:, 2:]) / 2
    nearest = np.linalg.norm(middles[:, None] - picture.discs[None, :, :2], axis=2).argmin(axis=1)
    assert sorted(nearest.tolist()) == list(range(56))
    drawn = [codes[row] for row in nearest]
    assert result.names.tolist() == ["platelet" if "platelet" in code else code for code in drawn]
    # What was found as a white cell and named otherwise is what its name says.
    kinds = {"erythroblast": "nrbc", "neutrophil": "wbc", "platelet": "platelet", "white platelet": "platelet"}
    assert result.detections.kinds.tolist() == [kinds.get(code, "rbc") for code in drawn]
    assert result.provenance.model_ids == ("discs", "red-discs", "white-discs")
    assert any(name.startswith("red-discs/") for name in result.provenance.sha256)


def test_erythroblasts_leave_the_white_cells_and_false_white_cells_become_platelets(
    naming_pipeline: Callable[..., Pipeline], field: tuple[Any, list[str]], taxonomy: Taxonomy
) -> None:
    analysis = naming_pipeline(edge_rule="all").analyze(field[0].pixels, um_per_px=UM_PER_PX)
    totals = kind_totals(analysis.counts, analysis.result.labels, taxonomy)
    assert totals == {"rbc": 24, "wbc": 8, "nrbc": 8, "platelet": 16}
    table = analysis.differential
    assert table.loc["neutrophil", "percent"] == 100
    assert table.loc["normocyte", "percent"] == pytest.approx(100 / 3)
    assert analysis.counts.named["platelet"] == 16
    assert sum(analysis.counts.unclassified.values()) == 0


def test_abstention_is_monotone(naming_pipeline: Callable[..., Pipeline], draw_discs: Draw) -> None:
    """A higher threshold only takes names away; at 0 every cell that is asked about has one."""
    at = (np.indices((8, 6)).reshape(2, -1).T + 0.5) * 80
    picture = draw_discs((640, 480), np.column_stack([at, np.full(48, 46)]), ("normocyte",) * 48)
    # Blues between those of the codes are what the network is unsure of.
    for (x, y), blue in zip(at.astype(int).tolist(), np.linspace(20, 230, 48).astype(int).tolist(), strict=True):
        part = picture.pixels[y - 25 : y + 25, x - 25 : x + 25]
        part[..., 2] = np.where(part[..., 1] < 150, blue, part[..., 2])
    previous: list[str] | None = None
    unnamed = []
    for threshold in (0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 1.0):
        result = naming_pipeline(min_label_score=threshold).analyze(picture.pixels, um_per_px=UM_PER_PX).result
        names = result.names.tolist()
        unnamed.append(names.count(UNCLASSIFIED))
        best = result.labels.probs.max(axis=1)
        assert names.count(UNCLASSIFIED) == (best < np.float32(threshold)).sum()
        if previous is not None:
            changed = [new for old, new in zip(previous, names, strict=True) if old != new]
            assert set(changed) <= {UNCLASSIFIED}
        previous = names
    assert unnamed[0] == 0
    assert unnamed[-1] == 48
    assert len(set(unnamed)) > 4


def test_unclassified_cells_keep_their_kind_and_are_counted(
    naming_pipeline: Callable[..., Pipeline], field: tuple[Any, list[str]]
) -> None:
    analysis = naming_pipeline(min_label_score=1.0, edge_rule="all").analyze(field[0].pixels, um_per_px=UM_PER_PX)
    assert dict(analysis.counts.unclassified) == {"rbc": 24, "wbc": 24, "nrbc": 0, "platelet": 0}
    assert analysis.counts.named["platelet"] == 8
    frame = analysis.cells
    unsure = frame[frame.label == UNCLASSIFIED]
    assert unsure.label_score.isna().all()
    assert (unsure.runner_up_score > 0).all()
    assert set(unsure.runner_up) <= {*RED, *WHITE}


def test_an_expert_is_heard_where_the_generalist_is_unsure(
    naming_models: Path, draw_discs: Draw, cells: Cells, tmp_path: Path
) -> None:
    """An expert that is the generalist, only surer of itself, changes the cells within the margin and no others."""
    for name in ("red-discs", "surer"):
        shutil.copytree(naming_models / "red-discs", tmp_path / name)
    update_card(tmp_path / "surer", id="surer", temperature=0.4)
    at = (np.indices((30, 1)).reshape(2, -1).T + 0.5) * 80
    picture = draw_discs((2400, 80), np.column_stack([at, np.full(30, 46)]), ("normocyte",) * 30)
    for (x, _), blue in zip(at.astype(int).tolist(), np.linspace(60, 125, 30).astype(int).tolist(), strict=True):
        part = picture.pixels[15:65, x - 25 : x + 25]
        part[..., 2] = np.where(part[..., 1] < 150, blue, part[..., 2])

    def probs(**experts: float) -> FloatArray:
        asked = namer(tmp_path, ("red-discs",), experts=experts)
        return asked.name(picture, cells(picture.boxes), UM_PER_PX)[0].probs

    alone = probs()
    best = np.sort(alone, axis=1)
    unsure = best[:, -1] - best[:, -2] < 0.6
    assert 0 < unsure.sum() < 30
    np.testing.assert_array_equal((probs(surer=0.6) != alone).any(axis=1), unsure)
    np.testing.assert_array_equal(probs(surer=0.0), alone)


def test_labels_of_a_platelet_without_a_question_are_empty() -> None:
    labels = Labels(np.zeros((2, 3), np.float32), RED)
    assert name_cells(np.array(["platelet", "rbc"]), labels, 0.0).tolist() == ["platelet", UNCLASSIFIED]


def test_a_single_threshold_goes_for_all(naming_models: Path) -> None:
    assert [each.min_label_score for each in namer(naming_models).classifiers] == [0.5, 0.5]
    assert [each.min_label_score for each in namer(naming_models, min_label_score=0.9).classifiers] == [0.9, 0.9]
    assert find_model("red-discs", naming_models).classifier_card.min_label_score == 0.5
