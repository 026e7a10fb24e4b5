"""Around the trainings of classifiers: a quiet Lightning on all cores, the search for a learning rate, the plots."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner

from smearcount.arrays import Doubles
from smearcount.images import write_bytes_atomic
from smearcount.training.naming_data import NamingData
from smearcount.training.naming_module import NamingModule

__all__ = ["all_cores", "find_rate", "plot_losses", "plot_rates", "quiet_lightning", "steepest"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning_utilities.core.rank_zero")
_ADVICE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The '\w+_dataloader' does not have many workers",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r"GPU available but not used",
)
"""Beginnings of warnings that ask nothing of whoever trains."""

_WARM_UP = 10
"""First steps that are left out: the mean of so few losses is mostly chance."""

_BETA = 0.98
"""Share of the old value in the tuner's running mean of the losses."""


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning without its advice."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in _ADVICE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """PyTorch on as many threads as there are cores for this process, or as `OMP_NUM_THREADS` says.

    OpenCV has one: views are small, and the cells of a batch are shared out among threads already.
    """
    before, opencv_before = torch.get_num_threads(), cv2.getNumThreads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores or before))
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(opencv_before)


def find_rate(trainer: pl.Trainer, module: NamingModule, data: NamingData) -> dict[str, Any]:
    """Raise one learning rate for all layers in 100 steps, and take it where the loss falls most steeply.

    The sweep of Smith 2017, arXiv 1506.01186, is the one of Lightning's tuner. The slope is taken over the logarithm of
    the rate: over the rate itself, as the tuner suggests, the noise of the smallest rates would win.

    Args:
        trainer: without an end of its own.
        module: trained on the way; to be thrown away.
        data: of the phase.

    Returns:
        `rate`, None where the loss never fell, and the curve as `rates` and `losses`.
    """
    # The tuner's own progress bar can't be switched off.
    with contextlib.redirect_stderr(io.StringIO()):
        finder = Tuner(trainer).lr_find(
            module, datamodule=data, min_lr=1e-7, max_lr=1.0, num_training=100, update_attr=False
        )
    if finder is None:
        raise RuntimeError("Lightning's rate finder gave nothing back")
    rates, losses = (np.asarray(finder.results[key], float) for key in ("lr", "loss"))
    kept = slice(_WARM_UP, -1)
    rates, losses = rates[kept], _unbiased(losses)[kept]
    return {"rate": steepest(rates, losses), "rates": rates.tolist(), "losses": losses.tolist()}


def _unbiased(losses: Doubles) -> Doubles:
    """The tuner's running means `(N,)`, divided by their weights 1 - beta^n after n steps.

    The tuner divides by those of a step more (Lightning 2.x), so that the curve would rise from too low a beginning and
    hide the first falls. The weights are those of Kingma and Ba 2015, arXiv 1412.6980.
    """
    n = np.arange(1, len(losses) + 1)
    return np.asarray(losses * (1 - _BETA ** (n + 1)) / (1 - _BETA**n), np.float64)


def steepest(rates: Doubles, losses: Doubles) -> float | None:
    """The rate at which the loss falls most over the logarithm of the rate; None where it never falls.

    Args:
        rates: `(N,)`, rising.
        losses: `(N,)`; what is not finite is left out.
    """
    finite = np.isfinite(losses)
    if finite.sum() < 2:
        return None
    slopes = np.gradient(losses[finite], np.log(rates[finite]))
    lowest = int(slopes.argmin())
    return float(rates[finite][lowest]) if slopes[lowest] < 0 else None


def plot_rates(searches: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Loss over learning rate, one line for each phase that searched, the rate taken as a dot."""
    figure = _figure()
    axes = figure.add_subplot(xlabel="learning rate", ylabel="loss (running mean)", xscale="log")
    for name, search in searches.items():
        (line,) = axes.plot(search["rates"], search["losses"], label=name)
        if search["rate"] is not None:
            place = search["rates"].index(search["rate"])
            axes.plot(search["rate"], search["losses"][place], "o", color=line.get_color())
    axes.legend()
    _save(figure, file)


def plot_losses(histories: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Training (dotted) and validation loss over the epochs of some runs, a grey line where a phase begins.

    Args:
        histories: rows of `history.csv` of each run, by its name; the name of a single run may be empty.
        file: a PNG picture.
    """
    figure = _figure()
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss")
    for name, rows in histories.items():
        epochs = range(1, len(rows) + 1)
        training, validation = ([float(row[key]) for row in rows] for key in ("train_loss", "valid_loss"))
        (line,) = axes.plot(epochs, validation, ".-", label=f"{name} validation".strip())
        axes.plot(epochs, training, ":", color=line.get_color(), label=f"{name} training".strip())
        for epoch, (before, row) in enumerate(zip(rows, rows[1:], strict=False), 1):
            if before["phase"] != row["phase"]:
                axes.axvline(epoch + 0.5, color="0.8", linewidth=0.8, zorder=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", ncols=max(1, math.ceil(len(histories) / 8)))
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_bytes_atomic(file, stream.getvalue())


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
