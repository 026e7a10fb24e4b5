"""The engine without workers: one task after the other in this process, for scripts and for finding faults."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from smearcount.engines.contract import Results, Work

__all__ = ["run_here"]


def run_here(work: Work, tasks: Sequence[Any]) -> Generator[Results, None, None]:
    """Yield one result at a time. What kills this process ends the run."""
    if not tasks:
        return
    call = work.start(0)
    for number, task in enumerate(tasks):
        yield [(number, call(task))]
