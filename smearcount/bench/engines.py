"""Engines: the same batch on local processes and on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from smearcount.bench.directories import DirectoriesJob, race
from smearcount.engines import Engine, LocalPlan, RayPlan, run_local, run_ray

__all__ = ["EnginesJob", "bench_engines"]


@dataclass(frozen=True)
class EnginesJob:
    """What is timed.

    Attributes:
        batch: the pictures.
        workers: processes of the one, actors of the other.
        threads: of each.
        ray_address: of a running cluster; one is started for the run without it.
    """

    batch: DirectoriesJob
    workers: int = 2
    threads: int = 1
    ray_address: str = ""


def bench_engines(job: EnginesJob) -> dict[str, Any]:
    """Seconds of the same batch on each engine, with and without what is once a run.

    Raises:
        UsageError: there is no picture.
        RuntimeMissingError: Ray is not installed.
        SmearcountError: the report depends on the engine.
    """
    engines: dict[str, Engine] = {
        "local": partial(run_local, LocalPlan(job.workers, job.threads)),
        "Ray": partial(run_ray, RayPlan(job.ray_address, job.workers, job.threads)),
    }
    runs = race(job.batch, engines)
    figures: dict[str, Any] = {
        **{"fields": job.batch.fields, "workers": job.workers, "threads of each": job.threads},
        **{"rounds": job.batch.rounds, "reports": "equal byte for byte"},
    }
    steady = {name: median(each.steady for each in laps) for name, laps in runs.items()}
    for name, laps in runs.items():
        figures |= {
            f"{name} (s)": round(median(each.seconds for each in laps), 2),
            f"{name}, start-up (s)": round(median(each.start_up for each in laps), 2),
            f"{name}, end (s)": round(median(each.closing for each in laps), 2),
            f"{name}, start-up and end excluded (s)": round(steady[name], 2),
        }
    whole = {name: median(each.seconds for each in laps) for name, laps in runs.items()}
    return figures | {
        "Ray over local": round(whole["Ray"] / whole["local"], 3),
        "Ray over local, start-up and end excluded": round(steady["Ray"] / steady["local"], 3),
    }
