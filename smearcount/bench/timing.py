"""Laps of contenders in turn, their medians, and the check that they do equal work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from smearcount.errors import SmearcountError
from smearcount.records import Detections

__all__ = ["Contender", "Lap", "Laps", "alternate", "check_counts", "lap", "tally", "unevenness"]

Contender = Callable[[], object]


@dataclass(frozen=True)
class Lap:
    """One run of a contender.

    Attributes:
        wall: seconds by the clock.
        cpu: seconds of processor time of this process, all threads together: without what other programs take, but
            without child processes too, and with threads that only wait.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Laps:
    """The laps of one contender; `wall` and `cpu` are medians in seconds."""

    laps: tuple[Lap, ...]

    @property
    def wall(self) -> float:
        """Median seconds by the clock."""
        return median(each.wall for each in self.laps)

    @property
    def fastest(self) -> float:
        """Fewest seconds by the clock: those of the lap that other programs disturbed least."""
        return min(each.wall for each in self.laps)

    @property
    def cpu(self) -> float:
        """Median seconds of processor time."""
        return median(each.cpu for each in self.laps)


def lap(call: Contender) -> Lap:
    """Run once."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Lap(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(contenders: Mapping[str, Contender], rounds: int, *, warm: bool = True) -> dict[str, Laps]:
    """Laps of each contender, round by round in turn.

    Args:
        contenders: what is timed, by name.
        rounds: laps of each.
        warm: each lap follows one of the same contender that is not timed; for short ones, whose caches the others
            have emptied.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            if warm:
                call()
            laps[name].append(lap(call))
    return {name: Laps(tuple(each)) for name, each in laps.items()}


def tally(cells: Detections) -> dict[str, int]:
    """Number of cells of each kind, and of all."""
    kinds, numbers = np.unique(cells.kinds, return_counts=True)
    return {str(kind): int(number) for kind, number in zip(kinds, numbers, strict=True)} | {"all": len(cells)}


def check_counts(ours: Mapping[str, int], theirs: Mapping[str, int], rival: str, tolerance: float) -> float:
    """The number of all cells of a rival over ours.

    Raises:
        SmearcountError: they differ by more than `tolerance`, so that times could not be compared.
    """
    ratio = theirs["all"] / ours["all"] if ours["all"] else 1.0 + theirs["all"]
    if not abs(ratio - 1) <= tolerance:
        raise SmearcountError(
            f"{rival} counts {dict(theirs)}, where smearcount counts {dict(ours)}: more than {100 * tolerance:g} % "
            "apart, so their times can't be compared; give another picture"
        )
    return round(ratio, 5)


def unevenness(values: Mapping[str, float]) -> float:
    """By how much the largest value exceeds the smallest, as a share."""
    return round(max(values.values()) / min(values.values()) - 1, 4)
