"""Patches and their manifest say the same, however a run ends."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_batch import DiscMaker, smear, smears

from smearcount.crops import write_crops
from smearcount.errors import UsageError
from smearcount.images import write_picture
from smearcount.manifests import MANIFEST_COLUMNS
from smearcount.pipeline import Analysis, Pipeline


def listed(out: Path) -> set[str]:
    with (out / "manifest.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert len(set(names)) == len(names)
    return set(names)


def there(out: Path) -> set[str]:
    return {path.name for path in out.glob("*.png")}


def stopped(pipeline: Pipeline, paths: list[Path], out: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped when half of the patches of a picture are written."""
    patches, seen = Analysis.patches, 0

    def until(analysis: Analysis) -> Iterator[Any]:
        nonlocal seen
        seen += 1
        for n, patch in enumerate(patches(analysis)):
            if seen > after and n:
                raise KeyboardInterrupt
            yield patch

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Analysis, "patches", until)
        with pytest.raises(KeyboardInterrupt):
            write_crops(pipeline, paths, out)


def test_patches_of_a_name_that_is_no_unicode_are_those_of_the_manifest(tmp_path: Path) -> None:
    """As of a picture from a system whose names are in Latin-1."""
    folder, out = smears(tmp_path / "in", "a.png"), tmp_path / "o"
    try:
        path = (folder / "a.png").rename(folder / os.fsdecode(b"M\xfcller.png"))
    except OSError:
        pytest.skip("no such names here")
    for _ in range(2):
        found = write_crops(DiscMaker().load(1), [path], out)
        assert found.renamed == ()
        assert listed(out) == there(out)
        assert len(listed(out)) == found.written > 0


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_a_run_that_is_stopped_leaves_a_true_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, *, again: bool
) -> None:
    paths = [smear(tmp_path / name, seed) for seed, name in enumerate(("a.png", "b.png", "c.png"), 4)]
    pipeline, out = DiscMaker().load(1), tmp_path / "o"
    before = {path: path.read_bytes() for path in out.glob("*")} if again and write_crops(pipeline, paths, out) else {}
    for path in before:
        # What the first run found otherwise: other names for the same cells.
        path.rename(path.with_name(path.name.replace("_unclassified", "_normocyte")))
    if again:
        text = (out / "manifest.csv").read_text().replace("_unclassified", "_normocyte")
        (out / "manifest.csv").write_text(text)
    stopped(pipeline, paths, out, after, monkeypatch)
    assert listed(out) == there(out)
    assert {name.partition(".")[0] for name in listed(out)} == set("abc" if again else "abc"[:after])
    whole = tmp_path / "whole"
    n = write_crops(pipeline, paths, whole).written
    assert write_crops(pipeline, paths, out).written == n
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_what_a_killed_run_left_is_healed(tmp_path: Path) -> None:
    path, out = smear(tmp_path / "a.png", 4), tmp_path / "o"
    pixels = np.zeros((9, 9, 3), np.uint8)
    out.mkdir()
    strangers = ["a.png_00000_rbc_mine.png", "b.png_00000_rbc_normocyte.png", "mine.png"]
    for name in (*strangers, "a.png_00000_rbc_target_cell.png", "a.png_00099_wbc_unclassified.png"):
        write_picture(out / name, pixels)
    (out / "manifest.partial.csv").write_text(",".join(MANIFEST_COLUMNS) + "\n")
    pipeline = DiscMaker().load(1)
    write_crops(pipeline, [path], out)
    assert there(out) == {*listed(out), *strangers}
    assert {each.name for each in out.iterdir()} == {"manifest.csv", *there(out)}


def test_rows_of_a_partial_manifest_are_taken_over(tmp_path: Path) -> None:
    folder, out = smears(tmp_path / "in", "a.png", "b.png"), tmp_path / "o"
    pipeline = DiscMaker().load(1)
    write_crops(pipeline, [folder / "a.png"], out)
    (out / "manifest.csv").rename(out / "manifest.partial.csv")
    write_crops(pipeline, [folder / "b.png"], out)
    assert listed(out) == there(out)
    assert {each.name for each in out.iterdir()} == {"manifest.csv", *there(out)}


def test_progress_that_is_stopped_is_a_run_that_is_stopped(tmp_path: Path) -> None:
    folder, out = smears(tmp_path / "in", "a.png", "b.png"), tmp_path / "o"

    def progress(paths: Iterable[Path]) -> Iterator[Path]:
        for path in paths:
            yield path
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_crops(DiscMaker().load(1), [folder / "a.png", folder / "b.png"], out, progress)
    assert listed(out) == there(out) != set()


def test_a_second_run_on_a_folder_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    folder, out = smears(tmp_path / "in", "a.png", "b.png"), tmp_path / "o"
    pipeline = DiscMaker().load(1)

    def meanwhile(paths: Iterable[Path]) -> Iterator[Path]:
        with pytest.raises(UsageError, match=r"manifest\.csv: another run .* is writing it"):
            write_crops(pipeline, [folder / "b.png"], out)
        yield from paths

    write_crops(pipeline, [folder / "a.png"], out, meanwhile)
    write_crops(pipeline, [folder / "b.png"], out)
    assert {name[0] for name in listed(out)} == {"a", "b"}
    assert {each.name for each in out.iterdir()} == {"manifest.csv", *there(out)}
