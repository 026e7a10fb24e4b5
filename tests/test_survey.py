"""What is seen before a training: every faulty picture and no other, the meaning of folders, numbers, a sheet."""

import csv
import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from smearcount.cellsets import CellSet
from smearcount.errors import ConfigError, DatasetError
from smearcount.images import write_picture
from smearcount.taxonomy import Taxonomy
from smearcount.training.survey import check_folder, check_pictures, faults_csv, folder_classes, sample_sheet, summary


def cell(seed: int, side: int = 64) -> np.ndarray:
    """A disc of its own place and texture on a light ground."""
    rng = np.random.default_rng(seed)
    x, y, radius = rng.uniform(0.4, 0.6) * side, rng.uniform(0.4, 0.6) * side, rng.uniform(0.2, 0.3) * side
    row, column = np.mgrid[:side, :side]
    ground = np.full((side, side, 3), (230, 215, 220), np.uint8)
    ground[np.hypot(column - x, row - y) < radius] = (150, 60, 140)
    return np.clip(ground + rng.normal(scale=4, size=ground.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four good pictures each, of several formats."""
    for number, suffix in enumerate((".png", ".jpg", ".tif", ".png")):
        write_picture(_made(tmp_path / "monocyte") / f"good{number}{suffix}", cell(number))
        write_picture(_made(tmp_path / "PLT") / f"good{number}{suffix}", cell(10 + number))
    return tmp_path


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def found(folder: Path) -> set[tuple[str, str, str]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {(each.file.name, each.fault, each.action) for each in check_pictures(paths)}


def test_good_pictures_have_no_fault(folder: Path) -> None:
    assert found(folder) == set()


@pytest.mark.parametrize("kept", [3000, 500, 12])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_pictures_are_left_out(folder: Path, suffix: str, kept: int) -> None:
    path = write_picture(folder / "PLT" / f"cut{suffix}", cell(50, 96))
    whole = path.read_bytes()
    path.write_bytes(whole[: min(kept, len(whole) - 40)])
    assert found(folder) == {(path.name, "unreadable", "left out")}


def test_what_is_no_picture_is_left_out(folder: Path) -> None:
    (folder / "PLT" / "notes.jpg").write_text("not a picture")
    (folder / "PLT" / "empty.png").write_bytes(b"")
    (folder / "PLT" / "nowhere.png").symlink_to(folder / "gone.png")
    faults = check_pictures([folder / "PLT" / name for name in ("notes.jpg", "empty.png", "nowhere.png")])
    assert [(each.fault, each.action) for each in faults] == [("unreadable", "left out")] * 3
    assert "text" in faults[0].detail
    assert str(folder) not in faults[0].detail


def test_a_suffix_of_another_format_is_reported(folder: Path) -> None:
    (folder / "PLT" / "good0.png").rename(folder / "PLT" / "good0.JPG")
    (folder / "PLT" / "good1.jpg").rename(folder / "PLT" / "good1.JPEG")
    assert found(folder) == {("good0.JPG", "wrong suffix", "reported")}


def test_no_picture_of_a_folder_is_dropped_unseen(folder: Path) -> None:
    """A type that is not read, and pictures that no name tells; what is none is no fault."""
    for number, name in enumerate(("good1.dat", "good1")):
        write_picture(folder / "PLT" / "new.jpg", cell(30 + number)).replace(folder / "PLT" / name)
    (folder / "PLT" / "moving.gif").write_bytes(b"GIF89a and more")
    (folder / "PLT" / "notes.txt").write_text("of patient 3")
    (folder / "PLT" / "Thumbs.db").write_bytes(b"")
    faults = check_folder(folder)
    assert {(each.file.name, each.fault, each.action) for each in faults} == {
        ("good1.dat", "wrong suffix", "left out"),
        ("good1", "wrong suffix", "left out"),
        ("moving.gif", "unreadable", "left out"),
    }
    details = [each.detail for each in faults]
    assert "named .dat, is a JPEG: rename it" in details
    assert any("a GIF picture" in detail for detail in details)


def test_small_and_blank_pictures_are_left_out(folder: Path) -> None:
    write_picture(folder / "PLT" / "small.png", cell(50, 7))
    noise = np.random.default_rng(0).normal(225, 1.5, (64, 64, 3))
    write_picture(folder / "PLT" / "blank.png", noise.astype(np.uint8))
    write_picture(folder / "PLT" / "least.png", cell(51, 8))
    assert found(folder) == {("small.png", "too small", "left out"), ("blank.png", "blank", "left out")}


def test_animations_and_pages_are_left_out(folder: Path) -> None:
    frames = [Image.fromarray(cell(seed)) for seed in (50, 51)]
    frames[0].save(folder / "PLT" / "film.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "PLT" / "film.webp", save_all=True, append_images=frames[1:], lossless=True)
    tifffile.imwrite(folder / "PLT" / "pages.tif", np.stack([cell(50), cell(51)]), photometric="rgb")
    expected = {(name, "several pictures", "left out") for name in ("film.png", "film.webp", "pages.tif")}
    assert found(folder) == expected


def test_one_picture_in_two_classes_is_left_out_of_both(folder: Path) -> None:
    # The same pixels in another format are the same picture.
    write_picture(folder / "monocyte" / "twin.tif", cell(10))
    faults = {("twin.tif", "two classes", "left out"), ("good0.png", "two classes", "left out")}
    assert found(folder) == faults
    told = {each.detail for each in check_pictures(sorted(folder.rglob("*.*")))}
    assert told == {"the same picture in PLT and monocyte"}


def test_one_picture_of_two_patients_of_a_class_is_a_copy(folder: Path) -> None:
    for patient in ("patient1", "patient2"):
        shutil.copy(folder / "PLT" / "good1.jpg", _made(folder / "PLT" / patient) / "good1.jpg")
    (folder / "PLT" / "good1.jpg").unlink()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    (fault,) = check_pictures(paths, folder)
    assert (fault.file.parent.name, fault.fault) == ("patient2", "copy")
    assert {each.fault for each in check_pictures(paths)} == {"two classes"}


def test_classes_are_told_apart_by_what_folders_mean(folder: Path) -> None:
    write_picture(folder / "monocyte" / "twin.tif", cell(10))
    for meant, expected in (
        ({"PLT": "monocyte", "monocyte": "monocyte"}, {("good0.png", "copy"), ("twin.tif", "copy")}),
        ({"PLT": "platelet", "monocyte": ("monocyte",)}, {("good0.png", "two classes"), ("twin.tif", "two classes")}),
        ({"PLT": "", "monocyte": "monocyte"}, set()),
    ):
        faults = {(each.file.name, each.fault) for each in check_folder(folder, meant)}
        assert faults <= expected
        assert bool(faults) == bool(expected)


def test_copies_within_a_class_are_reported_once(folder: Path) -> None:
    shutil.copy(folder / "PLT" / "good1.jpg", folder / "PLT" / "zz.jpg")
    assert found(folder) == {("zz.jpg", "copy", "reported")}


def test_one_turned_pixel_makes_another_picture(folder: Path) -> None:
    pixels = cell(10)
    pixels[0, 0, 0] ^= 1
    write_picture(folder / "monocyte" / "twin.png", pixels)
    assert found(folder) == set()


def test_grey_is_reported_among_coloured_only(folder: Path) -> None:
    for path in (folder / "monocyte").iterdir():
        path.unlink()
    grey = np.repeat(cell(50)[..., :1], 3, axis=2)
    write_picture(folder / "monocyte" / "grey.jpg", grey)
    assert found(folder) == {("grey.jpg", "grey", "reported")}
    assert found(folder / "monocyte") == set()


def test_faults_come_in_the_order_of_the_pictures_as_csv(folder: Path) -> None:
    (folder / "monocyte" / "good2.tif").write_bytes(b"")
    write_picture(folder / "PLT" / "good3.png", cell(13, 5))
    paths = [folder / "monocyte" / "good2.tif", folder / "PLT" / "good0.png", folder / "PLT" / "good3.png"]
    rows = list(csv.DictReader(io.StringIO(faults_csv(check_pictures(paths), folder))))
    assert [(row["file"], row["fault"], row["action"]) for row in rows] == [
        ("monocyte/good2.tif", "unreadable", "left out"),
        ("PLT/good3.png", "too small", "left out"),
    ]
    assert rows[1]["detail"] == "5 x 5 px, expected 8 px a side"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("monocyte", "monocyte"), ("Monocytes", "monocyte"), ("PLT", "platelet"), ("plt", "platelet")),
        *(("Drepanocitos", "sickle_cell"), ("HJ", "howell_jolly_body"), ("Target cell", "target_cell")),
        *(("target-cells", "target_cell"), ("Howell_Jolly_Body", "howell_jolly_body"), ("Normal", "normocyte")),
    ],
)
def test_folders_are_known_by_code_name_and_synonym(tmp_path: Path, taxonomy: Taxonomy, name: str, code: str) -> None:
    write_picture(_made(tmp_path / name) / "a.png", cell(0))
    assert folder_classes(tmp_path, taxonomy) == {name: code}


def test_the_eight_classes_of_the_thesis_are_known(tmp_path: Path, taxonomy: Taxonomy) -> None:
    names = ["Normal", "PLT", "Esferocito", "Drepanocitos", "Reticulocito", "PB", "Pappenheimer", "HJ"]
    for name in names:
        write_picture(_made(tmp_path / name) / "a.png", cell(0))
    codes = ["normocyte", "platelet", "spherocyte", "sickle_cell", "reticulocyte", "basophilic_stippling"]
    assert folder_classes(tmp_path, taxonomy) == dict(
        sorted(zip(names, [*codes, "pappenheimer_bodies", "howell_jolly_body"], strict=True))
    )


def test_unknown_folders_are_named_with_the_codes(folder: Path, taxonomy: Taxonomy) -> None:
    write_picture(_made(folder / "blob") / "a.png", cell(0))
    with pytest.raises(ConfigError, match=r"folders blob; .*known codes: normocyte, .*platelet"):
        folder_classes(folder, taxonomy)
    assert folder_classes(folder, taxonomy, {"blob": ""})["blob"] == ""
    coarse = ("macrocyte", "microcyte")
    assert folder_classes(folder, taxonomy, {"blob": coarse, "PLT": "lymphocyte"}) == {
        **{"PLT": "lymphocyte", "blob": coarse},
        "monocyte": "monocyte",
    }


def test_an_accent_may_be_a_character_of_its_own(folder: Path, taxonomy: Taxonomy) -> None:
    """As in the names of files that come from a Mac."""
    on_disk = "Ce\u0301lula rara"
    write_picture(_made(folder / on_disk) / "a.png", cell(0))
    assert folder_classes(folder, taxonomy, {"C\u00e9lula rara": "burr_cell"})[on_disk] == "burr_cell"


def test_classes_are_the_first_folders_below_also_empty_ones(folder: Path, taxonomy: Taxonomy) -> None:
    _made(folder / "PLT" / "patient1")
    (folder / "PLT" / "good0.png").rename(folder / "PLT" / "patient1" / "good0.png")
    _made(folder / "HJ")
    _made(folder / ".hidden")
    meant = {"HJ": "howell_jolly_body", "PLT": "platelet", "monocyte": "monocyte"}
    assert folder_classes(folder, taxonomy) == meant
    assert folder_classes(folder, taxonomy, {"HJ": ""}) == {**meant, "HJ": ""}


def test_wrong_mappings_and_layouts_are_refused(folder: Path, taxonomy: Taxonomy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder blob in"):
        folder_classes(folder, taxonomy, {"blob": ""})
    with pytest.raises(ConfigError, match="unknown codes monozyte"):
        folder_classes(folder, taxonomy, {"PLT": ("platelet", "monozyte")})
    with pytest.raises(DatasetError, match="no pictures"):
        folder_classes(_made(tmp_path / "bare"), taxonomy)
    write_picture(folder / "stray.png", cell(0))
    with pytest.raises(DatasetError, match=r"1 pictures such as stray.png beside"):
        folder_classes(folder, taxonomy)


CODES = ("monocyte", "platelet", "basophil")


def cell_set() -> CellSet:
    """Six monocytes (four in training), two platelets (both), one that is either, and no basophil."""
    sides = [40, 40, 40, 60, 60, 80, 30, 34, 90]
    targets = np.zeros((9, 3), np.bool_)
    targets[:6, 0] = targets[6:, 1] = targets[8, 0] = True
    return CellSet(
        tuple(cell(seed, side) for seed, side in enumerate(sides)),
        np.array([0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.2, 0.5, 0.1], np.float32),
        targets,
        CODES,
        np.array(["north"] * 5 + ["south"] * 4),
        np.arange(9).astype("<U2"),
        np.array(["train"] * 4 + ["val"] * 2 + ["train"] * 2 + ["val"]),
        np.array([f"{row}.png" for row in range(9)]),
    )


def test_numbers_and_sizes_are_those_of_the_cells() -> None:
    survey = summary(cell_set())
    rows = {row["class"]: row for row in csv.DictReader(io.StringIO(survey.as_csv()))}
    assert list(rows) == ["monocyte", "platelet", "monocyte or platelet", "all"]
    assert rows["monocyte"] == {
        **{"class": "monocyte", "cells": "6", "train": "4", "val": "2", "north": "5", "south": "1"},
        **{"px_min": "40", "px_median": "50", "px_max": "80", "um_min": "10.0", "um_median": "17.5", "um_max": "20.0"},
    }
    assert [rows["all"][name] for name in ("cells", "train", "val", "north", "south")] == ["9", "6", "3", "5", "4"]
    assert survey.imbalance == 2.0
    assert survey.empty == ("basophil",)
    assert survey.unjudged == ("platelet",)


def test_the_table_tells_what_is_missing_and_uneven() -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(summary(cell_set()).as_table())
    text = console.export_text()
    assert "2.0 : 1" in text
    assert "no cells of basophil" in text
    assert "north 5, south 1" in text
    assert "not judged, for want of validation cells: platelet" in " ".join(text.split())


def test_no_cells_are_no_survey() -> None:
    empty = cell_set().take(np.zeros(9, np.bool_))
    with pytest.raises(ValueError, match="at least one"):
        summary(empty)
    with pytest.raises(ValueError, match="expected cells"):
        sample_sheet(empty, 3, seed=0)


def tiles_in(sheet: np.ndarray, cells: CellSet) -> list[int]:
    """The cells that a sheet shows, by a search for each of them."""
    shown = []
    for row, pixels in enumerate(cells.pixels):
        tile = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_LINEAR)
        if cv2.matchTemplate(sheet, tile, cv2.TM_SQDIFF_NORMED).min() < 1e-3:
            shown.append(row)
    return shown


def test_the_sheet_shows_every_class_and_source() -> None:
    cells = cell_set()
    assert tiles_in(sample_sheet(cells, 9, seed=0), cells) == list(range(9))
    few = sample_sheet(cells, 2, seed=0)
    shown = tiles_in(few, cells)
    # Of the monocytes one of the north and the only one of the south, then both platelets and the one that is either.
    assert len(shown) == 5
    assert shown[1:] == [5, 6, 7, 8]
    assert (few == sample_sheet(cells, 2, seed=0)).all()
    assert {tiles_in(sample_sheet(cells, 2, seed=seed), cells)[0] for seed in range(8)} > {shown[0]}


def test_the_sheet_is_labelled_beside_and_below_the_cells() -> None:
    sheet = sample_sheet(cell_set(), 3, seed=0)
    assert sheet.dtype == np.uint8
    dark = sheet.max(axis=2) < 120
    rows = np.flatnonzero(dark[:, :190].any(axis=1))
    assert len(np.flatnonzero(np.diff(rows) > 60)) == 2
    assert not dark[:, 175:190].any()
