"""A batch has one row for every picture, whatever goes wrong; its outputs are whole or absent."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fake_batch import DiscMaker, smear, smears

from smearcount.batch import (
    BatchJob,
    Failure,
    Interrupted,
    Outcome,
    PipelineMaker,
    Stage,
    analyze_each,
    run_batch,
    work,
)
from smearcount.batch.listing import list_pictures
from smearcount.batch.scales import measure_one
from smearcount.config import Settings, shipped
from smearcount.crops import check_crops, write_crops
from smearcount.errors import ImageError, UsageError
from smearcount.output_names import unique_stems
from smearcount.pipeline import Analysis
from smearcount.report import cells_csv, report_columns, report_row, to_csv
from smearcount.slide_scale import RedCells
from smearcount.taxonomy import Taxonomy


def stems(*names: str) -> list[str]:
    return list(unique_stems(Path(name) for name in names).values())


def test_rows_stay_good_for_another_number_of_threads_or_windows_but_not_for_another_threshold() -> None:
    usual = PipelineMaker(Settings()).identity()
    assert PipelineMaker(Settings(threads=2, tile=5)).identity() == usual
    assert PipelineMaker(Settings(min_score=0.4)).identity() != usual


def test_relative_paths_hold_in_a_worker_of_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = Settings().detector
    shutil.copytree(shipped("weights") / own, here / "models" / own)
    shutil.copy(shipped("configs") / "taxonomy.yaml", here / "t.yaml")
    square = [[0, 0], [90, 0], [90, 90], [0, 90]]
    (here / "r.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    files = {"region": Path("r.geojson"), "taxonomy": Path("t.yaml"), "classifiers": (), "experts": {}}
    monkeypatch.chdir(here)
    makers = [
        PipelineMaker(Settings(detector=f"models/{own}", **files)),
        PipelineMaker(Settings(detector=own, **files), weights=Path("models")),
    ]
    identity = makers[0].identity()
    for maker in pickle.loads(pickle.dumps(makers)):
        monkeypatch.chdir(elsewhere)
        pipeline = maker.load(1)
        assert pipeline.region is not None
        assert pipeline.region.outline.area == 8100
        monkeypatch.chdir(here)
        assert maker.identity() == identity == PipelineMaker(maker.settings, maker.weights, elsewhere).identity()


def test_stems_are_short_where_they_can_be() -> None:
    assert stems("a.jpg", "b.png", "c/d.tif") == ["a", "b", "d"]
    assert stems("a.jpg", "a.png", "b.jpg") == ["a.jpg", "a.png", "b"]
    assert stems("x/a.jpg", "x/a.jpg") == ["a"]
    assert stems() == []


@pytest.mark.parametrize(
    "names",
    [
        ("x/a.jpg", "y/a.jpg", "z/a.jpg"),
        ("x/a.jpg", "y/a.jpg", "a.jpg.png"),
        ("a.jpg.png", "x/a.jpg", "y/a.jpg"),
        ("x/a.jpg", "y/a.jpg", "a.jpg-2.png"),
        ("a.jpg-2.png", "x/a.jpg", "y/a.jpg"),
        ("a.jpg", "a.png", "a.jpg.tif"),
        ("a.jpg", "A.jpg", "x/A.JPG"),
    ],
)
def test_no_two_pictures_share_a_stem(names: tuple[str, ...]) -> None:
    found = stems(*names)
    # Files that differ in case only are one file on Windows and macOS.
    assert len({stem.casefold() for stem in found}) == len(names)


def test_random_names_have_stems_of_their_own() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = rng.choice(["a", "b", "a.jpg", "a-2", "a.jpg-2", "A"], 12)
        ends = rng.choice([".jpg", ".png", ".tif"], 12)
        names = [f"{rng.integers(3)}/{part}{end}" for part, end in zip(parts, ends, strict=True)]
        paths = list(dict.fromkeys(Path(name) for name in names))
        found = unique_stems(paths)
        assert list(found) == paths
        assert len({stem.casefold() for stem in found.values()}) == len(paths)


def test_long_stems_leave_room_for_the_endings() -> None:
    for long in ("a" * 245, "\u00fc" * 120, "\udcfc" * 240):
        found = stems(f"{long}1.jpg", f"{long}2.jpg", f"x/{long}1.jpg", "b.jpg")
        assert len(set(found)) == 4
        assert max(len(os.fsencode(stem)) for stem in found) < 210
        assert found[-1] == "b"


class Fake:
    """A pipeline that fails on the pictures whose name says so."""

    def __init__(self, taxonomy: Taxonomy, result: Any) -> None:
        self.taxonomy = taxonomy
        self.result = result

    def analyze(self, path: Path, *, image_id: str, slide_id: str, **more: Any) -> Any:
        if "bad" in path.name:
            raise ImageError(f"{image_id}: damaged")
        if "huge" in path.name:
            raise MemoryError
        if "stop" in path.name:
            raise KeyboardInterrupt
        pixels = np.zeros((9, 9, 3), np.uint8)

        def overlay() -> Any:
            if "broken" in path.name:
                cv2.resize(pixels, (0, 0))
            if "dry" in path.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return pixels

        def patches() -> Any:
            for cell in range(len(result.detections)):
                yield SimpleNamespace(cell_id=cell, pixels=pixels, side_um=12.0, filled=0.0, um_per_px=0.1)
            overlay()

        result = self.result(image_id=image_id, slide_id=slide_id)
        return SimpleNamespace(result=result, taxonomy=self.taxonomy, overlay=overlay, patches=patches)


@pytest.fixture
def pipeline(taxonomy: Taxonomy, make_result: Any, cells: Any) -> Any:
    return Fake(taxonomy, lambda **ids: make_result(cells([[10, 10, 50, 50]]), **ids))


@dataclass(frozen=True)
class Maker:
    """Makes the fake pipeline, in this process only."""

    pipeline: Any

    def taxonomy(self) -> Taxonomy:
        return self.pipeline.taxonomy

    def identity(self) -> dict[str, Any]:
        return {}

    def scale_given(self) -> bool:
        return True

    def region_of(self, image_id: str) -> str:
        return ""

    def load(self, threads: int) -> Any:
        return self.pipeline


def run(pipeline: Any, job: BatchJob, watch: Any = lambda stage: None) -> Outcome:
    return run_batch(Maker(pipeline), job, watch=watch)


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def rows_of(path: Path) -> dict[str, str]:
    return {row["image"]: row["status"] for row in csv.DictReader(path.read_text().splitlines())}


def test_a_bad_picture_costs_only_itself(pipeline: Any) -> None:
    def finish(path: Path, analysis: Any) -> str:
        analysis.overlay()
        return path.stem

    paths = [Path(name) for name in ("a.jpg", "bad.jpg", "huge.jpg", "broken.jpg", "dry.jpg", "z.jpg")]
    found = list(analyze_each(pipeline, paths, lambda path: (path.name, ""), finish))
    assert [path for path, _ in found] == paths
    assert (found[0][1], found[-1][1]) == ("a", "z")
    reasons = [outcome.reason for _, outcome in found if isinstance(outcome, Failure)]
    assert reasons[0] == "bad.jpg: damaged"
    for reason, words in zip(
        reasons[1:], ("not enough memory", "can't be processed", "No space left on device"), strict=True
    ):
        assert words in reason


def test_an_overlay_that_cannot_be_written_costs_only_its_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "broken.jpg", "dry.jpg", "taken.jpg", "z.jpg")
    (tmp_path / "o" / "taken.jpg.overlay.jpg").mkdir(parents=True)
    outcome = run(pipeline, BatchJob(folder, tmp_path / "r.csv", tmp_path / "c.csv", tmp_path / "o"))
    assert outcome.done == 2
    bad = dict.fromkeys(("broken.jpg", "dry.jpg", "taken.jpg"), "failed")
    assert rows_of(tmp_path / "r.csv") == {"a.jpg": "ok", **bad, "z.jpg": "ok"}
    # A cell of a picture that failed would be in no count.
    assert {line.split(",")[0] for line in (tmp_path / "c.csv").read_text().splitlines()[1:]} == {"a.jpg", "z.jpg"}


def test_reasons_name_files_relative_to_the_folders_given(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "s/b.jpg", "t/c.jpg")
    out = tmp_path / "o"
    (out / "a.jpg.overlay.jpg").mkdir(parents=True)
    for name in "st":
        (out / name).touch()
    job = BatchJob(folder, tmp_path / "r.csv", overlays=out, recursive=True)
    failed = dict(run(pipeline, job).failed)
    assert failed["a.jpg"].startswith("a.jpg.overlay.jpg: can't be written")
    assert failed["s/b.jpg"].startswith("s: no folder that can be written")
    assert str(tmp_path) not in (tmp_path / "r.csv").read_text()
    told = Failure(f"{out}: no folder that can be written; {out}er/x.jpg is another")
    task = work.Task(folder / "a.jpg", "a.jpg", "")
    record = work.failed_record(task, told, pipeline.taxonomy, work.Wishes(overlays=out))
    assert json.loads(record.row)["error"] == f"o: no folder that can be written; {out}er/x.jpg is another"


def test_patches_of_a_picture_are_all_there_or_none(tmp_path: Path, pipeline: Any) -> None:
    found = write_crops(pipeline, [Path("a.jpg"), Path("dry.jpg"), Path("z.jpg")], tmp_path / "o")
    assert (found.written, len(found.failed)) == (2, 1)
    files = {row["file"] for row in csv.DictReader((tmp_path / "o" / "manifest.csv").read_text().splitlines())}
    assert files == {path.name for path in (tmp_path / "o").glob("*.png")}
    assert len(files) == 2


def test_a_fault_of_ours_costs_only_its_picture(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "odd.png", "z.png")
    outcome = run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv"))
    assert (outcome.done, len(outcome.failed)) == (2, 1)
    assert "odd.png: unexpected ZeroDivisionError: a fault" in outcome.failed[0][1]
    paths = sorted(folder.iterdir())
    found = dict(analyze_each(DiscMaker().load(1), paths, lambda path: (path.name, ""), lambda *_: "done"))
    reason = f"{paths[1]}: unexpected ZeroDivisionError: a fault; please report it as a fault"
    assert found == {paths[0]: "done", paths[1]: Failure(reason), paths[2]: "done"}


@pytest.mark.parametrize("whole", [True, False], ids=["exported again", "still copied"])
def test_a_picture_that_changes_while_it_is_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png")
    changing, later = folder / "b.png", smears(tmp_path, "x.png", "y.png", "z.png") / "z.png"
    if not whole:
        changing.write_bytes(later.read_bytes()[:200])
    digest = work.picture_digest

    def complete(path: Path) -> Path:
        if path == changing:
            changing.write_bytes(later.read_bytes())
        return path

    def drawn(analysis: Analysis) -> Any:
        complete(analysis.source.path)
        return np.zeros((9, 9, 3), np.uint8)

    job = BatchJob(folder, tmp_path / "r.csv", overlays=tmp_path / "o")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Analysis, "overlay", drawn)
        meanwhile.setattr(work, "picture_digest", lambda path: digest(complete(path)))
        assert [name for name, _ in run_batch(DiscMaker(), job).failed] == ["b.png"]
    assert "b.png: changed while it was read; run it again" in (tmp_path / "r.csv").read_text()
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["a.png.overlay.jpg"]
    assert run_batch(DiscMaker(), job).failed == ()
    rows = {row["image"]: row["image_sha256"] for row in csv.DictReader((tmp_path / "r.csv").read_text().splitlines())}
    assert rows["b.png"] == work.picture_digest(later)


def test_what_a_changing_picture_measures_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, later = (smear(tmp_path / name, seed) for seed, name in enumerate(("a.png", "b.png")))
    pipeline = DiscMaker(um_per_px=None).load(1)
    assert measure_one(pipeline, path) is not None
    measure = pipeline.measure

    def late(path: Path) -> RedCells:
        found = measure(path)
        path.write_bytes(later.read_bytes())
        return found

    monkeypatch.setattr(pipeline, "measure", late)
    assert measure_one(pipeline, path) is None


def test_a_stopped_batch_keeps_the_finished_rows(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "bad.jpg", "stop.jpg", "z.jpg")
    out = tmp_path / "out"
    pictures(out, "report.csv")
    job = BatchJob(folder, out / "report.csv", out / "cells.csv")
    with pytest.raises(Interrupted, match=r"with 2 of 4 pictures done.*report\.csv\.journal.*goes on") as caught:
        run(pipeline, job)
    assert (caught.value.done, caught.value.total, caught.value.journal) == (2, 4, job.journal)
    assert {path.name for path in out.iterdir()} == {"report.csv", "report.csv.journal"}
    assert (out / "report.csv").read_text() == ""


def test_rows_of_pictures_that_have_changed_are_not_told_as_done(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    job = BatchJob(folder, tmp_path / "r.csv")
    run_batch(DiscMaker(), job)
    for seed, name in enumerate(("b.png", "c.png", "d.png"), 10):
        smear(folder / name, seed)
    maker = DiscMaker(tmp_path / "log")

    def stop(stage: Stage) -> None:
        if stage == Stage("analysing", 2, 4):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="with 2 of 4 pictures done"):
        run_batch(maker, job, watch=stop)
    assert (tmp_path / "log").read_text().split() == ["b.png"]
    outcome = run_batch(maker, job)
    assert (outcome.done, outcome.reused) == (4, 2)


def test_a_batch_that_was_stopped_goes_on(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png", "stop.png", "z.png")
    log = tmp_path / "log"
    with pytest.raises(Interrupted):
        run_batch(DiscMaker(log), BatchJob(folder, tmp_path / "r.csv"))
    (folder / "stop.png").rename(folder / "x.png")
    outcome = run_batch(DiscMaker(log), BatchJob(folder, tmp_path / "r.csv"))
    assert (outcome.done, outcome.reused) == (4, 2)
    assert log.read_text().split() == ["a.png", "b.png", "stop.png", "x.png", "z.png"]
    assert list(rows_of(tmp_path / "r.csv")) == ["a.png", "b.png", "x.png", "z.png"]


def test_bad_targets_are_found_before_the_first_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg")
    pictures(tmp_path, "file")
    (tmp_path / "taken.csv").mkdir()
    pipeline.analyze = None
    good = tmp_path / "r.csv"
    for job, named in (
        (BatchJob(folder, tmp_path / "taken.csv"), "taken"),
        (BatchJob(folder, tmp_path / "file" / "r.csv"), "file"),
        (BatchJob(folder, good, tmp_path / "taken.csv"), "taken"),
        (BatchJob(folder, good, overlays=tmp_path / "file"), "file"),
        (BatchJob(folder, good, galleries=tmp_path / "file" / "o"), "file"),
    ):
        with pytest.raises(ImageError, match=rf"{named}.*; .*choose another"):
            run(pipeline, job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "taken.csv"]


def test_no_output_replaces_another_or_a_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "b.jpg")
    with pytest.raises(UsageError, match="one file"):
        run(pipeline, BatchJob(folder, tmp_path / "r.csv", tmp_path / "in" / ".." / "r.csv"))
    with pytest.raises(UsageError, match=r"--slide-report are one file"):
        run(pipeline, BatchJob(folder, tmp_path / "r.csv", slide_report=tmp_path / "r.csv"))
    with pytest.raises(UsageError, match=r"--out takes a name that ends in \.csv, \.parquet, \.xlsx"):
        run(pipeline, BatchJob(folder, folder / "a.jpg"))
    (tmp_path / "link.csv").symlink_to(folder / "b.jpg")
    for job in (BatchJob(folder, tmp_path / "link.csv"), BatchJob(folder, tmp_path / "r.csv", tmp_path / "link.csv")):
        with pytest.raises(UsageError, match="one of the pictures"):
            run(pipeline, job)


def test_names_that_are_too_long_for_the_disk_are_found_before_the_first_picture(tmp_path: Path) -> None:
    folder, log = smears(tmp_path / "in", "a.png"), tmp_path / "log"
    fitting = tmp_path / ("r" * 235 + ".csv")
    for job, words in (
        (BatchJob(folder, tmp_path / ("r" * 236 + ".csv")), "--out a shorter name, of at most 239 bytes"),
        (BatchJob(folder, fitting, tmp_path / ("c" * 252 + ".csv")), "--cells a shorter name, of at most 255 bytes"),
    ):
        with pytest.raises(UsageError, match=words):
            run_batch(DiscMaker(log), job)
    assert not log.exists()
    assert run_batch(DiscMaker(log), BatchJob(folder, fitting, tmp_path / ("c" * 251 + ".csv"))).done == 1


def test_no_output_replaces_what_the_run_is_told_by(tmp_path: Path, pipeline: Any) -> None:
    folder, told = pictures(tmp_path / "in", "a.jpg"), tmp_path / "told.csv"
    told.write_text("a.jpg\n")
    (tmp_path / "link.csv").symlink_to(told)
    for job in (
        BatchJob(folder, told, listed=told),
        BatchJob(folder, tmp_path / "r.csv", tmp_path / "link.csv", listed=told),
        BatchJob(folder, tmp_path / "link.csv", inputs=(told,)),
    ):
        with pytest.raises(UsageError, match=r"is read by this run; give --(out|cells) another name"):
            run(pipeline, job)
    assert told.read_text() == "a.jpg\n"
    assert run(pipeline, BatchJob(folder, tmp_path / "r.csv", listed=told)).done == 1


def test_no_overlay_or_sheet_replaces_what_is_read(tmp_path: Path) -> None:
    folder, told = smears(tmp_path / "in", "a.png", "z.png"), tmp_path / "told.txt"
    (tmp_path / "away").symlink_to(folder)
    read = ("a.png.overlay.jpg", "a.png.overlay.tif", "a.png.gallery/neutrophil.jpg", "a.png.gallery/b.jpg")
    for name in read:
        smear(folder / name, 3)
        told.write_text(f"a.png\nz.png\n{name}\n")
        before = (folder / name).read_bytes()
        flag = "--gallery" if "gallery" in name else "--overlays"
        for where in (folder, tmp_path / "away"):
            wanted = {"galleries": where} if "gallery" in name else {"overlays": where}
            with pytest.raises(UsageError, match=rf"read by this run; give {flag} another folder"):
                run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv", listed=told, **wanted))
        assert (folder / name).read_bytes() == before
        assert not list(tmp_path.glob("r.csv*"))
    job = BatchJob(folder, tmp_path / "r.csv", overlays=tmp_path / "o", galleries=tmp_path / "o", listed=told)
    assert run_batch(DiscMaker(), job).done == 3


def test_outputs_that_are_links_are_written_where_they_lead(tmp_path: Path) -> None:
    folder, real = smears(tmp_path / "in", "a.png"), tmp_path / "real"
    (tmp_path / "o").mkdir()
    real.mkdir()
    left = real / f".r.csv.{'0' * 16}.part"
    left.touch()
    names = ("r.csv", "c.csv", "s.csv", "p.html", "o/a.png.overlay.jpg")
    for name in names:
        (tmp_path / name).symlink_to(real / Path(name).name)
    more = {"slide_report": tmp_path / "s.csv", "summary": tmp_path / "p.html", "overlays": tmp_path / "o"}
    job = BatchJob(folder, tmp_path / "r.csv", tmp_path / "c.csv", **more)
    assert [run_batch(DiscMaker(), job).done for _ in range(2)] == [1, 1]
    assert all((tmp_path / name).is_symlink() for name in names)
    assert {path.name for path in real.iterdir()} == {Path(name).name for name in names}
    assert (real / "r.csv").read_text().count("a.png") == 1


def test_a_link_replaces_no_more_than_the_name_it_leads_to(tmp_path: Path, pipeline: Any) -> None:
    folder, out = pictures(tmp_path / "in", "a.jpg"), tmp_path / "o"
    write_crops(pipeline, [folder / "a.jpg"], folder / "crops")
    link = tmp_path / "link.csv"
    for target, words in (
        (folder / "crops" / "manifest.csv", "lists patches"),
        (tmp_path / "r.csv.journal", "the journal of --out and --cells are one file"),
    ):
        link.symlink_to(target)
        with pytest.raises(UsageError, match=words):
            run(pipeline, BatchJob(folder, tmp_path / "r.csv", link))
        link.unlink()
    (out / "a.jpg.gallery").mkdir(parents=True)
    (out / "a.jpg.gallery" / "neutrophil.jpg").symlink_to(folder / "a.jpg")
    with pytest.raises(UsageError, match="holds what is read by this run; give --gallery another folder"):
        run(pipeline, BatchJob(folder, tmp_path / "r.csv", galleries=out))
    (out / "manifest.csv").symlink_to(folder / "a.jpg")
    with pytest.raises(UsageError, match="is read by this run; give --out another folder"):
        check_crops([folder / "a.jpg"], out)
    assert not list(tmp_path.glob("r.csv*"))


def test_no_table_replaces_the_list_of_patches_of_crop(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg")
    write_crops(pipeline, [folder / "a.jpg"], folder / "crops")
    listed = folder / "crops" / "manifest.csv"
    before = listed.read_bytes()
    with pytest.raises(UsageError, match=r"manifest\.csv: lists patches .*; give --cells another name"):
        run(pipeline, BatchJob(folder, tmp_path / "r.csv", listed, recursive=True))
    assert listed.read_bytes() == before


def test_no_patch_replaces_what_is_read(tmp_path: Path, pipeline: Any) -> None:
    out = tmp_path / "o"
    assert write_crops(pipeline, [Path("a.jpg")], out).written == 1
    (patch,) = out.glob("*.png")
    (tmp_path / "link.png").symlink_to(patch)
    for each in (patch, tmp_path / "link.png", out / "A.JPG-2_00000_rbc_x.png"):
        with pytest.raises(UsageError, match="is read by this run, which may write it; give --out another folder"):
            check_crops([Path("a.jpg"), each], out)
        check_crops([each], out)
    with pytest.raises(UsageError, match="is read by this run"):
        check_crops([Path("a.jpg")], out, [out / "manifest.csv"])


def test_patches_of_an_earlier_crop_are_no_fields(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "z.jpg")
    n = write_crops(pipeline, [folder / "a.jpg"], folder / "crops").written
    pictures(folder / "crops", "own.jpg")
    assert n > 0
    outcome = run(pipeline, BatchJob(folder, tmp_path / "r.csv", recursive=True))
    assert set(rows_of(tmp_path / "r.csv")) == {"a.jpg", "z.jpg", "crops/own.jpg"}
    assert outcome.overlays == n
    # A folder that is asked for by name holds what the user says it does.
    assert run(pipeline, BatchJob(folder / "crops", tmp_path / "c.csv")).done == n + 1


def test_what_was_drawn_of_a_picture_that_now_fails_goes_whatever_changed(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png", "c.png")
    job = BatchJob(folder, tmp_path / "r.csv", overlays=tmp_path / "o", galleries=tmp_path / "o")
    run_batch(DiscMaker(), job)
    whole = {path.relative_to(tmp_path / "o").parts[0] for path in (tmp_path / "o").rglob("*.jpg")}
    assert whole == {f"{name}.png.{what}" for name in "abc" for what in ("overlay.jpg", "gallery")}
    (tmp_path / "o" / "b.png.overlay.jpg").write_bytes(b"mine")
    for name in "ab":
        (folder / f"{name}.png").write_bytes(b"no picture")
    run_batch(replace(DiscMaker(), version=2), job)
    left = {path.relative_to(tmp_path / "o").parts[0] for path in (tmp_path / "o").rglob("*.jpg")}
    assert left == {"b.png.overlay.jpg", "c.png.overlay.jpg", "c.png.gallery"}


def test_a_second_run_does_not_count_the_outputs_of_the_first(tmp_path: Path) -> None:
    smears(tmp_path, "a.png", "sub/b.png")
    pictures(tmp_path, "notes.txt")
    for folder in (tmp_path, tmp_path / "o"):
        job = BatchJob(tmp_path, tmp_path / "r.csv", overlays=folder, galleries=folder, recursive=True)
        run_batch(DiscMaker(), job)
        first = (tmp_path / "r.csv").read_bytes()
        outcome = run_batch(DiscMaker(), job)
        assert (tmp_path / "r.csv").read_bytes() == first
        assert outcome.done == outcome.reused == 2
    sheets = len(list(tmp_path.rglob("*.gallery/*.jpg")))
    assert sheets >= 4
    assert outcome.overlays == 4 + sheets
    assert outcome.others == 3  # the notes, the report and its journal


def test_names_that_are_no_unicode_are_reported(tmp_path: Path, pipeline: Any) -> None:
    name = b"M\xfcller.jpg".decode("utf-8", "surrogateescape")
    folder = pictures(tmp_path / "in", name)
    assert run(pipeline, BatchJob(folder, tmp_path / "r.csv")).done == 1
    job = BatchJob(folder, tmp_path / "r.csv", tmp_path / "c.csv", tmp_path / "o", slides="(.)ller")
    assert run(pipeline, job).done == 1
    for table in (tmp_path / "r.csv", tmp_path / "c.csv"):
        assert r"M\udcfcller.jpg,\udcfc" in table.read_text(encoding="utf-8")
    for ending in ("parquet", "xlsx"):
        assert run(pipeline, BatchJob(folder, tmp_path / f"r.{ending}")).done == 1
    assert write_crops(pipeline, [folder / name], tmp_path / "o").written == 1


def test_a_folder_becomes_one_row_a_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "slides", "one/a.jpg", "one/bad.jpg", "two/a.jpg", "top.png")
    job = BatchJob(folder, tmp_path / "out" / "report.csv", tmp_path / "out" / "cells.csv", recursive=True)
    outcome = run(pipeline, job)
    assert (outcome.done, outcome.failed) == (3, (("one/bad.jpg", "one/bad.jpg: damaged"),))
    rows = [line.split(",") for line in job.report.read_text().splitlines()]
    assert tuple(rows[0]) == report_columns(pipeline.taxonomy)
    assert {(row[0], row[1], row[2]) for row in rows[1:]} == {
        ("top.png", "", "ok"),
        ("one/a.jpg", "one", "ok"),
        ("one/bad.jpg", "one", "failed"),
        ("two/a.jpg", "two", "ok"),
    }
    assert all(len(row) == len(rows[0]) for row in rows)
    lines = job.cells.read_text().splitlines()  # type: ignore[union-attr]
    single = pipeline.result(image_id="one/a.jpg", slide_id="one")
    assert lines[0] == cells_csv(single).splitlines()[0]
    assert cells_csv(single).splitlines()[1] in lines
    assert len(lines) == 4
    before = job.report.read_bytes()
    run(pipeline, job)
    assert job.report.read_bytes() == before


def test_the_report_is_that_of_single_analyses(tmp_path: Path) -> None:
    names = ["a.png", "s/b.png", "s/c.png"]
    folder = smears(tmp_path / "in", *names)
    job = BatchJob(folder, tmp_path / "r.csv", tmp_path / "c.csv", recursive=True)
    run_batch(DiscMaker(), job)
    pipeline = DiscMaker().load(1)
    single = [
        pipeline.analyze(folder / name, image_id=name, slide_id="s" if "/" in name else "").result for name in names
    ]
    expected = to_csv(report_columns(pipeline.taxonomy), [report_row(each, pipeline.taxonomy) for each in single])
    assert job.report.read_text() == expected
    cells = "".join(cells_csv(each).split("\n", 1)[n > 0] for n, each in enumerate(single) if n)
    assert (tmp_path / "c.csv").read_text() == cells_csv(single[0]) + cells


def test_an_empty_folder_is_said_with_the_remedy(tmp_path: Path, pipeline: Any) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="no pictures found; use --recursive"):
        run(pipeline, BatchJob(tmp_path, tmp_path / "r.csv"))
    assert not list(tmp_path.glob("r.csv*"))


def test_every_step_is_told(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png", "c.png")
    seen: list[Stage] = []
    run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv"), watch=seen.append)
    assert [stage.done for stage in seen if stage.label == "analysing"] == [0, 1, 2, 3]
    assert {stage.total for stage in seen} == {3}
    (folder / "c.png").unlink()
    smears(folder, "d.png")
    seen.clear()
    run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv"), watch=seen.append)
    assert [stage.done for stage in seen if stage.label == "analysing"] == [2, 3]


def test_an_engine_that_forgets_a_picture_is_found_out(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png")

    def forgetful(work: Any, tasks: Any) -> Any:
        yield [(0, work.start(0)(tasks[0]))]

    with pytest.raises(RuntimeError, match="1 had none"):
        run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv"), forgetful)
    assert not (tmp_path / "r.csv").exists()


def listed(folder: Path, content: bytes, *names: str) -> list[str]:
    """The pictures of a folder that a list with these bytes names."""
    pictures(folder, *names)
    where = folder.parent / "list.txt"
    where.write_bytes(content)
    return [each.image_id for each in list_pictures(BatchJob(folder, folder / "r.csv", listed=where)).pictures]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le"])
def test_a_list_is_read_in_the_encoding_that_it_begins_with(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding in ("utf-16-be", "utf-16-le") else ""
    text = f'{mark}a.png\r\n\r\n"with space.png"\r\nM\u00fcller\u2028.png\r\n'
    names = ["a.png", "with space.png", "M\u00fcller\u2028.png"]
    assert listed(tmp_path / "in", text.encode(encoding), *names) == names


def test_a_list_may_name_what_is_no_unicode(tmp_path: Path) -> None:
    assert listed(tmp_path / "in", b"M\xfcller.png\n") == ["M\udcfcller.png"]


@pytest.mark.parametrize(
    "content", ["a.png".encode("utf-16-le"), "\ufeffa.png".encode("utf-16-le") + b"\n", b"a.png\0", b"\xff\xfe\0\xd8"]
)
def test_a_list_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"list\.txt: .*; save it as (text in )?UTF-8"):
        listed(tmp_path / "in", content, "a.png")


def test_a_comment_in_a_list_is_no_picture_unless_there_is_one(tmp_path: Path) -> None:
    content = b"# from Monday\n#1.png\n#2.png\nb.png\n"
    assert listed(tmp_path / "in", content, "#1.png", "b.png") == ["#1.png", "b.png"]


def test_a_list_may_call_the_folder_by_another_name(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "real" / "in", "a.png", "s/b.png", "c.png")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "other").symlink_to(tmp_path / "real")
    (folder / "away").symlink_to(pictures(tmp_path / "away", "d.png"))
    lines = [folder / "a.png", tmp_path / "other" / "in" / "s" / "b.png", tmp_path / "link" / "c.png"]
    lines += [folder / "away" / "d.png", tmp_path / "link" / "a.png"]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{line}\n" for line in lines))
    for each in (tmp_path / "link", folder):
        found = list_pictures(BatchJob(each, tmp_path / "r.csv", listed=names))
        assert [picture.image_id for picture in found.pictures] == ["a.png", "s/b.png", "c.png", "away/d.png"]
        assert found.pictures[0].path == each / "a.png"
        assert found.unmatched == 1
    with pytest.raises(UsageError, match="is not in"):
        listed(tmp_path / "link", str(tmp_path / "away" / "d.png").encode())


def test_of_pictures_in_hand_at_a_time_one_is_large(tmp_path: Path) -> None:
    """Small ones do not wait for it; one that is gone counts as small."""
    sizes = {"large.tif": work.LARGE_BYTES + 1, "other.tif": 2 * work.LARGE_BYTES, "small.tif": work.LARGE_BYTES}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    at_work: list[str] = []
    seen: list[set[str]] = []
    small_is_done = Event()

    def call(task: work.Task) -> Any:
        at_work.append(task.image_id)
        seen.append(set(at_work))
        if task.image_id.startswith(("small", "gone")):
            small_is_done.set()
        assert small_is_done.wait(20)
        at_work.remove(task.image_id)
        return task.image_id

    do = work.one_large_at_a_time(call, lambda task: task.path)
    names = ["large.tif", "other.tif", "small.tif", "gone.tif"]
    with ThreadPoolExecutor(4) as hands:
        assert list(hands.map(do, [work.Task(tmp_path / name, name, "") for name in names])) == names
    assert all(len(each & {"large.tif", "other.tif"}) < 2 for each in seen)
