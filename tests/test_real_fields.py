"""The shipped detector against people's labels on real photographs that it was not trained on."""

import pytest

from smearcount.cards import find_model
from smearcount.config import Settings
from smearcount.datasets import KINDS, LabelledField, data_root
from smearcount.detector import Detector
from smearcount.evaluation.conditions import CONDITIONS, MAGNIFICATIONS, across_changes, across_runtimes, spread_fields
from smearcount.images import open_image
from smearcount.metrics import match_boxes
from smearcount.runtimes import RuntimeChoice
from smearcount.scale import settle_scale

pytestmark = pytest.mark.skipif(
    data_root() is None, reason="labelled photographs are missing: set SMEARCOUNT_DATA to their folder"
)
MODEL = Settings().detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(find_model(MODEL), RuntimeChoice())


@pytest.fixture(scope="module")
def fields() -> list[LabelledField]:
    return spread_fields(["txl_pbc"], 36)


def test_counts_agree_with_the_labels_on_every_look(detector: Detector, fields: list[LabelledField]) -> None:
    looks: dict[str, list[list[int]]] = {}
    for field in fields:
        kinds = detector.find(open_image(field.path), field.um_per_px).kinds.tolist()
        row = [kinds.count("rbc"), (field.kinds == 0).sum(), kinds.count("wbc"), (field.kinds == 1).sum()]
        looks.setdefault(field.source, []).append(row)
    assert len(looks) == 3
    for look, rows in looks.items():
        red, true_red, white, true_white = (sum(column) for column in zip(*rows, strict=True))
        assert abs(red - true_red) <= 0.08 * true_red, (look, red, true_red)
        assert abs(white - true_white) <= max(1, 0.1 * true_white), (look, white, true_white)


def test_boxes_lie_on_the_labelled_cells(detector: Detector) -> None:
    right = found = true = 0
    for field in spread_fields(["deepbionet"], 12):
        cells = detector.find(open_image(field.path), field.um_per_px)
        red = cells.take(cells.kinds == "rbc")
        labels = field.boxes[field.kinds == KINDS.index("rbc")]
        right += len(match_boxes(red.boxes, red.scores, labels).found)
        found, true = found + len(red), true + len(labels)
    assert 2 * right / (found + true) > 0.87


def test_the_scale_of_known_microscopes_is_found(detector: Detector, fields: list[LabelledField]) -> None:
    ratios = [settle_scale(open_image(f.path), detector).scale.um_per_px / f.um_per_px for f in fields]
    assert sum(0.8 < ratio < 1.25 for ratio in ratios) >= 0.95 * len(ratios)


def test_magnification_changes_next_to_nothing() -> None:
    result = across_changes(MODEL, spread_fields(["txl_pbc", "deepbionet"], 8), MAGNIFICATIONS)
    for factor, row in result.items():
        assert abs(row["red cells over plain"] - 1) <= 0.05, (factor, row)
        assert row["fields with the same white cells"] >= 0.75, (factor, row)


def test_light_and_camera_change_little() -> None:
    result = across_changes(MODEL, spread_fields(["txl_pbc", "deepbionet"], 8), CONDITIONS)
    for name, row in result.items():
        assert abs(row["red cells over plain"] - 1) <= 0.08, (name, row)
        assert row["fields with the same white cells"] >= 0.75, (name, row)
        least, most = row["scale over plain, least and most"]
        assert 0.8 < least <= most < 1.25, (name, row)


@pytest.mark.filterwarnings("ignore")
def test_runtimes_agree() -> None:
    result = across_runtimes(MODEL, spread_fields(["txl_pbc", "deepbionet"], 12))
    assert result["torch f32"]["fields with the same counts"] == 1
    assert result["torch f32"]["largest shift of a box (px)"] < 0.5
    assert abs(result["openvino bf16"]["rbc over reference"] - 1) < 0.02
