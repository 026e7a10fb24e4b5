"""A batch whose network finds drawn discs, for worker processes as well; a picture's name says what goes wrong.

Run as a program it is a real process that can be killed: `python fake_batch.py IN REPORT --workers N`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
from conftest import RED_CELL_PX, DiscNetwork, draw

from smearcount import detector
from smearcount.batch import BatchJob, Interrupted, run_batch
from smearcount.config import Settings
from smearcount.engines import Engine, LocalPlan, RayPlan, run_here, run_local, run_ray
from smearcount.errors import SmearcountError
from smearcount.pipeline import Analysis, Pipeline
from smearcount.slide_scale import RedCells
from smearcount.taxonomy import Taxonomy, load_taxonomy

SIDE_PX = 160


class DiscPipeline(Pipeline):
    """The pipeline with the network of discs; `log` notes every analysis and every measurement."""

    log: Path | None = None

    def analyze(self, image: Any, **more: Any) -> Analysis:
        path = Path(image)
        self._note(path.name)
        if "slow" in path.name:
            time.sleep(0.02)
        if "stop" in path.name:
            raise KeyboardInterrupt
        if "odd" in path.name:
            raise ZeroDivisionError("a fault")
        mark = path.with_suffix(".killed")
        if "kill" in path.name or ("once" in path.name and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().analyze(image, **more)

    def measure(self, path: Path) -> RedCells:
        self._note(f"measure:{path.name}")
        if "slow" in path.name:
            time.sleep(0.02)
        if "odd" in path.name:
            raise ZeroDivisionError("a fault")
        if "kill" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(path)

    def _note(self, words: str) -> None:
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{words}\n")


@dataclass(frozen=True)
class DiscMaker:
    """Makes the pipeline of discs in any process.

    Attributes:
        log: file to note every analysis in.
        version: part of the identity.
        runtime: said to be the runtime.
        um_per_px: what the user says of the scale.
    """

    log: Path | None = None
    version: int = 1
    runtime: str = "discs"
    um_per_px: float | None = 0.16

    def taxonomy(self) -> Taxonomy:
        return load_taxonomy()

    def identity(self) -> dict[str, Any]:
        return {"version": self.version}

    def scale_given(self) -> bool:
        return self.um_per_px is not None

    def region_of(self, image_id: str) -> str:
        return ""

    def load(self, threads: int) -> Pipeline:
        cv2.setNumThreads(1)
        with patch.object(detector, "make_runtime", lambda model, choice: (DiscNetwork(), self.runtime)):
            pipeline = DiscPipeline.load(Settings(um_per_px=self.um_per_px, classifiers=(), experts={}))
        pipeline.log = self.log
        return pipeline


def smear(path: Path, seed: int) -> Path:
    """A picture of one to nine discs."""
    rng = np.random.default_rng(seed)
    centres = np.array([(x, y) for x in (28, 80, 132) for y in (28, 80, 132)], np.float32)
    chosen = rng.permutation(9)[: rng.integers(1, 10)]
    discs = np.column_stack([centres[chosen], np.full(len(chosen), RED_CELL_PX * 0.9)])
    kinds = tuple(rng.choice(["rbc", "wbc"], len(chosen)).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), draw((SIDE_PX, SIDE_PX), discs, kinds).pixels[:, :, ::-1])
    return path


def smears(folder: Path, *names: str) -> Path:
    """A folder of pictures, all different."""
    for seed, name in enumerate(names):
        smear(folder / name, seed)
    return folder


def main() -> int:
    """The batch as a program; exit code 1 where pictures failed, 3 where the run did."""
    flags = argparse.ArgumentParser()
    flags.add_argument("folder", type=Path)
    flags.add_argument("report", type=Path)
    flags.add_argument("--workers", type=int, default=0)
    flags.add_argument("--ray", type=int, default=0)
    flags.add_argument("--limit", type=int)
    flags.add_argument("--log", type=Path)
    flags.add_argument("--estimate", action="store_true")
    flags.add_argument("--overlays", type=Path)
    given = flags.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    if given.limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (given.limit, given.limit))
    cells = given.report.with_suffix(".cells.csv")
    job = BatchJob(given.folder, given.report, cells, given.overlays, recursive=True)
    engine: Engine = partial(run_local, LocalPlan(given.workers, 1)) if given.workers else run_here
    if given.ray:
        engine = partial(run_ray, RayPlan(workers=given.ray))
    try:
        outcome = run_batch(DiscMaker(given.log, um_per_px=None if given.estimate else 0.16), job, engine)
    except SmearcountError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        return 130
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    # Under its own name, so that workers find the same class in the same module.
    import fake_batch

    sys.exit(fake_batch.main())
