"""Which cells count, and that every cell that does not is counted under one reason."""

import json
from pathlib import Path

import numpy as np
import pytest

from smearcount import Pipeline
from smearcount.config import Settings
from smearcount.counting import counted_mask
from smearcount.errors import ConfigError
from smearcount.frame import frame_of
from smearcount.geojson import parse_region
from smearcount.images import ArraySource
from smearcount.records import Detections
from smearcount.region import LARGE_UM2

UM = 0.2


def grid(width: int, height: int, step: int = 40, side: int = 36) -> Detections:
    x, y = (v.ravel().astype(np.float32) for v in np.meshgrid(np.arange(0, width, step), np.arange(0, height, step)))
    boxes = np.stack([x, y, x + side, y + side], axis=1)
    n = len(boxes)
    return Detections(boxes, np.ones(n, np.float32), np.array(["rbc"] * n), np.zeros(n, bool))


def smear(width: int, height: int, cells: Detections | None = None) -> ArraySource:
    """Dark cells, by default of the grid, on a light ground, with noise so that it is in focus."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 225, np.uint8)
    for x0, y0, x1, y1 in (cells or grid(width, height)).boxes.astype(int).tolist():
        pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = (180, 120, 130)
    noisy = pixels.astype(np.int16) + rng.integers(-6, 7, pixels.shape)
    return ArraySource(np.clip(noisy, 0, 255).astype(np.uint8))


def rectangle(x0: float, y0: float, x1: float, y1: float) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def test_a_field_has_the_frame_of_the_edge_rule() -> None:
    cells, source = grid(640, 480), smear(640, 480)
    for rule in ("corner", "all"):
        frame = frame_of(source, cells, UM, rule, None, whole=False)
        mask, area = counted_mask(cells.boxes, (640, 480), UM, rule)
        assert np.array_equal(frame.counted, mask)
        assert frame.area_um2 == area
        assert frame.excluded == {"edge": int((~mask).sum())}
        assert frame.squares is None


def test_a_region_counts_its_corners_and_its_area() -> None:
    cells, source = grid(640, 480), smear(640, 480)
    region = parse_region(rectangle(100, 100, 300, 200), "drawn")
    frame = frame_of(source, cells, UM, "corner", region, whole=False)
    x, y = cells.boxes[:, 0], cells.boxes[:, 1]
    assert np.array_equal(frame.counted, (x >= 100) & (x < 300) & (y >= 100) & (y < 200))
    assert frame.area_um2 == pytest.approx(200 * 100 * UM**2)
    assert frame.counted.sum() + sum(frame.excluded.values()) == len(cells)
    assert frame.excluded["outside the region"] > 0


def test_two_halves_count_what_the_whole_does() -> None:
    cells, source = grid(640, 480), smear(640, 480)
    parts = [parse_region(rectangle(*box), "half") for box in ((0, 0, 320, 480), (320, 0, 640, 480))]
    frames = [frame_of(source, cells, UM, "corner", part, whole=False) for part in parts]
    whole = frame_of(source, cells, UM, "corner", None, whole=False)
    assert np.array_equal(frames[0].counted | frames[1].counted, whole.counted)
    assert not (frames[0].counted & frames[1].counted).any()
    assert sum(frame.area_um2 for frame in frames) == pytest.approx(whole.area_um2)


def test_a_region_beside_the_picture_is_refused_before_any_cell_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "off.geojson"
    drawn.write_text(json.dumps(rectangle(99, 99, 199, 199)))
    pipeline = Pipeline.load(Settings(region=drawn, classifiers=()))
    monkeypatch.setattr(pipeline.detector, "find", None)
    with pytest.raises(ConfigError, match=r"a\.jpg: the region of .*off\.geojson .* lies outside the picture"):
        pipeline.analyze(smear(64, 64).pixels, image_id="a.jpg")


@pytest.fixture(scope="module")
def large() -> tuple[ArraySource, Detections]:
    """More than a quarter of a square millimetre, whose right half is empty glass."""
    side = 3000
    assert (side * UM) ** 2 > LARGE_UM2
    cells, source = grid(side, side), smear(side, side)
    source.pixels[:, side // 2 :] = 226
    return source, cells.take(cells.boxes[:, 2] < side // 2)


def test_empty_glass_of_a_large_picture_is_not_counted_area(large: tuple[ArraySource, Detections]) -> None:
    source, cells = large
    judged, whole = (frame_of(source, cells, UM, "corner", None, whole=flag) for flag in (False, True))
    assert whole.squares is None
    assert (judged.judged_um2, whole.judged_um2) == (pytest.approx((3000 * UM) ** 2), 0)
    assert judged.shares["background"] == pytest.approx(0.5, abs=0.08)
    assert judged.area_um2 < 0.62 * whole.area_um2
    assert judged.counted.sum() + sum(judged.excluded.values()) == len(cells)
    density = judged.counted.sum() / judged.area_um2
    assert density == pytest.approx(1 / (40 * UM) ** 2, rel=0.06)


def test_the_region_and_the_map_are_both_kept(large: tuple[ArraySource, Detections]) -> None:
    source, cells = large
    region = parse_region(rectangle(0, 0, 3000, 1000), "top")
    frame = frame_of(source, cells, UM, "corner", region, whole=False)
    assert (cells.boxes[frame.counted, 1] < 1000).all()
    assert frame.judged_um2 == pytest.approx(3000 * 1200 * UM**2)  # whole squares, of 60 um
    assert frame.counted.sum() + sum(frame.excluded.values()) == len(cells)


def test_cells_count_from_three_micrometres_within_what_was_scanned() -> None:
    """The first cell of each row lies 0, 0.6, 1.2 um and so on from the edge."""
    side, edge, plain = 2700, 700, grid(2700, 2700)
    step_px = (plain.boxes[:, 1] // 40 % 17) * 3
    first = plain.boxes[:, 0] == 720
    boxes = plain.boxes + np.stack([step_px - 20, 0 * step_px] * 2, axis=1)
    kept = (boxes[:, 0] >= edge) & (boxes[:, 2] < side)
    cells = Detections(boxes, plain.scores, plain.kinds, plain.at_edge).take(kept)
    source = smear(side, side, cells)
    source.pixels[:, :edge] = 255
    frame = frame_of(source, cells, UM, "corner", None, whole=False)
    probed = (first & (plain.boxes[:, 1] > 100) & (plain.boxes[:, 1] < side - 100))[kept]
    far_um = (cells.boxes[probed, 0] - edge) * UM
    assert far_um.max() > 9
    assert np.array_equal(frame.counted[probed], far_um >= 3)


def test_the_pipeline_takes_a_region_from_its_settings(tmp_path: Path) -> None:
    drawn = tmp_path / "roi.geojson"
    drawn.write_text(json.dumps(rectangle(0, 0, 300, 480)))
    sample = Path(__file__).parents[1] / "sample_smears" / "normal.jpg"
    whole, half = (
        Pipeline.load(Settings(region=path, classifiers=())).analyze(sample).result for path in (None, drawn)
    )
    assert 0 < half.counted.sum() < whole.counted.sum()
    assert half.counts.excluded["outside the region"] > 0
    assert np.array_equal(half.detections.boxes, whole.detections.boxes)
    assert half.provenance.settings["region"] != whole.provenance.settings["region"]
