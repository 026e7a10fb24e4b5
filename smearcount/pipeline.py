"""The way of the data, and the only file that knows its order.

picture -> even light -> scale -> Detections -> Labels -> names -> Counts -> report, overlay
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import smearcount
from smearcount import counting, report
from smearcount.arrays import Pixels
from smearcount.config import OverlayFormat, Settings, read_model
from smearcount.countable import CountableMap, shade
from smearcount.detector import Detector
from smearcount.errors import ConfigError
from smearcount.frame import frame_of
from smearcount.geojson import check_regions, read_region, region_file
from smearcount.images import (
    ArraySource,
    ImageSource,
    ReadLimits,
    State,
    file_sha256,
    make_folder,
    open_image,
    unchanged,
    write_overlay,
    write_text_atomic,
)
from smearcount.images.locks import own_stem
from smearcount.light.illumination import Lit, even_light, find_cells, settle_lit
from smearcount.naming import Namer
from smearcount.output_names import shortened
from smearcount.patches import PATCH_SIDE_UM, Patch, cut_patches
from smearcount.quality import assess
from smearcount.records import UNCLASSIFIED, Counts, Detections, Provenance, Scale, SmearResult
from smearcount.region import SOUGHT_UM, Region, common_part, sought_around
from smearcount.report_json import json_report
from smearcount.runtimes import RuntimeChoice, model_for
from smearcount.slide_scale import RedCells, SlideScales
from smearcount.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Analysis", "Pipeline"]

ONE_EACH = "one for each picture"
"""Stands in the provenance for a folder of regions."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """One analysed picture: the record of the result, and what a person or a script wants to see of it.

    Attributes:
        result: all numbers.
        taxonomy: names and colours of the codes.
        source: the picture.
        patch_um: physical side of the patches of each kind.
        squares: which parts of a large picture were counted; None for a field.
        limits: the field of view within a black surround, and the region of interest, where there are such.
        state: of the file when it was analysed; empty where there was none.
    """

    result: SmearResult
    taxonomy: Taxonomy
    source: ImageSource
    patch_um: Mapping[str, float] = field(default_factory=lambda: PATCH_SIDE_UM)
    squares: CountableMap | None = None
    limits: tuple[Region, ...] = ()
    state: State = ()

    @property
    def counts(self) -> Counts:
        """Counted cells by code, the unclassified and the excluded."""
        return self.result.counts

    @property
    def cells(self) -> pd.DataFrame:
        """Every cell above the threshold, with the columns of `cells.csv` and typed values."""
        import pandas as pd

        frame = pd.DataFrame(report.cell_rows(self.result), columns=list(report.CELL_COLUMNS))
        exact: dict[str, type] = {"cell_id": int, "at_edge": bool, "counted": bool}
        text = ["image", "slide", "kind", "label", "runner_up"]
        for column in frame.columns.difference(text):
            frame[column] = pd.to_numeric(frame[column]).astype(exact.get(column, float))
        return frame.astype(dict.fromkeys(text, str))

    @property
    def differential(self) -> pd.DataFrame:
        """The table of kinds and codes: count, per cent and density, each with exact 95 % limits.

        A row is called after its kind or code; `unclassified_rbc` are the cells of a kind that have no name.
        """
        import pandas as pd

        lines = report.summary_lines(self.result, self.taxonomy)
        columns = ("percent", "percent_low", "percent_high", "per_mm2", "per_mm2_low", "per_mm2_high")
        rows = [
            (
                *(line.kind, line.name, line.count, line.share.value, line.share.low, line.share.high),
                *(line.density.value, line.density.low, line.density.high),
            )
            for line in lines
        ]
        keys = [f"{UNCLASSIFIED}_{line.kind}" if line.key == UNCLASSIFIED else line.key for line in lines]
        return pd.DataFrame(rows, index=keys, columns=["kind", "name", "count", *columns])

    @contextmanager
    def as_analysed(self) -> Iterator[None]:
        """See that the pixels looked at inside are those that were analysed, where they are read from the file again.

        Raises:
            ChangedError: the file changed since it was analysed.
        """
        held = isinstance(self.source, ArraySource) or not self.state
        with nullcontext() if held else unchanged(self.source.path, self.state):
            yield

    def patches(self) -> Iterator[Patch]:
        """The 452 x 452 cut-out of every cell, in the order of `cells`.

        Raises:
            ChangedError: the picture is read by regions, and its file changed since it was analysed.
        """
        detections = self.result.detections
        sides = np.array([self.patch_um[kind] for kind in detections.kinds.tolist()], np.float32)
        with self.as_analysed():
            yield from cut_patches(self.source, detections.boxes, sides, self.result.scale.um_per_px)

    def overlay(self) -> Pixels:
        """The annotated picture, `(H, W, 3) uint8 RGB`; one beyond 60 megapixels is shown reduced.

        Raises:
            ChangedError: the picture is read by regions, and its file changed since it was analysed.
        """
        from smearcount.overlay import dim_outside, draw_overlay, read_reduced, reduction

        factor = reduction(self.source.size_wh)
        with self.as_analysed():
            pixels = read_reduced(self.source, factor)
        shown = shade(pixels, self.squares) if self.squares else pixels
        for region in self.limits:
            shown = dim_outside(shown, region, self.source.size_wh)
        return draw_overlay(shown, self.result, self.taxonomy, factor)

    def save(self, folder: Path | str, stem: str | None = None, *, overlay_format: OverlayFormat = "jpg") -> list[Path]:
        """Write `<stem>.json`, `<stem>.cells.csv` and `<stem>.overlay.jpg`; each file is whole or absent.

        Args:
            folder: made where it is missing.
            stem: replaces what is there. Without it the stem of the picture's name, or `smear`, with a number where
                the folder holds a report of another picture under that name.
            overlay_format: `png` or `tif` for an overlay without loss; one of this stem in another format is removed.

        Returns:
            The paths as they were written: an overlay that is too long for JPEG is a `.tif`.

        Raises:
            ValueError: there is no such format.
            ImageError: the folder can't be read or written, or the picture changed since it was analysed.
            UsageError: without a stem: another run has been writing to that name for a minute.
        """
        folder = make_folder(Path(folder))
        if not stem:
            with own_stem(folder, shortened(Path(self.result.image_id).stem) or "smear", self.result) as own:
                return self.save(folder, own, overlay_format=overlay_format)
        summary, cells = folder / f"{stem}.json", folder / f"{stem}.cells.csv"
        # The likeliest to fail goes first: where there is a JSON, the other two are there as well.
        overlay = write_overlay(folder / stem, self.overlay(), overlay_format)
        write_text_atomic(cells, report.cells_csv(self.result))
        write_text_atomic(summary, json_report(self.result, self.taxonomy))
        return [summary, cells, overlay]


class Pipeline:
    """Models loaded once, pictures analysed one after the other.

    Args:
        settings: what `--config` and the flags say.
        weights: folder of the models instead of the shipped one.
    """

    def __init__(self, settings: Settings, weights: Path | None = None) -> None:
        self.settings = settings
        self._weights = weights
        self.taxonomy = load_taxonomy(settings.taxonomy)
        asked = (settings.runtime, settings.device, settings.precision, settings.threads)
        choice = RuntimeChoice(*asked, batch_size=settings.batch_size)
        # The networks are compiled side by side: a library does each on one thread for the most part.
        with ThreadPoolExecutor(1, "smearcount-load") as loader:
            naming = loader.submit(Namer, settings, self.taxonomy, choice, weights)
            loader.submit(import_module, "scipy.special")  # for the limits of every table; 0.1 s that are free here
            model = model_for(settings.detector, choice, weights)
            self.detector = Detector(model, choice, settings.min_score, settings.tile)
            self.namer = naming.result()
        self._regions = settings.region if settings.region and settings.region.is_dir() else None
        if self._regions:
            check_regions(self._regions)
        self.region = read_region(settings.region) if settings.region and not self._regions else None
        cards = (self.detector.card, *self.namer.cards)
        self._provenance = Provenance(
            version=smearcount.__version__,
            model_ids=tuple(card.id for card in cards),
            sha256={name: sha256 for card in cards for name, sha256 in card.checksums().items()},
            runtime=self.detector.runtime,
            settings={
                "edge_rule": settings.edge_rule,
                "min_score": self.detector.min_score,
                "min_label_score": {each.card.id: each.min_label_score for each in self.namer.classifiers},
                "min_move_score": {each.card.id: each.card.min_move_score for each in self.namer.classifiers},
                "experts": {expert.card.id: margin for expert, margin in self.namer.experts},
                "nms_iou": self.detector.card.nms_iou,
                "um_per_px": settings.um_per_px,
                "countable": settings.countable,
                **{name: getattr(settings, name) for name in ("batch_size", "page", "level", "channel")},
                "taxonomy": settings.taxonomy and file_sha256(settings.taxonomy),
                "region": ONE_EACH if self._regions else self.region and self.region.outline.wkt,
            },
        )

    def __reduce__(self) -> tuple[type[Pipeline], tuple[Settings, Path | None]]:
        """What another process makes the same pipeline from: it loads the models itself."""
        return type(self), (self.settings, self._weights)

    @classmethod
    def load(
        cls, settings: Settings | os.PathLike[str] | str | None = None, *, weights: os.PathLike[str] | str | None = None
    ) -> Pipeline:
        """A pipeline with the shipped models.

        Args:
            settings: or a YAML file of them, as `--config` takes it.
            weights: folder of the models instead of the shipped one.

        Raises:
            ConfigError: the file is no settings file.
            TypeError: the settings are something else.
            ModelError: a model file is missing or damaged.
            RuntimeMissingError: the runtime asked for is not installed.
        """
        if isinstance(settings, os.PathLike | str):
            settings = read_model(Settings, Path(settings))
        if not isinstance(settings, Settings | None):
            raise TypeError(f"settings: expected Settings or a YAML file, got {type(settings).__name__}")
        return cls(settings or Settings(), None if weights is None else Path(weights))

    def analyze(
        self,
        image: os.PathLike[str] | str | Pixels,
        *,
        um_per_px: float | None = None,
        image_id: str | None = None,
        slide_id: str = "",
        slide_scales: SlideScales | None = None,
    ) -> Analysis:
        """Find, name and count the cells of one picture.

        Args:
            image: a file, or `(H, W, 3) uint8 RGB` pixels, at least 32 a side, of which a copy is kept.
            um_per_px: its scale in micrometres a pixel, where known.
            image_id: name in reports instead of the file name.
            slide_id: the slide it belongs to.
            slide_scales: of the slide by size of picture, taken instead of an estimate from this picture alone.

        Raises:
            ImageError: the picture can't be read, or changes meanwhile; names the file and the remedy.
            ConfigError: the region lies outside the picture, or the folder of regions has none of it.
            TypeError: the image is something else, or a name is no string.
            ValueError: the scale is not within 0.02 to 2, or the pixels are of another shape or number type.
        """
        for key, name in ("image_id", "" if image_id is None else image_id), ("slide_id", slide_id):
            if not isinstance(name, str):
                raise TypeError(f"{key}: expected a string, got {type(name).__name__}")
        flag = self.settings.um_per_px if um_per_px is None else Settings(um_per_px=um_per_px).um_per_px
        if isinstance(image, np.ndarray):
            return self._analyzed(even_light(_held(image)), flag, image_id, slide_id, slide_scales)
        if not isinstance(image, os.PathLike | str):
            raise TypeError(f"image: expected a file or (H, W, 3) uint8 RGB pixels, got {type(image).__name__}")
        with unchanged(Path(image)) as state:
            lit = even_light(self._opened(Path(image), flag))
            return replace(self._analyzed(lit, flag, image_id, slide_id, slide_scales), state=state)

    def _analyzed(
        self, lit: Lit, flag: float | None, image_id: str | None, slide_id: str, scales: SlideScales | None
    ) -> Analysis:
        name = image_id if image_id is not None else lit.source.path.name
        slide = (scales or {}).get(lit.source.size_wh)
        region = self._region_in(lit.source, name)
        lit, scale, found = find_cells(lit, self.detector, flag, slide, region)
        limits = tuple(each for each in (lit.view, region) if each is not None)
        part = common_part(limits) if limits else None
        result, squares = self._judge(lit, found, scale, region, part, (name, slide_id))
        return Analysis(result, self.taxonomy, lit.source, PATCH_SIDE_UM | self.namer.patch_um, squares, limits)

    def measure(self, path: Path) -> RedCells:
        """The red cells from which the scale of a picture would be estimated.

        Raises:
            ImageError: the picture can't be read; names the file and the remedy.
        """
        source = self._opened(path, self.settings.um_per_px)
        settled = settle_lit(even_light(source), self.detector, self.settings.um_per_px)
        return RedCells(source.size_wh, settled.red_px, source.sha256, self._provenance)

    def _opened(self, path: Path, um_per_px: float | None) -> ImageSource:
        asked = self.settings
        limits = ReadLimits(asked.max_megapixels, scale_given=um_per_px is not None)
        return open_image(path, limits, asked.page, level=asked.level, channel=asked.channel)

    def _region_in(self, source: ImageSource, name: str) -> Region | None:
        """The part of the region of interest that lies in a picture, at the level of a pyramid that is read."""
        folder, region = self._regions, self.region
        place = region_file(folder, name) if folder else None
        try:
            if folder and place:
                region = read_region(place, place.relative_to(folder).as_posix())
            return region and region.at(source.downsample).within(source.size_wh)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def _judge(
        self,
        lit: Lit,
        found: Detections,
        scale: Scale,
        region: Region | None,
        part: Region | None,
        ids: tuple[str, str],
    ) -> tuple[SmearResult, CountableMap | None]:
        """Name the cells, decide which count, and sum them."""
        source = lit.source
        labels, thresholds = self.namer.name(source, found, scale.um_per_px)
        names = counting.name_cells(found.kinds, labels, thresholds)
        kinds = counting.final_kinds(found.kinds, names, self.taxonomy)
        as_found = np.array_equal(found.kinds, kinds)
        cells = found if as_found else replace(found, kinds=kinds)
        rule, whole = self.settings.edge_rule, self.settings.countable == "all"
        frame = frame_of(source, cells, scale.um_per_px, rule, region, view=lit.view, whole=whole)
        quality = assess(source, scale, cells, frame.counted, frame.excluded, part)
        quality = replace(quality, shares=frame.shares, judged_um2=frame.judged_um2)
        result = SmearResult(
            image_id=ids[0],
            slide_id=ids[1],
            size_wh=source.size_wh,
            image_sha256=source.sha256,
            scale=scale,
            detections=cells,
            labels=labels,
            names=names,
            counted=frame.counted,
            counts=counting.count_cells(cells, names, frame.counted, frame.excluded, self.taxonomy),
            counted_area_um2=frame.area_um2,
            quality=replace(quality, warnings=(*quality.warnings, *frame.notes)),
            provenance=self._provenance,
            found_as=None if as_found else found.kinds,
            reading=(*source.notes, *_searched(region, source.size_wh, scale.um_per_px)),
        )
        return result, frame.squares


def _searched(region: Region | None, size_wh: tuple[int, int], um_per_px: float) -> tuple[str, ...]:
    """What of a scan was not searched for cells, in words; nothing where all of it was."""
    part = sought_around(region, size_wh, um_per_px)
    if part is None:
        return ()
    share = part.area_px(size_wh) / (size_wh[0] * size_wh[1])
    return (f"cells sought only in the region and {SOUGHT_UM:.0f} um around it, {share:.2g} of the picture",)


def _held(pixels: Pixels) -> ArraySource:
    source = ArraySource(np.array(pixels, order="C"))
    ReadLimits().check_side(Path("pixels"), source.size_wh)
    digest = hashlib.sha256(repr(source.pixels.shape).encode())
    digest.update(source.pixels.data)
    return replace(source, sha256=digest.hexdigest())
