"""Contact sheets: the cells of each code side by side, those that count first, and of these the least certain."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from smearcount.arrays import Indices, Pixels
from smearcount.counting import classified_total, kind_total, percentage
from smearcount.geometry import centres
from smearcount.images import make_folder, write_picture
from smearcount.outlines import WEIGHTS, Pen, colour_of
from smearcount.panel import FAINT, INK, PAPER, Face, Row, Span, face_for, letters, render_rows, wrap
from smearcount.patches import sample_window
from smearcount.pipeline import Analysis
from smearcount.records import KINDS, UNCLASSIFIED
from smearcount.report import percent_text
from smearcount.taxonomy import Taxonomy, file_name_of

__all__ = ["clear_gallery", "contact_sheets", "write_gallery"]

PER_SHEET = 200
MOST_SHEETS = 5
"""A thousand cells of a code are more than anyone looks at; of a whole slide there would be thousands of sheets."""

_TILE_PX = 128
_GAP_PX = 12
_FRAME_PX = 2
_DASH_PX = 8
_TITLE_PX = 20
_CAPTION_PX = 12
_LINE_PX = 15
_COLUMNS = (8, 16)


@dataclass(frozen=True)
class _Caption:
    """A line under a tile: text at the left, shortened if need be, and a figure at the right."""

    text: str
    figure: str = ""
    colour: tuple[int, ...] = INK


@dataclass(frozen=True, eq=False)
class _Group:
    """The cells of one code.

    Attributes:
        code: of the taxonomy, or `unclassified_<kind>`.
        kind: of the cells.
        names: display names of the code and of the kind.
        colour: RGB of the code on the overlay.
        rows: `(n,) intp`, the cells: those that count, then the others, of both the least certain first.
        asked: how many of them a classifier was asked about; these come first among those that count, and those not.
        counted: how many of them count.
    """

    code: str
    kind: str
    names: tuple[str, str]
    colour: tuple[int, ...]
    rows: Indices
    asked: int
    counted: int


@dataclass(frozen=True)
class _Page:
    """Which cells of a group are on a sheet: from `first` to before `stop`, of `drawn` on all `of` sheets."""

    first: int
    stop: int
    number: int
    of: int
    drawn: int


def contact_sheets(
    analysis: Analysis, per_sheet: int = PER_SHEET, most_sheets: int | None = MOST_SHEETS
) -> Iterator[tuple[str, Pixels]]:
    """Sheets with the cells of every code that is there, in taxonomy order, then those without a name by kind.

    Cells are in order of the probability of their best code, lowest first; behind them those that no classifier was
    asked about, in order of the detector's score; behind all of these the cells that are not counted, in the same
    order. A sheet says how many cells there are and how many are shown.

    Args:
        analysis: the cells and their picture.
        per_sheet: most cells on a sheet.
        most_sheets: most sheets of one code; None is all that are needed.

    Yields:
        The code, or `unclassified_<kind>`, and a sheet `(H, W, 3) uint8 RGB`; a code may have several.

    Raises:
        ValueError: a number is below 1, or a name is no code of the taxonomy.
        ChangedError: the picture is read by regions, and its file changed since it was analysed.
    """
    if per_sheet < 1 or (most_sheets is not None and most_sheets < 1):
        raise ValueError(f"expected at least 1 cell a sheet and 1 sheet, got {per_sheet} and {most_sheets}")
    for group in _groups(analysis):
        total = len(group.rows)
        needed = math.ceil(total / per_sheet)
        made = needed if most_sheets is None else min(needed, most_sheets)
        drawn = min(made * per_sheet, total)
        for n in range(made):
            page = _Page(n * per_sheet, min((n + 1) * per_sheet, total), n + 1, made, drawn)
            with analysis.as_analysed():
                sheet = _sheet(analysis, group, page)
            yield group.code, sheet


def write_gallery(analysis: Analysis, folder: Path | str, stem: str) -> list[Path]:
    """Write `<stem>.gallery/<code>.jpg`, further sheets as `<code>.2.jpg` and so on; each file is whole or absent.

    Sheets of an earlier run that this one has no more are removed, so that the folder holds one result.

    Returns:
        The files written.

    Raises:
        ImageError: the folder can't be written.
    """
    place = make_folder(Path(folder) / f"{stem}.gallery")
    written = []
    for code, sheets in groupby(contact_sheets(analysis), key=lambda each: each[0]):
        for n, (_, pixels) in enumerate(sheets, start=1):
            written.append(write_picture(place / f"{file_name_of(code)}{f'.{n}' if n > 1 else ''}.jpg", pixels))
    clear_gallery(place, analysis.taxonomy, written)
    return written


def clear_gallery(place: Path, taxonomy: Taxonomy, kept: Collection[Path] = ()) -> None:
    """Remove the sheets of an earlier run from a folder, but for those that are kept, and the folder if it is empty."""
    codes = (*taxonomy.codes, *(_unnamed(kind) for kind in KINDS))
    own = re.compile(rf"(?:{'|'.join(re.escape(file_name_of(code)) for code in codes)})(?:\.\d+)?\.jpg")
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            if own.fullmatch(path.name) and path not in kept:
                path.unlink()
        if not kept:
            place.rmdir()


def _unnamed(kind: str) -> str:
    return f"{UNCLASSIFIED}_{kind}"


def _groups(analysis: Analysis) -> Iterator[_Group]:
    result, taxonomy = analysis.result, analysis.taxonomy
    of_kind = {str(kind): entry.name for kind, entry in taxonomy.kinds.items()}
    keys = [(code, (str(entry.kind), code), entry.name) for code, entry in taxonomy.codes.items()]
    keys += [(_unnamed(kind), (kind, UNCLASSIFIED), f"{name}, unclassified") for kind, name in of_kind.items()]
    asked = result.labels.probs.sum(axis=1) > 0
    certainty = np.where(asked, result.labels.probs.max(axis=1, initial=0), result.detections.scores)
    unknown = sorted(set(result.names.tolist()) - {*taxonomy.codes, UNCLASSIFIED})
    if unknown:
        raise ValueError(f"names: expected {UNCLASSIFIED} or codes of the taxonomy, got {unknown}")
    for code, key, name in keys:
        mask = result.names == key[1]
        rows = np.flatnonzero(mask & (result.detections.kinds == key[0]) if key[1] == UNCLASSIFIED else mask)
        if len(rows):
            rows = rows[np.lexsort((rows, certainty[rows], ~asked[rows], ~result.counted[rows]))]
            names, numbers = (name, of_kind[key[0]].lower()), (int(asked[rows].sum()), int(result.counted[rows].sum()))
            yield _Group(code, key[0], names, colour_of(key, taxonomy), rows, *numbers)


def _share(analysis: Analysis, group: _Group, counted: int) -> str:
    """Share of the counted cells of a group in per cent with limits, and of what, as in the tables."""
    counts, taxonomy = analysis.counts, analysis.taxonomy
    if group.code == _unnamed(group.kind):
        whole, words = kind_total(counts, group.kind, taxonomy), f"of the {group.names[1]}"
    elif len(taxonomy.codes_of(group.kind)) == 1:
        whole, words = sum(kind_total(counts, kind, taxonomy) for kind in KINDS), "of all cells"
    else:
        whole, words = classified_total(counts, group.kind, taxonomy), f"of the named {group.names[1]}"
    return f"{percent_text(percentage(counted, whole))} % {words}"


def _extent(group: _Group, page: _Page) -> str:
    """How many cells are shown, in what order, and how many are on no sheet."""
    total, here = len(group.rows), page.stop - page.first
    words = f"all {total:,} shown" if here == total else f"{here:,} of {total:,} shown"
    if page.of > 1:
        words = f"sheet {page.number} of {page.of}: {words} ({page.first + 1:,} to {page.stop:,})"
    words += ", least certain first"
    if group.asked < total:
        words += "; last, cells that no classifier was asked about" if group.asked else " by the score of the detector"
    if 0 < group.counted < total:
        words += "; behind these, in the same order, cells that are not counted"
    if page.drawn < total:
        words += f"; {total - page.drawn:,} more are on no sheet: see the table of cells"
    return words


def _title(analysis: Analysis, group: _Group, page: _Page, face: Face) -> Pixels:
    """What the sheet holds: name, count, share with limits, and how many of the cells are on it."""
    result = analysis.result
    counted, outside = group.counted, len(group.rows) - group.counted
    figures = f"{counted:,} counted: {_share(analysis, group, counted)}" if counted else "none counted"
    figures += f"; {outside:,} not counted (dashed)" * (outside > 0)
    name = "its two likeliest names" if group.code == _unnamed(group.kind) else "probability of its name, runner-up"
    name = name if group.asked else "score of the detector"
    tile = f"a tile is {analysis.patch_um[group.kind]:g} µm wide; below it: number of the cell, {name}"
    help_text = f"{tile}; limits (95 %): sampling error only; research use only, no medical device"
    left = 2.4 * face.size
    rows = [
        Row((Span(group.names[0], left, face.inner - left),), bold=True, pen=_pen(group, face)),
        Row((Span(figures, 0, face.inner),), lines=3),
        Row((Span(_extent(group, page), 0, face.inner),), lines=3),
        Row((Span(help_text, 0, face.inner),), small=True, colour=FAINT, lines=4),
        Row((Span(result.image_id, 0, face.inner),), small=True, colour=FAINT, lines=4),
    ]
    return render_rows(rows, face)


def _pen(group: _Group, face: Face) -> Pen:
    """The outline of such cells on the overlay, as in its legend."""
    return Pen(group.colour, WEIGHTS[group.kind] * face.size / 6, face.size / 12, False)


def _captions(analysis: Analysis, row: int) -> list[_Caption]:
    """Number of the cell and probability of its name; then its runner-up, or both candidates of a cell without one."""
    result = analysis.result
    probs, codes = result.labels.probs[row], result.labels.codes
    head = f"#{row}" + " not counted" * (not result.counted[row])
    if not probs.any():
        return [_Caption(head), _Caption("found", f"{result.detections.scores[row]:.2f}", FAINT)]
    # In the order of the table of cells, where the first of two equals stands first.
    ranked = [int(n) for n in np.argsort(-probs, kind="stable")[:2]]
    words = [(analysis.taxonomy.codes[codes[n]].name, f"{probs[n]:.2f}") for n in ranked]
    if result.names[row] != UNCLASSIFIED:
        return [_Caption(head, words[0][1]), *(_Caption(*each, FAINT) for each in words[1:])]
    return [_Caption(head), *(_Caption(f"{name}?", figure, FAINT) for name, figure in words)]


def _sheet(analysis: Analysis, group: _Group, page: _Page) -> Pixels:
    rows = group.rows[page.first : page.stop].tolist()
    captions = [_captions(analysis, row) for row in rows]
    columns = min(max(math.ceil(math.sqrt(1.25 * len(rows))), _COLUMNS[0]), _COLUMNS[1])
    wide, tall = _TILE_PX + _GAP_PX, _TILE_PX + _GAP_PX + _LINE_PX * max(map(len, captions))
    title = _title(analysis, group, page, face_for(_TITLE_PX, columns * wide + _GAP_PX))
    height = len(title) + math.ceil(len(rows) / columns) * tall + _GAP_PX
    canvas = np.full((height, title.shape[1], 3), PAPER, np.uint8)
    canvas[: len(title)] = title
    corners = [(_GAP_PX + n % columns * wide, len(title) + _GAP_PX + n // columns * tall) for n in range(len(rows))]
    for row, tile, (x, y) in zip(rows, _tiles(analysis, group, rows), corners, strict=True):
        _frame(canvas, (x, y), group.colour if analysis.result.counted[row] else None)
        canvas[y : y + _TILE_PX, x : x + _TILE_PX] = tile
    return _write_captions(canvas, corners, captions)


def _tiles(analysis: Analysis, group: _Group, rows: list[int]) -> Iterator[Pixels]:
    """The patch of each cell, `(128, 128, 3) uint8 RGB`."""
    result = analysis.result
    side_px = analysis.patch_um[group.kind] / result.scale.um_per_px
    for x, y in centres(result.detections.boxes[rows]).tolist():
        yield sample_window(analysis.source, (x, y), side_px, _TILE_PX)[0]


def _frame(canvas: Pixels, corner_xy: tuple[int, int], colour: tuple[int, ...] | None) -> None:
    """A frame around a tile in the colour of its code, or a dashed one where the cell is not counted."""
    x, y = corner_xy
    around = canvas[y - _FRAME_PX : y + _TILE_PX + _FRAME_PX, x - _FRAME_PX : x + _TILE_PX + _FRAME_PX]
    if colour:
        around[:] = colour
        return
    across, along = np.indices(around.shape[:2]) // _DASH_PX
    around[(across + along) % 2 == 0] = INK


def _write_captions(canvas: Pixels, corners: list[tuple[int, int]], captions: list[list[_Caption]]) -> Pixels:
    face = face_for(_CAPTION_PX, _TILE_PX)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for (x, y), lines in zip(corners, captions, strict=True):
        for n, line in enumerate(lines, start=1):
            base = y + _TILE_PX + n * _LINE_PX
            room = _TILE_PX - face.plain.getlength(line.figure) - 4
            text = wrap(letters(line.text, face), face.plain, room, 1)[0]
            draw.text((x, base), text, fill=line.colour, font=face.plain, anchor="ls")
            draw.text((x + _TILE_PX, base), line.figure, fill=line.colour, font=face.plain, anchor="rs")
    return np.array(image)
