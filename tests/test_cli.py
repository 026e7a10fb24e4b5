"""The commands as a user types them: outputs, exit codes, and one clear line for every error."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from smearcount import __version__
from smearcount.cli import app
from smearcount.report import report_columns
from smearcount.taxonomy import load_taxonomy

SAMPLES = Path(__file__).parents[1] / "sample_smears"
SPARSE = SAMPLES / "sparse.jpg"


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


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


def test_quiet_is_quiet_and_json_is_json(tmp_path: Path) -> None:
    assert call("analyze", SPARSE, "--out", tmp_path, "--quiet").stdout == ""
    row = json.loads(call("analyze", SPARSE, "--out", tmp_path, "--json").stdout)
    assert row["status"] == "ok"
    assert row["image"] == "sparse.jpg"
    assert int(row["n_rbc"]) > 20


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


def test_an_unknown_model_names_the_known_ones(tmp_path: Path) -> None:
    result = call("analyze", SPARSE, "--detector", "no-such", "--out", tmp_path)
    assert result.exit_code == 2
    assert "known: cells-" in result.stderr


@pytest.mark.parametrize("flags", [["--um-per-px", "7"], ["--device", "abacus"], ["--min-score", "1.5"]])
def test_wrong_flags_are_wrong_usage(flags: list[str], tmp_path: Path) -> None:
    result = call("analyze", SPARSE, "--out", tmp_path, *flags)
    assert result.exit_code == 2
    assert flags[0] in result.stderr


def test_settings_file_and_flags(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("um_per_px: 0.2\nedge_rule: all\n")
    row = json.loads(call("analyze", SPARSE, "--out", tmp_path, "--json", "--config", settings).stdout)
    assert (row["um_per_px"], row["um_per_px_source"], row["n_excluded"]) == ("0.2", "flag", 0)
    row = json.loads(
        call("analyze", SPARSE, "--out", tmp_path, "--json", "--config", settings, "--um-per-px", 0.12).stdout
    )
    assert row["um_per_px"] == "0.12"
    settings.write_text("um_per_pixel: 0.2\n")
    result = call("analyze", SPARSE, "--out", tmp_path, "--config", settings)
    assert result.exit_code == 2
    assert "um_per_pixel" in result.stderr


def test_simulate_writes_pictures_and_truth(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("width: 200\nheight: 160\num_per_px: 0.2\nred_cells: 5\nwhite_cells: 1\nplatelets: 2\n")
    assert call("simulate", "--recipe", recipe, "--out", tmp_path / "out").exit_code == 0
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
