"""An engine gives every task to a worker and its result back, exactly once, whatever becomes of the workers."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_batch import DiscMaker, smears
from toy_work import Cards, Squares, Together

from smearcount.batch import BatchJob, run_batch
from smearcount.cli.batch import _engine
from smearcount.config import Settings
from smearcount.cuda import cards_in_turn
from smearcount.engines import LocalPlan, Lost, RayPlan, run_here, run_local, run_ray
from smearcount.engines.local import WORKER_BYTES, free_memory, usable_cores
from smearcount.errors import RuntimeMissingError, SmearcountError

PROGRAM = Path(__file__).parent / "fake_batch.py"
RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def collected(results: Any) -> dict[int, Any]:
    """All results by the number of the task; one that comes twice fails the test."""
    found: dict[int, Any] = {}
    for each in results:
        assert each
        for number, result in each:
            assert number not in found
            found[number] = result
    return found


def runs_of(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().split()) for path in folder.iterdir()}


def test_here_is_one_after_the_other(tmp_path: Path) -> None:
    assert list(run_here(Squares(tmp_path), [3, 4])) == [[(0, (9, 0))], [(1, (16, 0))]]
    assert list(run_here(Squares(tmp_path, refusal="never asked"), [])) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_done_once(tmp_path: Path, workers: int) -> None:
    found = collected(run_local(LocalPlan(workers, 2), Squares(tmp_path), range(40)))
    assert found == {n: (n * n, 2) for n in range(40)}
    assert runs_of(tmp_path) == {str(n): 1 for n in range(40)}
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_replaced_and_its_task_tried_once_more(tmp_path: Path) -> None:
    work = Squares(tmp_path, deadly=(5, 17), once=(0, 9, 38))
    found = collected(run_local(LocalPlan(2, 1), work, range(40)))
    assert {n: found.pop(n) for n in (5, 17)} == dict.fromkeys((5, 17), Lost("signal SIGKILL"))
    assert found == {n: (n * n, 1) for n in range(40) if n not in (5, 17)}


def test_a_worker_has_several_tasks_in_hand(tmp_path: Path) -> None:
    found = collected(run_local(LocalPlan(1, 1, at_once=3), Together(3), range(12)))
    assert found == dict.fromkeys(range(12), 1)


def test_of_what_a_dead_worker_had_in_hand_only_what_kills_is_lost(tmp_path: Path) -> None:
    work = Squares(tmp_path, deadly=(7,), once=(20, 33))
    found = collected(run_local(LocalPlan(2, 1, at_once=3), work, range(40)))
    assert found.pop(7) == Lost("signal SIGKILL")
    assert found == {number: (number**2, 1) for number in range(40) if number != 7}


def test_an_error_on_a_thread_of_a_worker_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    found = collected(run_local(LocalPlan(1, 1, at_once=2), Together(2, wrong=(3,)), range(6)))
    assert found == dict.fromkeys((0, 1, 2, 4, 5), 1) | {3: Lost("exit code 1")}
    assert "ValueError: 3 is wrong" in capfd.readouterr().err


def test_a_worker_that_is_killed_from_outside_loses_nothing(tmp_path: Path) -> None:
    results = run_local(LocalPlan(2, 1), Squares(tmp_path), range(300))
    found = collected([next(results)])
    for child in multiprocessing.active_children():
        child.kill()
    rest = collected(results)
    assert not set(found) & set(rest)
    assert {n: square for n, (square, _) in (found | rest).items()} == {n: n * n for n in range(300)}


def test_what_a_worker_says_at_its_start_is_heard(tmp_path: Path) -> None:
    with pytest.raises(SmearcountError, match="no such model"):
        collected(run_local(LocalPlan(2), Squares(tmp_path, refusal="no such model"), [1, 2]))
    with pytest.raises(SmearcountError, match=r"before they are ready \(signal SIGKILL\)"):
        collected(run_local(LocalPlan(2), Squares(tmp_path, birth=True), [1, 2]))
    assert not multiprocessing.active_children()


def test_an_engine_that_is_closed_ends_its_workers(tmp_path: Path) -> None:
    results = run_local(LocalPlan(2), Squares(tmp_path), [1, -2, -3])
    assert next(results) == [(0, (1, results and usable_cores() // 2 or 1))]
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 30, "the workers were waited for, not ended"
    assert not multiprocessing.active_children()


def test_a_worker_that_is_ended_tidies_up_what_it_has_in_hand(tmp_path: Path) -> None:
    results = run_local(LocalPlan(1, 1, at_once=2), Squares(tmp_path), [1, -2])
    assert next(results) == [(0, (1, 1))]
    until = time.monotonic() + 20
    while not (tmp_path / "-2.part").exists():
        assert time.monotonic() < until
    results.close()
    assert not multiprocessing.active_children()
    assert not (tmp_path / "-2.part").exists()


@pytest.mark.parametrize("told", [None, "5,7,9"])
def test_workers_take_the_graphics_cards_in_turn(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that are driven; the one that takes the place of a dead one has its card."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if told:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    monkeypatch.setattr("smearcount.cuda._driver", lambda: driver(2))
    names = ("5", "7") if told else ("0", "1")
    plan = LocalPlan(3, 1, cards=cards_in_turn())
    assert plan.cards == names
    found = collected(run_local(plan, Cards(tmp_path, 3, deadly=True), range(12)))
    assert set(found.values()) <= set(names)
    seen = Counter(path.read_text() for path in tmp_path.glob("*.seen"))
    assert seen == Counter([*names, names[0], (tmp_path / "dead").read_text()])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == told


def test_a_single_graphics_card_is_left_to_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    for stand_in in (driver(1), driver(0), driver(2, fault=100), SimpleNamespace()):
        monkeypatch.setattr("smearcount.cuda._driver", lambda found=stand_in: found)
        assert cards_in_turn() == ()

    def absent() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("smearcount.cuda._driver", absent)
    assert cards_in_turn() == ()
    assert collected(run_local(LocalPlan(1, 1), Cards(tmp_path, 1), range(2))) == {0: "3,4", 1: "3,4"}


@pytest.mark.parametrize(("device", "cards", "most"), [("cuda", 2, 4), ("cuda", 1, 2), ("cpu", 2, 0)])
def test_a_batch_has_two_workers_for_each_card(
    device: str, cards: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("smearcount.cuda._driver", lambda: driver(cards))
    (plan,) = _engine(Settings(device=device), "local", None, "").args  # type: ignore[arg-type, attr-defined]
    assert (plan.most, plan.cards) == (most, ("0", "1") if most == 4 else ())


def driver(cards: int, fault: int = 0) -> SimpleNamespace:
    """What is asked of CUDA's library, of a machine with some cards."""

    def count(found: Any) -> int:
        found._obj.value = cards
        return 0

    return SimpleNamespace(cuInit=lambda _: fault, cuDeviceGetCount=count)


def test_cores_are_shared() -> None:
    assert LocalPlan().share(100, 8, 8 * WORKER_BYTES) == (8, 1)
    assert LocalPlan().share(3, 8, 8 * WORKER_BYTES) == (3, 2)
    assert LocalPlan().share(1, 8, 8 * WORKER_BYTES) == (1, 8)
    assert LocalPlan(threads=2).share(100, 8, 8 * WORKER_BYTES) == (4, 2)
    assert LocalPlan(threads=16).share(100, 8, 8 * WORKER_BYTES) == (1, 16)
    assert LocalPlan(workers=2).share(100, 8, 8 * WORKER_BYTES) == (2, 4)
    assert LocalPlan(workers=16).share(100, 8, 8 * WORKER_BYTES) == (16, 1)


def test_there_are_no_more_workers_than_memory_for() -> None:
    assert LocalPlan().share(100, 64, 31 * WORKER_BYTES) == (31, 2)
    assert LocalPlan().share(100, 64, WORKER_BYTES // 2) == (1, 64)
    assert LocalPlan(workers=5).share(100, 64, WORKER_BYTES) == (5, 12)  # as was asked for
    assert LocalPlan(at_once=8, most=2).share(100, 64, 64 * WORKER_BYTES) == (2, 32)
    assert LocalPlan(at_once=8, most=2).share(100, 64, 2 * WORKER_BYTES) == (1, 64)


def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    everything = free_memory(())
    assert everything > 1e8
    limit = tmp_path / "memory.max"
    assert free_memory([limit]) == pytest.approx(everything, rel=0.2)
    for text, expected in (("max", everything), (str(2**62), everything), ("70000000", 7e7)):
        limit.write_text(f"{text}\n")
        assert free_memory([tmp_path / "absent", limit]) == pytest.approx(expected, rel=0.2)


# ---- whole batches ----


def outputs(folder: Path, out: Path, engine: Any) -> dict[str, bytes]:
    """Every byte that a batch writes, but for the journal."""
    tables = {"cells": out / "c.csv", "slide_report": out / "s.csv"}
    places = {"overlays": out / "o", "galleries": out / "g"}
    run_batch(DiscMaker(), BatchJob(folder, out / "r.csv", recursive=True, **tables, **places), engine)  # type: ignore[arg-type]
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["r.csv.journal"]
    return found


def test_the_outputs_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", *(f"s{n % 3}/{n:02}.png" for n in range(12)))
    (folder / "text.png").write_text("no picture")
    expected = outputs(folder, tmp_path / "here", run_here)
    assert len(expected) >= 3 + 12 + 12
    for plan in (LocalPlan(1, 1), LocalPlan(4, 1), LocalPlan(1, 1, at_once=3)):
        found = outputs(folder, tmp_path / f"{plan.workers}{plan.at_once}", partial(run_local, plan))
        assert found == expected


def test_a_picture_that_kills_its_worker_is_a_row(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", *(f"{n:02}.png" for n in range(8)), "kill.png", "once.png")
    job = BatchJob(folder, tmp_path / "r.csv")
    outcome = run_batch(DiscMaker(tmp_path / "log"), job, partial(run_local, LocalPlan(2, 1)))
    assert outcome.done == 9
    ((name, reason),) = outcome.failed
    assert name == "kill.png"
    assert reason.startswith("kill.png: its worker ended twice while it was being analysed")
    with closing(sqlite3.connect(job.journal)) as journal:
        found = journal.execute("SELECT worker FROM pictures WHERE image = ?", (b"kill.png",)).fetchone()
    assert found == ("signal SIGKILL",)
    (folder / "kill.png").rename(folder / "well.png")
    again = run_batch(DiscMaker(), job, partial(run_local, LocalPlan(2, 1)))
    assert (again.done, again.reused) == (10, 9)


# ---- Ray ----


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'smearcount\[ray\]'"):
        collected(run_ray(RayPlan(), Squares(tmp_path), [1]))


def test_actors_are_shared_out() -> None:
    cores = {"CPU": 8.0}
    assert RayPlan().share(100, cores) == (8, 0)
    assert RayPlan(workers=3).share(100, cores) == (3, 0)
    assert RayPlan(threads=4).share(100, cores) == (2, 0)
    assert RayPlan().share(2, cores) == (2, 0)
    assert RayPlan(gpu=True).share(100, cores | {"GPU": 2.0}) == (2, 1.0)
    assert RayPlan(gpu=True, workers=8).share(100, cores | {"GPU": 2.0}) == (8, 0.25)
    for plan in (RayPlan(gpu=True), RayPlan(workers=9), RayPlan(workers=2, threads=5)):
        with pytest.raises(SmearcountError, match="cluster"):
            plan.share(100, cores)


@RAY
def test_an_address_where_nobody_listens_is_said_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "smearcount", "batch", str(smears(tmp_path / "in", "a.png"))]
    words += ["--out", str(tmp_path / "r.csv"), "--engine", "ray", "--ray-address", "127.0.0.1:9"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no Ray cluster at 127.0.0.1:9: " in done.stderr


@RAY
def test_ray_gives_the_bytes_of_the_local_engine_and_nothing_leaves_the_machine(tmp_path: Path) -> None:
    """As a process of its own, since Ray changes the one it is started in; watched, where that is possible."""
    folder = smears(tmp_path / "in", *(f"s{n % 3}/{n:02}.png" for n in range(20)), "kill.png", "once.png")
    (folder / "text.png").write_text("no picture")
    shutil.copytree(folder, tmp_path / "again")
    local, ray = tmp_path / "local", tmp_path / "ray"
    job = BatchJob(folder, local / "r.csv", local / "r.cells.csv", local / "o", recursive=True)
    outcome = run_batch(DiscMaker(), job, partial(run_local, LocalPlan(2, 1)))
    assert (outcome.done, [name for name, _ in outcome.failed]) == (21, ["kill.png", "text.png"])
    words = [sys.executable, str(PROGRAM), str(tmp_path / "again"), str(ray / "r.csv"), "--ray", "2"]
    words += ["--overlays", str(ray / "o"), "--log", str(tmp_path / "log")]
    watched = bool(shutil.which("strace")) and not subprocess.run(["strace", "-qq", "true"], check=False).returncode
    if watched:
        words = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(tmp_path / "calls"), *words]
    places = os.pathsep.join((str(PROGRAM.parent), str(PROGRAM.parents[1])))
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": places}, check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert not done.stdout  # it may be JSON that is read by a program
    assert (tmp_path / "log").read_text().split().count("kill.png") == 2
    files = sorted(path.relative_to(local) for path in local.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(ray) for path in ray.rglob("*") if path.is_file())
    assert len(files) == 3 + 21
    for path in files:
        assert path.suffix == ".journal" or (ray / path).read_bytes() == (local / path).read_bytes(), path
    if watched:
        calls = (tmp_path / "calls").read_text()
        reached = set(re.findall(r'inet_addr\("([^"]+)"|inet_pton\(AF_INET6, "([^"]+)"', calls))
        assert {v4 or v6.removeprefix("::ffff:") for v4, v6 in reached} <= {"127.0.0.1", "::1"}
        assert reached


@RAY
def test_a_scheduler_stops_a_run_on_ray_as_the_user_does(tmp_path: Path) -> None:
    folder, log = smears(tmp_path / "in", *(f"{n:02}slow.png" for n in range(60))), tmp_path / "log"
    words = [sys.executable, str(PROGRAM), str(folder), str(tmp_path / "r.csv"), "--ray", "1", "--log", str(log)]
    places = os.pathsep.join((str(PROGRAM.parent), str(PROGRAM.parents[1])))
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": places}, stderr=subprocess.PIPE, text=True) as process:
        while not log.exists() or len(log.read_text().split()) < 6:
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate()
    assert process.returncode == 130, told
    assert "of 60 pictures done" in told
    assert "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} == {"in", "log", "r.csv.journal"}
