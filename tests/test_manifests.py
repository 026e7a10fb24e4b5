"""The manifest of `crop` is read by one rule, whoever asks; one that is not whole is refused, and names itself."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_batch import DiscMaker, smears

from smearcount.batch import BatchJob, run_batch
from smearcount.crops import write_crops
from smearcount.errors import UsageError
from smearcount.manifests import MANIFEST_COLUMNS, listed_patches, names_listed, read_manifest

READERS: tuple[Callable[[Path], object], ...] = (
    names_listed,
    lambda folder: listed_patches([folder / "any.png"]),
    lambda folder: write_crops(DiscMaker().load(1), [], folder),
)
WHOLE = {column: "7" for column in MANIFEST_COLUMNS} | {"file": "a_00007_7_x.png"}


def write(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join((",".join(MANIFEST_COLUMNS), *lines, "")))
    return path


@pytest.mark.parametrize("read", READERS, ids=["batch", "classify", "crop"])
@pytest.mark.parametrize(
    "line", ["only_a_file.png", ",".join((*WHOLE.values(), "more")), ",".join(WHOLE.values()).replace("7,", ",")]
)
def test_a_row_that_is_not_whole_is_refused_by_all(read: Callable[[Path], object], line: str, tmp_path: Path) -> None:
    write(tmp_path, ",".join(WHOLE.values()), line)
    with pytest.raises(UsageError, match=r"manifest\.csv: no manifest of .*line 3 is not whole.*; move it elsewhere"):
        read(tmp_path)


def test_a_whole_manifest_is_read_and_another_one_is_none_of_ours(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "manifest.csv") is None
    path = write(tmp_path, ",".join(WHOLE.values()))
    assert read_manifest(path) == [WHOLE]
    for content in (b"file,what\na.png\n", b"caf\xe9\n", b""):
        path.write_bytes(content)
        assert read_manifest(path) is None
        assert names_listed(tmp_path) == frozenset()


def test_a_folder_whose_manifest_is_not_whole_is_a_row_of_a_batch(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "crops/b.png", "crops/more/c.png")
    write(folder / "crops", "only_a_file.png")
    outcome = run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv", recursive=True))
    assert (outcome.done, len(outcome.failed)) == (2, 1)
    ((name, reason),) = outcome.failed
    assert name == "crops/"
    assert reason.startswith("crops/: manifest.csv: no manifest of")
    with (tmp_path / "r.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a.png", "crops/", "crops/more/c.png"]
