"""Which pictures a batch is about, and the tables it writes: names, slides, totals, formats."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import zipfile
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import rows_of
from fake_batch import DiscMaker, smear, smears
from rich.console import Console
from typer.testing import CliRunner

from smearcount.batch import BatchJob, Stage, run_batch
from smearcount.batch.listing import list_pictures, slide_rule
from smearcount.batch.slides import counts_as_json, slide_columns, slide_rows
from smearcount.batch.tables import number_type, write_table
from smearcount.cli import app
from smearcount.cli.batch import pace, progress
from smearcount.counting import percentage
from smearcount.engines import Engine, LocalPlan, run_here, run_local
from smearcount.errors import ImageError, UsageError
from smearcount.images import open_image, write_picture
from smearcount.records import Labels
from smearcount.report import CELL_COLUMNS, report_columns, report_row
from smearcount.taxonomy import Taxonomy


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(folder: Path, **wanted: Any) -> list[str]:
    job = BatchJob(folder, folder.parent / "r.csv", **{"recursive": True, **wanted})
    return [picture.image_id for picture in list_pictures(job).pictures]


# ---- listing ----


def test_the_order_is_that_of_the_paths(tmp_path: Path) -> None:
    shown = ["b/2.png", "b/1.png", "a.png", "b.png", "B/1.png"]
    folder = touch(tmp_path / "in", *shown, ".hidden/1.png", "b/.x.png", "n.txt")
    assert names_of(folder) == [path.relative_to(folder).as_posix() for path in sorted(folder / name for name in shown)]
    assert names_of(folder, recursive=False) == ["a.png", "b.png"]


def test_patterns_choose_and_leave_out(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a1.png", "a2.jpg", "s/a1.png", "s/t/b1.png", "x[1].png")
    assert names_of(folder, globs=("a*",)) == ["a1.png", "a2.jpg", "s/a1.png"]
    assert names_of(folder, globs=("*.jpg", "s/*")) == ["a2.jpg", "s/a1.png", "s/t/b1.png"]
    assert names_of(folder, excluded=("s/*", "*.jpg")) == ["a1.png", "x[1].png"]
    assert names_of(folder, globs=("a*",), excluded=("*/t/*", "s/a*")) == ["a1.png", "a2.jpg"]
    assert names_of(folder, globs=("x[[]1].png",)) == ["x[1].png"]
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True, globs=("a1*",))
    assert list_pictures(job).unmatched == 3
    with pytest.raises(UsageError, match=r"no pictures found \(5 left out by --glob and --exclude\)"):
        names_of(folder, globs=("nothing",))


def test_a_list_says_which_and_in_what_order(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "b.png", "s/a.png", "no ending", "c.png")
    listed = tmp_path / "list.txt"
    lines = ("\ufeffs/a.png\r", "\r", "no ending", "./b.png", "s/../b.png", "absent.png", str(folder / "c.png"))
    listed.write_text("\n".join(lines), newline="")
    assert names_of(folder, listed=listed) == ["s/a.png", "no ending", "b.png", "absent.png", "c.png"]
    assert list_pictures(BatchJob(folder, tmp_path / "r.csv", listed=listed)).unmatched == 1
    assert names_of(folder, listed=listed, globs=("*.png",), excluded=("absent*",)) == ["s/a.png", "b.png", "c.png"]
    for wrong in ("../x.png", "/etc/passwd"):
        listed.write_text(wrong)
        with pytest.raises(UsageError, match="is not in"):
            names_of(folder, listed=listed)
    with pytest.raises(UsageError, match="absent"):
        names_of(folder, listed=tmp_path / "absent")
    listed.write_text("\n")
    with pytest.raises(UsageError, match="list.txt: no pictures found"):
        names_of(folder, listed=listed)


def test_links_in_a_circle_are_gone_round_once(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a/1.png", "b/2.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "b").symlink_to(folder / "b")
    (folder / "self").symlink_to(folder / "self")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    listing = list_pictures(BatchJob(folder, tmp_path / "r.csv", recursive=True))
    found = [picture.image_id for picture in listing.pictures]
    assert len(found) == len({os.path.realpath(picture.path) for picture in listing.pictures}) == 4
    assert {Path(name).name for name in found} == {"1.png", "2.png", "gone.png", "self.png"}
    assert listing.linked == 2
    rows = {row["image"]: row for row in batch_rows(folder, tmp_path)}
    assert "no such file" in rows["gone.png"]["error"]
    assert "self.png: can't be read" in rows["self.png"]["error"]


def test_every_link_to_a_file_is_a_row(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png")
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "hard.png").hardlink_to(folder / "a.png")
    listing = list_pictures(BatchJob(folder, tmp_path / "r.csv"))
    assert [picture.image_id for picture in listing.pictures] == ["a.png", "hard.png", "link.png"]


def test_copies_within_a_slide_are_told_of(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "s/a.png", "s/b.png", "t/c.png")
    for copy in ("s/a (1).png", "s/z.png", "t/a.png"):
        shutil.copy(folder / "s" / "a.png", folder / copy)
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True, slide_report=tmp_path / "s.csv")
    job = replace(job, summary=tmp_path / "s.html")
    for _ in range(2):
        outcome = run_batch(DiscMaker(), job)
        assert outcome.copies == (("s/a.png", "s/a (1).png"), ("s/z.png", "s/a (1).png"))
        assert outcome.done == 6
        slides = {row["slide"]: row for row in rows_of(tmp_path / "s.csv")}
        assert {name: (row["images"], row["copies"]) for name, row in slides.items()} == {
            "s": ("4", "2"),
            "t": ("2", "0"),
        }
        assert int(slides["s"]["warned"]) >= 2
        words = "has the same content as s/a (1).png, and the totals count both"
        assert (tmp_path / "s.html").read_text().count(words) == 2
    before = (tmp_path / "r.csv").read_bytes()
    outcome = run_batch(DiscMaker(), replace(job, slides="none"))
    assert [name for name, _ in outcome.copies] == ["s/a.png", "s/z.png", "t/a.png"]
    rows = [{**row, "slide": ""} for row in csv.DictReader(io.StringIO(before.decode()))]
    assert rows == rows_of(tmp_path / "r.csv")
    result = call("batch", folder / "s", "--out", tmp_path / "x.csv", "--workers", 0, "--classifiers", "none")
    assert "warning: 2 of them have the content of another one of their slide" in result.stderr
    assert "a.png (a (1).png), z.png (a (1).png)" in result.stderr


def test_what_earlier_runs_drew_of_pictures_that_are_gone_is_told(tmp_path: Path) -> None:
    folder, out = smears(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "o"
    job = BatchJob(folder, tmp_path / "r.csv", overlays=out, galleries=tmp_path / "g")
    assert run_batch(DiscMaker(), job).left_over == 0
    (folder / "b.png").rename(folder / "d.png")
    (folder / "c.png").unlink()
    (out / "mine.png.overlay.jpg").touch()
    of_no_row = sum(len(list(tmp_path.glob(f"g/{name}.png.gallery/*"))) + 1 for name in "bc")
    assert run_batch(DiscMaker(), job).left_over == of_no_row > 2
    assert run_batch(replace(DiscMaker(), version=2), job).left_over == of_no_row
    assert run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv")).left_over == 0
    (out / "c.png.overlay.jpg").unlink()
    assert run_batch(DiscMaker(), replace(job, galleries=None)).left_over == 1


def test_overlays_and_sheets_may_have_one_folder(tmp_path: Path) -> None:
    folder, out = smears(tmp_path / "in", "a.png"), tmp_path / "o"
    write_picture(folder / "empty.png", np.full((96, 96, 3), 235, np.uint8))
    overlays, sheets = {"a.png.overlay.jpg", "empty.png.overlay.jpg"}, {"a.png.gallery"}
    job = BatchJob(folder, tmp_path / "r.csv", overlays=out)
    run_batch(DiscMaker(), job)
    assert {path.name for path in out.iterdir()} == overlays
    both = replace(job, galleries=out)
    assert run_batch(DiscMaker(), both).reused == 1
    assert {path.name for path in out.iterdir()} == overlays | sheets
    assert run_batch(DiscMaker(), both).reused == 2
    (next((out / "a.png.gallery").iterdir())).unlink()
    assert run_batch(DiscMaker(), both).reused == 1


def test_nothing_is_drawn_of_a_picture_whose_sheets_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sheets = smears(tmp_path / "in", "a.png", "b.png"), tmp_path / "g"
    job = BatchJob(folder, tmp_path / "r.csv", overlays=tmp_path / "o", galleries=sheets)
    sheets.mkdir()
    (sheets / "a.png.gallery").touch()
    assert [name for name, _ in run_batch(DiscMaker(), job).failed] == ["a.png"]
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["b.png.overlay.jpg"]

    def half_written(analysis: Any, place: Path, stem: str) -> list[Path]:
        (place / f"{stem}.gallery").mkdir()
        (place / f"{stem}.gallery" / "normocyte.jpg").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    (sheets / "a.png.gallery").unlink()
    monkeypatch.setattr("smearcount.gallery.write_gallery", half_written)
    assert [name for name, _ in run_batch(DiscMaker(), job).failed] == ["a.png"]
    assert [path.name for path in sheets.iterdir()] == ["b.png.gallery"]
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["b.png.overlay.jpg"]


def test_a_cluster_without_its_engine_is_wrong_usage(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png")
    result = call("batch", folder, "--out", tmp_path / "r.csv", "--ray-address", "127.0.0.1:9")
    assert result.exit_code == 2
    assert "--engine ray" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_no_row_has_is_shown(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "a.png")
    words = ("batch", folder, "--out", tmp_path / "x.csv", "--overlays", tmp_path / "x", "--workers", 0)
    assert json.loads(call(*words, "--classifiers", "none", "--json").stdout)["outputs_of_no_row"] == 0
    (folder / "a.png").rename(folder / "e.png")
    assert json.loads(call(*words, "--classifiers", "none", "--json").stdout)["outputs_of_no_row"] == 1
    assert "1 files of earlier runs, of no row, still there" in call(*words, "--classifiers", "none").stdout


def test_each_picture_has_the_region_of_its_name(tmp_path: Path) -> None:
    folder, rois = smears(tmp_path / "in", "a.png", "s/b.png"), tmp_path / "rois"
    (rois / "s").mkdir(parents=True)
    words = ["batch", folder, "--out", tmp_path / "r.csv", "--recursive", "--region", rois, "--json"]
    words += ["--workers", 0, "--classifiers", "none", "--um-per-px", 0.16]
    result = call(*words)
    assert result.exit_code == 2
    assert "rois: holds no region" in result.stderr
    assert not (tmp_path / "r.csv.journal").exists()

    def draw_region(name: str, side: int) -> None:
        corners = [[0, 0], [side, 0], [side, side], [0, side]]
        (rois / name).write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))

    def areas() -> list[str]:
        call(*words)
        return [row["status"] if row["status"] != "ok" else row["n_excluded"] for row in rows_of(tmp_path / "r.csv")]

    draw_region("a.geojson", 160)
    found = areas()
    assert found[1] == "failed"
    told = "s/b.png: has no region: expected s/b.geojson or s/b.png.geojson in the folder of regions"
    assert rows_of(tmp_path / "r.csv")[1]["error"].startswith(told)
    draw_region("s/b.png.geojson", 160)
    whole = areas()
    assert "failed" not in whole
    assert json.loads(call(*words).stdout)["from_journal"] == 2
    draw_region("s/b.png.geojson", 20)
    assert json.loads(call(*words).stdout)["from_journal"] == 1
    assert json.loads(call(*words).stdout)["from_journal"] == 2
    assert areas()[0] == whole[0]
    assert int(areas()[1]) > int(whole[1])
    # A folder that was renamed holds the same; one that a link leads to counts as well.
    (rois / "s").rename(tmp_path / "drawn")
    (rois / "s").symlink_to(tmp_path / "drawn")
    words[words.index(rois)] = rois.rename(tmp_path / "regions")
    rois = tmp_path / "regions"
    assert json.loads(call(*words).stdout)["from_journal"] == 2
    draw_region("s/b.png.geojson", 30)
    assert json.loads(call(*words).stdout)["from_journal"] == 1
    (rois / "s" / "b.png.geojson").write_text("[]")
    call(*words)
    assert rows_of(tmp_path / "r.csv")[1]["error"].startswith("s/b.png: s/b.png.geojson: the region has no area")


def batch_rows(folder: Path, out: Path, **wanted: Any) -> list[dict[str, str]]:
    run_batch(DiscMaker(), BatchJob(folder, out / "r.csv", recursive=True, **wanted))
    return rows_of(out / "r.csv")


def lock(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Folders of this name can't be listed."""
    real = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = smears(tmp_path / "in", "a.png", "locked/b.png", "z.png")
    lock(monkeypatch, "locked")
    rows = batch_rows(folder, tmp_path, slide_report=tmp_path / "s.csv")
    assert [(row["image"], row["slide"], row["status"]) for row in rows] == [
        ("a.png", "", "ok"),
        ("locked/", "locked", "failed"),
        ("z.png", "", "ok"),
    ]
    assert rows[1]["error"] == "locked/: can't be listed (Permission denied); check the permissions"
    assert [(row["slide"], row["status"]) for row in rows_of(tmp_path / "s.csv")] == [("", "ok"), ("locked", "failed")]
    monkeypatch.undo()
    assert [row["image"] for row in batch_rows(folder, tmp_path)] == ["a.png", "locked/b.png", "z.png"]


def test_a_folder_that_cannot_be_listed_is_named_once_and_is_no_row_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(smears(tmp_path / "in", "a.png", "n/b.png"))
    lock(monkeypatch, "n")
    for reused in (0, 1):
        outcome = run_batch(DiscMaker(), BatchJob(Path(), tmp_path / "r.csv", recursive=True))
        assert outcome.failed == (("n/", "n/: can't be listed (Permission denied); check the permissions"),)
        assert (outcome.done, outcome.reused) == (1, reused)


@pytest.mark.parametrize("engine", [run_here, partial(run_local, LocalPlan(1, 1))])
def test_a_picture_that_cannot_be_asked_for_costs_only_itself(tmp_path: Path, engine: Engine) -> None:
    folder = smears(tmp_path / "in", "a.png", "z.png")
    long = "x" * 300 + ".png"
    listed = tmp_path / "list.txt"
    listed.write_text(f"a.png\n{long}\nz.png\n")
    run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv", listed=listed), engine)
    rows = rows_of(tmp_path / "r.csv")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["error"].startswith(f"{long}: can't be read (")
    assert "File name too long" in rows[1]["error"]


def test_a_picture_in_a_folder_without_entry_has_the_true_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = smears(tmp_path / "in", "a.png", "locked/b.png"), os.stat

    def refuse(path: Any, *more: Any, **flags: Any) -> os.stat_result:
        if "b.png" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **flags)

    monkeypatch.setattr(os, "stat", refuse)
    rows = batch_rows(folder, tmp_path)
    assert [(row["image"], row["status"]) for row in rows] == [("a.png", "ok"), ("locked/b.png", "failed")]
    assert rows[1]["error"].startswith("locked/b.png: no permission to read it")


def test_long_and_strange_names_have_rows_and_overlays(tmp_path: Path) -> None:
    names = ["ü" * 120 + ".png", "b" * 250 + ".png", "涂片 1/=cmd.png", 'quote",\n.png', "[red].png"]
    folder = smears(tmp_path / "in", *names)
    rows = batch_rows(folder, tmp_path, overlays=tmp_path / "o", cells=tmp_path / "c.xlsx")
    assert rows[0].keys() == dict.fromkeys(report_columns(DiscMaker().taxonomy())).keys()
    run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.parquet", recursive=True))
    table = pd.read_parquet(tmp_path / "r.parquet")
    assert sorted(table["image"]) == sorted(names)
    assert (table["status"] == "ok").all()
    assert len(list((tmp_path / "o").rglob("*.overlay.jpg"))) == len(names)
    cells = pd.read_excel(tmp_path / "c.xlsx")
    assert set(names) == set(cells["image"])


# ---- slides ----


def test_slides_are_told_from_names() -> None:
    by_folder = slide_rule("folder")
    assert [by_folder(name) for name in ("a.png", "s/a.png", "s/t/a.png", "locked/")] == ["", "s", "s/t", "locked"]
    assert slide_rule("none")("s/a.png") == ""
    by_name = slide_rule(r"(S\d+)_")
    assert [by_name(name) for name in ("S12_3.png", "x/S7_1.png", "T1.png")] == ["S12", "S7", ""]
    assert slide_rule("(a)?b")("b.png") == ""
    for wrong in ("S[0-9]+", "(", "("):
        with pytest.raises(UsageError, match="--slides"):
            slide_rule(wrong)


def test_a_slide_pools_the_counts_of_its_fields(taxonomy: Taxonomy, make_result: Any, cells: Any) -> None:
    codes = ("neutrophil", "lymphocyte", "erythroblast")
    parts = []
    for seed, n in enumerate((7, 0, 25)):
        rng = np.random.default_rng(seed)
        kinds = rng.choice(["rbc", "wbc"], n).tolist()
        probs = rng.dirichlet(np.full(3, 0.3), n).astype(np.float32)
        probs[[kind == "rbc" for kind in kinds]] = 0
        boxes = np.tile([10.0, 10, 50, 50], (n, 1))
        parts.append(make_result(cells(boxes, kinds), Labels(probs, codes), counted=rng.random(n) < 0.8))
    whole = parts[0].counts + parts[1].counts + parts[2].counts
    kept = [{**json.loads(json.dumps(counts_as_json(part))), "warnings": []} for part in parts]
    pictures = [
        ({**report_row(part, taxonomy), "slide": "s"}, counts) for part, counts in zip(parts, kept, strict=True)
    ]
    failed = {"slide": "s", "status": "failed"}
    (row,) = slide_rows([*pictures, (failed, {})], taxonomy)
    assert tuple(row) == slide_columns(taxonomy)
    assert (row["status"], row["images"], row["failed"], row["error"]) == ("partial", 4, 1, "1 of 4 pictures failed")
    assert row["counted_area_mm2"] == "0.03"
    assert (row["warned"], row["excluded"]) == (0, f"edge {whole.excluded['edge']}")
    warned = [(row, counts | {"warnings": ["dark"]} if n == 1 else counts) for n, (row, counts) in enumerate(pictures)]
    assert next(slide_rows(warned, taxonomy))["warned"] == 1
    named = [whole.named[code] for code in ("neutrophil", "lymphocyte")]
    assert [row["count_neutrophil"], row["count_lymphocyte"]] == named
    share = percentage(named[0], sum(named))
    told = [row[f"pct_neutrophil{end}"] for end in ("", "_low", "_high")]
    assert told == [f"{value:.4g}" for value in (share.value, share.low, share.high)]
    assert row["n_unclassified"] == sum(whole.unclassified.values())
    assert row["n_nrbc"] == whole.named["erythroblast"]
    # A slide of one field says what the field says, limits included.
    (single,) = slide_rows(pictures[:1], taxonomy)
    assert {name: single[name] for name in pictures[0][0] if name in single and name not in ("status", "error")} == {
        name: value for name, value in pictures[0][0].items() if name in single and name not in ("status", "error")
    }


def test_slides_of_nothing_and_slides_in_turn(taxonomy: Taxonomy, make_result: Any, cells: Any) -> None:
    part = make_result(cells([[10, 10, 50, 50]]))
    rows = [({**report_row(part, taxonomy), "slide": name}, counts_as_json(part)) for name in ("b", "a", "b", "")]
    found = list(slide_rows([*rows, ({"slide": "c", "status": "failed"}, {})], taxonomy))
    assert [(row["slide"], row["images"], row["n_rbc"], row["status"]) for row in found] == [
        *(("b", 2, 2, "ok"), ("a", 1, 1, "ok")),
        *(("", 1, 1, "ok"), ("c", 1, "", "failed")),
    ]
    assert list(slide_rows([], taxonomy)) == []


# ---- formats ----


def test_parquet_and_excel_say_what_the_csv_says(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "s/a.png", "s/b.png", "t/c.png")
    (folder / "bad.png").write_text("no picture")
    for ending in ("csv", "parquet", "xlsx"):
        tables = {name: tmp_path / f"{name}.{ending}" for name in ("cells", "slide_report")}
        run_batch(DiscMaker(), BatchJob(folder, tmp_path / f"report.{ending}", recursive=True, **tables))
    for name in ("report", "cells", "slide_report"):
        reference = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, dtype=str)
        assert len(reference)
        for table in (pd.read_parquet(tmp_path / f"{name}.parquet"), pd.read_excel(tmp_path / f"{name}.xlsx")):
            assert list(table.columns) == list(reference.columns)
            for column in reference:
                kind, told = number_type(column), reference[column].tolist()
                values = [None if pd.isna(value) else value for value in table[column]]
                if kind is str:
                    assert [value or "" for value in values] == told
                else:
                    assert values == [kind(text) if text else None for text in told], column


def test_every_column_has_a_type(taxonomy: Taxonomy) -> None:
    columns = {*report_columns(taxonomy), *CELL_COLUMNS, *slide_columns(taxonomy)}
    text = {column for column in columns if number_type(column) is str}
    assert text == {
        *("image", "slide", "status", "error", "um_per_px_source", "model_ids", "version", "image_sha256"),
        *("kind", "label", "runner_up", "excluded"),
    }


def test_infinity_and_formulas_do_no_harm(tmp_path: Path) -> None:
    rows = [{"image": '=HYPERLINK("x")', "pct_a_high": "inf", "n_rbc": ""}]
    rows += [{"image": "\x07\r", "pct_a_high": "", "n_rbc": 3}, {"image": "#REF!", "pct_a_high": "", "n_rbc": 3}]
    write_table(tmp_path / "t.xlsx", ("image", "pct_a_high", "n_rbc"), iter(rows))
    write_table(tmp_path / "t.parquet", ("image", "pct_a_high", "n_rbc"), iter(rows))
    import openpyxl

    sheet = openpyxl.load_workbook(tmp_path / "t.xlsx").active
    assert sheet["A2"].data_type == sheet["A4"].data_type == "s"
    values = [['=HYPERLINK("x")', "inf", None], ["??", None, 3], ["#REF!", None, 3]]
    assert [[cell.value for cell in row] for row in sheet][1:] == values
    assert pd.read_parquet(tmp_path / "t.parquet")["pct_a_high"].tolist()[0] == np.inf


def test_a_sheet_of_excel_tells_nothing_of_when_it_was_written(tmp_path: Path) -> None:
    import openpyxl

    for name in ("a.xlsx", "b.xlsx"):
        write_table(tmp_path / name, ("image", "n_rbc"), iter([{"image": "a", "n_rbc": 3}] * 3))
    assert (tmp_path / "a.xlsx").read_bytes() == (tmp_path / "b.xlsx").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.xlsx") as parts:
        assert {part.date_time for part in parts.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    told = openpyxl.load_workbook(tmp_path / "a.xlsx").properties
    assert told.created == told.modified == datetime(1980, 1, 1)  # noqa: DTZ001


def test_a_sheet_that_is_too_long_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smearcount.batch.tables._SHEET_ROWS", 3)
    with pytest.raises(ImageError, match=r"t.xlsx: a sheet of Excel has 3 rows, .*give \.csv"):
        write_table(tmp_path / "t.xlsx", ("image",), iter([{"image": "a"}] * 3))
    assert not list(tmp_path.iterdir())


# ---- the command ----


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_flags_reach_the_batch(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for seed, name in enumerate(("S1_a.png", "S1_b.png", "S2_a.png", "x.png", "bad.png")):
        smear(folder / "sub" / name, seed)
    (folder / "sub" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["batch", folder, "--out", tmp_path / "r.csv", "--recursive", "--exclude", "x*", "--slides", "(S.)_"]
    words += ["--slide-report", tmp_path / "s.csv", "--cells", tmp_path / "c.parquet", "--gallery", tmp_path / "g"]
    words += ["--um-per-px", 0.16, "--workers", 0, "--json"]
    result = call(*words)
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout)
    assert (told["done"], len(told["failed"]), told["pictures_left_out"], told["from_journal"]) == (3, 1, 1, 0)
    slides = [(row["slide"], row["images"]) for row in rows_of(tmp_path / "s.csv")]
    assert slides == [("S1", "2"), ("S2", "1"), ("", "1")]
    assert open_image(next((tmp_path / "g").rglob("*.jpg"))).size_wh[0] > 100
    assert json.loads(call(*words).stdout)["from_journal"] == 4
    assert json.loads(call(*words, "--fresh").stdout)["from_journal"] == 0
    assert json.loads(call(*words, "--min-score", 0.9).stdout)["from_journal"] == 0
    # The sheets in the folder are those of the other threshold by now; the bad picture has none.
    assert json.loads(call(*words).stdout)["from_journal"] == 1
    assert json.loads(call(*words).stdout)["from_journal"] == 4


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--slides", "("], "--slides"),
        (["--out", "r.txt"], "--out takes a name that ends in .csv"),
        (["--engine", "abacus"], "--engine"),
        (["--workers", "-1"], "--workers"),
        (["--glob", "nothing"], "no pictures found"),
        (["--region", "in/told.csv", "--cells", "in/told.csv"], "is read by this run; give --cells another name"),
        (["--taxonomy", "in/told.csv", "--cells", "in/told.csv"], "is read by this run; give --cells another name"),
    ],
)
def test_wrong_flags_are_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = smears(tmp_path / "in", "a.png")
    result = call("batch", folder, "--out", tmp_path / "r.csv", *flags)
    assert result.exit_code == 2, result.output
    assert hint in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_rate_and_time_left() -> None:
    assert pace(0, 10, 5) == ""
    assert pace(20, 40, 10) == "2 a s, 0:00:20 left"
    assert pace(3, 60, 60) == "3 a min, 0:20:00 left"
    assert pace(1, 30, 400) == "9 a h, 3:20:00 left"
    assert pace(1, 3, 7200) == "0.5 a h, 6:00:00 left"
    assert pace(5, 0, 1) == "5 a s, 0:00:00 left"


def test_progress_shows_on_a_terminal_only() -> None:
    terminal = io.StringIO()
    with progress(False, Console(file=terminal, force_terminal=True, width=120)) as watch:
        for done in range(5):
            watch(Stage("analysing", done, 4))
    assert "analysing" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert "left" in terminal.getvalue()
    for quiet, console in ((True, Console(file=terminal, force_terminal=True)), (False, Console(file=terminal))):
        size = len(terminal.getvalue())
        with progress(quiet, console) as watch:
            watch(Stage("analysing", 1, 4))
        assert len(terminal.getvalue()) == size
