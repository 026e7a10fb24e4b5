"""The shipped codes are complete and unambiguous; a laboratory's own file is checked in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from smearcount.config import shipped
from smearcount.errors import ConfigError
from smearcount.records import KINDS, UNCLASSIFIED
from smearcount.taxonomy import Taxonomy, load_taxonomy

# Scripts depend on the codes and on their order.
CODES = {
    "rbc": "normocyte macrocyte microcyte hypochromic_cell spherocyte target_cell stomatocyte ovalocyte elliptocyte "
    "teardrop_cell burr_cell schistocyte sickle_cell reticulocyte basophilic_stippling pappenheimer_bodies "
    "howell_jolly_body",
    "wbc": "neutrophil eosinophil basophil lymphocyte monocyte immature_granulocyte",
    "nrbc": "erythroblast",
    "platelet": "platelet",
}


def test_the_codes_are_those_of_the_contract(taxonomy: Taxonomy) -> None:
    assert {kind: " ".join(taxonomy.codes_of(kind)) for kind in KINDS} == CODES
    assert list(taxonomy.codes) == " ".join(CODES.values()).split()
    assert tuple(taxonomy.kinds) == KINDS
    assert UNCLASSIFIED not in taxonomy.codes


def test_every_code_has_a_kind_a_name_and_a_colour_of_its_own(taxonomy: Taxonomy) -> None:
    assert set(taxonomy.kind_of.values()) == set(KINDS)
    names = [entry.name for entry in taxonomy.codes.values()]
    assert len(set(names)) == len(names)
    colours = [entry.colour for entry in taxonomy.codes.values()]
    assert len(set(colours)) == len(colours)
    kinds = [entry.colour for entry in taxonomy.kinds.values()]
    assert len(set(kinds)) == len(kinds)


def own_file(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load((shipped("configs") / "taxonomy.yaml").read_text())
    for key, value in changes.items():
        content["codes"][key] = value
    path = folder / "codes.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def code(**changes: Any) -> dict[str, Any]:
    return {"kind": "rbc", "name": "New", "colour": "#010203", "synonyms": [], **changes}


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    codes = load_taxonomy(own_file(tmp_path, knizocyte=code(synonyms=["pinched cell"])))
    assert codes.codes_of("rbc")[-1] == "knizocyte"
    assert codes.kind_of["knizocyte"] == "rbc"


@pytest.mark.parametrize("synonym", ["Echinocyte", "platelet", "MONOCYTE", "burr-cell", "Howell Jolly body"])
def test_a_word_that_stands_for_two_codes_is_refused(tmp_path: Path, synonym: str) -> None:
    with pytest.raises(ConfigError, match=rf"codes.yaml.*{synonym}.*stands for both"):
        load_taxonomy(own_file(tmp_path, knizocyte=code(synonyms=[synonym])))


def test_a_display_name_stands_for_one_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'Elliptocyte' stands for both elliptocyte and knizocyte"):
        load_taxonomy(own_file(tmp_path, knizocyte=code(name="Elliptocyte")))


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    for name in ("Knizocyte", "Pinched cell"):
        assert load_taxonomy(own_file(tmp_path, knizocyte=code(name=name))).codes["knizocyte"].name == name


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (code(kind="yeast"), "codes.knizocyte.kind"),
        (code(colour="red"), "codes.knizocyte.colour"),
        (code(color="#010203"), "codes.knizocyte.color"),
        ({"kind": "rbc", "colour": "#010203"}, "codes.knizocyte.name"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_taxonomy(own_file(tmp_path, knizocyte=entry))


def test_what_the_counts_rely_on_must_be_there(tmp_path: Path) -> None:
    path = own_file(tmp_path)
    content = yaml.safe_load(path.read_text())
    for part, key, words in (("kinds", "nrbc", "kinds.*nrbc"), ("codes", "platelet", "platelet")):
        short = {**content, part: {name: entry for name, entry in content[part].items() if name != key}}
        path = tmp_path / f"without-{key}.yaml"
        path.write_text(yaml.safe_dump(short, sort_keys=False))
        with pytest.raises(ConfigError, match=words):
            load_taxonomy(path)
    with pytest.raises(ConfigError, match="unclassified"):
        load_taxonomy(own_file(tmp_path, unclassified=code()))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_taxonomy(tmp_path / "nowhere.yaml")


def test_merged_codes_become_codes_of_their_kind(tmp_path: Path) -> None:
    shipped_one = load_taxonomy()
    merged = shipped_one.merged({"oval_or_long": ("ovalocyte", "elliptocyte")})
    entry = merged.codes["oval_or_long"]
    assert (entry.kind, entry.name, entry.colour) == ("rbc", "Oval or long", shipped_one.codes["ovalocyte"].colour)
    assert list(merged.codes)[:-1] == list(shipped_one.codes)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(merged.model_dump(mode="json"), sort_keys=False))
    assert load_taxonomy(path) == merged
    with pytest.raises(ConfigError, match="mixed: neutrophil, normocyte are of different kinds"):
        shipped_one.merged({"mixed": ("neutrophil", "normocyte")})


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(
            ("ELLIPTOCYTES", "elliptocyte"),
            ("  target - Cell ", "target_cell"),
            ("Howell/Jolly body", "howell_jolly_body"),
        ),
        *(
            ("Esfer\u00f3citos", "spherocyte"),
            ("Esfero\u0301cito", "spherocyte"),
            ("blob", None),
            ("", None),
            ("s", None),
        ),
    ],
)
def test_a_code_goes_by_its_names_however_they_are_written(taxonomy: Taxonomy, name: str, code: str | None) -> None:
    assert taxonomy.code_of(name) == code
