"""Ray Data: the same work on a Ray cluster, or on one started on this machine for the run.

Tasks flow through a pool of actors, each of which loads the models once. Ray Data hands out no more blocks than the
actors can take, starts an actor again that died, and spreads them over the machines, which all see the files under the
same paths.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from smearcount.engines.contract import Lost, Results, Work
from smearcount.engines.local import usable_cores
from smearcount.errors import RuntimeMissingError, SmearcountError

__all__ = ["RayPlan", "run_ray"]

_STORE_BYTES = 256 * 1024**2
"""Object store of a cluster started here: what passes through it are rows, not pictures."""

_PATIENCE_S = 10.0

_MOST_ROWS = 32
"""Tasks of a block: a block is finished, or done again, as a whole."""

_MOST_DEATHS = 2
"""Actors that a task may end before it is given up; of the first one only the block is known."""


@dataclass(frozen=True)
class RayPlan:
    """Where the actors run and what each takes.

    Attributes:
        address: of a running cluster, or `auto`; empty for one on this machine that ends with the run.
        workers: actors; 0 for as many as the cluster has graphics cards or, without `gpu`, cores.
        threads: CPU threads, and cores, of each actor; 0 for one.
        gpu: whether an actor needs a graphics card, or its share of one.
        at_once: tasks that each has in hand, on as many threads: what they ask of a graphics card comes together.
    """

    address: str = ""
    workers: int = 0
    threads: int = 0
    gpu: bool = False
    at_once: int = 1

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


def run_ray(plan: RayPlan, work: Work, tasks: Sequence[Any]) -> Generator[Results, None, None]:
    """Map the work over the tasks with Ray Data.

    Raises:
        RuntimeMissingError: Ray is not installed.
        SmearcountError: the cluster can't be reached or has too little; what an actor said when it loaded the models.
    """
    if not tasks:
        return
    ray = _imported(plan.address)
    started = not ray.is_initialized()
    if started:
        _connect(ray, plan, len(tasks))
    try:
        yield from _mapped(ray, plan, work, tasks)
    finally:
        if started:
            ray.shutdown()


def _imported(address: str) -> Any:
    # Read when Ray is imported: no usage report, no log on the terminal, and a cluster of our own on the loopback only.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # all that is said of workers that died, on stdout
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeMissingError(
            "--engine ray needs Ray, which is not installed: python -m pip install 'smearcount[ray]'"
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _connect(ray: Any, plan: RayPlan, tasks: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if plan.address:
        options["address"] = plan.address
    else:
        # As many cores as were asked for, even where there are fewer: the user knows why.
        cores = max(usable_cores(), min(plan.workers or 1, tasks) * (plan.threads or 1))
        options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        _knock(plan.address)
        with _unhandled(), nullcontext() if plan.address else _offline():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at {plan.address}" if plan.address else "on this machine"
        raise SmearcountError(
            f"no Ray cluster {where}: {error}; start one with `ray start --head`, and set RAY_AUTH_MODE=token where "
            "it wants a token"
        ) from error


def _knock(address: str) -> None:
    """Raise an `OSError` at once where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE_S).close()


@contextmanager
def _unhandled() -> Generator[None, None, None]:
    """SIGTERM stays as the caller handles it: Ray, which takes it when it starts, would end the program at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _offline() -> Generator[None, None, None]:
    """A proxy that is not there for all that Ray starts: even without usage reports it asks which cloud it runs in."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    wanted = nowhere | dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _mapped(ray: Any, plan: RayPlan, work: Work, tasks: Sequence[Any]) -> Generator[Results, None, None]:
    workers, cards = plan.share(len(tasks), ray.cluster_resources())
    # Small enough to be spread and done again, large enough for all that an actor has in hand.
    rows = max(1, min(plan.at_once, -(-len(tasks) // workers)), min(_MOST_ROWS, len(tasks) // (16 * workers)))
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    tally = ray.remote(_Tally).options(num_cpus=0, scheduling_strategy=here).remote()
    items = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
    source = ray.data.from_items(items, override_num_blocks=-(-len(items) // rows))
    source.context.enable_progress_bars = False
    source.context.print_on_execution_start = False
    results = source.map_batches(
        _Actor,
        fn_constructor_args=(pickle.dumps(work), plan.threads or 1, plan.at_once, tally),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=None if plan.gpu else plan.threads or 1,
        num_gpus=cards or None,
    )
    try:
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield [(row["number"], _accepted(pickle.loads(row["result"]))) for row in block.to_pylist()]
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        raise SmearcountError(f"the Ray cluster failed: {first}; what is finished is kept") from error


def _accepted(result: Any) -> Any:
    if isinstance(result, SmearcountError):
        raise result
    return result


class _Tally:
    """Counts, on the machine of the driver, how often each block, and each task of a suspect one, was begun in vain."""

    def __init__(self) -> None:
        self._open: Counter[tuple[str, int]] = Counter()

    def begin(self, what: str, number: int) -> int:
        """How often a block, by its first task, or a task was begun before without an end."""
        self._open[what, number] += 1
        return self._open[what, number] - 1

    def end(self, what: str, number: int) -> None:
        """It came to its end; it may come again if its block is lost after that."""
        self._open[what, number] -= 1


class _Actor:
    """What Ray Data makes on its nodes; models are loaded with the first block, so that an error has a row to come in.

    Ray Data tries the blocks of a dead actor again without end: a task that goes on ending actors is given up here. The
    tally is asked once a block; only when a block has ended an actor is it asked task by task which of them does so.
    """

    def __init__(self, packed: bytes, threads: int, at_once: int, tally: Any) -> None:
        self._packed, self._threads, self._tally = packed, threads, tally
        self._call: Any = None
        # Kept from block to block: a new thread's memory and what libraries hold for it are made anew.
        self._hands = ThreadPoolExecutor(at_once, "smearcount-task")

    def __call__(self, block: Any) -> dict[str, list[Any]]:
        """The result of each task of a block, or the error that keeps all tasks from being done."""
        rows = block.to_pylist()
        try:
            self._call = self._call or pickle.loads(self._packed).start(self._threads)
            results = self._done(rows)
        except SmearcountError as error:
            results = [error] * len(rows)
        except Exception as error:
            results = [SmearcountError(f"a Ray actor can't work: {type(error).__name__}: {error}")] * len(rows)
        return {"number": [row["number"] for row in rows], "result": [pickle.dumps(each) for each in results]}

    def _done(self, rows: Sequence[dict[str, Any]]) -> list[Any]:
        suspect = self._begun_in_vain("block", rows[0]["number"]) > 0
        each: Callable[..., Iterable[Any]] = map if suspect else self._hands.map
        results = list(each(partial(self._once, suspect=suspect), rows))
        self._tally.end.remote("block", rows[0]["number"])
        return results

    def _once(self, row: dict[str, Any], *, suspect: bool) -> Any:
        if not suspect:
            return self._call(pickle.loads(row["task"]))
        if self._begun_in_vain("task", row["number"]) >= _MOST_DEATHS - 1:
            return Lost("its actor died")
        result = self._call(pickle.loads(row["task"]))
        self._tally.end.remote("task", row["number"])
        return result

    def _begun_in_vain(self, what: str, number: int) -> int:
        import ray

        return int(ray.get(self._tally.begin.remote(what, number)))
