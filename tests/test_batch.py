"""Names of outputs are never shared, and an output is whole or absent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from smearcount.batch import BatchJob, _whole_or_absent, analyze_each, run_batch, unique_stems
from smearcount.errors import ImageError
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


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.csv"
    with _whole_or_absent(target) as stream:
        stream.write("Müller\n")
        stream.flush()
        assert not target.exists()
    assert target.read_bytes() == "Müller\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["report.csv"]


def write_half(target: Path, error: BaseException) -> None:
    with _whole_or_absent(target) as stream:
        stream.write("half")
        raise error


def test_a_broken_run_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.csv"
    target.write_text("old")
    for error in (RuntimeError("power cut"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_half(target, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "file" / "report.csv", tmp_path / "folder"):
        with pytest.raises(ImageError, match=rf"{target.name}: can't be written"), _whole_or_absent(target) as stream:
            stream.write("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_names_that_are_no_unicode_are_written_all_the_same(tmp_path: Path) -> None:
    name = b"M\xfcller.jpg".decode("utf-8", "surrogateescape")
    with _whole_or_absent(tmp_path / "report.csv") as stream:
        stream.write(name)
    assert (tmp_path / "report.csv").read_text(encoding="utf-8") == r"M\udcfcller.jpg"


def test_nothing_is_written_where_nothing_is_wanted() -> None:
    with _whole_or_absent(None) as stream:
        stream.write("x")


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
        return SimpleNamespace(result=self.result(image_id=image_id, slide_id=slide_id))


@pytest.fixture
def pipeline(taxonomy: Taxonomy, make_result: Any, cells: Any) -> Any:
    return Fake(taxonomy, lambda **ids: make_result(cells([[10, 10, 50, 50]]), **ids))


def test_a_bad_picture_costs_only_itself(pipeline: Any) -> None:
    paths = [Path(name) for name in ("a.jpg", "bad.jpg", "huge.jpg", "z.jpg")]
    found = list(analyze_each(pipeline, paths, lambda path: (path.name, "")))
    assert [path for path, _ in found] == paths
    assert [isinstance(outcome, str) for _, outcome in found] == [False, True, True, False]
    assert found[1][1] == "bad.jpg: damaged"
    assert "not enough memory" in str(found[2][1])


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
    with pytest.raises(ImageError, match="no pictures found; use --recursive"):
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
