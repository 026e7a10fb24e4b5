"""The annotated picture that a person checks: outlines on the photograph, everything else beside it.

Legend, counts, scale bar and origin stand on paper added outside the picture, so that they never hide a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.detector import PixelSource
from smearcount.geometry import resize_rgb
from smearcount.outlines import WEIGHTS, Pen, colour_of, draw_outlines, label_keys, outline_style
from smearcount.panel import ALERT, FAINT, PAPER, Face, Row, Span, face_for, render_rows
from smearcount.quality import remarks, warnings_of
from smearcount.records import UNCLASSIFIED, SmearResult
from smearcount.taxonomy import Taxonomy

__all__ = ["draw_overlay", "read_reduced", "reduction", "scale_bar"]

Pixels = npt.NDArray[np.uint8]
_XY = tuple[int, int]

_BARS_UM = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_SMALL_PX = 500
_MOST_PIXELS = 60_000_000
"""Beyond it a picture is shown reduced: a whole slide would fill the memory, and no screen shows it."""

_BLOCK_PX = 2048
_HEADING = ("type", "count", "% of all cells (95 %)")
_FOOTNOTE = "limits: sampling error only"
_FOOTNOTE_OF_CODES = "indented: % of the named cells of their kind; "


def _table(lines: Sequence[tuple[str, str, str]], face: Face) -> list[Row]:
    if not lines:
        return []
    wide = [
        max(face.small.getlength(_HEADING[n]), *(face.bold.getlength(line[n]) for line in lines)) + face.size / 2
        for n in (1, 2)
    ]
    count, share = min(wide[0], 0.2 * face.inner), min(wide[1], 0.5 * face.inner)
    kind = face.inner - count - share

    def spans(line: tuple[str, str, str]) -> tuple[Span, ...]:
        indent = min(len(line[0]) - len(line[0].lstrip()), 4) * face.size / 2
        first = Span(line[0], indent, kind - indent)
        return first, Span(line[1], kind, count, True), Span(line[2], kind + count, share, True)

    nested = any(line[0].startswith(" ") for line in lines)
    footnote = Span(_FOOTNOTE_OF_CODES * nested + _FOOTNOTE, 0, face.inner)
    return [
        Row(spans(_HEADING), small=True, colour=FAINT),
        *(Row(spans(line), bold=not (line[1] or line[2])) for line in lines),
        Row((footnote,), small=True, colour=FAINT),
    ]


def _legend(result: SmearResult, taxonomy: Taxonomy, face: Face) -> list[Row]:
    kinds = {str(kind): entry.name for kind, entry in taxonomy.kinds.items()}
    present = set(label_keys(result))
    line, left = face.size / 7, 2.4 * face.size
    samples = []
    for key in [(kind, name) for kind in kinds for name in (*taxonomy.codes, UNCLASSIFIED) if (kind, name) in present]:
        kind, name = key
        alone = all(other == UNCLASSIFIED for of, other in present if of == kind)
        unnamed = kinds[kind] if alone else f"{kinds[kind]}, unclassified"
        pen = Pen(colour_of(key, taxonomy), line * WEIGHTS[kind], line / 2, False)
        samples.append((unnamed if name == UNCLASSIFIED else taxonomy.codes[name].name, pen))
    if not result.counted.all():
        samples.append(("not counted (dashed)", Pen(FAINT, line, line / 2, True)))
    return [Row((Span(text, left, face.inner - left),), pen=pen) for text, pen in samples]


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


def scale_bar(um_per_px: float, room_px: float) -> tuple[float, int] | None:
    """The longest round scale bar that fits `room_px` pixels: micrometres and pixels, or None where none fits."""
    fitting = [um for um in _BARS_UM if um / um_per_px <= room_px]
    return (fitting[-1], round(fitting[-1] / um_per_px)) if fitting else None


def _blocks(
    result: SmearResult, taxonomy: Taxonomy, lines: Sequence[tuple[str, str, str]], zoom: float, face: Face
) -> list[Pixels]:
    def text(words: str, rows: int = 4, **look: Any) -> Row:
        return Row((Span(words, 0, face.inner),), lines=rows, **look)

    cells, counted, scale, made = (len(result.detections), int(result.counted.sum()), result.scale, result.provenance)
    bar = scale_bar(scale.um_per_px / zoom, face.inner)
    head = [text(result.image_id, bold=True), text(f"cells found: {cells}, counted: {counted}", colour=FAINT)]
    origin = [f"smearcount {made.version}, {', '.join(made.model_ids)}", "Research use only, no medical device"]
    origin += [f"Shown magnified {zoom:g} times"] * (zoom > 1) + [f"Shown at 1/{1 / zoom:g} size"] * (zoom < 1)
    warnings = warnings_of(result, taxonomy)
    remarked = [*[scale.note] * (bool(scale.note) and scale.note not in warnings), *remarks(result, taxonomy)]
    advice = [text(f"! {words}", 8, colour=ALERT) for words in warnings]
    advice += [text(words, 8, colour=FAINT) for words in remarked]
    size = f"{scale.um_per_px:.3g} µm per pixel ({scale.source})"
    ruler = [Row(bar_px=bar[1]), text(f"{bar[0]:g} µm")] if bar else []
    parts = [
        head,
        _table(lines, face),
        _legend(result, taxonomy, face),
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


def draw_overlay(
    pixels: Pixels,
    result: SmearResult,
    taxonomy: Taxonomy,
    counts_lines: Sequence[tuple[str, str, str]],
    factor: int = 1,
) -> Pixels:
    """The photograph with every cell outlined, and a panel beside or below it.

    A picture under 500 px is shown magnified by a whole number. The photograph keeps the top-left corner.

    Args:
        pixels: `(H, W, 3) uint8 RGB`, left as it is; reduced by `factor` as `read_reduced` does it.
        result: the cells of this picture.
        taxonomy: names and colours of kinds and codes.
        counts_lines: rows of the counts panel: type (codes indented), count, percent with limits.
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
    face = face_for(size, 26 * size)
    blocks = _blocks(result, taxonomy, counts_lines, zoom, face)
    canvas_wh, places = _layout([len(block) for block in blocks], shown, face.column)
    canvas = np.full((canvas_wh[1], canvas_wh[0], 3), PAPER, np.uint8)
    photo = canvas[: shown[1], : shown[0]]
    photo[:] = resize_rgb(pixels, *shown)
    draw_outlines(photo, (0, 0), result, style)
    for block, (x, y) in zip(blocks, places, strict=True):
        canvas[y : y + len(block), x : x + face.column] = block
    return canvas
