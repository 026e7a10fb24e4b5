"""What Lightning trains: a network with its loss, metrics, optimiser and schedule, and what is kept on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from smearcount.arrays import FloatArray
from smearcount.judging.bootstrap import macro, per_class
from smearcount.naming_nets import CellNet
from smearcount.training.naming_data import Batch, chance, rank_of_ranks
from smearcount.training.naming_recipe import ClassifierRecipe, EarlyStop, Optimiser, Phase

__all__ = [
    "EpochEnd",
    "KeepBest",
    "NamingModule",
    "make_optimiser",
    "make_schedule",
    "partial_losses",
    "validation_figures",
]


def partial_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of each cell `(N,)`: -log of the probability that the net gives to its allowed codes together.

    Where a label is exact this is the cross-entropy, of which smoothing spreads a share over all codes (Szegedy et
    al. 2016, arXiv 1512.00567, section 7).

    Args:
        logits: `(N, K)`.
        targets: `(N, K) bool`, the codes a cell may be.
        smoothing: share that is spread, for exact labels.
    """
    log_p = nn.functional.log_softmax(logits.float(), dim=1)
    allowed = -torch.logsumexp(log_p.masked_fill(~targets, -torch.inf), dim=1)
    if not smoothing:
        return allowed
    smooth = (1 - smoothing) * allowed - smoothing * log_p.mean(dim=1)
    return torch.where(targets.sum(dim=1) == 1, smooth, allowed)


class NamingModule(pl.LightningModule):
    """A network with its loss, metrics, optimiser and schedule in one phase.

    Args:
        net: gives logits and features.
        recipe: of the run.
        phase: with the learning rates to be used.
        weights: of the codes in the loss, `(K,) float32`.
        first_epoch: epochs of the phases before.
    """

    weights: Tensor

    def __init__(
        self, net: CellNet, recipe: ClassifierRecipe, phase: Phase, weights: FloatArray, first_epoch: int = 0
    ) -> None:
        super().__init__()
        self.net, self.recipe, self.phase, self.first_epoch = net, recipe, phase, first_epoch
        self.register_buffer("weights", torch.from_numpy(weights), persistent=False)
        # A loss that is no number is not to be left out of the mean: the training has come apart.
        self.train_loss = torchmetrics.MeanMetric(nan_strategy="disable")
        self.valid_loss = torchmetrics.MeanMetric(nan_strategy="disable")
        self.confusion = MulticlassConfusionMatrix(len(weights))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout, so that it does not depend on what happened before this batch."""
        torch.manual_seed(int(self._chance("dropout", batch_idx).integers(2**63)))

    def _chance(self, use: str, batch_idx: int) -> np.random.Generator:
        rank, ranks = rank_of_ranks()
        return chance(use, self.recipe.seed, self.first_epoch + self.current_epoch, batch_idx * ranks + rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted mean of the losses of a batch."""
        views, targets = batch
        if self.recipe.mixup:
            share, partner = self._mixing(len(views), batch_idx)
            views = share * views + (1 - share) * views[partner]
            logits, _ = self.net(views.contiguous(memory_format=torch.channels_last))
            loss = share * self.loss(logits, targets) + (1 - share) * self.loss(logits, targets[partner])
        else:
            logits, _ = self.net(views.contiguous(memory_format=torch.channels_last))
            loss = self.loss(logits, targets)
        self.train_loss.update(loss.detach(), len(views))
        return loss

    def _mixing(self, n: int, batch_idx: int) -> tuple[float, Tensor]:
        """Share of each cell itself, and the partner that the rest is of."""
        rng = self._chance("mixup", batch_idx)
        share = float(rng.beta(self.recipe.mixup, self.recipe.mixup))
        return share, torch.from_numpy(rng.permutation(n)).to(self.device)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean of the losses of a batch, weighted by code."""
        losses = partial_losses(logits, targets, self.recipe.label_smoothing)
        # A cell that may be several codes weighs as much as these do on average.
        weights = (self.weights * targets).sum(dim=1) / targets.sum(dim=1)
        return (losses * weights).sum() / weights.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of all cells; accuracy and macro-F1 of those with an exact label."""
        views, targets = batch
        logits, _ = self.net(views.contiguous(memory_format=torch.channels_last))
        losses = partial_losses(logits, targets)
        self.valid_loss.update(losses.mean(), len(losses))
        exact = targets.sum(dim=1) == 1
        if exact.any():
            codes, truth = logits[exact].argmax(dim=1), targets[exact].int().argmax(dim=1)
            self.confusion.update(codes, truth)

    def validation_values(self) -> dict[str, float]:
        """Figures of the validation cells that have been seen since the last call of `reset_validation`."""
        return {"valid_loss": float(self.valid_loss.compute()), **_of_table(self.confusion.compute())}

    def on_validation_epoch_end(self) -> None:
        """Hand the figures to the callbacks that wait for them."""
        # The metrics have put the processes together already; Lightning wants to hear it.
        self.log_dict(self.validation_values(), sync_dist=True)
        for metric in (self.valid_loss, self.confusion):
            metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Logits and targets."""
        views, targets = batch
        logits, _ = self.net(views.contiguous(memory_format=torch.channels_last))
        return logits.float(), targets

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of the phase."""
        optimiser = make_optimiser(self.net, self.phase, self.recipe.optimiser)
        # Lightning's own count of the steps would draw the cells, before a resumed run knows its epoch.
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        steps = data.batches * self.phase.epochs
        schedule = make_schedule(optimiser, self.phase, self.recipe.optimiser, steps)
        if schedule is None:
            return optimiser
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make_optimiser(net: CellNet, phase: Phase, optimiser: Optimiser) -> torch.optim.Optimizer:
    """The optimiser with one group of parameters for each group of layers, first layers first, the head last."""
    body = net.body_groups() if phase.body == "trained" else []
    first, last = phase.body_rate_first or phase.learning_rate, phase.body_rate_last or phase.learning_rate
    rates = [*np.geomspace(first, last, len(body)).tolist(), phase.learning_rate]
    layers = [*body, net.head_parameters()]
    groups: list[dict[str, Any]] = [{"params": part, "lr": rate} for part, rate in zip(layers, rates, strict=True)]
    decay, inertia = optimiser.weight_decay, optimiser.inertia
    if optimiser.kind == "adamw":
        return torch.optim.AdamW(groups, betas=(inertia, 0.999), weight_decay=decay)
    if optimiser.kind == "adam":
        return torch.optim.Adam(groups, betas=(inertia, 0.999), weight_decay=decay)
    if optimiser.kind == "sgd":
        return torch.optim.SGD(groups, momentum=inertia, weight_decay=decay)
    return torch.optim.RMSprop(groups, momentum=inertia, weight_decay=decay)


def make_schedule(
    optimiser: torch.optim.Optimizer, phase: Phase, choice: Optimiser, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The learning rates over the steps of the phase; none where they stay.

    One-cycle: from 1/25 of the highest rate up to it within 30 % of the steps and down to nearly nothing, while the
    momentum falls by a tenth and rises again (Smith 2018, arXiv 1803.09820, in the shape of Smith and Topin 2017).
    """
    if phase.schedule == "constant":
        return None
    if phase.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=[group["lr"] for group in optimiser.param_groups],
        total_steps=steps,
        cycle_momentum=choice.inertia > 0,
        base_momentum=max(choice.inertia - 0.1, 0.0),
        max_momentum=choice.inertia,
    )


def validation_figures(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Loss of all cells, accuracy and macro-F1 of those with an exact label.

    Args:
        logits: `(N, K)`.
        targets: `(N, K) bool`.
    """
    exact = targets.sum(dim=1) == 1
    table = MulticlassConfusionMatrix(targets.shape[1])(logits[exact].argmax(dim=1), targets[exact].int().argmax(dim=1))
    return {"valid_loss": float(partial_losses(logits, targets).mean()), **_of_table(table)}


def _of_table(confusion: Tensor) -> dict[str, float]:
    """Accuracy, and macro-F1 over the codes that have labelled cells, as in the report, of `(K, K)` true by predicted.

    In single precision, in which Lightning hands them on: the best epoch is the same for everyone then.
    """
    table = confusion.cpu().numpy()
    f1 = macro(per_class(table)[2], table)
    return {"accuracy": float(np.float32(table.trace() / table.sum())), "macro_f1": float(np.float32(f1))}


class KeepBest(pl.Callback):
    """Keeps the weights of the best epoch of a phase, inside of the checkpoint of the run.

    Must stand before a callback that averages weights, which judges the average and then takes it back.

    Args:
        early: what counts as best.
    """

    def __init__(self, early: EarlyStop) -> None:
        self.early = early
        self.best: dict[str, Any] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether this epoch is the best one."""
        if trainer.sanity_checking or not isinstance(pl_module, NamingModule):
            return
        value = pl_module.validation_values()[self.early.monitor]
        score = value if self.early.monitor == "macro_f1" else -value
        if not self.best or score > self.best["score"]:
            weights = {key: weight.detach().clone() for key, weight in pl_module.net.state_dict().items()}
            self.best = {"score": score, "epoch": trainer.current_epoch, "weights": weights}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return self.best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of an interrupted run."""
        self.best = state_dict


class EpochEnd(Checkpoint):
    """After each epoch: hands its figures to the run, then writes the checkpoint from which the run can go on.

    Args:
        file: the checkpoint.
        record: takes the figures of an epoch.
        state: what the run adds to the checkpoint, plain values only.
    """

    def __init__(
        self, file: Path, record: Callable[[dict[str, float]], None], state: Callable[[], dict[str, Any]]
    ) -> None:
        self.file, self.record, self.state = file, record, state
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        self._started = time.monotonic()

    # Lightning leaves the start of the first epoch out when it resumes.
    on_train_start = on_train_epoch_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect and write."""
        if not isinstance(pl_module, NamingModule):
            raise TypeError(f"expected a NamingModule, got {type(pl_module).__name__}")
        rates = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]
        figures: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        figures |= {"body_rate": rates[0] if len(rates) > 1 else 0.0, "learning_rate": rates[-1]}
        figures["train_loss"] = float(pl_module.train_loss.compute())
        figures |= {key: float(trainer.callback_metrics[key]) for key in ("valid_loss", "accuracy", "macro_f1")}
        pl_module.train_loss.reset()
        self.record({**figures, "seconds": time.monotonic() - self._started})
        # The end of a phase is written by the run, once the weights to be kept are in the network.
        if not trainer.should_stop and trainer.current_epoch + 1 != trainer.max_epochs:
            part = self.file.with_suffix(".part")
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.file)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state of the run."""
        checkpoint["run"] = self.state()
