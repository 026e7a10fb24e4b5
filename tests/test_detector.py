"""Windows without double counts: a network that finds drawn discs must find each exactly once, however it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from conftest import UM_PER_PX, Draw

from smearcount import detector
from smearcount.arrays import FloatArray
from smearcount.cards import DetectorCard, find_model
from smearcount.config import Settings
from smearcount.detector import Detector, decode
from smearcount.errors import ImageError, ModelError
from smearcount.geometry import centres, diameters, iou_matrix
from smearcount.images import open_image
from smearcount.records import Detections
from smearcount.region import Region
from smearcount.runtimes import RuntimeChoice, make_runtime
from smearcount.windows import Window, plan_windows, to_planes, to_tensor

WHOLE = 4096
PATIENCE_S = 20.0
Make = Callable[..., Detector]


def match(found: Detections, boxes: FloatArray, kinds: tuple[str, ...], min_iou: float = 0.85) -> None:
    """Each disc has one detection, of its kind and place; there is no other."""
    assert len(found) == len(boxes)
    overlap = iou_matrix(boxes, found.boxes)
    best = overlap.argmax(axis=1)
    assert len(set(best.tolist())) == len(boxes)
    assert overlap.max(axis=1).min() >= min_iou
    assert found.kinds[best].tolist() == list(kinds)


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("boxes", "scores", "kinds", "at_edge"))


@pytest.mark.parametrize("seed", range(3))
def test_no_disc_is_lost_or_doubled_at_a_seam(scatter_discs: Draw, disc_detector: Make, seed: int) -> None:
    smear = scatter_discs((1130 + 37 * seed, 910 - 61 * seed), 47, seed, mixed=True)
    windowed, whole = disc_detector(), disc_detector(window_px=WHOLE)
    found = windowed.find(smear, UM_PER_PX)
    match(found, smear.boxes, smear.kinds)
    assert same(found, whole.find(smear, UM_PER_PX))
    assert len(windowed._run.shapes) > 40  # type: ignore[attr-defined]
    assert len(whole._run.shapes) == 1  # type: ignore[attr-defined]
    assert max(max(shape[2:]) for shape in windowed._run.shapes) == 256  # type: ignore[attr-defined]


def test_discs_on_every_place_of_a_seam(draw_discs: Draw, disc_detector: Make) -> None:
    """One disc moved across the seam at 130 px and across the crossing of two seams."""
    for at in np.arange(60, 200, 3.7):
        smear = draw_discs((400, 360), np.array([[at, 130.0, 47.0], [at, 130 + at, 40.0]]), ("rbc", "wbc"))
        match(disc_detector().find(smear, UM_PER_PX), smear.boxes, smear.kinds)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_that_differ_from_window_to_window_are_still_one_cell(
    scatter_discs: Draw, disc_detector: Make, seed: int
) -> None:
    """A real network places the same cell a little differently in each window, on either side of a seam."""
    smear, shaken, rng = scatter_discs((1130, 910), 47, seed), disc_detector(), np.random.default_rng(seed)
    steady = shaken._run

    def shaky(batch: FloatArray) -> tuple[FloatArray, ...]:
        out = steady(batch)[0]
        out[0, :2] += rng.uniform(-2, 2, (2, 1))
        return (out,)

    shaken._run = network_of(shaky)
    match(shaken.find(smear, UM_PER_PX), smear.boxes, smear.kinds, 0.75)


@pytest.mark.parametrize("diameter", [90.0, 130.0, 150.0, 170.0])
def test_cells_larger_than_the_margin_are_read_again(draw_discs: Draw, disc_detector: Make, diameter: float) -> None:
    """The margin of 63 px holds cells of up to 126 px; larger ones are cut by the window, wherever they lie."""
    for at in np.arange(170, 310, 4.3):
        smear = draw_discs((520, 450), np.array([[at, 195.0, diameter]]), ("wbc",))
        match(disc_detector().find(smear, UM_PER_PX), smear.boxes, smear.kinds, 0.93)


def test_a_cell_that_is_read_again_takes_the_kind_that_its_box_and_score_are_of(disc_detector: Make) -> None:
    """The part of a white cell that a window shows is taken for a red one; read whole, it is a white cell."""

    def look(view: Any) -> Any:
        return np.array([[180, 100, 260, 170]], np.float32), np.array([0.95], np.float32), np.array([1])

    part = np.array([[180, 100, 256, 170]], np.float32), np.array([0.6], np.float32), np.array([0])
    found = disc_detector()._emit(part, Window((0, 0, 256, 256), (0, 0, 256, 256)), (1000, 1000), look)
    assert [each.tolist() for each in found] == [each.tolist() for each in look(None)]


def test_the_order_of_the_windows_is_without_influence(
    scatter_discs: Draw, disc_detector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    smear = scatter_discs((900, 700), 47, 5, mixed=True)
    first = disc_detector().find(smear, UM_PER_PX)

    def shuffled(*plan: int) -> Iterator[Window]:
        windows = list(plan_windows(*plan))
        return iter([windows[i] for i in np.random.default_rng(1).permutation(len(windows))])

    monkeypatch.setattr(detector, "plan_windows", shuffled)
    assert same(first, disc_detector().find(smear, UM_PER_PX))
    top_down = np.lexsort((first.boxes[:, 0], first.boxes[:, 1]))
    assert top_down.tolist() == list(range(len(first)))


@pytest.mark.parametrize("corner", [(0, 0), (300, 250), (800, 600)])
def test_in_a_part_the_same_cells_are_found_in_fewer_windows(
    scatter_discs: Draw, disc_detector: Make, corner: tuple[int, int]
) -> None:
    smear, network = scatter_discs((900, 700), 47, 5, mixed=True), disc_detector()
    everything = network.find(smear, UM_PER_PX)
    windows = len(network._run.shapes)  # type: ignore[attr-defined]
    left, top = corner
    some = network.find(smear, UM_PER_PX, Region(shapely.box(left, top, left + 80, top + 60)))
    assert len(network._run.shapes) - windows < windows / 2  # type: ignore[attr-defined]
    middles = [centres(each.boxes) for each in (some, everything)]
    near = [np.all((at >= corner) & (at < (left + 80, top + 60)), axis=1) for at in middles]
    assert near[0].any()
    assert same(some.take(near[0]), everything.take(near[1]))


class OneByOne:
    """The slow and obvious way: each view is worked on and answered before the next."""

    def __init__(self, work: Callable[[Any], Any], _: int) -> None:
        self._work = work

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def ask(self, given: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(self._work(given))
        return answer

    def answers(self, given: Iterable[Any]) -> Iterator[Any]:
        return (self.ask(each).result() for each in given)


def network_of(run: Any) -> Any:
    """A function as a network of one call at a time."""
    run.streams = run, 1
    return run


def shaken(network: Detector, seed: int = 0) -> Detector:
    """A detector whose every answer depends on the view, so that one given to the wrong window is noticed."""
    steady = network._run

    def run(batch: FloatArray) -> tuple[FloatArray, ...]:
        out = steady(batch)[0]
        out[0, :2] += np.random.default_rng(seed + int(batch.sum())).uniform(-1, 1, (2, 1))
        return (out,)

    network._run = network_of(run)
    return network


def test_windows_under_way_together_give_the_same_bytes(
    scatter_discs: Draw, draw_discs: Draw, disc_detector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank windows between full ones, and cells so large that they are read again."""
    some = scatter_discs((900, 300), 47, 8, mixed=True)
    large = np.array([[200, 700, 150], [660, 655, 170], [520, 820, 140]], np.float32)
    smear = draw_discs((1000, 950), np.concatenate([some.discs, large]), (*some.kinds, "wbc", "wbc", "wbc"))
    together = shaken(disc_detector())
    found = together.find(smear, UM_PER_PX)
    monkeypatch.setattr(detector, "InFlight", OneByOne)
    apart = shaken(disc_detector()).find(smear, UM_PER_PX)
    assert len(found) == len(smear.discs)
    assert all(getattr(found, f).tobytes() == getattr(apart, f).tobytes() for f in ("boxes", "scores", "at_edge"))
    assert found.kinds.tolist() == apart.kinds.tolist()


def test_how_many_windows_are_read_together_changes_nothing(draw_discs: Draw, disc_detector: Make) -> None:
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(np.arange(14), np.arange(11)), axis=-1).reshape(-1, 2) * 66.0 + 40
    discs = np.column_stack([grid + rng.uniform(-6, 6, grid.shape), rng.uniform(30, 52, len(grid))])
    discs[37, 2] = 150  # cut by its window, and read again
    apart = np.hypot(*(discs[:, :2] - discs[37, :2]).T) > 110
    apart[37] = True
    smear = draw_discs((960, 777), discs[apart], ("rbc",) * int(apart.sum()))
    found: list[Detections] = []
    reads: list[list[tuple[int, ...]]] = []

    class Counted:
        size_wh = smear.size_wh

        def read(self, *region: int) -> Any:
            reads[-1].append(region)
            return smear.read(*region)

    for tile in (1, 2, 3, 100):
        reads.append([])
        network = disc_detector()
        network._tile = tile
        found.append(network.find(Counted(), UM_PER_PX))
    assert len(found[0]) == len(smear.discs)
    assert all(same(found[0], other) for other in found[1:])
    assert len(reads[0]) > len(reads[1]) > len(reads[2]) > len(reads[3])
    # In the end a row of windows is one strip, read once; a cell that is looked at again in between is read alone.
    strips = {region for region in reads[3] if region[2] == smear.size_wh[0]}
    again = set(reads[3]) - strips
    assert len(reads[3]) == len(strips) + len(again)
    assert min(len(strips), 6 * len(again)) >= 6
    assert again <= set(reads[0]) & set(reads[1])


def test_the_next_window_is_read_while_the_network_is_at_one(scatter_discs: Draw, disc_detector: Make) -> None:
    """The first call of the network waits until a second window is read: in turns, it would not come through."""
    smear, network = scatter_discs((900, 700), 47, 5), disc_detector()
    reads, second = 0, threading.Event()
    steady = network._run

    class Counted:
        size_wh = smear.size_wh

        def read(self, *region: int) -> Any:
            nonlocal reads
            reads += 1
            if reads > 1:
                second.set()
            return smear.read(*region)

    def run(batch: FloatArray) -> tuple[FloatArray, ...]:
        assert second.wait(PATIENCE_S)
        return steady(batch)

    network._run = network_of(run)
    assert len(network.find(Counted(), UM_PER_PX)) == len(smear.discs)


@pytest.mark.parametrize("culprit", ["read", "network"])
def test_an_error_in_any_window_is_raised_and_no_thread_stays(
    scatter_discs: Draw, disc_detector: Make, culprit: str
) -> None:
    smear, network, before = scatter_discs((900, 700), 47, 5), disc_detector(), threading.active_count()
    calls = []

    class Broken:
        size_wh = smear.size_wh

        def read(self, *region: int) -> Any:
            calls.append(region)
            if culprit == "read" and len(calls) == 7:
                raise ImageError("tile 7 is damaged")
            return smear.read(*region)

    steady = network._run

    def run(batch: FloatArray) -> tuple[FloatArray, ...]:
        if culprit == "network" and len(calls) >= 7:
            raise RuntimeError("tile 7 is damaged")
        return steady(batch)

    network._run = network_of(run)
    with pytest.raises((ImageError, RuntimeError), match="tile 7 is damaged"):
        network.find(Broken(), UM_PER_PX)
    assert len(calls) < 12
    assert threading.active_count() == before


def test_a_picture_of_one_window_needs_no_thread(scatter_discs: Draw, disc_detector: Make) -> None:
    network, where = disc_detector(), []
    steady = network._run
    network._run = lambda batch: (where.append(threading.current_thread()), steady(batch))[1]
    assert len(network.find(scatter_discs((250, 200), 47, 1), UM_PER_PX))
    assert where == [threading.main_thread()]


def test_grey_levels_and_floats_find_the_same_cells(scatter_discs: Draw) -> None:
    """OpenVINO divides by 255 itself: nothing may depend on where that is done."""
    model = find_model(Settings().detector)
    pixels, floats = (Detector(model, RuntimeChoice("openvino", "cpu", "f32", 1)) for _ in range(2))
    assert pixels._to_batch is to_planes
    floats._run, _ = make_runtime(model, RuntimeChoice("openvino", "cpu", "f32", 1))
    floats._to_batch = to_tensor
    smear = scatter_discs((333, 250), 47, 3, mixed=True)
    found = pixels.find(smear, UM_PER_PX)
    assert len(found) > 5
    assert same(found, floats.find(smear, UM_PER_PX))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0, 4.0])
def test_another_magnification_gives_the_same_cells(scatter_discs: Draw, disc_detector: Make, factor: float) -> None:
    smear = scatter_discs((610, 470), 47, 6, mixed=True)
    size = round(610 * factor), round(470 * factor)
    resized = cv2.resize(smear.pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    gain = np.array([size[0] / 610, size[1] / 470] * 2, np.float32)
    source = type(smear)(resized, smear.discs, smear.kinds)
    found = disc_detector().find(source, UM_PER_PX / factor)
    match(found, smear.boxes * gain, smear.kinds, 0.8)
    reference = disc_detector().find(smear, UM_PER_PX)
    error = diameters(found.boxes).mean() / factor / diameters(reference.boxes).mean() - 1
    assert abs(float(error)) < 0.02


def test_mirrored_pictures_give_mirrored_cells(scatter_discs: Draw, disc_detector: Make) -> None:
    smear = scatter_discs((620, 500), 47, 7, mixed=True)
    found = disc_detector().find(smear, UM_PER_PX)
    mirrored = disc_detector().find(type(smear)(smear.pixels[:, ::-1].copy(), smear.discs, smear.kinds), UM_PER_PX)
    back = mirrored.boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + np.array([620, 0, 620, 0])
    order = np.lexsort((back[:, 2], back[:, 0], back[:, 1]))
    assert np.array_equal(back[order], found.boxes)
    assert mirrored.kinds[order].tolist() == found.kinds.tolist()


def test_discs_cut_by_the_border_are_marked(draw_discs: Draw, disc_detector: Make) -> None:
    discs = np.array([[10, 150, 47], [150, 150, 47], [390, 150, 47], [150, 5, 47], [250, 297, 47]], float)
    smear = draw_discs((400, 300), discs, ("rbc",) * 5)
    found = disc_detector().find(smear, UM_PER_PX)
    assert len(found) == 5
    inner = int(np.flatnonzero(~found.at_edge)[0])
    assert found.at_edge.sum() == 4
    assert np.allclose(found.boxes[inner], smear.boxes[1], atol=1)
    assert found.boxes.min() >= 0
    assert (found.boxes.max(axis=0) <= (400, 300, 400, 300)).all()


@pytest.mark.parametrize("size_wh", [(1, 1), (5, 3), (300, 200), (700, 20), (15, 900)])
def test_an_empty_picture_of_any_size_has_no_cells(draw_discs: Draw, disc_detector: Make, size_wh: Any) -> None:
    for um_per_px in (0.05, 0.16, 0.5):
        found = disc_detector().find(draw_discs(size_wh, np.zeros((0, 3)), ()), um_per_px)
        assert len(found) == 0
        assert found.boxes.shape == (0, 4)


def test_thresholds_come_from_the_card_or_the_caller(scatter_discs: Draw, disc_detector: Make) -> None:
    smear = scatter_discs((250, 200), 47, 1)
    assert disc_detector(min_score={"rbc": 0.95, "wbc": 0.3, "platelet": 0.3}).find(smear, UM_PER_PX).boxes.size == 0
    strict = disc_detector(0.95)
    assert strict.min_score == pytest.approx(dict.fromkeys(("rbc", "wbc", "platelet"), 0.95))
    assert len(strict.find(smear, UM_PER_PX)) == 0


def test_a_margin_that_leaves_no_core_is_refused(disc_detector: Make) -> None:
    with pytest.raises(ModelError, match=r"discs.*window of 128 px.*margins of 64 px"):
        disc_detector(window_px=128, largest_cell_um=12.4)


def test_decoding_of_a_known_output(make_card: Callable[..., DetectorCard]) -> None:
    thresholds = np.array([0.3, 0.5, 0.3], np.float32)
    columns = [
        (50, 40, 20, 10, 0.9, 0.1, 0.0),  # a red cell
        (50, 40, 20, 10, 0.8, 0.0, 0.0),  # the same again
        (90, 40, 10, 10, 0.2, 0.4, 0.2),  # below every threshold
        (20, 20, 10, 10, 0.35, 0.45, 0.1),  # the white score is higher, but below its threshold
        (70, 70, 8, 8, 0.0, 0.0, 0.31),
    ]
    boxes, scores, kinds = decode(np.array(columns, np.float32).T, thresholds, make_card())
    assert boxes.tolist() == [[40, 35, 60, 45], [15, 15, 25, 25], [66, 66, 74, 74]]
    assert scores.tolist() == pytest.approx([0.9, 0.35, 0.31])
    assert kinds.tolist() == [0, 0, 2]
    assert len(decode(np.zeros((7, 0), np.float32), thresholds, make_card())[0]) == 0


def test_many_windows_are_read_in_streams_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_image(Path(__file__).parents[1] / "sample_smears" / "large_field.jpg")
    shipped = Detector(find_model(Settings().detector), RuntimeChoice("openvino", "cpu", "f32", 2))
    asked = list[int]()
    kind = type(shipped._run)
    streams = kind.streams

    def counted(run: Any) -> Any:
        asked.append(1)
        return streams.fget(run)  # type: ignore[attr-defined]

    monkeypatch.setattr(kind, "streams", property(counted))
    monkeypatch.setattr(detector, "MANY_WINDOWS", 1000)
    one = shipped.find(source, 0.25)
    assert not asked
    monkeypatch.setattr(detector, "MANY_WINDOWS", 2)
    assert same(one, shipped.find(source, 0.25))
    assert asked
    assert len(one) > 100
