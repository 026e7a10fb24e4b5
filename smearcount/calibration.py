"""How sure a classifier may say it is: the temperature of its softmax, and what a threshold of abstention costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools

__all__ = ["TEMPERATURES", "abstention_rows", "fit_temperature"]

TEMPERATURES = (0.05, 20.0)
"""Limits of a fitted temperature. Cells that are named no better than by chance end at the upper one."""

_STEPS = 61

Floats = npt.NDArray[np.floating[Any]]


def fit_temperature(logits: Floats, targets: Bools) -> float:
    """The temperature T at which softmax(z / T) gives the labels of held cells the least cross-entropy.

    Temperature scaling after Guo et al. 2017, arXiv 1706.04599, section 4.2, against Platt's targets (1999, Advances in
    Large Margin Classifiers 61): of n cells each is one of its allowed codes with (n + 1) / (n + 2) and another one
    with 1 / (n + 2). So a handful of cells that are all named rightly does not end in certainty, and among thousands
    the targets are as good as 1 and 0. The probability of several allowed codes is their sum; there may be several
    minima then, and the lowest is taken.

    Args:
        logits: `(N, K)`, the network's output z before the softmax.
        targets: `(N, K) bool`, the codes that a cell may be, at least one each.

    Returns:
        T within `TEMPERATURES`; more than 1 where the network was too sure of itself.

    Raises:
        ValueError: the arrays don't fit each other, a logit is not finite, or no cell rules any code out.
    """
    from scipy.optimize import minimize_scalar

    _check("logits", logits, targets)
    telling = ~targets.all(axis=1)
    if not telling.any():
        raise ValueError(f"targets: expected cells that rule some code out, got none among {len(targets)}")
    z, allowed = logits[telling].astype(np.float64), targets[telling]
    doubt = 1 / (len(z) + 2)

    def loss(log_t: float) -> float:
        scaled = z / math.exp(log_t)
        right, wrong = (_log_sum_exp(np.where(codes, scaled, -np.inf)) for codes in (allowed, ~allowed))
        return float((_log_sum_exp(scaled) - (1 - doubt) * right - doubt * wrong).mean())

    grid = np.linspace(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]), _STEPS)
    losses = [loss(log_t) for log_t in grid.tolist()]
    best = int(np.argmin(losses))
    around = grid[max(best - 1, 0)], grid[min(best + 1, _STEPS - 1)]
    refined = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
    log_t = float(refined.x) if refined.fun < losses[best] else float(grid[best])
    return min(max(math.exp(log_t), TEMPERATURES[0]), TEMPERATURES[1])


def abstention_rows(probs: Floats, targets: Bools, thresholds: Iterable[float]) -> list[tuple[float, float, float]]:
    """What is left unnamed, and how right the rest is, where cells below a threshold get no name.

    Args:
        probs: `(N, K) float32`, rows sum to 1.
        targets: `(N, K) bool`, the codes that a cell may be; the most probable code is right if it is among them.
        thresholds: a cell whose best probability is below is not named, compared in float32 as the product does.

    Returns:
        For each threshold itself, the share of the cells that is abstained from, and the accuracy of the rest, which
        is NaN where nothing is left.

    Raises:
        ValueError: the arrays don't fit each other, or there is no cell.
    """
    _check("probs", probs, targets)
    if not len(probs):
        raise ValueError("probs: expected at least one cell, got none")
    sureness = probs.max(axis=1).astype(np.float32)
    right = targets[np.arange(len(probs)), probs.argmax(axis=1)]
    rows = []
    for threshold in thresholds:
        named = sureness >= np.float32(threshold)
        accuracy = float(right[named].mean()) if named.any() else math.nan
        rows.append((float(threshold), float(1 - named.mean()), accuracy))
    return rows


def _check(name: str, values: Floats, targets: Bools) -> None:
    if values.ndim != 2 or values.shape != targets.shape or targets.dtype != np.bool_:
        expected = f"{name} (N, K) and targets (N, K) bool"
        raise ValueError(f"expected {expected}, got {values.shape} and {targets.shape} {targets.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite numbers, got a NaN or an infinity")
    if not targets.any(axis=1).all():
        raise ValueError("targets: a cell without any code")


def _log_sum_exp(values: Floats) -> Floats:
    """Logarithm of the sum of the exponentials of each row `(N, K)`, without overflow."""
    top = values.max(axis=1)
    return np.asarray(top + np.log(np.exp(values - top[:, None]).sum(axis=1)), np.float64)
