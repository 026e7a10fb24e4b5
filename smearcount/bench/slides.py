"""Whole slides: time and memory by size, end to end over the bare network, other origins, SAHI on the same slide."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from smearcount.bench.memory import peak_of
from smearcount.bench.mosaics import mosaic_size, write_canonical, write_tiled
from smearcount.bench.rivals import Slicer, usual_threads
from smearcount.bench.seams import seam_figures
from smearcount.bench.timing import Lap, Laps, alternate, check_counts, lap, tally, unevenness
from smearcount.bench.windows import shifted, window_tensors
from smearcount.cards import find_model
from smearcount.config import Settings
from smearcount.datasets import data_root
from smearcount.detector import Detector
from smearcount.errors import ImageError, UsageError
from smearcount.images import ArraySource, PartSource, open_image
from smearcount.pipeline import Pipeline
from smearcount.runtimes import Runtime, RuntimeChoice, make_runtime, model_for
from smearcount.scale import settle_scale
from smearcount.simulate import SmearRecipe, render
from smearcount.windows import canonical_size

__all__ = ["SLIDE_PARTS", "SlidesJob", "bench_slides"]

SLIDE_PARTS = ("sizes", "memory", "network", "origins", "sahi")
"""What there is to measure; see `bench_slides`."""

EQUAL_WITHIN = 0.05
"""Share by which the count of SAHI may differ from ours: it merges boxes where we choose among them."""

SIMULATED_UM_PER_PX = 0.2
SIMULATED_SIDE_PX = 1536
_RED_CELLS_PER_MM2 = 8500.0
_SEAM_BAND_UM = 6.0
_SIDES_PX = (200, 40_000)
"""Of a simulated slide: from room for its cells to what can be simulated."""
_MEGABYTE = 2**20


@dataclass(frozen=True)
class SlidesJob:
    """What is measured.

    Attributes:
        slide: a slide; `slide_field/slide1.tif` of the labelled collections without one.
        um_per_px: its scale; estimated once, outside the timing, where it is None.
        threads: CPU threads of every contender.
        rounds: repetitions.
        megapixels: sizes of the mosaics.
        simulated_px: side of the simulated slide whose cells are known; 0 for none.
        share: of the slide that is measured, from its top-left corner.
        parts: some of `SLIDE_PARTS`.
    """

    slide: Path | None = None
    um_per_px: float | None = None
    threads: int = 2
    rounds: int = 3
    megapixels: tuple[float, ...] = (10, 25, 50, 100, 200)
    simulated_px: int = 8000
    share: float = 1.0
    parts: tuple[str, ...] = SLIDE_PARTS

    def __post_init__(self) -> None:
        """Check the words and numbers.

        Raises:
            UsageError: one of them is unknown or out of range.
        """
        if unknown := set(self.parts) - set(SLIDE_PARTS):
            raise UsageError(f"parts: expected some of {', '.join(SLIDE_PARTS)}, got {', '.join(sorted(unknown))}")
        if not 0 < self.share <= 1:
            raise UsageError(f"share: expected more than 0 and at most 1, got {self.share}")
        if not self.megapixels or not all(0 < size < math.inf for size in self.megapixels):
            raise UsageError(f"megapixels: expected positive numbers, got {self.megapixels}")
        if self.simulated_px and not _SIDES_PX[0] <= self.simulated_px <= _SIDES_PX[1]:
            raise UsageError(f"simulated: expected 0 or {_SIDES_PX[0]} to {_SIDES_PX[1]} px, got {self.simulated_px}")


def bench_slides(job: SlidesJob) -> dict[str, Any]:
    """The parts that were asked for, in their order.

    `sizes`: seconds a megapixel of mosaics of different sizes. `memory`: peak for a quarter of the slide, the slide,
    and four copies of it; that of SAHI. `network`: end to end over the bare network on the same windows. `origins`:
    counts with the grid of windows elsewhere, and lost and doubled cells of a simulated slide. `sahi`: time against it.

    Raises:
        ImageError: there is no slide.
        SmearcountError: SAHI finds another number of cells.
    """
    scratch = Path(tempfile.mkdtemp(prefix="smearcount-bench-"))
    try:
        bench = _Slides(job, scratch)
        figures: dict[str, Any] = {
            "slide": {
                **{"megapixels": round(bench.slide.megapixels, 2), "um_per_px": round(bench.slide.um_per_px, 4)},
                **{"threads": job.threads, "rounds": job.rounds},
            }
        }
        return figures | {part: getattr(bench, part)() for part in SLIDE_PARTS if part in job.parts}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class _Slide:
    """A slide on disk with its scale."""

    path: Path
    um_per_px: float

    @property
    def size_wh(self) -> tuple[int, int]:
        return open_image(self.path).size_wh

    @property
    def megapixels(self) -> float:
        return math.prod(self.size_wh) / 1e6


def _finding(threads: int, precision: str = "auto") -> Settings:
    """Settings for finding and counting, without the naming of cells."""
    return Settings(threads=threads, precision=precision, device="cpu", classifiers=(), experts={})  # type: ignore[arg-type]


def _analyze(path: Path, um_per_px: float, settings: Settings) -> dict[str, int]:
    """What a process of its own does."""
    return tally(Pipeline.load(settings).analyze(path, um_per_px=um_per_px).result.detections)


def _slice(path: Path, threads: int, scratch: Path) -> dict[str, int]:
    """What a process of its own does with SAHI."""
    return Slicer(find_model(Settings().detector), scratch)(path, threads)


class _Slides:
    """The slide, and one method for each part."""

    def __init__(self, job: SlidesJob, scratch: Path) -> None:
        self.job, self.scratch = job, scratch
        self.model = find_model(Settings().detector)
        self.card = self.model.detector_card
        self.usual = Pipeline.load(_finding(job.threads))
        self.slide = self._slide()

    def _slide(self) -> _Slide:
        root = data_root()
        path = self.job.slide or (root / "slide_field" / "slide1.tif" if root else None)
        if path is None:
            raise ImageError("no slide to measure; give one on the command line")
        source = open_image(path)
        um_per_px = self.job.um_per_px
        if um_per_px is None:
            um_per_px = settle_scale(source, self.usual.detector, None, source.um_per_px).scale.um_per_px
        if self.job.share == 1:
            return _Slide(path, um_per_px)
        part = PartSource(source, (0, 0), mosaic_size(source.size_wh, self.job.share * math.prod(source.size_wh) / 1e6))
        return _Slide(write_tiled(part, part.size_wh, self.scratch / "part.tif"), um_per_px)

    def sizes(self) -> dict[str, Any]:
        """Seconds a megapixel of mosaics, from the file to the counts, at the default precision."""
        simulated = ArraySource(render(_recipe(SIMULATED_SIDE_PX)).pixels)
        figures: dict[str, Any] = {}
        for name, source, scale in (
            ("simulated", simulated, SIMULATED_UM_PER_PX),
            ("slide", open_image(self.slide.path), self.slide.um_per_px),
        ):
            paths = {}
            for size in self.job.megapixels:
                target = self.scratch / f"{name}-{size:g}.tif"
                paths[size] = write_tiled(source, mosaic_size(source.size_wh, size), target)
            self.usual.analyze(paths[min(paths)], um_per_px=scale)
            calls = {f"{size:g} MP": partial(self.usual.analyze, path, um_per_px=scale) for size, path in paths.items()}
            laps = alternate(calls, self.job.rounds, warm=False)
            exact = {f"{size:g} MP": math.prod(open_image(path).size_wh) / 1e6 for size, path in paths.items()}
            figures |= _by_size(name, laps, exact)
            for path in paths.values():
                path.unlink()
        return figures

    def memory(self) -> dict[str, Any]:
        """Peak megabytes of whole processes."""
        (width, height), source = self.slide.size_wh, open_image(self.slide.path)
        quarter = PartSource(source, (0, 0), (width // 2, height // 2))
        small = write_tiled(quarter, quarter.size_wh, self.scratch / "quarter.tif")
        large = write_tiled(source, (2 * width, 2 * height), self.scratch / "four.tif")
        settings, peaks = _finding(self.job.threads), {}
        for name, path in (("a quarter", small), ("the slide", self.slide.path), ("four copies", large)):
            peaks[name] = peak_of(_analyze, path, self.slide.um_per_px, settings)[1]
        figures = {f"{name} (MB)": round(peak / _MEGABYTE, 1) for name, peak in peaks.items()}
        figures["growth from a quarter to four copies"] = round(peaks["four copies"] / peaks["a quarter"] - 1, 4)
        for path in (small, large):
            path.unlink()
        if _has_sahi():
            peak = peak_of(_slice, self._canonical(), self.job.threads, self.scratch)[1]
            figures["SAHI, the slide (MB)"] = round(peak / _MEGABYTE, 1)
            figures["peak over that of SAHI"] = round(peaks["the slide"] / peak, 3)
        return figures

    def network(self) -> dict[str, Any]:
        """End to end, and finding alone, over the bare network on the same windows."""
        figures: dict[str, Any] = {}
        for label, precision in (("f32", "f32"), ("default", "auto")):
            pipeline = Pipeline.load(_finding(self.job.threads, precision))
            choice = RuntimeChoice("openvino", "cpu", precision, self.job.threads)
            bare, _ = make_runtime(model_for(self.card.id, choice), choice)
            bare_laps, find_laps, whole_laps, tiles = [], [], [], 0
            self._find(pipeline.detector)
            for _ in range(self.job.rounds):
                summed, tiles = self._bare(bare)
                bare_laps.append(summed)
                find_laps.append(lap(partial(self._find, pipeline.detector)))
                whole_laps.append(lap(partial(pipeline.analyze, self.slide.path, um_per_px=self.slide.um_per_px)))
            net, find, whole = (Laps(tuple(each)) for each in (bare_laps, find_laps, whole_laps))
            figures |= {
                f"windows, {label}": tiles,
                f"bare network, {label} (s)": round(net.wall, 3),
                f"finding, {label} (s)": round(find.wall, 3),
                f"end to end, {label} (s)": round(whole.wall, 3),
                f"finding over network, {label}": round(find.wall / net.wall, 3),
                f"end to end over network, {label}": round(whole.wall / net.wall, 3),
                f"end to end over network, {label}, fastest laps": round(whole.fastest / net.fastest, 3),
                f"end to end over network, {label}, processor time": round(whole.cpu / net.cpu, 3),
            }
        return figures

    def _find(self, detector: Detector, path: Path | None = None) -> dict[str, int]:
        return tally(detector.find(open_image(path or self.slide.path), self.slide.um_per_px))

    def _bare(self, run: Runtime) -> tuple[Lap, int]:
        """Time of the network alone, summed over the windows of the slide, and their number."""
        wall = cpu = 0.0
        tiles, seen = 0, set()
        for tensor in window_tensors(open_image(self.slide.path), self.slide.um_per_px, self.usual.detector):
            if tensor.shape not in seen:  # the first of a shape also pays for its kernels
                run(tensor)
                seen.add(tensor.shape)
            each = lap(partial(run, tensor))
            wall, cpu, tiles = wall + each.wall, cpu + each.cpu, tiles + 1
        return Lap(wall, cpu), tiles

    def origins(self) -> dict[str, Any]:
        """Counts with the grid of windows at three places, and the seams of a simulated slide."""
        figures = shifted(self.usual.detector, open_image(self.slide.path), self.slide.um_per_px)[0]
        if self.job.simulated_px:
            smear = render(_recipe(self.job.simulated_px))
            path = write_tiled(ArraySource(smear.pixels), smear.pixels.shape[1::-1], self.scratch / "simulated.tif")
            moved, found = shifted(self.usual.detector, open_image(path), SIMULATED_UM_PER_PX)
            figures |= {f"simulated: {name}": value for name, value in moved.items()}
            cells = seam_figures(smear.boxes, found[0], found[1], _SEAM_BAND_UM / SIMULATED_UM_PER_PX)
            figures |= {f"simulated: {name}": value for name, value in cells.items()}
            figures["simulated: true cells"] = len(smear.boxes)
            figures["simulated: count error"] = round(len(found[0].boxes) / len(smear.boxes) - 1, 5)
        return figures

    def sahi(self) -> dict[str, Any]:
        """Seconds for finding against SAHI; it is given the slide at the canonical scale, which we must make first."""
        if not _has_sahi():
            return {"not measured": "SAHI is not installed: pip install 'smearcount[bench]'"}
        path, threads = self._canonical(), self.job.threads
        slicer = Slicer(self.model, self.scratch)
        exact = Pipeline.load(_finding(threads, "f32")).detector
        free = Pipeline.load(_finding(0)).detector
        ours, theirs = self._find(exact), slicer(path, threads)
        figures: dict[str, Any] = {
            "cells, f32": ours,
            "cells, SAHI": theirs,
            "SAHI over finding, number of cells": check_counts(ours, theirs, "SAHI", EQUAL_WITHIN),
        }
        contenders = {
            "finding, f32": partial(self._find, exact),
            "SAHI, equal threads": partial(slicer, path, threads),
            "finding, default": partial(self._find, free),
            "SAHI as it comes": partial(slicer, path, usual_threads()),
        }
        laps = alternate(contenders, self.job.rounds, warm=False)
        figures |= {f"{name} (s)": round(each.wall, 3) for name, each in laps.items()}
        for label, first, second in (
            ("SAHI over finding, f32, equal threads", "SAHI, equal threads", "finding, f32"),
            ("SAHI as it comes over finding, default", "SAHI as it comes", "finding, default"),
        ):
            figures[label] = round(laps[first].wall / laps[second].wall, 2)
            figures[f"{label}, processor time"] = round(laps[first].cpu / laps[second].cpu, 2)
        return figures

    def _canonical(self) -> Path:
        """The slide at the canonical scale, bare: what SAHI reads quickest."""
        path = self.scratch / "canonical.tif"
        if not path.exists():
            source = open_image(self.slide.path)
            write_canonical(source, canonical_size(source.size_wh, self.slide.um_per_px, self.card), path)
        return path


def _has_sahi() -> bool:
    from importlib.util import find_spec

    return find_spec("sahi") is not None


def _recipe(side_px: int) -> SmearRecipe:
    """A slide of usual density: more than 20,000 cells on 8000 x 8000 px."""
    area_mm2 = (side_px * SIMULATED_UM_PER_PX / 1000) ** 2
    return SmearRecipe(
        width=side_px,
        height=side_px,
        um_per_px=SIMULATED_UM_PER_PX,
        red_cells_per_mm2=_RED_CELLS_PER_MM2,
        white_cells=round(10 * area_mm2),
        platelets=round(400 * area_mm2),
        debris=0,
        seed=1,
    )


def _by_size(name: str, laps: dict[str, Laps], megapixels: dict[str, float]) -> dict[str, Any]:
    wall = {size: each.wall / megapixels[size] for size, each in laps.items()}
    cpu = {size: each.cpu / megapixels[size] for size, each in laps.items()}
    return {
        **{f"{name}, {size} (s/MP)": round(value, 4) for size, value in wall.items()},
        f"{name}, slowest over fastest, less 1": unevenness(wall),
        f"{name}, slowest over fastest, less 1, processor time": unevenness(cpu),
    }
