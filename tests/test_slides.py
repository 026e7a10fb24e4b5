"""Slides through OpenSlide, against slides made here: a tiled TIFF, an SVS and a MIRAX slide of known pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import shutil
import struct
import sys
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from conftest import whole
from PIL import Image

from smearcount.arrays import Pixels
from smearcount.errors import ImageError
from smearcount.images import ArraySource, ReadLimits, content_sha256, find_images, open_image
from smearcount.images.choice import PageChoice
from smearcount.images.slides import SlideSource, open_slide
from smearcount.images.tiff import TiffSource

LIMITS = ReadLimits()
APERIO = "Aperio Image Library v11.2.1\r\n512x384 [0,0 512x384] (64x64) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2498"
REGIONS = [(0, 0, 512, 384), (0, 0, 1, 1), (511, 383, 1, 1), (100, 90, 300, 200), (63, 64, 65, 64), (7, 0, 500, 384)]


def noise(height: int = 384, width: int = 512, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiled(path: Path, pixels: Pixels, **more: Any) -> Path:
    """A tiled TIFF of tiles of 64 px at 0.2 um a pixel, the first page of a pyramid."""
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate", "metadata": None}
    resolution = {"resolution": (50_000, 50_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=more.pop("bigtiff", False)) as writer:
        writer.write(pixels, **options, **resolution, **more)
        if "compression" not in more:
            for step in (2, 4):
                writer.write(pixels[::step, ::step].copy(), subfiletype=1, **options)
    return path


def svs(path: Path, pixels: Pixels) -> Path:
    """What OpenSlide takes for a slide by Aperio: a tiled TIFF whose description says so."""
    return tiled(path, pixels, description=APERIO)


def mirax(path: Path, pixels: Pixels, missing: set[int]) -> Path:
    """A MIRAX slide of one level in tiles of 64 px without overlap, some of which were not scanned.

    Layout: the description of the format in OpenSlide (openslide.org/formats/mirax).
    """
    folder = path.with_suffix("")
    folder.mkdir()
    rows, columns = pixels.shape[0] // 64, pixels.shape[1] // 64
    section = {"OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": 0.23, "MICROMETER_PER_PIXEL_Y": 0.23}
    section |= {"IMAGE_FORMAT": "PNG", "IMAGE_FILL_COLOR_BGR": 0, "DIGITIZER_WIDTH": 64, "DIGITIZER_HEIGHT": 64}
    groups = {
        "GENERAL": {
            **{"SLIDE_VERSION": "01.02", "SLIDE_ID": "A" * 32, "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows},
            "OBJECTIVE_MAGNIFICATION": 40,
        },
        "HIERARCHICAL": {
            **{"HIER_COUNT": 1, "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat", "HIER_0_NAME": "Slide zoom level"},
            **{"HIER_0_COUNT": 1, "HIER_0_VAL_0_SECTION": "LEVEL_0"},
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        "LEVEL_0": {**section, "IMAGE_CONCAT_FACTOR": 0},
    }
    lines = [f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in values.items()) for name, values in groups.items()]
    (folder / "Slidedat.ini").write_text("".join(lines))
    data, records = b"", b""
    for index in sorted(set(range(rows * columns)) - missing):
        top, left = 64 * (index // columns), 64 * (index % columns)
        tile = cv2.imencode(".png", pixels[top : top + 64, left : left + 64, ::-1])[1].tobytes()
        records += struct.pack("<4i", index, len(data), len(tile), 0)
        data += tile
    (folder / "Data0000.dat").write_bytes(data)
    # Version and id, two roots; the level's pointer, its list of pages, and the only page.
    start = 5 + 32 + 8
    index = struct.pack("<2i", start, start) + struct.pack("<i", start + 4) + struct.pack("<2i", 0, start + 12)
    index += struct.pack("<2i", len(records) // 16, 0) + records
    (folder / "Index.dat").write_bytes(b"01.02" + b"A" * 32 + index)
    path.write_bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    return path


def refused(path: Path, words: str, **chosen: Any) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path, **chosen)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "; " in message, "no remedy"
    return message


# Which library reads what


def test_plain_tiled_tiffs_are_read_alike_by_both_libraries(tmp_path: Path) -> None:
    pixels = noise()
    path = tiled(tmp_path / "a.tif", pixels)
    ours, slide = open_image(path), open_slide(path, LIMITS, PageChoice(), "nobody")
    assert isinstance(ours, TiffSource)
    assert slide.notes == ("read with OpenSlide as generic-tiff", "full resolution of the slide read")
    assert (slide.size_wh, slide.um_per_px) == (ours.size_wh, pytest.approx(ours.um_per_px))
    assert slide.um_per_px == pytest.approx(0.2)
    assert slide.scale_origin == "OpenSlide mpp"
    for x, y, w, h in REGIONS:
        assert np.array_equal(slide.read(x, y, w, h), pixels[y : y + h, x : x + w])
        assert np.array_equal(ours.read(x, y, w, h), pixels[y : y + h, x : x + w])
    assert slide.sha256 == ours.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jpeg_tiles_are_read_alike_by_both_libraries(tmp_path: Path) -> None:
    soft = cv2.GaussianBlur(noise(), (0, 0), 4).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, soft, photometric="rgb", tile=(64, 64), compression="jpeg", metadata=None)
    slide, ours = open_slide(path, LIMITS, PageChoice(), "nobody"), open_image(path)
    assert np.abs(whole(slide).astype(int) - whole(ours)).max() <= 2
    assert np.abs(whole(slide).astype(int) - soft).mean() < 4


def test_a_scanner_s_tiff_belongs_to_openslide(tmp_path: Path) -> None:
    pixels = noise()
    source = open_image(svs(tmp_path / "a.svs", pixels))
    assert isinstance(source, SlideSource)
    assert source.notes == ("read with OpenSlide as aperio", "full resolution of the slide read")
    assert (source.um_per_px, source.scale_origin) == (0.2498, "OpenSlide mpp")
    for x, y, w, h in REGIONS:
        assert np.array_equal(source.read(x, y, w, h), pixels[y : y + h, x : x + w])
    region = source.read(3, 4, 5, 6)
    region[:] = 0
    assert np.array_equal(source.read(3, 4, 5, 6), pixels[4:10, 3:8])


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    assert isinstance(open_image(svs(tmp_path / "a.tif", noise())), SlideSource)
    assert isinstance(open_image(tiled(tmp_path / "b.svs", noise())), TiffSource)
    # A field that was cut from a slide and kept its description is no slide any more.
    tifffile.imwrite(tmp_path / "c.svs", noise(), photometric="rgb", description=APERIO, metadata=None)
    cut = open_image(tmp_path / "c.svs")
    assert isinstance(cut, ArraySource)
    assert cut.um_per_px == 0.2498


def test_a_page_that_is_asked_for_is_a_page_of_the_tiff(tmp_path: Path) -> None:
    pixels = noise()
    source = open_image(svs(tmp_path / "a.svs", pixels), page=2)
    assert isinstance(source, TiffSource)
    assert np.array_equal(whole(source), pixels[::2, ::2])


@pytest.mark.parametrize("name", ["a.svs", "b.tif"])
def test_levels(tmp_path: Path, name: str) -> None:
    pixels = noise()
    path = (svs if name == "a.svs" else tiled)(tmp_path / name, pixels)
    full = open_image(path)
    for level, step in ((0, 1), (1, 2), (2, 4)):
        source = open_image(path, level=level)
        assert source.size_wh == (512 // step, 384 // step)
        assert source.um_per_px == pytest.approx(full.um_per_px * step)
        assert np.array_equal(whole(source), pixels[::step, ::step])
        assert np.array_equal(source.read(10, 20, 30, 40), pixels[::step, ::step][20:60, 10:40])
        assert any(note.startswith(f"level {level} of 0 to 2") for note in source.notes) == (level > 0)
    for level in (-1, 3):
        refused(path, f"level {level} was asked for, it has 3; give 0 to 2", level=level)


def test_a_pixel_of_a_level_has_one_value_and_none_is_lost(tmp_path: Path) -> None:
    pixels = noise(1603, 1201)
    path = svs(tmp_path / "a.svs", pixels)
    for level, step in ((1, 2), (2, 4)):
        source = open_image(path, level=level)
        assert isinstance(source, SlideSource)
        assert not source.downsample.is_integer()
        width, height = source.size_wh
        assert (height, width) == pixels[::step, ::step].shape[:2]
        once = whole(source)
        assert np.array_equal(once[:64, :64], pixels[::step, ::step][:64, :64])
        for x, y, w, h in ((0, 0, 1, 1), (37, 101, 200, 90), (width - 90, height - 150, 90, 150), (1, 3, width - 1, 9)):
            assert np.array_equal(source.read(x, y, w, h), once[y : y + h, x : x + w])


def test_a_level_too_coarse_to_count_is_refused(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.svs", noise(), description=APERIO.replace("0.2498", "0.7"))
    assert open_image(path, level=1).um_per_px == pytest.approx(1.4)
    refused(path, "level 2 is 2.8 um a pixel, too coarse to count; give a finer --level", level=2)
    given = open_image(path, ReadLimits(scale_given=True), level=2)
    assert given.um_per_px is None
    assert "OpenSlide mpp 2.8 um a pixel not believed" in given.notes


def test_a_slide_has_no_channels(tmp_path: Path) -> None:
    path = svs(tmp_path / "a.svs", noise())
    refused(path, "channel 1 was asked for, but a slide by Aperio is read in colour; leave the channel out", channel=1)
    with pytest.raises(ImageError, match="page 2 was asked for"):
        open_slide(path, LIMITS, PageChoice(page=2), "Aperio")


# What was not scanned


def test_a_mirax_slide_is_read_within_its_bounds_and_white_where_nothing_was_scanned(tmp_path: Path) -> None:
    pixels = noise(384, 512)
    border = {n for n in range(48) if n // 8 == 0 or n % 8 in (0, 1)}
    path = mirax(tmp_path / "a.mrxs", pixels, border | {20})
    expected = pixels.copy()
    expected[128:192, 256:320] = 255
    source = open_image(path)
    assert isinstance(source, SlideSource)
    assert (source.size_wh, source.um_per_px) == ((384, 320), 0.23)
    assert source.notes[-1] == "scanned part of 384 x 320 px at 128, 64 read"
    assert np.array_equal(whole(source), expected[64:, 128:])
    assert np.array_equal(source.read(100, 50, 90, 200), expected[114:314, 228:318])
    with pytest.raises(ValueError, match="region"):
        source.read(0, 0, 385, 320)
    assert [each.name for each in find_images(tmp_path, recursive=True)] == ["a.mrxs"]


def test_the_checksum_of_a_mirax_slide_covers_its_folder(tmp_path: Path) -> None:
    path = mirax(tmp_path / "a.mrxs", noise(128, 128), set())
    first = open_image(path).sha256
    assert first == content_sha256(path) != hashlib.sha256(path.read_bytes()).hexdigest()
    data = tmp_path / "a" / "Data0000.dat"
    data.write_bytes(data.read_bytes() + b"\0")
    assert content_sha256(path) != first


def fake(properties: dict[str, str], rgba: Pixels) -> Any:
    """A slide of one level that shows `rgba (H, W, 4)` and counts the pixels it gives at once."""

    def read_region(location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        assert level == 0
        asked.append(size[0] * size[1])
        (x, y), (w, h) = location, size
        return Image.fromarray(rgba[y : y + h, x : x + w])

    asked: list[int] = []
    size = (rgba.shape[1], rgba.shape[0])
    shape = {"level_count": 1, "level_dimensions": (size,), "level_downsamples": (1.0,), "dimensions": size}
    return SimpleNamespace(**shape, properties=properties, read_region=read_region, asked=asked)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Open a fake slide."""

    def make(properties: dict[str, str], rgba: Pixels) -> Any:
        class Library:
            detect_format = staticmethod(lambda path: "fake")

            def __new__(cls, path: Path) -> Any:
                return fake(properties, rgba)

        monkeypatch.setattr(openslide, "OpenSlide", Library)
        return open_slide(tmp_path / "a.mrxs", LIMITS, PageChoice(), "MIRAX")

    return make


def bounds(x: object, y: object, w: object, h: object) -> dict[str, str]:
    return {f"openslide.bounds-{n}": str(v) for n, v in zip(("x", "y", "width", "height"), (x, y, w, h), strict=True)}


def test_partly_transparent_pixels_are_composited_on_white(opened: Any) -> None:
    rgba = np.dstack([noise(64, 64), np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))])
    cover = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * cover + 255 * (1 - cover))
    assert np.array_equal(whole(opened({}, rgba)), expected)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (bounds(10, 20, 100, 90), (10, 20, 100, 90)),
        (bounds(10, 20, 999, 999), (10, 20, 190, 140)),
        (bounds(-5, 0, 200, 160), (0, 0, 200, 160)),
        (bounds("x", 20, 100, 90), (0, 0, 200, 160)),
        (dict(list(bounds(10, 20, 100, 90).items())[:3]), (0, 0, 200, 160)),
        ({}, (0, 0, 200, 160)),
    ],
)
def test_bounds(opened: Any, told: dict[str, str], expected: tuple[int, int, int, int]) -> None:
    pixels = noise(160, 200)
    source = opened(told, np.dstack([pixels, np.full((160, 200), 255, np.uint8)]))
    x, y, w, h = expected
    assert np.array_equal(whole(source), pixels[y : y + h, x : x + w])
    assert any("scanned part" in note for note in source.notes) == (expected != (0, 0, 200, 160))


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [(("0.25", "0.25"), 0.25), (("0.25", "0.3"), None), (("25", "25"), None), (("0", "0"), None), (("", ""), None)],
)
def test_only_a_plausible_size_of_pixels_is_believed(opened: Any, mpp: tuple[str, str], expected: float | None) -> None:
    told = {"openslide.mpp-x": mpp[0], "openslide.mpp-y": mpp[1]}
    source = opened(told, np.full((64, 64, 4), 255, np.uint8))
    assert source.um_per_px == expected
    assert ("OpenSlide mpp ignored: pixels of 0.25 x 0.3 um are not square" in source.notes) == (mpp[1] == "0.3")
    assert ("OpenSlide mpp 25 um a pixel not believed" in source.notes) == (mpp[1] == "25")


@pytest.mark.parametrize(("width", "fits"), [(256, True), (33_554_688, False)])
def test_a_slide_of_absurd_tiles_is_corrupt(opened: Any, width: int, fits: bool) -> None:
    told = {"openslide.level[0].tile-width": str(width), "openslide.level[0].tile-height": "256"}
    rgba = np.full((64, 64, 4), 255, np.uint8)
    if fits:
        assert opened(told, rgba).size_wh == (64, 64)
    else:
        with pytest.raises(ImageError, match="is corrupt: its tiles have 33554688 x 256 px; copy"):
            opened(told, rgba)


# Memory and threads


def test_a_large_region_is_read_in_blocks(opened: Any) -> None:
    rgba = np.dstack([noise(2500, 2000), np.full((2500, 2000), 255, np.uint8)])
    source = opened({}, rgba)
    tracemalloc.start()
    region = whole(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(region, rgba[..., :3])
    assert max(source.slide.asked) <= 512 * 512
    assert sum(source.slide.asked) == 2500 * 2000
    assert peak < region.nbytes + 4 * 4 * 512 * 512


def test_only_the_region_is_held(tmp_path: Path) -> None:
    path = svs(tmp_path / "a.svs", np.full((4096, 4096, 3), 200, np.uint8))
    tracemalloc.start()
    source = open_image(path, ReadLimits(max_megapixels=1))
    for x in range(0, 3072, 512):
        source.read(x, 1000, 512, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 512 * 512 * 3


def test_threads_read_one_slide(tmp_path: Path) -> None:
    pixels = noise()
    source = open_image(svs(tmp_path / "a.svs", pixels))
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            x, y = int(rng.integers(400)), int(rng.integers(300))
            if not np.array_equal(source.read(x, y, 90, 80), pixels[y : y + 80, x : x + 90]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pickled_source_reads_the_same_in_another_process(tmp_path: Path) -> None:
    two, pixels = tmp_path / "two.tif", noise()
    tifffile.imwrite(two, np.stack([pixels, pixels[::-1]]), photometric="rgb", tile=(64, 64))
    sources = [open_image(two, page=2), open_image(svs(tmp_path / "a.svs", pixels), ReadLimits(scale_given=True))]
    assert [type(source) for source in sources] == [TiffSource, SlideSource]
    for source in sources:
        told = dataclasses.replace(source, notes=("of the first process",))  # type: ignore[type-var]
        copy = pickle.loads(pickle.dumps(told))
        assert type(copy) is type(source)
        assert (copy.path, copy.um_per_px, copy.notes) == (source.path, source.um_per_px, ("of the first process",))
        np.testing.assert_array_equal(copy.read(100, 90, 300, 200), source.read(100, 90, 300, 200))


# Bad slides


def test_a_damaged_tile_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = svs(tmp_path / "a.svs", noise())
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[9]
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 400)
    source = open_image(path)
    # Only the tiles of a region are decoded, so damage elsewhere is no concern of it.
    assert np.array_equal(source.read(150, 130, 200, 250), noise()[130:380, 150:350])
    with pytest.raises(ImageError, match=rf"^{path}: is corrupt or truncated .*; copy it again"):
        whole(source)


def test_truncated_slides(tmp_path: Path) -> None:
    data = svs(tmp_path / "a.svs", noise()).read_bytes()
    for kept in (len(data) // 2, 1000, 200, 16, 9, 4):
        (tmp_path / "cut.svs").write_bytes(data[:kept])
        with pytest.raises(ImageError, match=rf"^{tmp_path / 'cut.svs'}: .*; "):
            whole(open_image(tmp_path / "cut.svs"))


def test_broken_mirax_slides(tmp_path: Path) -> None:
    path = mirax(tmp_path / "a.mrxs", noise(128, 128), set())
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert "'a' is not beside it" in refused(path, "by MIRAX that is corrupt or truncated")
    shutil.move(tmp_path / "b", tmp_path / "a")
    data = (tmp_path / "a" / "Index.dat").read_bytes()
    (tmp_path / "a" / "Index.dat").write_bytes(data[:60])
    refused(path, "a slide by MIRAX that can't be opened")
    (tmp_path / "a" / "Index.dat").write_bytes(data)
    (tmp_path / "a" / "Data0000.dat").unlink()
    with pytest.raises(ImageError, match=rf"^{path}: .*; copy it again"):
        whole(open_image(path))
    path.write_bytes(b"")
    refused(path, "the file is empty")


def test_a_slide_too_small_for_a_cell(tmp_path: Path) -> None:
    refused(svs(tmp_path / "a.svs", noise(24, 512)), "at least 32 px")


def test_without_the_library_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, plain = svs(tmp_path / "a.svs", noise()), tiled(tmp_path / "b.tif", noise())
    monkeypatch.setitem(sys.modules, "openslide", None)
    refused(slide, "a slide by Aperio, which is read with OpenSlide, and that is not installed; python -m pip install")
    refused(mirax(tmp_path / "c.mrxs", noise(64, 64), set()), "openslide-python openslide-bin")
    assert open_image(plain).size_wh == (512, 384)
    assert open_image(slide, page=1).size_wh == (512, 384)
