"""Model cards: what a model is, what it was trained on, what it can't do, and the checksum of each of its files.

weights/<model-id>/card.yaml, README.md, probe.npz, model.safetensors, architecture.yaml, model.xml, model.bin
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from smearcount.config import Strict, load_yaml, shipped, validated
from smearcount.errors import ConfigError, ModelError
from smearcount.records import KINDS, KindName

__all__ = [
    "Card",
    "ClassifierCard",
    "DetectorCard",
    "FileEntry",
    "Metric",
    "Model",
    "TrainingData",
    "find_model",
    "list_models",
]


class FileEntry(Strict):
    """One file of a model: which runtime reads it, its checksum and size in bytes."""

    runtime: Literal["openvino", "onnx", "torch", "probe"]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)


class TrainingData(Strict):
    """A collection the model was trained on."""

    name: str
    licence: str
    pictures: int = Field(ge=0)
    split: str
    note: str = ""


class Metric(Strict):
    """A measured figure: value, 95 % interval over pictures, and what it was measured on."""

    name: str
    data: str
    n: int = Field(ge=0)
    value: float
    low: float | None = None
    high: float | None = None


class Card(Strict):
    """What the cards of all models have."""

    id: str = Field(pattern="^[a-z0-9][a-z0-9-]*$")
    task: Literal["detector", "classifier"]
    description: str
    codes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: Literal["f32", "bf16", "int8"] = "f32"
    probe_tolerance: float = Field(gt=0)
    licence: str
    intended_use: str
    limits: tuple[str, ...]
    training_data: tuple[TrainingData, ...]
    metrics: tuple[Metric, ...]
    git_commit: str
    files: dict[str, FileEntry]

    def checksums(self) -> dict[str, str]:
        """Checksum of every file, by `model-id/file`."""
        return {f"{self.id}/{name}": entry.sha256 for name, entry in self.files.items()}


class DetectorCard(Card):
    """The card of a network that finds cells.

    Attributes:
        um_per_px: canonical scale that pictures are resampled to.
        window_px: side of the network window.
        stride_px: its sides are padded to multiples of this.
        largest_cell_um: sets the margin of a window.
        probe_score_tolerance: largest difference of a score of the probe; `probe_tolerance` is that of a box in pixels,
            where a score is at least `PROBE_SCORE`.
        min_score: threshold of each kind.
        min_score_from: what the thresholds were fitted on.
        nms_iou: overlap above which two boxes of one kind are one cell.
        cross_kind_iou: the same for boxes of two kinds.
    """

    task: Literal["detector"] = "detector"
    um_per_px: float = Field(gt=0.01, lt=5)
    window_px: int = Field(ge=64)
    stride_px: int = Field(ge=1)
    largest_cell_um: float = Field(gt=0)
    probe_score_tolerance: float = Field(default=0.01, gt=0, lt=0.5)
    min_score: dict[str, float]
    min_score_from: str = "unknown"
    nms_iou: float = Field(gt=0, lt=1)
    cross_kind_iou: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _has_thresholds(self) -> DetectorCard:
        unknown = [code for code in self.codes if code not in KINDS]
        if unknown:
            raise ValueError(f"codes: a detector finds {', '.join(KINDS)}, not {', '.join(unknown)}")
        missing = [code for code in self.codes if code not in self.min_score]
        if missing:
            raise ValueError(f"min_score: no threshold for {', '.join(missing)}")
        return self


class ClassifierCard(Card):
    """The card of a network that names cells.

    Attributes:
        kinds: kinds of found cells it is asked about.
        patch_um: physical side of the window around a cell.
        picture_um: physical side that a whole picture of one cell stands for; `patch_um` without one.
        input_px: side of the network input.
        temperature: divides the logits before the softmax (Guo et al. 2017, arXiv 1706.04599).
        second_look: a cell whose best probability is lower is looked at in four quarter turns, of which the mean is
            taken; 0 never.
        min_label_score: a cell whose best probability is lower is `unclassified`.
        min_move_score: the same for a name that moves a cell to another kind than it was found as.
        largest_um: a cell whose box is larger than this, in the mean of its sides, can't have the code.
        painted: codes learned from painted cells only, without any test on real ones.
        embedding: length of the feature vector, the second output of the network.
        abstention: rows of threshold, share abstained and accuracy of the rest, on validation cells.
    """

    task: Literal["classifier"] = "classifier"
    kinds: tuple[KindName, ...]
    patch_um: float = Field(gt=1, lt=200)
    picture_um: float | None = Field(default=None, gt=1, lt=200)
    input_px: int = Field(ge=16, le=1024)
    temperature: float = Field(gt=0)
    second_look: float = Field(default=0.0, ge=0, le=1)
    min_label_score: float = Field(ge=0, lt=1)
    min_move_score: float = Field(default=0.0, ge=0, lt=1)
    largest_um: dict[str, float] = {}
    painted: tuple[str, ...] = ()
    embedding: int = Field(ge=1)
    abstention: tuple[tuple[float, float, float], ...] = ()

    @model_validator(mode="after")
    def _codes_are_distinct(self) -> ClassifierCard:
        if len(set(self.codes)) != len(self.codes) or len(self.codes) < 2:
            raise ValueError(f"codes: expected two or more, each once, got {list(self.codes)}")
        for name, listed in (("painted", self.painted), ("largest_um", self.largest_um)):
            if unknown := [code for code in listed if code not in self.codes]:
                raise ValueError(f"{name}: {', '.join(unknown)} are not among the codes")
        return self


_CARDS: dict[Any, type[Card]] = {"detector": DetectorCard, "classifier": ClassifierCard}


class Model:
    """A model folder whose card has been checked; files are checked when they are read.

    Args:
        folder: a folder with `card.yaml`.

    Raises:
        ModelError: there is no card.
        ConfigError: the card is malformed.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "card.yaml").is_file():
            raise ModelError(
                f"{folder}: no card.yaml; give the id of a shipped model, or a folder that a training or `export` wrote"
            )
        self.folder = folder
        content = load_yaml(folder / "card.yaml")
        task = content.get("task") if isinstance(content, dict) else None
        if task not in _CARDS:
            raise ConfigError(f"{folder / 'card.yaml'}: task: expected detector or classifier, got {task!r}")
        self.card: Card = validated(_CARDS[task], content, folder / "card.yaml")

    @property
    def detector_card(self) -> DetectorCard:
        """The card of a detector.

        Raises:
            ModelError: the model is something else.
        """
        if not isinstance(self.card, DetectorCard):
            raise ModelError(f"{self.card.id}: a {self.card.task}, where a detector is needed; see `models list`")
        return self.card

    @property
    def classifier_card(self) -> ClassifierCard:
        """The card of a classifier.

        Raises:
            ModelError: the model is something else.
        """
        if not isinstance(self.card, ClassifierCard):
            raise ModelError(f"{self.card.id}: a {self.card.task}, where a classifier is needed; see `models list`")
        return self.card

    @property
    def is_shipped(self) -> bool:
        """Whether it came with the program."""
        return self.folder.resolve().parent == shipped("weights").resolve()

    @property
    def remedy(self) -> str:
        """What to do where its files are missing or damaged."""
        return "install smearcount again" if self.is_shipped else "copy it again, or make it again from its training"

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked against the card.

        Raises:
            ModelError: the file is missing, not on the card, or was changed or damaged.
        """
        entry = self.card.files.get(name)
        if entry is None:
            raise ModelError(f"{self.folder / name}: not listed on the card; {self._way_to(name)}")
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise ModelError(f"{self.folder / name}: can't be read ({error.strerror}); {self.remedy}") from error
        found = hashlib.sha256(content).hexdigest()
        if len(content) != entry.bytes or found != entry.sha256:
            raise ModelError(
                f"{self.folder / name}: changed or damaged: expected {entry.bytes} bytes and sha256 "
                f"{entry.sha256[:12]}, found {len(content)} bytes and {found[:12]}; {self.remedy}"
            )
        return content

    def _way_to(self, name: str) -> str:
        """What to do to have a file that is not on the card."""
        made = {"model.xml": "openvino", "model.bin": "openvino", "model.onnx": "onnx"}
        called = self.card.id if self.is_shipped else self.folder
        return f"run `smearcount export {called} --to {made[name]}`" if name in made else self.remedy

    def names(self, runtime: str) -> list[str]:
        """Files of one runtime, as on the card."""
        return [name for name, entry in self.card.files.items() if entry.runtime == runtime]

    def verify(self) -> list[str]:
        """Read and check every file; returns the names of the good ones.

        Raises:
            ModelError: the first file that is missing, changed or damaged.
        """
        for name in self.card.files:
            self.read(name)
        return list(self.card.files)


def find_model(model: str, weights: Path | None = None) -> Model:
    """A model by its id below `weights/`, or by the path of its folder.

    Raises:
        ModelError: there is no such model.
    """
    root = weights or shipped("weights")
    if "/" not in model and (root / model / "card.yaml").is_file():
        return Model(root / model)
    if Path(model).is_dir():
        return Model(Path(model))
    known = ", ".join(m.card.id for m in list_models(weights)) or "none"
    place = f" in {weights}" if weights else ""
    raise ModelError(f"{model}: no such model{place}; known: {known}; or give the folder of a model")


def list_models(weights: Path | None = None) -> list[Model]:
    """All models below `weights/`, by id."""
    root = weights or shipped("weights")
    cards = sorted(root.glob("*/card.yaml"))
    # A hidden folder is a model that is still being made.
    return [Model(path.parent) for path in cards if not path.parent.name.startswith(".")]


def as_yaml(card: Card) -> dict[str, Any]:
    """The card as plain values, ready for a YAML file."""
    return card.model_dump(mode="json", exclude_none=True)
