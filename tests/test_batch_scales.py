"""One scale for a slide of several pictures: from which of them, when it is taken, and when it is found anew."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import scatter
from fake_batch import DiscMaker
from typer.testing import CliRunner

from smearcount.batch import BatchJob, Interrupted, Outcome, Stage, run_batch
from smearcount.cli import app
from smearcount.datasets import RED_CELL_UM
from smearcount.engines import LocalPlan, Lost, run_here, run_local
from smearcount.slide_scale import pooled_scales, spread_rows

SIZE = (300, 220)
PROGRAM = Path(__file__).parent / "fake_batch.py"


def field(path: Path, red_px: float, size_wh: tuple[int, int] = SIZE) -> Path:
    """A picture of red cells of this diameter, twelve of them at 50 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), scatter(size_wh, red_px, len(path.name)).pixels[:, :, ::-1])
    return path


def fields(folder: Path, **red_px: float) -> Path:
    """Pictures `<slide>/<name>.png`, from keywords `<slide>_<name>`."""
    for name, diameter in red_px.items():
        field(folder / f"{name.replace('_', '/')}.png", diameter)
    return folder


def batch(folder: Path, report: Path, log: Path | None = None, **wanted: object) -> Outcome:
    job = BatchJob(folder, report, recursive=True, **wanted)  # type: ignore[arg-type]
    return run_batch(DiscMaker(log, um_per_px=None), job)


def scales_of(report: Path) -> dict[str, float]:
    rows = csv.DictReader(report.read_text().splitlines())
    return {row["image"].removesuffix(".png"): float(row["um_per_px"] or "nan") for row in rows}


def alone(path: Path) -> float:
    """The scale of a picture that has no slide, as the report says it."""
    return float(f"{DiscMaker(um_per_px=None).load(1).analyze(path).result.scale.um_per_px:.6g}")


def took(log: Path) -> tuple[list[str], list[str]]:
    """What was measured and what was analysed since it was asked last."""
    lines = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    measured = [line.removeprefix("measure:") for line in lines if line.startswith("measure:")]
    return measured, [line for line in lines if not line.startswith("measure:")]


# ---- from which pictures, and how ----


def test_the_measured_pictures_are_spread_evenly() -> None:
    assert [spread_rows(n) for n in (0, 1, 2, 9)] == [[], [0], [0, 1], list(range(9))]
    assert spread_rows(18) == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert spread_rows(40) == [2, 6, 11, 15, 20, 24, 28, 33, 37]
    for n in range(1, 200):
        rows = spread_rows(n)
        assert len(set(rows)) == min(n, 9)
        assert rows == sorted(rows)
        assert rows[0] >= 0
        assert rows[-1] < n


def test_the_scale_is_that_of_all_diameters_together() -> None:
    wide, tall = (400, 300), (300, 400)
    parts = [np.array(values, np.float32) for values in ([30] * 4, [50] * 5, [60] * 8, [20] * 9, [20], [], [90] * 50)]
    sizes = [wide, wide, wide, tall, tall, wide, (9, 9)]
    found = pooled_scales(zip(sizes, parts, strict=True), 40)
    # 4 x 30, 5 x 50, 8 x 60: the ninth of 17. The third size has one picture only, the empty one tells nothing.
    assert sorted(found) == [tall, wide]
    assert (found[wide].um_per_px, found[wide].source, found[wide].red_cell_px) == (RED_CELL_UM / 50, "estimated", 50)
    assert found[tall].um_per_px == RED_CELL_UM / 20
    assert found[wide].note.endswith("relative to this slide; one scale for the slide, from 3 of 40 pictures")
    assert found[tall].note.endswith("from 2 of 40 pictures")
    few = [(wide, np.full(5, 50, np.float32)), (wide, np.full(4, 50, np.float32))]
    assert pooled_scales(few, 2) == {}
    assert len(pooled_scales([*few, (wide, np.full(1, 50, np.float32))], 3)) == 1


def test_each_slide_has_its_own(tmp_path: Path) -> None:
    folder = fields(tmp_path / "in", one_a=44, one_b=50, one_c=54, two_a=36, two_b=36, three_a=46, top=40, loose=47)
    field(folder / "one" / "sized.png", 40, (240, 300))
    log = tmp_path / "log"
    batch(folder, tmp_path / "r.csv", log, cells=tmp_path / "c.csv")
    assert took(log)[0] == ["a.png", "b.png", "c.png", "sized.png", "a.png", "b.png"]
    found = scales_of(tmp_path / "r.csv")
    # A slide of one picture, a picture of no slide, and one of another size are as they are alone.
    for name in ("three/a", "top", "loose", "one/sized"):
        assert found[name] == alone(folder / f"{name}.png")
    drawn = np.concatenate([[px] * len(scatter(SIZE, px).discs) for px in (44, 50, 54)])
    assert np.median(drawn) == 50
    assert found["one/a"] == found["one/b"] == found["one/c"] == pytest.approx(RED_CELL_UM / 50, rel=0.03)
    assert found["two/a"] == found["two/b"] == pytest.approx(RED_CELL_UM / 36, rel=0.03)
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert {row["um_per_px_source"] for row in rows} == {"estimated"}
    # The cells keep the differences that an estimate of each picture takes away.
    cells = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    for name, red_px in (("a", 44), ("c", 54)):
        sizes = [float(cell["diameter_um"]) for cell in cells if cell["image"] == f"one/{name}.png"]
        assert np.median(sizes) == pytest.approx(RED_CELL_UM * red_px / 50, rel=0.03)
    batch(folder, tmp_path / "own.csv", log, slide_scale=False)
    assert took(log)[0] == []
    assert scales_of(tmp_path / "own.csv")["one/a"] == alone(folder / "one" / "a.png") != found["one/a"]


def test_at_most_nine_are_measured_in_the_order_of_the_listing(tmp_path: Path) -> None:
    folder, log = fields(tmp_path / "in", **{f"s_{n:02}": 50 - n / 10 for n in range(20)}), tmp_path / "log"
    seen: list[Stage] = []
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True)
    run_batch(DiscMaker(log, um_per_px=None), job, watch=seen.append)
    chosen = [f"{row:02}.png" for row in spread_rows(20)]
    assert took(log)[0] == chosen
    steps = [stage for stage in seen if stage.label == "measuring"]
    assert [(stage.done, stage.total) for stage in steps] == [(done, 9) for done in range(10)]
    (tmp_path / "list.txt").write_text("".join(f"s/{n:02}.png\n" for n in reversed(range(20))))
    batch(folder, tmp_path / "l.csv", log, listed=tmp_path / "list.txt")
    assert took(log)[0] == [f"{19 - row:02}.png" for row in spread_rows(20)]


# ---- when it is taken ----


def test_a_flag_wins_and_nothing_is_measured(tmp_path: Path) -> None:
    folder, log = fields(tmp_path / "in", s_a=44, s_b=54), tmp_path / "log"
    run_batch(DiscMaker(log, um_per_px=0.15), BatchJob(folder, tmp_path / "r.csv", recursive=True))
    assert took(log) == ([], ["a.png", "b.png"])
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert {(row["um_per_px"], row["um_per_px_source"]) for row in rows} == {("0.15", "flag")}


def test_metadata_that_the_cells_agree_with_win(tmp_path: Path) -> None:
    folder = fields(tmp_path / "in", s_a=44, s_b=54, s_c=54)
    for name, um_per_px in (("told", 0.18), ("wrong", 0.36)):
        metadata = {"axes": "YXS", "PhysicalSizeX": um_per_px, "PhysicalSizeY": um_per_px}
        path = folder / "s" / f"{name}.ome.tif"
        tifffile.imwrite(path, scatter(SIZE, 50).pixels, photometric="rgb", metadata=metadata)
    batch(folder, tmp_path / "r.csv")
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "r.csv").read_text().splitlines())}
    told, wrong = (rows[f"s/{name}.ome.tif"] for name in ("told", "wrong"))
    assert (told["um_per_px"], told["um_per_px_source"]) == ("0.18", "metadata")
    # With metadata its cells would be of 18 um: it tells of the slide, and takes the scale of the slide.
    drawn = np.concatenate([[px] * len(scatter(SIZE, px).discs) for px in (44, 54, 54, 50)])
    assert wrong["um_per_px_source"] == "estimated"
    assert float(wrong["um_per_px"]) == pytest.approx(RED_CELL_UM / np.median(drawn), rel=0.03)
    assert {rows[f"s/{name}.png"]["um_per_px"] for name in "abc"} == {wrong["um_per_px"]}


def test_a_picture_at_another_magnification_is_estimated_alone(tmp_path: Path) -> None:
    near = {f"s_{n}": 52.0 - n for n in range(7)}
    folder = fields(tmp_path / "in", **near, s_far=25)
    batch(folder, tmp_path / "r.csv")
    found = scales_of(tmp_path / "r.csv")
    assert found.pop("s/far") == alone(folder / "s" / "far.png")
    assert len(found) == 7
    assert len(set(found.values())) == 1


def test_too_few_cells_in_all_leave_each_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, red_px in (("a", 40), ("b", 46)):
        field(folder / "s" / f"{name}.png", red_px, (125, 125))
    batch(folder, tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["um_per_px_source"] for row in rows] == ["assumed"] * 2
    assert rows[0]["um_per_px"] != rows[1]["um_per_px"]


def test_the_flag_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[BatchJob] = []

    def fake(maker: object, job: BatchJob, *_: object) -> Outcome:
        jobs.append(job)
        return Outcome(1, ())

    monkeypatch.setattr("smearcount.batch.run_batch", fake)
    for flags in ([], ["--slide-scale"], ["--no-slide-scale"]):
        assert CliRunner().invoke(app, ["batch", str(tmp_path), *flags]).exit_code == 0
    assert [job.slide_scale for job in jobs] == [True, True, False]


# ---- what goes wrong ----


def test_a_picture_that_fails_is_left_out(tmp_path: Path) -> None:
    folder, log = fields(tmp_path / "in", s_a=44, s_odd=90, s_c=54, s_d=54), tmp_path / "log"
    (folder / "s" / "bad.png").write_text("no picture")
    first = batch(folder, tmp_path / "r.csv", log)
    assert (first.done, len(first.failed)) == (3, 2)
    found = scales_of(tmp_path / "r.csv")
    drawn = np.concatenate([[px] * len(scatter(SIZE, px).discs) for px in (44, 54, 54)])
    assert found["s/a"] == found["s/c"] == pytest.approx(RED_CELL_UM / np.median(drawn), rel=0.03)
    took(log)
    # The damaged file is damaged; the other one may do better.
    assert batch(folder, tmp_path / "r.csv", log).failed == first.failed
    assert took(log) == (["odd.png"], ["odd.png"])
    (folder / "s" / "odd.png").rename(folder / "s" / "e.png")
    batch(folder, tmp_path / "r.csv", log)
    assert took(log) == (["e.png"], ["a.png", "c.png", "d.png", "e.png"])


def test_a_worker_that_dies_costs_one_measurement(tmp_path: Path) -> None:
    folder, report = fields(tmp_path / "in", s_a=44, s_b=50, s_gone=50), tmp_path / "r.csv"
    batch(folder, report)
    field(folder / "s" / "gone.png", 60)

    def losing(work: Any, tasks: Any) -> Any:
        for ((number, found),) in run_here(work, tasks):
            yield [(number, Lost("signal SIGKILL") if "gone" in str(tasks[number]) else found)]

    outcome = run_batch(DiscMaker(um_per_px=None), BatchJob(folder, report, recursive=True), losing)
    assert (outcome.done, len(outcome.failed)) == (2, 1)
    lost = scales_of(report)
    # What the picture told before it was changed is not used either.
    (folder / "s" / "gone.png").write_text("no picture")
    batch(folder, tmp_path / "calm.csv")
    calm = scales_of(tmp_path / "calm.csv")
    assert lost["s/a"] == lost["s/b"] == calm["s/a"] == calm["s/b"]


def test_an_engine_that_forgets_a_measurement_is_found_out(tmp_path: Path) -> None:
    folder = fields(tmp_path / "in", s_a=44, s_b=50)
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True)
    with pytest.raises(RuntimeError, match="1 had none"):
        run_batch(DiscMaker(um_per_px=None), job, lambda work, tasks: run_here(work, tasks[:1]))
    assert not (tmp_path / "r.csv").exists()


# ---- again ----


def test_only_what_has_another_scale_is_analysed_again(tmp_path: Path) -> None:
    folder, log, report = fields(tmp_path / "in", s_a=44, s_c=54, t_a=40, t_b=46), tmp_path / "log", tmp_path / "r.csv"
    batch(folder, report, log)
    assert took(log) == (["a.png", "c.png", "a.png", "b.png"], ["a.png", "c.png", "a.png", "b.png"])
    assert batch(folder, report, log).reused == 4
    assert took(log) == ([], [])
    before = scales_of(report)
    field(folder / "s" / "b.png", 50)
    batch(folder, report, log)
    assert took(log) == (["b.png"], ["a.png", "b.png", "c.png"])
    after = scales_of(report)
    assert before["s/a"] != after["s/a"] == after["s/b"] == after["s/c"]
    assert after["t/a"] == before["t/a"]
    field(folder / "t" / "a.png", 42)
    batch(folder, report, log)
    assert took(log) == (["a.png"], ["a.png", "b.png"])
    assert batch(folder, report, log, slide_scale=False).reused == 0
    assert took(log)[0] == []
    assert batch(folder, report, log).reused == 0
    assert took(log)[0] == []
    batch(folder, tmp_path / "calm.csv")
    assert report.read_bytes() == (tmp_path / "calm.csv").read_bytes()


def test_measurements_that_make_no_sense_are_made_again(tmp_path: Path) -> None:
    folder, log, report = fields(tmp_path / "in", s_a=44, s_b=50, s_c=54), tmp_path / "log", tmp_path / "r.csv"
    batch(folder, report)
    before = report.read_bytes()
    with closing(sqlite3.connect(tmp_path / "r.csv.journal")) as other:
        for name, text in (("s/a.png", "import os"), ("s/b.png", '{"x": 1}'), ("s/c.png", "3")):
            other.execute("UPDATE measures SET diameters = ? WHERE image = ?", (text, name.encode()))
        other.commit()
    assert batch(folder, report, log).reused == 3
    assert took(log) == (["a.png", "b.png", "c.png"], [])
    assert report.read_bytes() == before
    with closing(sqlite3.connect(tmp_path / "r.csv.journal")) as other:
        kept = other.execute("SELECT width, height, diameters FROM measures").fetchall()
    assert [row[:2] for row in kept] == [SIZE] * 3
    assert [len(json.loads(row[2])) for row in kept] == [len(scatter(SIZE, px).discs) for px in (44, 50, 54)]


def test_the_scale_that_was_offered_is_what_counts(tmp_path: Path) -> None:
    """A picture with metadata of its own is analysed again as well: nobody knows before what it will take."""
    folder, log, report = fields(tmp_path / "in", s_a=44, s_b=50), tmp_path / "log", tmp_path / "r.csv"
    batch(folder, report, log)
    took(log)
    with closing(sqlite3.connect(tmp_path / "r.csv.journal")) as other:
        other.execute("UPDATE pictures SET given = '{}' WHERE image = ?", (b"s/b.png",))
        other.commit()
    assert batch(folder, report, log).reused == 1
    assert took(log) == ([], ["b.png"])


def test_workers_change_nothing(tmp_path: Path) -> None:
    names = {f"{slide}_{n}": 44.0 + n for slide in "st" for n in range(4)}
    folder = fields(tmp_path / "in", **names)
    tables = {"cells": tmp_path / "c.csv", "slide_report": tmp_path / "s.csv"}
    batch(folder, tmp_path / "calm.csv", **tables)
    calm = [path.read_bytes() for path in tables.values()]
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True, **tables)
    run_batch(DiscMaker(um_per_px=None), job, partial(run_local, LocalPlan(2, 1)))
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "calm.csv").read_bytes()
    assert [path.read_bytes() for path in tables.values()] == calm


def test_a_batch_that_is_stopped_while_it_measures_tells_what_is_kept(tmp_path: Path) -> None:
    folder, log = fields(tmp_path / "in", s_a=44.0, s_b=46.0, s_c=48.0), tmp_path / "log"
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True)

    def stop(stage: Stage) -> None:
        if stage == Stage("measuring", 2, 3):
            raise KeyboardInterrupt

    kept = r"2 of 3 pictures measured for the scales .* are in .*r\.csv\.journal: the same command goes on"
    with pytest.raises(Interrupted, match=kept) as caught:
        run_batch(DiscMaker(log, um_per_px=None), job, watch=stop)
    assert (caught.value.done, caught.value.total) == (0, 3)
    assert took(log) == (["a.png", "b.png"], [])

    def stop_later(stage: Stage) -> None:
        if stage == Stage("analysing", 1, 3):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="with 1 of 3 pictures done; their rows are in"):
        run_batch(DiscMaker(log, um_per_px=None), job, watch=stop_later)
    assert took(log) == (["c.png"], ["a.png"])


def test_killed_while_measuring_and_while_analysing_it_goes_on(tmp_path: Path) -> None:
    names = {f"{slide}_{n}slow": 44.0 + n for slide in "st" for n in range(8)}
    folder, log, report = fields(tmp_path / "in", **names), tmp_path / "log", tmp_path / "r.csv"
    command = [sys.executable, str(PROGRAM), str(folder), str(report), "--log", str(log), "--estimate"]
    for lines in (5, 25):
        with subprocess.Popen(command) as process:
            while not log.exists() or len(log.read_text().split()) < lines:
                time.sleep(0.005)
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert not report.exists()
    assert subprocess.run(command, check=False).returncode == 0
    batch(folder, tmp_path / "calm.csv", cells=tmp_path / "c.csv")
    assert report.read_bytes() == (tmp_path / "calm.csv").read_bytes()
    assert report.with_suffix(".cells.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()
    measured, analysed = took(log)
    # Only what was under way when it was killed is done twice.
    assert 16 <= len(measured) <= 17
    assert 16 <= len(analysed) <= 17
