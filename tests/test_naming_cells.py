"""The `data` part of a recipe on made-up folders and collections: which cells, which codes, what is left out."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from smearcount.arrays import Pixels
from smearcount.cellsets import CellSet
from smearcount.config import read_model, shipped
from smearcount.detector import Detector
from smearcount.errors import ConfigError, DatasetError, ImageError
from smearcount.images import write_picture
from smearcount.naming_nets import Normalisation
from smearcount.training import naming_cells
from smearcount.training.cell_sources import load_cell_sources
from smearcount.training.naming_cells import asked_kinds, cells_of, checked_cells, data_of, picture_um, usable_cells
from smearcount.training.naming_data import NamingData
from smearcount.training.naming_model import trained_on
from smearcount.training.naming_recipe import ClassifierRecipe
from smearcount.training.survey import pixels_sum


@pytest.fixture(autouse=True)
def _drawn_detector(disc_detector: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch) -> None:
    detector = disc_detector()
    monkeypatch.setattr("smearcount.training.naming_cells.Detector", lambda *_: detector)


def recipe(**data: Any) -> ClassifierRecipe:
    phase = {"name": "all", "body": "trained", "epochs": 1, "learning_rate": 0.01}
    net = {"backbone": "lenet5", "input_px": 32}
    return ClassifierRecipe.model_validate({"data": data, "net": net, "patch_um": 12.0, "phases": [phase], "seed": 3})


def cell(seed: int) -> Pixels:
    """A cell that no other one looks like: an ellipse with a coarse texture of its own."""
    rng = np.random.default_rng(seed)
    picture = np.full((80, 80, 3), 214, np.uint8)
    texture = cv2.resize(rng.integers(40, 170, (9, 9, 3)).astype(np.uint8), (80, 80), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((80, 80), np.uint8)
    axes = tuple(rng.integers(16, 30, 2).tolist())
    cv2.ellipse(mask, (40, 40), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return np.asarray(np.where(mask[..., None] == 1, texture, picture), np.uint8)


def folder_of(root: Path, **counts: int) -> Path:
    """Class folders with that many pictures of cells, each of its own."""
    seed = 0
    for label, n in counts.items():
        (root / label.replace("_", " ")).mkdir(parents=True)
        for row in range(n):
            write_picture(root / label.replace("_", " ") / f"{row:02d}.png", cell(seed))
            seed += 1
    return root


def codes_of(cells: CellSet) -> Counter[str]:
    return Counter(
        "|".join(code for code, may in zip(cells.codes, row, strict=True) if may) for row in cells.targets.tolist()
    )


def test_folders_are_known_by_codes_names_and_synonyms(tmp_path: Path) -> None:
    """The eight classes of Hospital Clinic's cells, as they are called there, in the order of the taxonomy."""
    names = ("Normal", "PLT", "Esferocito", "Drepanocitos", "Reticulocito", "PB", "Pappenheimer", "HJ")
    cells = cells_of(recipe(folder=folder_of(tmp_path, **dict.fromkeys(names, 5))))
    assert cells.codes == (
        *("normocyte", "spherocyte", "sickle_cell", "reticulocyte", "basophilic_stippling"),
        *("pappenheimer_bodies", "howell_jolly_body", "platelet"),
    )
    assert codes_of(cells) == dict.fromkeys(cells.codes, 5)
    assert Counter(cells.splits.tolist()) == {"train": 32, "val": 8}
    assert set(cells.sources.tolist()) == {"folder"}
    assert len(set(cells.groups.tolist())) == 40
    # The picture is the patch: 80 px stand for 12 um, and no more than twice what the network sees is kept.
    assert {round(len(w) * s, 3) for w, s in zip(cells.pixels, cells.um_per_px.tolist(), strict=True)} == {12.0}
    assert {len(window) for window in cells.pixels} == {64}


def test_windows_are_fine_enough_for_every_network_that_is_shown_them(tmp_path: Path) -> None:
    """Pictures of 80 px, of which LeNet-5 at 32 px needs 64; a larger input, an earlier phase, a narrower window."""
    folder, own = folder_of(tmp_path / "in", Normal=4, HJ=4), recipe(folder=tmp_path / "in")
    phases = [own.phases[0].model_copy(update={"input_px": 40, "name": "larger"}), *own.phases]
    card: Any = SimpleNamespace(patch_um=12.0, input_px=38)
    narrow: Any = SimpleNamespace(patch_um=10.0, input_px=32)
    for cells, side in (
        (cells_of(own, seen_by=[card, narrow]), 78),  # ceil(32 * 12 / 10) = 39
        (cells_of(own, seen_by=[card]), 76),
        (cells_of(own.model_copy(update={"phases": tuple(phases)})), 80),
        (checked_cells(own, folder.parent, input_px=36), 72),
        (checked_cells(own, folder.parent, input_px=20), 64),
    ):
        assert {len(window) for window in cells.pixels} == {side}


def test_the_network_is_shown_the_same_pixels_whether_they_are_kept_or_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, Normal=6, HJ=6)
    changes = {
        "augmentation": {"rotate": 1.0, "flip": 0.5, "overlap_share": 0.5, "light_share": 1.0, "brightness": 0.2}
    }
    asked = ClassifierRecipe.model_validate({**recipe(folder=tmp_path).model_dump(), **changes})
    shown = []
    for room in (10**9, 0):
        monkeypatch.setattr("smearcount.training.cells.MOST_BYTES", room)
        data = NamingData(cells_of(asked), asked, asked.phases[0], Normalisation())
        shown.append([*data.train_dataloader(), *data.val_dataloader()])
    for ours, theirs in zip(*shown, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_whole_pictures_stand_for_the_window_of_training(tmp_path: Path) -> None:
    own, pbc = recipe(folder=folder_of(tmp_path, Normal=1)), recipe(collections=["pbc8"])
    assert [picture_um(each) for each in (own, pbc)] == [None, None]
    # Those of a collection have a scale of their own.
    assert [picture_um(each.model_copy(update={"named_um": 9.0})) for each in (own, pbc)] == [12.0, None]


def test_what_folders_mean_can_be_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, round=4, sick=3, mixed=3, dirt=2)
    with pytest.raises(ConfigError, match="no code for the folders dirt, mixed, round, sick"):
        cells_of(recipe(folder=folder))
    classes = {"round": "normocyte", "sick": "sickle_cell", "mixed": ["normocyte", "sickle_cell"], "dirt": ""}
    cells = cells_of(recipe(folder=folder, classes=classes))
    assert codes_of(cells) == {"normocyte": 4, "sickle_cell": 3, "normocyte|sickle_cell": 3}
    named = {"round": "Normal", "sick": "Drepanocitos", "mixed": ["Normal", "normocyte", "sickle cells"], "dirt": ""}
    assert codes_of(cells_of(recipe(folder=folder, classes=named))) == codes_of(cells)
    only = cells_of(recipe(folder=folder, classes=classes, codes=("sickle_cell", "burr_cell")))
    assert only.codes == ("sickle_cell", "burr_cell")
    assert codes_of(only) == {"sickle_cell": 6}


def test_a_taxonomy_of_their_own(tmp_path: Path) -> None:
    content = yaml.safe_load((shipped("configs") / "taxonomy.yaml").read_text())
    content["codes"]["blister_cell"] = {"kind": "rbc", "name": "Blister cell", "colour": "#123456"}
    (tmp_path / "taxonomy.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    folder = folder_of(tmp_path / "in", Blister_cells=4, Normal=4)
    cells = cells_of(recipe(folder=folder, taxonomy=str(tmp_path / "taxonomy.yaml")))
    assert cells.codes == ("normocyte", "blister_cell")


def test_broken_pictures_are_listed_and_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", Normal=8, HJ=8)
    (folder / "Normal" / "00.png").write_bytes(b"no picture")
    whole = (folder / "HJ" / "01.png").read_bytes()
    (folder / "HJ" / "01.png").write_bytes(whole[: len(whole) // 2])
    write_picture(folder / "HJ" / "02.png", np.full((80, 80, 3), 200, np.uint8))
    write_picture(folder / "HJ" / "03.png", np.zeros((7, 80, 3), np.uint8))
    write_picture(folder / "HJ" / "04.png", cell(5))  # the same as Normal/05.png
    (folder / "HJ" / "05.png").rename(folder / "HJ" / "05.jpg")
    out, lines = tmp_path / "out", list[str]()
    out.mkdir()
    cells = checked_cells(recipe(folder=folder), out, lines.append)
    assert lines == ["6 pictures left out (faults.csv), 0 leaks removed (leaks.txt)"]
    rows = csv.DictReader((out / "faults.csv").read_text().splitlines())
    faults = {row["file"]: (row["fault"], row["action"]) for row in rows}
    assert faults == {
        "HJ/01.png": ("unreadable", "left out"),
        "HJ/02.png": ("blank", "left out"),
        "HJ/03.png": ("too small", "left out"),
        "HJ/04.png": ("two classes", "left out"),
        "HJ/05.jpg": ("wrong suffix", "reported"),
        "Normal/00.png": ("unreadable", "left out"),
        "Normal/05.png": ("two classes", "left out"),
    }
    assert codes_of(cells) == {"normocyte": 6, "howell_jolly_body": 4}
    # Whoever judges the classifier later sees the same cells on the same sides.
    again = cells_of(recipe(folder=folder), whole=True)
    assert (again.origins.tolist(), again.splits.tolist()) == (cells.origins.tolist(), cells.splits.tolist())


def test_what_stands_on_both_sides_is_taken_out_of_the_training(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", Normal=10, HJ=10)
    for row in range(10):
        picture = np.clip(cell(row).astype(int) + 9, 0, 255).astype(np.uint8)
        write_picture(folder / "Normal" / f"again_{row}.png", picture)
    (tmp_path / "out").mkdir()
    all_cells, told = cells_of(recipe(folder=folder)), list[str]()
    cells = checked_cells(recipe(folder=folder), tmp_path / "out", told.append)
    lines = (tmp_path / "out" / "leaks.txt").read_text().splitlines()
    side = dict(zip(all_cells.origins.tolist(), all_cells.splits.tolist(), strict=True))

    def twin(origin: str) -> str:
        name = origin.removeprefix("Normal/")
        return f"Normal/{int(name[6]):02d}.png" if name.startswith("again") else f"Normal/again_{int(name[:2])}.png"

    leaked = {o for o in side if o.startswith("Normal") and side[o] == "train" and side[twin(o)] == "val"}
    assert leaked
    assert told == [f"0 pictures left out (faults.csv), {len(leaked)} leaks removed (leaks.txt)"]
    assert sorted(lines) == sorted(f"{origin} shows the same as {twin(origin)}" for origin in leaked)
    assert set(cells.origins.tolist()) == side.keys() - leaked
    assert (cells.splits == "val").sum() == (all_cells.splits == "val").sum()


def test_pictures_of_one_name_in_two_collections_are_no_copies(collections: dict[str, Any], tmp_path: Path) -> None:
    """Other cells, under names that begin anew in each collection; `west` has its own share of them in validation."""
    for label in ("a", "c"):
        for row in range(20):
            write_picture(tmp_path / "west" / label / f"{row:02d}.png", cell(100 + row + 50 * (label == "c")))
    asked = recipe(**collections)
    whole = cells_of(asked)
    side = [
        {o for o, s, split in zip(whole.origins, whole.sources, whole.splits, strict=True) if (s, split) == (name, on)}
        for name, on in (("east", "train"), ("west", "val"))
    ]
    assert side[0] & side[1]
    told = list[str]()
    assert len(checked_cells(asked, tmp_path, told.append)) == len(whole)
    assert told == ["0 pictures left out (faults.csv), 0 leaks removed (leaks.txt)"]
    assert whole.shared_groups is None


def test_patients_of_one_name_in_two_collections_are_two_and_in_one_folder_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    classes = {"east": {"a": "normocyte"}, "west": {"b": "spherocyte"}, "later": {"c": "burr_cell"}}
    for seed, (name, label) in enumerate((("east", "a"), ("east", "c"), ("west", "b"))):
        for patient, row in product(range(4), range(3)):
            folder = tmp_path / name / label / f"patient{patient}"
            folder.mkdir(parents=True, exist_ok=True)
            write_picture(folder / f"{row}.png", cell(100 * seed + 10 * patient + row))
    entries = {name: {"format": "folders", "classes": told, "val_share": 0.3} for name, told in classes.items()}
    entries["later"]["folder"] = str(tmp_path / "west" / ".." / "east")
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(entries))
    data = {"collections": ["east", "west", "later"], "cells": str(tmp_path / "cells.yaml")}
    cells = cells_of(recipe(**data))
    homes = {"east": "east", "west": "west", "later": "east"}
    wanted = {f"{homes[name]}/patient{n}" for name in homes for n in range(4)}
    assert Counter(cells.groups.tolist()) == {group: 6 if group.startswith("east") else 3 for group in wanted}
    assert codes_of(cells) == {"normocyte": 12, "spherocyte": 12, "burr_cell": 12}
    two = recipe(collections=["east", "west"], cells=data["cells"])
    told = list[str]()
    assert len(checked_cells(two, tmp_path, told.append)) == 24
    assert told[-1] == "0 pictures left out (faults.csv), 0 leaks removed (leaks.txt)"
    # The list of a model that was trained on one picture of a patient of the east.
    sums = pixels_sum(cell(0))[:16], hashlib.sha256(b"patient0").hexdigest()[:16]
    (tmp_path / "split.csv").write_text(f"split,pixels_sha256,group_sha256\ntrain,{','.join(sums)}\n")
    known = cells.groups[trained_on(tmp_path, recipe(**data), cells)]
    assert Counter(known.tolist()) == {"east/patient0": 6}


def test_tiny_pictures_of_cells_are_read(tmp_path: Path) -> None:
    """At 0.2 um a pixel a platelet is 10 to 15 px."""
    folder = folder_of(tmp_path, Normal=5, PLT=5)
    for path in (folder / "PLT").iterdir():
        write_picture(path, cv2.resize(cell(int(path.stem) + 5), (11, 9), interpolation=cv2.INTER_AREA))
    cells = cells_of(recipe(folder=folder))
    assert codes_of(cells) == {"normocyte": 5, "platelet": 5}
    assert {len(w) for w, row in zip(cells.pixels, cells.labels.tolist(), strict=True) if row == 1} == {9}


def test_a_folder_inside_a_class_is_a_group_across_the_classes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{f"{label}/patient{n}": 3 for label in ("Normal", "HJ") for n in range(5)}, PLT=10)
    cells = cells_of(recipe(folder=folder))
    assert codes_of(cells) == {"normocyte": 15, "howell_jolly_body": 15, "platelet": 10}
    groups = Counter(cells.groups.tolist())
    assert {name: n for name, n in groups.items() if n > 1} == {f"folder/patient{n}": 6 for n in range(5)}
    assert len(groups) == 15
    for name in groups:
        assert len(set(cells.splits[cells.groups == name].tolist())) == 1
    for code in range(3):
        assert set(cells.splits[cells.labels == code].tolist()) == {"train", "val"}
    assert "Normal/patient0/00.png" in cells.origins.tolist()


def test_groups_of_a_folder_may_be_listed(tmp_path: Path) -> None:
    folder, listed = folder_of(tmp_path / "in", Normal=8, HJ=8), tmp_path / "groups.csv"
    names = [f"{label}/{row:02d}.png" for label in ("Normal", "HJ") for row in range(6)]
    listed.write_text("file,group\n" + "".join(f"{name},slide {int(name[-6:-4]) // 2}\n" for name in names))
    cells = cells_of(recipe(folder=folder, groups=listed))
    groups = Counter(cells.groups.tolist())
    assert {name: n for name, n in groups.items() if n > 1} == {f"folder/slide {n}": 4 for n in range(3)}
    for name in groups:
        assert len(set(cells.splits[cells.groups == name].tolist())) == 1
    for text, reason in (
        ("file,group\nHJ/99.png,a\n", r"groups\.csv: 1 files such as HJ/99\.png are not in"),
        ("picture,group\nHJ/00.png,a\n", r"groups\.csv: no such column \('file'\)"),
    ):
        listed.write_text(text)
        with pytest.raises(DatasetError, match=reason):
            cells_of(recipe(folder=folder, groups=listed))
    listed.unlink()
    with pytest.raises(DatasetError, match=r"groups\.csv: can't be read"):
        cells_of(recipe(folder=folder, groups=listed))


def test_a_class_without_a_usable_picture_stops_the_training(tmp_path: Path) -> None:
    """All broken, or none at all: named with the remedy, which works."""
    folder = folder_of(tmp_path, Normal=8, PLT=8, HJ=3)
    for path in (folder / "HJ").iterdir():
        path.write_bytes(b"no picture")
    (folder / "PB").mkdir()
    with pytest.raises(ConfigError, match=r"no usable picture in HJ, PB .*faults\.csv.*`classes: {HJ: '', PB: ''}`"):
        checked_cells(recipe(folder=folder), tmp_path)
    assert checked_cells(recipe(folder=folder, classes={"HJ": "", "PB": ""}), tmp_path).codes == (
        *("normocyte", "platelet"),
    )
    # What is not asked for need not be there.
    assert checked_cells(recipe(folder=folder, codes=("normocyte", "PLT")), tmp_path).codes == ("normocyte", "platelet")


def test_names_that_yaml_takes_for_something_else_are_names(tmp_path: Path) -> None:
    """Folders called 1, 2 and `no: 3`, told in a recipe as anyone would, and in a remedy that can be pasted."""
    folder = folder_of(tmp_path / "in", **{"1": 8, "2": 8, "no: 3": 1})
    (tmp_path / "data.yaml").write_text(
        '{classes: {1: spherocyte, 2: normocyte, "no: 3": PLT}, merge: {9: [normocyte]}}'
    )
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data_of(recipe(folder=folder, **data)).merge == {"9": ("normocyte",)}
    assert codes_of(cells_of(recipe(folder=folder, **data))) == {"9": 8, "spherocyte": 8, "platelet": 1}
    for name in ("2/00.png", "no: 3/00.png"):
        (folder / name).write_bytes(b"no picture")
    for path in (folder / "2").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="no usable picture in 2, no: 3") as refused:
        checked_cells(recipe(folder=folder, classes=data["classes"]), tmp_path)
    remedy = yaml.safe_load(str(refused.value).split("`")[1])
    assert remedy == {"classes": {"2": "", "no: 3": ""}}
    assert codes_of(cells_of(recipe(folder=folder, classes=data["classes"] | remedy["classes"]))) == {"spherocyte": 8}
    entry = {"format": "points", "classes": {0: "normocyte"}}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"own": entry}))
    assert load_cell_sources(tmp_path / "cells.yaml")["own"].classes == {"0": "normocyte"}


def test_cells_of_one_patient_can_not_be_divided(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{"Normal/patient1": 6, "HJ/patient1": 6})
    with pytest.raises(ConfigError, match="all 12 cells are of one group, patient1, .* add another one .a folder"):
        cells_of(recipe(folder=folder))


def test_a_code_without_a_training_cell_stops_the_training(tmp_path: Path) -> None:
    """The two pictures of a class show one cell, so that the one in training is taken out as a leak."""
    folder = folder_of(tmp_path / "in", Normal=8, PLT=8, HJ=1)
    picture = np.clip(cell(16).astype(int) + 9, 0, 255).astype(np.uint8)
    write_picture(folder / "HJ" / "again.png", picture)
    lines = list[str]()
    with pytest.raises(ConfigError, match=r"no training cell of howell_jolly_body; .*`classes: {HJ: ''}`"):
        checked_cells(recipe(folder=folder), tmp_path, lines.append)
    assert lines == ["0 pictures left out (faults.csv), 1 leaks removed (leaks.txt)"]
    merge = {"round_cell": ["Normal", "normocyte", "HJ"]}
    assert data_of(recipe(folder=folder, merge=merge)).merge == {"round_cell": ("normocyte", "howell_jolly_body")}
    assert checked_cells(recipe(folder=folder, merge=merge), tmp_path).codes == ("round_cell", "platelet")


def test_kinds_of_a_folder_leave_out_classes_of_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Normal=4, Spherocyte=4, Neutrophil=4, PLT=4)
    assert cells_of(recipe(folder=folder, kinds=("rbc",))).codes == ("normocyte", "spherocyte")
    assert cells_of(recipe(folder=folder, kinds=("wbc", "platelet"))).codes == ("neutrophil", "platelet")
    assert len(cells_of(recipe(folder=folder)).codes) == 4
    with pytest.raises(ConfigError, match=r"data\.kinds: .* has no class of nrbc"):
        cells_of(recipe(folder=folder, kinds=("nrbc",)))


def test_paint_without_a_code_for_it_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Normal=4, Spherocyte=4)
    with pytest.raises(ConfigError, match=r"data\.painted: none of howell_jolly_body, .* is among the codes"):
        cells_of(recipe(folder=folder, painted=5))


def test_codes_are_known_by_their_names_and_checked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", Normal=5, PB=5, HJ=5)
    cells = checked_cells(recipe(folder=folder, codes=("HJ", "basophilic stippling", "howell_jolly_body")), tmp_path)
    assert cells.codes == ("howell_jolly_body", "basophilic_stippling")
    with pytest.raises(ConfigError, match=r"data\.codes: blah, blub unknown; known: normocyte"):
        cells_of(recipe(folder=folder, codes=("normocyte", "blah", "blub")))
    with pytest.raises(ConfigError, match=r"no training cell of burr_cell; add some, or list the others under"):
        checked_cells(recipe(folder=folder, codes=("normocyte", "burr_cell")), tmp_path)


@pytest.fixture
def collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two collections of class folders in a file of their own, the `data` that asks for both."""
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path))
    folder_of(tmp_path / "east", a=6, b=6)
    folder_of(tmp_path / "west", a=5, c=5)
    shapes = {
        "east": {"a": "normocyte", "b": "spherocyte"},
        "west": {"a": "normocyte", "c": ["ovalocyte", "burr_cell"]},
    }
    entries = {name: {"format": "folders", "classes": shapes[name], "val_share": 0.3} for name in shapes}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(entries))
    return {"collections": ["east", "west"], "cells": str(tmp_path / "cells.yaml")}


def test_an_entry_without_the_scale_is_named_with_its_file(collections: dict[str, Any]) -> None:
    path = Path(collections["cells"])
    entries = yaml.safe_load(path.read_text())
    entries["west"]["um_per_px"] = {"640x480": 0.2}
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ConfigError, match=r"cells\.yaml: west: um_per_px: no entry for pictures of 80x80 px.*add one"):
        cells_of(recipe(**collections))


def test_classes_of_a_collection_go_by_any_name_of_a_code(collections: dict[str, Any]) -> None:
    path = Path(collections["cells"])
    entries = yaml.safe_load(path.read_text())
    entries["west"]["classes"] = {"a": "Normal", "c": ["Ovalocyte", "burr cells", "echinocyte"]}
    path.write_text(yaml.safe_dump(entries))
    assert codes_of(cells_of(recipe(**collections)))["ovalocyte|burr_cell"] == 5
    for meant, near in (("ovalocite", "ovalocyte may be meant"), (["normocyte", "xyzzy"], "known: normocyte, macro")):
        entries["west"]["classes"]["c"] = meant
        path.write_text(yaml.safe_dump(entries))
        with pytest.raises(ConfigError, match=rf"cells\.yaml: west: classes\.c: \w+ is no code; {near}"):
            cells_of(recipe(**collections))


def test_what_the_reading_leaves_out_is_told(
    collections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = naming_cells.read_cells

    def telling(*args: Any, report: Callable[[str], None]) -> CellSet:
        report("east: 3 fields left out")
        return read(*args)

    monkeypatch.setattr(naming_cells, "read_cells", telling)
    told = list[str]()
    checked_cells(recipe(**collections), tmp_path, told.append)
    assert told[0] == "east: 3 fields left out"


def test_boxes_without_a_code_are_told_wherever_cells_are_read(tmp_path: Path) -> None:
    """In a training, in cross-validation, and where a classifier is judged or mended."""
    folder = tmp_path / "mine"
    for directory in (folder / "images", folder / "labels"):
        directory.mkdir(parents=True)
    for stem in ("a", "b"):
        write_picture(folder / "images" / f"{stem}.png", np.full((200, 200, 3), 214, np.uint8))
        (folder / "labels" / f"{stem}.txt").write_text("0 .5 .5 .2 .2\n1 .2 .2 .2 .2\n1 .8 .8 .2 .2\n")
    for name, text in (("classes", "Normal\nDust\n"), ("train", "a\n"), ("val", "b\n")):
        (folder / f"{name}.txt").write_text(text)
    fields = {"format": "yolo", "folder": str(folder), "classes": {"Normal": "rbc", "Dust": "rbc"}}
    entry = {**fields, "labelled": ["rbc"], "red_cell_px": {"any": 40}}
    (tmp_path / "fields.yaml").write_text(yaml.safe_dump({"mine": entry}))
    cells = {"format": "boxes", "datasets": str(tmp_path / "fields.yaml"), "fields": "mine"}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"own": {**cells, "classes": {"Normal": "normocyte"}}}))
    asked = recipe(collections=["own"], cells=str(tmp_path / "cells.yaml"))
    for read in (
        lambda told: cells_of(asked, report=told),
        lambda told: usable_cells(asked, tmp_path, told),
        lambda told: checked_cells(asked, tmp_path, told),
    ):
        lines = list[str]()
        read(lines.append)
        assert lines[0] == "own: 4 boxes left out, of classes without a code (4 Dust)"
        assert sum("boxes" in line for line in lines) == 1


def test_codes_are_those_that_some_cell_may_have(collections: dict[str, Any]) -> None:
    """Of the codes of a kind, those without any cell are left out; asked for by name they are kept."""
    cells = cells_of(recipe(**collections))
    assert cells.codes == ("normocyte", "spherocyte", "ovalocyte", "burr_cell")
    assert codes_of(cells) == {"normocyte": 11, "spherocyte": 6, "ovalocyte|burr_cell": 5}
    assert cells_of(recipe(**collections, leave_out=("west",))).codes == ("normocyte", "spherocyte")
    assert cells_of(recipe(**collections, codes=("normocyte", "macrocyte"))).codes == ("normocyte", "macrocyte")
    named = cells_of(recipe(**collections, codes=("spherocyte", "ovalocyte", "burr_cell")))
    assert named.codes == ("spherocyte", "ovalocyte", "burr_cell")
    assert codes_of(named) == {"spherocyte": 6, "ovalocyte|burr_cell": 5}
    with pytest.raises(DatasetError, match="no labelled cell"):
        cells_of(recipe(**collections, kinds=("wbc",)))


def test_what_is_left_out_of_the_training_is_there_to_be_judged_on(collections: dict[str, Any]) -> None:
    asked = recipe(**collections, leave_out=("west",))
    assert set(cells_of(asked).sources.tolist()) == {"east"}
    whole = cells_of(asked, whole=True)
    assert Counter(whole.sources.tolist()) == {"east": 12, "west": 10}
    # The cells that both have stay on their side.
    some = cells_of(asked)
    side = dict(zip(whole.origins.tolist(), whole.splits.tolist(), strict=True))
    east = {origin: side[origin] for origin in some.origins.tolist() if origin.startswith("b")}
    assert east == {o: s for o, s in zip(some.origins.tolist(), some.splits.tolist(), strict=True) if o in east}
    with pytest.raises(ConfigError, match="leave_out: no cells of wst; there are those of east, west"):
        cells_of(recipe(**collections, leave_out=("wst",)))
    with pytest.raises(ConfigError, match="leave_out: no cell is left to train on; leave in some of east, west"):
        cells_of(recipe(**collections, leave_out=("west", "east")))


def test_merged_codes_are_one(collections: dict[str, Any]) -> None:
    merge = {"round_cell": ["normocyte", "spherocyte"]}
    codes = ("normocyte", "spherocyte", "burr_cell", "ovalocyte")
    cells = cells_of(recipe(**collections, codes=codes, merge=merge))
    assert codes_of(cells) == {"round_cell": 17, "burr_cell|ovalocyte": 5}
    with pytest.raises(ConfigError, match="macrocyte"):
        cells_of(recipe(**collections, merge={"new": ["normocyte", "macrocyte"]}))


@pytest.mark.parametrize(
    ("codes", "kinds"),
    [
        (("normocyte", "burr_cell", "platelet"), ("rbc",)),
        (("neutrophil", "erythroblast", "platelet"), ("wbc",)),
        (("erythroblast", "platelet"), ("wbc",)),
        (("burr_cell", "lymphocyte"), ("rbc", "wbc")),
        (("platelet",), ("platelet",)),
        (("round_cell", "monocyte"), ("rbc", "wbc")),
    ],
)
def test_a_classifier_is_asked_about_the_cells_that_its_codes_are_of(
    codes: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    merge = {"round_cell": ("normocyte", "spherocyte")}
    assert asked_kinds(data_of(recipe(folder="cells", merge=merge)), codes) == kinds
    for told in ({"kinds": ("nrbc",)}, {"asked_of": ("nrbc",), "kinds": ("rbc",)}):
        assert asked_kinds(data_of(recipe(folder="cells", merge=merge, **told)), codes) == ("nrbc",)


@pytest.mark.parametrize(
    ("merge", "reason"),
    [
        ({"pale": ["normocyte", "lymphocyte"]}, "of different kinds"),
        ({"PLT": ["normocyte", "spherocyte"]}, "'PLT' stands for both"),
        ({"unclassified": ["normocyte", "spherocyte"]}, "no code but the absence of one"),
    ],
)
def test_what_can_not_be_merged_is_known_before_the_training(
    tmp_path: Path, merge: dict[str, list[str]], reason: str
) -> None:
    folder = folder_of(tmp_path, Normal=4, Spherocyte=4, Lymphocyte=4)
    with pytest.raises(ConfigError, match=reason):
        cells_of(recipe(folder=folder, merge=merge))


def test_painted_cells_come_on_top(tmp_path: Path) -> None:
    """Codes that nobody has cells of are there once they are painted."""
    folder = folder_of(tmp_path, round=1)
    (folder / "round" / "00.png").unlink()
    away = np.hypot(*(np.indices((120, 120)) + 0.5 - 60)) * 0.1
    for row in range(10):
        rng = np.random.default_rng(row)
        disc = np.clip((3.4 + 0.05 * row - away) / 0.3 + 0.5, 0, 1) * (1 - 0.5 * np.exp(-((away / 1.5) ** 2)))
        picture = 215 - disc[..., None] * (25, 85, 70) + rng.normal(0, 2, (120, 120, 3))
        write_picture(folder / "round" / f"{row:02d}.png", np.clip(picture, 0, 255).astype(np.uint8))
    data = {"collections": ["drawn"], "cells": str(tmp_path / "cells.yaml"), "painted": 6}
    entry = {"format": "folders", "folder": str(folder), "classes": {"round": "normocyte"}, "val_share": 0.2}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"drawn": {**entry, "um_per_px": {"any": 0.1}}}))
    cells = cells_of(recipe(**data))
    assert codes_of(cells)["howell_jolly_body"] == 7
    assert set(cells.codes) == {
        *("normocyte", "reticulocyte", "basophilic_stippling", "pappenheimer_bodies", "howell_jolly_body")
    }
    assert set(cells.sources.tolist()) == {"drawn", "painted:drawn"}
    assert cells_of(recipe(**{**data, "painted": 0})).codes == ("normocyte",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({}, "either collections or a folder"),
        ({"folder": "x", "collections": ["y"]}, "either collections or a folder"),
        ({"folder": "x", "kinds": ["red"]}, r"data\.kinds"),
        ({"folder": "x", "val_share": 1.0}, r"data\.val_share"),
        ({"folder": "x", "painted": -1}, r"data\.painted"),
        ({"collections": ["raabin"], "groups": "y.csv"}, "groups are those of the pictures of a folder"),
        (
            {"collections": ["raabin"], "classes": {"a": ""}, "val_share": 0.3},
            "classes and val_share: of a folder; coll",
        ),
        ({"folder": "x", "cells": "y.yaml"}, "cells: of collections, not of a folder"),
        ({"folder": "x", "colour": 1}, r"data\.colour"),
        ({"foldr": "x", "collections": ["y"]}, r"data\.foldr: unknown key; folder may be meant"),
        ({"collections": ["atlantis"]}, r"data\.collections: atlantis unknown; known: chula_rbc12"),
    ],
)
def test_wrong_data_name_the_key(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cells_of(recipe(**data))


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="absent"):
        cells_of(recipe(folder=tmp_path / "absent"))


@pytest.mark.parametrize("name", ["thesis", "red-cells", "white-cells", "compare"])
def test_the_shipped_recipes_ask_for_what_there_is(name: str) -> None:
    path = shipped("configs") / "train" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    asked = (
        ClassifierRecipe.model_validate(content["base"]) if "base" in content else read_model(ClassifierRecipe, path)
    )
    data = data_of(asked)
    assert set(data.collections) <= load_cell_sources().keys()
    assert data.folder or data.collections
