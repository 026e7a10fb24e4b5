"""The annotated picture that a person checks: outlines on the photograph, everything else beside it.

A cell is outlined just outside its box, so that its inside stays as photographed. The line has a white or black casing,
whichever contrasts with its colour, and is thicker for nucleated cells: on any stain and with any colour vision there
is more than hue to tell the kinds apart. Legend, counts, scale bar and origin stand on paper added outside the picture.
"""

from __future__ import annotations

import bisect
import importlib.util
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from smearcount.geometry import diameters, resize_rgb
from smearcount.records import UNCLASSIFIED, SmearResult
from smearcount.taxonomy import Taxonomy

__all__ = ["OutlineStyle", "contact_sheet", "draw_outlines", "draw_overlay", "outline_style", "scale_bar"]

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
_XY = tuple[int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, FAINT, ALERT = (252, 252, 252), (20, 20, 24), (95, 95, 102), (165, 60, 0)
_LAYERS = {"rbc": 0, "platelet": 1, "wbc": 2, "nrbc": 3}
_WEIGHTS = {"rbc": 1.0, "platelet": 1.0, "wbc": 1.5, "nrbc": 1.5}
_BARS_UM = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_SMALL_PX = 500
_SHIFT = 4
_POINTS = 120
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue: ITU-R BT.709
_LIGHT = 150


@dataclass(frozen=True, eq=False)
class OutlineStyle:
    """How the cells of one result are outlined.

    Attributes:
        colours: `(N, 3) uint8 RGB`, one a cell.
        line_px: width of the coloured line around a red cell.
        casing_px: width of the casing on either side of it.
        zoom: whole number by which the picture is shown magnified.
    """

    colours: Pixels
    line_px: float
    casing_px: float
    zoom: int = 1


@dataclass(frozen=True)
class _Pen:
    colour: tuple[int, ...]
    line_px: float
    casing_px: float
    dashed: bool


def _keys(result: SmearResult) -> list[tuple[str, str]]:
    """Kind and name of each cell: what its colour stands for."""
    return list(zip(result.detections.kinds.tolist(), result.names.tolist(), strict=True))


def _colour(key: tuple[str, str], taxonomy: Taxonomy) -> tuple[int, ...]:
    kind, name = key
    if name != UNCLASSIFIED and name not in taxonomy.codes:
        raise ValueError(f"names: expected {UNCLASSIFIED} or codes of the taxonomy, got {name!r}")
    known = {str(k): entry.colour for k, entry in taxonomy.kinds.items()}
    return tuple(bytes.fromhex((known[kind] if name == UNCLASSIFIED else taxonomy.codes[name].colour)[1:]))


def outline_style(result: SmearResult, taxonomy: Taxonomy, zoom: int = 1) -> OutlineStyle:
    """Colours by code for named cells and by kind for the others; widths by the size of the cells and the picture.

    Raises:
        ValueError: a name is no code of the taxonomy.
    """
    keys = _keys(result)
    palette = {key: _colour(key, taxonomy) for key in sorted(set(keys))}
    colours = np.array([palette[key] for key in keys], np.uint8).reshape(-1, 3)
    longest = max(result.size_wh) * zoom
    cell = float(np.median(diameters(result.detections.boxes))) * zoom if keys else longest / 10
    line = max(1.6, min(max(0.03 * cell, longest / 2500), 0.08 * cell))
    return OutlineStyle(colours, line, max(1.0, 0.4 * line), zoom)


@lru_cache(maxsize=1)
def _unit_outline() -> Points:
    """`(120, 2)` points x, y of a rounded square in [-1, 1], evenly spaced: |x|^2.5 + |y|^2.5 = 1 (Lamé's curve).

    It hugs a round cell and still holds the tips of a sickle that lies across its box, which an ellipse would cut.
    """
    angle = np.linspace(0, 2 * np.pi, 16 * _POINTS + 1)
    wave = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    curve = np.sign(wave) * np.abs(wave) ** (2 / 2.5)
    walked = np.concatenate([[0], np.hypot(*np.diff(curve, axis=0).T).cumsum()])
    wanted = np.linspace(0, walked[-1], _POINTS, endpoint=False)
    return np.stack([np.interp(wanted, walked, curve[:, axis]) for axis in (0, 1)], axis=1)


def _rings(box_xyxy: Points, limit_wh: Points, pen: _Pen) -> npt.NDArray[np.int64]:
    """Where casing, line and casing again begin and end around a box: `(4, 120, 2)` points x, y, innermost first.

    In 16ths of a pixel from the centre of the first one. A cell cut by the border of the picture keeps a closed
    outline inside the picture.
    """
    # The smoothing of edges spreads by about a pixel: it must not reach the cell.
    out = np.cumsum([1, pen.casing_px, pen.line_px, pen.casing_px])[:, None, None]
    half = (box_xyxy[2:] - box_xyxy[:2]) / 2 + out
    inset = out[-1] - out
    points = np.clip((box_xyxy[:2] + box_xyxy[2:]) / 2 + half * _unit_outline(), inset, limit_wh - inset)
    fixed: npt.NDArray[np.int64] = np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int64)
    return fixed


def _blend(region: Pixels, mask: Pixels, colour: tuple[int, ...]) -> None:
    rows, columns = np.nonzero(mask)
    share = mask[rows, columns, None].astype(np.uint16)
    mixed = region[rows, columns] * (255 - share) + np.array(colour, np.uint16) * share
    region[rows, columns] = (mixed + 127) // 255


def _stroke(tile: Pixels, origin_xy: tuple[int, int], rings: npt.NDArray[np.int64], pen: _Pen) -> None:
    """Draw one outline, given in 16ths of a pixel of the whole picture, into a tile of it.

    It is rasterised whole and from its own corner, so that every tile gets the same pixels of it.
    """
    low = (rings.min(axis=(0, 1)) >> _SHIFT) - 2
    width, height = ((rings.max(axis=(0, 1)) >> _SHIFT) + 4 - low).tolist()
    x, y = (low - origin_xy).tolist()
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(width, tile.shape[1] - x), min(height, tile.shape[0] - y)
    if left >= right or top >= bottom:
        return
    local = (rings - (low << _SHIFT)).astype(np.int32)
    region = tile[y + top : y + bottom, x + left : x + right]
    casing = (0, 0, 0) if np.dot(pen.colour, _LUMINANCE) > _LIGHT else (255, 255, 255)
    line = _dashes(local[1], local[2], pen) if pen.dashed else [local[1], local[2]]
    for colour, parts in ((casing, [local[0], local[3]]), (pen.colour, line)):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, parts, 255, cv2.LINE_AA, _SHIFT)
        _blend(region, mask[top:bottom, left:right], colour)


def _dashes(inner: npt.NDArray[np.int32], outer: npt.NDArray[np.int32], pen: _Pen) -> list[npt.NDArray[np.int32]]:
    around = float(np.hypot(*np.diff(outer, axis=0).T).sum()) / (1 << _SHIFT)
    n = min(24, max(6, int(around / (8 * pen.line_px))))
    spans = [slice(start, start + 1 + round(0.55 * _POINTS / n)) for start in (np.arange(n) * _POINTS // n).tolist()]
    return [np.concatenate([outer[span], inner[span][::-1]]) for span in spans]


def draw_outlines(pixels_tile: Pixels, origin_xy: tuple[int, int], result: SmearResult, style: OutlineStyle) -> None:
    """Outline the cells of a result on one tile of its picture, in place.

    Tiles drawn one by one give the same bytes as the whole picture at once. Counted cells have a solid line, the
    others a dashed one; nucleated cells and platelets lie above red cells.

    Args:
        pixels_tile: `(h, w, 3) uint8 RGB`, written to.
        origin_xy: its top-left corner in pixels of the (magnified) picture.
        result: the cells.
        style: of `outline_style` for this result.
    """
    boxes = result.detections.boxes.astype(np.float64) * style.zoom
    limit = np.array(result.size_wh) * style.zoom
    reach = 2 * (style.line_px + style.casing_px) + 4
    start, size = np.array(origin_xy), np.array(pixels_tile.shape[1::-1])
    rows = np.flatnonzero(np.all((boxes[:, 2:] > start - reach) & (boxes[:, :2] < start + size + reach), axis=1))
    kinds = result.detections.kinds[rows].tolist()
    for _, row, kind in sorted(zip((_LAYERS[k] for k in kinds), rows.tolist(), kinds, strict=True)):
        line = style.line_px * _WEIGHTS[kind]
        pen = _Pen(tuple(style.colours[row].tolist()), line, style.casing_px, not result.counted[row])
        _stroke(pixels_tile, origin_xy, _rings(boxes[row], limit, pen), pen)


@dataclass(frozen=True)
class _Face:
    """Fonts and measures of a panel: text size, and the width of a column with its margins."""

    plain: Font
    bold: Font
    plain_letters: bool
    size: int
    column: int

    @property
    def leading(self) -> int:
        return round(1.4 * self.size)

    @property
    def inner(self) -> int:
        return self.column - 2 * self.margin

    @property
    def margin(self) -> int:
        return self.size // 2


@lru_cache(maxsize=8)
def _face(size: int, column: int) -> _Face:
    """DejaVu Sans as matplotlib ships it (found without importing it), else Pillow's own font, which is ASCII only."""
    found = importlib.util.find_spec("matplotlib")
    places = found.submodule_search_locations if found else None
    folder = Path(next(iter(places or ("",)))) / "mpl-data" / "fonts" / "ttf"
    files = [folder / "DejaVuSans.ttf", folder / "DejaVuSans-Bold.ttf"]
    if all(file.is_file() for file in files):
        plain, bold = (ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC) for file in files)
        return _Face(plain, bold, False, size, column)
    own = ImageFont.load_default(size)
    return _Face(own, own, True, size, column)


@dataclass(frozen=True)
class _Span:
    """A text in a row: its left edge and width inside the margins, in pixels."""

    text: str
    left: float
    width: float
    flush_right: bool = False


@dataclass(frozen=True)
class _Row:
    """A row of a panel: texts side by side, wrapped each, with a sample outline or a scale bar where there is one."""

    spans: tuple[_Span, ...] = ()
    bold: bool = False
    colour: tuple[int, ...] = INK
    lines: int = 2
    pen: _Pen | None = None
    bar_px: int = 0


def _wrap(text: str, font: Font, width: float, max_lines: int) -> list[str]:
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


def _render(rows: Sequence[_Row], face: _Face) -> Pixels:
    """The rows as a picture `(h, face.column, 3) uint8 RGB`."""
    laid, y = [], face.margin
    for row in rows:
        font = face.bold if row.bold else face.plain
        texts = [_wrap(_letters(span.text, face), font, span.width, row.lines) for span in row.spans]
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
        if row.pen:
            thick = row.pen.line_px + 2 * row.pen.casing_px
            box = np.array([face.margin, top, face.margin + 1.9 * face.size, top + face.leading], np.float64)
            box += np.array([1, 1, -1, -1]) * (thick + 0.1 * face.size)
            _stroke(pixels, (0, 0), _rings(box, np.array(pixels.shape[1::-1]), row.pen), row.pen)
        middle, thick = top + face.leading // 2, max(2, face.size // 4)
        pixels[middle : middle + thick, face.margin : face.margin + row.bar_px] = INK
    return pixels


def _letters(text: str, face: _Face) -> str:
    if not face.plain_letters:
        return text
    spelled = unicodedata.normalize("NFKD", text.translate({0xB5: "u", 0x3BC: "u", 0x2013: "-", 0xD7: "x"}))
    return "".join(c if c.isascii() else "?" for c in spelled if not unicodedata.combining(c))


def _table(lines: Sequence[tuple[str, str, str]], face: _Face) -> list[_Row]:
    wide = [max((face.bold.getlength(line[n]) for line in lines), default=0) + face.size / 2 for n in (1, 2)]
    count, share = min(wide[0], 0.2 * face.inner), min(wide[1], 0.5 * face.inner)
    kind = face.inner - count - share
    spans = [(_Span(a, 0, kind), _Span(b, kind, count, True), _Span(c, kind + count, share, True)) for a, b, c in lines]
    return [_Row(row, bold=not (row[1].text or row[2].text)) for row in spans]


def _legend(result: SmearResult, taxonomy: Taxonomy, face: _Face) -> list[_Row]:
    kinds = {str(kind): entry.name for kind, entry in taxonomy.kinds.items()}
    present = set(_keys(result))
    line, left = face.size / 7, 2.4 * face.size
    samples = []
    for key in [(kind, name) for kind in kinds for name in (*taxonomy.codes, UNCLASSIFIED) if (kind, name) in present]:
        kind, name = key
        alone = all(other == UNCLASSIFIED for of, other in present if of == kind)
        unnamed = kinds[kind] if alone else f"{kinds[kind]}, unclassified"
        pen = _Pen(_colour(key, taxonomy), line * _WEIGHTS[kind], line / 2, False)
        samples.append((unnamed if name == UNCLASSIFIED else taxonomy.codes[name].name, pen))
    if not result.counted.all():
        samples.append(("not counted (dashed)", _Pen(FAINT, line, line / 2, True)))
    return [_Row((_Span(text, left, face.inner - left),), pen=pen) for text, pen in samples]


def scale_bar(um_per_px: float, room_px: float) -> tuple[float, int] | None:
    """The longest round scale bar that fits `room_px` pixels: micrometres and pixels, or None where none fits."""
    fitting = [um for um in _BARS_UM if um / um_per_px <= room_px]
    return (fitting[-1], round(fitting[-1] / um_per_px)) if fitting else None


def _blocks(
    result: SmearResult, taxonomy: Taxonomy, lines: Sequence[tuple[str, str, str]], zoom: int, face: _Face
) -> list[Pixels]:
    def text(words: str, rows: int = 4, **look: Any) -> _Row:
        return _Row((_Span(words, 0, face.inner),), lines=rows, **look)

    cells, counted, scale, made = (len(result.detections), int(result.counted.sum()), result.scale, result.provenance)
    bar = scale_bar(scale.um_per_px / zoom, face.inner)
    head = [text(result.image_id, bold=True), text(f"cells found: {cells}, counted: {counted}", colour=FAINT)]
    origin = [f"smearcount {made.version}, {', '.join(made.model_ids)}", "Research use only, no medical device"]
    origin += [f"Shown magnified {zoom} times"] * (zoom > 1)
    advice = [text(f"! {words}", 8, colour=ALERT) for words in (*result.quality.warnings, scale.note) if words]
    size = f"{scale.um_per_px:.3g} µm per pixel ({scale.source})"
    ruler = [_Row(bar_px=bar[1]), text(f"{bar[0]:g} µm")] if bar else []
    parts = [
        head,
        _table(lines, face),
        _legend(result, taxonomy, face),
        [*ruler, text(size, colour=FAINT)],
        advice,
        [text(words, 8, colour=FAINT) for words in origin],
    ]
    return [_render(rows, face) for rows in parts if rows]


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
    face = _face(size, 26 * size)
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
    face = _face(size, shown + 2 * (size // 2))
    wide = _face(round(1.3 * size), max(1, min(columns, len(patches))) * face.column)
    pitch = shown + face.margin + 2 * face.leading + size
    head = _render([_Row((_Span(title, 0, wide.inner),), bold=True)], wide)
    canvas = np.full((len(head) + size + -(-len(patches) // columns) * pitch, wide.column, 3), PAPER, np.uint8)
    canvas[: len(head)] = head
    for n, (patch, caption) in enumerate(zip(patches, captions, strict=True)):
        x, y = n % columns * face.column, len(head) + size + n // columns * pitch
        canvas[y : y + shown, x + face.margin : x + face.margin + shown] = resize_rgb(patch, shown, shown)
        text = _render([_Row((_Span(caption, 0, face.inner),))], face)
        canvas[y + shown : y + shown + len(text), x : x + face.column] = text
    return canvas
