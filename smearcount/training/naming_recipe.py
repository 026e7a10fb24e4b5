"""The recipe of a classifier's training: the checked form of a file like `configs/train/thesis.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from smearcount.config import Strict
from smearcount.errors import ConfigError
from smearcount.naming_heads import SMALL_NETS, NetSpec
from smearcount.training.cell_views import CellAugmentation

__all__ = ["Balance", "ClassifierRecipe", "EarlyStop", "NetChoice", "Optimiser", "Phase"]

Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NetChoice(Strict):
    """A network whose number of codes is that of the cells; `NetSpec` explains the keys."""

    backbone: str
    head: Literal["plain", "thesis"] = "plain"
    input_px: int = Field(ge=32, le=1024)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _is_known(self) -> NetChoice:
        self.spec(codes=2)
        return self

    def spec(self, codes: int, input_px: int | None = None) -> NetSpec:
        """The network for this many codes, at its own or another input side."""
        keys = self.model_dump()
        return NetSpec.model_validate({**keys, "codes": codes, "input_px": input_px or self.input_px})


class Optimiser(Strict):
    """How gradients become steps.

    Attributes:
        kind: an optimiser of PyTorch.
        momentum: of SGD and RMSprop, first beta of Adam and AdamW; none means 0.9, and 0 for RMSprop.
        weight_decay: decoupled for AdamW, an L2 penalty for the others.
    """

    kind: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)

    @property
    def inertia(self) -> float:
        """The momentum that is used."""
        usual = 0.0 if self.kind == "rmsprop" else 0.9
        return usual if self.momentum is None else self.momentum


class Phase(Strict):
    """A stretch of training with one schedule.

    Attributes:
        name: of the log and the tables.
        body: `frozen` trains the head alone, and the body's BatchNorm keeps its statistics; see `as_run` of the recipe.
        epochs: how many, unless it stops early.
        input_px: side of the network input in this phase, where it is another than the network's own.
        learning_rate: of the head; the highest one of a one-cycle or cosine schedule.
        body_rate_first: of the first layers of a trained body; without one, the head's.
        body_rate_last: of its last layers; those between lie on a geometric row (Howard and Ruder 2018, 1801.06146).
        schedule: over the steps of the phase; `one_cycle` after Smith 2018, arXiv 1803.09820.
        batch: cells a step.
        find_rate: search for the head's rate first (Smith 2017, arXiv 1506.01186); the body's keep their ratio to it.
    """

    name: str = Field(min_length=1)
    body: Literal["frozen", "trained"]
    epochs: int = Field(ge=1)
    input_px: int | None = Field(default=None, ge=32, le=1024)
    learning_rate: float = Field(gt=0, le=10)
    body_rate_first: float | None = Field(default=None, gt=0, le=10)
    body_rate_last: float | None = Field(default=None, gt=0, le=10)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    batch: int = Field(default=64, ge=2)
    find_rate: bool = False

    @model_validator(mode="after")
    def _rates_belong_together(self) -> Phase:
        if (self.body_rate_first is None) != (self.body_rate_last is None):
            raise ValueError("body_rate_first and body_rate_last: give both, or none")
        if self.body == "frozen" and self.body_rate_first is not None:
            raise ValueError("body_rate_first: a frozen body has no learning rate")
        return self

    def scaled(self, factor: float) -> Phase:
        """The same phase with every learning rate times a factor."""
        rates = {
            key: value * factor
            for key in ("learning_rate", "body_rate_first", "body_rate_last")
            if (value := getattr(self, key)) is not None
        }
        return self.model_copy(update=rates)

    def from_nothing(self) -> Phase:
        """The same phase for a body without pretrained weights, which learns at the head's rate."""
        return self.model_copy(update={"body": "trained", "body_rate_first": None, "body_rate_last": None})


class Balance(Strict):
    """What is done about classes of unequal size.

    Attributes:
        kind: `oversample` shows each class as often as the largest, `undersample` as rarely as the smallest, of which
            every epoch draws others; `class_weights` and `effective_number` weigh the loss instead.
        beta: of the effective number (Cui et al. 2019, arXiv 1901.05555): 0 is no weight, towards 1 inverse frequency.
    """

    kind: Literal["none", "oversample", "undersample", "class_weights", "effective_number"] = "none"
    beta: float = Field(default=0.999, ge=0, lt=1)


class EarlyStop(Strict):
    """A phase ends when nothing got better for some epochs; the weights of its best epoch are kept.

    Attributes:
        monitor: macro-F1 or loss on the validation cells.
        patience: epochs without a better value.
        min_delta: what counts as better.
    """

    monitor: Literal["macro_f1", "valid_loss"] = "macro_f1"
    patience: int = Field(default=5, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class ClassifierRecipe(Strict):
    """Everything that decides on a training, but for the cells.

    Attributes:
        data: where the cells come from and how they are split; free, read by whoever reads the cells.
        net: the network.
        pretrained: a safetensors file under torchvision's names, `imagenet` for torchvision's own weights, or none.
        recalibrate: training cells by which the statistics of pretrained BatchNorm layers are fitted to stained cells
            first, without changing what the network answers; 0 none.
        mean: of the input in [0, 1] by channel; none is ImageNet's, and pretrained weights may want others.
        std: the same, above 0.
        patch_um: physical side of the window around a cell in training.
        named_um: the same where cells are judged and named; none is `patch_um`. A little less can serve a laboratory
            that was not seen, since random magnification in training makes cells seem larger than plain views do
            (Touvron et al. 2019, arXiv 1906.06423).
        phases: one after the other, on the weights that the one before left.
        optimiser: of all phases.
        balance: what is done about classes of unequal size.
        label_smoothing: share of the target spread over all codes, for cells with an exact label.
        mixup: alpha of the Beta distribution that pairs of cells are mixed by (Zhang et al. 2018, 1710.09412); 0 none.
        augmentation: what happens to a training cell before the network sees it.
        precision: of Lightning: `32-true`, `bf16-mixed`, or `16-mixed`, which needs a GPU.
        accelerator: of Lightning: `auto`, `cpu`, `gpu`.
        devices: how many, or `auto`; several share each epoch's cells.
        early_stopping: none trains every epoch.
        ema: decay of an exponential average of the weights, which is judged and kept instead of them; 0 none.
        workers: threads that prepare the cells of a batch; 0 or 1 for one after the other.
        seed: of the first weights, the order of the cells, and all chance in training.
        cells_per_epoch: none shows every cell (as balanced) once.
    """

    data: dict[str, Any] = {}
    net: NetChoice
    pretrained: Path | Literal["imagenet"] | None = None
    recalibrate: int = Field(default=256, ge=0)
    mean: tuple[Share, Share, Share] | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    patch_um: float = Field(gt=1, lt=200)
    named_um: float | None = Field(default=None, gt=1, lt=200)
    phases: tuple[Phase, ...] = Field(min_length=1)
    optimiser: Optimiser = Optimiser()
    balance: Balance = Balance()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    augmentation: CellAugmentation = CellAugmentation()
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Literal["auto"] | PositiveInt = "auto"
    early_stopping: EarlyStop | None = None
    ema: float = Field(default=0.0, ge=0, lt=1)
    workers: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    cells_per_epoch: int | None = Field(default=None, ge=2)

    @field_validator("pretrained", mode="before")
    @classmethod
    def _imagenet_is_a_word(cls, value: Any) -> Any:
        return Path(value) if isinstance(value, str) and value != "imagenet" else value

    @model_validator(mode="after")
    def _phases_are_told_apart(self) -> ClassifierRecipe:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phases: expected a name of its own for each, got {names}")
        sides = {phase.input_px or self.net.input_px for phase in self.phases}
        if len(sides) > 1 and self.net.spec(codes=2).has_dense_layers:
            raise ValueError(f"input_px: {self.net.backbone} fits one size only, got {sorted(sides)}")
        return self

    @model_validator(mode="after")
    def _weights_are_published(self) -> ClassifierRecipe:
        if self.pretrained == "imagenet" and self.net.backbone in SMALL_NETS:
            raise ValueError(f"pretrained: there are no published weights of {self.net.backbone}; leave them out")
        return self

    @property
    def input_px(self) -> int:
        """Side of the network input in the last phase, which is the one of the finished classifier."""
        return self.phases[-1].input_px or self.net.input_px

    @property
    def largest_input_px(self) -> int:
        """Side of the network input in the phase where it is largest."""
        return max(phase.input_px or self.net.input_px for phase in self.phases)

    @property
    def window_um(self) -> float:
        """Side of the window in which the finished classifier sees a cell."""
        return self.named_um or self.patch_um

    def as_run(self) -> ClassifierRecipe:
        """The recipe as it is trained: a body without pretrained weights learns in every phase, at the head's rate.

        Frozen, or at the rates of fine-tuning, it would stay what chance made it.
        """
        if self.pretrained:
            return self
        return self.model_copy(update={"phases": tuple(phase.from_nothing() for phase in self.phases)})

    def check_pretrained(self) -> None:
        """See whether the file of the pretrained weights is there, before cells are read for minutes.

        Raises:
            ConfigError: it is not.
        """
        if isinstance(self.pretrained, Path) and not self.pretrained.is_file():
            raise ConfigError(f"pretrained: {self.pretrained}: no such file; check the path")

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be gone on with: all but the place where it runs."""
        return self.model_dump(mode="json", exclude={"data", "workers", "accelerator", "devices"})
