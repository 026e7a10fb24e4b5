"""How many micrometres a pixel is: by flag, by metadata that the cells agree with, or estimated from the red cells.

The estimate looks at a central crop at scales a factor of two apart, keeps the one whose cells of plausible size
explain most of it, and refines it with the median diameter of the isolated red cells until both agree. Once all cells
of the picture are found, the median is that of all of them: it makes the median red cell 7.5 um by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import numpy as np

from smearcount.arrays import FloatArray
from smearcount.detector import Detector
from smearcount.geometry import diameters
from smearcount.images import PartSource, PixelSource
from smearcount.records import RED_CELL_UM, Detections, Scale
from smearcount.region import Region, sought_around, with_edge_of

__all__ = ["ScaledCells", "check_scale", "find_at_scale", "isolated_red_diameters", "settle_scale", "spread_estimate"]

PLAUSIBLE_RED_UM = (5.0, 11.0)
CROP_PX = 1024
"""Least side of the crop whose red cells are measured in the end."""

CROP_CELLS = CROP_PX / 60
"""A crop is so many red cells wide, so that every scale sees as much, and costs as much."""

LARGEST_CROP_PX = 4096
FIRST_GUESSES_PX = (60.0, 120.0, 30.0, 240.0, 480.0)
"""Red-cell diameters in pixels of the scales tried, those that fit the picture, until one is beyond doubt."""

CERTAIN_SCORE, CERTAIN_OCTAVES = 0.7, 0.5
"""A scale is beyond doubt where its red cells have this score in the mean, and a median so near to the size sought. Of
1,530 looks at 30 validation fields in 17 conditions none that was had a wrong one."""

FINEST_PX = 15.0
"""Tried as well where the others find few red cells; taken where it finds more, since noise has specks of that size."""

REFINEMENTS = 3

CHECK_SIDE_UM = 256.0
"""Side of the crop in which metadata are checked; keeps a wrong scale from becoming a huge picture."""

PLACES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
"""Where a crop is looked at, one after the other until one has enough red cells."""

REUSE_WITHIN = 0.10
ENOUGH_CELLS = 10
TOUCHING_IOU = 0.05
ESTIMATED_NOTE = "estimated from the median red cell (7.5 um): macrocytes and microcytes are relative to this slide"
ASSUMED_NOTE = "fewer than 10 isolated red cells: the scale can't be trusted, nor can sizes and densities"


@dataclass(frozen=True)
class ScaledCells:
    """A scale, the cells of the whole picture where the search has found them already, and what it was estimated from.

    Attributes:
        scale: the scale.
        cells: None where they have not been found yet.
        red_px: diameters in pixels of the red cells of an estimate; none where flag or metadata say the scale.
    """

    scale: Scale
    cells: Detections | None
    red_px: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))


def _crop(source: PixelSource, side_px: int, at: tuple[float, float] = (0.5, 0.5)) -> PartSource:
    """A square of a picture, as far as it goes; `at` is the place of its centre in shares of width and height."""
    width, height = source.size_wh
    wide, tall = min(width, side_px), min(height, side_px)
    return PartSource(source, (round((width - wide) * at[0]), round((height - tall) * at[1])), (wide, tall))


@dataclass(frozen=True)
class _Sight:
    """What is looked at: a picture, what finds the cells in it, and what there is to see of it; None for all of it."""

    source: PixelSource
    detector: Detector
    view: Region | None

    def cells(self, crop: PartSource, um_per_px: float) -> Detections:
        """What is found in a crop at a scale; what reaches the edge of the view lies at the edge."""
        left, top = crop.left_top
        view = self.view.moved(-left, -top) if self.view is not None else None
        return with_edge_of(self.detector.find(crop, um_per_px), view)


def isolated_red_diameters(cells: Detections) -> FloatArray:
    """Diameters in pixels of the red cells that do not touch the border: the isolated ones where they are enough."""
    touching = cells.touching.where(cells.touching.iou > TOUCHING_IOU)
    alone = np.ones(len(cells), np.bool_)
    alone[touching.first] = alone[touching.second] = False
    red = (cells.kinds == "rbc") & ~cells.at_edge
    return diameters(cells.boxes[red & alone if (red & alone).sum() >= ENOUGH_CELLS else red])


def settle_scale(
    source: PixelSource,
    detector: Detector,
    flag: float | None = None,
    metadata: float | None = None,
    slide: Scale | None = None,
    view: Region | None = None,
) -> ScaledCells:
    """The scale of a picture, from the most trustworthy source there is.

    Args:
        source: the picture.
        detector: finds the red cells.
        flag: what the user said, in micrometres a pixel; taken as it is.
        metadata: what the file says; taken where its red cells come out at 5 to 11 um.
        slide: estimated from several pictures of its slide; taken instead of its own estimate, on the same condition.
        view: the part of the picture that the field stop leaves to see; None for all of it.
    """
    if flag is not None:
        return ScaledCells(Scale(flag, "flag"), None)
    sight, doubts = _Sight(source, detector, view), list[str]()
    estimate = cache(partial(_estimate, sight))
    told = {"metadata": None if metadata is None else Scale(metadata, "metadata"), "slide scale": slide}
    for name, scale in told.items():
        if scale is None:
            continue
        checked = _checked(sight, scale.um_per_px, estimate)
        if not checked.refused:
            taken = replace(scale, red_cell_px=checked.red_px, note=scale.note or checked.note)
            settled = ScaledCells(taken, checked.cells)
            break
        doubts.append(f"{name} of {scale.um_per_px:.4g} um a pixel not used ({checked.refused})")
    else:
        settled = estimate()
    note = "; ".join(filter(None, (*doubts, settled.scale.note)))
    return replace(settled, scale=replace(settled.scale, note=note, in_doubt=bool(doubts)))


@dataclass(frozen=True)
class _Checked:
    """What the red cells of a picture say of a scale that was told.

    Attributes:
        red_px: their median diameter in pixels, NaN without any.
        cells: those of the whole picture, where they were found at that scale.
        refused: why it is not used; empty where it is.
        note: what a reader must know where it is used.
    """

    red_px: float
    cells: Detections | None
    refused: str = ""
    note: str = ""


def _checked(sight: _Sight, um_per_px: float, estimate: Callable[[], ScaledCells]) -> _Checked:
    """Whether the red cells agree with a scale, or are too few to contradict it; then the estimate is asked."""
    crop = _crop(sight.source, min(CROP_PX, round(CHECK_SIDE_UM / um_per_px)))
    found = sight.cells(crop, um_per_px)
    cells, sizes = found if crop.is_whole else None, isolated_red_diameters(found)
    red_px = float(np.median(sizes)) if len(sizes) else math.nan
    if len(sizes) >= ENOUGH_CELLS:
        red_um = red_px * um_per_px
        return _Checked(red_px, cells, "" if _plausible(red_um) else f"red cells of {red_um:.1f} um")
    other = estimate().scale
    if other.source != "estimated":
        return _Checked(red_px, cells, note="too few red cells to check the scale in the metadata")
    agrees = _plausible(RED_CELL_UM * um_per_px / other.um_per_px)
    return _Checked(other.red_cell_px, cells, "" if agrees else "no cells of that size")


def _plausible(red_um: float) -> bool:
    return PLAUSIBLE_RED_UM[0] <= red_um <= PLAUSIBLE_RED_UM[1]


def _estimate(sight: _Sight) -> ScaledCells:
    """The scale of the median red cell of the place that tells most."""
    look = _best_look(sight)
    sizes = look.sizes
    cells, um_per_px = look.cells if look.crop.is_whole else None, RED_CELL_UM / look.red_px
    origin, note = ("estimated", ESTIMATED_NOTE) if look.has_enough else ("assumed", ASSUMED_NOTE)
    if not len(sizes):
        return ScaledCells(Scale(um_per_px, origin, note=note), cells)
    median_px = float(np.median(sizes))
    return ScaledCells(Scale(RED_CELL_UM / median_px, origin, median_px, note), cells, sizes)


@dataclass(frozen=True)
class _Look:
    """A crop searched for red cells `red_px` pixels wide, and what was found in it."""

    red_px: float
    crop: PartSource
    cells: Detections

    @cached_property
    def sizes(self) -> FloatArray:
        """Diameters in pixels of the isolated red cells."""
        return isolated_red_diameters(self.cells)

    @property
    def has_enough(self) -> bool:
        """Whether there are enough of them for an estimate."""
        return len(self.sizes) >= ENOUGH_CELLS

    @property
    def is_certain(self) -> bool:
        """Whether the red cells are so many, so sure, and so near to the size sought that no other look is needed."""
        scores = self.cells.scores[self.cells.kinds == "rbc"]
        return (
            self.has_enough
            and abs(math.log2(float(np.median(self.sizes)) / self.red_px)) <= CERTAIN_OCTAVES
            and float(scores.mean()) >= CERTAIN_SCORE
        )


def _best_look(sight: _Sight) -> _Look:
    """The first of the fixed places with enough red cells, else the one with the most."""
    places = []
    for place in PLACES:
        look = _estimate_here(sight, place)
        places.append(look)
        if look.has_enough or look.crop.is_whole:
            break
    return max(places, key=lambda place: len(place.sizes))


def _crop_side(red_px: float, least_px: int) -> int:
    """Side in pixels of a crop that is as wide as the red cells sought, within limits."""
    return min(max(round(CROP_CELLS * red_px), least_px), LARGEST_CROP_PX)


def _estimate_here(sight: _Sight, place: tuple[float, float]) -> _Look:
    """The last look at a place, at the scale at which its red cells have the size they were sought at."""

    def look(red_px: float, least_px: int = 0) -> _Look:
        crop = _crop(sight.source, _crop_side(red_px, least_px), place)
        return _Look(red_px, crop, sight.cells(crop, RED_CELL_UM / red_px))

    looks: list[_Look] = []
    largest_px = max(min(sight.source.size_wh), min(FIRST_GUESSES_PX))
    for red_px in (each for each in FIRST_GUESSES_PX if each <= largest_px):
        best = look(red_px)
        looks.append(best)
        if best.is_certain:
            break
    else:
        best = max(looks, key=_explained)
    if not best.has_enough and (finest := look(FINEST_PX)).has_enough:
        best = max(best, finest, key=_explained)
    wide = best.crop.is_whole or CROP_CELLS * best.red_px >= CROP_PX
    for _ in range(REFINEMENTS):
        refined_px = float(np.median(best.sizes)) if len(best.sizes) else best.red_px
        if wide and abs(best.red_px / refined_px - 1) <= REUSE_WITHIN:
            break
        best, wide = look(refined_px, CROP_PX), True
    return best


def find_at_scale(
    source: PixelSource,
    detector: Detector,
    flag: float | None = None,
    metadata: float | None = None,
    slide: Scale | None = None,
    view: Region | None = None,
    region: Region | None = None,
) -> tuple[Scale, Detections]:
    """The scale of a picture and all its cells; what the search for the scale has found is not sought again.

    An estimate from a part of the picture becomes that of all its red cells, since one crop of a slide may lie where
    they are larger or smaller; the cells are sought again where both differ by more than `REUSE_WITHIN`. Of a scan that
    is searched around a region only, it becomes that of five places: a slide has one scale, wherever it is counted.

    Args:
        source: the picture.
        detector: finds the cells.
        flag: what the user said, in micrometres a pixel.
        metadata: what the file says.
        slide: estimated from several pictures of its slide.
        view: the part of the picture that the field stop leaves to see; None for all of it.
        region: the part that is counted; of a scan, what is far from it is not searched.
    """

    def part_at(um_per_px: float) -> Region | None:
        return sought_around(region, source.size_wh, um_per_px)

    def search(um_per_px: float) -> Detections:
        return with_edge_of(detector.find(source, um_per_px, part_at(um_per_px)), view)

    settled = settle_scale(source, detector, flag, metadata, slide, view)
    if settled.cells is None and part_at(settled.scale.um_per_px):
        # Whatever cells it brings were found at another scale, and far from the region as well.
        settled = replace(spread_estimate(source, detector, settled, view), cells=None)
    scale, cells = settled.scale, settled.cells
    if cells is None:
        cells = search(scale.um_per_px)
        if len(settled.red_px) and not part_at(scale.um_per_px):
            sought_at, scale = scale.um_per_px, _of(scale, isolated_red_diameters(cells))
            if abs(sought_at / scale.um_per_px - 1) > REUSE_WITHIN:
                cells = search(scale.um_per_px)
    scale = check_scale(scale, cells)
    if scale.source == "flag" and math.isnan(scale.red_cell_px):
        scale = replace(scale, note=_other_scale(_Sight(source, detector, view), scale.um_per_px))
    return scale, cells


def _other_scale(sight: _Sight, um_per_px: float) -> str:
    """A note for a scale at which there are too few red cells, where at another one they are beyond doubt; else "".

    They are to be more than whatever is found of the same place at the scale given, or platelets would be red cells.
    """
    look = _best_look(sight)
    looks_like = RED_CELL_UM / float(np.median(look.sizes)) if look.is_certain else um_per_px
    if _plausible(RED_CELL_UM * um_per_px / looks_like):
        return ""
    if len(look.sizes) <= len(sight.cells(look.crop, um_per_px)):
        return ""
    return (
        f"at the scale given hardly any red cell is found; the picture looks like {looks_like:.2g} um a pixel: "
        "check --um-per-px"
    )


def spread_estimate(
    source: PixelSource, detector: Detector, settled: ScaledCells, view: Region | None = None
) -> ScaledCells:
    """An estimate from a crop with the red cells of all the picture, or of five places of a larger one.

    Args:
        source: the picture.
        detector: finds the red cells.
        settled: returned as it is where it has the cells of the whole picture, or is no estimate.
        view: the part of the picture that the field stop leaves to see; None for all of it.
    """
    if settled.cells is not None or not len(settled.red_px):
        return settled
    sight, um_per_px = _Sight(source, detector, view), settled.scale.um_per_px
    side = _crop_side(RED_CELL_UM / um_per_px, CROP_PX)
    if math.prod(source.size_wh) <= len(PLACES) * side**2:
        crops = [_crop(source, max(source.size_wh))]
    else:
        crops = [_crop(source, side, place) for place in PLACES]
    found = [sight.cells(crop, um_per_px) for crop in crops]
    sizes = np.concatenate([isolated_red_diameters(cells) for cells in found])
    return ScaledCells(_of(settled.scale, sizes), found[0] if crops[0].is_whole else None, sizes)


def _of(scale: Scale, sizes: FloatArray) -> Scale:
    """An estimate with the median of more red cells, where they are enough; what is assumed stays so."""
    if len(sizes) < ENOUGH_CELLS or scale.source != "estimated":
        return scale
    median_px = float(np.median(sizes))
    return replace(scale, um_per_px=RED_CELL_UM / median_px, red_cell_px=median_px)


def check_scale(scale: Scale, cells: Detections) -> Scale:
    """A scale given by the user with the median red cell it leads to, and a note where that is not plausible."""
    if scale.source != "flag":
        return scale
    sizes = isolated_red_diameters(cells)
    if len(sizes) < ENOUGH_CELLS:
        return scale
    median_px = float(np.median(sizes))
    red_um = median_px * scale.um_per_px
    note = "" if _plausible(red_um) else f"the scale given makes the median red cell {red_um:.1f} um: check it"
    return Scale(scale.um_per_px, "flag", median_px, note)


def _explained(look: _Look) -> float:
    """How much of a crop is explained by cells of the size they were sought at.

    The sum of scores, each times the diameter of its box in pixels, or a scale far too fine would win with the many
    specks it sees inside the cells; weighted down where the size disagrees with that of the red cells sought, or with
    white cells 1.8 times as large. White cells have half a say, or dark red cells would be taken for white cells at
    twice the scale. By the pixel, since crops differ in size.
    """
    cells, sizes, total = look.cells, diameters(look.cells.boxes), 0.0
    for kind, expected_px, octaves, say in (("rbc", look.red_px, 0.5, 1.0), ("wbc", 1.8 * look.red_px, 0.6, 0.5)):
        rows = cells.kinds == kind
        misfit = np.log2(sizes[rows] / expected_px) / octaves
        total += say * float((cells.scores[rows] * sizes[rows] * np.exp(-(misfit**2))).sum())
    return total / math.prod(look.crop.size_wh)
