"""Settings files: found beside the package or the checkout, read as YAML, checked by pydantic."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
import yaml
from pydantic import Field

from smearcount.errors import ConfigError

__all__ = ["OverlayFormat", "Settings", "Strict", "faults_of", "load_yaml", "read_entries", "read_model", "shipped"]
__all__ += ["DeviceName", "PrecisionName", "RuntimeName", "validated", "yaml_line"]

OverlayFormat = Literal["jpg", "png", "tif"]
"""What an annotated picture is written as, by the ending of its name: small, or without any loss."""

RuntimeName = Literal["auto", "openvino", "onnx", "torch"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "f32", "bf16"]
"""What a user can ask of the networks."""

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Strict(pydantic.BaseModel):
    """A settings record: frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Settings(Strict):
    """Every setting of an analysis; a YAML file of these keys is what `--config` takes.

    Attributes:
        detector: id of a shipped model, or a folder.
        classifiers: ids or folders of the models that name cells; empty for kinds only.
        experts: classifiers of a few codes, asked where the gap between these is below the number; see `mend experts`.
        runtime: inference library; `auto` is OpenVINO on the CPU and PyTorch on CUDA.
        device: `auto` takes CUDA where PyTorch sees a card.
        precision: `auto` is the one on the card.
        threads: CPU threads, 0 for the library's choice.
        batch_size: windows that PyTorch takes in one call, of several pictures too; 0 for 4 on CUDA, 1 on the CPU.
        tile: windows of a large picture that are read together; without influence on the counts.
        um_per_px: scale of every picture, instead of metadata or an estimate.
        min_score: one detection threshold for all kinds instead of the card's.
        min_label_score: one threshold for all classifiers instead of the cards'; below it a cell is unclassified.
        edge_rule: `corner`, an unbiased counting frame, or `all`.
        max_megapixels: larger pictures are refused, unless they are read by regions.
        page: which page of multi-page TIFFs, from 1, instead of the first one.
        level: which resolution of a pyramid, from 0, instead of the finest.
        channel: which channel of a multi-channel picture, from 1, shown grey.
        region: GeoJSON file of where to count, in pixels, or a folder with one for each picture.
        countable: `auto` leaves out what can't be counted in pictures of 0.25 mm2 and more; `all` counts everywhere.
        taxonomy: a taxonomy file instead of the shipped one.
    """

    detector: str = "cells-yolo11-p4"
    classifiers: tuple[str, ...] = ("red-cells", "white-cells")
    experts: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    runtime: RuntimeName = "auto"
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    threads: int = Field(default=0, ge=0)
    batch_size: int = Field(default=0, ge=0, le=64)
    tile: int = Field(default=1, ge=1)
    um_per_px: float | None = Field(default=None, ge=0.02, le=2)
    min_score: float | None = Field(default=None, gt=0, lt=1)
    min_label_score: float | None = Field(default=None, ge=0, le=1)
    edge_rule: Literal["corner", "all"] = "corner"
    max_megapixels: float = Field(default=300, gt=0)
    page: int | None = Field(default=None, ge=1)
    level: int | None = Field(default=None, ge=0)
    channel: int | None = Field(default=None, ge=1)
    region: Path | None = None
    countable: Literal["auto", "all"] = "auto"
    taxonomy: Path | None = None

    @pydantic.field_validator("classifiers", mode="before")
    @classmethod
    def _from_a_flag(cls, value: Any) -> Any:
        """Names separated by commas, as on the command line; `none` for none."""
        if not isinstance(value, str):
            return value
        return () if value.strip() == "none" else tuple(filter(None, map(str.strip, value.split(","))))

    @pydantic.field_validator("experts", mode="before")
    @classmethod
    def _pairs_from_a_flag(cls, value: Any) -> Any:
        """`model=gap` separated by commas, as on the command line."""
        if not isinstance(value, str):
            return value
        pairs = [word.strip().rpartition("=") for word in value.split(",") if word.strip()]
        if wrong := [gap for model, _, gap in pairs if not model]:
            raise ValueError(f"expected MODEL=GAP, got {wrong[0]!r}")
        return {model: gap for model, _, gap in pairs}


def shipped(name: str) -> Path:
    """The folder `weights` or `configs`: inside an installed wheel, else at the top of the checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


_Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
"""The one in C takes a tenth of the time."""

DEEPEST = 100
"""Collections within each other: thousands would end the process, since loaders call themselves for each."""


def load_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: the file is missing or no YAML, a value is none of its type, a key is there twice, or more than
            `DEEPEST` collections lie within each other.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _refuse_double_keys(node)
            return None if node is None else loader.construct_document(node)
        except (ValueError, KeyError) as error:  # such as a date in a month without that day
            raise yaml.YAMLError(f"a value is none of its type: {error}") from error
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error


def _refuse_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"more than {DEEPEST} collections within each other")


def _refuse_double_keys(root: yaml.Node | None) -> None:
    """Of a key that stands twice in one mapping YAML would take the last without a word."""
    nodes, seen = [root], set[int]()
    for node in nodes:  # which grow meanwhile
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias is the node that it stands for
        if isinstance(node, yaml.MappingNode):
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [name for (_, name), n in Counter(keys).items() if n > 1]:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {twice[0]!r} is there twice, in the mapping of line {line}")
            nodes += [each for pair in node.value for each in pair]
        else:
            nodes += node.value


def yaml_line(key: str, entries: Mapping[str, object]) -> str:
    """Entries below a key as one line of a YAML file, however long."""
    flow = yaml.safe_dump(
        dict(entries), default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize
    )
    return f"{key}: {flow.strip()}"


def read_model(kind: type[Model], path: Path) -> Model:
    """A YAML file as a checked settings record; an empty one has every default.

    Raises:
        ConfigError: a key is unknown or missing, or a value is out of range; names the file and each key.
    """
    return validated(kind, load_yaml(path), path)


def validated(kind: type[Model], content: Any, path: Path) -> Model:
    """The content of a YAML file as a checked settings record.

    Raises:
        ConfigError: a key is unknown or missing, or a value is out of range; names the file and each key.
    """
    try:
        return kind.model_validate({} if content is None else content)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {faults_of(error, kind)}") from error


def read_entries(kind: type[Model], path: Path) -> dict[str, Model]:
    """The entries of a YAML file, such as one of collections, each as a checked record by its name.

    Raises:
        ConfigError: the file is no such mapping, or an entry is wrong; names the file, the entry and each key.
    """
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected entries by name")
    entries = {}
    for name, entry in content.items():
        try:
            entries[str(name)] = kind.model_validate(entry)
        except pydantic.ValidationError as error:
            raise ConfigError(f"{path}: {faults_of(error, kind, str(name))}") from error
    return entries


def faults_of(error: pydantic.ValidationError, kind: type[pydantic.BaseModel], under: str = "file") -> str:
    """What is wrong with the keys of a record, and which key may have been meant, in one line.

    Args:
        error: of its validation.
        kind: of the record.
        under: what the record as a whole is called.
    """
    found = error.errors()
    # A list without an entry that is right is said to be too short as well.
    inner = {each["loc"][:depth] for each in found for depth in range(len(each["loc"]))}
    told = [each for each in found if each["type"] != "too_short" or each["loc"] not in inner]
    return "; ".join(_fault(each, kind, under) for each in told)


def _fault(error: Any, kind: type[pydantic.BaseModel], under: str) -> str:
    place = error["loc"] if under == "file" else (under, *error["loc"])
    key = ".".join(map(str, place)) or under
    record = _record_of(kind, error["loc"][:-1])
    if error["type"] != "extra_forbidden" or record is None:
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(error["loc"][-1]), record.model_fields, 1)
    return f"{key}: unknown key; {f'{near[0]} may be meant' if near else 'known: ' + ', '.join(record.model_fields)}"


def _record_of(kind: type[pydantic.BaseModel], place: tuple[int | str, ...]) -> type[pydantic.BaseModel] | None:
    """The kind of record at a place in another one; None where it is one of several."""
    for part in place:
        if isinstance(part, str):
            field = kind.model_fields.get(part)
            kinds = (field.annotation, *get_args(field.annotation)) if field else ()
            records = [each for each in kinds if isinstance(each, type) and issubclass(each, pydantic.BaseModel)]
            if len(records) != 1:
                return None
            kind = records[0]
    return kind
