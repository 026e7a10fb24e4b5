"""Work for engines that costs next to nothing to import in a worker: squares, and every way to fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

from smearcount.errors import SmearcountError


@dataclass(frozen=True)
class Squares:
    """Squares of numbers; the worker dies of those in `deadly`, and once only of those in `once`.

    Attributes:
        folder: where it is noted what was done, one file a task and process.
        deadly: numbers that always kill.
        once: numbers that kill the first time.
        refusal: why the work can't start, if it can't.
        birth: the worker dies before it is ready.
    """

    folder: Path
    deadly: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    refusal: str = ""
    birth: bool = False

    def start(self, threads: int) -> Callable[[int], tuple[int, int]]:
        if self.refusal:
            raise SmearcountError(self.refusal)
        if self.birth:
            os.kill(os.getpid(), signal.SIGKILL)

        def square(number: int) -> tuple[int, int]:
            mark = self.folder / f"{number}"
            if number in self.deadly or (number in self.once and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with mark.open("a") as file:
                file.write(f"{os.getpid()}\n")
            if number < 0:
                part = self.folder / f"{number}.part"
                try:
                    part.touch()
                    for _ in range(600):
                        time.sleep(0.1)
                finally:
                    part.unlink()
            return number * number, threads

        return square


@dataclass(frozen=True)
class Together:
    """Numbers of which several must be in hand at a time, or the worker dies; so it does of those in `wrong`, loudly.

    Attributes:
        parties: how many.
        wrong: numbers that raise an error.
    """

    parties: int
    wrong: tuple[int, ...] = ()

    def start(self, threads: int) -> Callable[[int], int]:
        meeting = Barrier(self.parties)

        def meet(number: int) -> int:
            if number in self.wrong:
                raise ValueError(f"{number} is wrong")
            if not self.wrong:
                meeting.wait(30)
            return threads

        return meet


@dataclass(frozen=True)
class Cards:
    """Which graphics cards a worker sees; each notes it where it begins.

    Attributes:
        folder: where it is noted, one file a process.
        parties: workers that every task waits for.
        deadly: the first task kills once, then waits for the one that takes the place of its worker.
    """

    folder: Path
    parties: int
    deadly: bool = False

    def start(self, threads: int) -> Callable[[int], str]:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        (self.folder / f"{os.getpid()}.seen").write_text(seen)

        def wait_for(workers: int) -> None:
            until = time.monotonic() + 30
            while len(list(self.folder.glob("*.seen"))) < workers and time.monotonic() < until:
                time.sleep(0.01)

        def look(number: int) -> str:
            wait_for(self.parties)
            if self.deadly and number == 0:
                if not (self.folder / "dead").exists():
                    (self.folder / "dead").write_text(seen)
                    os.kill(os.getpid(), signal.SIGKILL)
                wait_for(self.parties + 1)
            return seen

        return look
