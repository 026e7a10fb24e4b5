"""Text and samples in a panel: fonts, wrapping, and rows rendered to pixels."""

from __future__ import annotations

import bisect
import importlib.util
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smearcount.arrays import Pixels
from smearcount.outlines import Pen, rings, stroke

__all__ = ["ALERT", "FAINT", "INK", "PAPER", "Face", "Row", "Span", "face_for", "letters", "render_rows", "wrap"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, FAINT, ALERT = (252, 252, 252), (20, 20, 24), (95, 95, 102), (165, 60, 0)


@dataclass(frozen=True)
class Face:
    """Fonts and measures of a panel: text size, and the width of a column with its margins."""

    plain: Font
    bold: Font
    small: Font
    plain_letters: bool
    size: int
    column: int

    @property
    def leading(self) -> int:
        """From one base line to the next in pixels."""
        return round(1.4 * self.size)

    @property
    def inner(self) -> int:
        """Width between the margins in pixels."""
        return self.column - 2 * self.margin

    @property
    def margin(self) -> int:
        """Width of a margin in pixels."""
        return self.size // 2


@lru_cache(maxsize=8)
def face_for(size: int, column: int) -> Face:
    """DejaVu Sans as matplotlib ships it (found without importing it), else Pillow's own font, which is ASCII only."""
    found = importlib.util.find_spec("matplotlib")
    places = found.submodule_search_locations if found else None
    folder = Path(next(iter(places or ("",)))) / "mpl-data" / "fonts" / "ttf"
    little = max(9, round(0.8 * size))
    files = [(folder / "DejaVuSans.ttf", size), (folder / "DejaVuSans-Bold.ttf", size)]
    files.append((files[0][0], little))
    if all(file.is_file() for file, _ in files):
        plain, bold, small = (ImageFont.truetype(*file, layout_engine=ImageFont.Layout.BASIC) for file in files)
        return Face(plain, bold, small, False, size, column)
    own = ImageFont.load_default(size)
    return Face(own, own, ImageFont.load_default(little), True, size, column)


@dataclass(frozen=True)
class Span:
    """A text in a row: its left edge and width inside the margins, in pixels."""

    text: str
    left: float
    width: float
    flush_right: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a panel: texts side by side, wrapped each, with a sample or a scale bar where there is one.

    Attributes:
        spans: the texts.
        bold: whether they are.
        small: the same.
        colour: RGB of the texts.
        lines: most lines of each.
        pen: of the sample outline.
        tint: RGB of the sample area.
        bar_px: length of the scale bar; 0 for none.
    """

    spans: tuple[Span, ...] = ()
    bold: bool = False
    small: bool = False
    colour: tuple[int, ...] = INK
    lines: int = 2
    pen: Pen | None = None
    tint: tuple[int, ...] | None = None
    bar_px: int = 0


def wrap(text: str, font: Font, width: float, max_lines: int) -> list[str]:
    """`text` in at most `max_lines` lines no wider than `width` pixels; the last one ends in an ellipsis if need be."""

    def fitting(part: str, room: float) -> int:
        return bisect.bisect_right(range(1, len(part) + 1), room, key=lambda n: font.getlength(part[:n]))

    rest = " ".join(text.split())[:2000]
    lines: list[str] = []
    while rest and len(lines) < max_lines:
        n = fitting(rest, width)
        if n == len(rest):
            cut, end = n, ""
        elif len(lines) == max_lines - 1:
            cut, end = fitting(rest, width - font.getlength("…")), "…"
        else:
            cut, end = max(rest.rfind(" ", 0, n + 1), 0) or max(n, 1), ""
        lines.append(rest[:cut].rstrip() + end)
        rest = rest[cut:].lstrip()
    return lines or [""]


def render_rows(rows: Sequence[Row], face: Face) -> Pixels:
    """The rows as a picture `(h, face.column, 3) uint8 RGB`."""
    laid, y = [], face.margin
    for row in rows:
        font = face.bold if row.bold else face.small if row.small else face.plain
        texts = [wrap(letters(span.text, face), font, span.width, row.lines) for span in row.spans]
        laid.append((row, font, texts, y))
        y += face.leading * max((len(lines) for lines in texts), default=1)
    image = Image.new("RGB", (face.column, y), PAPER)
    draw = ImageDraw.Draw(image)
    for row, font, texts, top in laid:
        for span, lines in zip(row.spans, texts, strict=True):
            for n, line in enumerate(lines):
                slack = span.width - font.getlength(line) if span.flush_right else 0
                place = (face.margin + span.left + slack, top + n * face.leading + face.size)
                draw.text(place, line, fill=row.colour, font=font, anchor="ls")
    pixels = np.array(image)
    for row, _, _, top in laid:
        box = np.array([face.margin, top, face.margin + 1.9 * face.size, top + face.leading], np.float64)
        if row.tint:
            left, above, right, below = (round(v) for v in box + 0.15 * face.size * np.array([1, 1, -1, -1]))
            pixels[above:below, left:right] = row.tint
        if row.pen:
            thick = row.pen.line_px + 2 * row.pen.casing_px
            box += np.array([1, 1, -1, -1]) * (thick + 0.1 * face.size)
            stroke(pixels, (0, 0), rings(box, np.array(pixels.shape[1::-1]), row.pen), row.pen)
        middle, thick = top + face.leading // 2, max(2, face.size // 4)
        pixels[middle : middle + thick, face.margin : face.margin + row.bar_px] = INK
    return pixels


def letters(text: str, face: Face) -> str:
    """The text in letters that the font has."""
    if not face.plain_letters:
        return text
    spelled = unicodedata.normalize("NFKD", text.translate({0xB5: "u", 0x3BC: "u", 0x2013: "-", 0xD7: "x"}))
    return "".join(c if c.isascii() else "?" for c in spelled if not unicodedata.combining(c))
