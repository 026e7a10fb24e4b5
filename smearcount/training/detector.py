"""Training of the detector: an ultralytics network, from scratch, on tiles at the canonical scale.

A kind that a collection did not label is no negative there: its classification loss is masked where no cell is
assigned. Only `model.safetensors` (the averaged weights) and the architecture leave the run; no pickle is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from smearcount.arrays import Pixels
from smearcount.config import Strict, read_model
from smearcount.datasets import KINDS, LabelledField, choose_sources, read_source, validation_fields
from smearcount.errors import ModelError, UsageError
from smearcount.images import open_image, write_text_atomic
from smearcount.offline import quiet_ultralytics
from smearcount.training.leaks import near_duplicates, signature
from smearcount.training.tiles import Augmentation, Tile, TileMaker

__all__ = ["DetectorRecipe", "train"]


class DetectorRecipe(Strict):
    """The checked form of a file like `configs/train/detector.yaml`, where each key is explained.

    `found_um_per_px` is where the finished detector works, if not at the scale of its training: random magnification
    in training makes cells seem larger than they are (Touvron et al. 2019, arXiv 1906.06423).
    """

    canonical_um_per_px: float = Field(gt=0.02, lt=2)
    found_um_per_px: float | None = Field(default=None, gt=0.02, lt=2)
    tile_px: int = Field(ge=64, multiple_of=16)
    tiles_per_epoch: int = Field(ge=1)
    batch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0)
    seed: int = Field(ge=0)
    sources: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    augment: Augmentation
    box_weight: dict[
        Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")], Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ] = {}
    architecture: dict[str, Any]

    @model_validator(mode="after")
    def _fills_a_batch(self) -> DetectorRecipe:
        if self.batch > self.tiles_per_epoch:
            raise ValueError(f"batch: expected at most the {self.tiles_per_epoch} tiles_per_epoch, got {self.batch}")
        return self


def train(
    recipe_path: Path, out: Path, *, device: str = "cpu", start: Path | None = None, datasets: Path | None = None
) -> Path:
    """Train by a recipe; returns the folder with `model.safetensors` and `architecture.yaml`.

    Args:
        recipe_path: a file like `configs/train/detector.yaml`.
        out: folder of the run; created, and written after every epoch.
        device: `cpu` or a CUDA device number.
        start: weights to go on from.
        datasets: a file like `configs/datasets.yaml`, which is taken without one.

    Raises:
        DatasetError: no labelled collections are at hand, or one of them has no field to train on.
        ConfigError: the recipe is wrong.
        ModelError: the weights to go on from are none, or of another architecture.
        UsageError: the device is not there.
    """
    recipe, cards = read_model(DetectorRecipe, recipe_path), torch.cuda.device_count()
    if device != "cpu" and not (device.isdecimal() and int(device) < cards):
        raise UsageError(
            f"--device: expected cpu or a number below {cards}, of the cards that are here, got {device!r}"
        )
    root, sources = choose_sources(recipe.sources, datasets)
    out.mkdir(parents=True, exist_ok=True)
    fields = _without_leaks(
        _with_pixels(field for source in sources for field in read_source(root, source, "train")),
        _with_pixels(field for source in sources for field in validation_fields(root, source)),
        out,
    )
    maker = TileMaker(
        fields, recipe.sources, recipe.tile_px, recipe.canonical_um_per_px, recipe.augment, seed=recipe.seed
    )
    write_text_atomic(out / "architecture.yaml", yaml.safe_dump(recipe.architecture, sort_keys=False))
    quiet_ultralytics(out.resolve())
    _run(recipe, maker, out.resolve(), device, start)
    return out


def _with_pixels(fields: Iterable[LabelledField]) -> list[tuple[LabelledField, Pixels]]:
    sources = [(field, open_image(field.path)) for field in fields]
    return [(field, source.read(0, 0, *source.size_wh)) for field, source in sources]


def _without_leaks(
    train: list[tuple[LabelledField, Pixels]], val: list[tuple[LabelledField, Pixels]], out: Path
) -> list[tuple[LabelledField, Pixels]]:
    """The training fields without those that show the same as a validation field; these are listed in `leaks.txt`."""
    pairs = near_duplicates(
        [(field.path, signature(pixels)) for field, pixels in train],
        [(field.path, signature(pixels)) for field, pixels in val],
    )
    write_text_atomic(out / "leaks.txt", "".join(f"{ours} shows the same as {theirs}\n" for ours, theirs in pairs))
    leaking = {ours for ours, _ in pairs}
    return [item for item in train if item[0].path not in leaking]


class _TileDataset(Dataset[Tile]):
    """Tiles numbered on through the epochs, so that no epoch repeats another."""

    def __init__(self, maker: TileMaker, tiles_per_epoch: int) -> None:
        self.maker, self.tiles_per_epoch, self.epoch = maker, tiles_per_epoch, 0

    def __len__(self) -> int:
        return self.tiles_per_epoch

    def __getitem__(self, index: int) -> Tile:
        return self.maker.make(self.epoch * self.tiles_per_epoch + index)


def collate(tiles: list[Tile]) -> dict[str, torch.Tensor]:
    """Tiles as the batch dictionary that ultralytics' loss reads, with `labelled (B, kinds)` added."""
    size = tiles[0].pixels.shape[0]
    boxes = np.concatenate([tile.boxes for tile in tiles]) / size
    centre_size = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    return {
        "img": torch.from_numpy(np.stack([tile.pixels for tile in tiles])).permute(0, 3, 1, 2),
        "cls": torch.from_numpy(np.concatenate([tile.kinds for tile in tiles])).float()[:, None],
        "bboxes": torch.from_numpy(centre_size).float(),
        "batch_idx": torch.repeat_interleave(
            torch.arange(len(tiles)), torch.tensor([len(tile.boxes) for tile in tiles])
        ).float(),
        "labelled": torch.tensor([[kind in tile.labelled for kind in KINDS] for tile in tiles]),
    }


class KindMaskedBCE(nn.Module):
    """Binary cross-entropy on logits that is zero where a kind was not labelled and no cell is assigned."""

    labelled: torch.Tensor

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Losses `(B, anchors, kinds)` of logits and soft targets of the same shape."""
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        counted = self.labelled[:, None, :] | (targets > 0)
        return loss * counted


class KindWeightedBoxLoss(nn.Module):
    """Ultralytics' box loss in which rare kinds weigh more, so that red cells do not drown the others."""

    def __init__(self, inner: nn.Module, weights: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.weights = inner, weights

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of boxes and distances; the fifth argument is `target_scores (B, anchors, kinds)`."""
        weighted = given[4] * self.weights.to(given[4].device)
        losses: tuple[torch.Tensor, torch.Tensor] = self.inner(*given[:4], weighted, *given[5:])
        return losses


def _masked_model(recipe: DetectorRecipe, start: Path | None) -> Any:
    """An ultralytics network whose loss leaves unlabelled kinds out; bf16 forward, float32 loss."""
    from ultralytics.nn.tasks import DetectionModel

    class MaskedModel(DetectionModel):
        def loss(self, batch: dict[str, torch.Tensor], preds: Any = None) -> Any:
            with torch.autocast(batch["img"].device.type, torch.bfloat16):
                preds = self.predict(batch["img"])
            if getattr(self, "criterion", None) is None:
                self.criterion = self.init_criterion()
                self.criterion.bce = KindMaskedBCE()
                weights = torch.tensor([recipe.box_weight.get(kind, 1.0) for kind in KINDS])
                self.criterion.bbox_loss = KindWeightedBoxLoss(self.criterion.bbox_loss, weights)
            self.criterion.bce.labelled = batch["labelled"]
            exact = {k: [f.float() for f in v] if isinstance(v, list) else v.float() for k, v in preds.items()}
            return self.criterion(exact, batch)

    model = MaskedModel(deepcopy(recipe.architecture), ch=3, nc=len(KINDS), verbose=False)
    if start:
        try:
            model.load_state_dict({key: value.float() for key, value in load_file(start).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            why = "no safetensors file" if isinstance(error, SafetensorError) else "not weights of this architecture"
            raise ModelError(f"{start}: {why}; give the model.safetensors of a training with the same one") from error
    return model


def _run(recipe: DetectorRecipe, maker: TileMaker, out: Path, device: str, start: Path | None) -> None:
    """One training with ultralytics' trainer, whose data, model and checkpoints are our own."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):
        def get_dataset(self) -> dict[str, Any]:
            return {"train": "", "val": "", "nc": len(KINDS), "names": dict(enumerate(KINDS)), "channels": 3}

        def setup_model(self) -> None:
            self.model = _masked_model(recipe, start)

        def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
            tiles = _TileDataset(maker, recipe.tiles_per_epoch)
            return DataLoader(tiles, batch_size, num_workers=self.args.workers, collate_fn=collate, drop_last=True)

        def preprocess_batch(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            moved["img"] = (moved["img"].float() / 255).contiguous(memory_format=torch.channels_last)
            return moved

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, -float(self.loss.detach())

        def save_model(self) -> bool:
            weights = {k: v.detach().float().contiguous().cpu() for k, v in self.ema.ema.state_dict().items()}
            save_file(weights, str(out / "model.safetensors.part"))
            (out / "model.safetensors.part").replace(out / "model.safetensors")
            return True

        def final_eval(self) -> None:
            return None

    trainer = Trainer(overrides=_overrides(recipe, out, device))
    for event, callback in _callbacks(out).items():
        trainer.add_callback(event, callback)
    trainer.train()


def _overrides(recipe: DetectorRecipe, out: Path, device: str) -> dict[str, Any]:
    """The settings of ultralytics' trainer; what its own data loading and checkpointing would do is off."""
    return {
        **{"model": "smearcount.yaml", "data": "smearcount", "device": device, "seed": recipe.seed},
        **{"epochs": recipe.epochs, "batch": recipe.batch, "nbs": recipe.batch, "imgsz": recipe.tile_px},
        **{"optimizer": "AdamW", "lr0": recipe.learning_rate, "lrf": 0.02, "momentum": 0.9, "cos_lr": True},
        **{"warmup_epochs": 1.0, "warmup_bias_lr": 0.0, "weight_decay": recipe.weight_decay},
        **{"close_mosaic": 0, "amp": False, "val": False, "plots": False, "deterministic": False},
        **{"project": str(out), "name": "log", "exist_ok": True},
    }


def _callbacks(out: Path) -> dict[str, Callable[[Any], None]]:
    """Layout and threads at the start, fresh tiles for every epoch, one line of log after it."""
    started = time.time()

    def on_start(trainer: Any) -> None:
        torch.set_num_threads(max(torch.get_num_threads(), 2))
        trainer.model.to(memory_format=torch.channels_last)

    def on_epoch_start(trainer: Any) -> None:
        trainer.train_loader.dataset.epoch = trainer.epoch

    def on_epoch_end(trainer: Any) -> None:
        losses = " ".join(f"{key} {float(value):.4f}" for key, value in trainer.tloss.items())
        with (out / "train.log").open("a") as log:
            log.write(f"epoch {trainer.epoch + 1}/{trainer.epochs} {losses} {time.time() - started:.0f} s\n")

    return {"on_train_start": on_start, "on_train_epoch_start": on_epoch_start, "on_train_epoch_end": on_epoch_end}
