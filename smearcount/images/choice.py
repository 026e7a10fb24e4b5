"""Which of the pictures in one file is meant: by rule, or another one by number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smearcount.errors import ImageError

__all__ = ["PageChoice"]


@dataclass(frozen=True)
class PageChoice:
    """What a person chose; what is None goes by rule.

    By rule a file gives the full resolution of its first picture, all its colours; of a stack the middle focus plane
    at the first time. Channels that stand on pages of their own have no rule: one must be named.

    Attributes:
        page: of a multi-page TIFF, from 1.
        level: of a pyramid, from 0, which is the full resolution.
        channel: from 1, shown grey.
    """

    page: int | None = None
    level: int | None = None
    channel: int | None = None

    def refuse(self, path: Path, kind: str, *names: str) -> None:
        """Refuse what can't be chosen in a file of this kind; the first page, level and channel are always there.

        Args:
            path: the file.
            kind: what it is, such as `JPEG`.
            names: the attributes to refuse.

        Raises:
            ImageError: one of them was chosen.
        """
        for name in names:
            value = getattr(self, name)
            first = {"page": 1, "level": 0}.get(name)
            if value is not None and value != first:
                has = "is read in colour" if name == "channel" else f"has one {name}"
                raise ImageError(f"{path}: {name} {value} was asked for, but a {kind} {has}; leave the {name} out")
