"""From picture to counts with the shipped model, against the exact truth of rendered smears."""

import errno
import json
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import SAMPLES

from smearcount import Pipeline, Settings
from smearcount.config import shipped
from smearcount.errors import ChangedError, ConfigError, ImageError
from smearcount.gallery import contact_sheets
from smearcount.images import file_sha256, open_image
from smearcount.light import illumination
from smearcount.output_names import shortened
from smearcount.pipeline import Analysis
from smearcount.report import CELL_COLUMNS
from smearcount.simulate import SmearRecipe, read_truth, render

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


def test_the_scale_that_is_given_decides_whatever_the_metadata_say_of_a_level(tmp_path: Path) -> None:
    pixels = open_image(SAMPLES / "sparse.jpg").pixels
    small = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    told = {"photometric": "rgb", "tile": (256, 256), "resolution": (5_000, 5_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(tmp_path / "slide.tif") as writer:
        writer.write(pixels, subifds=1, **told)
        writer.write(small, photometric="rgb", tile=(256, 256), subfiletype=1)
    um_per_px = 2 * TRUTH["sparse.jpg"]["um_per_px"]
    pipeline = Pipeline.load(Settings(level=1, classifiers=()))
    with pytest.raises(ImageError, match="level 1 is 4 um a pixel, too coarse to count; give .* by --um-per-px"):
        pipeline.analyze(tmp_path / "slide.tif")
    found = pipeline.analyze(tmp_path / "slide.tif", um_per_px=um_per_px).result
    assert (found.scale.um_per_px, found.scale.source) == (um_per_px, "flag")
    assert np.array_equal(found.detections.boxes, pipeline.analyze(small, um_per_px=um_per_px).result.detections.boxes)


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


def test_a_picture_that_is_replaced_while_it_is_read_has_no_result(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = open_image(SAMPLES / "sparse.jpg").read(0, 0, 300, 400)
    slide, later, cut = tmp_path / "slide.tif", tmp_path / "later.tif", tmp_path / "cut.tif"
    for path, shown in ((slide, pixels), (later, pixels[::-1])):
        tifffile.imwrite(path, shown, photometric="rgb", tile=(64, 64))
    cut.write_bytes(slide.read_bytes()[:9000])
    find, opened = illumination.find_cells, open_image

    def replaced(*given: Any) -> Any:
        found = find(*given)
        later.replace(slide)
        return found

    def completed(path: Path, *given: Any, **more: Any) -> Any:
        try:
            return opened(path, *given, **more)
        finally:
            path.write_bytes(slide.read_bytes())

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("smearcount.pipeline.find_cells", replaced)
        with pytest.raises(ChangedError, match=r"slide\.tif: changed while it was read; run it again once it is comp"):
            pipeline.analyze(slide, um_per_px=0.12)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("smearcount.pipeline.open_image", completed)
        with pytest.raises(ChangedError, match=r"cut\.tif: changed while it was read"):
            pipeline.analyze(cut, um_per_px=0.12)
    found = [pipeline.analyze(path, um_per_px=0.12).cells for path in (slide, cut)]
    assert len(found[0])
    pd.testing.assert_frame_equal(found[0].drop(columns="image"), found[1].drop(columns="image"))


def test_cells_are_drawn_on_the_picture_that_was_analysed(pipeline: Pipeline, tmp_path: Path) -> None:
    """A picture that was decoded as a whole is still at hand; one that is read by regions must be as it was."""
    pixels = open_image(SAMPLES / "sparse.jpg").read(0, 0, 300, 400)
    slide, whole = tmp_path / "slide.tif", tmp_path / "whole.png"
    tifffile.imwrite(slide, pixels, photometric="rgb", tile=(64, 64))
    cv2.imwrite(str(whole), pixels[..., ::-1])
    by_regions, held = (pipeline.analyze(path, um_per_px=0.12) for path in (slide, whole))
    assert len(held.result.detections)
    shown = held.overlay()
    assert by_regions.overlay().shape == shown.shape
    tifffile.imwrite(slide, pixels[::-1], photometric="rgb", tile=(64, 64))
    whole.unlink()
    np.testing.assert_array_equal(shown, held.overlay())
    assert len(list(held.patches())) == len(held.result.detections)
    for look in (by_regions.overlay, by_regions.patches, partial(contact_sheets, by_regions)):
        with pytest.raises(ChangedError, match=r"slide\.tif: changed since it was analysed; run it again"):
            list(look())  # type: ignore[arg-type]
    with pytest.raises(ChangedError):
        by_regions.save(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    slide.unlink()
    with pytest.raises(ChangedError, match=r"slide\.tif: no longer there; put it back"):
        by_regions.overlay()
    tifffile.imwrite(slide, pixels[::-1], photometric="rgb", tile=(64, 64))
    cut_out = pipeline.analyze(slide, um_per_px=0.12).patches()
    next(cut_out)
    tifffile.imwrite(slide, pixels, photometric="rgb", tile=(64, 64))
    with pytest.raises(ChangedError):
        list(cut_out)


def test_another_process_is_sent_the_analysis_of_a_tiled_picture(pipeline: Pipeline, tmp_path: Path) -> None:
    slide = tmp_path / "slide.tif"
    pixels = open_image(SAMPLES / "sparse.jpg").read(0, 0, 300, 400)
    tifffile.imwrite(slide, pixels, photometric="rgb", tile=(64, 64))
    analysis = pipeline.analyze(slide, um_per_px=0.12)
    copy = pickle.loads(pickle.dumps(analysis))
    pd.testing.assert_frame_equal(copy.cells, analysis.cells)
    np.testing.assert_array_equal(copy.overlay(), analysis.overlay())
    tifffile.imwrite(slide, pixels[::-1], photometric="rgb", tile=(64, 64))
    with pytest.raises(ChangedError):
        copy.overlay()


def test_the_same_picture_gives_the_same_bytes(pipeline: Pipeline, tmp_path: Path) -> None:
    first = pipeline.analyze(SAMPLES / "sparse.jpg").save(tmp_path / "a")
    second = Pipeline.load(Settings(threads=1)).analyze(SAMPLES / "sparse.jpg").save(tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_threads_that_share_a_pipeline_get_their_own_cells(pipeline: Pipeline) -> None:
    pixels = cv2.cvtColor(cv2.imread(str(SAMPLES / "normal.jpg")), cv2.COLOR_BGR2RGB)
    parts = [pixels[y : y + 200, x : x + 200] for y in (0, 250) for x in (0, 250, 500, 750)] * 3
    alone = [pipeline.analyze(part, um_per_px=0.12).cells for part in parts]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda part: pipeline.analyze(part, um_per_px=0.12).cells, parts)
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_unclassified_cells_of_every_kind_are_in_the_table(pipeline: Pipeline, tmp_path: Path) -> None:
    analysis = Pipeline.load(Settings(min_label_score=0.97)).analyze(SAMPLES / "normal.jpg")
    unnamed = {kind: n for kind, n in analysis.counts.unclassified.items() if n}
    assert {"rbc", "wbc"} <= set(unnamed)
    table = analysis.differential
    assert table.index.is_unique
    rows = json.loads(analysis.save(tmp_path)[0].read_text())["table"]
    for kind, n in unnamed.items():
        assert table.loc[f"unclassified_{kind}", "count"] == n
        assert table.loc[f"unclassified_{kind}", "kind"] == kind
        assert [row["count"] for row in rows if (row["type"], row["kind"]) == ("unclassified", kind)] == [n]
        inside = table[(table["kind"] == kind) & (table.index != kind)]
        assert inside["count"].sum() == table.loc[kind, "count"]


def test_cells_have_the_same_types_with_and_without_any(pipeline: Pipeline) -> None:
    some = pipeline.analyze(SAMPLES / "sparse.jpg").cells
    none = pipeline.analyze(np.full((60, 60, 3), 230, np.uint8)).cells
    assert (len(some) > 0, len(none)) == (True, 0)
    assert some.dtypes.astype(str).to_dict() == none.dtypes.astype(str).to_dict()


def test_an_array_that_is_used_again_changes_no_analysis(pipeline: Pipeline) -> None:
    pixels = cv2.cvtColor(cv2.imread(str(SAMPLES / "sparse.jpg")), cv2.COLOR_BGR2RGB)[:300, :400].copy()
    analysis = pipeline.analyze(pixels)
    before = analysis.overlay()
    pixels[:] = 0
    np.testing.assert_array_equal(analysis.overlay(), before)


@pytest.mark.parametrize("turn", ["read-only", "fortran", "flipped", "every second", "masked"])
def test_an_array_is_the_same_picture_however_it_lies_in_memory(pipeline: Pipeline, turn: str) -> None:
    pixels = cv2.cvtColor(cv2.imread(str(SAMPLES / "sparse.jpg")), cv2.COLOR_BGR2RGB)[300:600, :400].copy()
    views = {
        "read-only": pixels.view(),
        "fortran": np.asfortranarray(pixels),
        "flipped": pixels[::-1].copy()[::-1],
        "every second": pixels.repeat(2, axis=0).repeat(2, axis=1)[::2, ::2],
        "masked": np.ma.masked_array(pixels, np.zeros(pixels.shape, bool)),
    }
    views["read-only"].setflags(write=False)
    found = pipeline.analyze(views[turn], um_per_px=0.12)
    assert type(found.source.read(0, 0, 9, 9)) is np.ndarray
    pd.testing.assert_frame_equal(found.cells, pipeline.analyze(pixels, um_per_px=0.12).cells)
    assert len(found.cells)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.full((1, 1, 3), 230, np.uint8), ImageError, "pixels: only 1 x 1 px, expected at least 32"),
        (np.full((31, 400, 3), 230, np.uint8), ImageError, "pixels: only 400 x 31 px"),
        (np.full((60, 60), 230, np.uint8), ValueError, r"expected \(H, W, 3\) uint8 RGB, got \(60, 60\) uint8"),
        (np.full((60, 60, 3), 0.5), ValueError, r"expected \(H, W, 3\) uint8 RGB, got \(60, 60, 3\) float64"),
        ([[[1, 2, 3]]], TypeError, "image: expected a file or .* pixels, got list"),
        (None, TypeError, "image: expected a file or .* pixels, got NoneType"),
    ],
)
def test_what_is_no_picture_is_told(pipeline: Pipeline, image: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pipeline.analyze(image)  # type: ignore[arg-type]


def test_a_report_of_another_picture_is_not_replaced(pipeline: Pipeline, tmp_path: Path) -> None:
    def names(*analyses: Analysis) -> list[str]:
        return [analysis.save(tmp_path)[0].name for analysis in analyses]

    arrays = [pipeline.analyze(np.full((60, 60, 3), level, np.uint8)) for level in (220, 230)]
    assert names(*arrays) == names(*arrays) == ["smear.json", "smear-2.json"]
    named = [
        pipeline.analyze(each.source.pixels, image_id="field.png", slide_id=name)  # type: ignore[attr-defined]
        for each, name in zip(arrays, "ab", strict=True)
    ]
    assert names(*named) == ["field.json", "field-2.json"]
    assert len({each.result.image_sha256 for each in arrays}) == 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "f.png"), np.full((60, 60, 3), ord(folder), np.uint8))
    first, second = (pipeline.analyze(tmp_path / folder / "f.png") for folder in ("a", "b"))
    assert names(first, second, first, second) == ["f.json", "f-2.json"] * 2
    assert second.save(tmp_path, "f")[0].name == "f.json"
    (tmp_path / "g.json").write_text("[]")
    assert pipeline.analyze(arrays[0].source.pixels, image_id="g.png").save(tmp_path)[0].name == "g-2.json"


def test_pictures_of_one_name_that_are_saved_at_once_have_names_of_their_own(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        pipeline.analyze(np.full((60, 60, 3), level, np.uint8), image_id="field.png") for level in (220, 230)
    )
    draw, later = Analysis.overlay, list[Future[list[Path]]]()

    def watched(analysis: Analysis) -> Any:
        if not later:  # the first one is at its overlay, and has written nothing yet
            later.append(other.submit(second.save, tmp_path))
            with pytest.raises(TimeoutError):
                later[0].result(0.5)
        return draw(analysis)

    monkeypatch.setattr(Analysis, "overlay", watched)
    with ThreadPoolExecutor(1) as other:
        stems = [first.save(tmp_path)[0].name, later[0].result()[0].name]
    assert stems == ["field.json", "field-2.json"]
    reports = [json.loads((tmp_path / name).read_text())["image_sha256"] for name in stems]
    assert reports == [first.result.image_sha256, second.result.image_sha256]
    assert not list(tmp_path.glob(".*"))


def test_a_long_name_is_shortened_and_a_folder_that_can_not_be_read_is_told(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((60, 60, 3), 220, np.uint8)
    long, other = (pipeline.analyze(pixels, image_id=f"{'x' * 250}{letter}.png") for letter in "ab")
    stems = [each.save(tmp_path)[0].stem for each in (long, other, long)]
    assert stems == [shortened(f"{'x' * 250}{letter}") for letter in "aba"]
    assert all((tmp_path / f"{stem}.overlay.jpg").is_file() for stem in stems)
    with pytest.raises(ImageError, match="can't be written"):
        long.save(tmp_path, "x" * 255)
    (tmp_path / "f.json").mkdir()
    named = pipeline.analyze(pixels, image_id="f.png")
    assert named.save(tmp_path)[0].name == "f-2.json"

    def fail(path: Path) -> bytes:
        error = PermissionError if path.name == "f.json" else OSError
        raise error(errno.EACCES if path.name == "f.json" else errno.EIO, "in the way")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ImageError, match=r"f-2\.json: can't be read \(in the way\)"):
        named.save(tmp_path)


def test_a_pipeline_loads_a_settings_file_and_refuses_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("um_per_px: 0.2\nclassifiers: []\n")
    weights = str(shipped("weights"))
    for settings in (tmp_path / "s.yaml", str(tmp_path / "s.yaml")):
        assert Pipeline.load(settings, weights=weights).settings.um_per_px == 0.2
    with pytest.raises(TypeError, match="settings: expected Settings or a YAML file, got dict"):
        Pipeline.load({"um_per_px": 0.2})  # type: ignore[arg-type]


IDS: list[dict[str, Any]] = [{"image_id": Path("a.jpg")}, {"image_id": 0}, {"slide_id": 7}, {"slide_id": None}]


@pytest.mark.parametrize("ids", IDS)
def test_a_name_that_is_no_string_is_refused_before_the_analysis(pipeline: Pipeline, ids: dict[str, Any]) -> None:
    (key,) = ids
    with pytest.raises(TypeError, match=rf"^{key}: expected a string, got {type(ids[key]).__name__}$"):
        pipeline.analyze(np.full((64, 64, 3), 220, np.uint8), **ids)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (230, 200, 210)])
def test_a_blank_picture_has_no_cells_and_says_so(pipeline: Pipeline, colour: tuple[int, int, int]) -> None:
    analysis = pipeline.analyze(np.full((300, 400, 3), colour, np.uint8))
    assert len(analysis.result.detections) == 0
    assert analysis.result.scale.source == "assumed"
    assert any("too sparse" in warning for warning in analysis.result.quality.warnings)
    assert np.isnan(analysis.differential.loc["rbc", "percent"])
    analysis.overlay()


def test_another_process_makes_the_same_pipeline_of_a_pickle(tmp_path: Path) -> None:
    outline = {"type": "Polygon", "coordinates": [[[0, 0], [300, 0], [300, 400], [0, 400]]]}
    (tmp_path / "r.geojson").write_text(json.dumps(outline))
    whole = Pipeline(Settings(threads=1, region=tmp_path / "r.geojson"), shipped("weights"))
    copy = pickle.loads(pickle.dumps(whole))
    assert copy.settings == whole.settings
    first, second = (each.analyze(SAMPLES / "sparse.jpg") for each in (whole, copy))
    assert first.counts == second.counts
    assert first.cells.equals(second.cells)
    assert first.result.provenance == second.result.provenance


def test_provenance_has_every_setting_that_changes_counts(tmp_path: Path) -> None:
    taxonomy = tmp_path / "own.yaml"
    taxonomy.write_bytes((shipped("configs") / "taxonomy.yaml").read_bytes())
    settings = Settings(classifiers=(), page=1, level=0, taxonomy=taxonomy)
    told = Pipeline.load(settings).analyze(SAMPLES / "sparse.jpg", um_per_px=0.16).result.provenance.settings
    of_models = {"detector", "classifiers", "runtime", "device", "precision"}
    assert set(Settings.model_fields) - of_models - {"threads", "tile", "max_megapixels"} <= set(told)
    assert (told["page"], told["level"], told["channel"]) == (1, 0, None)
    assert told["taxonomy"] == file_sha256(taxonomy)
