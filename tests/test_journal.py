"""Every image exactly once: whatever kills a run, the next one goes on, and its report is that of a calm run."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
from fake_batch import DiscMaker, smear, smears

from smearcount.batch import BatchJob, Outcome, run_batch
from smearcount.batch.files import sweep
from smearcount.batch.journal import Journal, Measure, Record
from smearcount.errors import ImageError, UsageError
from smearcount.images import replacing
from smearcount.images.locks import in_turn, locked

PROGRAM = Path(__file__).parent / "fake_batch.py"
RECORD = Record("ab", "ok", True, '{"image": "a"}')


def program(folder: Path, report: Path, *flags: object) -> list[str]:
    return [sys.executable, str(PROGRAM), str(folder), str(report), *map(str, flags)]


def batch(folder: Path, report: Path, maker: DiscMaker = DiscMaker(), **wanted: object) -> Outcome:  # noqa: B008
    return run_batch(maker, BatchJob(folder, report, recursive=True, **wanted))  # type: ignore[arg-type]


def status_of(report: Path) -> dict[str, str]:
    return {row["image"]: row["status"] for row in csv.DictReader(report.read_text().splitlines())}


# ---- the file ----


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    odd = b"M\xfcller.png".decode("utf-8", "surrogateescape")
    full = Record(
        "cd", "ok", True, '{"a": 1}', '{"b": 2}', b"cells", '{"c": {}}', 1.5, "me:1", "2026-01-01", "[[1]]", "{}"
    )
    with closing(Journal(tmp_path / "j", {"v": 1})) as journal:
        journal.add([("a", RECORD), (odd, full), ("a", full)])
    with closing(Journal(tmp_path / "j", {"v": 1})) as journal:
        for name in ("a", odd):
            assert journal.find(name) == Record(*list(vars(full).values())[:-1])
        assert journal.find("b") is None
        light = journal.find("a", cells=False)
        assert light
        assert light.cells == b""


def test_of_two_provenances_only_what_differs_is_told(tmp_path: Path) -> None:
    told = [json.dumps({"settings": {"region": "x" * 300, "min_score": {"rbc": score}}}) for score in (0.5, 0.4)]
    with closing(Journal(tmp_path / "j", {"v": 1})) as journal:
        journal.add_measures([("a", Measure("ab", provenance=told[0]))])
        with pytest.raises(UsageError, match=r"with settings: min_score: rbc 0\.5, this run with 0\.4: one report"):
            journal.add_measures([("b", Measure("cd", provenance=told[1]))])


def test_measurements_are_kept_as_records_are(tmp_path: Path) -> None:
    odd = b"M\xfcller.png".decode("utf-8", "surrogateescape")
    first, second = Measure("ab", 40, 30, "[1.5, 2.25]", '{"runtime": "a"}'), Measure("cd")
    with closing(Journal(tmp_path / "j", {"v": 1})) as journal:
        journal.add_measures([("a", second), (odd, first), ("a", first)])
    with closing(Journal(tmp_path / "j", {"v": 1})) as journal:
        for name in ("a", odd):
            found = journal.find_measure(name)
            assert found == Measure("ab", 40, 30, "[1.5, 2.25]")
            assert found.red_px().tolist() == [1.5, 2.25]
        assert journal.find_measure("b") is None
        with pytest.raises(UsageError, match="made with runtime a, this run with b"):
            journal.add_measures([("b", second), ("c", Measure("ef", provenance='{"runtime": "b"}'))])
        assert journal.find_measure("b") is None
    with closing(Journal(tmp_path / "j", {"v": 2})) as journal:
        assert journal.find_measure("a") is None


def test_rows_of_another_identity_are_kept_and_not_used(tmp_path: Path) -> None:
    for version in (1, 2):
        with closing(Journal(tmp_path / "j", {"v": version})) as journal:
            assert journal.find("a") is None
            journal.add([("a", Record(str(version), "ok", True, "{}"))])
    for version in (1, 2):
        with closing(Journal(tmp_path / "j", {"v": version})) as journal:
            found = journal.find("a")
            assert found
            assert found.sha256 == str(version)


def test_what_is_not_all_written_is_not_written_at_all(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "j", {})) as journal:

        def records() -> Iterator[tuple[str, Record]]:
            yield "a", RECORD
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            journal.add(records())
        assert journal.find("a") is None
        journal.add([("b", RECORD)])
    with closing(Journal(tmp_path / "j", {})) as journal:
        assert journal.find("b") == RECORD


def test_results_of_another_runtime_are_refused(tmp_path: Path) -> None:
    def made_with(runtime: str) -> Record:
        return Record("ab", "ok", True, "{}", provenance=f'{{"runtime": "{runtime}", "version": "1"}}')

    with closing(Journal(tmp_path / "j", {})) as journal:
        journal.add([("a", made_with("openvino cpu f32")), ("failed", RECORD)])
    with closing(Journal(tmp_path / "j", {})) as journal:
        journal.add([("b", made_with("openvino cpu f32"))])
        with pytest.raises(UsageError, match="with runtime openvino cpu f32, this run with torch cuda f16: one report"):
            journal.add([("c", made_with("torch cuda f16"))])
        assert journal.find("c") is None


@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_others_are_left_alone(tmp_path: Path, fresh: bool) -> None:
    base = tmp_path / "base"
    with closing(sqlite3.connect(base)) as other:
        other.execute("CREATE TABLE t (a)")
        other.commit()
    text = tmp_path / "text"
    text.write_text("notes\n" * 100)
    for path, error, words in (
        (base, UsageError, "no journal of smearcount"),
        (text, ImageError, "not a database"),
        (tmp_path, ImageError, "unable to open"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(error, match=words):
            Journal(path, {}, fresh=fresh)
        assert not path.is_file() or path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "text"]


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON pictures BEGIN DELETE FROM pictures; END",
        "CREATE VIEW v AS SELECT 1",
        "ALTER TABLE pictures ADD COLUMN more",
        "PRAGMA user_version = 7",
    ],
)
def test_a_journal_that_is_not_as_we_write_it_is_refused(tmp_path: Path, change: str) -> None:
    Journal(tmp_path / "j", {}).close()
    with closing(sqlite3.connect(tmp_path / "j")) as other:
        other.execute(change)
        other.commit()
    with pytest.raises(UsageError, match="another version; give --fresh"):
        Journal(tmp_path / "j", {})
    with closing(Journal(tmp_path / "j", {}, fresh=True)) as journal:
        journal.add([("a", RECORD)])
        assert journal.find("a") == RECORD


def test_rows_that_make_no_sense_are_made_again(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    report = tmp_path / "r.csv"
    batch(folder, report)
    before = report.read_bytes()
    with closing(sqlite3.connect(tmp_path / "r.csv.journal")) as other:
        for name, row in (("a.png", "import os"), ("b.png", "[]"), ("c.png", '{"x": 1}')):
            other.execute("UPDATE pictures SET row = ? WHERE image = ?", (row, name.encode()))
        other.commit()
    assert batch(folder, report).reused == 1
    assert report.read_bytes() == before


@pytest.mark.parametrize("change", ["counts = '{\"named\": 3}'", "cells = x'00'"])
def test_a_damaged_journal_is_said_with_the_remedy(tmp_path: Path, change: str) -> None:
    folder, wanted = smears(tmp_path / "in", "a.png"), {"cells": tmp_path / "c.csv", "slide_report": tmp_path / "s.csv"}
    batch(folder, tmp_path / "r.csv", **wanted)
    with closing(sqlite3.connect(tmp_path / "r.csv.journal")) as other:
        other.execute(f"UPDATE pictures SET {change}")
        other.commit()
    with pytest.raises(ImageError, match="is damaged .*--fresh"):
        batch(folder, tmp_path / "r.csv", **wanted)
    assert batch(folder, tmp_path / "r.csv", fresh=True, **wanted).done == 1


@pytest.mark.parametrize(
    "damage", [(b"TABLE pictures", b"TABL\xff pictures"), (b'"runtime": "a"', b'"runtime"\x01 "a"')]
)
def test_a_journal_of_broken_letters_is_said_with_the_remedy(tmp_path: Path, damage: tuple[bytes, bytes]) -> None:
    def made_with(runtime: str) -> Record:
        return Record("ab", "ok", True, "{}", provenance=f'{{"runtime": "{runtime}"}}')

    path = tmp_path / "j"
    with closing(Journal(path, {})) as journal:
        journal.add([("a", made_with("a"))])
    path.write_bytes(path.read_bytes().replace(*damage))
    with pytest.raises(ImageError, match=r"j: the journal can't be used .*is damaged"):  # noqa: SIM117
        with closing(Journal(path, {})) as journal:
            journal.add([("b", made_with("b"))])


def test_a_journal_that_another_program_has_open_is_said_with_the_remedy(tmp_path: Path) -> None:
    Journal(tmp_path / "j", {}).close()
    with closing(sqlite3.connect(tmp_path / "j", isolation_level=None)) as viewer:
        viewer.execute("PRAGMA journal_mode=DELETE")
        viewer.execute("BEGIN")
        viewer.execute("SELECT count(*) FROM pictures").fetchone()
        with pytest.raises(ImageError, match="another program has it open; close it there, and run it again"):
            Journal(tmp_path / "j", {})


def test_timings_are_in_the_journal_and_nowhere_else(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "b.png")
    reports = []
    for name in ("one", "two"):
        batch(folder, tmp_path / f"{name}.csv")
        reports.append((tmp_path / f"{name}.csv").read_bytes())
    assert reports[0] == reports[1]
    with closing(sqlite3.connect(tmp_path / "one.csv.journal")) as other:
        rows = other.execute("SELECT seconds, worker, finished FROM pictures").fetchall()
    assert len(rows) == 2
    for seconds, worker, finished in rows:
        assert seconds > 0
        assert worker.endswith(f":{os.getpid()}")
        assert finished.endswith("+00:00")


# ---- what is done again, and what is not ----


def test_finished_pictures_are_not_analysed_again(tmp_path: Path) -> None:
    names = ["a.png", "s/b.png", "s/c.png"]
    folder, log, report = smears(tmp_path / "in", *names), tmp_path / "log", tmp_path / "r.csv"
    maker = DiscMaker(log)
    assert batch(folder, report, maker, overlays=tmp_path / "o").reused == 0
    log.unlink()
    assert batch(folder, report, maker, overlays=tmp_path / "o").reused == 3
    assert not log.exists()
    before = report.read_bytes()
    for change, again in (
        (lambda: smear(folder / "a.png", 77), ["a.png"]),
        (lambda: smear(folder / "new.png", 78), ["new.png"]),
        ((folder / "new.png").unlink, []),
        (lambda: (folder / "s" / "c.png").rename(folder / "s" / "d.png"), ["d.png"]),
        ((tmp_path / "o" / "s" / "b.png.overlay.jpg").unlink, ["b.png"]),
        (lambda: (tmp_path / "o" / "a.png.overlay.jpg").write_bytes(b""), ["a.png"]),
        (lambda: os.utime(folder / "a.png"), []),
    ):
        change()
        batch(folder, report, maker, overlays=tmp_path / "o")
        assert (log.read_text().split() if log.exists() else []) == again
        log.unlink(missing_ok=True)
    assert list(status_of(report)) == ["a.png", "s/b.png", "s/d.png"]
    assert report.read_bytes() != before
    batch(folder, report, maker, fresh=True)
    assert len(log.read_text().split()) == 3


def test_what_is_wanted_in_addition_is_made(tmp_path: Path) -> None:
    folder, report = smears(tmp_path / "in", "a.png", "b.png"), tmp_path / "r.csv"
    batch(folder, report)
    assert batch(folder, report, cells=tmp_path / "c.csv").reused == 0
    assert batch(folder, report).reused == 2
    # The cells are still in the journal, the galleries have never been there.
    assert batch(folder, report, cells=tmp_path / "c.csv").reused == 2
    assert batch(folder, report, galleries=tmp_path / "g").reused == 0
    sheets = sorted((tmp_path / "g").rglob("*.jpg"))
    sheets[0].unlink()
    assert batch(folder, report, galleries=tmp_path / "g").reused == 1
    assert sorted((tmp_path / "g").rglob("*.jpg")) == sheets


def test_other_settings_are_another_run_and_leave_the_old_rows(tmp_path: Path) -> None:
    folder, report = smears(tmp_path / "in", "a.png"), tmp_path / "r.csv"
    batch(folder, report)
    assert batch(folder, report, DiscMaker(version=2)).reused == 0
    assert batch(folder, report, DiscMaker(version=1)).reused == 1
    smear(folder / "b.png", 9)
    with pytest.raises(UsageError, match="runtime discs, this run with circles"):
        batch(folder, report, DiscMaker(runtime="circles"))


def test_the_slide_may_be_told_otherwise_without_analysing_again(tmp_path: Path) -> None:
    folder, report = smears(tmp_path / "in", "s/a1.png"), tmp_path / "r.csv"
    batch(folder, report, cells=tmp_path / "c.csv")
    assert batch(folder, report, cells=tmp_path / "c.csv", slides="(.)[0-9]").reused == 1
    for table in (report, tmp_path / "c.csv"):
        assert {row["slide"] for row in csv.DictReader(table.read_text().splitlines())} == {"a"}


def test_failures_of_the_picture_last_and_others_are_tried_again(tmp_path: Path) -> None:
    folder, log, report = smears(tmp_path / "in", "a.png", "odd.png"), tmp_path / "log", tmp_path / "r.csv"
    (folder / "text.png").write_text("no picture")
    first = batch(folder, report, DiscMaker(log))
    assert (first.done, len(first.failed)) == (1, 2)
    log.unlink()
    again = batch(folder, report, DiscMaker(log))
    assert (again.done, again.failed, again.reused) == (1, first.failed, 2)
    assert log.read_text().split() == ["odd.png"]
    smear(folder / "text.png", 5)
    assert batch(folder, report, DiscMaker(log)).done == 2


def test_overlays_and_sheets_of_what_a_picture_was_go_when_it_fails(tmp_path: Path) -> None:
    folder, report = smears(tmp_path / "in", "a.png", "s/b.png", "s/c.png"), tmp_path / "r.csv"
    wanted = {"overlays": tmp_path / "o", "galleries": tmp_path / "g"}
    batch(folder, report, **wanted)
    for name in ("s/b.png", "s/c.png"):
        (folder / name).write_text("no picture")
    (tmp_path / "o" / "s" / "c.png.overlay.jpg").write_text("of somebody else")
    assert batch(folder, report, **wanted).done == 1
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("[og]/**/*.jpg")}
    assert {name for name in left if "a.png" not in name} == {"o/s/c.png.overlay.jpg"}
    assert len(left) >= 3
    assert not list((tmp_path / "g" / "s").iterdir())


def test_overlays_in_another_format_are_drawn_anew(tmp_path: Path) -> None:
    folder, both = smears(tmp_path / "in", "a.png", "s/b.png"), tmp_path / "both"
    for wanted, reused in (("jpg", 0), ("png", 0), ("png", 2), ("tif", 0)):
        done = batch(folder, tmp_path / "r.csv", overlays=both, galleries=both, overlay_format=wanted)
        assert done.reused == reused
        written = {path.relative_to(both).as_posix() for path in both.rglob("*.overlay.*")}
        assert written == {f"a.png.overlay.{wanted}", f"s/b.png.overlay.{wanted}"}


def test_overlays_and_sheets_may_share_a_folder(tmp_path: Path) -> None:
    folder, both = smears(tmp_path / "in", "a.png"), tmp_path / "both"
    batch(folder, tmp_path / "r.csv", overlays=both, galleries=both)
    (both / "a.png.overlay.jpg").unlink()
    assert batch(folder, tmp_path / "r.csv", overlays=both, galleries=both).reused == 0
    (folder / "a.png").write_text("no picture")
    batch(folder, tmp_path / "r.csv", overlays=both, galleries=both)
    assert not list(both.iterdir())


@pytest.mark.parametrize("um_per_px", [0.16, None])
def test_a_finished_picture_that_became_a_pipe_is_not_waited_for(tmp_path: Path, um_per_px: float | None) -> None:
    folder, report = smears(tmp_path / "in", "s/a.png", "s/b.png"), tmp_path / "r.csv"
    batch(folder, report, DiscMaker(um_per_px=um_per_px))
    (folder / "s" / "b.png").unlink()
    os.mkfifo(folder / "s" / "b.png")

    def waited(*_: object) -> None:
        pytest.fail("waited for a pipe")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    try:
        batch(folder, report, DiscMaker(um_per_px=um_per_px))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert status_of(report) == {"s/a.png": "ok", "s/b.png": "failed"}


# ---- killed ----


def killed_at(command: list[str], seconds: float) -> int:
    """Start a program, kill it with its workers' parent after a while; its exit code."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments_every_image_is_there_once(tmp_path: Path, workers: int) -> None:
    names = [f"s{n % 3}/{n:02}slow.png" for n in range(30)] + ["bad.png"]
    folder, log = smears(tmp_path / "in", *names), tmp_path / "log"
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    batch(folder, tmp_path / "calm.csv", cells=tmp_path / "calm.cells.csv")
    report = tmp_path / "out" / "r.csv"
    command = program(folder, report, "--workers", workers, "--log", log, "--overlays", tmp_path / "o")
    moments, kills = random.Random(workers), 0
    start = time.monotonic()
    assert subprocess.run([*program(folder, tmp_path / "first.csv")], check=False).returncode == 1
    whole = time.monotonic() - start
    for _ in range(3):
        if killed_at(command, moments.uniform(0.5, 1.2) * whole) == -signal.SIGKILL:
            kills += 1
    assert subprocess.run(command, check=False).returncode == 1
    assert report.read_bytes() == (tmp_path / "calm.csv").read_bytes()
    assert report.with_suffix(".cells.csv").read_bytes() == (tmp_path / "calm.cells.csv").read_bytes()
    assert len(list((tmp_path / "o").rglob("*.overlay.jpg"))) == 30
    done = Counter(log.read_text().split())
    assert set(done) == {Path(name).name for name in names}
    # No more than what was under way, or just finished, when it was killed is done twice.
    assert done.total() <= len(names) + kills * max(1, 2 * 2 * workers)
    left = {path.name for path in (*report.parent.iterdir(), *(tmp_path / "o").rglob("*"))}
    assert not [name for name in left if name.endswith((".part", ".lock"))], left


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", *(f"{n:02}slow.png" for n in range(60)))
    log = tmp_path / "log"
    with subprocess.Popen(program(folder, tmp_path / "r.csv", "--workers", 2, "--log", log)) as process:
        while not log.exists():
            time.sleep(0.02)
            assert process.poll() is None
        process.kill()
    time.sleep(0.5)
    size = log.stat().st_size
    time.sleep(0.5)
    assert log.stat().st_size == size


def test_ctrl_c_ends_all_at_once_and_leaves_no_rubbish(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", *(f"{n:02}slow.png" for n in range(60)))
    log, report = tmp_path / "log", tmp_path / "r.csv"
    command = program(folder, report, "--workers", 2, "--log", log, "--overlays", tmp_path / "o")
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        while not log.exists() or len(log.read_text().split()) < 6:
            time.sleep(0.02)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert told.count("Traceback") == 0, told
    assert "of 60 pictures done" in told
    assert {path.name for path in tmp_path.iterdir()} == {"in", "log", "o", "r.csv.journal"}
    assert all(path.name.endswith(".overlay.jpg") for path in (tmp_path / "o").iterdir())
    outcome = batch(folder, report, cells=report.with_suffix(".cells.csv"))
    assert outcome.done == 60
    assert outcome.reused >= 2


# ---- full disks ----


def test_a_limit_on_file_sizes_stops_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    folder, report = smears(tmp_path / "in", *(f"{n}.png" for n in range(12))), tmp_path / "r.csv"
    done = subprocess.run(program(folder, report, "--limit", 120_000), check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "r.csv.journal: the journal can't be used" in done.stderr
    assert "what is finished is kept" in done.stderr
    assert not report.exists()
    outcome = batch(folder, report, cells=report.with_suffix(".cells.csv"))
    assert 0 < outcome.reused < 12
    batch(folder, tmp_path / "calm.csv")
    assert report.read_bytes() == (tmp_path / "calm.csv").read_bytes()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    tool = shutil.which("mount")
    command = [tool or "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not tool or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", *(f"{n}.png" for n in range(12)))
    with small_disk(tmp_path / "disk", "100k") as disk:
        with pytest.raises(ImageError, match="journal can't be used .*full.*; free some space"):
            batch(folder, disk / "r.csv", cells=disk / "c.csv")
        assert not (disk / "r.csv").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert 0 < batch(folder, disk / "r.csv", cells=disk / "c.csv").reused < 12
        batch(folder, tmp_path / "calm.csv", cells=tmp_path / "c.csv")
        for name, calm in (("r.csv", "calm.csv"), ("c.csv", "c.csv")):
            assert (disk / name).read_bytes() == (tmp_path / calm).read_bytes()
        # The tables find no room: the old report stays, and nothing half-written beside it.
        before = (disk / "r.csv").read_bytes()
        smears(folder, *(f"{n}.png" for n in range(20)))
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 60_000))
        with pytest.raises(ImageError, match="free some space"):
            batch(folder, disk / "r.csv", cells=disk / "c.csv")
        assert (disk / "r.csv").read_bytes() == before
        assert not list(disk.glob(".*.part"))


def test_a_disk_that_is_full_from_the_start_is_said_with_the_remedy(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png")
    with small_disk(tmp_path / "disk", "100k") as disk:
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        with pytest.raises(ImageError, match="full.*; free some space"):
            batch(folder, disk / "r.csv")
        assert [path.name for path in disk.glob(".*")] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_lock_needs_no_room_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / ".r.csv.lock").symlink_to("/dev/full")
    with locked([tmp_path / "r.csv"]), pytest.raises(UsageError, match="another run is writing it"):
        batch(smears(tmp_path / "in", "a.png"), tmp_path / "r.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "r.csv"
    target.write_text("old")
    with pytest.raises(ImageError, match="No space left"), replacing(target, durable=True) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]
    assert target.read_text() == "old"
    with replacing(target, durable=True) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_disk_that_syncs_no_folders_takes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, synced = os.fsync, list[bool]()

    def files_only(handle: int) -> None:
        synced.append(stat.S_ISREG(os.fstat(handle).st_mode))
        if not synced[-1]:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    with replacing(tmp_path / "r.csv", durable=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "r.csv").read_text() == "new"
    assert synced == [True, False]


# ---- two at once ----


def test_two_runs_on_one_output_refuse_each_other(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png")
    (tmp_path / "link.csv").symlink_to(tmp_path / "r.csv")
    (tmp_path / "o").mkdir()
    with locked([tmp_path / "r.csv", tmp_path / "o"]):
        for wanted in (
            {"report": tmp_path / "r.csv"},
            {"report": tmp_path / "in" / ".." / "r.csv"},
            {"report": tmp_path / "link.csv"},
            {"report": tmp_path / "x.csv", "cells": tmp_path / "r.csv"},
            {"report": tmp_path / "x.csv", "overlays": tmp_path / "o"},
        ):
            with pytest.raises(UsageError, match=rf"another run \(process {os.getpid()} on .*\) is writing it"):
                batch(folder, **wanted)  # type: ignore[arg-type]
        assert batch(folder, tmp_path / "x.csv").done == 1
    assert batch(folder, tmp_path / "r.csv").done == 1
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".lock")]


def test_runs_of_one_output_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, first = tmp_path / "a.json", ExitStack()
    first.enter_context(in_turn(target))
    with pytest.raises(UsageError, match="another run .* is writing it"), in_turn(target, 0.1):
        pass
    threading.Timer(0.2, first.close).start()
    with in_turn(target, 60):
        assert [path.name for path in tmp_path.iterdir()] == [".a.json.lock"]
    assert not list(tmp_path.iterdir())

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ImageError, match="No locks available"), locked([target]):
        pass
    with in_turn(target):
        target.touch()
    assert list(tmp_path.iterdir()) == [target]


def test_outputs_of_long_names_do_not_lock_each_other_out(tmp_path: Path) -> None:
    folder, long = smears(tmp_path / "in", "a.png"), "x" * 230
    assert batch(folder, tmp_path / f"{long}1.csv", cells=tmp_path / f"{long}2.csv").done == 1


def test_what_a_killed_run_left_half_written_is_swept_away_and_nothing_of_others(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png", "s/b.png", "t/" + "long" * 20 + ".png")
    own = ("r.csv", "s.csv", "p.html", "o/a.png.overlay.jpg", "o/s/b.png.overlay.tif")
    own += ("g/a.png.gallery/rbc", "g/s/b.png.gallery/rbc.2", f"o/t/{'long' * 20}.png.overlay.png")
    others = ("r", "r.parquet", "r.day2.csv", "x", "o/r.csv", "o/x.csv", "o/c.png.overlay.jpg", "o/s/a.png.overlay.jpg")
    others += ("o/s/t/b.png.overlay.jpg", "g/y.csv", "g/c.png.gallery/rbc", "in/a.png.overlay.jpg")
    for number, name in enumerate((*own, *others)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.{number:016x}.part").touch()
        path.with_name(f".{path.name}.part").touch()
    more = {"slide_report": tmp_path / "s.csv", "summary": tmp_path / "p.html"}
    batch(folder, tmp_path / "r.csv", overlays=tmp_path / "o", galleries=tmp_path / "g", **more)
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob(".*.part")}
    kept = {path for path in left if re.search(r"\.[0-9a-f]{16}\.part", path.name)}
    assert {(path.parent / path.name[1:-22]).as_posix() for path in kept} == set(others)
    assert len(left - kept) == len(own) + len(others)


def test_half_written_files_are_known_by_their_whole_names(tmp_path: Path) -> None:
    begun = {}
    with ExitStack() as stack:
        for name in ("r.csv", "r.parquet", "r.day2.csv", "x" * 230 + "1.csv", "x" * 230 + "2.csv"):
            begun[name] = stack.enter_context(replacing(tmp_path / name, durable=True))
            begun[name].touch()
        for name, temporary in begun.items():
            sweep([tmp_path / name], [])
            assert not temporary.exists()
            temporary.touch()
            assert all(each.exists() for each in begun.values())


def test_a_run_refuses_another_process_and_the_lock_of_a_dead_one_is_none(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", *(f"{n:02}slow.png" for n in range(60)))
    log = tmp_path / "log"
    with subprocess.Popen(program(folder, tmp_path / "r.csv", "--log", log)) as process:
        while not log.exists():
            time.sleep(0.02)
            assert process.poll() is None
        with pytest.raises(UsageError, match=f"process {process.pid} on"):
            batch(folder, tmp_path / "r.csv")
        process.kill()
    assert (tmp_path / ".r.csv.lock").exists()
    assert batch(folder, tmp_path / "r.csv").done == 60
    assert not (tmp_path / ".r.csv.lock").exists()
