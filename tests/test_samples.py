"""Pictures for INT8: which are taken to calibrate, which to compare, and which are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import yaml

from smearcount.cards import Model
from smearcount.errors import DatasetError, UsageError
from smearcount.training.samples import samples_in, samples_of


@pytest.fixture
def classifier(naming_models: Path) -> Model:
    """It is shown single cells, which may be small."""
    return Model(naming_models / "red-discs")


def pictures(folder: Path, number: int, side: int = 8) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for row in range(number):
        cv2.imwrite(str(folder / f"{row:03}.png"), rng.integers(0, 255, (side, side, 3), np.uint8))
    return folder


def test_every_fifth_picture_is_kept_for_the_comparison(classifier: Model, tmp_path: Path) -> None:
    samples = samples_in(pictures(tmp_path / "in", 12), classifier)
    assert [path.stem for path, _ in samples.check] == ["004", "009"]
    assert len(samples.calibration) == 10
    assert not {path for path, _ in samples.check} & {path for path, _ in samples.calibration}
    assert samples.faults == ()
    with pytest.raises(UsageError, match="9 pictures are too few"):
        samples_in(pictures(tmp_path / "few", 9), classifier)


def test_pictures_that_cannot_be_read_are_left_out_first(
    classifier: Model, tmp_path: Path, make_card: Callable[..., Any]
) -> None:
    folder = pictures(tmp_path / "in", 12)
    (folder / "004.png").write_bytes((folder / "004.png").read_bytes()[:-20])
    cv2.imwrite(str(folder / "009.png"), np.zeros((7, 40, 3), np.uint8))
    samples = samples_in(folder, classifier)
    assert [path.stem for path, _ in samples.check] == ["005", "011"]
    assert [path.stem for path, _ in samples.calibration] == ["000", "001", "002", "003", "006", "007", "008", "010"]
    assert [fault.split(": ")[1].split(" (")[0] for fault in samples.faults] == [
        "is truncated",
        "only 40 x 7 px, expected at least 8 px a side; give the original picture, not a thumbnail",
    ]
    (folder / "000.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"9 pictures \(3 more can't be read, such as .*000\.png: the file is empty"):
        samples_in(folder, classifier)
    fields: Any = SimpleNamespace(card=make_card())
    with pytest.raises(UsageError, match=r"0 pictures \(12 more can't be read"):
        samples_in(pictures(tmp_path / "small", 12, 31), fields)


def test_a_tiff_is_read_to_its_last_pixel(classifier: Model, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 12)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    tifffile.imwrite(folder / "x.tif", pixels, tile=(16, 16), compression="zlib", photometric="rgb")
    assert samples_in(folder, classifier).faults == ()
    content = bytearray((folder / "x.tif").read_bytes())
    with tifffile.TiffFile(folder / "x.tif") as tiff:
        last = tiff.pages[0].dataoffsets[-1]  # type: ignore[union-attr]
    content[last : last + 8] = bytes(8)
    (folder / "x.tif").write_bytes(content)
    assert len(samples_in(folder, classifier).faults) == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_list_of_fields_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """Of five fields on either side, which are taken to calibrate and to compare."""
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    pictures(tmp_path / "own", 10, 40)
    (tmp_path / "own" / "annotations").mkdir()
    for row in range(10):
        (tmp_path / "own" / "annotations" / f"{row:03}.xml").write_text("<annotation/>")
    for each, rows in (("train", range(5)), ("val", range(5, 10))):
        (tmp_path / "own" / f"{each}.txt").write_text("".join(f"{row:03}\n" for row in rows))
    entry = {"format": "voc", "classes": {"R": "rbc"}, "labelled": ["rbc"], "red_cell_px": {"any": 20}}
    (tmp_path / "fields.yaml").write_text(yaml.safe_dump({"own": entry}))
    samples = samples_of(["own"], tmp_path / "fields.yaml")
    assert (len(samples.calibration), len(samples.check)) == (5, 5)
    (tmp_path / "own" / f"{split}.txt").write_text("\n")
    with pytest.raises(DatasetError, match=f"no field in the {split} list of own"):
        samples_of(["own"], tmp_path / "fields.yaml")
