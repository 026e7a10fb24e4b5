"""The annotated picture that a person checks: outlines on the photograph, everything else beside it.

Legend, counts, scale bar and origin stand on paper added outside the picture, so that they never hide a cell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import cv2
import numpy as np

from smearcount.arrays import Pixels
from smearcount.countable import COLOURS, TINT
from smearcount.geometry import resize_rgb
from smearcount.images import PixelSource
from smearcount.outlines import WEIGHTS, Pen, colour_of, draw_outlines, label_keys, outline_style
from smearcount.panel import ALERT, FAINT, PAPER, Face, Row, Span, face_for, letters, render_rows
from smearcount.quality import remarks, warnings_of
from smearcount.records import UNCLASSIFIED, SmearResult
from smearcount.region import Region
from smearcount.report import percent_number, percent_text, summary_lines
from smearcount.taxonomy import Taxonomy

__all__ = ["dim_outside", "draw_overlay", "read_reduced", "reduction", "scale_bar"]

_XY = tuple[int, int]

_BARS_UM = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_SMALL_PX = 500
_MOST_PIXELS = 60_000_000
"""Beyond it a picture is shown reduced: a whole slide would fill the memory, and no screen shows it."""

_DIMMED = 0.35
"""Share of black in what is not counted."""

_BLOCK_PX = 2048
_COLUMN = (26.0, 33.0)
_SAMPLE = 2.4
"""Least and greatest width of a column, and the room of a sample outline, in sizes of the text."""

_HEADING = ("type", "count", "% of all cells (95 %)")
_FOOTNOTE = "limits: sampling error only"
_FOOTNOTE_OF_CODES = "below a kind: % of its named cells; "
_BLOCK_ROWS = (8, 30)
"""A legend goes on in another block, which may stand in the next column, at a kind after 8 rows, anywhere after 30."""


@dataclass(frozen=True)
class _Entry:
    """A line of the legend: name and figures of a type of a kind, and a tint, or the cells that have an outline."""

    name: str
    count: str
    share: str
    nested: bool = False
    key: tuple[str, str] | None = None
    kind: str = ""
    pen: Pen | None = None
    tint: tuple[int, ...] | None = None


def _counted_entries(result: SmearResult, taxonomy: Taxonomy, present: Collection[tuple[str, str]]) -> list[_Entry]:
    """The lines of the counts, each with the cells it stands for: those of a code, or of a kind without names."""
    lines = summary_lines(result, taxonomy)
    entries, kind = [], ""
    for line, after in zip(lines, [*lines[1:], None], strict=True):
        kind = kind if line.level else line.key
        only = taxonomy.codes_of(kind)[:1] if len(taxonomy.codes_of(kind)) == 1 else ()
        names = (line.key,) if line.level else () if after and after.level else (*only, UNCLASSIFIED)
        key = next(((kind, name) for name in names if (kind, name) in present), None)
        entries.append(_Entry(line.name, f"{line.count:,}", percent_text(line.share), line.level > 0, key, kind))
    return entries


def _entries(result: SmearResult, taxonomy: Taxonomy, line_px: float) -> list[_Entry]:
    """The lines of the legend: those of the counts, types of a kind of which no cell counts, what a dashed line is."""
    keys = label_keys(result)
    present, counts = set(keys), Counter(key for key, counts in zip(keys, result.counted, strict=True) if counts)
    entries = _counted_entries(result, taxonomy, present)
    nested = any(entry.nested for entry in entries)
    kinds = {str(kind): entry.name for kind, entry in taxonomy.kinds.items()}
    for key in product(kinds, (*taxonomy.codes, UNCLASSIFIED)):
        if key in present and all(entry.key != key for entry in entries):
            name = f"{kinds[key[0]]}, unclassified" if key[1] == UNCLASSIFIED else taxonomy.codes[key[1]].name
            place = max((n for n, entry in enumerate(entries, 1) if entry.kind == key[0]), default=len(entries))
            entries.insert(place, _Entry(name, f"{counts[key]:,}", "", nested, key, key[0]))
    for n, entry in enumerate(entries):
        if entry.key:
            line = line_px * WEIGHTS[entry.key[0]]
            entries[n] = replace(entry, pen=Pen(colour_of(entry.key, taxonomy), line, line_px / 2, False))
    if not result.counted.all():
        dashed = Pen(FAINT, line_px, line_px / 2, True)
        entries.append(_Entry("not counted (dashed)", f"{int((~result.counted).sum()):,}", "", nested, pen=dashed))
    return entries + _tint_entries(result)


def _tint_entries(result: SmearResult) -> list[_Entry]:
    """What the tints stand for, each with the cells that are not counted for it, and the share of the picture."""
    shares, cells = result.quality.shares, result.counts.excluded
    return [
        _Entry(
            f"tinted: {name}",
            f"{cells.get(name, 0):,}",
            f"{percent_number(100 * shares[name])} % of the area",
            tint=tuple(round((1 - TINT) * light + TINT * c) for light, c in zip(PAPER, colour, strict=True)),
        )
        for name, colour in COLOURS.items()
        if shares.get(name)
    ]


def _widths(entries: Sequence[_Entry], face: Face) -> tuple[float, float, float]:
    """Widths in pixels that names with their samples, counts and shares need."""
    shown = [(entry.name, entry.count, entry.share) for entry in entries]
    name, count, share = (
        max(face.small.getlength(head), *(face.bold.getlength(letters(row[n], face)) for row in shown))
        for n, head in enumerate(_HEADING)
    )
    return _SAMPLE * face.size + name + face.size / 2, count + face.size / 2, share + face.size


def _face(entries: Sequence[_Entry], size: int) -> Face:
    """Text of `size` pixels in columns as wide as the legend needs, within limits."""
    narrow = face_for(size, round(_COLUMN[0] * size))
    needed = math.ceil(sum(_widths(entries, narrow))) + 2 * narrow.margin
    return replace(narrow, column=min(max(needed, narrow.column), round(_COLUMN[1] * size)))


def _legend(entries: Sequence[_Entry], face: Face) -> list[list[Row]]:
    """Rows of the legend in blocks: sample, type, count and share; the first block has the heading."""
    _, count, share = _widths(entries, face)
    count, share = min(count, 0.2 * face.inner), min(share, 0.5 * face.inner)
    name, nested = face.inner - count - share, any(entry.nested for entry in entries)

    def spans(texts: tuple[str, str, str], left: float) -> tuple[Span, ...]:
        first, *figures = texts
        places = ((name, count), (name + count, share))
        return Span(first, left, name - left), *(Span(t, *at, True) for t, at in zip(figures, places, strict=True))

    blocks = [[Row(spans(_HEADING, 0), small=True, colour=FAINT)]]
    for entry in entries:
        if len(blocks[-1]) > _BLOCK_ROWS[entry.nested]:
            blocks.append([])
        left = _SAMPLE * face.size if entry.pen or entry.tint or not nested else 0
        texts = (entry.name, entry.count, entry.share)
        bold = nested and not entry.nested and not entry.tint
        blocks[-1].append(Row(spans(texts, left), bold=bold, pen=entry.pen, tint=entry.tint))
    foot = Span(_FOOTNOTE_OF_CODES * nested + _FOOTNOTE, 0, face.inner)
    blocks[-1].append(Row((foot,), small=True, colour=FAINT))
    return blocks


def reduction(size_wh: tuple[int, int]) -> int:
    """The whole number by which a picture of `size_wh` is shown reduced; 1 up to 60 megapixels."""
    return max(1, math.ceil(math.sqrt(size_wh[0] * size_wh[1] / _MOST_PIXELS)))


def read_reduced(source: PixelSource, factor: int) -> Pixels:
    """The picture with the mean of `factor` x `factor` pixels as one, read block by block.

    Returns:
        `(ceil(H / factor), ceil(W / factor), 3) uint8 RGB`; where the sides do not divide, the last pixel is repeated.
    """
    width, height = source.size_wh
    if factor == 1:
        return source.read(0, 0, width, height)
    reduced = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    side = max(1, _BLOCK_PX // factor)
    for top, left in product(range(0, len(reduced), side), range(0, reduced.shape[1], side)):
        part = reduced[top : top + side, left : left + side]
        h, w = part.shape[0] * factor, part.shape[1] * factor
        x, y = left * factor, top * factor
        block = source.read(x, y, min(w, width - x), min(h, height - y))
        block = np.pad(block, ((0, h - block.shape[0]), (0, w - block.shape[1]), (0, 0)), "edge")
        part[:] = cv2.resize(block, part.shape[1::-1], interpolation=cv2.INTER_AREA)
    return reduced


def dim_outside(pixels: Pixels, region: Region, size_wh: tuple[int, int]) -> Pixels:
    """A picture, at any size, darkened where a region of it is not.

    Args:
        pixels: `(h, w, 3) uint8 RGB`.
        region: in pixels of the picture at its full size.
        size_wh: that size.
    """
    inside = region.mask((pixels.shape[1], pixels.shape[0]), size_wh)
    dimmed = cv2.convertScaleAbs(pixels, alpha=1 - _DIMMED)
    return np.where(inside[..., None] != 0, pixels, dimmed).astype(np.uint8, copy=False)


def scale_bar(um_per_px: float, room_px: float) -> tuple[float, int] | None:
    """The longest round scale bar that fits `room_px` pixels: micrometres and pixels, or None where none fits."""
    fitting = [um for um in _BARS_UM if um / um_per_px <= room_px]
    return (fitting[-1], round(fitting[-1] / um_per_px)) if fitting else None


def _blocks(
    result: SmearResult, taxonomy: Taxonomy, entries: Sequence[_Entry], zoom: float, face: Face
) -> list[Pixels]:
    def text(words: str, rows: int = 4, **look: Any) -> Row:
        return Row((Span(words, 0, face.inner),), lines=rows, **look)

    cells, counted, scale, made = (len(result.detections), int(result.counted.sum()), result.scale, result.provenance)
    bar = scale_bar(scale.um_per_px / zoom, face.inner)
    head = [text(result.image_id, bold=True), text(f"cells found: {cells}, counted: {counted}", colour=FAINT)]
    origin = [f"smearcount {made.version}, {', '.join(made.model_ids)}", "Research use only, no medical device"]
    origin += [f"Shown magnified {zoom:g} times"] * (zoom > 1) + [f"Shown at 1/{1 / zoom:g} size"] * (zoom < 1)
    advice = [text(f"! {words}", 8, colour=ALERT) for words in warnings_of(result, taxonomy)]
    advice += [text(words, 8, colour=FAINT) for words in (*result.reading, *remarks(result, taxonomy))]
    size = f"{scale.um_per_px:.3g} µm per pixel ({scale.source})"
    ruler = [Row(bar_px=bar[1]), text(f"{bar[0]:g} µm")] if bar else []
    parts = [
        head,
        *_legend(entries, face),
        [*ruler, text(size, colour=FAINT)],
        advice,
        [text(words, 8, colour=FAINT) for words in origin],
    ]
    return [render_rows(rows, face) for rows in parts if rows]


def _layout(heights: list[int], photo_wh: tuple[int, int], column: int) -> tuple[_XY, list[_XY]]:
    """Canvas `(width, height)` and corner `(x, y)` of each block: beside or below the photograph, least area wins."""
    width, height = photo_wh
    options = []
    for limit in (height, *(sum(heights[i:j]) for i, j in combinations(range(len(heights) + 1), 2))):
        places, x, y = [], 0, 0
        for tall in heights:
            if y and y + tall > limit:
                x, y = x + column, 0
            places.append((x, y))
            y += tall
        deep = max(y + tall for (_, y), tall in zip(places, heights, strict=True))
        beside = (width + x + column, max(height, deep)), (width, 0), places
        below = (max(width, x + column), height + deep), (0, height), places
        options += [beside, below]
    canvas, (left, top), places = min(options, key=lambda option: option[0][0] * option[0][1])
    return canvas, [(left + x, top + y) for x, y in places]


def draw_overlay(pixels: Pixels, result: SmearResult, taxonomy: Taxonomy, factor: int = 1) -> Pixels:
    """The photograph with every cell outlined, and a panel beside or below it.

    A picture under 500 px is shown magnified by a whole number. The photograph keeps the top-left corner.

    Args:
        pixels: `(H, W, 3) uint8 RGB`, left as it is; reduced by `factor` as `read_reduced` does it.
        result: the cells of this picture.
        taxonomy: names and colours of kinds and codes.
        factor: by how much the pixels are reduced.

    Returns:
        `(H', W', 3) uint8 RGB`.

    Raises:
        ValueError: the pixels are not those of the result, or a name is no code of the taxonomy.
    """
    width, height = (-(-side // factor) for side in result.size_wh)
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels: expected uint8 {(height, width, 3)}, got {pixels.dtype} {pixels.shape}")
    magnified = 1 if factor > 1 else max(1, math.ceil(_SMALL_PX / max(width, height)))
    zoom = magnified / factor
    style = outline_style(result, taxonomy, zoom)
    shown = (width * magnified, height * magnified)
    size = max(12, round(math.sqrt(shown[0] * shown[1]) / 48))
    entries = _entries(result, taxonomy, size / 6)
    face = _face(entries, size)
    blocks = _blocks(result, taxonomy, entries, zoom, face)
    canvas_wh, places = _layout([len(block) for block in blocks], shown, face.column)
    canvas = np.full((canvas_wh[1], canvas_wh[0], 3), PAPER, np.uint8)
    photo = canvas[: shown[1], : shown[0]]
    photo[:] = resize_rgb(pixels, *shown)
    draw_outlines(photo, (0, 0), result, style)
    for block, (x, y) in zip(blocks, places, strict=True):
        canvas[y : y + len(block), x : x + face.column] = block
    return canvas
