"""Names of outputs are never shared, and an output is whole or absent."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from smearcount.batch import BatchJob, Failure, Interrupted, analyze_each, run_batch, unique_stems
from smearcount.crops import write_crops
from smearcount.errors import ImageError, UsageError
from smearcount.report import cells_csv, report_columns
from smearcount.taxonomy import Taxonomy


def stems(*names: str) -> list[str]:
    return list(unique_stems(Path(name) for name in names).values())


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

    def analyze(self, path: Path, *, image_id: str, slide_id: str) -> Any:
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
                yield SimpleNamespace(cell_id=cell, pixels=pixels, side_um=12.0, filled=0.0)
            overlay()

        result = self.result(image_id=image_id, slide_id=slide_id)
        return SimpleNamespace(result=result, taxonomy=self.taxonomy, overlay=overlay, patches=patches)


@pytest.fixture
def pipeline(taxonomy: Taxonomy, make_result: Any, cells: Any) -> Any:
    return Fake(taxonomy, lambda **ids: make_result(cells([[10, 10, 50, 50]]), **ids))


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
    outcome = run_batch(pipeline, BatchJob(folder, tmp_path / "r.csv", tmp_path / "c.csv", tmp_path / "o"))
    assert outcome.done == 2
    bad = dict.fromkeys(("broken.jpg", "dry.jpg", "taken.jpg"), "failed")
    assert rows_of(tmp_path / "r.csv") == {"a.jpg": "ok", **bad, "z.jpg": "ok"}
    # A cell of a picture that failed would be in no count.
    assert {line.split(",")[0] for line in (tmp_path / "c.csv").read_text().splitlines()[1:]} == {"a.jpg", "z.jpg"}


def test_patches_of_a_picture_are_all_there_or_none(tmp_path: Path, pipeline: Any) -> None:
    written, failed = write_crops(pipeline, [Path("a.jpg"), Path("dry.jpg"), Path("z.jpg")], tmp_path / "o")
    assert (written, len(failed)) == (2, 1)
    files = {row["file"] for row in csv.DictReader((tmp_path / "o" / "manifest.csv").read_text().splitlines())}
    assert files == {path.name for path in (tmp_path / "o").glob("*.png")}
    assert len(files) == 2


def test_a_stopped_batch_keeps_the_finished_rows(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "bad.jpg", "stop.jpg", "z.jpg")
    out = tmp_path / "out"
    pictures(out, "report.csv")
    shown = []

    def progress(paths: Iterable[Path]) -> Iterable[Path]:
        shown.append("bar")
        try:
            yield from paths
        finally:
            shown.clear()

    with pytest.raises(Interrupted, match=r"after 2 pictures.*report\.partial\.csv") as caught:
        run_batch(pipeline, BatchJob(folder, out / "report.csv", out / "cells.csv"), progress)
    assert not shown, "the bar is still there when the user is told"
    assert (caught.value.done, set(caught.value.kept)) == (2, {out / "report.partial.csv", out / "cells.partial.csv"})
    assert rows_of(out / "report.partial.csv") == {"a.jpg": "ok", "bad.jpg": "failed"}
    assert len((out / "cells.partial.csv").read_text().splitlines()) == 2
    assert {path.name for path in out.iterdir()} == {"report.csv", "report.partial.csv", "cells.partial.csv"}
    assert (out / "report.csv").read_text() == ""


def test_bad_targets_are_found_before_the_first_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg")
    pictures(tmp_path, "file")
    (tmp_path / "taken").mkdir()
    pipeline.analyze = None
    good = tmp_path / "r.csv"
    for job, named in (
        (BatchJob(folder, tmp_path / "taken"), "taken"),
        (BatchJob(folder, tmp_path / "file" / "r.csv"), "file"),
        (BatchJob(folder, good, tmp_path / "taken"), "taken"),
        (BatchJob(folder, good, overlays=tmp_path / "file"), "file"),
        (BatchJob(folder, good, overlays=tmp_path / "file" / "o"), "file"),
    ):
        with pytest.raises(ImageError, match=rf"{named}.*; .*choose another"):
            run_batch(pipeline, job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "taken"]


def test_no_output_replaces_another_or_a_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = pictures(tmp_path / "in", "a.jpg", "b.jpg")
    with pytest.raises(UsageError, match="one file"):
        run_batch(pipeline, BatchJob(folder, tmp_path / "r.csv", tmp_path / "in" / ".." / "r.csv"))
    (tmp_path / "link.csv").symlink_to(folder / "b.jpg")
    for job in (
        BatchJob(folder, folder / "a.jpg"),
        BatchJob(folder, tmp_path / "r.csv", folder / "a.jpg"),
        BatchJob(folder, tmp_path / "link.csv"),
    ):
        with pytest.raises(UsageError, match="one of the pictures"):
            run_batch(pipeline, job)


def test_a_second_run_does_not_count_the_overlays_of_the_first(tmp_path: Path, pipeline: Any) -> None:
    for name in ("a.png", "sub/b.png", "notes.txt"):
        pictures(tmp_path, name)
    for overlays in (tmp_path, tmp_path / "o"):
        job = BatchJob(tmp_path, tmp_path / "r.csv", overlays=overlays, recursive=True)
        run_batch(pipeline, job)
        first = (tmp_path / "r.csv").read_bytes()
        outcome = run_batch(pipeline, job)
        assert (tmp_path / "r.csv").read_bytes() == first
        assert outcome.done == 2
    assert outcome.overlays == 4
    assert outcome.others == 2  # the notes and the report


def test_names_that_are_no_unicode_are_reported(tmp_path: Path, pipeline: Any) -> None:
    name = b"M\xfcller.jpg".decode("utf-8", "surrogateescape")
    folder = pictures(tmp_path / "in", name)
    assert run_batch(pipeline, BatchJob(folder, tmp_path / "r.csv")).done == 1
    assert run_batch(pipeline, BatchJob(folder, tmp_path / "r.csv", tmp_path / "c.csv", tmp_path / "o")).done == 1
    for table in (tmp_path / "r.csv", tmp_path / "c.csv"):
        assert r"M\udcfcller.jpg" in table.read_text(encoding="utf-8")
    assert write_crops(pipeline, [folder / name], tmp_path / "o")[0] == 1


def test_a_folder_becomes_one_row_a_picture(tmp_path: Path, pipeline: Any) -> None:
    folder = tmp_path / "slides"
    for name in ("one/a.jpg", "one/bad.jpg", "two/a.jpg", "top.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((9, 9, 3), np.uint8))
    job = BatchJob(folder, tmp_path / "out" / "report.csv", tmp_path / "out" / "cells.csv", recursive=True)
    outcome = run_batch(pipeline, job)
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
    run_batch(pipeline, job)
    assert job.report.read_bytes() == before


def test_an_empty_folder_is_said_with_the_remedy(tmp_path: Path, pipeline: Any) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="no pictures found; use --recursive"):
        run_batch(pipeline, BatchJob(tmp_path, tmp_path / "r.csv"))
    assert not (tmp_path / "r.csv").exists()


def test_progress_sees_every_picture(tmp_path: Path, pipeline: Any) -> None:
    for name in "cab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((9, 9, 3), np.uint8))
    seen: list[str] = []

    def progress(paths: Iterable[Path]) -> Iterable[Path]:
        for path in paths:
            seen.append(path.name)
            yield path

    run_batch(pipeline, BatchJob(tmp_path, tmp_path / "r.csv"), progress)
    assert seen == ["a.png", "b.png", "c.png"]
