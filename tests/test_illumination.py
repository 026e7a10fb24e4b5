"""A dark surround is neither counted nor taken for cells, and a dark picture is counted like a bright one."""

import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from conftest import SAMPLES

from smearcount import Pipeline, Settings
from smearcount.arrays import Pixels
from smearcount.counting import counted_mask
from smearcount.geometry import areas
from smearcount.images import ArraySource, open_image, write_picture
from smearcount.light import illumination
from smearcount.light.field_stop import counted_in_view
from smearcount.light.illumination import even_light
from smearcount.overlay import dim_outside
from smearcount.records import Detections
from smearcount.region import Region, with_edge_of

FIELD_WH = (1200, 900)


def field(name: str = "large_field.jpg") -> Pixels:
    return open_image(SAMPLES / name).read(600, 400, *FIELD_WH)


def seen_through(
    pixels: Pixels, radius: float, fade: float = 0.0, at: tuple[float, float] = (0.5, 0.5), stray: float = 0.0
) -> Pixels:
    """The picture as an eyepiece shows it: black outside a circle, from which the light fades inwards.

    With stray light it is grey outside, with the noise of a camera.
    """
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    depth = radius - np.hypot(x - at[0] * width, y - at[1] * height)
    light = np.clip(depth / fade, 0, 1) if fade else (depth > 0).astype(float)
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape) * (stray > 0)
    shown = pixels * light[..., None] + stray * (1 - light[..., None]) + noise
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(Settings(classifiers=(), um_per_px=None))


@pytest.mark.parametrize("name", [path.name for path in sorted(SAMPLES.glob("*.jpg"))])
def test_an_ordinary_picture_is_left_alone(name: str) -> None:
    source = open_image(SAMPLES / name)
    lit = even_light(source)
    assert lit.source is source
    assert lit.view is None


@pytest.mark.parametrize("stray", [0, 60, 90, 130])
@pytest.mark.parametrize(("radius", "at"), [(440, (0.5, 0.5)), (600, (0.5, 0.5)), (500, (0.4, 0.6)), (900, (0.9, 0.9))])
def test_the_view_is_the_disc_that_is_lit(radius: float, at: tuple[float, float], stray: float) -> None:
    lit = even_light(ArraySource(seen_through(field(), radius, at=at, stray=stray)))
    disc = shapely.Point(at[0] * FIELD_WH[0], at[1] * FIELD_WH[1]).buffer(radius, 64)
    truth = disc.intersection(shapely.box(0, 0, *FIELD_WH))
    assert lit.view is not None
    view = lit.view.outline
    assert view.intersection(truth).area > 0.97 * truth.area
    assert view.difference(truth).area < (0.003 if stray else 0.001) * truth.area
    outside = ~seen_through(np.ones((*FIELD_WH[::-1], 3), np.uint8), radius + 6, at=at)[..., 0].astype(bool)
    filled = lit.source.read(0, 0, *FIELD_WH)
    assert len(np.unique(filled[outside], axis=0)) == 1
    assert filled[outside].min() > 150


def framed(pixels: Pixels, kind: str, colour: tuple[int, int, int]) -> tuple[Pixels, Pixels]:
    """A picture with a border around it, turned in one, or round in one, after JPEG; and a mask of what it shows."""
    height, width = pixels.shape[:2]
    shown = np.full((height, width), 255, np.uint8)
    if kind == "border":
        framing = np.float64([[1, 0, 120], [0, 1, 90]]), (width + 200, height + 200)
    else:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), {"turned": 17, "diamond": 45}.get(kind, 0), 1)
        side = width if kind == "round" else round(1.3 * width)
        turn[:, 2] += (side - width) / 2, (side - height) / 2
        framing = turn, (side, side)
    if kind == "round":
        shown = seen_through(np.repeat(shown[..., None], 3, 2), 440)[..., 0]
    inside = cv2.warpAffine(shown, *framing, flags=cv2.INTER_NEAREST)
    picture = cv2.warpAffine(pixels, *framing)
    picture[inside == 0] = colour
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]), inside


@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 128, 128), (40, 80, 160)])
@pytest.mark.parametrize("kind", ["border", "turned", "diamond", "round"])
def test_a_plain_border_is_no_part_of_the_view(kind: str, colour: tuple[int, int, int]) -> None:
    picture, inside = framed(field(), kind, colour)
    lit = even_light(ArraySource(picture))
    assert lit.view is not None
    view = lit.view.mask((picture.shape[1], picture.shape[0])) != 0
    truth = inside != 0
    assert (view & truth).sum() > 0.96 * truth.sum()
    assert (view & ~truth).sum() < 0.01 * truth.sum()
    assert any("surround of the field of view" in note for note in lit.source.notes)


def test_a_plain_border_changes_no_density(pipeline: Pipeline) -> None:
    plain = pipeline.analyze(field()).result
    shown = pipeline.analyze(framed(field(), "turned", (255, 255, 255))[0]).result
    assert shown.scale.um_per_px == pytest.approx(plain.scale.um_per_px, rel=0.03)
    red = [(each.counted & (each.detections.kinds == "rbc")).sum() / each.counted_area_um2 for each in (plain, shown)]
    assert red[1] == pytest.approx(red[0], rel=0.06)


def test_clipped_glass_around_a_cell_is_no_border() -> None:
    """One stained cell, a seventh of the picture, on glass that is pure white."""
    pixels = np.full((363, 360, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    cell = cv2.circle(np.zeros((363, 360), np.uint8), (180, 180), 78, 1, -1) != 0
    pixels[cell] = rng.integers(90, 160, (int(cell.sum()), 3), dtype=np.uint8)
    assert even_light(ArraySource(pixels)).view is None


def test_narrow_pictures_with_a_border_are_read() -> None:
    rng = np.random.default_rng(1)
    for width, height, rim in ((1759, 55, 20), (51, 246, 24), (400, 40, 19), (36, 900, 12)):
        pixels = np.full((height, width, 3), 200, np.uint8)
        dim = rng.integers(60, 90, (height - 2 * rim, width - 2 * rim, 3)) if min(width, height) > 2 * rim else 70
        pixels[rim:-rim, rim:-rim] = dim
        even_light(ArraySource(pixels))


def test_glass_without_noise_is_no_border(scatter_discs: Any) -> None:
    for pixels in (scatter_discs((600, 500), 60, 1).pixels, np.full((300, 300, 3), 255, np.uint8)):
        assert even_light(ArraySource(pixels)).view is None
    half = np.clip(field().astype(int) + np.linspace(-20, 90, FIELD_WH[0])[None, :, None].astype(int), 0, 255)
    assert even_light(ArraySource(half.astype(np.uint8))).view is None


@pytest.mark.parametrize(("fade", "stray"), [(0.0, 0), (25.0, 0), (0.0, 60), (25.0, 60), (25.0, 110)])
def test_an_eyepiece_adds_no_cell_and_loses_none(pipeline: Pipeline, fade: float, stray: float) -> None:
    um = 0.15
    plain = pipeline.analyze(field(), um_per_px=um).result
    seen = seen_through(field(), 440, fade, stray=stray)
    shown, view = pipeline.analyze(seen, um_per_px=um).result, even_light(ArraySource(seen)).view
    assert view is not None
    expected = counted_in_view(plain.detections.boxes, view, um, "corner")[0]
    for kind in ("rbc", "wbc", "platelet"):
        there = int((expected & (plain.detections.kinds == kind)).sum())
        found = int((shown.counted & (shown.detections.kinds == kind)).sum())
        assert abs(found - there) <= max(1, 0.03 * there), kind
    assert shown.counted_area_um2 < view.outline.area * um**2
    red = shown.detections.boxes[shown.detections.kinds == "rbc"]
    assert shown.quality.red_cell_cover == pytest.approx(areas(red).sum() * np.pi / 4 / view.outline.area, abs=1e-4)
    assert shown.quality.red_cell_cover == pytest.approx(plain.quality.red_cell_cover, rel=0.06)
    assert any("outside the field of view" in warning for warning in shown.quality.warnings)
    density = [
        (each.counted & (each.detections.kinds == "rbc")).sum() / each.counted_area_um2 for each in (plain, shown)
    ]
    assert density[1] == pytest.approx(density[0], rel=0.06)


def test_the_scale_comes_from_cells_that_the_field_stop_does_not_cut(pipeline: Pipeline) -> None:
    plain = pipeline.analyze(field()).result.scale
    shown = pipeline.analyze(seen_through(field(), 300)).result.scale
    assert shown.source == "estimated"
    assert shown.um_per_px == pytest.approx(plain.um_per_px, rel=0.03)


def test_a_field_is_measured_as_it_is_analysed(pipeline: Pipeline) -> None:
    measured = pipeline.measure(SAMPLES / "normal.jpg").diameters_px
    scale = pipeline.analyze(SAMPLES / "normal.jpg").result.scale
    assert np.median(measured) == pytest.approx(scale.red_cell_px, rel=1e-6)


def test_a_rectangular_view_has_the_frame_of_a_picture_of_that_size() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 500, (4000, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1).astype(np.float32)
    view = Region(shapely.box(100, 50, 420, 290))
    mask, area = counted_mask(boxes - np.float32([100, 50, 100, 50]), (320, 240), 0.2)
    inside, part = counted_in_view(boxes, view, 0.2, "corner")
    assert part is not None
    # The picture leaves out 2 px at the left and top only, the view on every side.
    assert part.outline.area * 0.2**2 == pytest.approx(area, rel=0.02)
    assert (inside <= mask).all()
    assert part.outline.bounds == (102, 52, 420 - 15 - 2, 290 - 15 - 2)
    assert counted_in_view(boxes, view, 0.2, "all")[0].all()
    assert counted_in_view(boxes, Region(shapely.box(0, 0, 12, 12)), 0.2, "corner")[1] is None


def test_cells_at_the_field_stop_lie_at_the_edge() -> None:
    boxes = np.float32([[90, 90, 110, 110], [3, 90, 23, 110], [45, 45, 65, 65], [98, 30, 118, 50]])
    cells = Detections(boxes, np.ones(4, np.float32), np.array(["rbc"] * 4), np.array([False, False, False, True]))
    view = Region(shapely.Point(100, 100).buffer(95))
    assert with_edge_of(cells, view).at_edge.tolist() == [False, True, False, True]
    assert with_edge_of(cells, None) is cells


@pytest.mark.parametrize("share", [0.0, 0.08])
def test_a_picture_in_which_nothing_is_left_to_brighten_says_so(share: float) -> None:
    dark = np.rint(field() * share).astype(np.uint8)
    lit = even_light(ArraySource(dark))
    assert ["too dark to be brightened" in note for note in lit.source.notes] == [True]
    assert np.array_equal(lit.source.read(0, 0, *lit.source.size_wh), dark)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5])
def test_a_dark_picture_is_counted_like_a_bright_one(pipeline: Pipeline, share: float) -> None:
    dark = np.rint(field() * share).astype(np.uint8)
    lit = even_light(ArraySource(dark))
    assert any("brightened" in note for note in lit.source.notes)
    found = [pipeline.analyze(pixels).result.detections.kinds.tolist() for pixels in (field(), dark)]
    for kind in ("rbc", "wbc"):
        assert found[1].count(kind) == pytest.approx(found[0].count(kind), rel=0.01)


@pytest.mark.parametrize("dark", [1.0, 0.5])
def test_light_that_falls_to_the_corners_is_evened(pipeline: Pipeline, dark: float) -> None:
    y, x = np.mgrid[: FIELD_WH[1], : FIELD_WH[0]]
    from_middle = np.hypot(x - FIELD_WH[0] / 2, y - FIELD_WH[1] / 2) / np.hypot(*FIELD_WH) * 2
    pixels = np.rint(field() * (dark * (1 - 0.65 * from_middle**2))[..., None]).astype(np.uint8)
    lit = even_light(ArraySource(pixels))
    assert "uneven light" in lit.source.notes[0]
    assert (len(lit.source.notes) == 2) == (dark < 1)
    assert lit.view is None
    evened = lit.source.read(0, 0, *FIELD_WH)
    corner, middle = (np.percentile(part.max(axis=2), 90) for part in (evened[:150, :150], evened[400:550, 500:700]))
    assert corner == pytest.approx(middle, rel=0.12)
    plain, found = (pipeline.analyze(each).result.detections.kinds.tolist() for each in (field(), pixels))
    for kind in ("rbc", "wbc"):
        assert found.count(kind) == pytest.approx(plain.count(kind), rel=0.02)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("least", [0.3, 0.45, 0.6])
def test_light_that_falls_slowly_is_no_surround(power: int, least: float) -> None:
    y, x = np.mgrid[: FIELD_WH[1], : FIELD_WH[0]]
    far = (np.hypot(x - FIELD_WH[0] / 2, y - FIELD_WH[1] / 2) / np.hypot(*FIELD_WH) * 2) ** (2 * power)
    pixels = np.rint(field() * (1 - (1 - least) * far)[..., None]).astype(np.uint8)
    assert even_light(ArraySource(pixels)).view is None


@pytest.mark.parametrize("peak", [0.45, 0.55])
def test_a_dark_picture_lit_from_a_side_is_not_burnt_out(peak: float) -> None:
    y, x = np.mgrid[: FIELD_WH[1], : FIELD_WH[0]]
    far = np.hypot(x / FIELD_WH[0] - 0.12, (y / FIELD_WH[1] - 0.15) * 0.75) / 0.5
    light = peak * np.clip(1 - 0.7 * far**2, 0.3, 1)
    lit = even_light(ArraySource(np.rint(field() * light[..., None]).astype(np.uint8)))
    assert "uneven light" in lit.source.notes[0]
    shown = lit.source.read(0, 0, *FIELD_WH)
    assert (shown == 255).any(axis=2).mean() < 0.05
    assert 125 < np.percentile(shown.max(axis=2), 80) < 225


def test_black_that_is_no_surround_is_left_alone() -> None:
    size = (900, 1200, 3)
    cross = np.full(size, 220, np.uint8)
    cross[:, 550:650] = cross[400:500] = 0
    cross[:300, :400] = 0
    nothing = np.zeros(size, np.uint8)
    nucleus = cv2.circle(np.full(size, 220, np.uint8), (10, 10), 120, (70, 30, 110), -1)
    glowing = np.zeros(size, np.uint8)
    for x, y in ((200, 200), (700, 300), (450, 650), (1000, 700)):
        cv2.circle(glowing, (x, y), 120, (220, 220, 220), -1)
    for pixels in (cross, nothing, nucleus, glowing):
        assert even_light(ArraySource(pixels)).view is None


def test_a_large_scan_that_says_its_scale_is_not_looked_at() -> None:
    class Scan:
        size_wh, um_per_px = (illumination.MOST_PIXELS // 1000 + 1, 1000), 0.25

    scan: Any = Scan()
    assert even_light(scan).source is scan


def test_a_picture_that_is_held_in_memory_is_put_right_whatever_its_size(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hazy = np.rint(230 - (230 - field().astype(float)) * 0.2).clip(0, 255).astype(np.uint8)
    shown = seen_through(hazy, 440)
    small = pipeline.analyze(shown).result
    assert [note.split(" ")[0] for note in small.reading] == ["the", "contrast"]
    write_picture(tmp_path / "field.png", shown)
    monkeypatch.setattr(illumination, "MOST_PIXELS", 1000)
    for picture in (shown, tmp_path / "field.png"):
        large = pipeline.analyze(picture).result
        assert large.reading == small.reading
        assert np.array_equal(large.detections.boxes, small.detections.boxes)
        assert large.counted_area_um2 == small.counted_area_um2


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("plain", ""),
        ("white border", ""),
        ("dark", "dark"),
        ("eyepiece", "black at a corner"),
        ("yellow", "tinted"),
        ("lit from a side", "darker towards a corner"),
        ("dark eyepiece", "dark, black at a corner"),
    ],
)
def test_a_large_picture_that_is_left_as_it_is_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, words: str
) -> None:
    shade = np.linspace(1, 0.4, FIELD_WH[0])[None, :, None]
    pixels = {
        "plain": field(),
        "white border": framed(field(), "border", (255, 255, 255))[0],
        "dark": np.rint(field() * 0.4).astype(np.uint8),
        "eyepiece": seen_through(field(), 440),
        "yellow": np.rint(field() * np.array([1, 0.95, 0.5])).astype(np.uint8),
        "lit from a side": np.rint(field() * shade).astype(np.uint8),
        "dark eyepiece": seen_through(np.rint(field() * 0.4).astype(np.uint8), 440),
    }[kind]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(256, 256), metadata=None)
    monkeypatch.setattr(illumination, "MOST_PIXELS", 1_000_000)
    monkeypatch.setattr(illumination, "_SQUARE_PX", 16)
    source = open_image(tmp_path / "a.tif")
    lit = even_light(source)
    told = f"{words}, and left so: a picture of more than 1 megapixels that is read by regions is taken for a scan"
    assert lit.source.notes == ((f"{told}; save a photograph as JPEG or PNG",) if words else ())
    assert (lit.source is source) == (not words)
    assert lit.view is None
    assert np.array_equal(lit.source.read(500, 300, 200, 200), pixels[300:500, 500:700])
    assert lit.source.sha256 == source.sha256


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_picture_is_put_right_in_the_memory_of_one_more(share: float) -> None:
    pixels = seen_through(np.rint(field() * share).astype(np.uint8), 440)
    source = ArraySource(cv2.resize(pixels, (4800, 3600)).astype(np.uint8))
    tracemalloc.start()
    lit = even_light(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lit.source.notes) == (2 if share < 1 else 1)
    assert source.pixels.nbytes < peak < 1.6 * source.pixels.nbytes  # with a mask of a third of it


def test_what_is_not_counted_is_dimmed_on_the_overlay(pipeline: Pipeline) -> None:
    pixels = np.full((80, 100, 3), 200, np.uint8)
    ring = shapely.box(20, 20, 60, 60).difference(shapely.box(30, 30, 40, 40))
    dimmed = dim_outside(np.repeat(np.repeat(pixels, 2, 0), 2, 1), Region(ring), (100, 80))
    inside = np.zeros((160, 200), bool)
    inside[40:120, 40:120] = True
    inside[60:80, 60:80] = False
    assert ((dimmed[..., 0] == 200) == inside).mean() > 0.99
    assert set(np.unique(dimmed).tolist()) == {130, 200}
    analysis = pipeline.analyze(seen_through(field(), 440))
    plain, lit = analysis.overlay(), analysis.source.read(0, 0, 20, 20)
    assert plain[:20, :20].mean() == pytest.approx(0.65 * lit.mean(), abs=2)


def test_the_patches_of_a_dark_picture_are_those_of_what_was_analysed(pipeline: Pipeline) -> None:
    analysis = pipeline.analyze(np.rint(field() * 0.4).astype(np.uint8))
    patch = next(iter(analysis.patches()))
    assert np.percentile(patch.pixels, 90) > 150
