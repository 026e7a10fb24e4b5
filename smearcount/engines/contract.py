"""What an engine is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Engine", "Lost", "Results", "Work"]


class Work(Protocol):
    """What every worker does; it is pickled and sent to them, so it holds settings, not models."""

    def start(self, threads: int) -> Callable[[Any], Any]:
        """Load what is needed, once a worker, and return the function of one task.

        Args:
            threads: CPU threads of this worker; 0 leaves it to the libraries.
        """


@dataclass(frozen=True)
class Lost:
    """A task whose worker died each time it was tried.

    Attributes:
        reason: how the worker ended, in a few words.
    """

    reason: str


Results = list[tuple[int, Any]]
"""Index of a task and what the function returned for it, or `Lost`; in the order in which they were finished."""

Engine = Callable[[Work, Sequence[Any]], Generator[Results, None, None]]
"""Yields what has been finished since it was last asked, every task exactly once; closing it ends all workers."""
