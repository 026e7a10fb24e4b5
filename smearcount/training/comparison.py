"""Trains one recipe with several networks and optimisers, and ends in one table and one plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from smearcount.cellsets import CellSet
from smearcount.config import Strict, faults_of
from smearcount.errors import ConfigError
from smearcount.images import write_text_atomic
from smearcount.progress import Report
from smearcount.report import to_csv
from smearcount.training.classifier import check_training, train_classifier
from smearcount.training.naming_data import is_first
from smearcount.training.naming_recipe import ClassifierRecipe, Optimiser
from smearcount.training.naming_setting import plot_losses

__all__ = ["COLUMNS", "BackboneChoice", "ComparisonRecipe", "OptimiserChoice", "run_comparison"]

COLUMNS = (
    *("model", "optimiser", "phase", "body", "train_loss", "valid_loss", "accuracy", "macro_f1", "epochs"),
    *("seconds_per_cell", "error"),
)
"""Columns of `comparison.csv`. `body` is `frozen` or `trained`, or `from nothing` without pretrained weights."""

Row = dict[str, Any]
Finish = Callable[[Path, ClassifierRecipe, str], object]


class BackboneChoice(Strict):
    """A network, and what of the base recipe is another for it; none keeps the base's.

    Attributes:
        backbone: name of the network; a bare name stands for the whole.
        head: as in the recipe.
        input_px: of every phase.
        pretrained: a file, `imagenet`, or `none` for none at all.
    """

    backbone: str
    head: Literal["plain", "thesis"] | None = None
    input_px: int | None = None
    pretrained: str | None = None


class OptimiserChoice(Optimiser):
    """An optimiser, and a factor for every learning rate that is not searched for: each kind wants its own size."""

    rate_factor: float = Field(default=1.0, gt=0)


class ComparisonRecipe(Strict):
    """A recipe, and what it is to be tried with: the checked form of a file like `configs/train/compare.yaml`.

    Attributes:
        base: the recipe that all share; without an optimiser.
        backbones: the networks.
        optimisers: each is tried with each network.
    """

    base: ClassifierRecipe
    backbones: tuple[BackboneChoice, ...] = Field(min_length=1)
    optimisers: tuple[OptimiserChoice, ...] = Field(min_length=1)

    @field_validator("backbones", mode="before")
    @classmethod
    def _a_name_is_enough(cls, value: Any) -> Any:
        return [{"backbone": each} if isinstance(each, str) else each for each in value]

    @field_validator("optimisers", mode="before")
    @classmethod
    def _a_kind_is_enough(cls, value: Any) -> Any:
        return [{"kind": each} if isinstance(each, str) else each for each in value]

    @model_validator(mode="after")
    def _base_has_no_optimiser(self) -> ComparisonRecipe:
        if "optimiser" in self.base.model_fields_set:
            raise ValueError("base.optimiser: has no say; put its keys under `optimisers`, with each kind")
        return self

    @model_validator(mode="after")
    def _factors_have_a_say(self) -> ComparisonRecipe:
        if all(phase.find_rate for phase in self.base.phases) and any(
            each.rate_factor != 1 for each in self.optimisers
        ):
            raise ValueError("optimisers.rate_factor: has no say, as every phase searches for its rate (find_rate)")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> ComparisonRecipe:
        names = [(each.model, each.optimiser) for each in _combinations(self)]
        twice = sorted({" ".join(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"expected each network and each kind of optimiser once, got {', '.join(twice)} again")
        return self

    @model_validator(mode="after")
    def _each_is_a_recipe(self) -> ComparisonRecipe:
        for combination in _combinations(self):
            try:
                combination.recipe(self.base)
            except ValidationError as error:
                raise ValueError(f"{combination.name}: {_reason(error)}") from error
        return self

    @property
    def largest_input_px(self) -> int:
        """Side of the largest input of all networks, which all share the cells."""
        return max(combination.recipe(self.base).largest_input_px for combination in _combinations(self))

    def check_pretrained(self) -> None:
        """See whether the files of all pretrained weights are there, before cells are read for minutes.

        Raises:
            ConfigError: one is not; names the combination.
        """
        for combination in _combinations(self):
            with combination.named():
                combination.recipe(self.base).check_pretrained()


@dataclass(frozen=True)
class _Combination:
    """One network with one optimiser."""

    backbone: BackboneChoice
    choice: OptimiserChoice

    @property
    def model(self) -> str:
        parts = (self.backbone.backbone, self.backbone.head, self.backbone.input_px)
        return "-".join(str(part) for part in parts if part)

    @property
    def optimiser(self) -> str:
        return self.choice.kind

    @property
    def name(self) -> str:
        return f"{self.model}-{self.optimiser}"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Whatever is wrong with its recipe says which combination it is."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def recipe(self, base: ClassifierRecipe) -> ClassifierRecipe:
        """The base recipe with this network and optimiser."""
        keys = base.model_dump()
        net = self.backbone.model_dump(exclude={"pretrained"}, exclude_none=True)
        keys["net"].update(net)
        keys["optimiser"] = self.choice.model_dump(exclude={"rate_factor"})
        keys["phases"] = [phase.scaled(self.choice.rate_factor).model_dump() for phase in base.phases]
        if self.backbone.input_px:
            for phase in keys["phases"]:
                phase["input_px"] = None
        if self.backbone.pretrained:
            keys["pretrained"] = None if self.backbone.pretrained == "none" else self.backbone.pretrained
        return ClassifierRecipe.model_validate(keys)


def run_comparison(
    config: ComparisonRecipe, cells: CellSet, out: Path, *, report: Report | None = None, finish: Finish | None = None
) -> list[Row]:
    """Train every combination, each in a folder of its own, and write `comparison.csv`, `.md` and `losses.png`.

    What is finished is kept: run again, only the others are trained, and those that were interrupted go on. The table
    is written after each combination. One that fails is a row with the reason, and the others go on; what can be known
    beforehand stops all of them before the first training.

    Args:
        config: base recipe, networks, optimisers.
        cells: as for one training, in windows for the largest input.
        out: folder of the comparison.
        report: takes a line for each epoch and each failure.
        finish: takes the folder, the recipe and the name of each run that is finished, to make a model of it.

    Returns:
        One row for each phase of each combination, of the columns `COLUMNS`.

    Raises:
        ConfigError: a combination does not fit this machine, or its pretrained weights are not there.
        UsageError: there are too few cells.
    """
    config.check_pretrained()
    for combination in _combinations(config):
        with combination.named():
            check_training(combination.recipe(config.base), cells)
    out.mkdir(parents=True, exist_ok=True)
    say = report or (lambda _: None)
    rows: list[Row] = []
    histories: dict[str, list[dict[str, str]]] = {}
    for combination in _combinations(config):
        try:
            recipe = combination.recipe(config.base)
            folder = train_classifier(
                recipe,
                cells,
                out / combination.name,
                report=lambda line, name=combination.name: say(f"{name}: {line}"),  # type: ignore[misc]
            )
            if finish and is_first():
                finish(folder, recipe, combination.name)
        # Whatever stops one network, out of memory included, must not cost the night's other trainings.
        except Exception as error:
            say(f"{combination.name}: failed: {_reason(error)}")
            rows.append(_row(combination, error=_reason(error)))
        else:
            rows += _rows(combination, folder)
            with (folder / "history.csv").open(newline="", encoding="utf-8") as stream:
                histories[combination.name] = list(csv.DictReader(stream))
        if is_first():
            _write(out, rows, histories)
    return rows


def _combinations(config: ComparisonRecipe) -> Iterator[_Combination]:
    for backbone in config.backbones:
        for optimiser in config.optimisers:
            yield _Combination(backbone, optimiser)


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, ValidationError):
        return faults_of(error, ClassifierRecipe)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _row(combination: _Combination, **figures: Any) -> Row:
    named = {"model": combination.model, "optimiser": combination.optimiser}
    return {**dict.fromkeys(COLUMNS, ""), **named, **figures}


def _rows(combination: _Combination, folder: Path) -> list[Row]:
    """One row for each phase, as in the thesis, which shows the frozen and the fine-tuned network."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    figures = ("phase", "train_loss", "valid_loss", "accuracy", "macro_f1", "epochs")
    rows = []
    for found, asked in zip(summary["phases"], summary["recipe"]["phases"], strict=True):
        body = asked["body"] if summary["recipe"]["pretrained"] else "from nothing"
        told = {"body": body, "seconds_per_cell": summary["seconds_per_cell"]}
        rows.append(_row(combination, **told, **{key: found[key] for key in figures}))
    return rows


def _write(out: Path, rows: list[Row], histories: dict[str, list[dict[str, str]]]) -> None:
    if histories:
        plot_losses(histories, out / "losses.png")
    write_text_atomic(out / "comparison.csv", to_csv(COLUMNS, rows))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([_shown(row[key]) for key in COLUMNS] for row in rows)]
    write_text_atomic(out / "comparison.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value >= 1e-3 else f"{value:.2e}"
    return str(value).replace("|", "\\|")
