"""Ray Data: the same work on a Ray cluster, or on one started on this machine for the run.

Tasks flow through a pool of actors, each of which loads the models once. Ray Data hands out no more blocks than the
actors can take, starts an actor again that died, and may spread them over machines; all machines see the files under
the same paths.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smearcount.engines.contract import Lost, Results, Work
from smearcount.engines.local import usable_cores
from smearcount.errors import RuntimeMissingError, SmearcountError

__all__ = ["RayPlan", "run_ray"]

_STORE_BYTES = 256 * 1024**2
"""Object store of a cluster started here: what passes through it are rows, not pictures."""

_MOST_ROWS = 8
"""Tasks of a block: a block is finished, or done again, as a whole."""


@dataclass(frozen=True)
class RayPlan:
    """Where the actors run and what each takes.

    Attributes:
        address: of a running cluster, or `auto`; empty for one on this machine that ends with the run.
        workers: actors; 0 for as many as the cluster has graphics cards or, without `gpu`, cores.
        threads: CPU threads, and cores, of each actor; 0 for one.
        gpu: whether an actor needs a graphics card, or its share of one.
    """

    address: str = ""
    workers: int = 0
    threads: int = 0
    gpu: bool = False

    def share(self, tasks: int, resources: dict[str, float]) -> tuple[int, float]:
        """Number of actors and graphics cards of each on a cluster with these resources.

        Raises:
            SmearcountError: there is no graphics card, or not one core for an actor.
        """
        cards, cores = resources.get("GPU", 0), resources.get("CPU", 0)
        if self.gpu and not cards:
            raise SmearcountError("the Ray cluster has no graphics card; use --device cpu, or start Ray on other nodes")
        fitting = int(cards if self.gpu else cores // (self.threads or 1))
        workers = min(self.workers or max(1, fitting), tasks)
        if not self.gpu and workers * (self.threads or 1) > cores:
            raise SmearcountError(
                f"{workers} workers of {self.threads or 1} threads need more than the {cores:g} cores of the Ray "
                "cluster; give fewer --workers or --threads"
            )
        return workers, min(1.0, cards / workers) if self.gpu else 0


def run_ray(plan: RayPlan, work: Work, tasks: Sequence[Any]) -> Iterator[Results]:
    """Map the work over the tasks with Ray Data.

    Raises:
        RuntimeMissingError: Ray is not installed.
        SmearcountError: the cluster can't be reached or has too little; what an actor said when it loaded the models.
    """
    if not tasks:
        return
    ray = _imported()
    started = not ray.is_initialized()
    if started:
        _connect(ray, plan, len(tasks))
    try:
        yield from _rounds(ray, plan, work, tasks)
    finally:
        if started:
            ray.shutdown()


def _imported() -> Any:
    # All of them are read when Ray is imported or started: no usage report, no warning that fills the terminal.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeMissingError(
            "--engine ray needs Ray, which is not installed: python -m pip install 'smearcount[ray]'"
        ) from error
    return ray


def _connect(ray: Any, plan: RayPlan, tasks: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES, "_node_ip_address": "127.0.0.1"}
    if not plan.address:
        # Ray counts no hyper-threads of its own: as many cores as the actors will ask for.
        own["num_cpus"] = max(usable_cores(), min(plan.workers or 1, tasks) * (plan.threads or 1))
    try:
        ray.init(**quiet, **({"address": plan.address} if plan.address else own))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at {plan.address}" if plan.address else "on this machine"
        raise SmearcountError(f"no Ray cluster {where}: {error}; start one with `ray start --head`") from error


def _rounds(ray: Any, plan: RayPlan, work: Work, tasks: Sequence[Any]) -> Iterator[Results]:
    """A block whose actor died each time is dropped by Ray Data: its tasks come again, each by itself."""
    workers, cards = plan.share(len(tasks), ray.cluster_resources())
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    missing = list(range(len(tasks)))
    for rows in (max(1, min(_MOST_ROWS, len(tasks) // (16 * workers))), 1):
        if not missing:
            return
        items = [{"number": number, "task": pickle.dumps(tasks[number])} for number in missing]
        done = set()
        results = ray.data.from_items(items, override_num_blocks=-(-len(items) // rows)).map(
            _Actor,
            fn_constructor_args=(pickle.dumps(work), plan.threads or 1),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=None if plan.gpu else plan.threads or 1,
            num_gpus=cards or None,
            max_restarts=-1,
            max_task_retries=1,
        )
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            found = [(row["number"], pickle.loads(row["result"])) for row in block.to_pylist()]
            done |= {number for number, _ in found}
            yield [_accepted(each) for each in found]
        missing = [number for number in missing if number not in done]
    if missing:
        yield [(number, Lost("its actor died")) for number in missing]


def _accepted(found: tuple[int, Any]) -> tuple[int, Any]:
    if isinstance(found[1], SmearcountError):
        raise found[1]
    return found


class _Actor:
    """What Ray Data makes on its nodes; models are loaded with the first row, so that an error has a row to come in."""

    def __init__(self, packed: bytes, threads: int) -> None:
        self._packed, self._threads = packed, threads
        self._call: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The result of one task, or the error that keeps all tasks from being done."""
        result: Any
        try:
            self._call = self._call or pickle.loads(self._packed).start(self._threads)
            result = self._call(pickle.loads(row["task"]))
        except SmearcountError as error:
            result = error
        except Exception as error:
            result = SmearcountError(f"a Ray actor can't work: {type(error).__name__}: {error}")
        return {"number": row["number"], "result": pickle.dumps(result)}
