"""What a worker does with one picture. It is the same function on every engine, and all it needs can be sent there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

import cv2

import smearcount
from smearcount import report
from smearcount.batch.attempts import Failure, attempt
from smearcount.batch.journal import Record, provenance_json
from smearcount.batch.slides import counts_as_json
from smearcount.cards import find_model
from smearcount.config import OverlayFormat, Settings, shipped
from smearcount.errors import ChangedError, ConfigError, ImageError
from smearcount.geojson import check_regions, region_file
from smearcount.images import content_sha256, file_sha256, make_folder, unchanged, write_overlay
from smearcount.output_names import place_of
from smearcount.pipeline import Analysis, Pipeline
from smearcount.runtimes import RuntimeChoice, model_for
from smearcount.slide_scale import SlideScales
from smearcount.taxonomy import Taxonomy, load_taxonomy

__all__ = ["BatchWork", "PipelineMaker", "Task", "Wishes", "analyze_one", "failed_record"]
__all__ += ["one_large_at_a_time", "picture_digest"]

_NO_EFFECT = frozenset(("threads", "tile", "detector", "classifiers", "taxonomy"))
"""Settings that change no count, or stand in the identity by their content."""

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

LARGE_BYTES = 2_000_000
"""Of a file that may take much memory: a photograph of some 14 megapixels, a scan."""


class Maker(Protocol):
    """Makes the pipeline in whatever process it is needed; it can be pickled, and importing it costs little."""

    def taxonomy(self) -> Taxonomy:
        """Names and kinds of the codes."""

    def identity(self) -> dict[str, Any]:
        """Everything that the counts of a picture depend on, as plain values, without loading a net."""

    def scale_given(self) -> bool:
        """Whether the user says the scale, so that none is estimated."""

    def region_of(self, image_id: str) -> str:
        """Checksum of the region that a picture has to itself; empty where it has none."""

    def load(self, threads: int) -> Pipeline:
        """The pipeline with this many CPU threads; 0 leaves them to the settings."""


@dataclass(frozen=True)
class PipelineMaker:
    """The pipeline of these settings.

    Attributes:
        settings: what `--config` and the flags say.
        weights: folder of the models instead of the shipped one.
        folder: where relative paths begin; a worker may have another working directory.
    """

    settings: Settings
    weights: Path | None = None
    folder: Path = field(default_factory=Path.cwd)

    def taxonomy(self) -> Taxonomy:
        """Names and kinds of the codes.

        Raises:
            ConfigError: the taxonomy is missing or malformed.
        """
        return load_taxonomy(self.settings.taxonomy)

    def identity(self) -> dict[str, Any]:
        """Version, models with checksums, taxonomy, and every setting that has an effect on the counts.

        Raises:
            ModelError: there is no such model.
            ConfigError: a file that a setting names can't be read.
        """
        settings = self.settings
        choice = RuntimeChoice(settings.runtime, settings.device, settings.precision)
        names = (*settings.classifiers, *settings.experts)
        models = [
            model_for(settings.detector, choice, self.weights),
            *(find_model(name, self.weights) for name in names),
        ]
        taxonomy = settings.taxonomy or shipped("configs") / "taxonomy.yaml"
        return {
            "version": smearcount.__version__,
            "models": [model.card.id for model in models],
            "cards": [_digest(model.folder / "card.yaml") for model in models],
            "files": {name: sha256 for model in models for name, sha256 in model.card.checksums().items()},
            "taxonomy": _digest(taxonomy),
            "settings": {
                name: self._told(value) if isinstance(value, Path) else settings.model_dump(mode="json")[name]
                for name, value in settings
                if name not in _NO_EFFECT
            },
        }

    @staticmethod
    def _told(path: Path) -> str:
        """A file that a setting names, by its content; of a folder of regions, each picture's row has its own."""
        if not path.is_dir():
            return _digest(path)
        check_regions(path)
        return "a folder"

    def scale_given(self) -> bool:
        """Whether the user says the scale, so that none is estimated."""
        return self.settings.um_per_px is not None

    def region_of(self, image_id: str) -> str:
        """Checksum of the region that a picture has to itself; empty where it has none."""
        folder = self.settings.region
        if folder is None or not folder.is_dir():
            return ""
        try:
            return _digest(region_file(folder, image_id))
        except ConfigError:
            return ""  # its row will say why

    def load(self, threads: int) -> Pipeline:
        """The pipeline with this many CPU threads; 0 leaves them to the settings."""
        settings = self._placed()
        if threads:
            settings = settings.model_copy(update={"threads": threads})
        return Pipeline.load(settings, weights=self.weights and self.folder / self.weights)

    def _placed(self) -> Settings:
        """The settings with absolute paths; the identity has them as they were given, or files by their content."""
        asked, folder = self.settings, self.folder
        placed = {
            "detector": self._model(asked.detector),
            "classifiers": tuple(map(self._model, asked.classifiers)),
            "experts": {self._model(name): gap for name, gap in asked.experts.items()},
            "region": asked.region and folder / asked.region,
            "taxonomy": asked.taxonomy and folder / asked.taxonomy,
        }
        return asked.model_copy(update=placed)

    def _model(self, name: str) -> str:
        """The absolute folder of a model; an id, which every machine finds for itself, stays one."""
        weights = self.folder / (self.weights or shipped("weights"))
        is_id = "/" not in name and (weights / name / "card.yaml").is_file()
        return str(self.folder / name) if not is_id and (self.folder / name).is_dir() else name


def _digest(path: Path) -> str:
    """SHA-256 of a file that a setting names."""
    try:
        return file_sha256(path)
    except ImageError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class Wishes:
    """What is wanted of a picture besides its row.

    Attributes:
        cells: the rows of its cells.
        overlays: folder for the annotated picture, if wanted.
        galleries: folder for the sheets of its cells, if wanted.
        overlay_format: of the annotated picture.
    """

    cells: bool = False
    overlays: Path | None = None
    galleries: Path | None = None
    overlay_format: OverlayFormat = "jpg"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those for pictures that are wanted."""
        return tuple(folder for folder in (self.overlays, self.galleries) if folder)


@dataclass(frozen=True)
class Task:
    """One picture to analyse.

    Attributes:
        path: absolute, since the worker may be elsewhere.
        image_id: its name in the report.
        slide_id: the slide it belongs to.
        scales: of its slide, by size of picture, where they were estimated from several pictures.
        region: checksum of the region that it has to itself.
    """

    path: Path
    image_id: str
    slide_id: str
    scales: SlideScales = field(default_factory=dict)
    region: str = ""

    @property
    def given(self) -> str:
        """Scales and region in the journal: a picture that was analysed with others is analysed again."""
        scales = [[*size_wh, scale.um_per_px, scale.note] for size_wh, scale in sorted(self.scales.items())]
        return json.dumps({"scales": scales, "region": self.region})


@dataclass(frozen=True)
class BatchWork:
    """What the workers of an engine are sent."""

    maker: Maker
    wishes: Wishes

    def start(self, threads: int) -> Callable[[Task], Record]:
        """Load the models and return the function of one picture."""
        if threads:
            cv2.setNumThreads(threads)
        call = partial(analyze_one, self.maker.load(threads), self.wishes)
        return one_large_at_a_time(call, lambda task: task.path)


def one_large_at_a_time(call: Callable[[Asked], Answer], path_of: Callable[[Asked], Path]) -> Callable[[Asked], Answer]:
    """A function of pictures that waits with a large one until another large one is done."""
    alone = Lock()

    def do(asked: Asked) -> Answer:
        try:
            large = path_of(asked).stat().st_size > LARGE_BYTES
        except OSError:
            large = False
        with alone if large else contextlib.nullcontext():
            return call(asked)

    return do


def analyze_one(pipeline: Pipeline, wishes: Wishes, task: Task) -> Record:
    """Everything the journal keeps of one picture; one that fails is a record with the reason.

    A picture that changes until all is written of it, or the checksum of one that failed is known, fails as well.
    """
    start, record = time.perf_counter(), None
    try:
        with unchanged(task.path):
            record = _analyzed(pipeline, wishes, task)
    except ChangedError as error:
        _discard(json.loads(record.files) if record else {})
        record = failed_record(task, Failure(str(error)), pipeline.taxonomy)
    return replace(
        record,
        seconds=round(time.perf_counter() - start, 4),
        worker=f"{socket.gethostname()}:{os.getpid()}",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _analyzed(pipeline: Pipeline, wishes: Wishes, task: Task) -> Record:
    analyze = partial(pipeline.analyze, image_id=task.image_id, slide_id=task.slide_id, slide_scales=task.scales)
    found = attempt(task.path, analyze, partial(_record, wishes, task))
    return failed_record(task, found, pipeline.taxonomy, wishes) if isinstance(found, Failure) else found


def _discard(files: Mapping[str, Iterable[str]]) -> None:
    """Remove what was written for a picture: names by folder."""
    for folder, names in files.items():
        for name in names:
            with contextlib.suppress(OSError):
                Path(folder, name).unlink()


def failed_record(task: Task, failure: Failure, taxonomy: Taxonomy, wishes: Wishes | None = None) -> Record:
    """The record of a picture without a result; its reason names files as the report does, relative to a folder."""
    reason = failure.reason.replace(str(task.path), task.image_id)
    for folder in wishes.folders if wishes else ():
        reason = reason.replace(f"{folder}{os.sep}", "")
        reason = re.sub(rf"{re.escape(str(folder))}(?=[:;\s])", folder.name, reason)
    row = report.failure_row(task.image_id, task.slide_id, reason, taxonomy)
    sha256 = picture_digest(task.path) if failure.lasting else ""
    return Record(sha256, "failed", bool(sha256), json.dumps(row))


def picture_digest(path: Path) -> str:
    """SHA-256 of a picture; empty where it can't be read, or is no file: a pipe would be waited for without end."""
    try:
        return content_sha256(path) if path.is_file() else ""
    except (ImageError, OSError):
        return ""


def _record(wishes: Wishes, task: Task, _: Path, analysis: Analysis) -> Record:
    files = _drawn(wishes, task, analysis)
    return Record(
        sha256=analysis.result.image_sha256,
        status="ok",
        lasting=True,
        row=json.dumps(report.report_row(analysis.result, analysis.taxonomy)),
        counts=json.dumps(counts_as_json(analysis.result)),
        cells=_cells(analysis) if wishes.cells else None,
        files=json.dumps(files),
        given=task.given,
        provenance=provenance_json(analysis.result.provenance),
    )


def _drawn(wishes: Wishes, task: Task, analysis: Analysis) -> dict[str, dict[str, str]]:
    """Write overlay and sheets, all of them or, if it raises, none; returns what `Record.files` says of them."""
    files: dict[str, dict[str, str]] = {}
    if wishes.overlays:
        overlay = place_of(wishes.overlays, task.image_id, "")
        make_folder(overlay.parent)
        _keep(files, wishes.overlays, [write_overlay(overlay, analysis.overlay(), wishes.overlay_format)])
    if wishes.galleries:
        from smearcount.gallery import clear_gallery, write_gallery

        gallery = place_of(wishes.galleries, task.image_id, "")
        try:
            _keep(files, wishes.galleries, write_gallery(analysis, make_folder(gallery.parent), gallery.name))
        except Exception:
            clear_gallery(place_of(wishes.galleries, task.image_id, ".gallery"), analysis.taxonomy)
            _discard(files)
            raise
    return files


def _keep(files: dict[str, dict[str, str]], folder: Path, written: list[Path]) -> None:
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in written}
    files.setdefault(str(folder), {}).update(digests)


def _cells(analysis: Analysis) -> bytes:
    rows = [{name: row[name] for name in report.CELL_COLUMNS[2:]} for row in report.cell_rows(analysis.result)]
    return zlib.compress(report.to_csv(report.CELL_COLUMNS[2:], rows, header=False).encode(), 6)
