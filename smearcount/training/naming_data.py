"""Feeds labelled cells to a training: which are shown in an epoch, in which order, and how each is varied.

All chance comes from the seed, the epoch and the place in it, so that a run that was interrupted goes on as if it had
not been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from smearcount.arrays import Bools, FloatArray, Indices, Pixels
from smearcount.cellsets import CellSet
from smearcount.naming_nets import Normalisation
from smearcount.patches import to_batch
from smearcount.training.cell_views import augmented_view, plain_view
from smearcount.training.naming_recipe import Balance, ClassifierRecipe, Phase

__all__ = ["Batch", "NamingData", "balance_weights", "chance", "epoch_rows", "is_first", "rank_of_ranks"]

Item = tuple[Pixels, Bools]
Draw = tuple[int, int, int]
"""Epoch, place in the epoch, and row of the cell."""

Batch = tuple[Tensor, Tensor]
"""Input `(N, 3, S, S) float32` and targets `(N, K) bool`."""

_USES = {"view": 0, "order": 1, "dropout": 2, "mixup": 3, "recalibration": 4}


def chance(use: str, seed: int, epoch: int = 0, place: int = 0) -> np.random.Generator:
    """Chance that depends on nothing but what it is for, the seed, the epoch and the place in it."""
    return np.random.default_rng((seed, epoch, place, _USES[use]))


def rank_of_ranks() -> tuple[int, int]:
    """Number of this process among those that train together, and how many they are."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)


def is_first() -> bool:
    """Whether this is the one process, or the first of those that train together, which writes the files."""
    return int(getattr(pl.utilities.rank_zero_only, "rank", None) or 0) == 0


def balance_weights(targets: Bools, balance: Balance) -> FloatArray:
    """Weight of each code `(K,)` in the loss; their mean over the codes with exact cells is 1.

    `class_weights` is 1 / n_k; `effective_number` is (1 - beta) / (1 - beta ** n_k), Cui et al. 2019, arXiv 1901.05555,
    equation 2. A code without an exact cell weighs 1.

    Args:
        targets: `(N, K) bool` of the training cells.
        balance: kind and beta; other kinds weigh all codes the same.
    """
    weights = np.ones(targets.shape[1])
    counts = targets[targets.sum(axis=1) == 1].sum(axis=0)
    known = counts > 0
    if balance.kind == "class_weights":
        weights[known] = 1 / counts[known]
    elif balance.kind == "effective_number":
        weights[known] = (1 - balance.beta) / (1 - balance.beta ** counts[known].astype(float))
    if known.any():
        weights[known] /= weights[known].mean()
    return weights.astype(np.float32)


def epoch_rows(targets: Bools, kind: str, n: int | None, rng: np.random.Generator) -> Indices:
    """The cells of one epoch, in the order in which they are shown.

    Args:
        targets: `(N, K) bool` of the training cells.
        kind: of `Balance`. Cells of coarser labels are not multiplied, and not more than the smallest class either
            when that is what each is cut down to.
        n: how many cells; none for all that the balance gives.
        rng: decides on the order and on the cells of classes that are multiplied or cut down.
    """
    rows = np.arange(len(targets))
    if kind in {"oversample", "undersample"}:
        rows = _balanced(targets, kind, rng)
    wanted = len(rows) if n is None else n
    rounds = [rng.permutation(rows) for _ in range(-(-wanted // len(rows)))]
    return np.concatenate(rounds)[:wanted]


def _balanced(targets: Bools, kind: str, rng: np.random.Generator) -> Indices:
    exact = targets.sum(axis=1) == 1
    classes = [np.flatnonzero(exact & targets[:, code]) for code in range(targets.shape[1])]
    classes = [rows for rows in classes if len(rows)]
    coarse = np.flatnonzero(~exact)
    if not classes:
        return coarse
    sizes = [len(rows) for rows in classes]
    if kind == "undersample":
        return np.concatenate([rng.permutation(rows)[: min(sizes)] for rows in [*classes, coarse]])
    whole = [np.tile(rows, max(sizes) // len(rows)) for rows in classes]
    rest = [rng.permutation(rows)[: max(sizes) % len(rows)] for rows in classes]
    return np.concatenate([*whole, *rest, coarse])


def _companions(cells: CellSet) -> list[Indices]:
    """Of each cell, those of its photograph; where it is the only one, those of its collection."""
    _, photograph = np.unique(cells.groups, return_inverse=True)
    _, collection = np.unique(cells.sources, return_inverse=True)
    mates, others = _members(photograph), _members(collection)
    places = zip(photograph.tolist(), collection.tolist(), strict=True)
    return [mates[p] if len(mates[p]) > 1 else others[c] for p, c in places]


def _members(groups: Indices) -> list[Indices]:
    """The rows of each group, of which they are the numbers."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])


class _Cells(Dataset[Item]):
    """Cells as the network sees them, turned anew in every epoch, or plain ones for validation."""

    def __init__(self, cells: CellSet, recipe: ClassifierRecipe, input_px: int, *, training: bool) -> None:
        self.cells, self.recipe, self.input_px, self.training = cells, recipe, input_px, training
        self._together = _companions(cells) if training else []

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, draw: Draw) -> Item:
        epoch, place, row = draw
        window, scale = self.cells.pixels[row], float(self.cells.um_per_px[row])
        if not self.training:
            return plain_view(window, scale, self.recipe.window_um, self.input_px), self.cells.targets[row]
        rng = chance("view", self.recipe.seed, epoch, place)
        other = int(rng.choice(self._together[row]))

        def beside() -> tuple[Pixels, float]:
            return self.cells.pixels[other], float(self.cells.um_per_px[other])

        view = augmented_view(window, scale, self.recipe.patch_um, self.input_px, self.recipe.augmentation, rng, beside)
        return view, self.cells.targets[row]

    def __getitems__(self, draws: list[Draw]) -> list[Item]:
        """A batch. Threads, not processes: a process forked from one in which OpenVINO or OpenCV ran may crash."""
        if self.recipe.workers < 2:
            return [self[draw] for draw in draws]
        with ThreadPoolExecutor(self.recipe.workers, "smearcount-views") as threads:
            return list(threads.map(self.__getitem__, draws))


class _TrainingOrder(Sampler[Draw]):
    """The draws of one epoch; of several processes each gets its own part of it, all of one length."""

    def __init__(self, targets: Bools, recipe: ClassifierRecipe, batch: int, epoch: Callable[[], int]) -> None:
        self.targets, self.recipe, self.batch, self.epoch = targets, recipe, batch, epoch
        self.rank, self.ranks = rank_of_ranks()
        self.length = len(self._part())

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch()
        return ((epoch, place, row) for place, row in self._part(epoch))

    def _part(self, epoch: int = 0) -> list[tuple[int, int]]:
        rng = chance("order", self.recipe.seed, epoch)
        rows = epoch_rows(self.targets, self.recipe.balance.kind, self.recipe.cells_per_epoch, rng)
        each = len(rows) // self.ranks
        # BatchNorm of the head can't train on a single cell.
        each -= each % self.batch == 1
        return list(enumerate(rows.tolist()))[self.rank :: self.ranks][:each]


class NamingData(pl.LightningDataModule):
    """Training and validation cells of one phase, in batches.

    Args:
        cells: with both splits.
        recipe: of the run.
        phase: decides on the size of batches and views.
        normal: of the network input.
        first_epoch: epochs of the phases before, so that no phase repeats another.
    """

    def __init__(
        self, cells: CellSet, recipe: ClassifierRecipe, phase: Phase, normal: Normalisation, first_epoch: int = 0
    ) -> None:
        super().__init__()
        self.cells, self.recipe, self.phase, self.normal, self.first_epoch = cells, recipe, phase, normal, first_epoch
        self.input_px = phase.input_px or recipe.net.input_px

    @property
    def batches(self) -> int:
        """Batches an epoch, in each of the processes that train together."""
        order = _TrainingOrder(self.cells.split("train").targets, self.recipe, self.phase.batch, lambda: 0)
        return -(-len(order) // self.phase.batch)

    def train_dataloader(self) -> DataLoader[Item]:
        """The cells of one epoch."""
        cells = self.cells.split("train")
        order = _TrainingOrder(cells.targets, self.recipe, self.phase.batch, self._epoch)
        return self._loader(_Cells(cells, self.recipe, self.input_px, training=True), order)

    def val_dataloader(self) -> DataLoader[Item]:
        """Every validation cell once, as it is."""
        cells = self.cells.split("val")
        rank, ranks = rank_of_ranks()
        order = [(0, row, row) for row in range(rank, len(cells), ranks)]
        return self._loader(_Cells(cells, self.recipe, self.input_px, training=False), order)

    def predict_dataloader(self) -> DataLoader[Item]:
        """The validation cells in their order, all of them in this process."""
        cells = self.cells.split("val")
        order = [(0, row, row) for row in range(len(cells))]
        return self._loader(_Cells(cells, self.recipe, self.input_px, training=False), order)

    def _epoch(self) -> int:
        """Number of the epoch since the start of the run."""
        if self.trainer is None:
            return self.first_epoch
        # `current_epoch` lags behind while a resumed run sets up its loaders.
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return self.first_epoch + int(progress.processed)

    def _loader(self, cells: _Cells, order: Any) -> DataLoader[Item]:
        return DataLoader(
            cells,
            batch_size=self.phase.batch,
            sampler=order,
            collate_fn=self._collate,
            pin_memory=torch.cuda.is_available(),
        )

    def _collate(self, items: list[Item]) -> Batch:
        views = to_batch([view for view, _ in items], self.normal.mean, self.normal.std)
        return torch.from_numpy(views), torch.from_numpy(np.stack([targets for _, targets in items]))
