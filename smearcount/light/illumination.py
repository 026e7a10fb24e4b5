"""What the light of the microscope did to a picture, undone before anything else looks at it.

A photograph through an eyepiece shows a bright disc on black, and one by a telephone is often dark, dark at the
corners, yellow or hazy. None of this was in the training of the networks, which take black for the nuclei of white
cells; so the surround, as any plain border, is given the colour of bare glass, dark places are brightened, colour and
contrast made usual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Doubles, FloatArray, Pixels
from smearcount.detector import Detector
from smearcount.images import ArraySource, ImageSource, peek, with_notes
from smearcount.light.field_stop import BLACK, field_of_view, fill, is_dim, is_plain
from smearcount.light.glass import contrast_wanted, glass_colour, is_tinted, lightest, ranked, thinned, untinted
from smearcount.light.reticle import without_lines
from smearcount.records import Detections, Scale
from smearcount.region import LARGE_UM2, Region, sought_around
from smearcount.scale import ScaledCells, find_at_scale, settle_scale, spread_estimate

__all__ = ["Lit", "even_light", "find_cells", "settle_lit"]

MOST_PIXELS = 50_000_000
"""Of a picture that is read by regions. Larger ones come from scanners, which have neither field stop nor dark glass,
and would fill the memory as a whole."""

DIM, BRIGHT = 130.0, 200.0
"""Level of the glass, 0 to 255, below which a picture is brightened, and that which it is given. The glass of the
labelled photographs is at 139 to 255."""

DARKEST = 30.0
"""Level below which nothing is left to brighten."""

FALLEN = 0.6
"""Share of its highest level to which the light falls from which on it is evened; that of the labelled photographs
falls to 0.77 at most."""

_DIM, _MOST_EVENED, _PARTS = 0.75, 4.0, 8
"""Share of the level below which a corner is looked at; what a pixel is multiplied by at most; parts of a side."""

_EVENED_PERCENT = 80.0
"""Of the pixels of evened light no lighter than the glass: where light was least, it comes out too high."""

_PIECES = 4
"""White cells from which on lines are looked for where the scale is known; an estimated one may be theirs."""

_PART_PX = 2048
"""Sides of the part of a picture in which red cells are looked at for their contrast."""

_BANDS, _SQUARES, _SQUARE_PX = 40, 12, 64
"""How many bands such as are looked at would fill a picture; squares that are looked at in each of a scan, and their
side."""

_FITTED_PIXELS = 65_000
"""To which the light is fitted: a thousand for the level of each part."""


@dataclass(frozen=True, eq=False)
class Lit:
    """A picture in even light.

    Attributes:
        source: what finds and names cells looks at.
        view: what the field stop leaves of it, convex; None for all of it.
    """

    source: ImageSource
    view: Region | None = None

    def changed(self, pixels: Pixels, *notes: str) -> Lit:
        """The same with other pixels and with what was done to them; itself where nothing was."""
        if not any(notes):
            return self
        old = self.source
        told = (*old.notes, *filter(None, notes))
        new = ArraySource(pixels, old.um_per_px, old.path, old.scale_origin, told, old.sha256, old.downsample)
        return replace(self, source=new)


def even_light(source: ImageSource) -> Lit:
    """A picture with its surround in the colour of the glass, and its light even, bright and of usual colour.

    Args:
        source: returned as it is where there is nothing to do. One of more than `MOST_PIXELS` that is not held in
            memory is left as it is, with a note where it looks unusual and does not say its scale, as scans do.

    Raises:
        ImageError: the file is damaged where it is looked at.
    """
    if not _is_small(source):
        return Lit(source if source.um_per_px else _with_note(source, _glance(source, sparse=True).left_so))
    seen = _glance(source)
    if seen.is_usual:
        return Lit(source)
    width, height = source.size_wh
    notes, level, tinted = list[str](), seen.level, seen.tinted
    pixels = np.ascontiguousarray(source.read(0, 0, width, height))  # changed in place from here on
    view = field_of_view(pixels, level) if seen.odd_corner else None
    inside = np.ones((height, width), np.uint8) if view is None else view.mask((width, height))
    if view is not None:
        within = thinned(pixels)[thinned(inside) != 0]
        level, tinted = _level_of(within), is_tinted(glass_colour(within))
    light = _light_over(pixels, inside)
    least, most = light.range_over(inside)
    if most > DARKEST and least < FALLEN * most:
        light.even(pixels, most)
        level = _level_of(thinned(pixels)[thinned(inside) != 0], _EVENED_PERCENT)
        notes.append(f"uneven light, falling to {max(least, 0) / most:.2f}, evened")
    if view is not None:
        fill(pixels, inside)
        notes.append("the surround of the field of view replaced by the colour of the glass")
    if DARKEST <= level < DIM:
        cv2.convertScaleAbs(pixels, pixels, BRIGHT / level)
        notes.append(f"brightened {BRIGHT / level:.1f} times: the glass is at {level:.0f} of 255")
    elif level < DARKEST:
        notes.append(f"too dark to be brightened, the glass is at {level:.0f} of 255: take it with more light")
    if tinted and level >= DARKEST:
        pixels, told = untinted(pixels, inside.view(np.bool_))
        notes.append(told)
    return Lit(source, view).changed(pixels, *notes)


def _is_small(source: ImageSource) -> bool:
    """Whether a picture may be held in memory as a whole, or is already."""
    return isinstance(source, ArraySource) or math.prod(source.size_wh) <= MOST_PIXELS


def _all_of(source: ImageSource) -> Pixels:
    """All pixels of a picture, to look at only: those of one that is held in memory are no copy."""
    return peek(source, 0, 0, *source.size_wh)


def _with_note(source: ImageSource, note: str) -> ImageSource:
    """A picture of a file with one note more, if that is not empty."""
    return with_notes(source, (*source.notes, note)) if note else source


def _level_of(pixels: Pixels, percent: float = 95.0) -> float:
    """Level of the lightest channel of the glass among pixels `(N, 3)`: that of all but the lightest of them."""
    return float(np.percentile(lightest(pixels), percent))


def find_cells(
    lit: Lit,
    detector: Detector,
    um_per_px: float | None = None,
    slide: Scale | None = None,
    region: Region | None = None,
) -> tuple[Lit, Scale, Detections]:
    """Settle the scale of a picture and find every cell in it.

    Where what is found shows lines across the picture or faint cells, it is mended, and searched again.

    Args:
        lit: the picture.
        detector: finds the cells.
        um_per_px: the scale, where it was given.
        slide: the scale of the slide, if it is known, for pictures without a scale of their own.
        region: the part that is counted, if not all of it.

    Returns:
        The picture in which they were found, its scale, and the cells.
    """

    def search(shown: Lit) -> tuple[Scale, Detections]:
        return find_at_scale(shown.source, detector, um_per_px, shown.source.um_per_px, slide, shown.view, region)

    scale, found = search(lit)
    for mended in _MENDED:
        part = sought_around(region, lit.source.size_wh, scale.um_per_px)
        if (better := mended(lit, scale, found, part)) is not lit:
            lit, (scale, found) = better, search(better)
    return lit, scale, found


def settle_lit(lit: Lit, detector: Detector, um_per_px: float | None = None) -> ScaledCells:
    """The scale of a picture, and the red cells that it is estimated from, as `find_cells` settles it.

    Of a picture larger than five crops these are red cells of five places, and nothing is mended by them.
    """

    def search(shown: Lit) -> ScaledCells:
        settled = settle_scale(shown.source, detector, um_per_px, shown.source.um_per_px, view=shown.view)
        return spread_estimate(shown.source, detector, settled, shown.view)

    settled = search(lit)
    for mended in _MENDED:
        if settled.cells is not None and (better := mended(lit, settled.scale, settled.cells, None)) is not lit:
            lit, settled = better, search(better)
    return settled


def _without_reticle(lit: Lit, scale: Scale, found: Detections, _: Region | None) -> Lit:
    """A picture without lines across it, whose meshes and pieces are found as cells; itself where there are none.

    A scan was not made through an eyepiece.
    """
    known = scale.source not in ("estimated", "assumed") and (found.kinds == "wbc").sum() < _PIECES
    scanned = math.prod(lit.source.size_wh) * scale.um_per_px**2 >= LARGE_UM2
    if known or not (isinstance(lit.source, ArraySource) or (_is_small(lit.source) and not scanned)):
        return lit
    inside = lit.view.mask(lit.source.size_wh) if lit.view else None
    return lit.changed(*without_lines(_all_of(lit.source), inside))


def _with_clear_cells(lit: Lit, _: Scale, found: Detections, part: Region | None) -> Lit:
    """A picture with more contrast where the red cells in its middle, or in that of a part, are faint; else itself.

    The part is where cells were sought; None for all of it.
    """
    if not _is_small(lit.source):
        return lit
    size_wh = np.array(lit.source.size_wh)
    wide = np.minimum(size_wh, _PART_PX)
    corner = (size_wh - wide) // 2 if part is None else np.clip(part.middle - wide / 2, 0, size_wh - wide).astype(int)
    boxes = found.boxes[found.kinds == "rbc"] - np.tile(corner, 2).astype(np.float32)
    inside = np.all((boxes[:, :2] >= 0) & (boxes[:, 2:] <= wide), axis=1)
    wanted = contrast_wanted(peek(lit.source, *corner.tolist(), *wide.tolist()), boxes[inside])
    return lit.changed(*wanted.raised(_all_of(lit.source))) if wanted else lit


_MENDED = (_without_reticle, _with_clear_cells)


@dataclass(frozen=True)
class _Glance:
    """What five bands across a picture show.

    Attributes:
        level: of the lightest channel of the glass.
        black_corner: a corner is black, and may lie outside the field of view.
        plain_corner: a corner has one colour, or several are an even grey, and may be a border.
        dim_corner: the light may fall towards a corner.
        tinted: the glass may be.
    """

    level: float
    black_corner: bool
    plain_corner: bool
    dim_corner: bool
    tinted: bool

    @property
    def odd_corner(self) -> bool:
        """A corner may lie outside the field of view."""
        return self.black_corner or self.plain_corner

    @property
    def is_usual(self) -> bool:
        """Nothing is worth a second look."""
        return self.level >= DIM and not (self.odd_corner or self.dim_corner or self.tinted)

    @property
    def left_so(self) -> str:
        """What is unusual of a picture that can't be put right, as a note; a plain corner of a scan is not."""
        odd = {"dark": self.level < DIM, "black at a corner": self.black_corner, "tinted": self.tinted}
        odd["darker towards a corner"] = self.dim_corner and not self.black_corner
        told = ", ".join(word for word, is_so in odd.items() if is_so)
        why = f"a picture of more than {MOST_PIXELS // 10**6} megapixels that is read by regions is taken for a scan"
        return f"{told}, and left so: {why}; save a photograph as JPEG or PNG" if told else ""


def _glance(source: ImageSource, *, sparse: bool = False) -> _Glance:
    """A look at five bands across a picture; at squares of them only where it is read sparsely."""
    width, height = source.size_wh
    side = max(8, min(width, height) // _BANDS)
    side = min(side, _SQUARE_PX) if sparse else side
    tops = [round((height - side) * share) for share in (0, 0.25, 0.5, 0.75, 1)]
    if sparse:
        lefts = np.linspace(0, width - side, _SQUARES).astype(int).tolist()
        bands = [np.hstack([source.read(left, top, side, side) for left in lefts]) for top in tops]
    else:
        bands = [peek(source, 0, top, width, side) for top in tops]
    step = max(1, bands[0].shape[1] // 100)
    thin = np.stack([band[::4, ::step] for band in bands])
    light = lightest(thin)
    level = float(ranked(light)[int(0.95 * light.size)])
    corners = [part for band in (bands[0], bands[-1]) for part in (band[:, :side], band[:, -side:])]
    black = any(max(cv2.mean(corner)[:3]) < BLACK * level for corner in corners)
    plain = any(map(is_plain, corners)) or sum(is_dim(corner, level) for corner in corners) > 1
    fifth = light.shape[2] // 5
    ends = [part for band in light[[0, -1]] for part in (band[:, :fifth], band[:, -fifth:])]
    dim = min(int(ranked(end)[int(0.9 * end.size)]) for end in ends) < _DIM * level
    return _Glance(level, black, plain, dim, is_tinted(glass_colour(thin.reshape(-1, 3))))


@dataclass(frozen=True, eq=False)
class _Light:
    """Level of the glass as a polynomial of the second degree, of places from -1 to 1 across a picture."""

    terms: npt.NDArray[np.floating]

    def at(self, x: Doubles, y: Doubles) -> FloatArray:
        """The level at some places."""
        return np.asarray(sum(a * b for a, b in zip(self.terms, _powers(x, y), strict=True)), np.float32)

    def range_over(self, inside: Pixels) -> tuple[float, float]:
        """Least and highest level where a mask `(H, W)` is not zero."""
        step = max(1, max(inside.shape) // 200)
        seen = inside[::step, ::step] != 0
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in seen.shape), indexing="ij", sparse=True)
        levels = self.at(x, y)[seen]
        return float(levels.min()), float(levels.max())

    def even(self, pixels: Pixels, level: float) -> None:
        """Multiply a picture, place by place, so that the glass has one level."""
        height, width = pixels.shape[:2]
        x = np.linspace(-1, 1, width)[None]
        for top in range(0, height, 256):
            y = np.linspace(-1, 1, height)[top : top + 256, None]
            factor = level / np.maximum(self.at(x, y), level / _MOST_EVENED)
            rows = pixels[top : top + 256]
            cv2.multiply(rows, cv2.merge([factor] * 3), rows, 1, cv2.CV_8U)


def _powers(x: Doubles, y: Doubles) -> tuple[Doubles | float, ...]:
    return 1.0, x, y, x * x, x * y, y * y


def _light_over(pixels: Pixels, inside: Pixels) -> _Light:
    """The light fitted to the level of the glass in 8 x 8 parts of a picture, as far as they lie in a mask.

    Parts that are darker than the fit have cells on them and weigh less, as do those far from it.
    """
    light, seen = lightest(thinned(pixels, _FITTED_PIXELS)), thinned(inside, _FITTED_PIXELS) != 0
    places, levels = [], []
    rows, columns = (np.linspace(0, n, _PARTS + 1).astype(int) for n in seen.shape)
    for i, j in product(range(_PARTS), range(_PARTS)):
        part = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
        values = ranked(light[part][seen[part]])
        if len(values) > 0.5 * seen[part].size:
            places.append(((2 * j + 1) / _PARTS - 1, (2 * i + 1) / _PARTS - 1))
            levels.append(float(values[int(0.9 * len(values))]))
    if len(levels) < 2 * len(_powers(np.zeros(0), np.zeros(0))):
        return _Light(np.array([float(np.max(levels, initial=1.0)), 0, 0, 0, 0, 0]))
    x, y = np.array(places).T
    design, target, weights = np.stack(np.broadcast_arrays(*_powers(x, y)), axis=1), np.array(levels), np.ones(len(x))
    for _ in range(6):
        terms = np.linalg.lstsq(design * weights[:, None], target * weights, rcond=None)[0]
        misfit = target - design @ terms
        weights = np.where(misfit < 0, 0.3, 1.0) / (1 + (misfit / 20) ** 2)
    return _Light(terms)
