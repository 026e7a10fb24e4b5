"""What a network is shown of a cell, and what becomes of its answer: windows, batches, order, probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import RED, UM_PER_PX, Draw

from smearcount import classifier as module
from smearcount.arrays import FloatArray, Pixels
from smearcount.cards import Model, find_model
from smearcount.classifier import Classifier, calibrated, fitted, quarter_turns
from smearcount.config import Settings
from smearcount.errors import ModelError
from smearcount.images import ArraySource, write_picture
from smearcount.patches import PatchSizes, cut_patches, sample_window, to_batch, view_of_patch
from smearcount.runtimes import RuntimeChoice
from smearcount.training.cell_formats import CONTEXT, cut_window
from smearcount.training.cell_sources import CellSource
from smearcount.training.cell_views import plain_view
from smearcount.training.cells import read_cells
from smearcount.training.packaging import update_card

SIDE_PX = 12 / UM_PER_PX


@pytest.fixture
def red(naming_models: Path) -> Classifier:
    return Classifier(find_model("red-discs", naming_models), RuntimeChoice(threads=1))


class Recorder:
    """A network in the place of another: it keeps what it is fed, normalised, and passes it on."""

    input_dtype, at_once, infer_windows = np.dtype(np.uint8), 10, None

    def __init__(self, classifier: Classifier) -> None:
        self.inner, self.batches, self.card = classifier._run, list[FloatArray](), classifier.card
        classifier._run = self

    def __call__(self, batch: Pixels) -> tuple[FloatArray, ...]:
        self.batches.append(to_batch(list(batch), self.card.mean, self.card.std))
        return self.inner(batch)

    @property
    def cells(self) -> FloatArray:
        return np.concatenate(self.batches)


class Reads:
    """A picture that keeps the list of what was read of it."""

    def __init__(self, picture: Any) -> None:
        self.picture, self.size_wh, self.regions = picture, picture.size_wh, list[tuple[int, int, int, int]]()

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        self.regions.append((x, y, w, h))
        pixels: Pixels = self.picture.read(x, y, w, h)
        return pixels


def many(draw: Draw, n: int = 60, size_wh: tuple[int, int] = (2300, 2100), seed: int = 0) -> tuple[Any, list[str]]:
    """Discs of three colours anywhere, some of them cut by the border; a few lie on the seams of the blocks."""
    rng = np.random.default_rng(seed)
    places = rng.uniform((0, 0), size_wh, (n, 2))
    places[:6] = [(1024, 300), (1023.5, 800), (1024.5, 1024.25), (2048, 2048), (5, 1024), (2299, 2099)]
    codes = rng.choice(RED, n).tolist()
    return draw(size_wh, np.column_stack([places, rng.uniform(40, 56, n)]), tuple(codes)), codes


def off_centre(draw: Draw) -> list[Pixels]:
    """Views of the network's size of discs that lie beside the middle, so that no turn looks like another."""
    picture, _ = many(draw)
    middles = (picture.boxes[6:26, :2] + picture.boxes[6:26, 2:]) / 2
    corners = np.clip(middles - (26, 4), 0, (2300 - 32, 2100 - 32)).astype(int).tolist()
    return [picture.read(x, y, 32, 32) for x, y in corners]


def one_by_one(classifier: Classifier, picture: Any) -> tuple[FloatArray, FloatArray]:
    named = [classifier.name(picture, picture.boxes[[row]], UM_PER_PX) for row in range(len(picture.boxes))]
    return np.concatenate([each.probs for each in named]), np.concatenate([each.features for each in named])


def test_drawn_discs_get_their_names(red: Classifier, draw_discs: Draw) -> None:
    discs = np.column_stack([np.arange(12) * 80 + 60, np.full(12, 60), np.linspace(42, 54, 12)])
    picture = draw_discs((1000, 120), discs, RED * 4)
    named = red.name(picture, picture.boxes, UM_PER_PX)
    assert [red.card.codes[best] for best in named.probs.argmax(axis=1)] == list(RED * 4)
    assert named.probs.max(axis=1).min() > 0.8
    assert (named.probs.dtype, named.features.shape) == (np.float32, (12, red.card.embedding))
    np.testing.assert_allclose(named.probs.sum(axis=1), 1, atol=1e-6)


def test_no_cells_are_no_rows(red: Classifier, draw_discs: Draw) -> None:
    picture = draw_discs((100, 100), np.zeros((0, 3)), ())
    for named in (red.name(picture, picture.boxes, UM_PER_PX), red.name_views(iter([]))):
        assert named.probs.shape == (0, 3)
        assert named.features.shape == (0, red.card.embedding)
        assert named.probs.dtype == named.features.dtype == np.float32


@pytest.mark.parametrize("um_per_px", [0.08, 0.16, 0.31])
def test_the_network_sees_the_cell_in_the_middle_at_its_size(
    red: Classifier, draw_discs: Draw, um_per_px: float
) -> None:
    """A disc of 6 um is half of a window of 12 um, at every magnification; its middle is right to half a pixel."""
    centres = np.array([[301.0, 250.0], [150.25, 151.5], [420.9, 333.3]])
    discs = np.column_stack([centres, np.full(3, 6 / um_per_px)])
    picture, seen = draw_discs((640, 520), discs, ("normocyte",) * 3), Recorder(red)
    red.name(picture, picture.boxes, um_per_px)
    assert seen.cells.shape == (3, 3, 32, 32)
    at = np.arange(32) + 0.5
    for view in seen.cells:
        green = (view[1] * 0.3 + 0.45) * 255
        weight = np.clip(214 - green, 0, None)
        weight[weight < 5] = 0
        assert (weight.sum(axis=0) @ at) / weight.sum() == pytest.approx(16, abs=0.5)
        assert (weight.sum(axis=1) @ at) / weight.sum() == pytest.approx(16, abs=0.5)
        assert 2 * np.sqrt(weight.sum() / 114 / np.pi) == pytest.approx(16, rel=0.04)


def test_training_and_inference_show_a_cell_alike(red: Classifier, draw_discs: Draw) -> None:
    """The window that is kept for training, seen plainly, is bit by bit what the product feeds its network."""
    centres = np.array([[200, 210], [4, 300], [630, 5], [333, 478]])
    picture = draw_discs((640, 480), np.column_stack([centres, np.full(4, 47)]), (*RED, "normocyte"))
    seen = Recorder(red)
    red.name(picture, picture.boxes, UM_PER_PX)
    side = round(12 * CONTEXT / UM_PER_PX)
    assert side % 2 == 0
    windows = [cut_window(picture, (x, y), side) for x, y in centres.tolist()]
    views = [plain_view(window, UM_PER_PX, red.card.patch_um, red.card.input_px) for window in windows]
    np.testing.assert_array_equal(seen.cells, to_batch(views, red.card.mean, red.card.std))


def test_the_network_input_has_its_closed_form(red: Classifier) -> None:
    view = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    seen = Recorder(red)
    red.name_views([view, view[::-1]])
    expected = (view / 255 - np.array(red.card.mean)) / np.array(red.card.std)
    np.testing.assert_allclose(seen.cells[0], expected.transpose(2, 0, 1), atol=1e-5)
    np.testing.assert_array_equal(seen.cells[1], seen.cells[0][:, ::-1])


@pytest.mark.parametrize("block_px", [64, 300, 1024, 5000])
def test_blocks_change_neither_windows_nor_order(
    red: Classifier, draw_discs: Draw, monkeypatch: pytest.MonkeyPatch, block_px: int
) -> None:
    monkeypatch.setattr(module, "BLOCK_PX", block_px)
    picture, codes = many(draw_discs)
    reads, seen = Reads(picture), Recorder(red)
    named = red.name(reads, picture.boxes, UM_PER_PX)
    centres = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
    squares = {(int(x // block_px), int(y // block_px)) for x, y in centres.tolist()}
    assert len(reads.regions) == len(squares)
    assert all(max(w, h) <= block_px + SIDE_PX + 10 for *_, w, h in reads.regions)
    fed = seen.cells
    windows = [sample_window(picture, (x, y), SIDE_PX, 32)[0] for x, y in centres.tolist()]
    expected = to_batch(windows, red.card.mean, red.card.std)
    # The same windows in the order of the blocks, and the answers in the order that was asked for.
    assert sorted(view.tobytes() for view in fed) == sorted(view.tobytes() for view in expected)
    probs, features = one_by_one(red, picture)
    np.testing.assert_allclose(named.probs, probs, atol=1e-6)
    np.testing.assert_allclose(named.features, features, atol=1e-5)
    inside = ((centres > 20) & (centres < np.array(picture.size_wh) - 20)).all(axis=1)
    assert inside.sum() > 40
    right = named.probs.argmax(axis=1) == [RED.index(code) for code in codes]
    # Where another disc was drawn over a cell, its name is no longer sure.
    assert right[inside].mean() > 0.9


def test_the_order_of_the_boxes_is_the_order_of_the_names(red: Classifier, draw_discs: Draw) -> None:
    picture, _ = many(draw_discs)
    order = np.random.default_rng(1).permutation(len(picture.boxes))
    straight, shuffled = (red.name(picture, boxes, UM_PER_PX).probs for boxes in (picture.boxes, picture.boxes[order]))
    np.testing.assert_allclose(shuffled, straight[order], atol=1e-6)


def test_how_many_cells_are_named_at_once_changes_nothing(red: Classifier, draw_discs: Draw) -> None:
    picture, _ = many(draw_discs)
    answers = []
    for batch in (1, 7, 10, 64):
        seen = Recorder(red)
        seen.at_once = batch
        answers.append(red.name(picture, picture.boxes, UM_PER_PX).probs)
        sizes = [len(each) for each in seen.batches]
        assert max(sizes) == min(batch, 60)
        assert sum(sizes) == 60
        red._run = seen.inner
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-6)


@pytest.mark.parametrize("second_look", [0.0, 1.01])
def test_a_runtime_that_samples_the_windows_itself_gives_the_same_names(
    naming_models: Path, draw_discs: Draw, second_look: float
) -> None:
    """As on a graphics card; whether no cell is looked at again, or every one."""
    picture, _ = many(draw_discs)
    named = Classifier(find_model("red-discs", naming_models), RuntimeChoice("torch", "cpu", threads=1))
    named.card = named.card.model_copy(update={"second_look": second_look})
    expected = named.name(picture, picture.boxes, UM_PER_PX)
    asked = list[tuple[int, ...]]()

    def sampled(pixels: Pixels, places: FloatArray, *rest: Any) -> tuple[FloatArray, ...]:
        asked.append(rest[-1])
        return named._run.sampled(pixels, places, *rest)

    named._run.infer_windows = sampled
    found = named.name(picture, picture.boxes, UM_PER_PX)
    assert set(asked) == ({(0,), (1, 2, 3)} if second_look else {(0,)})
    np.testing.assert_allclose(found.probs, expected.probs, atol=0.02)
    np.testing.assert_allclose(found.features, expected.features, atol=0.1)
    assert np.array_equal(found.probs.argmax(axis=1), expected.probs.argmax(axis=1))


def test_views_are_taken_as_they_come(red: Classifier) -> None:
    """A folder of any size is named without being held in memory."""
    waiting, most = 0, 0
    inner = red._run

    class Counted:
        input_dtype, at_once, infer_windows = np.dtype(np.uint8), 4, None

        def __call__(self, batch: Pixels) -> tuple[FloatArray, ...]:
            nonlocal waiting
            waiting -= len(batch)
            return inner(batch)

    def views() -> Iterator[Pixels]:
        nonlocal waiting, most
        for level in range(30):
            waiting += 1
            most = max(most, waiting)
            yield np.full((32, 32, 3), level, np.uint8)

    red._run = Counted()
    assert len(red.name_views(views()).probs) == 30
    # One batch in the network, two waiting for it, one being made.
    assert most <= 4 * 4


def test_every_runtime_gives_the_same_names(naming_models: Path, draw_discs: Draw) -> None:
    model, (picture, _) = find_model("red-discs", naming_models), many(draw_discs, 24)
    ours, theirs = (
        Classifier(model, RuntimeChoice(runtime)).name(picture, picture.boxes, UM_PER_PX)
        for runtime in ("openvino", "torch")
    )
    np.testing.assert_allclose(ours.probs, theirs.probs, atol=2e-3)
    np.testing.assert_allclose(ours.features, theirs.features, atol=2e-3)


def test_patches_of_452_px_get_the_names_of_direct_sampling(red: Classifier, draw_discs: Draw) -> None:
    """The format that is exchanged, shrunk to the size of the network, against sampling straight at that size."""
    rng = np.random.default_rng(3)
    n, same, drift = 0, 0, list[float]()
    for um_per_px in (0.09, 0.16, 0.25):
        blues = rng.choice(RED, 60)
        discs = np.column_stack([rng.uniform(0, 1, (60, 2)), rng.uniform(5.5, 9, 60) / um_per_px])
        pitch = round(14 / um_per_px)
        discs[:, :2] += (np.indices((6, 10)).reshape(2, -1).T + 0.5) * pitch
        picture = draw_discs((6 * pitch, 10 * pitch), discs, tuple(blues.tolist()))
        noise = rng.normal(0, 6, picture.pixels.shape)
        picture.pixels[:] = np.clip(picture.pixels + noise, 0, 255).astype(np.uint8)
        straight = red.name(picture, picture.boxes, um_per_px).probs
        patches = cut_patches(picture, picture.boxes, np.full(60, 12, np.float32), um_per_px)
        views = (view_of_patch(ArraySource(each.pixels), PatchSizes(12, each.um_per_px), 12, 32) for each in patches)
        shrunk = red.name_views(views).probs
        n, same = n + 60, same + int((straight.argmax(axis=1) == shrunk.argmax(axis=1)).sum())
        drift.append(float(np.abs(straight - shrunk).max()))
    assert same / n >= 0.995
    assert max(drift) < 0.1


SIZES_WH = [(32, 32), (452, 452), (80, 80), (64, 64), (65, 65), (40, 40), (33, 90), (101, 64), (300, 201)]


@pytest.mark.parametrize("named_um", [12.0, 9.0, 14.0])
def test_a_ready_made_picture_is_shown_as_in_training(red: Classifier, tmp_path: Path, named_um: float) -> None:
    """Without a scale a single-cell picture is the window of training, as in `classify`, but for rounding."""
    card = red.card.model_copy(update={"patch_um": named_um, "picture_um": None if named_um == 12 else 12.0})
    rng, pictures = np.random.default_rng(0), dict[str, Pixels]()
    (tmp_path / "normal").mkdir()
    for number, size_wh in enumerate(SIZES_WH):
        coarse = rng.integers(40, 230, (9, 9, 3)).astype(np.uint8)
        pictures[f"{number}.png"] = np.asarray(cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)
        write_picture(tmp_path / "normal" / f"{number}.png", pictures[f"{number}.png"])
    source = CellSource(format="folders", folder=tmp_path, classes={"normal": "normocyte"})
    unused: Any = None
    cells = read_cells({"own": source}, ("normocyte",), unused, 12.0, 32)
    assert len(cells) == len(SIZES_WH)
    for window, scale, origin in zip(cells.pixels, cells.um_per_px.tolist(), cells.origins.tolist(), strict=True):
        shown = fitted(pictures[Path(origin).name], card)
        assert (shown.shape, shown.dtype) == ((32, 32, 3), np.uint8)
        away = np.abs(shown.astype(int) - plain_view(window, scale, named_um, 32))
        assert away.max() <= 1
        assert away.mean() < 0.01
    assert max(len(window) for window in cells.pixels) == 64


def test_calibration_has_its_closed_form() -> None:
    logits = np.array([[np.log(1), np.log(2), np.log(5)]], np.float32)
    np.testing.assert_allclose(calibrated(logits, 1.0), [[1 / 8, 2 / 8, 5 / 8]], atol=1e-7)
    np.testing.assert_allclose(calibrated(logits, 0.5), [[1 / 30, 4 / 30, 25 / 30]], atol=1e-7)
    np.testing.assert_allclose(calibrated(logits + 7, 0.5), calibrated(logits, 0.5), atol=1e-6)


def test_calibration_never_changes_the_best_code_and_never_overflows() -> None:
    logits = np.random.default_rng(0).normal(0, 400, (200, 17)).astype(np.float32)
    previous = np.ones(200)
    for temperature in (0.05, 0.5, 1.0, 3.0, 20.0):
        probs = calibrated(logits, temperature)
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(probs.argmax(axis=1), logits.argmax(axis=1))
        assert (probs.max(axis=1) <= previous + 1e-6).all()
        previous = probs.max(axis=1)


def test_the_temperature_of_the_card_is_used(red: Classifier) -> None:
    view = np.full((32, 32, 3), 128, np.uint8)
    logits = red._run(np.stack([view]))[0]
    np.testing.assert_allclose(red.name_views([view]).probs, calibrated(logits, red.card.temperature), atol=1e-6)
    assert red.card.temperature == 1.5


def test_only_unsure_cells_are_looked_at_again_in_four_quarter_turns(red: Classifier, draw_discs: Draw) -> None:
    views = off_centre(draw_discs)
    turned = [[np.ascontiguousarray(np.rot90(view, turns)) for view in views] for turns in range(4)]
    looks = np.stack([red.name_views(each).probs for each in turned])
    first = looks[0].max(axis=1)
    red.card = red.card.model_copy(update={"second_look": float(np.median(first))})
    unsure = first < np.median(first)
    recorder = Recorder(red)
    named = red.name_views(views).probs
    assert 0 < unsure.sum() < len(views)
    assert len(recorder.cells) == len(views) + 3 * unsure.sum()
    np.testing.assert_allclose(named[unsure], looks.mean(axis=0)[unsure], atol=1e-5)
    np.testing.assert_array_equal(named[~unsure], looks[0][~unsure])
    np.testing.assert_allclose(named.sum(axis=1), 1, atol=1e-5)
    assert np.abs(named - looks[0]).max() > 1e-4


def test_both_kinds_of_a_batch_are_turned_alike(red: Classifier, draw_discs: Draw) -> None:
    views = off_centre(draw_discs)[:3]
    levels = quarter_turns(np.stack(views))
    assert levels.shape == (9, 32, 32, 3)
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(levels[3 * turns - 1], np.rot90(views[2], turns))
    numbers = quarter_turns(to_batch(views, red.card.mean, red.card.std))
    np.testing.assert_array_equal(to_batch(list(levels), red.card.mean, red.card.std), numbers)


def test_the_threshold_is_the_card_s_or_what_was_asked_for(naming_models: Path) -> None:
    model = find_model("red-discs", naming_models)
    assert Classifier(model, RuntimeChoice()).min_label_score == model.classifier_card.min_label_score == 0.5
    assert Classifier(model, RuntimeChoice(), 0.0).min_label_score == 0
    assert Classifier(model, RuntimeChoice(), 0.9).min_label_score == 0.9


def test_a_detector_is_no_classifier() -> None:
    with pytest.raises(ModelError, match=r"a detector, where a classifier is needed.*models list"):
        Classifier(find_model(Settings().detector), RuntimeChoice())


def test_a_code_is_not_given_to_a_cell_too_large_for_it(
    naming_models: Path, draw_discs: Draw, tmp_path: Path, red: Classifier
) -> None:
    """What the size rules out goes to the other codes in their proportion; where it rules out all, it says nothing."""
    shutil.copytree(naming_models / "red-discs", tmp_path / "sized")
    update_card(tmp_path / "sized", largest_um={"spherocyte": 7.0})
    discs = np.array([[60, 60, 40], [160, 60, 48], [260, 60, 48]])
    picture = draw_discs((320, 120), discs, ("spherocyte", "spherocyte", "normocyte"))
    free = red.name(picture, picture.boxes, UM_PER_PX).probs
    sized = Classifier(Model(tmp_path / "sized"), RuntimeChoice()).name(picture, picture.boxes, UM_PER_PX).probs
    np.testing.assert_allclose(sized[0], free[0], atol=1e-6)
    assert sized[1:, 1].tolist() == [0, 0]
    for row in (1, 2):
        np.testing.assert_allclose(sized[row, [0, 2]], free[row, [0, 2]] / (1 - free[row, 1]), atol=1e-4)
    np.testing.assert_allclose(sized.sum(axis=1), 1, atol=1e-6)
    update_card(tmp_path / "sized", largest_um=dict.fromkeys(RED, 7.0))
    all_ruled_out = Classifier(Model(tmp_path / "sized"), RuntimeChoice()).name(picture, picture.boxes, UM_PER_PX).probs
    np.testing.assert_allclose(all_ruled_out, free, atol=1e-6)
