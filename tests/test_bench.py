"""The benchmark: what it compares is equal, what it counts at seams is right, and every figure is there."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLES
from typer.testing import CliRunner

from smearcount.bench import FieldsJob, bench_fields, directories, fields, slides
from smearcount.bench.directories import DirectoriesJob, Run, link_fields, race
from smearcount.bench.memory import peak_bytes, peak_of
from smearcount.bench.mosaics import Mosaic, mosaic_size, write_canonical, write_tiled
from smearcount.bench.rivals import Slicer
from smearcount.bench.seams import Origin, central_counts, finders, seam_figures
from smearcount.bench.slides import SlidesJob, bench_slides
from smearcount.bench.timing import Lap, Laps, alternate, check_counts, tally, unevenness
from smearcount.bench.windows import shifted, window_tensors
from smearcount.cards import ClassifierCard, find_model
from smearcount.cli import app
from smearcount.config import Settings
from smearcount.detector import Detector
from smearcount.engines import run_here
from smearcount.errors import SmearcountError, UsageError
from smearcount.images import ArraySource, PartSource, open_image
from smearcount.pipeline import Pipeline
from smearcount.runtimes import RuntimeChoice


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def test_contenders_alternate_and_medians_are_taken() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) for name in "ab"}
    laps = alternate(contenders, 2, warm=False)
    assert order == ["a", "b", "a", "b"]
    assert {name: len(each.laps) for name, each in laps.items()} == {"a": 2, "b": 2}
    alternate(contenders, 1)
    assert order[4:] == ["a", "a", "b", "b"]
    some = Laps((Lap(1.0, 0.5), Lap(9.0, 0.1), Lap(2.0, 0.3)))
    assert (some.wall, some.cpu) == (2.0, 0.3)


def test_waiting_is_no_processor_time() -> None:
    laps = alternate({"wait": lambda: time.sleep(0.05)}, 1, warm=False)["wait"]
    assert laps.wall >= 0.05
    assert laps.cpu < laps.wall


def test_unequal_counts_are_refused() -> None:
    assert check_counts({"all": 200}, {"all": 204}, "x", 0.05) == 1.02
    assert check_counts({"all": 0}, {"all": 0}, "x", 0.05) == 1.0
    for theirs in (94, 106):
        with pytest.raises(SmearcountError, match="can't be compared"):
            check_counts({"all": 100}, {"all": theirs}, "x", 0.05)
    with pytest.raises(SmearcountError):
        check_counts({"all": 0}, {"all": 1}, "x", 0.05)
    assert unevenness({"a": 2.0, "b": 2.5, "c": 2.2}) == 0.25


def test_tally_counts_kinds_and_all(cells: Callable[..., Any]) -> None:
    found = cells([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], ["rbc", "wbc", "rbc"])
    assert tally(found) == {"rbc": 2, "wbc": 1, "all": 3}


def _take(megabytes: int) -> int:
    return len(np.ones(megabytes * 2**17).tobytes()[:1])


def test_peak_is_that_of_the_call_and_not_of_this_process() -> None:
    own = np.ones(40 * 2**17)  # 40 MB here do not count there
    (one, small), (_, large) = peak_of(_take, 1), peak_of(_take, 64)
    assert one == 1
    # Twice 64 MB less twice 1 MB: the array and its bytes.
    assert 110 * 2**20 < large - small < 150 * 2**20
    assert own.nbytes < peak_bytes()


def _die() -> None:
    os.kill(os.getpid(), 9)


def test_a_process_that_is_killed_is_one_clear_error() -> None:
    with pytest.raises(SmearcountError, match="killed"):
        peak_of(_die)


def test_a_mosaic_repeats_its_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (30, 50, 3), np.uint8)
    whole = np.tile(pixels, (4, 3, 1))
    mosaic = Mosaic(ArraySource(pixels), (140, 100))
    for x, y, w, h in ((0, 0, 140, 100), (45, 25, 60, 40), (10, 5, 3, 2), (49, 29, 2, 2)):
        assert np.array_equal(mosaic.read(x, y, w, h), whole[y : y + h, x : x + w])
    part = PartSource(mosaic, (45, 25), (20, 10))
    assert np.array_equal(part.read(3, 2, 9, 7), whole[27:34, 48:57])


def test_a_written_mosaic_is_read_by_regions(tmp_path: Path, scatter_discs: Callable[..., Any]) -> None:
    drawing = scatter_discs((300, 200), 40)
    size = mosaic_size(drawing.size_wh, 0.54)
    assert size == (900, 600)
    source = open_image(write_tiled(drawing, size, tmp_path / "m.tif"))
    assert source.size_wh == size
    assert type(source).__name__ == "TiffSource"
    expected = np.tile(drawing.pixels, (3, 3, 1)).astype(int)
    assert np.abs(source.read(0, 0, *size) - expected).mean() < 3
    bare = open_image(write_canonical(drawing, (150, 100), tmp_path / "c.tif"))
    assert bare.size_wh == (150, 100)
    assert abs(bare.read(0, 0, 150, 100).mean() - drawing.pixels.mean()) < 1


def test_found_boxes_belong_to_the_true_one_they_overlap_most() -> None:
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], np.float32)
    found = np.array([[1, 0, 11, 10], [0, 0, 10, 9], [20, 0, 30, 10], [46, 0, 56, 10]], np.float32)
    assert finders(truth, found).tolist() == [2, 1, 0, 0]
    many = np.concatenate([truth + [0, 20 * i, 0, 20 * i] for i in range(100)]).astype(np.float32)
    assert finders(many, many[::2]).tolist() == [1, 0] * 200
    assert finders(truth, np.zeros((0, 4), np.float32)).tolist() == [0, 0, 0, 0]


def test_lost_and_doubled_cells_are_told_from_those_far_from_seams() -> None:
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * 20.0 + 6
    truth = np.concatenate([grid, grid + 8], axis=1).astype(np.float32)
    # Seams at x, y = 100, 200, ...: of the first grid; of the second at 150, 250, ...
    near = np.flatnonzero((np.abs(truth[:, 0] + 4 - 100) < 15) & (truth[:, 1] > 20) & (truth[:, 1] < 40))
    far = np.flatnonzero((truth[:, 0] == 126) & (truth[:, 1] == 26))
    kept = np.delete(truth, near[:1], axis=0)
    first = Origin(np.concatenate([kept, truth[near[1:]] + 1, truth[far]]), (0, 0), 100.0)
    figures = seam_figures(truth, first, Origin(truth, (50, 50), 100.0), 15.0)
    assert len(near) == 2
    assert (figures["lost at seams"], figures["doubled at seams"]) == (1, 1)
    assert (figures["lost elsewhere"], figures["doubled elsewhere"]) == (0, 1)
    assert 0 < figures["cells at seams"] + figures["cells elsewhere"] < len(truth)
    unseen = Origin(np.delete(truth, [*near, *far], axis=0), (0, 0), 100.0)
    same = seam_figures(truth, unseen, Origin(unseen.boxes, (50, 50), 100.0), 15.0)
    assert (same["lost at seams"], same["lost elsewhere"]) == (0, 0)  # unseen from everywhere: not the seam's fault


def test_there_is_no_seam_at_the_border_of_the_grid() -> None:
    origin = Origin(np.zeros((0, 4), np.float32), (30, 30), 100.0)
    points = np.array([[31, 80], [131, 80], [180, 180], [180, 228]], np.float32)
    assert origin.at_seam(points, 5).tolist() == [False, True, False, True]


def test_central_counts_see_the_same_part() -> None:
    boxes = np.array([[x, 50, x + 2, 52] for x in range(0, 100, 10)], np.float32)
    origins = [Origin(boxes, (0, 0), 40.0), Origin(boxes[2:], (15, 0), 40.0)]
    assert central_counts(origins, (100, 100), 5.0) == [8, 8]


def test_windows_are_those_of_the_detector(
    disc_detector: Callable[..., Detector], scatter_discs: Callable[..., Any]
) -> None:
    detector, drawing = disc_detector(), scatter_discs((600, 600), 47)
    network: Any = detector._run
    detector.find(drawing, 0.16)
    seen = [tensor.shape for tensor in window_tensors(drawing, 0.16, detector)]
    # What else the detector looked at are cells read again in a window of their own.
    assert not Counter(seen) - Counter(network.shapes)
    assert len(seen) == len(list(detector.windows((600, 600))))


def test_shifted_grids_count_the_same_discs(
    disc_detector: Callable[..., Detector], scatter_discs: Callable[..., Any]
) -> None:
    drawing = scatter_discs((600, 600), 47)
    figures, found = shifted(disc_detector(), drawing, 0.16)
    assert len({origin.left_top for origin in found}) == 3
    assert figures["largest difference between origins"] == 0
    assert figures["cells by origin"][0] > 20
    cells = seam_figures(drawing.boxes, found[0], found[1], 30.0)
    assert cells["cells at seams"] > 10
    assert {name: value for name, value in cells.items() if "lost" in name or "doubled" in name} == {
        **{"lost at seams": 0, "doubled at seams": 0, "lost elsewhere": 0, "doubled elsewhere": 0}
    }


class _DiscSlicer:
    """Stands for SAHI: counts as we do, or not."""

    counts: dict[str, int] = {}

    def __init__(self, model: object, scratch: Path) -> None:
        pass

    def __call__(self, path: Path, threads: int) -> dict[str, int]:
        return self.counts


@pytest.fixture
def disc_slide(
    tmp_path: Path,
    disc_detector: Callable[..., Detector],
    scatter_discs: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, int]:
    """A slide of discs on disk, their number, and a network that finds them instead of the shipped one."""
    maker = disc_detector()
    drawing = scatter_discs((600, 600), 47)
    monkeypatch.setattr(slides, "make_runtime", lambda model, choice: (maker._run, "discs"))
    monkeypatch.setattr(slides, "_has_sahi", lambda: True)
    monkeypatch.setattr(slides, "Slicer", _DiscSlicer)
    monkeypatch.setattr(_DiscSlicer, "counts", {"rbc": len(drawing.discs), "all": len(drawing.discs)})
    return write_tiled(drawing, drawing.size_wh, tmp_path / "slide.tif"), len(drawing.discs)


def test_every_part_of_the_slides_bench(disc_slide: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, number = disc_slide
    peaks = {"quarter.tif": 200, "slide.tif": 210, "four.tif": 220, "canonical.tif": 900}
    monkeypatch.setattr(slides, "peak_of", lambda call, path, *rest: (None, peaks[path.name] * 2**20))
    monkeypatch.setattr(slides, "SIMULATED_SIDE_PX", 200)
    figures = bench_slides(SlidesJob(path, 0.16, 1, 1, (0.1, 0.4), 300))
    assert list(figures) == ["slide", *slides.SLIDE_PARTS]
    assert figures["slide"]["megapixels"] == 0.36
    assert figures["memory"]["growth from a quarter to four copies"] == 0.1
    assert figures["memory"]["peak over that of SAHI"] == 0.233
    assert figures["sahi"]["cells, f32"]["all"] == number
    assert figures["sahi"]["SAHI over finding, number of cells"] == 1
    assert figures["origins"]["largest difference between origins"] == 0
    assert figures["network"]["windows, f32"] == 1
    assert all(value > 0 for name, value in figures["sizes"].items() if "s/MP" in name)
    assert not list(path.parent.glob("*-0.1.tif"))


def test_a_rival_that_counts_otherwise_is_not_timed(
    disc_slide: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_DiscSlicer, "counts", {"rbc": 3, "all": 3})
    with pytest.raises(SmearcountError, match="SAHI counts"):
        bench_slides(SlidesJob(disc_slide[0], 0.16, 1, 1, simulated_px=0, parts=("sahi",)))


def test_a_share_of_a_slide_is_its_corner(disc_slide: tuple[Path, int]) -> None:
    figures = bench_slides(SlidesJob(disc_slide[0], 0.16, 1, 1, simulated_px=0, share=0.25, parts=("origins",)))
    assert figures["slide"]["megapixels"] == 0.09
    assert set(figures["origins"]) == {"cells by origin", "largest difference between origins"}


@pytest.mark.parametrize(
    "changes",
    [
        *({"parts": ("speed",)}, {"share": 0.0}, {"share": math.nan}, {"simulated_px": 10}, {"simulated_px": 40_001}),
        *({"megapixels": sizes} for sizes in ((), (0.0,), (1.0, math.nan), (math.inf,))),
    ],
)
def test_jobs_without_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        SlidesJob(**changes)


@pytest.mark.skipif(importlib.util.find_spec("sahi") is None, reason="SAHI is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sahi_finds_the_same_cells(tmp_path: Path) -> None:
    model = find_model(Settings().detector)
    source = open_image(SAMPLES / "normal.jpg")
    part = PartSource(source, (100, 100), (800, 640))
    scale = model.detector_card.um_per_px
    path = write_canonical(part, (round(800 * 0.12 / scale), round(640 * 0.12 / scale)), tmp_path / "c.tif")
    ours = tally(Detector(model, RuntimeChoice("openvino", "cpu", "f32", 1)).find(open_image(path), scale))
    theirs = Slicer(model, tmp_path)(path, 1)
    assert ours["all"] > 30
    assert abs(theirs["all"] - ours["all"]) <= 0.05 * ours["all"]


def test_links_repeat_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "in" / name).write_text(name)
    linked = link_fields(tmp_path / "in", 5, tmp_path / "out")
    assert [path.read_text() for path in sorted(linked.iterdir())] == ["a.png", "b.jpg"] * 2 + ["a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        link_fields(tmp_path / "empty", 5, tmp_path / "none")


def test_a_race_needs_equal_reports(
    tmp_path: Path,
    disc_detector: Callable[..., Detector],
    scatter_discs: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disc_detector()
    (tmp_path / "in").mkdir()
    write_tiled(scatter_discs((200, 150), 47), (200, 150), tmp_path / "in" / "a.tif")
    job = DirectoriesJob(tmp_path / "in", 0.16, 3, 2)
    runs = race(job, {"one": run_here, "two": run_here})
    assert [len(laps) for laps in runs.values()] == [2, 2]
    assert runs["one"][0].report == runs["two"][1].report
    assert runs["one"][0].report.count(b"\n") == 4
    for each in (*runs["one"], *runs["two"]):
        assert each.start_up > 0
        assert each.closing > 0
        assert each.start_up + each.closing <= each.seconds
    reports = iter([b"x", b"y"])
    monkeypatch.setattr(directories, "_run", lambda *_: Run(1.0, 0.1, 1.0, 0.1, next(reports)))
    with pytest.raises(SmearcountError, match="'two' differs from that of 'one'"):
        race(job, {"one": run_here, "two": run_here})


def test_ratios_of_directories_and_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"1 worker, 1 thread": 40.0, "2 workers, 1 thread": 20.0, "default": 21.0, "local": 20.0, "Ray": 30.0}

    def fake(job: DirectoriesJob, engines: dict[str, Any]) -> dict[str, list[Run]]:
        return {name: [Run(seconds.get(name, 50.0), 2.0, seconds.get(name, 50.0) - 8, 0.5, b"")] for name in engines}

    monkeypatch.setattr("smearcount.bench.directories.race", fake)
    monkeypatch.setattr("smearcount.bench.engines.race", fake)
    figures = json.loads(call("directories", "--fields", 4, "--json").stdout)
    assert figures["one worker over two, 1 thread each"] == 2
    assert figures["one worker over two, start-up excluded"] == round(32 / 12, 3)
    assert figures["default over the best setting"] == 1.05
    figures = json.loads(call("engines", "--fields", 4, "--json").stdout)
    assert figures["Ray over local, start-up and end excluded"] == round(22 / 12, 3)
    assert figures["Ray over local"] == 1.5
    assert figures["Ray, start-up (s)"] == 2


def test_bench_times_fields_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr("smearcount.bench.bench_fields", lambda job: jobs.append(job) or {"part": {"figure": 1}})
    picture = tmp_path / "a.jpg"
    picture.touch()
    out = tmp_path / "out.json"
    for words in ([], [picture], ["fields", picture], ["--rounds", 3, "--out", out]):
        result = call(*words)
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == ["part:", "figure", "1"]
    assert [job.images for job in jobs] == [(), (picture,), (picture,), ()]
    assert jobs[3].rounds == 3
    assert json.loads(out.read_text()) == {"part": {"figure": 1}}
    assert "directories" in call("--help").stdout


def test_a_wrong_part_or_size_is_one_clear_line() -> None:
    assert call("slides", "--only", "speed").exit_code == 2
    assert call("slides", "--megapixels", "10,x").exit_code == 2


def test_naming_is_timed_against_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smearcount.bench import NamingJob, bench_naming
    from smearcount.bench import naming as module

    monkeypatch.setattr(module, "list_models", list)
    with pytest.raises(UsageError, match="no classifier"):
        bench_naming(NamingJob(SAMPLES / "sparse.jpg", 0.12))

    asked: list[int] = []

    class Network:
        input_dtype, at_once, infer_windows = np.dtype(np.float32), 10, None

        def __call__(self, batch: Any) -> tuple[Any, ...]:
            asked.append(len(batch))
            return np.zeros((len(batch), 2), np.float32), np.zeros((len(batch), 4), np.float32)

    words = {"id": "toy", "description": "d", "licence": "MIT", "intended_use": "tests", "git_commit": "0"}
    none: dict[str, Any] = {"limits": (), "training_data": (), "metrics": (), "files": {}}
    size = {"patch_um": 12.0, "input_px": 32, "embedding": 4, "temperature": 1.0, "min_label_score": 0.5}
    card = ClassifierCard(
        **{**words, **none, **size, "codes": ("a", "b"), "kinds": ("rbc",), "probe_tolerance": 0.1},
        **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    )
    toy: Any = SimpleNamespace(card=card, classifier_card=card)
    monkeypatch.setattr(module, "find_model", lambda name: toy if name == "toy" else find_model(name))
    for where in ("smearcount.classifier.make_runtime", "smearcount.bench.naming.make_runtime"):
        monkeypatch.setattr(where, lambda model, choice: (Network(), "toy"))
    figures = bench_naming(NamingJob(SAMPLES / "sparse.jpg", 0.12, ("toy",), 25, 1, 2))
    assert figures["cells"] == 25
    assert figures["toy"]["runtime, f32"] == "toy"
    assert figures["toy"]["cells a second, f32"] == pytest.approx(25_000 / figures["toy"]["naming, f32 (ms)"], rel=0.02)
    assert figures["toy"]["naming over network, f32"] > 1
    assert figures["toy"]["naming over network, f32, processor time"] > 1
    assert figures["toy"]["share looked at again, f32"] == 0
    assert figures["toy"]["a cell, f32 (ms)"] == pytest.approx(figures["toy"]["naming, f32 (ms)"] / 25, abs=1e-3)
    assert "field" not in figures
    two = bench_naming(NamingJob(SAMPLES / "sparse.jpg", 0.12, ("toy", "toy"), 25, 1, 1))
    assert 0 < two["field"]["cells named"] <= 50
    assert two["field"]["a cell, f32 (ms)"] > 0
    asked.clear()
    toy.card = toy.classifier_card = card.model_copy(update={"second_look": 0.8})
    figures = bench_naming(NamingJob(SAMPLES / "sparse.jpg", 0.12, ("toy",), 25, 1, 1))
    assert figures["toy"]["share looked at again, f32"] == 1
    # Two precisions; each measures the share once, then warms up and runs once on either side, four looks a cell.
    assert (sum(asked) - 2 * 25) % (2 * 2 * 4 * 25) == 0


def test_settings_of_a_bench_only_find() -> None:
    assert Pipeline.load(slides._finding(1)).namer.classifiers == ()


def test_a_field_is_known_to_processes_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    bench = SimpleNamespace(times=lambda timed: {"timed": [path for path, _ in timed]})
    monkeypatch.setattr(fields, "_Fields", lambda job, scratch: bench)
    monkeypatch.setattr(fields, "_start_up", lambda field, scratch: asked.append(field[0]) or {})
    monkeypatch.chdir(tmp_path)
    figures = bench_fields(FieldsJob((Path("in/a.png"),), 0.12, 1, 1))
    assert asked == figures["timed"] == [tmp_path / "in" / "a.png"]


def test_a_process_that_fails_is_one_clear_error(tmp_path: Path) -> None:
    fields._run_process([sys.executable, "-c", "open('here', 'w')"], tmp_path)
    assert (tmp_path / "here").exists()
    code = "import sys; print('first', file=sys.stderr); sys.exit('no such picture')"
    with pytest.raises(SmearcountError, match=r"sys\.exit.*ended with code 1 \(no such picture\); .*--no-processes"):
        fields._run_process([sys.executable, "-c", code], tmp_path)
    with pytest.raises(SmearcountError, match=r"code 3 \(no message\)"):
        fields._run_process([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


@pytest.mark.parametrize("part", ["fields", "slides", "directories", "engines", "naming"])
def test_a_scale_beyond_all_microscopes_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[Any] = []

    def note(job: Any) -> dict[str, Any]:
        scales.append((job.batch if part == "engines" else job).um_per_px)
        return {}

    monkeypatch.setattr(f"smearcount.bench.bench_{part}", note)
    for wrong in ("9", "0", "0.019", "-1", "nan"):
        result = call(part, "--um-per-px", wrong)
        assert (result.exit_code, scales) == (2, [])
        assert "--um-per-px" in result.output
    for right in ("0.02", "2"):
        assert call(part, "--um-per-px", right).exit_code == 0
    assert scales == [0.02, 2.0]
