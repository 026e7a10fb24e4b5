"""Processes of this machine: each loads the models once; one that dies is replaced, and its task tried once more.

`concurrent.futures` gives up the whole pool when one process dies, and can't say which task it was; here every worker
has a pipe of its own, so the task that was being done is known.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from smearcount.cuda import VISIBLE
from smearcount.engines.contract import Lost, Results, Work
from smearcount.errors import SmearcountError

__all__ = ["LocalPlan", "run_local", "usable_cores"]

_AHEAD = 2
"""Tasks given to a worker at once, so that it need not wait while the journal is being written."""

_STARTS = 3
"""Workers in a row that may die before they are ready."""

_PATIENCE_S = 5.0

WORKER_BYTES, IN_HAND_BYTES = 600_000_000, 80_000_000
"""Memory of a worker that finds and names the cells of fields, 485 MB at its peak, and of each more that it has in
hand: of 3000 x 2000 px 76 MB."""

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class LocalPlan:
    """How many processes there are, and how many threads each has.

    Attributes:
        workers: processes; 0 for as many as there are cores, or tasks, or memory for.
        threads: of each process; 0 for an equal share of the cores.
        at_once: tasks that each has in hand, on as many threads: what they ask of a graphics card comes together.
        most: workers where their number is left open; 0 for no such limit.
        cards: of several graphics cards, each as `cuda.VISIBLE` names it: a worker sees one, the next one the next.
    """

    workers: int = 0
    threads: int = 0
    at_once: int = 1
    most: int = 0
    cards: tuple[str, ...] = ()

    def share(self, tasks: int, cores: int, memory: int) -> tuple[int, int]:
        """Number of processes and threads of each for so many tasks, with so many bytes of memory.

        One thread a process wins over many threads in few processes: decoding and post-processing have no threads.
        """
        fitting = memory // (WORKER_BYTES + (self.at_once - 1) * IN_HAND_BYTES)
        workers = self.workers or min(max(1, cores // (self.threads or 1)), fitting, self.most or fitting)
        workers = max(1, min(workers, tasks))
        return workers, self.threads or max(1, cores // workers)


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, and no more than the quota of its container allows."""
    from joblib import cpu_count

    return int(cpu_count())


def free_memory(limits: Sequence[Path] = _MEMORY_LIMITS) -> int:
    """Bytes of memory that are free here, and no more than the limit of the container."""
    import psutil

    allowed = [int(psutil.virtual_memory().available)]
    for limit in limits:
        with suppress(OSError, ValueError):  # no such limit, or the word "max"
            allowed.append(int(limit.read_text()))
    return min(allowed)


def run_local(plan: LocalPlan, work: Work, tasks: Sequence[Any]) -> Generator[Results, None, None]:
    """Map the work over the tasks on processes of this machine.

    A script that calls this needs the guard `if __name__ == "__main__":`, since workers import its module.

    Raises:
        SmearcountError: no worker can start; what one said when it loaded the models.
    """
    if not tasks:
        return
    workers, threads = plan.share(len(tasks), usable_cores(), free_memory())
    pool = _Pool(work, tasks, replace(plan, workers=workers, threads=threads))
    try:
        yield from pool.results()
    finally:
        pool.stop()


class _Worker:
    """One process, its pipe, and the numbers of the tasks it was given, in the order in which it begins them."""

    def __init__(self, work: bytes, plan: LocalPlan, card: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that it does not have
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, plan, card), daemon=True)
        with _undisturbed():
            self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.card = card
        self.given: deque[int] = deque()
        self.ready = False

    def ending(self) -> str:
        """How the process ended, in words."""
        self.process.join(_PATIENCE_S)
        code = self.process.exitcode
        if code is None:
            return "it closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def stop(self, patience_s: float = _PATIENCE_S) -> None:
        """End the process; it is asked first, so that no half-written file stays behind."""
        self.process.join(patience_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextmanager
def _undisturbed() -> Generator[None, None, None]:
    """Ctrl-C, which reaches the whole group, waits until the end of the block, and never comes to what is started."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # it lets the signal through again when it is started itself
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


class _Pool:
    """All workers, and which task is where: waiting, given, tried once in vain, or done."""

    def __init__(self, work: Work, tasks: Sequence[Any], plan: LocalPlan) -> None:
        self._tasks, self._at_once = tasks, plan.at_once
        self._made_of, self._cards = (pickle.dumps(work), plan), plan.cards or ("",)
        self._waiting = deque(range(len(tasks)))
        self._again: deque[int] = deque()
        self._tried: set[int] = set()
        self._lost: Results = []
        self._false_starts = 0
        self._wanted = plan.workers
        self._workers: list[_Worker] = []

    def results(self) -> Generator[Results, None, None]:
        """What is finished, as soon as it is; everything that waits is handed over at once."""
        for number in range(self._wanted):
            self._workers.append(_Worker(*self._made_of, self._cards[number % len(self._cards)]))
        while self._waiting or self._again or any(worker.given for worker in self._workers):
            self._hand_out()
            by_pipe = {worker.pipe: worker for worker in self._workers}
            finished = [each for pipe in wait(list(by_pipe)) for each in self._receive(by_pipe[pipe])]  # type: ignore[index]
            finished += self._lost
            self._lost = []
            if finished:
                yield finished

    def _hand_out(self) -> None:
        ready = [worker for worker in self._workers if worker.ready]
        # Near the end nothing waits behind a long task while another worker is idle.
        ahead = _AHEAD if len(self._waiting) > 4 * len(self._workers) else 1
        for depth in range(1, self._at_once + ahead):
            for worker in ready:
                if self._waiting and len(worker.given) < depth:
                    self._give(worker, self._waiting.popleft())
        # What killed a worker has the machine to itself: lack of memory is the usual cause.
        if ready and self._again and not self._waiting and not any(worker.given for worker in self._workers):
            self._give(ready[0], self._again.popleft())

    def _give(self, worker: _Worker, number: int) -> None:
        worker.given.append(number)
        try:
            worker.pipe.send((number, self._tasks[number]))
        except OSError:
            return  # it is dead: its pipe says so next

    def _receive(self, worker: _Worker) -> Results:
        found: Results = []
        try:
            while worker.pipe.poll():
                word, number, content = worker.pipe.recv()
                if word == "refused":
                    raise content
                if word == "ready":
                    worker.ready, self._false_starts = True, 0
                elif word == "broken":
                    sys.stderr.write(content)
                else:
                    worker.given.remove(number)
                    found.append((number, content))
        except (EOFError, OSError):
            self._replace(worker)
        return found

    def _replace(self, dead: _Worker) -> None:
        """Another worker for one that died; what it had in hand is tried again, alone, at the end, the rest next."""
        ending = dead.ending()
        dead.stop()
        if not dead.ready:
            self._false_starts += 1
            if self._false_starts >= _STARTS:
                raise SmearcountError(f"workers end before they are ready ({ending}); try fewer with --workers")
        for number in [dead.given.popleft() for _ in range(min(self._at_once, len(dead.given)))]:
            if number in self._tried:
                self._lost.append((number, Lost(ending)))
            else:
                self._tried.add(number)
                self._again.append(number)
        self._waiting.extendleft(reversed(dead.given))
        self._workers[self._workers.index(dead)] = _Worker(*self._made_of, dead.card)

    def stop(self) -> None:
        """End all workers, idle or not."""
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + _PATIENCE_S
        for worker in self._workers:
            worker.stop(max(0.0, until - time.monotonic()))


def _serve(pipe: Connection, packed: bytes, plan: LocalPlan, card: str) -> None:
    """The life of a worker: load, then one task after the other, or some at a time, until the pipe is closed."""
    _settle(plan.threads, card)
    try:
        call = pickle.loads(packed).start(plan.threads)
    except SmearcountError as error:
        pipe.send(("refused", -1, error))
        return
    except Exception as error:
        pipe.send(("refused", -1, SmearcountError(f"a worker can't start: {type(error).__name__}: {error}")))
        return
    pipe.send(("ready", -1, None))
    if plan.at_once == 1:
        for number, task in _given(pipe):
            pipe.send(("done", number, call(task)))
        return
    _Hands(pipe, call).work(plan.at_once)


class _Hands:
    """The threads of a worker that has several tasks in hand."""

    def __init__(self, pipe: Connection, call: Callable[[Any], Any]) -> None:
        self._pipe, self._call, self._alone = pipe, call, threading.Lock()
        self._busy: set[int] = set()

    def work(self, at_once: int) -> None:
        """Do the tasks that come until the pipe is closed."""
        hands = ThreadPoolExecutor(at_once, "smearcount-task")
        try:
            for number, task in _given(self._pipe):
                hands.submit(self._do, number, task)
        except SystemExit:
            hands.shutdown(wait=False, cancel_futures=True)
            for thread in tuple(self._busy):
                # As the signal does on the main thread, so that each tidies up.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))
            raise
        finally:
            hands.shutdown()

    def _do(self, number: int, task: Any) -> None:
        self._busy.add(threading.get_ident())
        try:
            result = self._call(task)
            with self._alone:
                self._pipe.send(("done", number, result))
        except Exception:
            with self._alone:
                self._pipe.send(("broken", number, traceback.format_exc()))
            os._exit(1)  # as an error ends a worker that does one task after the other
        finally:
            self._busy.discard(threading.get_ident())


def _given(pipe: Connection) -> Iterator[tuple[int, Any]]:
    with suppress(EOFError):
        while True:
            yield pipe.recv()


def _settle(threads: int, card: str) -> None:
    """Threads, the graphics card, signals, and an end with the parent; before any library that asks is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if card:
        os.environ[VISIBLE] = card
    # The parent decides on Ctrl-C. SIGTERM comes from it, and leaves time to tidy up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
