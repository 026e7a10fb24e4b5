"""The stage before the analysis: some pictures of each slide are measured, and give one scale to all of its pictures.

Which pictures these are depends on the listing alone, and what they tell is in the journal: neither the engine nor an
interruption has an effect on a scale.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from smearcount.arrays import FloatArray
from smearcount.batch.attempts import Failure, attempt
from smearcount.batch.jobs import Stage, Watch
from smearcount.batch.journal import Journal, Measure, provenance_json
from smearcount.batch.listing import Picture
from smearcount.batch.work import Maker, one_large_at_a_time, picture_digest
from smearcount.engines import Engine
from smearcount.errors import ChangedError
from smearcount.images import unchanged
from smearcount.pipeline import Pipeline
from smearcount.slide_scale import RedCells, Size, SlideScales, pooled_scales, spread_rows

__all__ = ["Measuring", "measure_one"]


@dataclass(frozen=True)
class _MeasureWork:
    """What the workers of an engine are sent."""

    maker: Maker

    def start(self, threads: int) -> Callable[[Path], Measure | None]:
        """Load the models and return the function of one picture."""
        if threads:
            cv2.setNumThreads(threads)
        return one_large_at_a_time(partial(measure_one, self.maker.load(threads)), lambda path: path)


def measure_one(pipeline: Pipeline, path: Path) -> Measure | None:
    """What a picture tells of the scale of its slide; None where it may tell more the next time."""
    # The analysis of the same picture says what is wrong with it.
    with contextlib.suppress(ChangedError), unchanged(path):
        found = attempt(path, pipeline.measure, _plain)
        return _nothing(path, found) if isinstance(found, Failure) else found
    return None


def _nothing(path: Path, failure: Failure) -> Measure | None:
    sha256 = picture_digest(path) if failure.lasting else ""
    return Measure(sha256) if sha256 else None


def _plain(_: Path, found: RedCells) -> Measure:
    diameters, provenance = json.dumps(found.diameters_px.tolist()), provenance_json(found.provenance)
    return Measure(found.image_sha256, *found.size_wh, diameters, provenance)


@dataclass(frozen=True)
class Measuring:
    """Where the scales of slides come from.

    Attributes:
        maker: makes the pipeline in every worker.
        journal: keeps what was measured.
        watch: is told of every step.
    """

    maker: Maker
    journal: Journal
    watch: Watch

    def scales(self, pictures: Sequence[Picture], engine: Engine) -> dict[str, SlideScales]:
        """The scales of every slide of two or more pictures that have no scale of their own.

        Args:
            pictures: of the batch, in the order of its listing.
            engine: maps the work over those of them that are not in the journal.
        """
        slides: dict[str, list[Picture]] = {}
        for picture in pictures:
            if picture.slide_id and not picture.fault:
                slides.setdefault(picture.slide_id, []).append(picture)
        several = {name: held for name, held in slides.items() if len(held) > 1}
        chosen = {name: [held[row] for row in spread_rows(len(held))] for name, held in several.items()}
        self._measure([picture for held in chosen.values() for picture in held], engine)
        return {
            name: pooled_scales((self._measured(picture) for picture in held), len(several[name]))
            for name, held in chosen.items()
        }

    def _measure(self, chosen: Sequence[Picture], engine: Engine) -> None:
        """Fill the journal."""
        waiting = [picture for picture in chosen if not self._known(picture)]
        work, paths = _MeasureWork(self.maker), [picture.path.absolute() for picture in waiting]
        done = len(chosen) - len(waiting)
        if waiting:
            self.watch(Stage("measuring", done, len(chosen)))
        with contextlib.closing(engine(work, paths)) as results:
            for found in results:
                # What failed replaces what was there, which other bytes may have told.
                told = [(number, each if isinstance(each, Measure) else Measure("")) for number, each in found]
                self.journal.add_measures((waiting[number].image_id, each) for number, each in told)
                done += len(found)
                self.watch(Stage("measuring", done, len(chosen)))
        if done != len(chosen):
            raise RuntimeError(f"expected a result for each of {len(chosen)} pictures, {len(chosen) - done} had none")

    def _known(self, picture: Picture) -> bool:
        """Whether the journal has what these bytes tell."""
        measure = self.journal.find_measure(picture.image_id)
        if measure is None or not measure.sha256:
            return False
        try:
            return measure.red_px().ndim == 1 and picture_digest(picture.path) == measure.sha256
        except (ValueError, TypeError):
            return False

    def _measured(self, picture: Picture) -> tuple[Size, FloatArray]:
        measure = self.journal.find_measure(picture.image_id) or Measure("")
        return (measure.width, measure.height), measure.red_px()
