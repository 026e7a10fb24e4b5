"""Training of a classifier by a recipe: Lightning runs each phase, and an interrupted run goes on where it was.

A finished run leaves `model.safetensors`, `architecture.yaml`, `history.csv`, `losses.png`, `summary.json`,
`train.log`, and `lr_find.png` where a rate was searched for. The only pickles are `last.ckpt`, which only the same run
reads, as plain tensors, and Lightning's `.lr_find_*.ckpt` of such a search; they are gone when it is finished.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from safetensors.torch import save_file

from smearcount.calibration import fit_temperature
from smearcount.cellsets import CellSet
from smearcount.errors import ConfigError, UsageError
from smearcount.images import write_text_atomic
from smearcount.naming_nets import Normalisation, build_net, load_pretrained, recalibrate
from smearcount.patches import to_batch
from smearcount.progress import Report
from smearcount.report import to_csv
from smearcount.training.cell_views import plain_view
from smearcount.training.naming_data import NamingData, balance_weights, chance, is_first
from smearcount.training.naming_module import EpochEnd, KeepBest, NamingModule, validation_figures
from smearcount.training.naming_recipe import ClassifierRecipe, Phase
from smearcount.training.naming_setting import all_cores, find_rate, plot_losses, plot_rates, quiet_lightning

__all__ = ["check_training", "train_classifier"]


def train_classifier(recipe: ClassifierRecipe, cells: CellSet, out: Path, *, report: Report | None = None) -> Path:
    """Train a classifier, or go on with an interrupted training; returns the folder of the run.

    Without pretrained weights all layers learn in every phase, at the head's rate, whatever the phases say.

    Args:
        recipe: all that decides on the training.
        cells: with both splits set; their codes are those of the classifier.
        out: folder of the run; created, and written after every epoch.
        report: takes each line of `train.log` as it is written.

    Raises:
        ConfigError: the recipe does not fit this machine, there are fewer than two codes, or the losses grow beyond all
            numbers.
        UsageError: there are too few cells, or the folder holds another run.
        ModelError: the pretrained weights can't be had or don't fit.
        KeyboardInterrupt: it was stopped, by Ctrl-C or SIGTERM; called again, it goes on.
    """
    recipe = recipe.as_run()
    check_training(recipe, cells)
    identity = _identity(recipe, cells)
    if (out / "summary.json").is_file():
        _same(json.loads((out / "summary.json").read_text(encoding="utf-8"))["identity"], identity, out)
        return out
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for setting in (quiet_lightning(), all_cores(), pl.utilities.seed.isolate_rng()):
            stack.enter_context(setting)
        run = _Run(_Job(recipe, cells, out, identity, report or (lambda _: None)))
        try:
            run.train()
        except SystemExit as stop:
            # Lightning ends the program by itself, after SIGTERM as if the training were finished.
            raise KeyboardInterrupt from stop
        if is_first():
            run.finish()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
    return out


def check_training(recipe: ClassifierRecipe, cells: CellSet) -> None:
    """See whether cells can be trained on by a recipe on this machine.

    Raises:
        ConfigError: the recipe does not fit this machine, or there are fewer than two codes.
        UsageError: there are too few cells.
    """
    if len(cells.codes) < 2:
        raise ConfigError(
            f"expected cells of two codes at least, got {', '.join(cells.codes) or 'none'}; add the class folders of "
            "other codes, or merge fewer"
        )
    train, val = cells.split("train"), cells.split("val")
    if len(train) < 2 or not val.exact.any():
        raise UsageError(
            f"expected two training cells and a validation cell with an exact label at least, got {len(train)} and "
            f"{int(val.exact.sum())}; check the folders and val_share"
        )
    on_cpu = recipe.accelerator == "cpu" or not torch.accelerator.is_available()
    if recipe.precision == "16-mixed" and on_cpu:
        raise ConfigError("precision: 16-mixed needs a GPU; take 32-true or bf16-mixed")
    try:
        with quiet_lightning():
            pl.Trainer(**_place(recipe), logger=False, enable_checkpointing=False, enable_model_summary=False)
    except MisconfigurationException as error:
        raise ConfigError(
            f"accelerator: {recipe.accelerator}, devices: {recipe.devices}: not on this machine ({error}); take `auto`"
        ) from error


def _place(recipe: ClassifierRecipe) -> dict[str, Any]:
    """Where Lightning trains."""
    return {"accelerator": recipe.accelerator, "devices": recipe.devices}


def _identity(recipe: ClassifierRecipe, cells: CellSet) -> str:
    """Checksum of all that decides on the weights."""
    digest = hashlib.sha256(json.dumps([recipe.identity(), cells.codes], sort_keys=True).encode())
    for array in (cells.targets, cells.um_per_px):
        digest.update(array.tobytes())
    for words in (cells.splits, cells.origins):
        digest.update("\n".join(words.tolist()).encode())
    for window in cells.pixels:
        # A few pixels of each tell whether cells were cut or painted otherwise.
        digest.update(window[::16, ::16].tobytes())
    return digest.hexdigest()


def _same(found: str, expected: str, out: Path) -> None:
    if found != expected:
        raise UsageError(f"{out}: holds a run of another recipe or of other cells; give another folder, or remove it")


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be trained; as `train_classifier` takes it, and the checksum of what decides on the weights."""

    recipe: ClassifierRecipe
    cells: CellSet
    out: Path
    identity: str
    report: Report


class _Run:
    """A training in its folder: what it has done so far, and how it goes on."""

    def __init__(self, job: _Job) -> None:
        self.job, self.recipe, self.cells, self.out = job, job.recipe, job.cells, job.out
        self.file = self.out / "last.ckpt"
        self.phase, self.phase_done = 0, False
        self.history: list[dict[str, Any]] = []
        self.searches: dict[str, dict[str, Any]] = {}
        recipe = job.recipe
        torch.manual_seed(recipe.seed)
        self.net = build_net(recipe.net.spec(len(job.cells.codes)))
        load_pretrained(self.net, recipe.net.backbone, recipe.pretrained)
        given = {"mean": recipe.mean, "std": recipe.std}
        self.normal = Normalisation.model_validate({name: value for name, value in given.items() if value})
        self.saved = self._load()
        if not self.saved and recipe.pretrained and recipe.recalibrate:
            self._recalibrate()
        self.net.to(memory_format=torch.channels_last)

    def train(self) -> None:
        """All phases that are still to be done."""
        first = self.phase + self.phase_done
        if not self.saved and not self.recipe.pretrained:
            self._log("no pretrained weights: all layers learn in every phase, at the rate of the head")
        for number in range(first, len(self.recipe.phases)):
            resumes = bool(self.saved) and number == self.phase and not self.phase_done
            self.phase, self.phase_done = number, False
            self._train_phase(self.recipe.phases[number], resumes=resumes)
            self.phase_done = True
            if is_first() and number + 1 < len(self.recipe.phases):
                self._save({"net": self.net.state_dict(), "run": self._state()})

    def _train_phase(self, phase: Phase, *, resumes: bool) -> None:
        before = sum(each.epochs for each in self.recipe.phases[: self.phase])
        targets = self.cells.split("train").targets
        data = NamingData(self.cells, self.recipe, phase, self.normal, before)
        self.net.train().freeze_body(phase.body == "frozen")
        weights = balance_weights(targets, self.recipe.balance)
        module = NamingModule(self.net, self.recipe, self._with_found_rate(phase, data, weights), weights, before)
        best = KeepBest(self.recipe.early_stopping) if self.recipe.early_stopping else None
        trainer = self._trainer(max_epochs=phase.epochs, callbacks=self._callbacks(best))
        if resumes:
            self._log(f"{phase.name}: resumed after epoch {self._epochs(phase)}")
        trainer.fit(module, datamodule=data, ckpt_path=self.file if resumes else None, weights_only=True)
        self.net.cpu()
        if best and best.best:
            self.net.load_state_dict(best.best["weights"])

    def _callbacks(self, best: KeepBest | None) -> list[pl.Callback]:
        early, callbacks = self.recipe.early_stopping, list[pl.Callback]()
        if early and best:
            mode = "max" if early.monitor == "macro_f1" else "min"
            callbacks += [best, EarlyStopping(early.monitor, early.min_delta, early.patience, mode=mode)]
        if self.recipe.ema:
            callbacks.append(EMAWeightAveraging(decay=self.recipe.ema))
        return [*callbacks, EpochEnd(self.file, self._record, self._state)]

    def _trainer(self, **changes: Any) -> pl.Trainer:
        settings: dict[str, Any] = {
            **{"default_root_dir": self.out, "logger": False, "enable_model_summary": False},
            **{"enable_progress_bar": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False},
            **{"precision": self.recipe.precision, **_place(self.recipe)},
        }
        return pl.Trainer(**{**settings, **changes})

    def _with_found_rate(self, phase: Phase, data: NamingData, weights: Any) -> Phase:
        """The phase with the rates that a search gave, where it asks for one; a resumed run knows them already."""
        if not phase.find_rate:
            return phase
        if phase.name not in self.searches:
            self._remove_search_files()
            module = NamingModule(deepcopy(self.net), self.recipe, phase, weights)
            trainer = self._trainer(max_epochs=-1, enable_checkpointing=False, check_val_every_n_epoch=10**6)
            self.searches[phase.name] = find_rate(trainer, module, data)
            if is_first():
                plot_rates(self.searches, self.out / "lr_find.png")
        found = self.searches[phase.name]["rate"]
        if found is None:
            self._log(f"{phase.name}: the rate finder found nothing, the rate stays {phase.learning_rate:g}")
            return phase
        self._log(f"{phase.name}: learning rate {found:.3g} found")
        return phase.scaled(found / phase.learning_rate)

    def _remove_search_files(self) -> None:
        """Searches that were killed leave the weights that they began with."""
        if is_first():
            for left in self.out.glob(".lr_find_*.ckpt"):
                left.unlink()

    def _recalibrate(self) -> None:
        """Fit the BatchNorm statistics of the pretrained body to plain views of some training cells."""
        train = self.cells.split("train")
        rows = chance("recalibration", self.recipe.seed).permutation(len(train))[: self.recipe.recalibrate]
        size = self.recipe.phases[0].input_px or self.recipe.net.input_px
        views = [plain_view(train.pixels[i], float(train.um_per_px[i]), self.recipe.patch_um, size) for i in rows]
        batches = (views[start : start + 32] for start in range(0, len(views), 32))
        recalibrate(self.net, (torch.from_numpy(to_batch(b, self.normal.mean, self.normal.std)) for b in batches))

    def _record(self, figures: dict[str, float]) -> None:
        """Add an epoch to the history, the table, the plot and the log."""
        phase = self.recipe.phases[self.phase]
        self.history.append({"phase": phase.name, **figures})
        if is_first():
            write_text_atomic(self.out / "history.csv", to_csv(list(self.history[0]), self.history))
            plot_losses({"": self.history}, self.out / "losses.png")
        values = " ".join(f"{key} {figures[key]:.4f}" for key in ("train_loss", "valid_loss", "accuracy", "macro_f1"))
        self._log(f"{phase.name} epoch {figures['epoch']}/{phase.epochs} {values} {figures['seconds']:.1f} s")
        if not math.isfinite(figures["valid_loss"]):
            raise ConfigError(
                f"{phase.name}: the training came apart in epoch {figures['epoch']:.0f}: the loss is no number any "
                "more; lower learning_rate, and train into another folder"
            )

    def _log(self, line: str) -> None:
        if is_first():
            with (self.out / "train.log").open("a", encoding="utf-8") as log:
                log.write(line + "\n")
            self.job.report(line)

    def _epochs(self, phase: Phase) -> int:
        return sum(row["phase"] == phase.name for row in self.history)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides Lightning's part; plain values only."""
        return {
            **{"identity": self.job.identity, "phase": self.phase, "phase_done": self.phase_done},
            **{"history": self.history, "searches": self.searches},
        }

    def _save(self, content: dict[str, Any]) -> None:
        part = self.file.with_suffix(".part")
        torch.save(content, part)
        part.replace(self.file)

    def _load(self) -> bool:
        """Take up the state that the same run has left, if there is one."""
        if not self.file.is_file():
            return False
        saved = torch.load(self.file, map_location="cpu", weights_only=True)
        _same(saved["run"]["identity"], self.job.identity, self.out)
        self.phase, self.phase_done = saved["run"]["phase"], saved["run"]["phase_done"]
        self.history, self.searches = saved["run"]["history"], saved["run"]["searches"]
        if self.phase_done:
            self.net.load_state_dict(saved["net"])
        return True

    def finish(self) -> None:
        """Write what a finished run leaves, the summary last, and remove the checkpoint."""
        self.net.freeze_body(False)
        self.net.eval()
        weights = {key: value.detach().contiguous() for key, value in self.net.state_dict().items()}
        save_file(weights, str(self.out / "model.safetensors.part"))
        (self.out / "model.safetensors.part").replace(self.out / "model.safetensors")
        spec = self.recipe.net.spec(len(self.cells.codes), self.recipe.input_px)
        write_text_atomic(self.out / "architecture.yaml", yaml.safe_dump(spec.model_dump(), sort_keys=False))
        write_text_atomic(self.out / "summary.json", json.dumps(self._summary(), indent=2) + "\n")
        self.file.unlink(missing_ok=True)

    def _summary(self) -> dict[str, Any]:
        logits, targets = self._validation_logits()
        phases = [self._kept(phase) for phase in self.recipe.phases]
        return {
            "train_loss": phases[-1]["train_loss"],
            **validation_figures(logits, targets),
            "epochs": len(self.history),
            "seconds": round(sum(row["seconds"] for row in self.history), 1),
            "seconds_per_cell": self._seconds_per_cell(),
            "temperature": fit_temperature(logits.numpy(), targets.numpy()),
            "codes": list(self.cells.codes),
            "embedding": self.net.embedding,
            "cells": {name: len(self.cells.split(name)) for name in ("train", "val")},
            "phases": phases,
            **{"mean": self.normal.mean, "std": self.normal.std, "input_px": self.recipe.input_px},
            "recipe": self.recipe.model_dump(mode="json"),
            "identity": self.job.identity,
        }

    def _kept(self, phase: Phase) -> dict[str, Any]:
        """The figures of the epoch whose weights a phase kept, and how many epochs it had."""
        rows = [row for row in self.history if row["phase"] == phase.name]
        early = self.recipe.early_stopping
        if early:
            sign = 1 if early.monitor == "macro_f1" else -1
            return {**max(rows, key=lambda row: sign * row[early.monitor]), "epochs": len(rows)}
        return {**rows[-1], "epochs": len(rows)}

    def _validation_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(N, K)` and targets `(N, K) bool` of the validation cells, in single precision."""
        phase = self.recipe.phases[-1]
        module = NamingModule(self.net, self.recipe, phase, np.ones(len(self.cells.codes), np.float32))
        trainer = self._trainer(devices=1, precision="32-true", enable_checkpointing=False)
        batches = trainer.predict(module, datamodule=NamingData(self.cells, self.recipe, phase, self.normal)) or []
        self.net.cpu()
        logits, targets = zip(*batches, strict=True)
        return torch.cat(logits).cpu(), torch.cat(targets).cpu()

    def _seconds_per_cell(self, batch: int = 8) -> float:
        """Bare network time on the CPU, the best of three batches."""
        side = self.recipe.input_px
        views = torch.zeros(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        times = []
        with torch.inference_mode():
            self.net(views)
            for _ in range(3):
                start = time.perf_counter()
                self.net(views)
                times.append(time.perf_counter() - start)
        return round(min(times) / batch, 6)
