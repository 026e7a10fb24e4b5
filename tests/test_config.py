"""Settings: an unknown key or a value out of range is an error that names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from pydantic import Field

from smearcount import config
from smearcount.cards import Card
from smearcount.config import Settings, Strict, load_yaml, read_model, shipped
from smearcount.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "lab.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_settings_file_changes_what_it_names_only(tmp_path: Path) -> None:
    settings = read_model(Settings, write(tmp_path, "um_per_px: 0.1\nedge_rule: all\n"))
    assert settings == Settings(um_per_px=0.1, edge_rule="all")
    assert settings.runtime == Settings().runtime
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.threads = 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("um_per_pixel: 0.1", r"lab\.yaml: um_per_pixel: "),
        ("um_per_px: 0.01", r"lab\.yaml: um_per_px: "),
        ("um_per_px: 2.5", "um_per_px"),
        ("um_per_px: .nan", "um_per_px"),
        ("min_score: 0", "min_score"),
        ("min_score: 1", "min_score"),
        ("threads: -1", "threads"),
        ("max_megapixels: 0", "max_megapixels"),
        ("page: 0", "page"),
        ("edge_rule: left", "edge_rule"),
        ("runtime: tensorrt", "runtime"),
        ("device: tpu", "device"),
        ("precision: int8", "precision"),
        ("- a\n- b", r"lab\.yaml: file: "),
        ("a: [1", "not valid YAML"),
        ("um_per_px: 0.1\ntile: 2\num_per_px: 0.2", r"lab\.yaml: .*key 'um_per_px' is there twice"),
        ("tile: 2\nexperts:\n  pair: 0.1\n  pair: 0.2", "key 'pair' is there twice, in the mapping of line 3"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("[" * 101 + "]" * 101, "more than 100 collections within each other"),
        ("- {x: 1, x: 2}\n- {y: 1, y: 2}", "key 'x' is there twice, in the mapping of line 1"),
        ("um_per_px: 2001-02-30", "a value is none of its type: day is out of range"),
        ("tile: !!int two", "a value is none of its type"),
        ("tile: !!bool two", "a value is none of its type"),
        ("[" * 200_000, "more than 100 collections within each other"),
        ("- " * 200_000, "more than 100 collections within each other"),
    ],
)
@pytest.mark.parametrize("loader", [yaml.SafeLoader, config._Loader])
def test_a_wrong_file_is_refused_with_its_name_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: type, text: str, words: str
) -> None:
    monkeypatch.setattr(config, "_Loader", loader)
    with pytest.raises(ConfigError, match=words):
        read_model(Settings, write(tmp_path, text))


def test_a_key_that_is_merged_in_may_be_replaced(tmp_path: Path) -> None:
    text = "one: {two: &two {tile: 2, threads: 1}}\nthree: &three {<<: *two, tile: 4}\nfour: {<<: *three, tile: 5}\n"
    content = load_yaml(write(tmp_path, text))
    assert content["three"] == {"tile": 4, "threads": 1}
    assert content["four"] == {"tile": 5, "threads": 1}


@pytest.mark.parametrize("loader", [yaml.SafeLoader, config._Loader])
def test_a_hundred_collections_within_each_other_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: type
) -> None:
    monkeypatch.setattr(config, "_Loader", loader)
    content = load_yaml(write(tmp_path, "[" * config.DEEPEST + "]" * config.DEEPEST))
    for _ in range(config.DEEPEST - 1):
        (content,) = content
    assert content == []


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_both_loaders_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((*shipped("configs").rglob("*.yaml"), *shipped("weights").rglob("*.yaml")))
    assert len(paths) > 20
    in_c = [load_yaml(path) for path in paths]
    monkeypatch.setattr(config, "_Loader", yaml.SafeLoader)
    assert [load_yaml(path) for path in paths] == in_c


def test_an_unknown_key_is_told_with_the_one_that_may_be_meant(tmp_path: Path) -> None:
    for text, words in (
        ("um_per_pxx: 0.1", "um_per_pxx: unknown key; um_per_px may be meant"),
        ("zzz: 1", "known: .*level"),
    ):
        with pytest.raises(ConfigError, match=rf"lab\.yaml: .*{words}"):
            read_model(Settings, write(tmp_path, text))


class Step(Strict):
    """A record in a list of another one."""

    name: str
    batch: int = 1


class Steps(Strict):
    """A record of records."""

    steps: tuple[Step, ...] = Field(min_length=1)
    last: Step | None = None


def test_a_key_inside_of_others_is_told_in_the_same_way(tmp_path: Path) -> None:
    """And a list whose entries are all wrong is not said to be empty as well."""
    for text, words in (
        ("steps: [{name: a, bach: 2}]", r"steps\.0\.bach: unknown key; batch may be meant$"),
        ("steps: [{name: a}]\nlast: {name: b, zzz: 2}", r"last\.zzz: unknown key; known: name, batch$"),
        ("steps: []", r"steps: .* at least 1 item"),
    ):
        with pytest.raises(ConfigError, match=rf"lab\.yaml: {words}"):
            read_model(Steps, write(tmp_path, text))


def test_an_expert_needs_a_gap_from_0_to_1(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experts"):
        read_model(Settings, write(tmp_path, "experts: {a: 5}"))
    assert Settings(classifiers="").classifiers == Settings(classifiers="none").classifiers == ()


def test_an_empty_file_is_every_default(tmp_path: Path) -> None:
    assert read_model(Settings, write(tmp_path, "# nothing yet\n")) == Settings()
    with pytest.raises(ConfigError, match=r"lab\.yaml: id: "):
        read_model(Card, write(tmp_path, ""))


def test_every_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads.*colour|colour.*threads"):
        read_model(Settings, write(tmp_path, "threads: -1\ncolour: red\n"))


@pytest.mark.parametrize("value", [{"um_per_px": 0}, {"min_score": 1.5}, {"edge_rule": "none"}, {"colour": 1}])
def test_a_script_is_held_to_the_same_ranges(value: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(value))):
        Settings(**value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: .*check the path"):
        load_yaml(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="check the path"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: M\xfcller")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not valid YAML"):
        load_yaml(tmp_path / "latin.yaml")


def test_configs_and_weights_are_found() -> None:
    assert (shipped("configs") / "taxonomy.yaml").is_file()
    assert shipped("weights").name == "weights"
