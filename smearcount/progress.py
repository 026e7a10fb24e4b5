"""How long works tell how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["Progress", "Report"]

Progress = Callable[[Iterable[Path]], Iterable[Path]]
"""Gives the pictures back one by one, and shows how many are done; `iter` shows nothing."""

Report = Callable[[str], None]
"""Takes lines for whoever watches."""
