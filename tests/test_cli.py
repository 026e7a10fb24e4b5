"""The commands as a user types them: outputs, exit codes, and one clear line for every error."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import SAMPLES, rows_of
from rich.console import Console
from typer.testing import CliRunner, Result

from smearcount import __version__
from smearcount.cards import find_model
from smearcount.cli import app
from smearcount.cli.common import bar, waiting
from smearcount.config import Settings, shipped
from smearcount.errors import UsageError
from smearcount.images.locks import in_turn
from smearcount.pipeline import Analysis, Pipeline
from smearcount.report import report_columns
from smearcount.taxonomy import load_taxonomy

SPARSE = SAMPLES / "sparse.jpg"


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def bad_files(folder: Path) -> dict[str, str]:
    """Files that can't be analysed, and a word of the reason that each must be given."""
    whole = SPARSE.read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture at all")
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((20, 20, 3), np.uint8))
    return {"truncated.jpg": "", "empty.png": "empty", "text.jpg": "", "tiny.png": "32"}


def test_version() -> None:
    assert call("--version").output.strip() == __version__


def test_analyze_prints_a_table_and_writes_three_files(tmp_path: Path) -> None:
    result = call("analyze", SPARSE, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for word in ("Red blood cells", "White blood cells", "Platelets", "95 % limits", "sampling error only"):
        assert word in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sparse.cells.csv", "sparse.json", "sparse.overlay.jpg"]


def test_pictures_of_one_name_that_two_runs_analyse_are_written_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, refused = Analysis.save, list[str]()

    def watched(analysis: Analysis, *given: Any, **more: Any) -> list[Path]:
        with pytest.raises(UsageError, match="another run") as told, in_turn(tmp_path / "sparse.json"):
            pass
        refused.append(str(told.value))
        return save(analysis, *given, **more)

    monkeypatch.setattr(Analysis, "save", watched)
    words = ("analyze", SPARSE, "--out", tmp_path, "--classifiers", "none", "--um-per-px", 0.16)
    assert call(*words).exit_code == 0
    assert len(refused) == 1
    monkeypatch.setattr("smearcount.images.locks.WAIT_S", 0.1)
    with in_turn(tmp_path / "sparse.json"):
        result = call(*words)
    assert result.exit_code == 1
    assert "sparse.json: another run" in result.stderr


def test_overlays_in_another_format_take_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    folder, out = small(tmp_path / "in", "a.png"), tmp_path / "out"
    for wanted in ("jpg", "png", "tif"):
        assert call("analyze", folder / "a.png", "--out", out, "--overlay-format", wanted).exit_code == 0
        assert [path.name for path in out.glob("*.overlay.*")] == [f"a.overlay.{wanted}"]
    assert cv2.imread(str(out / "a.overlay.tif")) is not None
    again = call("analyze", out / "a.overlay.tif", folder / "a.png", "--out", out)
    assert (again.exit_code, "is read by this run" in again.stderr) == (2, True)
    assert call("analyze", folder / "a.png", "--out", out, "--overlay-format", "gif").exit_code == 2
    words = ("--out", tmp_path / "r.csv", "--overlays", tmp_path / "o", "--overlay-format", "png", "--workers", 0)
    assert call("batch", folder, *words).exit_code == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["a.png.overlay.png"]


def test_sheets_of_an_earlier_run_do_not_stay_beside_another_result(tmp_path: Path) -> None:
    assert call("analyze", SPARSE, "--out", tmp_path, "--gallery", "--quiet").exit_code == 0
    place = tmp_path / "sparse.gallery"
    (place / "mine.txt").write_text("mine")
    assert len(list(place.iterdir())) > 2
    assert call("analyze", SPARSE, "--out", tmp_path, "--min-score", "0.8", "--quiet").exit_code == 0
    assert [path.name for path in place.iterdir()] == ["mine.txt"]


def test_another_picture_of_a_name_is_told_of(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "001.jpg", tmp_path / "b" / "001.jpg"
    for path, sample in ((first, SPARSE), (second, SAMPLES / "pale_stain.jpg")):
        path.parent.mkdir()
        shutil.copy(sample, path)
    for command, stem in (("analyze", "001-2"), ("crop", "001.jpg-2")):
        for path, told in ((first, False), (first, False), (second, True)):
            result = call(command, path, "--out", tmp_path / command, "--quiet")
            assert (result.exit_code, result.stdout) == (0, "")
            words = f"another picture of that name; what is written of this one begins with {stem}"
            assert (words in result.stderr) is told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_standard_output_costs_no_picture(tmp_path: Path) -> None:
    images = [shutil.copy(SPARSE, tmp_path / f"{name}.jpg") for name in "ab"]
    for words in (("analyze", *images, "--out", tmp_path / "o"), ("batch", tmp_path, "--out", tmp_path / "r.csv")):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "smearcount", *map(str, words)]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.count("standard output can't be written (No space left on device)") == 1
        assert "Traceback" not in result.stderr
    assert {path.name for path in (tmp_path / "o").glob("*.json")} == {"a.json", "b.json"}
    assert [row["status"] for row in rows_of(tmp_path / "r.csv")] == ["ok", "ok"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize("words", [("--version",), ("models", "list")])
def test_what_can_not_be_printed_ends_a_command_with_one_line(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "smearcount", *words]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "error: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no shell of POSIX here")
@pytest.mark.parametrize(("end", "told"), [(">&-", False), ("| true", True), (">/dev/null", False)])
def test_a_closed_standard_output_costs_no_picture(tmp_path: Path, end: str, *, told: bool) -> None:
    images = [shutil.copy(SPARSE, tmp_path / f"{name}.jpg") for name in "abc"]
    command = shlex.join(
        [sys.executable, "-m", "smearcount", "analyze", *map(str, images), "--out", str(tmp_path / "o")]
    )
    result = subprocess.run(["bash", "-c", f"{command} {end}"], capture_output=True, text=True, check=False)
    assert {path.stem for path in (tmp_path / "o").glob("*.json")} == {"a", "b", "c"}
    assert "Traceback" not in result.stderr
    assert ("standard output can't be written (Broken pipe)" in result.stderr) is told


def test_in_a_narrow_window_every_name_and_figure_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = re.findall(r"[0-9,.]+|-", call("analyze", SPARSE, "--out", tmp_path).stdout.partition("nucleated")[0])
    for columns in (50, 60, 66):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = call("analyze", SPARSE, "--out", tmp_path).stdout.partition("nucleated")[0]
        assert re.findall(r"[0-9,.]+|-", shown) == wide
        assert "Red blood" in shown
        assert "Platelets" in shown


def test_quiet_is_quiet_and_json_is_json(tmp_path: Path) -> None:
    assert call("analyze", SPARSE, "--out", tmp_path, "--quiet").stdout == ""
    row = json.loads(call("analyze", SPARSE, "--out", tmp_path, "--json").stdout)
    assert row["status"] == "ok"
    assert row["image"] == "sparse.jpg"
    assert row["n_rbc"] > 20


def test_every_line_of_json_has_the_same_keys_and_numbers_as_numbers(tmp_path: Path) -> None:
    done = call("analyze", SPARSE, tmp_path / "absent.jpg", "--out", tmp_path, "--json")
    row, failed = map(json.loads, done.stdout.splitlines())
    columns = [*report_columns(load_taxonomy()), "reading", "warnings", "notes", "files"]
    assert list(row) == list(failed) == columns
    text = {"image", "status", "um_per_px_source", "model_ids", "version", "image_sha256"}
    assert {name for name, value in row.items() if isinstance(value, str)} == text
    assert (row["error"], failed["um_per_px"], failed["warnings"]) == (None, None, [])
    assert "absent.jpg: no such file" in failed["error"]
    stored = json.loads((tmp_path / "sparse.json").read_text())
    assert (row["notes"], row["reading"]) == (stored["notes"], stored["reading"])
    assert row["warnings"] == stored["quality"]["warnings"] != []
    assert row["um_per_px"] == pytest.approx(stored["scale"]["um_per_px"])


def test_a_bad_picture_costs_only_itself(tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    result = call(
        "analyze", *(tmp_path / name for name in bad), SPARSE, tmp_path / "absent.jpg", "--out", tmp_path / "o"
    )
    assert result.exit_code == 1
    for name, reason in {**bad, "absent.jpg": ""}.items():
        lines = [line for line in result.stderr.splitlines() if name in line]
        assert len(lines) == 1, (name, result.stderr)
        assert reason in lines[0]
    assert (tmp_path / "o" / "sparse.json").is_file()
    assert len(list((tmp_path / "o").iterdir())) == 3


def test_two_pictures_of_one_stem_keep_their_names(tmp_path: Path) -> None:
    pixels = cv2.imread(str(SPARSE))[:200, :300]
    cv2.imwrite(str(tmp_path / "field.png"), pixels)
    cv2.imwrite(str(tmp_path / "field.bmp"), pixels)
    out = tmp_path / "out"
    assert call("analyze", tmp_path / "field.png", tmp_path / "field.bmp", "--out", out, "--quiet").exit_code == 0
    assert {p.name for p in out.glob("*.json")} == {"field.png.json", "field.bmp.json"}


def test_batch_has_a_row_for_every_picture(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    (folder / "slide a").mkdir(parents=True)
    bad = bad_files(folder)
    (folder / "slide a" / "sparse.jpg").write_bytes(SPARSE.read_bytes())
    report, cells = tmp_path / "report.csv", tmp_path / "cells.csv"
    result = call(
        "batch",
        folder,
        "--recursive",
        "--out",
        report,
        "--cells",
        cells,
        "--overlays",
        tmp_path / "overlays",
        "--quiet",
    )
    assert result.exit_code == 1
    rows = rows_of(report)
    assert tuple(rows[0]) == report_columns(load_taxonomy())
    assert {row["image"]: row["status"] for row in rows} == {**dict.fromkeys(bad, "failed"), "slide a/sparse.jpg": "ok"}
    assert all(row["error"] for row in rows if row["status"] == "failed")
    good = next(row for row in rows if row["status"] == "ok")
    assert good["slide"] == "slide a"
    listed = rows_of(cells)
    assert sum(row["counted"] == "1" and row["kind"] == "rbc" for row in listed) == int(good["n_rbc"])
    assert (tmp_path / "overlays" / "slide a" / "sparse.jpg.overlay.jpg").is_file()


def test_batch_of_nothing_is_wrong_usage(tmp_path: Path) -> None:
    result = call("batch", tmp_path, "--out", tmp_path / "report.csv")
    assert result.exit_code == 2
    assert "no pictures" in result.stderr
    assert not (tmp_path / "report.csv").exists()


def test_crop_writes_every_cell_and_a_manifest(tmp_path: Path) -> None:
    assert call("crop", SPARSE, "--out", tmp_path, "--quiet").exit_code == 0
    rows = rows_of(tmp_path / "manifest.csv")
    assert rows
    assert {row["file"] for row in rows} == {p.name for p in tmp_path.glob("*.png")}
    assert cv2.imread(str(tmp_path / rows[0]["file"])).shape == (452, 452, 3)


def test_crop_tells_machines_what_it_wrote(tmp_path: Path) -> None:
    folder, out = small(tmp_path / "in", "a.png"), tmp_path / "out"
    done = call("crop", folder / "a.png", tmp_path / "absent.png", "--out", out, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["patches"], told["manifest"]) == (
        1,
        len(list(out.glob("*.png"))),
        f"{out}/manifest.csv",
    )
    assert [each["image"] for each in told["failed"]] == ["absent.png"]
    assert "no such file" in told["failed"][0]["error"]


def test_models_are_listed_shown_and_verified() -> None:
    listed = json.loads(call("models", "list", "--json").stdout)
    assert listed
    for row in listed:
        shown = call("models", "show", row["id"])
        assert shown.exit_code == 0
        assert "## Limits" in shown.output
    result = call("models", "verify")
    assert result.exit_code == 0, result.output
    assert "model.bin  ok" in result.output
    assert call("models", "verify", listed[0]["id"], "--quiet").output == ""
    (told,) = json.loads(call("models", "verify", listed[0]["id"], "--json").stdout)
    assert (told["id"], "model.safetensors" in told["files"]) == (listed[0]["id"], True)
    assert all(worst["value"] >= 0 for worst in told["runtimes"].values())
    assert told["runtimes"]


def test_an_unknown_model_names_the_known_ones(tmp_path: Path) -> None:
    result = call("analyze", SPARSE, "--detector", "no-such", "--out", tmp_path)
    assert result.exit_code == 2
    assert "known: cells-" in result.stderr


@pytest.mark.parametrize(
    "flags", [["--um-per-px", "7"], ["--device", "abacus"], ["--min-score", "1.5"], ["--experts", "own"]]
)
def test_wrong_flags_are_wrong_usage(flags: list[str], tmp_path: Path) -> None:
    result = call("analyze", SPARSE, "--out", tmp_path, *flags)
    assert result.exit_code == 2
    assert flags[0] in result.stderr
    assert "Value error" not in result.stderr


def test_settings_file_and_flags(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("um_per_px: 0.2\nedge_rule: all\n")
    row = json.loads(call("analyze", SPARSE, "--out", tmp_path, "--json", "--config", settings).stdout)
    assert (row["um_per_px"], row["um_per_px_source"], row["n_excluded"]) == (0.2, "flag", 0)
    row = json.loads(
        call("analyze", SPARSE, "--out", tmp_path, "--json", "--config", settings, "--um-per-px", 0.12).stdout
    )
    assert row["um_per_px"] == 0.12
    settings.write_text("um_per_pixel: 0.2\n")
    result = call("analyze", SPARSE, "--out", tmp_path, "--config", settings)
    assert result.exit_code == 2
    assert "um_per_pixel" in result.stderr


def test_a_recipe_and_random_smears_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("width: 200")
    result = call("simulate", "--recipe", tmp_path / "r.yaml", "--random", "1", "--out", tmp_path / "out")
    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "--random" in result.output


def test_simulate_writes_pictures_and_truth(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("width: 200\nheight: 160\num_per_px: 0.2\nred_cells: 5\nwhite_cells: 1\nplatelets: 2\n")
    quiet = call("simulate", "--recipe", recipe, "--out", tmp_path / "out", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert truth["small.jpg"]["counts"] == {"platelet": 2, "rbc": 5, "wbc": 1}
    assert cv2.imread(str(tmp_path / "out" / "small.jpg")).shape == (160, 200, 3)


def test_bench_measures_every_contender(tmp_path: Path) -> None:
    crop = tmp_path / "crop.png"
    cv2.imwrite(str(crop), cv2.imread(str(SPARSE))[:240, :320])
    out = tmp_path / "bench.json"
    result = call("bench", crop, "--um-per-px", 0.12, "--rounds", 1, "--out", out, "--no-processes")
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert figures["fields"] == 1
    assert all(value > 0 for name, value in figures.items() if "(ms)" in name)


def small(folder: Path, *names: str) -> Path:
    """A folder of small pictures of real-looking cells."""
    folder.mkdir(parents=True, exist_ok=True)
    content = cv2.imencode(".png", cv2.imread(str(SPARSE))[:200, :300])[1].tobytes()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_an_output_that_cannot_be_written_costs_only_its_picture(tmp_path: Path) -> None:
    folder, out = small(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    (out / "a.overlay.jpg").mkdir(parents=True)
    result = call("analyze", folder / "a.png", folder / "b.png", "--out", out, "--json")
    assert result.exit_code == 1
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert "a.overlay.jpg: can't be written" in first["error"]
    assert {path.name for path in out.iterdir() if path.is_file()} == {"b.json", "b.cells.csv", "b.overlay.jpg"}


def test_memory_that_runs_out_while_drawing_costs_only_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, draw = small(tmp_path / "in", "a.png", "b.png"), Analysis.overlay

    def overlay(self: Analysis) -> Any:
        if self.result.image_id == "a.png":
            raise MemoryError
        return draw(self)

    monkeypatch.setattr(Analysis, "overlay", overlay)
    result = call("analyze", folder / "a.png", folder / "b.png", "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    assert "a.png: not enough memory" in result.stderr
    assert (tmp_path / "out" / "b.json").is_file()
    assert not (tmp_path / "out" / "a.json").exists()


def test_the_paths_told_are_those_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small(tmp_path / "in", "a.png")
    monkeypatch.setattr(Analysis, "overlay", lambda self: np.zeros((20, 65_501, 3), np.uint8))
    row = json.loads(call("analyze", folder / "a.png", "--out", tmp_path / "out", "--json").stdout)
    assert set(row["files"]) == {str(path) for path in (tmp_path / "out").iterdir()}
    assert str(tmp_path / "out" / "a.overlay.tif") in row["files"]


def test_file_names_of_any_bytes_and_length(tmp_path: Path) -> None:
    odd = b"M\xfcller.png".decode("utf-8", "surrogateescape")
    folder = small(tmp_path / "in", odd, "a" * 245 + ".png")
    result = call("analyze", *sorted(folder.iterdir()), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert call("crop", *sorted(folder.iterdir()), "--out", tmp_path / "crops", "--quiet").exit_code == 0
    report = tmp_path / "report.csv"
    assert call("batch", folder, "--out", report, "--overlays", tmp_path / "o", "--quiet").exit_code == 0
    assert {row["status"] for row in rows_of(report)} == {"ok"}


def test_a_terminal_without_unicode_shows_escapes(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("width: 200\nheight: 160\num_per_px: 0.2\nred_cells: 1\nwhite_cells: 0\nplatelets: 0\n")
    words = ["simulate", "--recipe", str(recipe), "--out", str(tmp_path / "szkie\u0142ko")]
    result = CliRunner(charset="latin-1").invoke(app, words)
    assert result.exit_code == 0, result.exception
    assert r"szkie\u0142ko" in result.output


def test_an_export_that_cannot_be_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = ["export", Settings().detector, "--out", tmp_path / "out", "--to"]
    unasked = call(*export, "onnx", "--calibrate", SAMPLES)
    assert (unasked.exit_code, "only" in unasked.stderr) == (2, True)
    monkeypatch.setenv("SMEARCOUNT_DATA", str(tmp_path / "absent"))
    without = call(*export, "openvino-int8")
    assert without.exit_code == 1
    remedies = "set SMEARCOUNT_DATA to their folder; or give --calibrate a folder of 100 fields or more"
    assert without.stderr == f"error: no labelled collections found: {remedies}\n"
    (tmp_path / "few").mkdir()
    shutil.copy(SPARSE, tmp_path / "few")
    few = call(*export, "openvino-int8", "--calibrate", tmp_path / "few")
    assert few.exit_code == 2
    assert few.stderr.endswith("few: 1 pictures are too few to calibrate with; give 100 fields\n")
    for words in (
        ["evaluate", "detector"],
        ["evaluate", "runtimes"],
        ["train", "labels", SAMPLES, "--um-per-px", "0.1"],
    ):
        other = call(*words, "--model", "red-cells")
        assert other.exit_code == 2
        assert "red-cells: a classifier, where a detector is needed" in other.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["analyze", str(SPARSE), "--out"],
        ["crop", str(SPARSE), "--out"],
        ["simulate", "--random", "1", "--out"],
        ["export", Settings().detector, "--to", "onnx", "--out"],
        ["batch", str(SAMPLES), "--out", "report.csv", "--overlays"],
        ["bench", str(SPARSE), "--out"],
    ],
)
def test_an_output_place_that_is_taken_is_one_clear_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "figures.json" if words[0] == "bench" else tmp_path / "file"
    result = call(*words, target)
    assert result.exit_code == 1
    assert f"{tmp_path / 'file'}: no folder that can be written" in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert not Path("report.csv").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["analyze", SPARSE, "--runtime", "onnx", "--precision", "bf16"], "bf16"),
        (["analyze", SPARSE, "--runtime", "onnx"], "--to onnx"),
        (["analyze", SPARSE, "--page", "0"], "--page"),
        (["crop", SPARSE, "--threads", "-1"], "--threads"),
        (["analyze", SPARSE, "--tile", "0"], "--tile"),
        (["crop", SPARSE, "--max-megapixels", "0"], "--max-megapixels"),
        (["simulate", "--random", "1", "--seed", "-1"], "--seed"),
        (["bench", "naming", SPARSE, "--classifier", "no-such"], "known: cells-"),
        (["bench", "slides", SPARSE, "--simulated", "10"], "simulated: expected 0 or 200"),
        (["train", "labels", SAMPLES, "--um-per-px", "0"], "--um-per-px"),
        (["train", "labels", SAMPLES, "--um-per-px", "3"], "--um-per-px"),
        (["train", "labels", SAMPLES, "--um-per-px", "0.1", "--list", "absent.txt"], "absent.txt"),
        (["models", "show", "no-such"], "known: cells-"),
        (["models", "show", "red-cells/"], "known: cells-"),
        (["models", "verify", "no-such"], "known: cells-"),
        (["batch", "absent"], "absent"),
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[Any], hint: str, tmp_path: Path) -> None:
    out = [] if words[0] in ("models", "batch") else ["--out", tmp_path / "out"]
    result = call(*words, *out)
    assert result.exit_code == 2, result.output
    assert hint in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_one_file_for_two_tables_and_a_picture_as_report_are_wrong_usage(tmp_path: Path) -> None:
    folder = small(tmp_path / "in", "a.png")
    before = (folder / "a.png").read_bytes()
    result = call("batch", folder, "--out", tmp_path / "x.csv", "--cells", tmp_path / "x.csv")
    assert result.exit_code == 2
    assert "--cells" in result.stderr
    assert call("batch", folder, "--out", folder / "a.png").exit_code == 2
    assert (folder / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["batch", "in", "--config", "told.csv", "--out", "told.csv"], "--out"),
        (["batch", "in", "--config", "told.csv", "--out", "r.csv", "--cells", "in/../told.csv"], "--cells"),
        (["batch", "in", "--region", "told.csv", "--out", "told.csv"], "--out"),
        (["batch", "in", "--taxonomy", "told.csv", "--out", "r.csv", "--slide-report", "told.csv"], "--slide-report"),
        (["batch", "in", "--list", "told.csv", "--out", "told.csv"], "--out"),
        (["classify", "in", "--config", "told.csv", "--out", "told.csv"], "--out"),
        (["classify", "in", "--out", "in/manifest.csv"], "--out"),
        (["classify", "in", "--out", "link.csv"], "--out"),
        (["analyze", "in/a.png", "in/a.overlay.jpg", "--out", "in"], "--out"),
        (["analyze", "in/a.png", "--config", "in/a.cells.csv", "--out", "in"], "--out"),
        (["analyze", "in/a.png", "in/a.gallery/neutrophil.png", "--out", "in"], "--out"),
        (["batch", "in", "--list", "names.txt", "--overlays", "in", "--out", "r.csv"], "--overlays"),
        (["crop", "in/a.png", "--config", "in/manifest.csv", "--out", "in"], "--out"),
        (["bench", "in/a.png", "--out", "in/a.png"], "--out"),
        (["bench", "slides", "in/a.png", "--out", "in/a.png"], "--out"),
        (["bench", "naming", "in/a.png", "--out", "in/a.png"], "--out"),
        (["bench", "directories", "in", "--out", "in/a.png"], "--out"),
        (["bench", "engines", "in", "--out", "in/a.png"], "--out"),
        (["evaluate", "detector", "--datasets", "told.csv", "--out", "told.csv"], "--out"),
        (["simulate", "--recipe", "truth.json", "--out", "."], "--out"),
        (["mend", "merges", "merges.yaml", "--out", "."], "--out"),
    ],
)
def test_no_output_replaces_what_is_read(
    words: list[str], flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = small(Path("in"), "a.png", "a.overlay.jpg", "a.png.overlay.jpg", "a.gallery/neutrophil.png")
    Path("names.txt").write_text("a.png\na.png.overlay.jpg\n")
    settings = (folder / "manifest.csv", folder / "a.cells.csv")
    for path in (Path("told.csv"), Path("truth.json"), Path("merges.yaml"), *settings):
        path.write_bytes(shipped("configs").joinpath("taxonomy.yaml").read_bytes() if "--taxonomy" in words else b"{}")
    if "--region" in words:
        Path("told.csv").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [99, 99], [0, 0]]]}')
    Path("link.csv").symlink_to(folder / "a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert re.search(rf"read by this run[^;]*; give {flag} another (name|folder)", result.stderr)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["analyze", "crop"])
def test_pictures_of_two_folders_do_not_share_a_region(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small(Path("a"), "x.png", "y.png"), small(Path("b"), "x.png", "z.png")
    Path("rois").mkdir()
    Path("rois/x.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [99, 99], [0, 0]]]}')
    result = call(command, "a/x.png", "a/y.png", "b/x.png", "--region", "rois", "--out", "out")
    assert result.exit_code == 2
    assert re.search(r"a/x\.png and b/x\.png: would both be counted in rois/x\.geojson; give .* batch", result.stderr)
    assert not Path("out").exists()
    result = call(command, "a/x.png", "a/../a/x.png", "b/z.png", "--region", "rois", "--out", "out")
    assert (result.exit_code, "z.png: has no region" in result.stderr) == (1, True)
    assert call(command, "a/x.png", "b/x.png", "--region", "rois/x.geojson", "--out", "one").exit_code == 0


def test_a_damaged_model_is_exit_code_1(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model(Settings().detector).folder, tmp_path / "model"))
    (folder / "README.md").unlink()
    result = call("models", "show", folder)
    assert result.exit_code == 1
    assert "README.md: missing" in result.stderr
    assert json.loads(call("models", "show", folder, "--json").stdout)["task"] == "detector"
    (folder / "model.bin").write_bytes(b"\0")
    result = call("analyze", SPARSE, "--detector", folder, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "changed or damaged" in result.stderr
    (folder / "card.yaml").write_text("id: [")
    assert call("models", "verify", folder).exit_code != 0


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_batch_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    folder, analyze = small(tmp_path / "in", "a.png", "b.png", "c.png"), Pipeline.analyze
    handler = signal.getsignal(signal.SIGTERM)

    def stop_at_b(self: Pipeline, image: Path, **more: Any) -> Analysis:
        if image.name == "b.png":
            os.kill(os.getpid(), kind)
        return analyze(self, image, **more)

    monkeypatch.setattr(Pipeline, "analyze", stop_at_b)
    words = ("batch", folder, "--out", tmp_path / "report.csv")
    result = call(*words, "--workers", 0)
    assert result.exit_code == 130
    assert "1 of 3 pictures done" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in", "report.csv.journal"}
    monkeypatch.setattr(Pipeline, "analyze", analyze)
    assert "1 of them in an earlier run" in call(*words, "--workers", 0).stdout
    assert [row["image"] for row in rows_of(tmp_path / "report.csv")] == ["a.png", "b.png", "c.png"]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_what_a_batch_leaves_out_is_told(tmp_path: Path) -> None:
    folder = small(tmp_path / "in", "a.png", "photo.heic", "notes.txt", "a.png.overlay.jpg")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    result = call("batch", folder, "--out", tmp_path / "r.csv")
    assert result.exit_code == 1
    assert "1 analysed, 1 failed, 1 with a warning, 1 outputs skipped, 1 other files ignored" in result.stdout
    assert "HEIC" in next(row["error"] for row in rows_of(tmp_path / "r.csv") if row["image"] == "photo.heic")
    told = json.loads(call("batch", folder, "--out", tmp_path / "r.csv", "--json").stdout)
    assert (told["outputs_skipped"], told["other_files_ignored"]) == (1, 1)


def test_commands_that_analyse_have_the_same_flags() -> None:
    def flags(command: str) -> set[str]:
        return {word for word in call(command, "--help").output.replace("\u2502", " ").split() if word.startswith("--")}

    shared = {"--" + name.replace("_", "-") for name in Settings.model_fields if name != "taxonomy"} | {"--config"}
    for command in ("analyze", "batch", "crop"):
        assert shared <= flags(command)


def test_the_page_asked_for_is_read(tmp_path: Path) -> None:
    import tifffile

    field = cv2.imread(str(SPARSE))[:200, :300, ::-1]
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        for page in (np.full_like(field, 230), field):
            writer.write(page, photometric="rgb")
    found = [
        json.loads(call("analyze", tmp_path / "two.tif", "--page", page, "--out", tmp_path, "--json").stdout)["n_rbc"]
        for page in (1, 2)
    ]
    assert found[0] == 0 < found[1]


def test_an_empty_settings_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    folder = small(tmp_path / "in", "a.png")
    result = call("analyze", folder / "a.png", "--config", tmp_path / "empty.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_progress_shows_on_a_terminal_only() -> None:
    for paths, words in (([Path("a")], "0:00:0"), ([Path("a"), Path("b")], "2/2")):
        terminal = io.StringIO()
        console = Console(file=terminal, force_terminal=True)
        before = sys.stdout
        for _ in bar(False, "analysing", console)(paths):
            # What goes to a file must not end up on the terminal.
            assert sys.stdout is before
        assert "analysing" in terminal.getvalue()
        assert words in terminal.getvalue()
        silent = io.StringIO()
        assert list(bar(True, "analysing", Console(file=silent, force_terminal=True))(paths)) == paths
        assert list(bar(False, "analysing", Console(file=silent))(paths)) == paths
        assert silent.getvalue() == ""
    for quiet, words in ((False, "measuring"), (True, "")):
        terminal = io.StringIO()
        with waiting(quiet, "measuring", Console(file=terminal, force_terminal=True)):
            pass
        assert words in terminal.getvalue()
        assert bool(terminal.getvalue()) is not quiet
