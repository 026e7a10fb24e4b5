"""The annotated picture that a person checks: outlines on the photograph, everything else beside it.

Legend, counts, scale bar and origin stand on paper added outside the picture, so that they never hide a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.geometry import resize_rgb
from smearcount.outlines import WEIGHTS, Pen, colour_of, draw_outlines, label_keys, outline_style
from smearcount.panel import ALERT, FAINT, PAPER, Face, Row, Span, face_for, render_rows
from smearcount.records import UNCLASSIFIED, SmearResult
from smearcount.taxonomy import Taxonomy

__all__ = ["contact_sheet", "draw_overlay", "scale_bar"]

Pixels = npt.NDArray[np.uint8]
_XY = tuple[int, int]

_BARS_UM = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_SMALL_PX = 500


def _table(lines: Sequence[tuple[str, str, str]], face: Face) -> list[Row]:
    wide = [max((face.bold.getlength(line[n]) for line in lines), default=0) + face.size / 2 for n in (1, 2)]
    count, share = min(wide[0], 0.2 * face.inner), min(wide[1], 0.5 * face.inner)
    kind = face.inner - count - share
    spans = [(Span(a, 0, kind), Span(b, kind, count, True), Span(c, kind + count, share, True)) for a, b, c in lines]
    return [Row(row, bold=not (row[1].text or row[2].text)) for row in spans]


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


def scale_bar(um_per_px: float, room_px: float) -> tuple[float, int] | None:
    """The longest round scale bar that fits `room_px` pixels: micrometres and pixels, or None where none fits."""
    fitting = [um for um in _BARS_UM if um / um_per_px <= room_px]
    return (fitting[-1], round(fitting[-1] / um_per_px)) if fitting else None


def _blocks(
    result: SmearResult, taxonomy: Taxonomy, lines: Sequence[tuple[str, str, str]], zoom: int, face: Face
) -> list[Pixels]:
    def text(words: str, rows: int = 4, **look: Any) -> Row:
        return Row((Span(words, 0, face.inner),), lines=rows, **look)

    cells, counted, scale, made = (len(result.detections), int(result.counted.sum()), result.scale, result.provenance)
    bar = scale_bar(scale.um_per_px / zoom, face.inner)
    head = [text(result.image_id, bold=True), text(f"cells found: {cells}, counted: {counted}", colour=FAINT)]
    origin = [f"smearcount {made.version}, {', '.join(made.model_ids)}", "Research use only, no medical device"]
    origin += [f"Shown magnified {zoom} times"] * (zoom > 1)
    advice = [text(f"! {words}", 8, colour=ALERT) for words in (*result.quality.warnings, scale.note) if words]
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
    pixels: Pixels, result: SmearResult, taxonomy: Taxonomy, counts_lines: Sequence[tuple[str, str, str]]
) -> Pixels:
    """The photograph with every cell outlined, and a panel beside or below it.

    A picture under 500 px is shown magnified by a whole number. The photograph keeps the top-left corner.

    Args:
        pixels: `(H, W, 3) uint8 RGB`, left as it is.
        result: the cells of this picture.
        taxonomy: names and colours of kinds and codes.
        counts_lines: rows of the counts panel: type, count, percent with limits.

    Returns:
        `(H', W', 3) uint8 RGB`.

    Raises:
        ValueError: the pixels are not those of the result, or a name is no code of the taxonomy.
    """
    width, height = result.size_wh
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels: expected uint8 {(height, width, 3)}, got {pixels.dtype} {pixels.shape}")
    zoom = max(1, math.ceil(_SMALL_PX / max(width, height)))
    style = outline_style(result, taxonomy, zoom)
    size = max(12, round(math.sqrt(width * height) * zoom / 48))
    face = face_for(size, 26 * size)
    blocks = _blocks(result, taxonomy, counts_lines, zoom, face)
    shown = (width * zoom, height * zoom)
    canvas_wh, places = _layout([len(block) for block in blocks], shown, face.column)
    canvas = np.full((canvas_wh[1], canvas_wh[0], 3), PAPER, np.uint8)
    photo = canvas[: shown[1], : shown[0]]
    photo[:] = resize_rgb(pixels, *shown)
    draw_outlines(photo, (0, 0), result, style)
    for block, (x, y) in zip(blocks, places, strict=True):
        canvas[y : y + len(block), x : x + face.column] = block
    return canvas


def contact_sheet(patches: Sequence[Pixels], captions: Sequence[str], columns: int, title: str) -> Pixels:
    """A gallery of cells, row by row, each with its caption of at most two lines below it.

    Args:
        patches: square pictures `(S, S, 3) uint8 RGB`, all of one size; under 96 px they are shown magnified.
        captions: one a patch.
        columns: patches in a row.
        title: heading of the sheet.

    Returns:
        `(H, W, 3) uint8 RGB`.

    Raises:
        ValueError: the patches differ in size, or captions or columns do not fit them.
    """
    side = len(patches[0]) if patches else 128
    wrong = [patch.shape for patch in patches if patch.shape != (side, side, 3) or patch.dtype != np.uint8]
    if wrong or len(captions) != len(patches) or columns < 1:
        raise ValueError(
            f"contact sheet: expected uint8 patches {(side, side, 3)}, as many captions and a column or more; "
            f"got {len(patches)} patches, {len(captions)} captions, {columns} columns, other shapes {wrong[:3]}"
        )
    zoom = math.ceil(96 / side)
    shown, size = side * zoom, max(11, side * zoom // 14)
    face = face_for(size, shown + 2 * (size // 2))
    wide = face_for(round(1.3 * size), max(1, min(columns, len(patches))) * face.column)
    pitch = shown + face.margin + 2 * face.leading + size
    head = render_rows([Row((Span(title, 0, wide.inner),), bold=True)], wide)
    canvas = np.full((len(head) + size + -(-len(patches) // columns) * pitch, wide.column, 3), PAPER, np.uint8)
    canvas[: len(head)] = head
    for n, (patch, caption) in enumerate(zip(patches, captions, strict=True)):
        x, y = n % columns * face.column, len(head) + size + n // columns * pitch
        canvas[y : y + shown, x + face.margin : x + face.margin + shown] = resize_rgb(patch, shown, shown)
        text = render_rows([Row((Span(caption, 0, face.inner),))], face)
        canvas[y + shown : y + shown + len(text), x : x + face.column] = text
    return canvas
