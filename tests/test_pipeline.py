"""From picture to counts with the shipped model, against the exact truth of rendered smears."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from smearcount import Pipeline, Settings
from smearcount.errors import ConfigError
from smearcount.images import open_image
from smearcount.report import CELL_COLUMNS
from smearcount.simulate import SmearRecipe, read_truth, render

SAMPLES = Path(__file__).parents[1] / "sample_smears"
TRUTH = read_truth(SAMPLES)
KINDS = ("rbc", "wbc", "platelet")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


def found(pipeline: Pipeline, name: str) -> dict[str, int]:
    kinds = pipeline.analyze(SAMPLES / name).result.detections.kinds.tolist()
    return {kind: kinds.count(kind) for kind in KINDS}


def test_there_are_samples() -> None:
    assert len(TRUTH) >= 8
    assert max(entry["counts"]["rbc"] for entry in TRUTH.values()) > 1000


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_sample_smears_are_counted_right(pipeline: Pipeline, name: str) -> None:
    counts, truth = found(pipeline, name), TRUTH[name]["counts"]
    for kind in KINDS:
        allowed = max(0.02 * truth.get(kind, 0), 0.99 if kind == "platelet" else 0)
        assert abs(counts[kind] - truth.get(kind, 0)) <= allowed, (name, counts, truth)


def test_magnification_does_not_matter(pipeline: Pipeline) -> None:
    normal = found(pipeline, "normal.jpg")
    for name in ("half_magnification.jpg", "double_magnification.jpg"):
        other = found(pipeline, name)
        assert other["wbc"] == normal["wbc"]
        assert abs(other["rbc"] - normal["rbc"]) <= 0.03 * normal["rbc"]


def test_the_estimated_scale_is_near_the_true_one(pipeline: Pipeline) -> None:
    for name in ("normal.jpg", "half_magnification.jpg", "double_magnification.jpg", "large_field.jpg"):
        scale = pipeline.analyze(SAMPLES / name).result.scale
        assert scale.source == "estimated"
        assert scale.um_per_px == pytest.approx(TRUTH[name]["um_per_px"], rel=0.08)


def test_windows_read_together_change_no_byte(tmp_path: Path) -> None:
    pixels = open_image(SAMPLES / "large_field.jpg").pixels
    slide = tmp_path / "large.tif"
    tifffile.imwrite(slide, pixels, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None)
    written = []
    for tile in (1, 2, 5):
        pipeline = Pipeline.load(Settings(tile=tile, classifiers=()))
        cells, counts = pipeline.analyze(slide, um_per_px=0.15).save(tmp_path / str(tile))[1::-1]
        written.append((cells.read_bytes(), counts.read_bytes()))
    assert pixels.shape == (2000, 3000, 3)
    assert written[0][0].count(b"\n") > 1000
    assert written[1:] == written[:1] * 2


def test_a_smear_never_seen_is_counted(pipeline: Pipeline) -> None:
    smear = render(SmearRecipe(width=900, height=700, um_per_px=0.14, white_cells=2, platelets=6, seed=4711))
    kinds = pipeline.analyze(smear.pixels, um_per_px=0.14).result.detections.kinds.tolist()
    assert kinds.count("wbc") == 2
    true_red = smear.kinds.tolist().count("rbc")
    assert abs(kinds.count("rbc") - true_red) <= max(2, 0.03 * true_red)


def test_flips_and_quarter_turns_change_next_to_nothing(pipeline: Pipeline) -> None:
    pixels = open_image(SAMPLES / "normal.jpg").read(0, 0, 1280, 960)
    counts = []
    for view in (pixels, pixels[::-1], pixels[:, ::-1], np.rot90(pixels)):
        kinds = pipeline.analyze(np.ascontiguousarray(view), um_per_px=0.12).result.detections.kinds.tolist()
        counts.append([kinds.count(kind) for kind in KINDS])
    assert np.ptp(np.array(counts), axis=0)[:2].max() <= 2


def test_a_region_means_the_same_cells_at_every_level_of_a_pyramid(tmp_path: Path) -> None:
    pixels = open_image(SAMPLES / "double_magnification.jpg").pixels
    height, width = pixels.shape[:2]
    slide, drawn = tmp_path / "slide.tif", tmp_path / "left.geojson"
    with tifffile.TiffWriter(slide) as writer:
        writer.write(pixels, photometric="rgb", tile=(256, 256), subifds=1)
        half = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        writer.write(half, photometric="rgb", tile=(256, 256), subfiletype=1)
    corners = [[0, 0], [width / 2, 0], [width / 2, height], [0, height], [0, 0]]
    drawn.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    um_per_px, totals = TRUTH["double_magnification.jpg"]["um_per_px"], []
    for level in (0, 1):
        settings = Settings(region=drawn, level=level, classifiers=(), countable="all")
        result = Pipeline.load(settings).analyze(slide, um_per_px=um_per_px * 2**level).result
        boxes = result.detections.boxes[result.counted]
        assert boxes[:, 0].max() < width / 2 / 2**level
        totals.append(len(boxes))
    assert totals[0] > 20
    assert abs(totals[1] - totals[0]) <= 1
    far = [[x + 9 * width, y] for x, y in corners]
    drawn.write_text(json.dumps({"type": "Polygon", "coordinates": [far]}))
    with pytest.raises(ConfigError, match=r"slide\.tif: the region of .*left\.geojson .* lies outside"):
        Pipeline.load(Settings(region=drawn, classifiers=())).analyze(slide, um_per_px=um_per_px)


def test_an_analysis_is_complete(pipeline: Pipeline, tmp_path: Path) -> None:
    analysis = pipeline.analyze(SAMPLES / "sparse.jpg")
    cells = analysis.cells
    assert tuple(cells.columns) == CELL_COLUMNS
    assert len(cells) == len(analysis.result.detections)
    assert cells["counted"].sum() + sum(analysis.counts.excluded.values()) == len(cells)
    assert analysis.differential.loc["rbc", "count"] == (cells["counted"] & (cells["kind"] == "rbc")).sum()
    patches = list(analysis.patches())
    assert len(patches) == len(cells)
    assert {patch.pixels.shape for patch in patches} == {(452, 452, 3)}
    overlay = analysis.overlay()
    assert overlay.shape[0] >= 960
    assert overlay.shape[1] >= 1280
    written = analysis.save(tmp_path)
    assert [path.name for path in written] == ["sparse.json", "sparse.cells.csv", "sparse.overlay.jpg"]
    report = json.loads(written[0].read_text())
    assert report["counts"]["found"] == len(cells)
    assert report["provenance"]["models"] == [pipeline.detector.card.id, *pipeline.settings.classifiers]
    assert len(pd.read_csv(written[1])) == len(cells)


def test_the_same_picture_gives_the_same_bytes(pipeline: Pipeline, tmp_path: Path) -> None:
    first = pipeline.analyze(SAMPLES / "sparse.jpg").save(tmp_path / "a")
    second = Pipeline.load(Settings(threads=1)).analyze(SAMPLES / "sparse.jpg").save(tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (230, 200, 210)])
def test_a_blank_picture_has_no_cells_and_says_so(pipeline: Pipeline, colour: tuple[int, int, int]) -> None:
    analysis = pipeline.analyze(np.full((300, 400, 3), colour, np.uint8))
    assert len(analysis.result.detections) == 0
    assert analysis.result.scale.source == "assumed"
    assert any("too sparse" in warning for warning in analysis.result.quality.warnings)
    assert np.isnan(analysis.differential.loc["rbc", "percent"])
    analysis.overlay()
